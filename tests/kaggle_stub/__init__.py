"""A stand-in for the service on 127.0.0.1, for the real, unmodified client. Nothing can leave the machine."""

from tests.kaggle_stub.server import ACCOUNT, SECRET, Stub, client_environment
from tests.kaggle_stub.world import World

__all__ = ["ACCOUNT", "SECRET", "Stub", "World", "client_environment"]

"""A run that is told to stop (SIGTERM: a notebook's limit, a queue's) writes down what it has, instead of dying."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """Raised wherever the run is when the signal arrives. No Exception: nothing that repairs faults may swallow it."""


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the writing
    raise Stopped


@contextmanager
def on_sigterm() -> Iterator[None]:
    """SIGTERM raises ``Stopped`` inside; the handler that was there before comes back. Other threads see no change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Record what real versions of the client print for every HTTP status, against the stand-in of the service.

    python -m tests.kaggle_stub.record_replies PYTHON...

Each PYTHON is the interpreter of an environment with one version of the client (and six). Writes replies.json beside
this file: version -> situation -> [exit code, stdout, stderr].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.kaggle_stub import Stub, client_environment
from tests.kaggle_stub.server import ACCOUNT
from tests.kaggle_stub.world import CAPACITY, QUOTA, World

FILE = Path(__file__).with_name("replies.json")
DOWNLOAD = ("competitions", "download", "some-competition")
PUSH = ("kernels", "push", "-p", ".")
STATUS = ("kernels", "status", f"{ACCOUNT}/some-kernel")
SETS = ("datasets", "status", f"{ACCOUNT}/some-weights")
CALLS = ("DownloadDataFiles", "SaveKernel", "GetKernelSessionStatus", "GetDatasetStatus")
METADATA = {
    "id": f"{ACCOUNT}/some-kernel",
    "title": "Some kernel",
    "code_file": "script.py",
    "language": "python",
    "kernel_type": "script",
    "is_private": True,
    "enable_gpu": True,
    "enable_internet": False,
    "dataset_sources": [f"{ACCOUNT}/some-weights"],
    "competition_sources": [],
    "kernel_sources": [],
    "model_sources": [],
}


def refused(status: int, message: str) -> Callable[[World], None]:
    """Every call fails with an HTTP status and a message, as the service writes them."""

    def play(world: World) -> None:
        world.refuse = dict.fromkeys(CALLS, (status, {"code": status, "message": message}))

    return play


def page(status: int) -> Callable[[World], None]:
    """Every call fails with a page in place of a message, as a proxy in front of the service does."""

    def play(world: World) -> None:
        world.refuse = dict.fromkeys(CALLS, (status, b"<html>no</html>"))  # type: ignore[dict-item]

    return play


def inside_200(message: str) -> Callable[[World], None]:
    """A push fails inside a reply with HTTP status 200."""

    def play(world: World) -> None:
        world.push_error = message

    return play


def without_sources(world: World) -> None:
    world.not_valid = frozenset({f"{ACCOUNT}/some-weights"})


RULES = "You must accept this competition's rules before you can continue"
SITUATIONS: dict[str, tuple[tuple[str, ...], Callable[[World], None]]] = {
    "400 download": (DOWNLOAD, refused(400, "Invalid file name")),
    "401 download": (DOWNLOAD, refused(401, "Unauthenticated")),
    "401 status": (STATUS, refused(401, "Unauthenticated")),
    "403 download, rules": (DOWNLOAD, refused(403, RULES)),
    "403 push": (PUSH, refused(403, "Permission 'kernels.update' was denied")),
    "403 status": (STATUS, refused(403, "Permission 'kernels.get' was denied")),
    "403 data set": (SETS, refused(403, "Permission 'datasets.get' was denied")),
    "404 download": (DOWNLOAD, refused(404, "Competition not found")),
    "404 data set": (SETS, refused(404, "Dataset not found")),
    "404 push": (PUSH, refused(404, "Notebook not found")),
    "409 push": (PUSH, refused(409, "The notebook title is already in use")),
    "429 download": (DOWNLOAD, refused(429, "Too many requests")),
    "429 push, sessions": (PUSH, refused(429, CAPACITY)),
    "429 push, quota": (PUSH, refused(429, QUOTA)),
    "429 status, unknown words": (STATUS, refused(429, "Please slow down")),
    "500 push": (PUSH, refused(500, "Internal Server Error")),
    "500 data set": (SETS, refused(500, "An error occurred while processing your request")),
    "502 status, page": (STATUS, page(502)),
    "503 download": (DOWNLOAD, refused(503, "Service Unavailable")),
    "503 download, page": (DOWNLOAD, page(503)),
    "504 push": (PUSH, refused(504, "Gateway Timeout")),
    "200 push, sessions": (PUSH, inside_200(CAPACITY)),
    "200 push, quota": (PUSH, inside_200(QUOTA)),
    "200 push, not found": (PUSH, inside_200("Notebook not found")),
    "200 push, source left out": (PUSH, without_sources),
}


def answer(python: str, words: tuple[str, ...], play: Callable[[World], None]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    with Stub() as stub, tempfile.TemporaryDirectory() as folder:
        play(stub.world)
        Path(folder, "kernel-metadata.json").write_text(json.dumps(METADATA))
        Path(folder, "script.py").write_text("print()\n")
        environment = client_environment(stub, Path(folder) / "home") | {"PATH": os.defpath}
        command = [python, "-m", "kaggle", *words]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
        out, err = (text.replace(stub.address, "http://service") for text in (done.stdout, done.stderr))
        return done.returncode, out, err


def version_of(python: str) -> str:
    text = "import importlib.metadata; print(importlib.metadata.version('kaggle'))"
    return subprocess.run([python, "-c", text], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def main(pythons: list[str]) -> None:
    replies = {
        version_of(python): {name: answer(python, *situation) for name, situation in SITUATIONS.items()}
        for python in pythons
    }
    FILE.write_text(json.dumps(replies, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

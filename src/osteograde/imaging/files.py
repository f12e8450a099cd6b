"""Whole files into memory: regular files only, held against a cap, asked again where a network mount stumbles.

Files that are there whole or not at all: whoever reads them, or is killed while writing, meets no half of one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from io import FileIO
from pathlib import Path

import numpy as np

ASK_AGAIN_S = (0.1, 0.4)  # waits before the second and the third try
PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY})


class FileTooLarge(OSError):
    """A file that has more bytes than the caller takes."""


def read_bytes(path: Path, most: int) -> memoryview:
    """The bytes of a regular file of at most ``most`` bytes; raises OSError (FileTooLarge where it has more).

    They may be written to. Errors that pass on a network mount are tried twice more, after a moment; others, such as a
    forbidden file, are not.
    """
    for wait_s in (*ASK_AGAIN_S, None):
        try:
            return _read(path, most)
        except OSError as error:
            if wait_s is None or error.errno not in PASSING:
                raise
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _read(path: Path, most: int) -> memoryview:
    # Without O_NONBLOCK opening a named pipe would wait for ever; regular files ignore it. Reading into a buffer of the
    # file's size takes half the time of a buffered file, a third less again where it is not zeroed first.
    with FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        told = os.fstat(file.fileno())
        if not stat.S_ISREG(told.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if told.st_size > most:
            raise FileTooLarge(errno.EFBIG, "larger than expected")
        data, filled = np.empty(told.st_size, np.uint8).data, 0
        while filled < len(data) and (count := file.readinto(data[filled:])):
            filled += count
        return data[:filled]


def atomic_write(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8, keeping its mode. OSError: what was there before is still there.

    Bytes of a file name that are no text, which Python keeps as lone surrogates, are written as escapes.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # two runs at once do not write into each other's
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

"""Files that are there whole or not at all: whoever reads them, or is killed while writing, meets no half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
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

"""Training samples cut into files of bytes once, however many processes of a run need them.

The name of a file holds a key: a hash of all that decides its bytes. So a file that is there is never written again, a
process never meets the half of one, and processes that want other samples write another file.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

T = TypeVar("T")
VERSION = 1  # change it when samples are cut otherwise from the same images


class Cutter:
    """Takes the samples of a walk over all studies, in order: their key always, their bytes where files are given."""

    def __init__(self, files: Sequence[BinaryIO] = ()) -> None:
        self.files = files
        self._hash = hashlib.sha256(str(VERSION).encode())

    def note(self, *facts: object) -> None:
        """Something that decides the bytes: texts, numbers, or arrays by their bytes."""
        for fact in facts:
            self._hash.update(fact.tobytes() if isinstance(fact, np.ndarray) else repr(fact).encode())
            self._hash.update(b"\0")

    def add(self, number: int, pixels: Callable[[], np.ndarray | bytes]) -> None:
        """Append bytes to the file of this number; ``pixels`` is called only where they are written."""
        if self.files:
            made = pixels()
            self.files[number].write(made if isinstance(made, bytes) else made.tobytes())

    @property
    def key(self) -> str:
        """16 hex digits of all that was noted so far."""
        return self._hash.hexdigest()[:16]


def cut_once(
    folder: Path, names: Sequence[str], studies: Iterable[object], walk: Callable[[Cutter], T]
) -> tuple[T, list[Path]]:
    """What a walk over all studies returns, and the files that hold its samples, one for every name.

    walk: notes and adds every sample, and may be called twice. It is called once where nothing has been cut before, or
    where ``studies``, over which it goes, can be read only once. Whatever it raises leaves no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = _keys(folder, names)
    if known and iter(studies) is not studies:
        cutter = Cutter()
        result = walk(cutter)
        if cutter.key in known:
            return result, [_path(folder, name, cutter.key) for name in names]
    parts = [folder / f"{name}.{uuid.uuid4().hex}.part" for name in names]
    try:
        with ExitStack() as opened:
            cutter = Cutter([opened.enter_context(part.open("wb")) for part in parts])
            result = walk(cutter)
        paths = [_path(folder, name, cutter.key) for name in names]
        for part, path in zip(parts, paths, strict=True):
            if not path.is_file():  # another process may have it open already
                part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return result, paths


def remove(folder: Path, names: Sequence[str]) -> None:
    """Remove the files of these names, of whatever key. On Windows a file that is mapped into memory stays."""
    for name in names:
        for path in _files(folder, name).values():
            with suppress(OSError):
                path.unlink()


def _path(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}.{key}.u8"


def _keys(folder: Path, names: Sequence[str]) -> set[str]:
    """The keys under which a file of every name is there."""
    return set.intersection(*(set(_files(folder, name)) for name in names))


def _files(folder: Path, name: str) -> dict[str, Path]:
    """Key -> file of this name."""
    form = re.compile(rf"{re.escape(name)}\.([0-9a-f]{{16}})\.u8")
    there = folder.iterdir() if folder.is_dir() else ()
    return {match[1]: path for path in there if (match := form.fullmatch(path.name))}

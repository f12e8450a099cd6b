"""A folder of DICOM files to volumes. Each file is opened once; one that cannot be read costs its own slice only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from osteograde.imaging.dicom.read import Slice, UnreadableSlice, read_slices
from osteograde.imaging.dicom.tags import quiet_pydicom
from osteograde.imaging.dicom.volumes import stack
from osteograde.imaging.geometry import Volume


class UnreadableSeries(ValueError):
    """A folder that gives no volume. ``code`` says why in one word; ``codes`` counts the reasons per file."""

    def __init__(self, code: str, codes: Counter[str] | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.codes = codes or Counter()


def read_series(
    folder: Path,
    *,
    files: Sequence[Path] = (),
    default_directions: np.ndarray | None = None,
    map: Callable[..., Iterable] = map,
) -> tuple[list[Volume], Counter[str]]:
    """All regular files of a folder as volumes, and how often a slice was dropped or a value assumed, by code.

    Files may have any name; what is no DICOM image is passed over and counted. files: only these.
    ``default_directions`` (rows D, H, W in
    LPS) stand in for a missing orientation. ``map`` may be a thread pool's: decoding runs outside the interpreter's
    lock. Raises UnreadableSeries where the folder is missing or empty, or none of its files gives a slice.
    """
    folder = Path(folder)
    paths = list(files) or _files(folder)
    codes: Counter[str] = Counter()
    slices: list[Slice] = []
    with quiet_pydicom():
        for found in map(_slices_or_code, paths):
            if isinstance(found, str):
                codes[found] += 1
            else:
                slices += found
    if not slices:
        code = codes.most_common(1)[0][0] if codes else "empty_folder"
        raise UnreadableSeries(code, codes)
    volumes, assumed = stack(slices, folder.name, default_directions, lost=sum(codes.values()))
    return volumes, codes + assumed


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_file(entry))
    except OSError:
        raise UnreadableSeries("no_folder") from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def _slices_or_code(path: Path) -> tuple[Slice, ...] | str:
    try:
        return read_slices(path)
    except UnreadableSlice as error:
        return error.code

"""Folders of image files without tables: which files there are, and what they may be called in a submission."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from osteograde.imaging import image_files

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_ODD = re.compile(r"[^0-9A-Za-z._-]+")
MOST = 64  # characters of a name


def images(root: Path) -> list[Path]:
    """All image files below a folder in order of their paths: pictures and DICOM files, known by their suffix, and
    files without a suffix that start as DICOM does. Hidden files and folders are passed over, links to folders are not
    followed."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(files) if not name.startswith("."))
        found += [path for path in paths if path.is_file() and _is_image(path)]  # a named pipe would never end
    return found


def names(files: Sequence[Path], root: Path) -> list[str]:
    """One name per file: its stem where no other file has it, else its path below ``root``; odd characters become _.

    >>> names([Path("a/x.png"), Path("b/x.png"), Path("b/my y.png")], Path("."))
    ['a_x', 'b_x', 'my_y']
    """
    stems = Counter(_plain(file.stem) for file in files)
    short = [_plain(file.stem) for file in files]
    long = [_plain("_".join(file.relative_to(root).with_suffix("").parts)) for file in files]
    chosen = [a if stems[a] == 1 else b for a, b in zip(short, long, strict=True)]
    again = Counter(chosen)
    return [name if again[name] == 1 else f"{name}_{i}" for i, name in enumerate(chosen)]


def part_of(root: Path, part: str) -> Path:
    """The folder of a part: ROOT/<part>_images, or ROOT itself where there is none."""
    folder = Path(root) / f"{part}_images"
    return folder if folder.is_dir() else Path(root)


def _plain(name: str) -> str:
    return _ODD.sub("_", name)[-MOST:] or "_"


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if image_files.is_image(path) or suffix in DICOM_SUFFIXES:
        return True
    if suffix:
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False

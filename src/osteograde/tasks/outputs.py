"""Folders of outputs that lie in a folder of data: they are marked, so that no later run takes them for data.

Kernels do not carry this module: what they read and what they write lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from osteograde.errors import UserError
from osteograde.imaging.discovery import OUTPUT_MARK, has_images, is_output, part_folder
from osteograde.tasks.places import Paths, as_paths

MARK_TEXT = "osteograde wrote this folder and does not read it as data; without this file it does.\n"


def prepare_outputs(data: Paths, folders: Mapping[str, Path | None]) -> None:
    """Make and mark the folders of outputs that lie in a folder of data, so that no later run takes what is written
    there for images or studies; other folders are left as they are.

    folders: option -> the folder that it names, None where it is not given. UserError, before anything is made, where
    such a folder is one of data itself, or already holds images that may be somebody's data.
    """
    inside = {option: folder for option, folder in folders.items() if folder is not None and _is_read(folder, data)}
    for option, folder in inside.items():
        if any(folder.resolve() == place.resolve() for place in as_paths(data)):
            raise UserError(f"{option} {folder}: is the folder of --data itself; name another folder, or one below it")
        if folder.is_dir() and not is_output(folder) and has_images(folder):
            raise UserError(
                f"{option} {folder}: lies in --data and holds images already, so what is written there could not be "
                "told from data; name a new folder, or remove this one if an earlier run wrote it"
            )
    for folder in inside.values():
        _mark(folder)


def _is_read(folder: Path, data: Paths) -> bool:
    """Whether a folder lies where studies are looked for, or is one of the places themselves."""
    real = folder.resolve()
    places = [place for place in as_paths(data) if place.is_dir()]
    searched = [part_folder(place, part) for place in places for part in ("train", "test")]
    return any(real == place.resolve() for place in places) or any(
        real.is_relative_to(place.resolve()) for place in searched
    )


def _mark(folder: Path) -> None:
    """Make a folder, and mark it as one that osteograde writes: ``look_through`` passes over it, and counts it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_output(folder):
        (folder / OUTPUT_MARK).write_text(MARK_TEXT, encoding="utf-8")

"""The studies of one or several folders and single files, as one list in which no two share an id.

One folder is what the task reads of it, word for word. Of several, each folder is read for itself, and all single files
together. Ids that several of them have get the way to their folder in front, so that neither the order in which places
are given nor what else lies there decides what a study is called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from osteograde.errors import UserError
from osteograde.imaging.discovery import has_images, is_output, mark_output, part_folder, unique_names
from osteograde.tasks.spec import Study, Task

log = logging.getLogger(__name__)

Paths = Path | str | Sequence[Path | str]


def as_paths(data: Paths) -> tuple[Path, ...]:
    """One place or several, as paths."""
    return (Path(data),) if isinstance(data, (str, Path)) else tuple(map(Path, data))


def check_places(places: Sequence[Path]) -> None:
    """UserError that names the first place that is neither a folder nor a file."""
    for path in places:
        if not (path.is_dir() or path.is_file()):
            raise UserError(f"{path}: no such folder or file; --data names folders with tables and images, or images")


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
        mark_output(folder)


def _is_read(folder: Path, data: Paths) -> bool:
    """Whether a folder lies where studies are looked for, or is one of the places themselves."""
    real = folder.resolve()
    places = [place for place in as_paths(data) if place.is_dir()]
    searched = [part_folder(place, part) for place in places for part in ("train", "test")]
    return any(real == place.resolve() for place in places) or any(
        real.is_relative_to(place.resolve()) for place in searched
    )


def only_folder(data: Paths) -> Path | None:
    """The folder where one alone is given; None for a single file and for several places."""
    places = as_paths(data)
    return places[0] if len(places) == 1 and places[0].is_dir() else None


def read_places(task: Task, data: Paths) -> list[Study]:
    """The studies to be graded at one or several places, in the order of the places; ids are unique.

    UserError where a place is missing, holds no images, or is a file and the task takes folders alone.
    """
    if (folder := only_folder(data)) is not None:
        return task.read(folder, "test")
    places = as_paths(data)
    check_places(places)
    kept = _once(places)
    read: list[tuple[Path, list[Study]]] = []
    if files := [path for path in kept if not path.is_dir()]:
        if task.read_files is None:
            raise UserError(f"{files[0]}: {task.name} reads folders of studies, no single files")
        root, below = _below_one_folder(files)
        read.append((root, task.read_files(root, below)))
    folders = [(path, task.read(path, "test")) for path in kept if path.is_dir()]
    first_file = next((i for i, path in enumerate(kept) if not path.is_dir()), 0)
    read = [*folders[:first_file], *read, *folders[first_file:]]
    return _with_unique_ids(read)


def _once(places: Sequence[Path]) -> list[Path]:
    """The places without those that are given twice or lie in a folder that is given as well."""
    folders = {path.resolve() for path in places if path.is_dir()}
    kept: dict[Path, Path] = {}
    for path in places:
        real = path.resolve()
        if not any(parent in folders for parent in real.parents):
            kept.setdefault(real, path)
    if len(kept) < len(places):
        log.warning("%d of %d paths of --data are given twice or lie in another: read once", len(places) - len(kept),
                    len(places))  # fmt: skip
    return list(kept.values())


def _below_one_folder(files: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The folder that all files lie in, and the files below it; as they are written where they lie side by side."""
    if len({file.parent for file in files}) == 1:
        return files[0].parent, [*files]
    real = [file.parent.resolve() / file.name for file in files]
    return Path(os.path.commonpath([file.parent for file in real])), real


def _with_unique_ids(read: Sequence[tuple[Path, Sequence[Study]]]) -> list[Study]:
    """All studies; one whose id another place has as well gets the way to its own place in front."""
    studies = [study for _, own in read for study in own]
    if len(read) == 1:
        return studies
    root = Path(os.path.commonpath([place.resolve() for place, _ in read]))
    stands = [place.resolve() / f"{study.id}.study" for place, own in read for study in own]
    return [replace(study, id=name) for study, name in zip(studies, unique_names(stands, root), strict=True)]

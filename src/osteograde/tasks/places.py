"""The studies of one or several folders and single files, as one list in which no two share an id.

One folder is what the task reads of it, word for word. Of several, each folder is read for itself, and all single files
together. Ids that several of them have get the way to their folder in front, so that neither the order in which places
are given nor what else lies there decides what a study is called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from osteograde.errors import UserError
from osteograde.imaging.discovery import unique_names
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

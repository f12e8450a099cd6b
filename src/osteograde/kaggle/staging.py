"""Lay out folders as a session on Kaggle has them: studies of a data set with their tables, and weights."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteograde.errors import UserError
from osteograde.inference import submission
from osteograde.kaggle import upload
from osteograde.pipeline import ensemble
from osteograde.tasks.spec import Study, Task

DESCRIPTIONS = "series_descriptions.csv"
COPY = 9000  # the copies of a study are called 9001<its name>, 9002<its name> ...

Put = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Stock:
    """The studies of a data set, the folder of their files, and which part of it they are: "train" or "test"."""

    task: Task
    data: Path
    images: Path
    part: str
    studies: tuple[Study, ...]


def stock(task: Task, data: Path) -> Stock:
    """The test part of a data set, or its training part if there is no other. Raises UserError if it has no study."""
    part = "train" if (data / "train_images").is_dir() and not (data / "test_images").is_dir() else "test"
    folder = data / f"{part}_images"
    return Stock(task, data, folder if folder.is_dir() else data, part, tuple(task.read(data, part)))


def link(source: Path, target: Path) -> None:
    """The same file at another place; copied where that is another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def lay(stock: Stock, studies: Sequence[Study], out: Path, *, copies: int, put: Put) -> list[Study]:
    """Write a data set whose test part holds the studies, each ``copies`` times, and its tables; the studies as read.

    UserError where a copied study is not read as one.
    """
    shutil.rmtree(out, ignore_errors=True)
    names: list[tuple[str, str]] = []
    for study in studies:
        for number in range(copies):
            prefix = str(COPY + number) if number else ""
            names.append((study.id, prefix + study.id))
            for file in files_of(study):
                target = out / "test_images" / renamed(file.relative_to(stock.images), study.id, prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                put(file, target)
    tables(stock, names, out, put)
    made = stock.task.read(out, "test")
    if len(made) != len(names):
        raise UserError(f"{out}: {len(names)} studies laid out, {len(made)} read; use --copies 1 with this data")
    if stock.task.slug or (stock.data / submission.TEMPLATE).is_file():
        template(stock.task, made, out / submission.TEMPLATE)
    return made


def files_of(study: Study) -> list[Path]:
    found: dict[Path, None] = {}
    for series in study.series:
        files = series.files or sorted(path for path in series.folder.iterdir() if path.is_file())
        found |= dict.fromkeys(files)
    return list(found)


def renamed(path: Path, study: str, prefix: str) -> Path:
    """The path of a copy: the folder called as the study, else the file, gets the prefix.

    >>> str(renamed(Path("12/3/1.dcm"), "12", "9001")), str(renamed(Path("a/12_t2.png"), "12", "9001"))
    ('900112/3/1.dcm', 'a/900112_t2.png')
    """
    parts = list(path.parts)
    place = parts.index(study) if study in parts else len(parts) - 1
    parts[place] = prefix + parts[place]
    return Path(*parts)


def tables(stock: Stock, names: Sequence[tuple[str, str]], out: Path, put: Put) -> None:
    """The tables beside the images: those of the test part with the rows of its studies, others as they are."""
    for path in sorted(stock.data.glob("*.csv")):
        if path.name == f"{stock.part}_{DESCRIPTIONS}":
            _rows(path, names, out / f"test_{DESCRIPTIONS}")
        elif path.name not in (submission.TEMPLATE, f"test_{DESCRIPTIONS}"):
            put(path, out / path.name)


def _rows(path: Path, names: Sequence[tuple[str, str]], out: Path) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head, *records = list(csv.reader(file))
    column = head.index("study_id")
    of: dict[str, list[list[str]]] = {}
    for record in records:
        of.setdefault(record[column], []).append(record)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for old, new in names:
            writer.writerows([*record[:column], new, *record[column + 1 :]] for record in of.get(old, []))


def template(task: Task, studies: Sequence[Study], out: Path) -> None:
    """sample_submission.csv: every row of the studies, all classes alike."""
    even = np.full(len(task.classes), 1 / len(task.classes))
    rows = {row: even for study in studies for row in task.rows(study.id, study.targets)}
    submission.write_submission(out, rows, task.classes)


def lay_weights(weights: Path, out: Path, put: Put) -> None:
    """The files that an upload sends, flat as it sends them. UserError for damaged weights."""
    out.mkdir(parents=True)
    for name, path in upload.to_send(ensemble.verify(weights)).items():
        put(path, out / name)

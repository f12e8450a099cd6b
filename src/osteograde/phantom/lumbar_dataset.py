"""Synthetic `lumbar-mr` studies in the competition's layout: one body per study, seen by three views."""

from __future__ import annotations

import csv
import json
import logging
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from osteograde import interrupts, logs
from osteograde.phantom import grades, render
from osteograde.phantom.acquisition import annotate, plan
from osteograde.phantom.dicom_writer import write_slice
from osteograde.phantom.spine import spine
from osteograde.tasks.lumbar_names import CLASS_LABELS, CLASSES, SERIES_DESCRIPTIONS, TARGETS, TEMPLATE_TARGETS

log = logging.getLogger("osteograde.phantom")
PARTS = ("train", "test")
SOURCE = {
    "source": "synthetic lumbar studies of osteograde's own phantom",
    "licence": "Apache-2.0, as the code that makes them",
}


@dataclass(frozen=True)
class StudyRows:
    """The rows that one study adds to the tables."""

    study: str
    labels: dict[str, str]
    series: list[tuple[str, str]]  # id, description
    marks: list[tuple[str, int, str, str, float, float]]
    points: list[tuple[str, float, float, float]]


def study_id(seed: int, part: str, index: int) -> str:
    """The id of a study: a number like the real ones, different for every part and index."""
    return str(1_000_000 + zlib.crc32(f"{seed} {part}".encode()) % 400_000 * 10_000 + index)


def make(out: Path, seed: int, part: str, index: int) -> StudyRows:
    """Write the images of one study and return its rows. They depend on nothing but (seed, part, index).

    Anatomy and acquisition are drawn from two streams of random numbers, so a grade shows in the anatomy alone.
    """
    key = [seed, PARTS.index(part), index]
    body, scan, reader = (np.random.default_rng([*key, stream]) for stream in range(3))
    study = study_id(seed, part, index)
    severity = grades.severities(body)
    truth = grades.grades(severity)
    patient = spine(grades.closed(severity, body), body)
    series = plan(patient, scan)
    names = []
    for i, acquisition in enumerate(series):
        name = str(int(study) * 10 % 4_000_000_007 + i)
        folder = out / f"{part}_images" / study / name
        folder.mkdir(parents=True, exist_ok=True)
        look = render.draw_look(acquisition.contrast, scan)
        for plane in acquisition.planes:
            pixels = render.slice_pixels(patient, acquisition, plane.to_mm, look, scan)
            write_slice(folder / f"{plane.number}.dcm", pixels, acquisition, plane, study, name)
        names.append((name, SERIES_DESCRIPTIONS[acquisition.view]))
    points = patient.points()
    marks, empty = annotate(points, series, reader)
    written = grades.labelled(truth, reader)
    return StudyRows(
        study,
        {target: "" if target in empty else CLASS_LABELS[written[target]] for target in TARGETS},
        names,
        [(names[m.series][0], m.number, m.target.table_condition, m.target.table_level, m.x, m.y) for m in marks],
        [(name, round(float(x), 4), round(float(y), 4), round(float(z), 4)) for name, (x, y, z) in points.items()],
    )


def write(out: Path, *, studies: int, test: int = 0, seed: int = 0, workers: int = 1) -> None:
    """Write a labelled training part of ``studies`` studies, and a test part of ``test`` studies with a table of its
    truth."""
    out.mkdir(parents=True, exist_ok=True)
    made = {part: _made(out, seed, part, count, workers) for part, count in zip(PARTS, (studies, test), strict=True)}
    points = [(w.study, *point) for part in PARTS for w in made[part] for point in w.points]
    _table(out / "truth_points.csv", ("study_id", "landmark", "x_mm", "y_mm", "z_mm"), points)
    (out / "SOURCE.json").write_text(json.dumps({**SOURCE, "seed": seed}) + "\n", encoding="utf-8")
    label_columns = ("study_id", *TARGETS)
    if studies:
        train = made["train"]
        _table(out / "train.csv", label_columns, ([w.study, *(w.labels[t] for t in TARGETS)] for w in train))
        _series(out / "train_series_descriptions.csv", train)
        columns = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
        _table(out / "train_label_coordinates.csv", columns, ((w.study, *m) for w in train for m in w.marks))
    if test:
        hidden = made["test"]
        _table(out / "test_truth.csv", label_columns, ([w.study, *(w.labels[t] for t in TARGETS)] for w in hidden))
        _series(out / "test_series_descriptions.csv", hidden)
        uniform = [f"{1 / len(CLASSES):.6f}"] * len(CLASSES)
        rows = ([f"{w.study}_{target}", *uniform] for w in hidden for target in TEMPLATE_TARGETS)
        _table(out / "sample_submission.csv", ("row_id", *CLASSES), rows)


def _made(out: Path, seed: int, part: str, count: int, workers: int) -> list[StudyRows]:
    """Write the images of ``count`` studies of a part, in ``workers`` processes."""
    make_index = partial(make, out, seed, part)
    if workers <= 1 or count <= 1:
        return [make_index(index) for index in logs.counted(range(count), f"writing {part}", "studies", log)]
    with (
        ProcessPoolExecutor(min(workers, count), mp_context=get_context("spawn")) as pool,
        interrupts.ignored() as restore,
    ):
        made = pool.map(make_index, range(count))  # starts all processes
        restore()
        with logs.progress(f"writing {part}", count, "studies", log) as shown:
            return [_shown(one, shown) for one in made]


def _shown(one: StudyRows, shown: logs.Progress) -> StudyRows:
    shown.advance()
    return one


def _series(path: Path, made: Sequence[StudyRows]) -> None:
    rows = ((w.study, *series) for w in made for series in w.series)
    _table(path, ("study_id", "series_id", "series_description"), rows)


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

"""Synthetic `knee-xray` data: crops in grade folders as the public set has them, and films with known joints."""

from __future__ import annotations

import csv
import json
import logging
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from osteograde import logs
from osteograde.phantom.dicom_writer import write_film
from osteograde.phantom.knee import knee
from osteograde.tasks.knee_films import SIDES, compose
from osteograde.tasks.tables import GRADE_COLUMNS

log = logging.getLogger("osteograde.phantom")
SOURCE = {
    "source": "synthetic knees of osteograde's own phantom",
    "licence": "Apache-2.0, as the code that makes them",
}
SHARES = (0.3, 0.18, 0.27, 0.17, 0.08)  # frequency of each grade; all of them occur in a few dozen knees
LETTER = {"right": "R", "left": "L"}
PNG_EVERY = 4  # every so many films one is written as PNG, without a pixel size, if it is wider than high


def write(out: Path, *, studies: int, test: int = 0, seed: int = 0, workers: int = 1) -> None:
    """Write crops of one or two knees of ``studies`` labelled patients, and films of ``test`` other patients with a
    table of their truth.

    The files depend on nothing but the seed. workers: not used; all writers of phantoms take the same arguments.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "SOURCE.json").write_text(json.dumps({**SOURCE, "seed": seed}) + "\n", encoding="utf-8")
    for index in logs.counted(range(studies), "writing labelled", "studies", log):
        rng, patient = np.random.default_rng([seed, 0, index]), _patient(seed, 0, index)
        for side in _sides(rng):
            grade = _grade(rng, index)
            path = out / "train" / str(grade) / f"{patient}{LETTER[side]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), _crop(grade, side, rng))
    if test:
        _films(out, test, seed)


def write_table(out: Path, *, studies: int, test: int = 0, seed: int = 0, workers: int = 1) -> None:
    """The same crops as a person brings images of their own: one folder and labels.csv, and ``test`` further images
    with a table of their truth. See ``write``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "SOURCE.json").write_text(json.dumps({**SOURCE, "seed": seed}) + "\n", encoding="utf-8")
    rows: list[tuple[object, ...]] = []
    truth: list[tuple[str, int]] = []
    for part, count, folder in ((0, studies, out / "images"), (1, test, out / "test_images")):
        for index in logs.counted(range(count), f"writing {folder.name}", "images", log):
            rng, patient = np.random.default_rng([seed, part, index]), _patient(seed, part, index)
            grade = _grade(rng, index)
            folder.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / f"{patient}.png"), _crop(grade, "right", rng))
            if part == 0:
                rows.append((f"{patient}.png", grade, patient))
            else:
                truth.append((patient, grade))
    _table(out / "labels.csv", ("image", "label", "patient"), rows)
    if test:
        _table(out / "test_truth.csv", GRADE_COLUMNS, truth)


def _films(out: Path, count: int, seed: int) -> None:
    """Write ``count`` films without labels, and the tables of their grades and joint centres."""
    truth: list[tuple[str, int]] = []
    points: list[tuple[object, ...]] = []
    (out / "test_images").mkdir(exist_ok=True)
    for index in logs.counted(range(count), "writing films", "studies", log):
        rng, name = np.random.default_rng([seed, 1, index]), f"film{_patient(seed, 1, index)}"
        grades = {side: _grade(rng, index + i) for i, side in enumerate(_sides(rng))}
        film = compose([(_crop(grade, side, rng), side) for side, grade in grades.items()], rng)
        path = out / "test_images" / name
        if index % PNG_EVERY == PNG_EVERY - 1 and film.pixels.shape[1] > film.pixels.shape[0]:
            cv2.imwrite(f"{path}.png", film.pixels)
        else:
            write_film(Path(f"{path}.dcm"), film.pixels, film.pixel_mm, name, monochrome1=index % 2 == 1)
        truth += [(f"{name}_{side}", grades[side]) for side in film.joints]
        points += [(name, side, round(x, 3), round(y, 3), film.pixel_mm) for side, (x, y) in film.joints.items()]
    _table(out / "test_truth.csv", GRADE_COLUMNS, truth)
    _table(out / "test_points.csv", ("study", "side", "x", "y", "pixel_mm"), points)


def _patient(seed: int, part: int, index: int) -> str:
    """The id of a patient: a number, different for every part (0 labelled, 1 test) and index."""
    return str(1_000_000 + (zlib.crc32(f"{seed} {part}".encode()) % 8000) * 1000 + index)


def _sides(rng: np.random.Generator) -> Sequence[str]:
    """The sides of which a patient has an image: both, or one of them."""
    return SIDES if rng.random() < 0.75 else (str(rng.choice(SIDES)),)


def _grade(rng: np.random.Generator, index: int) -> int:
    """A random grade. Every fifth patient has a fixed one, each grade in turn, so that small sets have all grades."""
    return index // 5 % 5 if index % 5 == 0 else int(rng.choice(len(SHARES), p=SHARES))


def _crop(grade: int, side: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8 of a knee; left knees are mirrored right ones."""
    right = knee(grade, rng)
    return right if side == "right" else np.ascontiguousarray(right[:, ::-1])


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

"""Synthetic `spider` data in the layout of the real set: slices, stacks with masks, boxes, gradings, overview."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from osteograde.imaging.geometry import affine
from osteograde.phantom import acquisition as planes
from osteograde.phantom import render
from osteograde.phantom.spine import ABOVE, Spine, Worn, worn
from osteograde.tasks.spider_files import DISC, VERTEBRA, landmark
from osteograde.tasks.spine import LEVELS
from osteograde.tasks.tables import GRADE_COLUMNS

SOURCE = {
    "source": "synthetic lumbar spines of osteograde's own phantom",
    "licence": "Apache-2.0, as the code that makes them",
}
STACK_EVERY = 4  # one patient in so many has a thin stack with masks
STACK_SLICES, STACK_STEP_MM = 12, 1.6
STRETCH = (0.5, 99.5)  # percentiles that become black and white, as the set's pictures are stretched
OVERVIEW = ("new_file_name", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
BOXES = ("slice", "ivd_label", "x0", "y0", "x1", "y1")
GRADINGS = ("Patient", "IVD label", "Disc narrowing", "Disc bulging", "Pfirrman grade")
CONTRASTS = {"t2": "t2", "t1": "t1"}  # view -> contrast


@dataclass(frozen=True, eq=False)
class Written:
    """What one patient adds to the tables."""

    patient: str
    body: Worn
    overview: list[tuple[object, ...]]
    boxes: list[tuple[object, ...]]


def write(out: Path, *, studies: int, test: int = 0, seed: int = 0, workers: int = 1) -> None:
    """``studies`` labelled patients, and the slices of ``test`` others beside their truth.

    Depends on the seed alone; ``workers`` is taken for the sake of the other writers.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "SOURCE.json").write_text(json.dumps({**SOURCE, "seed": seed}) + "\n", encoding="utf-8")
    made = [_patient(out, "slices", seed, 0, index) for index in range(studies)]
    hidden = [_patient(out, "test_images", seed, 1, index) for index in range(test)]
    _table(out / "overview.csv", OVERVIEW, (row for one in (*made, *hidden) for row in one.overview))
    if studies:
        _table(out / "boxes.csv", BOXES, (row for one in made for row in one.boxes))
        _table(out / "gradings.csv", GRADINGS, (row for one in made for row in _gradings(one)))
    if test:
        truth = ((f"{one.patient}_{level}", grade + 1) for one in hidden
                 for level, grade in zip(LEVELS, one.body.grades, strict=True))  # fmt: skip
        _table(out / "test_truth.csv", GRADE_COLUMNS, truth)
        points = (row for one in hidden for row in _points(one))
        _table(out / "test_points.csv", ("study", "landmark", "x", "y"), points)


def _patient(out: Path, folder: str, seed: int, part: int, index: int) -> Written:
    """Anatomy and acquisition are drawn from two streams, so nothing about a file can tell a grade."""
    body, scan = (np.random.default_rng([seed, part, index, stream]) for stream in range(2))
    patient = str(1_000_000 + (zlib.crc32(f"{seed} {part}".encode()) % 8000) * 1000 + index)
    one = Written(patient, worn(_grades(index, body), body), [], [])
    for view, contrast in CONTRASTS.items():
        acquisition = planes.sagittal(one.body.spine, view, contrast, scan)
        middle = min(acquisition.planes, key=lambda plane: abs(_off_mm(one.body.spine, plane.to_mm)))
        look = render.draw_look(contrast, scan)
        name = f"{patient}_{view}"
        _picture(out / folder / f"{name}.png", one.body.spine, acquisition, middle.to_mm, look, scan)
        one.overview.append(_series(name, acquisition.thickness_mm, acquisition.step_mm, middle.to_mm))
        one.boxes.extend(_boxes(name, one.body.spine, middle.to_mm, acquisition.shape))
    if part == 0 and index % STACK_EVERY == 0:
        one.overview.append(_stack(out / "t2space", f"{patient}_t2_SPACE", one.body.spine, scan))
    return one


def _grades(index: int, rng: np.random.Generator) -> list[int]:
    """Correlated within a patient and higher further down; every patient in turn surely holds one grade more."""
    severity = rng.normal(2.0, 1.0) + 0.25 * (np.arange(len(LEVELS)) - 2) + rng.normal(0, 0.9, len(LEVELS))
    grades = [int(grade) for grade in np.clip(np.rint(severity), 0, 4)]
    grades[int(rng.integers(len(LEVELS)))] = index % 5
    return grades


def _stack(folder: Path, name: str, spine: Spine, scan: np.random.Generator) -> tuple[object, ...]:
    """Thin slices about the midline with their masks."""
    acquisition, look = planes.sagittal(spine, "t2", "t2", scan), render.draw_look("t2", scan)
    first = min(acquisition.planes, key=lambda plane: abs(_off_mm(spine, plane.to_mm))).to_mm
    axes = [first[:3, i] / np.linalg.norm(first[:3, i]) for i in range(3)]
    steps = np.array([STACK_STEP_MM, *np.linalg.norm(first[:3, 1:3], axis=0)])
    for k in range(STACK_SLICES):
        to_mm = affine(first[:3, 3] + axes[0] * STACK_STEP_MM * (k - STACK_SLICES // 2), np.array(axes), steps)
        stem = f"{name}_slice{k + 40}"
        _picture(folder / "images" / f"{stem}.png", spine, acquisition, to_mm, look, scan)
        _save(folder / "masks" / f"{stem}.png", _labels(spine, to_mm, acquisition.shape)[0])
    return _series(name, STACK_STEP_MM, STACK_STEP_MM, first)


def _off_mm(spine: Spine, to_mm: np.ndarray) -> float:
    """How far the midline of the middle disc lies from a plane, along its normal."""
    normal = to_mm[:3, 0] / np.linalg.norm(to_mm[:3, 0])
    return float((spine.to_mm(0, 0, float(spine.discs[ABOVE + 2])) - to_mm[:3, 3]) @ normal)


def _picture(path: Path, spine: Spine, acquisition, to_mm: np.ndarray, look, scan: np.random.Generator) -> None:
    pixels = render.slice_pixels(spine, acquisition, to_mm, look, scan).astype(np.float32)
    low, high = np.percentile(pixels, STRETCH)
    _save(path, np.clip((pixels - low) * (255 / max(high - low, 1)), 0, 255).round().astype(np.uint8))


def _labels(spine: Spine, to_mm: np.ndarray, shape: tuple[int, int]):
    """(label image, (rows, columns) of disc pixels, their levels from 0). The sacrum's own disc is part of its bone."""
    labels = render.slice_labels(spine, to_mm, shape)
    rows, columns = np.nonzero(labels == DISC)
    mm = to_mm @ np.stack([np.zeros(len(rows)), rows, columns, np.ones(len(rows))])
    _, s = spine.to_curved(mm[1].astype(np.float32), mm[2].astype(np.float32))
    level = np.abs(s[:, None] - spine.discs).argmin(1) - ABOVE
    below = level >= len(LEVELS)
    labels[rows[below], columns[below]] = VERTEBRA
    return labels, (rows, columns), level


def _boxes(name: str, spine: Spine, to_mm: np.ndarray, shape: tuple[int, int]) -> list[tuple[object, ...]]:
    """(slice, label counted up from the lowest disc = 1, x0, y0, x1, y1) of every lumbar disc that is seen whole."""
    found: list[tuple[object, ...]] = []
    _, (rows, columns), level = _labels(spine, to_mm, shape)
    for k in range(len(LEVELS)):
        x, y = columns[level == k], rows[level == k]
        if len(x) and min(x.min(), y.min()) > 0 and x.max() < shape[1] - 1 and y.max() < shape[0] - 1:
            found.append((name, len(LEVELS) - k, int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1))
    return found


def _gradings(one: Written) -> Iterable[tuple[object, ...]]:
    for k in reversed(range(len(LEVELS))):
        yield (
            one.patient, len(LEVELS) - k, int(one.body.narrowed[k]), int(one.body.bulging[k]), one.body.grades[k] + 1,
        )  # fmt: skip


def _points(one: Written) -> Iterable[tuple[object, ...]]:
    """Disc centres in pixels, as boxes give them."""
    for name, label, x0, y0, x1, y1 in one.boxes:
        view = str(name).rpartition("_")[2]
        yield one.patient, landmark(view, LEVELS[-int(str(label))]), (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2  # type: ignore[operator]


def _series(name: str, thickness_mm: float, step_mm: float, to_mm: np.ndarray) -> tuple[object, ...]:
    row_mm, column_mm = np.linalg.norm(to_mm[:3, 1:3], axis=0)
    return name, f"[{row_mm:.5f}, {column_mm:.5f}]", round(thickness_mm, 3), round(step_mm, 3)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

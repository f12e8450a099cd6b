"""Synthetic `spider` data in the layout of the real set: slices, stacks with masks, boxes, gradings, overview."""

from __future__ import annotations

import csv
import json
import logging
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from osteograde import logs
from osteograde.imaging.geometry import affine
from osteograde.phantom import render
from osteograde.phantom.acquisition import sagittal
from osteograde.phantom.spine import ABOVE, Spine, Worn, worn
from osteograde.tasks.spider_files import DISC, VERTEBRA, landmark
from osteograde.tasks.spine import LEVELS
from osteograde.tasks.tables import GRADE_COLUMNS

log = logging.getLogger("osteograde.phantom")
SOURCE = {
    "source": "synthetic lumbar spines of osteograde's own phantom",
    "licence": "Apache-2.0, as the code that makes them",
}
STACK_EVERY = 4  # every so many patients one has a stack of thin slices with masks
STACK_SLICES, STACK_STEP_MM = 12, 1.6
STRETCH = (0.5, 99.5)  # percentiles that become black and white, as in the real set
OVERVIEW = ("new_file_name", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
BOXES = ("slice", "ivd_label", "x0", "y0", "x1", "y1")
GRADINGS = ("Patient", "IVD label", "Disc narrowing", "Disc bulging", "Pfirrman grade")
CONTRASTS = {"t2": "t2", "t1": "t1"}  # view -> contrast


@dataclass(frozen=True, eq=False)
class PatientRows:
    """The anatomy of one patient and the rows that it adds to the tables."""

    patient: str
    body: Worn
    overview: list[tuple[object, ...]]
    boxes: list[tuple[object, ...]]


def write(out: Path, *, studies: int, test: int = 0, seed: int = 0, workers: int = 1) -> None:
    """Write ``studies`` labelled patients, and slices of ``test`` other patients with tables of their truth.

    The files depend on nothing but the seed. workers: not used; all writers of phantoms take the same arguments.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "SOURCE.json").write_text(json.dumps({**SOURCE, "seed": seed}) + "\n", encoding="utf-8")
    labelled = logs.counted(range(studies), "writing labelled", "studies", log)
    made = [_patient(out, "slices", seed, 0, index) for index in labelled]
    others = logs.counted(range(test), "writing test", "studies", log)
    hidden = [_patient(out, "test_images", seed, 1, index) for index in others]
    _table(out / "overview.csv", OVERVIEW, (row for patient in (*made, *hidden) for row in patient.overview))
    if studies:
        _table(out / "boxes.csv", BOXES, (row for patient in made for row in patient.boxes))
        _table(out / "gradings.csv", GRADINGS, (row for patient in made for row in _gradings(patient)))
    if test:
        truth = ((f"{patient.patient}_{level}", grade + 1) for patient in hidden
                 for level, grade in zip(LEVELS, patient.body.grades, strict=True))  # fmt: skip
        _table(out / "test_truth.csv", GRADE_COLUMNS, truth)
        points = (row for patient in hidden for row in _points(patient))
        _table(out / "test_points.csv", ("study", "landmark", "x", "y"), points)


def _patient(out: Path, folder: str, seed: int, part: int, index: int) -> PatientRows:
    """Write the images of rows patient and return its rows.

    Anatomy and acquisition are drawn from two streams of random numbers, so a grade shows in the anatomy alone.
    """
    body, scan = (np.random.default_rng([seed, part, index, stream]) for stream in range(2))
    patient = str(1_000_000 + (zlib.crc32(f"{seed} {part}".encode()) % 8000) * 1000 + index)
    rows = PatientRows(patient, worn(_grades(index, body), body), [], [])
    for view, contrast in CONTRASTS.items():
        acquisition = sagittal(rows.body.spine, view, contrast, scan)
        middle = min(acquisition.planes, key=lambda plane: abs(_off_mm(rows.body.spine, plane.to_mm)))
        look = render.draw_look(contrast, scan)
        name = f"{patient}_{view}"
        _picture(out / folder / f"{name}.png", rows.body.spine, acquisition, middle.to_mm, look, scan)
        rows.overview.append(_series(name, acquisition.thickness_mm, acquisition.step_mm, middle.to_mm))
        rows.boxes.extend(_boxes(name, rows.body.spine, middle.to_mm, acquisition.shape))
    if part == 0 and index % STACK_EVERY == 0:
        rows.overview.append(_stack(out / "t2space", f"{patient}_t2_SPACE", rows.body.spine, scan))
    return rows


def _grades(index: int, rng: np.random.Generator) -> list[int]:
    """Class indices 0 to 4 per level, correlated within a patient and higher towards the feet. One random level has a
    fixed grade, each grade in turn from patient to patient, so that small sets have all grades."""
    severity = rng.normal(2.0, 1.0) + 0.25 * (np.arange(len(LEVELS)) - 2) + rng.normal(0, 0.9, len(LEVELS))
    grades = [int(grade) for grade in np.clip(np.rint(severity), 0, 4)]
    grades[int(rng.integers(len(LEVELS)))] = index % 5
    return grades


def _stack(folder: Path, name: str, spine: Spine, scan: np.random.Generator) -> tuple[object, ...]:
    """Write thin slices around the midline with their masks, and return their row of the overview."""
    acquisition, look = sagittal(spine, "t2", "t2", scan), render.draw_look("t2", scan)
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
    """The distance in mm of the midline of the middle disc from a plane, along the normal of the plane."""
    normal = to_mm[:3, 0] / np.linalg.norm(to_mm[:3, 0])
    return float((spine.to_mm(0, 0, float(spine.discs[ABOVE + 2])) - to_mm[:3, 3]) @ normal)


def _picture(path: Path, spine: Spine, acquisition, to_mm: np.ndarray, look, scan: np.random.Generator) -> None:
    """Write a slice as an 8-bit PNG."""
    pixels = render.slice_pixels(spine, acquisition, to_mm, look, scan).astype(np.float32)
    low, high = np.percentile(pixels, STRETCH)
    _save(path, np.clip((pixels - low) * (255 / max(high - low, 1)), 0, 255).round().astype(np.uint8))


def _labels(spine: Spine, to_mm: np.ndarray, shape: tuple[int, int]):
    """(label image, (rows, columns) of the disc pixels, their levels from 0). The disc S1/S2 is labelled as bone."""
    labels = render.slice_labels(spine, to_mm, shape)
    rows, columns = np.nonzero(labels == DISC)
    mm = to_mm @ np.stack([np.zeros(len(rows)), rows, columns, np.ones(len(rows))])
    _, s = spine.to_curved(mm[1].astype(np.float32), mm[2].astype(np.float32))
    level = np.abs(s[:, None] - spine.discs).argmin(1) - ABOVE
    below = level >= len(LEVELS)
    labels[rows[below], columns[below]] = VERTEBRA
    return labels, (rows, columns), level


def _boxes(name: str, spine: Spine, to_mm: np.ndarray, shape: tuple[int, int]) -> list[tuple[object, ...]]:
    """(slice, label, x0, y0, x1, y1) of every lumbar disc that lies wholly within the slice. Labels count from 1 at the
    lowest disc upwards."""
    boxes: list[tuple[object, ...]] = []
    _, (rows, columns), level = _labels(spine, to_mm, shape)
    for k in range(len(LEVELS)):
        x, y = columns[level == k], rows[level == k]
        if len(x) and min(x.min(), y.min()) > 0 and x.max() < shape[1] - 1 and y.max() < shape[0] - 1:
            boxes.append((name, len(LEVELS) - k, int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1))
    return boxes


def _gradings(rows: PatientRows) -> Iterable[tuple[object, ...]]:
    """Rows of the table of gradings, from the lowest disc upwards."""
    for k in reversed(range(len(LEVELS))):
        yield (
            rows.patient,
            len(LEVELS) - k,
            int(rows.body.narrowed[k]),
            int(rows.body.bulging[k]),
            rows.body.grades[k] + 1,
        )


def _points(rows: PatientRows) -> Iterable[tuple[object, ...]]:
    """(patient, landmark, x, y) of the disc centres: the middles of their boxes, in pixels."""
    for name, label, x0, y0, x1, y1 in rows.boxes:
        view = str(name).rpartition("_")[2]
        yield rows.patient, landmark(view, LEVELS[-int(str(label))]), (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2  # type: ignore[operator]


def _series(name: str, thickness_mm: float, step_mm: float, to_mm: np.ndarray) -> tuple[object, ...]:
    """A row of the overview."""
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

"""What a reader marks and writes down: points on slices, grades, and what is left out or a little off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from osteograde.phantom.acquisition import Acquisition
from osteograde.tasks.lumbar_names import CONDITION_VIEW, SPINAL, SUBARTICULAR, TARGET_OF, Target

JITTER_MM = 1.2  # of a mark in its slice, standard deviation
REACH_MM = 6.0  # a place further than this from every slice of its view is not seen
ONE_SLICE = 0.78  # studies whose canal points all lie on one slice
NEIGHBOUR = {SUBARTICULAR: 0.18, SPINAL: 0.05}  # marks put on a neighbouring slice
EMPTY, NO_MARK = 0.004, 0.003  # grades and marks that are missing without a reason


@dataclass(frozen=True)
class Marked:
    """One row of the table of coordinates: pixel (x, y) on one slice of series number ``series`` of the study."""

    target: Target
    series: int
    number: int
    x: float
    y: float


def annotate(
    points: Mapping[str, np.ndarray], series: Sequence[Acquisition], rng: np.random.Generator
) -> tuple[list[Marked], set[str]]:
    """(marks, targets whose grade is left empty) of one study."""
    marks: list[Marked] = []
    empty: set[str] = set()
    canal = [points[target.landmark] for target in TARGET_OF.values() if target.condition == SPINAL]
    common = np.mean(canal, 0) if rng.random() < ONE_SLICE else None
    for name, target in TARGET_OF.items():
        drawn = rng.random(3)
        nudge = rng.normal(0, JITTER_MM, 2)
        point = points[target.landmark]
        view = CONDITION_VIEW[target.condition]
        aim = np.array([common[0], *point[1:]]) if common is not None and target.condition == SPINAL else point
        place = _nearest(aim, view, series)
        if place is None:
            if target.condition == SUBARTICULAR and any(a.view == view for a in series):
                empty.add(name)
            continue
        if drawn[0] < EMPTY:
            empty.add(name)
        if drawn[1] < NO_MARK:
            continue
        i, j = place
        if drawn[2] < NEIGHBOUR.get(target.condition, 0.1):
            j = int(np.clip(j + rng.choice((-1, 1)), 0, len(series[i].planes) - 1))
        marks.append(_mark(target, i, j, point, series, nudge))
    return marks, empty


def _nearest(point: np.ndarray, view: str, series: Sequence[Acquisition]) -> tuple[int, int] | None:
    """(series, slice) of a view that comes closest to a point and shows it; None beyond REACH_MM."""
    best: tuple[float, int, int] | None = None
    for i, acquisition in enumerate(series):
        if acquisition.view != view:
            continue
        for j, plane in enumerate(acquisition.planes):
            z, row, column = (np.linalg.inv(plane.to_mm) @ np.append(point, 1))[:3]
            inside = 0 <= row < acquisition.shape[0] and 0 <= column < acquisition.shape[1]
            distance = abs(z) * acquisition.step_mm
            if inside and distance <= REACH_MM and (best is None or distance < best[0]):
                best = (distance, i, j)
    return None if best is None else best[1:]


def _mark(target: Target, i: int, j: int, point: np.ndarray, series, nudge: np.ndarray) -> Marked:
    """The point's foot on the slice, moved by a nudge in mm."""
    plane = series[i].planes[j]
    _, row, column = (np.linalg.inv(plane.to_mm) @ np.append(point, 1))[:3]
    spacing = np.linalg.norm(plane.to_mm[:3, 1:3], axis=0)
    row, column = np.array([row, column]) + nudge / spacing
    return Marked(target, i, plane.number, round(float(column), 3), round(float(row), 3))

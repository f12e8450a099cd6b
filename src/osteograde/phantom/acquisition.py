"""How a synthetic study is acquired and annotated, with the irregularities of real studies.

The acquisition is the series of the study, their planes, matrices and slice numbers. It is drawn from a stream of
random numbers of its own, which never sees a grade. The annotation is what a reader marks on the slices: some points
are missing, and some are a little off. All positions are in mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from osteograde.imaging.geometry import affine
from osteograde.phantom.spine import ABOVE, Spine
from osteograde.tasks.lumbar_names import CONDITION_VIEW, SPINAL, SUBARTICULAR, TARGET_OF, Target
from osteograde.tasks.spine import LEVELS

SECOND_AXIAL, THIRD_AXIAL = 0.17, 0.015  # shares of studies with two and with three axial series
TILTED = 0.45  # share of axial acquisitions with one group of slices per disc, parallel to the disc
# Shares of axial series numbered from the feet up, of T1 series numbered from the left, of series whose numbers have
# gaps.
DESCENDING_AXIAL, LEFT_FIRST_T1, GAPPY_NUMBERS = 0.12, 0.64, 0.02
MISSING_SERIES = 0.015  # share of studies that lack one series
STIR = 0.25  # share of STIR among the sagittal fluid-sensitive series


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice. to_mm: (4, 4) from index (0, row, column, 1) to LPS mm. number: its instance number."""

    to_mm: np.ndarray
    number: int


@dataclass(frozen=True, eq=False)
class Acquisition:
    """One series. view, contrast: their names. shape: rows and columns of its slices. step_mm: distance of neighbouring
    slices. planes: its slices in the order of their numbers."""

    view: str
    contrast: str
    shape: tuple[int, int]
    thickness_mm: float
    step_mm: float
    planes: tuple[Plane, ...]


def plan(spine: Spine, rng: np.random.Generator) -> list[Acquisition]:
    """Draw the series of one study."""
    series = [sagittal(spine, "sag_t1", "t1", rng)]
    series.append(sagittal(spine, "sag_t2", "stir" if rng.random() < STIR else "t2", rng))
    series += _axials(spine, rng)
    if rng.random() < MISSING_SERIES:
        del series[int(rng.integers(len(series)))]
    return series


def _matrix(rng: np.random.Generator, field_mm: float, low: float, high: float) -> tuple[tuple[int, int], np.ndarray]:
    """Draw the matrix of a series: (rows, columns) and the spacing (row step, column step) in mm. Neither is always
    square. low, high: range of the column step in mm."""
    spacing = rng.uniform(low, high)
    columns = round(field_mm / spacing / 8) * 8
    rows = columns if rng.random() < 0.75 else round(columns * rng.uniform(0.8, 1.25) / 8) * 8
    stretch = rng.choice((1.0, 1.0, 1.0, rng.uniform(0.85, 1.18)))
    return (rows, columns), np.array([spacing * stretch, spacing])


def _numbers(count: int, rng: np.random.Generator, *, descending: bool) -> list[int]:
    """Instance numbers of ``count`` slices: mostly 1 to count, now and then with gaps."""
    numbers = np.arange(1, count + 1)
    if rng.random() < GAPPY_NUMBERS:
        numbers = np.sort(rng.choice(np.arange(1, 4 * count + 200), count, replace=False))
    return (numbers[::-1] if descending else numbers).tolist()


def _turn(axes: np.ndarray, rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Turn the unit axes (3, 3) by a random angle about each patient axis, because no patient lies exactly straight.

    degrees: standard deviation of the angles.
    """
    out = axes
    for i, angle in enumerate(np.deg2rad(rng.normal(0, degrees, 3))):
        turn = np.eye(3)
        j, k = [d for d in range(3) if d != i]
        turn[j, j] = turn[k, k] = np.cos(angle)
        turn[j, k], turn[k, j] = -np.sin(angle), np.sin(angle)
        out = out @ turn.T
    return out


def sagittal(spine: Spine, view: str, contrast: str, rng: np.random.Generator) -> Acquisition:
    """Draw a stack of thick sagittal slices around the spine."""
    count = int(rng.integers(13, 20))
    step = float(rng.choice((4.0, 4.4, 4.5, 4.8, 5.0)))
    shape, spacing = _matrix(rng, rng.uniform(250, 300), 0.58, 0.95)
    middle = spine.to_mm(0, 0, float(spine.discs[ABOVE + 2]))
    centre = middle + np.array([rng.normal(0, 2.5), rng.normal(8, 12), rng.normal(-5, 12)])
    axes = _turn(np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), rng, 1.5)
    steps = np.array([step, *spacing])
    first = centre - axes.T @ (steps * (np.array([count, *shape]) - 1) / 2)
    left_first = view == "sag_t1" and rng.random() < 1 - LEFT_FIRST_T1
    numbers = _numbers(count, rng, descending=left_first)
    planes = [Plane(affine(first + axes[0] * step * i, axes, steps), numbers[i]) for i in range(count)]
    return Acquisition(view, contrast, shape, step * 0.9, step, _sorted(planes))


def _axials(spine: Spine, rng: np.random.Generator) -> list[Acquisition]:
    """Draw the axial series: one stack over all levels or a group of slices per disc, in one, two or three series."""
    draw = rng.random()
    parts = 3 if draw < THIRD_AXIAL else 2 if draw < THIRD_AXIAL + SECOND_AXIAL else 1
    step = float(rng.choice((3.5, 4.0, 4.4)))
    groups = _tilted(spine, rng) if rng.random() < TILTED else _stack(spine, rng, parts, step)
    shape, spacing = _matrix(rng, rng.uniform(160, 215), 0.45, 0.75)
    cuts = np.array_split(np.arange(len(groups)), min(parts, len(groups)))
    return [_axial([groups[i] for i in cut], shape, spacing, step, rng) for cut in cuts if len(cut)]


def _tilted(spine: Spine, rng: np.random.Generator) -> list[tuple[np.ndarray, float, int]]:
    """Draw one group of slices per disc: (centre in mm, tilt in rad, number of slices). Now and then the uppermost one
    or two discs have no group."""
    first = int(rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 1, 2)))
    groups = []
    for k in range(first, len(LEVELS)):
        s = float(spine.discs[ABOVE + k])
        ty, tz = (spine.to_mm(0, 0, s + 1) - spine.to_mm(0, 0, s))[1:]
        tilt = np.arctan2(ty, -tz) + np.deg2rad(rng.normal(0, 2))
        groups.append((spine.to_mm(0, 12, s + rng.normal(0, 1)), float(tilt), int(rng.choice((3, 5, 5, 6)))))
    return groups


def _stack(spine: Spine, rng: np.random.Generator, parts: int, step: float) -> list[tuple[np.ndarray, float, int]]:
    """Draw straight stacks from above L1/L2 (or L2/L3) to below L5/S1, as ``_tilted`` describes groups. The whole
    length is cut into ``parts`` pieces that may overlap. step: distance of neighbouring slices in mm."""
    first, last = (spine.to_mm(0, 12, float(spine.discs[ABOVE + k])) for k in (0, 4))
    # The length is drawn, not fitted: slice counts must not tell how high the discs are.
    length = rng.normal(182, 8) - (38 if rng.random() < 0.12 else 0)
    bottom = last + np.array([0, 0, -13.0])
    along = (first - last) / np.linalg.norm(first - last)
    top = bottom + along * length
    tilt = float(np.deg2rad(rng.normal(4, 5)))
    edges = np.linspace(0, 1, parts + 1)
    count = int(length / parts // step) + (2 if parts > 1 else 0)
    return [(top + (bottom - top) * (a + b) / 2, tilt, count) for a, b in itertools.pairwise(edges)]


def _axial(groups, shape, spacing, step: float, rng: np.random.Generator) -> Acquisition:
    """Draw the series that consists of some groups of slices (see ``_tilted``)."""
    planes: list[np.ndarray] = []
    steps = np.array([step, *spacing])
    shift = np.array([rng.normal(0, 4), rng.normal(0, 8), 0])
    for centre, tilt, count in groups:
        level = np.array(
            [[0, np.sin(tilt), -np.cos(tilt)], [0, np.cos(tilt), np.sin(tilt)], [1.0, 0, 0]]
        )  # rows: through the slices (feet), down the image (back), along it (left)
        axes = _turn(level, rng, 0.8)
        first = centre + shift - axes.T @ (steps * (np.array([count, *shape]) - 1) / 2)
        planes += [affine(first + axes[0] * step * i, axes, steps) for i in range(count)]
    numbers = _numbers(len(planes), rng, descending=rng.random() < DESCENDING_AXIAL)
    ready = [Plane(to_mm, number) for to_mm, number in zip(planes, numbers, strict=True)]
    return Acquisition("axi_t2", "t2", shape, step * 0.9, step, _sorted(ready))


def _sorted(planes: list[Plane]) -> tuple[Plane, ...]:
    return tuple(sorted(planes, key=lambda plane: plane.number))


JITTER_MM = 1.2  # standard deviation of a mark's error within its slice
REACH_MM = 6.0  # a landmark further than this from every slice of its view is not marked
ONE_SLICE = 0.78  # share of studies whose canal points all lie on one slice
NEIGHBOUR = {SUBARTICULAR: 0.18, SPINAL: 0.05}  # shares of marks that are put on a neighbouring slice; others: 0.1
EMPTY, NO_MARK = 0.004, 0.003  # shares of grades and of marks that are missing without a reason


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
    """Annotate one study: (its marks, the targets whose grade is left empty).

    points: landmark -> (3,) LPS mm.
    """
    marks: list[Marked] = []
    empty: set[str] = set()
    canal = [points[target.landmark] for target in TARGET_OF.values() if target.condition == SPINAL]
    common = np.mean(canal, 0) if rng.random() < ONE_SLICE else None
    for name, target in TARGET_OF.items():
        drawn = rng.random(3)
        offset_mm = rng.normal(0, JITTER_MM, 2)
        point = points[target.landmark]
        view = CONDITION_VIEW[target.condition]
        aim = np.array([common[0], *point[1:]]) if common is not None and target.condition == SPINAL else point
        nearest = _nearest(aim, view, series)
        if nearest is None:
            if target.condition == SUBARTICULAR and any(a.view == view for a in series):
                empty.add(name)
            continue
        if drawn[0] < EMPTY:
            empty.add(name)
        if drawn[1] < NO_MARK:
            continue
        i, j = nearest
        if drawn[2] < NEIGHBOUR.get(target.condition, 0.1):
            j = int(np.clip(j + rng.choice((-1, 1)), 0, len(series[i].planes) - 1))
        marks.append(_mark(target, i, j, point, series, offset_mm))
    return marks, empty


def _nearest(point: np.ndarray, view: str, series: Sequence[Acquisition]) -> tuple[int, int] | None:
    """The slice of a view that lies nearest to a point and shows it: (index of the series, index of the slice). None
    where all of them are further away than REACH_MM."""
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


def _mark(target: Target, i: int, j: int, point: np.ndarray, series, offset_mm: np.ndarray) -> Marked:
    """The point projected onto slice j of series i, moved by an offset (row, column) in mm."""
    plane = series[i].planes[j]
    _, row, column = (np.linalg.inv(plane.to_mm) @ np.append(point, 1))[:3]
    spacing = np.linalg.norm(plane.to_mm[:3, 1:3], axis=0)
    row, column = np.array([row, column]) + offset_mm / spacing
    return Marked(target, i, plane.number, round(float(column), 3), round(float(row), 3))

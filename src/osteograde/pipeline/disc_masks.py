"""Masks of discs from their centres and a label image of vertebrae: a disc fills the gap between its neighbours.

Everything is measured in the disc's own axes, millimetres along the disc (u) and down the spine (v) from its centre.
The axes turn with the spine: v runs from the centre above to the centre below, and then square to the disc's own end
plates. In each column u a disc reaches from the last pixel of the vertebra above to the first one of that below, less
the end plates; where a column has no vertebra, or canal in between, the disc ends. Where one neighbour is outlined
in few of the middle columns (the sacrum, which data sets leave out), the disc is as high on that side as on the other.
Where both are missing, an ellipse stands for the disc.

Shapes: Y X pixels of a slice, M columns and N rows of a disc's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

DISC, VERTEBRA, CANAL = 1, 2, 3
STEP_MM = 0.5  # of the disc's own grid
LONGEST_MM = 30.0  # half of the longest disc
REACH = 0.45  # of the distance to the neighbouring disc: as far a vertebra's edge is looked for
LEAST_REACH_MM, MOST_REACH_MM = 6.0, 16.0
MIDDLE_MM = 6.0  # half width of the columns that tell whether a neighbour is outlined at all
ELLIPSE_MM = (4.0, 12.0)  # (down, along): half axes where no vertebra is known
GAP_MM = 6.0  # columns without an edge that a disc bridges
END_PLATE_MM = 0.7  # between bone and disc; label images leave it out of both
TILT_MM = 10.0  # half width of the columns that tell how a disc is tilted
LEAST_TILT, MOST_TILT = 0.02, 0.35  # radians; of one step of the search
TURNS = 3
BENT_MM = 5.0  # a disc's gap may lie so far beside its middle line


@dataclass(frozen=True, eq=False)
class DiscMask:
    """One disc in a slice. mask: (Y, X) bool. source: "vertebrae", "one vertebra" or "ellipse". length_mm: along it."""

    mask: np.ndarray
    source: str
    length_mm: float


@dataclass(frozen=True, eq=False)
class _Edges:
    """(M,) v of the last pixel of the vertebra above and of the first one below, NaN where there is none. line: (M,) v
    of the line by which the disc is turned: its middle, or the one edge that is known."""

    top: np.ndarray
    bottom: np.ndarray
    line: np.ndarray
    source: str


def disc_masks(
    labels: np.ndarray, spacing_mm: tuple[float, float], centres: Sequence[tuple[float, float] | None]
) -> list[DiscMask | None]:
    """The mask of each disc, given from top to bottom; None where its centre is.

    labels: (Y, X) with VERTEBRA and CANAL. spacing_mm: (row, column). centres: (row, column) in pixels, an integer
    being a pixel centre. Masks of neighbours do not overlap: a pixel that two could have is the nearer disc's.
    """
    places = [None if one is None else np.array(one, float) * spacing_mm for one in centres]  # (down, across) in mm
    found: list[DiscMask | None] = []
    for i, place in enumerate(places):
        axis, reach = _axis_and_reach(places, i)
        found.append(None if place is None else _mask(labels, spacing_mm, place, axis, reach))
    return _apart(found, places, spacing_mm)


def bare_ellipse(shape: tuple[int, int], spacing_mm: tuple[float, float], centre: tuple[float, float]) -> np.ndarray:
    """(Y, X) bool: the ellipse of half axes ELLIPSE_MM, along the image's own axes, about a (row, column)."""
    rows, columns = np.indices(shape)
    down, along = (rows - centre[0]) * spacing_mm[0], (columns - centre[1]) * spacing_mm[1]
    return (down / ELLIPSE_MM[0]) ** 2 + (along / ELLIPSE_MM[1]) ** 2 <= 1


def _axis_and_reach(places: Sequence[np.ndarray | None], i: int) -> tuple[np.ndarray, float]:
    """Unit vector (down, across) along which the spine runs at disc i, and how far edges are looked for in mm.

    Straight down where no neighbour is known.
    """
    near = [(k, places[k]) for k in (i - 1, i, i + 1) if 0 <= k < len(places) and places[k] is not None]
    if len(near) < 2 or places[i] is None:
        return np.array([1.0, 0.0]), MOST_REACH_MM
    (first, top), (last, bottom) = near[0], near[-1]
    assert top is not None and bottom is not None
    step = (bottom - top) / (last - first)
    length = float(np.linalg.norm(step))
    return step / max(length, 1e-6), float(np.clip(REACH * length, LEAST_REACH_MM, MOST_REACH_MM))


def _mask(
    labels: np.ndarray, spacing_mm: tuple[float, float], place: np.ndarray, axis: np.ndarray, reach: float
) -> DiscMask:
    """The mask of one disc. place: (down, across) in mm; axis: unit vector down the spine."""
    u = np.arange(-LONGEST_MM, LONGEST_MM + STEP_MM / 2, STEP_MM)
    edges = None
    for _ in range(1 + TURNS):
        edges = _edges_about(labels, spacing_mm, place, axis, reach, u)
        tilt = 0.0 if edges is None else _tilt(edges, u)
        if not tilt:
            break
        axis = _turned(axis, tilt)
    along = np.array([-axis[1], axis[0]])
    rows, columns = np.indices(labels.shape)
    down, across = rows * spacing_mm[0] - place[0], columns * spacing_mm[1] - place[1]
    own_u, own_v = down * along[0] + across * along[1], down * axis[0] + across * axis[1]
    ends = None if edges is None else _extent(np.isfinite(edges.top) & np.isfinite(edges.bottom), u)
    if edges is None or ends is None:
        inside = (own_v / ELLIPSE_MM[0]) ** 2 + (own_u / ELLIPSE_MM[1]) ** 2 <= 1
        return DiscMask(inside, "ellipse", 2 * ELLIPSE_MM[1])
    top, bottom = _bridged(edges.top, u) + END_PLATE_MM, _bridged(edges.bottom, u) - END_PLATE_MM
    inside = (own_u >= ends[0]) & (own_u <= ends[1])
    inside &= (own_v > np.interp(own_u, u, top)) & (own_v < np.interp(own_u, u, bottom))
    inside &= (labels != VERTEBRA) & (labels != CANAL)
    return DiscMask(inside, edges.source, ends[1] - ends[0] + STEP_MM)


def _edges_about(
    labels: np.ndarray,
    spacing_mm: tuple[float, float],
    place: np.ndarray,
    axis: np.ndarray,
    reach: float,
    u: np.ndarray,
) -> _Edges | None:
    """The edges of the vertebrae in each column of a disc; that of a missing neighbour mirrored; None without any.

    The gap of a column is that nearest to the middle line, which a thin disc that is bent may leave.
    """
    v = np.arange(-reach, reach + STEP_MM / 2, STEP_MM)
    columns = _sampled(labels, spacing_mm, place, axis, u, v)
    blocked = (columns == VERTEBRA) | (columns == CANAL)
    start = np.where(blocked, np.inf, np.abs(v)[:, None]).argmin(0)
    number, one = np.arange(len(v))[:, None], np.arange(len(u))
    before = np.maximum.accumulate(np.where(blocked, number, -1), 0)[start, one]
    after = np.minimum.accumulate(np.where(blocked, number, len(v))[::-1], 0)[::-1][start, one]
    is_gap = ~blocked[start, one] & (np.abs(v[start]) <= BENT_MM)
    top, bottom = (
        np.where(is_gap & (at >= 0) & (at < len(v)) & (columns[at.clip(0, len(v) - 1), one] == VERTEBRA),
                 v[at.clip(0, len(v) - 1)], np.nan)
        for at in (before, after)
    )  # fmt: skip
    middle = np.abs(u) <= MIDDLE_MM
    known = [np.isfinite(side[middle]).mean() > 0.2 for side in (top, bottom)]
    if not any(known):
        return None
    if all(known):
        return _Edges(top, bottom, (top + bottom) / 2, "vertebrae")
    return _Edges(top, -top, top, "one vertebra") if known[0] else _Edges(-bottom, bottom, bottom, "one vertebra")


def _tilt(edges: _Edges, u: np.ndarray) -> float:
    """Angle in radians by which the disc's middle line falls towards larger u; of one known edge, that edge's own.

    A disc lies along its end plates, which need not be square to the line between its neighbours' centres. The slope is
    the median over pairs of columns half a disc apart, which a few spurs do not move; 0 where it is small.
    """
    near = np.abs(u) <= TILT_MM
    middle, u = edges.line[near], u[near]
    half = len(u) // 2
    rises = (middle[half:] - middle[: len(middle) - half]) / (u[half:] - u[: len(u) - half])
    rises = rises[np.isfinite(rises)]
    if len(rises) < half // 2:
        return 0.0
    tilt = float(np.arctan(np.median(rises)))
    return 0.0 if abs(tilt) < LEAST_TILT else float(np.clip(tilt, -MOST_TILT, MOST_TILT))


def _turned(axis: np.ndarray, tilt: float) -> np.ndarray:
    """The axis (down, across) of a disc whose middle line, (-axis[1], axis[0]), turns towards the axis by tilt."""
    along = np.array([-axis[1], axis[0]])
    line = np.cos(tilt) * along + np.sin(tilt) * axis
    return np.array([line[1], -line[0]])


def _sampled(
    labels: np.ndarray,
    spacing_mm: tuple[float, float],
    place: np.ndarray,
    axis: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
) -> np.ndarray:
    """(N, M) labels at v mm along the axis and u mm along the disc from its centre; 0 outside of the image."""
    along = np.array([-axis[1], axis[0]])
    places = place + v[:, None, None] * axis + u[None, :, None] * along
    row, column = (np.rint(places[..., k] / spacing_mm[k]).astype(int) for k in (0, 1))
    inside = (row >= 0) & (column >= 0) & (row < labels.shape[0]) & (column < labels.shape[1])
    return np.where(inside, labels[row.clip(0, labels.shape[0] - 1), column.clip(0, labels.shape[1] - 1)], 0)


def _extent(has_edges: np.ndarray, u: np.ndarray) -> tuple[float, float] | None:
    """First and last u of the columns with edges around the middle, across gaps of up to GAP_MM; None without any."""
    places = u[has_edges]
    if not len(places) or np.abs(places).min() > MIDDLE_MM:
        return None
    start = end = int(np.abs(places).argmin())
    while end + 1 < len(places) and places[end + 1] - places[end] <= GAP_MM + STEP_MM:
        end += 1
    while start > 0 and places[start] - places[start - 1] <= GAP_MM + STEP_MM:
        start -= 1
    return float(places[start]), float(places[end])


def _bridged(edges: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The edges with columns that have none on the line between those that do."""
    known = np.isfinite(edges)
    return np.interp(u, u[known], edges[known])


def _apart(
    found: Sequence[DiscMask | None], places: Sequence[np.ndarray | None], spacing_mm: tuple[float, float]
) -> list[DiscMask | None]:
    """The masks without what another disc's centre is nearer to."""
    shape = next((one.mask.shape for one in found if one is not None), None)
    if shape is None:
        return list(found)
    rows, columns = np.indices(shape)
    away = np.stack(
        [
            np.full(shape, np.inf) if one is None
            else (rows * spacing_mm[0] - one[0]) ** 2 + (columns * spacing_mm[1] - one[1]) ** 2
            for one in places
        ]
    )  # fmt: skip
    nearest = away.argmin(0)
    return [None if one is None else replace(one, mask=one.mask & (nearest == i)) for i, one in enumerate(found)]

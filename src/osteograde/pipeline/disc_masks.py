"""Masks of discs from their centres and a label image of vertebrae: a disc fills the gap between its neighbours.

Everything is measured in the disc's own axes, millimetres along the disc (u) and down the spine (v) from its centre.
The axes turn with the spine: v runs from the centre above to the centre below. In each column u a disc reaches from the
last pixel of the vertebra above to the first one of the vertebra below; where a column has no vertebra, or canal in
between, the disc ends. Where one neighbour is outlined in none of the middle columns (the sacrum, which data sets leave
out), the disc is as high on that side as on the other. Where both are missing, an ellipse stands for the disc.

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
GAP_MM = 2.0  # columns without an edge that a disc bridges


@dataclass(frozen=True, eq=False)
class DiscMask:
    """One disc in a slice. mask: (Y, X) bool. source: "vertebrae", "one vertebra" or "ellipse". length_mm: along it."""

    mask: np.ndarray
    source: str
    length_mm: float


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
    along = np.array([-axis[1], axis[0]])
    u = np.arange(-LONGEST_MM, LONGEST_MM + STEP_MM / 2, STEP_MM)
    v = np.arange(0, reach + STEP_MM / 2, STEP_MM)
    above = _edges(_sampled(labels, spacing_mm, place, along, -axis, u, v))
    below = _edges(_sampled(labels, spacing_mm, place, along, axis, u, v))
    middle = np.abs(u) <= MIDDLE_MM
    known = [np.isfinite(side[middle]).mean() > 0.2 for side in (above, below)]
    if not any(known):
        return DiscMask(_ellipse(labels.shape, spacing_mm, place, axis, along), "ellipse", 2 * ELLIPSE_MM[1])
    if not known[0]:
        above = below
    if not known[1]:
        below = above
    ends = _extent(np.isfinite(above) & np.isfinite(below), u)
    if ends is None:
        return DiscMask(_ellipse(labels.shape, spacing_mm, place, axis, along), "ellipse", 2 * ELLIPSE_MM[1])
    above, below = (_bridged(side, u) for side in (above, below))
    rows, columns = np.indices(labels.shape)
    down, across = rows * spacing_mm[0] - place[0], columns * spacing_mm[1] - place[1]
    own_u, own_v = down * along[0] + across * along[1], down * axis[0] + across * axis[1]
    inside = (own_u >= ends[0]) & (own_u <= ends[1])
    inside &= (own_v > -np.interp(own_u, u, above)) & (own_v < np.interp(own_u, u, below))
    inside &= (labels != VERTEBRA) & (labels != CANAL)
    return DiscMask(inside, "vertebrae" if all(known) else "one vertebra", ends[1] - ends[0] + STEP_MM)


def _sampled(
    labels: np.ndarray,
    spacing_mm: tuple[float, float],
    place: np.ndarray,
    along: np.ndarray,
    down: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
) -> np.ndarray:
    """(N, M) labels at v mm along ``down`` and u mm along the disc from its centre; 0 outside of the image."""
    places = place + v[:, None, None] * down + u[None, :, None] * along
    row, column = (np.rint(places[..., k] / spacing_mm[k]).astype(int) for k in (0, 1))
    inside = (row >= 0) & (column >= 0) & (row < labels.shape[0]) & (column < labels.shape[1])
    return np.where(inside, labels[row.clip(0, labels.shape[0] - 1), column.clip(0, labels.shape[1] - 1)], 0)


def _edges(column_labels: np.ndarray) -> np.ndarray:
    """(M,) mm from the disc's middle line to the first vertebra in each column of labels (N, M); NaN where canal comes
    first, or no vertebra comes."""
    count = len(column_labels)
    bone = _first(column_labels == VERTEBRA, count)
    canal = _first(column_labels == CANAL, count)
    return np.where((bone < count) & (bone < canal), bone * STEP_MM, np.nan)


def _first(found: np.ndarray, otherwise: int) -> np.ndarray:
    return np.where(found.any(0), found.argmax(0), otherwise)


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


def _ellipse(
    shape: tuple[int, ...], spacing_mm: tuple[float, float], place: np.ndarray, axis: np.ndarray, along: np.ndarray
) -> np.ndarray:
    rows, columns = np.indices(shape)
    down, across = rows * spacing_mm[0] - place[0], columns * spacing_mm[1] - place[1]
    v, u = down * axis[0] + across * axis[1], down * along[0] + across * along[1]
    return (v / ELLIPSE_MM[0]) ** 2 + (u / ELLIPSE_MM[1]) ** 2 <= 1


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

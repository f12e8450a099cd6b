"""Where the points of `lumbar-mr` lie when they were not found, and the boxes around them. Pure geometry, LPS mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks.contract import CropSpec, Point, Points, Rois, Site, Volumes
from osteograde.tasks.lumbar_names import LEVELS, SIDES, landmark

# Typical way from the canal point to the structures of the left side (x to the left, y to the back, z to the head), mm.
# Textbook proportions of an adult lumbar spine, not fitted to any data; only for points that no locator found.
FORAMEN_MM = np.array([17.0, -4.0, 2.0])
RECESS_MM = np.array([8.5, -4.0, 0.0])
OFFSETS_MM = {"foramen": FORAMEN_MM, "recess": RECESS_MM}
MIRROR = np.array([-1.0, 1.0, 1.0])
FILLED = 0.01  # confidence of a point that was not seen

# A structure further than this from every slice of a view (along the normal) is not in that view.
REACH_MM = {"sag_t1": 6.0, "sag_t2": 6.0, "axi_t2": 8.0}


def complete(points: Points) -> Points:
    """The points found, and those that geometry can tell from them with a confidence of 0.01.

    Canal points come from the foramina of both sides, else along the line of the other levels (two at least). Foramina
    and recesses come from the other side mirrored about the canal, else from the canal by typical offsets.
    """
    canal = {i: points[name].mm for i, level in enumerate(LEVELS) if (name := landmark("canal", level)) in points}
    for i, level in enumerate(LEVELS):
        sides = [points[name].mm for side in SIDES if (name := landmark("foramen", level, side)) in points]
        if i not in canal and len(sides) == len(SIDES):
            canal[i] = np.mean(sides, axis=0) - FORAMEN_MM * [0, 1, 1]
    canal = along_the_line(canal, len(LEVELS))
    whole = {landmark("canal", LEVELS[i]): mm for i, mm in canal.items()}
    for structure, offset in OFFSETS_MM.items():
        for i, middle in canal.items():
            for side in SIDES:
                other = landmark(structure, LEVELS[i], "left" if side == "right" else "right")
                typical = offset if side == "left" else offset * MIRROR
                away = (points[other].mm - middle) * MIRROR if other in points else typical
                whole[landmark(structure, LEVELS[i], side)] = middle + away
    filled = {name: Point(np.asarray(mm, float), FILLED) for name, mm in whole.items()}
    return {**filled, **points}


def along_the_line(known: dict[int, np.ndarray], count: int) -> dict[int, np.ndarray]:
    """All of ``count`` points from at least two of them: linear between neighbours and beyond the ends; else as given.

    >>> {i: p.tolist() for i, p in along_the_line({0: np.zeros(3), 1: np.ones(3)}, 3).items()}
    {0: [0.0, 0.0, 0.0], 1: [1.0, 1.0, 1.0], 2: [2.0, 2.0, 2.0]}
    """
    if len(known) < 2:
        return dict(known)
    have = sorted(known)
    line = dict(known)
    for i in set(range(count)) - set(have):
        after = min(max(int(np.searchsorted(have, i)), 1), len(have) - 1)  # the segment i lies in or is nearest to
        a, b = have[after - 1], have[after]
        line[i] = known[a] + (known[b] - known[a]) * ((i - a) / (b - a))
    return {i: line[i] for i in sorted(line)}


def rois(sites: Sequence[Site], crops: Sequence[CropSpec], volumes: Volumes, points: Points, pixels: int) -> Rois:
    """{target: {view: (stack, box)}} around the landmark of each site; left sites are read mirrored, as right ones.

    Sites whose landmark is absent, and views that do not show it, are left out. See ``contract.Grade``.
    """
    found: dict[str, dict[str, tuple[Volume, Roi]]] = {}
    for site in sites:
        if site.landmark not in points:
            continue
        for crop in crops:
            seen = box(crop, volumes.get(crop.view, ()), points[site.landmark].mm, site.side, pixels)
            if seen is not None:
                found.setdefault(site.target, {})[crop.view] = seen
    return found


def box(
    crop: CropSpec, stacks: Sequence[Volume], point_mm: np.ndarray, side: str, pixels: int
) -> tuple[Volume, Roi] | None:
    """The stack of a view that shows a point best and the box on its slices; None where no stack shows it."""
    near = [
        (round(distance, 3), -stack.voxels.shape[0], stack.series, i)  # every tie is broken the same way each time
        for i, stack in enumerate(stacks)
        if (distance := geometry.plane_distance_mm(stack, point_mm)) <= REACH_MM[crop.view]
        and geometry.outside_mm(stack, point_mm) == 0
    ]
    if not near:
        return None
    stack = stacks[min(near)[-1]]
    spacing_mm = (crop.field_mm / pixels, crop.field_mm / pixels)
    roi = geometry.roi_on(stack, onto_a_slice(stack, point_mm), spacing_mm, (crop.slices, pixels, pixels))
    return stack, canonical(roi, side)


def onto_a_slice(stack: Volume, point_mm: np.ndarray) -> np.ndarray:
    """The point itself, or for a point beyond the first or last slice the place on that slice next to it."""
    index = geometry.to_index(stack, point_mm)
    index[0] = np.clip(index[0], 0, stack.voxels.shape[0] - 1)
    return geometry.apply(stack.to_mm, index)


def canonical(roi: Roi, side: str) -> Roi:
    """A box of the left side read as one of the right: mirrored along its left-right axis. Others as they are."""
    if side != "left":
        return roi
    return geometry.mirrored(roi, int(np.argmax(np.abs(roi.to_mm[0, :3]) / roi.spacing_mm)))

"""Boxes around landmarks on the stacks that show them best. Pure geometry, LPS mm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks.spec import Boxes, CropSpec, Pixels, Points, Site, Volumes, sides, spacing_mm


def around(
    sites: Sequence[Site],
    crops: Sequence[CropSpec],
    reach_mm: Mapping[str, float],
    volumes: Volumes,
    points: Points,
    pixels: Pixels,
) -> Boxes:
    """{target: {view: (stack, box)}} around the landmark of each site; left sites are read mirrored, as right ones.

    reach_mm: per view, how far along the normal a point may lie from the nearest slice. Sites whose landmark is absent,
    and views that do not show it, are left out. See ``spec.Grader``.
    """
    found: dict[str, dict[str, tuple[Volume, Roi]]] = {}
    for site in sites:
        if site.landmark not in points:
            continue
        for crop in crops:
            stacks, reach = volumes.get(crop.view, ()), reach_mm[crop.view]
            seen = box(crop, stacks, points[site.landmark].mm, site.side, pixels, reach)
            if seen is not None:
                found.setdefault(site.target, {})[crop.view] = seen
    return found


def box(
    crop: CropSpec, stacks: Sequence[Volume], point_mm: np.ndarray, side: str, pixels: Pixels, reach_mm: float
) -> tuple[Volume, Roi] | None:
    """The stack of a view that shows a point best and the box on its slices; None where no stack shows it."""
    near = [
        (round(distance, 3), -stack.voxels.shape[0], stack.series, i)  # every tie is broken the same way each time
        for i, stack in enumerate(stacks)
        if (distance := geometry.plane_distance_mm(stack, point_mm)) <= reach_mm
        and geometry.outside_mm(stack, point_mm) == 0
    ]
    if not near:
        return None
    stack = stacks[min(near)[-1]]
    shape = (crop.slices, *sides(pixels))
    roi = geometry.roi_on(stack, onto_a_slice(stack, point_mm), spacing_mm(crop.field_mm, pixels), shape)
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
    return geometry.mirrored(roi, geometry.lateral_axis(roi))


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

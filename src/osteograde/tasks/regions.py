"""Building blocks of the regions that locators and graders read. Pure geometry, LPS mm.

Tasks bind these functions with ``functools.partial``; what only one task needs is a function in its own module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks.spec import Boxes, Crop, Landmark, Pixels, Points, Region, Site, Volumes, sides, spacing_mm


def largest_stack(stacks: Sequence[Volume]) -> Volume:
    """The stack with the most slices; of equals the one whose series has the last name."""
    return max(stacks, key=lambda stack: (stack.voxels.shape[0], stack.series))


def nearest_stack(stacks: Sequence[Volume], point_mm: np.ndarray) -> tuple[Volume, float]:
    """The stack whose slices come closest to a point, and how close in mm (out of the plane and out of the field)."""
    distances = [geometry.plane_distance_mm(stack, point_mm) + geometry.outside_mm(stack, point_mm) for stack in stacks]
    best = min(range(len(stacks)), key=lambda i: (round(distances[i], 3), -stacks[i].voxels.shape[0], stacks[i].series))
    return stacks[best], distances[best]


def whole_stack_region(
    view: str,
    landmarks: tuple[Landmark, ...],
    field_mm: tuple[float, float] | None,
    volumes: Volumes,
    points: Points,
    *,
    midline: Sequence[str] = (),
    midline_mm: float | None = None,
    neighbours: Mapping[str, str] | None = None,
) -> list[Region]:
    """The largest stack of a view as one region; none where the study lacks the view.

    field_mm: (H, W) about the middle of the stack; None: a square over its longer side, for images whose size in mm is
    not to be relied on. midline: landmarks of earlier locators whose mean x divides right from left; without any of
    them ``midline_mm`` does, or where that is None the middle of the stack. neighbours: landmark -> the landmark of an
    earlier locator beside which it lies.
    """
    stacks = volumes.get(view, ())
    if not stacks:
        return []
    volume = largest_stack(stacks)
    if field_mm is None:
        longest_mm = float(np.max(volume.spacing_mm[1:] * volume.voxels.shape[1:]))
        field_mm = (longest_mm, longest_mm)
    known = [points[name].mm[0] for name in midline if name in points]
    default_mm = float(volume.centre_mm[0]) if midline_mm is None else midline_mm
    beside = {name: points[other].mm for name, other in (neighbours or {}).items() if other in points}
    return [Region(landmarks, volume, field_mm, float(np.mean(known)) if known else default_mm, neighbours_mm=beside)]


def regions_around_points(
    view: str,
    landmarks: Mapping[str, tuple[Landmark, ...]],
    field_mm: tuple[float, float],
    slices: int,
    max_plane_distance_mm: float,
    volumes: Volumes,
    points: Points,
) -> list[Region]:
    """A few slices around each of the points of earlier locators, in the stack of a view that comes closest.

    landmarks: point -> what is looked for around it; the point itself divides right from left. field_mm: (H, W) around
    the point. Points that were not found, or that lie further than ``max_plane_distance_mm`` from every slice, have no
    region.
    """
    stacks = volumes.get(view, ())
    regions = []
    for name, wanted in landmarks.items():
        if not stacks or name not in points:
            continue
        point_mm = points[name].mm
        volume, distance_mm = nearest_stack(stacks, point_mm)
        if distance_mm <= max_plane_distance_mm:
            regions.append(Region(wanted, volume, field_mm, float(point_mm[0]), centre_mm=point_mm, slices=slices))
    return regions


def boxes_around_sites(
    sites: Sequence[Site],
    crops: Sequence[Crop],
    max_plane_distance_mm: Mapping[str, float],
    volumes: Volumes,
    points: Points,
    pixels: Pixels,
) -> Boxes:
    """{target: {crop name: (stack, box)}} around the landmark of each site; left sites are read mirrored, as right
    ones.

    max_plane_distance_mm: per view, how far along the normal a point may lie from the nearest slice. Sites whose
    landmark is absent, and crops of views that do not show it, are left out. See ``spec.Grader``.
    """
    found: dict[str, dict[str, tuple[Volume, Roi]]] = {}
    for site in sites:
        if site.landmark not in points:
            continue
        for crop in crops:
            stacks, limit_mm = volumes.get(crop.view, ()), max_plane_distance_mm[crop.view]
            seen = box_around(crop, stacks, points[site.landmark].mm, site.side, pixels, limit_mm)
            if seen is not None:
                found.setdefault(site.target, {})[crop.name] = seen
    return found


def box_around(
    crop: Crop,
    stacks: Sequence[Volume],
    point_mm: np.ndarray,
    side: str,
    pixels: Pixels,
    max_plane_distance_mm: float,
) -> tuple[Volume, Roi] | None:
    """The stack of a view that shows a point best and the box on its slices; None where no stack shows it."""
    near = [
        (round(distance, 3), -stack.voxels.shape[0], stack.series, i)  # every tie is broken the same way each time
        for i, stack in enumerate(stacks)
        if (distance := geometry.plane_distance_mm(stack, point_mm)) <= max_plane_distance_mm
        and geometry.outside_mm(stack, point_mm) == 0
    ]
    if not near:
        return None
    stack = stacks[min(near)[-1]]
    shape = (crop.slices, *sides(pixels))
    roi = geometry.roi_on(stack, onto_a_slice(stack, point_mm), spacing_mm(crop.field_mm, pixels), shape)
    return stack, beside(canonical(roi, side), crop)


def beside(roi: Roi, crop: Crop) -> Roi:
    """A box around a landmark, moved and mirrored as its crop says; a box of a crop about the landmark is returned as
    it is."""
    if any(crop.offset_mm):
        roi = geometry.moved(roi, crop.offset_mm)
    return geometry.mirrored(roi, geometry.lateral_axis(roi)) if crop.mirrored else roi


def onto_a_slice(stack: Volume, point_mm: np.ndarray) -> np.ndarray:
    """The point (3,) mm itself; where it lies beyond the first or last slice, the nearest position on that slice."""
    index = geometry.to_index(stack, point_mm)
    index[0] = np.clip(index[0], 0, stack.voxels.shape[0] - 1)
    return geometry.apply(stack.to_mm, index)


def canonical(roi: Roi, side: str) -> Roi:
    """A box with side "left" mirrored along its left-right axis, so that it reads as a right one; others unchanged."""
    if side != "left":
        return roi
    return geometry.mirrored(roi, geometry.lateral_axis(roi))


def along_the_line(known: dict[int, np.ndarray], count: int) -> dict[int, np.ndarray]:
    """Fill a line of ``count`` points from at least two known ones, by index: linear between neighbours and beyond the
    ends. Fewer than two known points are returned as they are.

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

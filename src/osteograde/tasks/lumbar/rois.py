"""Where the points of `lumbar-mr` lie when they were not found, and the boxes around them. Pure geometry, LPS mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osteograde.tasks import boxes
from osteograde.tasks.boxes import along_the_line
from osteograde.tasks.lumbar_names import landmark
from osteograde.tasks.spec import CropSpec, Pixels, Point, Points, Rois, Site, Volumes
from osteograde.tasks.spine import LEVELS, SIDES

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


def rois(sites: Sequence[Site], crops: Sequence[CropSpec], volumes: Volumes, points: Points, pixels: Pixels) -> Rois:
    """The boxes around the landmark of each site; see ``boxes.around``."""
    return boxes.around(sites, crops, REACH_MM, volumes, points, pixels)

"""The task `spider`: Pfirrmann grades 1 to 5 of the five lumbar discs on sagittal T2 and T1 slices.

Disc centres are found in each view, levels counted up from the lowest disc. A crop around each, turned with the spine
and as large as the patient's discs lie apart, is graded; narrowing and bulging are yes/no heads of the same net. Files:
spider_files.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks import spider_files
from osteograde.tasks.covariates import read_files_known, read_known
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.priors import normalised
from osteograde.tasks.regions import along_the_line, largest_stack, onto_a_slice, whole_stack_region
from osteograde.tasks.spec import (
    Boxes,
    Crop,
    Grader,
    Head,
    Landmark,
    Locator,
    Pixels,
    Point,
    Points,
    Region,
    Site,
    Task,
    View,
    Volumes,
    sides,
    spacing_mm,
)
from osteograde.tasks.spider_files import landmark
from osteograde.tasks.spine import DISC_RHYTHM, LEVELS, SAGITTAL

APART_MM = 36.0  # usual distance of neighbouring lumbar discs; fields are given for a spine like this
SCALE = (0.5, 3.0)  # beyond these the distances are not those of discs
FILLED = 0.01  # confidence of a point that was not seen


def fill_missing_landmarks(points: Points) -> Points:
    """The points found, and missing levels on the line of at least two others of the same view."""
    filled: dict[str, Point] = {}
    for view in ("t2", "t1"):
        known = {i: points[name].mm for i, level in enumerate(LEVELS) if (name := landmark(view, level)) in points}
        line = along_the_line(known, len(LEVELS))
        filled |= {landmark(view, LEVELS[i]): Point(np.asarray(mm, float), FILLED) for i, mm in line.items()}
    return {**filled, **points}


def apart_mm(discs: Mapping[int, np.ndarray]) -> float:
    """Median distance in mm of neighbouring discs, given as level number -> (3,) mm; the usual distance where fewer
    than two are known."""
    steps = [np.linalg.norm(discs[b] - discs[a]) / (b - a) for a, b in pairwise(sorted(discs))]
    return float(np.median(steps)) if steps else APART_MM


def turn_of(discs: Mapping[int, np.ndarray], i: int, volume: Volume) -> float:
    """Angle in radians by which the spine at disc i is turned in the slice plane; 0 where it runs straight down the
    image, or where neither neighbour of the disc is known."""
    known = [j for j in (i - 1, i, i + 1) if j in discs]
    if len(known) < 2:
        return 0.0
    down, across = volume.axes[1:] @ (discs[known[-1]] - discs[known[0]])
    return float(np.arctan2(-across, down))


def disc_boxes(sites: Sequence[Site], crops: Sequence[Crop], volumes: Volumes, points: Points, pixels: Pixels) -> Boxes:
    """{level: {crop name: (stack, box)}}: in each view around that view's own point. See ``spec.Grader``."""
    found: dict[str, dict[str, tuple[Volume, Roi]]] = {}
    for crop in crops:
        stacks = volumes.get(crop.view, ())
        discs = {i: points[name].mm for i, level in enumerate(LEVELS) if (name := landmark(crop.view, level)) in points}
        if not stacks or not discs:
            continue
        volume = largest_stack(stacks)  # in which the locator looked
        scale = float(np.clip(apart_mm(discs) / APART_MM, *SCALE))
        for site in sites:
            i = LEVELS.index(site.level)
            if i in discs and geometry.outside_mm(volume, discs[i]) == 0:
                roi = _box(crop, volume, discs, i, scale, pixels)
                found.setdefault(site.target, {})[crop.name] = (volume, roi)
    return found


def disc_regions(landmarks: Mapping[str, tuple[Landmark, ...]], volumes: Volumes, points: Points) -> list[Region]:
    """The whole stack of each view: one net reads both, which look alike to it."""
    return [
        region for view, discs in landmarks.items() for region in whole_stack_region(view, discs, None, volumes, points)
    ]


def _box(crop: Crop, volume: Volume, discs: Mapping[int, np.ndarray], i: int, scale: float, pixels: Pixels) -> Roi:
    """The box of disc i: the crop's field times ``scale``, turned in the slice plane as the spine is there."""
    step_mm = spacing_mm(crop.field_mm * scale, pixels)
    roi = geometry.roi_on(volume, onto_a_slice(volume, discs[i]), step_mm, (crop.slices, *sides(pixels)))
    angle = turn_of(discs, i, volume)
    centre = (np.array(roi.shape) - 1) / 2
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return replace(roi, to_mm=roi.to_mm @ turn)


VIEWS = ("t2", "t1")
FIELD_MM = 64.0  # a disc, half of the vertebrae beside it, and the canal behind it

# Discs per Pfirrmann grade in SPIDER's gradings.csv as given here (173 patients), by level.
COUNTS = {
    "l1_l2": (39, 51, 40, 31, 12),
    "l2_l3": (30, 42, 52, 30, 19),
    "l3_l4": (23, 37, 53, 40, 20),
    "l4_l5": (18, 19, 59, 44, 33),
    "l5_s1": (20, 17, 44, 45, 47),
}

SITES = tuple(Site(level, "pfirrmann", level, "", (landmark("t2", level), landmark("t1", level))) for level in LEVELS)
DISCS = {view: tuple(Landmark(landmark(view, level), channel=f"disc_{level}") for level in LEVELS) for view in VIEWS}
CROPS = tuple(Crop(view, view, 1, FIELD_MM) for view in VIEWS)

TASK = Task(
    name="spider",
    views=tuple(View(view, SAGITTAL, required=False, contrasts=(view.upper(),)) for view in VIEWS),
    classes=tuple(f"pfirrmann_{grade}" for grade in spider_files.GRADES),
    class_weights=(1.0,) * len(spider_files.GRADES),
    locators=(
        Locator(
            "disc",
            tuple(disc for discs in DISCS.values() for disc in discs),
            VIEWS,
            partial(disc_regions, DISCS),
            field_mm=(300.0, 300.0),
            level_spacing_mm=(14.0, 80.0),
            level_rhythm=DISC_RHYTHM,
        ),
    ),
    graders=(
        Grader(
            "pfirrmann",
            SITES,
            CROPS,
            partial(disc_boxes, SITES, CROPS),
            heads=tuple(Head(name) for name in spider_files.FINDINGS),
        ),
    ),
    prior={level: normalised(COUNTS[level]) for level in LEVELS},
    read=partial(read_known, spider_files.read, spider_files.COVARIATES, SITES),
    read_labels=spider_files.labels,
    inspect=spider_files.inspect,
    metric=OrdinalMetric(LEVELS, spider_files.GRADES),
    fill_missing_landmarks=fill_missing_landmarks,
    patient_of=spider_files.patient_of,
    read_files=partial(read_files_known, spider_files.read_files, spider_files.COVARIATES, SITES),
    covariates=spider_files.COVARIATES,
)

"""The task `lumbar-mr`: 25 grades of a lumbar spine from sagittal T1, sagittal T2/STIR and axial T2 series.

Canal points are found on sagittal T2, foramina on sagittal T1, recesses on axial T2 around the canal points. The canal
is graded on sagittal and axial slices, the foramina on sagittal T1, the recesses on axial T2 with sagittal T2 as a
second view. Names: names.py; tables: tables.py; score: metric.py; boxes: rois.py.

Where the points of `lumbar-mr` lie when they were not found, and the boxes around them. Pure geometry, LPS mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from osteograde.tasks import boxes, lumbar_metric, lumbar_names, lumbar_tables
from osteograde.tasks.boxes import along_the_line
from osteograde.tasks.lumbar_names import FORAMINAL, SPINAL, SUBARTICULAR, WEIGHTS, landmark
from osteograde.tasks.priors import normalised
from osteograde.tasks.spec import (
    Boxes,
    Competition,
    CropSpec,
    Grader,
    Landmark,
    Locator,
    Pixels,
    Point,
    Points,
    Site,
    Task,
    View,
    Volumes,
)
from osteograde.tasks.spine import LEVELS, SAGITTAL, SIDES

# Typical way from the canal point to the structures of the left side (x to the left, y to the back, z to the head), mm.
# Textbook proportions of an adult lumbar spine, not fitted to any data; only for points that no locator found.
FORAMEN_MM = np.array([17.0, -4.0, 2.0])
RECESS_MM = np.array([8.5, -4.0, 0.0])
OFFSETS_MM = {"foramen": FORAMEN_MM, "recess": RECESS_MM}
MIRROR = np.array([-1.0, 1.0, 1.0])
FILLED = 0.01  # confidence of a point that was not seen

# A structure further than this from every slice of a view (along the normal) is not in that view.
REACH_MM = {"sag_t1": 6.0, "sag_t2": 6.0, "axi_t2": 8.0}


def fill_missing_landmarks(points: Points) -> Points:
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


def rois(sites: Sequence[Site], crops: Sequence[CropSpec], volumes: Volumes, points: Points, pixels: Pixels) -> Boxes:
    """The boxes around the landmark of each site; see ``boxes.around``."""
    return boxes.around(sites, crops, REACH_MM, volumes, points, pixels)


# Unit LPS directions of a stack's (D, H, W) axes.
AXIAL = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

# Published counts of the training labels (normal/mild, moderate, severe) and percent severe per level. Moderates are
# published only over all levels; ``_published`` spreads them in proportion to the square root of the severe share,
# an assumption (milder disease is spread more evenly). Weights carry priors counted from their own training labels;
# these are used only where no weights are at hand.
COUNTS = {SPINAL: (8664, 736, 470), FORAMINAL: (15357, 3564, 779), SUBARTICULAR: (13733, 3660, 1840)}
SEVERE_PERCENT = {
    SPINAL: (1.1, 2.7, 6.2, 12.9, 1.0),
    FORAMINAL: (0.4, 0.4, 2.1, 6.9, 10.1),
    SUBARTICULAR: (1.4, 4.1, 9.9, 23.3, 8.1),
}


APART_MM = (18.0, 60.0)  # between the points of neighbouring levels, from children to tall adults with high discs


def _published(condition: str) -> dict[str, tuple[float, ...]]:
    """{level: class probabilities}, each class by its share times its weight: the best constant under the metric."""
    severe = np.array(SEVERE_PERCENT[condition]) / 100
    moderate = np.sqrt(severe) / np.sqrt(severe).mean() * COUNTS[condition][1] / sum(COUNTS[condition])
    shares = np.stack([1 - moderate - severe, moderate, severe], 1)
    return {level: normalised(share * np.array(WEIGHTS)) for level, share in zip(LEVELS, shares, strict=True)}


def _prior() -> dict[str, tuple[float, ...]]:
    by_level = {condition: _published(condition) for condition in COUNTS}
    targets = (lumbar_names.TARGET_OF[name] for name in lumbar_names.TEMPLATE_TARGETS)
    return {target.name: by_level[target.condition][target.level] for target in targets}


def _locators() -> tuple[Locator, ...]:
    canal = tuple(Landmark(name, channel=name) for name in (landmark("canal", level) for level in LEVELS))
    sided = [(level, side) for side in SIDES for level in LEVELS]
    foramina = tuple(
        Landmark(
            landmark("foramen", level, side),
            channel=landmark("foramen", level),
            side=side,
            near=landmark("canal", level),
        )
        for level, side in sided
    )
    recesses = tuple(
        Landmark(landmark("recess", level, side), channel="recess", side=side, prompt=landmark("canal", level))
        for level, side in sided
    )
    return (
        Locator("canal", "sag_t2", canal, field_mm=(256.0, 256.0), apart_mm=APART_MM),
        Locator(
            "foramen",
            "sag_t1",
            foramina,
            field_mm=(256.0, 256.0),
            midline=tuple(point.name for point in canal),
            apart_mm=APART_MM,
        ),
        Locator("recess", "axi_t2", recesses, field_mm=(96.0, 96.0), slices=5, far_mm=10.0),
    )


def _grader(name: str, condition: str, crops: tuple[CropSpec, ...], *, any_severe: bool = False) -> Grader:
    sites = tuple(
        Site(target.name, condition, target.level, target.side, target.landmark)
        for target in lumbar_names.TARGET_OF.values()
        if target.condition == condition
    )
    return Grader(name, sites, crops, partial(rois, sites, crops), any_severe)


TASK = Task(
    name="lumbar-mr",
    views=tuple(  # a sagittal stack of unknown contrast is taken for the first sagittal view
        View(name, AXIAL if name == "axi_t2" else SAGITTAL) for name in ("sag_t2", "sag_t1", "axi_t2")
    ),
    classes=lumbar_names.CLASSES,
    class_weights=WEIGHTS,
    locators=_locators(),
    graders=(
        _grader("spinal", SPINAL, (CropSpec("sag_t2", 3, 56.0), CropSpec("axi_t2", 3, 64.0)), any_severe=True),
        _grader("foraminal", FORAMINAL, (CropSpec("sag_t1", 5, 48.0),)),
        _grader("subarticular", SUBARTICULAR, (CropSpec("axi_t2", 3, 56.0), CropSpec("sag_t2", 3, 48.0))),
    ),
    prior=_prior(),
    read=lumbar_tables.read,
    read_labels=lumbar_tables.read_labels,
    metric=lumbar_metric.LumbarMetric(),
    fill_missing_landmarks=fill_missing_landmarks,
    competition=Competition(
        "rsna-2024-lumbar-spine-degenerative-classification", hours=9.0, studies=700, memory_gib=30.0
    ),
)

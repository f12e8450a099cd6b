"""The task `lumbar-mr`: 25 grades of a lumbar spine from sagittal T1, sagittal T2/STIR and axial T2 series.

Canal points are found on sagittal T2, foramina on sagittal T1, recesses on axial T2 around the canal points. The canal
is graded on sagittal and axial slices, the foramina on sagittal T1, the recesses on axial T2 with sagittal T2 as a
second view. Names: lumbar_names.py; tables: lumbar_tables.py; score: lumbar_metric.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from osteograde.tasks import lumbar_folders, lumbar_metric, lumbar_names, lumbar_tables
from osteograde.tasks.deferred import Deferred
from osteograde.tasks.lumbar_names import FORAMINAL, SPINAL, SUBARTICULAR, WEIGHTS, landmark
from osteograde.tasks.priors import normalised
from osteograde.tasks.regions import along_the_line, boxes_around_sites, regions_around_points, whole_stack_region
from osteograde.tasks.spec import Competition, Crop, Grader, Landmark, Locator, Point, Points, Site, Task, View
from osteograde.tasks.spine import CANAL_RHYTHM, LEVELS, SAGITTAL, SIDES

# Typical way from the canal point to the structures of the left side (x to the left, y to the back, z to the head), mm.
# Textbook proportions of an adult lumbar spine, not fitted to any data; only for points that no locator found.
FORAMEN_OFFSET_MM = np.array([17.0, -4.0, 2.0])
RECESS_OFFSET_MM = np.array([8.5, -4.0, 0.0])
OFFSETS_MM = {"foramen": FORAMEN_OFFSET_MM, "recess": RECESS_OFFSET_MM}
MIRROR = np.array([-1.0, 1.0, 1.0])
FILLED = 0.01  # confidence of a point that was not seen

CANAL = tuple(landmark("canal", level) for level in LEVELS)
SAGITTAL_MM = (256.0, 256.0)  # field of the locators on sagittal stacks
RECESS_MM = (96.0, 96.0)  # field of the locator of recesses around a canal point
MAX_PLANE_DISTANCE_MM = 10.0  # of a canal point from the axial slices on which its recesses are looked for
LEVEL_SPACING_MM = (18.0, 60.0)  # between points of neighbouring levels, from children to tall adults with high discs

# A structure further than this from every slice of a view (along the normal) is not in that view.
REACH_MM = {"sag_t1": 6.0, "sag_t2": 6.0, "axi_t2": 8.0}


def fill_missing_landmarks(points: Points) -> Points:
    """The points found, and with a confidence of 0.01 those that geometry can tell from them. LPS mm.

    Canal points come from the foramina of both sides, else along the line of the other levels (two at least). Foramina
    and recesses come from the other side mirrored about the canal, else from the canal by typical offsets.
    """
    canal = {i: points[name].mm for i, level in enumerate(LEVELS) if (name := landmark("canal", level)) in points}
    for i, level in enumerate(LEVELS):
        sides = [points[name].mm for side in SIDES if (name := landmark("foramen", level, side)) in points]
        if i not in canal and len(sides) == len(SIDES):
            canal[i] = np.mean(sides, axis=0) - FORAMEN_OFFSET_MM * [0, 1, 1]
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


def _canal_locator() -> Locator:
    canal = tuple(Landmark(name, channel=name) for name in CANAL)
    regions = partial(whole_stack_region, "sag_t2", canal, SAGITTAL_MM)
    needs = ("sag_t2",)
    return Locator(
        "canal", canal, needs, regions, SAGITTAL_MM, level_spacing_mm=LEVEL_SPACING_MM, level_rhythm=CANAL_RHYTHM
    )


def _foramen_locator() -> Locator:
    """Foramina are looked for beside the canal points, so that the levels which these told apart are kept."""
    names = {(level, side): landmark("foramen", level, side) for side in SIDES for level in LEVELS}
    foramina = tuple(
        Landmark(name, channel=landmark("foramen", level), side=side) for (level, side), name in names.items()
    )
    beside = {name: landmark("canal", level) for (level, _), name in names.items()}
    regions = partial(whole_stack_region, "sag_t1", foramina, SAGITTAL_MM, midline=CANAL, neighbours=beside)
    needs = ("sag_t1", *CANAL)
    return Locator("foramen", foramina, needs, regions, SAGITTAL_MM, level_spacing_mm=LEVEL_SPACING_MM)


def _recess_locator() -> Locator:
    """Recesses are looked for on the axial slices nearest to the canal point of their level."""
    recesses = {
        (level, side): Landmark(landmark("recess", level, side), channel="recess", side=side)
        for side in SIDES
        for level in LEVELS
    }
    around = {landmark("canal", level): tuple(recesses[level, side] for side in SIDES) for level in LEVELS}
    regions = partial(regions_around_points, "axi_t2", around, RECESS_MM, 5, MAX_PLANE_DISTANCE_MM)
    return Locator("recess", tuple(recesses.values()), ("axi_t2", *CANAL), regions, RECESS_MM)


def _grader(name: str, condition: str, crops: tuple[Crop, ...]) -> Grader:
    sites = tuple(
        Site(target.name, condition, target.level, target.side, (target.landmark,))
        for target in lumbar_names.TARGET_OF.values()
        if target.condition == condition
    )
    study_loss = lumbar_metric.any_severe_loss if condition == SPINAL else None
    return Grader(name, sites, crops, partial(boxes_around_sites, sites, crops, REACH_MM), study_loss=study_loss)


CONTRASTS = {"sag_t2": ("T2", "STIR"), "sag_t1": ("T1",), "axi_t2": ("T2",)}  # view -> kinds of series

TASK = Task(
    name="lumbar-mr",
    views=tuple(  # a sagittal stack of unknown contrast is taken for the first sagittal view
        View(name, AXIAL if name == "axi_t2" else SAGITTAL, contrasts=CONTRASTS[name]) for name in CONTRASTS
    ),
    classes=lumbar_names.CLASSES,
    class_weights=WEIGHTS,
    locators=(_canal_locator(), _foramen_locator(), _recess_locator()),
    graders=(
        _grader("spinal", SPINAL, (Crop("sag_t2", "sag_t2", 3, 56.0), Crop("axi_t2", "axi_t2", 3, 64.0))),
        _grader("foraminal", FORAMINAL, (Crop("sag_t1", "sag_t1", 5, 48.0),)),
        _grader("subarticular", SUBARTICULAR, (Crop("axi_t2", "axi_t2", 3, 56.0), Crop("sag_t2", "sag_t2", 3, 48.0))),
    ),
    prior=_prior(),
    read=lumbar_folders.read,
    read_labels=lumbar_tables.read_labels,
    metric=lumbar_metric.LumbarMetric(),
    fill_missing_landmarks=fill_missing_landmarks,
    read_files=lumbar_folders.read_files,
    inspect=Deferred("osteograde.tasks.lumbar_census", "inspect"),
    competition=Competition(
        "rsna-2024-lumbar-spine-degenerative-classification", hours=9.0, studies=700, memory_gib=30.0
    ),
)

"""The task `lumbar-mr`: 25 grades of a lumbar spine from sagittal T1, sagittal T2/STIR and axial T2 series.

Canal points are found on sagittal T2, foramina on sagittal T1, recesses on axial T2 around the canal points. The canal
is graded on sagittal and axial slices, the foramina on sagittal T1, the recesses on axial T2 with sagittal T2 as a
second view. Names: names.py; tables: tables.py; score: metric.py; boxes: rois.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from osteograde.tasks import lumbar_metric, lumbar_names, lumbar_tables
from osteograde.tasks.lumbar import rois as lumbar_rois
from osteograde.tasks.lumbar_names import FORAMINAL, SPINAL, SUBARTICULAR, WEIGHTS, landmark
from osteograde.tasks.priors import normalised
from osteograde.tasks.spec import CropSpec, Grade, Landmark, Locate, Site, Task, View
from osteograde.tasks.spine import LEVELS, SAGITTAL, SIDES

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
    return {name: by_level[target.condition][target.level] for name, target in lumbar_names.TARGET_OF.items()}


def _locators() -> tuple[Locate, ...]:
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
        Locate("canal", "sag_t2", canal, field_mm=(256.0, 256.0), apart_mm=APART_MM),
        Locate(
            "foramen",
            "sag_t1",
            foramina,
            field_mm=(256.0, 256.0),
            midline=tuple(point.name for point in canal),
            apart_mm=APART_MM,
        ),
        Locate("recess", "axi_t2", recesses, field_mm=(96.0, 96.0), slices=5, far_mm=10.0),
    )


def _grader(name: str, condition: str, crops: tuple[CropSpec, ...], *, any_severe: bool = False) -> Grade:
    sites = tuple(
        Site(target.name, condition, target.level, target.side, target.landmark)
        for target in lumbar_names.TARGET_OF.values()
        if target.condition == condition
    )
    return Grade(name, sites, crops, partial(lumbar_rois.rois, sites, crops), any_severe)


TASK = Task(
    name="lumbar-mr",
    slug="rsna-2024-lumbar-spine-degenerative-classification",
    views=tuple(  # a sagittal stack of unknown contrast is taken for the first sagittal view
        View(name, lumbar_names.SERIES_DESCRIPTIONS[name], AXIAL if name == "axi_t2" else SAGITTAL)
        for name in ("sag_t2", "sag_t1", "axi_t2")
    ),
    classes=lumbar_names.CLASSES,
    weights=WEIGHTS,
    locate=_locators(),
    grade=(
        _grader("spinal", SPINAL, (CropSpec("sag_t2", 3, 56.0), CropSpec("axi_t2", 3, 64.0)), any_severe=True),
        _grader("foraminal", FORAMINAL, (CropSpec("sag_t1", 5, 48.0),)),
        _grader("subarticular", SUBARTICULAR, (CropSpec("axi_t2", 3, 56.0), CropSpec("sag_t2", 3, 48.0))),
    ),
    targets=lumbar_names.TEMPLATE_TARGETS,
    prior=_prior(),
    read=lumbar_tables.read,
    labels=lumbar_tables.read_labels,
    score=lumbar_metric.score,
    counted=lumbar_metric.counted,
    complete=lumbar_rois.complete,
    score_groups=lumbar_metric.PARTS,
)

"""The task `knee-xray`: Kellgren-Lawrence grades 0 to 4 of the knees on radiographs.

The joint centres are found on the film, by position right or left of its middle; a picture of one knee lies wholly on
its own side. Around each a crop of 140 mm is graded, left knees mirrored. Files: files.py.
"""

from __future__ import annotations

from functools import partial

from osteograde.tasks import boxes
from osteograde.tasks.knee import files as knee_files
from osteograde.tasks.knee.files import GRADES, SIDES, VIEW
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.priors import normalised
from osteograde.tasks.spec import CropSpec, Grade, Landmark, Locate, Points, Site, Task, View

CORONAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))  # an AP film as it is hung: patient's left on its right
WINDOW = (5.0, 99.0)  # percentiles over the whole film (Tiulpin et al., Scientific Reports 8:1727, 2018)
WIDTH_MM = (400.0, 220.0)  # of a film that does not say: both knees, or one
REACH_MM = {VIEW: float("inf")}  # a projection shows what lies at any depth

# Knees per grade in the Osteoarthritis Initiative's baseline as published with the crops (doi 10.17632/56rmx5bjcr.1).
COUNTS = (3253, 1495, 2175, 1086, 251)

SITES = tuple(Site(side, "kellgren_lawrence", "", side, side) for side in SIDES)
CROPS = (CropSpec(VIEW, 1, knee_files.CROP_MM),)
METRIC = OrdinalMetric(SIDES, GRADES)


def complete(points: Points) -> Points:
    """What was found: nothing tells one knee from the other."""
    return dict(points)


TASK = Task(
    name="knee-xray",
    slug="",
    views=(View(VIEW, "AP or PA radiograph", CORONAL, WINDOW, WIDTH_MM, film=True),),
    classes=tuple(f"kl_{grade}" for grade in GRADES),
    weights=(1.0,) * len(GRADES),
    locate=(
        Locate(
            "joint",
            VIEW,
            tuple(Landmark(side, channel="joint", side=side) for side in SIDES),
            field_mm=(400.0, 400.0),
            sigma_mm=5.0,
            absent=True,
            own_midline=True,
        ),
    ),
    grade=(Grade("kl", SITES, CROPS, partial(boxes.around, SITES, CROPS, REACH_MM), mirrors=True),),
    targets=SIDES,
    prior=dict.fromkeys(SIDES, normalised(COUNTS)),
    read=knee_files.read,
    labels=knee_files.labels,
    score=METRIC.score,
    counted=METRIC.counted,
    complete=complete,
    score_groups=METRIC.groups,
    rows_vary=True,
    higher_is_better=METRIC.higher_is_better,
    confusion=METRIC.confusion,
    patient=knee_files.patient_of,
)

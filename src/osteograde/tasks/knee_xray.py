"""The task `knee-xray`: Kellgren-Lawrence grades 0 to 4 of the knees on radiographs.

The joint centres are found on the film, by position right or left of its middle; a picture of one knee lies wholly on
its own side. Around each a crop of 140 mm is graded, left knees mirrored. Files: knee_files.py.
"""

from __future__ import annotations

from functools import partial

from osteograde.tasks.knee_count import settle
from osteograde.tasks.knee_files import (
    BODY_PARTS,
    CROP_MM,
    GRADES,
    SIDE_ASSUMED,
    SIDES,
    VIEW,
    labels,
    patient_of,
    read,
    read_files,
    read_split,
)
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.priors import normalised
from osteograde.tasks.regions import boxes_around_sites, whole_stack_region
from osteograde.tasks.spec import Crop, Grader, Landmark, Locator, Site, Task, View

CORONAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))  # an AP film as it is hung: patient's left on its right
WINDOW = (5.0, 99.0)  # percentiles over the whole film (Tiulpin et al., Scientific Reports 8:1727, 2018)
WIDTH_MM = (400.0, 220.0)  # of a film that does not say: both knees, or one
FILM_MM = (400.0, 400.0)  # field of the locator
REACH_MM = {VIEW: float("inf")}  # a projection shows what lies at any depth

# Knees per grade in the Osteoarthritis Initiative's baseline as published with the crops (doi 10.17632/56rmx5bjcr.1).
COUNTS = (3253, 1495, 2175, 1086, 251)

JOINTS = tuple(Landmark(side, channel="joint", side=side) for side in SIDES)
SITES = tuple(Site(side, "kellgren_lawrence", "", side, (side,)) for side in SIDES)

# The parts beside the joint's middle that Tiulpin et al. compare: squares of 51.2 mm, at the side of a 120 mm image and
# from a third of its height on. A right knee as it is hung, and a left one mirrored, has its lateral side on the left.
PART_MM, BESIDE_MM, BELOW_MM = 51.2, 34.4, 5.6
CROPS = (
    Crop("joint", VIEW, 1, CROP_MM),
    Crop("lateral", VIEW, 1, PART_MM, offset_mm=(BELOW_MM, -BESIDE_MM)),
    Crop("medial", VIEW, 1, PART_MM, offset_mm=(BELOW_MM, BESIDE_MM), mirrored=True),
)


TASK = Task(
    name="knee-xray",
    views=(View(VIEW, CORONAL, WINDOW, WIDTH_MM, projection=True, body_parts=BODY_PARTS),),
    classes=tuple(f"kl_{grade}" for grade in GRADES),
    class_weights=(1.0,) * len(GRADES),
    locators=(
        Locator(
            "joint",
            JOINTS,
            (VIEW,),
            partial(whole_stack_region, VIEW, JOINTS, FILM_MM, midline_mm=0.0),  # of films as ``load`` places them
            FILM_MM,
            sigma_mm=5.0,
            may_be_absent=True,
        ),
    ),
    graders=(
        Grader("kl", SITES, CROPS, partial(boxes_around_sites, SITES, CROPS, REACH_MM), laterality_invariant=True),
    ),
    prior=dict.fromkeys(SIDES, normalised(COUNTS)),
    read=read,
    read_labels=labels,
    metric=OrdinalMetric(SIDES, GRADES),
    per_study_targets=True,
    assumed_side=SIDE_ASSUMED,
    patient_of=patient_of,
    read_files=read_files,
    read_split=read_split,
    settle=settle,
)

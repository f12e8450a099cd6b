"""The task `spider`: Pfirrmann grades 1 to 5 of the five lumbar discs on sagittal T2 and T1 slices.

Disc centres are found in each view, levels counted up from the lowest disc. A crop around each, turned with the spine
and as large as the patient's discs lie apart, is graded; narrowing and bulging are asked of the same net. Files:
files.py, marks: marks.py, boxes: rois.py.
"""

from __future__ import annotations

from functools import partial

from osteograde.tasks import spider_files
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.priors import normalised
from osteograde.tasks.spec import CropSpec, Grade, Landmark, Locate, Site, Task, View
from osteograde.tasks.spider import rois as spider_rois
from osteograde.tasks.spider.marks import landmark
from osteograde.tasks.spine import LEVELS, SAGITTAL

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

SITES = tuple(
    Site(level, "pfirrmann", level, landmark=landmark("t2", level), also=(landmark("t1", level),)) for level in LEVELS
)
CROPS = tuple(CropSpec(view, 1, FIELD_MM) for view in VIEWS)
METRIC = OrdinalMetric(LEVELS, spider_files.GRADES)

TASK = Task(
    name="spider",
    slug="",
    views=tuple(View(view, f"sagittal {view.upper()}", SAGITTAL, needed=False) for view in VIEWS),
    classes=tuple(f"pfirrmann_{grade}" for grade in spider_files.GRADES),
    weights=(1.0,) * len(spider_files.GRADES),
    locate=(
        Locate(
            "disc",
            "t2",
            tuple(
                Landmark(landmark(view, level), channel=f"disc_{level}", view=view)
                for view in VIEWS
                for level in LEVELS
            ),
            field_mm=(300.0, 300.0),
            apart_mm=(14.0, 80.0),
            whole=True,
        ),
    ),
    grade=(
        Grade(
            "pfirrmann", SITES, CROPS, partial(spider_rois.rois, SITES, CROPS), findings=tuple(spider_files.FINDINGS)
        ),
    ),
    targets=LEVELS,
    prior={level: normalised(COUNTS[level]) for level in LEVELS},
    read=spider_files.read,
    labels=spider_files.labels,
    score=METRIC.score,
    counted=METRIC.counted,
    complete=spider_rois.complete,
    score_groups=METRIC.groups,
    patient=spider_files.patient_of,
    higher_is_better=METRIC.higher_is_better,
    confusion=METRIC.confusion,
)

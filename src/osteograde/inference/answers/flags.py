"""Rows that a person should look at before believing them, and why. No patient data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from osteograde.inference import whole
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Point, Site, Study, Task

Flag = tuple[str, str, int]  # row id, reason, how often
COLUMNS = ("row_id", "reason", "count")
LOW_CONFIDENCE = 0.5  # of a landmark: less than this share of its probability lies within 10 mm of it
UNCERTAIN = 0.35  # no class is more probable than this

NOT_GRADED = "not_graded"  # the row holds the class prior
NOT_SEEN = "low_confidence"
UNSURE = "uncertain_grade"


def flags_of(task: Task, loaded: Loaded, points: Mapping[str, Point], graded: Mapping[str, np.ndarray]) -> list[Flag]:
    """The flags of one study's rows: what was lost in reading it, rows on the prior, landmarks and grades in doubt."""
    sites = {site.target: site for group in task.grade for site in group.sites}
    study, found = loaded.study, []
    for target in task.asked(study.targets):
        row = f"{study.id}_{target}"
        found += [(row, code, count) for code, count in sorted(loaded.faults.items())]
        found += [(row, reason, 1) for reason in _doubts(task, sites[target], points, graded)]
    return found


def not_reached(task: Task, study: Study, why: str) -> list[Flag]:
    """The flags of a study that the run ended before."""
    return [(row, reason, 1) for row in task.rows(study.id, study.targets) for reason in (why, NOT_GRADED)]


def _doubts(task: Task, site: Site, points: Mapping[str, Point], graded: Mapping[str, np.ndarray]) -> list[str]:
    if site.target not in graded:
        return [NOT_GRADED]
    seen = [points[name].confidence for name in site.landmarks if name in points]
    low = [NOT_SEEN] if max(seen, default=0.0) < LOW_CONFIDENCE else []
    return low + ([UNSURE] if graded[site.target][: len(task.classes)].max() < UNCERTAIN else [])


def write(path: Path, flags: Sequence[Flag]) -> None:
    """The flags as a table of ``COLUMNS``; only its first line where there are none."""
    lines = [",".join(COLUMNS), *(f"{row},{reason},{count}" for row, reason, count in flags)]
    whole.write(path, "\n".join(lines) + "\n")


def path_beside(out: Path) -> Path:
    """Where the flags of a submission go: submission.csv -> submission.flags.csv."""
    return out.with_name(out.stem + ".flags.csv")

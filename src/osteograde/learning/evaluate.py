"""Further out-of-fold measures: levels told apart, landmarks seen where there are none, and yes/no findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osteograde.pipeline.load import Loaded
from osteograde.tasks.metrics import auc_and_precision, groups_of, interval
from osteograde.tasks.spec import Landmark, Locator, Points, Study, Task


def right_level(locator: Locator, loaded: Sequence[Loaded], found: Mapping[str, Points]) -> float | None:
    """Share of the landmarks found whose nearest annotated landmark, of their view and side, is the one of their own
    name; None where there is none to compare.

    loaded: studies with their annotated landmarks. found: study -> what the locator found there.
    """
    right = []
    for study in loaded:
        for landmark in locator.landmarks:
            rivals = _rivals(locator, landmark, study)
            if landmark.name in rivals and landmark.name in found.get(study.study.id, {}):
                point_mm = found[study.study.id][landmark.name].mm
                nearest = min(rivals, key=lambda name: float(np.linalg.norm(point_mm - rivals[name])))
                right.append(nearest == landmark.name)
    return round(float(np.mean(right)), 4) if right else None


def _rivals(locator: Locator, landmark: Landmark, loaded: Loaded) -> dict[str, np.ndarray]:
    """{name: mm} of the annotated landmarks of a locator on the side of one, annotated on series of the same view:
    points of other views may lie in another frame of reference."""
    view_of_series = {series.id: series.view for series in loaded.study.series}
    view_of = {mark.landmark: view_of_series.get(mark.series, "") for mark in loaded.study.marks}
    return {
        other.name: loaded.marks[other.name].mm
        for other in locator.landmarks
        if other.name in loaded.marks
        and other.side == landmark.side
        and view_of.get(other.name) == view_of.get(landmark.name)
    }


def false_finds(locator: Locator, loaded: Sequence[Loaded], found: Mapping[str, Points]) -> float | None:
    """Share of the landmarks known to be absent that were found all the same; None where none is known to be absent."""
    names = {landmark.name for landmark in locator.landmarks}
    wrong = [name in found.get(study.study.id, {}) for study in loaded for name in study.absent & names]
    return round(float(np.mean(wrong)), 4) if wrong else None


def finding_scores(
    task: Task, studies: Sequence[Study], graded: Mapping[str, Mapping[str, np.ndarray]], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Per finding: AUC and average precision with patient-level 95 % intervals, number of rows, and share of yes."""
    scores = {}
    groups = groups_of([study.patient for study in studies])
    for group in task.graders:
        for place, name in enumerate(group.findings):
            rows = [
                (i, graded[study.id][site.target][len(task.classes) + place], study.findings[name][site.target])
                for i, study in enumerate(studies)
                for site in group.sites
                if site.target in study.findings.get(name, {}) and site.target in graded.get(study.id, {})
            ]
            if len({label for *_, label in rows}) < 2:
                continue
            index, said, truth = (np.array(column) for column in zip(*rows, strict=True))
            values = auc_and_precision(said, truth == 1, index.astype(int))

            def statistic(counts: np.ndarray, values=values) -> np.ndarray:
                return np.stack(values(counts.T), 1)

            exact = statistic(np.ones((1, len(studies))))[0]
            low, high = interval(statistic, len(studies), resamples, np.random.default_rng(seed), groups=groups)
            scores[name] = {
                "rows": len(rows),
                "share": round(float(truth.mean()), 4),
                **{
                    part: {"value": round(float(v), 4), "interval_95": [round(float(a), 4), round(float(b), 4)]}
                    for part, v, a, b in zip(("auc", "average_precision"), exact, low, high, strict=True)
                },
            }
    return scores

"""The cleaning of a published baseline of `lumbar-mr`, as a choice that says what it costs.

Its tables were joined by study, series and slice, so the right one of two subarticular points on one slice counted as a
duplicate and was dropped with its label. Left and right are two labels: nothing else in the kit does this.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from osteograde.tasks import lumbar_folders
from osteograde.tasks.lumbar_names import CLASSES, SUBARTICULAR, TARGET_OF, Target
from osteograde.tasks.spec import Study

log = logging.getLogger(__name__)


def read_cleaned(root: Path, part: str) -> list[Study]:
    """The studies of a folder as ``lumbar_folders.read`` reads them; of those to learn from, without the right labels
    that the cleaning drops. What is lost is logged."""
    studies = lumbar_folders.read(root, part)
    if part != "train":
        return studies
    cleaned, lost, right = cleaned_studies(studies)
    by_class = ", ".join(f"{lost[k]} {name}" for k, name in enumerate(CLASSES))
    share = 100 * sum(lost.values()) / max(right, 1)
    log.warning(
        "%s: the published cleaning drops %d of %d right subarticular labels (%.1f %%: %s), whose left one lies on the "
        "same slice; they are no duplicates", root, sum(lost.values()), right, share, by_class,
    )  # fmt: skip
    return cleaned


def cleaned_studies(studies: Sequence[Study]) -> tuple[list[Study], Counter[int], int]:
    """(studies without the right labels on the slice of the left ones, labels lost by class, right labels before).

    Annotated points are kept: a locator must not learn that nothing is there.
    """
    cleaned, lost, right = [], Counter[int](), 0
    for study in studies:
        place = {mark.landmark: (mark.series, mark.instance) for mark in study.marks}
        labels = dict(study.labels)
        for name, label in study.labels.items():
            target = TARGET_OF[name]
            if target.condition != SUBARTICULAR or target.side != "right":
                continue
            right += 1
            left = Target(SUBARTICULAR, target.level, "left")
            if place.get(target.landmark, "right") == place.get(left.landmark, "left"):
                del labels[name]
                lost[label] += 1
        cleaned.append(replace(study, labels=labels))
    return cleaned, lost, right

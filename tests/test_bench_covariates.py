"""The bench of covariates: a regression told what decides gains by it, and no row learns from its own fold."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import covariates

from osteograde.learning.ensemble import OofTables
from osteograde.tasks import TASKS
from osteograde.tasks.spec import CATEGORY, Covariate, Study

TASK = TASKS["knee-xray"]
TOLD = Covariate("told", CATEGORY, tuple("01234"))


def knees(count: int = 60) -> tuple[OofTables, list[Study]]:
    """Right knees about which the nets know nothing and the covariate everything."""
    labels = np.random.default_rng(0).integers(len(TASK.classes), size=count)
    names = tuple(f"s{i}" for i in range(count))
    tables = np.full((1, count, 2, len(TASK.classes)), 1 / len(TASK.classes))
    studies = [
        Study(name, name, (), {"right": int(label)}, covariates={"told": {"": str(label)}})
        for name, label in zip(names, labels, strict=True)
    ]
    known = {study.id: study.labels for study in studies}
    return OofTables(TASK, ("m",), names, tables, known, np.arange(count) % 3, np.arange(count), ""), studies


def right(table: np.ndarray, studies: list[Study]) -> float:
    return float(np.mean(table[:, 0].argmax(1) == [study.labels["right"] for study in studies]))


def test_what_a_covariate_tells_is_gained_and_nothing_without_it() -> None:
    oof, studies = knees()
    assert right(covariates.corrected(oof, studies, [TOLD]), studies) > 0.9
    assert right(covariates.corrected(oof, studies, []), studies) < 0.45


def test_a_row_does_not_learn_from_its_own_fold() -> None:
    oof, studies = knees()
    changed = [
        replace(study, labels={"right": 4 - study.labels["right"]}) if oof.fold[s] == 1 else study
        for s, study in enumerate(studies)
    ]
    before, after = (covariates.corrected(oof, given, [TOLD]) for given in (studies, changed))
    own = oof.fold == 1
    np.testing.assert_array_equal(before[own], after[own])
    assert not np.allclose(before[~own], after[~own])

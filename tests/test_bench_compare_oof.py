"""Two out-of-fold tables compared: what both share does not widen the interval, and better means better."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import compare_oof

from osteograde.learning.ensemble import OofTables
from osteograde.tasks import TASKS

TASK = TASKS["knee-xray"]


def answers(*shares):
    """40 patients with a right knee each; a side puts ``share`` on the truth of the first half and 0.9 on the rest."""
    rng, k = np.random.default_rng(0), len(TASK.classes)
    labels = rng.integers(k, size=40)
    tables = np.full((len(shares), 40, 2, k), np.nan)
    for side, share in enumerate(shares):
        for study, label in enumerate(labels):
            sure = share if study < 20 else 0.9
            tables[side, study, 0] = (1 - sure) / (k - 1)
            tables[side, study, 0, label] = sure
    studies = tuple(f"s{i}" for i in range(40))
    known = {study: {"right": int(label)} for study, label in zip(studies, labels, strict=True)}
    names = tuple(f"m{i}" for i in range(len(shares)))
    return OofTables(TASK, names, studies, tables, known, np.arange(40) % 2, np.arange(40), "")


def test_the_same_answers_differ_by_exactly_nothing():
    table = compare_oof.compare(answers(0.4, 0.4), 50)
    assert all(row["difference"] == 0 and row["interval_95"] == [0, 0] for row in table.values())


def test_the_difference_and_its_interval_have_the_sign_of_what_is_better():
    table = compare_oof.compare(answers(0.05, 0.8), 200)
    low, high = table["accuracy"]["interval_95"]
    assert table["accuracy"]["difference"] == 0.5 and 0.2 < low < 0.5 < high < 0.8
    assert table["log_loss"]["interval_95"][1] < 0

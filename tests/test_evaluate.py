"""Out-of-fold measures beside the score: levels, landmarks seen where there are none, findings."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from osteograde.learning import evaluate
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Point, Study
from osteograde.tasks.spider_files import landmark
from osteograde.tasks.spine import LEVELS

SPIDER, KNEES = TASKS["spider"], TASKS["knee-xray"]


def spine(name, shift=0):
    """An annotated study, and points found ``shift`` levels too low."""
    marks = {landmark("t2", level): Point(np.array([0.0, 0.0, -36.0 * i])) for i, level in enumerate(LEVELS)}
    found = {landmark("t2", level): Point(np.array([1.0, 1.0, -36.0 * (i + shift)])) for i, level in enumerate(LEVELS)}
    return Loaded(Study(name, name, ()), {}, marks=marks), found


def test_points_one_level_off_are_of_the_wrong_level_but_for_the_last():
    right, wrong = spine("a"), spine("b", shift=1)
    stage = SPIDER.locators[0]
    assert evaluate.right_level(stage, [right[0]], {"a": right[1]}) == 1.0
    assert evaluate.right_level(stage, [wrong[0]], {"b": wrong[1]}) == pytest.approx(0.2)  # below the last is no other
    assert evaluate.right_level(stage, [], {}) is None


def test_a_knee_found_where_there_is_none_is_counted():
    stage = KNEES.locators[0]
    empty = Loaded(Study("film", "film", ()), {}, absent=frozenset({"right", "left"}))
    assert evaluate.false_finds(stage, [empty], {"film": {"left": Point(np.zeros(3))}}) == 0.5
    assert evaluate.false_finds(stage, [empty], {}) == 0.0
    assert evaluate.false_finds(stage, [spine("a")[0]], {}) is None


def test_findings_are_scored_as_scikit_learn_scores_them():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (40, 5))
    said = np.clip(0.4 * truth + 0.6 * rng.random((40, 5)), 0, 1).round(2)
    studies, graded = [], {}
    for i in range(40):
        yes = {"narrowing": dict(zip(LEVELS, map(int, truth[i]), strict=True))}
        studies.append(Study(f"s{i}", f"p{i // 2}", (), head_labels=yes))
        graded[f"s{i}"] = {level: np.array([0.2] * 5 + [said[i, j], 0.5]) for j, level in enumerate(LEVELS)}
    scores = evaluate.head_scores(SPIDER, studies, graded, 50, 0)
    assert set(scores) == {"narrowing"} and scores["narrowing"]["rows"] == 200
    auc, precision = scores["narrowing"]["auc"], scores["narrowing"]["average_precision"]
    assert auc["value"] == pytest.approx(roc_auc_score(truth.ravel(), said.ravel()), abs=1e-4)
    assert precision["value"] == pytest.approx(average_precision_score(truth.ravel(), said.ravel()), abs=1e-4)
    assert auc["interval_95"][0] < auc["value"] < auc["interval_95"][1]

"""Out-of-fold measures beside the score: levels, landmarks seen where there are none, findings."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from osteograde.imaging.geometry import Volume, affine
from osteograde.learning import evaluate
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Mark, Point, Series, Study
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


LUMBAR = TASKS["lumbar-mr"]
BOX_MM = dict.fromkeys(LUMBAR.locators[0].channels, (34.0, 78.0))


def canal_study(name="s", levels=LEVELS):
    """A sagittal stack with annotated canal points 36 mm apart, all on slice 2."""
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # slices to the left, rows to the feet, columns to the back
    stack = Volume(np.ones((5, 250, 100), np.uint8), affine(np.zeros(3), axes, np.array([4.0, 1, 1])), series="t2")
    marks = {f"canal_{level}": Point(np.array([8.0, 50.0, -30.0 - 36 * i])) for i, level in enumerate(levels)}
    study = Study(
        name,
        name,
        (Series("t2", "sag_t2", Path()),),
        marks=tuple(Mark(mark, "t2", "2", p.mm[1], -p.mm[2]) for mark, p in marks.items()),
    )
    return Loaded(study, {"sag_t2": (stack,)}, marks=marks)


def moved(loaded, by):
    return {name: Point(point.mm + by, 0.9) for name, point in loaded.marks.items()}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ((0, 0, 0), (1, 1, 1)),
        ((40, 0, 0), (1, 1, 1)),  # beside the slice: not counted
        ((0, 0, 11), (1, 0, 0.1)),  # overlap (34 - 11) / (34 + 11) = 0.51
        ((0, 0, -12), (0, 0, 0)),  # 22 / 46 = 0.48
        ((0, 11, 0), (1, 1, 0.6)),  # along the wider side: 67 / 89 = 0.753
        ((0, 25, 0), (1, 0, 0.1)),  # 53 / 103 = 0.51
    ],
)
def test_boxes_of_points_that_are_off_overlap_as_computed_by_hand(by, expected):
    loaded = canal_study()
    scores = evaluate.box_scores(LUMBAR.locators[0], BOX_MM, [loaded], {"s": moved(loaded, np.array(by, float))})
    assert tuple(scores.values()) == pytest.approx(expected)


def test_a_level_that_is_not_found_costs_its_class_and_is_no_wrong_box():
    loaded, other = canal_study("s"), canal_study("other", LEVELS[:2])
    found = {"s": moved(loaded, np.zeros(3)), "other": moved(other, np.zeros(3))}
    del found["s"]["canal_l5_s1"]
    stage = LUMBAR.locators[0]
    assert evaluate.box_scores(stage, BOX_MM, [loaded, other], found) == {"ap50": 0.8, "ap75": 0.8, "ar": 0.8}
    assert evaluate.box_scores(stage, BOX_MM, [], {}) == {"ap50": None, "ap75": None, "ar": None}


def test_classes_of_a_condition_are_scored_as_scikit_learn_scores_them():
    rng = np.random.default_rng(0)
    labels = {f"s{i}": {target: int(rng.integers(3)) for target in LUMBAR.targets[: 20 + i]} for i in range(6)}
    probs = {study: rng.dirichlet((1, 1, 1), len(LUMBAR.targets)) for study in labels}
    tables = evaluate.confusions(LUMBAR, labels, probs)
    assert len(tables) == 3
    for condition, table in tables.items():
        cells = [(label, probs[study][LUMBAR.targets.index(target)].argmax()) for study, known in labels.items()
                 for target, label in known.items() if condition in target]  # fmt: skip
        truth, said = zip(*cells, strict=True)
        right, values = evaluate.class_scores(np.array(table))
        expected = precision_recall_fscore_support(truth, said, labels=[0, 1, 2])
        assert values == pytest.approx(np.stack(expected[:3], -1))
        assert right == pytest.approx(np.mean(np.array(truth) == np.array(said)))


def test_the_lines_of_conditions_say_what_is_undefined_and_end_with_all_of_them():
    tables = {"spinal": [[8, 2, 0], [1, 1, 0], [0, 0, 0]], "foraminal": [[10, 0, 0], [0, 5, 0], [0, 0, 1]]}
    head, spinal, _, both = evaluate.condition_lines(tables, ("mild", "moderate", "severe"))
    assert head.split()[-3:] == ["mild", "moderate", "severe"]
    assert spinal.split() == ["spinal", "0.750", *["0.89", "0.80", "0.84", "0.33", "0.50", "0.40", "-", "-", "-"]]
    assert both.split()[:6] == ["all", "conditions", "0.893", "0.95", "0.90", "0.92"]
    assert len(evaluate.condition_lines({"spinal": tables["spinal"]}, ("a", "b", "c"))) == 2

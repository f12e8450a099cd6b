"""Which class a row of probabilities is called, by each rule."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import osteograde
from osteograde import cli
from osteograde.errors import UserError
from osteograde.tasks import TASKS, decision
from tests.tiny import noise_knees

K = 4
rows = (
    st.lists(st.integers(0, 16), min_size=K, max_size=K).filter(any).map(lambda parts: np.array([parts]) / sum(parts))
)


def expected_loss(probs: np.ndarray, loss) -> list[float]:
    """For each class that could be said, what it costs on average."""
    return [sum(p * loss(said, true) for true, p in enumerate(probs)) for said in range(K)]


@given(rows)
def test_every_rule_has_the_smallest_expected_loss_of_its_kind(probs):
    for rule, loss in {
        "most-probable": lambda said, true: float(said != true),
        "median": lambda said, true: abs(said - true),
        "mean": lambda said, true: (said - true) ** 2,
    }.items():
        (said,) = decision.RULES[rule](probs)
        costs = expected_loss(probs[0], loss)
        assert costs[said] <= min(costs) + 1e-9, rule


@given(rows)
def test_rules_agree_where_all_is_on_one_class_and_do_not_ask_for_a_sum_of_one(probs):
    sure = np.eye(K)
    for rule in decision.RULES.values():
        assert rule(sure).tolist() == list(range(K))
        assert rule(2 * probs).tolist() == rule(probs).tolist()  # exact in floating point


def test_a_tie_goes_to_the_lower_class_but_a_half_is_rounded_up():
    tied = np.array([[0.5, 0.5, 0.0, 0.0]])
    assert [rule(tied).tolist() for rule in decision.RULES.values()] == [[0], [0], [1]]


def test_an_unknown_rule_and_an_order_that_classes_lack_are_refused():
    with pytest.raises(UserError, match="expected one of most-probable, median, mean"):
        decision.check("average", TASKS["knee-xray"])
    for rule in decision.RULES:
        decision.check(rule, TASKS["knee-xray"])


def test_classes_without_an_order_have_no_median(tmp_path):
    images = tmp_path / "train_images"
    images.mkdir()
    for name in "abcdefgh":
        (images / f"{name}.png").write_bytes(b"")
    labels = pd.DataFrame({"image": list("abcdefgh"), "label": ["cyst", "none", "screw", "none"] * 2})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    named = TASKS["table"].for_data(tmp_path)
    assert not named.classes_are_ordered
    decision.check("most-probable", named)
    with pytest.raises(UserError, match="no order, so there is no median"):
        decision.check("median", named)
    labels.assign(label=[0, 1, 2, 1] * 2).to_csv(tmp_path / "labels.csv", index=False)
    graded = TASKS["table"].for_data(tmp_path)
    assert graded.classes_are_ordered
    decision.check("median", graded)


@pytest.mark.slow
def test_python_and_the_command_line_decide_alike(tmp_path):
    data = noise_knees(tmp_path / "knees")
    grader = osteograde.load("knee-xray")
    for rule in decision.RULES:
        table = grader.grade(data, decide=rule)
        said = decision.RULES[rule](table[list(grader.classes)].to_numpy())
        assert list(table.predicted) == [grader.classes[k] for k in said]
    words = ["grade", "knee-xray", "--data", str(data), "--out", str(tmp_path / "s.csv"), "--decide", rule]
    assert cli.main(words) == 0
    written = pd.read_csv(tmp_path / "s.csv", dtype={"predicted": str})
    assert list(written.predicted) == list(table.predicted)
    with pytest.raises(UserError, match="expected one of"):
        grader.grade(data, decide="average")


@pytest.mark.parametrize("rule", [None, "", ["mean"]])
def test_what_is_no_rule_at_all_is_told_as_the_users_mistake(rule):
    with pytest.raises(UserError, match="expected one of most-probable, median, mean"):
        decision.check(rule, TASKS["knee-xray"])

"""The score of yes/no tasks agrees with scikit-learn, and its resampling with scoring the resampled table anew."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score, roc_curve

from osteograde.tasks.binary_metric import BinaryMetric, sensitivity_at

METRIC = BinaryMetric(("right", "left"), ("stable", "progresses"))


@pytest.fixture
def table():
    """Labels and probabilities of 200 studies, some with one target; scores have ties."""
    rng = np.random.default_rng(0)
    labels, probs = {}, {}
    for i in range(200):
        known = rng.choice(["right", "left"], size=rng.integers(1, 3), replace=False)
        labels[f"s{i}"] = {str(side): int(rng.random() < 0.3) for side in known}
        p = np.clip([0.3 + 0.2 * labels[f"s{i}"].get(side, 0) + rng.normal(0, 0.2) for side in ("right", "left")], 0, 1)
        p = p.round(2)
        probs[f"s{i}"] = np.column_stack([1 - p, p])
    return labels, probs


def flat(labels, probs):
    cells = [(y, probs[s][("right", "left").index(t), 1]) for s, known in labels.items() for t, y in known.items()]
    return (np.array(column) for column in zip(*cells, strict=True))


def test_parts_agree_with_scikit_learn(table):
    y, p = flat(*table)
    score = METRIC.score(*table)
    assert score["score"] == pytest.approx(roc_auc_score(y, p))
    assert score["average_precision"] == pytest.approx(average_precision_score(y, p))
    assert score["brier"] == pytest.approx(brier_score_loss(y, p))
    assert score["log_loss"] == pytest.approx(log_loss(y, np.clip(p, 1e-15, 1 - 1e-15)), rel=1e-3)
    false_alarms, found, _ = roc_curve(y, p, drop_intermediate=False)
    for percent in (80, 90):
        best = found[false_alarms <= 1 - percent / 100 + 1e-9].max()
        assert score[f"sensitivity_at_{percent}"] == pytest.approx(best)


def test_resampling_equals_scoring_the_resampled_table(table):
    labels, probs = table
    counts = np.random.default_rng(1).integers(0, 3, size=len(labels))
    drawn = METRIC.bootstrap_statistic(labels, probs)(counts[None])[0]
    copies = [(f"{study}.{i}", study) for study, count in zip(labels, counts, strict=True) for i in range(count)]
    again = METRIC.score({new: labels[old] for new, old in copies}, {new: probs[old] for new, old in copies})
    np.testing.assert_allclose(drawn, list(again.values()))


def test_well_calibrated_answers_have_a_small_error_and_certain_wrong_ones_the_largest():
    labels = {f"s{i}": {"right": int(i % 10 < 3)} for i in range(100)}
    share = {study: np.array([[0.7, 0.3], [np.nan] * 2]) for study in labels}
    wrong = {study: np.array([np.eye(2)[1 - known["right"]], [np.nan] * 2]) for study, known in labels.items()}
    assert METRIC.score(labels, share)["ece"] == pytest.approx(0)
    assert METRIC.score(labels, wrong)["ece"] == pytest.approx(1)


def test_cells_of_one_score_are_called_together():
    scores, true = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([True, True, False, False, False])
    found = sensitivity_at(scores, true, np.arange(5))
    counts = np.ones((5, 1))
    assert found(counts, 0.8).tolist() == [0.5]  # a threshold at 0.5 would call two of three negatives
    assert found(counts, 1 / 3).tolist() == [1.0]


def test_without_positive_or_negative_cells_there_is_no_sensitivity():
    for true in (np.ones(3, bool), np.zeros(3, bool)):
        assert np.isnan(sensitivity_at(np.array([0.1, 0.2, 0.3]), true, np.arange(3))(np.ones((3, 1)), 0.8)).all()

"""The official score: equal to a slow second opinion and to scikit-learn, whatever is labelled."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from osteograde.tasks import lumbar_metric, metrics
from osteograde.tasks.lumbar_mr import TASK
from osteograde.tasks.priors import as_rows, weighted_prior
from osteograde.tasks.spec import Study

TARGETS = TASK.targets
UNIFORM = np.full((25, 3), 1 / 3)


def random_case(seed, studies=20, empty=0.2, shares=(0.7, 0.2, 0.1), sharp=1.0):
    """Labels with empty cells, and probabilities that now and then are exactly 0 or 1."""
    rng = np.random.default_rng(seed)
    labels, probs = {}, {}
    for i in range(studies):
        drawn = rng.choice(3, size=25, p=shares)
        labels[f"s{i}"] = {t: int(c) for t, c in zip(TARGETS, drawn, strict=True) if rng.random() >= empty}
        table = rng.dirichlet(np.full(3, sharp), size=25)
        certain = rng.random(25) < 0.05
        table[certain] = np.eye(3)[rng.integers(3, size=certain.sum())]
        probs[f"s{i}"] = table
    return labels, probs


def slow_score(labels, probs):
    """The definition, one cell at a time, in plain Python floats."""
    eps = 2.0**-52
    clip = lambda p: min(max(p, eps), 1 - eps)  # noqa: E731
    above = {"spinal": 0.0, "foraminal": 0.0, "subarticular": 0.0, "any_severe_spinal": 0.0}
    below = dict.fromkeys(above, 0.0)
    for study, cells in labels.items():
        rows = {target: [float(p) for p in probs[study][i]] for i, target in enumerate(TARGETS)}
        severe, worst, largest = False, 0, 0.0
        for target, label in cells.items():
            part = "spinal" if "spinal" in target else "foraminal" if "foraminal" in target else "subarticular"
            weight = [1, 2, 4][label]
            above[part] += -weight * math.log(clip(rows[target][label]))
            below[part] += weight
            if part == "spinal":
                severe, worst, largest = severe or label == 2, max(worst, weight), max(largest, rows[target][2])
        if worst:
            p = clip(largest)
            above["any_severe_spinal"] += -worst * math.log(p if severe else 1 - p)
            below["any_severe_spinal"] += worst
    parts = {part: above[part] / below[part] if below[part] else math.nan for part in above}
    return {**parts, "score": sum(parts.values()) / 4}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    studies=st.integers(1, 12),
    empty=st.sampled_from([0.0, 0.2, 0.9]),
    sharp=st.sampled_from([0.02, 1.0, 30.0]),
    shares=st.sampled_from([(0.7, 0.2, 0.1), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.6, 0.4, 0.0)]),
)
def test_equals_the_definition_cell_by_cell(seed, studies, empty, sharp, shares):
    labels, probs = random_case(seed, studies, empty, shares, sharp)
    fast, slow = TASK.metric.score(labels, probs), slow_score(labels, probs)
    assert list(fast) == [*TASK.metric.parts] == list(slow)
    for part in slow:
        assert fast[part] == pytest.approx(slow[part], abs=1e-9, nan_ok=True), part


@pytest.mark.parametrize("seed", range(5))
def test_every_part_equals_scikit_learn(seed):
    labels, probs = random_case(seed, studies=40)
    fast = TASK.metric.score(labels, probs)
    parts = {"spinal": "spinal", "foraminal": "foraminal", "subarticular": "subarticular"}
    for part, word in parts.items():
        cells = [(s, t) for s, given_ in labels.items() for t in given_ if word in t]
        true = [labels[s][t] for s, t in cells]
        rows = np.array([probs[s][TARGETS.index(t)] for s, t in cells])
        weights = [(1, 2, 4)[label] for label in true]
        assert fast[part] == pytest.approx(log_loss(true, rows, sample_weight=weights, labels=[0, 1, 2]), abs=1e-9)
    spinal = [i for i, t in enumerate(TARGETS) if "spinal" in t]
    true, largest, weights = [], [], []
    for study, given_ in labels.items():
        cells = [i for i in spinal if TARGETS[i] in given_]
        grades = [given_[TARGETS[i]] for i in cells]
        if cells:
            true.append(max(grades) == 2)
            largest.append(max(probs[study][i, 2] for i in cells))
            weights.append((1, 2, 4)[max(grades)])
    expected = log_loss(true, largest, sample_weight=weights, labels=[False, True])
    assert fast["any_severe_spinal"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_uniform_rows_cost_the_logarithm_of_three(seed):
    labels, _ = random_case(seed)
    values = TASK.metric.score(labels, dict.fromkeys(labels, UNIFORM))
    for part in ("spinal", "foraminal", "subarticular"):
        assert values[part] == pytest.approx(math.log(3), abs=1e-12)
    severe = [
        max((4 if c == 2 else 0) for t, c in given_.items() if "spinal" in t)
        for given_ in labels.values()
        if any("spinal" in t for t in given_)
    ]
    assert any(severe) and not all(severe)
    assert math.log(1.5) < values["any_severe_spinal"] < math.log(3)


def test_uniform_rows_without_a_severe_canal_cost_the_logarithm_of_three_halves():
    labels, _ = random_case(1, shares=(0.6, 0.4, 0.0))
    values = TASK.metric.score(labels, dict.fromkeys(labels, UNIFORM))
    assert values["any_severe_spinal"] == pytest.approx(math.log(1.5), abs=1e-12)


def test_certain_and_right_costs_nothing_and_certain_and_wrong_is_clipped():
    labels = {"a": dict.fromkeys(TARGETS, 0)}
    right = np.tile([1.0, 0.0, 0.0], (25, 1))
    wrong = np.tile([0.0, 0.0, 1.0], (25, 1))
    assert TASK.metric.score(labels, {"a": right})["score"] == pytest.approx(0.0, abs=1e-12)
    assert TASK.metric.score(labels, {"a": wrong})["score"] == pytest.approx(-math.log(np.finfo(float).eps), rel=1e-3)


def test_empty_labels_do_not_count():
    labels, probs = random_case(3, empty=0.0)
    target = TARGETS[7]
    less = {study: {t: c for t, c in given_.items() if t != target} for study, given_ in labels.items()}
    spoiled = {study: table.copy() for study, table in probs.items()}
    for table in spoiled.values():
        table[7] = [0.0, 0.0, 1.0]
    assert TASK.metric.score(less, probs) == TASK.metric.score(less, spoiled)
    assert TASK.metric.score(labels, probs) != TASK.metric.score(labels, spoiled)


def test_studies_without_labels_do_not_count():
    labels, probs = random_case(4)
    more = {**labels, "empty": {}}
    assert TASK.metric.score(more, {**probs, "empty": UNIFORM, "unknown": UNIFORM}) == TASK.metric.score(labels, probs)


def test_a_part_without_labels_is_not_a_number_rather_than_a_good_score():
    labels, probs = random_case(5)
    less = {study: {t: c for t, c in given_.items() if "spinal" not in t} for study, given_ in labels.items()}
    values = TASK.metric.score(less, probs)
    assert math.isnan(values["spinal"]) and math.isnan(values["any_severe_spinal"]) and math.isnan(values["score"])
    assert values["foraminal"] == TASK.metric.score(labels, probs)["foraminal"]


@pytest.mark.parametrize(
    "row", [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [-0.1, 0.6, 0.5], [math.nan, 0.5, 0.5], [math.inf, 0.0, 0.0]]
)
def test_rows_that_are_no_probabilities_are_refused_by_name(row):
    labels, probs = random_case(6)
    probs["s3"][11] = row
    with pytest.raises(ValueError, match=f"s3_{TARGETS[11]}"):
        TASK.metric.score(labels, probs)


def test_a_labelled_study_without_an_answer_is_refused():
    labels, probs = random_case(7)
    del probs["s5"]
    with pytest.raises(ValueError, match="s5"):
        TASK.metric.score(labels, probs)


def test_another_shape_is_refused():
    labels, probs = random_case(8)
    probs["s2"] = probs["s2"][:24]
    with pytest.raises(ValueError, match=r"s2.*\(24, 3\).*\(25, 3\)"):
        TASK.metric.score(labels, probs)


def studies_of(labels):
    return [Study(study, study, (), given_) for study, given_ in labels.items()]


def test_the_weighted_prior_is_the_best_constant():
    labels, _ = random_case(9, studies=3000, empty=0.1)
    prior = as_rows(weighted_prior(studies_of(labels), TARGETS, TASK.class_weights), TARGETS)
    keep = ("spinal", "foraminal", "subarticular")

    def cost(table):
        values = TASK.metric.score(labels, dict.fromkeys(labels, table))
        return sum(values[part] for part in keep)

    best, rng = cost(prior), np.random.default_rng(0)
    for _ in range(20):
        other = prior * np.exp(rng.normal(0, 0.2, prior.shape))
        assert cost(other / other.sum(1, keepdims=True)) > best
    assert cost(UNIFORM) > best


def test_the_weighted_prior_counts_by_weight_and_never_says_never():
    labels = {"a": {TARGETS[0]: 0}, "b": {TARGETS[0]: 0}, "c": {TARGETS[0]: 1}}
    prior = weighted_prior(studies_of(labels), TARGETS, (1, 2, 4))
    assert prior[TARGETS[0]] == pytest.approx((3 / 11, 4 / 11, 4 / 11))
    assert prior[TARGETS[1]] == pytest.approx((1 / 7, 2 / 7, 4 / 7))


@pytest.mark.parametrize("seed", range(3))
def test_counting_studies_equals_scoring_them_that_often(seed):
    labels, probs = random_case(seed, studies=8)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(8, np.full(8, 1 / 8), size=4)
    fast = TASK.metric.bootstrap_statistic(labels, probs)(counts)
    for row, values in zip(counts, fast, strict=True):
        drawn = [(f"{study}#{k}", study) for study, n in zip(labels, row, strict=True) for k in range(n)]
        repeated = TASK.metric.score({new: labels[old] for new, old in drawn}, {new: probs[old] for new, old in drawn})
        np.testing.assert_allclose(values, list(repeated.values()), atol=1e-12)


def test_intervals_of_2000_studies_are_as_wide_as_theory_says():
    labels, probs = random_case(0, studies=2000, sharp=5.0)
    statistic = TASK.metric.bootstrap_statistic(labels, probs)
    low, high = metrics.interval(statistic, len(labels), 1000, np.random.default_rng(1))
    point = np.array(list(TASK.metric.score(labels, probs).values()))
    assert (low < point).all() and (point < high).all()
    above, below = lumbar_metric.study_sums(*lumbar_metric.tables(labels, probs))
    residual = above - below * (above.sum(0) / below.sum(0))  # the delta method for a ratio of sums
    width = 2 * 1.96 * np.sqrt((residual**2).sum(0)) / below.sum(0)
    np.testing.assert_allclose((high - low)[:4], width, rtol=0.12)


def test_intervals_are_the_same_for_the_same_generator_and_cover_the_truth():
    rng = np.random.default_rng(2)
    covered, trials = 0, 200
    for _ in range(trials):
        values = rng.normal(0, 1, 80)
        low, high = metrics.interval(lambda counts, v=values: counts @ v / counts.sum(1), 80, 400, rng)
        covered += int(low <= 0 <= high)
    assert 0.88 <= covered / trials <= 0.99
    mean = lambda counts: counts @ np.arange(5.0) / 5  # noqa: E731
    pairs = [metrics.interval(mean, 5, 300, np.random.default_rng(3)) for _ in range(2)]
    assert pairs[0] == pairs[1]


def test_a_part_that_no_resample_defines_has_no_interval():
    low, high = metrics.interval(lambda c: np.full((len(c), 2), [np.nan, 1.0]), 3, 10, np.random.default_rng(0))
    assert np.isnan([low[0], high[0]]).all() and (low[1], high[1]) == (1.0, 1.0)


@pytest.mark.parametrize(("studies", "n"), [(0, 10), (10, 0)])
def test_nothing_to_resample_is_refused(studies, n):
    with pytest.raises(ValueError, match="resamples"):
        metrics.interval(lambda counts: counts.sum(1), studies, n, np.random.default_rng(0))

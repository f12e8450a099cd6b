"""The score of ordinal tasks: equal to scikit-learn and to a slow second opinion, however often each study counts."""

import json
import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from osteograde.inference import submission
from osteograde.report.score_table import format_table, score_submission
from osteograde.tasks import metrics as bootstrap
from osteograde.tasks import metrics as confusion
from osteograde.tasks.lumbar_mr import TASK
from osteograde.tasks.metrics import BINS, EPS, OrdinalMetric
from tests import test_task_contract

METRIC = OrdinalMetric(("right", "left"), tuple("01234"))
THREE = OrdinalMetric(TASK.targets, ("0", "1", "2"))
ORDINAL = replace(TASK, metric=THREE)


def random_case(seed, studies=40, metric=METRIC, empty=0.2, shares=(0.4, 0.2, 0.2, 0.15, 0.05), steps=20):
    """Labels with empty cells; probabilities in ``steps`` equal steps, so that ties abound, NaN where unlabelled."""
    rng = np.random.default_rng(seed)
    k, targets = len(metric.grades), metric.targets
    shares = np.array(shares[:k]) / sum(shares[:k])
    labels, probs = {}, {}
    for i in range(studies):
        drawn = rng.choice(k, size=len(targets), p=shares)
        kept = rng.random(len(targets)) >= empty
        labels[f"s{i}"] = {t: int(c) for t, c, keep in zip(targets, drawn, kept, strict=True) if keep}
        leaning = 0.5 * np.eye(k)[drawn] + 0.5 * rng.dirichlet(np.full(k, 0.7), size=len(targets))
        table = np.stack([rng.multinomial(steps, row / row.sum()) for row in leaning]) / steps
        probs[f"s{i}"] = np.where(kept[:, None], table, np.nan)
    return labels, probs


def flat(labels, probs, metric=METRIC):
    """True classes (n,) and probabilities (n, K) of the labelled cells."""
    cells = [(study, target) for study, given_ in labels.items() for target in given_]
    true = np.array([labels[study][target] for study, target in cells], int)
    rows = [probs[study][metric.targets.index(target)] for study, target in cells]
    return true, np.array(rows).reshape(len(cells), len(metric.grades))


def repeated(labels, probs, counts):
    """Every study as often as it counts, under names of its own."""
    drawn = [(f"{study}#{i}", study) for study, n in zip(labels, counts, strict=True) for i in range(int(n))]
    return {new: labels[old] for new, old in drawn}, {new: probs[old] for new, old in drawn}


def scikit_learn(true, rows, threshold):
    """The same parts where all classes occur."""
    k = rows.shape[1]
    grades, said = list(range(k)), rows.argmax(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(true, said, labels=grades, zero_division=np.nan)
    return {
        "accuracy": metrics.accuracy_score(true, said),
        "balanced_accuracy": metrics.balanced_accuracy_score(true, said),
        "macro_f1": metrics.f1_score(true, said, labels=grades, average="macro"),
        "mae": metrics.mean_absolute_error(true, said),
        "auc": metrics.roc_auc_score(true, rows, multi_class="ovr", average="macro"),
        f"auc_ge_{threshold}": metrics.roc_auc_score(true >= threshold, rows[:, threshold:].sum(1)),
        "average_precision": metrics.average_precision_score(np.eye(k)[true], rows, average="macro"),
        "brier": metrics.brier_score_loss(true, rows, labels=grades, scale_by_half=False),
        "log_loss": metrics.log_loss(true, rows, labels=grades),
        **{f"precision_{grade}": precision[grade] for grade in grades},
        **{f"recall_{grade}": recall[grade] for grade in grades},
        **{f"f1_{grade}": f1[grade] for grade in grades},
        "score": metrics.cohen_kappa_score(true, said, weights="quadratic", labels=grades),
    }


def ratio(above, below):
    return above / below if below else math.nan


def mean(values):
    values = list(values)
    return ratio(sum(values), len(values))


def slow_auc(scores, positive):
    """Every pair of a positive and a negative cell, ties counting half."""
    pairs = [(a > b) + (a == b) / 2 for a, p in zip(scores, positive, strict=True) if p
             for b, q in zip(scores, positive, strict=True) if not q]  # fmt: skip
    return mean(pairs)


def slow_precision(scores, positive):
    """One threshold per distinct score: precision there times the share of positives that are new."""
    above, hits, area = 0, 0, 0.0
    for step in sorted(set(scores), reverse=True):
        new = [p for s, p in zip(scores, positive, strict=True) if s == step]
        above, hits = above + len(new), hits + sum(new)
        area += sum(new) * hits / above
    return ratio(area, sum(positive))


def slow_ece(true, rows):
    gap = 0.0
    for b in range(BINS):
        hits = [(bool(c == r.argmax()), r.max()) for c, r in zip(true, rows, strict=True)]
        inside = [(right, top) for right, top in hits if b / BINS < top <= (b + 1) / BINS]
        gap += abs(sum(right - top for right, top in inside))
    return ratio(gap, len(true))


def slow_kappa(true, said):
    n = len(true)
    observed = mean((a - b) ** 2 for a, b in zip(true, said, strict=True))
    return 1 - ratio(observed * n * n, float(sum((a - b) ** 2 for a in true for b in said)))


def slow_score(true, rows, metric=METRIC):
    """The definitions, one cell at a time."""
    k, threshold = len(metric.grades), metric.threshold
    true, said = [int(c) for c in true], [int(r.argmax()) for r in rows]
    hits = [sum(a == b == c for a, b in zip(true, said, strict=True)) for c in range(k)]
    occurs = sorted(set(true))
    recall = [ratio(hits[c], true.count(c)) for c in range(k)]
    f1 = [ratio(2 * hits[c], true.count(c) + said.count(c)) for c in range(k)]
    aucs = [slow_auc(rows[:, c].tolist(), [t == c for t in true]) for c in range(k)]
    values = {
        "accuracy": mean(a == b for a, b in zip(true, said, strict=True)),
        "balanced_accuracy": mean(recall[c] for c in occurs),
        "macro_f1": mean(f1[c] for c in occurs),
        "mae": mean(abs(a - b) for a, b in zip(true, said, strict=True)),
        "auc": mean(a for a in aucs if not math.isnan(a)),
        f"auc_ge_{metric.grades[threshold]}": slow_auc(
            rows[:, threshold:].sum(1).tolist(), [t >= threshold for t in true]
        ),
        "average_precision": mean(slow_precision(rows[:, c].tolist(), [t == c for t in true]) for c in occurs),
        "brier": mean(sum((r[c] - (t == c)) ** 2 for c in range(k)) for t, r in zip(true, rows, strict=True)),
        "log_loss": mean(-math.log(min(max(r[t], EPS), 1 - EPS)) for t, r in zip(true, rows, strict=True)),
        "ece": slow_ece(true, rows),
    }
    by_grade = {"precision": [ratio(hits[c], said.count(c)) for c in range(k)], "recall": recall, "f1": f1}
    values |= {f"{what}_{metric.grades[c]}": by_grade[what][c] for what in by_grade for c in range(k)}
    return {**values, "score": slow_kappa(true, said)}


# Against scikit-learn and the definitions


@pytest.mark.parametrize("steps", [4, 20, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_every_part_equals_scikit_learn_with_ties_and_without(seed, steps):
    labels, probs = random_case(seed, studies=150, steps=steps)
    true, rows = flat(labels, probs)
    assert set(true) == set(range(5))
    fast, expected = METRIC.score(labels, probs), scikit_learn(true, rows, METRIC.threshold)
    assert set(fast) - set(expected) == {"ece"}
    for part, value in expected.items():
        assert fast[part] == pytest.approx(value, abs=1e-9, nan_ok=True), part


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    studies=st.integers(1, 12),
    empty=st.sampled_from([0.0, 0.3, 0.9]),
    steps=st.sampled_from([1, 3, 20]),
    shares=st.sampled_from([(0.2,) * 5, (1, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0.5, 0, 0, 0.5, 0), (0.6, 0.4, 0, 0, 0)]),
)
def test_equals_the_definition_cell_by_cell_whatever_occurs(seed, studies, empty, steps, shares):
    labels, probs = random_case(seed, studies, empty=empty, shares=shares, steps=steps)
    fast, slow = METRIC.score(labels, probs), slow_score(*flat(labels, probs))
    assert list(fast) == list(METRIC.parts) == list(slow)
    for part in slow:
        assert fast[part] == pytest.approx(slow[part], abs=1e-9, nan_ok=True), part


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    empty=st.sampled_from([0.0, 0.5]),
    threshold=st.integers(1, 3),
    k=st.integers(4, 5),
)
def test_counting_a_study_twice_is_repeating_all_its_cells(seed, counts, empty, threshold, k):
    """The study is what is drawn: its right and left cells count together."""
    metric = OrdinalMetric(("right", "left", "middle"), tuple("abcde"[:k]), threshold)
    labels, probs = random_case(seed, 8, metric, empty, shares=(0.2,) * 5, steps=6)
    both = metric.bootstrap_statistic(labels, probs)(np.array([counts, [1] * 8]))
    for row, values in zip((counts, [1] * 8), both, strict=True):
        again = repeated(labels, probs, row)
        slow = slow_score(*flat(*again, metric), metric)
        np.testing.assert_allclose(values, [slow[part] for part in metric.parts], atol=1e-9)
        np.testing.assert_allclose(values, list(metric.score(*again).values()), atol=1e-9)


def test_weights_that_are_no_integers_count_by_proportion():
    labels, probs = random_case(3)
    statistic = METRIC.bootstrap_statistic(labels, probs)
    counts = np.random.default_rng(0).integers(0, 4, size=(3, len(labels)))
    np.testing.assert_allclose(statistic(counts * 0.37), statistic(counts), rtol=1e-9)


def test_a_resample_without_any_study_is_undefined_and_silent():
    labels, probs = random_case(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(METRIC.bootstrap_statistic(labels, probs)(np.zeros((1, len(labels))))).all()
        assert np.isnan(list(METRIC.score({}, {}).values())).all()
        assert np.isnan(list(METRIC.score({"a": {}}, {"a": np.full((2, 5), np.nan)}).values())).all()


# What each part means


def test_cells_without_a_label_have_no_influence():
    labels, probs = random_case(1, empty=0.4)
    filled = {study: np.where(np.isnan(table), [0, 0, 0, 0, 1.0], table) for study, table in probs.items()}
    stranger = {"unlabelled": np.full((2, 5), 0.2)}
    np.testing.assert_equal(METRIC.score(labels, {**filled, **stranger}), METRIC.score(labels, probs))
    np.testing.assert_array_equal(METRIC.confusion(labels, filled), METRIC.confusion(labels, probs))


@pytest.mark.parametrize("seed", range(3))
def test_the_confusion_has_truth_in_rows_like_scikit_learn(seed):
    labels, probs = random_case(seed)
    true, rows = flat(labels, probs)
    expected = metrics.confusion_matrix(true, rows.argmax(1), labels=range(5))
    counted = METRIC.confusion(labels, probs)
    np.testing.assert_array_equal(counted, expected)
    assert counted.dtype.kind == "i" and counted.sum() == len(true)
    assert confusion.quadratic_kappa(counted) == pytest.approx(METRIC.score(labels, probs)["score"], abs=1e-12)


def test_the_lower_of_equally_probable_grades_is_predicted():
    labels = {"a": {"right": 1}}
    table = np.array([[0.1, 0.4, 0.4, 0.1, 0], [np.nan] * 5])
    assert METRIC.confusion(labels, {"a": table})[1, 1] == 1


def test_a_bin_of_confidence_includes_its_upper_edge():
    """0.2 and 0.4 are 3/15 and 6/15: with 0.25 and 0.45 they lie in four bins, and one right answer helps none."""
    rows = {"a": [0.2] * 5, "b": [0.25, 0.25, 0.25, 0.25, 0], "c": [0.4, 0.3, 0.3, 0, 0], "d": [0.45, 0.4, 0.15, 0, 0]}
    labels = {"a": {"right": 0}, "b": {"right": 4}, "c": {"right": 4}, "d": {"right": 4}}
    value = METRIC.score(labels, {study: np.array([row, [np.nan] * 5]) for study, row in rows.items()})["ece"]
    assert value == pytest.approx((0.8 + 0.25 + 0.4 + 0.45) / 4)


def test_calibrated_answers_have_little_calibration_error_and_bold_ones_much():
    rng = np.random.default_rng(0)
    labels, honest, bold = {}, {}, {}
    for i in range(4000):
        table = rng.dirichlet(np.full(5, 0.5), size=2)
        drawn = [int(rng.choice(5, p=row)) for row in table]
        labels[f"s{i}"] = dict(zip(METRIC.targets, drawn, strict=True))
        honest[f"s{i}"], bold[f"s{i}"] = table, table**3 / (table**3).sum(1, keepdims=True)
    assert METRIC.score(labels, honest)["ece"] < 0.03
    assert METRIC.score(labels, bold)["ece"] > 0.15


@settings(max_examples=50, deadline=None)
@given(cells=st.lists(st.integers(0, 9), min_size=25, max_size=25), factor=st.floats(0.1, 10))
def test_agreement_is_symmetric_bounded_and_free_of_scale(cells, factor):
    table = np.array(cells, float).reshape(5, 5)
    for part in (confusion.accuracy, confusion.quadratic_kappa, confusion.mean_absolute_error):
        np.testing.assert_allclose(part(table), part(table.T), atol=1e-12)
        np.testing.assert_allclose(part(table), part(table * factor), atol=1e-12)
        np.testing.assert_allclose(part(table), part(table[::-1, ::-1]), atol=1e-12)
    np.testing.assert_array_equal(confusion.precisions(table), confusion.recalls(table.T))
    kappa = confusion.quadratic_kappa(table)
    assert np.isnan(kappa) or -1 - 1e-12 <= kappa <= 1
    stacked = np.stack([table, table.T])
    np.testing.assert_array_equal(confusion.quadratic_kappa(stacked)[0], kappa)


def test_kappa_of_constant_answers():
    diagonal = np.zeros((5, 5))
    diagonal[2, 2] = 7
    assert np.isnan(confusion.quadratic_kappa(diagonal))  # nothing to disagree about
    column = np.zeros((5, 5))
    column[:, 2] = 3
    assert confusion.quadratic_kappa(column) == pytest.approx(0, abs=1e-12)
    assert confusion.quadratic_kappa(np.eye(5)) == 1 and confusion.quadratic_kappa(np.eye(5)[::-1]) == pytest.approx(-1)


# Mistakes are told


def changed(labels, probs, what):
    if what == "study":
        return labels, {study: table for study, table in probs.items() if study != "s0"}
    if what == "class":
        return {**labels, "s0": {"right": 5}}, probs
    if what == "target":
        return {**labels, "s0": {"middle": 1}}, probs
    rows = {"shape": np.full((2, 4), 0.25), "nan": np.full((2, 5), np.nan), "sum": np.full((2, 5), 0.3)}
    rows["negative"] = np.array([[-0.1, 0.3, 0.3, 0.3, 0.2]] * 2)
    return labels, {**probs, "s0": rows[what]}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("study", r"1 labelled studies have no probabilities: \['s0'\]"),
        ("class", r"1 labels .* are unknown: \[\('s0', 'right', 5\)\].*classes 0 to 4"),
        ("target", r"\('s0', 'middle', 1\).*targets are \('right', 'left'\)"),
        ("shape", r"study s0: probabilities are \(2, 4\), expected \(2, 5\)"),
        ("nan", r"2 rows are not finite.*s0_right"),
        ("sum", r"2 rows .* do not sum to 1.*s0_right"),
        ("negative", r"2 rows .* negative .*s0_right"),
    ],
)
def test_tables_that_do_not_fit_are_refused_in_words(what, words):
    labels, probs = changed(*random_case(0, empty=0.0), what)
    for function in (METRIC.score, METRIC.bootstrap_statistic, METRIC.confusion):
        with pytest.raises(ValueError, match=words):
            function(labels, probs)


@pytest.mark.parametrize("threshold", [0, 5])
def test_a_threshold_that_divides_nothing_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold {threshold} divides none of the 5 grades"):
        OrdinalMetric(("right",), tuple("01234"), threshold)


# In a task


def test_a_task_may_be_scored_by_it():
    test_task_contract.test_the_score_prefers_the_truth(ORDINAL)
    test_task_contract.test_confusions_have_the_truth_in_rows(ORDINAL)
    test_task_contract.test_a_task_travels_to_other_processes(ORDINAL)
    assert pickle.loads(pickle.dumps(METRIC)) == METRIC


def test_parts_know_their_direction():
    assert set(METRIC.parts) - METRIC.higher_is_better == {"mae", "brier", "log_loss", "ece"}
    assert METRIC.parts[-1] == "score" and len(set(METRIC.parts)) == len(METRIC.parts)


def test_the_table_and_its_json_show_directions_and_confusions(tmp_path):
    labels, probs = random_case(5, studies=30, metric=THREE, empty=0.0)
    rows = {row: p for study in labels for row, p in zip(TASK.rows(study), probs[study], strict=True)}
    submission.write_submission(tmp_path / "s.csv", rows, TASK.classes)
    (tmp_path / "train.csv").write_text("")
    task = replace(ORDINAL, read_labels=lambda path: labels)
    result = score_submission(task, tmp_path, tmp_path / "s.csv", 100, np.random.default_rng(0))
    expected = THREE.confusion(labels, probs)
    assert json.loads(json.dumps(result))["confusion"] == expected.tolist()
    lines = format_table(result).splitlines()
    assert lines[1].split()[-1] == "better"
    ways = {line.split()[0]: line.split()[-1] for line in lines[2 : 2 + len(THREE.parts)]}
    assert ways == {part: "higher" if part in THREE.higher_is_better else "lower" for part in THREE.parts}
    printed = [line.split() for line in lines[-8:-5]]
    assert printed == [[name, *map(str, row)] for name, row in zip(TASK.classes, expected, strict=True)]
    for part, value in result["score"].items():
        low, high = result["interval"][part]
        assert low <= value <= high, part
    low, high = np.moveaxis(result["confusion_interval"], -1, 0)
    assert (low <= expected).all() and (expected <= high).all()
    binomial = 2 * 1.96 * np.sqrt(expected * (1 - expected / expected.sum()))  # were the cells independent
    assert np.median((high - low) / binomial) == pytest.approx(1, rel=0.3)
    assert lines[-1].split() == ["severe", *(f"{a:.0f}-{b:.0f}" for a, b in zip(low[2], high[2], strict=True))]


def test_a_task_without_confusions_prints_none(tmp_path):
    labels, probs = random_case(5, studies=5, metric=THREE, empty=0.0)
    rows = {row: p for study in labels for row, p in zip(TASK.rows(study), probs[study], strict=True)}
    submission.write_submission(tmp_path / "s.csv", rows, TASK.classes)
    (tmp_path / "train.csv").write_text("")
    task = replace(TASK, read_labels=lambda path: labels)
    result = score_submission(task, tmp_path, tmp_path / "s.csv", 0, np.random.default_rng(0))
    assert result["confusion"] is result["confusion_interval"] is None and set(result["better"].values()) == {"lower"}
    table = format_table(result)
    assert "confusion" not in table
    assert [line.split()[-1] for line in table.splitlines() if line.startswith("score ")] == ["lower"]
    assert table.splitlines()[-1] == "score: weighted log loss, mean of the four parts"


def test_intervals_of_an_accuracy_are_as_wide_as_theory_says():
    """One cell per study: the binomial. Two cells that always agree: no narrower, for studies are drawn, not cells."""
    labels, probs = random_case(0, studies=2000, empty=0.0)
    one = {study: {"right": given_["right"]} for study, given_ in labels.items()}
    twins = {study: dict.fromkeys(METRIC.targets, given_["right"]) for study, given_ in labels.items()}
    copied = {study: table[[0, 0]] for study, table in probs.items()}
    widths = []
    for case in ((one, probs), (twins, copied)):
        low, high = bootstrap.interval(METRIC.bootstrap_statistic(*case), 2000, 400, np.random.default_rng(1))
        widths.append((high - low)[METRIC.parts.index("accuracy")])
    share = METRIC.score(one, probs)["accuracy"]
    assert widths[0] == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 2000), rel=0.15)
    assert widths[1] == pytest.approx(widths[0], rel=1e-9)

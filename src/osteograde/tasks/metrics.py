"""The score of tasks whose classes are ordered and exclusive: quadratic kappa, and what else is asked of a grader.

All labelled cells (study, target) are pooled. The predicted grade is the most probable one (the lower of equals), also
for the mean absolute error: it is the error of the grade that is reported, not of the expected grade. Everything but
AUC and average precision is a function of sums over studies, so one table of sums serves the score and its resampling.
Means over classes run over the classes that occur in the truth of a resample. Letters: S studies, n labelled cells, T
targets, K classes, B resamples.

Figures of agreement as pure functions of confusion matrices (..., K, K): rows are the truth, columns the prediction.

The cells are weights, not only counts, so one call serves every resample of a bootstrap. What is not defined is NaN: a
class that never occurs has no recall, one that is never predicted no precision. Means over classes run over the
classes that occur in the truth, as scikit-learn's ``balanced_accuracy_score`` does.

Area under the ROC curve and average precision of many resamples at once: sorted once, counted by cumulative sums.

Both only need, for every positive cell, how much weight lies at or above its score. Ties are exact: cells of one score
are one step of the curve. Letters: n cells, P positive cells, S studies, B resamples.

Intervals by resampling: rows of one patient are not independent, so patients are drawn, not rows nor studies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from osteograde.errors import UserError
from osteograde.tasks.spec import Labels, Probabilities

BINS = 15  # of the calibration error
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
EPS = float(np.finfo(np.float64).eps)
LOWER_IS_BETTER = frozenset({"mae", "brier", "log_loss", "ece"})
_WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "F1, mean over classes",
    "mae": "mean absolute error, classes",
    "auc": "AUC, mean over classes",
    "average_precision": "average precision, mean over classes",
    "brier": "Brier score",
    "log_loss": "log loss",
    "ece": "expected calibration error",
    "score": "quadratic weighted kappa",
}


@dataclass(frozen=True)
class Cells:
    """The labelled cells: study_index (n,) into the studies of the labels, true (n,) classes, probs (n, K)."""

    study_index: np.ndarray
    true: np.ndarray
    probs: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(n,) the most probable class, the lower of equals."""
        return self.probs.argmax(1)


@dataclass(frozen=True)
class OrdinalMetric:
    """Plain values only, so that a task holding its methods travels to other processes.

    targets: of the task, in its order. grades: names of the classes, rising. threshold: index of the class from which
    on ``auc_ge_<grade>`` calls a cell positive; it is scored by the sum of the probabilities of those classes.

    >>> OrdinalMetric(("right", "left"), ("0", "1", "2")).parts[10:13]
    ('precision_0', 'precision_1', 'precision_2')
    """

    targets: tuple[str, ...]
    grades: tuple[str, ...]
    threshold: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.threshold < len(self.grades):
            raise ValueError(
                f"threshold {self.threshold} divides none of the {len(self.grades)} grades {self.grades}; "
                f"expected 1 to {len(self.grades) - 1}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in their order; "score", the quadratic kappa, is the last."""
        pooled = ("accuracy", "balanced_accuracy", "macro_f1", "mae", "auc", f"auc_ge_{self.grades[self.threshold]}")
        proper = ("average_precision", "brier", "log_loss", "ece")
        by_grade = tuple(f"{what}_{grade}" for what in ("precision", "recall", "f1") for grade in self.grades)
        return (*pooled, *proper, *by_grade, "score")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """The parts of which more is better."""
        return frozenset(self.parts) - LOWER_IS_BETTER

    @property
    def words(self) -> dict[str, str]:
        """What people call each part.

        >>> THREE = OrdinalMetric(("right", "left"), ("0", "1", "2"), threshold=1)
        >>> [THREE.words[part] for part in ("auc_ge_1", "f1_2", "score")]
        ['AUC, 1 or more', 'F1 of 2', 'quadratic weighted kappa']
        """
        threshold = self.grades[self.threshold]
        by_grade = {
            f"{what}_{grade}": f"{called} of {grade}"
            for what, called in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
            for grade in self.grades
        }
        return {**_WORDS, f"auc_ge_{threshold}": f"AUC, {threshold} or more", **by_grade}

    def score(self, labels: Labels, probs: Probabilities) -> dict[str, float]:
        """Every part of ``parts``; those that the labels leave undefined are NaN.

        labels: {study: {target: class index}}. probs: {study: (T, K)}; rows without a label are not looked at and may
        be NaN. ValueError where a labelled study has no probabilities, a label is unknown, or a labelled row is not
        finite, negative or does not sum to 1.
        """
        values = self.bootstrap_statistic(labels, probs)(np.ones((1, len(labels))))[0]
        return dict(zip(self.parts, map(float, values), strict=True))

    def bootstrap_statistic(self, labels: Labels, probs: Probabilities) -> Callable[[np.ndarray], np.ndarray]:
        """The score as a function of how often each study of ``labels`` counts: (B, S) -> (B, parts)."""
        cells = self.cells(labels, probs)
        k = len(self.grades)
        sums = study_sums(cells, len(labels), k)
        ranks = [auc_and_precision(cells.probs[:, grade], cells.true == grade, cells.study_index) for grade in range(k)]
        high = cells.probs[:, self.threshold :].sum(1)
        ranks.append(auc_and_precision(high, cells.true >= self.threshold, cells.study_index))

        def values(counts: np.ndarray) -> np.ndarray:
            counts = np.asarray(counts, float)
            table = counts @ sums
            matrix = table[:, : k * k].reshape(-1, k, k)
            by_study = np.ascontiguousarray(counts.T)
            aucs, precisions = (np.stack(of, -1) for of in zip(*(rank(by_study) for rank in ranks), strict=True))
            return _columns(matrix, table[:, k * k :], aucs, precisions)

        return values

    def confusion(self, labels: Labels, probs: Probabilities) -> np.ndarray:
        """(K, K) numbers of cells: rows the truth, columns the prediction. Reads and refuses what ``score`` does."""
        cells, k = self.cells(labels, probs), len(self.grades)
        return np.bincount(cells.true * k + cells.predicted, minlength=k * k).reshape(k, k)

    def cells(self, labels: Labels, probs: Probabilities) -> Cells:
        """The labelled cells, in the order of ``labels``. See ``score``."""
        if lost := sorted(set(labels) - set(probs)):
            raise UserError(f"{len(lost)} labelled studies have no probabilities: {lost[:5]}")
        column = {target: i for i, target in enumerate(self.targets)}
        names = [(study, target, label) for study, given in labels.items() for target, label in given.items()]
        known = range(len(self.grades))
        if odd := [name for name in names if name[1] not in column or name[2] not in known]:
            raise UserError(
                f"{len(odd)} labels (study, target, class) are unknown: {odd[:5]}; "
                f"targets are {self.targets[:5]}, classes 0 to {known[-1]}"
            )
        index = {study: i for i, study in enumerate(labels)}
        tables = {study: self._table(study, probs[study]) for study in labels}
        rows = np.array([tables[study][column[target]] for study, target, _ in names], float)
        rows = rows.reshape(len(names), len(self.grades))
        wrong = ~np.isfinite(rows).all(1) | (rows < 0).any(1) | ~(np.abs(rows.sum(1) - 1) <= SUM_TOLERANCE)
        if wrong.any():
            bad = [f"{names[i][0]}_{names[i][1]}" for i in np.flatnonzero(wrong)]
            raise UserError(f"{len(bad)} rows are not finite, negative or do not sum to 1: {bad[:5]}")
        true = np.array([label for *_, label in names], int)
        return Cells(np.array([index[study] for study, *_ in names], int), true, rows)

    def _table(self, study: str, table: np.ndarray) -> np.ndarray:
        shape = (len(self.targets), len(self.grades))
        if np.shape(table) != shape:
            raise ValueError(f"study {study}: probabilities are {np.shape(table)}, expected {shape} (targets, classes)")
        return np.asarray(table)


def study_sums(cells: Cells, studies: int, k: int) -> np.ndarray:
    """(S, K * K + 2 + BINS) sums over the cells of each study: the confusion matrix, row by row; the squared error of
    the probabilities over all classes (Brier, Mon Weather Rev 1950;78:1-3); -log p of the true class, p clipped to
    [eps, 1 - eps] of float64; and, by ``confidence_bin``, right (1 or 0) minus confidence."""
    rows, predicted = np.arange(len(cells.true)), cells.predicted
    confidence = cells.probs[rows, predicted]
    values = np.zeros((len(rows), k * k + 2 + BINS))
    values[rows, cells.true * k + predicted] = 1
    values[:, k * k] = ((cells.probs - np.eye(k)[cells.true]) ** 2).sum(1)
    values[:, k * k + 1] = -np.log(np.clip(cells.probs[rows, cells.true], EPS, 1 - EPS))
    values[rows, k * k + 2 + confidence_bin(confidence)] = (cells.true == predicted) - confidence
    sums = np.zeros((studies, values.shape[1]))
    np.add.at(sums, cells.study_index, values)
    return sums


def confidence_bin(confidence: np.ndarray) -> np.ndarray:
    """Which of ``BINS`` equal bins ((b - 1) / BINS, b / BINS] a top probability lies in, counted from 0."""
    return np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")


def _columns(matrix: np.ndarray, losses: np.ndarray, aucs: np.ndarray, average_precisions: np.ndarray) -> np.ndarray:
    """(B, parts) in the order of ``OrdinalMetric.parts``.

    matrix (B, K, K); losses (B, 2 + BINS) as ``study_sums`` has them; aucs and average_precisions (B, K + 1), whose
    last column is the threshold's. The calibration error is the weight of a bin times |right - confidence|, summed
    (Naeini et al., AAAI 2015).
    """
    total, occurs = matrix.sum((1, 2)), matrix.sum(2) > 0
    by_class = aucs[:, :-1]
    pooled = (
        accuracy(matrix),
        balanced_accuracy(matrix),
        macro_f1(matrix),
        mean_absolute_error(matrix),
        mean_where(by_class, ~np.isnan(by_class)),
        aucs[:, -1],
        mean_where(average_precisions[:, :-1], occurs),
        ratio(losses[:, 0], total),
        ratio(losses[:, 1], total),
        ratio(np.abs(losses[:, 2:]).sum(1), total),
    )
    by_grade = (precisions(matrix), recalls(matrix), f1s(matrix))
    return np.column_stack([*pooled, *by_grade, quadratic_kappa(matrix)])


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """(...,): share of the weight on the diagonal."""
    return ratio(_right(confusion).sum(-1), confusion.sum((-2, -1)))


def recalls(confusion: np.ndarray) -> np.ndarray:
    """(..., K): share of each true class that is predicted as such."""
    return ratio(_right(confusion), confusion.sum(-1))


def precisions(confusion: np.ndarray) -> np.ndarray:
    """(..., K): share of each predicted class that is truly so."""
    return ratio(_right(confusion), confusion.sum(-2))


def f1s(confusion: np.ndarray) -> np.ndarray:
    """(..., K): 2 TP / (2 TP + FP + FN); 0 for a class that occurs or is predicted, but never both at once."""
    return ratio(2 * _right(confusion), confusion.sum(-1) + confusion.sum(-2))


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean recall over the classes that occur."""
    return mean_where(recalls(confusion), confusion.sum(-1) > 0)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean F1 over the classes that occur."""
    return mean_where(f1s(confusion), confusion.sum(-1) > 0)


def mean_absolute_error(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean number of grades between truth and prediction."""
    return ratio((confusion * np.abs(_steps(confusion))).sum((-2, -1)), confusion.sum((-2, -1)))


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """(...,): Cohen's kappa with squared distances as weights (Cohen, Psychol Bull 1968;70:213-220).

    1 - observed / expected disagreement; NaN where truth and prediction are one and the same class throughout, as no
    disagreement is to be expected then.
    """
    steps = _steps(confusion) ** 2
    expected = confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :]
    observed = (steps * confusion).sum((-2, -1)) * confusion.sum((-2, -1))
    return 1 - ratio(observed, (steps * expected).sum((-2, -1)))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where nothing is below."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below > 0)


def mean_where(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of ``values`` (..., K) over the classes that count, (..., K) booleans; NaN where none does."""
    return ratio(np.where(counts, values, 0.0).sum(-1), counts.sum(-1))


def _right(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _steps(confusion: np.ndarray) -> np.ndarray:
    grades = np.arange(confusion.shape[-1])
    return grades[:, None] - grades[None, :]


def auc_and_precision(
    scores: np.ndarray, true: np.ndarray, study_index: np.ndarray
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(AUC, average precision) as a function of how often each study counts: (S, B) -> (B,) and (B,).

    scores (n,) of cells, true (n,) booleans, study_index (n,) which study a cell is of. AUC: the chance that a
    positive cell scores above a negative one, ties counting half (the trapezium rule); NaN without either. Average
    precision: the sum over thresholds of precision times the step in recall, without interpolation (scikit-learn's
    definition); NaN without positive cells.
    """
    order = np.argsort(-scores, kind="stable")
    falling, positive = -scores[order], np.flatnonzero(true[order])
    above = np.searchsorted(falling, falling[positive], side="left")  # (P,) how many cells score higher,
    reached = np.searchsorted(falling, falling[positive], side="right")  # and how many at least as high
    positive_above, positive_reached = np.searchsorted(positive, above), np.searchsorted(positive, reached)
    studies, positive_studies = study_index[order], study_index[order][positive]

    def values(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = counts[positive_studies]
        cells, hits = _running(counts[studies]), _running(weight)
        called, found = cells[reached], hits[positive_reached]
        beaten_by = ((called - found) + (cells[above] - hits[positive_above])) / 2  # negatives; half of those tied
        hit, missed = hits[-1], cells[-1] - hits[-1]
        auc = ratio((weight * (missed - beaten_by)).sum(0), hit * missed)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return auc, ratio((weight * precision).sum(0), hit)

    return values


def _running(weight: np.ndarray) -> np.ndarray:
    """(n + 1, B): sums of the first 0, 1, ... n rows."""
    sums = np.zeros((len(weight) + 1, weight.shape[1]))
    np.cumsum(weight, axis=0, out=sums[1:])
    return sums


BLOCK = 256  # resamples at a time: bounds the memory of the table of counts


def groups_of(patients: Sequence[str]) -> np.ndarray:
    """(studies,) the number of each study's patient in order of appearance: ``groups`` of ``interval``.

    >>> groups_of(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    number = {patient: i for i, patient in enumerate(dict.fromkeys(patients))}
    return np.array([number[patient] for patient in patients], dtype=int)


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    studies: int,
    n: int,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): percentile intervals of a statistic under resampling of ``studies`` studies with replacement.

    statistic maps counts (B, studies), how often each study was drawn, to (B,) or (B, parts) values; see
    ``Metric.bootstrap_statistic``. groups: (studies,) numbers of patients from 0; whole patients are then drawn, as
    many as there are, each with all of its studies. Resamples in which a part is not defined (NaN) do not count for
    it. ValueError where n < 1, there is no study, or ``groups`` does not number the patients of every study without a
    gap.
    """
    if n < 1 or studies < 1:
        raise UserError(f"cannot draw {n} resamples of {studies} studies; both must be at least 1")
    member = np.arange(studies) if groups is None else np.asarray(groups)
    patients = int(member.max()) + 1 if len(member) else 0
    if member.shape != (studies,) or np.bincount(member, minlength=patients).min() < 1:
        raise ValueError(f"groups {member.shape} must give each of {studies} studies a number from 0, without a gap")
    chances = np.full(patients, 1 / patients)
    blocks = [min(BLOCK, n - start) for start in range(0, n, BLOCK)]
    drawn = (rng.multinomial(patients, chances, size=size).astype(float) for size in blocks)
    values = np.concatenate([statistic(np.ascontiguousarray(counts[:, member])) for counts in drawn])
    tail = (1 - level) / 2
    low, high = np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    defined = ~np.isnan(values).all(0)
    low[defined], high[defined] = np.nanquantile(values[:, defined], [tail, 1 - tail], axis=0)
    return low, high

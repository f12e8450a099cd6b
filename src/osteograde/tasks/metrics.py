"""The score of tasks whose classes are ordered and exclusive: quadratic kappa, and what else is asked of a grader.

All labelled cells (study, target) are pooled. The predicted grade is the most probable one (the lower of equals), also
for the mean absolute error: it is the error of the grade that is reported, not of the expected grade. Everything but
AUC and average precision is a function of sums over studies, so one table of sums serves the score and its resampling.
Means over classes run over the classes that occur in the truth of a resample. Letters: S studies, n labelled cells, T
targets, K classes, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from osteograde.tasks.scores import confusion as agreement
from osteograde.tasks.scores.confusion import mean_where, share
from osteograde.tasks.scores.ranking import ranked

Labels = Mapping[str, Mapping[str, int]]
Probs = Mapping[str, np.ndarray]

BINS = 15  # of the calibration error
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
EPS = float(np.finfo(np.float64).eps)
LOWER_IS_BETTER = frozenset({"mae", "brier", "log_loss", "ece"})


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
    def groups(self) -> tuple[str, ...]:
        """``Task.score_groups``: the parts but "score"."""
        return self.parts[:-1]

    @property
    def higher_is_better(self) -> frozenset[str]:
        """``Task.higher_is_better``: the parts of which more is better."""
        return frozenset(self.parts) - LOWER_IS_BETTER

    def score(self, labels: Labels, probs: Probs) -> dict[str, float]:
        """Every part of ``parts``; those that the labels leave undefined are NaN.

        labels: {study: {target: class index}}. probs: {study: (T, K)}; rows without a label are not looked at and may
        be NaN. ValueError where a labelled study has no probabilities, a label is unknown, or a labelled row is not
        finite, negative or does not sum to 1.
        """
        values = self.counted(labels, probs)(np.ones((1, len(labels))))[0]
        return dict(zip(self.parts, map(float, values), strict=True))

    def counted(self, labels: Labels, probs: Probs) -> Callable[[np.ndarray], np.ndarray]:
        """The score as a function of how often each study of ``labels`` counts: (B, S) -> (B, parts)."""
        cells = self.cells(labels, probs)
        k = len(self.grades)
        sums = study_sums(cells, len(labels), k)
        ranks = [ranked(cells.probs[:, grade], cells.true == grade, cells.study_index) for grade in range(k)]
        high = cells.probs[:, self.threshold :].sum(1)
        ranks.append(ranked(high, cells.true >= self.threshold, cells.study_index))

        def values(counts: np.ndarray) -> np.ndarray:
            counts = np.asarray(counts, float)
            table = counts @ sums
            matrix = table[:, : k * k].reshape(-1, k, k)
            by_study = np.ascontiguousarray(counts.T)
            aucs, precisions = (np.stack(of, -1) for of in zip(*(rank(by_study) for rank in ranks), strict=True))
            return _columns(matrix, table[:, k * k :], aucs, precisions)

        return values

    def confusion(self, labels: Labels, probs: Probs) -> np.ndarray:
        """(K, K) numbers of cells: rows the truth, columns the prediction. Reads and refuses what ``score`` does."""
        cells, k = self.cells(labels, probs), len(self.grades)
        return np.bincount(cells.true * k + cells.predicted, minlength=k * k).reshape(k, k)

    def cells(self, labels: Labels, probs: Probs) -> Cells:
        """The labelled cells, in the order of ``labels``. See ``score``."""
        if lost := sorted(set(labels) - set(probs)):
            raise ValueError(f"{len(lost)} labelled studies have no probabilities: {lost[:5]}")
        column = {target: i for i, target in enumerate(self.targets)}
        names = [(study, target, label) for study, given in labels.items() for target, label in given.items()]
        known = range(len(self.grades))
        if odd := [name for name in names if name[1] not in column or name[2] not in known]:
            raise ValueError(
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
            raise ValueError(f"{len(bad)} rows are not finite, negative or do not sum to 1: {bad[:5]}")
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


def _columns(matrix: np.ndarray, losses: np.ndarray, aucs: np.ndarray, precisions: np.ndarray) -> np.ndarray:
    """(B, parts) in the order of ``OrdinalMetric.parts``.

    matrix (B, K, K); losses (B, 2 + BINS) as ``study_sums`` has them; aucs and precisions (B, K + 1), the last column
    of which is the threshold's. The calibration error is the weight of a bin times |right - confidence|, summed (Naeini
    et al., AAAI 2015).
    """
    total, occurs = matrix.sum((1, 2)), matrix.sum(2) > 0
    by_class = aucs[:, :-1]
    pooled = (
        agreement.accuracy(matrix),
        agreement.balanced_accuracy(matrix),
        agreement.macro_f1(matrix),
        agreement.mean_absolute_error(matrix),
        mean_where(by_class, ~np.isnan(by_class)),
        aucs[:, -1],
        mean_where(precisions[:, :-1], occurs),
        share(losses[:, 0], total),
        share(losses[:, 1], total),
        share(np.abs(losses[:, 2:]).sum(1), total),
    )
    by_grade = (agreement.precisions(matrix), agreement.recalls(matrix), agreement.f1s(matrix))
    return np.column_stack([*pooled, *by_grade, agreement.quadratic_kappa(matrix)])

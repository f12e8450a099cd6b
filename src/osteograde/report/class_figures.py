"""What is told of every class of some out-of-fold rows: precision, recall and F1, the ROC and the precision-recall
curve and the areas below them, each with its interval over patients.

Letters: n labelled rows, S studies, K classes, B resamples. A class is scored against all others by its probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from osteograde.learning.evaluate import class_scores
from osteograde.report.oof_tables import Graded
from osteograde.tasks import metrics
from osteograde.tasks.metrics import auc_and_precision, groups_of, interval

RESAMPLES = 200
STEPS = 400  # points of a curve that lie nearer together than 1 / STEPS are drawn once


@dataclass(frozen=True, eq=False)
class Estimate:
    """Values with the ends of their 95 % intervals, all of one shape; NaN where undefined."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class ClassFigures:
    """The figures of some rows. confusion: (K, K), rows the truth. scores: (K, 3), precision, recall and F1. accuracy:
    (). auc, average_precision: (K,). roc, precision_recall: of each class (m, 2) points, (x, y) in 0..1; of a class
    that does not occur, or alone, none."""

    confusion: np.ndarray
    scores: Estimate
    accuracy: Estimate
    auc: Estimate
    average_precision: Estimate
    roc: tuple[np.ndarray, ...]
    precision_recall: tuple[np.ndarray, ...]


def of_rows(
    graded: Graded, chosen: np.ndarray, classes: int, patient: Mapping[str, str], rng: np.random.Generator
) -> ClassFigures:
    """The figures of the labelled rows among ``chosen`` (n,) booleans, of which there must be some. patient: study ->
    patient, who is drawn with all rows; a study that it does not name is a patient of its own."""
    rows = np.flatnonzero(chosen & graded.labelled)
    names = [graded.studies[i] for i in rows]
    study_index, studies = groups_of(names), list(dict.fromkeys(names))
    probs, true = graded.probs[rows], graded.label[rows]
    code = np.zeros((len(studies), classes * classes))
    np.add.at(code, (study_index, true * classes + probs.argmax(1)), 1)
    ranks = [auc_and_precision(probs[:, k], true == k, study_index) for k in range(classes)]

    def statistic(counts: np.ndarray) -> np.ndarray:
        """(B, S) -> (B, 3 K + 1 + 2 K)."""
        matrix = (counts @ code).reshape(-1, classes, classes)
        by_study = np.ascontiguousarray(counts.T)
        areas = [area for rank in ranks for area in rank(by_study)]
        table = np.stack([metrics.precisions(matrix), metrics.recalls(matrix), metrics.f1s(matrix)], -1)
        return np.column_stack([table.reshape(len(matrix), -1), metrics.accuracy(matrix), *areas])

    confusion = code.sum(0).reshape(classes, classes).astype(int)
    groups = groups_of([patient.get(study, study) for study in studies])
    ends = interval(statistic, len(studies), RESAMPLES, rng, groups=groups)
    accuracy, scores = class_scores(confusion)
    areas = statistic(np.ones((1, len(studies))))[0, 3 * classes + 1 :].reshape(classes, 2)
    low, high = ([one[: 3 * classes].reshape(classes, 3), one[3 * classes], one[3 * classes + 1 :].reshape(classes, 2)]
                 for one in ends)  # fmt: skip
    return ClassFigures(
        confusion=confusion,
        scores=Estimate(scores, low[0], high[0]),
        accuracy=Estimate(np.array(accuracy), low[1], high[1]),
        auc=Estimate(areas[:, 0], low[2][:, 0], high[2][:, 0]),
        average_precision=Estimate(areas[:, 1], low[2][:, 1], high[2][:, 1]),
        roc=tuple(roc_curve(probs[:, k], true == k) for k in range(classes)),
        precision_recall=tuple(precision_recall_curve(probs[:, k], true == k) for k in range(classes)),
    )


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(m, 2): the share of the others that is called (x) and of the positive rows that is found (y), at every
    threshold from the highest; rows of one score are one step. Empty without positive or without other rows."""
    found, called = _steps(scores, positive)
    others = called - found
    if not found[-1] or not others[-1]:
        return np.zeros((0, 2))
    return np.column_stack([others / others[-1], found / found[-1]])


def precision_recall_curve(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(m, 2): the share of the positive rows that is found (x) and of the called rows that is positive (y), at every
    threshold from the highest, as steps: a precision holds from the recall before it. Empty without positive rows."""
    found, called = _steps(scores, positive)
    if not found[-1]:
        return np.zeros((0, 2))
    recall, precision = found / found[-1], found[1:] / called[1:]
    return np.column_stack([np.repeat(recall, 2)[1:-1], np.repeat(precision, 2)])


def _steps(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of positive rows and of all rows at or above every threshold, from above all scores downwards."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])) + 1, len(scores))
    found = np.concatenate([[0], np.cumsum(positive[order])])[np.concatenate([[0], ends])]
    return found, np.concatenate([[0], ends])


def thinned(points: np.ndarray) -> np.ndarray:
    """The points of a curve without those that fall on the one before them when it is drawn."""
    if len(points) < 3:
        return points
    cells = np.rint(points * STEPS).astype(int)
    keep = np.append(True, (np.diff(cells, axis=0) != 0).any(1))
    keep[-1] = True
    return points[keep]

"""The score of tasks with one yes/no question a target: the area under the ROC curve, and what else a risk is asked.

All labelled cells (study, target) are pooled; a cell's score is the probability of the second class. Everything is a
function of sums over cells in one sorted order, so resampling costs no more than the first look. Letters: S studies, n
labelled cells, T targets, B resamples, G groups of cells of one score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from osteograde.tasks.metrics import BINS, EPS, Cells, OrdinalMetric, auc_and_precision, confidence_bin, ratio
from osteograde.tasks.spec import Labels, Probabilities

SPECIFICITIES = (80, 90)  # per cent, at which the sensitivity is given
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BinaryMetric:
    """Plain values only, so that a task holding its methods travels to other processes.

    targets: of the task, in its order. classes: names of no and yes.

    >>> BinaryMetric(("right", "left"), ("stable", "progresses")).parts[-3:]
    ('sensitivity_at_80', 'sensitivity_at_90', 'score')
    """

    targets: tuple[str, ...]
    classes: tuple[str, str]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in their order.

        average_precision of yes; brier, the mean squared error of its probability; log_loss; ece, by how much observed
        frequencies differ from probabilities in ``BINS`` bins; sensitivity where the given per cent of the stable cells
        are called stable; "score", the area under the ROC curve, is the last.
        """
        sensitivities = (f"sensitivity_at_{percent}" for percent in SPECIFICITIES)
        return ("average_precision", "brier", "log_loss", "ece", *sensitivities, "score")

    @property
    def higher_is_better(self) -> frozenset[str]:
        return frozenset(self.parts) - {"brier", "log_loss", "ece"}

    @property
    def words(self) -> dict[str, str]:
        """What people call each part."""
        sensitivities = {
            f"sensitivity_at_{percent}": f"sensitivity at a specificity of {percent} %" for percent in SPECIFICITIES
        }
        return {
            "average_precision": "average precision",
            "brier": "Brier score",
            "log_loss": "log loss",
            "ece": "expected calibration error",
            **sensitivities,
            "score": "area under the ROC curve",
        }

    def score(self, labels: Labels, probs: Probabilities) -> dict[str, float]:
        """Every part of ``parts``; those that the labels leave undefined are NaN. See ``OrdinalMetric.score`` for what
        is read and refused."""
        values = self.bootstrap_statistic(labels, probs)(np.ones((1, len(labels))))[0]
        return dict(zip(self.parts, map(float, values), strict=True))

    def bootstrap_statistic(self, labels: Labels, probs: Probabilities) -> Callable[[np.ndarray], np.ndarray]:
        """The score as a function of how often each study of ``labels`` counts: (B, S) -> (B, parts)."""
        cells = self.cells(labels, probs)
        sums = _study_sums(cells, len(labels))
        rank = auc_and_precision(cells.probs[:, 1], cells.true == 1, cells.study_index)
        sensitivity = sensitivity_at(cells.probs[:, 1], cells.true == 1, cells.study_index)

        def values(counts: np.ndarray) -> np.ndarray:
            counts = np.asarray(counts, float)
            table, by_study = counts @ sums, np.ascontiguousarray(counts.T)
            auc, precision = rank(by_study)
            total = table[:, 0]
            columns = [precision, ratio(table[:, 1], total), ratio(table[:, 2], total)]
            columns.append(ratio(np.abs(table[:, 3:]).sum(1), total))
            columns += [sensitivity(by_study, percent / 100) for percent in SPECIFICITIES]
            return np.column_stack([*columns, auc])

        return values

    def confusion(self, labels: Labels, probs: Probabilities) -> np.ndarray:
        """(2, 2) numbers of cells: rows the truth, columns the more probable class."""
        cells = self.cells(labels, probs)
        return np.bincount(cells.true * 2 + cells.predicted, minlength=4).reshape(2, 2)

    def cells(self, labels: Labels, probs: Probabilities) -> Cells:
        """The labelled cells, in the order of ``labels``. See ``score``."""
        return OrdinalMetric(self.targets, self.classes, threshold=1).cells(labels, probs)


def _study_sums(cells: Cells, studies: int) -> np.ndarray:
    """(S, 3 + BINS) sums over the cells of each study: cells, squared error (Brier 1950), -log p of the true class with
    p clipped to [eps, 1 - eps] of float64, and by bin of the probability truth minus probability."""
    p, rows = cells.probs[:, 1], np.arange(len(cells.true))
    values = np.zeros((len(rows), 3 + BINS))
    values[:, 0] = 1
    values[:, 1] = (p - cells.true) ** 2
    values[:, 2] = -np.log(np.clip(cells.probs[rows, cells.true], EPS, 1 - EPS))
    values[rows, 3 + confidence_bin(p)] = cells.true - p
    sums = np.zeros((studies, values.shape[1]))
    np.add.at(sums, cells.study_index, values)
    return sums


def sensitivity_at(
    scores: np.ndarray, true: np.ndarray, study_index: np.ndarray
) -> Callable[[np.ndarray, float], np.ndarray]:
    """The largest share of positive cells at or above a threshold that leaves at least a share ``specificity`` of the
    negative cells below it, as a function of (counts (S, B), specificity) -> (B,).

    scores (n,), true (n,) booleans, study_index (n,) which study a cell is of. Cells of one score lie on one side of
    every threshold. NaN without positive or without negative cells.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.append(np.flatnonzero(np.diff(falling)) + 1, len(falling)).astype(
        int
    )  # (G,) cells at or above each score
    studies, positive = study_index[order], true[order]

    def values(counts: np.ndarray, specificity: float) -> np.ndarray:
        weight = counts[studies]
        hits, alarms = (_at_ends(np.where(which[:, None], weight, 0.0), ends) for which in (positive, ~positive))
        allowed = (alarms <= (1 - specificity) * alarms[-1] + _ROUNDING).sum(0) - 1  # the lowest threshold that will do
        found = np.take_along_axis(hits, allowed[None], 0)[0]
        return np.where(alarms[-1] > 0, ratio(found, hits[-1]), np.nan)

    return values


def _at_ends(weight: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(G + 1, B): the weight above every threshold, from the highest one, above which there is none."""
    sums = np.zeros((len(weight) + 1, weight.shape[1]))
    np.cumsum(weight, axis=0, out=sums[1:])
    return sums[np.concatenate([[0], ends])]

"""The score of tasks whose classes are exclusive and in no order: accuracy, and what else is asked of a classifier.

All labelled cells (study, target) are pooled, and the predicted class is the most probable one. The figures are those
of ``metrics.OrdinalMetric`` without the ones that need an order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from osteograde.tasks.metrics import LOWER_IS_BETTER, Cells, OrdinalMetric
from osteograde.tasks.spec import Labels, Probabilities

POOLED = ("balanced_accuracy", "macro_f1", "auc", "average_precision", "brier", "log_loss", "ece")
BY_CLASS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class ClassMetric:
    """Plain values only, so that a task holding its methods travels to other processes.

    targets: of the task, in its order. classes: their names.

    >>> ClassMetric(("",), ("cyst", "none")).parts[-3:]
    ('f1_cyst', 'f1_none', 'score')
    """

    targets: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def _ordinal(self) -> OrdinalMetric:
        return OrdinalMetric(self.targets, self.classes, threshold=1)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in their order; "score", the accuracy, is the last. macro_f1 and balanced_accuracy are
        means over the classes that occur, auc is the mean of each class against all others."""
        return (*POOLED, *(f"{what}_{name}" for what in BY_CLASS for name in self.classes), "score")

    @property
    def higher_is_better(self) -> frozenset[str]:
        """The parts of which more is better."""
        return frozenset(self.parts) - LOWER_IS_BETTER

    @property
    def words(self) -> dict[str, str]:
        """What people call each part."""
        words = self._ordinal.words
        return {part: words.get(part, part) for part in self.parts} | {"score": "accuracy"}

    def score(self, labels: Labels, probs: Probabilities) -> dict[str, float]:
        """Every part of ``parts``; those that the labels leave undefined are NaN. See ``OrdinalMetric.score`` for what
        is read and refused."""
        values = self.bootstrap_statistic(labels, probs)(np.ones((1, len(labels))))[0]
        return dict(zip(self.parts, map(float, values), strict=True))

    def bootstrap_statistic(self, labels: Labels, probs: Probabilities) -> Callable[[np.ndarray], np.ndarray]:
        """The score as a function of how often each study of ``labels`` counts: (B, S) -> (B, parts)."""
        ordinal = self._ordinal
        statistic = ordinal.bootstrap_statistic(labels, probs)
        columns = [ordinal.parts.index("accuracy" if part == "score" else part) for part in self.parts]
        return lambda counts: statistic(counts)[:, columns]

    def confusion(self, labels: Labels, probs: Probabilities) -> np.ndarray:
        """(K, K) numbers of cells: rows the truth, columns the most probable class."""
        return self._ordinal.confusion(labels, probs)

    def cells(self, labels: Labels, probs: Probabilities) -> Cells:
        """The labelled cells, in the order of ``labels``. See ``score``."""
        return self._ordinal.cells(labels, probs)

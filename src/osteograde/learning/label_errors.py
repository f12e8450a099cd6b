"""Labels that are likely wrong, told by nets that never saw them: confident learning (Northcutt et al., JAIR 70, 2021).

The probabilities must be out-of-fold. A row is taken for class k with confidence where its probability of k is at least
the mean probability of k of the rows that are labelled k: classes that the nets are never sure of get a low threshold.
Rows that are taken for another class than their label make the estimate of how many labels are wrong. They are ranked
by self-confidence, the probability of the given label: with grades as with other classes it finds labels that were
changed on purpose better than margins, than the thresholds and than distances in grades do (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LabelDoubts:
    """Of n rows with K classes. taken_for: (n,) the class that a row is taken for with confidence, -1 where for none.
    self_confidence: (n,) the probability of its label. thresholds: group -> (K,), NaN for classes without a label."""

    labels: np.ndarray
    taken_for: np.ndarray
    self_confidence: np.ndarray
    thresholds: dict[str, np.ndarray]

    @property
    def doubted(self) -> np.ndarray:
        """(n,) booleans: the row is taken for another class than its label."""
        return (self.taken_for >= 0) & (self.taken_for != self.labels)

    @property
    def order(self) -> np.ndarray:
        """(n,) rows, the least believable label first; of equals the first row."""
        return np.argsort(self.self_confidence, kind="stable")

    def joint(self, classes: int) -> np.ndarray:
        """(K, K) numbers of rows: given label by the class that they are taken for with confidence."""
        sure = self.taken_for >= 0
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (self.labels[sure], self.taken_for[sure]), 1)
        return counts


def doubts(probs: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> LabelDoubts:
    """Doubts about labels (n,) by out-of-fold probabilities (n, K) whose rows sum to 1.

    groups: of each row, what has thresholds of its own, as every condition of a task has. ValueError where lengths
    differ or a label is no class.
    """
    labels, names = np.asarray(labels, int), np.asarray(groups, dtype=object)
    n, classes = probs.shape
    if labels.shape != (n,) or names.shape != (n,):
        raise ValueError(f"{n} rows of probabilities, {len(labels)} labels, {len(names)} groups: give one for each row")
    if n and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels {sorted(set(labels.tolist()))}; the classes are 0 to {classes - 1}")
    taken_for, thresholds = np.full(n, -1), {}
    for group in dict.fromkeys(groups):
        rows = np.flatnonzero(names == group)
        own = np.full(classes, np.nan)
        for k in np.unique(labels[rows]):
            own[k] = probs[rows[labels[rows] == k], k].mean()
        sure = probs[rows] >= own  # never of a class without a label
        best = np.where(sure, probs[rows], -1.0).argmax(1)
        taken_for[rows] = np.where(sure.any(1), best, -1)
        thresholds[group] = own
    return LabelDoubts(labels, taken_for, probs[np.arange(n), labels], thresholds)

"""Area under the ROC curve and average precision of many resamples at once: sorted once, counted by cumulative sums.

Both only need, for every positive cell, how much weight lies at or above its score. Ties are exact: cells of one score
are one step of the curve. Letters: n cells, P positive cells, S studies, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from osteograde.tasks.scores.confusion import share


def ranked(
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
        auc = share((weight * (missed - beaten_by)).sum(0), hit * missed)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return auc, share((weight * precision).sum(0), hit)

    return values


def _running(weight: np.ndarray) -> np.ndarray:
    """(n + 1, B): sums of the first 0, 1, ... n rows."""
    sums = np.zeros((len(weight) + 1, weight.shape[1]))
    np.cumsum(weight, axis=0, out=sums[1:])
    return sums

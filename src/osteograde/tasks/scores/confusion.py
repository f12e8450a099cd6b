"""Figures of agreement as pure functions of confusion matrices (..., K, K): rows are the truth, columns the prediction.

The cells are weights, not only counts, so one call serves every resample of a bootstrap. What is not defined is NaN: a
class that never occurs has no recall, one that is never predicted no precision. Means over classes run over the
classes that occur in the truth, as scikit-learn's ``balanced_accuracy_score`` does.
"""

from __future__ import annotations

import numpy as np


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """(...,): share of the weight on the diagonal."""
    return share(_right(confusion).sum(-1), confusion.sum((-2, -1)))


def recalls(confusion: np.ndarray) -> np.ndarray:
    """(..., K): share of each true class that is predicted as such."""
    return share(_right(confusion), confusion.sum(-1))


def precisions(confusion: np.ndarray) -> np.ndarray:
    """(..., K): share of each predicted class that is truly so."""
    return share(_right(confusion), confusion.sum(-2))


def f1s(confusion: np.ndarray) -> np.ndarray:
    """(..., K): 2 TP / (2 TP + FP + FN); 0 for a class that occurs or is predicted, but never both at once."""
    return share(2 * _right(confusion), confusion.sum(-1) + confusion.sum(-2))


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean recall over the classes that occur."""
    return mean_where(recalls(confusion), confusion.sum(-1) > 0)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean F1 over the classes that occur."""
    return mean_where(f1s(confusion), confusion.sum(-1) > 0)


def mean_absolute_error(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean number of grades between truth and prediction."""
    return share((confusion * np.abs(_steps(confusion))).sum((-2, -1)), confusion.sum((-2, -1)))


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """(...,): Cohen's kappa with squared distances as weights (Cohen, Psychol Bull 1968;70:213-220).

    1 - observed / expected disagreement; NaN where truth and prediction are one and the same class throughout, as no
    disagreement is to be expected then.
    """
    steps = _steps(confusion) ** 2
    expected = confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :]
    observed = (steps * confusion).sum((-2, -1)) * confusion.sum((-2, -1))
    return 1 - share(observed, (steps * expected).sum((-2, -1)))


def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where nothing is below."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below > 0)


def mean_where(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of ``values`` (..., K) over the classes that count, (..., K) booleans; NaN where none does."""
    return share(np.where(counts, values, 0.0).sum(-1), counts.sum(-1))


def _right(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _steps(confusion: np.ndarray) -> np.ndarray:
    grades = np.arange(confusion.shape[-1])
    return grades[:, None] - grades[None, :]

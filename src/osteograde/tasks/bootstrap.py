"""Intervals by resampling studies: rows of one patient are not independent, so patients are drawn, not rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 256  # resamples at a time: bounds the memory of the table of counts


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    studies: int,
    n: int,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): percentile intervals of a statistic under resampling of ``studies`` studies with replacement.

    statistic maps counts (B, studies), how often each study was drawn, to (B,) or (B, parts) values (``Task.counted``
    makes one). Resamples in which a part is not defined (NaN) do not count for it. ValueError where n < 1 or there is
    no study.
    """
    if n < 1 or studies < 1:
        raise ValueError(f"cannot draw {n} resamples of {studies} studies; both must be at least 1")
    chances = np.full(studies, 1 / studies)
    blocks = [min(BLOCK, n - start) for start in range(0, n, BLOCK)]
    values = np.concatenate([statistic(rng.multinomial(studies, chances, size=size).astype(float)) for size in blocks])
    tail = (1 - level) / 2
    low, high = np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    defined = ~np.isnan(values).all(0)
    low[defined], high[defined] = np.nanquantile(values[:, defined], [tail, 1 - tail], axis=0)
    return low, high

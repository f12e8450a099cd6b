"""Intervals by resampling: rows of one patient are not independent, so patients are drawn, not rows nor studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

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

    statistic maps counts (B, studies), how often each study was drawn, to (B,) or (B, parts) values (``Task.counted``
    makes one). groups: (studies,) numbers of patients from 0; whole patients are then drawn, as many as there are, each
    with all of its studies. Resamples in which a part is not defined (NaN) do not count for it. ValueError where n < 1,
    there is no study, or ``groups`` does not number the patients of every study without a gap.
    """
    if n < 1 or studies < 1:
        raise ValueError(f"cannot draw {n} resamples of {studies} studies; both must be at least 1")
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

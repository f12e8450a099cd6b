"""Class priors: the best constant answer under a weighted log loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from osteograde.tasks.spec import Study


def weighted_prior(
    studies: Iterable[Study], targets: Sequence[str], weights: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """{target: class probabilities}: p_k proportional to (n_k + 1) * w_k, n_k counted over labelled studies.

    Without the + 1 this is the constant with the lowest weighted log loss; with it no class is ever impossible.
    """
    counts = {target: np.ones(len(weights)) for target in targets}
    for study in studies:
        for target, label in study.labels.items():
            if target in counts:
                counts[target][label] += 1
    return {target: normalised(count * np.asarray(weights)) for target, count in counts.items()}


def normalised(masses: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Masses as probabilities."""
    return tuple(float(mass) for mass in masses / np.sum(masses))


def as_rows(prior: Mapping[str, Sequence[float]], targets: Sequence[str]) -> np.ndarray:
    """(targets, classes) of a prior, in the order of ``targets``."""
    return np.array([prior[target] for target in targets], dtype=float)

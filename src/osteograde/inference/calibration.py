"""Probabilities made honest by one temperature and one bias per class, fitted on out-of-fold answers.

Vector scaling of Guo et al. (ICML 2017) with a shared temperature: softmax(log p / T + b). Nets taught with softened
targets say softened probabilities; this takes the softening back, and the class frequencies right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

SMALLEST = 1e-6  # probability
STIFFNESS = 1e-3  # of the penalty on the squared bias: keeps classes that hardly occur where they are


@dataclass(frozen=True)
class Calibration:
    temperature: float
    bias: tuple[float, ...]

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """(..., K) probabilities -> (..., K), rows sum to 1."""
        scores = np.log(np.maximum(probs, SMALLEST)) / self.temperature + np.asarray(self.bias)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return scores / scores.sum(-1, keepdims=True)

    def plain(self) -> dict[str, Any]:
        return {"temperature": round(self.temperature, 5), "bias": [round(value, 5) for value in self.bias]}


def read(plain: Mapping[str, Any]) -> Calibration:
    return Calibration(float(plain["temperature"]), tuple(float(value) for value in plain["bias"]))


def fit(probs: np.ndarray, labels: np.ndarray, weights: Sequence[float]) -> Calibration:
    """The calibration with the lowest class-weighted log loss: probs (n, K), labels (n,), weights (K,)."""
    logs, own = np.log(np.maximum(probs, SMALLEST)), np.asarray(weights, float)[labels]
    rows, classes = np.arange(len(labels)), probs.shape[1]

    def loss(parameters: np.ndarray) -> float:
        scores = logs * np.exp(-parameters[0]) + parameters[1:]
        top = scores.max(1, keepdims=True)
        logp = scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True))
        return float(-(own * logp[rows, labels]).sum() / own.sum() + STIFFNESS * (parameters[1:] ** 2).sum())

    best = minimize(loss, np.zeros(classes + 1), method="L-BFGS-B", bounds=[(-2, 2)] * (classes + 1)).x
    bias = best[1:] - best[1:].mean()
    return Calibration(float(np.exp(best[0])), tuple(float(value) for value in bias))

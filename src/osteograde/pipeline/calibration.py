"""Calibration of graders: a small map of log probabilities, fitted on out-of-fold predictions.

Matrix scaling of Guo et al. (ICML 2017), softmax(M log p + b), regularised towards one shared temperature. Nets that
learnt from softened targets give softened probabilities; the map undoes that, restores the class frequencies, and
corrects for neighbouring classes that a net confuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.tasks.spec import Grader, Study, Task

SMALLEST = 1e-6  # probability
BIAS_PENALTY = 1e-3  # on the squared bias: keeps classes that hardly occur where they are
MIXING_PENALTY = 1e-2  # on the squared distance of the map from a temperature alone


@dataclass(frozen=True)
class Calibration:
    """probabilities = softmax(mix @ centred log p + bias), with mix (K, K) and bias (K,)."""

    mix: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """(..., K) probabilities -> (..., K), rows sum to 1."""
        scores = _centred(probs) @ np.asarray(self.mix).T + np.asarray(self.bias)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return scores / scores.sum(-1, keepdims=True)

    def plain(self) -> dict[str, Any]:
        mix = [[round(value, 5) for value in row] for row in self.mix]
        return {"mix": mix, "bias": [round(value, 5) for value in self.bias]}


def calibration_from_manifest(plain: Mapping[str, Any]) -> Calibration:
    """From a manifest. Older ones hold a temperature in place of the map. UserError where it is neither."""
    try:
        bias = tuple(float(value) for value in plain["bias"])
        mix = np.eye(len(bias)) / float(plain["temperature"]) if "temperature" in plain else np.asarray(plain["mix"])
        rows = tuple(tuple(float(value) for value in row) for row in mix)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"calibration {str(dict(plain))[:80]}: expected mix (K, K) and bias (K,); {error}") from error
    return Calibration(rows, bias)


def fit_calibration(probs: np.ndarray, labels: np.ndarray, weights: Sequence[float] | np.ndarray) -> Calibration:
    """The calibration with the lowest penalised log loss of probs (n, K) against labels (n,), rows weighted by the
    weight of their class, weights (K,)."""
    from scipy.optimize import minimize  # grading needs none of it, and every start would wait for it

    logs, row_weight = _centred(probs), np.asarray(weights, float)[labels]
    row_weight = row_weight / row_weight.sum()
    k = probs.shape[1]
    truth = np.eye(k)[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; parameters: log of 1 / temperature, bias (K), distance of the map from it (K * K)."""
        sharp, bias, apart = np.exp(parameters[0]), parameters[1 : k + 1], parameters[k + 1 :].reshape(k, k)
        scores = logs @ (sharp * np.eye(k) + apart).T + bias
        scores = scores - scores.max(1, keepdims=True)
        logp = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        value = (
            -(row_weight * (truth * logp).sum(1)).sum()
            + BIAS_PENALTY * (bias**2).sum()
            + MIXING_PENALTY * (apart**2).sum()
        )
        error = row_weight[:, None] * (np.exp(logp) - truth)
        by_map = error.T @ logs
        slope = [
            [sharp * np.trace(by_map)],
            error.sum(0) + 2 * BIAS_PENALTY * bias,
            (by_map + 2 * MIXING_PENALTY * apart).ravel(),
        ]
        return float(value), np.concatenate(slope)

    bounds = [(-2.0, 2.0)] * (k + 1) + [(None, None)] * (k * k)
    best = minimize(loss, np.zeros(1 + k + k * k), jac=True, method="L-BFGS-B", bounds=bounds).x
    mix = np.exp(best[0]) * np.eye(k) + best[k + 1 :].reshape(k, k)
    bias = best[1 : k + 1] - best[1 : k + 1].mean()
    return Calibration(tuple(tuple(map(float, row)) for row in mix), tuple(map(float, bias)))


def _centred(probs: np.ndarray) -> np.ndarray:
    """Log probabilities minus their mean over the classes: a factor common to all classes has no meaning."""
    logs = np.log(np.maximum(probs, SMALLEST))
    return logs - logs.mean(-1, keepdims=True)


Graded = Mapping[str, Mapping[str, np.ndarray]]


def cross_fitted(
    task: Task, studies: Sequence[Study], fold_of: Mapping[str, int], graded: Graded
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Calibration]]:
    """(calibrated predictions, {grader: calibration}). The calibrations, which ship, are fitted on all out-of-fold
    predictions; each prediction itself is calibrated by a fit on the other folds, so that its own label has no part in
    it. Graders of fewer than two folds, or without labels, stay as they are.

    graded: study -> target -> (K + F,), of which the K classes are calibrated.
    """
    calibrated = {study: dict(targets) for study, targets in graded.items()}
    shipped: dict[str, Calibration] = {}
    for grader in task.graders:
        probs, labels, folds = _labelled(task, grader, studies, fold_of, graded)
        if len(set(folds)) < 2:
            continue
        shipped[grader.name] = fit_calibration(probs, labels, task.class_weights)
        for k in sorted(set(folds)):
            other = fit_calibration(probs[folds != k], labels[folds != k], task.class_weights)
            for study, target in ((s.id, site.target) for s in studies for site in grader.sites):
                if fold_of[study] == k and target in calibrated.get(study, {}):
                    outputs = calibrated[study][target].copy()
                    outputs[: len(task.classes)] = other(outputs[: len(task.classes)])
                    calibrated[study][target] = outputs
    return calibrated, shipped


def _labelled(task: Task, grader: Grader, studies: Sequence[Study], fold_of: Mapping[str, int], graded: Graded):
    """(probs (n, K), labels (n,), folds (n,)) of the predictions of one grader that have a label."""
    rows = [
        (fold_of[study.id], graded[study.id][site.target][: len(task.classes)], study.labels[site.target])
        for study in studies
        for site in grader.sites
        if site.target in study.labels and site.target in graded.get(study.id, {})
    ]
    folds, labels = (np.array([row[i] for row in rows], dtype=int) for i in (0, 2))
    return np.array([row[1] for row in rows]).reshape(len(rows), len(task.classes)), labels, folds

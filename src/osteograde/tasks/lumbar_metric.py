"""The official score of `lumbar-mr`: the mean of four weighted log losses, lower is better.

Spinal, foraminal and subarticular cells are pooled over levels, sides and studies; cell weights are 1 / 2 / 4 by true
class. The fourth part asks per study whether any level of the canal is severe: the prediction is the largest severe
probability, the weight that of the worst level. Unlabelled cells are left out. Probabilities are clipped to
[eps, 1 - eps] of float64 and rows must sum to 1, so the result does not depend on the version of anybody's log_loss.

Every part is a ratio of sums over studies, so one table of sums (``study_sums``) serves the score and its resampling.
Letters: S studies, T targets (of the template, in its order), K classes, P parts, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.tasks.lumbar_names import CONDITIONS, SHORT, SPINAL, TARGET_OF, TEMPLATE_TARGETS, WEIGHTS
from osteograde.tasks.spec import Labels, Probabilities

PARTS = (*(SHORT[condition] for condition in CONDITIONS), "any_severe_spinal", "score")
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float32).tiny)

_COLUMNS = {
    condition: np.array([TARGET_OF[name].condition == condition for name in TEMPLATE_TARGETS])
    for condition in CONDITIONS
}
_CLASS_WEIGHTS = np.array(WEIGHTS)
_SEVERE = len(WEIGHTS) - 1


@dataclass(frozen=True)
class LumbarMetric:
    """The four parts and their mean, "score"; less is better of each. See ``spec.Metric``."""

    @property
    def parts(self) -> tuple[str, ...]:
        return PARTS

    @property
    def higher_is_better(self) -> frozenset[str]:
        return frozenset()

    @property
    def words(self) -> dict[str, str]:
        """What people call each part."""
        conditions = {short: f"weighted log loss, {short}" for short in SHORT.values()}
        return {
            **conditions,
            "any_severe_spinal": "weighted log loss, any severe spinal canal stenosis",
            "score": "weighted log loss, mean of the four parts",
        }

    def score(self, labels: Labels, probs: Probabilities) -> dict[str, float]:
        """{part: value}. labels: {study: {target: class}}. probs: {study: (T, K)} in the template's order; studies
        without labels are ignored.

        A part without any labelled cell is NaN, and so is the mean. ValueError where a labelled study has no
        probabilities, or these are not finite, negative, or do not sum to 1.
        """
        values = self.bootstrap_statistic(labels, probs)(np.ones((1, len(labels))))[0]
        return dict(zip(PARTS, map(float, values), strict=True))

    def bootstrap_statistic(self, labels: Labels, probs: Probabilities) -> Callable[[np.ndarray], np.ndarray]:
        """The score as a function of how often each study of ``labels`` counts: (B, S) -> (B, P + 1), the mean last."""
        numerators, denominators = study_sums(*tables(labels, probs))

        def values(counts: np.ndarray) -> np.ndarray:
            below = counts @ denominators
            parts = np.divide(counts @ numerators, below, out=np.full(below.shape, np.nan), where=below > 0)
            return np.column_stack([parts, parts.mean(1)])

        return values

    def confusion(self, labels: Labels, probs: Probabilities) -> None:
        """No table is shown: the score weighs classes and never looks at the most probable one."""
        return None


def tables(labels: Labels, probs: Probabilities) -> tuple[np.ndarray, np.ndarray]:
    """Labels (S, T) with -1 where unlabelled, and probabilities (S, T, K) of the same studies. See ``score``."""
    if lost := sorted(set(labels) - set(probs)):
        raise UserError(f"{len(lost)} labelled studies have no probabilities: {lost[:5]}")
    classes = [[given.get(target, -1) for target in TEMPLATE_TARGETS] for given in labels.values()]
    shape = (len(TEMPLATE_TARGETS), len(WEIGHTS))
    rows = np.zeros((len(labels), *shape))
    for i, study in enumerate(labels):
        if np.shape(probs[study]) != shape:
            raise ValueError(f"study {study}: probabilities are {np.shape(probs[study])}, expected {shape}")
        rows[i] = probs[study]
    wrong = ~np.isfinite(rows).all(-1) | (rows < 0).any(-1) | ~(np.abs(rows.sum(-1) - 1) <= SUM_TOLERANCE)
    if wrong.any():
        bad = [
            f"{study}_{TEMPLATE_TARGETS[t]}"
            for study, row in zip(labels, wrong, strict=True)
            for t in np.flatnonzero(row)
        ]
        raise UserError(f"{len(bad)} rows are not finite, negative or do not sum to 1: {bad[:5]}")
    return np.array(classes, int).reshape(len(labels), len(TEMPLATE_TARGETS)), rows


def study_sums(labels: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per study and part the sums of weight * loss and of weight, (S, P) each. labels (S, T), probs (S, T, K)."""
    loss, weight = weighted_log_losses(probs, labels, _CLASS_WEIGHTS)
    sums = [((loss[:, columns]).sum(1), weight[:, columns].sum(1)) for columns in _COLUMNS.values()]
    spinal = _COLUMNS[SPINAL]
    sums.append(any_severe_losses(probs[:, spinal, _SEVERE], labels[:, spinal], weight[:, spinal]))
    above, below = zip(*sums, strict=True)
    return np.stack(above, 1), np.stack(below, 1)


def weighted_log_losses(probs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight * -log p of the true class, and weight; both shaped like labels (...), zero where labels are -1."""
    given = labels >= 0
    true = np.where(given, labels, 0)
    weight = np.where(given, weights[true], 0.0)
    p = np.take_along_axis(probs, true[..., None], -1)[..., 0]
    return weight * -np.log(np.clip(p, EPS, 1 - EPS)), weight


def any_severe_losses(severe: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight * loss and weight (S,) of "is any labelled level severe". severe: (S, levels) probabilities."""
    given = labels >= 0
    p = np.clip(np.where(given, severe, 0.0).max(1, initial=0.0), EPS, 1 - EPS)
    true = (labels == _SEVERE).any(1)
    worst = weight.max(1, initial=0.0)  # weights rise with severity; 0 where no level is labelled
    return worst * -np.log(np.where(true, p, 1 - p)), worst


def any_severe_loss(logits: Any, labels: Any, weights: Any) -> Any:
    """The fourth part of the score as a term of the loss, on tensors: binary log loss of "any site of this study is
    severe".

    logits (N, S, K) of N studies with S sites, labels (N, S) with -1 = unlabelled, weights (K,) of the classes. Per
    study over its labelled sites: truth = any severe; prediction = the largest severe probability; weight = the largest
    class weight. Mean over studies by weight; studies without labels and sites without labels are left out; 0, with a
    gradient of 0, if nothing is labelled. Methods of tensors only: naming the tasks must not import torch.
    """
    logp = logits.float().log_softmax(-1)
    known = labels >= 0
    yes, site = logp[..., _SEVERE].masked_fill(~known, -np.inf).max(-1)
    yes = yes.where(known.any(-1), yes.new_zeros(()))
    # log(1 - p) from the other classes: exact where p is close to 1
    no = logp[..., :_SEVERE].logsumexp(-1).gather(-1, site[:, None])[:, 0]
    truth = ((labels == _SEVERE) & known).any(-1)
    weight = (weights.to(logp)[labels.clamp_min(0).long()] * known).amax(-1)
    return -(weight * yes.where(truth, no)).sum() / weight.sum().clamp_min(TINY)

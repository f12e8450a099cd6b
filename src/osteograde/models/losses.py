"""Losses of the graders, equal to the terms of the official score on the same numbers.

Source: the competition's metric (weights 1/2/4 by the true class; per condition sum(w * -log p) / sum(w) over all
rows; the any-severe term per study). Empty labels (-1) are left out everywhere.

Shape legend: N studies or crops, S sites of one study, K classes, the last one = severe.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from osteograde.errors import UserError

UNLABELLED = -1


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """sum(w * -log p) / sum(w) over labelled rows, w = weights[label].

    logits (..., K) unnormalised (log-probabilities will do), labels (...) with -1 = unlabelled, weights (K,) or None
    for an unweighted mean. Smoothing spreads that share of the target evenly over the classes; the row's weight stays
    that of its label. 0, with a gradient of 0, if nothing is labelled.
    """
    logp = F.log_softmax(logits.float(), -1)
    known = labels != UNLABELLED
    true = labels.clamp_min(0).long()
    weight = logp.new_ones(labels.shape) if weights is None else weights.to(logp)[true]
    weight = weight * known
    loss = -logp.gather(-1, true[..., None])[..., 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * logp.mean(-1)
    return (weight * loss).sum() / weight.sum().clamp_min(torch.finfo(logp.dtype).tiny)


def any_severe_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary log loss of "any site of this study is severe".

    logits (N, S, K), labels (N, S). Per study over its labelled sites: truth = any severe; prediction = the largest
    severe probability; weight = the largest class weight. Mean over studies by weight; studies without labels and
    sites without labels are left out.
    """
    logp = F.log_softmax(logits.float(), -1)
    known = labels != UNLABELLED
    severe = logp.shape[-1] - 1
    yes, site = logp[..., severe].masked_fill(~known, -torch.inf).max(-1)
    yes = torch.where(known.any(-1), yes, torch.zeros_like(yes))
    # log(1 - p) from the other classes: exact where p is close to 1
    no = torch.logsumexp(logp[..., :severe], -1).gather(-1, site[:, None])[:, 0]
    truth = ((labels == severe) & known).any(-1)
    each = logp.new_ones(labels.shape) if weights is None else weights.to(logp)[labels.clamp_min(0).long()]
    weight = (each * known).amax(-1)
    loss = -torch.where(truth, yes, no)
    return (weight * loss).sum() / weight.sum().clamp_min(torch.finfo(logp.dtype).tiny)


def metric_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    any_severe: bool = True,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """What the sites of one condition add to the score (times the number of terms): cross entropy, plus any-severe.

    logits (N, S, K), labels (N, S), -1 = unlabelled.
    """
    loss = weighted_cross_entropy(logits, labels, weights, label_smoothing=label_smoothing)
    return loss + any_severe_loss(logits, labels, weights) if any_severe else loss


def targets_of(labels: torch.Tensor, classes: int, kind: str, smoothing: float = 0.0) -> torch.Tensor:
    """(...) labels -> (..., K) probabilities to aim at; a row of an unlabelled one is 0.

    kind "classes": the label; "ordinal": falling off with the squared distance between grades, as softmax of
    -2 (k - label)^2 (Diaz and Marathe, CVPR 2019). Smoothing spreads its share evenly. ValueError for another kind.
    """
    if kind not in ("classes", "ordinal"):
        raise UserError(f"loss {kind!r} is unknown; known: 'classes', 'ordinal'")
    grades = torch.arange(classes, device=labels.device)
    away = (grades - labels[..., None]).float() ** 2
    aim = torch.softmax(-2.0 * away, -1) if kind == "ordinal" else (away == 0).float()
    aim = (1 - smoothing) * aim + smoothing / classes
    return aim * (labels != UNLABELLED)[..., None]


def target_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross entropy against probabilities: logits and targets (..., K), weight (...). Rows whose target
    is 0 do not count; 0, with a gradient of 0, if none does."""
    known = targets.sum(-1) > 0
    each = -(targets * F.log_softmax(logits.float(), -1)).sum(-1)
    weight = weight * known
    return (weight * each).sum() / weight.sum().clamp_min(torch.finfo(each.dtype).tiny)


def finding_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean binary log loss of yes/no findings: logits and labels of one shape, labels 1, 0 or -1 = unlabelled."""
    known = labels != UNLABELLED
    each = F.binary_cross_entropy_with_logits(logits.float(), labels.clamp_min(0).float(), reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)

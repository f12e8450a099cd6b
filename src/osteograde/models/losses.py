"""Losses of the graders. Unlabelled entries (-1) are left out everywhere. Shape legend: K classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from osteograde.errors import UserError

UNLABELLED = -1


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


def binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over labelled entries, weighted where a weight is given; logits, labels and weight of one shape, labels 1, 0
    or -1 = unlabelled. 0, with a gradient of 0, if nothing is labelled."""
    known = (labels != UNLABELLED) * (1 if weight is None else weight)
    each = F.binary_cross_entropy_with_logits(logits.float(), labels.clamp_min(0).float(), reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1 if weight is None else torch.finfo(each.dtype).tiny)

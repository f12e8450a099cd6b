"""Fit the last layer of a grader and leave all else as it starts (``Training.optimiser`` "lbfgs").

The net is then a regression on the features before its last layer. They are computed once, because going through the
images again in every epoch would compute the same features anew: each of the ``epochs`` is one view of every sample,
the first as it is, all others augmented. L-BFGS (Liu and Nocedal 1989) then goes through the features alone. The loss
is the plan's own; ``weight_decay`` times the squared weights of standardised features is added to it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from osteograde.learning.loop import Data, Diverged, Job, Loss, evaluate
from osteograde.learning.recipe import Plan
from osteograde.models.bundle import on_device

ROUNDS = 200  # of L-BFGS at most; it ends where nothing changes
_FLATTEST = 1e-6  # a feature that varies less is constant

log = logging.getLogger("osteograde.learning")


@dataclass(frozen=True, eq=False)
class Seen:
    """What is kept of a batch: features (S, F) that the last layers read, side by side, and the batch without its
    images."""

    features: torch.Tensor
    batch: Any


class _LastLayer(nn.Module):
    """Stands for the whole net where the features are known: whatever it is called with, it answers of them."""

    def __init__(self, head: nn.Module, features: torch.Tensor) -> None:
        super().__init__()
        self.head, self.features = head, features

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.head(self.features)


def fit_head(
    build_net: Callable[[], nn.Module], plan: Plan, data: Data, held_out: Data | None, loss: Loss, job: Job
) -> nn.Module:
    """The net of a plan with its last layer ``head`` fitted to data, in evaluation mode; all else is as it starts.

    Raises Diverged where the loss is not a finite number.
    """
    begun = time.perf_counter()
    torch.manual_seed(int(job.rng().integers(2**62)))
    net: Any = on_device(build_net(), job.device).eval().requires_grad_(False)
    seen: list[Seen] = []
    for epoch in range(plan.training.epochs):
        seen += _view(net, plan, data, loss, job, epoch)
        log.info("%s: features of view %d of %d, %.0f s", job.title, epoch + 1, plan.training.epochs,
                 time.perf_counter() - begun)  # fmt: skip
    value = minimise(last_layers(net), seen, loss, plan.training.weight_decay)
    if not math.isfinite(value):
        raise Diverged(f"{job.title}: the loss is {value}; raise weight_decay in the recipe, then start again")
    said = f", held-out loss {evaluate(net, held_out, plan, loss, job):.4f}" if held_out is not None else ""
    log.info(f"{job.title}: loss {value:.4f}{said}, {time.perf_counter() - begun:.0f} s")
    return net.eval()


def last_layers(net: Any) -> list[nn.Linear]:
    """The linear layers whose sum is the answer of a net: that of its crops and, where it reads any, of covariates."""
    covariates = getattr(net, "covariate_head", None)
    return [net.head] if covariates is None else [net.head, covariates]


@torch.no_grad()
def _view(net: Any, plan: Plan, data: Data, loss: Loss, job: Job, epoch: int) -> list[Seen]:
    """One view of every sample: as it is in the first epoch, augmented in all others."""
    part, size, found = data.in_epoch(epoch), plan.training.batch, []
    caught: dict[nn.Module, torch.Tensor] = {}
    layers = last_layers(net)
    hooks = [layer.register_forward_pre_hook(lambda one, given: caught.update({one: given[0]})) for layer in layers]
    order = part.order(job.rng(epoch), len(part))
    if plan.training.steps:
        order = order[: plan.training.steps * size]
    try:
        for step in range(0, len(order), size):
            batch = part.batch(order[step : step + size], job.rng(epoch, step), job.device, augment=epoch > 0)
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.training.bfloat16 and job.device.type == "cpu"):
                loss(net, batch)
            features = torch.cat([caught[layer].float() for layer in layers], 1)
            found.append(Seen(features, replace(batch, crops=())))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def minimise(layers: Sequence[nn.Linear], seen: Sequence[Seen], loss: Loss, weight_decay: float) -> float:
    """Fit linear layers whose sum is the answer, in place, to the mean loss over batches; returns that loss without the
    penalty. The first has the bias. Features are standardised for the fit, so that one penalty suits all, and the
    layers take that back at its end.
    """
    features = torch.cat([one.features for one in seen])
    mean, deviation = features.mean(0), features.std(0)
    deviation = torch.where(deviation > _FLATTEST, deviation, torch.inf)  # a constant feature has no weight
    fitted = nn.Linear(features.shape[1], layers[0].out_features).to(features.device)
    nn.init.zeros_(fitted.weight)
    nn.init.zeros_(fitted.bias)
    parts = [_LastLayer(fitted, (one.features - mean) / deviation) for one in seen]
    shares = [len(one.features) / len(features) for one in seen]
    optimiser = torch.optim.LBFGS(fitted.parameters(), max_iter=ROUNDS, history_size=20, line_search_fn="strong_wolfe")
    last = [math.nan]

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        losses = [share * loss(part, one.batch) for share, part, one in zip(shares, parts, seen, strict=True)]
        value = torch.stack(losses).sum()
        last[0] = float(value.detach())
        value = value + weight_decay * fitted.weight.square().sum()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        weight = fitted.weight / deviation
        layers[0].bias.copy_(fitted.bias - (weight * mean).sum(1))
        parts_of = weight.split([layer.in_features for layer in layers], 1)
        for layer, own in zip(layers, parts_of, strict=True):
            layer.weight.copy_(own)
    return last[0]

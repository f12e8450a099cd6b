"""Means of a net's weights over its training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and buffers; starts fast so that early steps do not linger."""
    decay = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    for slow, fast in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


@torch.no_grad()
def join(mean: dict[str, torch.Tensor], net: nn.Module, ends: Sequence[int], epoch: int) -> None:
    """Where a cycle of the learning rate ends, take its net into the mean of those before (Izmailov et al. 2018); after
    the last one the net is that mean. Statistics of batch norms are averaged as weights are.

    ends: the epochs after which cycles end, in order.
    """
    if epoch not in ends:
        return
    for value, own in zip(mean.values(), net.state_dict().values(), strict=True):
        if value.is_floating_point():
            value.lerp_(own, 1 / (1 + ends.index(epoch)))
        else:
            value.copy_(own)
    if epoch == ends[-1]:
        net.load_state_dict(mean)

"""The optimiser of a plan: which parameters are decayed, and how fast each layer of the trunk learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.learning.recipe import Plan

MOMENTUM = 0.99  # of the optimiser "sgd", with Nesterov's step, as nnU-Net has it
SHARE = "share"  # of a group of parameters: its rate as a share of the plan's
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def optimiser_of(net: nn.Module, plan: Plan, *, decay: bool = True) -> torch.optim.Optimizer:
    """A new optimiser of all parameters. decay: False for the epochs of the head alone, in which nothing is decayed.

    UserError for an unknown optimiser, and for a layer decay of a net without a trunk.
    """
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": partial(torch.optim.SGD, momentum=MOMENTUM, nesterov=True),
    }
    training = plan.training
    if training.optimiser not in kinds:
        raise UserError(f"optimiser {training.optimiser!r} is unknown; known: {sorted(kinds)}")
    groups = []
    for share, parameters in shares(net, training.layer_decay):
        weights = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]  # norms and biases are not decayed
        groups += [
            {"params": weights, "weight_decay": training.weight_decay if decay else 0.0, SHARE: share},
            {"params": others, "weight_decay": 0.0, SHARE: share},
        ]
    return kinds[training.optimiser](groups, lr=training.lr)


def set_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Let every group learn at its share of a rate."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get(SHARE, 1.0)  # a checkpoint of an earlier version has no shares


def shares(net: nn.Module, layer_decay: float) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """(share of the learning rate, parameters) of all parts of a net, the head first, which learns at the whole rate.

    The last layer of the trunk learns at ``layer_decay`` of it, and every layer before at that share of the next one's
    (Howard and Ruder, ACL 2018). With 1 all parameters are one part. UserError for a net without a trunk (``encoder``).
    """
    if layer_decay == 1:
        yield 1.0, list(net.parameters())
        return
    trunk = getattr(net, "encoder", None)
    if trunk is None:
        raise UserError(f"layer_decay {layer_decay:g}: a {type(net).__name__} has no trunk of layers; set it to 1")
    parts = layers_of(trunk)
    inside = {id(parameter) for parameter in trunk.parameters()}
    yield 1.0, [parameter for parameter in net.parameters() if id(parameter) not in inside]
    for i, layer in enumerate(reversed(parts)):
        yield layer_decay ** (i + 1), layer


def layers_of(trunk: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a trunk by layer, from the image on, each in exactly one layer.

    A layer is what is no mere sequence of others: a convolution, or a block. A norm of its own belongs to the layer
    before it, and what belongs to the trunk itself, such as a position embedding, to the first one.
    """
    layers: list[list[nn.Parameter]] = []
    seen: set[int] = set()
    for module in _blocks(trunk):
        found = [p for p in module.parameters() if id(p) not in seen]
        seen |= {id(p) for p in found}
        if found and layers and all(p.ndim <= 1 for p in found):
            layers[-1] += found
        elif found:
            layers.append(found)
    rest = [p for p in trunk.parameters() if id(p) not in seen]
    return [rest + layers[0], *layers[1:]] if layers else [rest]


def _blocks(module: Any) -> Iterator[nn.Module]:
    """The modules that a sequence consists of, in order; sequences of sequences are taken apart, and what is wrapped is
    looked for inside."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    is_wrapper = len(children) == 1 and not isinstance(module, nn.Sequential)  # a sequence of one is a sequence
    for child in children:
        if isinstance(child, CONTAINERS) or (is_wrapper and _only_wraps(child)):
            yield from _blocks(child)
        else:
            yield child


def _only_wraps(module: nn.Module) -> bool:
    """Whether a module has modules, and no parameters beside theirs."""
    return next(module.children(), None) is not None and not list(module.parameters(recurse=False))

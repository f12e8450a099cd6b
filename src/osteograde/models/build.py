"""Nets from plain data: what a net's ``config`` says is enough to build it again, without any download."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from osteograde.models.grader import Grader
from osteograde.models.locators.faster_rcnn import FasterRcnnLocator
from osteograde.models.locators.heatmap import HeatmapLocator
from osteograde.models.locators.unet import UnetLocator

KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "heatmap": HeatmapLocator,
    "faster_rcnn": FasterRcnnLocator,
    "unet": UnetLocator,
    "grader": Grader,
}


def build(config: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """The net of a config such as ``net.config``: {"kind": one of KINDS, ...the arguments of its class}.

    pretrained: start the trunk from ImageNet weights (a download; training only, never part of a config).
    Raises ValueError for an unknown kind or an argument that the kind does not have.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"net of kind {kind!r}; expected one of {sorted(KINDS)}")
    taken = set(inspect.signature(KINDS[kind]).parameters) - {"pretrained"}
    if odd := set(arguments) - taken:
        raise ValueError(f"a {kind!r} net has no argument {sorted(odd)}; it takes {sorted(taken)}")
    return KINDS[kind](**arguments, pretrained=pretrained)

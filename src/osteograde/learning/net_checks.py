"""Whether the nets of a recipe can be built and read images of their pixels, before any data are read.

Every net is built on torch's meta device, where tensors have shapes and no values, so this takes a tenth of a second a
net and no memory. What a library refuses to do there is built on the processor. No weights are loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.learning import plan_checks
from osteograde.learning.recipe import Plan, Recipe
from osteograde.models.bundle import build_net
from osteograde.tasks.spec import sides

# Libraries of nets answer a wrong value with any of these.
LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
NAMES_SHOWN = 12  # of the parts of a trunk
IMAGES = 2  # shown to a net at once
MOST_PARAMETERS = 2_000_000_000


def check(recipe: Recipe) -> None:
    """UserError where a net of the recipe cannot be built, cannot read images of its pixels, or has no part of the name
    that its plan freezes; also where a net of random weights would never be trained. The text says whose net it is."""
    known: set[str] = set()
    for (kind, stage), plans in recipe.plans().items():
        for member, plan in enumerate(plans):
            if (seen := repr((plan.net, plan.pixels, plan.start, plan.training.epochs))) in known:
                continue
            known.add(seen)
            words = "locator" if kind == "locate" else "grader"
            where = f"recipe {recipe.name!r}: {words} {stage!r}" + (f", member {member}" if len(plans) > 1 else "")
            if not (plan.training.epochs or plan_checks.is_given(plan.start)):
                raise UserError(f"{where}: training.epochs 0 would keep random weights; expected 1 or more")
            _check_plan(plan, where)


def _check_plan(plan: Plan, where: str) -> None:
    net = _built(plan, where)
    if (count := sum(parameter.numel() for parameter in net.parameters())) > MOST_PARAMETERS:
        raise UserError(f"{where}: its net has {count} parameters; expected at most {MOST_PARAMETERS}; make it smaller")
    trunk = getattr(net, "encoder", None)
    parts = [name for name, _ in trunk.named_modules()] if trunk is not None else []
    for name in plan.start.frozen:
        if trunk is not None and name not in parts:
            near = difflib.get_close_matches(name, parts, 3)
            shown = ", ".join(near or [name for name, _ in trunk.named_children()][:NAMES_SHOWN])
            raise UserError(f"{where}: start.frozen: the trunk has no part {name!r}; nearest: {shown}")
    if reads := _reader(net, plan):
        _check_pixels(net, plan, reads, where)


def _built(plan: Plan, where: str) -> nn.Module:
    """The net of a plan without weights."""
    try:
        with torch.device("meta"):
            return build_net(dict(plan.net)).eval()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except LIBRARY_ERRORS:  # maybe only on this device
        pass
    try:
        return build_net(dict(plan.net)).eval()
    except LIBRARY_ERRORS as error:
        chosen = ", ".join(f"{name}={value}" for name, value in plan.net.items() if isinstance(value, int | str))
        raise UserError(f"{where}: no net can be built of {chosen} ({_in_short(error)}); change net") from error


def _reader(net: Any, plan: Plan) -> Callable[[torch.Tensor], Any] | None:
    """What reads images (N, channels, H, W) in a net; None of detectors, which scale every image, and of nets whose
    size follows from the data."""
    kind = plan.net.get("kind")
    if kind in ("faster_rcnn", "planned_unet"):
        return None
    return net.segment if kind == "unet" else net if kind == "heatmap" else net.encoder


def _check_pixels(net: nn.Module, plan: Plan, reads: Callable[[torch.Tensor], Any], where: str) -> None:
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return
    images = torch.zeros(IMAGES, first.in_channels, *sides(plan.pixels), device=first.weight.device)
    try:
        with torch.no_grad():
            reads(images)
    except NotImplementedError:  # so torch says that the meta device, which holds no values, cannot do this step
        return
    except (UserError, *LIBRARY_ERRORS) as error:
        raise UserError(f"{where}: its net cannot read images of pixels {plan.pixels} ({_in_short(error)})") from error


def _in_short(error: Exception) -> str:
    """The first sentence of an error, as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."

"""The starting weights of a net: random ones, a download of timm or torchvision, or a file.

Only training uses this; a finished net is rebuilt from its config alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.learning.loop import Data, Job, Loss
from osteograde.learning.recipe import IMAGENET, AnyPlan, Plan, Recipe, Start
from osteograde.learning.recipes.starting_weights import EXTRA_VARIANCE
from osteograde.models.bundle import build_net

FOLDER = "OSTEOGRADE_PRETRAINED"  # environment variable: the folder that holds files of starting weights
DEFAULT_FOLDER = Path("..") / "shared" / "weights"
INPUT_SCALE = 0.5  # the files expect -1..1, deviation about a half; our crops come with deviation 1
BATCHES = 8  # through which the statistics of normalisation are measured

log = logging.getLogger("osteograde.learning")


def net_of(plan: Plan, data: Data, loss: Loss, job: Job) -> nn.Module:
    """The net of a plan with its starting weights. UserError where the plan names a file that is not there.

    Where the batch norms of the file were folded into its convolutions, the statistics of the net's own batch norms are
    measured on ``data``; ``loss`` is then called to run the net.
    """
    weights = plan.start.weights
    if weights in ("", IMAGENET):
        return build_net(plan.net, pretrained=weights == IMAGENET)
    net = build_net(plan.net)
    tensors = read_tensors(weights)
    trunk: Any = net.encoder
    fill_trunk(trunk, tensors, extra_variance=EXTRA_VARIANCE.get(weights, 0.0))
    if is_folded(tensors):
        measure_batch_norms(net, trunk, data, plan, loss, job)
    return net


def path_of(name: str) -> Path:
    """Where a file of starting weights is looked for."""
    return Path(os.environ.get(FOLDER, DEFAULT_FOLDER)) / name


def without_missing_weights(recipe: Recipe) -> Recipe:
    """The recipe with random starting weights where a file of starting weights is not there; logs which ones."""

    def available(stage: str, plan: AnyPlan) -> AnyPlan:
        weights = plan.start.weights
        if weights in ("", IMAGENET) or path_of(weights).is_file():
            return plan
        log.info(
            f"{stage}: {path_of(weights)} is not there; training starts from random weights "
            f"(set {FOLDER} to the folder that holds the file)"
        )
        return replace(plan, start=Start(shared_epochs=plan.start.shared_epochs))  # nothing random is worth freezing

    return recipe.map_plans(available)


def check_weights(recipe: Recipe) -> None:
    """UserError where a file of starting weights that the recipe names is not there, before any other work."""
    for plans in recipe.plans().values():
        for plan in plans:
            if plan.start.weights not in ("", IMAGENET):
                _existing(plan.start.weights)


def _existing(name: str) -> Path:
    path = path_of(name)
    if not path.is_file():
        raise UserError(
            f"{path}: no such starting weights; set {FOLDER} to the folder that holds them, or take a recipe with "
            "other ones (Start(weights='imagenet') downloads, Start() starts from random weights)"
        )
    return path


def read_tensors(name: str) -> dict[str, torch.Tensor]:
    """The tensors of an .npz of starting weights in the folder OSTEOGRADE_PRETRAINED. UserError if it is not there."""
    with np.load(_existing(name), allow_pickle=False) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def fill_trunk(trunk: nn.Module, tensors: Mapping[str, torch.Tensor], *, extra_variance: float = 0.0) -> None:
    """Copy starting weights into a trunk that reads grey images. UserError where any of its tensors gets none.

    Tensors are matched by name, or by their order, which is that of the layers, where a library names them otherwise.
    Graders (one channel, deviation 1) take half the sum of the colours' filters. Locators (three neighbouring slices
    and the lateral coordinate, all 0..1) share that sum between the slices; the shift from 0..1 to -1..1 goes into the
    first batch norm. extra_variance: added to the variances of the file's batch norms, because they were trained with
    a larger eps than the trunk's.
    """
    own = {key: value for key, value in trunk.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    if not set(own) <= set(given):
        given = dict(zip(own, given.values(), strict=False))
    first = next(key for key, value in own.items() if value.ndim == 4)
    if first in given and given[first].shape[1] == 3 and own[first].shape[1] != 3:
        grey = given[first].sum(1, keepdim=True)
        if own[first].shape[1] == 1:
            given[first] = grey * INPUT_SCALE
        else:
            given[first] = torch.cat([grey.repeat(1, 3, 1, 1) * (2 / 3), torch.zeros_like(own[first][:, 3:])], 1)
            mean = next(key for key in own if key.endswith("running_mean"))
            given[mean] = given[mean] + grey.sum((1, 2, 3))
    wrong = sorted(key for key, value in own.items() if key not in given or given[key].shape != value.shape)
    if wrong:
        raise UserError(f"starting weights do not fit the trunk: {len(wrong)} tensors, first {wrong[:3]}")
    given |= {key: value + extra_variance for key, value in given.items() if key.endswith("running_var")}
    trunk.load_state_dict({**trunk.state_dict(), **{key: given[key] for key in own}})


def is_folded(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the batch norms of a file do nothing but add their bias: their scale was folded into convolutions."""
    means = [value for key, value in tensors.items() if key.endswith("running_mean")]
    variances = [value for key, value in tensors.items() if key.endswith("running_var")]
    return bool(means) and all(bool((m == 0).all()) for m in means) and all(bool((v == 1).all()) for v in variances)


@torch.no_grad()
def measure_batch_norms(net: nn.Module, trunk: nn.Module, data: Data, plan: Plan, loss: Loss, job: Job) -> None:
    """Give folded batch norms the statistics of real images without changing what the trunk computes.

    In training a folded norm would rescale its features and ruin them. With the measured mean m and variance v, scale
    sqrt(v + eps) and bias + m it computes the same in evaluation, and nearly the same in training. The net is run on a
    few batches on the CPU by calling its loss.
    """
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[nn.Module, torch.Tensor] = {}  # (3, channels): sum, sum of squares, count

    def add(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        values = inputs[0].double().cpu()
        new = torch.stack([values.sum((0, 2, 3)), (values**2).sum((0, 2, 3)), torch.ones_like(values).sum((0, 2, 3))])
        sums[norm] = sums.get(norm, torch.zeros_like(new)) + new

    net.eval()
    size, cpu = plan.training.batch, torch.device("cpu")
    order = job.rng(0, 0, 2).permutation(len(data))
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(add).remove)
        for step in range(min(BATCHES, max(1, len(data) // size))):
            indices = order[step * size : (step + 1) * size]
            loss(net, data.batch(indices, job.rng(0, 0, 3), cpu, augment=True))
    for norm in norms:
        total, squares, count = sums[norm]
        mean = total / count
        variance = (squares / count - mean**2).clamp_min(1e-6)
        norm.bias.add_(mean - norm.running_mean)
        norm.running_mean = mean.float()
        norm.running_var = variance.float()
        norm.weight.copy_((variance + norm.eps).sqrt())

"""Where a net starts from: its own random weights, a download of timm or torchvision, or a file of starting weights.

Only training uses this; a finished net is rebuilt from its config alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from osteograde.learning.recipe import IMAGENET, Fit, Recipe
from osteograde.models.build import build

if TYPE_CHECKING:
    from osteograde.learning.fit import Data, Where

FOLDER = "OSTEOGRADE_PRETRAINED"  # environment variable: where files of starting weights lie
DEFAULT_FOLDER = Path("..") / "shared" / "weights"
INPUT_SCALE = 0.5  # the files expect -1..1, deviation about a half; our crops come with deviation 1
BATCHES = 8  # through which normalisation statistics are measured


def net_of(plan: Fit, data: Data, where: Where) -> nn.Module:
    """The net of a plan with its starting weights. ValueError where the plan names a file that is not there."""
    if plan.pretrained in ("", IMAGENET):
        return build(plan.net, pretrained=plan.pretrained == IMAGENET)
    net = build(plan.net)
    tensors = read(plan.pretrained)
    trunk: Any = net.encoder
    fill(trunk, tensors)
    if folded(trunk):
        measure(net, trunk, data, plan, where)
    return net


def path_of(name: str) -> Path:
    return Path(os.environ.get(FOLDER, DEFAULT_FOLDER)) / name


def or_nothing(recipe: Recipe, log: Callable[[str], None]) -> Recipe:
    """The recipe with nets that start from nothing where their file of starting weights is not there; says which."""

    def there(stage: str, plan: Fit) -> Fit:
        if plan.pretrained in ("", IMAGENET) or path_of(plan.pretrained).is_file():
            return plan
        log(f"{stage}: no {path_of(plan.pretrained)}; starts from nothing (set {FOLDER} to the folder that holds it)")
        return replace(plan, pretrained="", head_epochs=0)  # a frozen trunk that knows nothing teaches nothing

    locate, grade = ({name: there(name, fit) for name, fit in fits.items()} for fits in (recipe.locate, recipe.grade))
    return replace(recipe, locate=locate, grade=grade)


def read(name: str) -> dict[str, torch.Tensor]:
    """The tensors of an .npz of starting weights in the folder OSTEOGRADE_PRETRAINED."""
    path = path_of(name)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such starting weights; set {FOLDER} to the folder that holds them, or take a recipe with "
            "other ones (pretrained='imagenet' downloads, '' starts from nothing)"
        )
    with np.load(path, allow_pickle=False) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def fill(trunk: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy starting weights into a trunk of one grey channel. ValueError where any of its tensors gets none."""
    own = trunk.state_dict()
    tensors = {key: value for key, value in tensors.items() if key in own}
    first = next(key for key, module in trunk.named_modules() if isinstance(module, nn.Conv2d)) + ".weight"
    if first in tensors and tensors[first].shape[1] == 3 and own[first].shape[1] == 1:
        tensors[first] = tensors[first].sum(1, keepdim=True) * INPUT_SCALE  # a grey image three times
    wrong = sorted(
        key
        for key, value in own.items()
        if not key.endswith("num_batches_tracked") and (key not in tensors or tensors[key].shape != value.shape)
    )
    if wrong:
        raise ValueError(f"starting weights do not fit the trunk: {len(wrong)} tensors, first {wrong[:3]}")
    trunk.load_state_dict({**own, **tensors})


def folded(trunk: nn.Module) -> bool:
    """Whether the batch norms of a trunk do nothing but add their bias: their scale was folded into convolutions."""
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    return bool(norms) and all(
        bool((n.running_mean == 0).all() and (n.running_var == 1).all())  # type: ignore[union-attr]
        for n in norms
    )


@torch.no_grad()
def measure(net: nn.Module, trunk: nn.Module, data: Data, plan: Fit, where: Where) -> None:
    """Give folded batch norms the statistics of real images without changing what the trunk computes.

    In training a folded norm would rescale its features and ruin them. With the measured mean m and variance v, scale
    sqrt(v + eps) and bias + m it computes the same in evaluation, and nearly the same in training.
    """
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[nn.Module, torch.Tensor] = {}  # (3, channels): sum, sum of squares, count

    def note(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        values = inputs[0].double().cpu()
        seen = torch.stack([values.sum((0, 2, 3)), (values**2).sum((0, 2, 3)), torch.ones_like(values).sum((0, 2, 3))])
        sums[norm] = sums.get(norm, torch.zeros_like(seen)) + seen

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    net.eval()
    order = where.rng(0, 0, 2).permutation(len(data))
    for step in range(min(BATCHES, max(1, len(data) // plan.batch))):
        batch = data.batch(order[step * plan.batch : (step + 1) * plan.batch], where.rng(0, 0, 3), torch.device("cpu"),
                           augment=True)  # fmt: skip
        net(list(batch.crops), batch.present)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        total, squares, count = sums[norm]
        mean = total / count
        variance = (squares / count - mean**2).clamp_min(1e-6)
        norm.running_mean = mean.float()
        norm.running_var = variance.float()
        norm.bias.add_(mean)  # the folded scale is 1: weight / sqrt(1 + eps)
        norm.weight.copy_((variance + norm.eps).sqrt())

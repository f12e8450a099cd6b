"""Where a net starts from: its own random weights, a download of timm or torchvision, or a file of starting weights.

Only training uses this; a finished net is rebuilt from its config alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.learning.grader_data import GraderBatch
from osteograde.learning.recipe import IMAGENET, Fit, Recipe
from osteograde.models.bundle import build_net

if TYPE_CHECKING:
    from osteograde.learning.loop import Data, Where

FOLDER = "OSTEOGRADE_PRETRAINED"  # environment variable: where files of starting weights lie
DEFAULT_FOLDER = Path("..") / "shared" / "weights"
INPUT_SCALE = 0.5  # the files expect -1..1, deviation about a half; our crops come with deviation 1
# Written for batch norms with eps 1e-3, read into ones with 1e-5.
EXTRA_EPS = {"mobilenet_v2_0.35_float_bn_from_teachablemachine.npz": 1e-3 - 1e-5}
BATCHES = 8  # through which normalisation statistics are measured


def net_of(plan: Fit, data: Data, where: Where) -> nn.Module:
    """The net of a plan with its starting weights. ValueError where the plan names a file that is not there."""
    if plan.pretrained in ("", IMAGENET):
        return build_net(plan.net, pretrained=plan.pretrained == IMAGENET)
    net = build_net(plan.net)
    tensors = read_tensors(plan.pretrained)
    trunk: Any = net.encoder
    fill_trunk(trunk, tensors, eps=EXTRA_EPS.get(plan.pretrained, 0.0))
    if is_folded(tensors):
        measure_batch_norms(net, trunk, data, plan, where)
    return net


def path_of(name: str) -> Path:
    return Path(os.environ.get(FOLDER, DEFAULT_FOLDER)) / name


def without_missing_weights(recipe: Recipe, log: Callable[[str], None]) -> Recipe:
    """The recipe with nets that start from nothing where their file of starting weights is not there; says which."""

    def there(stage: str, plan: Fit) -> Fit:
        plan = replace(
            plan,
            also=tuple(there(f"{stage} (further net)", one) for one in plan.also),
        )
        if plan.pretrained in ("", IMAGENET) or path_of(plan.pretrained).is_file():
            return plan
        log(f"{stage}: no {path_of(plan.pretrained)}; starts from nothing (set {FOLDER} to the folder that holds it)")
        return replace(
            plan, pretrained="", head_epochs=0, frozen=()
        )  # a frozen trunk that knows nothing teaches nothing

    locate, grade = (
        {name: there(name, fit) for name, fit in fits.items()} for fits in (recipe.locators, recipe.graders)
    )
    return replace(recipe, locators=locate, graders=grade)


def read_tensors(name: str) -> dict[str, torch.Tensor]:
    """The tensors of an .npz of starting weights in the folder OSTEOGRADE_PRETRAINED."""
    path = path_of(name)
    if not path.is_file():
        raise UserError(
            f"{path}: no such starting weights; set {FOLDER} to the folder that holds them, or take a recipe with "
            "other ones (pretrained='imagenet' downloads, '' starts from nothing)"
        )
    with np.load(path, allow_pickle=False) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def fill_trunk(trunk: nn.Module, tensors: Mapping[str, torch.Tensor], *, eps: float = 0.0) -> None:
    """Copy starting weights into a trunk that reads grey images. ValueError where any of its tensors gets none.

    Tensors go by name, or where a library names them otherwise by their order, which is that of the layers. Graders
    (one channel, deviation 1) take half the sum of the colours' filters. Locators (three neighbouring slices and the
    lateral coordinate, all 0..1) share it between the slices; the shift from 0..1 to -1..1 goes into the first batch
    norm. eps: what the file's batch norms add to the variance beyond the trunk's own.
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
    given |= {key: value + eps for key, value in given.items() if key.endswith("running_var")}
    trunk.load_state_dict({**trunk.state_dict(), **{key: given[key] for key in own}})


def is_folded(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the batch norms of a file do nothing but add their bias: their scale was folded into convolutions."""
    means = [value for key, value in tensors.items() if key.endswith("running_mean")]
    variances = [value for key, value in tensors.items() if key.endswith("running_var")]
    return bool(means) and all(bool((m == 0).all()) for m in means) and all(bool((v == 1).all()) for v in variances)


@torch.no_grad()
def measure_batch_norms(net: Any, trunk: nn.Module, data: Data, plan: Fit, where: Where) -> None:
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
        net(list(batch.crops), batch.present) if isinstance(batch, GraderBatch) else net.maps(batch.images)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        total, squares, count = sums[norm]
        mean = total / count
        variance = (squares / count - mean**2).clamp_min(1e-6)
        norm.bias.add_(mean - norm.running_mean)
        norm.running_mean = mean.float()
        norm.running_var = variance.float()
        norm.weight.copy_((variance + norm.eps).sqrt())

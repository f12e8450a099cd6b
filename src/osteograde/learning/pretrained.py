"""The starting weights of a net: random ones, a download, a package, a file, or a net of ours (``starting.py``).

Every source says how its nets read images: as (x - mean) / deviation of values from 0 to 1, which is not how our nets
read them. What differs is put into the first layer, so a net computes what its source computes of the same image.
Only training uses this; a finished net is rebuilt from its config alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from osteograde.errors import UserError
from osteograde.learning import starting
from osteograde.learning.loop import Data, Job, Loss
from osteograde.learning.recipe import AnyPlan, Plan, Recipe, Start
from osteograde.learning.starting import Source
from osteograde.models import backbones, bundle
from osteograde.models.bundle import build_net
from osteograde.models.grader import NORMALISE
from osteograde.models.locators.faster_rcnn import VARIANTS

BATCHES = 8  # through which the statistics of normalisation are measured
CROP_DEVIATION = 0.25  # of the grey values of an image, which graders of normalise "crop" read as 1
PREDICTOR = "roi_heads.box_predictor."  # of a detector: has one output a class, so it starts anew

log = logging.getLogger("osteograde.learning")


@dataclass(frozen=True)
class Reading:
    """A net reads a grey or colour value x of 0..1 as (x - mean) / deviation; one number for each channel, or for all.

    mean None: of each crop, its own.
    """

    mean: tuple[float, ...] | None
    deviation: tuple[float, ...]


SIGNED = Reading((0.5,), (0.5,))  # -1..1, as TensorFlow's nets
RGB = Reading((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as torchvision's nets


@dataclass(frozen=True, eq=False)
class Given:
    """The tensors of a source and how its net reads images.

    eps: of its batch norms, None where it is the trunk's. ordered: whether the tensors lie in the order of the layers.
    """

    tensors: Mapping[str, torch.Tensor]
    reading: Reading
    eps: float | None = None
    ordered: bool = True


def net_of(plan: Plan, data: Data, loss: Loss, job: Job, member: int = 0) -> nn.Module:
    """The net of a plan with its starting weights. UserError where they are not there or do not fit.

    member: the place of the net among the members of its ensemble. Where the plan asks for measured norms, or where the
    batch norms of the source were folded into its convolutions, the statistics of the net's batch norms are measured on
    ``data``; ``loss`` is then called to run the net.
    """
    source = starting.source_of(plan.start.weights)
    net = build_net(plan.net)
    if source.kind == starting.NONE:
        return net
    if source.kind == starting.WEIGHTS:
        fill_from_ours(net, source, starting.kind_of(plan), job.stage, job.fold, member)
        return net
    given = given_by(source, plan, net)
    fill(net, given, source)
    if plan.start.measured_norms or is_folded(given.tensors):
        measure_batch_norms(net, trunk_of(net)[1], data, plan, loss, job)
    return net


def check_fit(recipe: Recipe, k: int) -> None:
    """UserError where the starting weights of a recipe do not fit its nets; what has to be downloaded is.

    k: a fold that is trained. This is for before any other work: it takes seconds, downloads aside.
    """
    for kind, stage, member, plan, source in starting.starts(recipe):
        if source.kind == starting.NONE:
            continue
        net = build_net(plan.net)
        if source.kind == starting.WEIGHTS:
            fill_from_ours(net, source, kind, stage, k, member)
        else:
            fill(net, given_by(source, plan, net), source)


def without_missing_weights(recipe: Recipe) -> Recipe:
    """The recipe with random starting weights where a package or a file is not there; logs which ones."""

    def available(stage: str, plan: AnyPlan) -> AnyPlan:
        try:
            starting.check_plan(plan, starting.source_of(plan.start.weights))
        except UserError as error:
            log.info(f"{stage}: {error}; training starts from random weights")
            return replace(
                plan, start=Start(shared_epochs=plan.start.shared_epochs)
            )  # nothing random is worth freezing
        return plan

    return recipe.map_plans(available)


def trunk_of(net: Any) -> tuple[str, nn.Module]:
    """The part of a net that a classifier's weights fit, and its name in the net with a dot behind it."""
    if hasattr(net, "detector"):
        return "detector.backbone.body.", net.detector.backbone.body
    return "encoder.", net.encoder


def reading_of(config: Mapping[str, Any]) -> Reading:
    """How a net of ours reads images."""
    if config["kind"] == "faster_rcnn":
        return Reading((0.5,), (0.25,))
    if config["kind"] != "grader":
        return Reading((0.0,), (1.0,))
    how = config.get("normalise", "crop")
    if how == "crop":
        return Reading(None, (CROP_DEVIATION,))
    mean, deviation = NORMALISE[how]
    return Reading((mean,), (deviation,))


def given_by(source: Source, plan: Plan, net: Any) -> Given:
    """The tensors of a source other than a net of ours. UserError where they cannot be had."""
    if source.kind == starting.PIP:
        return Given(read_tensors(starting.package_file(source)), SIGNED)
    if source.kind == starting.FILE:
        path = starting.given_file(source)
        is_ordered = path.suffix != ".safetensors"  # there tensors are sorted by name
        return Given(read_tensors(path), library_reading(plan.net), ordered=is_ordered)
    try:
        return coco(plan.net) if source.kind == starting.COCO else imagenet(plan.net)
    except (OSError, RuntimeError) as error:  # no connection; timm has no weights of this name
        raise UserError(
            f'starting weights "{source.kind}" of {starting.trunk_name(plan)}: {" ".join(str(error).split())[:200]}; '
            f"connect this machine, or put the file into {starting.download_folders()[0]}"
        ) from error


def imagenet(config: Mapping[str, Any]) -> Given:
    """The trunk of a config with the ImageNet weights of timm or torchvision."""
    if config["kind"] == "faster_rcnn":
        net = torchvision.models.get_model(VARIANTS[config["variant"]][1], weights="DEFAULT")
        tensors = {key.removeprefix("features."): value for key, value in net.state_dict().items()}
    elif config["kind"] == "grader":
        sizes = {name: config[name] for name in ("stages", "pixels") if name in config}
        net, _ = backbones.classifier_body(config["backbone"], 3, True, **sizes)
        tensors = net.state_dict()
    else:
        net = backbones.encoder(config["encoder_name"], 3, True, stages=config.get("stages", 0))
        tensors = net.state_dict()
    return Given(tensors, library_reading(config), eps_of(net))


def coco(config: Mapping[str, Any]) -> Given:
    """The whole detector of torchvision, trained on COCO."""
    make, _ = VARIANTS[config["variant"]]
    net = make(weights="DEFAULT")
    return Given(net.state_dict(), RGB)


def library_reading(config: Mapping[str, Any]) -> Reading:
    """How timm's or torchvision's net of a config's trunk reads images."""
    name = str(config.get("backbone") or config.get("encoder_name") or "")
    if name.startswith("torchvision/"):
        chosen: Any = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
        preset = chosen.DEFAULT.transforms()
        return Reading(tuple(preset.mean), tuple(preset.std))
    known = timm.models.get_pretrained_cfg(name, allow_unregistered=True) if name else None
    return Reading(tuple(known.mean), tuple(known.std)) if known else RGB


def eps_of(net: nn.Module) -> float | None:
    """The eps of the batch norms of a net, None where it has none."""
    return next((module.eps for module in net.modules() if isinstance(module, nn.BatchNorm2d)), None)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an .npz, .safetensors or .pth file. UserError where it cannot be read."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {key: torch.from_numpy(archive[key]) for key in archive.files}
        if path.suffix == ".safetensors":
            return {
                key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()
            }
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, ValueError, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: starting weights cannot be read ({error}); fetch the file again") from error


def fill_from_ours(net: nn.Module, source: Source, kind: str, stage: str, k: int, member: int) -> None:
    """Start from the net of the same fold in a weights folder.

    Where both nets have the same tensors, all are taken, else those of the trunk alone. UserError where the trunks are
    not the same, or where the file is not the one that its manifest names.
    """
    folder, manifest, name = starting.net_file(source, kind, stage, k, member)
    path, entry = folder / name, manifest.files[name]
    if bundle.sha256(path) != entry.sha256:
        raise UserError(f"{path}: not the file that its manifest names; it was changed or cut short, fetch it again")
    tensors = read_tensors(path)
    own = net.state_dict()
    same_net = tensors.keys() == own.keys() and all(tensors[key].shape == own[key].shape for key in own)
    prefix, trunk = trunk_of(net)
    config: Any = net.config
    given = Given(
        {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
        reading_of(entry.net),
        ordered=False,
    )
    try:
        fill_trunk(trunk, given, reading_of(config))
    except UserError as error:
        raise UserError(f"starting weights {path}: {error}") from error
    if same_net:
        heads = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
        net.load_state_dict(heads, strict=False)


def fill(net: Any, given: Given, source: Source) -> None:
    """Copy the tensors of a source other than a net of ours into a net. UserError where they do not fit."""
    part: nn.Module = trunk_of(net)[1]
    if source.kind == starting.COCO:
        part = net.detector
        anew = {key: value for key, value in part.state_dict().items() if key.startswith(PREDICTOR)}
        given = replace(given, tensors={**given.tensors, **anew})
    try:
        fill_trunk(part, given, reading_of(net.config))
    except UserError as error:
        raise UserError(f"starting weights {source.kind}:{source.name}: {error}") from error


def fill_trunk(trunk: nn.Module, given: Given, reading: Reading) -> None:
    """Copy the tensors of a source into a trunk that reads grey images. UserError where any of its tensors gets none.

    Tensors are matched by name, or by their order where a library names them otherwise. reading: of the trunk. How the
    source reads images, and that it reads colours, goes into the first convolution and what follows it.
    """
    own = {key: value for key, value in trunk.state_dict().items() if not key.endswith("num_batches_tracked")}
    tensors = {key: value for key, value in given.tensors.items() if not key.endswith("num_batches_tracked")}
    if given.ordered and not set(own) <= set(tensors):
        tensors = dict(zip(own, tensors.values(), strict=False))
    first = next(key for key, value in own.items() if value.ndim == 4)
    if first in tensors and tensors[first].ndim == 4:
        filters, shift = first_filters(tensors[first], own[first].shape[1], given.reading, reading)
        tensors[first] = filters
        bias = first.removesuffix("weight") + "bias"
        mean = next((key for key in own if key.endswith("running_mean")), "")
        if bias in own and bias in tensors:
            tensors[bias] = tensors[bias] + shift
        elif mean in tensors and tensors[mean].shape == shift.shape:
            tensors[mean] = tensors[mean] - shift
    wrong = [
        f"{key} is {tuple(tensors[key].shape) if key in tensors else 'not there'}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key not in tensors or tensors[key].shape != value.shape
    ]
    if wrong:
        raise UserError(f"they do not fit the trunk: {len(wrong)} of {len(own)} tensors, first {wrong[0]}")
    own_eps = eps_of(trunk)
    if given.eps is not None and own_eps is not None:  # a batch norm divides by sqrt(variance + eps)
        more = given.eps - own_eps
        tensors |= {key: value + more for key, value in tensors.items() if key.endswith("running_var")}
    trunk.load_state_dict({**trunk.state_dict(), **{key: tensors[key] for key in own}})


def first_filters(
    filters: torch.Tensor, channels: int, theirs: Reading, ours: Reading
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first convolution (O, C, h, w) of a source for a net that reads ``channels`` channels in another way.

    Returns filters (O, channels, h, w), and what is added to the answer of each (O,). One channel of three is the sum
    of the colours. Four, which are three neighbouring slices and the lateral coordinate, share that sum between the
    slices. UserError for any other pair of numbers.
    """
    count = filters.shape[1]
    if not (count == channels or (count == 3 and channels in (1, 4))):
        raise UserError(f"they read {count} channels, the net reads {channels}; only 3 to 1 and 3 to 4 are known")
    if theirs.mean is None and ours.mean is None:  # nets of ours that whiten each crop
        return filters, filters.new_zeros(len(filters))
    deviation, mean = (filters.new_tensor(values).expand(count)
                       for values in (theirs.deviation, theirs.mean or ours.mean or (0.0,)))  # fmt: skip
    # A crop that is whitened by its own mean is taken for an image whose mean is that which the source expects.
    own_mean = filters.new_tensor(ours.mean).expand(count) if ours.mean is not None else mean.mean().expand(count)
    own_deviation = filters.new_tensor(ours.deviation).expand(count)
    scaled = filters * (own_deviation / deviation)[:, None, None]
    shift = (filters * ((own_mean - mean) / deviation)[:, None, None]).sum((1, 2, 3))
    if count == channels:
        return scaled, shift
    grey = scaled.sum(1, keepdim=True)
    if channels == 1:
        return grey, shift
    return torch.cat([grey.repeat(1, 3, 1, 1) / 3, torch.zeros_like(grey)], 1), shift


def is_folded(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the batch norms of a file do nothing but add their bias: their scale was folded into convolutions."""
    means = [value for key, value in tensors.items() if key.endswith("running_mean")]
    variances = [value for key, value in tensors.items() if key.endswith("running_var")]
    return bool(means) and all(bool((m == 0).all()) for m in means) and all(bool((v == 1).all()) for v in variances)


@torch.no_grad()
def measure_batch_norms(net: nn.Module, trunk: nn.Module, data: Data, plan: Plan, loss: Loss, job: Job) -> None:
    """Give batch norms the statistics of our own images without changing what the trunk computes.

    In training a norm divides by the deviation of its batch. Where that is far from the deviation that the starting
    weights know, as it is for grey radiographs and slices, and wherever a norm was folded into its convolution, the
    first step of training computes other features than the source. A norm of scale g, bias b, mean m and variance v
    whose images have mean n and variance w gets scale g sqrt(w + eps) / sqrt(v + eps), bias b + g (n - m) / sqrt(v +
    eps), mean n and variance w: the same in evaluation, and nearly the same in training. The net is run on a few
    batches on the CPU by calling its loss.
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
        mean = (total / count).float()
        variance = (squares / count - (total / count) ** 2).clamp_min(1e-6).float()
        old_mean, old_variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        slope = norm.weight / (old_variance + norm.eps).sqrt()
        norm.bias.add_(slope * (mean - old_mean))
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        old_mean.copy_(mean)
        old_variance.copy_(variance)

"""Where in its crops a grader found the evidence for a class: Grad-CAM for nets with several crops of several slices.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
equations 1 and 2: the last maps of the encoder, each weighted by the mean gradient of the class logit over its pixels,
summed, and cut off below zero. All slices of all crops pass through one encoder, and the gradient passes back through
the pooling over them: maps of slices and crops that count for little are small, and may be compared.

The last maps of a transformer are its tokens, put back where their patches lie in the image; tokens that belong to no
patch, such as the class token, are left out. A net that answers from its class token alone reads the patches for the
last time in its last block, so there the tokens are those that enter this block (for all others the last ones are
taken).

Shape legend: B sites, V crops, D slices of one crop, H W pixels, M encoded slices of one crop, F features, h w pixels
of a map, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional
from torchvision.models import SwinTransformer

from osteograde.errors import UserError
from osteograde.models.covariates import Values
from osteograde.models.grader import GraderNet


def raw_cam(
    net: GraderNet,
    crops: Sequence[torch.Tensor],
    present: torch.Tensor,
    target: torch.Tensor,
    covariates: Values | None = None,
) -> list[torch.Tensor]:
    """Per crop the map (B, D, H, W) >= 0 in units of the logit of class ``target`` (B,), brought to the crop's size
    bilinearly. crops and present as the net takes them; absent crops are 0.

    The net, its gradients and the caller's gradient mode are left as they were; it may be called in inference mode.
    ValueError for a net in training mode, and for one whose encoder makes no maps that are known here: convolutional
    nets, ViT and Swin of timm, and Swin of torchvision have some.
    """
    if net.training:
        raise ValueError("Grad-CAM of a net in training mode: its batch would mix the sites; call net.eval() first")
    with torch.inference_mode(False), torch.enable_grad():
        # Copies: what was made in inference mode cannot be part of a graph. That they ask for a gradient makes a graph
        # even where every weight is frozen.
        views = [crop.detach().clone().requires_grad_() for crop in crops]
        shown = present.detach().clone()
        known = ({name: values.detach().clone() for name, values in covariates.items()},) if covariates else ()
        source = map_source(net.encoder)
        with _last_maps(net.encoder, source) as found:
            logits = net(views, shown, *known)
        chosen = logits.gather(1, target.detach().clone().to(logits.device)[:, None]).sum()
        gradients = torch.autograd.grad(chosen, found) if found else ()
    maps = [torch.zeros(crop.shape, dtype=torch.float32, device=crop.device) for crop in crops]
    encoded = [v for v in range(len(maps)) if bool(shown[:, v].any())]  # the encoder ran once for each of these
    for v, values, gradient in zip(encoded, found, gradients, strict=True):
        weight = source.as_map(gradient).mean((-2, -1), keepdim=True)
        cam = (weight * source.as_map(values.detach())).sum(1, keepdim=True).clamp_min(0).float()
        cam = functional.interpolate(cam, size=maps[v].shape[-2:], mode="bilinear", align_corners=False)
        maps[v][shown[:, v]] = cam[:, 0].unflatten(0, (-1, maps[v].shape[1]))
    return maps


@dataclass(frozen=True, eq=False)
class MapSource:
    """Where the last map of an encoder is: the output of ``layer``, which ``as_map`` brings to (M, F, h, w). layer
    None: the last output inside the encoder that has the form (M, F, h, w) and more than one pixel."""

    layer: nn.Module | None
    as_map: Callable[[torch.Tensor], torch.Tensor]


def map_source(encoder: nn.Module) -> MapSource:
    """The last map of an encoder. UserError for one of which it is not known where its tokens lie in the image."""
    if isinstance(encoder, (VisionTransformer, Beit, Eva)):
        last: Any = encoder.blocks[-1]
        grid, prefix = encoder.patch_embed.grid_size, encoder.num_prefix_tokens
        layer = last.norm1 if encoder.global_pool == "token" else encoder.norm
        return MapSource(layer, lambda tokens: tokens[:, prefix:].mT.unflatten(-1, grid))
    if isinstance(encoder, SwinTransformer):  # of torchvision
        return MapSource(encoder.norm, _channels_first)
    form = getattr(encoder, "output_fmt", "NCHW")
    norm = getattr(encoder, "norm", None)
    if form == "NHWC" and isinstance(norm, nn.Module):  # Swin of timm
        return MapSource(norm, _channels_first)
    if form != "NCHW":
        raise UserError(f"Grad-CAM of {type(encoder).__name__}: its maps are not (M, F, h, w); use a CNN, ViT or Swin")
    return MapSource(None, lambda values: values)


def _channels_first(values_MhwF: torch.Tensor) -> torch.Tensor:
    return values_MhwF.permute(0, 3, 1, 2)


@contextmanager
def _last_maps(encoder: nn.Module, source: MapSource) -> Iterator[list[torch.Tensor]]:
    """Within: every call of ``encoder`` adds its last map, as the net made it, to the list. The hooks end with the
    block, however it ends. UserError for a map of one pixel."""
    found: list[torch.Tensor] = []
    last: list[torch.Tensor] = []  # of the call that is running: at most one

    def begin(module: nn.Module, inputs: Any) -> None:
        last.clear()

    def seen(module: nn.Module, inputs: Any, output: Any) -> None:
        values = output[-1] if isinstance(output, (list, tuple)) and output else output  # pyramids: the coarsest
        if module is source.layer or (
            isinstance(values, torch.Tensor) and values.ndim > 2 and min(values.shape[-2:]) > 1
        ):
            last[:] = [values]

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        if source.layer is None and last and last[0].ndim != 4:  # three axes: tokens
            last.clear()
        if not last or source.as_map(last[0]).shape[-2:].numel() < 2:
            raise UserError(f"Grad-CAM of {type(encoder).__name__}: it ends in no map larger than one pixel")
        found.append(last[0])

    watched = encoder.modules() if source.layer is None else [source.layer]
    hooks = [module.register_forward_hook(seen) for module in watched]
    hooks += [encoder.register_forward_pre_hook(begin), encoder.register_forward_hook(end)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()

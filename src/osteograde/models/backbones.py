"""Trunks of the nets: from timm, from torchvision, and MedViT. With pretrained=False nothing opens a connection.

Shape legend: N images, C input channels, H W pixels, F features.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.models._features import FeatureGetterNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import nn

from osteograde.errors import UserError
from osteograde.models import medvit

_TORCHVISION = "torchvision/"
_IMAGENET_CLASSES = 1000


class PooledPyramid(nn.Module):
    """(N, C, H, W) -> (N, F): the first stages of a feature pyramid, averaged over the image. Small nets only."""

    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pyramid(images)[-1].mean((-2, -1))


class FirstFeatures(nn.Module):
    """(N, C, H, W) -> (N, F): the first modules of a sequence of features, averaged over the image."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images).mean((-2, -1))


def encoder(
    name: str,
    in_channels: int,
    pretrained: bool = False,
    *,
    stages: int = 0,
) -> nn.Module:
    """Feature pyramid of a timm net: (N, C, H, W) -> list of maps, finest first.

    stages: keep this many stages only (0 = all); what lies deeper is not built. See
    ``pyramid_shape``. Raises ValueError for a name timm does not know.
    """
    _known(name)
    options: dict[str, Any] = {"features_only": True, "in_chans": in_channels, **_download(name, pretrained)}
    if not stages:
        return timm.create_model(name, **options)
    options["out_indices"] = tuple(range(stages))
    net = timm.create_model(name, **{**options, "pretrained": False})
    if isinstance(net, (EfficientNetFeatures, MobileNetV3Features)):  # these keep what lies deeper; this does not:
        options["feature_cls"] = "getter"
    return timm.create_model(name, **options)


def pyramid_shape(pyramid: Any) -> tuple[list[int], list[int]]:
    """Per map of a feature pyramid: its channels, and how many input pixels one of its pixels spans."""
    info = pyramid.feature_info
    return list(info.channels()), list(info.reduction())


def map_of_stage(pyramid: nn.Module, images: torch.Tensor, stage: int) -> torch.Tensor:
    """One map of a feature pyramid, ``pyramid(images)[stage]``; deeper ones are not computed where timm can stop."""
    if not isinstance(pyramid, FeatureGetterNet):
        return pyramid(images)[stage]
    model: Any = pyramid.model
    wanted = [pyramid.out_indices[stage]]  # type: ignore[index]
    options = {"norm": pyramid.norm, "output_fmt": pyramid.output_fmt, "intermediates_only": True, "stop_early": True}
    return model.forward_intermediates(images, indices=wanted, **options)[0]


def classifier_body(
    name: str,
    in_channels: int,
    pretrained: bool = False,
    *,
    stages: int = 0,
    pixels: int = 0,
) -> tuple[nn.Module, int]:
    """A net without its last layer: (N, C, H, W) -> (N, F), and F.

    name: any timm name, "torchvision/<name>" for a torchvision classifier with one linear head, or one of
    ``medvit.SIZES``, of which no public starting weights can be fetched by name. stages: average the first stages of
    the pyramid instead (a fraction of the parameters); of torchvision's nets the first modules of ``features``, with
    the names they have in the whole net, so that its weights fit. pixels: the crop's side, needed by nets built for one
    size (ViT, Swin of timm). Raises ValueError for names that nobody knows.
    """
    if name.startswith(_TORCHVISION):
        body, width = _torchvision_body(name.removeprefix(_TORCHVISION), in_channels, pretrained)
        return _first_features(name, body, in_channels, stages) if stages else (body, width)
    if name in medvit.SIZES:
        if stages or pretrained:
            what = f"stages={stages}" if stages else "ImageNet weights"
            raise UserError(f"backbone {name!r} has no {what}; use stages=0 and other starting weights")
        return medvit.MedVit(name, in_channels), medvit.MedVit.features
    _known(name)
    if stages:
        pyramid = encoder(name, in_channels, pretrained, stages=stages)
        return PooledPyramid(pyramid), pyramid_shape(pyramid)[0][-1]
    cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    options: dict[str, Any] = {"img_size": pixels} if pixels and cfg is not None and cfg.fixed_input_size else {}
    options |= _download(name, pretrained)
    body = timm.create_model(name, num_classes=0, in_chans=in_channels, **options)
    features: Any = getattr(body, "head_hidden_size", None) or body.num_features
    return body, int(features)


def _download(name: str, pretrained: bool) -> dict[str, Any]:
    """Options of timm for the ImageNet weights of a net: where torch's folder of downloads has the file, from there."""
    cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=True) if pretrained else None
    if cfg is None or not isinstance(cfg.url, str):
        return {"pretrained": pretrained}
    kept = Path(torch.hub.get_dir()) / "checkpoints" / cfg.url.rpartition("/")[2]
    return {"pretrained": True, **({"pretrained_cfg_overlay": {"file": str(kept)}} if kept.is_file() else {})}


def _known(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise UserError(f"backbone {name!r} is not in timm {timm.__version__}; close: {', '.join(close) or 'none'}")


def _torchvision_body(name: str, in_channels: int, pretrained: bool) -> tuple[nn.Module, int]:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
        raise UserError(
            f"backbone {_TORCHVISION + name!r} is not in torchvision {torchvision.__version__}; "
            f"close: {', '.join(close) or 'none'}"
        )
    body = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    heads = [
        key
        for key, module in body.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == _IMAGENET_CLASSES
    ]
    if len(heads) != 1:
        raise UserError(f"backbone {_TORCHVISION + name!r} has {len(heads)} linear heads; expected 1; use another net")
    features = int(body.get_submodule(heads[0]).in_features)  # type: ignore[arg-type]
    replace_module(body, heads[0], nn.Identity())
    adapt_first_conv(body, in_channels)
    return body, features


def _first_features(name: str, body: nn.Module, in_channels: int, stages: int) -> tuple[nn.Module, int]:
    """The first ``stages`` modules of a torchvision net, and how many features they have."""
    features = getattr(body, "features", None)
    if not isinstance(features, nn.Sequential) or not 0 < stages < len(features):
        count = f"{len(features)} modules" if isinstance(features, nn.Sequential) else "no sequence of features"
        raise UserError(f"{name!r}: stages={stages}, but it has {count}; use stages=0, fewer of them, or a timm name")
    kept = features[:stages]
    was_training = kept.training
    with torch.no_grad():
        channels = kept.eval()(torch.zeros(1, in_channels, 64, 64)).shape[1]
    return FirstFeatures(kept.train(was_training)), channels


def adapt_first_conv(net: nn.Module, in_channels: int) -> None:
    """Let the first convolution of ``net`` read in_channels instead of 3, in place.

    One channel: the filters are summed, which equals repeating a grey image three times. More: they are repeated
    and scaled so that a constant image gives the same response.
    """
    key, old = next((k, m) for k, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels == in_channels:
        return
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        repeats = -(-in_channels // old.in_channels)
        weight = old.weight.sum(1, keepdim=True) if in_channels == 1 else old.weight.repeat(1, repeats, 1, 1)
        scale = 1.0 if in_channels == 1 else old.in_channels / in_channels
        new.weight.copy_(weight[:, :in_channels] * scale)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    replace_module(net, key, new)


def replace_module(net: nn.Module, key: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted ``key`` of ``net``."""
    parent, _, leaf = key.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)

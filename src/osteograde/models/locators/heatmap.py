"""The default locator: a timm pyramid and a light decoder that scores every pixel of every slice.

Shape legend: N slices (of all stacks of a batch), C landmark channels, H W input pixels, h w map pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from osteograde.errors import UserError
from osteograde.models.backbones import encoder, pyramid_shape
from osteograde.models.locators.base import LocatorBatch, heatmap_loss


class HeatmapLocator(nn.Module):
    """(N, in_channels, H, W) -> logits (N, channels, H / stride, W / stride).

    The input channels are the previous, this and the next slice, and the lateral coordinate. The logits are scores over
    all positions of a stack; ``base.probabilities`` and ``base.refined`` turn them into points. stages: how many stages
    of the encoder are used (0 = all). Raises ValueError for an unknown encoder, stride, or an image size that stride
    does not divide.
    """

    def __init__(
        self,
        encoder_name: str,
        channels: int,
        in_channels: int = 4,
        width: int = 32,
        stride: int = 4,
        stages: int = 0,
    ) -> None:
        super().__init__()
        if stride not in (1, 2, 4, 8):
            raise UserError(f"stride of the map is {stride}; expected 1, 2, 4 or 8")
        self.config: dict[str, Any] = {
            "kind": "heatmap",
            "encoder_name": encoder_name,
            "channels": channels,
            "in_channels": in_channels,
            "width": width,
            "stride": stride,
            "stages": stages,
        }
        self.channels, self.stride = channels, stride
        self.encoder = encoder(encoder_name, in_channels, stages=stages)
        counts, reduction = pyramid_shape(self.encoder)
        self.used = [i for i, r in enumerate(reduction) if r >= stride] or [len(reduction) - 1]
        self.laterals = nn.ModuleList(nn.Conv2d(counts[i], width, 1) for i in self.used)
        self.blocks = nn.ModuleList(_separable(width) for _ in self.used)
        self.head = nn.Conv2d(width, channels, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        h, w = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        if (h * self.stride, w * self.stride) != tuple(images.shape[-2:]):
            raise UserError(f"images are {tuple(images.shape[-2:])} pixels; expected multiples of {self.stride}")
        pyramid = self.encoder(images)
        maps: torch.Tensor | None = None
        for i, lateral, block in reversed(list(zip(self.used, self.laterals, self.blocks, strict=True))):
            here = lateral(pyramid[i])
            maps = block(here if maps is None else here + _resized(maps, here.shape[-2], here.shape[-1]))
        assert maps is not None
        return self.head(_resized(maps, h, w))

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C, h, w)."""
        return self(images)

    def loss(self, batch: LocatorBatch) -> torch.Tensor:
        """Scalar, mean over labelled landmarks; see ``base.heatmap_loss``."""
        return heatmap_loss(self(batch.images), batch)


def _resized(maps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == (h, w):
        return maps
    return F.interpolate(maps, size=(h, w), mode="bilinear", align_corners=False)


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )

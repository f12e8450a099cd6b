"""A segmenting locator whose shape follows from its data, after nnU-Net (Isensee et al., Nature Methods 2021).

``learning.planning`` decides depth, patch and normalisation; they are arguments of the net, so that the manifest holds
them and inference builds the same net. Training: patches, a third of them around foreground, deep supervision.
Inference: patches that overlap by half, weighted towards their middles. Own code, written from the paper.

Shape legend: N slices, C landmark channels, K classes, H W input pixels, h w pixels of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from osteograde.errors import UserError
from osteograde.models.locators.base import LocatorBatch
from osteograde.models.locators.unet import SegmentingLocator, told_loss

MOST_FEATURES = 512
FOREGROUND_SHARE = 1 / 3  # of the patches: they lie around a pixel of a class that is drawn at random
SIGMA = 1 / 8  # of the patch: deviation of the weights by which overlapping patches are averaged
NORMALISATIONS = ("slice", "nonzero")  # z-score of each slice, by all of its pixels or those above 0


class PlannedUnet(SegmentingLocator):
    """(N, in_channels, H, W) -> log scores (N, channels, H, W); ``segment`` returns class logits (N, K, H, W).

    features: of the finest stage; every stage doubles them, up to 512. stages: resolutions, the finest included. patch:
    (h, w) that the net reads at once, multiples of 2 ** (stages - 1). normalisation: of the grey channels, "slice" or
    "nonzero". spacing_mm: pixel size that it was planned for, which is told and not used. Raises UserError for a patch
    that its stages do not divide, or another normalisation.
    """

    def __init__(
        self,
        channels: int,
        in_channels: int = 4,
        features: int = 32,
        stages: int = 5,
        patch: Sequence[int] = (128, 128),
        normalisation: str = "slice",
        classes: int = 4,
        spacing_mm: float = 0.0,
    ) -> None:
        super().__init__(channels, 1, classes)
        if any(side % 2 ** (stages - 1) for side in patch):
            raise UserError(f"patch {tuple(patch)}: sides must be multiples of {2 ** (stages - 1)} for {stages} stages")
        if normalisation not in NORMALISATIONS:
            raise UserError(f"normalisation {normalisation!r}; expected one of {NORMALISATIONS}")
        self.config: dict[str, Any] = {
            "kind": "planned_unet",
            "channels": channels,
            "in_channels": in_channels,
            "features": features,
            "stages": stages,
            "patch": list(patch),
            "normalisation": normalisation,
            "classes": classes,
            "spacing_mm": spacing_mm,
        }
        self.patch, self.normalisation = (int(patch[0]), int(patch[1])), normalisation
        counts = features_of(features, stages)
        before = [in_channels, *counts[:-1]]
        steps = [1] + [2] * (stages - 1)
        self.down = nn.ModuleList(_stage(a, b, step) for a, b, step in zip(before, counts, steps, strict=True))
        pairs = list(pairwise(counts))  # (features here, one stage deeper), finest first
        self.grow = nn.ModuleList(nn.ConvTranspose2d(deep, here, 2, stride=2) for here, deep in pairs)
        self.up = nn.ModuleList(_stage(2 * here, here, 1) for here, _ in pairs)
        self.heads = nn.ModuleList(nn.Conv2d(here, classes, 1) for here, _ in pairs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (N, K, H, W): of the image at once where it fits into a patch, else of overlapping patches."""
        images = normalised(images, self.normalisation)
        if images.shape[-2] <= self.patch[0] and images.shape[-1] <= self.patch[1]:
            return self._whole(images)
        total = images.new_zeros((len(images), self.classes, *images.shape[-2:]), dtype=torch.float32)
        weight = total.new_zeros(images.shape[-2:])
        for rows, columns in patches(images.shape[-2:], self.patch):
            part = self._whole(images[..., rows, columns]).float()
            near = middle_weights(part.shape[-2:]).to(part)
            total[..., rows, columns] += part * near
            weight[rows, columns] += near
        return total / weight

    def loss(self, batch: LocatorBatch) -> torch.Tensor:
        """Scalar: that of ``SegmentingLocator`` on patches in training, at every resolution but the coarsest, each
        counting half as much as the next finer one. In evaluation: on whole images, at the finest alone."""
        shares, drawn = self.targets(batch)
        if not self.training:
            return told_loss(self.segment(batch.images), shares, drawn)
        images = normalised(batch.images, self.normalisation)
        images, shares, drawn = self._patches_of(images, shares, drawn)
        outputs = self._outputs(images)
        weights = [0.5**k for k in range(len(outputs))]
        total = images.new_zeros(())
        for k, (logits, weight) in enumerate(zip(outputs, weights, strict=True)):
            targets = (F.avg_pool2d(one, 2**k) if k else one for one in (shares, drawn))
            total = total + weight / sum(weights) * told_loss(logits, *targets)
        return total

    def _patches_of(self, *aligned: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A patch of each slice of tensors (N, ., H, W): images, shares of the mask and of the points' discs."""
        images, shares, drawn = aligned
        count, (height, width) = len(images), images.shape[-2:]
        high, wide = min(self.patch[0], height), min(self.patch[1], width)
        corners = []
        for n in range(count):
            row, column = (int(torch.randint(full - part + 1, ())) for full, part in ((height, high), (width, wide)))
            known = shares[n, 1:] if shares[n, 1:].any() else drawn[n, 1:]
            if n >= count - math.ceil(FOREGROUND_SHARE * count) and known.any():
                row, column = _corner_around(known, (high, wide))
            corners.append((row, column))
        return tuple(
            torch.stack([part[:, r : r + high, c : c + wide] for part, (r, c) in zip(one, corners, strict=True)])
            for one in aligned
        )

    def _whole(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of normalised images (N, C, H, W) of any size, which are padded to what the stages divide."""
        height, width = images.shape[-2:]
        step = 2 ** (len(self.down) - 1)
        padded = F.pad(images, (0, -width % step, 0, -height % step))
        return self._outputs(padded, finest_only=True)[0][..., :height, :width]

    def _outputs(self, images: torch.Tensor, *, finest_only: bool = False) -> list[torch.Tensor]:
        """Logits at each resolution, the finest first, without the coarsest one (where there are more than two)."""
        skips = []
        maps = images
        for stage in self.down:
            maps = stage(maps)
            skips.append(maps)
        outputs: list[torch.Tensor] = []
        last = len(self.up) - 1
        for k in range(last, -1, -1):
            maps = self.up[k](torch.cat([self.grow[k](maps), skips[k]], 1))
            if k == 0 or not (finest_only or k == last):
                outputs.append(self.heads[k](maps))
        return outputs[::-1]


def features_of(features: int, stages: int) -> list[int]:
    """Features of each stage, the finest first.

    >>> features_of(32, 6)
    [32, 64, 128, 256, 512, 512]
    """
    return [min(features * 2**k, MOST_FEATURES) for k in range(stages)]


def normalised(images: torch.Tensor, kind: str) -> torch.Tensor:
    """Images (N, C, H, W) whose grey channels, all but the last, have mean 0 and deviation 1 on their middle slice.

    kind "nonzero": by the pixels above 0 alone, and what is 0 stays 0. The last channel is the lateral coordinate.
    """
    grey = images[:, :-1].float()
    middle = grey[:, grey.shape[1] // 2].flatten(1)
    counted = middle > 0 if kind == "nonzero" else torch.ones_like(middle, dtype=torch.bool)
    count = counted.sum(1).clamp_min(1)
    mean = (middle * counted).sum(1) / count
    deviation = (((middle - mean[:, None]) ** 2 * counted).sum(1) / count).sqrt().clamp_min(1e-3)
    scaled = (grey - mean[:, None, None, None]) / deviation[:, None, None, None]
    if kind == "nonzero":
        scaled = scaled * (grey > 0)
    return torch.cat([scaled.to(images.dtype), images[:, -1:]], 1)


def patches(size: Sequence[int], patch: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of patches that cover an image evenly, neighbours overlapping by at least half.

    >>> [(rows.start, rows.stop) for rows, _ in patches((10, 4), (4, 4))]
    [(0, 4), (2, 6), (4, 8), (6, 10)]
    """
    rows, columns = (_starts(full, part) for full, part in zip(size, patch, strict=True))
    high, wide = (min(full, part) for full, part in zip(size, patch, strict=True))
    return [(slice(r, r + high), slice(c, c + wide)) for r in rows for c in columns]


def _starts(full: int, part: int) -> list[int]:
    if full <= part:
        return [0]
    steps = math.ceil((full - part) / (part / 2))
    return [round(k * (full - part) / steps) for k in range(steps + 1)]


def middle_weights(size: Sequence[int]) -> torch.Tensor:
    """(h, w): a gaussian about the middle of a patch, 1 there and nowhere below 1e-3."""
    sides = []
    for n in size:
        away = torch.arange(n) - (n - 1) / 2
        sides.append(torch.exp(-0.5 * (away / (n * SIGMA)) ** 2))
    return (sides[0][:, None] * sides[1]).clamp_min(1e-3)


def _corner_around(shares: torch.Tensor, patch: Sequence[int]) -> tuple[int, int]:
    """First row and column of a patch that holds a random pixel of a random class of shares (K - 1, H, W)."""
    present = shares.flatten(1).any(1).nonzero()[:, 0]
    one = shares[present[int(torch.randint(len(present), ()))]]
    places = one.nonzero()
    place = places[int(torch.randint(len(places), ()))].tolist()
    corner = []
    for at, full, part in zip(place, one.shape, patch, strict=True):
        corner.append(min(max(at - part // 2, 0), full - part))
    return corner[0], corner[1]


_SLOPE = 0.01


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with instance norm and leaky ReLU; the first one may halve the resolution."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.InstanceNorm2d(after, affine=True),
        nn.LeakyReLU(_SLOPE, inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.InstanceNorm2d(after, affine=True),
        nn.LeakyReLU(_SLOPE, inplace=True),
    )

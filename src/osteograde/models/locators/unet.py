"""A segmenting locator: a U-Net labels every pixel, and the discs it outlines become maps like the heatmap's.

Shape legend: N slices (of all stacks of a batch), B stacks, L landmarks, C landmark channels (top level first),
K classes, H W input pixels, h w map pixels. Boxes are (x0, y0, x1, y1), pixel edges, as torchvision has them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from osteograde.errors import UserError
from osteograde.models.backbones import encoder, pyramid_shape
from osteograde.models.locators.base import LocatorBatch, start_of, target_parts

DISC = 1  # classes: 0 background, 1 disc, 2 vertebra, 3 canal
DISC_HALF_MM = (
    4.0,
    12.0,
)  # (down, along): half axes of the ellipse that stands for a disc where only its point is known
NEAR_MM = 25.0  # this near to a point, what is outside of every ellipse is no disc
_SMALL = 0.25  # of the usual area: a component below is noise
_FLOOR = 1e-6  # score of a place without any component
_WIDEST = 8  # the decoder doubles its width with every halving, up to this many times the finest width


class Component(NamedTuple):
    """One connected disc. x, y: its centroid, integer = pixel centre; probability: the mean over its pixels."""

    x: float
    y: float
    probability: float
    box: tuple[int, int, int, int]


class SegmentingLocator(nn.Module, ABC):
    """What nets that label every pixel have in common: maps out of the discs they outline, and their targets.

    channels: landmark channels of the maps. stride: input pixels of a map pixel. classes: with the background.
    """

    def __init__(self, channels: int, stride: int, classes: int) -> None:
        super().__init__()
        if classes <= DISC:
            raise UserError(f"net of {classes} classes; expected at least {DISC + 1}, background and disc")
        self.channels, self.stride, self.classes = channels, stride, classes

    @abstractmethod
    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (N, K, H / stride, W / stride)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps(images)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Log scores (N, C, h, w), without gradient: per channel a gaussian on its disc, as high as the disc is sure.

        The lowest disc of a slice is the last channel. Channels without a disc are flat and low.
        """
        found = self.segment(images).detach().float().softmax(1)[:, DISC]
        maps = torch.full((len(found), self.channels, *found.shape[1:]), _FLOOR, device=found.device)
        for n, probability in enumerate(found.cpu().numpy()):
            components = in_a_column(disc_components(probability))
            for component, channel in zip(components, disc_channels(components, self.channels), strict=True):
                if channel >= 0:
                    maps[n, channel] += _bump(component, maps.shape[-2:], maps.device)
        return torch.log(maps)

    def loss(self, batch: LocatorBatch) -> torch.Tensor:
        """Scalar. Slices with a mask learn from it, all others from discs drawn around the points of their stack.

        Each of the two is cross entropy plus soft Dice loss, as nnU-Net sums them (Isensee et al. 2021); they count by
        their slices. 0, with a gradient of 0, where nothing is known. Raises ValueError for a mask of another size than
        the images, or with a label that is no class.
        """
        return told_loss(self.segment(batch.images), *self.targets(batch))

    def targets(self, batch: LocatorBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """What is known of every map pixel: (N, K, h, w) the part that its mask gives to each class, and (N, 2, h, w)
        the same of no disc and disc as the points tell it. 0 where it is unknown."""
        height, width = batch.images.shape[-2] // self.stride, batch.images.shape[-1] // self.stride
        return self._mask_shares(batch), point_shares(batch, (height, width))

    def _mask_shares(self, batch: LocatorBatch) -> torch.Tensor:
        """(N, K, h, w): each map pixel's part that the mask gives to each class; their sum is the known part."""
        size, masks = (len(batch.images), *batch.images.shape[-2:]), batch.masks
        if masks is None:
            return batch.images.new_zeros(
                (size[0], self.classes, size[1] // self.stride, size[2] // self.stride)
            ).float()
        if tuple(masks.shape) != size:
            raise ValueError(
                f"masks are {tuple(masks.shape)}; expected {size}, one per slice at the images' resolution"
            )
        if int(masks.max()) >= self.classes:
            raise UserError(f"masks hold label {int(masks.max())}; the net has classes 0 to {self.classes - 1}")
        labels = torch.arange(self.classes, device=masks.device)[None, :, None, None]
        return F.avg_pool2d((masks[:, None] == labels).float(), self.stride)


class UnetLocator(SegmentingLocator):
    """(N, in_channels, H, W) -> log scores (N, channels, H / stride, W / stride).

    A U-Net (Ronneberger et al. 2015) whose contracting half is a timm encoder; ``segment`` returns its class logits.
    width: features of the finest decoder block. stages: how many stages of the encoder are used (0 = all). Raises
    ValueError for an unknown encoder, a stride other than 1, 2, 4 or 8, fewer than two classes, or an image size that
    stride does not divide.
    """

    def __init__(
        self,
        encoder_name: str,
        channels: int,
        in_channels: int = 4,
        width: int = 32,
        stride: int = 2,
        stages: int = 0,
        classes: int = 4,
    ) -> None:
        if stride not in (1, 2, 4, 8):
            raise UserError(f"stride of the map is {stride}; expected 1, 2, 4 or 8")
        super().__init__(channels, stride, classes)
        self.config: dict[str, Any] = {
            "kind": "unet",
            "encoder_name": encoder_name,
            "channels": channels,
            "in_channels": in_channels,
            "width": width,
            "stride": stride,
            "stages": stages,
            "classes": classes,
        }
        self.encoder = encoder(encoder_name, in_channels, stages=stages)
        counts, reduction = pyramid_shape(self.encoder)
        self.used = [i for i, r in enumerate(reduction) if r >= stride] or [len(reduction) - 1]
        widths = [width * min(2**k, _WIDEST) for k in range(len(self.used))]
        self.deepest = _block(counts[self.used[-1]], widths[-1])
        skips = zip(self.used[:-1], pairwise(widths), strict=True)
        self.blocks = nn.ModuleList(_block(counts[i] + below, here) for i, (here, below) in skips)
        self.head = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (N, K, H / stride, W / stride)."""
        h, w = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        if (h * self.stride, w * self.stride) != tuple(images.shape[-2:]):
            raise UserError(f"images are {tuple(images.shape[-2:])} pixels; expected multiples of {self.stride}")
        pyramid = self.encoder(images)
        maps = self.deepest(pyramid[self.used[-1]])
        for i, block in reversed(list(zip(self.used[:-1], self.blocks, strict=True))):
            skip = pyramid[i]
            maps = block(torch.cat([_resized(maps, skip.shape[-2], skip.shape[-1]), skip], 1))
        return _resized(self.head(maps), h, w)


def told_loss(logits: torch.Tensor, shares: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """``segmentation_loss`` of the slices with a mask, and of the others against discs drawn around points -> scalar.

    logits (N, K, h, w); shares (N, K, h, w) and drawn (N, 2, h, w): see ``SegmentingLocator.targets``.
    """
    log_p = logits.float().log_softmax(1)
    masked = shares.flatten(1).any(1)
    binary = torch.stack([_log_without(log_p, DISC), log_p[:, DISC]], 1)
    pointed = drawn.flatten(1).any(1) & ~masked
    total = log_p.sum() * 0
    for told, scores, target in ((masked, log_p, shares), (pointed, binary, drawn)):
        if told.any():
            weight = told.sum() / (masked | pointed).sum()
            total = total + weight * segmentation_loss(scores[told], target[told])
    return total


def segmentation_loss(log_p: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus soft Dice loss over the known pixels of a batch -> scalar.

    log_p (N, K, h, w): log probabilities. shares (N, K, h, w): the target's part of each class in a pixel; they sum to
    1 where all of the pixel is known and to 0 where nothing is. Dice: over the whole batch, averaged over the
    foreground classes that it shows. 0 where nothing is known.
    """
    known = shares.sum(1, keepdim=True)
    entropy = -(shares * log_p).sum() / known.sum().clamp_min(1e-6)
    p = log_p.exp() * known
    overlap, size = (p * shares).sum((0, 2, 3))[1:], (p + shares).sum((0, 2, 3))[1:]
    shown = shares.sum((0, 2, 3))[1:] > 0
    dice = torch.where(shown, 1 - 2 * overlap / size.clamp_min(1e-6), torch.zeros_like(size))
    return entropy + dice.sum() / shown.sum().clamp_min(1)


def point_shares(batch: LocatorBatch, size: tuple[int, int]) -> torch.Tensor:
    """(N, 2, h, w) on a map of ``size``: no disc and disc, as far as the points tell; 0 in both where unknown.

    On the slice nearest to each labelled point an ellipse of half axes DISC_HALF_MM around it is disc; what lies within
    NEAR_MM of a point and in no ellipse is no disc.
    """
    stride = batch.images.shape[-1] // size[1]
    points, stack = batch.points.float(), batch.stack
    order = torch.arange(len(stack), device=stack.device) - start_of(stack, len(points))[stack]
    last = torch.bincount(stack, minlength=len(points)) - 1
    nearest = torch.minimum(points[..., 0].round().clamp_min(0), last[:, None])[stack]
    shown = target_parts(batch, size).labelled[stack] & (nearest == order[:, None])
    n, landmark = shown.nonzero(as_tuple=True)
    centre = points[stack[n], landmark, 1:]
    rows, columns = ((torch.arange(s, device=stack.device) + 0.5) * stride - 0.5 for s in size)
    down = ((rows - centre[:, :1]) * batch.pixel_mm)[:, :, None]
    along = ((columns - centre[:, 1:]) * batch.pixel_mm)[:, None]
    inside = (down / DISC_HALF_MM[0]) ** 2 + (along / DISC_HALF_MM[1]) ** 2 <= 1
    around = down**2 + along**2 <= NEAR_MM**2
    empty = points.new_zeros((len(stack), *size))
    disc = empty.index_add(0, n, inside.float()) > 0
    near = empty.index_add(0, n, around.float()) > 0
    return torch.stack([near & ~disc, disc], 1).float()


def disc_components(probability: np.ndarray) -> list[Component]:
    """Discs in a map of disc probabilities (h, w), the lowest of the image first.

    Connected pixels above 0.5; components below a quarter of the usual area are noise. The usual area is that of the
    component in which the median pixel lies, so many specks of noise do not make a speck usual.
    """
    mask = (probability > 0.5).astype(np.uint8)
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return []
    area = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    usual = np.median(np.repeat(area[1:], area[1:]))
    mean = np.bincount(labels.ravel(), weights=probability.ravel().astype(float), minlength=count) / area
    found = []
    for i in np.flatnonzero(area[1:] >= _SMALL * usual) + 1:
        x0, y0, wide, high = (int(v) for v in stats[i, :4])
        box = (x0, y0, x0 + wide, y0 + high)
        found.append(Component(float(centroids[i, 0]), float(centroids[i, 1]), float(mean[i]), box))
    return sorted(found, key=lambda component: -component.y)


def in_a_column(components: Sequence[Component]) -> list[Component]:
    """Those of the components, the lowest first, that lie above one another as discs do: the surest such column.

    From one disc to the next it goes up more than aside, and at least half as far and at most four times as far as a
    disc is wide. Fat and bowel that look like discs are less sure, and beside the spine.
    """
    if not components:
        return []
    wide = float(np.median([component.box[2] - component.box[0] for component in components]))
    best, below = [(2 * component.probability - 1) ** 2 for component in components], [-1] * len(components)
    for i, upper in enumerate(components):
        own = best[i]
        for k, lower in enumerate(components[:i]):
            rise, aside = lower.y - upper.y, abs(lower.x - upper.x)
            if aside < rise and 0.5 * wide <= np.hypot(rise, aside) <= 4 * wide and own + best[k] > best[i]:
                best[i], below[i] = own + best[k], k
    column, i = [], int(np.argmax(best))
    while i >= 0:
        column.append(components[i])
        i = below[i]
    return column[::-1]


def disc_channels(components: Sequence[Component], channels: int) -> list[int]:
    """Channel of each component, given the lowest first: that one is the last channel, and -1 is above the first.

    A step that is 1.5 times as long as the usual one or longer skips channels: a disc in between was not found, and the
    ones above keep their level. The usual step is the lower median, which one gap among two steps does not move.
    """
    if not components:
        return []
    steps = [float(np.hypot(a.x - b.x, a.y - b.y)) for a, b in pairwise(components)]
    usual = sorted(steps)[(len(steps) - 1) // 2] if steps else 1.0
    taken = [channels - 1]
    for step in steps:
        taken.append(taken[-1] - max(1, int(step / usual + 0.5)))
    return [max(channel, -1) for channel in taken]


def _bump(component: Component, size: Sequence[int], device: torch.device) -> torch.Tensor:
    """(h, w): a gaussian, sigma a quarter of the component's thickness, as high as its mean probability."""
    x0, y0, x1, y1 = component.box
    sigma = max(min(x1 - x0, y1 - y0) / 4, 1.0)
    rows, columns = (torch.arange(n, device=device) for n in size)
    down = torch.exp(-0.5 * ((rows - component.y) / sigma) ** 2)
    along = torch.exp(-0.5 * ((columns - component.x) / sigma) ** 2)
    return component.probability * down[:, None] * along


def _log_without(log_p: torch.Tensor, label: int) -> torch.Tensor:
    """log(1 - p of the label): (N, K, h, w) -> (N, h, w). Summed from the others, so it is exact near p = 1."""
    return torch.cat([log_p[:, :label], log_p[:, label + 1 :]], 1).logsumexp(1)


def _resized(maps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == (h, w):
        return maps
    return F.interpolate(maps, size=(h, w), mode="bilinear", align_corners=False)


def _block(before: int, after: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )

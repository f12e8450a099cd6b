"""Mixup and cutmix: a training image is blended with another one, or has a box of it, and its label is shared alike.

Mixup (Zhang et al., ICLR 2018) adds both images pixel by pixel. Cutmix (Yun et al., ICCV 2019) pastes a box of the
other image. Either way the share of an image is the mean of its weight over the pixels, and its label counts as much.

Shapes: S sites of a batch, D slices, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Mix:
    """partner (S,): the site that each one is mixed with, itself where it stays as it is; weight (S, H, W) in 0..1: of
    its own pixels, those of the partner having the rest."""

    partner: np.ndarray
    weight: np.ndarray

    @property
    def own(self) -> np.ndarray:
        """(S,) share of each site's own image in the mixed one, and so of its own label."""
        return self.weight.mean((1, 2), dtype=np.float64).astype(np.float32)


def draw_mix(rng: np.random.Generator, alike: np.ndarray, size: tuple[int, int], mixup: float, cutmix: float) -> Mix:
    """Draw a partner and weights for each site.

    alike (S, any): rows of numbers; a site is mixed only with sites that have the same row. size: (H, W). mixup,
    cutmix: the parameter of the symmetric beta distribution from which the share of the own image is drawn; 0: off.
    With both, every site is mixed by one of them, each as often as the other.
    """
    count = len(alike)
    _, group = np.unique(alike, axis=0, return_inverse=True)
    partner = np.arange(count)
    for number in range(group.max() + 1):
        rows = np.flatnonzero(group.reshape(-1) == number)
        partner[rows] = rng.permutation(rows)
    is_cut = rng.random(count) < (0.5 if mixup and cutmix else float(cutmix > 0))
    own = np.where(is_cut, rng.beta(cutmix or 1, cutmix or 1, count), rng.beta(mixup or 1, mixup or 1, count))
    weight = np.ones((count, *size), np.float32) * own.astype(np.float32)[:, None, None]
    for i in np.flatnonzero(is_cut):
        weight[i] = 1
        weight[(i, *random_box(rng, size, 1 - own[i]))] = 0
    return Mix(partner, weight)


def random_box(rng: np.random.Generator, size: tuple[int, int], share: float) -> tuple[slice, slice]:
    """Rows and columns of a box at a random place inside of an image of ``size`` (H, W): of the shape of the image, its
    area that share of the image's but for rounding to whole pixels."""
    lengths = [round(side * np.sqrt(share)) for side in size]
    starts = [int(rng.integers(side - length + 1)) for side, length in zip(size, lengths, strict=True)]
    rows, columns = (slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
    return rows, columns


def mixed(images: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Images (S, D, H, W) mixed with those of their partners."""
    weight = torch.from_numpy(mix.weight).to(images.device)[:, None]
    partner = torch.from_numpy(mix.partner).to(images.device)
    return weight * images + (1 - weight) * images[partner]

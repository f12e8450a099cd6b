"""A Siamese grader: two crops of a site pass through one small encoder, and one linear layer reads both.

Tiulpin et al., Scientific Reports 8:1727, 2018. The lateral and the medial part of a joint are mirror images of each
other to a first approximation, so they are read mirrored onto each other and share every filter. Written anew from the
description in the paper; with the published sizes (``width`` 64, one input channel, five classes) it has the published
595,077 parameters.

Shape legend: B sites, D slices of a crop, H W pixels, F features of a crop, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.models.grader import NORMALISATIONS, normalised

CROPS = 2
SMALLEST = 49  # pixels of a side from which the last convolution has something to read


class SiameseNet(nn.Module):
    """Two crops of a site, and which of them exist, -> logits (B, K + head_outputs).

    Every crop is reduced to F = 4 ``width`` features by one encoder without padding: three convolutions of ``width``
    filters, the first of stride 2, then two of 2 ``width`` and one of 4 ``width``, all 3 x 3 with batch norm and ReLU;
    between the groups the maps are halved, and at the end they are averaged. Of a crop with several slices the middle
    one is read. An absent crop has features 0, whatever its pixels are. normalise: see ``GraderNet``.

    UserError for another number of crops than two.
    """

    def __init__(
        self,
        crops: int = CROPS,
        classes: int = 5,
        width: int = 64,
        dropout: float = 0.2,
        *,
        normalise: str = "fixed",
        head_outputs: int = 0,
    ) -> None:
        super().__init__()
        if crops != CROPS:
            raise UserError(
                f"a siamese net compares {CROPS} crops of a site, got {crops}; name them in GraderPlan.crops"
            )
        if normalise not in NORMALISATIONS:
            raise UserError(f"normalise is {normalise!r}; expected one of {sorted(NORMALISATIONS)}")
        self.config: dict[str, Any] = {
            "kind": "siamese",
            "crops": crops,
            "classes": classes,
            "width": width,
            "dropout": dropout,
            "normalise": normalise,
            "head_outputs": head_outputs,
        }
        self.crops, self.normalise, self.features = crops, normalise, 4 * width
        self.encoder = _encoder(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(CROPS * self.features, classes + head_outputs)

    def forward(self, crops: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """crops: two tensors (B, D, H, W) in 0..1; present (B, 2) bool -> (B, K + head_outputs). ValueError for another
        number of crops, or for crops smaller than the encoder can read."""
        if len(crops) != self.crops or tuple(present.shape) != (len(present), self.crops):
            raise ValueError(
                f"got {len(crops)} crops of a site and present {tuple(present.shape)}; expected {self.crops} crops"
            )
        read = torch.cat([self._features(crop, present[:, c]) for c, crop in enumerate(crops)], 1)
        return self.head(self.dropout(read.to(self.head.weight.dtype)))

    def _features(self, crop: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W) -> (B, F) float32; rows of absent crops are 0."""
        if min(crop.shape[-2:]) < SMALLEST:
            raise ValueError(f"a crop of {tuple(crop.shape[-2:])} pixels; this net reads {SMALLEST} and more per side")
        features = crop.new_zeros((len(crop), self.features), dtype=torch.float32)
        rows = present.nonzero()[:, 0]
        if not len(rows):
            return features
        middle = crop[rows, crop.shape[1] // 2][:, None]
        images = normalised(middle.float(), self.normalise).contiguous(memory_format=torch.channels_last)
        return features.index_copy(0, rows, self.encoder(images).float())


def _encoder(width: int) -> nn.Sequential:
    """(B, 1, H, W) -> (B, 4 width)."""
    layers: list[nn.Module] = [
        *_convolution(1, width, stride=2),
        *_convolution(width, width),
        *_convolution(width, width),
        nn.MaxPool2d(2),
        *_convolution(width, 2 * width),
        *_convolution(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *_convolution(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """A 3 x 3 convolution without padding, initialised after He et al. (2015), its batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride)
    nn.init.kaiming_uniform_(convolution.weight)
    return convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU(inplace=True)

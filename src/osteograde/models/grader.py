"""Graders: slices of one or more crops -> one shared encoder -> pooling over all slices -> class logits.

Shape legend: B sites, V crops, D slices of one crop, H W pixels, M present slices of a crop over the whole batch,
S slices of all crops together, F encoder features, T token width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.models.backbones import classifier_body
from osteograde.models.covariates import WIDTH as COVARIATE_WIDTH
from osteograde.models.covariates import CovariateFeatures, Values

_FURTHEST = 16  # slices further than this from the crop's centre share one position
NORMALISE = {"fixed": (0.5, 0.25), "imagenet": (0.449, 0.226)}  # mean, deviation; ImageNet: means over its channels
NORMALISATIONS = ("crop", *NORMALISE)
_FLATTEST = 0.02  # smallest standard deviation a crop is divided by: noise of an empty crop is not blown up


class GraderNet(nn.Module):
    """V crops of a site, and which of them exist, -> logits (B, K + head_outputs).

    A crop that is absent is never encoded nor pooled: its pixels have exactly no influence. With no crop at all the
    logits are those of an empty bag, finite. backbone, stages, pixels: see ``backbones.classifier_body``.
    pool: "attention" (gated, over the slices of all present crops), "mean", or "centre" (each present crop's middle
    slice D // 2). neighbours: every slice is read with the two beside it as three channels (2.5D).
    head_outputs: logits of the auxiliary heads, behind those of the K classes.
    normalise: "crop" (each crop to mean 0 and deviation 1), "fixed" (0..1 to about -2..2) or "imagenet" (the mean and
    deviation of ImageNet's grey values, which torchvision's weights expect). width: 0 = the encoder's features are the
    tokens as they are, and the net is its trunk with one linear layer. covariates: what is read beside the crops, dicts
    with the fields of ``spec.Covariate``; their features stand beside the pooled ones before the last layer, where they
    count for nothing at first.
    """

    def __init__(
        self,
        backbone: str,
        crops: int,
        classes: int = 3,
        dropout: float = 0.2,
        pool: str = "attention",
        *,
        width: int = 128,
        stages: int = 0,
        pixels: int = 0,
        neighbours: bool = False,
        normalise: str = "crop",
        head_outputs: int = 0,
        covariates: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        if pool not in ("attention", "mean", "centre"):
            raise UserError(f"pool is {pool!r}; expected 'attention', 'mean' or 'centre'")
        if normalise not in NORMALISATIONS:
            raise UserError(f"normalise is {normalise!r}; expected one of {sorted(NORMALISATIONS)}")
        self.config: dict[str, Any] = {
            "kind": "grader",
            "backbone": backbone,
            "crops": crops,
            "classes": classes,
            "dropout": dropout,
            "pool": pool,
            "width": width,
            "stages": stages,
            "pixels": pixels,
            "neighbours": neighbours,
            "normalise": normalise,
            "head_outputs": head_outputs,
            **({"covariates": [dict(one) for one in covariates]} if covariates else {}),
        }
        self.crops, self.pool = crops, pool
        self.neighbours, self.normalise = neighbours, normalise
        self.encoder, features = classifier_body(backbone, 3 if neighbours else 1, stages=stages, pixels=pixels)
        self.plain = width == 0
        width = self.width = width or features
        self.token = nn.Identity() if self.plain else nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width))
        if not self.plain:
            self.view = nn.Embedding(crops, width)  # one vector per crop; the name is that of the shipped weights
            self.position = nn.Embedding(2 * _FURTHEST + 1, width)
            for table in (self.view, self.position):
                nn.init.normal_(table.weight, std=0.02)
        if not self.plain or pool == "attention":
            self.attend, self.gate = nn.Linear(width, 64), nn.Linear(width, 64)
            self.score = nn.Linear(64, 1)
        self.dropout = nn.Dropout(dropout)
        self.covariates = CovariateFeatures(covariates) if covariates else None
        self.head = nn.Linear(width, classes + head_outputs)
        if covariates:  # one layer over both, in two parts: a net with covariates can start from one without
            self.covariate_head = nn.Linear(COVARIATE_WIDTH, classes + head_outputs, bias=False)
            nn.init.zeros_(self.covariate_head.weight)

    def forward(
        self, crops: Sequence[torch.Tensor], present: torch.Tensor, covariates: Values | None = None
    ) -> torch.Tensor:
        """crops: V tensors (B, D_v, H, W) in 0..1; present (B, V) bool -> (B, K + head_outputs). covariates: name ->
        (B,), NaN or absent where unknown; a net that reads none of them ignores them. ValueError for another number of
        crops than the net was made for."""
        if len(crops) != self.crops or tuple(present.shape) != (len(present), self.crops):
            raise ValueError(
                f"got {len(crops)} crops of a site and present {tuple(present.shape)}; expected {self.crops} crops"
            )
        tokens, mask = [], []
        for v, crop in enumerate(crops):
            tokens.append(self._tokens(v, crop, present[:, v]))
            mask.append(self._counted(crop.shape[1], present[:, v]))
        pooled = self._pooled(torch.cat(tokens, 1), torch.cat(mask, 1))
        logits = self.head(self.dropout(pooled.to(self.head.weight.dtype)))
        if self.covariates is None:
            return logits
        return logits + self.covariate_head(self.covariates(covariates or {}, len(logits)))

    def _tokens(self, view: int, crop: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W) -> (B, D, T); rows of absent crops are 0."""
        b, d = crop.shape[:2]
        rows = present.nonzero()[:, 0]
        if not len(rows):
            return crop.new_zeros((b, d, self.width), dtype=torch.float32)
        token = self.token(self.encoder(self.images(crop[rows]))).float().unflatten(0, (-1, d))
        if self.plain:
            return token.new_zeros((b, d, self.width)).index_copy(0, rows, token)
        place = (torch.arange(d, device=crop.device) - d // 2).clamp(-_FURTHEST, _FURTHEST) + _FURTHEST
        token = nn.functional.gelu(token + self.view.weight[view] + self.position(place))
        return token.new_zeros((b, d, self.width)).index_copy(0, rows, token)

    def images(self, crop: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W) in 0..1 -> (B D, channels, H, W): every slice of one crop as the encoder reads it."""
        slices = normalised(crop.float(), self.normalise)
        images = _with_neighbours(slices) if self.neighbours else slices[:, :, None]
        return images.flatten(0, 1)

    def feature_map(self, crop: torch.Tensor, stride: int = 8) -> torch.Tensor:
        """(B, D, H, W) in 0..1 -> (B D, C, H / stride, W / stride): the last such map inside the encoder. UserError
        where the encoder is no sequence of ``features``, as most of torchvision's are."""
        layers = getattr(self.encoder, "features", None)
        if not isinstance(layers, nn.Sequential):
            raise UserError(
                f"{self.config['backbone']!r} has no sequence of features; image checks need such a backbone"
            )
        found = values = self.images(crop)
        for layer in layers:
            values = layer(values)
            if values.shape[-1] * stride < crop.shape[-1]:
                break
            found = values
        return found

    def _counted(self, d: int, present: torch.Tensor) -> torch.Tensor:
        """(B, D) bool: the slices that are pooled."""
        mask = present[:, None].expand(-1, d)
        if self.pool != "centre":
            return mask
        return mask & (torch.arange(d, device=present.device) == d // 2)

    def _pooled(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, S, T), (B, S) bool -> (B, T); 0 where the mask is empty. In float32 also under autocast."""
        weight = mask.float()
        if self.pool == "attention":
            score = self.score(torch.tanh(self.attend(tokens)) * torch.sigmoid(self.gate(tokens)))[..., 0].float()
            top = score.detach().masked_fill(~mask, torch.finfo(score.dtype).min).amax(1, keepdim=True)
            weight = (score - top).masked_fill(~mask, -torch.inf).exp()
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        with torch.autocast(tokens.device.type, enabled=False):  # which would make a product of halves of the sum
            return torch.einsum("bs,bst->bt", weight, tokens.float())


def normalised(crops: torch.Tensor, how: str) -> torch.Tensor:
    """Grey values (..., D, H, W) in 0..1 as an encoder reads them; how: one of ``NORMALISATIONS``."""
    if how in NORMALISE:
        mean_grey, deviation_grey = NORMALISE[how]
        return (crops - mean_grey) / deviation_grey
    deviation, mean = torch.std_mean(crops, (-3, -2, -1), keepdim=True, correction=0)
    return (crops - mean) / deviation.clamp_min(_FLATTEST)


def _with_neighbours(slices: torch.Tensor) -> torch.Tensor:
    """(M, D, H, W) -> (M, D, 3, H, W): previous, this, next; the ends repeat themselves."""
    before = torch.cat([slices[:, :1], slices[:, :-1]], 1)
    after = torch.cat([slices[:, 1:], slices[:, -1:]], 1)
    return torch.stack([before, slices, after], 2)

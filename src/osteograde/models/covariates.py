"""What a grader reads beside the images: numbers and categories of a site, as features beside those of its crops.

Mean, deviation and the categories that occur are measured on the training studies of a fold (``fit``) and belong to the
weights, as buffers. A value that is unknown has no influence of its own: it counts as the mean of a number or as no
category, and an indicator says that it is missing.

Shape legend: B sites, C covariates, P possible values (one of a number, one of every category), F features.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from osteograde.tasks.spec import CATEGORY, NUMBER, Covariate

WIDTH = 32  # features
LIMIT = 4.0  # deviations from the mean beyond which a number is cut off: a slip of the pen does not decide a grade

Values = Mapping[str, torch.Tensor]  # covariate -> (B,) numbers, indices of categories; NaN where unknown


class CovariateFeatures(nn.Module):
    """Values of the covariates of B sites -> features (B, WIDTH), finite whatever is unknown.

    covariates: as a net's config has them, dicts with the fields of ``spec.Covariate``. Values of covariates that are
    not given count as unknown, and so do categories that no training site had.
    """

    full_precision = True  # half precision would overflow on large numbers

    mean: torch.Tensor  # (C,) of known training values; 0 of categories
    deviation: torch.Tensor  # (C,) 1 of categories and of numbers that do not vary
    occurs: torch.Tensor  # (P,) whether training sites had the category, or the number at all
    measured: torch.Tensor  # (C,) of which covariates these are the figures, as checksums; 0: not measured yet

    def __init__(self, covariates: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.reads = tuple(Covariate(one["name"], one["kind"], tuple(one.get("categories", ()))) for one in covariates)
        self.register_buffer("mean", torch.zeros(len(self.reads)))
        self.register_buffer("deviation", torch.ones(len(self.reads)))
        self.register_buffer("occurs", torch.zeros(sum(map(_possible, self.reads)), dtype=torch.bool))
        self.register_buffer("measured", torch.zeros(len(self.reads), dtype=torch.int64))
        columns = len(self.occurs) + len(self.reads)  # a missing indicator each
        self.embed = nn.Linear(columns, WIDTH)
        with torch.no_grad():  # where nothing is ever missing in training, the indicators stay without effect
            self.embed.weight[:, len(self.occurs) :] = 0

    @property
    def is_measured(self) -> bool:
        """Whether ``fit`` was called, here or where the weights come from, with these very covariates."""
        return self.measured.tolist() == [_checksum(one) for one in self.reads]

    @torch.no_grad()
    def fit(self, values: Mapping[str, np.ndarray]) -> None:
        """Measure mean, deviation and occurring categories of training values: covariate -> (N,), NaN where unknown."""
        start = 0
        for c, covariate in enumerate(self.reads):
            given = np.asarray(values.get(covariate.name, ()), float)
            given = given[np.isfinite(given)]
            own = slice(start, start + _possible(covariate))
            start = own.stop
            if covariate.kind == NUMBER:
                spread = float(given.std()) if len(given) else 0.0
                self.mean[c] = float(given.mean()) if len(given) else 0.0
                self.deviation[c] = spread if spread > 0 else 1.0
                self.occurs[own] = len(given) > 0
            else:
                counts = np.bincount(given.astype(int), minlength=len(covariate.categories))
                self.occurs[own] = torch.from_numpy(counts > 0).to(self.occurs.device)
                self.mean[c], self.deviation[c] = 0.0, 1.0
            self.measured[c] = _checksum(covariate)

    def forward(self, values: Values, count: int) -> torch.Tensor:
        """(B, WIDTH) of ``count`` = B sites."""
        parts, missing = self.columns(values, count)
        return nn.functional.gelu(self.embed(torch.cat([*parts, missing.float()], 1)))

    def columns(self, values: Values, count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(per covariate (B, possible values): a number in deviations from the mean, a category as 0 and 1; (B, C)
        bool, whether it is missing). Rows of missing values are 0."""
        parts, missing, start = [], [], 0
        for c, covariate in enumerate(self.reads):
            given = values.get(covariate.name)
            value = self.mean.new_full((count,), torch.nan) if given is None else given.to(self.mean)
            occurs = self.occurs[start : start + _possible(covariate)]
            start += len(occurs)
            if covariate.kind == CATEGORY:
                part = (value[:, None] == torch.arange(len(occurs), device=value.device)) & occurs
                known = part.any(1)
            else:
                known = torch.isfinite(value) & occurs[0]
                part = ((value - self.mean[c]) / self.deviation[c]).clamp(-LIMIT, LIMIT)[:, None]
            parts.append(torch.where(known[:, None], part.float(), 0.0))
            missing.append(~known)
        return parts, torch.stack(missing, 1)


def _possible(covariate: Covariate) -> int:
    return len(covariate.categories) if covariate.kind == CATEGORY else 1


def _checksum(covariate: Covariate) -> int:
    return zlib.crc32(repr((covariate.name, covariate.kind, covariate.categories)).encode())


def features_of(net: nn.Module) -> CovariateFeatures | None:
    """The part of a net that reads covariates; None of a net that reads none."""
    found = getattr(net, "covariates", None)
    return found if isinstance(found, CovariateFeatures) else None

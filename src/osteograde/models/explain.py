"""Maps over a grader's crops that show where its answer comes from: methods by name, folds averaged, scaled to 0..1.

Shape legend: B sites, D slices of one crop, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from osteograde.models.covariates import Values
from osteograde.models.gradcam import raw_cam
from osteograde.models.grader import GraderNet
from osteograde.models.saliency import raw_saliency, raw_smoothgrad


class RawMaps(Protocol):
    """A method: per crop a map (B, D, H, W) >= 0 of one net, in any unit, for class ``target`` (B,) of each site."""

    def __call__(
        self,
        net: GraderNet,
        crops: Sequence[torch.Tensor],
        present: torch.Tensor,
        target: torch.Tensor,
        covariates: Values | None,
        /,
    ) -> list[torch.Tensor]: ...


METHODS: Mapping[str, RawMaps] = {"gradcam": raw_cam, "saliency": raw_saliency, "smoothgrad": raw_smoothgrad}


def fold_maps(
    nets: Sequence[GraderNet],
    crops: Sequence[torch.Tensor],
    present: torch.Tensor,
    target: torch.Tensor,
    method: str = "gradcam",
    covariates: Sequence[Values] = (),
) -> list[torch.Tensor]:
    """Per crop a map (B, D, H, W) in 0..1 for class ``target`` (B,), the mean over the nets of several folds; crops and
    present as the nets take them, and for each net the covariates that it reads; none: unknown.

    Maps are averaged first and scaled together after: the largest value over all crops and slices of a site is 1, or
    all are 0. Absent crops are 0. ValueError as the methods raise it.
    """
    known = covariates or [{}] * len(nets)
    folds = [METHODS[method](net, crops, present, target, values) for net, values in zip(nets, known, strict=True)]
    return scaled([torch.stack(views).mean(0) for views in zip(*folds, strict=True)])


def scaled(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Maps (B, D, H, W) >= 0 of all crops, divided by the largest value of each site; sites without one stay 0."""
    top = torch.stack([view.flatten(1).amax(1) for view in maps]).amax(0)
    top = torch.where(top > 0, top, torch.ones_like(top))
    return [view / top[:, None, None, None] for view in maps]

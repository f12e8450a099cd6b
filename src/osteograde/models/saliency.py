"""Which pixels of its crops a grader's answer hangs on: the gradient of a class logit by the input, plain or smoothed.

Plain: Simonyan et al., "Deep Inside Convolutional Networks", ICLR workshop 2014: the size of the gradient. Smoothed:
Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017: the mean of the gradients' sizes at noisy copies of
the input. Both are as fine as the crop, need no map inside the net, and so work for every backbone. They tell where a
small change of a pixel changes the answer, not where the evidence for a class is.

Shape legend: B sites, D slices of one crop, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from osteograde.models.covariates import Values
from osteograde.models.grader import GraderNet

SAMPLES = 16  # noisy copies
NOISE = 0.15  # their standard deviation, as a share of the range of the crop's values
SEED = 0  # of the noise: the same crop gets the same map every time


def raw_saliency(
    net: GraderNet,
    crops: Sequence[torch.Tensor],
    present: torch.Tensor,
    target: torch.Tensor,
    covariates: Values | None = None,
) -> list[torch.Tensor]:
    """Per crop (B, D, H, W) >= 0: change of the logit of class ``target`` (B,) per unit of grey of each pixel.

    crops and present as the net takes them; absent crops are 0. The net, its gradients and the caller's gradient mode
    are left as they were; it may be called in inference mode. ValueError for a net in training mode.
    """
    if net.training:
        raise ValueError("saliency of a net in training mode: its batch would mix the sites; call net.eval() first")
    with torch.inference_mode(False), torch.enable_grad():
        views = [crop.detach().clone().requires_grad_() for crop in crops]  # what inference mode made has no gradient
        known = ({name: values.detach().clone() for name, values in covariates.items()},) if covariates else ()
        logits = net(views, present.detach().clone(), *known)
        chosen = logits.gather(1, target.detach().clone().to(logits.device)[:, None]).sum()
        if not chosen.requires_grad:  # no site has any crop
            return [torch.zeros_like(view, requires_grad=False) for view in views]
        gradients = torch.autograd.grad(chosen, views, allow_unused=True)
    return [
        torch.zeros_like(view, requires_grad=False) if gradient is None else gradient.abs()
        for view, gradient in zip(views, gradients, strict=True)
    ]


def raw_smoothgrad(
    net: GraderNet,
    crops: Sequence[torch.Tensor],
    present: torch.Tensor,
    target: torch.Tensor,
    covariates: Values | None = None,
) -> list[torch.Tensor]:
    """``raw_saliency``, averaged over SAMPLES copies of the crops with Gaussian noise."""
    spread = [NOISE * (crop.amax((1, 2, 3), keepdim=True) - crop.amin((1, 2, 3), keepdim=True)) for crop in crops]
    noise = torch.Generator().manual_seed(SEED)
    total = [torch.zeros(crop.shape, device=crop.device) for crop in crops]
    for _ in range(SAMPLES):
        noisy = [
            crop + deviation * torch.randn(crop.shape, generator=noise).to(crop.device)
            for crop, deviation in zip(crops, spread, strict=True)
        ]
        for summed, one in zip(total, raw_saliency(net, noisy, present, target, covariates), strict=True):
            summed += one
    return [summed / SAMPLES for summed in total]

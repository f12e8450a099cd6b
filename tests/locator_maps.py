"""From maps of a locator to points in one call, and its targets as dense maps: what tests ask of every locator."""

from __future__ import annotations

import torch

from osteograde.models.locators.base import (
    Decoded,
    LocatorBatch,
    probabilities,
    refined,
    stack_peaks,
    target_parts,
)


def targets(batch: LocatorBatch, size: tuple[int, int]) -> torch.Tensor:
    """The targets as one dense map (N, L, h, w): sums to 1 over each stack, 0 where unlabelled."""
    parts = target_parts(batch, size)
    return parts.rows[..., None] * parts.columns[..., None, :]


def decode(
    logits: torch.Tensor,
    stack: torch.Tensor,
    channel: torch.Tensor,
    side: torch.Tensor,
    lateral: torch.Tensor,
    *,
    pixel_mm: float,
    slice_mm: float | torch.Tensor,
) -> Decoded:
    """Logits (N, C, h, w) -> index (B, L, 3) in input pixels and confidence (B, L), each landmark at its highest
    place."""
    found = probabilities(logits, stack, channel, side, lateral)
    stride = lateral.shape[-1] // logits.shape[-1]
    return decode_probabilities(found, stack, stride=stride, pixel_mm=pixel_mm, slice_mm=slice_mm)


def decode_probabilities(
    found: torch.Tensor, stack: torch.Tensor, *, stride: int, pixel_mm: float, slice_mm: float | torch.Tensor
) -> Decoded:
    """The same from probabilities (N, L, h, w)."""
    return refined(found, stack, stack_peaks(found, stack), stride=stride, pixel_mm=pixel_mm, slice_mm=slice_mm)

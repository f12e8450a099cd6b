"""Checks of maps: how much of a map lies where the answer should come from, and whether it depends on what was learnt.

The second is the randomisation test of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: a method whose
maps are alike for a trained net and for one of random weights shows the image and not the net.

Shapes: D slices, H W pixels of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from osteograde.imaging.geometry import Roi, apply
from osteograde.models.bundle import build_net


def band(roi: Roi, point_mm: np.ndarray, half_height_mm: float) -> np.ndarray:
    """(D, H, W) bool: the pixels of a box at most ``half_height_mm`` above or below a point (3,), by the direction of
    the box's rows. Around the centre of a joint this is the band of the joint line."""
    down = roi.to_mm[:3, 1] / np.linalg.norm(roi.to_mm[:3, 1])
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in roi.shape), indexing="ij"), -1)
    return np.abs((apply(roi.to_mm, index) - point_mm) @ down) <= half_height_mm


def share_inside(heat_DHW: np.ndarray, inside_DHW: np.ndarray) -> float:
    """The share of a map's sum that lies inside; nan for a map of zeros.

    >>> share_inside(np.array([[[1.0, 3.0]]]), np.array([[[False, True]]]))
    0.75
    """
    total = float(heat_DHW.sum())
    return float(heat_DHW[inside_DHW].sum()) / total if total > 0 else float("nan")


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two maps of the same shape; nan where one of them is the same everywhere.

    >>> round(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 400.0])), 6)
    1.0
    """
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def with_random_weights(nets: Sequence[Any], seed: int) -> list[Any]:
    """Nets of the same configs that have learnt nothing, in evaluation mode on the same devices. The caller's random
    state is left as it was."""
    made: list[Any] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for net in nets:
            fresh = build_net(dict(net.config))
            made.append(fresh.eval().to(next(net.parameters()).device))
    return made

"""Checks of the image itself: whether a crop shows what the grader learnt from, and which side it is of.

A crop is cut into its two halves. The right half is mirrored, so that both read as left halves. An early feature map of
the grader's first net, averaged over the cells of a coarse grid, describes each by F features: a of the left half, b of
the mirrored right half.

Side. A direction w learnt from crops whose side is known gives the score w . (a - b). The mirror image of a crop has
the features b and a, hence exactly the opposite score: a crop and its mirror image are told apart, and nothing else
matters. The score is positive where the crop is not mirrored.

Unusual images. The features [a, b] of known crops vary along K principal axes. The distance of a crop is what the axes
leave over of its features, in units of what they usually leave over (the Q statistic of Jackson and Mudholkar,
Technometrics 21:341, 1979). Beyond a threshold the image is unlike all known ones.

The numbers lie in a file of safetensors, which the manifest names under ``checks``. Shape legend: S crops, H W pixels,
F features of a half, G = 2 F, K axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from osteograde.models.bundle import Bundle
from osteograde.pipeline.crops import site_boxes, site_crops
from osteograde.pipeline.load import Loaded
from osteograde.pipeline.predict import Nets, with_memory_fallback
from osteograde.tasks.spec import Grader, Points

TENSORS, NUMBERS = ("lateral", "mean", "axes"), ("rest", "sure", "unusual")
GRID = (4, 3)  # cells (rows, columns) of a half over which features are averaged
UNUSUAL = "unusual_image"  # code: a crop does not look like those that the weights know
BY_ANATOMY = "side_by_anatomy"  # code: nothing named the side, and the image shows that the assumed one is right
UNLIKELY = "side_unlikely"  # code: nothing named the side, and the image shows that it is the other one


@torch.inference_mode()
def half_features(crops: torch.Tensor, nets: Nets) -> np.ndarray:
    """(S, 2, F) features of both halves of crops (S, H, W) in 0..1: the left one, and the right one mirrored."""
    half = crops.shape[-1] // 2
    halves = torch.stack([crops[..., :half], crops[..., -half:].flip(-1)], 1)
    net: Any = nets.nets[0]
    maps = torch.nn.functional.adaptive_avg_pool2d(net.feature_map(halves.flatten(0, 1)[:, None]), GRID)
    return maps.float().cpu().numpy().astype(float).reshape(len(crops), 2, -1)


@dataclass(frozen=True, eq=False)
class ImageChecks:
    """What ``fit`` learnt. lateral: (F,) the direction w of the side. mean (G,) and axes (K, G): how features of known
    crops vary; rest: the usual size of what the axes leave over. sure: from this score, either way, the side is told.
    unusual: beyond this distance a crop is unusual."""

    lateral: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    rest: float
    sure: float = float("inf")
    unusual: float = float("inf")

    def score(self, halves: np.ndarray) -> np.ndarray:
        """(S,) positive where a crop is not mirrored, from features (S, 2, F)."""
        return (halves[:, 0] - halves[:, 1]) @ self.lateral

    def distance(self, halves: np.ndarray) -> np.ndarray:
        """(S,) how far crops are from the known ones, from features (S, 2, F); infinite where one is not finite."""
        away = halves.reshape(len(halves), -1) - self.mean
        along = away @ self.axes.T
        left_over = np.sum(away**2, 1) - np.sum(along**2, 1)
        return np.where(np.isfinite(left_over), np.sqrt(np.maximum(left_over, 0)) / self.rest, np.inf)


def fit(halves: np.ndarray, axes: int = 24, shrinkage: float = 0.1) -> ImageChecks:
    """What crops that are not mirrored look like, from their features (S, 2, F); no thresholds yet.

    lateral: Fisher's direction between a crop and its mirror image. shrinkage: of the covariance towards a multiple of
    the identity, relative to the mean variance. ValueError with fewer than 2 K crops.
    """
    if len(halves) < 2 * axes:
        raise ValueError(f"{len(halves)} crops; at least {2 * axes} are needed to say how their features are spread")
    across = halves[:, 0] - halves[:, 1]
    covariance = np.cov(across, rowvar=False)
    covariance += shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    lateral = np.linalg.solve(covariance, across.mean(0))
    flat = halves.reshape(len(halves), -1)
    mean = flat.mean(0)
    _, sizes, rows = np.linalg.svd(flat - mean, full_matrices=False)
    rest = float(np.sqrt(np.sum(sizes[axes:] ** 2) / (len(flat) - 1)))
    return ImageChecks(lateral, mean, rows[:axes], max(rest, 1e-6))


def checks_of(facts: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> ImageChecks | None:
    """From the ``checks`` of a manifest and the tensors of its file; None where there are none."""
    if not facts:
        return None
    lateral, mean, axes = (tensors[name].astype(float) for name in TENSORS)
    rest, sure, unusual = (float(facts[name]) for name in NUMBERS)
    return ImageChecks(lateral, mean, axes, rest, sure, unusual)


def codes_of(bundle: Bundle, graders: Mapping[str, Nets], loaded: Loaded, points: Points) -> dict[str, int]:
    """The codes of ``look`` by the checks that weights hold; none where they hold none."""
    facts = bundle.manifest.checks
    checks = checks_of(facts, bundle.check_tensors)
    codes: dict[str, int] = {}
    for grader in bundle.task.graders:
        if checks is not None and grader.name == facts["grader"]:
            codes |= look(checks, grader, loaded, points, graders[grader.name], bundle.task.assumed_side)
    return codes


def is_other_side(bundle: Bundle, graders: Mapping[str, Nets], loaded: Loaded, points: Points) -> bool:
    """Whether weights can tell that a study whose side was assumed shows the other side."""
    return UNLIKELY in codes_of(bundle, graders, loaded, points)


def look(
    checks: ImageChecks, grader: Grader, loaded: Loaded, points: Points, nets: Nets, assumed_side: str = ""
) -> dict[str, int]:
    """Codes of what is odd about the crops of a study, and how often.

    assumed_side: code of the study's faults that says that nothing named the side of its one site. Where the image
    tells the side, that code gives way to "side_by_anatomy" or "side_unlikely".
    """
    boxes = site_boxes(grader, loaded.volumes, points, nets.pixels)
    if not boxes:
        return {}
    crop = site_crops(grader, boxes, nets.pixels, nets.device).images[0]
    found = with_memory_fallback(_halves_of, list(crop[:, crop.shape[1] // 2]), nets)
    halves = np.array([one for one in found if one is not None])
    if not len(halves):
        return {}
    codes = {UNUSUAL: int(np.sum(checks.distance(halves) > checks.unusual))}
    if assumed_side and loaded.faults[assumed_side] and len(halves) == 1 and not codes[UNUSUAL]:
        score = float(checks.score(halves)[0])
        if abs(score) >= checks.sure:
            codes |= {assumed_side: -loaded.faults[assumed_side], BY_ANATOMY if score > 0 else UNLIKELY: 1}
    return {code: count for code, count in codes.items() if count}


def _halves_of(crops: Sequence[torch.Tensor], nets: Nets) -> Sequence[np.ndarray]:
    return list(half_features(torch.stack(list(crops)), nets))

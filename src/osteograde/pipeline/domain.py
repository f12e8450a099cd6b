"""Whether images look to the nets like those that they were trained on.

Weights that know one kind of image alone, synthetic ones for example, answer others surely and wrongly. Their manifest
may state what they know (``domain``): how the features of a locator's encoder are spread over the training images, as
mean and whitening. Images whose features lie far from that, in the manner of Lee et al. (NeurIPS 2018), are out of the
domain, and the grades of their study are mixed with the prior.

Shape legend: n slices, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from osteograde.models.backbones import map_of_stage
from osteograde.pipeline.crops import RegionGrid, middle_images
from osteograde.pipeline.predict import Nets

OUT_OF_DOMAIN = "out_of_domain"  # code: the images do not look like those that the weights know
STAGE = 1  # of the encoder: fine enough to see texture, and few features
SLICES = 3  # in the middle of a region
SHRINKAGE = 0.1  # of the correlations towards none: there are few training studies for many features


@torch.inference_mode()
def features(region: RegionGrid, nets: Nets) -> np.ndarray:
    """(F,) mean and standard deviation over the middle slices of the first net's encoder at ``STAGE``.

    The lateral coordinate is left out: it says where a slice lies, not how it looks.
    """
    images = middle_images(region, SLICES, nets.device)
    images[:, -1] = 0
    encoder: Any = nets.nets[0].encoder
    seen = map_of_stage(encoder, images, STAGE).float()
    return torch.cat([seen.mean((0, 2, 3)), seen.std((0, 2, 3))]).cpu().numpy().astype(float)


@dataclass(frozen=True, eq=False)
class Spread:
    """How features (F,) of training images are spread: whitening (F, F) turns deviations from the mean into ones that
    are not correlated and have a spread of about 1."""

    mean: np.ndarray
    whitening: np.ndarray

    def distance(self, values: np.ndarray) -> float:
        """Root mean square of the whitened deviations; infinite where a feature is not finite."""
        away = self.whitening @ (values - self.mean)
        return float(np.sqrt(np.mean(away**2))) if np.isfinite(away).all() else float("inf")


@dataclass(frozen=True, eq=False)
class Domain:
    """What weights know. name: for people, "phantoms" for example. spreads: by locator. inside: up to this distance an
    image is believed in full; outside: from this one on not at all."""

    name: str
    spreads: Mapping[str, Spread]
    inside: float
    outside: float

    def trust(self, distance: float) -> float:
        """How much an answer about images at this distance is believed: 1 inside, 0 outside, linear between."""
        if distance <= self.inside:
            return 1.0
        return float(np.clip((self.outside - distance) / max(self.outside - self.inside, 1e-9), 0, 1))

    def plain(self) -> dict[str, Any]:
        """As JSON data, for a manifest; rows of numbers as text, so that they take a line each."""
        spreads = {
            locator: {
                "mean": " ".join(f"{v:.5g}" for v in spread.mean),
                "whitening": [" ".join(f"{v:.4g}" for v in row) for row in spread.whitening],
            }
            for locator, spread in self.spreads.items()
        }
        return {"name": self.name, "stage": STAGE, "inside": self.inside, "outside": self.outside, "spreads": spreads}


def domain_from_manifest(plain: Mapping[str, Any]) -> Domain | None:
    """From the ``domain`` of a manifest; None where it has none, or one of features that this version does not use."""
    if not plain or plain.get("stage") != STAGE:
        return None
    spreads = {
        locator: Spread(np.array(one["mean"].split(), float), np.array([r.split() for r in one["whitening"]], float))
        for locator, one in plain["spreads"].items()
    }
    return Domain(str(plain["name"]), spreads, float(plain["inside"]), float(plain["outside"]))


def fit_spread(rows: np.ndarray) -> Spread:
    """The spread of features (n, F) of training images. ValueError with fewer than ten of them."""
    if len(rows) < 10:
        raise ValueError(f"{len(rows)} training images; at least ten are needed to say how their features are spread")
    mean, spread = rows.mean(0), np.maximum(rows.std(0), 1e-3)
    with np.errstate(invalid="ignore"):  # features that never change go with none of the others
        correlation = np.nan_to_num(np.corrcoef((rows - mean) / spread, rowvar=False))
    correlation = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(len(mean))
    values, vectors = np.linalg.eigh(correlation)
    return Spread(mean, (vectors / np.sqrt(np.maximum(values, SHRINKAGE))).T / spread)


def mixed_with_prior(
    graded: Mapping[str, np.ndarray], prior: Mapping[str, Sequence[float]], trust: float
) -> dict[str, np.ndarray]:
    """The grades of a study, ``trust`` of them and the rest the prior; outputs of auxiliary heads stay as they are."""
    mixed = {}
    for target, values in graded.items():
        own = np.asarray(prior[target], float)
        classes = trust * values[: len(own)] + (1 - trust) * own
        mixed[target] = np.concatenate([classes, values[len(own) :]])
    return mixed

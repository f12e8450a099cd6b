"""Whether images look like those that a net was trained on, by statistics of their grey values.

Weights that know one kind of image alone, synthetic ones for example, answer others with confidence and wrongly. Their
manifest may state what they know (``domain``): mean and spread of a few statistics of the training images of every
view. Images whose statistics lie far from these are out of the domain, and what is answered about them is mixed towards
the prior.

The statistics describe one stack of uint8 voxels, as windowed: quantiles of its grey values, the shares that are black
and white, how much neighbouring pixels differ at several distances in mm, and how heavy the tails of that are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from osteograde.imaging.geometry import Volume
from osteograde.tasks.spec import Volumes

OUT_OF_DOMAIN = "out_of_domain"  # code: the images do not look like those that the weights know
QUANTILES = (5, 25, 50, 75, 95)
STEPS_MM = (1.5, 3.0, 6.0, 12.0)  # distances at which neighbouring pixels are compared
PIXEL_MM = 1.5  # to which the middle slice is resampled
SLICES = 5  # at most so many around the middle are looked at
SHRINKAGE = 0.1  # of the correlations towards none: few studies describe many statistics
NAMES = (
    *(f"grey_p{q}" for q in QUANTILES),
    "black",
    "white",
    *(f"{part}_{step:g}mm" for step in STEPS_MM for part in ("difference", "tail")),
)


def statistics(volume: Volume) -> np.ndarray:
    """(F,) statistics, in the order of ``NAMES``, of the slices in the middle of a stack; NaN of an even image."""
    depth, height, width = volume.voxels.shape
    first = max((depth - SLICES) // 2, 0)
    row_mm, column_mm = (float(mm) for mm in volume.spacing_mm[1:])
    size = max(round(width * column_mm / PIXEL_MM), 2), max(round(height * row_mm / PIXEL_MM), 2)
    found = []
    for image in np.asarray(volume.voxels[first : first + SLICES]):
        fine = cv2.resize(np.asarray(image, np.float32), size, interpolation=cv2.INTER_AREA) / 255
        found.append(_of_slice(np.asarray(image, np.float32) / 255, fine))
    return np.mean(found, axis=0)


def _of_slice(native: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(F,) of one slice: ``native`` as it is, ``image`` with pixels of PIXEL_MM."""
    values = [*np.percentile(image, QUANTILES), (native <= 0).mean(), (native >= 1).mean()]
    spread = float(image.std())
    for step in STEPS_MM:
        n = max(round(step / PIXEL_MM), 1)
        rows, columns = image[n:] - image[:-n], image[:, n:] - image[:, :-n]
        away = np.concatenate([np.abs(rows).ravel(), np.abs(columns).ravel()])
        mean = float(away.mean()) if len(away) else 0.0
        values += [mean / spread if spread else np.nan, float(np.sqrt((away**2).mean())) / mean if mean else np.nan]
    return np.array(values, float)


@dataclass(frozen=True, eq=False)
class Domain:
    """What weights know. name: for people, "phantoms" for example. views: view -> (mean (F,), whitening (F, F)) of the
    statistics of the training images; the distance of an image is the root mean square of the whitened deviations.
    inside: up to this distance an image is believed in full; outside: from this one on not at all."""

    name: str
    views: Mapping[str, tuple[np.ndarray, np.ndarray]]
    inside: float
    outside: float

    def distance(self, volumes: Volumes) -> float:
        """The largest distance of a study's stacks; 0 where it has none of a view that the domain describes."""
        found = [0.0]
        for view, (mean, whitening) in self.views.items():
            for volume in volumes.get(view, ()):
                away = whitening @ (statistics(volume) - mean)
                found.append(float(np.sqrt(np.mean(away**2))) if np.isfinite(away).all() else np.inf)
        return max(found)

    def trust(self, distance: float) -> float:
        """How much an answer about images at this distance is believed: 1 inside, 0 outside, linear between."""
        if self.outside <= self.inside:
            return float(distance <= self.inside)
        return float(np.clip((self.outside - distance) / (self.outside - self.inside), 0, 1))

    def plain(self) -> dict[str, Any]:
        """As JSON data, for a manifest."""
        views = {
            view: {
                "mean": [round(float(v), 5) for v in mean],
                "whitening": [[round(float(v), 3) for v in row] for row in whitening],
            }
            for view, (mean, whitening) in self.views.items()
        }
        return {"name": self.name, "statistics": list(NAMES), "inside": self.inside, "outside": self.outside,
                "views": views}  # fmt: skip


def domain_from_manifest(plain: Mapping[str, Any]) -> Domain | None:
    """From the ``domain`` of a manifest; None where it has none, or statistics that this version does not compute."""
    if not plain or tuple(plain.get("statistics", ())) != NAMES:
        return None
    views = {
        view: (np.asarray(one["mean"], float), np.asarray(one["whitening"], float))
        for view, one in plain["views"].items()
    }
    return Domain(str(plain["name"]), views, float(plain["inside"]), float(plain["outside"]))


def fit_domain(name: str, studies: Iterable[Volumes], inside: float, outside: float) -> Domain:
    """Fit to the images of training studies. inside, outside: see ``Domain``."""
    rows: dict[str, list[np.ndarray]] = {}
    for volumes in studies:
        for view, stacks in volumes.items():
            rows.setdefault(view, []).extend(statistics(stack) for stack in stacks)
    return Domain(name, {view: _fitted(np.array(found)) for view, found in rows.items()}, inside, outside)


def _fitted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean (F,), whitening (F, F)) of statistics (n, F); constant ones are left out by a spread of 1e-3 at least."""
    rows = rows[np.isfinite(rows).all(1)]
    mean, spread = rows.mean(0), np.maximum(rows.std(0), 1e-3)
    correlation = np.corrcoef(((rows - mean) / spread) + 1e-9 * np.arange(len(rows))[:, None], rowvar=False)
    correlation = (1 - SHRINKAGE) * np.nan_to_num(correlation) + SHRINKAGE * np.eye(len(mean))
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    return mean, (vectors / np.sqrt(np.maximum(values, SHRINKAGE))).T / spread


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

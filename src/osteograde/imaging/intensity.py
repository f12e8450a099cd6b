"""Grey values: one window per series, so that every slice of it is comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from osteograde.imaging.geometry import Volume

SAMPLED = 1 << 18  # values per series that the percentiles are taken from
PADDING_SHARE = 0.01  # the lowest value is padding where it fills more than this


def window(volumes: Sequence[Volume], low: float = 0.5, high: float = 99.5) -> list[Volume]:
    """The same stacks as uint8 (Z, Y, X), C-contiguous: percentile ``low`` of the series is 0, ``high`` is 255.

    All volumes of the series share one window. Constant padding does not count, nor do NaN and infinity, which become
    0; a series without contrast becomes zeros.
    """
    sample = _sample(volumes)
    if sample.size == 0:
        return [replace(volume, voxels=np.zeros(volume.voxels.shape, np.uint8)) for volume in volumes]
    floor, ceiling = np.percentile(sample, [low, high])
    if ceiling <= floor:  # nearly all one value: whatever differs is the image
        floor, ceiling = float(sample.min()), float(sample.max())
    return [replace(volume, voxels=_bytes(volume.voxels, floor, ceiling)) for volume in volumes]


def _sample(volumes: Sequence[Volume]) -> np.ndarray:
    """Evenly spread finite values of all volumes without their padding; empty where all are equal."""
    total = sum(volume.voxels.size for volume in volumes)
    step = max(1, round((total / SAMPLED) ** 0.5))  # the same in rows and columns; every slice counts
    parts = [volume.voxels[:, ::step, ::step].ravel().astype(np.float64) for volume in volumes]
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[np.isfinite(values)]
    if values.size == 0 or values.min() == values.max():
        return np.empty(0)
    inside = values[values > values.min()]
    padded = inside.size < (1 - PADDING_SHARE) * values.size
    return inside if padded and inside.min() < inside.max() else values  # of two values both are the image


def _bytes(voxels: np.ndarray, floor: float, ceiling: float) -> np.ndarray:
    out = np.zeros(voxels.shape, np.uint8)
    if ceiling <= floor:
        return out
    scale = 255.0 / (ceiling - floor)
    for k, plane in enumerate(voxels):  # slice by slice: stays in the cache
        values = plane.astype(np.float32)
        values -= np.float32(floor)
        values *= np.float32(scale)
        values[~np.isfinite(values)] = 0.0
        np.clip(values, 0.0, 255.0, out=values)
        np.rint(values, out=values)
        out[k] = values
    return out

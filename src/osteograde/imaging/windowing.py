"""Grey values: one window per series, so that every slice of it is comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from osteograde.imaging.geometry import Volume

SAMPLED = 1 << 18  # values per series that the percentiles are taken from
PADDING_SHARE = 0.01  # the lowest value is padding where it fills more than this


def window(volumes: Sequence[Volume], low: float = 0.5, high: float = 99.5) -> list[Volume]:
    """The same stacks as uint8 (Z, Y, X), C-contiguous: percentile ``low`` of the series is 0, ``high`` is 255.

    All volumes of the series share one window. Constant padding does not count, nor do NaN and infinity, which become
    0; a series without contrast becomes zeros.
    """
    limits = _limits(_sample(volumes), low, high)
    if limits is None:
        return [replace(volume, voxels=np.zeros(volume.voxels.shape, np.uint8)) for volume in volumes]
    return [replace(volume, voxels=_bytes(volume.voxels, *limits)) for volume in volumes]


def _sample(volumes: Sequence[Volume]) -> np.ndarray:
    """Evenly spread values of all volumes."""
    total = sum(volume.voxels.size for volume in volumes)
    step = max(1, round((total / SAMPLED) ** 0.5))  # the same in rows and columns; every slice counts
    parts = [volume.voxels[:, ::step, ::step].ravel() for volume in volumes]
    return np.concatenate(parts) if parts else np.empty(0)


def _limits(sample: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """The two percentiles of the finite values without their padding; None where all are equal."""
    if sample.dtype.kind in "iu" and sample.itemsize <= 2 and sample.size:
        return _limits_counted(sample, low, high)
    values = sample.astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0 or values.min() == values.max():
        return None
    inside = values[values > values.min()]
    padded = inside.size < (1 - PADDING_SHARE) * values.size
    values = inside if padded and inside.min() < inside.max() else values  # of two values both are the image
    floor, ceiling = np.percentile(values, [low, high])
    if ceiling <= floor:  # nearly all one value: whatever differs is the image
        floor, ceiling = values.min(), values.max()
    return float(floor), float(ceiling)


def _limits_counted(sample: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """The same from how often each value of at most 16 bits occurs: equal to the bit and faster than sorting."""
    least = int(sample.min())
    counts = np.bincount(sample.astype(np.intp) - least)
    if len(counts) == 1:
        return None
    padded = sample.size - counts[0] < (1 - PADDING_SHARE) * sample.size
    if padded and np.count_nonzero(counts) > 2:  # of two values both are the image
        counts[0] = 0
    behind = np.cumsum(counts)  # how many values are at most this

    def ranked(rank: np.ndarray) -> np.ndarray:
        return (np.searchsorted(behind, rank, side="right") + least).astype(np.float64)

    place = (behind[-1] - 1) * np.true_divide([low, high], 100)  # as numpy's percentile, rounding included
    before = np.floor(place)
    a, b, part = ranked(before), ranked(np.minimum(before + 1, behind[-1] - 1)), place - before
    floor, ceiling = np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part))
    if ceiling <= floor:  # nearly all one value: whatever differs is the image
        floor, ceiling = np.flatnonzero(counts)[[0, -1]] + least
    return float(floor), float(ceiling)


def _bytes(voxels: np.ndarray, floor: float, ceiling: float) -> np.ndarray:
    out = np.zeros(voxels.shape, np.uint8)
    if ceiling <= floor:
        return out
    scale = 255.0 / (ceiling - floor)
    if voxels.dtype.kind in "iu" and voxels.itemsize <= 2 and float(floor).is_integer():
        base = np.full(voxels.shape[1:], floor, voxels.dtype)  # with a scalar numpy's maximum takes five times longer
        scale = min(scale, 255.0)  # 1 above the floor is white then; larger products overflow in OpenCV
        for k, plane in enumerate(voxels):  # slice by slice: stays in the cache
            above = np.maximum(plane, base)
            above -= base  # signed values wrap where the difference is too large for them; read as unsigned it is right
            cv2.convertScaleAbs(above.view(f"u{above.itemsize}"), out[k], scale)
        return out
    for k, plane in enumerate(voxels):
        values = plane.astype(np.float32)
        values -= np.float32(floor)
        values *= np.float32(scale)
        if plane.dtype.kind == "f":
            values[~np.isfinite(values)] = 0.0
        np.clip(values, 0.0, 255.0, out=values)
        np.rint(values, out=values)
        out[k] = values
    return out

"""Boxes without a turn, on the slices of their volume: linear interpolation, rows first, then columns, on a CPU.

Along one axis every sample of a box is a weighted sum of a few voxels, so a box is two products with sparse matrices,
which read every voxel about once. (Sampling in two dimensions reads four for each of oversample^2 points.) The weights
of many boxes are computed at once, since for small boxes finding them takes longer than using them.

Shape legend: N boxes, C slices, Y X voxels that a box touches, H W its samples, k points per sample and axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch.nn.functional import embedding_bag

CACHED_VOXELS = 1 << 17  # cut at once: as floats they should stay in the second-level cache


@dataclass(frozen=True, eq=False)
class Spans:
    """What N boxes read along one axis. first, stop: the range of voxels of each. index (N, count * 2 k), counted from
    ``first``, and weight of the same shape: of the voxels that are summed up, 2 k for each sample, one sample after the
    other; begins (count,): where the weights of each sample begin."""

    first: list[int]
    stop: list[int]
    index: torch.Tensor
    weight: torch.Tensor
    begins: torch.Tensor

    def read(self, number: int) -> slice:
        """The voxels that one box reads."""
        return slice(self.first[number], self.stop[number])

    def summed(self, number: int, values: torch.Tensor) -> torch.Tensor:
        """(count, M) samples of one box from the values (stop - first, M) of the voxels that it reads."""
        return embedding_bag(
            self.index[number], values, self.begins, mode="sum", per_sample_weights=self.weight[number]
        )


@lru_cache(maxsize=64)
def _points(count: int, oversample: int) -> tuple[np.ndarray, torch.Tensor]:
    """Where the points of ``count`` samples lie along an axis, in samples, and where each sample's weights begin."""
    points = (np.arange(count * oversample) + 0.5) / oversample - 0.5
    points.setflags(write=False)
    return points, torch.arange(0, count * 2 * oversample, 2 * oversample, dtype=torch.int32)


def spans(steps: np.ndarray, starts: np.ndarray, count: int, sizes: np.ndarray, oversample: int) -> Spans:
    """Weights of linear interpolation at start + step * i for i in 0..count - 1, each the mean of ``oversample`` points
    spread evenly over one step, of N boxes: steps, starts and sizes (N,) are in voxels. Outside of 0..size - 1 is zero.
    """
    points, begins = _points(count, oversample)
    at = steps[:, None] * points + starts[:, None]
    sizes = sizes.astype(np.int64)
    below = np.floor(at).clip(-2, sizes[:, None])  # what lies outside stays there, however far
    upper = (at - below) / oversample
    index = np.empty((*at.shape, 2), np.int64)
    index[..., 0], index[..., 1] = below, below + 1
    weight = np.empty(index.shape, np.float32)
    weight[..., 0], weight[..., 1] = 1 / oversample - upper, upper
    ends = index[:, [0, -1]]  # the ends reach farthest
    first = ends.min((1, 2)).clip(0, sizes)
    stop = (ends.max((1, 2)) + 1).clip(first, sizes)
    if ends.min() < 0 or (ends.max((1, 2)) >= sizes).any():
        weight[(index < 0) | (index >= sizes[:, None, None])] = 0
        index.clip(first[:, None, None], np.maximum(stop - 1, first)[:, None, None], out=index)
    index -= first[:, None, None]
    each = len(steps), -1
    return Spans(
        first.tolist(),
        stop.tolist(),
        torch.from_numpy(index.astype(np.int32).reshape(each)),
        torch.from_numpy(weight.reshape(each)),
        begins,
    )


def cut(out_CHW: torch.Tensor, voxels_CYX: np.ndarray, rows: Spans, columns: Spans, number: int) -> None:
    """Write one box; ``voxels_CYX``: its slices, whole, of any dtype, also a flipped or turned view of an array."""
    y, x = rows.read(number), columns.read(number)
    if y.start >= y.stop or x.start >= x.stop:
        return
    touched = voxels_CYX[:, y, x]
    most = max(1, CACHED_VOXELS // touched[0].size)
    for begun in range(0, len(touched), most):
        end = begun + most
        _cut_together(out_CHW[begun:end].numpy(), touched[begun:end], rows, columns, number)


def _cut_together(out_CHW: np.ndarray, touched_CYX: np.ndarray, rows: Spans, columns: Spans, number: int) -> None:
    count, height, width = touched_CYX.shape
    values = np.array(touched_CYX.transpose(1, 0, 2), np.float32, order="C").reshape(height, count * width)
    half = rows.summed(number, torch.from_numpy(values)).numpy()  # (H, C X)
    if count == 1:  # OpenCV turns large images block by block, which is four times as fast
        turned = cv2.transpose(half)
    else:
        turned = np.ascontiguousarray(half.reshape(-1, count, width).transpose(2, 1, 0)).reshape(width, -1)
    whole = columns.summed(number, torch.from_numpy(turned)).numpy()  # (W, C H)
    if count == 1:
        cv2.transpose(whole, out_CHW[0])
    else:
        out_CHW[...] = whole.reshape(len(whole), count, -1).transpose(1, 2, 0)

"""Regions of interest out of volumes: the only place where an image is resampled.

``sample_reference`` says what is meant, slowly; ``sample`` does it in torch on any device. Outside the volume is zero,
and interpolation fades to it over one voxel. ``oversample`` k takes every sample as the mean of k x k points spread
evenly inside its own in-plane cell, which keeps a coarse grid on a fine image from aliasing.

Thin-slice stacks as thick ones: a 3-D acquisition read the way two-dimensional series are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from osteograde.imaging.geometry import Roi, Volume, apply
from osteograde.imaging.upright import cut, spans

MAX_OVERSAMPLE = 4
CHUNK_SAMPLES = 1 << 22  # sampled values held at once
_SLACK = 1e-3  # of the ratio of two spacings: rounding asks for no more points
_UPRIGHT = 1e-6  # voxels that the far end of a row may lie above or below its beginning
_ON_SLICE = 1e-3  # slices; a plane this close to a slice of the volume lies on it


def oversample_for(volume_spacing_mm: np.ndarray, roi_spacing_mm: np.ndarray) -> int:
    """In-plane sub-samples per axis so that none of the volume's pixels is passed over; 1 to MAX_OVERSAMPLE.

    >>> oversample_for(np.array([4.0, 0.5, 0.5]), np.array([4.0, 1.2, 1.2]))
    3
    """
    ratio = float(np.max(np.asarray(roi_spacing_mm)[1:] / np.asarray(volume_spacing_mm)[1:]))
    return min(MAX_OVERSAMPLE, max(1, math.ceil(ratio - _SLACK)))


def sample_reference(volume: Volume, roi: Roi, oversample: int = 1) -> np.ndarray:
    """(D, H, W) float32 of the volume on the grid of the box, trilinear; the slow definition of ``sample``."""
    from scipy.ndimage import map_coordinates  # nothing else needs it, and every start would wait for it

    k = oversample
    depth, height, width = roi.shape
    fine = np.meshgrid(
        np.arange(depth),
        (np.arange(height * k) + 0.5) / k - 0.5,
        (np.arange(width * k) + 0.5) / k - 0.5,
        indexing="ij",
    )
    index = apply(volume.from_mm @ roi.to_mm, np.stack(fine, axis=-1))
    # "grid-constant": with "constant" rounding puts border samples outside, where they lose their whole value.
    values = map_coordinates(
        volume.voxels.astype(np.float64), np.moveaxis(index, -1, 0), order=1, mode="grid-constant", cval=0.0
    )
    return values.reshape(depth, height, k, width, k).mean(axis=(2, 4)).astype(np.float32)


def sample(
    voxels: torch.Tensor,
    volume_to_mm: np.ndarray,
    rois_to_mm: np.ndarray,
    shape: tuple[int, int, int],
    oversample: int = 1,
) -> torch.Tensor:
    """(B, D, H, W) float32 of a volume (Z, Y, X), any real dtype, on B boxes (B, 4, 4) of one shape.

    Runs where ``voxels`` lie. Boxes on the volume's own slices are sampled slice by slice in two dimensions (on a CPU
    rows, then columns, where they are not turned), others in three; all agree with ``sample_reference`` to float32.
    """
    moves = np.linalg.inv(volume_to_mm) @ np.asarray(rois_to_mm, np.float64).reshape(-1, 4, 4)
    out = torch.zeros((len(moves), *shape), dtype=torch.float32, device=voxels.device)
    volume = None
    for filled, move in zip(out, moves, strict=True):
        z = _slices_of(move, shape)
        if z is not None:
            _fill_from_slices(
                filled, lambda z, y, x: voxels[torch.from_numpy(z), y, x], voxels.shape, z, move, oversample
            )
        else:
            volume = voxels.float() if volume is None else volume
            _fill_from_volume(filled, volume, move, oversample)
    return out


def crop_stack(volume: Volume, roi: Roi, device: torch.device, oversample: int | None = None) -> torch.Tensor:
    """(D, H, W) float32 in 0..1 of a volume of bytes, anti-aliased as its spacing asks unless told otherwise."""
    return crop_stacks([(volume, roi)], device, oversample)[0]


def crop_stacks(
    boxes: Sequence[tuple[Volume, Roi]], device: torch.device, oversample: int | None = None
) -> torch.Tensor:
    """(B, D, H, W): ``crop_stack`` of B boxes of one shape, at least one, each of its own volume."""
    shape = boxes[0][1].shape
    moves = np.matmul([volume.from_mm for volume, _ in boxes], [roi.to_mm for _, roi in boxes])
    points = np.full(len(boxes), oversample) if oversample is not None else _oversamples(boxes)
    z, on_slices = _planes(moves, shape)
    upright = on_slices & _is_upright(moves, shape) & (device.type == "cpu")
    out = torch.zeros((len(boxes), *shape), dtype=torch.float32, device=device)
    for k in set(points[upright].tolist()):
        _fill_upright(out, boxes, moves, z, np.flatnonzero(upright & (points == k)), k)
    for number in np.flatnonzero(~upright).tolist():
        (volume, roi), k = boxes[number], int(points[number])
        if on_slices[number]:
            gather = partial(_gathered, volume, device)
            _fill_from_slices(out[number], gather, volume.voxels.shape, z[number], moves[number], k)
        else:
            voxels = np.array(volume.voxels, order="C")  # torch takes no negative step, not even of one slice
            out[number] = sample(torch.from_numpy(voxels).to(device), volume.to_mm, roi.to_mm[None], shape, k)[0]
    return out.div_(255.0)


def _oversamples(boxes: Sequence[tuple[Volume, Roi]]) -> np.ndarray:
    """(B,) ``oversample_for`` of every box."""
    steps_mm = np.array([roi.to_mm[:3, 1:3] for _, roi in boxes])
    own_mm = np.array([volume.spacing_mm[1:] for volume, _ in boxes])
    ratio = (np.sqrt((steps_mm**2).sum(1)) / own_mm).max(1)
    return np.ceil(ratio - _SLACK).clip(1, MAX_OVERSAMPLE).astype(np.int64)


def _gathered(volume: Volume, device: torch.device, z: np.ndarray, y: slice, x: slice) -> torch.Tensor:
    """Voxels of some slices on the device: only what a box touches leaves the host."""
    return torch.from_numpy(np.ascontiguousarray(volume.voxels[z, y, x])).to(device)


def _is_upright(moves: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(B,) bool: whether the rows of a box lie along the rows of its volume, on each slice at the same place."""
    depth, height, width = shape
    turned = abs(moves[:, [1, 2], [2, 1]]).max(1) * max(height, width) >= _UPRIGHT
    leaning = abs(moves[:, 1:3, 0]).max(1) * depth > _ON_SLICE
    return ~(turned | leaning)


def _fill_upright(
    out_BDHW: torch.Tensor,
    boxes: Sequence[tuple[Volume, Roi]],
    moves: np.ndarray,
    z: np.ndarray,
    numbers: np.ndarray,
    oversample: int,
) -> None:
    """Those boxes of these numbers, all of them upright and on slices z (B, D)."""
    sizes = np.array([boxes[number][0].voxels.shape for number in numbers])
    own = moves[numbers]
    rows, columns = (spans(own[:, i, i], own[:, i, 3], out_BDHW.shape[i + 1], sizes[:, i], oversample) for i in (1, 2))
    inside = (z[numbers] >= 0) & (z[numbers] < sizes[:, :1])
    for i, number in enumerate(numbers.tolist()):
        kept = np.flatnonzero(inside[i])
        if len(kept):
            planes = slice(int(kept[0]), int(kept[-1]) + 1)  # slices follow each other: what lies inside has no gap
            cut(out_BDHW[number, planes], boxes[number][0].voxels[_range_of(z[number, planes])], rows, columns, i)


def _range_of(z: np.ndarray) -> slice | np.ndarray:
    """Slice numbers that follow each other in equal steps as a range, which is not copied; others as they are."""
    step = int(z[1] - z[0]) if len(z) > 1 else 1
    if step == 0:
        return z
    stop = int(z[-1]) + (1 if step > 0 else -1)
    return slice(int(z[0]), None if stop < 0 else stop, step)


def _planes(moves: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(B, D) the slice number of each plane of each box, and (B,) whether these are the volume's own slices."""
    depth, height, width = shape
    step, down, across, start = moves[:, 0].T[:, :, None]
    z = step * np.arange(depth) + start  # of the first corner; the others lie ``rise`` further on
    rise = np.concatenate([np.zeros_like(down), down * (height - 1)], 1)[:, :, None] + np.concatenate(
        [np.zeros_like(across), across * (width - 1)], 1
    ).reshape(len(moves), 1, 2)
    whole = np.round(z)
    away = z - whole
    farthest = np.maximum(away.max(1) + rise.max((1, 2)), -away.min(1) - rise.min((1, 2)))
    return whole.astype(np.int64), farthest < _ON_SLICE


def _slices_of(move: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The slice number of each plane of a box that lies on the volume's own slices, else None."""
    z, on_slices = _planes(move[None], shape)
    return z[0] if on_slices[0] else None


def _fill_from_slices(
    out_DHW: torch.Tensor,
    gather: Callable[[np.ndarray, slice, slice], torch.Tensor],
    size_ZYX: tuple[int, ...],
    z: np.ndarray,
    move: np.ndarray,
    oversample: int,
) -> None:
    """Planes of a box from slices z; ``gather`` gives the (n, y, x) voxels of some slices in ranges of y and x."""
    depth, height, width = out_DHW.shape
    inside = np.flatnonzero((z >= 0) & (z < size_ZYX[0]))
    leaning = abs(move[1:3, 0]).max() * depth > _ON_SLICE  # a sheared stack: each plane lies elsewhere on its slice
    most = 1 if leaning else max(1, CHUNK_SAMPLES // (height * width * oversample**2))
    for chunk in [inside[i : i + most] for i in range(0, len(inside), most)]:
        plane = np.column_stack([move[1:3, 1:3], move[1:3, 3] + move[1:3, 0] * chunk[0]])  # (y, x) of (h, w, 1)
        y, x = (_touched(row, (height, width), size) for row, size in zip(plane, size_ZYX[1:], strict=True))
        if y.start >= y.stop or x.start >= x.stop:
            continue
        slices = gather(z[chunk], y, x)  # as channels of one image: the weights are computed once
        plane = plane - np.array([[0, 0, y.start], [0, 0, x.start]])
        upright = (
            slices.device.type == "cpu" and max(abs(plane[0, 1]), abs(plane[1, 0])) * max(height, width) < _UPRIGHT
        )
        values = (_stretched if upright else _interpolated)(slices, plane, (height, width), oversample)
        out_DHW[int(chunk[0]) : int(chunk[-1]) + 1] = values  # slices follow each other: what lies inside has no gap


def _touched(row: np.ndarray, shape: tuple[int, ...], size: int) -> slice:
    """The range of voxels along one axis that a plane's samples, a cell beyond its ends included, can reach."""
    *steps, start = row.tolist()
    ends = [sorted((-step, step * count)) for step, count in zip(steps, shape, strict=True)]
    least, most = (start + sum(side) for side in zip(*ends, strict=True))
    return slice(max(0, math.floor(least) - 1), min(size, math.ceil(most) + 2))


def _stretched(images: torch.Tensor, move: np.ndarray, shape: tuple[int, int], oversample: int) -> torch.Tensor:
    """The same of images (C, Y, X) on a CPU, for a ``move`` without a turn."""
    rows, columns = (
        spans(move[i : i + 1, i], move[i : i + 1, 2], shape[i], np.array([images.shape[i + 1]]), oversample)
        for i in (0, 1)
    )
    out = torch.zeros((len(images), *shape), dtype=torch.float32)
    cut(out, images.numpy(), rows, columns, 0)
    return out


def _fill_from_volume(out_DHW: torch.Tensor, volume_ZYX: torch.Tensor, move: np.ndarray, oversample: int) -> None:
    depth, height, width = out_DHW.shape
    most = max(1, CHUNK_SAMPLES // (height * width * oversample**2))
    for start in range(0, depth, most):
        part = move[:3].copy()
        part[:, 3] += move[:3, 0] * start
        count = min(most, depth - start)
        values = _interpolated(volume_ZYX[None], part, (count, height, width), oversample)
        out_DHW[start : start + count] = values[0]


def _interpolated(images: torch.Tensor, move: np.ndarray, shape: tuple[int, ...], oversample: int) -> torch.Tensor:
    """(C, *size) images sampled at ``move`` (n, n + 1) of the grid ``shape`` of n axes, zero outside: (C, *shape)."""
    images = images.float()
    size = np.array(images.shape[1:])
    extent = np.array(shape)
    theta = np.empty_like(move)  # between units: both grids from -1 to 1, edge to edge
    theta[:, :-1] = move[:, :-1] * extent / size[:, None]
    theta[:, -1] = (2 * (move[:, :-1] @ ((extent - 1) / 2) + move[:, -1]) + 1) / size - 1
    theta = np.column_stack([theta[::-1, -2::-1], theta[::-1, -1]])  # torch names the axes x, y, z
    fine = [*shape[:-2], shape[-2] * oversample, shape[-1] * oversample]
    units = torch.from_numpy(theta[None]).to(images.device, torch.float32)
    grid = functional.affine_grid(units, [1, 1, *fine], align_corners=False)
    values = functional.grid_sample(images[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    if oversample == 1:
        return values
    return functional.avg_pool2d(values.reshape(-1, *fine[-2:]), oversample).reshape(len(images), *shape)


THIN_MM = 2.0  # stacks with slices closer than this are averaged ...
SLAB_MM = 4.0  # ... to about this step, that of ordinary spine series


def average_thin_slices(volume: Volume, thin_mm: float = THIN_MM, slab_mm: float = SLAB_MM) -> Volume:
    """The same stack with neighbouring thin slices averaged; unchanged where its slices are at least thin_mm apart.

    Nets learn on slices about 4 mm apart, with their partial volume; a mean over thin slices is just that. What is
    left over is cut off evenly at both ends. names and instances: those of the middle slices.
    """
    step = volume.spacing_mm[0]
    count = volume.voxels.shape[0]
    each = min(round(slab_mm / step), count) if step < thin_mm else 1
    if each <= 1:
        return volume
    first = (count % each) // 2
    kept = volume.voxels[first : first + count // each * each]
    grouped = kept.reshape(-1, each, *kept.shape[1:]).astype(np.float32).mean(1)
    if np.issubdtype(volume.voxels.dtype, np.integer):
        grouped = np.rint(grouped)
    to_index = np.diag([float(each), 1.0, 1.0, 1.0])
    to_index[0, 3] = first + (each - 1) / 2  # a slab lies at the centre of its slices
    names = volume.names[first + each // 2 :: each][: len(grouped)]
    instances = volume.instances[first + each // 2 :: each][: len(grouped)]
    voxels = grouped.astype(volume.voxels.dtype)
    return replace(volume, voxels=voxels, to_mm=volume.to_mm @ to_index, names=names, instances=instances)

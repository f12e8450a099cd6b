"""Label images of stored stacks: read beside the images, cut on the same boxes, moved by the same moves.

Labels are small whole numbers; what no label image tells is UNKNOWN. They are learnt from only: inference reads none.

Shapes: B samples, D slices, H' W' stored pixels, H W pixels the net reads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import grid_sample

from osteograde.imaging import image_files
from osteograde.imaging.geometry import Roi, Volume, apply
from osteograde.learning.augment import Move, sampling_grid
from osteograde.learning.recipe import Fit
from osteograde.tasks.spec import Series, Study

UNKNOWN = 255  # in bytes; -1 in a batch
SEGMENTING = frozenset({"unet"})  # kinds of locators that learn from label images


def wanted(fit: Fit) -> bool:
    """Whether the net learns from label images at all; for all others none is read."""
    return fit.net.get("kind") in SEGMENTING


def label_volume(study: Study, volume: Volume) -> Volume | None:
    """The labels (Z, Y, X) uint8 of a stack that was read of the study; None where its series has no label images.

    The stack must have been read from image files, which have its own rows and columns. A slice has the label image of
    the file it is named after: of thin slices that were averaged the middle one. Raises ValueError where label images
    are not one for one with the files, cannot be read, have another size, or hold numbers above UNKNOWN.
    """
    series = next((one for one in study.series if one.id == volume.series), None)
    if series is None or not series.masks:
        return None
    paths = _by_slice(series)
    return replace(volume, voxels=np.stack([_labels(paths[name], volume.voxels.shape[1:]) for name in volume.names]))


def _by_slice(series: Series) -> dict[str, Path]:
    """Label images by the names of the slices, the stems of their files."""
    named = dict(zip((file.stem for file in series.files), series.masks, strict=False))
    if not len(named) == len(series.files) == len(series.masks) or not all(map(image_files.is_image, series.files)):
        raise ValueError(
            f"series {series.id}: {len(series.masks)} label images for {len(series.files)} files "
            f"of {len(named)} names; expected one for each, and image files of different names; "
            "complete the label images or remove them all"
        )
    return named


def _labels(path: Path, size: tuple[int, ...]) -> np.ndarray:
    try:
        labels = image_files.read_pixels(path)
    except image_files.UnreadableImage as error:
        raise ValueError(f"{path}: label image cannot be read ({error.code}); replace or remove it") from None
    if labels.shape != size:
        raise ValueError(
            f"{path}: label image has {labels.shape} rows and columns; expected {size} as the image it belongs to"
        )
    if int(labels.max()) > UNKNOWN:
        raise ValueError(f"{path}: label image holds {int(labels.max())}; expected labels of 0 to {UNKNOWN - 1}")
    return labels.astype(np.uint8)


def cut_labels(labels: Volume | None, roi: Roi) -> np.ndarray:
    """(D, H, W) uint8 of the voxel nearest to every place of the box; UNKNOWN outside, and where ``labels`` is None."""
    out = np.full(roi.shape, UNKNOWN, np.uint8)
    if labels is None:
        return out
    to_voxel, size = labels.from_mm @ roi.to_mm, np.array(labels.voxels.shape)
    plane = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in roi.shape[1:]), indexing="ij"), -1)
    for d in range(roi.shape[0]):
        index = np.insert(plane, 0, d, axis=-1)
        voxel = np.floor(apply(to_voxel, index) + 0.5).astype(np.int64)
        inside = np.all((voxel >= 0) & (voxel < size), -1)
        out[d, inside] = labels.voxels[tuple(voxel[inside].T)]
    return out


def resample_labels(stored_BDHW: torch.Tensor, move: Move, size: tuple[int, int]) -> torch.Tensor:
    """(B, D, H, W) uint8 from stored (B, D, H', W') uint8, nearest; as ``resample`` moves images. UNKNOWN outside."""
    grid = sampling_grid(move, (stored_BDHW.shape[2], stored_BDHW.shape[3]), size, stored_BDHW.device)
    known = (UNKNOWN - stored_BDHW).float()  # so that the zeros outside become UNKNOWN
    moved = grid_sample(known, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return UNKNOWN - moved.round().to(torch.uint8)


def classes_of(labels: torch.Tensor) -> torch.Tensor:
    """int64 of stored bytes: -1 where UNKNOWN."""
    classes = labels.long()
    return torch.where(classes == UNKNOWN, -1, classes)

"""Label images of studies, on the pixels of their files: a net's classes put back, and discs drawn from their centres.

Shapes: Z slices, Y X pixels of the file, K classes, H W pixels that the net reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample

from osteograde.imaging.geometry import Volume, to_index
from osteograde.pipeline.crops import RegionGrid, region_grids, region_images
from osteograde.pipeline.disc_masks import DISC, disc_masks
from osteograde.pipeline.load import Loaded
from osteograde.pipeline.predict import Nets, finite_mean, logits_of
from osteograde.tasks.spec import Locator, Points, sides

SLICES_AT_ONCE = 8
HALF_DISC_MM = 20.0  # across the slices; discs are about 50 mm wide


@torch.inference_mode()
def class_probabilities(placed: RegionGrid, nets: Nets) -> np.ndarray:
    """(Z, K, Y, X) float16 probabilities of the classes at every pixel of the stack of a region, averaged over folds.

    The region must show all slices of its stack, as ``tasks.regions.whole_stack_region`` makes it; pixels outside of it
    get the value at its border.
    """
    images, _ = region_images(placed, nets.device)
    places = _places(placed, nets.device)
    parts = []
    for some in images.split(SLICES_AT_ONCE):
        some = some.contiguous(memory_format=torch.channels_last)
        folds = [torch.softmax(logits_of(partial(_segmenting(net), some), nets.device), 1) for net in nets.nets]
        seen = finite_mean(folds)
        there = grid_sample(seen, places.expand(len(seen), -1, -1, -1), padding_mode="border", align_corners=False)
        parts.append(there.half().cpu().numpy())
    return np.concatenate(parts)


def label_image(placed: RegionGrid, nets: Nets) -> np.ndarray:
    """(Z, Y, X) uint8: the likeliest class of every pixel of the stack of a region. See ``class_probabilities``."""
    return class_probabilities(placed, nets).argmax(1).astype(np.uint8)


def can_segment(nets: Sequence[Any]) -> bool:
    """Whether all nets of a locator tell the class of every pixel."""
    return bool(nets) and all(hasattr(net, "segment") for net in nets)


def _segmenting(net: Any) -> Any:
    return net.segment


def _places(placed: RegionGrid, device: torch.device) -> torch.Tensor:
    """(1, Y, X, 2): where each pixel of the stack lies in the region, as ``grid_sample`` counts (-1 to 1, x first)."""
    volume: Volume = placed.region.volume
    to_region = placed.grid.from_mm @ volume.to_mm
    size = volume.voxels.shape[1:]
    rows, columns = (
        to_region[axis, axis] * np.arange(n) + to_region[axis, 3] for axis, n in zip((1, 2), size, strict=True)
    )
    high, wide = placed.grid.shape[1:]
    down, across = 2 * (rows + 0.5) / high - 1, 2 * (columns + 0.5) / wide - 1
    grid = np.stack(np.meshgrid(down, across, indexing="ij")[::-1], -1)
    return torch.from_numpy(grid[None].astype(np.float32)).to(device)


@dataclass(frozen=True)
class DiscFound:
    """A disc in one slice. name: of the slice. height_mm: its area by its length. source: see ``DiscMask``."""

    landmark: str
    slice: int
    name: str
    area_mm2: float
    height_mm: float
    confidence: float
    source: str


@dataclass(frozen=True, eq=False)
class Segmented:
    """A stack with the label of every pixel (Z, Y, X) uint8: 0 nothing, 1 disc, 2 vertebra, 3 canal."""

    view: str
    labels: Volume
    discs: tuple[DiscFound, ...]


def segment_study(locator: Locator, loaded: Loaded, points: Points, nets: Nets) -> list[Segmented]:
    """The label images of every stack that a locator reads of a study: vertebrae and canal from its nets, discs from
    points.

    Each landmark of the region names the disc whose centre its point is, in order from top to bottom. A slice within
    HALF_DISC_MM of a point shows its disc (at the same place of the slice); others show none.
    """
    done = []
    for placed in region_grids(locator, loaded.volumes, points, max(sides(nets.pixels))):
        volume = placed.region.volume
        labels = label_image(placed, nets)
        known = {one.name: points[one.name] for one in placed.region.landmarks if one.name in points}
        discs = [disc for z in range(len(labels)) for disc in _put_discs(labels[z], volume, z, known)]
        view = next(name for name, stacks in loaded.volumes.items() if any(one is volume for one in stacks))
        done.append(Segmented(view, replace(volume, voxels=labels), tuple(discs)))
    return done


def _put_discs(labels: np.ndarray, volume: Volume, z: int, points: Points) -> list[DiscFound]:
    """Exchange the net's discs of a slice for those around the points, in place; returns what was put there."""
    centres: list[tuple[float, float] | None] = []
    for point in points.values():
        depth, row, column = (float(v) for v in to_index(volume, point.mm))
        centres.append((row, column) if abs(depth - z) * volume.step_mm <= HALF_DISC_MM else None)
    spacing = (float(volume.spacing_mm[1]), float(volume.spacing_mm[2]))
    labels[labels == DISC] = 0
    found = []
    for (landmark, point), one in zip(points.items(), disc_masks(labels, spacing, centres), strict=True):
        if one is None or not one.mask.any():
            continue
        area = float(one.mask.sum()) * spacing[0] * spacing[1]
        height = area / max(one.length_mm, spacing[1])
        name = volume.names[z] if volume.names else str(z)
        found.append(DiscFound(landmark, z, name, area, height, point.confidence, one.source))
        labels[one.mask] = DISC
    return found

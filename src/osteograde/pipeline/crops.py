"""What the nets read: the regions of locators and the crops of graders as pixels. Training and inference share this.

Shapes: D slices, H W pixels, C crops, S sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from osteograde.imaging.geometry import Roi, lateral_axis, mirrored, roi_at, roi_on
from osteograde.imaging.resample import crop_stacks
from osteograde.tasks.spec import Grader, Locator, Pixels, Points, Region, Volumes, sides

SIGN = {"right": -1, "": 0, "left": 1}  # of patient x minus the midline
LATERAL_SCALE_MM = 50.0  # the lateral-coordinate channel is x / 50 mm: about -1..1 over a sagittal stack


@dataclass(frozen=True, eq=False)
class RegionGrid:
    """A region of a locator and the grid (D, H, W) of what its net reads of it, on the volume's own slices."""

    region: Region
    grid: Roi


def region_grids(locator: Locator, volumes: Volumes, points: Points, pixels: int) -> list[RegionGrid]:
    """The regions of a locator in one study with ``pixels`` x ``pixels`` laid over each. ValueError where they differ
    in the channels or sides of their landmarks: they could not go through the net together."""
    regions = locator.regions(volumes, points)
    kinds = {tuple((landmark.channel, landmark.side) for landmark in region.landmarks) for region in regions}
    if len(kinds) > 1:
        raise ValueError(
            f"locator {locator.name!r}: its regions have landmarks of different channels or sides: {sorted(kinds)}; "
            "give all regions the same, in the same order, or make two locators of them"
        )
    return [RegionGrid(region, region_grid(region, pixels)) for region in regions]


def region_grid(region: Region, pixels: int) -> Roi:
    """The grid of a region: (D, pixels, pixels), D the slices of the region, or all of the stack."""
    volume = region.volume
    rows_mm, columns_mm = region.field_mm[0] / pixels, region.field_mm[1] / pixels
    if region.centre_mm is not None:
        return roi_on(volume, region.centre_mm, (rows_mm, columns_mm), (region.slices, pixels, pixels))
    spacing_mm = np.array([volume.spacing_mm[0], rows_mm, columns_mm])
    return roi_at(volume.centre_mm, volume.axes, spacing_mm, (volume.voxels.shape[0], pixels, pixels))


def lateral_mm(roi: Roi, midline_mm: float) -> np.ndarray:
    """(D, W): patient x of each pixel column of each slice (at the middle row) relative to the midline."""
    d, h, w = roi.shape
    across, down, along, start = roi.to_mm[0].tolist()
    middle = start + down * (h - 1) / 2 - midline_mm
    return across * np.arange(d)[:, None] + along * np.arange(w) + middle


def neighbours(crop_DHW: torch.Tensor, lateral_DW: torch.Tensor) -> torch.Tensor:
    """(D, 4, H, W): the slice before, the slice, the slice after (the ends repeat), and the lateral coordinate.

    Channels last in memory, as nets read them: written once, in place of a copy each time they are stacked.
    """
    depth, height, width = crop_DHW.shape
    images = torch.empty(
        (depth, 4, height, width), dtype=crop_DHW.dtype, device=crop_DHW.device, memory_format=torch.channels_last
    )
    images[:, :3] = torch.cat([crop_DHW[:1], crop_DHW, crop_DHW[-1:]]).unfold(0, 3, 1).permute(0, 3, 1, 2)
    images[:, 3] = (lateral_DW / LATERAL_SCALE_MM)[:, None]
    return images


def region_images(placed: RegionGrid, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (D, 4, H, W) of a region and the lateral coordinate (D, W) in mm of its pixel columns."""
    return regions_images([placed], device)


def regions_images(regions: Sequence[RegionGrid], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 4, H, W) of the slices of at least one region, one region after the other, and the lateral coordinates
    (N, W) in mm of their pixel columns. All regions must have the same H and W."""
    images, laterals = [], []
    for _, same in groupby(regions, key=lambda placed: placed.grid.shape):
        alike = list(same)
        crops = crop_stacks([(placed.region.volume, placed.grid) for placed in alike], device)
        for crop, placed in zip(crops, alike, strict=True):
            lateral = lateral_mm(placed.grid, placed.region.midline_mm).astype(np.float32)
            laterals.append(torch.from_numpy(lateral).to(device))
            images.append(neighbours(crop, laterals[-1]))
    if len(images) == 1:
        return images[0], laterals[0]
    return torch.cat(images).contiguous(memory_format=torch.channels_last), torch.cat(laterals)


def middle_images(placed: RegionGrid, count: int, device: torch.device) -> torch.Tensor:
    """(count, 4, H, W) the images of the ``count`` middle slices of a region, or of all where it has fewer. No other
    slices than these and their neighbours are cut."""
    depth, height, width = placed.grid.shape
    first = max((depth - count) // 2, 0)
    begin, end = max(first - 1, 0), min(first + count + 1, depth)
    to_mm = placed.grid.to_mm.copy()
    to_mm[:, 3] += begin * to_mm[:, 0]
    images, _ = region_images(RegionGrid(placed.region, Roi(to_mm, (end - begin, height, width))), device)
    return images[first - begin : first - begin + count]


@dataclass(frozen=True, eq=False)
class SiteCrops:
    """The crops of the sites of one grader in one study. images: per crop of the grader (S, D, H, W); present (S, C):
    which of the C crops could be seen."""

    targets: tuple[str, ...]
    images: tuple[torch.Tensor, ...]
    present: torch.Tensor


def site_boxes(grader: Grader, volumes: Volumes, points: Points, pixels: Pixels) -> dict[str, dict]:
    """{target: {crop name: (volume, box)}} of the sites that can be seen at all."""
    boxes = grader.regions(volumes, points, pixels)
    return {target: dict(found) for target, found in boxes.items() if found}


def site_crops(grader: Grader, boxes: dict[str, dict], pixels: Pixels, device: torch.device) -> SiteCrops:
    """Sample every box once. A crop without a box is zeros with present = False; the nets give it no weight."""
    targets = tuple(boxes)
    images = []
    present = torch.zeros(len(targets), len(grader.crops), dtype=torch.bool)
    for c, crop in enumerate(grader.crops):
        seen = [s for s, target in enumerate(targets) if crop.name in boxes[target]]
        present[seen, c] = True
        stack = crop_stacks([boxes[targets[s]][crop.name] for s in seen], device) if seen else None
        if stack is None or len(seen) < len(targets):
            whole = torch.zeros(len(targets), crop.slices, *sides(pixels), device=device)
            stack = whole if stack is None else whole.index_copy_(0, torch.tensor(seen, device=device), stack)
        images.append(stack)
    return SiteCrops(targets, tuple(images), present.to(device))


def turned(roi: Roi, degrees: float, scale: float, mirror: bool = False) -> Roi:
    """The same box turned in its own plane about its centre, scaled and, if so, mirrored: a test-time augmentation."""
    centre = (np.array(roi.shape) - 1) / 2
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    seen = Roi(roi.to_mm @ turn, roi.shape)
    return mirrored(seen, lateral_axis(seen)) if mirror else seen

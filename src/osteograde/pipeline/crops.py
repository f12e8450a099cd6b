"""What the nets see: the boxes of both stages and their pixels. Training and inference cut with these functions.

Shapes: D slices, H W pixels, V views, S sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from osteograde.imaging.geometry import (
    Roi,
    Volume,
    apply,
    lateral_axis,
    mirrored,
    outside_mm,
    plane_distance_mm,
    roi_at,
    roi_on,
)
from osteograde.imaging.resample import crop_stack
from osteograde.tasks.spec import Grader, Landmark, Locator, Pixels, Points, Volumes, sides

SIGN = {"right": -1, "": 0, "left": 1}  # of patient x minus the midline
LATERAL_SCALE_MM = 50.0  # the lateral-coordinate channel is x / 50 mm: about -1..1 over a sagittal stack


@dataclass(frozen=True, eq=False)
class Region:
    """One look of a locator at one box: a whole stack, or a few slices around a prompt."""

    landmarks: tuple[Landmark, ...]
    volume: Volume
    roi: Roi  # (D, H, W), on the volume's own slices
    midline_mm: float  # patient x that divides right from left
    near_mm: Mapping[str, np.ndarray] = field(default_factory=dict)  # landmark -> the point (mm) it lies beside


def regions_of(stage: Locator, volumes: Volumes, points: Points, pixels: int) -> list[Region]:
    """The boxes a locator looks at in one study; none where the view, or every prompt, is absent."""
    found = []
    for view, prompt in stage.looks:
        stacks = volumes.get(view, ())
        if not stacks:
            continue
        landmarks = tuple(
            landmark
            for landmark in stage.landmarks
            if landmark.prompt == prompt and (landmark.view or stage.view) == view
        )
        if not prompt:
            found.append(_whole_stack(stage, landmarks, stacks, points, pixels))
        elif prompt in points:
            box = _around(stage, stacks, points[prompt].mm, pixels)
            if box is not None:
                found.append(Region(landmarks, *box, midline_mm=float(points[prompt].mm[0])))
    return found


def _whole_stack(
    stage: Locator, landmarks: tuple[Landmark, ...], stacks: Sequence[Volume], points: Points, pixels: int
) -> Region:
    volume = max(stacks, key=lambda stack: (stack.voxels.shape[0], stack.series))
    longest_mm = float(np.max(volume.spacing_mm[1:] * volume.voxels.shape[1:]))
    field_mm = (longest_mm, longest_mm) if stage.whole else stage.field_mm
    spacing = np.array([volume.spacing_mm[0], field_mm[0] / pixels, field_mm[1] / pixels])
    roi = roi_at(volume.centre_mm, volume.axes, spacing, (volume.voxels.shape[0], pixels, pixels))
    known = [0.0] if stage.own_midline else [points[name].mm[0] for name in stage.midline if name in points]
    near = {landmark.name: points[landmark.near].mm for landmark in landmarks if landmark.near in points}
    return Region(landmarks, volume, roi, float(np.mean(known)) if known else float(volume.centre_mm[0]), near)


def _around(stage: Locator, stacks: Sequence[Volume], point_mm: np.ndarray, pixels: int) -> tuple[Volume, Roi] | None:
    """The box around a prompt in the stack whose slices come closest to it; None beyond ``far_mm``."""
    volume, distance = nearest(stacks, point_mm)
    if distance > stage.far_mm:
        return None
    spacing = (stage.field_mm[0] / pixels, stage.field_mm[1] / pixels)
    return volume, roi_on(volume, point_mm, spacing, (stage.slices, pixels, pixels))


def nearest(stacks: Sequence[Volume], point_mm: np.ndarray) -> tuple[Volume, float]:
    """The stack whose slices come closest to a point, and how close in mm (out of the plane and out of the field)."""
    distances = [plane_distance_mm(stack, point_mm) + outside_mm(stack, point_mm) for stack in stacks]
    best = min(range(len(stacks)), key=lambda i: (round(distances[i], 3), -stacks[i].voxels.shape[0], stacks[i].series))
    return stacks[best], distances[best]


def lateral_mm(roi: Roi, midline_mm: float) -> np.ndarray:
    """(D, W): patient x of each pixel column of each slice (at the middle row) relative to the midline."""
    d, h, w = roi.shape
    index = np.stack(np.meshgrid(np.arange(d), np.arange(w), indexing="ij"), -1).astype(float)
    middle = np.full(index.shape[:2], (h - 1) / 2)
    return apply(roi.to_mm, np.stack([index[..., 0], middle, index[..., 1]], -1))[..., 0] - midline_mm


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


def region_images(look: Region, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (D, 4, H, W) of a pass and the lateral coordinate (D, W) in mm of its pixel columns."""
    lateral = torch.from_numpy(lateral_mm(look.roi, look.midline_mm).astype(np.float32)).to(device)
    return neighbours(crop_stack(look.volume, look.roi, device), lateral), lateral


@dataclass(frozen=True, eq=False)
class SiteCrops:
    """The crops of the sites of one grader in one study. views: per crop spec (S, D, H, W); present: (S, V)."""

    targets: tuple[str, ...]
    views: tuple[torch.Tensor, ...]
    present: torch.Tensor


def site_boxes(group: Grader, volumes: Volumes, points: Points, pixels: Pixels) -> dict[str, dict]:
    """{target: {view: (volume, roi)}} of the sites that can be seen at all."""
    boxes = group.rois(volumes, points, pixels)
    return {target: dict(found) for target, found in boxes.items() if found}


def site_crops(group: Grader, boxes: dict[str, dict], pixels: Pixels, device: torch.device) -> SiteCrops:
    """Sample every box once. A view without a box is zeros with present = False; the nets give it no weight."""
    targets = tuple(boxes)
    views = []
    present = torch.zeros(len(targets), len(group.crops), dtype=torch.bool)
    for v, spec in enumerate(group.crops):
        stack = torch.zeros(len(targets), spec.slices, *sides(pixels), device=device)
        for s, target in enumerate(targets):
            if spec.view in boxes[target]:
                volume, roi = boxes[target][spec.view]
                stack[s] = crop_stack(volume, roi, device)
                present[s, v] = True
        views.append(stack)
    return SiteCrops(targets, tuple(views), present.to(device))


def turned(roi: Roi, degrees: float, scale: float, mirror: bool = False) -> Roi:
    """The same box turned in its own plane about its centre and scaled, or mirrored: a test-time view."""
    centre = (np.array(roi.shape) - 1) / 2
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    seen = Roi(roi.to_mm @ turn, roi.shape)
    return mirrored(seen, lateral_axis(seen)) if mirror else seen


# Test-time views in order of worth: as it is, then small turns with a slightly larger field. The first is always used.
TEST_TIME_VIEWS = ((0.0, 1.0), (6.0, 1.06), (-6.0, 0.96), (0.0, 1.1))


def test_time_views(group: Grader, count: int) -> list[tuple[float, float, bool]]:
    """(degrees, scale, mirrored) of the first ``count`` looks at a site; where mirror images are graded alike, each
    is seen both ways."""
    ways = (False, True) if group.laterality_invariant else (False,)
    return [(degrees, scale, mirror) for degrees, scale in TEST_TIME_VIEWS for mirror in ways][:count]

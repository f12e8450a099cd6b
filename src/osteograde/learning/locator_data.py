"""Training samples of a locator: windows of neighbouring slices of stored stacks, moved at random.

Nets that learn from label images (segmentations) read them beside the images, cut on the same grids and moved by the
same moves. Labels are small whole numbers; a pixel that no label image covers is UNKNOWN. Inference reads none.

Shapes: B samples, D slices of a window, L landmarks, H' W' stored pixels, H W pixels the net reads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import grid_sample

from osteograde.errors import UserError
from osteograde.imaging import image_files
from osteograde.imaging.geometry import Roi, Volume, apply, grown, lateral_axis, to_index
from osteograde.imaging.resample import crop_stack
from osteograde.imaging.volume_files import is_volume_file, read_volume
from osteograde.learning.augment import Move, draw_move, move_points, read_at, resample, sampling_grid, shade, still
from osteograde.learning.loop import every_sample
from osteograde.learning.recipe import LocatorPlan
from osteograde.models.locators.base import LocatorBatch
from osteograde.pipeline.crops import LATERAL_SCALE_MM, SIGN, RegionGrid, region_grids
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Landmark, Locator, Region, Series, Study, sides

log = logging.getLogger("osteograde.learning")

MARGIN = 0.18  # stored border on each side, as a share of the side: room for turning and shifting
SLICE_MARGIN = 2  # extra slices stored around a prompted box
MIDLINE_JITTER_MM = 1.5


@dataclass(frozen=True, eq=False)
class Stored:
    """One region on disk: ``depth`` stored slices from number ``start`` on.

    points: (L, 3) stored index (d, h, w), NaN where unlabelled, infinite where known to be absent. lateral: (4,) so
    that patient x minus the midline at stored index (d, h, w) is lateral[:3] @ index + lateral[3]. lateral_axis: the
    stored axis that runs right-left, 0 in a sagittal stack, 2 in an axial one. window: slices that a sample has, around
    its centre; 0: any window of the stack. labelled: whether its slices have label images.
    """

    study: str
    start: int
    depth: int
    points: np.ndarray
    lateral: np.ndarray
    lateral_axis: int
    slice_mm: float
    window: int
    labelled: bool = False


@dataclass(frozen=True, eq=False)
class LocatorData:
    """The regions of one locator in many studies, in one memory-mapped array of slices (N, H', W')."""

    locator: Locator
    plan: LocatorPlan
    landmarks: tuple[Landmark, ...]  # of the first region; all others have the same channels and sides in this order
    slices: np.ndarray
    items: tuple[Stored, ...]
    labels: np.ndarray | None = None  # (N, H', W') of the slices, where the net learns from label images

    def of(self, studies: set[str]) -> LocatorData:
        """The part of the data that belongs to these studies."""
        return replace(self, items=tuple(item for item in self.items if item.study in studies))

    def fit(self, net: nn.Module) -> None:
        """Nothing: the net of a locator knows images alone."""

    def in_epoch(self, epoch: int) -> LocatorData:
        """All of the data: the plan of a locator uses the same regions and image sizes in every epoch."""
        return self

    def order(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) indices of the samples of an epoch, each equally often."""
        return every_sample(len(self), rng, count)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def pixel_mm(self) -> float:
        return self.locator.field_mm[1] / self.side

    @property
    def side(self) -> int:
        return max(sides(self.plan.pixels))

    def batch(
        self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, device: torch.device, *, augment: bool
    ) -> LocatorBatch:
        """A window of slices of each of some regions, moved at random if ``augment``, and where its landmarks lie
        then."""
        items = [self.items[i] for i in indices]
        size, stored = (self.side,) * 2, self.slices.shape[1:]
        augmentation = self.plan.augmentation
        windows = [_window(item, self.plan, rng, augment) for item in items]
        depth = max(stop - start for start, stop in windows)
        index = np.stack([_slices(item, start, depth) for item, (start, _) in zip(items, windows, strict=True)])
        move = draw_move(rng, len(items), augmentation, self.pixel_mm, stored) if augment else still(len(items))
        images = resample(torch.from_numpy(self.slices[index]).to(device), move, size)  # (B, D + 2, H, W)
        images = shade(rng, images, augmentation) if augment else images
        labels = None
        if self.labels is not None:
            labels = resample_labels(torch.from_numpy(self.labels[index]).to(device), move, size)
        points = np.stack([item.points for item in items])
        points = points - [[[start, 0, 0]] for start, _ in windows]
        points = np.concatenate([points[..., :1], move_points(move, points[..., 1:], stored, size)], -1)
        points[_outside(points, [stop - start for start, stop in windows], size)] = np.nan
        points[np.isinf(np.stack([item.points for item in items]))] = np.inf
        lateral = self._lateral(items, windows, depth, move, rng, augment)
        if augment and augmentation.mirror:
            stacks = [images] if labels is None else [images, labels]
            points, lateral = self._mirror(stacks, points, lateral, windows, items, rng)
        return self._assemble(images, labels, points, lateral, windows, items)

    def _lateral(
        self,
        items: Sequence[Stored],
        windows: Sequence[tuple[int, int]],
        depth: int,
        move: Move,
        rng: np.random.Generator,
        augment: bool,
    ) -> np.ndarray:
        """(B, D, W): lateral mm of the columns of each slice at the middle row, after the move."""
        side, stored = self.side, np.array(self.slices.shape[1:])
        columns = np.arange(side) - (side - 1) / 2
        lateral = np.empty((len(items), depth, side), np.float32)
        for b, (item, (start, _)) in enumerate(zip(items, windows, strict=True)):
            centred = read_at(move, b, np.stack([np.zeros(side), columns], -1))
            row, column = (centred + (stored - 1) / 2).T
            d = np.arange(start, start + depth)[:, None]
            a = item.lateral
            lateral[b] = a[0] * d + a[1] * row + a[2] * column + a[3]
        if augment:
            lateral += rng.normal(0, MIDLINE_JITTER_MM, (len(items), 1, 1)).astype(np.float32)
        return lateral

    def _mirror(
        self,
        stacks: Sequence[torch.Tensor],
        points: np.ndarray,
        lateral: np.ndarray,
        windows: Sequence[tuple[int, int]],
        items: Sequence[Stored],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mirrored patient, for half of the samples: flip the right-left axis, swap sides, negate lateral mm.

        stacks: (B, D + 2, H, W) each, images and label images. points (B, L, 3), lateral (B, D, W), windows: (first,
        last plus one slice) of each sample. Stacks, points and lateral are changed in place; the last two are returned.
        """
        partner = partners(self.landmarks)
        for b in np.flatnonzero(rng.random(len(points)) < 0.5).tolist():
            depth = windows[b][1] - windows[b][0]
            if items[b].lateral_axis == 0:
                for stack in stacks:
                    stack[b, : depth + 2] = stack[b, : depth + 2].flip(0)
                points[b, :, 0] = depth - 1 - points[b, :, 0]
                lateral[b, :depth] = -lateral[b, :depth][::-1]
            else:
                for stack in stacks:
                    stack[b] = stack[b].flip(-1)
                points[b, :, 2] = self.side - 1 - points[b, :, 2]
                lateral[b] = -lateral[b][:, ::-1]
            points[b] = points[b][partner]
        return points, lateral

    def _assemble(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        points: np.ndarray,
        lateral: np.ndarray,
        windows: Sequence[tuple[int, int]],
        items: Sequence[Stored],
    ) -> LocatorBatch:
        """The batch of windowed samples, without the slices by which shorter windows were padded."""
        device, channels = images.device, self.locator.channels
        lateral_t = torch.from_numpy(np.ascontiguousarray(lateral)).to(device)
        depths = [stop - start for start, stop in windows]
        keep = torch.tensor([[d < depth for d in range(lateral.shape[1])] for depth in depths], device=device)
        plane = (lateral_t / LATERAL_SCALE_MM)[:, :, None, :].expand(-1, -1, images.shape[2], -1)
        stacked = torch.stack([images[:, :-2], images[:, 1:-1], images[:, 2:], plane], 2)  # (B, D, 4, H, W)
        stack = torch.arange(len(items), device=device)[:, None].expand(-1, lateral.shape[1])
        return LocatorBatch(
            images=stacked[keep],
            stack=stack[keep],
            points=torch.from_numpy(points.astype(np.float32)).to(device),
            channel=torch.tensor([channels.index(landmark.channel) for landmark in self.landmarks], device=device),
            side=torch.tensor([SIGN[landmark.side] for landmark in self.landmarks], device=device),
            lateral=lateral_t[keep],
            pixel_mm=self.pixel_mm,
            slice_mm=float(np.median([item.slice_mm for item in items])),
            sigma_mm=self.locator.sigma_mm,
            may_be_absent=self.locator.may_be_absent,
            masks=None if labels is None else classes_of(labels[:, 1:-1][keep]),
        )


def partners(landmarks: Sequence[Landmark]) -> list[int]:
    """For each landmark of a region the index of its mirror image: same channel, other side; itself on the midline."""
    other = {"right": "left", "left": "right", "": ""}
    key = {(landmark.channel, landmark.side): i for i, landmark in enumerate(landmarks)}
    return [key[(landmark.channel, other[landmark.side])] for landmark in landmarks]


def _slices(item: Stored, start: int, depth: int) -> np.ndarray:
    """(D + 2,) numbers of stored slices: those of the window and one more on both ends; the ends of a stack repeat."""
    return item.start + np.clip(np.arange(start - 1, start + depth + 1), 0, item.depth - 1)


def _window(item: Stored, plan: LocatorPlan, rng: np.random.Generator, augment: bool) -> tuple[int, int]:
    """First and last-plus-one slice of a sample: of a region of few slices these, shifted by up to one slice if
    ``augment``; of a whole stack a window with a landmark, or any window where the plan says so and all is labelled."""
    if item.window:
        start = SLICE_MARGIN + (int(rng.integers(-1, 2)) if augment else 0)
        return start, start + item.window
    length = min(plan.window, item.depth)
    known = item.points[np.isfinite(item.points[:, 0]), 0]
    anywhere = not len(known) or (augment and plan.any_window and item.labelled)
    aim = int(rng.integers(item.depth)) if anywhere else round(float(rng.choice(known)))
    offset = int(rng.integers(length)) if augment else length // 2
    start = int(np.clip(aim - offset, 0, item.depth - length))
    return start, start + length


def _outside(points: np.ndarray, depths: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """(B, L): whether points (B, L, 3) lie outside of their window of ``depths`` slices of ``size`` pixels."""
    limit = np.array([[[depth, *size]] for depth in depths]) - 0.5
    with np.errstate(invalid="ignore"):
        return np.any((points < -0.5) | (points > limit), -1)


def store(locator: Locator, plan: LocatorPlan, studies: Iterable[Loaded], folder: Path) -> LocatorData:
    """Cut the regions of a locator in the studies, around annotated points and with a margin, into one array on disk.

    Where the net learns from label images, they are cut alike into a second one. For a net that is used as it starts
    nothing is cut. ValueError where no study has both an annotated landmark and a region that shows it.
    """
    pixels, margin = max(sides(plan.pixels)), margin_of(plan)
    side = pixels + 2 * margin
    if not plan.training.epochs:
        return LocatorData(locator, plan, (), np.zeros((0, side, side), np.uint8), ())
    folder.mkdir(parents=True, exist_ok=True)
    items: list[Stored] = []
    landmarks: tuple[Landmark, ...] = ()
    path, labels_path = folder / f"{locator.name}.u8", folder / f"{locator.name}.labels.u8"
    with ExitStack() as opened:
        file = opened.enter_context(path.open("wb"))
        labels_file = opened.enter_context(labels_path.open("wb")) if learns_from_masks(plan) else None
        written = 0
        for loaded in studies:
            for placed in region_grids(locator, loaded.volumes, loaded.marks, pixels):
                region = placed.region
                grid = stored_grid(placed, plan)
                item = _stored(region, grid, loaded, written)
                landmarks = landmarks or region.landmarks
                if np.isnan(item.points).all():
                    continue
                crop = crop_stack(region.volume, grid, torch.device("cpu")) * 255
                file.write(crop.round().to(torch.uint8).numpy().tobytes())
                if labels_file:
                    known = label_volume(loaded.study, region.volume)
                    item = replace(item, labelled=known is not None)
                    labels_file.write(cut_labels(known, grid).tobytes())
                written += item.depth
                items.append(item)
    if not items:
        raise UserError(f"locator {locator.name!r}: no study has an annotated landmark and its view; nothing to learn")
    log.info("%s: %d regions, %d slices of %d px", locator.name, len(items), written, side)
    slices = np.memmap(path, np.uint8, "r", shape=(written, side, side))
    labels = np.memmap(labels_path, np.uint8, "r", shape=(written, side, side)) if labels_file else None
    return LocatorData(locator, plan, landmarks, slices, tuple(items), labels)


def margin_of(plan: LocatorPlan) -> int:
    """Pixels of the border that is stored around what a net reads."""
    return round(MARGIN * max(sides(plan.pixels)))


def stored_grid(placed: RegionGrid, plan: LocatorPlan) -> Roi:
    """The grid (D, H, W) of what is stored of a region, a byte a pixel, with its margins."""
    margin = margin_of(plan)
    return grown(placed.grid, (SLICE_MARGIN if placed.region.slices else 0, margin, margin))


def _stored(region: Region, grid: Roi, loaded: Loaded, start: int) -> Stored:
    """Where the landmarks of a region lie in its grid, which is stored from slice ``start`` on."""
    points = np.full((len(region.landmarks), 3), np.nan)
    for i, landmark in enumerate(region.landmarks):
        if landmark.name in loaded.marks:
            points[i] = to_index(grid, loaded.marks[landmark.name].mm)
        elif landmark.name in loaded.absent:
            points[i] = np.inf
    lateral = np.concatenate([grid.to_mm[0, :3], [grid.to_mm[0, 3] - region.midline_mm]])
    return Stored(
        study=loaded.study.id,
        start=start,
        depth=grid.shape[0],
        points=points,
        lateral=lateral,
        lateral_axis=lateral_axis(grid),
        slice_mm=float(grid.spacing_mm[0]),
        window=region.slices,
    )


UNKNOWN = 255  # in bytes; -1 in a batch
SEGMENTING = frozenset({"unet", "planned_unet"})  # kinds of locators that learn from label images


def learns_from_masks(plan: LocatorPlan) -> bool:
    """Whether the net learns from label images at all; for all others none is read."""
    return plan.net.get("kind") in SEGMENTING


def label_volume(study: Study, volume: Volume) -> Volume | None:
    """The labels (Z, Y, X) uint8 of a stack that was read of the study; None where its series has no label images.

    The stack must have been read from image files, which have its own rows and columns. A slice has the label image of
    the file it is named after: of thin slices that were averaged the middle one. Raises ValueError where label images
    are not one for one with the files, cannot be read, have another size, or hold numbers above UNKNOWN.
    """
    series = next((candidate for candidate in study.series if candidate.id == volume.series), None)
    if series is None or not series.masks:
        return None
    if is_volume_file(series.masks[0]):
        return _label_file(series)
    paths = _by_slice(series)
    return replace(volume, voxels=np.stack([_labels(paths[name], volume.voxels.shape[1:]) for name in volume.names]))


def _label_file(series: Series) -> Volume:
    """The classes of a volume of labels, where it lies itself: it has a place in the patient, as its image has."""
    try:
        labels = read_volume(series.masks[0])
    except image_files.UnreadableImage as error:
        raise UserError(
            f"{series.masks[0]}: labels cannot be read ({error.code}); replace or remove the file"
        ) from None
    classes = np.zeros(labels.voxels.shape, np.uint8) if series.label_classes else labels.voxels.astype(np.uint8)
    for first, last, number in series.label_classes:
        classes[(labels.voxels >= first) & (labels.voxels <= last)] = number
    return replace(labels, voxels=classes)


def _by_slice(series: Series) -> dict[str, Path]:
    """Label images by the names of the slices, the stems of their files."""
    named = dict(zip((file.stem for file in series.files), series.masks, strict=False))
    if not len(named) == len(series.files) == len(series.masks) or not all(map(image_files.is_image, series.files)):
        raise UserError(
            f"series {series.id}: {len(series.masks)} label images for {len(series.files)} files "
            f"of {len(named)} names; expected one for each, and image files of different names; "
            "complete the label images or remove them all"
        )
    return named


def _labels(path: Path, size: tuple[int, ...]) -> np.ndarray:
    try:
        labels = image_files.read_pixels(path)
    except image_files.UnreadableImage as error:
        raise UserError(f"{path}: label image cannot be read ({error.code}); replace or remove it") from None
    if labels.shape != size:
        raise UserError(
            f"{path}: label image has {labels.shape} rows and columns; expected {size} as the image it belongs to"
        )
    if int(labels.max()) > UNKNOWN:
        raise UserError(f"{path}: label image holds {int(labels.max())}; expected labels of 0 to {UNKNOWN - 1}")
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

"""Training samples of a locator: windows of neighbouring slices of stored stacks, moved at random.

Shapes: B samples, D slices of a window, L landmarks, H' W' stored pixels, H W pixels the net reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from osteograde.imaging.geometry import Roi, grown, to_index
from osteograde.imaging.resample import crop_stack
from osteograde.learning.augment import draw_move, move_points, resample, shade, still
from osteograde.learning.data import masks
from osteograde.learning.recipe import Fit
from osteograde.models.locators.base import LocatorBatch
from osteograde.pipeline.crops import LATERAL_SCALE_MM, SIGN, Pass, passes
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Landmark, Locate, View, sides

MARGIN = 0.18  # stored border on each side, as a share of the side: room for turning and shifting
SLICE_MARGIN = 2  # extra slices stored around a prompted box
MIDLINE_JITTER_MM = 1.5


@dataclass(frozen=True, eq=False)
class Stored:
    """One pass on disk. points: (L, 3) stored index (d, h, w), NaN where unlabelled, infinite where known to be absent.
    lateral: (4,) so that patient x
    minus the midline at stored index (d, h, w) is lateral[:3] @ index + lateral[3]."""

    study: str
    start: int
    depth: int
    points: np.ndarray
    lateral: np.ndarray
    slice_mm: float


@dataclass(frozen=True, eq=False)
class LocateData:
    """Passes of one locator over many studies, in one memory-mapped array of slices (N, H', W')."""

    stage: Locate
    fit: Fit
    landmarks: tuple[Landmark, ...]  # of every pass, in order: channels and sides are the same for all prompts
    slices: np.ndarray
    items: tuple[Stored, ...]
    lateral_axis: int  # index axis that runs right-left: 0 in a sagittal stack, 2 in an axial one
    labels: np.ndarray | None = None  # (N, H', W') of the slices, where the net learns from label images

    def of(self, studies: set[str]) -> LocateData:
        """The part of the data that belongs to these studies."""
        return replace(self, items=tuple(item for item in self.items if item.study in studies))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def pixel_mm(self) -> float:
        return self.stage.field_mm[1] / self.side

    @property
    def side(self) -> int:
        return max(sides(self.fit.pixels))

    def batch(
        self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, device: torch.device, *, augment: bool
    ) -> LocatorBatch:
        """Cut a window of slices from each pass, move it, and say where its landmarks lie then."""
        items = [self.items[i] for i in indices]
        size, stored = (self.side,) * 2, self.slices.shape[1:]
        jitter = self.fit.jitter
        windows = [_window(item, self.stage, self.fit, rng, augment) for item in items]
        depth = max(stop - start for start, stop in windows)
        index = np.stack([_slices(item, start, depth) for item, (start, _) in zip(items, windows, strict=True)])
        move = draw_move(rng, len(items), jitter, self.pixel_mm) if augment else still(len(items))
        images = resample(torch.from_numpy(self.slices[index]).to(device), move, size)  # (B, D + 2, H, W)
        images = shade(rng, images, jitter) if augment else images
        labels = None
        if self.labels is not None:
            labels = masks.resample_labels(torch.from_numpy(self.labels[index]).to(device), move, size)
        points = np.stack([item.points for item in items])
        points = points - [[[start, 0, 0]] for start, _ in windows]
        points = np.concatenate([points[..., :1], move_points(move, points[..., 1:], stored, size)], -1)
        points[_outside(points, [stop - start for start, stop in windows], size)] = np.nan
        points[np.isinf(np.stack([item.points for item in items]))] = np.inf
        lateral = self._lateral(items, windows, depth, move, rng, augment)
        if augment and jitter.mirror:
            stacks = [images] if labels is None else [images, labels]
            points, lateral = self._mirror(stacks, points, lateral, windows, rng)
        return self._assemble(images, labels, points, lateral, windows, items)

    def _lateral(self, items, windows, depth, move, rng, augment) -> np.ndarray:
        """(B, D, W): lateral mm of the columns of each slice at the middle row, after the move."""
        side, stored = self.side, np.array(self.slices.shape[1:])
        columns = np.arange(side) - (side - 1) / 2
        lateral = np.empty((len(items), depth, side), np.float32)
        for b, (item, (start, _)) in enumerate(zip(items, windows, strict=True)):
            centred = move.matrix[b] @ np.stack([np.zeros(side), columns]) + move.shift[b][:, None]
            row, column = centred + ((stored - 1) / 2)[:, None]
            d = np.arange(start, start + depth)[:, None]
            a = item.lateral
            lateral[b] = a[0] * d + a[1] * row + a[2] * column + a[3]
        if augment:
            lateral += rng.normal(0, MIDLINE_JITTER_MM, (len(items), 1, 1)).astype(np.float32)
        return lateral

    def _mirror(self, stacks, points, lateral, windows, rng):
        """The mirrored patient, for half of the samples: flip the right-left axis, swap sides, negate lateral mm.

        stacks: (B, D + 2, H, W) each; they are changed in place.
        """
        partner = partners(self.landmarks)
        for b in np.flatnonzero(rng.random(len(points)) < 0.5):
            depth = windows[b][1] - windows[b][0]
            if self.lateral_axis == 0:
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

    def _assemble(self, images, labels, points, lateral, windows, items) -> LocatorBatch:
        device, channels = images.device, self.stage.channels
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
            sigma_mm=self.stage.sigma_mm,
            nowhere=self.stage.absent,
            masks=None if labels is None else masks.classes_of(labels[:, 1:-1][keep]),
        )


def partners(landmarks: Sequence[Landmark]) -> list[int]:
    """For each landmark the index of its mirror image: same channel and prompt, other side; itself on the midline."""
    other = {"right": "left", "left": "right", "": ""}
    key = {(landmark.channel, landmark.prompt, landmark.side): i for i, landmark in enumerate(landmarks)}
    return [key[(landmark.channel, landmark.prompt, other[landmark.side])] for landmark in landmarks]


def _slices(item: Stored, start: int, depth: int) -> np.ndarray:
    """(D + 2,) numbers of stored slices: the window and one more on both ends; the ends of the stack repeat."""
    return item.start + np.clip(np.arange(start - 1, start + depth + 1), 0, item.depth - 1)


def _window(item: Stored, stage: Locate, fit: Fit, rng: np.random.Generator, augment: bool) -> tuple[int, int]:
    """First and last-plus-one slice of the sample: around a prompt its own slices, else a window with a landmark."""
    if stage.slices:
        start = SLICE_MARGIN + (int(rng.integers(-1, 2)) if augment else 0)
        return start, start + stage.slices
    length = min(fit.window, item.depth)
    labelled = item.points[np.isfinite(item.points[:, 0]), 0]
    aim = round(float(rng.choice(labelled))) if len(labelled) else int(rng.integers(item.depth))
    offset = int(rng.integers(length)) if augment else length // 2
    start = int(np.clip(aim - offset, 0, item.depth - length))
    return start, start + length


def _outside(points: np.ndarray, depths: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    limit = np.array([[[depth, *size]] for depth in depths]) - 0.5
    with np.errstate(invalid="ignore"):
        return np.any((points < -0.5) | (points > limit), -1)


def store(
    stage: Locate, view: View, fit: Fit, studies: Iterable[Loaded], folder: Path, *, log: Callable[[str], None]
) -> LocateData:
    """Cut every pass of the studies around annotated points, with a margin, into one array on disk.

    Where the net learns from label images, they are cut alike into a second one.
    """
    pixels = max(sides(fit.pixels))
    margin = round(MARGIN * pixels)
    side = pixels + 2 * margin
    folder.mkdir(parents=True, exist_ok=True)
    items: list[Stored] = []
    landmarks: tuple[Landmark, ...] = ()
    path, labels_path = folder / f"{stage.name}.u8", folder / f"{stage.name}.labels.u8"
    with ExitStack() as opened:
        file = opened.enter_context(path.open("wb"))
        labels_file = opened.enter_context(labels_path.open("wb")) if masks.wanted(fit) else None
        written = 0
        for loaded in studies:
            for look in passes(stage, loaded.volumes, loaded.marks, pixels):
                roi = grown(look.roi, (SLICE_MARGIN if stage.slices else 0, margin, margin))
                item = _placed(look, roi, loaded, written)
                landmarks = landmarks or look.landmarks
                if np.isnan(item.points).all():
                    continue
                crop = crop_stack(look.volume, roi, torch.device("cpu")) * 255
                file.write(crop.round().to(torch.uint8).numpy().tobytes())
                if labels_file:
                    labels_file.write(masks.cut_labels(masks.label_volume(loaded.study, look.volume), roi).tobytes())
                written += item.depth
                items.append(item)
    if not items:
        raise ValueError(f"locator {stage.name!r}: no study has an annotated landmark and its view; nothing to learn")
    log(f"{stage.name}: {len(items)} passes, {written} slices of {side} px")
    slices = np.memmap(path, np.uint8, "r", shape=(written, side, side))
    labels = np.memmap(labels_path, np.uint8, "r", shape=(written, side, side)) if labels_file else None
    lateral_axis = int(np.argmax(np.abs(np.array(view.directions)[:, 0])))
    return LocateData(stage, fit, landmarks, slices, tuple(items), lateral_axis, labels)


def _placed(look: Pass, roi: Roi, loaded: Loaded, start: int) -> Stored:
    """Where the landmarks of a pass lie in its box, which is stored from slice ``start`` on."""
    points = np.full((len(look.landmarks), 3), np.nan)
    for i, landmark in enumerate(look.landmarks):
        if landmark.name in loaded.marks:
            points[i] = to_index(roi, loaded.marks[landmark.name].mm)
        elif landmark.name in loaded.absent:
            points[i] = np.inf
    lateral = np.concatenate([roi.to_mm[0, :3], [roi.to_mm[0, 3] - look.midline_mm]])
    return Stored(loaded.study.id, start, roi.shape[0], points, lateral, float(roi.spacing_mm[0]))

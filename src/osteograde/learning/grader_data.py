"""Training samples of a grader: stored crops of every site, moved by errors that stage 1 really made.

Shapes: S sites of a batch, V views, D slices, H' W' stored pixels, H W pixels the net reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from osteograde.imaging.geometry import grown
from osteograde.imaging.resample import crop_stack
from osteograde.learning.augment import Move, draw_move, resample, shade, still
from osteograde.learning.recipe import Fit
from osteograde.pipeline.crops import site_boxes
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import CropSpec, Grader, Points, Task, sides

MARGIN = 0.22  # stored border on each side, as a share of the side
SLICE_MARGIN = 2
STRIDE = 16  # sides of smaller batches are multiples of this


@dataclass(frozen=True, eq=False)
class GraderBatch:
    """crops: per view (S, D, H, W); present (S, V); labels (S,), -1 = unlabelled; study (S,): which sites belong
    together, counted from 0; findings (S, F) 0, 1 or -1 = unlabelled; weight (S,): how much a site counts."""

    crops: tuple[torch.Tensor, ...]
    present: torch.Tensor
    labels: torch.Tensor
    study: torch.Tensor
    findings: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True, eq=False)
class GraderData:
    """The crops of one grader over many studies. rows of a study are neighbours: its sites in the grader's order."""

    group: Grader
    fit: Fit
    stored: tuple[int, int]  # (H, W) of the nets' crops that the stored ones are, without their margin
    crops: tuple[np.ndarray, ...]  # per view (N, D', H', W') uint8, memory-mapped
    present: np.ndarray  # (N, V)
    to_index: np.ndarray  # (N, V, 3, 3): mm displacement -> displacement in stored index (d, h, w)
    labels: np.ndarray  # (N,)
    findings: np.ndarray  # (N, F)
    mirrorable: np.ndarray  # (N,) sites on the midline may be mirrored
    rows_of: Mapping[str, np.ndarray]  # study -> rows
    lateral_axes: tuple[int, ...]  # per view, the stored axis that runs right-left
    errors_mm: np.ndarray  # (M, 3) errors of stage 1 on held-out studies; may be empty
    studies: tuple[str, ...]
    practice: frozenset[str] = frozenset()  # those of the studies that were made for practice
    share: float = 1.0  # of the pixels' sides that batches have, over the same millimetres

    def learnt_by(self, fit: Fit) -> GraderData:
        """The same crops as another plan of the fold reads them."""
        return self._with(fit=fit)

    def of(self, studies: set[str]) -> GraderData:
        return self._with(studies=tuple(study for study in self.studies if study in studies))

    def without_practice(self) -> GraderData:
        return self._with(studies=tuple(study for study in self.studies if study not in self.practice))

    @cached_property
    def class_weight(self) -> np.ndarray:
        """(K,) how much a site of each class counts: mean 1 over this part of the data."""
        rows = np.concatenate([self.rows_of[study] for study in self.studies])
        counts = np.bincount(self.labels[rows], minlength=self.labels.max() + 1)
        weight = np.maximum(counts, 1.0) ** -self.fit.balance
        return weight / (weight[self.labels[rows]]).mean()

    def with_errors(self, errors_mm: np.ndarray) -> GraderData:
        return self._with(errors_mm=np.asarray(errors_mm, float).reshape(-1, 3))

    def smaller(self, share: float) -> GraderData:
        """The same crops read with fewer pixels: sides of ``share``, in whole strides of the nets."""
        return self._with(share=share)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of a batch."""
        height, width = sides(self.fit.pixels)
        if self.share == 1:
            return height, width
        return max(STRIDE, round(height * self.share / STRIDE) * STRIDE), max(
            STRIDE, round(width * self.share / STRIDE) * STRIDE
        )

    def _with(self, **changes) -> GraderData:
        return replace(self, **changes)

    def __len__(self) -> int:
        return len(self.studies)

    def batch(
        self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, device: torch.device, *, augment: bool
    ) -> GraderBatch:
        """The sites of some studies, each view cut out of its stored crop in one resample."""
        picked = [self.rows_of[self.studies[i]] for i in indices]
        rows = np.concatenate(picked)
        errors = self._draw_errors(rng, len(rows), augment)
        mirror = self.mirrorable[rows] & (rng.random(len(rows)) < 0.5) & augment & self.fit.jitter.mirror
        crops = tuple(self._view(v, rows, errors, mirror, rng, device, augment=augment) for v in range(len(self.crops)))
        present = self._hide(self.present[rows], rng) if augment else self.present[rows]
        return GraderBatch(
            crops=crops,
            present=torch.from_numpy(present).to(device),
            labels=torch.from_numpy(self.labels[rows]).to(device),
            findings=torch.from_numpy(self.findings[rows]).to(device),
            weight=torch.from_numpy(self.class_weight[self.labels[rows]].astype(np.float32)).to(device),
            study=torch.from_numpy(np.repeat(np.arange(len(picked)), [len(p) for p in picked])).to(device),
        )

    def _draw_errors(self, rng: np.random.Generator, count: int, augment: bool) -> np.ndarray:
        if not (augment and self.fit.jitter.use_measured_error and len(self.errors_mm)):
            return np.zeros((count, 3))
        return self.errors_mm[rng.integers(len(self.errors_mm), size=count)]

    def _view(self, v, rows, errors_mm, mirror, rng, device, *, augment) -> torch.Tensor:
        spec, size, jitter = self.group.crops[v], self.size, self.fit.jitter
        margin = _slice_margin(spec)
        offset = np.einsum("nij,nj->ni", self.to_index[rows, v], errors_mm)
        step = np.clip(np.rint(offset[:, 0]), -margin, margin).astype(int)
        slices = (margin + step)[:, None] + np.arange(spec.slices)
        stored = np.stack([self.crops[v][row][index] for row, index in zip(rows, slices, strict=True)])
        move = draw_move(rng, len(rows), jitter, spec.field_mm / max(self.stored)) if augment else still(len(rows))
        move = Move(move.matrix * (np.array(self.stored) / size), move.shift + offset[:, 1:])
        images = resample(torch.from_numpy(stored).to(device), move, size)
        flip = torch.from_numpy(mirror).to(device)[:, None, None, None]
        images = torch.where(flip, images.flip(1 if self.lateral_axes[v] == 0 else 3), images)
        return shade(rng, images, jitter) if augment else images

    def _hide(self, present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Hide one view of some sites that have another, so that the net learns to grade without it."""
        present = present.copy()
        for row in np.flatnonzero((present.sum(1) > 1) & (rng.random(len(present)) < self.fit.jitter.drop_view)):
            present[row, rng.choice(np.flatnonzero(present[row]))] = False
        return present


def store(
    group: Grader,
    task: Task,
    fit: Fit,
    studies: Iterable[tuple[Loaded, Points]],
    folder: Path,
    *,
    log: Callable[[str], None],
) -> GraderData:
    """Cut the crops of every labelled site around the given points, with a margin, into arrays on disk."""
    margin, (height, width) = _margin(fit), sides(fit.pixels)
    shapes = [(spec.slices + 2 * _slice_margin(spec), height + 2 * margin, width + 2 * margin) for spec in group.crops]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{group.name}.{spec.view}.u8" for spec in group.crops]
    files = [path.open("wb") for path in paths]
    present: list[list[bool]] = []
    to_index: list[np.ndarray] = []
    labels: list[int] = []
    findings: list[list[int]] = []
    mirrorable: list[bool] = []
    rows_of: dict[str, list[int]] = {}
    try:
        for loaded, points in studies:
            boxes = site_boxes(group, loaded.volumes, points, fit.pixels)
            for site in group.sites:
                if site.target not in boxes or site.target not in loaded.study.labels:
                    continue
                found, bases = _write(group, boxes[site.target], margin, shapes, files)
                rows_of.setdefault(loaded.study.id, []).append(len(labels))
                present.append(found)
                to_index.append(bases)
                labels.append(loaded.study.labels[site.target])
                findings.append([loaded.study.findings.get(name, {}).get(site.target, -1) for name in group.findings])
                mirrorable.append(site.side == "" or group.laterality_invariant)
    finally:
        for file in files:
            file.close()
    if not labels:
        raise ValueError(f"grader {group.name!r}: no labelled site can be seen in any study; nothing to learn")
    log(f"{group.name}: {len(labels)} sites of {len(rows_of)} studies, classes {np.bincount(labels).tolist()}")
    crops = tuple(
        np.memmap(path, np.uint8, "r", shape=(len(labels), *shape)) for path, shape in zip(paths, shapes, strict=True)
    )
    return GraderData(
        group=group,
        fit=fit,
        stored=(height, width),
        crops=crops,
        present=np.array(present),
        to_index=np.array(to_index),
        labels=np.array(labels, np.int64),
        findings=np.array(findings, np.int64).reshape(len(labels), len(group.findings)),
        mirrorable=np.array(mirrorable),
        rows_of={study: np.array(rows) for study, rows in rows_of.items()},
        lateral_axes=tuple(
            int(np.argmax(np.abs(np.array(task.view(spec.view).directions)[:, 0]))) for spec in group.crops
        ),
        errors_mm=np.zeros((0, 3)),
        studies=tuple(rows_of),
    )


def _margin(fit: Fit) -> int:
    return round(MARGIN * max(sides(fit.pixels)))


def _slice_margin(spec: CropSpec) -> int:
    return SLICE_MARGIN if spec.slices > 1 else 0  # a single slice has no neighbours to move to


def _write(group: Grader, boxes: dict, margin: int, shapes: list, files: list) -> tuple[list[bool], np.ndarray]:
    """Append one site's crop of each view to its file; absent views are zeros. Returns (present, mm -> index)."""
    bases = np.zeros((len(group.crops), 3, 3))
    for v, (spec, shape, file) in enumerate(zip(group.crops, shapes, files, strict=True)):
        if spec.view not in boxes:
            file.write(bytes(int(np.prod(shape))))
            continue
        volume, roi = boxes[spec.view]
        roi = grown(roi, (_slice_margin(spec), margin, margin))
        bases[v] = np.linalg.inv(roi.to_mm[:3, :3])
        crop = crop_stack(volume, roi, torch.device("cpu"))
        file.write((crop * 255).round().to(torch.uint8).numpy().tobytes())
    return [spec.view in boxes for spec in group.crops], bases

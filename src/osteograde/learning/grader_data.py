"""Training samples of a grader: stored crops of every site, shifted at random and by errors that locators made.

Shapes: S sites of a batch, N stored sites, C crops, D slices, H' W' stored pixels, H W pixels the net reads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.imaging.geometry import Roi, Volume, grown
from osteograde.imaging.resample import crop_stack
from osteograde.learning.augment import Move, draw_move, resample, shade, still
from osteograde.learning.loop import every_sample
from osteograde.learning.mixing import draw_mix, mixed
from osteograde.learning.plan_checks import resized
from osteograde.learning.recipe import GraderPlan
from osteograde.models.covariates import features_of
from osteograde.models.losses import UNLABELLED
from osteograde.pipeline.crops import site_boxes
from osteograde.pipeline.load import Loaded
from osteograde.tasks.covariates import values_of
from osteograde.tasks.spec import Crop, Grader, Points, Site, Study, Task, sides

log = logging.getLogger("osteograde.learning")

MARGIN = 0.22  # stored border on each side, as a share of the side
SLICE_MARGIN = 2


@dataclass(frozen=True, eq=False)
class GraderBatch:
    """crops: per crop (S, D, H, W); present (S, C); labels (S,), -1 = unlabelled; study (S,): which sites belong
    together, counted from 0; head_labels (S, heads): class index, -1 = unlabelled; weight (S,): how much a site
    counts; covariates: name -> (S,), NaN = unknown, those that the plan's net reads; log_prior_shift (K,), or one 0 for
    all: what is added to the logits of the target's classes before the loss, the logarithm of how much more often sites
    of a class are drawn than they occur; pseudo (S, K): a teacher's probabilities at sites without a label, each
    times how much a site of its class counts, and 0 at all others; None without a teacher; partner (S,) and own (S,):
    the site that each one is mixed with, and the share of its own image; None where nothing is mixed."""

    crops: tuple[torch.Tensor, ...]
    present: torch.Tensor
    labels: torch.Tensor
    study: torch.Tensor
    head_labels: torch.Tensor
    weight: torch.Tensor
    covariates: Mapping[str, torch.Tensor] = field(default_factory=dict)
    log_prior_shift: torch.Tensor = field(default_factory=lambda: torch.tensor(0.0))
    pseudo: torch.Tensor | None = None
    partner: torch.Tensor | None = None
    own: torch.Tensor | None = None

    def taken_apart(self) -> GraderBatch:
        """Every mixed site as two sites without images (2 S,): itself, counting by the share of its own image, then its
        partner, counting by the rest. The batch itself where nothing is mixed."""
        if self.partner is None or self.own is None:
            return self
        own = torch.cat([self.own, 1 - self.own])

        def both(values: torch.Tensor) -> torch.Tensor:
            return torch.cat([values, values[self.partner]])

        return replace(
            self,
            crops=(),
            present=both(self.present),
            labels=both(self.labels),
            study=both(self.study),
            head_labels=both(self.head_labels),
            weight=both(self.weight) * own,
            pseudo=None if self.pseudo is None else both(self.pseudo),
            partner=None,
            own=own,
        )


@dataclass(frozen=True, eq=False)
class GraderData:
    """The stored crops of one grader for all sites of many studies that have a label of the target or of a head, or may
    be given pseudo-labels; the rows of a study follow each other in the order of the grader's sites."""

    grader: Grader
    plan: GraderPlan
    stored: tuple[int, int]  # (H, W) of the nets' crops that the stored ones are, without their margin
    crops: tuple[np.ndarray, ...]  # per crop (N, D', H', W') uint8, memory-mapped
    present: np.ndarray  # (N, C)
    to_index: np.ndarray  # (N, C, 3, 3): mm displacement -> displacement in stored index (d, h, w)
    labels: np.ndarray  # (N,), -1 where the target has no label
    head_labels: np.ndarray  # (N, heads)
    mirrorable: np.ndarray  # (N,) sites on the midline may be mirrored
    rows_of: Mapping[str, np.ndarray]  # study -> rows
    lateral_axes: tuple[int, ...]  # per crop, the stored axis that runs right-left
    errors_mm: np.ndarray  # (M, 3) errors of locators on held-out studies; may be empty
    studies: tuple[str, ...]
    classes: int  # K, of the target
    synthetic: frozenset[str] = frozenset()  # those of the studies that are synthetic
    share: float = 1.0  # of the pixels' sides that batches have, over the same millimetres
    covariates: Mapping[str, np.ndarray] = field(default_factory=dict)  # of the task: name -> (N,), NaN = unknown
    targets: tuple[str, ...] = ()  # (N,)
    pseudo: np.ndarray | None = None  # (N, K) probabilities of a teacher at sites without a label, 0 at all others
    balanced: bool = False  # studies are drawn so that all classes of the target are seen equally often

    def fit(self, net: nn.Module) -> None:
        """Give the net what it must know of its training data before the first step: the mean and deviation of its
        covariates and the categories that occur, over the given studies of this part of the data alone. Nothing where
        its starting weights brought these along."""
        if (features := features_of(net)) is not None and not features.is_measured:
            given = [study for study in self.studies if study not in self.synthetic]
            rows = np.concatenate([np.zeros(0, int), *(self.rows_of[study] for study in given)])
            features.fit({name: values[rows] for name, values in self.covariates.items()})

    def for_plan(self, plan: GraderPlan) -> GraderData:
        """The same crops as another member of the ensemble is trained on them."""
        return self._with(plan=plan)

    def in_epoch(self, epoch: int) -> GraderData:
        """The data of an epoch, counted from 0: synthetic studies in the last ones only, smaller images in the first
        ones, heads alone or balanced classes, where the plan says so."""
        plan, data = self.plan, self
        if epoch < plan.training.epochs - plan.synthetic_epochs:
            data = data.without_synthetic()
        if epoch < plan.heads_only_epochs:
            data = data.for_heads_only()
        elif plan.sampling == "balanced":
            data = data._with(balanced=True)
        return data.smaller(plan.resizing.share) if plan.resizing and epoch < plan.resizing.epochs else data

    def of(self, studies: set[str]) -> GraderData:
        return self._with(studies=tuple(study for study in self.studies if study in studies))

    def with_pseudo_labels(self, answers: Mapping[str, Mapping[str, np.ndarray]]) -> GraderData:
        """The same with a teacher's probabilities (K,) by study and target, where there is no label; without the
        studies from which nothing can be learnt."""
        pseudo = np.zeros((len(self.labels), self.classes), np.float32)
        for study in self.studies:
            for row in self.rows_of[study]:
                if self.labels[row] == UNLABELLED and self.targets[row] in answers.get(study, {}):
                    pseudo[row] = answers[study][self.targets[row]]
        return self._with(pseudo=pseudo).without_idle()

    def without_idle(self) -> GraderData:
        """Without the studies that have no label of the target or of a head, and no pseudo-label."""
        used = (self.labels != UNLABELLED) | (self.head_labels != UNLABELLED).any(1)
        if self.pseudo is not None:
            used = used | self.pseudo.any(1)
        return self._with(studies=tuple(study for study in self.studies if used[self.rows_of[study]].any()))

    def without_synthetic(self) -> GraderData:
        """The given studies alone."""
        return self._with(studies=tuple(study for study in self.studies if study not in self.synthetic))

    def for_heads_only(self) -> GraderData:
        """The studies that have a label of a head, without the labels of the target. UserError where there is none."""
        has_head = (self.head_labels != UNLABELLED).any(1)
        studies = tuple(study for study in self.studies if has_head[self.rows_of[study]].any())
        if not studies:
            raise UserError(
                f"grader {self.grader.name!r}: no site has a label of {[head.name for head in self.grader.heads]}; "
                "set heads_only_epochs to 0, or give such labels"
            )
        return self._with(studies=studies, labels=np.full_like(self.labels, UNLABELLED), pseudo=None)

    @cached_property
    def class_counts(self) -> np.ndarray:
        """(studies, K) how many sites of each class each study of this part of the data has."""
        counts = np.zeros((len(self.studies), self.classes))
        for i, study in enumerate(self.studies):
            labels = self.labels[self.rows_of[study]]
            counts[i] = np.bincount(labels[labels != UNLABELLED], minlength=self.classes)
        return counts

    @cached_property
    def class_weight(self) -> np.ndarray:
        """(K,) how much a site of each class counts: mean 1 over the labelled sites of this part of the data."""
        counts = self.class_counts.sum(0)
        weight = np.maximum(counts, 1.0) ** -self.plan.class_weight_power
        return weight / (counts @ weight / counts.sum()) if counts.any() else np.ones_like(weight)

    @cached_property
    def draw_probability(self) -> np.ndarray:
        """(studies,) of balanced sampling: in proportion to the sum over a study's sites of one over the frequency of
        their class. Studies without a label of the target, which take part for their heads, are drawn as they occur.

        With one site a study all classes are drawn equally often, with more of them as nearly so as whole studies can.
        """
        counts, present = self.class_counts, self.class_counts.sum(0) > 0
        labelled = counts.any(1)
        mass = counts[:, present] @ (1 / counts[:, present].sum(0)) / max(present.sum(), 1)
        return np.where(labelled, mass * labelled.sum(), 1.0) / len(self.studies)

    @cached_property
    def log_prior_shift(self) -> np.ndarray:
        """(K,) logarithm of how much more often sites of a class are drawn than they occur; 0 for absent classes."""
        occurring, drawn = self.class_counts.sum(0), self.draw_probability @ self.class_counts
        if not self.balanced or not occurring.any():
            return np.zeros(self.classes)
        share = (drawn / drawn.sum()) / np.maximum(occurring / occurring.sum(), 1e-12)
        return np.log(np.where(occurring > 0, share, 1.0))

    def order(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) indices of the studies of an epoch in random order: each equally often, or of balanced classes.

        Balanced ones are drawn by systematic sampling, class by class: how often a study is drawn differs by less than
        one from what is expected, and so does, with one site a study, how often a class is.
        """
        if not self.balanced:
            return every_sample(len(self), rng, count)
        place = np.lexsort((rng.random(len(self)), self.class_counts.argmax(1)))
        ends = np.cumsum(self.draw_probability[place]) * count
        drawn = np.searchsorted(ends, rng.random() + np.arange(count), side="right")
        return rng.permutation(place[np.minimum(drawn, len(self) - 1)])

    def with_errors(self, errors_mm: np.ndarray) -> GraderData:
        return self._with(errors_mm=np.asarray(errors_mm, float).reshape(-1, 3))

    def smaller(self, share: float) -> GraderData:
        """The same crops read with fewer pixels: sides of ``share``, in whole strides of the nets."""
        return self._with(share=share)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of a batch."""
        return sides(self.plan.pixels) if self.share == 1 else resized(self.plan.pixels, self.share)

    def _with(self, **changes) -> GraderData:
        return replace(self, **changes)

    def __len__(self) -> int:
        return len(self.studies)

    def batch(
        self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, device: torch.device, *, augment: bool
    ) -> GraderBatch:
        """The sites of the studies ``indices``, each crop cut out of its stored one in one resample; moved, shaded,
        mirrored and hidden at random if ``augment``."""
        picked = [self.rows_of[self.studies[i]] for i in indices]
        rows = np.concatenate(picked)
        errors = self._draw_errors(rng, len(rows), augment)
        mirror = self.mirrorable[rows] & (rng.random(len(rows)) < 0.5) & augment & self.plan.augmentation.mirror
        crops = tuple(self._crop(c, rows, errors, mirror, rng, device, augment=augment) for c in range(len(self.crops)))
        present = self._hide(self.present[rows], rng) if augment else self.present[rows]
        covariates = self._covariates(rows, rng, device, augment=augment)
        partner = own = None
        if augment and (self.plan.mixup or self.plan.cutmix):
            mix = draw_mix(rng, self._alike(rows, present), self.size, self.plan.mixup, self.plan.cutmix)
            crops = tuple(mixed(images, mix) for images in crops)
            partner, own = torch.from_numpy(mix.partner).to(device), torch.from_numpy(mix.own).to(device)
        weight = self.class_weight[np.maximum(self.labels[rows], 0)].astype(np.float32)
        pseudo = None
        if self.pseudo is not None:
            weighted = self.pseudo[rows] * self.class_weight
            pseudo = torch.from_numpy(weighted.astype(np.float32)).to(device)
            weight[weighted.any(1)] = 1  # what such a site counts is in its answers
        return GraderBatch(
            crops=crops,
            present=torch.from_numpy(present).to(device),
            labels=torch.from_numpy(self.labels[rows]).to(device),
            head_labels=torch.from_numpy(self.head_labels[rows]).to(device),
            weight=torch.from_numpy(weight).to(device),
            study=torch.from_numpy(np.repeat(np.arange(len(picked)), [len(p) for p in picked])).to(device),
            covariates=covariates,
            log_prior_shift=torch.from_numpy(self.log_prior_shift.astype(np.float32)).to(device),
            pseudo=pseudo,
            partner=partner,
            own=own,
        )

    def _alike(self, rows: np.ndarray, present: np.ndarray) -> np.ndarray:
        """(S, C + 2) rows of numbers, the same for sites that may be mixed: with the same crops (S, C), and with a
        label of the target, with a pseudo-label, or with neither."""
        taught = np.zeros(len(rows), bool) if self.pseudo is None else self.pseudo[rows].any(1)
        return np.column_stack([present, self.labels[rows] != UNLABELLED, taught]).astype(int)

    def _covariates(
        self, rows: np.ndarray, rng: np.random.Generator, device: torch.device, *, augment: bool
    ) -> dict[str, torch.Tensor]:
        """Those of some rows that the plan's net reads; each value hidden at random if ``augment``."""
        read = {}
        for name in self.plan.covariates:
            values = self.covariates[name][rows]
            if augment:
                values = np.where(rng.random(len(rows)) < self.plan.drop_covariate, np.float32(np.nan), values)
            read[name] = torch.from_numpy(values).to(device)
        return read

    def _draw_errors(self, rng: np.random.Generator, count: int, augment: bool) -> np.ndarray:
        if not (augment and self.plan.measured_errors and len(self.errors_mm)):
            return np.zeros((count, 3))
        return self.errors_mm[rng.integers(len(self.errors_mm), size=count)]

    def _crop(
        self,
        c: int,
        rows: np.ndarray,
        errors_mm: np.ndarray,
        mirror: np.ndarray,
        rng: np.random.Generator,
        device: torch.device,
        *,
        augment: bool,
    ) -> torch.Tensor:
        """Crop number c of some rows (S,), (S, D, H, W) in 0..1: displaced by errors_mm (S, 3), mirrored where mirror
        (S,) is true."""
        crop, size, augmentation = self.grader.crops[c], self.size, self.plan.augmentation
        margin = _slice_margin(crop)
        offset = np.einsum("nij,nj->ni", self.to_index[rows, c], errors_mm)
        step = np.clip(np.rint(offset[:, 0]), -margin, margin).astype(int)
        slices = (margin + step)[:, None] + np.arange(crop.slices)
        stored = np.stack([self.crops[c][row][index] for row, index in zip(rows, slices, strict=True)])
        pixel_mm = crop.field_mm / max(self.stored)
        move = draw_move(rng, len(rows), augmentation, pixel_mm, stored.shape[2:]) if augment else still(len(rows))
        move = Move(move.matrix * (np.array(self.stored) / size), move.shift + offset[:, 1:], move.bend)
        images = resample(torch.from_numpy(stored).to(device), move, size)
        flip = torch.from_numpy(mirror).to(device)[:, None, None, None]
        images = torch.where(flip, images.flip(1 if self.lateral_axes[c] == 0 else 3), images)
        return shade(rng, images, augmentation) if augment else images

    def _hide(self, present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Hide one crop of some sites that have another, so that the net learns to grade without it: present (S, C)."""
        present = present.copy()
        for row in np.flatnonzero((present.sum(1) > 1) & (rng.random(len(present)) < self.plan.drop_view)):
            present[row, rng.choice(np.flatnonzero(present[row]))] = False
        return present


def store(
    grader: Grader,
    task: Task,
    plan: GraderPlan,
    studies: Iterable[tuple[Loaded, Points]],
    folder: Path,
    *,
    unlabelled: bool = False,
) -> GraderData:
    """Cut the crops of every site with a label around the given points, with a margin, into arrays on disk.

    A label of the target or of a head; unlabelled: those of all other sites too. ValueError where no site with a label
    of the target can be seen in any study.
    """
    margin, (height, width), shapes = _margin(plan), sides(plan.pixels), stored_shapes(grader, plan)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{grader.name}.{crop.name}.u8" for crop in grader.crops]
    rows: list[_Row] = []
    of_rows: list[tuple[Study, str]] = []
    with ExitStack() as opened:
        files = [opened.enter_context(path.open("wb")) for path in paths]
        for loaded, points in studies:
            boxes = site_boxes(grader, loaded.volumes, points, plan.pixels)
            for site in grader.sites:
                if site.target in boxes and (unlabelled or has_label(grader, loaded.study, site)):
                    present, to_index = _write(grader, boxes[site.target], margin, shapes, files)
                    rows.append(_row(grader, loaded.study, site, present, to_index))
                    of_rows.append((loaded.study, site.target))
    labels = np.array([row.label for row in rows], np.int64)
    if not (labels != UNLABELLED).any():
        raise UserError(f"grader {grader.name!r}: no labelled site can be seen in any study; nothing to learn")
    rows_of: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        rows_of.setdefault(row.study, []).append(i)
    _log_stored(grader, labels, len(rows_of))
    return GraderData(
        grader=grader,
        plan=plan,
        stored=(height, width),
        crops=tuple(
            np.memmap(path, np.uint8, "r", shape=(len(rows), *shape)) for path, shape in zip(paths, shapes, strict=True)
        ),
        present=np.array([row.present for row in rows]),
        to_index=np.array([row.to_index for row in rows]),
        labels=labels,
        head_labels=np.array([row.head_labels for row in rows], np.int64).reshape(len(rows), len(grader.heads)),
        mirrorable=np.array([row.mirrorable for row in rows]),
        rows_of={study: np.array(numbers) for study, numbers in rows_of.items()},
        lateral_axes=tuple(
            int(np.argmax(np.abs(np.array(task.view(crop.view).directions)[:, 0]))) for crop in grader.crops
        ),
        errors_mm=np.zeros((0, 3)),
        studies=tuple(rows_of),
        covariates=values_of(task.covariates, of_rows),
        classes=len(task.classes),
        targets=tuple(target for _, target in of_rows),
    )


def stored_shapes(grader: Grader, plan: GraderPlan) -> list[tuple[int, int, int]]:
    """(D, H, W) in bytes of what is stored of every crop of a site, with its margins."""
    margin, (height, width) = 2 * _margin(plan), sides(plan.pixels)
    return [(crop.slices + 2 * _slice_margin(crop), height + margin, width + margin) for crop in grader.crops]


def _log_stored(grader: Grader, labels: np.ndarray, studies: int) -> None:
    known = labels[labels != UNLABELLED]
    more = f", {len(labels) - len(known)} without a label of the target" if len(known) < len(labels) else ""
    log.info(f"{grader.name}: {len(labels)} sites of {studies} studies, classes {np.bincount(known).tolist()}{more}")


def has_label(grader: Grader, study: Study, site: Site) -> bool:
    """Whether anything can be learnt from a site: a label of the target or of a head."""
    return site.target in study.labels or any(
        site.target in study.head_labels.get(head.name, {}) for head in grader.heads
    )


class _Row(NamedTuple):
    """A stored site. See ``GraderData`` for the shapes."""

    study: str
    present: list[bool]
    to_index: np.ndarray
    label: int
    head_labels: list[int]
    mirrorable: bool


def _row(grader: Grader, study: Study, site: Site, present: list[bool], to_index: np.ndarray) -> _Row:
    return _Row(
        study=study.id,
        present=present,
        to_index=to_index,
        label=study.labels.get(site.target, UNLABELLED),
        head_labels=[study.head_labels.get(head.name, {}).get(site.target, -1) for head in grader.heads],
        mirrorable=site.side == "" or grader.mirror_images,
    )


def _margin(plan: GraderPlan) -> int:
    return round(MARGIN * max(sides(plan.pixels)))


def _slice_margin(crop: Crop) -> int:
    return SLICE_MARGIN if crop.slices > 1 else 0  # a single slice has no neighbours to move to


def _write(
    grader: Grader,
    boxes: Mapping[str, tuple[Volume, Roi]],
    margin: int,
    shapes: Sequence[tuple[int, int, int]],
    files: Sequence[BinaryIO],
) -> tuple[list[bool], np.ndarray]:
    """Append the crops of one site, each to its file, zeros for those that cannot be seen. Returns (present (C,), and
    (C, 3, 3) by which a displacement in mm becomes one in stored index)."""
    to_index = np.zeros((len(grader.crops), 3, 3))
    for c, (crop, shape, file) in enumerate(zip(grader.crops, shapes, files, strict=True)):
        if crop.name not in boxes:
            file.write(bytes(int(np.prod(shape))))
            continue
        volume, box = boxes[crop.name]
        box = grown(box, (_slice_margin(crop), margin, margin))
        to_index[c] = np.linalg.inv(box.to_mm[:3, :3])
        pixels = crop_stack(volume, box, torch.device("cpu"))
        file.write((pixels * 255).round().to(torch.uint8).numpy().tobytes())
    return [crop.name in boxes for crop in grader.crops], to_index

"""Every fold of every stage, and what each fold says of studies it never saw.

The leakage rule lives in ``cross_fit``: nothing is ever said of a study by a net that trained on it. All stages use the
same folds.csv.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from osteograde.inference import pipeline
from osteograde.inference.reading import Loaded
from osteograde.learning import fit, folds, grade_data, locate_data, starting
from osteograde.learning.cache import cached
from osteograde.learning.fit import Data, Loss, Where
from osteograde.learning.recipe import Fit, Recipe
from osteograde.models import bundle
from osteograde.models.losses import any_severe_loss, finding_loss, target_cross_entropy, targets_of
from osteograde.tasks.contract import Grade, Point, Points, Study

Log = Callable[[str], None]
DataOf = Callable[[Sequence[Study], Fit], Data]  # some studies as a plan learns from them
FINDINGS_SHARE = 0.5  # of a grader's yes/no findings in its loss


@dataclass(frozen=True, eq=False)
class Run:
    """One call of train_folds.py: the recipe, the studies and where everything goes."""

    recipe: Recipe
    studies: Sequence[Study]
    practice: Sequence[Study]  # further ones, made of these: landmarks are learnt from them and found in them
    split: folds.Split
    folds: tuple[int, ...]
    out: Path
    device: torch.device
    resume: bool
    log: Log

    @property
    def work(self) -> Path:
        """Caches and checkpoints: needed to resume, not to use the weights."""
        return self.out / "work"

    @property
    def everything(self) -> list[Study]:
        return [*self.studies, *self.practice]

    def loaded(self, studies: Sequence[Study]) -> list[Loaded]:
        return [cached(study, self.recipe.task, self.work / "volumes") for study in studies]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What nets said of held-out studies: landmarks found, completed by geometry, and graded targets."""

    found: Mapping[str, Mapping[str, Point]]
    points: Mapping[str, Points]
    graded: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Net:
    """One net of a fold: what it is called and how it learns. member: its place among the nets of the fold."""

    kind: str
    stage: str
    plan: Fit
    member: int = 0

    def file(self, k: int) -> str:
        """Its name in the weights; those of further members sort behind the first ones of all folds.

        >>> Net("grade", "kl", None, 1).file(0)
        'grade/kl/member1-fold0.safetensors'
        """
        return f"{self.kind}/{self.stage}/{f'member{self.member}-' if self.member else ''}fold{k}.safetensors"

    def work(self, name: str | int) -> str:
        """Its name among checkpoints and vouchers."""
        return f"{self.kind}-{self.stage}-{f'member{self.member}-' if self.member else ''}{name}"


def nets_of(kind: str, stage: str, plan: Fit) -> list[Net]:
    return [Net(kind, stage, own, member) for member, own in enumerate(plan.members)]


def cross_fit(
    run: Run,
    kind: str,
    stage: str,
    plan: Fit,
    data_of: DataOf,
    loss_of: Callable[[Fit], Loss],
) -> Iterator[tuple[int, list[nn.Module], list[Study]]]:
    """Train the nets of every fold, or load those that are there; yields (fold, nets as shipped, held-out studies)."""
    starts: dict[tuple[int, ...], nn.Module] = {}
    for k in run.folds:
        nets = []
        for one in nets_of(kind, stage, plan):
            path = run.out / one.file(k)
            done = run.work / "nets" / f"{one.work(k)}.sha256"  # vouches for a net that was finished
            if not (run.resume and done.is_file() and path.is_file() and done.read_text() == bundle.sha256(path)):
                net = _trained(run, one, k, data_of, loss_of(one.plan), starts)
                bundle.save_net(net, path)
                done.write_text(bundle.sha256(path))
            # What ships is judged: the fp16 file as it will be loaded, not the net in memory.
            nets.append(bundle.on_device(bundle.load_net(path, one.plan.net), run.device))
        yield k, nets, run.split.held_out(run.everything, k)


def _trained(
    run: Run, one: Net, k: int, data_of: DataOf, loss: Loss, starts: dict[tuple[int, ...], nn.Module]
) -> nn.Module:
    """A net of fold k. starts: nets that several folds go on from, made when the first of them asks."""
    where = Where(one.stage, k, run.recipe.seed + one.plan.seed, run.device, run.work / "nets" / f"{one.work(k)}.pt")
    train, held = (data_of(part(run.everything, k), one.plan) for part in (run.split.training, run.split.held_out))
    begin: Callable[[], nn.Module] = partial(starting.net_of, one.plan, train, where)
    own = one.plan
    if own.common:
        together = sharing(run.recipe.num_folds, k)
        key = (one.member, *together)
        if key not in starts:
            starts[key] = in_common(run, one, data_of, loss, together)
        begin, own = partial(_again, starts[key]), _rest(own)
    return fit.train(begin, own, train, held, loss, where, resume=run.resume, log=run.log)


def sharing(count: int, k: int) -> tuple[int, ...]:
    """The folds that begin with fold k: its half of all of them.

    >>> sharing(5, 1), sharing(5, 4)
    ((0, 1, 2), (3, 4))
    """
    first = tuple(range(-(-count // 2)))
    return first if k in first else tuple(range(len(first), count))


def in_common(run: Run, one: Net, data_of: DataOf, loss: Loss, together: tuple[int, ...]) -> nn.Module:
    """A net that several folds go on from. It learns from the studies that none of them holds out, so each fold's
    held-out studies stay unseen; its epochs are paid for once and not per fold, and over fewer studies."""
    seen = [study for study in run.everything if run.split.fold_of(study) not in together]
    checkpoint = run.work / "nets" / f"{one.work(f'common-{together[0]}')}.pt"
    where = Where(one.stage, together[0], run.recipe.seed + one.plan.seed, run.device, checkpoint, together)
    data = data_of(seen, one.plan)
    first = replace(one.plan, epochs=one.plan.common, restarts=(), patience=0)
    begin = partial(starting.net_of, one.plan, data, where)
    return fit.train(begin, first, data, None, loss, where, resume=run.resume, log=run.log)


def _rest(plan: Fit) -> Fit:
    """What a fold learns by itself after the epochs in common: the rest of them, from half the rate as at a restart."""
    return replace(
        plan,
        epochs=plan.epochs - plan.common,
        early=(max(0, plan.early[0] - plan.common), plan.early[1]),
        restarts=tuple(epoch - plan.common for epoch in plan.restarts if epoch > plan.common),
        head_epochs=0,
        lr=plan.lr / 2,
    )


def _again(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).requires_grad_(True)


def locate_out_of_fold(run: Run) -> tuple[dict[str, dict[str, Point]], dict[str, dict[str, Point]]]:
    """Train every locator in order; (found, completed) landmarks of every held-out study."""
    task = run.recipe.task
    held = [study for k in run.folds for study in run.split.held_out(run.everything, k)]
    found: dict[str, dict[str, Point]] = {study.id: {} for study in held}
    points: dict[str, dict[str, Point]] = {study.id: {} for study in held}
    for stage in task.locate:
        plan = run.recipe.locate[stage.name]
        some = [*run.studies[:: plan.thin], *run.practice]
        every = (loaded for study in some for loaded in run.loaded([study]))
        data = locate_data.store(stage, task.view(stage.view), plan, every, run.work / "locate", log=run.log)
        part = lambda studies, own, data=data: data.of({study.id for study in studies})  # noqa: E731
        for _, trained, studies in cross_fit(run, "locate", stage.name, plan, part, lambda own: _own_loss):
            nets = pipeline.Nets(trained, plan.pixels, run.device)
            for chunk in _chunks(studies):
                new = pipeline.locate(stage, run.loaded(chunk), [points[study.id] for study in chunk], nets)
                for study, landmarks in zip(chunk, new, strict=True):
                    found[study.id] |= landmarks
                    points[study.id] = dict(task.complete(found[study.id]))
    return found, points


def grade_out_of_fold(run: Run, found: Mapping[str, Points], points: Mapping[str, Points]) -> dict[str, dict]:
    """Train every grader on crops around annotated points; graded targets of every held-out study, on crops around
    the points that nets found which never saw it."""
    task = run.recipe.task
    own = {study.id for study in run.studies}
    graded: dict[str, dict[str, np.ndarray]] = {study: {} for study in points if study in own}
    errors = errors_mm(run, found)
    for group in task.grade:
        plan = run.recipe.grade[group.name]
        every = (
            (loaded, dict(task.complete({**points.get(study.id, {}), **loaded.marks})))
            for study in run.studies
            for loaded in run.loaded([study])
        )
        data = grade_data.store(group, task, plan, every, run.work / "grade", log=run.log)
        landmarks = {site.landmark for site in group.sites}
        data = data.with_errors(np.array([e for name, e in errors if name in landmarks]).reshape(-1, 3))
        part = lambda studies, own, data=data: data.learnt_by(own).of({study.id for study in studies})  # noqa: E731
        loss_of = partial(grade_loss, group, run.recipe)
        for _, trained, studies in cross_fit(run, "grade", group.name, plan, part, loss_of):
            nets = pipeline.Nets(trained, plan.pixels, run.device)
            for chunk in _chunks([study for study in studies if study.id in own]):
                where = [points[study.id] for study in chunk]
                new = pipeline.grade(group, run.loaded(chunk), where, nets, views=run.recipe.test_views)
                for study, targets in zip(chunk, new, strict=True):
                    graded[study.id] |= targets
    return graded


def grade_loss(group: Grade, recipe: Recipe, plan: Fit) -> Loss:
    """The metric as a loss: weighted cross entropy, plus the any-severe term where the grader has it."""
    weights = torch.tensor(recipe.task.weights)

    def loss(net: nn.Module, batch: grade_data.GradeBatch) -> torch.Tensor:
        answers = net(list(batch.crops), batch.present).float()
        own = weights.to(answers.device)
        logits, findings = answers[:, : len(own)], answers[:, len(own) :]
        wanted = targets_of(batch.labels, len(own), plan.loss, plan.label_smoothing)
        value = target_cross_entropy(logits, wanted, own[batch.labels] * batch.weight)
        if group.findings:
            value = value + FINDINGS_SHARE * finding_loss(findings, batch.findings)
        return value + _any_severe(group, logits, batch, own) if group.any_severe else value

    return loss


def _any_severe(group: Grade, logits: torch.Tensor, batch: grade_data.GradeBatch, own: torch.Tensor) -> torch.Tensor:
    sites, studies = len(group.sites), int(batch.study.max()) + 1
    table = logits.new_zeros(studies, sites, logits.shape[-1])
    labels = batch.labels.new_full((studies, sites), -1)
    place = torch.arange(len(batch.study), device=logits.device)
    place = place - torch.searchsorted(batch.study, batch.study)  # position of the site within its study
    table = table.index_put((batch.study, place), logits)
    labels = labels.index_put((batch.study, place), batch.labels)
    return any_severe_loss(table, labels, own)


def errors_mm(run: Run, found: Mapping[str, Points]) -> list[tuple[str, np.ndarray]]:
    """(landmark, predicted - annotated (3,) mm) of held-out studies; gross misses (over 15 mm) are not jitter."""
    errors = []
    for study in run.everything:
        if study.id in found:
            marks = run.loaded([study])[0].marks
            errors += [(name, p.mm - marks[name].mm) for name, p in found[study.id].items() if name in marks]
    return [(name, error) for name, error in errors if np.linalg.norm(error) < 15]


def save_points(run: Run, found: Mapping[str, Points], path: Path) -> None:
    """oof_points.csv: study, fold, landmark, confidence, predicted and annotated mm (empty where there is none)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        axes = ("x_mm", "y_mm", "z_mm")
        writer.writerow(["study_id", "fold", "landmark", "confidence", *axes, *(f"true_{axis}" for axis in axes)])
        for study in run.everything:
            marks = run.loaded([study])[0].marks if study.id in found else {}
            for name in sorted({*found.get(study.id, {}), *marks}):
                point, mark = found[study.id].get(name), marks.get(name)
                mm = [f"{v:.3f}" for v in point.mm] if point else [""] * 3
                true = [f"{v:.3f}" for v in mark.mm] if mark else [""] * 3
                confidence = f"{point.confidence:.4f}" if point else "0"
                writer.writerow([study.id, run.split.fold_of(study), name, confidence, *mm, *true])


def save_graded(run: Run, graded: Mapping[str, Mapping[str, np.ndarray]], priors: Mapping, path: Path) -> None:
    """oof.csv: row_id, class probabilities, fold, label (a class index; empty where there is none).

    Targets that could not be seen hold the prior of their fold.
    """
    task = run.recipe.task
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row_id", *task.classes, "fold", "label"])
        for study in run.studies:
            if study.id in graded:
                table = pipeline.rows(task, graded[study.id], priors[run.split.fold[study.id]])
                for row, target, values in zip(task.rows(study.id), task.targets, table, strict=True):
                    known = (run.split.fold[study.id], study.labels.get(target, ""))
                    writer.writerow([row, *(f"{v:.6f}" for v in values), *known])


def _chunks(studies: Sequence[Study], size: int = 8) -> list[Sequence[Study]]:
    return [studies[i : i + size] for i in range(0, len(studies), size)]


def _own_loss(net: Any, batch: Any) -> torch.Tensor:
    return net.loss(batch)

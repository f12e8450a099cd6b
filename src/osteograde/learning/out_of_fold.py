"""Out-of-fold predictions: landmarks and grades of every study by nets that never saw it, and the tables of them."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteograde import logs
from osteograde.learning import cut_once, grader_data, locator_data, loop, pseudo_dice, pseudo_labels
from osteograde.learning.cross_fit import Fold, Net, Run, cross_fit, nets_of
from osteograde.learning.grader_data import GraderData
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.locator_data import LocatorData
from osteograde.learning.loop import AfterEpoch, Data, Job, Loss
from osteograde.learning.recipe import GraderPlan, LocatorPlan, Plan
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Grader, Locator, Point, Points, Study

log = logging.getLogger("osteograde.learning")

VERSION = 1  # change it when nets are given other inputs for the same studies and landmarks
CHUNK = 8  # studies that go through the nets together
GROSS_MISS_MM = 15.0  # a landmark farther off than this is another structure, not an error to learn to live with

Plain = dict[str, Any]  # what nets say of one study, as JSON has it


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions for held-out studies: landmarks found, the same completed by geometry, and graded targets.

    graded: study -> target -> class probabilities (K,).
    """

    found: Mapping[str, Mapping[str, Point]]
    points: Mapping[str, Points]
    graded: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class LocatorStage:
    """A locator in cross-fitting: its net, its stored regions and its loss, which is the net's own."""

    run: Run
    locator: Locator
    nets: Sequence[Net]

    @cached_property
    def stored(self) -> LocatorData:
        """The regions of all studies; cut when the first net is trained. UserError where a net could not learn."""
        run, plan = self.run, self.run.recipe.locators[self.locator.name]
        used = OneByOne(run, [*run.studies[:: plan.subsample], *run.synthetic])
        stored = locator_data.store(self.locator, plan, used, run.work / "locate")
        if locator_data.learns_from_masks(plan):
            _check_classes(run, stored)
        return stored

    def data(self, studies: Sequence[Study], plan: Plan, taught_by: int | None = None) -> LocatorData:
        return self.stored.of({study.id for study in studies})

    def loss(self, plan: Plan) -> Loss:
        return _loss_of_net

    def watch(self, plan: Plan, held_out: Data, job: Job) -> AfterEpoch | None:
        """The Dice of every class on held-out label images, where the net learns from such."""
        if not isinstance(plan, LocatorPlan) or not locator_data.learns_from_masks(plan):
            return None
        assert isinstance(held_out, LocatorData)
        has_labels = any(item.labelled for item in held_out.items)
        return partial(pseudo_dice.measured, held_out, plan, job) if has_labels else None

    def predict(self, fold: Fold, studies: Sequence[Study], points: Sequence[Points]) -> list[Plain]:
        """{landmark: (x, y, z mm, confidence)} of each study, given the landmarks that earlier locators found."""
        nets = predict.Nets(fold.nets, self.nets[0].plan.pixels, self.run.device)
        found = predict.locate(self.locator, self.run.loaded(studies), points, nets)
        return [{name: (*point.mm.tolist(), point.confidence) for name, point in one.items()} for one in found]


@dataclass(frozen=True, eq=False)
class GraderStage:
    """A grader in cross-fitting: its nets, its stored crops, and its loss. Synthetic studies are never graded.

    points: out-of-fold landmarks, around which crops are cut where none is annotated. errors: see ``errors_mm``.
    """

    run: Run
    grader: Grader
    nets: Sequence[Net]
    points: Mapping[str, Points]
    errors: Sequence[tuple[str, np.ndarray]] = ()
    answers: dict[int, pseudo_labels.Answers] = field(default_factory=dict)  # of the teacher's nets, by fold

    @cached_property
    def stored(self) -> GraderData:
        """The crops of all studies, with the synthetic ones if any member is trained on them; cut when the first net is
        trained."""
        run, members = self.run, self.run.recipe.graders[self.grader.name]
        uses_synthetic = any(plan.synthetic_epochs for plan in members)
        located = Around(run, [*run.studies, *(run.synthetic if uses_synthetic else [])], self.points)
        stored = grader_data.store(
            self.grader, run.recipe.task, members[0], located, run.work / "grade", unlabelled=run.teacher is not None
        )
        landmarks = {site.landmark for site in self.grader.sites}
        errors = np.array([error for name, error in self.errors if name in landmarks]).reshape(-1, 3)
        return replace(stored, synthetic=frozenset(study.id for study in run.synthetic)).with_errors(errors)

    def data(self, studies: Sequence[Study], plan: Plan, taught_by: int | None = None) -> GraderData:
        assert isinstance(plan, GraderPlan)
        data = self.stored.for_plan(plan).of({study.id for study in studies})
        data = data if plan.synthetic_epochs else data.without_synthetic()
        if self.run.teacher is None:
            return data
        return data.without_idle() if taught_by is None else data.with_pseudo_labels(self._taught(studies, taught_by))

    def _taught(self, studies: Sequence[Study], k: int) -> pseudo_labels.Answers:
        """What the teacher's nets of fold k say of the sites of these studies, which fold k trains on."""
        run = self.run
        if k not in self.answers and run.teacher is not None:
            made = {study.id for study in run.synthetic}
            asked = [one for one in studies if one.id not in made and pseudo_labels.unlabelled(self.grader, one)]
            located = Around(run, asked, self.points)
            found = pseudo_labels.answers(run.teacher, self.grader, k, located, run.device, run.recipe.tta)
            pseudo_labels.save(run.out / pseudo_labels.FILE, run.recipe.task, k, found)
            self.answers[k] = found
        return self.answers[k]

    def loss(self, plan: Plan) -> Loss:
        assert isinstance(plan, GraderPlan)
        return grader_loss(self.grader, self.run.recipe, plan)

    def watch(self, plan: Plan, held_out: Data, job: Job) -> AfterEpoch | None:
        """The held-out log loss, where the run has somebody to judge by it. It is the same measure for all plans of a
        grader: labels are not smoothed, and classes and heads do not count by what the plan says."""
        judge = self.run.judge
        if judge is None:
            return None
        assert isinstance(plan, GraderPlan) and isinstance(held_out, GraderData)
        alike = replace(plan, loss="classes", label_smoothing=0.0, class_weight_power=0.0, head_weight=0.0)
        loss, data = grader_loss(self.grader, self.run.recipe, alike), held_out.for_plan(alike)

        def measured(net: torch.nn.Module, epochs: int) -> str:
            value = loop.evaluate(net, data, alike, loss, job)
            judge(job.checkpoint.stem, epochs, value)
            return f"held-out log loss {value:.4f}"

        return measured

    def predict(self, fold: Fold, studies: Sequence[Study], points: Sequence[Points]) -> list[Plain]:
        """{target: class probabilities} of each study, on crops around the given landmarks."""
        nets = predict.Nets(fold.nets, self.nets[0].plan.pixels, self.run.device)
        graded = predict.grade(self.grader, self.run.loaded(studies), points, nets, views=self.run.recipe.tta)
        return [{target: values.tolist() for target, values in one.items()} for one in graded]


def locator_stage(run: Run, locator: Locator) -> LocatorStage:
    return LocatorStage(run, locator, nets_of("locate", locator.name, [run.recipe.locators[locator.name]]))


def grader_stage(
    run: Run, grader: Grader, points: Mapping[str, Points], errors: Sequence[tuple[str, np.ndarray]]
) -> GraderStage:
    return GraderStage(run, grader, nets_of("grade", grader.name, run.recipe.graders[grader.name]), points, errors)


def locate_out_of_fold(run: Run, before: str = "") -> tuple[dict[str, dict[str, Point]], dict[str, dict[str, Point]]]:
    """Train every locator in order; returns the (found, completed) landmarks of every held-out study.

    A locator that looks around the landmarks of an earlier one is given its out-of-fold predictions. before: only the
    locators in front of this one.
    """
    task = run.recipe.task
    held_out = [study for k in run.folds for study in run.split.held_out(run.everything, k)]
    found: dict[str, dict[str, Point]] = {study.id: {} for study in held_out}
    points: dict[str, dict[str, Point]] = {study.id: {} for study in held_out}
    for locator in takewhile(lambda one: one.name != before, run.recipe.locators_in_order):
        stage = locator_stage(run, locator)
        for fold in cross_fit(run, stage):
            predicted = cached_predictions(stage, fold, fold.held_out, points)
            for study, landmarks in zip(fold.held_out, predicted, strict=True):
                found[study.id] |= {name: Point(np.array(mm), sure) for name, (*mm, sure) in landmarks.items()}
                points[study.id] = dict(task.fill_missing_landmarks(found[study.id]))
        if not before:  # else other folds may still be training
            cut_once.remove(run.work / "locate", [locator.name, f"{locator.name}.labels"])
    return found, points


def _check_classes(run: Run, stored: LocatorData) -> None:
    """UserError where the training part of a fold lacks a class that other label images show."""
    parts = {
        k: (
            {study.id for study in run.split.training(run.everything, k)},
            {study.id for study in run.split.held_out(run.everything, k)},
        )
        for k in run.folds
    }
    classes = bundle.config_of(stored.plan.net)["classes"]
    pseudo_dice.refuse_missing_classes(stored, parts, classes)


def grade_out_of_fold(run: Run, found: Mapping[str, Points], points: Mapping[str, Points]) -> dict[str, dict]:
    """Train every grader; returns {study: {target: class probabilities (K,)}} of every held-out study.

    Graders are trained on crops around annotated landmarks, and around out-of-fold ones where none is annotated. They
    are judged on crops around out-of-fold landmarks alone; where the scope of the recipe says so, on crops around
    annotated ones where none was found.
    """
    given = {study.id for study in run.studies}
    judged = judged_points(run, points)
    graded: dict[str, dict[str, np.ndarray]] = {study: {} for study in points if study in given}
    errors = errors_mm(run, found)
    for grader in run.recipe.graders_in_order:
        stage = grader_stage(run, grader, points, errors)
        for fold in cross_fit(run, stage):
            studies = [study for study in fold.held_out if study.id in given]
            predicted = cached_predictions(stage, fold, studies, judged)
            for study, targets in zip(studies, predicted, strict=True):
                graded[study.id] |= {target: np.array(values) for target, values in targets.items()}
        cut_once.remove(run.work / "grade", [f"{grader.name}.{crop.name}" for crop in grader.crops])
    return graded


def judged_points(run: Run, points: Mapping[str, Points]) -> Mapping[str, Points]:
    """The landmarks around which held-out studies are graded: out-of-fold ones, and where the scope of the recipe says
    so annotated ones in place of those that were not found."""
    if not run.recipe.scope.annotated_points:
        return points
    task, by_id = run.recipe.task, {study.id: study for study in run.everything}
    return {
        study: dict(task.fill_missing_landmarks({**run.loaded([by_id[study]])[0].marks, **found}))
        for study, found in points.items()
    }


def graded_at_annotated(run: Run, oof: OutOfFold) -> int:
    """How many rows were graded although no landmark of their site was found; only a debug run has any."""
    return sum(
        bool(site.landmarks) and site.target in graded and not set(site.landmarks) & set(oof.points[study])
        for study, graded in oof.graded.items()
        for grader in run.recipe.task.graders
        for site in grader.sites
    )


@dataclass(frozen=True, eq=False)
class OneByOne:
    """Studies that are loaded one after the other, as often as they are gone over."""

    run: Run
    studies: Sequence[Study]

    def __iter__(self) -> Iterator[Loaded]:
        for study in logs.counted(self.studies, "sampling", "studies", log, self.run.progress):
            yield self.run.loaded([study])[0]


@dataclass(frozen=True, eq=False)
class Around:
    """Loaded studies, each with its annotated landmarks, and out-of-fold ones where none is annotated."""

    run: Run
    studies: Sequence[Study]
    points: Mapping[str, Points]

    def __iter__(self) -> Iterator[tuple[Loaded, Points]]:
        for loaded in OneByOne(self.run, self.studies):
            known = {**self.points.get(loaded.study.id, {}), **loaded.marks}
            yield loaded, dict(self.run.recipe.task.fill_missing_landmarks(known))


def _loss_of_net(net: Any, batch: Any) -> torch.Tensor:
    return net.loss(batch)


def cached_predictions(
    stage: LocatorStage | GraderStage, fold: Fold, studies: Sequence[Study], points: Mapping[str, Points]
) -> list[Plain]:
    """What the nets of a fold predict for studies, given the landmarks so far; read from a file on ``--resume``.

    The file lies beside the checkpoints. It is used only if its key is the same: the key is a hash of the files of the
    nets, the studies, their covariates, the landmarks, the pixels and the number of test-time views.
    """
    run, nets = stage.run, stage.nets
    files = [bundle.sha256(run.out / net.file(fold.k)) for net in nets]
    given = {
        study.id: {name: (*p.mm.tolist(), p.confidence) for name, p in points[study.id].items()} for study in studies
    }
    tta = run.recipe.tta if nets[0].kind == "grade" else 1
    known = {study.id: study.covariates for study in studies if study.covariates}
    inputs = json.dumps([VERSION, files, tta, nets[0].plan.pixels, given, *([known] if known else [])], sort_keys=True)
    key = hashlib.sha256(inputs.encode()).hexdigest()
    path = predictions_path(run.out, nets[0], fold.k)
    if run.resume and path.is_file():
        cached = json.loads(path.read_text(encoding="utf-8"))
        if cached["key"] == key:
            return cached["predictions"]
    predictions: list[Plain] = []
    title = f"{nets[0].stage} fold {fold.k}: held-out studies"
    with logs.progress(title, len(studies), "studies", log, run.progress) as shown:
        for i in range(0, len(studies), CHUNK):
            chunk = studies[i : i + CHUNK]
            predictions += stage.predict(fold, chunk, [points[study.id] for study in chunk])
            shown.advance(len(chunk))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    part.write_text(json.dumps({"key": key, "predictions": predictions}), encoding="utf-8")
    part.replace(path)
    return predictions


def predictions_path(out: Path, net: Net, k: int) -> Path:
    """Where the predictions of fold k are kept; net: the first member of the stage."""
    return out / "work" / "predictions" / f"{net.work_name(k)}.json"


def errors_mm(run: Run, found: Mapping[str, Points]) -> list[tuple[str, np.ndarray]]:
    """(landmark, predicted - annotated (3,) mm) of held-out studies, without gross misses."""
    errors = []
    for study in run.everything:
        if study.id in found:
            marks = run.loaded([study])[0].marks
            errors += [(name, p.mm - marks[name].mm) for name, p in found[study.id].items() if name in marks]
    return [(name, error) for name, error in errors if np.linalg.norm(error) < GROSS_MISS_MM]


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
                table = predict.probability_rows(task, graded[study.id], priors[run.split.fold[study.id]])
                for row, target, values in zip(task.rows(study.id), task.targets, table, strict=True):
                    known = (run.split.fold[study.id], study.labels.get(target, ""))
                    writer.writerow([row, *(f"{v:.6f}" for v in values), *known])

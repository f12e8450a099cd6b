"""What nets say of studies that they never saw: landmarks, grades, and the tables that keep them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteograde.learning import grader_data, locator_data
from osteograde.learning.cross_fit import Net, Run, cross_fit, nets_of
from osteograde.learning.grader_loss import grader_loss
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.tasks.spec import Point, Points, Study

VERSION = 1  # change it when what nets are asked changes
CHUNK = 8  # studies that go through the nets together


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What nets said of held-out studies: landmarks found, completed by geometry, and graded targets."""

    found: Mapping[str, Mapping[str, Point]]
    points: Mapping[str, Points]
    graded: Mapping[str, Mapping[str, np.ndarray]]


Ask = Callable[[Sequence[Study], Sequence[Points]], list[dict[str, Any]]]  # plain data, as JSON has it


def locate_out_of_fold(run: Run) -> tuple[dict[str, dict[str, Point]], dict[str, dict[str, Point]]]:
    """Train every locator in order; (found, completed) landmarks of every held-out study."""
    task = run.recipe.task
    held = [study for k in run.folds for study in run.split.held_out(run.everything, k)]
    found: dict[str, dict[str, Point]] = {study.id: {} for study in held}
    points: dict[str, dict[str, Point]] = {study.id: {} for study in held}
    for stage in task.locators:
        plan = run.recipe.locators[stage.name]
        some = [*run.studies[:: plan.thin], *run.practice]
        every = (loaded for study in some for loaded in run.loaded([study]))
        data = locator_data.store(stage, plan, every, run.work / "locate")
        part = lambda studies, own, data=data: data.of({study.id for study in studies})  # noqa: E731
        for k, trained, studies in cross_fit(run, "locate", stage.name, plan, part, lambda own: _own_loss):
            nets = predict.Nets(trained, plan.pixels, run.device)
            ask = lambda some, where, stage=stage, nets=nets: [  # noqa: E731
                {name: (*point.mm.tolist(), point.confidence) for name, point in one.items()}
                for one in predict.locate(stage, run.loaded(some), where, nets)
            ]
            told = _told(run, nets_of("locate", stage.name, plan), k, studies, points, ask)
            for study, landmarks in zip(studies, told, strict=True):
                found[study.id] |= {name: Point(np.array(mm), sure) for name, (*mm, sure) in landmarks.items()}
                points[study.id] = dict(task.fill_missing_landmarks(found[study.id]))
    return found, points


def grade_out_of_fold(run: Run, found: Mapping[str, Points], points: Mapping[str, Points]) -> dict[str, dict]:
    """Train every grader on crops around annotated points; graded targets of every held-out study, on crops around
    the points that nets found which never saw it."""
    task = run.recipe.task
    own = {study.id for study in run.studies}
    graded: dict[str, dict[str, np.ndarray]] = {study: {} for study in points if study in own}
    errors = errors_mm(run, found)
    for group in task.graders:
        plan = run.recipe.graders[group.name]
        practised = run.practice if any(one.practice for one in plan.members) else []
        every = (
            (loaded, dict(task.fill_missing_landmarks({**points.get(study.id, {}), **loaded.marks})))
            for study in [*run.studies, *practised]
            for loaded in run.loaded([study])
        )
        data = grader_data.store(group, task, plan, every, run.work / "grade")
        landmarks = {site.landmark for site in group.sites}
        data = replace(data, practice=frozenset(study.id for study in run.practice))
        data = data.with_errors(np.array([e for name, e in errors if name in landmarks]).reshape(-1, 3))
        part = lambda studies, plan, data=data: data.learnt_by(plan).of(  # noqa: E731
            {study.id for study in studies if plan.practice or study.id in own}
        )
        loss_of = partial(grader_loss, group, run.recipe)
        for k, trained, studies in cross_fit(run, "grade", group.name, plan, part, loss_of):
            nets = predict.Nets(trained, plan.pixels, run.device)
            ask = lambda some, where, group=group, nets=nets: [  # noqa: E731
                {target: answer.tolist() for target, answer in one.items()}
                for one in predict.grade(group, run.loaded(some), where, nets, views=run.recipe.test_views)
            ]
            held = [study for study in studies if study.id in own]
            told = _told(run, nets_of("grade", group.name, plan), k, held, points, ask)
            for study, targets in zip(held, told, strict=True):
                graded[study.id] |= {target: np.array(answer) for target, answer in targets.items()}
    return graded


def _told(
    run: Run, nets: Sequence[Net], k: int, studies: Sequence[Study], points: Mapping[str, Points], ask: Ask
) -> list[dict[str, Any]]:
    """What the nets of a fold say of its held-out studies, given the landmarks so far.

    Answers are kept beside the checkpoints, so a run that goes on asks nothing twice. The key of an entry holds the
    nets, the studies, the landmarks and the number of views.
    """
    files = [bundle.sha256(run.out / one.file(k)) for one in nets]
    where = {
        study.id: {name: (*p.mm.tolist(), p.confidence) for name, p in points[study.id].items()} for study in studies
    }
    views = run.recipe.test_views if nets[0].kind == "grade" else 1
    asked = json.dumps([VERSION, files, views, nets[0].plan.pixels, where], sort_keys=True)
    key = hashlib.sha256(asked.encode()).hexdigest()
    path = run.work / "told" / f"{nets[0].work(k)}.json"
    if run.resume and path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept["answers"]
    answers: list[dict[str, Any]] = []
    for i in range(0, len(studies), CHUNK):
        chunk = studies[i : i + CHUNK]
        answers += ask(chunk, [points[study.id] for study in chunk])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"key": key, "answers": answers}), encoding="utf-8")
    part.replace(path)
    return answers


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
                table = predict.probability_rows(task, graded[study.id], priors[run.split.fold[study.id]])
                for row, target, values in zip(task.rows(study.id), task.targets, table, strict=True):
                    known = (run.split.fold[study.id], study.labels.get(target, ""))
                    writer.writerow([row, *(f"{v:.6f}" for v in values), *known])


def _own_loss(net: Any, batch: Any) -> torch.Tensor:
    return net.loss(batch)

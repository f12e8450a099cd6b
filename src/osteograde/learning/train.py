"""From labelled studies and a recipe to a weights folder: folds, nets, out-of-fold scores, manifest."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
import torch

from osteograde import logs
from osteograde.errors import UserError
from osteograde.imaging.files import atomic_write
from osteograde.learning import (
    cross_fit,
    data_faults,
    evaluate,
    folds,
    out_of_fold,
    outlook,
    planning,
    pseudo_labels,
    reuse,
    starting,
    work_files,
)
from osteograde.learning.cross_fit import Run
from osteograde.learning.out_of_fold import OutOfFold
from osteograde.learning.recipe import Recipe, taught_boxes_mm
from osteograde.models import bundle
from osteograde.models.manifest import Manifest, Scores, TrainedFolds
from osteograde.pipeline import predict
from osteograde.pipeline.calibration import Calibration, cross_fitted
from osteograde.pipeline.load import Loaded
from osteograde.tasks.covariates import FILE, values_of
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.priors import weighted_prior
from osteograde.tasks.spec import Locator, Metric, Points, Study

OF_THE_FILE = "file.sha256"  # of the changes between two recipes
RECIPE = "recipe.json"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "pydicom", "opencv-python-headless", "scikit-learn")
log = logging.getLogger("osteograde.learning")
PROVENANCE = "SOURCE.json"  # beside the data: {"source": ..., "licence": ...}
BOOTSTRAP = 1000
OF_A_CLASS = ("precision_", "recall_", "f1_")  # parts of which there is one for each class


class Options(TypedDict):
    """What ``begin`` and ``train`` take beside the recipe, the data and the folder of the weights; see ``begin``."""

    only: Sequence[int] | None
    device: torch.device
    resume: bool
    studies: NotRequired[Sequence[Study] | None]
    tensorboard: NotRequired[bool]
    teacher: NotRequired[Path | None]


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    executor: Callable[[Run], None] | None = None,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Train the folds of every locator and grader into a weights folder; returns the out-of-fold scores.

    See ``begin`` for most of it. executor: does the jobs of the run before their results are gathered, in processes of
    its own; None: they are done here, one after the other. Raises UserError for the user's mistakes, before any net is
    trained.
    """
    run = begin(recipe, data, out, **options)
    chosen, split, studies = run.folds, run.split, run.studies
    for line in outlook.lines(run, data):
        log.info(line)
    lost = read_all(run)
    run = planned(run)
    log.info(work_files.told(run))
    if executor is not None:
        executor(run)
        run = replace(run, resume=True)
    with logs.progress("training", cross_fit.to_train(run)[1], "epochs", log) as shown:
        run = replace(run, progress=shown)
        found, points = out_of_fold.locate_out_of_fold(run)
        out_of_fold.save_points(run, found, out / "oof_points.csv")
        graded = out_of_fold.grade_out_of_fold(run, found, points)
    calibrations: dict[str, Calibration] = {}
    if recipe.calibrate:
        fold_of = {study.id: split.fold_of(study) for study in studies}
        graded, calibrations = cross_fitted(recipe.task, studies, fold_of, graded)
    oof = OutOfFold(found, points, graded)
    priors = {
        k: weighted_prior(split.training(studies, k), recipe.task.targets, recipe.task.class_weights) for k in chosen
    }
    out_of_fold.save_graded(run, graded, priors, out / "oof.csv")
    scores = {"locate": point_errors(run, found), "grade": grade_scores(run, oof, priors)}
    if findings := evaluate.head_scores(
        recipe.task, [study for study in studies if study.id in graded], graded, BOOTSTRAP, recipe.scope.seed
    ):
        scores["findings"] = findings
    seal(run, data, scores, calibrations)
    return {**scores, "warnings": data_faults.warning_of(lost)}


def begin(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    only: Sequence[int] | None,
    device: torch.device,
    resume: bool,
    studies: Sequence[Study] | None = None,
    tensorboard: bool = False,
    teacher: Path | None = None,
) -> Run:
    """The run of a recipe over a folder of labelled studies, with its folds and its recipe written into ``out``.

    only: the folds to train, all if None. resume: go on from what an earlier call left in ``out``. studies: what is in
    ``data``, if it has been read already. tensorboard: write its events as well. teacher: weights of the same folds,
    from whose answers graders learn at sites without a label (pseudo_labels.py). Raises UserError for folds that the
    recipe does not have, covariates that no study has, finished weights in ``out``, folds there that are of other
    studies, or an earlier call with another recipe.
    """
    chosen = folds.chosen(recipe, only)
    given = recipe.task.read(data, "train") if studies is None else studies
    studies = _chosen_patients(sorted(given, key=lambda study: study.id), recipe)
    _refuse_unknown_covariates(recipe, studies, data)
    if teacher is not None:
        pseudo_labels.check(teacher, recipe.task, chosen)
        folds.check_taken(teacher, out, recipe)
        folds.take(teacher, out)
        if not resume:
            (out / pseudo_labels.FILE).unlink(missing_ok=True)
    split = _split(recipe, studies, out, resume=resume)
    _keep_recipe(recipe, out, resume=resume)
    made = _synthetic(recipe, studies, out)
    return Run(recipe, studies, made, split, chosen, out, device, resume, tensorboard, teacher)


def planned(run: Run) -> Run:
    """The run with the plans that follow from its data (``planning``), which are read for them."""
    every = (run.loaded([study])[0] for study in run.studies)
    return replace(run, recipe=planning.planned_recipe(run.recipe, every))


def _refuse_unknown_covariates(recipe: Recipe, studies: Sequence[Study], data: Path) -> None:
    """UserError where no study knows a covariate that a net of the recipe would be trained on."""
    read = {name for members in recipe.graders.values() for plan in members for name in plan.covariates}
    rows = [(study, target) for study in studies for target in study.labels]
    known = values_of([one for one in recipe.task.covariates if one.name in read], rows)
    if lost := [name for name, values in known.items() if not np.isfinite(values).any()]:
        raise UserError(
            f"{data}: recipe {recipe.name!r} reads {lost}, which no labelled study has; put a table {FILE} with the "
            f"columns study or patient and {', '.join(lost)} there, or take a recipe that reads images alone"
        )


def _keep_recipe(recipe: Recipe, out: Path, *, resume: bool) -> None:
    """Write the recipe beside the caches of its run. UserError where an earlier call left nets of another recipe, or of
    the same one with other choices: they would be taken for those of this one."""
    path, plain = out / "work" / RECIPE, json.loads(json.dumps(recipe.plain()))
    if resume and path.is_file():
        before = reuse.completed(json.loads(path.read_text(encoding="utf-8")))
        if changes := changed(compared(before), compared(plain)):
            name, old, new = changes[0]
            what = f"was begun with {name} = {old!r}, recipe {recipe.name!r} has {new!r} now"
            if name == OF_THE_FILE:  # nothing but the text differs
                what = f"was begun with another text of {plain['file']['name']}: {_first_change(before, plain)}"
            others = len(changes) - 1
            more = f" (and {others} other change{'s' * (others > 1)})" if others else ""
            raise UserError(
                f"{out}: {what}{more}; give another --out, or --reuse it from there, which takes the nets that did not "
                "change"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(plain, indent=1))


def _first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first line that differs in the texts of two files of recipes, with its number."""
    old, new = (tree.get("file", {}).get("text", "").splitlines() for tree in (before, now))
    for number, (was, line) in enumerate(zip_longest(old, new), 1):
        if was != line:
            return f"line {number} was {_line_text(was)}, now {_line_text(line)}"
    return "the ends of its lines"


def _line_text(line: str | None) -> str:
    return "not there" if line is None else repr(line if len(line) <= 80 else f"{line[:80]}...")


def compared(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as JSON data without the text of its file, which has a hash, and without the list of what --set changed,
    which the plans hold."""
    file = {name: value for name, value in plain.get("file", {}).items() if name == "sha256"}
    return {**{name: value for name, value in plain.items() if name != "changes"}, "file": file}


def changed(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(name with dots, before, now) of every value of two JSON trees that differs. A choice that did not exist when the
    first one was written is no difference where it is off."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [(name, before, now)]
    keys = [*before, *(key for key in now if key not in before and now[key])]
    return [
        change
        for key in keys
        for change in changed(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    ]


def read_all(run: Run) -> data_faults.DataFaults:
    """Decode every file of the run, once, into the cache; log what is lost. UserError where most labels are."""
    with logs.progress("reading", len(run.everything), "studies", log) as shown:

        def loaded(study: Study) -> Loaded:
            read = run.loaded([study])[0]
            shown.advance()
            return read

        lost = data_faults.data_faults(run.recipe.task_as_read, map(loaded, run.studies))
        for study in run.synthetic:
            loaded(study)
    for line in data_faults.lines_of(lost):
        log.warning(line)
    data_faults.refuse_if_most(lost)
    return lost


def _split(recipe: Recipe, studies: Sequence[Study], out: Path, *, resume: bool) -> folds.Split:
    """The folds of this run: read where they were written before, never repaired or exchanged."""
    path = out / folds.FILE
    if path.is_file():
        if not resume:
            folds.refuse_finished(out)
        split = folds.load(path, studies)
        if split.count != recipe.scope.folds:
            raise UserError(
                f"{path}: {split.count} folds, recipe {recipe.name!r} has {recipe.scope.folds}; use a new --out"
            )
        starting.check_folds(recipe, split)
    else:
        started = starting.folders(recipe)
        if started:  # a net may start from one of the same fold only
            split = folds.like(folds.read(started[0] / folds.FILE), studies)
        else:
            split = folds.assign(recipe.task, studies, recipe.scope.folds, recipe.scope.seed)
        starting.check_folds(recipe, split)
        folds.save(split, path)
    folds.keep(out)
    return split


def _chosen_patients(studies: list[Study], recipe: Recipe) -> list[Study]:
    """All studies, or those of as many patients as the recipe's scope says, evenly spread over the labels."""
    count = recipe.scope.patients
    if not count:
        return studies
    labels = {study.patient: tuple(study.labels.values()) for study in studies}
    ordered = sorted(labels, key=lambda patient: (labels[patient], patient))
    step = max(1, len(ordered) // count)
    kept = set(ordered[::step][:count])
    return [study for study in studies if study.patient in kept]


def _synthetic(recipe: Recipe, studies: Sequence[Study], out: Path) -> list[Study]:
    """The synthetic studies of the recipe, written into the work folder."""
    if recipe.synthetic is None:
        return []
    rng = np.random.default_rng(recipe.scope.seed)
    return recipe.synthetic(studies, out / "work" / "synthetic", rng, recipe.scope.synthetic_share)


def point_errors(run: Run, found: Mapping[str, Points]) -> dict[str, dict[str, float | None]]:
    """Per locator: median and 95th percentile of the distance to the annotated points in mm, and the share found; of
    detectors also the precision and recall of their boxes (``evaluate.box_scores``)."""
    distances: dict[str, list[float]] = {stage.name: [] for stage in run.recipe.task.locators}
    annotated = dict.fromkeys(distances, 0)
    stage_of = {landmark.name: stage.name for stage in run.recipe.task.locators for landmark in stage.landmarks}
    for study in run.everything:
        if study.id not in found:
            continue
        for name, mark in run.loaded([study])[0].marks.items():
            annotated[stage_of[name]] += 1
            if name in found[study.id]:
                distances[stage_of[name]].append(float(np.linalg.norm(found[study.id][name].mm - mark.mm)))
    held = run.loaded([study for study in run.everything if study.id in found])
    stages = {stage.name: stage for stage in run.recipe.task.locators}
    return {
        stage: {
            "median_mm": round(float(np.median(values)), 3) if values else None,
            "p95_mm": round(float(np.percentile(values, 95)), 3) if values else None,
            "found": round(len(values) / max(annotated[stage], 1), 4),
            "points": annotated[stage],
            "right_level": evaluate.right_level(stages[stage], held, found),
            "false": evaluate.false_finds(stages[stage], held, found),
            **_box_scores(run, stages[stage], held, found),
        }
        for stage, values in distances.items()
    }


def _box_scores(run: Run, locator: Locator, held: Sequence[Loaded], found: Mapping[str, Points]) -> dict:
    """Precision and recall of a detector's boxes; nothing of other locators."""
    box_mm = taught_boxes_mm(run.recipe.locators[locator.name], locator)
    return evaluate.box_scores(locator, box_mm, held, found) if box_mm else {}


def grade_scores(run: Run, oof: OutOfFold, priors: Mapping[int, Mapping]) -> dict[str, Any]:
    """The official score of held-out studies with a patient-level bootstrap interval, beside the prior's.

    The prior of a study is counted on the training studies of its fold, so it is out-of-fold as well.
    """
    task = run.recipe.task
    held = [study for study in run.studies if study.id in oof.graded and study.labels]
    labels = {study.id: study.labels for study in held}
    own = {study.id: priors[run.split.fold[study.id]] for study in held}
    tables = {
        "model": {study: predict.probability_rows(task, oof.graded[study], own[study]) for study in labels},
        "prior": {study: predict.probability_rows(task, {}, own[study]) for study in labels},
    }
    scores: dict[str, Any] = {"studies": len(held)}
    if run.recipe.scope.annotated_points:
        rows = sum(len(graded) for graded in oof.graded.values())
        scores |= {"rows": rows, "rows_at_annotated_points": out_of_fold.graded_at_annotated(run, oof)}
    for name, table in tables.items():
        scores[name] = {part: _plain(value) for part, value in task.metric.score(labels, table).items()}
    statistic = task.metric.bootstrap_statistic(labels, tables["model"])
    rng, groups = np.random.default_rng(run.recipe.scope.seed), groups_of([study.patient for study in held])
    low, high = interval(statistic, len(held), BOOTSTRAP, rng, groups=groups)
    scores["interval_95"] = {
        part: [_plain(a), _plain(b)]
        for part, a, b in zip(task.metric.parts, np.atleast_1d(low), np.atleast_1d(high), strict=True)
    }
    scores["classes"] = list(task.classes)
    scores["confusion"] = evaluate.confusions(task, labels, tables["model"])
    return scores


def _plain(value: float) -> float | None:
    """A score as JSON has it: None where it is not defined (no label of that part)."""
    return round(float(value), 5) if np.isfinite(value) else None


def seal(run: Run, data: Path, scores: Mapping[str, Any], calibrations: Mapping[str, Calibration]) -> None:
    """Write the manifest over every net of the recipe that is in the folder."""
    task, recipe = run.recipe.task, run.recipe
    files = {}
    for (kind, stage), plans in recipe.plans().items():
        for net in cross_fit.nets_of(kind, stage, plans):
            config = bundle.config_of(net.plan.net)
            for k in run.folds:
                files[net.file(k)] = bundle.file_entry(run.out, net.file(k), config)
    prior = weighted_prior(run.studies, task.targets, task.class_weights)
    manifest = Manifest(
        task=task.name,
        files=files,
        pixels=recipe.pixels,
        test_views=recipe.tta,
        prior={target: tuple(round(p, 6) for p in values) for target, values in prior.items()},
        recipe=recipe.plain(),
        folds=TrainedFolds(folds.FILE, folds.digest(run.out / folds.FILE), tuple(run.folds)),
        scores=Scores(**scores),
        calibration={group: calibration.plain() for group, calibration in calibrations.items()},
        precision="fp16 on file, fp32 on a CPU, fp16 autocast on CUDA",
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        crops={grader.name: tuple(crop.name for crop in grader.crops) for grader in recipe.task_as_read.graders},
        data=provenance(data, recipe) | taught_by(run.teacher),
        definition=task.definition,
    )
    bundle.write_manifest(run.out, manifest)


def taught_by(teacher: Path | None) -> dict[str, str]:
    """What the manifest says of a teacher: the name of its folder and the hash of its manifest."""
    if teacher is None:
        return {}
    return {"pseudo_labels": f"{teacher.name}, manifest sha256 {bundle.sha256(teacher / bundle.MANIFEST)[:12]}"}


def provenance(data: Path, recipe: Recipe) -> dict[str, str]:
    """Source and licence as the data's own SOURCE.json states them, else as the recipe does.

    UserError where SOURCE.json is no JSON object of texts and numbers.
    """
    path = data / PROVENANCE
    if path.is_file():
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not JSON ({error}); write it again, or remove it") from error
        if not isinstance(facts, dict) or not all(isinstance(value, str | int | float) for value in facts.values()):
            raise UserError(f'{path}: expected facts such as {{"source": ..., "licence": ...}}; found {facts!r}')
        return {name: str(value) for name, value in facts.items()}
    return dict(recipe.source) or {
        "source": "not stated",
        "licence": "not stated: the terms of the training data apply to the weights",
    }


def headline(metric: Metric, scores: Mapping[str, Any]) -> str:
    """The official score by its name, with its interval, beside the class prior's, as a line."""
    grade = scores["grade"]
    low, high = grade["interval_95"]["score"]
    score, low, high, prior = (
        "-" if value is None else f"{value:.4f}"
        for value in (grade["model"]["score"], low, high, grade["prior"]["score"])
    )
    better = "higher" if "score" in metric.higher_is_better else "lower"
    words = metric.words["score"]
    name = words[:1].lower() + words[1:]
    return (
        f"score: {name} {score} (95 % interval {low} to {high}) on {grade['studies']} held-out studies; "
        f"class prior: {prior}; {better} is better"
    )


def table(scores: Mapping[str, Any]) -> str:
    """The scores for people."""
    head = f"{'locator':<14}{'median mm':>10}{'p95 mm':>9}{'found':>8}{'points':>8}{'level':>8}{'false':>8}"
    lines = [head] if scores["locate"] else []
    for stage, row in scores["locate"].items():
        median, p95 = ("-" if row[key] is None else f"{row[key]:.2f}" for key in ("median_mm", "p95_mm"))
        level, false = ("-" if row[key] is None else f"{row[key]:.1%}" for key in ("right_level", "false"))
        lines.append(f"{stage:<14}{median:>10}{p95:>9}{row['found']:>8.1%}{row['points']:>8}{level:>8}{false:>8}")
    for stage, row in scores["locate"].items():
        if "ap50" in row:
            names = {"AP at 0.5": "ap50", "AP at 0.75": "ap75", "AR over 0.50 to 0.95": "ar"}
            told = (f"{text} {'-' if row[key] is None else f'{row[key]:.3f}'}" for text, key in names.items())
            lines.append(f"{stage:<14}boxes: {', '.join(told)}")
    grade = scores["grade"]
    lines += ["", f"{'out-of-fold':<22}{'model':>9}{'95 % interval':>20}{'prior':>9}   ({grade['studies']} studies)"]
    for part, value in grade["model"].items():
        if part.startswith(OF_A_CLASS):
            continue
        low, high = grade["interval_95"][part]
        cells = ["-" if one is None else f"{one:.4f}" for one in (value, low, high, grade["prior"][part])]
        lines.append(f"{part:<22}{cells[0]:>9}{f'{cells[1]} - {cells[2]}':>20}{cells[3]:>9}")
    for name, part, value, (low, high) in evaluate.head_lines(scores.get("findings", {})):
        cells = ["-" if one is None else f"{one:.4f}" for one in (value, low, high)]
        lines.append(f"{f'{part} of {name}':<22}{cells[0]:>9}{f'{cells[1]} - {cells[2]}':>20}{'-':>9}")
    if "rows_at_annotated_points" in grade:
        count = grade["rows_at_annotated_points"]
        where = f"{count} of {grade['rows']} rows were graded at annotated points, because nothing was found there; "
        lines.append(f"debug run: {where * bool(count)}these scores say only that everything runs")
    if any(part.startswith(OF_A_CLASS) for part in grade["model"]):
        lines.append("precision, recall and F1 of every class: in the report, and in manifest.json")
    if "accuracy" not in grade["model"]:  # a score that does not look at the most probable class
        lines += ["", *evaluate.condition_lines(grade["confusion"], grade["classes"])]
    return "\n".join([*lines, *scores.get("warnings", [])])

"""Fewer crops against all crops of a grader: the same trunk, folds, epochs and seed, on crops at annotated landmarks.

    python bench/chosen_crops.py lumbar-mr --data DIR --out DIR --grader subarticular --crops axi_t2 [--backbone NAME]

Nets of the named crops alone and of all crops are trained on three patient-grouped folds and judged on the fold they
did not see, without calibration: weighted log loss of the labelled sites, with the task's class weights, and the
difference by patient with its interval. ``prior`` is the loss of the class shares of all labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from osteograde.learning import folds, grader_data, loop, pretrained
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.recipe import GraderPlan, Recipe, Training, for_grader
from osteograde.learning.recipes import RECIPES
from osteograde.logs import to_stdout
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import groups_of, interval

CPU = torch.device("cpu")
FOLDS, BOOTSTRAP, SEED = 3, 2000, 0
Sites = dict[str, dict[str, np.ndarray]]  # study -> target -> probabilities


def answers(recipe: Recipe, plan: GraderPlan, name: str, studies: list[Loaded], split: folds.Split, out: Path) -> Sites:
    """What nets of a plan say of the studies that they did not see."""
    whole = next(one for one in recipe.task.graders if one.name == name)
    grader = whole.reading(plan.crops)
    points = [dict(recipe.task.fill_missing_landmarks(one.marks)) for one in studies]
    stored = grader_data.store(grader, recipe.task, plan, zip(studies, points, strict=True), out / "crops")
    said: Sites = {}
    for k in range(split.count):
        own = {one.study.id for one in studies if split.fold_of(one.study) != k}
        data = stored.for_plan(plan).of(own)
        loss = grader_loss(grader, recipe, plan)
        job = loop.Job(name, k, SEED, CPU, out / f"fold{k}.pt")
        build = partial(pretrained.net_of, plan, data, loss, job)
        net = bundle.on_device(loop.train(build, plan, data, None, loss, job, resume=True), CPU)
        nets = predict.Nets([net], plan.pixels, CPU)
        for one, at in zip(studies, points, strict=True):
            if one.study.id not in own:
                said[one.study.id] = predict.grade(grader, [one], [at], nets)[0]
    return said


def losses(said: Sites, studies: list[Loaded], weights: np.ndarray, targets: set[str]) -> np.ndarray:
    """(studies, 2): weighted log loss summed over the labelled sites of each study, and their weights."""
    rows = []
    for one in studies:
        known = [(target, label) for target, label in one.study.labels.items() if target in targets]
        graded = [(target, label) for target, label in known if target in said[one.study.id]]
        each = [-np.log(np.clip(said[one.study.id][t][y], 1e-6, 1)) * weights[y] for t, y in graded]
        rows.append([sum(each), sum(weights[y] for _, y in graded)])
    return np.array(rows)


def prior_of(studies: list[Loaded], targets: set[str], classes: int) -> Sites:
    labels = [y for one in studies for t, y in one.study.labels.items() if t in targets]
    share = np.bincount(labels, minlength=classes) / len(labels)
    return {one.study.id: dict.fromkeys(targets, share) for one in studies}


def compare(tables: Mapping[str, np.ndarray], patients: list[str]) -> dict[str, list[float]]:
    """Loss of each, and its difference to that of all crops, with intervals that draw patients."""
    result = {}
    for name, table in tables.items():

        def loss(counts: np.ndarray, table: np.ndarray = table) -> np.ndarray:
            return (counts @ table[:, 0]) / (counts @ table[:, 1])

        def difference(counts: np.ndarray, loss=loss) -> np.ndarray:
            both = tables["all crops"]
            return loss(counts) - (counts @ both[:, 0]) / (counts @ both[:, 1])

        for title, statistic in ((name, loss), (f"{name} minus all crops", difference)):
            rng = np.random.default_rng(SEED)
            low, high = interval(statistic, len(patients), BOOTSTRAP, rng, groups=groups_of(patients))
            value = statistic(np.ones((1, len(patients))))[0]
            result[title] = [round(float(x), 4) for x in (value, low, high)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--grader", required=True)
    parser.add_argument("--crops", required=True, help="names of the crops, with commas between them")
    parser.add_argument("--backbone", default="mobilenetv4_conv_small_050")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--studies", type=int, default=0, help="only the first so many; 0: all")
    args = parser.parse_args()
    to_stdout()
    task = TASKS[args.task]
    recipe = RECIPES[args.task]()
    given = [one for one in sorted(task.read(args.data, "train"), key=lambda s: s.id) if one.marks and one.labels]
    studies = [load_study(one, task) for one in given[: args.studies or None]]
    split = folds.assign(task, [one.study for one in studies], FOLDS, SEED)
    grader = next(one for one in task.graders if one.name == args.grader)
    targets = {site.target for site in grader.sites}
    plan = GraderPlan(
        net={"kind": "grader", "backbone": args.backbone, "stages": args.stages, "dropout": 0.1},
        pixels=args.pixels,
        training=Training(epochs=args.epochs, batch=6, lr=2e-3, ema=0.95),
        measured_errors=False,
    )
    weights = np.array(task.class_weights, float)
    tables = {"prior": losses(prior_of(studies, targets, len(task.classes)), studies, weights, targets)}
    for name, crops in (("all crops", ()), (args.crops, tuple(args.crops.split(",")))):
        own = for_grader(replace(plan, crops=crops), grader, task)
        said = answers(recipe, own, args.grader, studies, split, args.out / name.replace(" ", "-"))
        tables[name] = losses(said, studies, weights, targets)
    result = compare(tables, [one.study.patient for one in studies])
    print(f"{len(studies)} studies")
    for name, (value, low, high) in result.items():
        print(f"  {name:<34}{value:>9.4f}   ({low:.4f} to {high:.4f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

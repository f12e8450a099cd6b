"""Do mixup, cutmix, cutout, layer-wise decay of the learning rate and norms measured on knees help small nets on knees?

    python bench/augmentations.py --data DIR --out RUNS [--patients 800] [--epochs 8] [--tries mixup,cutmix]

Paired, out-of-fold. DIR: knee crops in grade folders, as of the task knee-xray. The plain plan is that of the recipe
knee-xray-small with the first four stages of its trunk. Every try is the same plan with one value set: same knees, two
folds by patient, same start, same steps, same random numbers for everything else. What is printed is try minus plain on
the knees that a fold held out, with 95 % intervals over patients: accuracy, mean absolute error and log loss. A line is
printed after every try, and the answers are kept in RUNS, so a call that was stopped goes on. Crops lie around their
own centres.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from osteograde.learning import grader_data, loop, pretrained
from osteograde.learning.grader_data import GraderData
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.recipe import GraderPlan, Recipe, Schedule, Start, Training
from osteograde.learning.recipes.knee import LITE0, knee_xray_small
from osteograde.models.device import keep_all_freed_memory
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import Study

TASK = TASKS["knee-xray"]
(GRADER,) = TASK.graders
CPU = torch.device("cpu")
FOLDS = 2
BOOTSTRAP = 2000


def plain_plan(recipe: Recipe, epochs: int, pixels: tuple[int, int], start: str) -> GraderPlan:
    """The plan that every try changes in one value."""
    ((plan,),) = recipe.graders.values()
    return replace(
        plan,
        net={**plan.net, "stages": 4},
        pixels=pixels,
        training=Training(epochs=epochs, batch=32, lr=1e-3, weight_decay=0.01, ema=0.98),
        schedule=Schedule(warm_up=0.1),
        start=Start(weights=start),
    )


def tries(plan: GraderPlan) -> dict[str, GraderPlan]:
    """Name -> the plain plan with one value set."""
    return {
        "plain": plan,
        "mixup": replace(plan, mixup=0.2),
        "cutmix": replace(plan, cutmix=1.0),
        "cutout": replace(plan, augmentation=replace(plan.augmentation, cutout=0.25)),
        "layer_decay": replace(plan, training=replace(plan.training, layer_decay=0.8)),
        "mixup-and-cutmix": replace(plan, mixup=0.2, cutmix=1.0),
        "measured_norms": replace(plan, start=replace(plan.start, measured_norms=True)),
        "accumulate": replace(plan, training=replace(plan.training, batch=plan.training.batch // 2, accumulate=2)),
    }


def fold_of(studies: Sequence[Study], seed: int) -> dict[str, int]:
    """Study -> fold; all studies of a patient lie in one."""
    patients = sorted({study.patient for study in studies})
    drawn = np.random.default_rng(seed).permutation(len(patients)) % FOLDS
    fold = dict(zip(patients, drawn.tolist(), strict=True))
    return {study.id: fold[study.patient] for study in studies}


def answers(
    recipe: Recipe, plan: GraderPlan, data: GraderData, fold: Mapping[str, int], seed: int, work: Path
) -> np.ndarray:
    """(knees, K) probabilities of every knee in the order of the data, by the net that did not see its patient."""
    said = np.zeros((len(data), len(TASK.classes)))
    loss = grader_loss(GRADER.reading(plan.crops), recipe, plan)
    for k in range(FOLDS):
        part = data.for_plan(plan).of({study for study in data.studies if fold[study] != k})
        job = loop.Job(GRADER.name, k, seed, CPU, work / "net.pt")
        net = loop.train(partial(pretrained.net_of, plan, part, loss, job), plan, part, None, loss, job, resume=False)
        held = [i for i, study in enumerate(data.studies) if fold[study] == k]
        for begin in range(0, len(held), 64):
            rows = held[begin : begin + 64]
            batch = data.for_plan(plan).batch(rows, np.random.default_rng(0), CPU, augment=False)
            with torch.inference_mode():
                said[rows] = net(list(batch.crops), batch.present).softmax(-1).numpy()
    return said


def measures(said: np.ndarray, grades: np.ndarray) -> dict[str, np.ndarray]:
    """Measure -> its value at every knee."""
    first = said.argmax(1)
    return {
        "accuracy": (first == grades).astype(float),
        "mean absolute error": np.abs(first - grades).astype(float),
        "log loss": -np.log(np.clip(said[np.arange(len(grades)), grades], 1e-6, 1)),
    }


def difference(plain: np.ndarray, tried: np.ndarray, grades: np.ndarray, groups: np.ndarray) -> str:
    """Every measure: plain, tried, and tried minus plain with its interval over patients."""
    told = []
    before, after = measures(plain, grades), measures(tried, grades)
    for name in before:
        change = after[name] - before[name]

        def mean(counts: np.ndarray, change: np.ndarray = change) -> np.ndarray:
            return counts @ change / counts.sum(1)

        low, high = interval(mean, len(grades), BOOTSTRAP, np.random.default_rng(0), groups=groups)
        told.append(
            f"{name} {before[name].mean():.4f} -> {after[name].mean():.4f}, "
            f"{change.mean():+.4f} ({float(low):+.4f} to {float(high):+.4f})"
        )
    return "; ".join(told)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pixels", type=lambda text: tuple(map(int, text.split(","))), default=(64, 96))
    parser.add_argument("--tries", type=lambda text: text.split(","), default=[])
    parser.add_argument("--start", default=LITE0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_all_freed_memory()
    given = sorted(TASK.read(args.data, "train"), key=lambda study: study.id)
    patients = sorted({study.patient for study in given})
    used = set(np.random.default_rng(args.seed).permutation(patients)[: args.patients].tolist())
    studies = [study for study in given if study.patient in used]
    recipe = knee_xray_small()
    plan = plain_plan(recipe, args.epochs, args.pixels, args.start)
    located = ((one, one.marks) for one in (load_study(study, TASK) for study in studies))
    data = grader_data.store(GRADER.reading(plan.crops), TASK, plan, located, args.out / "crops")
    patient_of = {study.id: study.patient for study in studies}
    groups = groups_of([patient_of[study] for study in data.studies])
    grades, fold = data.labels, fold_of(studies, args.seed)
    print(f"{len(grades)} knees of {groups.max() + 1} patients, grades {np.bincount(grades).tolist()}", flush=True)
    chosen = {name: one for name, one in tries(plan).items() if name == "plain" or not args.tries or name in args.tries}
    said: dict[str, np.ndarray] = {}
    for name, one in chosen.items():
        path = args.out / f"{name}-{args.seed}.npy"
        if not path.is_file():
            np.save(path, answers(recipe, one, data, fold, args.seed, args.out))
        said[name] = np.load(path)
        if name != "plain":
            print(f"{name}: {difference(said['plain'], said[name], grades, groups)}", flush=True)


if __name__ == "__main__":
    main()

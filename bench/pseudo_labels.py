"""Do pseudo-labels help where most labels are missing? Knees with three quarters of the labels hidden, out-of-fold.

    python bench/pseudo_labels.py --data DIR --out RUNS [--patients 1000] [--folds 0] [--seed 0]

DIR: knee crops in grade folders, as of the task knee-xray. Three of four patients lose their labels, also those that
are held out. A teacher learns from the others; a student of the same plan, start, number of steps and folds learns from
the same labels and from the answers of the teacher's net of its fold about the rest of what the fold trains on. Both
are judged on all knees of the patients that neither of them saw, with their true grades: accuracy, mean absolute error
and log loss, student minus teacher, with 95 % intervals over patients. --folds names the folds that are trained, of 5.
Crops lie around their own centres, so the joint locator is not trained.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from osteograde.learning import folds, train
from osteograde.learning.cross_fit import net_name
from osteograde.learning.recipe import Recipe, Schedule, Scope, Start, Training
from osteograde.learning.recipes.knee import knee_xray
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import Study

TASK = TASKS["knee-xray"]
(GRADER,) = TASK.graders
CPU = torch.device("cpu")
HIDDEN = 4  # one of so many patients keeps the labels
CHUNK = 16


def small_recipe(seed: int) -> Recipe:
    """The default recipe of knees with a fraction of its pixels, layers and steps, on crops alone; no locator is
    trained."""
    recipe = knee_xray()
    (locator,), ((grader,),) = recipe.locators.values(), recipe.graders.values()
    locator = replace(
        locator, pixels=64, subsample=16, start=Start(), training=replace(locator.training, epochs=0, steps=1)
    )
    grader = replace(
        grader,
        net={**grader.net, "stages": 4},
        pixels=(64, 96),
        training=Training(epochs=6, batch=32, steps=40, lr=1e-3, ema=0.98),
        schedule=Schedule(),
        synthetic_epochs=0,
        measured_errors=False,
    )
    return replace(
        recipe,
        name="knee-pseudo-labels",
        locators={"joint": locator},
        graders={GRADER.name: (grader,)},
        synthetic=None,
        calibrate=False,
        tta=1,
        scope=Scope(seed=seed),
    )


def hidden(studies: Sequence[Study], seed: int) -> list[Study]:
    """The studies, of which the patients keep their labels that a draw of one in HIDDEN names."""
    patients = sorted({study.patient for study in studies})
    kept = set(np.random.default_rng(seed).permutation(patients)[: len(patients) // HIDDEN].tolist())
    return [study if study.patient in kept else replace(study, labels={}) for study in studies]


def answers(weights: Path, k: int, studies: Sequence[Study]) -> np.ndarray:
    """(knees, 5) probabilities of the net of fold k, around the centres of the crops."""
    manifest, name = bundle.read_manifest(weights), net_name("grade", GRADER.name, k)
    net = bundle.load_net(weights / name, manifest.files[name].net)
    nets = predict.Nets([net], manifest.pixels[GRADER.name], CPU)
    (grader,) = bundle.task_of(weights, manifest, TASKS).graders  # with the crops that its nets read
    rows = []
    for i in range(0, len(studies), CHUNK):
        loaded = [load_study(study, TASK) for study in studies[i : i + CHUNK]]
        graded = predict.grade(grader, loaded, [one.marks for one in loaded], nets)
        rows += [next(iter(found.values()))[: len(TASK.classes)] for found in graded]
    return np.array(rows)


def measures(probabilities: np.ndarray, grades: np.ndarray) -> dict[str, np.ndarray]:
    """Measure -> its value at every knee."""
    said = probabilities.argmax(1)
    return {
        "accuracy": (said == grades).astype(float),
        "mean absolute error": np.abs(said - grades).astype(float),
        "log loss": -np.log(np.clip(probabilities[np.arange(len(grades)), grades], 1e-6, 1)),
    }


def report(teacher: np.ndarray, student: np.ndarray, studies: Sequence[Study]) -> None:
    grades = np.array([next(iter(study.labels.values())) for study in studies])
    groups = groups_of([study.patient for study in studies])
    first, second = measures(teacher, grades), measures(student, grades)
    print(f"{len(studies)} held-out knees of {groups.max() + 1} patients")
    print(f"{'':<22}{'teacher':>9}{'student':>9}{'student - teacher':>20}")
    for name in first:
        change = second[name] - first[name]
        draws = lambda counts, change=change: counts @ change / counts.sum(1)  # noqa: E731
        low, high = interval(draws, len(studies), 1000, np.random.default_rng(0), groups=groups)
        means = first[name].mean(), second[name].mean()
        print(f"{name:<22}{means[0]:>9.4f}{means[1]:>9.4f}{change.mean():>+9.4f} ({low:+.4f} to {high:+.4f})")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--folds", type=lambda text: [int(k) for k in text.split(",")], default=[0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = sorted(TASK.read(args.data, "train"), key=lambda study: study.id)
    patients = sorted({study.patient for study in given})
    used = set(np.random.default_rng(args.seed).permutation(patients)[: args.patients].tolist())
    truth = [study for study in given if study.patient in used]
    studies, recipe = hidden(truth, args.seed), small_recipe(args.seed)
    weights = {name: args.out / name for name in ("teacher", "student")}
    for name, out in weights.items():
        teacher = weights["teacher"] if name == "student" else None
        train.train(recipe, args.data, out, only=args.folds, device=CPU, resume=False, studies=studies, teacher=teacher)
    split = folds.read(weights["teacher"] / folds.FILE)
    held = [(k, study) for k in args.folds for study in truth if split.fold[study.id] == k]
    both = [
        np.concatenate([answers(out, k, [study for j, study in held if j == k]) for k in args.folds])
        for out in weights.values()
    ]
    report(both[0], both[1], [study for _, study in held])


if __name__ == "__main__":
    main()

"""The published chain of transfer of `lumbar-mr`, spinal -> left -> right subarticular stenosis, against none.

    python bench/transfer_chain.py --data PHANTOMS --out DIR [--folds 3] [--epochs 12] [--studies N]

Both arms train a grader of the left and one of the right side on the same folds, seeds and epochs; in the chain each
starts from the net of the same fold that was trained before it, else from random weights. Labels are cleaned as
published, which leaves about four in ten of the right ones. Crops lie around annotated points in training and in
judging, as there. Small nets that fit two CPU cores; the published size is recipe seed-frcnn-swin-chain. Losses are
weighted as the task's; differences are paired by study, with intervals that resample studies.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from osteograde.learning import folds, out_of_fold
from osteograde.learning.cross_fit import Run
from osteograde.learning.recipe import GraderPlan, Recipe, Start, Training, for_grader
from osteograde.learning.recipes import RECIPES
from osteograde.learning.recipes.lumbar import CHAIN
from osteograde.logs import to_stdout
from osteograde.tasks import TASKS
from osteograde.tasks.lumbar_cleaning import cleaned_studies
from osteograde.tasks.lumbar_metric import weighted_log_losses
from osteograde.tasks.metrics import interval
from osteograde.tasks.spec import Study, Task

log = logging.getLogger("osteograde.learning")
RESAMPLES = 2000


def task_of(graders: tuple[str, ...]) -> Task:
    """`lumbar-mr` with a grader of each side, and of these the named ones alone."""
    task = TASKS["lumbar-mr"].by_side(("subarticular",))
    chosen = tuple(grader for grader in task.graders if grader.name in graders)
    targets = {site.target for grader in chosen for site in grader.sites}
    return replace(task, graders=chosen, prior={name: p for name, p in task.prior.items() if name in targets})


def recipe_of(task: Task, epochs: int, num_folds: int) -> Recipe:
    """Small graders of every grader of a task; those of ``CHAIN`` start from the one before where the task has it."""
    plain = RECIPES["lumbar-mr-small"]()
    names = {grader.name for grader in task.graders}
    plan = replace(plain.graders["subarticular"][0], training=Training(epochs=epochs, batch=6, lr=2e-3, ema=0.98))
    net = {key: value for key, value in plan.net.items() if key in ("kind", "backbone", "stages", "dropout")}
    chained = "spinal" in names
    graders: dict[str, tuple[GraderPlan, ...]] = {}
    for grader in task.graders:
        start = Start(stage=CHAIN.get(grader.name, "")) if chained else Start()
        graders[grader.name] = (for_grader(replace(plan, net=net, start=start), grader, task),)
    scope = replace(plain.scope, folds=num_folds)
    return Recipe(name="bench", task=task, locators=plain.locators, graders=graders, scope=scope)


def graded(task: Task, args: argparse.Namespace, studies: list[Study], out: Path) -> dict[str, dict[str, np.ndarray]]:
    """{study: {target: probabilities}} of held-out studies, at annotated points."""
    recipe = recipe_of(task, args.epochs, args.folds)
    own = [replace(study, labels={t: k for t, k in study.labels.items() if t in task.prior}) for study in studies]
    split = folds.assign(TASKS["lumbar-mr"], studies, args.folds, args.seed)
    recipe = replace(recipe, scope=replace(recipe.scope, seed=args.seed))
    run = Run(recipe, own, [], split, tuple(range(args.folds)), out, torch.device("cpu"), True)
    points = {study.id: dict(run.loaded([study])[0].marks) for study in own}
    return out_of_fold.grade_out_of_fold(run, {}, points)


def sums(studies: list[Study], said: Mapping[str, Mapping[str, np.ndarray]], side: str) -> np.ndarray:
    """(studies, 4): sums of weight * loss, of weights, of right answers, and of labels, over the sites of one side."""
    rows = np.zeros((len(studies), 4))
    weights = np.array(TASKS["lumbar-mr"].class_weights)
    for i, study in enumerate(studies):
        known = {t: k for t, k in study.labels.items() if t.startswith(f"{side}_sub") and t in said.get(study.id, {})}
        if known:
            probs, labels = np.array([said[study.id][t] for t in known]), np.array(list(known.values()))
            loss, weight = weighted_log_losses(probs, labels, weights)
            rows[i] = loss.sum(), weight.sum(), (probs.argmax(1) == labels).sum(), len(labels)
    return rows


def compared(chain: np.ndarray, none: np.ndarray) -> dict[str, list[float] | int]:
    """Loss and accuracy of both arms, and their paired differences (chain - none) with 95 % intervals."""

    def values(counts: np.ndarray) -> np.ndarray:
        one, other = counts @ chain, counts @ none
        loss, plain = one[:, 0] / one[:, 1], other[:, 0] / other[:, 1]
        right, plain_right = one[:, 2] / one[:, 3], other[:, 2] / other[:, 3]
        return np.stack([loss, plain, loss - plain, right, plain_right, right - plain_right], 1)

    low, high = interval(values, len(chain), RESAMPLES, np.random.default_rng(0))
    value = values(np.ones((1, len(chain))))[0]
    names = ("loss_chain", "loss_none", "loss_difference", "accuracy_chain", "accuracy_none", "accuracy_difference")
    table = {n: [round(float(x), 4) for x in (v, a, b)] for n, v, a, b in zip(names, value, low, high, strict=True)}
    return {"labels": int(chain[:, 3].sum()), **table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--studies", type=int, default=0, help="only so many; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    to_stdout()
    torch.set_num_threads(1)
    every = sorted(TASKS["lumbar-mr"].read(args.data, "train"), key=lambda study: study.id)
    studies, lost, right = cleaned_studies(every[: args.studies or len(every)])
    log.info("%d studies; the cleaning drops %d of %d right labels", len(studies), sum(lost.values()), right)
    arms = {"chain": ("spinal", *CHAIN), "none": tuple(CHAIN)}
    said = {name: graded(task_of(graders), args, studies, args.out / name) for name, graders in arms.items()}
    result = {
        side: compared(*(sums(studies, said[name], side) for name in ("chain", "none"))) for side in ("left", "right")
    }
    for side, row in result.items():
        print(side, *(f"{name} {value}" for name, value in row.items()), sep="\n  ")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

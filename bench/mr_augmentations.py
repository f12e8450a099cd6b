"""Do elastic deformation, uneven brightness and MR noise help small graders of discs? Paired, out-of-fold.

    python bench/mr_augmentations.py --data SPIDER --out RUNS [--epochs 14] [--tries elastic,noise]

The plain plan is a small trunk with the augmentation and the loss of the recipe `spider`; every try sets one kind more.
Same discs at annotated points, same two folds by patient, same start, steps and seed. Printed is try minus plain on the
discs that a fold held out, with 95 % intervals over patients: accuracy, mean absolute error and log loss.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chosen_crops import Sites, answers

from osteograde.learning import folds
from osteograde.learning.recipe import GraderPlan, Training, for_grader
from osteograde.learning.recipes.spider import spider
from osteograde.logs import to_stdout
from osteograde.pipeline.load import load_study
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import Study

FOLDS, BOOTSTRAP, SEED = 2, 2000, 0
TRIES: dict[str, dict[str, Any]] = {  # fields of an augmentation
    "plain": {},
    "elastic": {"elastic_mm": 3.0},
    "noise": {"bias_field": 0.4, "rician": 0.05},
    "elastic-and-noise": {"elastic_mm": 3.0, "bias_field": 0.4, "rician": 0.05},
}
log = logging.getLogger("osteograde.learning")


def measures(said: Sites, studies: list[Study], classes: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Measure -> its value at every labelled disc that was graded, and the patient of each. Answers of auxiliary heads
    stand behind the ``classes`` and are left out."""
    rows = [
        (said[one.id][target][:classes], label, one.patient)
        for one in studies
        for target, label in sorted(one.labels.items())
        if target in said[one.id]
    ]
    probs, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    first = probs.argmax(1)
    values = {
        "accuracy": (first == labels).astype(float),
        "mean absolute error": np.abs(first - labels).astype(float),
        "log loss": -np.log(np.clip(probs[np.arange(len(labels)), labels], 1e-6, 1)),
    }
    return values, [row[2] for row in rows]


def told(values: np.ndarray, groups: np.ndarray) -> str:
    """Mean and interval over patients."""

    def mean(counts: np.ndarray) -> np.ndarray:
        return counts @ values / counts.sum(1)

    low, high = interval(mean, len(values), BOOTSTRAP, np.random.default_rng(SEED), groups=groups)
    return f"{values.mean():+.4f} ({float(low):+.4f} to {float(high):+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument(
        "--tries", type=lambda text: text.split(","), default=[name for name in TRIES if name != "plain"]
    )
    args = parser.parse_args()
    to_stdout()
    torch.set_num_threads(1)
    recipe = spider()
    (grader,) = recipe.task.graders
    given = sorted(recipe.task.read(args.data, "train"), key=lambda study: study.id)
    given = [one for one in given if one.marks and one.labels]
    loaded = [load_study(one, recipe.task) for one in given]
    split = folds.assign(recipe.task, given, FOLDS, SEED)
    whole = recipe.graders[grader.name][0]
    plain: GraderPlan = replace(
        whole,
        net={"kind": "grader", "backbone": "mobilenetv4_conv_small_050", "stages": 4, "dropout": 0.1},
        pixels=args.pixels,
        training=Training(epochs=args.epochs, batch=6, lr=2e-3, ema=0.95),
        start=replace(whole.start, weights=""),
        measured_errors=False,
    )
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in ("plain", *args.tries):
        plan = replace(plain, augmentation=replace(plain.augmentation, **TRIES[name]))
        plan = for_grader(plan, grader, recipe.task)
        said = answers(recipe, plan, grader.name, loaded, split, args.out / name)
        found[name], patients = measures(said, given, len(recipe.task.classes))
        groups = groups_of(patients)
        if name == "plain":
            print(f"{len(patients)} discs of {len(set(patients))} patients")
        for measure, values in found[name].items():
            change = "" if name == "plain" else f"; minus plain {told(values - found['plain'][measure], groups)}"
            print(f"{name:<20}{measure:<22}{values.mean():.4f}{change}", flush=True)


if __name__ == "__main__":
    main()

"""Recipes of published sizes, made for GPUs, in a few real steps on one CPU core: time, memory, and whether they learn.

    python bench/published_sizes.py knee-resnet101 --data DIR --out DIR [--studies 12] [--steps 8] [--batch 2]

Every net of the recipe is built at its published size and trained in a process of its own on a few studies: its own
pixels, optimiser, rate, augmentation and loss, at annotated points. Smaller are the number of steps, the batch (a
published one wants the memory of a GPU) and, where the published weights are a download, the start, which is random;
the epochs of the head alone, which only make sense on such weights, are then left out. Then the net is asked about
studies that it did not see: for a grader, how far its answers lie from one another (rows on the prior are all alike),
for a locator, how many landmarks it finds. Nothing here is a score: a few steps teach nobody to grade.

One line of JSON a net: parameters, processor seconds of a step (median without the first one), MiB at the peak of the
process, the loss of the first and of the last quarter of the steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from osteograde.learning import folds, grader_data, locator_data, loop, planning, pretrained, starting
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.recipe import GraderPlan, LocatorPlan, Plan, Recipe, Start
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded, load_study

CPU = torch.device("cpu")
FOLDS, SEED = 2, 0


@dataclass
class Watched:
    """A loss that keeps its values, and the processor time of the calls with a net in training."""

    loss: loop.Loss
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __call__(self, net: nn.Module, batch: Any) -> torch.Tensor:
        value = self.loss(net, batch)
        if torch.is_grad_enabled():
            self.values.append(float(value.detach()))
            self.times.append(time.process_time())
        return value

    def row(self) -> dict[str, float]:
        """Processor seconds of a step, data included, and the mean loss of the first and last quarter of the steps."""
        quarter = max(1, len(self.values) // 4)
        seconds = np.diff(self.times)[1:] if len(self.times) > 2 else np.diff(self.times)
        return {
            "steps": len(self.values),
            "seconds_a_step": round(float(np.median(seconds)), 2),
            "loss_first": round(float(np.mean(self.values[:quarter])), 4),
            "loss_last": round(float(np.mean(self.values[-quarter:])), 4),
        }


def few_steps(plan: Plan, steps: int, batch: int) -> Plan:
    """One epoch of so many steps of a plan; random starting weights in place of a download."""
    training = replace(plan.training, epochs=1, steps=steps, batch=min(batch, plan.training.batch), patience=0)
    start = replace(plan.start, shared_epochs=0, stage="")
    if starting.is_download(starting.source_of(start.weights)):
        start = Start()
    changed = replace(plan, training=training, start=replace(start, head_epochs=0, head_lr=0.0))
    schedule = replace(changed.schedule, restarts={}, milestones=(1,) if plan.schedule.milestones else ())
    return replace(changed, schedule=schedule)


def loss_of_locator(net: Any, batch: Any) -> torch.Tensor:
    return net.loss(batch)


def trained(recipe: Recipe, kind: str, name: str, plan: Plan, studies: Sequence[Loaded], out: Path) -> dict[str, Any]:
    """The row of one net."""
    split = folds.assign(recipe.task, [one.study for one in studies], FOLDS, SEED)
    seen = [one for one in studies if split.fold_of(one.study) != 0]
    unseen = [one for one in studies if split.fold_of(one.study) == 0]
    if isinstance(plan, GraderPlan):
        grader = next(one for one in recipe.task_as_read.graders if one.name == name)
        given = ((one, recipe.task.fill_missing_landmarks(one.marks)) for one in seen)
        data: Any = grader_data.store(grader, recipe.task, plan, given, out)
        loss = Watched(grader_loss(grader, recipe, plan))
    else:
        assert isinstance(plan, LocatorPlan)
        locator = next(one for one in recipe.task.locators if one.name == name)
        data = locator_data.store(locator, plan, seen, out)
        loss = Watched(loss_of_locator)
    job = loop.Job(name, 0, SEED, CPU, out / "net.pt")
    net: Any = loop.train(partial(pretrained.net_of, plan, data, loss, job), plan, data, None, loss, job, resume=False)
    nets = predict.Nets([bundle.on_device(net, CPU)], plan.pixels, CPU)
    said = graded(recipe, name, unseen, nets) if kind == "grade" else located(recipe, name, unseen, nets)
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "pixels": plan.pixels,
        "batch": plan.training.batch,
        **loss.row(),
        **said,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def graded(recipe: Recipe, name: str, unseen: Sequence[Loaded], nets: predict.Nets) -> dict[str, float]:
    """How far the answers of a grader about held-out studies lie apart: the largest deviation of one probability of a
    target over studies. Rows on the prior have 0."""
    grader = next(one for one in recipe.task_as_read.graders if one.name == name)
    points = [dict(recipe.task.fill_missing_landmarks(one.marks)) for one in unseen]
    answers: dict[str, list[np.ndarray]] = {}
    for one in predict.grade(grader, unseen, points, nets):
        for target, values in one.items():
            answers.setdefault(target, []).append(np.asarray(values))
    spread = max((float(np.std(rows, axis=0).max()) for rows in answers.values() if len(rows) > 1), default=0.0)
    return {"rows": sum(map(len, answers.values())), "spread": float(f"{spread:.2g}")}


def located(recipe: Recipe, name: str, unseen: Sequence[Loaded], nets: predict.Nets) -> dict[str, int]:
    """How many landmarks a locator finds in held-out studies; where it looks around others, these are annotated."""
    locator = next(one for one in recipe.task.locators if one.name == name)
    found = predict.locate(locator, unseen, [dict(one.marks) for one in unseen], nets)
    return {"found": sum(map(len, found)), "landmarks": len(locator.landmarks) * len(unseen)}


def nets_of(recipe: Recipe) -> Mapping[str, tuple[str, str, Plan]]:
    """{"grade/kl": (folder, name, plan of the first member)}."""
    return {f"{kind}/{name}": (kind, name, plans[0]) for (kind, name), plans in recipe.plans().items()}


def chosen_studies(recipe: Recipe, data: Path, count: int) -> list[Loaded]:
    """Studies with points and labels, taken evenly from all of them."""
    masked = any(plan.net["kind"] in ("unet", "planned_unet") for plan in recipe.locators.values())
    given = sorted(recipe.task.read(data, "train"), key=lambda study: study.id)
    given = [one for one in given if (one.series[0].masks if masked else one.labels and one.marks)]
    return [load_study(one, recipe.task) for one in given[:: max(1, len(given) // count)][:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="stored crops and checkpoints; may be deleted")
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="studies or windows of a step, or the plan's if smaller")
    parser.add_argument("--nets", nargs="*", help="grade/NAME or locate/NAME; default: all of the recipe")
    parser.add_argument("--here", action="store_true", help="one net, in this process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[args.recipe]()
    if not args.here:
        for net in args.nets or nets_of(recipe):
            command = [sys.executable, *sys.argv, "--here", "--nets", net]
            if code := subprocess.run(command, check=False).returncode:
                sys.exit(f"{args.recipe} {net}: ended with {code}")
        return
    studies = chosen_studies(recipe, args.data, args.studies)
    recipe = planning.planned_recipe(recipe, studies)
    kind, name, plan = nets_of(recipe)[args.nets[0]]
    row = trained(recipe, kind, name, few_steps(plan, args.steps, args.batch), studies, args.out / args.nets[0])
    row = {"recipe": args.recipe, "net": args.nets[0], "published_batch": plan.training.batch, **row}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

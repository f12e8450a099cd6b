"""Grad-CAM maps of small trained transformers on knees: do they lie at the joint?

    python bench/transformer_maps.py --data KNEES --out DIR --backbone torchvision/swin_v2_t medvit_small
        [--knees 800] [--epochs 2] [--sites 40] [--pictures DIR]

Each trunk learns the Kellgren-Lawrence grade from random weights on knees of --data/train, at the recipe's crops around
their own centres, and is asked about knees of --data/val, which it has not seen; their joints are found by the shipped
locators. What is printed is that of map_checks.py, and the accuracy beside that of always saying the commonest grade: a
map of a net that has learnt nothing says nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from map_checks import report, rows_of

from osteograde.learning import grader_data, loop, pretrained
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.recipe import GraderPlan, Schedule, Start, Training, for_grader
from osteograde.learning.recipes.knee import knee_xray_small
from osteograde.logs import to_stdout
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study

CPU = torch.device("cpu")
SEED = 0


def trained(backbone: str, knees: Sequence[Loaded], args: argparse.Namespace) -> tuple[torch.nn.Module, GraderPlan]:
    """The net of a trunk after a few epochs."""
    recipe = knee_xray_small()
    ((plan,),) = recipe.graders.values()
    (grader,) = recipe.task_as_read.graders
    plan = replace(
        plan,
        net={"kind": "grader", "backbone": backbone, "dropout": 0.1},
        training=Training(epochs=args.epochs, batch=16, lr=5e-4, weight_decay=0.05, ema=0.95, bfloat16=args.bfloat16),
        schedule=Schedule(warm_up=0.2),
        start=Start(),
    )
    plan = for_grader(plan, grader, recipe.task)
    located = ((one, recipe.task.fill_missing_landmarks(one.marks)) for one in knees)
    data = grader_data.store(grader, recipe.task, plan, located, args.out / "crops")
    loss = grader_loss(grader, recipe, plan)
    job = loop.Job("kl", 0, SEED, CPU, args.out / f"{backbone.replace('/', '-')}.pt")
    net = loop.train(partial(pretrained.net_of, plan, data, loss, job), plan, data, None, loss, job, resume=True)
    return bundle.on_device(net, CPU), plan


def accuracy(net: torch.nn.Module, plan: GraderPlan, knees: Sequence[Loaded]) -> tuple[float, float]:
    """Of a net, and of always saying the commonest grade, on knees that it has not seen."""
    (grader,) = knee_xray_small().task_as_read.graders
    points = [dict(TASKS["knee-xray"].fill_missing_landmarks(one.marks)) for one in knees]
    said = predict.grade(grader, knees, points, predict.Nets([net], plan.pixels, CPU))
    pairs = [
        (int(np.argmax(answer[target])), label)
        for one, answer in zip(knees, said, strict=True)
        for target, label in one.study.labels.items()
    ]
    labels = np.array([label for _, label in pairs])
    return float(np.mean([first == label for first, label in pairs])), float(np.bincount(labels).max() / len(labels))


def evenly(studies: Sequence[Study], count: int) -> list[Study]:
    """So many studies, taken evenly from all of them."""
    return list(studies[:: max(1, len(studies) // count)][:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", nargs="+", default=["torchvision/swin_v2_t", "medvit_small"])
    parser.add_argument("--weights", type=Path, default=Path("weights/knee-xray"), help="whose locators are used")
    parser.add_argument("--knees", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--sites", type=int, default=40)
    parser.add_argument("--band", type=float, default=12.0)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    to_stdout()
    torch.set_num_threads(1)
    task = TASKS["knee-xray"]
    knees = [load_study(one, task) for one in evenly(task.read(args.data / "train", "train"), args.knees)]
    unseen = [load_study(one, task) for one in evenly(task.read(args.data / "val", "train"), 4 * args.sites)]
    shipped = bundle.load(args.weights, TASKS, CPU)
    for backbone in args.backbone:
        net, plan = trained(backbone, knees, args)
        own, commonest = accuracy(net, plan, unseen)
        print(f"\n{backbone}: accuracy {own:.3f} on {len(unseen)} unseen knees, the commonest grade {commonest:.3f}")
        manifest = replace(shipped.manifest, pixels={**shipped.pixels, "kl": plan.pixels}, calibration={})
        loaded = replace(shipped, manifest=manifest, graders={"kl": (net,)})
        pictures = args.pictures and args.pictures / backbone.replace("/", "-")
        report(list(rows_of(loaded, args.data / "val", args.sites, args.band, pictures)), args.band)


if __name__ == "__main__":
    main()

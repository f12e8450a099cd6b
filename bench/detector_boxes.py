"""Boxes of a small detector on phantom spines: average precision and recall with intervals over patients.

    python bench/detector_boxes.py --data PHANTOMS --out DIR [--epochs 8] [--steps 50]

Faster R-CNN with a MobileNetV3 pyramid from random weights learns the five canal levels of `lumbar-mr` on three
quarters of the patients, with the boxes of the published detectors (recipe seed-frcnn-swin), and is asked about the
others. Its landmarks are those that inference would use, its boxes those around them, as ``evaluate.box_scores`` has
it. Phantoms are easy and their anatomy is regular: these numbers say that the code learns, nothing of patients.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from osteograde.learning import evaluate, folds, locator_data, loop, pretrained
from osteograde.learning.recipe import LocatorPlan, Start, Training, taught_boxes_mm
from osteograde.learning.recipes.lumbar import seed_frcnn_swin
from osteograde.logs import to_stdout
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks.spec import Locator, Points

CPU = torch.device("cpu")
FOLDS, RESAMPLES, SEED = 4, 300, 0
NAMES = ("ap50", "ap75", "ar")


def scores(
    locator: Locator, boxes_mm: Mapping, held_out: Sequence[Loaded], found: Sequence[Points], chosen: np.ndarray
) -> list[float]:
    """AP at 0.5 and at 0.75 and AR of the chosen patients; one who is drawn twice counts twice."""
    drawn, said = [], {}
    for i, k in enumerate(chosen.tolist()):
        name = f"{i}"
        drawn.append(replace(held_out[k], study=replace(held_out[k].study, id=name)))
        said[name] = found[k]
    row = evaluate.box_scores(locator, boxes_mm, drawn, said)
    return [float(row[name] or 0.0) for name in NAMES]


def small(published: LocatorPlan, args: argparse.Namespace) -> LocatorPlan:
    """A detector that one core can train, with the boxes of the published one."""
    return replace(
        published,
        net={**published.net, "variant": "mobilenet"},
        pixels=args.pixels,
        training=Training(epochs=args.epochs, batch=args.batch, steps=args.steps, lr=1e-3, ema=0.95),
        schedule=replace(published.schedule, milestones=()),
        start=Start(),
        window=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--locator", default="canal")
    parser.add_argument("--pixels", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    to_stdout()
    torch.set_num_threads(1)
    recipe = seed_frcnn_swin()
    locator = next(one for one in recipe.task.locators if one.name == args.locator)
    plan = small(recipe.locators[args.locator], args)
    given = [one for one in sorted(recipe.task.read(args.data, "train"), key=lambda s: s.id) if one.marks]
    loaded = [load_study(one, recipe.task) for one in given]
    split = folds.assign(recipe.task, given, FOLDS, SEED)
    seen = [one for one in loaded if split.fold_of(one.study) != 0]
    held_out = [one for one in loaded if split.fold_of(one.study) == 0]
    data = locator_data.store(locator, plan, seen, args.out / "regions")
    job = loop.Job(args.locator, 0, SEED, CPU, args.out / "net.pt")

    def loss(net, batch):
        return net.loss(batch)

    build = partial(pretrained.net_of, plan, data, loss, job)
    net = bundle.on_device(loop.train(build, plan, data, None, loss, job, resume=args.resume), CPU)
    nets = predict.Nets([net], plan.pixels, CPU)
    found = predict.locate(locator, held_out, [{} for _ in held_out], nets)
    boxes_mm, rng = taught_boxes_mm(plan, locator), np.random.default_rng(SEED)
    value = scores(locator, boxes_mm, held_out, found, np.arange(len(held_out)))
    draws = [
        scores(locator, boxes_mm, held_out, found, rng.integers(len(held_out), size=len(held_out)))
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    errors = [
        float(np.linalg.norm(points[name].mm - one.marks[name].mm))
        for one, points in zip(held_out, found, strict=True)
        for name in points.keys() & one.marks.keys()
    ]
    marks = sum(len({landmark.name for landmark in locator.landmarks} & one.marks.keys()) for one in held_out)
    median = f"median {np.median(errors):.2f} mm" if errors else "no median"
    print(f"{len(held_out)} held-out patients; {len(errors)} of {marks} points found, {median}")
    for name, one, a, b in zip(NAMES, value, low, high, strict=True):
        print(f"{name:<6}{one:.3f} ({a:.3f} - {b:.3f})")


if __name__ == "__main__":
    main()

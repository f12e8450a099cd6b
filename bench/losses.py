"""Losses of a grader compared out-of-fold: the same folds, landmarks, epochs and seed, only the target differs.

    python bench/losses.py TASK --data DIR --weights W --out DIR [--folds 0,1] [--losses plain,weighted,ordinal]

W are trained weights: its folds and locators are reused, and its graders too for the loss they were trained with.
The others are trained. ``plain``: cross entropy. ``weighted``: classes count by 1 / sqrt(frequency). ``ordinal``: the
same weights, and targets that fall off with the squared distance between grades (Diaz and Marathe, CVPR 2019). Each is
then set against the first one with the paired bootstrap of ``osteograde runs --compare``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from osteograde.learning import train
from osteograde.learning.compare import compare_out_of_fold
from osteograde.learning.ensemble import gather
from osteograde.learning.recipe import Recipe
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import reuse_nets
from osteograde.models.device import pick
from osteograde.tasks import TASKS

LOSSES: dict[str, dict[str, Any]] = {
    "plain": {"loss": "classes", "class_weight_power": 0.0},
    "weighted": {"loss": "classes", "class_weight_power": 0.5},
    "ordinal": {"loss": "ordinal", "class_weight_power": 0.5},
}


def with_loss(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the first member of every grader alone, trained with another loss."""
    return replace(
        recipe,
        graders={grader: (replace(members[0], **LOSSES[name]),) for grader, members in recipe.graders.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    for name in ("--data", "--weights", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--folds", type=lambda text: tuple(int(part) for part in text.split(",")))
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--bootstrap", type=int, default=2000)
    args = parser.parse_args()
    names = args.losses.split(",")
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    for name in names:
        recipe, out = with_loss(RECIPES[args.task](), name), args.out / name
        print(f"{name}: {len(reuse_nets(args.weights, out, recipe))} nets are reused", flush=True)
        scores = train.train(recipe, args.data, out, only=args.folds, device=pick("auto"), resume=True)
        print(train.table(scores), flush=True)
    for name in names[1:]:
        answers = gather(TASKS[args.task], [args.out / names[0], args.out / name], args.data)
        compared = compare_out_of_fold(answers.task, answers.sides(), resamples=args.bootstrap)
        print("", *compared.lines(), sep="\n")


if __name__ == "__main__":
    main()

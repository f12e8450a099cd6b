"""Losses of a grader compared out-of-fold: the same folds, landmarks, epochs and seed, only the target differs.

    python bench/losses.py TASK --data DIR --weights W --out DIR [--folds 0,1] [--losses plain,weighted,ordinal]

W are trained weights: its folds and locators are taken over, and its graders too for the loss that they learnt with.
The others are trained. ``plain``: cross entropy. ``weighted``: classes count by 1 / sqrt(frequency). ``ordinal``: the
same weights, and targets that fall off with the squared distance between grades (Diaz and Marathe, CVPR 2019). Each is
then set against the first one with the paired bootstrap of ``compare_oof.py``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compare_oof import compare, told

from osteograde.learning import train
from osteograde.learning.ensemble import gather
from osteograde.learning.recipe import Recipe
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import reuse_nets
from osteograde.models.device import pick
from osteograde.tasks import TASKS

LOSSES: dict[str, dict[str, Any]] = {
    "plain": {"loss": "classes", "balance": 0.0},
    "weighted": {"loss": "classes", "balance": 0.5},
    "ordinal": {"loss": "ordinal", "balance": 0.5},
}


def with_loss(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one net a fold for every grader, learning by another loss."""
    return replace(
        recipe, graders={group: replace(plan, also=(), **LOSSES[name]) for group, plan in recipe.graders.items()}
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
    say = partial(print, flush=True)
    for name in names:
        recipe, out = with_loss(RECIPES[args.task](), name), args.out / name
        say(f"{name}: {len(reuse_nets(args.weights, out, recipe))} nets taken over")
        scores = train.train(recipe, args.data, out, only=args.folds, device=pick("auto"), resume=True, log=say)
        say(train.table(scores))
    for name in names[1:]:
        answers = gather(TASKS[args.task], [args.out / names[0], args.out / name], args.data)
        say("\n" + told(answers, compare(answers, args.bootstrap)))


if __name__ == "__main__":
    main()

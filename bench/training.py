"""Training against the step of the net alone: how much of an epoch is waiting for data.

    python bench/training.py --recipe lumbar-mr-small --studies 12

Every epoch of every net is run twice in a row by the package's own loop: with its batches as they come, and with the
last of them again and again. The first over the second is what the data cost. Phantoms, all stages, one fold, and few
steps.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine

from osteograde import phantom
from osteograde.learning import loop, train
from osteograde.learning.recipe import AnyPlan, GraderPlan, Recipe, Schedule, Scope, Start
from osteograde.learning.recipes import RECIPES
from osteograde.models.device import keep_all_freed_memory, pick


class TwiceOver(loop.Batches):
    """The batches of an epoch, then the last of them as often again."""

    seen: list[tuple[str, float, float, float]] = []  # noqa: RUF012 (stage, seconds, seconds of the net alone, waited)

    def __iter__(self) -> Iterator[Any]:
        begun = time.perf_counter()
        for batch in super().__iter__():
            yield batch
        middle = time.perf_counter()
        for _ in range(self.steps):
            yield batch
        alone = time.perf_counter() - middle
        self.seen.append((self.job.stage, middle - begun, alone, self.waited))


def short(recipe: Recipe, epochs: int, steps: int) -> Recipe:
    """The first net of each locator and grader of the recipe, with its own pixels and batches, for a few steps."""

    def few(stage: str, plan: AnyPlan) -> AnyPlan:
        training = replace(plan.training, epochs=epochs, steps=steps)
        if isinstance(plan, GraderPlan):
            plan = replace(plan, resizing=None, synthetic_epochs=min(plan.synthetic_epochs, epochs))
        return replace(plan, training=training, schedule=Schedule(), start=Start())

    first = {grader: members[:1] for grader, members in recipe.graders.items()}
    return replace(recipe, graders=first, calibrate=False, scope=Scope(folds=2, synthetic_share=0.02)).map_plans(few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="lumbar-mr-small")
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    keep_all_freed_memory()
    recipe = short(RECIPES[args.recipe](), args.epochs, args.steps)
    loop.Batches = TwiceOver  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as place:
        data, out = Path(place) / "data", Path(place) / "out"
        phantom.write(recipe.task.name, data, studies=args.studies, seed=888003, workers=os.cpu_count() or 1)
        watch = machine.Watch()
        train.train(recipe, data, out, only=[0], device=pick("auto"), resume=False)
        watch.ends()
    print(f"{machine.described()}\n")
    print("| stage | ms a step | net alone | with data / net alone | waiting for data |\n|---|---|---|---|---|")
    steps = args.epochs * args.steps
    for stage in dict.fromkeys(name for name, *_ in TwiceOver.seen):
        seconds = [row[1:] for row in TwiceOver.seen if row[0] == stage]
        total, alone, waited = (sum(part) for part in zip(*seconds, strict=True))
        each = f"{1000 * total / steps:.0f} | {1000 * alone / steps:.0f}"
        print(f"| {stage} | {each} | {watch.ratio(total / alone)} | {waited / total:.1%} |")
    print(f"\n{watch}")


if __name__ == "__main__":
    main()

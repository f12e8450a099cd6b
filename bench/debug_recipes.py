"""A debug run of every recipe on phantoms: does each train, grade and score, from nothing to a manifest?

    python bench/debug_recipes.py [--recipes spider,lumbar-mr-small] [--studies 8] [--out DIR]

A recipe passes where the out-of-fold rows of every one of its graders differ from study to study: rows that were not
graded hold the prior of their fold, which is the same for all. Nothing is downloaded. One recipe takes from one to
several minutes on two cores, the large ones most.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from osteograde import phantom
from osteograde.learning import pretrained, train
from osteograde.learning.recipe import Recipe
from osteograde.learning.recipes import NAMES, RECIPES
from osteograde.models.device import pick
from osteograde.tasks.spec import Task

SEED = 17


def debug_run(recipe: Recipe, data: Path, out: Path) -> str:
    """Train a recipe as ``--debug`` does; returns the printed table."""
    small = pretrained.without_missing_weights(recipe.shrunk())
    return train.table(train.train(small, data, out, only=None, device=pick("cpu"), resume=False))


def graders_at_prior(task: Task, oof: Path) -> list[str]:
    """Graders of which no out-of-fold row differs from the row of another study of the same fold and target."""
    answers: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    with oof.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            target = next(target for target in task.targets if row["row_id"].endswith(f"_{target}"))
            answers[row["fold"], target].add(tuple(row[name] for name in task.classes))
    graded = {target for (_, target), values in answers.items() if len(values) > 1}
    return [grader.name for grader in task.graders if not graded & {site.target for site in grader.sites}]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=list(NAMES), help="all if not given")
    parser.add_argument("--studies", type=int, default=8, help="phantoms of each task")
    parser.add_argument("--out", type=Path, help="where phantoms and weights are kept; nowhere if not given")
    args = parser.parse_args(argv)
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        for name in args.recipes:
            recipe, begun = RECIPES[name](), time.perf_counter()
            data = folder / f"data-{recipe.task.name}"
            if not data.is_dir():
                phantom.write(recipe.task.name, data, studies=args.studies, seed=SEED)
            said = debug_run(recipe, data, folder / name)
            flat = graders_at_prior(recipe.task, folder / name / "oof.csv")
            failed += [f"{name}: {', '.join(flat)}"] if flat else []
            print(f"{name}: {'only priors of ' + ', '.join(flat) if flat else 'graded'}, "
                  f"{time.perf_counter() - begun:.0f} s\n{said}\n", flush=True)  # fmt: skip
    print(f"{len(args.recipes) - len(failed)} of {len(args.recipes)} recipes grade", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

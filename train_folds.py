"""Train every fold of every stage and score what each fold says of studies it never saw.

    python train_folds.py lumbar-mr --data DIR --out weights/lumbar-mr
    python train_folds.py lumbar-mr --data DIR --out runs/try --debug

Writes folds.csv, locate/<stage>/fold*.safetensors, grade/<group>/*fold*.safetensors, oof.csv, oof_points.csv and
manifest.json. ``OUT/work`` holds caches and checkpoints; delete it when the run is finished.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from osteograde import cli
from osteograde.errors import UserError
from osteograde.learning import pretrained, train
from osteograde.learning.recipe import shrink
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import reuse_nets
from osteograde.models.device import keep_all_freed_memory, pick


def main(argv: list[str] | None = None) -> int:
    args = cli.train_parser().parse_args(argv)
    keep_all_freed_memory()
    cli.known_task(args.task)
    name = args.recipe or args.task
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; known: {', '.join(sorted(RECIPES))}")
    recipe = RECIPES[name]()
    if recipe.task.name != args.task:
        raise UserError(f"recipe {name!r} is of task {recipe.task.name!r}, asked for {args.task!r}")
    say = partial(print, flush=True)
    recipe = pretrained.without_missing_weights(shrink(recipe), say) if args.debug else recipe
    for weights in args.like:
        say(f"taken over from {weights}: folds and {len(reuse_nets(weights, args.out, recipe))} nets")
    resume = args.resume or bool(args.like)
    scores = train.train(recipe, args.data, args.out, only=args.folds, device=pick(args.device), resume=resume, log=say)
    print(train.table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

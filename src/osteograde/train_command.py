"""``osteograde train`` and train_folds.py: train every fold of a recipe, and score it out-of-fold."""

from __future__ import annotations

import argparse
import logging

from osteograde.errors import UserError
from osteograde.learning.recipes import check_name
from osteograde.logs import to_stdout

log = logging.getLogger("osteograde.learning")

RESUME = "the same command with --resume goes on from the last finished epoch"


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``cli.add_train_options`` ask for; the exit code is returned."""
    name = args.recipe or args.task
    check_name(name, args.task)
    if not args.data.is_dir():
        raise UserError(f"{args.data}: no such folder; --data is the folder that holds the tables and the images")
    # torch and what stands on it: imported once the names are known to be right
    from osteograde.learning import folds, pretrained, train
    from osteograde.learning.recipes import RECIPES
    from osteograde.learning.reuse import reuse_nets
    from osteograde.models.device import keep_all_freed_memory, pick

    to_stdout()
    keep_all_freed_memory()
    recipe = RECIPES[name]()
    if args.debug:
        recipe = pretrained.without_missing_weights(recipe.shrunk())
    elif not (args.reuse or args.resume):  # nets that are there already need none
        pretrained.check_weights(recipe)
    for weights in args.reuse:
        copied = reuse_nets(weights, args.out, recipe)
        log.info(f"reused from {weights}: {folds.FILE} and {len(copied)} nets")
    resume = args.resume or bool(args.reuse)
    try:
        scores = train.train(recipe, args.data, args.out, only=args.folds, device=pick(args.device), resume=resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(RESUME) from None
    print(train.table(scores))
    print(f"written: {args.out / 'manifest.json'}, the nets that it names, and out-of-fold tables beside it")
    print(f"next: python -m osteograde report {args.out} --data {args.data}")
    return 0

"""``osteograde train`` and train_folds.py: train every fold of a recipe, and score it out-of-fold."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from osteograde.errors import UserError
from osteograde.learning.recipes import check_name
from osteograde.logs import to_stdout

if TYPE_CHECKING:
    from osteograde.learning.recipe import Recipe
    from osteograde.tasks.spec import Study

log = logging.getLogger("osteograde.learning")

RESUME = "the same command with --resume goes on from the last finished epoch"
ROOM_GIB, ROOM_DEBUG_GIB = 1.0, 0.1  # free disk that a run should find: decoded images, checkpoints and nets


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``cli.add_train_options`` ask for; the exit code is returned."""
    name = args.recipe or args.task
    check_name(name, args.task)
    if not args.data.is_dir():
        raise UserError(f"{args.data}: no such folder; --data is the folder that holds the tables and the images")
    from osteograde.learning.recipes import RECIPES

    recipe = RECIPES[name]()
    if args.debug:
        recipe = recipe.shrunk()
    check_run(args, recipe)
    to_stdout()  # what is read, held back and left out is told too
    studies = recipe.task.read(args.data, "train")
    check_folds(args, studies)
    # torch and what stands on it: imported once nothing is known to be missing
    from osteograde.learning import folds, pretrained, train
    from osteograde.learning.reuse import reuse_nets
    from osteograde.models.device import keep_all_freed_memory, pick

    keep_all_freed_memory()
    device = pick(args.device)
    if args.debug:
        recipe = pretrained.without_missing_weights(recipe)
    elif not (args.reuse or args.resume):  # nets that are there already need none
        pretrained.check_fit(recipe, args.folds[0] if args.folds else 0)
    for weights in args.reuse:
        copied = reuse_nets(weights, args.out, recipe)
        log.info(f"reused from {weights}: folds.csv and {len(copied)} nets")
    if args.folds_of:
        folds.take(args.folds_of, args.out)
    resume = args.resume or bool(args.reuse)
    try:
        scores = train.train(
            recipe,
            args.data,
            args.out,
            only=args.folds,
            device=device,
            resume=resume,
            studies=studies,
            tensorboard=args.tensorboard,
            teacher=args.pseudo_labels,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(RESUME) from None
    print(train.table(scores))
    print(f"written: {args.out / 'manifest.json'}, the nets that it names, and out-of-fold tables beside it")
    print(f"next: python -m osteograde report {args.out} --data {args.data}")
    return 0


def check_run(args: argparse.Namespace, recipe: Recipe) -> None:
    """UserError for what a run can be known to lack before anything is read, and before torch is imported."""
    from osteograde.learning import folds, history, starting

    if args.tensorboard:
        history.check_tensorboard()
    chosen = folds.chosen(recipe, args.folds)
    for weights in args.reuse:
        if not (weights / folds.FILE).is_file():
            raise UserError(
                f"--reuse {weights}: no {folds.FILE} in it; name a weights folder that train_folds.py wrote"
            )
    if args.folds_of:
        folds.check_taken(args.folds_of, args.out, recipe, debug=args.debug)
    if args.pseudo_labels:
        check_teacher(args.pseudo_labels, recipe.task.name)
        folds.check_taken(args.pseudo_labels, args.out, recipe, option="--pseudo-labels", debug=args.debug)
    check_out(args.out, ROOM_DEBUG_GIB if args.debug else ROOM_GIB)
    if args.resume or args.reuse:
        return  # nets that are there already need no starting weights
    folds.refuse_finished(args.out)
    if not args.debug:
        starting.check(recipe, chosen)


def check_teacher(weights: Path, task: str) -> None:
    """UserError where ``--pseudo-labels`` names no weights folder, or one of another task than that of the run."""
    from osteograde.models.manifest import read_manifest

    if (found := read_manifest(weights).task) != task:
        raise UserError(f"--pseudo-labels {weights}: of task {found!r}, this run is of {task!r}")


def check_folds(args: argparse.Namespace, studies: Sequence[Study]) -> None:
    """UserError where the folds that a run is to take are of other studies, before they are copied into ``--out``."""
    from osteograde.learning import folds

    if args.folds_of:
        folds.check_studies(args.folds_of, studies, "--folds-of")
    if args.pseudo_labels:
        folds.check_studies(args.pseudo_labels, studies, "--pseudo-labels")


def check_out(out: Path, room_gib: float) -> None:
    """UserError where nothing can be written into the folder of a run, or where its disk is too full."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder, which is made if it is not there")
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {out}: {there} cannot be written into; name another folder")
    free = shutil.disk_usage(there).free / 2**30
    if free < room_gib:
        raise UserError(
            f"--out {out}: {free:.2f} GiB are free there, a run wants {room_gib:g} for decoded images and checkpoints; "
            "make room or name another folder"
        )

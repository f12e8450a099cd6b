"""``osteograde tune``: search for settings on inner folds, and let the outer folds judge what was chosen, once."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osteograde import interrupts, ray_cluster, train_command
from osteograde.errors import UserError
from osteograde.learning import folds, nested, space, study
from osteograde.learning.nested import RESULT, Search, SearchJob
from osteograde.learning.recipes import spaces
from osteograde.logs import to_stdout
from osteograde.train_command import SERIAL

if TYPE_CHECKING:
    import torch

    from osteograde.learning.recipe import Recipe

PAGE = "tune.html"
log = logging.getLogger("osteograde.search")


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``cli._add_tune`` ask for; the exit code is returned."""
    with interrupts.explained(lambda _: f"what is done is kept in {args.out}; go on with: {args.typed}"):
        return search_and_report(args)


def search_and_report(args: argparse.Namespace) -> int:
    """The same, without a word about how to go on after Ctrl-C."""
    search, recipe = checked(args)
    to_stdout(bars=True)
    from osteograde.learning import search as work
    from osteograde.models.device import keep_all_freed_memory, pick
    from osteograde.tasks.outputs import prepare_outputs

    keep_all_freed_memory()
    device = pick(train_command.device_here(args))
    studies = work.chosen_studies(recipe, args.data)
    prepare_outputs(args.data, {"--out": args.out})
    work.begin(search, recipe, studies, args.out)
    listed, done = nested.jobs_of(search), nested.finished(search, args.out)
    if len(done) == len(listed):
        log.info("the search in %s is finished: nothing is left to be done", args.out)
    else:
        log.info("%s", _outlook(search, len(listed) - len(done), len(studies)))
        _do(args, search, recipe, device, done)
    found = nested.result(search, args.out, recipe.task, _importances(search, args.out, recipe))
    _write(found, args.out)
    print(*nested.lines(found), sep="\n")
    print(f"written: {args.out / PAGE} and {args.out / RESULT}")
    words = ["osteograde", "train", args.task, "--data", str(args.data), "--out", "WEIGHTS"]
    words += ["--recipe", args.recipe] if args.recipe else []
    words += [word for one in [*args.settings, *nested.recommended(found)] for word in ("--set", one)]
    print(f"next: {shlex.join(words)}")
    return 0


def checked(args: argparse.Namespace) -> tuple[Search, Recipe]:
    """What is searched for and the default recipe. UserError for everything that can be known to be wrong before
    anything is read, and before torch is imported."""
    if not args.data.is_dir():
        raise UserError(f"{args.data}: no such folder; --data is the folder that holds the tables and the images")
    for option, value, least in (("--trials", args.trials, 1), ("--inner", args.inner, 2)):
        if value < least:
            raise UserError(f"{option} {value}: expected {least} or more")
    name = args.space or spaces.name_for(args.task)
    given = space.load(name, spaces.SPACES)
    train_command.check_recipe(args)
    recipe = train_command.chosen_recipe(args)
    dimensions = space.parsed(given, recipe, f"--space {name}")
    trials = len(space.grid(dimensions, args.trials)) if args.method == study.GRID else args.trials
    train_command.check_out(args.out, train_command.ROOM_GIB)
    chosen = folds.chosen(recipe, args.folds)
    plain = json.loads(json.dumps(recipe.plain()))
    return Search(
        args.task, plain, space.plain(dimensions), args.method, args.prune, trials, chosen, args.inner, args.seed
    ), recipe


def _outlook(search: Search, left: int, studies: int) -> str:
    outer = ", ".join(map(str, search.folds))
    return (
        f"search for {len(search.space)} settings of recipe {search.recipe['name']}: {search.trials} trials by "
        f"{search.method} for each of the outer folds {outer}, on {search.inner} inner folds of {studies} studies "
        f"without the outer fold; {left} jobs are left"
    )


def _do(args: argparse.Namespace, search: Search, recipe: Recipe, device: torch.device, done: set[str]) -> None:
    """Do the jobs that are not done: in this process, in several, or in those of a cluster."""
    listed = nested.jobs_of(search)
    if args.executor == SERIAL:
        do = session(args)
        for job in listed:
            if job.key not in done:
                do(job.key)
        return
    if ray_cluster.is_ray(args.executor):
        _do_on_cluster(args, listed, done, search.trials)
        return
    from osteograde.learning import executors

    where = train_command.places(args.executor, args.device, device, search.trials)
    log.info("trials are done side by side by %d processes", len(where))
    told = argparse.Namespace(**{**vars(args), "device": device.type})
    executors.run(listed, done, where, partial(session, told))


def _do_on_cluster(args: argparse.Namespace, listed: Sequence[SearchJob], done: Collection[str], width: int) -> None:
    """Do the jobs as tasks of a Ray cluster. width: how many may be under way at once."""
    with ray_cluster.connected(args.executor) as ray:
        nodes = ray_cluster.nodes_of(ray)
        share = ray_cluster.share_of(nodes, args.device, width, os.environ.get("OMP_NUM_THREADS", ""))
        log.info("trials are done by Ray on %d machine%s: %s", len(nodes), "s" * (len(nodes) > 1), share)
        told = argparse.Namespace(**{**vars(args), "device": share.device})
        tasks = ray_cluster.RayTasks(ray, share)
        ray_cluster.run_jobs(listed, done, partial(session_of_cluster, told), tasks)


def session_of_cluster(args: argparse.Namespace) -> Callable[[str], None]:
    """The same as ``session``, on a machine that may be another one. UserError where it does not see the folder of the
    search as the first process left it."""
    train_command.check_seen(args.out / nested.SEARCH, args.data)
    return session(args)


def session(args: argparse.Namespace) -> Callable[[str], None]:
    """What does the jobs of the search of a command, in this process or in one beside it: see ``executors``."""
    to_stdout()
    search, recipe = checked(args)
    from osteograde.learning import search as work
    from osteograde.models.device import keep_all_freed_memory, pick

    keep_all_freed_memory()
    studies = work.chosen_studies(recipe, args.data)
    return work.Session(search, recipe, studies, args.data, args.out, pick(args.device)).do


def _importances(search: Search, out: Path, recipe: Recipe) -> dict[int, dict[str, float]]:
    higher = "score" in recipe.task.metric.higher_is_better
    return {k: study.FoldStudy(search, out, k, higher=higher).importances() for k in search.folds}


def _write(found: dict[str, Any], out: Path) -> None:
    """The result as JSON data and as a page."""
    from osteograde.imaging.files import atomic_write
    from osteograde.report import tune_page

    atomic_write(out / RESULT, json.dumps(found, indent=1))
    atomic_write(out / PAGE, tune_page.page(found))

"""``osteograde train`` and train_folds.py: train every fold of a recipe, and score it out-of-fold."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from osteograde import interrupts, ray_cluster
from osteograde.errors import UserError
from osteograde.learning import recipe_file
from osteograde.learning.recipes import check_name
from osteograde.logs import to_stdout

if TYPE_CHECKING:
    import torch

    from osteograde.learning.cross_fit import Run
    from osteograde.learning.executors import Place
    from osteograde.learning.recipe import Recipe
    from osteograde.tasks.spec import Study

log = logging.getLogger("osteograde.learning")

SERIAL = "serial"  # of --executor: one job after the other, in this process
PREPARE = "prepare"  # of --only: read all studies into the folder of the run, and train nothing
ROOM_GIB, ROOM_DEBUG_GIB = 1.0, 0.1  # free disk that a run should find: decoded images, checkpoints and nets


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``cli.add_train_options`` ask for; the exit code is returned."""
    with interrupts.explained(lambda _: how_to_go_on(args)):
        return train_and_report(args)


def how_to_go_on(args: argparse.Namespace) -> str:
    """What to type after a training was interrupted."""
    if not (args.out / "work").is_dir():
        return f"nothing is trained yet; start again with: {args.typed}"
    again = args.typed if args.resume else f"{args.typed} --resume"
    return f"what is done is kept in {args.out}; go on from the last finished epoch with: {again}"


def train_and_report(args: argparse.Namespace) -> int:
    """The same, without a word about how to go on after Ctrl-C."""
    check_recipe(args)
    if not args.data.is_dir():
        raise UserError(f"{args.data}: no such folder; --data is the folder that holds the tables and the images")
    to_stdout(bars=True)
    whole = chosen_recipe(args)
    recipe = whole.shrunk() if args.debug else whole
    if not args.plan:
        check_run(args, recipe)
    check_nets(whole)
    if args.plan:
        print(*plan_lines(args, recipe), sep="\n")
        return 0
    from osteograde.learning import folds

    studies = recipe.task.read(args.data, "train")
    check_folds(args, studies)
    if line := folds.spelling_line(studies):
        log.warning(line)
    # torch and what stands on it: imported once nothing is known to be missing
    from osteograde.learning import calls, outlook, pretrained, train
    from osteograde.learning.reuse import reuse_nets
    from osteograde.models.device import keep_all_freed_memory, pick

    keep_all_freed_memory()
    device = pick(device_here(args))
    if args.debug:
        recipe = pretrained.without_missing_weights(recipe)
    elif not (args.reuse or args.resume or args.only):  # nets that are there already need none
        pretrained.check_fit(recipe, args.folds[0] if args.folds else 0)
    begin_folder(args, recipe)
    for weights in args.reuse:
        copied = reuse_nets(weights, args.out, recipe)
        log.info(f"reused from {weights}: folds.csv and {len(copied)} nets")
    if args.folds_of:
        folds.take(args.folds_of, args.out)
    if args.only:
        return do_only(args, recipe, studies, device)
    resume = args.resume or bool(args.reuse)
    chosen, words = folds.chosen(recipe, args.folds), outlook.device_words(device)
    with calls.timed(args.out, recipe.name, words, chosen, debug=args.debug):
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
            executor=executor_of(args),
        )
    print(train.table(scores))
    print(f"weights: {args.out}; its manifest.json names the nets, and out-of-fold tables lie beside it")
    print(train.headline(recipe.task.metric, scores))
    print(f"next: python -m osteograde report {args.out} --data {args.data}")
    return 0


def begin_folder(args: argparse.Namespace, recipe: Recipe) -> None:
    """Say what the nets start from, and mark the folder of the run where it lies in the folder of data."""
    from osteograde.learning import starting
    from osteograde.tasks.outputs import prepare_outputs

    for line in starting.lines_of(recipe):
        log.info(line)
    prepare_outputs(args.data, {"--out": args.out})


def device_here(args: argparse.Namespace) -> str:
    """The device of this process, as --device has it. The machines of a cluster that have GPUs need not be this one."""
    return "auto" if ray_cluster.is_ray(args.executor) and args.device == "cuda" else args.device


def executor_of(args: argparse.Namespace) -> Callable[[Run], None] | None:
    """What does the jobs of a run beside this process, as --executor says; None where this process does them."""
    if args.executor == SERIAL:
        return None
    return partial(on_cluster if ray_cluster.is_ray(args.executor) else side_by_side, args)


def plan_lines(args: argparse.Namespace, recipe: Recipe) -> Iterator[str]:
    """What --plan prints: the jobs of the run, what is done of them, and how long the rest takes."""
    from osteograde.learning import folds, jobs, outlook

    listed_jobs = jobs.jobs_of(recipe, folds.chosen(recipe, args.folds))
    done = jobs.finished(listed_jobs, args.out) if args.resume or args.reuse else set()
    former = outlook.former_call(recipe, args.out)
    folders = [*args.reuse, args.out, *([former[1]] if former else [])]
    kind, _, count = args.executor.partition(":")
    workers = 1 if kind == SERIAL else int(count) if count.isdigit() else jobs.width(listed_jobs)
    if (args.out / "work").is_dir() and not (args.resume or args.reuse):
        yield f"{args.out} holds an unfinished run; with --resume what is done of it counts"
    yield from jobs.plan_lines(listed_jobs, done, jobs.seconds_of(listed_jobs, folders), workers)


def do_only(args: argparse.Namespace, recipe: Recipe, studies: Sequence[Study], device: torch.device) -> int:
    """What --only asks for: some jobs of the run, in this process; or with PREPARE what all of them read."""
    from osteograde.learning import jobs, train

    prepare, patterns = PREPARE in args.only, [one for one in args.only if one != PREPARE]
    if not prepare and not (args.out / "work" / train.RECIPE).is_file():
        raise UserError(f"--only: nothing is prepared in {args.out}; do --only {PREPARE} first")
    run = train.begin(
        recipe, args.data, args.out, only=args.folds, device=device, resume=True, studies=studies,
        tensorboard=args.tensorboard,
    )  # fmt: skip
    if prepare:
        train.read_all(run)
        print(f"prepared: folds, recipe and decoded images of {len(run.everything)} studies are in {args.out}")
    if patterns:
        done = jobs.do_chosen(train.planned(run), patterns)
        print(f"{len(done)} jobs done: {' '.join(done)}" if done else "nothing to do: all of these jobs are done")
    print("once all jobs are done, the same command with --resume and without --only gathers and scores them")
    return 0


def places(executor: str, asked: str, device: torch.device, width: int) -> list[Place]:
    """The processes of ``--executor local``: one for each GPU, or for each share of the cores, or as many as it names.
    asked: as ``--device`` has it. width: jobs that can be done at once, at most."""
    import torch

    from osteograde.learning import executors

    gpus: list[str] = []
    if device.type == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
        if asked not in ("auto", "cuda"):
            gpus = [gpus[device.index or 0]]
    count = int(executor.partition(":")[2] or 0)
    return executors.places(count, width, usable_cores(), gpus)


def side_by_side(args: argparse.Namespace, run: Run) -> None:
    """Do the jobs of a run in processes of this machine, as --executor says."""
    from osteograde.learning import executors, jobs

    all_jobs = jobs.jobs_of(run.recipe, run.folds)
    if not run.resume:
        jobs.begin_anew(all_jobs, run.out)
    where = places(args.executor, args.device, run.device, jobs.width(all_jobs))
    names = ", ".join(f"{place.name} ({_threads(place.environment)})" for place in where)
    log.info(f"jobs are done side by side by {len(where)} processes: {names}")
    told = argparse.Namespace(**{**vars(args), "device": run.device.type})
    executors.run(all_jobs, jobs.finished(all_jobs, run.out), where, partial(session, told))


def on_cluster(args: argparse.Namespace, run: Run) -> None:
    """Do the jobs of a run as tasks of a Ray cluster, as --executor says."""
    from osteograde.learning import jobs

    all_jobs = jobs.jobs_of(run.recipe, run.folds)
    if not run.resume:
        jobs.begin_anew(all_jobs, run.out)
    with ray_cluster.connected(args.executor) as ray:
        nodes = ray_cluster.nodes_of(ray)
        threads = os.environ.get("OMP_NUM_THREADS", "")
        share = ray_cluster.share_of(nodes, args.device, jobs.width(all_jobs), threads)
        log.info(f"jobs are done by Ray on {len(nodes)} machine{'s' * (len(nodes) > 1)}: {share}")
        told = argparse.Namespace(**{**vars(args), "device": share.device})
        tasks = ray_cluster.RayTasks(ray, share)
        ray_cluster.run_jobs(all_jobs, jobs.finished(all_jobs, run.out), partial(session_of_cluster, told), tasks)


def session_of_cluster(args: argparse.Namespace) -> Callable[[str], None]:
    """The same as ``session``, on a machine that may be another one. UserError where it does not see the folder of the
    run as the first process left it: what it wrote would stay there."""
    from osteograde.learning import train

    check_seen(args.out / "work" / train.RECIPE, args.data)
    return session(args)


def check_seen(prepared: Path, data: Path) -> None:
    """UserError where a machine of a cluster does not see what the first process prepared, or the data."""
    if not (prepared.is_file() and data.is_dir()):
        missing = (data if prepared.is_file() else prepared).absolute()
        raise UserError(
            f"--executor ray: the machine {socket.gethostname()} has no {missing}; put --data and --out into folders "
            "that all machines of the cluster see under the same name"
        )


def _threads(environment: Mapping[str, str]) -> str:
    if "CUDA_VISIBLE_DEVICES" in environment:
        return "alone on it"
    count = environment.get("OMP_NUM_THREADS") or os.environ["OMP_NUM_THREADS"]
    return f"{count} thread{'' if count == '1' else 's'}"


def usable_cores() -> list[int]:
    """The processor cores that this process may use, by number."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def session(args: argparse.Namespace) -> Callable[[str], None]:
    """What does the jobs of the run of a command, in a process beside the one that was started: see ``executors``."""
    to_stdout()
    recipe = chosen_recipe(args)
    if args.debug:
        recipe = recipe.shrunk()
    studies = recipe.task.read(args.data, "train")
    from osteograde.learning import jobs, pretrained, train
    from osteograde.models.device import keep_all_freed_memory, pick

    keep_all_freed_memory()
    if args.debug:
        recipe = pretrained.without_missing_weights(recipe)
    run = train.begin(
        recipe, args.data, args.out, only=args.folds, device=pick(args.device), resume=True, studies=studies,
        tensorboard=args.tensorboard,
    )  # fmt: skip
    return jobs.Session(train.planned(run)).do


def listed(args: argparse.Namespace) -> Sequence[str]:
    """What --list prints: the recipes of the task, or every value of the recipe that is named or changed."""
    if not (args.recipe or args.settings):
        from osteograde.learning.recipes import catalogue

        return list(catalogue.lines(args.task))
    from osteograde.learning import settings

    check_recipe(args)
    return settings.lines(chosen_recipe(args))


def check_recipe(args: argparse.Namespace) -> None:
    """UserError where --recipe names neither a recipe of the task nor a file, before any recipe is imported."""
    if args.recipe and recipe_file.is_file(args.recipe):
        if not Path(args.recipe).is_file():
            raise UserError(f"--recipe {args.recipe}: no such file")
    else:
        check_name(args.recipe or args.task, args.task)


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that --recipe names, one that ships or that of a file, with every --set put in."""
    from osteograde.learning import settings
    from osteograde.learning.recipes import recipe_for
    from osteograde.tasks import TASKS

    name, task = args.recipe or args.task, TASKS[args.task]
    if args.data is not None:  # --list needs none
        task = task.for_data(args.data)
    own = recipe_file.is_file(name)
    recipe = recipe_file.load(Path(name), task) if own else recipe_for(name, task)
    if task.definition and not recipe.task.definition:
        raise UserError(
            f"{name}: RECIPE knows nothing of {args.data}; make it a function of the task: def RECIPE(task)"
        )
    return settings.changed(recipe, args.settings)


def check_run(args: argparse.Namespace, recipe: Recipe) -> None:
    """UserError for what a run can be known to lack before anything is read, and before torch is imported."""
    from osteograde.learning import folds, history, starting

    if args.tensorboard:
        history.check_tensorboard()
    if args.pseudo_labels and (args.only or args.executor != SERIAL):
        raise UserError(
            "--pseudo-labels: the teacher's answers are kept in one table, written by one process; leave --only out, "
            f"and --executor at {SERIAL}"
        )
    chosen = folds.chosen(recipe, args.folds)
    for weights in args.reuse:
        if not (weights / folds.FILE).is_file():
            raise UserError(
                f"--reuse {weights}: no {folds.FILE} in it; name a weights folder that train_folds.py wrote"
            )
    if args.folds_of:
        folds.check_taken(args.folds_of, args.out, recipe, debug=args.debug)
    if args.pseudo_labels:
        check_teacher(args.pseudo_labels, recipe)
        folds.check_taken(args.pseudo_labels, args.out, recipe, option="--pseudo-labels", debug=args.debug)
    check_out(args.out, ROOM_DEBUG_GIB if args.debug else ROOM_GIB)
    if args.resume or args.reuse or args.only:
        return  # nets that are there already need no starting weights
    folds.refuse_finished(args.out)
    if not args.debug:
        starting.check(recipe, chosen)


def check_nets(recipe: Recipe) -> None:
    """UserError where a recipe of a file, or one that ``--set`` changed, has a net that cannot be built. The nets of
    those that ship can be, so these do without torch until the tables are read."""
    if recipe.changes or recipe.file:
        from osteograde.learning import net_checks

        net_checks.check(recipe)


def check_teacher(weights: Path, recipe: Recipe) -> None:
    """UserError where ``--pseudo-labels`` names no weights folder, one of another task than that of the run, or where
    classes are drawn equally often, which is done by labels that sites of a teacher do not have."""
    from osteograde.models.manifest import read_manifest

    if (found := read_manifest(weights).task) != recipe.task.name:
        raise UserError(f"--pseudo-labels {weights}: of task {found!r}, this run is of {recipe.task.name!r}")
    for name, members in recipe.graders.items():
        if any(plan.sampling == "balanced" for plan in members):
            raise UserError(
                f"--pseudo-labels {weights}: grader {name!r} of recipe {recipe.name!r} draws classes equally often, "
                f"in which a teacher's answers have no part; add --set grade.{name}.sampling=natural"
            )


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

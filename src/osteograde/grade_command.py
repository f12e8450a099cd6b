"""``osteograde grade`` and inference.py: grade studies, draw pictures if asked to, say what was written."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from osteograde import grade_shards, interrupts, logs, phantom, ray_cluster
from osteograde.inference import run
from osteograde.inference.submission import (
    TEMPLATE,
    Result,
    RunSummary,
    doubt,
    flags_path,
    summary_lines,
    written_files,
)
from osteograde.models.device import pick
from osteograde.pipeline.ensemble import Voters
from osteograde.report import heatmaps
from osteograde.report.gallery import Gallery
from osteograde.tasks import decision, looks_like
from osteograde.tasks.outputs import prepare_outputs
from osteograde.tasks.places import Paths, as_paths, only_folder
from osteograde.tasks.tables import some
from osteograde.train_command import SERIAL

log = logging.getLogger("osteograde.inference")
PHANTOMS = 3  # studies made on the spot where no data are given
PHANTOM_SEED = 20261121

Drawer = Callable[[Result, Voters], None]


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``cli.add_grade_options`` ask for; the exit code is returned. Weights must be named."""
    with interrupts.explained(
        lambda what: f"{what or f'nothing was written to {args.out}'}; start again with: {args.typed}"
    ):
        return grade(args)


def grade(args: argparse.Namespace) -> int:
    """The same, without a word about how to go on after Ctrl-C."""
    logs.to_stdout(bars=True)
    if args.data is not None:
        prepare_outputs(args.data, {"--overlays": args.overlays, "--explain": args.explain})
    maps = [heatmaps.heatmap_drawer(args.explain, args.explain_method)] if args.explain else []
    with Gallery(args.overlays) if args.overlays else nullcontext() as gallery:
        return _grade(args, [*([gallery] if gallery else []), *maps])


def _grade(args: argparse.Namespace, drawers: Sequence[Drawer]) -> int:
    """Grade what ``--data`` names, or phantoms made on the spot."""

    def grade_at(data: Paths) -> int:
        return infer(
            args.task,
            data,
            args.weights,
            args.out,
            device=args.device,
            limit=args.limit,
            workers=args.workers,
            time_budget_hours=args.time_budget,
            max_unread=args.max_unread,
            points=args.points,
            decide=args.decide or (decision.MOST_PROBABLE if args.predicted else ""),
            executor=args.executor,
            drawers=drawers,
        )

    if args.data is not None:
        return grade_at(args.data)
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        log.info("no --data: making %d phantom studies", PHANTOMS)
        phantom.write(args.task, Path(folder), studies=0, test=PHANTOMS, seed=PHANTOM_SEED)
        return grade_at(Path(folder))


def infer(
    task: str,
    data: Paths,
    weights: Path,
    out: Path,
    *,
    device: str = "auto",
    limit: int = 0,
    workers: int = 0,
    time_budget_hours: float | None = None,
    max_unread: int = 0,
    points: Path | None = None,
    decide: str = "",
    executor: str = SERIAL,
    drawers: Sequence[Drawer] = (),
) -> int:
    """Grade ``data`` with ``weights`` into ``out``; returns the exit code (1: more than max_unread studies unread).

    data: a folder, a single file, or several of them, which share one submission. points: a table of landmarks that are
    given and not looked for. decide: the rule by which the class of every row is named as well, see ``tasks.decision``.
    executor: "serial", or several processes of this machine or a Ray cluster (grade_shards.py), which know no drawers
    and no time budget. drawers: each is called with every finished study and the nets that graded it. UserError or
    OSError: the user's mistake, found before any work; a submission already at ``out`` is untouched. OSError at the
    end: the last submission could not be written; the one before it is in place.
    """
    on_ray = ray_cluster.is_ray(executor)
    here = "auto" if on_ray else device  # machines with GPUs need not be this one
    job = run.prepare(
        task, data, weights, device=here, limit=limit, workers=workers, hours=time_budget_hours, points=points
    )
    if decide:
        decision.check(decide, job.task)
    submission = run.start(job, out, decide=decide)
    job = job if on_ray else replace(job, device=job.device or pick("auto"))
    log.info(start_line(job, data, executor))
    guess = None if job.task.definition else looks_like.guess_of_studies(as_paths(data), job.studies)
    hint = looks_like.hint(job.task.name, guess)
    if hint:
        log.warning("warning: %s", hint)
    with interrupts.explained(
        lambda _: (
            f"{out} is a valid submission: {submission.done} of {len(submission.studies)} studies are graded, "
            "its other rows are class priors"
        )
    ):
        if executor != SERIAL:
            grade_shards.grade(job, submission, executor, device, data)
        else:
            with run.grading(job, submission) as chunks:
                for chunk in chunks:
                    interrupts.check()
                    draw_pictures(chunk, drawers, submission.summary)
    for line in summary_lines(submission.summary, submission.done):
        log.info(line)
    if hint and doubt(submission.summary, submission.done):
        log.info("warning: %s", hint)
    log.info("written: %s", ", ".join(map(str, written_files(job.task, out, predicted=bool(decide)))))
    log.info("next: %s", next_step(data, out, limit))
    return _exit_code(submission.summary, max_unread)


def _exit_code(summary: RunSummary, max_unread: int) -> int:
    """1 where more studies than allowed could not be read, which is logged."""
    if summary.unread <= max_unread:
        return 0
    unread = "%d studies could not be read, --max-unread is %d; their rows are class priors"
    log.info(unread, summary.unread, max_unread)
    return 1


def start_line(job: run.Job, data: Paths, executor: str) -> str:
    """What will be graded, where it comes from, with what and on what."""
    places = [str(path) for path in as_paths(data)]
    nets = sum(len(member.manifest.files) for member in job.weights.members)
    recipes = [str(member.manifest.recipe.get("name", "not stated")) for member in job.weights.members]
    device = executor if job.device is None else str(job.device)
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' * (count > 1)}" if device == "cpu" else ""
    return (
        f"{job.task.name}: {len(job.studies)} studies from {some(places, 3)}, by {job.weights.folder} "
        f"(recipe {' and '.join(recipes)}, {nets} nets, up to {job.weights.folds} for one answer), on {device}{threads}"
    )


def draw_pictures(chunk: run.Chunk, drawers: Sequence[Drawer], summary: RunSummary) -> None:
    """Draw the studies of a chunk. A picture that cannot be drawn or written costs that picture, and is counted."""
    for result in chunk.results:
        for draw in drawers:
            try:
                draw(result, chunk.voters)
            except (OSError, torch.OutOfMemoryError, torch.AcceleratorError):
                summary.faults["picture_not_written"] += 1


def next_step(data: Paths, out: Path, limit: int) -> str:
    """What to do with a submission: check it against the template of the data, or look at the flagged rows."""
    folder = only_folder(data)
    if folder is not None and (folder / TEMPLATE).is_file() and not limit:
        return f"python -m osteograde validate --submission {out} --template {folder / TEMPLATE}"
    return f"look at the rows in {flags_path(out)}; --overlays DIR draws what was found and graded in each study"

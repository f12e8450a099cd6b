"""A run over a folder as shards of studies that are graded by processes of this machine or by the workers of a Ray
cluster, and one submission of all.

Shards are lists of neighbouring studies. Each is graded by the code of a run in one process, and its rows, flags,
landmarks and findings come back as they are; nothing but the images and the weights has to be in a shared folder. On a
CPU an answer depends neither on what is graded beside it nor on threads, so the files have the bytes of one process.

A shard whose worker is lost is graded once more. If that worker is lost too, its studies are graded one by one, so that
a study whose files kill the process that reads them costs no other. Such a study is not tried in the first process,
which would die of it and lose the rest: it keeps its priors, is flagged, counts as unread and is named in a warning.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from osteograde import logs, ray_cluster, train_command
from osteograde.errors import UserError
from osteograde.inference import run
from osteograde.inference.multi_gpu import DIED, merged_summary
from osteograde.inference.submission import RunningSubmission, RunSummary, flags_of_unreached, with_other_rows
from osteograde.learning.executors import LocalTasks, Lost
from osteograde.models.device import keep_freed_memory, pick
from osteograde.pipeline import ensemble
from osteograde.ray_cluster import Tasks
from osteograde.tasks import tables
from osteograde.tasks.places import Paths, as_paths
from osteograde.tasks.spec import Study
from osteograde.tasks.tables import some

log = logging.getLogger("osteograde.inference")
LARGEST, SMALLEST = 64, 4  # studies of a shard; a small one does not pay for loading the nets
CORES = 4  # of a worker without a GPU, at most; each has nets of its own in memory
EACH = 4  # shards for each worker, so that all of them end at about the same time


@dataclass(frozen=True, eq=False)
class Shard:
    """Studies that are graded in one task. tries: how often workers were lost in it, or in the one that it is of."""

    studies: Sequence[Study]
    tries: int = 0

    @property
    def name(self) -> str:
        """What Ray calls the task, in its logs and in the list of processes."""
        return f"{self.studies[0].id}+{len(self.studies) - 1}"


@dataclass(frozen=True, eq=False)
class Part:
    """What a shard comes to. rows: row id -> (classes,). settled: see ``RunningSubmission``."""

    rows: Mapping[str, np.ndarray]
    settled: Mapping[str, tuple[str, ...]]
    summary: RunSummary


def cut(studies: Sequence[Study], workers: int) -> list[Shard]:
    """All studies in shards of neighbours, enough of them to keep so many workers busy until the end."""
    count = len(studies)
    size = min(LARGEST, -(-count // workers), max(SMALLEST, -(-count // (EACH * workers))))
    return [Shard(studies[start : start + size]) for start in range(0, count, max(1, size))]


def after_loss(shard: Shard) -> list[Shard]:
    """What is tried after the worker of a shard was lost: the same once more, then each study by itself, then none."""
    if not shard.tries:
        return [replace(shard, tries=1)]
    return [Shard((study,), 1) for study in shard.studies] if len(shard.studies) > 1 else []


def grade(job: run.Job, submission: RunningSubmission, executor: str, device: str, data: Paths) -> None:
    """Grade the studies of a job into its submission, which is written as shards are finished: in several processes of
    this machine, or on a Ray cluster.

    executor, device: as the options have them. data: the places that the job was prepared from. UserError where a
    machine does not see the data or the weights; OSError: the last writing failed, the file before it is in place.
    """
    if ray_cluster.is_ray(executor):
        _grade_on_cluster(job, submission, executor, device, data)
    else:
        _grade_side_by_side(job, submission, executor, device, data)


def _grade_side_by_side(job: run.Job, submission: RunningSubmission, executor: str, device: str, data: Paths) -> None:
    """The same in processes of this machine: one for each GPU, or for every few cores, or as many as are named."""
    chosen = job.device or pick("auto")
    cores = len(train_command.usable_cores())
    where = train_command.places(executor, device, chosen, min(-(-cores // CORES), len(job.studies)))
    log.info("graded by %d process%s of this machine", len(where), "es" * (len(where) > 1))
    job = replace(job, workers=job.workers or max(1, cores // len(where)))
    with LocalTasks(where) as tasks:
        grade_in(job, submission, tasks, len(where), device=chosen.type, data=data)


def _grade_on_cluster(job: run.Job, submission: RunningSubmission, executor: str, device: str, data: Paths) -> None:
    """The same by tasks of a Ray cluster.

    UserError where a machine does not see the data or the weights.
    """
    with ray_cluster.connected(executor) as ray:
        nodes = ray_cluster.nodes_of(ray)
        threads = os.environ.get("OMP_NUM_THREADS", "")
        few = -(-sum(int(node.get("CPU", 0)) for node in nodes) // CORES)
        share = ray_cluster.share_of(nodes, device, min(few, len(job.studies)), threads)
        log.info("graded by Ray on %d machine%s: %s", len(nodes), "s" * (len(nodes) > 1), share)
        job = replace(job, workers=job.workers or max(1, share.cores))
        grade_in(job, submission, ray_cluster.RayTasks(ray, share), share.slots, device=share.device, data=data)


def grade_in(
    job: run.Job, submission: RunningSubmission, tasks: Tasks, workers: int, *, device: str, data: Paths
) -> None:
    """The same with tasks of which so many workers do one at a time."""
    seen = tuple(str(path.absolute()) for path in as_paths(data))
    merged = Merged(submission)
    waiting: dict[str, Shard] = {}

    def hand_out(shards: Sequence[Shard]) -> None:
        for shard in shards:
            waiting[shard.name] = shard
            tasks.submit(shard.name, partial(graded_shard, job_of_shard(job, shard), device, seen))

    with stop_signal() as stopped, logs.progress("grading", len(job.studies), "studies", log) as shown:
        hand_out(cut(job.studies, workers))
        while len(tasks) and not stopped.is_set():
            for name, answer in tasks.finished():
                shard = waiting.pop(name)
                if isinstance(answer, Lost):
                    hand_out(_tried_again(shard, answer))
                else:
                    merged.take(shard, answer)
                    shown.advance(len(shard.studies))
    if len(tasks):
        log.info("told to stop: what is done is written, all other rows are class priors")
    why = run.STOPPED if len(tasks) else DIED
    merged.leave_on_prior(why)
    submission.write()


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Set by SIGTERM until the block is left. An exception, as in one process, would be raised inside of Ray."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _tried_again(shard: Shard, lost: Lost) -> list[Shard]:
    """What is tried after a loss, which is logged."""
    again = after_loss(shard)
    names = some([study.id for study in shard.studies])
    if again:
        how = "once more" if len(again) == 1 else "one by one"
        log.warning("a worker was lost (%s); its studies are graded %s: %s", lost.why, how, names)
    else:
        log.warning("warning: study %s: its workers were lost again and again (%s)", names, lost.why)
    return again


class Merged:
    """Parts that become one submission, in whatever order they come; what was taken is written at once."""

    def __init__(self, submission: RunningSubmission) -> None:
        self.submission, self._taken, self._summaries = submission, set[str](), list[RunSummary]()
        self._rows = {study.id: tuple(self._planned(study)) for study in submission.studies}

    def _planned(self, study: Study) -> list[str]:
        return self.submission.task.rows(study.id, study.targets)

    def take(self, shard: Shard, part: Part) -> None:
        """Put the rows of a shard in the place of its priors, as ``RunningSubmission.add`` does, and write."""
        submission = self.submission
        for study in shard.studies:
            planned = self._planned(study)
            rows = list(part.settled.get(study.id, planned))
            if rows != planned:
                fixed = [row for row in planned if row in submission.template and row not in rows]
                submission.settled[study.id] = tuple(rows)
                submission.rows = dict(with_other_rows(submission.rows, planned, [*rows, *fixed], np.empty(0)))
                self._rows[study.id] = (*planned, *rows)
            submission.rows |= {row: part.rows[row] for row in rows}
            self._taken.add(study.id)
        submission.done = len(self._taken)
        self._add(part.summary)
        submission.try_to_write()

    def leave_on_prior(self, why: str) -> None:
        """Flag the studies that were not graded. Those whose workers were lost count as unread as well."""
        task, left = self.submission.task, [one for one in self.submission.studies if one.id not in self._taken]
        if not left:
            return
        lost = RunSummary(faults=Counter({why: len(left)}))
        lost.flags = [flag for study in left for flag in flags_of_unreached(task, study, why)]
        if why == DIED:
            lost.unread, lost.on_prior = len(left), sum(len(self._planned(study)) for study in left)
            names = some([study.id for study in left])
            log.warning("warning: %d studies are not graded, their rows are class priors: %s", len(left), names)
        self._add(lost)

    def _add(self, summary: RunSummary) -> None:
        self._summaries.append(summary)
        written, order = self.submission.summary, [study.id for study in self.submission.studies]
        merged = merged_summary(self._summaries, order, self._rows)
        merged.studies = len(order)
        merged.faults["not_written_yet"] = written.faults["not_written_yet"]
        merged.faults = +merged.faults
        self.submission.summary = merged


def job_of_shard(job: run.Job, shard: Shard) -> run.Job:
    """The job of a shard, with the rows that a template has of its studies."""
    ids = {study.id for study in shard.studies}
    template = [row for row in job.template if tables.split_id(job.task, row)[0] in ids]
    return replace(job, studies=shard.studies, template=template, device=None)


def graded_shard(job: run.Job, device: str, seen: Sequence[str]) -> Part:
    """Grade the studies of a shard, in a worker. seen: paths that its machine must have. UserError where it has not."""
    logs.to_stdout()
    check_seen(job, seen)
    keep_freed_memory()
    submission = RunningSubmission(job.task, job.weights.prior, job.studies, Path(), job.template)
    for _ in run.graded(replace(job, device=pick(device)), submission):
        pass
    return Part(submission.rows, submission.settled, submission.summary)


def check_seen(job: run.Job, places: Sequence[str]) -> None:
    """UserError where this machine does not have the data, or other weights than the first process read."""
    missing = [str(path) for path in (*map(Path, places), job.weights.folder) if not path.exists()]
    machine = f"--executor ray: the machine {socket.gethostname()}"
    if missing:
        raise UserError(f"{machine} has no {some(missing)}; put it where all machines of the cluster see it")
    here = ensemble.verify(job.weights.folder)
    if [one.manifest for one in here.members] != [one.manifest for one in job.weights.members]:
        raise UserError(f"{machine} has other weights in {job.weights.folder} than the one that the run began on")

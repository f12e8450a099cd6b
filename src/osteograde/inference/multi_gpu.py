"""Several devices, one process each: lists of studies are dealt out, and their parts become one submission.

A process that dies (no memory, a broken driver, a file that kills a library) loses nothing that it had finished. What
is left of its list goes to another device, the studies it may have died on last and one at a time; a study that two
processes died on keeps its priors. Rows are merged as text, so the bytes are those of one process.

This module is also the program of such a process: it grades the studies of its order and reports after every chunk.

    python -m osteograde.inference.multi_gpu FOLDER

reads FOLDER/job.json and leaves FOLDER/part.csv and FOLDER/progress.json, each replaced in one step.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from osteograde import logs
from osteograde.imaging import files
from osteograde.inference import run
from osteograde.inference.submission import RunningSubmission, RunSummary, with_other_rows, write_beside
from osteograde.tasks.places import Paths, as_paths

log = logging.getLogger("osteograde.inference")
POLL_S = 0.5
MAX_DEATHS = 2  # of processes on one study
MAX_PROCESSES = 16  # started in all: where they die for a reason that no study has, it ends here
LAST_LINES = 12
DIED = "process_died"
PACKAGE = Path(run.__file__).resolve().parents[2]


@dataclass(eq=False)
class Worker:
    """A process and its order; ``seen``: number of its studies whose rows were taken over already."""

    order: WorkOrder
    folder: Path
    process: subprocess.Popen[bytes]
    seen: int = 0


@dataclass(eq=False)
class Schedule:
    """Who works on what. ``orphans``: orders that no process works on, to be taken by a device that is free."""

    free: list[str]
    orphans: list[WorkOrder]
    running: list[Worker] = field(default_factory=list)
    ended: list[Progress] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)  # study -> processes that died on it
    lost: list[str] = field(default_factory=list)  # studies that stay on their priors
    retired: list[str] = field(default_factory=list)  # devices that a process died on, the last one last


def deal(ids: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Lists of nearly equal length, neighbours apart: studies of one scanner lie together and take equally long.

    >>> deal(["a", "b", "c"], 2)
    [('a', 'c'), ('b',)]
    """
    return [tuple(ids[k::count]) for k in range(min(count, len(ids)))]


def remaining_order(order: WorkOrder, done: Sequence[str], deaths: Mapping[str, int]) -> tuple[WorkOrder, list[str]]:
    """What is left of a dead process's order, and the studies that processes died on once too often.

    The studies it may have died on (its last chunk) come last, one at a time.
    """
    left = [name for name in order.ids if name not in set(done)]
    suspects = left[: order.chunk]
    lost = [name for name in suspects if deaths[name] >= MAX_DEATHS]
    again = [*left[order.chunk :], *(name for name in suspects if name not in lost)]
    return replace(order, ids=tuple(again), chunk=1), lost


def infer_on_devices(
    job: run.Job, data: Paths, out: Path, devices: Sequence[str], *, poll_s: float = POLL_S
) -> RunSummary:
    """Grade the studies of a job on all ``devices`` into ``out``; what happened is returned.

    data: the places that the job was prepared from. The job must have an end. OSError: ``out`` cannot be written.
    """
    assert job.ends is not None
    submission = run.start(job, out)
    table = MergedRows(out, {study.id: job.task.rows(study.id, study.targets) for study in job.studies}, job.template)
    threads = max(1, min(8, (os.cpu_count() or 1) // len(devices)))
    ids = [study.id for study in job.studies]
    orders = [
        WorkOrder(job.task.name, tuple(map(str, as_paths(data))), str(job.weights.folder), device, own, 0.0, threads)
        for device, own in zip(devices, deal(ids, len(devices)), strict=False)
    ]
    with tempfile.TemporaryDirectory(prefix="osteograde-") as home:
        schedule = Schedule(free=list(devices), orphans=orders)
        try:
            _supervise(schedule, table, Path(home), job.ends, poll_s)
        finally:
            for worker in schedule.running:
                worker.process.kill()
                worker.process.wait()
    summary = merged_summary([part.summary for part in schedule.ended], ids, table.rows)
    summary.studies = len(ids)
    summary.faults[DIED] += len(schedule.lost)
    unreached = len(ids) - len(table.done) - len(schedule.lost)
    summary.faults[run.DEADLINE] += max(0, unreached - summary.faults[run.DEADLINE])
    summary.faults = +summary.faults
    summary.on_prior += sum(len(table.rows[study]) for study in ids if study not in table.done)
    write_beside(submission.task, summary, out)
    return summary


def _supervise(schedule: Schedule, table: MergedRows, home: Path, deadline: float, poll_s: float) -> None:
    """Keep every free device busy and merge what the workers finish, until all is done or the deadline has passed."""
    begun, count = time.monotonic(), 0
    while schedule.orphans or schedule.running:
        if count >= MAX_PROCESSES and schedule.orphans:
            log.info("%d processes were started: what is left of the lists keeps its priors", count)
            schedule.lost += [name for order in schedule.orphans for name in order.ids]
            schedule.orphans.clear()
        if not schedule.free and not schedule.running and schedule.retired:
            schedule.free.append(schedule.retired.pop(0))  # none is left: try the one that died longest ago
        while schedule.orphans and schedule.free and count < MAX_PROCESSES and time.monotonic() < deadline:
            hours = (deadline - time.monotonic()) / 3600
            order = replace(schedule.orphans.pop(0), device=schedule.free.pop(0), hours=hours)
            schedule.running.append(start_worker(order, home / str(count)))
            count += 1
        time.sleep(poll_s)
        for worker in list(schedule.running):
            code = worker.process.poll()  # before the parts are read: what it wrote last is then there
            if table.take(worker):
                seconds, device = time.monotonic() - begun, worker.order.device
                extra = None if len(table.done) == len(table.rows) else logs.PROGRESS  # a line a minute
                log.info("%d/%d studies, %.0f s (%s)", len(table.done), len(table.rows), seconds, device, extra=extra)
            if code is not None:
                _ended(schedule, worker, code)
        if time.monotonic() > deadline + 60:
            log.info("out of time: what is not graded keeps its priors")
            schedule.ended += [read_progress(worker.folder) for worker in schedule.running]
            return
        if time.monotonic() > deadline and not schedule.running:
            return


def _ended(schedule: Schedule, worker: Worker, code: int) -> None:
    """Take note of a worker that has ended; what is left of a dead one's list is given to another device."""
    schedule.running.remove(worker)
    progress = read_progress(worker.folder)
    schedule.ended.append(progress)
    if code == 0:
        schedule.free.append(worker.order.device)
        return
    schedule.retired.append(worker.order.device)
    left = [name for name in worker.order.ids if name not in set(progress.done)]
    schedule.deaths.update(left[: worker.order.chunk])
    order, lost = remaining_order(worker.order, progress.done, schedule.deaths)
    schedule.lost += lost
    log.info(
        "the process on %s died with code %d at study %s; its last log lines:",
        worker.order.device,
        code,
        left[0] if left else "-",
    )
    for line in (worker.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
        log.info("  %s", line)
    if order.ids:
        log.info("%d studies of its list go to another device", len(order.ids))
        schedule.orphans.append(order)


def start_worker(order: WorkOrder, folder: Path) -> Worker:
    """Start a process on an order. A GPU is the only one that its process sees."""
    folder.mkdir(parents=True)
    kind, _, number = order.device.partition(":")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH", ""))))}
    if kind == "cuda":
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        env["CUDA_VISIBLE_DEVICES"] = seen[int(number)] if seen else number
    write_order(folder, replace(order, device="cuda:0" if kind == "cuda" else "cpu"))
    command = [sys.executable, "-m", "osteograde.inference.multi_gpu", str(folder)]
    with (folder / "log.txt").open("wb") as log_file:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log_file, stderr=subprocess.STDOUT
        )
    return Worker(order, folder, process)


class MergedRows:
    """The lines of the submission, as they were written with priors, and then as the parts have them."""

    def __init__(self, out: Path, rows: Mapping[str, Sequence[str]], template: Sequence[str] = ()) -> None:
        self.out, self.rows, self.done, self.template = out, rows, dict[str, None](), frozenset(template)
        self.head, *lines = out.read_text(encoding="utf-8").splitlines()
        self.lines = {line.partition(",")[0]: line for line in lines}

    def take(self, worker: Worker) -> bool:
        """Take over the rows of studies that a worker has finished since; whether there were any."""
        progress = read_progress(worker.folder)
        new = progress.done[worker.seen :]
        if not new:
            return False
        own = (worker.folder / PART).read_text(encoding="utf-8").splitlines()[1:]
        part = {line.partition(",")[0]: line for line in own}
        for study in new:
            if rows := progress.settled.get(study):
                fixed = [row for row in self.rows[study] if row in self.template and row not in rows]
                self.lines = with_other_rows(self.lines, self.rows[study], [*rows, *fixed], "")
                self.rows = {**self.rows, study: rows}
            self.lines |= {row: part[row] for row in self.rows[study]}
        self.done |= dict.fromkeys(new)
        worker.seen += len(new)
        files.atomic_write(self.out, "\n".join((self.head, *self.lines.values())) + "\n")
        return True


def merged_summary(parts: Sequence[RunSummary], order: Sequence[str], rows: Mapping[str, Sequence[str]]) -> RunSummary:
    """All summaries as one. order: ids of the studies, which the tables beside the submission follow. Seconds add
    up."""
    whole, place = RunSummary(), {name: i for i, name in enumerate(order)}
    place_of_row = {row: place[study] for study, own in rows.items() for row in own}
    for part in parts:
        whole.unread += part.unread
        whole.on_prior += part.on_prior
        whole.rows += part.rows
        whole.faults += part.faults
        whole.flags += part.flags
        whole.findings += part.findings
        whole.points += part.points
        for name, seconds in part.seconds.items():
            whole.seconds[name] += seconds
    whole.flags.sort(key=lambda flag: place_of_row[flag[0]])
    whole.findings.sort(key=lambda finding: place_of_row[finding[0]])
    whole.points.sort(key=lambda row: place[row[0]])
    return whole


ORDER, PART, PROGRESS = "job.json", "part.csv", "progress.json"


@dataclass(frozen=True)
class WorkOrder:
    """What one process does. ``data``: the places of the studies; ``hours``: what it may take; ``chunk``: studies that
    go through the nets together."""

    task: str
    data: tuple[str, ...]
    weights: str
    device: str
    ids: tuple[str, ...]
    hours: float
    workers: int
    chunk: int = run.CHUNK


@dataclass(frozen=True)
class Progress:
    """Studies that are finished, and what happened up to them. settled: see ``RunningSubmission``."""

    done: tuple[str, ...]
    summary: RunSummary
    settled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def write_order(folder: Path, order: WorkOrder) -> None:
    (folder / ORDER).write_text(json.dumps(asdict(order)), encoding="utf-8")


def read_progress(folder: Path) -> Progress:
    """How far a worker came; nothing is done where it has not reported yet."""
    path = folder / PROGRESS
    if not path.is_file():
        return Progress((), RunSummary())
    facts = json.loads(path.read_text(encoding="utf-8"))
    summary = RunSummary(facts["studies"], facts["unread"], facts["on_prior"])
    summary.rows = facts.get("rows", 0)
    summary.faults = Counter(facts["faults"])
    summary.seconds = defaultdict(float, facts["seconds"])
    summary.flags = [(row, reason, count) for row, reason, count in facts["flags"]]
    summary.findings = [(row, tuple(values)) for row, values in facts["findings"]]
    summary.points = [tuple(cells) for cells in facts.get("points", ())]
    settled = {study: tuple(rows) for study, rows in facts.get("settled", {}).items()}
    return Progress(tuple(facts["done"]), summary, settled)


def main(folder: Path) -> int:
    """Carry out the order in ``folder``. Errors are not caught: what was written stays, the caller sees the code."""
    facts: dict[str, Any] = json.loads((folder / ORDER).read_text(encoding="utf-8"))
    order = WorkOrder(**{**facts, "data": tuple(facts["data"]), "ids": tuple(facts["ids"])})
    job = run.prepare(
        order.task,
        order.data,
        Path(order.weights),
        device=order.device,
        workers=order.workers,
        hours=order.hours,
    )
    by_id = {study.id: study for study in job.studies}
    job = replace(job, studies=[by_id[name] for name in order.ids], template=(), chunk=order.chunk)
    submission = run.start(job, folder / PART)
    with run.grading(job, submission) as chunks:
        for _ in chunks:
            if len(submission.saved) == submission.done:  # a study is reported as finished once its rows are on disk
                write_progress(folder, submission)
    write_progress(folder, submission)
    return 0


def write_progress(folder: Path, submission: RunningSubmission) -> None:
    """Report which studies are finished, and what happened up to them."""
    own = {"done": submission.saved, "settled": submission.settled}
    facts = {**own, **vars(submission.summary)}  # counters are objects to JSON
    files.atomic_write(folder / PROGRESS, json.dumps(facts))


if __name__ == "__main__":
    logs.to_stdout(every_s=0.0)  # the process that started this one keeps its stdout as log.txt
    sys.exit(main(Path(sys.argv[1])))

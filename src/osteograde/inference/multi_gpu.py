"""Several devices, one process each: lists of studies are dealt out, and their parts become one submission.

A process that dies (no memory, a broken driver, a file that kills a library) loses nothing that it had finished. What
is left of its list goes to another device, the studies it died on last and one at a time; a study that two processes
died on keeps its priors. Rows are merged as text, so the bytes are those of one process.

One process of several: grades the studies of its list on its device, and tells after every chunk how far it came.

    python -m osteograde.inference.multi_gpu FOLDER

reads FOLDER/job.json and leaves FOLDER/part.csv and FOLDER/progress.json, each replaced in one step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from osteograde.imaging import files
from osteograde.inference import run, submission
from osteograde.inference.submission import Sheet, Tally, write_beside
from osteograde.models.device import pick

POLL_S = 0.5
MAX_DEATHS = 2  # of processes on one study
MAX_PROCESSES = 16  # started in all: where they die for a reason that no study has, it ends here
LAST_LINES = 12
DIED, DEADLINE = "process_died", "deadline"
PACKAGE = Path(run.__file__).resolve().parents[2]


@dataclass(eq=False)
class Running:
    """A process and its job; ``seen``: studies whose rows were taken over already."""

    job: Job
    folder: Path
    process: subprocess.Popen[bytes]
    seen: int = 0


@dataclass(eq=False)
class Schedule:
    """Who works on what. ``orphans``: jobs whose process died, to be taken by a device that is free."""

    free: list[str]
    orphans: list[Job]
    running: list[Running] = field(default_factory=list)
    ended: list[Progress] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)  # studies that stay on their priors
    retired: list[str] = field(default_factory=list)  # devices that a process died on, the last one last


def deal(ids: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Lists of nearly equal length, neighbours apart: studies of one scanner lie together and take equally long.

    >>> deal(["a", "b", "c"], 2)
    [('a', 'c'), ('b',)]
    """
    return [tuple(ids[k::count]) for k in range(min(count, len(ids)))]


def remaining_job(job: Job, done: Sequence[str], deaths: Mapping[str, int]) -> tuple[Job, list[str]]:
    """What is left of a dead process's job, and those it died on once too often. Suspects come last, one at a time."""
    left = [name for name in job.ids if name not in set(done)]
    suspects = left[: job.chunk]
    lost = [name for name in suspects if deaths[name] >= MAX_DEATHS]
    again = [*left[job.chunk :], *(name for name in suspects if name not in lost)]
    return replace(job, ids=tuple(again), chunk=1), lost


def infer_on_devices(
    task: str,
    data: Path,
    weights: Path,
    out: Path,
    devices: Sequence[str],
    *,
    hours: float,
    say: Callable[[str], None],
    poll_s: float = POLL_S,
) -> Tally:
    """Grade ``data`` on all ``devices`` into ``out``, as ``run.infer`` does on one; what happened is returned.

    ValueError or OSError: the user's mistake, told before any work.
    """
    begun = time.monotonic()
    known, manifest, studies = run.prepare(task, data, weights)
    Sheet(known, manifest.prior, studies, out, submission.template_ids(data) or (), Tally()).write()
    table = MergedRows(out, {study.id: known.rows(study.id, study.targets) for study in studies})
    threads = max(1, min(8, (os.cpu_count() or 1) // len(devices)))
    jobs = [
        Job(task, str(data), str(weights), device, ids, hours, threads)
        for device, ids in zip(devices, deal([study.id for study in studies], len(devices)), strict=False)
    ]
    with tempfile.TemporaryDirectory(prefix="osteograde-") as home:
        plan = Schedule(free=list(devices), orphans=jobs)
        try:
            _supervise(plan, table, Path(home), begun + hours * 3600, poll_s, say)
        finally:
            for one in plan.running:
                one.process.kill()
                one.process.wait()
    tally = merged_tally([part.tally for part in plan.ended], [study.id for study in studies], table.rows)
    tally.studies = len(studies)
    tally.faults[DIED] += len(plan.lost)
    tally.faults[DEADLINE] += max(0, len(studies) - len(table.done) - len(plan.lost) - tally.faults[DEADLINE])
    tally.faults = +tally.faults
    tally.on_prior += sum(len(table.rows[study.id]) for study in studies if study.id not in table.done)
    write_beside(known, tally, out)
    return tally


def _supervise(
    plan: Schedule, table: MergedRows, home: Path, deadline: float, poll_s: float, say: Callable[[str], None]
) -> None:
    begun, count = time.monotonic(), 0
    while plan.orphans or plan.running:
        if count >= MAX_PROCESSES and plan.orphans:
            say(f"{count} processes were started: what is left of the lists keeps its priors")
            plan.lost += [name for job in plan.orphans for name in job.ids]
            plan.orphans.clear()
        if not plan.free and not plan.running and plan.retired:
            plan.free.append(plan.retired.pop(0))  # none is left: try the one that died longest ago
        while plan.orphans and plan.free and count < MAX_PROCESSES and time.monotonic() < deadline:
            job = replace(plan.orphans.pop(0), device=plan.free.pop(0), hours=(deadline - time.monotonic()) / 3600)
            plan.running.append(start_worker(job, home / str(count)))
            count += 1
        time.sleep(poll_s)
        for one in list(plan.running):
            code = one.process.poll()  # before the parts are read: what it wrote last is then there
            if table.take(one):
                say(f"{len(table.done)}/{len(table.rows)} studies, {time.monotonic() - begun:.0f} s ({one.job.device})")
            if code is not None:
                _ended(plan, one, code, say)
        if time.monotonic() > deadline + 60:
            say("out of time: what is not graded keeps its priors")
            plan.ended += [read_progress(one.folder) for one in plan.running]
            return
        if time.monotonic() > deadline and not plan.running:
            return


def _ended(plan: Schedule, one: Running, code: int, say: Callable[[str], None]) -> None:
    plan.running.remove(one)
    came = read_progress(one.folder)
    plan.ended.append(came)
    if code == 0:
        plan.free.append(one.job.device)
        return
    plan.retired.append(one.job.device)
    left = [name for name in one.job.ids if name not in set(came.done)]
    plan.deaths.update(left[: one.job.chunk])
    job, lost = remaining_job(one.job, came.done, plan.deaths)
    plan.lost += lost
    say(f"the process on {one.job.device} died with code {code} at study {left[0] if left else '-'}; it said last:")
    for line in (one.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
        say(f"  {line}")
    if job.ids:
        say(f"{len(job.ids)} studies of its list go to another device")
        plan.orphans.append(job)


def start_worker(job: Job, folder: Path) -> Running:
    """Start a process on a job. A GPU is the only one that its process sees."""
    folder.mkdir(parents=True)
    kind, _, number = job.device.partition(":")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH", ""))))}
    if kind == "cuda":
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        env["CUDA_VISIBLE_DEVICES"] = seen[int(number)] if seen else number
    write_job(folder, replace(job, device="cuda:0" if kind == "cuda" else "cpu"))
    command = [sys.executable, "-m", "osteograde.inference.multi_gpu", str(folder)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    return Running(job, folder, process)


class MergedRows:
    """The lines of the submission, as they were written with priors, and then as the parts have them."""

    def __init__(self, out: Path, rows: Mapping[str, Sequence[str]]) -> None:
        self.out, self.rows, self.done = out, rows, dict[str, None]()
        self.head, *lines = out.read_text(encoding="utf-8").splitlines()
        self.lines = {line.partition(",")[0]: line for line in lines}

    def take(self, one: Running) -> bool:
        """Take over the rows of studies that a process has finished since; whether there were any."""
        new = read_progress(one.folder).done[one.seen :]
        if not new:
            return False
        own = (one.folder / PART).read_text(encoding="utf-8").splitlines()[1:]
        part = {line.partition(",")[0]: line for line in own}
        for study in new:
            self.lines |= {row: part[row] for row in self.rows[study]}
        self.done |= dict.fromkeys(new)
        one.seen += len(new)
        files.atomic_write(self.out, "\n".join((self.head, *self.lines.values())) + "\n")
        return True


def merged_tally(parts: Sequence[Tally], order: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Tally:
    """All tallies as one, flags and findings in the order of the studies. Seconds add up over processes."""
    every, place = Tally(), {name: i for i, name in enumerate(order)}
    study_of = {row: place[study] for study, own in rows.items() for row in own}
    for part in parts:
        every.unread += part.unread
        every.on_prior += part.on_prior
        every.faults += part.faults
        every.flags += part.flags
        every.findings += part.findings
        for name, seconds in part.seconds.items():
            every.seconds[name] += seconds
    every.flags.sort(key=lambda flag: study_of[flag[0]])
    every.findings.sort(key=lambda finding: study_of[finding[0]])
    return every


JOB, PART, PROGRESS = "job.json", "part.csv", "progress.json"


@dataclass(frozen=True)
class Job:
    """What one process does. ``hours``: what it may take; ``chunk``: studies that go through the nets together."""

    task: str
    data: str
    weights: str
    device: str
    ids: tuple[str, ...]
    hours: float
    workers: int
    chunk: int = run.CHUNK


@dataclass(frozen=True)
class Progress:
    """Studies that are finished, and what happened up to them."""

    done: tuple[str, ...]
    tally: Tally


def write_job(folder: Path, job: Job) -> None:
    (folder / JOB).write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_progress(folder: Path) -> Progress:
    """How far a process came; nothing done where it has not said anything."""
    path = folder / PROGRESS
    if not path.is_file():
        return Progress((), Tally())
    facts = json.loads(path.read_text(encoding="utf-8"))
    tally = Tally(facts["studies"], facts["unread"], facts["on_prior"])
    tally.faults = Counter(facts["faults"])
    tally.seconds = defaultdict(float, facts["seconds"])
    tally.flags = [(row, reason, count) for row, reason, count in facts["flags"]]
    tally.findings = [(row, tuple(values)) for row, values in facts["findings"]]
    return Progress(tuple(facts["done"]), tally)


def main(folder: Path) -> int:
    """Do the job in ``folder``. Errors are not caught: what was written stays, and whoever started it sees the code."""
    facts: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
    job = Job(**{**facts, "ids": tuple(facts["ids"])})
    task, manifest, studies = run.prepare(job.task, Path(job.data), Path(job.weights))
    by_id = {study.id: study for study in studies}
    mine = [by_id[name] for name in job.ids]
    tally = Tally(studies=len(mine))
    sheet = Sheet(task, manifest.prior, mine, folder / PART, (), tally)
    sheet.write()
    done: list[str] = []

    def after(ids: Sequence[str]) -> None:
        done.extend(ids)
        _write_progress(folder, done, tally)

    run.fill(
        Path(job.weights), manifest, sheet, device=pick(job.device), seconds=job.hours * 3600, workers=job.workers,
        chunk=job.chunk, after=after, say=_say,
    )  # fmt: skip
    _write_progress(folder, done, tally)
    return 0


def _write_progress(folder: Path, done: Sequence[str], tally: Tally) -> None:
    part = folder / (PROGRESS + ".part")
    facts = {"done": list(done), **vars(tally)}  # counters are dicts to JSON
    part.write_text(json.dumps(facts), encoding="utf-8")
    part.replace(folder / PROGRESS)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""One process of several: grades the studies of its list on its device, and tells after every chunk how far it came.

    python -m osteograde.inference.processes.worker FOLDER

reads FOLDER/job.json and leaves FOLDER/part.csv and FOLDER/progress.json, each replaced in one step.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osteograde.inference import run
from osteograde.inference.answers.sheet import Sheet, Tally
from osteograde.models.device import pick

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


def give(folder: Path, job: Job) -> None:
    (folder / JOB).write_text(json.dumps(asdict(job)), encoding="utf-8")


def progress(folder: Path) -> Progress:
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
    sheet = Sheet(task, manifest["prior"], mine, folder / PART, (), tally)
    sheet.write()
    done: list[str] = []

    def after(ids: Sequence[str]) -> None:
        done.extend(ids)
        _tell(folder, done, tally)

    run.fill(
        Path(job.weights), manifest, sheet, device=pick(job.device), seconds=job.hours * 3600, workers=job.workers,
        chunk=job.chunk, after=after, say=_say,
    )  # fmt: skip
    _tell(folder, done, tally)
    return 0


def _tell(folder: Path, done: Sequence[str], tally: Tally) -> None:
    part = folder / (PROGRESS + ".part")
    facts = {"done": list(done), **vars(tally)}  # counters are dicts to JSON
    part.write_text(json.dumps(facts), encoding="utf-8")
    part.replace(folder / PROGRESS)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""A folder of studies and a folder of weights to one submission.csv. Nothing that is written is ever lost.

A full, valid submission of class priors stands on disk before the first image is opened; it is replaced atomically
after every chunk. One unreadable series costs that series; a study of which nothing can be read keeps its priors and
is counted. Nothing else is caught.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.imaging.memory import keep_freed_memory
from osteograde.inference import calibration, findings, flags, pipeline, submission
from osteograde.inference.abreast import abreast
from osteograde.inference.budget import Budget, Effort
from osteograde.inference.reading import Loaded, load_study
from osteograde.models import bundle as bundles
from osteograde.models.bundle import Bundle
from osteograde.models.device import pick
from osteograde.tasks import TASKS
from osteograde.tasks.contract import Point, Study

log = logging.getLogger("osteograde.inference")
CHUNK = 8  # studies that go through the nets together
Draw = Callable[["Result", Bundle], None]


@dataclass(frozen=True, eq=False)
class Result:
    """Everything one study came to."""

    loaded: Loaded
    points: Mapping[str, Point]  # found and completed
    graded: Mapping[str, np.ndarray]  # target -> (K + F,) of the targets that could be seen, see ``pipeline.grade``


@dataclass
class Tally:
    """What happened, for the log, the flags file and the benchmark."""

    studies: int = 0
    unread: int = 0
    on_prior: int = 0  # targets
    faults: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    flags: list[flags.Flag] = field(default_factory=list)
    findings: list[findings.Finding] = field(default_factory=list)


def infer(
    task: str,
    data: Path,
    weights: Path,
    out: Path,
    *,
    device: str = "auto",
    limit: int = 0,
    workers: int = 0,
    time_budget_hours: float | None = None,
    max_unread: int = 0,
    draw: Draw | None = None,
    say: Callable[[str], None] = log.info,
) -> int:
    """Grade ``data`` with ``weights`` into ``out``; returns the exit code (1: more than max_unread studies unread).

    ValueError or OSError: the user's mistake, told before any work; a submission already at ``out`` is untouched.
    """
    begun = time.monotonic()
    keep_freed_memory()
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {sorted(TASKS)}")
    if not Path(data).is_dir():
        raise ValueError(f"{data}: no such folder; --data is the folder that holds the tables and the images")
    bundle = bundles.load(Path(weights), TASKS, pick(device))
    if bundle.task.name != task:
        raise ValueError(f"{weights}: weights are of task {bundle.task.name!r}, asked for {task!r}")
    studies = bundle.task.read(Path(data), "test")
    studies = studies[:limit] if limit else studies
    sheet = Sheet(bundle, studies, out, () if limit else submission.template_ids(Path(data)) or ())
    sheet.write()
    budget = Budget(
        None if time_budget_hours is None else time_budget_hours * 3600 - (time.monotonic() - begun),
        views=bundle.test_views,
        folds=max(len(nets) for nets in (*bundle.locators.values(), *bundle.graders.values())),
    )
    tally = Tally(studies=len(studies))
    for results in run(bundle, studies, budget, tally, workers=workers):
        for result in results:
            sheet.put(result)
            tally.findings += findings.findings_of(bundle.task, result.loaded.study.id, result.graded)
            tally.flags += flags.flags_of(bundle.task, result.loaded, result.points, result.graded)
            tally.on_prior += len(bundle.task.asked(result.loaded.study.targets)) - len(result.graded)
            if draw is not None:
                draw(result, bundle)
        sheet.write()
        say(f"{sheet.done}/{len(studies)} studies, {time.monotonic() - begun:.0f} s")
    flags.write(flags.path_beside(out), tally.flags)
    if columns := findings.names(bundle.task):
        findings.write(findings.path_beside(out), columns, tally.findings)
    for line in summary(tally, sheet.done, out):
        say(line)
    if tally.unread > max_unread:
        say(f"{tally.unread} studies could not be read, --max-unread is {max_unread}; their rows are class priors")
        return 1
    return 0


class Sheet:
    """The rows of the submission: priors at first, replaced study by study, written whole each time.

    Rows are those of the template, in its order, and then those of studies that a stale template does not know.
    """

    def __init__(self, bundle: Bundle, studies: Sequence[Study], out: Path, template: Sequence[str]) -> None:
        self.task, self.prior, self.out, self.done = bundle.task, bundle.prior, out, 0
        own = [row for study in studies for row in self.task.rows(study.id, study.targets)]
        self.rows = submission.priors_rows(self.task, dict.fromkeys((*template, *own)), self.prior)

    def _set(self, study: Study, graded: Mapping[str, np.ndarray]) -> None:
        table = pipeline.rows(self.task, graded, self.prior, study.targets)
        self.rows |= dict(zip(self.task.rows(study.id, study.targets), table, strict=True))

    def put(self, result: Result) -> None:
        self._set(result.loaded.study, result.graded)
        self.done += 1

    def write(self) -> None:
        submission.write(self.out, self.rows, self.task.classes)


def run(
    bundle: Bundle, studies: Sequence[Study], budget: Budget, tally: Tally, *, workers: int = 0
) -> Iterator[list[Result]]:
    """Chunk by chunk: the next chunk is read in a pool of threads while the nets work on this one."""
    threads = workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as ahead:

        def fetch(start: int) -> tuple[Sequence[Study], Future[tuple[list[Loaded], float]] | None]:
            chunk = studies[start : start + budget.chunk(CHUNK)]
            return chunk, ahead.submit(_read, chunk, bundle, pool) if chunk else None

        done, (chunk, reading) = 0, fetch(0)
        while reading is not None:
            effort = budget.effort(len(studies) - done)
            if effort is None or not budget.fits(len(chunk), effort):
                tally.faults["deadline"] += len(studies) - done
                reading.cancel()
                return
            begun = time.monotonic()
            loaded, read_s = reading.result()
            tally.seconds["waiting to read"] += time.monotonic() - begun
            done += len(chunk)
            chunk, reading = fetch(done)
            yield _grade_chunk(bundle, loaded, read_s, effort, budget, tally)


def _read(chunk: Sequence[Study], bundle: Bundle, pool: ThreadPoolExecutor) -> tuple[list[Loaded], float]:
    begun = time.monotonic()
    return [load_study(study, bundle.task, map=pool.map) for study in chunk], time.monotonic() - begun


def _grade_chunk(
    bundle: Bundle, loaded: list[Loaded], read_s: float, effort: Effort, budget: Budget, tally: Tally
) -> list[Result]:
    begun = time.monotonic()
    apart = [[study] for study in loaded] if bundle.device.type == "cpu" else [loaded]
    done = abreast(partial(_answers, bundle, effort), apart)
    points = [one for found, _, _ in done for one in found]
    graded = [one for _, answers, _ in done for one in answers]
    locating, grading = np.sum([seconds for _, _, seconds in done], axis=0)
    wall_s = time.monotonic() - begun
    locate_s = wall_s * locating / max(locating + grading, 1e-9)
    spent = {"read": read_s, "locate": locate_s, "grade": wall_s - locate_s}
    for name, seconds in spent.items():
        tally.seconds[name] += seconds
    budget.record(len(loaded), effort, **{f"{name}_s": seconds for name, seconds in spent.items()})
    for study in loaded:
        tally.unread += not study.readable
        tally.faults.update(study.faults)
    return [Result(*parts) for parts in zip(loaded, points, graded, strict=True)]


def _answers(
    bundle: Bundle, effort: Effort, loaded: Sequence[Loaded]
) -> tuple[list[dict[str, Point]], list[dict[str, np.ndarray]], tuple[float, float]]:
    """(points, probabilities) of each study that goes through the nets together, and the seconds of both stages."""
    begun = time.monotonic()
    _, points = pipeline.locate_all(bundle.task, loaded, nets_of(bundle, "locate", effort))
    located = time.monotonic()
    graded: list[dict[str, np.ndarray]] = [{} for _ in loaded]
    graders = nets_of(bundle, "grade", effort)
    for group in bundle.task.grade:
        for i, new in enumerate(pipeline.grade(group, loaded, points, graders[group.name], views=effort.views)):
            graded[i] |= new
    return points, graded, (located - begun, time.monotonic() - located)


def nets_of(bundle: Bundle, kind: str, effort: Effort) -> dict[str, pipeline.Nets]:
    """The nets of every stage, at most as many folds as the effort says."""
    nets = bundle.locators if kind == "locate" else bundle.graders
    return {
        stage: pipeline.Nets(
            folds[: effort.folds],
            bundle.pixels[stage],
            bundle.device,
            calibration.read(bundle.calibration[stage]) if stage in bundle.calibration else None,
        )
        for stage, folds in nets.items()
    }


def summary(tally: Tally, done: int, out: Path) -> list[str]:
    """What a reader of the log wants to know."""
    spent: dict[str, Any] = {name: f"{seconds:.1f} s" for name, seconds in tally.seconds.items()}
    lines = [f"time: {', '.join(f'{name} {seconds}' for name, seconds in spent.items())}"]
    if tally.faults:
        lines.append("faults: " + ", ".join(f"{code} x {count}" for code, count in sorted(tally.faults.items())))
    lines.append(
        f"{done} of {tally.studies} studies graded ({tally.unread} unreadable), "
        f"{tally.on_prior} targets on the prior -> {out}"
    )
    return lines

"""A folder of studies and a folder of weights to one submission.csv. Nothing that is written is ever lost.

A full, valid submission of class priors stands on disk before a net is built or an image opened; it is replaced
atomically after every chunk. One unreadable series costs that series; a study of which nothing can be read keeps its
priors and is counted. SIGTERM and deadlines end the run with what is done. Memory that runs out, a device that is lost
and a disk that is full for a while are lived through, and counted. Nothing else is caught.

Studies side by side on a CPU: one small net does not keep several cores busy, several of them do.

A run that is told to stop (SIGTERM: a notebook's limit, a queue's) writes down what it has, instead of dying.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from osteograde.errors import UserError
from osteograde.inference import submission
from osteograde.inference.deadline import Budget, Effort
from osteograde.inference.submission import Result, Sheet, Tally, summary
from osteograde.models import bundle as bundles
from osteograde.models.bundle import Bundle
from osteograde.models.device import keep_freed_memory, pick
from osteograde.models.manifest import Manifest
from osteograde.pipeline import calibration, predict
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Point, Study, Task

log = logging.getLogger("osteograde.inference")
CHUNK = 8  # studies that go through the nets together
FIRST = 4  # the first chunk is the fourth part of one
Draw = Callable[[Result, Bundle], None]


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

    ValueError or OSError: the user's mistake, told before any work; a submission already at ``out`` is untouched. (Only
    weights that are whole and yet do not fit their own manifest are found out after the priors are written.) OSError at
    the end: the last submission could not be written; the one before it is in place.
    """
    begun = time.monotonic()
    keep_freed_memory()
    chosen = None if device == "auto" else pick(device)  # looking for a GPU takes seconds: after the priors
    known, manifest, studies = prepare(task, data, weights)
    studies = studies[:limit] if limit else studies
    template = () if limit else submission.template_ids(Path(data)) or ()
    tally = Tally(studies=len(studies))
    sheet = Sheet(known, manifest.prior, studies, out, template, tally)
    sheet.write()
    seconds = None if time_budget_hours is None else time_budget_hours * 3600 - (time.monotonic() - begun)
    fill(weights, manifest, sheet, device=chosen, seconds=seconds, workers=workers, draw=draw, say=say)
    for line in summary(tally, sheet.done, out):
        say(line)
    if tally.unread > max_unread:
        say(f"{tally.unread} studies could not be read, --max-unread is {max_unread}; their rows are class priors")
        return 1
    return 0


def prepare(task: str, data: Path, weights: Path) -> tuple[Task, Manifest, list[Study]]:
    """(task, manifest of the verified weights, all studies of the test part). ValueError: the user's mistake."""
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; known: {sorted(TASKS)}")
    if not Path(data).is_dir():
        raise UserError(f"{data}: no such folder; --data is the folder that holds the tables and the images")
    manifest = bundles.verify(Path(weights))
    known = bundles.task_of(Path(weights), manifest, TASKS)
    if known.name != task:
        raise UserError(f"{weights}: weights are of task {known.name!r}, asked for {task!r}")
    return known, manifest, known.read(Path(data), "test")


def fill(
    weights: Path,
    manifest: Manifest,
    sheet: Sheet,
    *,
    device: torch.device | None,
    seconds: float | None,
    workers: int = 0,
    chunk: int = 0,
    draw: Draw | None = None,
    after: Callable[[Sequence[str]], None] | None = None,
    say: Callable[[str], None] = log.info,
) -> None:
    """Grade the studies of a sheet and write it after every chunk. device None: one that works. seconds: to spend.
    chunk: studies that go through the nets together, 0: CHUNK.

    after: called with the ids of finished studies, once their rows are written. OSError: the last writing failed.
    """
    begun, late, unwritten = time.monotonic(), "deadline", list[str]()

    def written() -> None:
        if after is not None and unwritten:
            after(tuple(unwritten))
        unwritten.clear()

    try:
        with on_sigterm():
            budget = _budget(manifest, seconds, begun)
            load = partial(bundles.load, Path(weights), TASKS, manifest=manifest)
            for results, bundle in _chunks(load, device or pick("auto"), sheet, budget, workers, chunk or CHUNK):
                for result in results:
                    sheet.put(result)
                    unwritten.append(result.loaded.study.id)
                    if draw is not None:
                        _draw(draw, result, bundle, sheet.tally)
                if sheet.try_to_write():
                    written()
                say(f"{sheet.done}/{len(sheet.studies)} studies, {time.monotonic() - begun:.0f} s")
    except Stopped:
        late = "stopped"
        say("told to stop: what is done is written, all other rows are class priors")
    sheet.leave(late)
    sheet.write()
    written()


def _budget(manifest: Manifest, seconds: float | None, begun: float) -> Budget:
    """What may be spent: of ``seconds``, what is left since ``begun``; at most the views and folds of the weights."""
    folds = Counter(name.rpartition("/")[0] for name in manifest.files)
    left = None if seconds is None else seconds - (time.monotonic() - begun)
    return Budget(left, views=manifest.test_views, folds=max(folds.values()))


def _chunks(
    load: Callable[[torch.device], Bundle],
    device: torch.device,
    sheet: Sheet,
    budget: Budget,
    workers: int,
    most: int,
) -> Iterator[tuple[list[Result], Bundle]]:
    """Finished chunks and the nets that did them. A GPU that is lost is not asked again: the CPU does the rest."""
    bundle = load(device)
    while True:
        try:
            for results in run(bundle, sheet.studies[sheet.done :], budget, sheet.tally, workers=workers, most=most):
                yield results, bundle
            return
        except torch.AcceleratorError:
            if bundle.device.type == "cpu":
                raise
            sheet.tally.faults["device_lost"] += 1
            bundle = load(torch.device("cpu"))


def _draw(draw: Draw, result: Result, bundle: Bundle, tally: Tally) -> None:
    """A picture that cannot be drawn or written costs that picture."""
    try:
        draw(result, bundle)
    except (OSError, torch.OutOfMemoryError, torch.AcceleratorError):
        tally.faults["picture_not_written"] += 1


def run(
    bundle: Bundle, studies: Sequence[Study], budget: Budget, tally: Tally, *, workers: int = 0, most: int = CHUNK
) -> Iterator[list[Result]]:
    """Chunk by chunk: the next chunk is read in a pool of threads while the nets work on this one."""
    threads = workers or min(8, os.cpu_count() or 1)
    pool, ahead = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)

    def fetch(start: int) -> tuple[Sequence[Study], Future[tuple[list[Loaded], float]] | None]:
        size = budget.chunk(most)
        # Nothing can be graded while the first chunk is read: it is a small one.
        chunk = studies[start : start + (size if start else -(-size // FIRST))]
        return chunk, ahead.submit(_read, chunk, bundle.task, pool) if chunk else None

    try:
        done, (chunk, reading) = 0, fetch(0)
        while reading is not None:
            effort = budget.effort(len(studies) - done)
            if effort is None or not budget.fits(len(chunk), effort):
                return
            begun = time.monotonic()
            try:
                loaded, read_s = reading.result(None if budget.seconds is None else budget.left())
            except TimeoutError:  # a disk that does not answer
                return
            tally.seconds["waiting to read"] += time.monotonic() - begun
            done += len(chunk)
            chunk, reading = fetch(done)
            yield _grade_chunk(bundle, loaded, read_s, effort, budget, tally)
    finally:  # told to stop, or late: what is still being read is not waited for
        for executor in (ahead, pool):
            executor.shutdown(wait=False, cancel_futures=True)


def _read(chunk: Sequence[Study], task: Task, pool: ThreadPoolExecutor) -> tuple[list[Loaded], float]:
    begun = time.monotonic()
    return [_load(study, task, pool) for study in chunk], time.monotonic() - begun


def _load(study: Study, task: Task, pool: ThreadPoolExecutor) -> Loaded:
    """One study; where memory runs out once more, file by file; where that fails too, nothing of it."""
    try:
        return load_study(study, task, map=pool.map)
    except MemoryError:
        pass
    try:
        loaded = load_study(study, task)
    except MemoryError:
        return Loaded(study, {}, Counter(out_of_memory=1))
    loaded.faults["read_twice"] += 1
    return loaded


def _grade_chunk(
    bundle: Bundle, loaded: list[Loaded], read_s: float, effort: Effort, budget: Budget, tally: Tally
) -> list[Result]:
    begun = time.monotonic()
    apart = [[study] for study in loaded] if bundle.device.type == "cpu" else [loaded]
    done = map_single_threaded(partial(_answers, bundle, effort), apart)
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
    _, points = predict.locate_all(bundle.task, loaded, nets_of(bundle, "locate", effort))
    located = time.monotonic()
    graded: list[dict[str, np.ndarray]] = [{} for _ in loaded]
    graders = nets_of(bundle, "grade", effort)
    for group in bundle.task.graders:
        for i, new in enumerate(predict.grade(group, loaded, points, graders[group.name], views=effort.views)):
            graded[i] |= new
    return points, graded, (located - begun, time.monotonic() - located)


def nets_of(bundle: Bundle, kind: str, effort: Effort) -> dict[str, predict.Nets]:
    """The nets of every stage, at most as many folds as the effort says."""
    nets = bundle.locators if kind == "locate" else bundle.graders
    return {
        stage: predict.Nets(
            folds[: effort.folds],
            bundle.pixels[stage],
            bundle.device,
            calibration.calibration_from_manifest(bundle.calibration[stage]) if stage in bundle.calibration else None,
        )
        for stage, folds in nets.items()
    }


T = TypeVar("T")
R = TypeVar("R")


def map_single_threaded(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``work(item)`` of every item, in order, as many at a time as torch has threads, each with one of them.

    Sums over many values come out differently, in the seventh digit, on another number of threads. With one each, also
    where there is but one item, an answer depends neither on the machine's cores nor on what is done beside it. An
    error ends it; items that are being worked on are not waited for.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not items:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(min(threads, len(items)))
    torch.set_num_threads(1)  # of this thread and of those that begin after it
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)


class Stopped(BaseException):
    """Raised wherever the run is when the signal arrives. No Exception: nothing that repairs faults may swallow it."""


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the writing
    raise Stopped


@contextmanager
def on_sigterm() -> Iterator[None]:
    """SIGTERM raises ``Stopped`` inside; the handler that was there before comes back. Other threads see no change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""A folder of studies and a folder of weights become one submission.csv.

    job = prepare("TASK", data, weights)          # checks everything that can be the user's mistake
    submission = start(job, out)                  # writes a full, valid submission of class priors
    with grading(job, submission) as chunks:      # reads, grades and writes, chunk by chunk
        for chunk in chunks:
            ...                                   # draw pictures, log progress

What goes wrong, and what it costs. The submission of priors stands on disk before a net is built or an image is opened,
and it is replaced in one step after every chunk, so nothing that was written is ever lost. A series that cannot be read
costs that series; a study of which nothing can be read keeps its priors and is counted. A deadline and SIGTERM (the
limit of a notebook or a queue) end the run with what is done. Memory that runs out, a device that is lost and a disk
that is full for a while are lived through, and counted. Nothing else is caught.

On a CPU studies are graded side by side: one small net does not keep several cores busy, several of them do.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from osteograde import logs
from osteograde.errors import UserError
from osteograde.inference import submission as submissions
from osteograde.inference.deadline import Budget, Effort, Voter
from osteograde.inference.points_file import with_given_points
from osteograde.inference.submission import Result, RunningSubmission, RunSummary
from osteograde.models.bundle import Bundle
from osteograde.models.device import keep_freed_memory, pick
from osteograde.pipeline import calibration, domain, ensemble, image_checks, levels, predict, readings
from osteograde.pipeline.crops import region_grids
from osteograde.pipeline.ensemble import Voters
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks import TASKS, looks_like, places
from osteograde.tasks.places import Paths
from osteograde.tasks.spec import Point, Study, Task, sides

log = logging.getLogger("osteograde.inference")
CHUNK = 8  # studies that go through the nets together
FIRST = 4  # the first chunk is a quarter of one
DEADLINE, STOPPED = "deadline", "stopped"  # flag codes of studies that the run ended before


@dataclass(frozen=True, eq=False)
class Job:
    """What a run grades and with what; made and checked by ``prepare``.

    template: row ids that the submission must have, in their order. device: None takes the first that works. ends:
    ``time.monotonic()`` at which the run must have ended, None for no limit. workers: threads that decode, 0: one per
    core. chunk: studies that go through the nets together, 0: ``CHUNK``. voters: the nets of ``weights`` where they are
    loaded already, else None.
    """

    task: Task
    studies: Sequence[Study]
    weights: ensemble.Weights
    template: Sequence[str] = ()
    device: torch.device | None = None
    ends: float | None = None
    workers: int = 0
    chunk: int = 0
    voters: Voters | None = None


@dataclass(frozen=True, eq=False)
class Chunk:
    """Studies that were graded together, and the nets that graded them."""

    results: Sequence[Result]
    voters: Voters


def prepare(
    task: str,
    data: Paths,
    weights: Path,
    *,
    device: str = "auto",
    limit: int = 0,
    workers: int = 0,
    hours: float | None = None,
    points: Path | None = None,
) -> Job:
    """Check task, data and weights (every hash), and list the studies of the test part. Nothing is written.

    data: a folder, a single file, or several of them. limit: only the first so many studies, 0: all. hours: time
    budget, counted from now. points: a table of landmarks that are given and not looked for. UserError or OSError: the
    user's mistake. Only weights that are whole and yet do not fit their own manifest are found out later.
    """
    ends = None if hours is None else time.monotonic() + hours * 3600
    chosen = None if device == "auto" else pick(device)  # looking for a GPU takes seconds: after the priors
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; known: {sorted(TASKS)}")
    places.check_places(places.as_paths(data))
    known, voters = verified(weights)
    if known.name != task:
        raise UserError(f"{weights}: weights are of task {known.name!r}, asked for {task!r}")
    studies, template = listed(known, data, limit=limit, points=points)
    return Job(known, studies, voters, template, chosen, ends, workers)


def verified(weights: Path) -> tuple[Task, ensemble.Weights]:
    """A weights folder whose hashes were checked, and its task as its nets read it. UserError: see ``ensemble``."""
    voters = ensemble.verify(Path(weights))
    return ensemble.task_of(voters, TASKS), voters


def listed(
    task: Task, data: Paths, *, limit: int = 0, points: Path | None = None
) -> tuple[Sequence[Study], Sequence[str]]:
    """The studies to grade at the given places, and the row ids of the template that lies there; see ``prepare``."""
    studies, folder = _studies(task, data), places.only_folder(data)
    studies = studies[:limit] if limit else studies
    template = (() if limit or folder is None else submissions.template_ids(folder)) or ()
    studies = studies if points is None else with_given_points(task, studies, Path(points))
    return submissions.with_rows_of(task, studies, template), template


def _studies(task: Task, data: Paths) -> list[Study]:
    """The studies at the given places. UserError where there are none: it says which task the images look like."""
    try:
        return places.read_places(task, data)
    except UserError as error:
        if task.definition:  # any images may be meant
            raise
        found = looks_like.guess_of_places([path for path in places.as_paths(data) if path.exists()])
        if found_hint := looks_like.hint(task.name, found):
            raise UserError(f"{error}; {found_hint}") from error
        raise


def start(job: Job, out: Path, *, decide: str = "") -> RunningSubmission:
    """Write a full, valid submission of class priors to ``out`` and return it. OSError where it cannot be written.

    Tables of an earlier run into ``out`` that this one does not write are removed, which is logged. decide: the rule of
    ``tasks.decision`` by which the class of every row is named as well; "": it is not.
    """
    submission = RunningSubmission(job.task, job.weights.prior, job.studies, Path(out), job.template, decide=decide)
    submission.write()
    if stale := submissions.remove_stale_tables(job.task, Path(out), predicted=bool(decide)):
        names = " and ".join(path.name for path in stale)
        log.info("removed from %s: %s of an earlier run, which this run does not write", stale[0].parent, names)
    return submission


@contextmanager
def grading(job: Job, submission: RunningSubmission) -> Iterator[Iterator[Chunk]]:
    """Grade the studies of a job: gives an iterator of finished chunks, whose rows are written already.

    Leaving the block flags the studies that were not reached and writes the submission a last time; OSError: this last
    writing failed, the file before it is in place. SIGTERM ends the block at once, also while a chunk is looked at.
    """
    keep_freed_memory()
    reason, chunks = DEADLINE, _written_chunks(job, submission)
    try:
        with on_sigterm():
            yield chunks
    except Stopped:
        reason = STOPPED
        log.info("told to stop: what is done is written, all other rows are class priors")
    finally:
        chunks.close()
    submission.mark_unreached(reason)
    submission.write()


def _written_chunks(job: Job, submission: RunningSubmission) -> Generator[Chunk, None, None]:
    """Finished chunks, each after the submission was written with it."""
    begun, count = time.monotonic(), len(submission.studies)
    with logs.progress("grading", count, "studies", log) as shown:
        for chunk in graded(job, submission):
            submission.try_to_write()
            shown.advance(len(chunk.results))
            extra = None if submission.done == count else logs.PROGRESS
            log.info("%d/%d studies, %.0f s", submission.done, count, time.monotonic() - begun, extra=extra)
            yield chunk


def graded(job: Job, submission: RunningSubmission) -> Iterator[Chunk]:
    """Finished chunks, each after it was added to the submission; nothing is written."""
    for chunk in _chunks_on_any_device(job, submission):
        for result in chunk.results:
            submission.add(result)
        yield chunk


def _chunks_on_any_device(job: Job, submission: RunningSubmission) -> Iterator[Chunk]:
    """Finished chunks. A GPU that is lost is not used again: the CPU does the rest."""
    budget = _budget(job)
    load = partial(ensemble.load, job.weights, TASKS)
    voters = job.voters or load(job.device or pick("auto"))
    while True:
        left, most = submission.studies[submission.done :], job.chunk or CHUNK
        try:
            for results in graded_chunks(voters, left, budget, submission.summary, workers=job.workers, most=most):
                yield Chunk(results, voters)
            return
        except torch.AcceleratorError:
            if voters.device.type == "cpu":
                raise
            submission.summary.faults["device_lost"] += 1
            voters = load(torch.device("cpu"))


def _budget(job: Job) -> Budget:
    """What may be spent: the time that is left, and at most what the weights offer."""
    return Budget(None if job.ends is None else job.ends - time.monotonic(), voters_of(job.weights))


def voters_of(weights: ensemble.Weights) -> tuple[Voter, ...]:
    """The members of weights, as a budget sees them."""
    return tuple(
        Voter(one.manifest.test_views, max(one.folds, 1), one.worth, one.manifest.locators_key, one.name)
        for one in weights.members
    )


def graded_chunks(
    voters: Voters,
    studies: Sequence[Study],
    budget: Budget,
    summary: RunSummary,
    *,
    workers: int = 0,
    most: int = CHUNK,
) -> Iterator[list[Result]]:
    """Grade studies chunk by chunk, at most ``most`` at a time, until the budget is spent; nothing is written.

    The next chunk is read in a pool of threads while the nets work on this one.
    """
    threads = workers or min(8, os.cpu_count() or 1)
    pool, ahead = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)

    def fetch(start: int) -> tuple[Sequence[Study], Future[tuple[list[Loaded], float]] | None]:
        size = budget.chunk(most)
        # Nothing can be graded while the first chunk is read: it is a small one.
        chunk = studies[start : start + (size if start else -(-size // FIRST))]
        return chunk, ahead.submit(_read, chunk, voters.task, pool) if chunk else None

    told = "nothing"
    try:
        done, (chunk, reading) = 0, fetch(0)
        while reading is not None:
            effort = budget.effort(len(studies) - done)
            if effort is None or not budget.fits(len(chunk), effort):
                return
            if (now := budget.told(effort)) != told:
                log.warning("time is short after %d of %d studies; left out from here on: %s", done, len(studies), now)
                told = now
            begun = time.monotonic()
            try:
                loaded, read_s = reading.result(None if budget.seconds is None else budget.left())
            except TimeoutError:  # a disk that does not answer
                return
            summary.seconds["waiting to read"] += time.monotonic() - begun
            done += len(chunk)
            chunk, reading = fetch(done)
            yield _grade_chunk(voters, loaded, read_s, effort, budget, summary)
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
    voters: Voters, loaded: list[Loaded], read_s: float, effort: Effort, budget: Budget, summary: RunSummary
) -> list[Result]:
    """Grade studies that were read, and count what it took: seconds in the budget and the summary, faults too."""
    begun = time.monotonic()
    apart = [[study] for study in loaded] if voters.device.type == "cpu" else [loaded]
    done = map_single_threaded(partial(_answers, ensemble.some_of(voters, effort.members), effort), apart)
    loaded = [one for settled, _, _, _ in done for one in settled]
    points = [one for _, found, _, _ in done for one in found]
    graded = [one for _, _, answers, _ in done for one in answers]
    thread_s = np.sum([seconds for *_, seconds in done], axis=0)
    locate_s, grade_s = (time.monotonic() - begun) * thread_s / max(thread_s.sum(), 1e-9)
    for name, seconds in (("read", read_s), ("locate", locate_s.sum()), ("grade", grade_s.sum())):
        summary.seconds[name] += float(seconds)
    budget.record(len(loaded), effort, read_s=read_s, locate_s=locate_s.tolist(), grade_s=grade_s.tolist())
    for study in loaded:
        study.faults.update(budget.shed(effort))
    if not summary.faults[domain.OUT_OF_DOMAIN] and any(study.faults[domain.OUT_OF_DOMAIN] for study in loaded):
        known = dict.fromkeys(m.manifest.domain["name"] for m in voters.members if m.manifest.domain)
        log.warning(_UNKNOWN_IMAGES, " and ".join(known), domain.OUT_OF_DOMAIN)
    for study in loaded:
        summary.unread += not study.readable
        for faults in (study.faults, *study.target_faults.values()):
            summary.faults.update(faults)
    return [Result(*parts) for parts in zip(loaded, points, graded, strict=True)]


def _answers(
    voters: Voters, effort: Effort, loaded: Sequence[Loaded]
) -> tuple[Sequence[Loaded], list[dict[str, Point]], list[dict[str, np.ndarray]], np.ndarray]:
    """(the studies as their images are read, points, probabilities) of studies that go through the nets together, and
    the seconds (2, M) of both stages of each of the M members.

    Members with the same locators share what these find. The points are those of the first member.
    """
    begun = time.monotonic()
    first, looks = voters.members[0], _member_with_checks(voters)
    checked = partial(image_checks.is_other_side, looks, nets_of(looks, "grade", effort))
    loaded, settled = readings.settled(first.task, loaded, nets_of(first, "locate", effort), checked)
    found: dict[str, list[dict[str, Point]]] = {first.locators_key: settled}
    answers, spent_s = [], np.zeros((2, len(voters.members)))
    spent_s[0, 0] = time.monotonic() - begun
    for number, member in enumerate(voters.members):
        begun = time.monotonic()
        if member.locators_key not in found:
            _, found[member.locators_key] = predict.locate_all(member.task, loaded, nets_of(member, "locate", effort))
        located = time.monotonic()
        answers.append(_graded(member, effort, loaded, found[member.locators_key]))
        spent_s[:, number] += located - begun, time.monotonic() - located
    points = found[voters.members[0].locators_key]
    begun = time.monotonic()
    for i, study in enumerate(loaded):
        _look(looks, study, found[looks.locators_key][i], nets_of(looks, "grade", effort))
    graded = [ensemble.voted(voters, of_study) for of_study in zip(*answers, strict=True)]
    spent_s[1, 0] += time.monotonic() - begun
    return loaded, points, graded, spent_s


def _member_with_checks(voters: Voters) -> Bundle:
    """The first member whose weights can check the image itself; the first one where none can."""
    return next((member for member in voters.members if member.manifest.checks), voters.members[0])


def _graded(
    bundle: Bundle, effort: Effort, loaded: Sequence[Loaded], points: Sequence[Mapping[str, Point]]
) -> list[dict[str, np.ndarray]]:
    """What the graders of one bundle say of each study, whose landmarks are given: target -> (K + F,)."""
    graded: list[dict[str, np.ndarray]] = [{} for _ in loaded]
    graders, locators = nets_of(bundle, "grade", effort), nets_of(bundle, "locate", effort)
    views = min(effort.views, bundle.test_views)
    for group in bundle.task.graders:
        for i, new in enumerate(predict.grade(group, loaded, points, graders[group.name], views=views)):
            graded[i] |= new
    for i, study in enumerate(loaded):
        graded[i] = levels.mixed_over_names(bundle.task, points[i], graded[i], bundle.prior)
        graded[i] = _believed(bundle, study, points[i], locators, graded[i])
    return graded


_UNKNOWN_IMAGES = (
    "these weights know %s only, and some images do not look like them: the answers about them are mixed towards the "
    "class priors, and their rows are flagged %s"
)


def _believed(
    bundle: Bundle,
    study: Loaded,
    points: Mapping[str, Point],
    locators: Mapping[str, predict.Nets],
    graded: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The grades of a study as far as its images look like those that the weights know; the rest is the prior.

    The first of the locators that sees the study decides: what later ones see is of the same patient and scanner.
    """
    known = domain.domain_from_manifest(bundle.manifest.domain)
    if known is None:
        return graded
    distances: list[float] = []
    for locator in bundle.task.locators:
        if locator.name in known.spreads and not distances:
            nets, spread = locators[locator.name], known.spreads[locator.name]
            grids = region_grids(locator, study.volumes, points, max(sides(nets.pixels)))
            distances = [spread.distance(domain.features(grid, nets)) for grid in grids]
    trust = known.trust(max(distances, default=0.0))
    if trust == 1:
        return graded
    study.faults[domain.OUT_OF_DOMAIN] = 1
    return domain.mixed_with_prior(graded, bundle.prior, trust)


def _look(bundle: Bundle, study: Loaded, points: Mapping[str, Point], graders: Mapping[str, predict.Nets]) -> None:
    """Count in the faults of a study what the checks of the image itself say; the grades stay as they are."""
    study.faults.update(image_checks.codes_of(bundle, graders, study, points))
    if bundle.task.assumed_side and not study.faults[bundle.task.assumed_side]:
        del study.faults[bundle.task.assumed_side]


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

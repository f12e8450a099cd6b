"""A predictor for competitions that hand over their studies one by one, and read no table.

The host's package ``kaggle_evaluation`` lies in the data of such a competition. It calls a predictor for every study
and waits for a table. In the visible run it plays its own side in this process (``run_local_gateway``); in the run that
counts it waits for calls of another machine (``serve``). Facts as of 2026-11: ``serve`` must be reached within 15
minutes of the start, the first answer has no limit of its own, later ones have one that the competition names.

A study costs at most its own answer: whatever goes wrong with it, the predictor returns its class priors in time, and
counts why. That is the one place of the kit where every exception is caught, because an error that reaches the host
ends the whole run.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from osteograde.errors import UserError
from osteograde.inference.deadline import Budget
from osteograde.inference.run import DEADLINE, graded_chunks, voters_of
from osteograde.inference.submission import RunningSubmission, RunSummary, written
from osteograde.models.device import pick
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS, places
from osteograde.tasks.spec import Study, Task
from osteograde.tasks.tables import ROW_ID

log = logging.getLogger("osteograde.inference")

PACKAGE = "kaggle_evaluation"
RERUN = "KAGGLE_IS_COMPETITION_RERUN"
FAILED = "answer_failed"  # code of studies whose answer is the prior because of an error
NO_STUDY = "no_study"  # code of calls at whose place no study was found
T = TypeVar("T")
SPARE = 0.15  # share of a limit that is kept for what cannot be foreseen


@dataclass(eq=False)
class Predictor:
    """What the host calls for every study: ``predictor(path)`` gives a table of probabilities.

    weights: checked before (``ensemble.verify``). device: None takes the first that works. ends: ``time.monotonic()``
    after which only priors are returned; None for no limit. summary: what happened, as in a run over a folder. calls:
    how many there were. slowest_s: the longest answer, but for the first one.
    """

    task: Task
    weights: ensemble.Weights
    device: torch.device | None = None
    ends: float | None = None
    summary: RunSummary = field(default_factory=RunSummary)
    calls: int = 0
    slowest_s: float = 0.0
    _voters: Future[ensemble.Voters] | None = None
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _cost: Budget = field(init=False)  # what studies have cost so far: a slow machine does less for each

    def __post_init__(self) -> None:
        self._cost = Budget(None, voters_of(self.weights))

    def start(self, warm_up: Sequence[Study], limit_s: float) -> None:
        """Load the nets and grade the studies of ``warm_up`` once, whose answers are forgotten, so that the first
        study that counts finds everything ready. Returns after ``limit_s`` seconds at the latest; what is left then
        goes on beside, and the first call waits for it."""
        begun = time.monotonic()
        self._voters = self._worker.submit(self._load, tuple(warm_up))
        try:
            self._voters.result(limit_s)
        except TimeoutError:
            log.warning("the nets are not ready after %.0f s: the first study waits for them", limit_s)
        else:
            log.info("nets loaded and warmed up with %d studies in %.1f s", len(warm_up), time.monotonic() - begun)

    def __call__(self, *args: Any) -> pd.DataFrame:
        """The table of one call: see ``Serving.table``. No exception leaves it."""
        begun, first = time.monotonic(), self.calls == 0
        self.calls += 1
        name = Path(str(args[0])).name if args else "study"
        limit_s = None if first else self.task.serving.study_s * (1 - SPARE)
        submission = self._answer(name, self._found(name, args, limit_s), limit_s, begun)
        add_up(self.summary, submission.summary)
        spent = time.monotonic() - begun
        self.slowest_s = self.slowest_s if first else max(self.slowest_s, spent)
        log.info("%d studies, %.2f s for this one", self.calls, spent)
        return table_of(self.task, submission.rows)

    def _load(self, warm_up: Sequence[Study]) -> ensemble.Voters:
        voters = ensemble.load(self.weights, TASKS, self.device or pick("auto"))
        contained("warming up", lambda: list(graded_chunks(voters, warm_up, self._cost, RunSummary())))
        return voters

    def _found(self, name: str, args: Sequence[Any], limit_s: float | None) -> list[Study]:
        """The studies that a call asks about; where none can be found in time, one of that name without images."""
        find = self.task.serving.studies or (lambda path: places.read_places(self.task, str(path)))
        found, _ = contained(f"{name}: no study there", lambda: self._in_time(lambda: list(find(*args)), limit_s))
        if found:
            return found
        self.summary.faults[NO_STUDY] += 1
        return [Study(name, name, ())]

    def _answer(self, name: str, studies: Sequence[Study], limit_s: float | None, begun: float) -> RunningSubmission:
        """The rows of the studies. What cannot be graded within ``limit_s`` seconds of ``begun`` keeps its prior, and
        is counted."""
        submission, error = self._priors(studies), None
        left_s = None if limit_s is None else limit_s - (time.monotonic() - begun)
        if self.ends is None or time.monotonic() < self.ends:
            work = partial(self._in_time, lambda: self._grade(submission, left_s), left_s)
            _, error = contained(f"{name}: not graded", work)
        if error is None:
            submission.mark_unreached(DEADLINE)
            return submission
        priors = self._priors(studies)  # a thread that is late may still write to the submission before
        priors.mark_unreached(DEADLINE if isinstance(error, TimeoutError) else FAILED)
        return priors

    def _in_time(self, work: Callable[[], T], limit_s: float | None) -> T:
        """The result of ``work``. TimeoutError after ``limit_s`` seconds: a thread cannot be stopped, so the one that
        is late is left to end by itself, and the next call gets a new one."""
        try:
            return self._worker.submit(work).result(limit_s)
        except TimeoutError:
            self._worker = ThreadPoolExecutor(1)
            raise

    def _grade(self, submission: RunningSubmission, limit_s: float | None) -> None:
        if self._voters is None:
            raise RuntimeError("the predictor was not started; call start first")
        voters = self._voters.result()
        budget = replace(self._cost, seconds=limit_s)  # its clock begins anew; what studies cost so far is kept
        for results in graded_chunks(voters, submission.studies, budget, submission.summary):
            for graded in results:
                submission.add(graded)
        self._cost = budget

    def _priors(self, studies: Sequence[Study]) -> RunningSubmission:
        return RunningSubmission(self.task, self.weights.prior, studies, Path())


def contained(what: str, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """(the result of ``work``, None), or (None, the error), which is logged with ``what`` could not be done.

    Every exception is caught here, and only here: one that reached the host would end the run of all studies.
    """
    try:
        return work(), None
    except Exception as error:
        log.exception("%s", what)
        return None, error


def add_up(whole: RunSummary, part: RunSummary) -> None:
    """Add what happened with one call to the summary of all."""
    whole.studies += part.studies
    whole.unread += part.unread
    whole.on_prior += part.on_prior
    whole.rows += part.rows
    whole.faults.update(part.faults)
    for name, seconds in part.seconds.items():
        whole.seconds[name] += seconds
    whole.flags += part.flags
    whole.findings += part.findings
    whole.points += part.points


def table_of(task: Task, rows: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The table that a call returns, of {row id: (K,) probabilities}: as ``Serving.table`` of the task says."""
    probs = written(np.stack(list(rows.values())))
    if task.serving.table is not None:
        return pd.DataFrame(dict(task.serving.table(dict(zip(rows, probs, strict=True)))))
    return pd.DataFrame({ROW_ID: list(rows), **{name: probs[:, k] for k, name in enumerate(task.classes)}})


def is_served(data: Path) -> bool:
    """Whether the competition whose data these are hands over its studies one by one."""
    return (Path(data) / PACKAGE).is_dir()


def host_class(task: Task, data: Path) -> type:
    """The host's class that calls a predictor, from the package in the data. UserError where it cannot be had."""
    module, _, name = task.serving.server.partition(":")
    sys.path.insert(0, str(data))
    sys.dont_write_bytecode = True  # the input may not be written to, and the attempt counts
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    except (ImportError, AttributeError) as error:
        there = sorted(path.stem for path in (data / PACKAGE).glob("*.py"))
        raise UserError(
            f"{data / PACKAGE}: no {module}.{name} ({error}); there are {there}; "
            f"name the competition's module and class in Serving.server of the task {task.name}"
        ) from error


def serve(predictor: Predictor, data: Path, begun: float) -> None:
    """Answer all studies of the host: of another machine where the run counts, else of the visible data here.

    begun: ``time.monotonic()`` at the start of the kernel, from which the host counts the time until it is served.
    """
    task = predictor.task
    host = host_class(task, data)
    left_s = task.serving.start_s * (1 - SPARE) - (time.monotonic() - begun)
    predictor.start(_visible(task, data), max(left_s, 1.0))
    server = host(predictor)
    log.info("serves after %.0f s of %.0f", time.monotonic() - begun, task.serving.start_s)
    if os.environ.get(RERUN):
        server.serve()
    else:
        server.run_local_gateway((str(data),))


def _visible(task: Task, data: Path) -> list[Study]:
    """The first study of the visible data; none where they hold no study."""
    try:
        return task.read(data, "test")[:1]
    except (UserError, OSError) as error:
        log.info("no study to warm up with: %s", error)
        return []

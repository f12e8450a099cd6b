"""Workers: processes of this machine that do the jobs of a list side by side, one job at a time each.

A worker is a fresh interpreter. It is given a function that makes what does the jobs (``Begin``), then one key after
the other; results go through the disk. A worker that dies costs its job one more try, in a new worker. What a job
leaves must not depend on who does it, nor on what is done beside it: then any number of workers leaves the same bytes.

``LocalTasks`` are such workers for tasks that return something; whoever submits a task decides what its loss costs.

Nothing here knows what a job does, or needs torch.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from osteograde import interrupts, logs
from osteograde.errors import UserError

TRIES = 2  # of a job whose worker dies
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STOPPING_S = 10.0  # that a worker has to end when it is told to
RAISED = 1  # exit code of a process that an error of Python ended; signals have negative ones
WAIT_S = 1.0  # for tasks at a time, so that whoever waits can look up

Do = Callable[[str], None]
Begin = Callable[[], Do]  # called once in every worker; must be found by its name in a module
Work = Callable[[], Any]  # a task; must be found by its name in a module

log = logging.getLogger("osteograde.learning")


class Job(Protocol):
    """What is asked of a job: its name, and the names of those that it waits for."""

    @property
    def key(self) -> str: ...

    @property
    def after(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Place:
    """Where a worker runs. environment: what it sees beside the environment of this process. cores: the processor cores
    that it keeps to, where the system can do that; all if empty."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()


class WorkerDied(RuntimeError):
    """The workers of one job died as often as it is tried."""


class TaskFailed(RuntimeError):
    """A task raised an error that is no mistake of the user; its worker printed the traceback and ended."""


@dataclass(frozen=True)
class Lost:
    """Instead of an answer: the worker of a task died, or its machine was lost. why: what is known of it."""

    why: str


def places(count: int, jobs: int, cores: Sequence[int], gpus: Sequence[str] = ()) -> list[Place]:
    """The workers of this machine. count: as many; 0: one for each GPU, or on a CPU one for each job that may be under
    way at once (``jobs``), at most one for each core. gpus: as CUDA_VISIBLE_DEVICES names them.

    Each has a GPU of its own, or as many threads as its share of the cores. A number of threads that the environment
    says already is kept, since the bytes of nets that are trained on a CPU depend on it.
    """
    count = count or len(gpus) or max(1, min(jobs, len(cores)))
    share = max(1, len(cores) // count)
    own = [tuple(cores[i * share : (i + 1) * share]) if count * share <= len(cores) else () for i in range(count)]
    if gpus:
        return [
            Place(f"gpu {gpus[i % len(gpus)]}", {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}) for i in range(count)
        ]
    threads = {} if THREADS[0] in os.environ else dict.fromkeys(THREADS, str(share))
    return [Place(f"worker {i + 1}", threads, own[i]) for i in range(count)]


def run(jobs: Sequence[Job], done: Collection[str], where: Sequence[Place], begin: Begin) -> None:
    """Do all jobs that are not done, each when those that it waits for are; jobs in front of the list go first.

    Raises the UserError of a job, and WorkerDied where the workers of a job died twice. Whatever ends it ends the
    workers as well.
    """
    todo = [job for job in jobs if job.key not in done]
    finished, tries = set(done), Counter[str]()
    workers: list[_Worker] = []
    idle = list(where)
    with logs.progress("training", len(todo), "jobs", log) as shown:
        try:
            while todo or any(worker.key for worker in workers):
                _hand_out(todo, finished, workers, idle, begin)
                busy = {worker.connection: worker for worker in workers if worker.key}
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    key, dead = worker.key, not worker.is_done()
                    if dead:
                        workers.remove(worker)
                        idle.append(worker.place)
                        tries[key] += 1
                        _refuse_third_try(key, tries[key], worker)
                        todo.insert(0, next(job for job in jobs if job.key == key))
                    else:
                        finished.add(key)
                        shown.advance(note=key)
        finally:
            for worker in workers:
                worker.stop()


def _hand_out(
    todo: list[Any], finished: Collection[str], workers: list[_Worker], idle: list[Place], begin: Begin
) -> None:
    """Give every worker without a job one that waits for nothing; start workers only for jobs that are there."""
    while ready := next((job for job in todo if all(key in finished for key in job.after)), None):
        free = next((worker for worker in workers if not worker.key), None)
        if free is None and idle:
            free = _Worker(idle.pop(0), begin)
            workers.append(free)
        if free is None:
            return
        todo.remove(ready)
        free.give(ready.key, ready.key)
    if todo and not any(worker.key for worker in workers):
        raise ValueError(f"{todo[0].key} waits for {sorted(set(todo[0].after) - set(finished))}, which nobody does")


def _refuse_third_try(key: str, tries: int, worker: _Worker) -> None:
    said = f"{key}: {worker.place.name} died with exit code {worker.process.exitcode}"
    if tries >= TRIES:
        raise WorkerDied(f"{said}, as one before it did; what it last printed says why; --resume goes on")
    log.warning("%s; the job goes on in another one", said)


class _Process:
    """A process at a place, whose program ``serve`` is given its end of a connection, its cores, and then ``told``.
    key: of the job or task that it does, "" where it has none."""

    def __init__(self, place: Place, serve: Callable[..., None], *told: Any) -> None:
        self.place, self.key = place, ""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, place.cores, *told), daemon=True)
        # The environment is read by libraries as they are imported. A terminal sends Ctrl-C to all processes; the first
        # one ends the workers.
        with _environment(place.environment), interrupts.ignored():
            self.process.start()
        theirs.close()  # so that its end is seen here

    def give(self, key: str, told: Any) -> None:
        """Let the process begin with a job or task."""
        self.key = key
        with suppress(ConnectionError):  # one that has died meanwhile is noticed where its answer is awaited
            self.connection.send(told)

    def stop(self) -> None:
        """End the process: what it was doing goes on from its last checkpoint another time."""
        self.process.terminate()
        self.process.join(STOPPING_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class _Worker(_Process):
    """A process that does jobs."""

    def __init__(self, place: Place, begin: Begin) -> None:
        super().__init__(place, _serve, begin)

    def is_done(self) -> bool:
        """Whether the job has come to its end; False where the process died. Raises the UserError of the job."""
        try:
            said = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return False
        self.key = ""
        if said is not None:
            raise UserError(said)
        return True


class LocalTasks:
    """Tasks under way in processes of this machine, one at a time in each; workers begin as tasks are there.

    A task is done once: whoever submitted it decides what its loss costs. Leaving the block ends all workers.
    """

    def __init__(self, where: Sequence[Place]) -> None:
        self._idle, self._waiting, self._workers = list(where), dict[str, Work](), list[_Process]()

    def __enter__(self) -> LocalTasks:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def __len__(self) -> int:
        return len(self._waiting) + sum(bool(worker.key) for worker in self._workers)

    def submit(self, name: str, work: Work) -> None:
        """Let ``work`` be called in a worker, as soon as one is free."""
        self._waiting[name] = work
        self._hand_out()

    def finished(self) -> Iterator[tuple[str, Any]]:
        """Wait until something is finished, a second at most: (name, what it returned, or ``Lost``). Raises the
        UserError of a task, and ``TaskFailed`` for any other error: it would come again."""
        busy = {worker.connection: worker for worker in self._workers if worker.key}
        answers = [self._answer(busy[ready]) for ready in wait(list(busy), WAIT_S)]  # type: ignore[index]
        self._hand_out()  # so that no worker waits while the answers are looked at
        yield from answers

    def _hand_out(self) -> None:
        """Give waiting tasks to workers that have none; start workers only for tasks that are there."""
        while self._waiting:
            free = next((worker for worker in self._workers if not worker.key), None)
            if free is None and self._idle:
                free = _Process(self._idle.pop(0), _serve_tasks)
                self._workers.append(free)
            if free is None:
                return
            name = next(iter(self._waiting))
            free.give(name, self._waiting.pop(name))

    def _answer(self, worker: _Process) -> tuple[str, Any]:
        name = worker.key
        try:
            answer, mistake = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            worker.connection.close()
            self._workers.remove(worker)
            self._idle.append(worker.place)
            how = f"{worker.place.name} died with exit code {worker.process.exitcode}"
            if worker.process.exitcode == RAISED:
                raise TaskFailed(f"{name}: {how}; the error that it printed would come again") from None
            return name, Lost(how)
        worker.key = ""
        if mistake is not None:
            raise UserError(mistake)
        return name, answer


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """An environment with these values until the block is left."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _settle(cores: Sequence[int]) -> None:
    """What every worker does first: it keeps to its cores, and ends when the process that started it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it was started from another thread than the main one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _serve_tasks(connection: Connection, cores: Sequence[int]) -> None:
    """The program of a worker of ``LocalTasks``: call what comes, and answer (what it returned, None), or (None, the
    user's mistake as text). Any other error is printed and ends the process."""
    _settle(cores)
    while True:
        try:
            work = connection.recv()
        except EOFError:
            return
        answer: tuple[Any, str | None]
        try:
            answer = work(), None
        except UserError as error:
            answer = None, str(error)
        connection.send(answer)


def _serve(connection: Connection, cores: Sequence[int], begin: Begin) -> None:
    """The program of a worker: do the jobs whose keys come, and answer None or the user's mistake, as text."""
    _settle(cores)
    do: Do | None = None
    while True:
        try:
            key = connection.recv()
        except EOFError:
            return
        said = None
        try:
            do = do or begin()
            do(key)
        except UserError as error:
            said = str(error)
        connection.send(said)


def _end_with_parent() -> None:
    """End this process where the one that started it was killed: nobody would take its result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Ray: tasks on the processors of one machine or of many, for the jobs of a training and the shards of a run.

Ray starts the workers, finds a free processor for each task and tells when a worker or a machine is lost. What is ready
to be done, and what a lost task costs, is decided here, in the process that was started. Ray is an optional package: it
is imported when it is used, and no kernel carries this module.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from osteograde import logs
from osteograde.errors import UserError
from osteograde.learning.executors import THREADS, TRIES, Begin, Job, Lost, WorkerDied

NAME = "ray"  # of --executor, alone or as ray:HOST:PORT
EXTRA = "osteograde[ray]"
ANSWER_S = 5.0  # that a machine has to answer at an address
WAIT_S = 1.0  # at a time: Ray ends with an error of its own where a signal raises while it waits
HTTP2_BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and an empty frame of settings
FRAME_HEAD, FRAME_TYPE_AT, SETTINGS_FRAME = 9, 3, b"\4"  # bytes; of HTTP/2
LOOPBACK = ("127.0.0.1", "localhost")
OWN = "local"  # Ray's word for a cluster of this process alone, on this machine
PACKAGE = str(Path(__file__).resolve().parents[1])
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the device of a task without a GPU is told to it by name
    "RAY_DEDUP_LOGS": "0",  # lines of two jobs that are alike are two lines
}

log = logging.getLogger("osteograde.learning")


def is_ray(executor: str) -> bool:
    """Whether ``--executor`` names Ray, with or without an address."""
    return executor.partition(":")[0] == NAME


def check(executor: str, device: str) -> None:
    """UserError where ``--executor`` names Ray and it is not installed, no Ray answers at its address, or ``--device``
    names a GPU by its number.

    Nothing is imported, so that a refused command ends at once. Without this look, Ray itself tries for two
    minutes.
    """
    if not is_ray(executor):
        return
    address = executor.partition(":")[2]
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:  # a folder of this name counts as a package without an origin
        raise UserError(f"--executor {executor}: the package ray is not installed here; pip install '{EXTRA}'")
    if ":" in device:
        raise UserError(f"--device {device}: Ray chooses the GPU of every task; give --device cuda, or auto")
    if not address:
        return
    host, _, port = address.rpartition(":")
    faults = [_fault_at(one, int(port)) for one in ([host, own_ip()] if host in LOOPBACK else [host])]
    if all(faults):
        raise UserError(
            f"--executor {executor}: no Ray answers at {address} ({faults[0]}); on that machine, start Ray with: "
            f"ray start --head --port {port}"
        )


def own_ip() -> str:
    """The address of this machine in its network: Ray listens at this one alone, also where localhost is asked for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # of no machine; nothing is sent, the system only chooses a route
        except OSError:  # no network
            return "127.0.0.1"
        return asked.getsockname()[0]


def _fault_at(host: str, port: int) -> str:
    """Why no Ray answers at an address, "" where it may be one: what answers speaks HTTP/2, as gRPC does.

    Both sides of HTTP/2 begin with a frame of settings (RFC 9113, section 3.4). With TLS it is not asked for.
    """
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S) as asked:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
                return ""
            asked.sendall(HTTP2_BEGIN)
            begun = asked.recv(FRAME_HEAD, socket.MSG_WAITALL)
    except (OSError, OverflowError) as error:
        return str(error)
    return "" if begun[FRAME_TYPE_AT : FRAME_TYPE_AT + 1] == SETTINGS_FRAME else "what listens there is no Ray"


@contextmanager
def connected(executor: str) -> Iterator[Any]:
    """The module ``ray``, connected to the cluster that ``--executor`` names, or to one of its own on this machine that
    ends with the block. UserError where the cluster refuses, as one of another version does."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)  # read as Ray is imported
    address = executor.partition(":")[2] or OWN
    options: dict[str, Any] = {"include_dashboard": False} if address == OWN else {}
    if address != OWN and _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as ``ray start`` does where there is a token
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Ray, about itself
            ray.init(address=address, logging_level="error", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        asks = "; the cluster asks for its token: copy ~/.ray/auth_token from there" if _is_of_token(error) else ""
        raise UserError(f"--executor {executor}: {' '.join(str(error).split())}{asks}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray prints a stack and aborts
    try:
        yield ray
    finally:
        ray.shutdown()


def _has_token() -> bool:
    """Whether this user has the secret by which machines of a cluster know each other, where Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return "RAY_AUTH_TOKEN" in os.environ or (Path(named) if named else Path.home() / ".ray" / "auth_token").is_file()


def _is_of_token(error: BaseException) -> bool:
    return "AuthToken" in f"{error} {error.__cause__}"


@dataclass(frozen=True)
class Share:
    """What one task takes of a machine, and how many tasks a cluster does at once. device: cpu or cuda."""

    cores: int
    gpus: int
    slots: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def __str__(self) -> str:
        gpu = "a GPU and " if self.gpus else ""
        return f"{self.slots} at once, each with {gpu}{self.cores} core{'s' * (self.cores > 1)}"


def nodes_of(ray: Any) -> list[Mapping[str, float]]:
    """The resources of every machine of a cluster that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_of(nodes: Sequence[Mapping[str, float]], device: str, tasks: int, threads: str = "") -> Share:
    """What each of ``tasks`` tasks takes of these machines. device: as ``--device`` has it; auto takes GPUs where there
    are any. threads: OMP_NUM_THREADS of this process; where it is a number, each task has as many cores.

    With GPUs, one for each task and its part of the cores of its machine. Else as many cores as there are while all
    tasks can be done at once, at least one. UserError where no machine has what a task needs.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not with_gpus:
        raise UserError("--device cuda: no machine of the Ray cluster has a GPU; use --device cpu, or auto")
    if with_gpus and device != "cpu":
        cores = max(1, min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpus))
        return Share(cores, 1, sum(int(node["GPU"]) for node in with_gpus))
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if threads.isdigit() and int(threads):
        cores = int(threads)
    else:
        wanted = min(max(1, tasks), sum(cpus))
        fits = [count for count in range(1, max(cpus, default=0) + 1) if _slots(cpus, count) >= wanted]
        cores = max(fits, default=1)
    slots = _slots(cpus, cores)
    if not slots:
        raise UserError(
            f"OMP_NUM_THREADS is {cores}: the machines of the Ray cluster have {cpus} cores; set it to fewer"
        )
    return Share(cores, 0, slots)


def _slots(cpus: Sequence[int], cores: int) -> int:
    return sum(count // cores for count in cpus)


class Tasks(Protocol):
    """Tasks under way, each under a name: what ``RayTasks`` and ``executors.LocalTasks`` are.

    ``finished`` gives what is finished since, which may be nothing.
    """

    def submit(self, name: str, work: Callable[[], Any]) -> None: ...

    def finished(self) -> Iterator[tuple[str, Any]]: ...

    def __len__(self) -> int: ...


class RayTasks:
    """Tasks under way on a cluster. A task is done once: whoever submitted it decides what its loss costs.

    A worker has as many threads as its task has cores, and the number is told to libraries before they are imported. It
    finds this package where this process did, if its machine has it there, else where it is installed.
    """

    def __init__(self, ray: Any, share: Share) -> None:
        self._ray, self._running = ray, dict[Any, str]()
        path = os.pathsep.join(filter(None, (PACKAGE, os.environ.get("PYTHONPATH", ""))))
        environment = {**dict.fromkeys(THREADS, str(share.cores)), "PYTHONPATH": path}
        self._remote = ray.remote(
            num_cpus=share.cores, num_gpus=share.gpus, max_retries=0, runtime_env={"env_vars": environment}
        )(_answered)

    def __len__(self) -> int:
        return len(self._running)

    def submit(self, name: str, work: Callable[[], Any]) -> None:
        """Let ``work`` be called in a worker, as soon as one is free. It must be found by its name in a module."""
        self._running[self._remote.options(name=name).remote(work, str(Path.cwd()))] = name

    def finished(self) -> Iterator[tuple[str, Any]]:
        """Wait until something is finished, a second at most: (name, what it returned, or ``Lost``). Raises the
        UserError or any other error of a task: it would come again."""
        from ray import exceptions

        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=WAIT_S)
        for reference in ready:
            name = self._running.pop(reference)
            try:
                answer, said = self._ray.get(reference)
            except exceptions.RayTaskError as error:
                raise error.cause from error
            except exceptions.RayError as error:
                yield name, Lost(str(error).strip().partition("\n")[0])
            else:
                if said is not None:
                    raise UserError(said)
                yield name, answer


def _answered(work: Callable[[], Any], folder: str) -> tuple[Any, str | None]:
    """(What a task returns, None), or (None, the text of the user's mistake). folder: that of the first process, from
    which paths are meant."""
    if Path(folder).is_dir():
        os.chdir(folder)
    try:
        return work(), None
    except UserError as error:
        return None, str(error)


def run_jobs(jobs: Sequence[Job], done: Collection[str], begin: Begin, tasks: Tasks) -> None:
    """Do all jobs that are not done as one task each, when those that they wait for are finished.

    What a job leaves lies in the folder of the run, which all machines share. A job whose worker or machine is lost
    goes on in another one, once. Raises the error of a job, and WorkerDied where its workers were lost twice.
    """
    todo = [job for job in jobs if job.key not in done]
    finished, tries = set(done), Counter[str]()
    with logs.progress("training", len(todo), "jobs", log) as shown:
        while todo or len(tasks):
            for job in [one for one in todo if finished.issuperset(one.after)]:
                todo.remove(job)
                tasks.submit(job.key, partial(_do, begin, job.key))
            if not len(tasks):
                raise ValueError(f"{todo[0].key} waits for {sorted({*todo[0].after} - finished)}, which nobody does")
            for key, answer in tasks.finished():
                if isinstance(answer, Lost):
                    tries[key] += 1
                    _refuse_third_try(key, tries[key], answer)
                    tasks.submit(key, partial(_do, begin, key))
                else:
                    finished.add(key)
                    shown.advance(note=key)


def _do(begin: Begin, key: str) -> None:
    begin()(key)


def _refuse_third_try(key: str, tries: int, lost: Lost) -> None:
    said = f"{key}: its worker was lost ({lost.why})"
    if tries >= TRIES:
        raise WorkerDied(f"{said}, as one before it was; what it last printed says why; --resume goes on")
    log.warning("%s; the job goes on in another one", said)

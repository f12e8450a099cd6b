"""The rehearsal of a kernel whose competition hands over its studies one by one.

    kernel, in its sandbox              this process
    predictor <- stand_in_host.py  <--- gateway: the path of a study
                                   ---> a table of probabilities

The visible run asks about one study in the kernel's own process. In the hidden run a gateway of ours lays one study
after the other into a folder that both see, asks about it, checks the answer and the time it took, and takes the study
away again. Between the studies it asks about damaged copies of them and about one that is not there.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.inference import serve
from osteograde.inference.submission import SUM_TOLERANCE, priors_rows
from osteograde.kaggle import staging, stand_in_host
from osteograde.kaggle.client import logger
from osteograde.kaggle.rehearse import HIDDEN, START_S, VISIBLE, Stage, check, judge, play, staged
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS
from osteograde.tasks.limits import limits_of
from osteograde.tasks.places import read_places
from osteograde.tasks.spec import Competition, Study, Task
from osteograde.tasks.tables import ROW_ID

SHARED, GATEWAY = "/kaggle/shared", "/kaggle/gateway"  # folders that kernel and gateway both see
LOOK_S = 0.05
EMPTY, GARBAGE, CUT, ABSENT = "empty", "garbage", "cut", "absent"  # what may be wrong with a study that is asked about
BROKEN = (EMPTY, GARBAGE, CUT, ABSENT)


@dataclass(eq=False)
class Gateway:
    """What asks the kernel about its studies, in a thread of this process.

    shared: the folder that studies are laid in. inside: the same folder as the kernel sees it. socket: where the kernel
    listens once it serves. faults: what would fail in the competition, one line each.
    """

    task: Task
    stock: staging.Stock
    shared: Path
    inside: str
    socket: Path
    start_s: float
    faults: list[str] = field(default_factory=list)
    served_s: float = math.inf  # seconds until the kernel listened
    answers_s: list[float] = field(default_factory=list)
    answered: int = 0
    _gone: threading.Event = field(default_factory=threading.Event)

    def run(self, studies: Sequence[Study]) -> None:
        """Wait until the kernel serves, then ask about every study and about broken ones between them."""
        begun = time.monotonic()
        try:
            if (kernel := self._connected()) is None:
                self.faults.append("the kernel ended without serving: it must call serve()")
                return
            self.served_s = time.monotonic() - begun
            if self.served_s > self.start_s:
                self.faults.append(f"served after {self.served_s:.1f} s, allowed are {self.start_s:g}")
            with kernel:
                for number, study in enumerate(studies):
                    self._ask(kernel, study, "")
                    self._ask(kernel, study, BROKEN[number % len(BROKEN)])
                kernel.send_bytes(json.dumps("").encode())
        except (EOFError, OSError) as error:
            self.faults.append(f"the kernel hung up after {self.answered} answers: {type(error).__name__} {error}")

    def _connected(self) -> Connection | None:
        """The kernel, once it listens: the file of its socket is there a moment before. None if it ends before."""
        while not self._gone.is_set():
            try:
                return Client(str(self.socket), family="AF_UNIX")
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(LOOK_S)
        return None

    def end(self) -> None:
        """The kernel has ended: nothing is waited for any more."""
        self._gone.set()

    def _ask(self, kernel: Connection, study: Study, broken: str) -> None:
        folder = self.shared / study.id
        lay(self.stock, study, folder, broken)
        expected, is_sure = expected_columns(self.task, folder, study)
        begun = time.monotonic()
        kernel.send_bytes(json.dumps(f"{self.inside}/{study.id}").encode())
        answer = json.loads(kernel.recv_bytes())
        spent, first = time.monotonic() - begun, not self.answers_s
        self.answers_s.append(spent)
        shutil.rmtree(folder, ignore_errors=True)
        about = f"study {study.id}{f' ({broken})' if broken else ''}"
        limit_s = self.task.serving.study_s
        if spent > limit_s and not first:
            self.faults.append(f"{about}: answered after {spent:.1f} s, allowed are {limit_s:g}")
        problem = answer.get("error") or fault_of(answer["rows"], expected, whole=is_sure and not broken)
        self.faults += [f"{about}: {problem}"] if problem else []
        self.answered += 1


def rehearse_served(
    task: str,
    script: Path,
    data: Path,
    weights: Path,
    *,
    copies: int = 1,
    python: Path = Path(sys.executable),
    limits: Competition | None = None,
    isolate: bool = True,
) -> list[str]:
    """Do both runs of a served kernel and return everything that would fail in the competition, one line each.

    The arguments are those of ``rehearse.rehearse``. UserError as there.
    """
    known = TASKS[task].as_defined(ensemble.read(weights).definition)
    limits = limits or limits_of(known)
    stock = staging.stock(known, data)
    shown, others = stock.studies[:1], (*stock.studies[1:], *stock.studies[:1])
    with staged(task, script, weights, python=python, isolate=isolate) as stage:
        made = staging.lay(stock, shown, stage.home / "data", copies=1, put=stage.put)
        lay_host(known, stage.home / "data")
        limit_s = START_S + limits.hours * 3600 * len(made) / limits.studies
        done = play(stage, VISIBLE, limit_s, limits.memory_gib)
        faults = judge(VISIBLE, done, limit_s, limits.memory_gib)
        if not faults and known.serving.table is None:
            faults = check(VISIBLE, known, made, stage.home)
        logger.info("%s: %.1f s, %.2f GiB at most", VISIBLE, done.seconds, done.peak / 2**30)
        return faults or hidden_run(stage, known, stock, list(others) * copies, limits)


def hidden_run(
    stage: Stage, task: Task, stock: staging.Stock, studies: Sequence[Study], limits: Competition
) -> list[str]:
    """What would fail in the run that counts, one line each; times are logged."""
    shared, meeting = stage.home / "shared", stage.home / "gateway"
    for folder in (shared, meeting):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    inside = (SHARED, GATEWAY) if stage.isolated else (str(shared), str(meeting))
    gateway = Gateway(task, stock, shared, inside[0], meeting / "s", task.serving.start_s)
    asking = threading.Thread(target=gateway.run, args=(studies,), daemon=True)
    asking.start()
    limit_s = task.serving.start_s + limits.hours * 3600 * 2 * len(studies) / limits.studies
    done = play(
        stage,
        HIDDEN,
        limit_s,
        limits.memory_gib,
        beside=dict(zip((SHARED, GATEWAY), (shared, meeting), strict=True)),
        environment={stand_in_host.SOCKET: f"{inside[1]}/s"},
    )
    gateway.end()
    asking.join(10)
    later = sorted(gateway.answers_s[1:]) or [math.nan]
    logger.info(
        "%s: served after %.1f s of %.0f; %d answers, half of them within %.2f s, the slowest %.2f s of %g; %.2f GiB",
        HIDDEN, gateway.served_s, task.serving.start_s, gateway.answered, later[len(later) // 2], later[-1],
        task.serving.study_s, done.peak / 2**30,
    )  # fmt: skip
    told = [f"{HIDDEN}: {fault}" for fault in gateway.faults[:5]]
    return told or judge(HIDDEN, done, limit_s, limits.memory_gib)


def lay_host(task: Task, data: Path) -> None:
    """Put our stand-in for the host's package into the data, under the names that the task expects."""
    module, _, name = task.serving.server.partition(":")
    folder = data / serve.PACKAGE
    folder.mkdir()
    (folder / "__init__.py").touch()
    text = Path(stand_in_host.__file__).read_text(encoding="utf-8")
    (folder / f"{module}.py").write_text(f"{text}\n\n{name} = InferenceServer\n", encoding="utf-8")


def lay(stock: staging.Stock, study: Study, folder: Path, broken: str = "") -> None:
    """The files of one study as a competition shares them: as they are, or damaged as ``broken`` says."""
    shutil.rmtree(folder, ignore_errors=True)
    if broken == ABSENT:
        return
    folder.mkdir(parents=True)
    for file in staging.files_of(study) if broken != EMPTY else ():
        parts = file.relative_to(stock.images).parts
        below = parts[parts.index(study.id) + 1 :] if study.id in parts[:-1] else parts[-1:]
        target = folder.joinpath(*below)
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = file.read_bytes()
        target.write_bytes({"": whole, CUT: whole[: len(whole) // 2], GARBAGE: bytes(range(256))}[broken])


def expected_columns(task: Task, folder: Path, study: Study) -> tuple[Mapping[str, list[Any]], bool]:
    """The columns of the table that a whole study asks for, each with the values of class priors; and whether its rows
    are sure before its images are read (``Study.readings``)."""
    rows = task.rows(study.id, study.targets)
    try:
        found = read_places(task, folder) if task.serving.studies is None else []
    except (UserError, OSError):  # a damaged study: its rows are not compared
        found = []
    rows = [row for one in found for row in task.rows(one.id, one.targets)] or rows
    is_sure = not any(one.readings for one in found)
    return serve.table_of(task, priors_rows(task, rows)).to_dict("list"), is_sure  # type: ignore[return-value]


def fault_of(rows: Sequence[Mapping[str, Any]], expected: Mapping[str, Sequence[Any]], *, whole: bool) -> str:
    """What is wrong with an answer, in words; "" if nothing is. whole: the study is not damaged and its row ids are
    known; else the columns and values are checked alone."""
    if not rows:
        return "the answer has no row"
    if (columns := list(rows[0])) != list(expected):
        return f"the answer has the columns {columns}, expected {list(expected)}"
    ids = [str(row.get(ROW_ID, "")) for row in rows]
    if whole and ROW_ID in expected and ids != list(expected[ROW_ID]):
        return f"the answer has the rows {ids[:3]}, expected {list(expected[ROW_ID])[:3]} and {len(ids)} in all"
    if whole and len(rows) != len(next(iter(expected.values()))):
        return f"the answer has {len(rows)} rows, expected {len(next(iter(expected.values())))}"
    numbers = [{name: value for name, value in row.items() if not isinstance(value, str)} for row in rows]
    if any(not math.isfinite(value) or not 0 <= value <= 1 for row in numbers for value in row.values()):
        return "the answer holds values that are no probabilities"
    if ROW_ID in expected and any(abs(sum(row.values()) - 1) > SUM_TOLERANCE for row in numbers):
        return "the answer holds rows that do not sum to 1"
    return ""

"""Run the built kernel as a competition does: once on the one study that is visible, then on others at the same paths.

There is no network, the input is read-only, the environment holds only what Kaggle sets, and time and memory are
limited. Linux namespaces enforce this if the system allows them; otherwise the kernel runs in a plain folder, and the
log says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from osteograde.errors import UserError
from osteograde.inference import submission
from osteograde.kaggle import metadata, sandbox_guard, sandbox_namespaces, staging
from osteograde.kaggle.client import logger
from osteograde.kaggle.metadata import Source, parse_source
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS
from osteograde.tasks.limits import limits_of
from osteograde.tasks.spec import Competition, Study, Task

START_S = 300.0  # allowed for the start, however few studies there are
VISIBLE, HIDDEN = "visible run", "hidden run"
IMPORTS = "import torch, torchvision, timm, pydicom, cv2, pandas, scipy, safetensors, tqdm"


@dataclass(frozen=True)
class Stage:
    """Where a run takes place. isolated: in Linux namespaces; otherwise ``home`` stands for /kaggle."""

    home: Path
    python: Path
    script: Path
    mounts: Mapping[str, Path]  # below the input: path -> folder
    isolated: bool

    @property
    def put(self) -> staging.Put:
        """How files come here: linked where the system itself keeps them from being written to."""
        return staging.link if self.isolated else staging.copy


def rehearse(
    task: str,
    script: Path,
    data: Path,
    weights: Path,
    *,
    copies: int = 1,
    python: Path = Path(sys.executable),
    limits: Competition | None = None,
    start_s: float = START_S,
    isolate: bool = True,
) -> list[str]:
    """Do both runs and return everything that would fail in the competition, one line each.

    script: the built kernel, with its metadata beside it. data: studies; their test part if there is one. copies: how
    often the hidden run holds each study. python: the interpreter to use. limits: those of the task's competition by
    default; the hours are scaled down to the studies of a run, and start_s (seconds) is added. isolate: False does
    without namespaces.

    Raises UserError before any run for a kernel that was not built, damaged weights and data that cannot be read.
    """
    limits = limits or limits_of(TASKS[task])
    known = ensemble.task_of(ensemble.read(weights), TASKS)
    stock = staging.stock(known, data)
    shown, others = stock.studies[:1], stock.studies[1:] or stock.studies
    with staged(task, script, weights, python=python, isolate=isolate) as stage:
        home, put = stage.home, stage.put
        for name, studies, times in ((VISIBLE, shown, 1), (HIDDEN, others, copies)):
            made = staging.lay(stock, studies, home / "data", copies=times, put=put)
            limit_s = start_s + limits.hours * 3600 * len(made) / limits.studies
            done = play(stage, name, limit_s, limits.memory_gib)
            faults = judge(name, done, limit_s, limits.memory_gib) or check(name, known, made, home)
            took = f"{done.seconds:.1f} s, {done.peak / 2**30:.2f} GiB at most"
            logger.info("%s: %d of %d studies, %s", name, done.done, len(made), took)
            if faults:
                return faults
        for line in (*_closing(done.out), *project(done, len(made), limits)):
            logger.info("%s", line)
    return []


@contextmanager
def staged(task: str, script: Path, weights: Path, *, python: Path, isolate: bool) -> Iterator[Stage]:
    """A place for the runs of a built kernel, with its weights and without data; removed in the end.

    Raises UserError for a kernel that was not built and for damaged weights.
    """
    facts = metadata.read(script.parent)
    metadata.check(facts, script.parent)
    with prepared(python, isolate) as (home, isolated):
        mounts = {
            mount: home / name for name, mount in zip(("weights", "data"), places(facts, TASKS[task]), strict=True)
        }
        stage = Stage(home, python, script, mounts, isolated)
        staging.lay_weights(weights, home / "weights", stage.put)
        yield stage


@contextmanager
def prepared(python: Path, isolate: bool) -> Iterator[tuple[Path, bool]]:
    """An empty folder for runs, removed in the end, and whether they take place in namespaces."""
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        home = Path(folder).resolve()
        isolated = isolate and allowed(home, python)
        place = "Linux namespaces: no network, input read-only" if isolated else "a plain folder: no namespaces here"
        logger.info("rehearsal in %s; %s", place, python)
        yield home, isolated


def places(facts: Mapping[str, object], task: Task) -> tuple[str, str]:
    """Below the input: where a session has the kernel's weights, and where its data."""
    models, sets = [list(facts[key]) for key in ("model_sources", "dataset_sources")]  # type: ignore[call-overload]
    mounted = [mount(parse_source(name)) for name in (*models, *sets)]
    if task.slug:
        return mounted[0], f"competitions/{task.slug}"
    return mounted[0], mounted[1]


def mount(source: Source) -> str:
    if not source.is_model:
        return f"datasets/{source.ref}"
    return f"models/{source.model}/{source.framework.lower()}/{source.variation}/{source.version}"


def allowed(home: Path, python: Path) -> bool:
    """True if the system allows namespaces: tried with a program that does nothing."""
    (home / "probe").mkdir()
    spec = _spec(home, {}, [str(python), "-I", "-c", "pass"], home / "probe")
    done = subprocess.run([str(python), "-I", sandbox_namespaces.__file__, str(spec)], capture_output=True, timeout=120)
    return done.returncode == 0


def play(
    stage: Stage,
    name: str,
    limit_s: float,
    memory_gib: float,
    *,
    beside: Mapping[str, Path] | None = None,
    environment: Mapping[str, str] | None = None,
) -> WatchedRun:
    """One run of the script with what is staged now.

    beside: further folders that the script may write to, by their path in a session; without namespaces they stay
    where they are. environment: further variables.
    """
    working, source = stage.home / "working", stage.home / "src"
    for folder in (working, source):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    shutil.copyfile(stage.script, source / "script.py")
    shutil.copyfile(sandbox_guard.__file__, source / "guard.py")
    variables = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"} | ({"KAGGLE_IS_COMPETITION_RERUN": "1"} if name == HIDDEN else {})
    variables |= environment or {}
    limits = {"limit_s": limit_s, "limit_bytes": int(memory_gib * 2**30)}
    python, logs = [str(stage.python), "-I"], stage.home / "log"
    if stage.isolated:
        inside = [*python, "/kaggle/src/guard.py", "/kaggle/src/script.py", sandbox_namespaces.INPUT]
        spec = _spec(stage.home, stage.mounts, inside, working, variables, beside)
        return run_watched([*python, sandbox_namespaces.__file__, str(spec)], {}, working, logs, **limits)  # type: ignore[arg-type]
    root = stage.home / "input"
    shutil.rmtree(root, ignore_errors=True)
    for path, folder in stage.mounts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, root / path)
    variables |= {"OSTEOGRADE_KAGGLE_INPUT": str(root), "OSTEOGRADE_KAGGLE_WORKING": str(working)}
    before = _snapshot(root)
    command = [*python, str(source / "guard.py"), str(source / "script.py"), str(root)]
    done = run_watched(command, variables, working, logs, **limits)  # type: ignore[arg-type]
    if _snapshot(root) != before:
        told = f"{done.err}\n{sandbox_guard.MARK}: {sandbox_guard.WRITE}: its files differ after the run\n"
        return WatchedRun(done.code, done.seconds, done.peak, done.steps, done.out, told)
    return done


def judge(name: str, done: WatchedRun, limit_s: float, memory_gib: float) -> list[str]:
    """What a run failed on, one line each; nothing if it ended well."""
    if done.over_time:
        return [f"{name}: over budget: stopped after {limit_s:.0f} s with {done.done} studies done"]
    if done.over_memory:
        return [f"{name}: out of memory: stopped at {done.peak / 2**30:.1f} GiB of {memory_gib:g}"]
    marked = re.findall(rf"^{sandbox_guard.MARK}: (.*)$", done.err, re.MULTILINE)
    if marked:
        return [f"{name}: forbidden: {line}" for line in dict.fromkeys(marked)][:5]
    if done.code == 0:
        return []
    return [f"{name}: ended with code {done.code} after {done.done} studies: {last_words(done)}"]


def last_words(done: WatchedRun) -> str:
    lines = [line.strip() for line in done.err.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    return told[-1] if told else lines[-1] if lines else "it said nothing"


def check(name: str, task: Task, studies: Sequence[Study], home: Path) -> list[str]:
    """What is wrong with the submission of a run that ended well."""
    made = home / "working" / "submission.csv"
    if not made.is_file():
        return [f"{name}: no submission.csv in the working folder"]
    staging.template(task, as_answered(task, studies, made), home / "template.csv")
    problems = submission.validate(made, home / "template.csv")
    return [f"{name}: submission.csv: {problem}" for problem in problems]


def as_answered(task: Task, studies: Sequence[Study], made: Path) -> list[Study]:
    """The studies with the targets of that reading, of several (``Study.readings``), whose rows a submission holds; as
    they are where it holds those of none, or cannot be read."""
    try:
        given = {*(submission.template_ids(made) or ())}
    except UserError:
        return list(studies)
    found = []
    for study in studies:
        own = given & {*task.rows(study.id)}
        open_targets = [study.targets, *(reading.targets for reading in study.readings)]
        fitting = [targets for targets in open_targets if {*task.rows(study.id, targets)} == own]
        found.append(replace(study, targets=fitting[0]) if fitting else study)
    return found


def project(done: WatchedRun, studies: int, limits: Competition) -> list[str]:
    """Time and memory for a whole competition, from the pace between the first and the last chunk of this run."""
    (first_s, first), (last_s, last) = (done.steps[0], done.steps[-1]) if done.steps else ((0.0, 0), (done.seconds, 1))
    if last > first > 0:
        each = (last_s - first_s) / (last - first)
        start = max(0.0, first_s - first * each)
        how = f"{each:.2f} s a study after {start:.0f} s"
    else:
        each, start = done.seconds / max(studies, 1), 0.0
        how = f"at most {each:.2f} s a study, start included: rehearse more studies to tell them apart"
    total = (start + each * limits.studies) / 3600
    fits = "fits" if total < limits.hours else "DOES NOT FIT"
    return [
        f"time for {limits.studies} studies on this machine: {total:.2f} h of {limits.hours:g} ({how}): {fits}",
        f"memory: {done.peak / 2**30:.2f} GiB at most in {studies} studies, of {limits.memory_gib:g}; it does "
        "not grow with their number but for the rows",
    ]


def image_python(venv: Path) -> Path:
    """The interpreter with the image's versions. Raises UserError if its environment was not made or is incomplete."""
    python = venv.absolute() / "bin" / "python"
    if not python.is_file():
        raise UserError(f"{python}: missing; make kaggle-env makes it (about 3 GB to download)")
    done = subprocess.run([str(python), "-I", "-c", IMPORTS], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise UserError(f"{python}: {done.stderr.strip().splitlines()[-1]}; make kaggle-env again")
    return python


def _spec(
    home: Path,
    mounts: Mapping[str, Path],
    command: list[str],
    working: Path,
    environment: Mapping[str, str] | None = None,
    beside: Mapping[str, Path] | None = None,
) -> Path:
    for name in ("root", "tmp", "src"):
        (home / name).mkdir(exist_ok=True)
    inside = {f"{sandbox_namespaces.INPUT}/{path}": [str(folder), "ro"] for path, folder in mounts.items()}
    inside |= {"/kaggle/working": [str(working), "rw"], "/kaggle/src": [str(home / "src"), "ro"]}
    inside |= {path: [str(folder), "rw"] for path, folder in (beside or {}).items()}
    facts = {"root": str(home / "root"), "mounts": inside, "tmp": str(home / "tmp"), "command": command}
    path = home / "spec.json"
    path.write_text(json.dumps(facts | {"environment": dict(environment or {})}), encoding="utf-8")
    return path


def _snapshot(root: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.stat() for path in root.rglob("*")}
    return {path.as_posix(): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def _closing(out: str) -> list[str]:
    """The summary that a kernel ends its log with."""
    lines = out.splitlines()
    start = [number for number, line in enumerate(lines) if line.startswith("== ")]
    return lines[start[-1] :] if start else []


POLL_S = 0.2
PROGRESS = re.compile(r"^(\d+)/\d+ studies, ", re.MULTILINE)


@dataclass(frozen=True)
class WatchedRun:
    """How a run ended. steps: (seconds since the start, studies done). peak: bytes of all its processes together."""

    code: int
    seconds: float
    peak: int
    steps: tuple[tuple[float, int], ...]
    out: str
    err: str
    over_time: bool = False
    over_memory: bool = False

    @property
    def done(self) -> int:
        return self.steps[-1][1] if self.steps else 0


def run_watched(
    command: Sequence[str], environment: dict[str, str], folder: Path, logs: Path, *, limit_s: float, limit_bytes: int
) -> WatchedRun:
    """Run a command in ``folder`` until it ends or exceeds a limit; in that case its process group is killed."""
    begun, peak, steps = time.monotonic(), 0, list[tuple[float, int]]()
    over_time = over_memory = False
    out, err = logs.with_suffix(".out"), logs.with_suffix(".err")
    with out.open("wb") as to_out, err.open("wb") as to_err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=to_out,
            stderr=to_err,
            start_new_session=True,
        )
        while process.poll() is None:
            time.sleep(POLL_S)
            spent = time.monotonic() - begun
            peak = max(peak, memory_of(process.pid))
            done = [int(number) for number in PROGRESS.findall(_text(out))]
            if done and (not steps or done[-1] > steps[-1][1]):
                steps.append((spent, done[-1]))
            over_time, over_memory = spent > limit_s, peak > limit_bytes
            if over_time or over_memory:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds, code = time.monotonic() - begun, process.returncode
    done = [int(number) for number in PROGRESS.findall(_text(out))]
    if done and (not steps or done[-1] > steps[-1][1]):
        steps.append((seconds, done[-1]))
    return WatchedRun(code, seconds, peak, tuple(steps), _text(out), _text(err), over_time, over_memory)


def memory_of(session: int) -> int:
    """Resident bytes of all processes of a session; 0 where the system does not tell."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    return total


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")

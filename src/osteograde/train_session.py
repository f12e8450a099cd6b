"""What a kernel that trains runs: train_folds.py for as long as a session lasts, and on from its own last output.

    /kaggle/input/...notebooks/OWNER/KERNEL/TASK/    what the last session left, if the kernel reads its own output
    /kaggle/working/TASK/                            nets, folds and work/, from which the next session goes on

Training is a process of its own. At the end of the session it is stopped, wherever it is: what it had finished lies on
disk after every epoch, so at most one epoch is done twice, and the bytes of the weights are those of a run without a
stop. Such a session ends with exit code 0, because the service keeps no output of a kernel that failed.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from osteograde import logs
from osteograde.errors import UserError
from osteograde.inference.kernel_main import find_data, search, tree
from osteograde.learning import history
from osteograde.learning.folds import FILE as FOLDS
from osteograde.models.manifest import MANIFEST, sha256
from osteograde.tasks import TASKS
from osteograde.tasks.limits import SESSION

SPARE_HOURS = 0.5  # of a session: the output must be complete before the service ends it
STOP_S = 20.0  # that training may take to end after it is told to
RECIPE = "recipe.json"
log = logging.getLogger("osteograde.learning")


def train_session(task: str, arguments: str = "", data_set: str = "", hours: float = 0.0) -> int:
    """Train into TASK/ of the working folder; the exit code is returned: 0 also where the session ended first.

    arguments: further options of train_folds.py, as one would type them. data_set: owner/name of the data set that
    holds the labelled studies, for a task without a competition. hours: after which the session is left, 0 for those of
    a session less ``SPARE_HOURS``. The variables that move the folders of the kernel of inference work here, too.
    """
    begun = time.monotonic()
    logs.to_stdout()
    root = Path(os.environ.get("OSTEOGRADE_KAGGLE_INPUT", "/kaggle/input"))
    out = Path(os.environ.get("OSTEOGRADE_KAGGLE_WORKING", "/kaggle/working")) / task
    limit_s = (hours or SESSION.hours - SPARE_HOURS) * 3600
    try:
        former = find_former(root, task)
        data = find_data(root, TASKS[task].slug, data_set, skip=former)
        take_over(former, out)
    except (ValueError, OSError) as error:
        print(f"error: {error}\nbelow {root}:", *tree(root), sep="\n  ", file=sys.stderr, flush=True)
        return 2
    log.info("data %s; %s", data, f"goes on from {former}" if former else "no earlier session: begins anew")
    code: int | None = 0
    before = epochs_of(out)
    if not is_finished(out):
        words = [sys.executable, "-m", "osteograde", "train", task, "--data", str(data), "--out", str(out)]
        words += ["--resume"] if (out / "work" / RECIPE).is_file() else []
        code = run_for(limit_s - (time.monotonic() - begun), [*words, *shlex.split(arguments)])
    if code is None and epochs_of(out) == before:
        log.warning("no epoch was finished in this session: the next one would not get further; give it more hours")
    for line in closing(task, out, code, time.monotonic() - begun):
        log.info(line)
    return code or 0


def find_former(root: Path, task: str) -> Path | None:
    """The folder TASK that an earlier session left and that is attached now; None where there is none.

    UserError where several are attached: which of them to go on from cannot be told.
    """
    found = [path.parent.parent for path in search(root, RECIPE) if path.parent.name == "work"]
    found = [folder for folder in found if folder.name == task]
    if len(found) > 1:
        raise UserError(f"{len(found)} outputs of earlier sessions are attached, expected 1: {list(map(str, found))}")
    return found[0] if found else None


def take_over(former: Path | None, out: Path) -> None:
    """Copy what the last session left into the working folder, where it can be written to."""
    if former is None or out.exists():
        return
    shutil.copytree(former, out, copy_function=shutil.copyfile)
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def is_finished(out: Path) -> bool:
    """Whether all nets are trained and scored: the manifest is written last."""
    return (out / MANIFEST).is_file()


def epochs_of(out: Path) -> int:
    """How many epochs of all nets were finished so far."""
    return sum(len(history.read(path)) for path in (out / history.FOLDER).glob("*.jsonl"))


def run_for(seconds: float, command: list[str]) -> int | None:
    """The exit code of a command, or None where it did not end within so many seconds and was stopped."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def closing(task: str, out: Path, code: int | None, seconds: float) -> list[str]:
    """One screen at the end of the log: how far the training is, and what comes next."""
    nets = sorted(path.relative_to(out).as_posix() for path in out.glob("*/*/*.safetensors"))
    if is_finished(out):
        state = f"finished: {MANIFEST} sha256 {sha256(out / MANIFEST)}"
    elif code is None:
        state = "the session ended first; the next one goes on (kernel build --train --go-on, then push again)"
    else:
        state = f"training ended with exit code {code}; its last lines are above"
    folds = "written" if (out / FOLDS).is_file() else "none yet"
    return [
        f"== osteograde train {task} ".ljust(78, "="),
        f"nets       {len(nets)} finished{': ' + ', '.join(nets[-3:]) if nets else ''}; folds {folds}",
        f"epochs     {epochs_of(out)} in all sessions",
        f"time       {seconds:.0f} s",
        f"result     {state}",
        "=" * 78,
    ]

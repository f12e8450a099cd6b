"""One run of a program under limits of time and memory: how it ended, how far it came, and how much it took."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.2
PROGRESS = re.compile(r"^(\d+)/\d+ studies, ", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What a run came to. ``steps``: (seconds since the start, studies done). peak: bytes of all its processes."""

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


def run(
    command: Sequence[str], environment: dict[str, str], folder: Path, logs: Path, *, limit_s: float, limit_bytes: int
) -> Run:
    """Run a command in ``folder`` until it ends or goes over a limit; its process group is then killed."""
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
            peak = max(peak, memory(process.pid))
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
    return Run(code, seconds, peak, tuple(steps), _text(out), _text(err), over_time, over_memory)


def memory(session: int) -> int:
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

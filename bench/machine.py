"""On what a bench ran, and whether anything else ran there meanwhile: what a ratio of two times is worth.

Beside other work the two sides of a ratio suffer differently (two threads of one operation wait for each other, one
thread does not), so a bench that saw the machine busy prints its times, and no ratio of them.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

MOST_OTHERS = 0.1  # share of the machine's processors that other processes may have used
REFUSED = "refused"  # what stands in place of a ratio


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor, as Linux has it, else as Python does."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return next((name for name in names if name), platform.processor() or platform.machine() or "unknown processor")


def described() -> str:
    """The processor, and how many of them this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} CPUs"


@dataclass(frozen=True)
class Moment:
    """Seconds at one point in time: of the clock, of work of all processors since the machine started, and of this
    process and its ended children. all_s: None where the system does not tell. load: mean number of running processes
    over the last minute."""

    clock_s: float
    all_s: float | None
    own_s: float
    load: float

    @classmethod
    def now(cls) -> Moment:
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own_s = sum(one.ru_utime + one.ru_stime for one in own)
        return cls(time.monotonic(), busy_seconds(), own_s, os.getloadavg()[0])


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Seconds of work of all processors since the machine started, with what a host took away from this guest."""
    try:
        cells = stat.read_text(encoding="ascii").splitlines()[0].split()
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    if not cells or cells[0] != "cpu":
        return None
    user, nice, system, _, _, *more = map(int, cells[1:9])  # idle and waiting for disks left out
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK")


def others_share(before: Moment, after: Moment, cores: int) -> float | None:
    """The share of all processors that other processes used in between; None where the system does not tell."""
    if before.all_s is None or after.all_s is None or after.clock_s <= before.clock_s:
        return None
    others = (after.all_s - before.all_s) - (after.own_s - before.own_s)
    return max(0.0, others / (cores * (after.clock_s - before.clock_s)))


@dataclass
class Watch:
    """Looks at the machine from when it is made. ``ends`` stops it; until then it looks up to now."""

    begun: Moment = field(default_factory=Moment.now)
    ended: Moment | None = None
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)

    def ends(self) -> Watch:
        self.ended = Moment.now()
        return self

    @property
    def others(self) -> float | None:
        return others_share(self.begun, self.ended or Moment.now(), self.cores)

    @property
    def is_busy(self) -> bool:
        """Whether other processes used more than a tenth of the machine; where that cannot be told, whether there was
        load before anything of the bench ran."""
        others = self.others
        return others > MOST_OTHERS if others is not None else self.begun.load > MOST_OTHERS * self.cores

    def ratio(self, value: float, digits: int = 2) -> str:
        """The ratio as text, or REFUSED where the machine was busy."""
        return REFUSED if self.is_busy else f"{value:.{digits}f}"

    def __str__(self) -> str:
        others = self.others
        told = "other processes not known" if others is None else f"other processes {others:.0%} of it"
        said = f"load {self.begun.load:.1f} before, {(self.ended or Moment.now()).load:.1f} after, {told}"
        return f"{said}: busy, so no ratio is printed" if self.is_busy else said

"""How long a list of jobs takes on so many devices, and how well these are used, by list scheduling.

List scheduling (Graham, Bell System Technical Journal 45, 1966) is what the executors do: whenever a device is free it
takes the first job of the list that waits for nothing. Nothing here knows what a job does, or needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osteograde.learning.executors import Job

HOUR_S = 3600.0


@dataclass(frozen=True)
class Placed:
    """A job on a device, counted from 0, from one second to another."""

    key: str
    device: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Schedule:
    """All jobs, in the order of their begin."""

    placed: tuple[Placed, ...]
    devices: int

    @property
    def makespan_s(self) -> float:
        """Seconds from the first to the last of the jobs."""
        return max((one.end_s for one in self.placed), default=0.0)

    @property
    def busy_s(self) -> float:
        """Seconds of work of all devices together."""
        return sum(one.end_s - one.start_s for one in self.placed)

    @property
    def used(self) -> int:
        """Devices that have something to do at all."""
        return len({one.device for one in self.placed if one.end_s > one.start_s})

    @property
    def utilisation(self) -> float:
        """The share of the time of all devices, from the first to the last job, in which they work; 1 where there is no
        job."""
        held = self.makespan_s * self.devices
        return self.busy_s / held if held else 1.0

    @property
    def device_hours(self) -> float:
        """What is paid for where all devices are held from the first to the last job."""
        return self.makespan_s * self.devices / HOUR_S

    @property
    def busy_hours(self) -> float:
        """What is paid for where a device is held only while it works, as in a queue of single jobs."""
        return self.busy_s / HOUR_S


def simulate(jobs: Sequence[Job], seconds: Mapping[str, float], devices: int) -> Schedule:
    """The schedule of a list of jobs. seconds: of each; a job without a time takes none. A job that is waited for and
    is not in the list counts as finished. ValueError where jobs wait for one another."""
    left, given = list(jobs), {job.key for job in jobs}
    ends: dict[str, float] = {}
    free_s = [0.0] * devices
    placed: list[Placed] = []
    while left:
        device = min(range(devices), key=lambda one: free_s[one])
        now = free_s[device]
        ready = next((job for job in left if _is_ready(job, given, ends, now)), None)
        if ready is not None:
            free_s[device] = ends[ready.key] = now + seconds.get(ready.key, 0.0)
            placed.append(Placed(ready.key, device, now, free_s[device]))
            left.remove(ready)
            continue
        later = [end for end in ends.values() if end > now]
        if not later:
            raise ValueError(f"{left[0].key} waits for {left[0].after}, which are never done")
        free_s[device] = min(later)  # it has nothing to do until the next job of another device ends
    return Schedule(tuple(placed), devices)


def _is_ready(job: Job, given: set[str], ends: Mapping[str, float], now: float) -> bool:
    return all(key in ends and ends[key] <= now for key in job.after if key in given)


def critical_path(jobs: Sequence[Job], seconds: Mapping[str, float]) -> tuple[tuple[str, ...], float]:
    """(keys, seconds) of the longest chain of jobs of which each waits for the one before: no number of devices is done
    sooner. jobs: each behind those that it waits for."""
    ends: dict[str, float] = {}
    before: dict[str, str] = {}
    for job in jobs:
        waits = [key for key in job.after if key in ends]
        last = max(waits, key=lambda key: ends[key], default="")
        ends[job.key] = (ends[last] if last else 0.0) + seconds.get(job.key, 0.0)
        before[job.key] = last
    if not ends:
        return (), 0.0
    key = max(ends, key=lambda one: ends[one])
    path = [key]
    while before[path[0]]:
        path.insert(0, before[path[0]])
    return tuple(path), ends[key]

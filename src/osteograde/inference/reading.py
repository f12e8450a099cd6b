"""Studies to volumes: every file read once, one window per series, every stack the same way up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from osteograde.imaging.dicom import UnreadableSeries, read_series
from osteograde.imaging.geometry import Volume, apply, oriented
from osteograde.imaging.intensity import window
from osteograde.imaging.slabs import slabs
from osteograde.tasks.contract import Mark, Point, Study, Task


@dataclass(frozen=True, eq=False)
class Loaded:
    """What could be read of a study: view -> stacks of uint8, and why the rest could not."""

    study: Study
    volumes: Mapping[str, tuple[Volume, ...]]
    faults: Counter[str] = field(default_factory=Counter)
    marks: Mapping[str, Point] = field(default_factory=dict)  # annotated landmarks whose slice was read, in mm

    @property
    def readable(self) -> bool:
        return any(self.volumes.values())


def load_study(study: Study, task: Task, *, map: Callable[..., Iterable] = map) -> Loaded:
    """Read every series of a study. ``map`` may be a thread pool's; a series that fails costs that series only."""
    volumes: dict[str, list[Volume]] = {view.name: [] for view in task.views}
    faults: Counter[str] = Counter()
    marks: dict[str, Point] = {}
    for series in study.series:
        told = task.view(series.view) if series.view else task.views[0]  # a folder that no table names
        directions = np.array(told.directions)
        try:
            stacks, codes = read_series(series.folder, default_directions=directions, map=map)
        except UnreadableSeries as error:
            faults[f"{series.view or 'unnamed'}:{error.code}"] += 1
            continue
        view = series.view or task.view_of_orientation(stacks[0])
        if not view:
            faults["unnamed:no_view"] += 1
            continue
        directions = np.array(task.view(view).directions)
        faults.update({f"{view}:{code}": count for code, count in codes.items()})
        marks |= marked(study.marks, series.id, stacks)
        volumes[view] += [oriented(slabs(volume), directions) for volume in window(stacks)]
    faults.update({f"{name}:absent": 1 for name, stacks in volumes.items() if not stacks})
    return Loaded(study, {view: tuple(stacks) for view, stacks in volumes.items()}, faults, marks)


def marked(marks: Sequence[Mark], series: str, stacks: Sequence[Volume]) -> dict[str, Point]:
    """Annotated pixels of a series in mm. The stacks must be as read: pixel (x, y) is column and row of the file."""
    places = {name: (stack, z) for stack in stacks for z, name in enumerate(stack.names)}
    return {
        mark.landmark: Point(
            apply(places[mark.instance][0].to_mm, np.array([places[mark.instance][1], mark.y, mark.x]))
        )
        for mark in marks
        if mark.series == series and mark.instance in places
    }

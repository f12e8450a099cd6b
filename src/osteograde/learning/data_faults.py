"""What a training run could not use of its data: images that cannot be read, points without a slice, labels without
an image. Each costs its own row; all are counted, and a run that loses many of its labels says so at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from osteograde.errors import UserError
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Series, Task
from osteograde.tasks.tables import some

MANY = 0.02  # share of the labels that a run may lose without a warning at its end
MOST = 0.5  # a run that loses more has nothing to say


@dataclass(frozen=True)
class DataFaults:
    """Counts over the studies of a run. unread: files or folders of series of which nothing could be read. faults:
    code -> how often. A label is lost where none of the views that its grader crops could be read, a point where no
    slice was found for it."""

    studies: int = 0
    unread: tuple[Path, ...] = ()
    faults: Counter[str] = field(default_factory=Counter)
    labels: int = 0
    labels_lost: int = 0
    points: int = 0
    points_lost: int = 0

    @property
    def share_lost(self) -> float:
        return self.labels_lost / self.labels if self.labels else 0.0


def data_faults(task: Task, studies: Iterable[Loaded]) -> DataFaults:
    """What is lost of some studies, after they were read."""
    views = {site.target: {crop.view for crop in grader.crops} for grader in task.graders for site in grader.sites}
    count, unread, faults = 0, list[Path](), Counter[str]()
    labels = labels_lost = points = points_lost = 0
    for loaded in studies:
        study = loaded.study
        count += 1
        faults.update(loaded.faults)
        seen = {view for view, stacks in loaded.volumes.items() if stacks}
        read = {stack.series for stacks in loaded.volumes.values() for stack in stacks}
        unread += [_path_of(series) for series in study.series if series.id not in read]
        labels += len(study.labels)
        labels_lost += sum(not views[target] & seen for target in study.labels)
        marked = {mark.landmark for mark in study.marks if not np.isnan(mark.x)}
        points += len(marked)
        points_lost += len(marked - set(loaded.marks))
    return DataFaults(count, tuple(unread), faults, labels, labels_lost, points, points_lost)


def _path_of(series: Series) -> Path:
    return series.files[0] if len(series.files) == 1 else series.folder


def lines_of(lost: DataFaults) -> list[str]:
    """The counts for the log, one line each; none where nothing was lost or assumed."""
    lines = []
    if lost.faults:
        counted = ", ".join(f"{code} x {count}" for code, count in sorted(lost.faults.items()))
        lines.append(f"reading {lost.studies} studies: {counted}")
    if lost.unread:
        lines.append(f"{len(lost.unread)} images or series could not be read: {some(lost.unread, 10)}")
    if lost.labels_lost:
        lines.append(f"{lost.labels_lost} of {lost.labels} labels have no readable image: not learnt from")
    if lost.points_lost:
        lines.append(f"{lost.points_lost} of {lost.points} annotated points have no readable slice: not learnt from")
    return lines


def warning_of(lost: DataFaults) -> list[str]:
    """What the last screen of a run must say; nothing where few labels and points are lost."""
    shares = {"labels": lost.share_lost, "annotated points": lost.points_lost / max(lost.points, 1)}
    many = [f"{share:.0%} of the {name}" for name, share in shares.items() if share > MANY]
    if not many:
        return []
    return [f"warning: {' and '.join(many)} could not be used (see above); the nets learnt from the rest alone"]


def refuse_if_most(lost: DataFaults) -> None:
    """UserError where more than half of the labels are lost."""
    if lost.share_lost > MOST:
        raise UserError(
            f"{lost.labels_lost} of {lost.labels} labels have no readable image, such as "
            f"{some(lost.unread, 3)}; mend the files, or give the folder that belongs to the labels"
        )

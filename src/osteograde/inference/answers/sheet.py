"""What a run writes: rows that are priors until their study is done, flags and findings, and the summary."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.inference import submission
from osteograde.inference.answers import findings, flags
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded
from osteograde.tasks.spec import Point, Study, Task


@dataclass(frozen=True, eq=False)
class Result:
    """Everything one study came to."""

    loaded: Loaded
    points: Mapping[str, Point]  # found and completed
    graded: Mapping[str, np.ndarray]  # target -> (K + F,) of the targets that could be seen, see ``pipeline.grade``


@dataclass
class Tally:
    """What happened, for the log, the flags file and the benchmark."""

    studies: int = 0
    unread: int = 0
    on_prior: int = 0  # targets
    faults: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    flags: list[flags.Flag] = field(default_factory=list)
    findings: list[findings.Finding] = field(default_factory=list)


class Sheet:
    """The rows of the submission: priors at first, replaced study by study, written whole each time.

    Rows are those of the template, in its order, and then those of studies that a stale template does not know. The
    tables of flags and findings lie beside it and are written with it.
    """

    def __init__(
        self,
        task: Task,
        prior: Mapping[str, Sequence[float]],
        studies: Sequence[Study],
        out: Path,
        template: Sequence[str],
        tally: Tally,
    ) -> None:
        self.task, self.prior, self.studies, self.out, self.tally, self.done = task, prior, studies, out, tally, 0
        own = [row for study in studies for row in self.task.rows(study.id, study.targets)]
        self.rows = submission.priors_rows(self.task, dict.fromkeys((*template, *own)), self.prior)

    def _set(self, study: Study, graded: Mapping[str, np.ndarray]) -> None:
        table = predict.probability_rows(self.task, graded, self.prior, study.targets)
        self.rows |= dict(zip(self.task.rows(study.id, study.targets), table, strict=True))

    def put(self, result: Result) -> None:
        study, tally = result.loaded.study, self.tally
        self._set(study, result.graded)
        self.done += 1
        tally.findings += findings.findings_of(self.task, study.id, result.graded)
        tally.flags += flags.flags_of(self.task, result.loaded, result.points, result.graded)
        tally.on_prior += len(self.task.asked(study.targets)) - len(result.graded)

    def leave(self, why: str) -> None:
        """Flag the rows of studies that were not reached."""
        left = self.studies[self.done :]
        self.tally.flags += [flag for study in left for flag in flags.not_reached(self.task, study, why)]
        if left:
            self.tally.faults[why] += len(left)

    def write(self) -> None:
        submission.write_submission(self.out, self.rows, self.task.classes)
        write_beside(self.task, self.tally, self.out)

    def try_to_write(self) -> bool:
        """Write, unless the disk is full or gone for the moment: what was written before stays, grading goes on."""
        try:
            self.write()
        except OSError:
            self.tally.faults["not_written_yet"] += 1
            return False
        return True


def write_beside(task: Task, tally: Tally, out: Path) -> None:
    """The tables beside the submission: flags, and findings of tasks that have any."""
    flags.write(flags.path_beside(out), tally.flags)
    if columns := findings.names(task):
        findings.write(findings.path_beside(out), columns, tally.findings)


def summary(tally: Tally, done: int, out: Path) -> list[str]:
    """What a reader of the log wants to know."""
    spent: dict[str, Any] = {name: f"{seconds:.1f} s" for name, seconds in tally.seconds.items()}
    lines = [f"time: {', '.join(f'{name} {seconds}' for name, seconds in spent.items())}"]
    if tally.faults:
        lines.append("faults: " + ", ".join(f"{code} x {count}" for code, count in sorted(tally.faults.items())))
    lines.append(
        f"{done} of {tally.studies} studies graded ({tally.unread} unreadable), "
        f"{tally.on_prior} targets on the prior -> {out}"
    )
    return lines

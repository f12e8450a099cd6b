"""What graders say beside the grade: a table of yes/no findings next to the submission, for tasks that have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from osteograde.inference import whole
from osteograde.tasks.spec import Task

Finding = tuple[str, tuple[float, ...]]  # row id, probability of each finding


def names(task: Task) -> tuple[str, ...]:
    """The findings of a task, in the order of its graders."""
    return tuple(dict.fromkeys(name for group in task.grade for name in group.findings))


def findings_of(task: Task, study: str, graded: Mapping[str, np.ndarray]) -> list[Finding]:
    """The findings of one study's graded rows; NaN where a row's grader does not ask."""
    columns, found = names(task), []
    for group in task.grade:
        for site in group.sites:
            if group.findings and site.target in graded:
                said = dict(zip(group.findings, graded[site.target][len(task.classes) :], strict=True))
                found.append((f"{study}_{site.target}", tuple(float(said.get(name, np.nan)) for name in columns)))
    return found


def write(path: Path, columns: Sequence[str], rows: Sequence[Finding]) -> None:
    lines = [",".join(["row_id", *columns])]
    lines += [",".join([row, *("" if np.isnan(v) else f"{v:.6f}" for v in values)]) for row, values in rows]
    whole.write(path, "\n".join(lines) + "\n")


def path_beside(out: Path) -> Path:
    """submission.csv -> submission.findings.csv."""
    return out.with_name(out.stem + ".findings.csv")

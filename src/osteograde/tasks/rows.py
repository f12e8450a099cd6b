"""Tables of graded rows (row_id, one column per class): what a submission, a template and out-of-fold files share."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from osteograde.tasks.spec import Task
from osteograde.tasks.tables import some

ROW_ID = "row_id"


def split_id(task: Task, row: str) -> tuple[str, str]:
    """(study, target) of a row id. ValueError where it ends in no target of the task."""
    for target in task.targets:
        if row.endswith(f"_{target}"):
            return row[: -len(target) - 1], target
    raise ValueError(f"row id {row!r} ends in no target of {task.name}, such as {task.targets[0]!r}")


def by_study(task: Task, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{study: (targets, classes)} in the task's order; NaN for rows a study does not have. ValueError where a study
    lacks rows of a task whose studies all have the same."""
    place = {target: i for i, target in enumerate(task.targets)}
    found: dict[str, np.ndarray] = {}
    for row, values in rows.items():
        study, target = split_id(task, row)
        if study not in found:
            found[study] = np.full((len(task.targets), len(task.classes)), np.nan)
        found[study][place[target]] = values
    lost = [row for study in found for row in task.rows(study) if row not in rows]
    if lost and not task.rows_vary:
        raise ValueError(f"{len(lost)} rows are missing: {some(lost)}; every study needs {len(task.targets)} rows")
    return found


def read(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(columns, row ids, values (rows, classes)) of a table; cells that are no number are NaN. ValueError otherwise."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            records = [record for record in csv.reader(file) if record]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a comma-separated table in UTF-8 ({error})") from error
    if not records:
        raise ValueError(f"{path}: empty; the first line must be {ROW_ID} and the classes")
    columns = [name.strip() for name in records[0]]
    if columns[0] != ROW_ID or len(columns) < 2:
        raise ValueError(f"{path}: wrong columns: expected {ROW_ID} and the classes, found {','.join(columns)}")
    ragged = [i + 1 for i, record in enumerate(records) if len(record) != len(columns)]
    if ragged:
        raise ValueError(f"{path}: lines without {len(columns)} cells: {some(ragged)}")
    values = np.array([[_number(cell) for cell in record[1:]] for record in records[1:]], dtype=float)
    return columns, [record[0].strip() for record in records[1:]], values.reshape(len(records) - 1, len(columns) - 1)


def twice(ids: Sequence[str]) -> list[str]:
    """The ids that occur more than once, each once."""
    seen: set[str] = set()
    found: dict[str, None] = {}
    for row in ids:
        if row in seen:
            found[row] = None
        seen.add(row)
    return list(found)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")

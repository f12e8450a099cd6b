"""submission.csv: written whole or not at all, the same bytes for the same numbers, and checked against a template."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteograde.tasks.contract import Task

ROW_ID = "row_id"
FLOOR = 1e-6  # the least probability written: what one confident mistake may cost is bounded
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
DIGITS = 9  # rows still sum to 1 within 1e-6 after rounding

Rows = Mapping[str, np.ndarray]  # row id -> (classes,) probabilities, in the order of writing


@dataclass(frozen=True)
class Problem:
    """What is wrong with a submission. ``repairable``: nothing but the order has to change (see ``ordered``)."""

    what: str
    repairable: bool = False

    def __str__(self) -> str:
        return self.what


def rows_of(task: Task, study: str, probs: np.ndarray | Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """The rows of one study from (targets, classes) in the task's order, or from {target: classes}."""
    table = [probs[target] for target in task.targets] if isinstance(probs, Mapping) else probs
    return dict(zip(task.rows(study), np.asarray(table, dtype=float), strict=True))


def priors_rows(
    task: Task, studies: Iterable[str], prior: Mapping[str, Sequence[float]] | None = None
) -> dict[str, np.ndarray]:
    """A complete submission that says the prior of every target; the task's own where none is given."""
    table = task.prior if prior is None else prior
    return {row: value for study in studies for row, value in rows_of(task, study, table).items()}


def ordered(rows: Rows, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The same rows: those a template names first, in its order, then the rest in theirs."""
    first = [row for row in ids if row in rows]
    named = set(first)
    return {row: rows[row] for row in (*first, *(row for row in rows if row not in named))}


def written(probs: np.ndarray) -> np.ndarray:
    """Probabilities (rows, classes) as they are written: at least ``FLOOR``, summing to 1. ValueError if not finite."""
    probs = np.asarray(probs, dtype=np.float64)
    if not np.isfinite(probs).all() or (probs < 0).any():
        raise ValueError("probabilities to be written are not finite or negative")
    total = probs.sum(-1, keepdims=True)
    if not (total > 0).all():
        raise ValueError("probabilities to be written are all zero in some row")
    clipped = np.clip(probs / total, FLOOR, 1.0)
    return clipped / clipped.sum(-1, keepdims=True)


def write(path: Path, rows: Rows, columns: Sequence[str]) -> None:
    """Replace ``path`` by a table of all rows in one step: at every moment it is the old file or the new one.

    columns: names of the classes. An existing file's permissions are kept. Raises ValueError before touching the file
    where a probability is not finite or negative, OSError where the folder cannot be written.
    """
    path = Path(path).resolve()
    table = written(np.stack(list(rows.values()))) if rows else np.zeros((0, len(columns)))
    if table.shape[1] != len(columns):
        raise ValueError(f"{path}: rows have {table.shape[1]} classes, the columns are {list(columns)}")
    lines = [",".join((ROW_ID, *columns))]
    lines += [",".join((row, *(f"{p:.{DIGITS}f}" for p in values))) for row, values in zip(rows, table, strict=True)]
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> dict[str, np.ndarray]:
    """{row id: (classes,)} of a submission, in its order. ValueError where it is unreadable or a row appears twice."""
    _, ids, values = _table(path)
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path}: row ids appear twice: {_some(_twice(ids))}")
    return dict(zip(ids, values, strict=True))


def template_ids(path: Path) -> list[str]:
    """The row ids of a template (sample_submission.csv), in its order. ValueError where it is unreadable."""
    return _table(path)[1]


def validate(submission: Path, template: Path) -> list[Problem]:
    """Everything that is wrong with a submission; an empty list says it may be sent.

    ValueError where the template itself cannot be read: then nothing can be said about the submission.
    """
    columns, wanted, _ = _table(template)
    if doubled := _twice(wanted):
        raise ValueError(f"{template}: the template names row ids twice: {_some(doubled)}")
    try:
        found, ids, values = _table(submission)
    except ValueError as error:
        return [Problem(str(error))]
    if found != columns:
        return [Problem(f"wrong columns: expected {','.join(columns)}, found {','.join(found)}")]
    return _id_problems(ids, wanted) + _value_problems(ids, values)


def _id_problems(ids: list[str], wanted: list[str]) -> list[Problem]:
    given, needed = set(ids), set(wanted)
    problems = []
    for what, rows in (
        ("missing", [row for row in wanted if row not in given]),
        ("that the template does not have", [row for row in dict.fromkeys(ids) if row not in needed]),
        ("more than once", _twice(ids)),
    ):
        if rows:
            problems.append(Problem(f"{len(rows)} row ids {what}: {_some(rows)}"))
    if not problems and ids != wanted:
        first = next(i for i, (a, b) in enumerate(zip(ids, wanted, strict=True)) if a != b)
        problems.append(
            Problem(
                f"wrong order: row {first + 1} is {ids[first]}, the template has {wanted[first]}; "
                "repairable: all rows are there, sort them like the template",
                repairable=True,
            )
        )
    return problems


def _value_problems(ids: list[str], values: np.ndarray) -> list[Problem]:
    finite = np.isfinite(values).all(1)
    negative = finite & (values < 0).any(1)
    off = finite & ~negative & (np.abs(values.sum(1) - 1) > SUM_TOLERANCE)
    named = (("not a finite number", ~finite), ("negative", negative), ("not summing to 1", off))
    return [
        Problem(f"{int(bad.sum())} rows with values {what}: {_some(np.array(ids)[bad].tolist())}")
        for what, bad in named
        if bad.any()
    ]


def _table(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(columns, row ids, values (rows, classes)); cells that are no number are NaN."""
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
        raise ValueError(f"{path}: rows without {len(columns)} cells: {_some(map(str, ragged))}")
    values = np.array([[_number(cell) for cell in record[1:]] for record in records[1:]], dtype=float)
    return columns, [record[0].strip() for record in records[1:]], values.reshape(len(records) - 1, len(columns) - 1)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _twice(ids: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(row for row in ids if row in seen or seen.add(row)))  # type: ignore[func-returns-value]


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

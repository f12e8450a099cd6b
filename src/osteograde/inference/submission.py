"""submission.csv: written whole or not at all, the same bytes for the same numbers, and checked against a template."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from osteograde.inference import whole
from osteograde.tasks import rows as tables
from osteograde.tasks.rows import ROW_ID, twice
from osteograde.tasks.spec import Task
from osteograde.tasks.tables import some

log = logging.getLogger(__name__)

TEMPLATE = "sample_submission.csv"
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


def priors_rows(
    task: Task, row_ids: Iterable[str], prior: Mapping[str, Sequence[float]] | None = None
) -> dict[str, np.ndarray]:
    """{row id: the prior of its target}; the task's own prior where none is given.

    ValueError where a row id ends in no target of the task: then the template is another competition's.
    """
    table = task.prior if prior is None else prior
    return {row: np.asarray(table[tables.split_id(task, row)[1]], dtype=float) for row in row_ids}


def ordered(rows: Rows, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The same rows: those a template names first, in its order, then the rest in theirs."""
    first = [row for row in ids if row in rows]
    named = set(first)
    return {row: rows[row] for row in (*first, *(row for row in rows if row not in named))}


def written(probs: np.ndarray) -> np.ndarray:
    """Probabilities (rows, classes) as they are written: at least ``FLOOR`` (before the last division), summing to 1.

    ValueError where one is not finite or negative, or a row is all zero.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if not np.isfinite(probs).all() or (probs < 0).any() or not (probs.sum(-1) > 0).all():
        raise ValueError("probabilities to be written are not finite, negative, or all zero in some row")
    clipped = np.clip(probs / probs.sum(-1, keepdims=True), FLOOR, 1.0)
    return clipped / clipped.sum(-1, keepdims=True)


def write_submission(path: Path, rows: Rows, columns: Sequence[str]) -> None:
    """Replace ``path`` by a table of all rows in one step: at every moment it is the old file or the new one.

    columns: names of the classes. An existing file's permissions are kept. Raises ValueError before touching the file
    where a probability cannot be written (see ``written``), OSError where the folder cannot be written.
    """
    path = Path(path).resolve()
    table = written(np.stack(list(rows.values()))) if rows else np.zeros((0, len(columns)))
    if table.shape[1] != len(columns):
        raise ValueError(f"{path}: rows have {table.shape[1]} classes, the columns are {list(columns)}")
    text = StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow((ROW_ID, *columns))
    out.writerows((row, *(f"{p:.{DIGITS}f}" for p in ps)) for row, ps in zip(rows, table.tolist(), strict=True))
    whole.write(path, text.getvalue())


def read_submission(path: Path) -> dict[str, np.ndarray]:
    """{row id: (classes,)} of a submission, in its order. ValueError where it is unreadable or a row appears twice."""
    _, ids, values = tables.read(path)
    if doubled := twice(ids):
        raise ValueError(f"{path}: row ids more than once: {some(doubled)}")
    return dict(zip(ids, values, strict=True))


def template_ids(path: Path) -> list[str] | None:
    """The row ids of a template, in its order; ValueError where it is unreadable.

    Of a folder of data: those of its sample_submission.csv, None where there is none, where it cannot be read (this is
    logged), or where the folder has no test part (the template then speaks of other studies).
    """
    if not Path(path).is_dir():
        return tables.read(path)[1]
    if not (Path(path) / TEMPLATE).is_file() or not (Path(path) / "test_images").is_dir():
        return None
    try:
        return tables.read(Path(path) / TEMPLATE)[1]
    except ValueError as error:
        log.warning("%s; rows are written in the order of the studies", error)
        return None


def validate(submission: Path, template: Path) -> list[Problem]:
    """Everything that is wrong with a submission; an empty list says it may be sent.

    ValueError where the template itself cannot be read: then nothing can be said about the submission.
    """
    columns, wanted, _ = tables.read(template)
    if doubled := twice(wanted):
        raise ValueError(f"{template}: the template names row ids more than once: {some(doubled)}")
    try:
        found, ids, values = tables.read(submission)
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
        ("more than once", twice(ids)),
    ):
        if rows:
            problems.append(Problem(f"{len(rows)} row ids {what}: {some(rows)}"))
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
    off = finite & ~negative & ~(np.abs(values.sum(1) - 1) <= SUM_TOLERANCE)
    named = (("not a finite number", ~finite), ("negative", negative), ("not summing to 1", off))
    return [
        Problem(f"{int(bad.sum())} rows with values {what}: {some(np.array(ids)[bad])}")
        for what, bad in named
        if bad.any()
    ]

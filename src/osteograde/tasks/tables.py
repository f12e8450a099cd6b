"""Reading competition tables and folders: text stays text, and what is wrong is said with file, rows and a way out.

Tables of graded rows (row_id, one column per class): what a submission, a template and out-of-fold files share.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.tasks.spec import Task

ID = re.compile(r"(?=.*[0-9A-Za-z])[0-9A-Za-z._-]{1,64}")  # of a study, a series or a file, as a folder may be called
_FLOAT = re.compile(r"[0-9]+\.[0-9]*([eE]\+?[0-9]+)?")  # an integer that went through a spreadsheet: 4003253.0, 4.0e9


def some(values: Iterable[object], most: int = 5) -> str:
    """The first few of many, for a message.

    >>> some(range(9), 3)
    '0, 1, 2, ... (9 in all)'
    """
    texts = [str(value) for value in values]
    return ", ".join(texts[:most]) + (f", ... ({len(texts)} in all)" if len(texts) > most else "")


def lines(table: pd.DataFrame, bad: pd.Series) -> str:
    """The rows of a mask, counted as an editor counts lines: the header is line 1."""
    return "line " + some(int(row) + 2 for row in table.index[bad])


def id_text(text: str) -> str:
    """An identifier as text; integers that a spreadsheet turned into floats come back whole.

    >>> id_text(" 4.0e9 "), id_text("4003253.0"), id_text("007"), id_text("a.5")
    ('4000000000', '4003253', '007', 'a.5')
    """
    text = text.strip()
    if _FLOAT.fullmatch(text) and float(text) < 1e18 and float(text).is_integer():
        return str(int(float(text))) if "e" in text.lower() else text.split(".")[0]
    return text


def read_table(path: Path, columns: Sequence[str], ids: Sequence[str]) -> pd.DataFrame:
    """The named columns of a CSV as stripped text ("" = empty), identical rows once.

    Byte order marks, CRLF and column names in another case are accepted. ``ids``: the columns that hold identifiers.
    The index counts the file's rows from 0 (see ``lines``). ValueError where the file or a column is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; the competition's tables belong next to the image folders")
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skip_blank_lines=False)
    except ValueError as error:  # empty, ragged or not UTF-8: pandas and the decoder raise kinds of ValueError
        raise UserError(f"{path}: not a comma-separated table in UTF-8 ({error})") from error
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    missing = [name for name in columns if name not in table.columns]
    if missing:
        hint = "; it seems to be separated by semicolons, save it with commas" if ";" in "".join(table.columns) else ""
        raise UserError(f"{path}: no column {some(missing)}; found {some(table.columns, 40)}{hint}")
    table = table[list(columns)].dropna(how="all").fillna("").apply(lambda column: column.str.strip())
    for name in ids:
        table[name] = table[name].map(id_text)
    return table.drop_duplicates()


def refuse(path: Path, table: pd.DataFrame, bad: pd.Series, column: str, what: str) -> None:
    """ValueError that names the lines and the cells of ``column`` where ``bad`` holds; nothing where none does."""
    if bad.any():
        raise UserError(f"{path}: {lines(table, bad)}: {what}: {some(sorted(set(table.loc[bad, column].map(repr))))}")


def refuse_conflicts(path: Path, table: pd.DataFrame, key: Sequence[str]) -> None:
    """ValueError where rows agree in ``key`` and differ elsewhere."""
    twice = table.duplicated(list(key), keep=False)
    if twice.any():
        names = sorted({"/".join(row) for row in table.loc[twice, list(key)].itertuples(index=False)})
        raise UserError(f"{path}: {lines(table, twice)}: rows contradict each other about {some(names)}; keep one")


def is_id(text: str) -> bool:
    """Whether a text may be used as the name of a folder.

    >>> is_id("4003253"), is_id(".."), is_id("a/b"), is_id("")
    (True, False, False, False)
    """
    return ID.fullmatch(text) is not None


def numbers(column: pd.Series) -> np.ndarray:
    """Floats of a text column; NaN where a cell is no number."""
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out; none where the folder does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def count_files(folder: Path) -> int:
    """How many files lie in a folder itself, hidden ones left out; 0 where it does not exist."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.is_file() and not entry.name.startswith(".") for entry in entries)


def has_files(folder: Path) -> bool:
    """Whether a folder exists and holds at least one file."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_file() for entry in entries)


def under(folder: Path, root: Path) -> bool:
    """Whether a folder, links followed, lies in ``root`` (which must be resolved already)."""
    return folder.resolve().is_relative_to(root)


ROW_ID = "row_id"


def split_id(task: Task, row: str) -> tuple[str, str]:
    """(study, target) of a row id. ValueError where it ends in no target of the task."""
    for target in task.targets:
        if row.endswith(f"_{target}"):
            return row[: -len(target) - 1], target
    raise UserError(f"row id {row!r} ends in no target of {task.name}, such as {task.targets[0]!r}")


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
    if lost and not task.per_study_targets:
        raise UserError(f"{len(lost)} rows are missing: {some(lost)}; every study needs {len(task.targets)} rows")
    return found


def read_rows(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(columns, row ids, values (rows, classes)) of a table; cells that are no number are NaN. ValueError otherwise."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            records = [record for record in csv.reader(file) if record]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a comma-separated table in UTF-8 ({error})") from error
    if not records:
        raise UserError(f"{path}: empty; the first line must be {ROW_ID} and the classes")
    columns = [name.strip() for name in records[0]]
    if columns[0] != ROW_ID or len(columns) < 2:
        raise UserError(f"{path}: wrong columns: expected {ROW_ID} and the classes, found {','.join(columns)}")
    ragged = [i + 1 for i, record in enumerate(records) if len(record) != len(columns)]
    if ragged:
        raise UserError(f"{path}: lines without {len(columns)} cells: {some(ragged)}")
    values = np.array([[_number(cell) for cell in record[1:]] for record in records[1:]], dtype=float)
    return columns, [record[0].strip() for record in records[1:]], values.reshape(len(records) - 1, len(columns) - 1)


def duplicates(ids: Sequence[str]) -> list[str]:
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

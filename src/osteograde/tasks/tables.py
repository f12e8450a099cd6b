"""Reading competition tables and folders: text stays text, and what is wrong is said with file, rows and a way out.

Tables of graded rows (row_id, one column per class): what a submission, a template and out-of-fold files share.
"""

from __future__ import annotations

import codecs
import csv
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.imaging.discovery import left_by_system
from osteograde.tasks.spec import Task

log = logging.getLogger(__name__)

ID = re.compile(r"(?=.*[0-9A-Za-z])[0-9A-Za-z._-]{1,64}")  # of a study, a series or a file, as a folder may be called
GRADE_COLUMNS = ("row_id", "grade")
PREDICTED = "predicted"  # the most probable class, a last column that a submission may have beside its numbers
SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_MARKS = (  # the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_ABSENT = (  # what tables write into cells without a value, as pandas reads them
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
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


def read_table(path: Path, columns: Sequence[str], ids: Sequence[str], *, whole: bool = False) -> pd.DataFrame:
    """The named columns of a table as stripped text ("" = empty), identical rows once (a log line counts the others).

    Encodings, separators and line ends are those of ``cells_of``; column names in another case are accepted. ``ids``:
    the columns that hold identifiers. whole: refuse rows with fewer cells than the header, which are filled up
    otherwise. The index counts the file's lines from the one below the header (see ``lines``). UserError where the
    file or a column is missing or is there twice, or a row has too many cells.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; the competition's tables belong next to the image folders")
    rows = cells_of(path)
    if not rows:
        raise UserError(f"{path}: empty; the first line must name the columns {some(columns)}")
    header = [name.strip().lower() for name in rows[0][1]]
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{path}: no column {some(missing)}; found {some(header, 40)}")
    if doubled := [name for name in columns if header.count(name) > 1]:
        raise UserError(f"{path}: line {rows[0][0]}: column {some(doubled)} stands there twice; keep one")
    _refuse_ragged(path, rows, len(header), whole)
    filled = [(number, [*cells, *[""] * len(header)]) for number, cells in rows[1:]]
    table = pd.DataFrame(
        [[cells[header.index(name)].strip() for name in columns] for _, cells in filled],
        columns=list(columns),
        index=pd.Index([number - 2 for number, _ in filled], dtype=int),
        dtype=str,
    )
    table = table.mask(table.isin(_ABSENT), "")
    table = table[(table != "").any(axis=1)]
    for name in ids:
        table[name] = table[name].map(id_text)
    once = table.drop_duplicates()
    if len(once) < len(table):
        twice = table.duplicated()
        log.info("%s: %d rows repeat another word for word: counted once (%s)", path, twice.sum(), lines(table, twice))
    return once


def header_of(path: Path) -> list[str]:
    """The names of the columns, stripped. UserError where the file cannot be read, is empty or is no table."""
    rows = cells_of(path)
    if not rows:
        raise UserError(f"{path}: empty; the first line must name the columns")
    return [name.strip() for name in rows[0][1]]


def cells_of(path: Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every row that is not blank, the header first.

    Read are UTF-8, UTF-16 and UTF-32 with or without a byte order mark, and else Windows-1252; separated by commas,
    semicolons, tabs or bars, whichever the header has most of; quoted cells; any line ends. The line is the one on
    which the row begins, counted from 1. UserError where the file cannot be read or its quotes never end.
    """
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    lines_of = text.splitlines(keepends=True)
    skipped = 0
    separator = ","
    if lines_of and (told := _SEPARATOR_LINE.fullmatch(lines_of[0].strip())):  # what spreadsheets write above a table
        separator, skipped = told[1], 1
    elif header := next((line for line in lines_of if line.strip()), ""):
        bare = re.sub(r'"[^"]*"', "", header)
        separator = max(SEPARATORS, key=bare.count)  # the first of equals
    reader = csv.reader(StringIO("".join(lines_of[skipped:]), newline=""), delimiter=separator, strict=True)
    rows: list[tuple[int, list[str]]] = []
    begun = skipped + 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((begun, cells))
            begun = skipped + reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {begun}: not a table ({error})") from error
    return rows


def decoded(data: bytes) -> str:
    """Text of bytes: by the byte order mark, else UTF-16 where every second byte is zero, else UTF-8, else
    Windows-1252 (whose five undefined bytes become U+FFFD)."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    head = data[:200]
    if len(head) >= 4 and head[1::2].count(0) > 0.4 * len(head):
        return data.decode("utf-16-le", errors="replace")
    if len(head) >= 4 and head[::2].count(0) > 0.4 * len(head):
        return data.decode("utf-16-be", errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _refuse_ragged(path: Path, rows: Sequence[tuple[int, list[str]]], width: int, whole: bool) -> None:
    long = [number for number, cells in rows if any(cell.strip() for cell in cells[width:])]
    if long:
        raise UserError(
            f"{path}: line {some(long)}: more cells than the {width} of the header; quote cells with commas"
        )
    short = [number for number, cells in rows if len(cells) < width]
    if short and whole:
        raise UserError(f"{path}: line {some(short)}: fewer cells than the {width} of the header; complete the rows")


def row_grades(path: Path, grades: Sequence[str]) -> list[tuple[int, str, str]]:
    """(line, row id, grade) of a table row_id,grade; the grade is one of ``grades`` or "" where the cell is empty.

    Whole numbers may be written as 2.0. UserError where two rows give one row id different grades, where a row is
    short or where a grade is unknown: each with the lines.
    """
    table = read_table(path, GRADE_COLUMNS, ids=(), whole=True)
    table["grade"] = table["grade"].str.replace(",", ".").map(id_text)
    table = table.drop_duplicates()
    refuse_conflicts(path, table, GRADE_COLUMNS[:1])
    unknown = ~table["grade"].isin(["", *grades])
    refuse(path, table, unknown, "grade", f"unknown grade, expected one of {', '.join(grades)}; of the grades")
    return [(int(line) + 2, row, grade) for line, (row, grade) in zip(table.index, table.to_numpy(), strict=True)]


def matched(ids: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """{id of a table: the same id as folders or files have it}, where leading zeros or a ".0" are all that differs.

    A spreadsheet takes 007 for the number 7. Ids that are known as they stand, that match nothing, or that match
    several, are absent.

    >>> matched(["7", "8.0", "9", "5"], ["007", "08", "9", "05", "5.0"])
    {'7': '007', '8.0': '08'}
    """
    of_number: dict[str, list[str]] = {}
    for name in known:
        of_number.setdefault(_number_of(name), []).append(name)
    found = {}
    for one in dict.fromkeys(ids):
        same = of_number.get(_number_of(one), []) if one not in known else []
        if len(same) == 1:
            found[one] = same[0]
    return found


def _number_of(text: str) -> str:
    return id_text(text).lstrip("0") or "0"


def refuse(path: Path, table: pd.DataFrame, bad: pd.Series, column: str, what: str) -> None:
    """ValueError that names the lines and the cells of ``column`` where ``bad`` holds; nothing where none does."""
    if bad.any():
        raise UserError(f"{path}: {lines(table, bad)}: {what}: {some(sorted(set(table.loc[bad, column].map(repr))))}")


def refuse_conflicts(path: Path, table: pd.DataFrame, key: Sequence[str]) -> None:
    """UserError where rows agree in ``key`` and differ elsewhere."""
    twice = table.duplicated(list(key), keep=False)
    if twice.any():
        names = sorted({"/".join(map(_cell_text, row)) for row in table.loc[twice, list(key)].itertuples(index=False)})
        raise UserError(f"{path}: {lines(table, twice)}: rows contradict each other about {some(names)}; keep one")


def _cell_text(cell: object) -> str:
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def is_id(text: str) -> bool:
    """Whether a text may be used as the name of a folder.

    >>> is_id("4003253"), is_id(".."), is_id("a/b"), is_id("")
    (True, False, False, False)
    """
    return ID.fullmatch(text) is not None


def numbers(column: pd.Series) -> np.ndarray:
    """Floats of a text column, also with a decimal comma; NaN where a cell is no number."""
    column = column.str.replace(r"^(\s*[+-]?[0-9]*),([0-9]+\s*)$", r"\1.\2", regex=True)
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones and those that systems leave behind are left out. None
    where the folder does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not left_by_system(entry.name) and _is_folder(entry))


def count_files(folder: Path) -> int:
    """How many files lie in a folder itself, hidden ones left out; 0 where it does not exist."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(not entry.name.startswith(".") and _is_file(entry) for entry in entries)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def has_files(folder: Path) -> bool:
    """Whether a folder exists and holds at least one file."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(map(_is_file, entries))


def under(folder: Path, root: Path) -> bool:
    """Whether a folder, links followed, lies in ``root`` (which must be resolved already)."""
    return folder.resolve().is_relative_to(root)


ROW_ID = "row_id"


def split_id(task: Task, row: str) -> tuple[str, str]:
    """(study, target) of a row id. UserError where it ends in no target of the task."""
    for target in task.targets:
        if not target:  # the only one
            return row, target
        if row.endswith(f"_{target}"):
            return row[: -len(target) - 1], target
    raise UserError(f"row id {row!r} ends in no target of {task.name}, such as {task.targets[0]!r}")


def by_study(task: Task, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{study: (targets, classes)} in the task's order; NaN for rows a study does not have. UserError where a study
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
    """(columns, row ids, values (rows, classes)) of a table; cells that are no number are NaN. UserError otherwise.

    A last column ``PREDICTED`` is told by the numbers and left out.
    """
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
    columns = columns[:-1] if columns[-1] == PREDICTED else columns
    values = np.array([[_number(cell) for cell in record[1 : len(columns)]] for record in records[1:]], dtype=float)
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

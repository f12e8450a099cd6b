"""Reading of the tables of the Osteoarthritis Initiative (OAI), in whichever form they were unpacked.

They come as text separated by bars (ASCII), saved again as CSV by some, or as SAS files, loose in folders or inside zip
archives. Names of files and of columns vary in their case. A cell of the text tables is often ``code: label``, such as
``1: Right``; one that is blank or begins with a point is missing, such as ``.: Missing Form/Incomplete Workbook``. A
knee may have several rows, one for each reading project (READPRJ).
"""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.tasks.tables import decoded, some

log = logging.getLogger(__name__)

TEXT, CSV, SAS, ARCHIVE = ".txt", ".csv", ".sas7bdat", ".zip"
_ENDINGS = (TEXT, CSV, SAS)
SEPARATOR = "|"
READING_PROJECTS = (15.0, 37.0, 42.0)  # in the order in which their readings are preferred; then any other
KNEE = ("ID", "SIDE")
_CODE = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(?::.*)?", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """Where a table lies. path: its file, or the archive that holds it. member: its name inside the archive."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """The table's name in lower case, without its ending: kxr_sq_bu00."""
        return Path(self.member or self.path.name).name.lower().rsplit(".", 1)[0]

    @property
    def place(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)


def find_tables(folder: Path, named: re.Pattern[str] | None = None) -> list[Table]:
    """Every text and SAS table below a folder, also inside of zip archives, in the order of their places.

    named: those alone whose name in lower case fits; archives that cannot be opened are then passed over. UserError
    where the folder does not exist, or an archive is broken.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds OAI's tables or the zip files with them")
    found = [table for table in _walk(Path(folder), named is None) if named is None or named.fullmatch(table.name)]
    return sorted(found, key=lambda table: table.place)


def _walk(folder: Path, strict: bool) -> Iterator[Table]:
    for path in folder.rglob("*"):
        ending = path.suffix.lower()
        if ending in _ENDINGS and path.is_file():
            yield Table(path)
        elif ending == ARCHIVE and path.is_file():
            try:
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
            except (zipfile.BadZipFile, OSError) as error:
                if strict:
                    raise UserError(f"{path}: not a zip archive ({error}); fetch it again") from error
                log.warning("%s: not a zip archive: not looked into", path)
                continue
            yield from (Table(path, name) for name in names if Path(name).suffix.lower() in _ENDINGS)


def pick(tables: Sequence[Table], name: str) -> Table | None:
    """The table of a name given in lower case; None where there is none.

    Of several, a text table is taken before a SAS file, because pandas cannot tell OAI's kinds of missing values in the
    latter apart, and then the first by its place; a log line names what is not read.
    """
    same = [table for table in tables if table.name == name]
    if not same:
        return None
    chosen = min(same, key=lambda table: ((table.member or table.path.name).lower().endswith(SAS), table.place))
    if others := [table.place for table in same if table != chosen]:
        log.warning("%s: read; other tables of this name are not: %s", chosen.place, some(others))
    return chosen


def read(table: Table) -> pd.DataFrame:
    """All cells of a table as text, "" where they are missing, under column names in upper case.

    UserError where the file cannot be read, has no column ID, or names a column twice.
    """
    data = _bytes_of(table)
    if table.place.lower().endswith(SAS):
        frame = _read_sas(table, data)
    else:
        try:
            text = decoded(data)
            separator = max((SEPARATOR, *",;\t"), key=text.partition("\n")[0].count)  # the first of equals
            frame = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise UserError(f"{table.place}: not a table separated by {SEPARATOR} ({error}); fetch it again") from error
    frame.columns = [str(column).strip().upper() for column in frame.columns]
    if doubled := sorted({name for name in frame.columns if list(frame.columns).count(name) > 1}):
        raise UserError(f"{table.place}: columns {some(doubled)} are there twice, apart from their case; keep one")
    if "ID" not in frame.columns:
        raise UserError(f"{table.place}: no column ID; found {some(frame.columns, 8)}; is it a table of OAI's?")
    frame = frame.apply(lambda column: column.str.strip())
    frame["ID"] = frame["ID"].map(lambda text: text.split(":")[0].strip().removesuffix(".0"))
    return frame[frame["ID"] != ""].reset_index(drop=True)


def _bytes_of(table: Table) -> bytes:
    try:
        if not table.member:
            return table.path.read_bytes()
        with zipfile.ZipFile(table.path) as archive:
            return archive.read(table.member)
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: the archive is encrypted
        raise UserError(f"{table.place}: cannot be read ({error}); fetch it again") from error


def _read_sas(table: Table, data: bytes) -> pd.DataFrame:
    try:
        frame = pd.read_sas(io.BytesIO(data), format="sas7bdat", encoding="latin-1")
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{table.place}: not a SAS table ({error}); fetch it again") from error
    return pd.DataFrame({column: frame[column].map(_text) for column in frame.columns})


def _text(cell: object) -> str:
    """A cell of a SAS table as text; whole numbers without a point.

    >>> _text(9000099.0), _text("1: Right"), _text(float("nan")), _text(0.5)
    ('9000099', '1: Right', '', '0.5')
    """
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def codes(column: pd.Series) -> np.ndarray:
    """(N,) the numbers that cells begin with; NaN where a cell is blank, missing (".", ".A") or no number.

    >>> codes(pd.Series(["1: Right", "2", " 4.35 ", ".: Missing Form", ".A", "", "-0.2", "n/a"])).tolist()
    [1.0, 2.0, 4.35, nan, nan, nan, -0.2, nan]
    """
    return np.array([_code(str(cell)) for cell in column], float)


def _code(cell: str) -> float:
    if cell.strip().startswith(".") and not cell.strip()[1:2].isdigit():
        return float("nan")
    found = _CODE.fullmatch(cell)
    return float(found[1]) if found else float("nan")


def of_knees(table: Table, columns: Sequence[str]) -> pd.DataFrame:
    """One row for each knee of a table, indexed by (ID, SIDE) with SIDE 1 (right) or 2 (left), columns as numbers.

    Where a knee has several rows, those with a value in any of the columns count first, then the order of
    ``READING_PROJECTS``, then their order in the file. Columns that the table lacks are NaN, and a log line names them.
    UserError where it has no column SIDE.
    """
    frame = read(table)
    if "SIDE" not in frame.columns:
        raise UserError(f"{table.place}: no column SIDE; found {some(frame.columns, 8)}; expected one row for a knee")
    if absent := [name for name in columns if name not in frame.columns]:
        log.warning("%s: no column %s; it counts as missing", table.place, some(absent))
    values = {name: codes(frame[name]) if name in frame.columns else np.full(len(frame), np.nan) for name in columns}
    knees = pd.DataFrame({"ID": frame["ID"], "SIDE": codes(frame["SIDE"]), **values})
    project = codes(frame["READPRJ"]) if "READPRJ" in frame.columns else np.full(len(frame), np.nan)
    knees["_unread"] = knees[list(columns)].isna().all(axis=1)
    knees["_order"] = [
        READING_PROJECTS.index(one) if one in READING_PROJECTS else len(READING_PROJECTS) for one in project
    ]
    strange = ~knees["SIDE"].isin([1, 2])
    if strange.any():
        log.warning("%s: %d rows name no side 1 or 2; they are not used", table.place, strange.sum())
    knees = knees[~strange].astype({"SIDE": int})
    knees = knees.sort_values(["_unread", "_order"], kind="stable").drop_duplicates(list(KNEE))
    return knees.set_index(list(KNEE))[list(columns)].sort_index()


def of_patients(table: Table, columns: Sequence[str]) -> pd.DataFrame:
    """One row for each patient, indexed by ID, columns as numbers; the first row counts. Columns that the table lacks
    are NaN."""
    frame = read(table)
    values = {name: codes(frame[name]) if name in frame.columns else np.full(len(frame), np.nan) for name in columns}
    return pd.DataFrame({"ID": frame["ID"], **values}).drop_duplicates("ID").set_index("ID").sort_index()

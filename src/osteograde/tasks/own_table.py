"""labels.csv: the table of people who bring images and labels of their own. docs/own-data.md explains its columns.

One row for each image, or for each graded place of an image:

    image,label[,patient][,side][,region][,x,y | x0,y0,x1,y1][,slice][,any covariate]

Encodings, separators, decimal commas and header names in any case are read as they come (``tables.cells_of``). In
training whatever contradicts itself is a UserError that names file and line; what is merely missing is counted by the
caller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.tasks import tables
from osteograde.tasks.names import side_of_cell
from osteograde.tasks.spec import CLASSES, GRADES, YES_NO

FILE, OPTIONS, PAGE = "labels.csv", "table.json", "docs/own-data.md"
IMAGE, LABEL, PATIENT, SIDE, REGION, SLICE = "image", "label", "patient", "side", "region", "slice"
POINT, BOX = ("x", "y"), ("x0", "y0", "x1", "y1")
COLUMNS = (IMAGE, LABEL, PATIENT, SIDE, REGION, *POINT, *BOX, SLICE)
KINDS = (CLASSES, GRADES, YES_NO)
MOST_CLASSES = 50  # more names than this are no classes but ids or free text
_OTHER_NAMES = {  # what such columns are often called, to say which one to rename
    IMAGE: ("filename", "file", "file_name", "image_id", "imageid", "image_path", "path", "img", "id", "image index"),
    LABEL: ("class", "grade", "target", "diagnosis", "dx", "category", "y", "score", "label_name"),
}
_PATIENT_NAMES = ("patient_id", "patientid", "patient id", "subject", "subject_id", "subjectid", "person", "person_id")
_BOX_NAMES = (  # how boxes are told elsewhere, which would be taken for points or covariates here
    ("x", "y", "w", "h"), ("x", "y", "width", "height"), ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"),
)  # fmt: skip
_RESERVED = ("row_id", "predicted")  # columns of a submission beside the classes
LEAST_CROP = 0.001  # share of the longer side of an image
_WHOLE = re.compile(r"[+-]?([0-9]+)(?:[.,]0*)?")
_NUMBER = re.compile(r"[+-]?[0-9]*[.,]?[0-9]+(?:[eE][+-]?[0-9]+)?")
_NO, _YES = ("no", "false", "n", "f"), ("yes", "true", "y", "t")


@dataclass(frozen=True)
class Row:
    """A row of labels.csv. label: "" where the cell is empty. x, y: column and row of the pixel in the middle of the
    region, NaN without one. size: longer side of its box in pixels, 0 without one. slice: number of the slice in a
    volume, "" without one. more: all other columns."""

    line: int
    image: str
    label: str
    patient: str
    side: str
    region: str
    x: float
    y: float
    size: float
    slice: str
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_point(self) -> bool:
        return not np.isnan(self.x)


@dataclass(frozen=True)
class Table:
    """labels.csv as it was read. columns: all of its header, in lower case. more: those that are covariates or nothing
    at all."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def has(self, column: str) -> bool:
        return column in self.columns

    @property
    def more(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name not in COLUMNS and name)

    @property
    def places(self) -> tuple[str, ...]:
        """The columns of points or boxes; () where the whole image is graded."""
        return POINT if self.has("x") else BOX if self.has("x0") else ()


@dataclass(frozen=True)
class Options:
    """table.json, all of it optional. label: "classes", "grades" or "yes_no". classes: in their order. crop: share of
    the longer side of an image that a crop around a point or box spans. told_by: what names the classes, if it is
    something else."""

    label: str = ""
    classes: tuple[str, ...] = ()
    crop: float = 0.0
    told_by: str = OPTIONS


def find(root: Path, folder: Path) -> Path:
    """labels.csv of a folder of data: beside its images or among them. UserError where there is none, or several."""
    for place in (root, folder):
        if (place / FILE).is_file():
            return place / FILE
    found = sorted(path for path in root.rglob("*") if path.name.lower() == FILE and path.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{root}: several tables {FILE}: {tables.some(found)}; keep one, or name the folder of one")
    others = sorted(path.name for end in ("csv", "tsv", "txt", "xlsx", "xls", "ods") for path in root.glob(f"*.{end}"))
    there = f" (there are {tables.some(others)}; save the one that holds image and label as {FILE})" if others else ""
    raise UserError(f"{root}: no {FILE} in it or below it{there}; it needs the columns image and label, see {PAGE}")


def read(path: Path, *, labelled: bool = True) -> Table:
    """The rows of labels.csv, identical ones once. labelled: the column label is needed, and points are read.

    UserError for a missing or doubled column, columns of patients or boxes under other names, cells of coordinates that
    are no numbers or stand alone, boxes whose corners are exchanged or that hold no pixel, slices that are no whole
    numbers, sides that are none, labels that are numbers with decimals, or a table without rows.
    """
    header = tuple(name.strip().lower() for name in tables.header_of(path))
    needed = (IMAGE, LABEL) if labelled else (IMAGE,)
    for name in needed:
        if name not in header:
            _refuse_missing(path, name, header)
    _refuse_other_names(path, header)
    _refuse_half_a_place(path, header)
    columns = [name for name in dict.fromkeys(header) if name]
    table = tables.read_table(path, columns, ids=[name for name in (PATIENT, SLICE) if name in header])
    if not len(table):
        raise UserError(f"{path}: no rows below the header")
    tables.refuse(path, table, table[IMAGE] == "", IMAGE, "no image is named")
    for name in COLUMNS:
        if name not in table:
            table[name] = ""
    side = table[SIDE].map(side_of_cell)
    if labelled and SIDE in header:
        tables.refuse(path, table, ~side.isin(["right", "left"]), SIDE, "side is not right or left")
    table[SIDE] = side
    if labelled:
        table[LABEL] = table[LABEL].map(label_text)
        x, y, size = _places(path, table, header)
        odd_slice = (table[SLICE] != "") & ~table[SLICE].str.fullmatch("[0-9]+")
        tables.refuse(path, table, odd_slice, SLICE, "slice is no whole number from 0 on")
    else:
        x = y = np.full(len(table), np.nan)
        size = np.zeros(len(table))
    more = [name for name in columns if name not in COLUMNS]
    rows = tuple(
        Row(
            int(line) + 2, row[IMAGE], row[LABEL], row[PATIENT], row[SIDE], row[REGION], float(x[i]), float(y[i]),
            float(size[i]), row[SLICE], {name: row[name] for name in more},
        )
        for i, (line, row) in enumerate(zip(table.index, table.to_dict("records"), strict=True))
    )  # fmt: skip
    return Table(path, header, rows)


def label_text(cell: str) -> str:
    """A label; a whole number without its decimals, words with one space between them.

    >>> label_text("2.0"), label_text("2,0"), label_text("03"), label_text("very  mild"), label_text("2.5")
    ('2', '2', '3', 'very mild', '2.5')
    """
    text = " ".join(cell.split())
    if whole := _WHOLE.fullmatch(text):
        return str(int(whole[1])) if not text.startswith("-") else str(-int(whole[1]))
    return text


def key_of(label: str) -> str:
    """What labels that mean the same have in common: no case, one word for yes and one for no.

    >>> key_of("Mild") == key_of("mild"), key_of("TRUE") == key_of("yes")
    (True, True)
    """
    low = label_text(label).casefold()
    return "no" if low in _NO else "yes" if low in _YES else low


def kind_and_classes(path: Path, labels: Sequence[str], options: Options) -> tuple[str, tuple[str, ...]]:
    """What kind of labels these are and their classes in order: as table.json says, else yes/no where they are 0 and 1,
    yes and no or true and false; grades where they are at least three whole numbers; else classes.

    UserError where there is one class only, where numbers have decimals, where nearly every row has a label of its own,
    where yes and no stand beside 0 and 1, where a class is called like another column of a submission, or where grades
    are texts whose order nothing tells.
    """
    spelled: dict[str, str] = {}
    for label in labels:
        spelled.setdefault(key_of(label), label)
    if options.classes:
        known = {key_of(name) for name in options.classes}
        if lost := sorted(text for key, text in spelled.items() if key not in known):
            those = f"classes of {options.told_by}, which are {tables.some(options.classes, 10)}"
            raise UserError(f"{path}: labels {tables.some(lost)} are none of the {those}")
        found = options.classes
    else:
        found = tuple(sorted(spelled.values(), key=_natural))
    kind = options.label or _kind(spelled)
    if len(found) < 2:
        raise UserError(f"{path}: every label is {found[0]!r}; a net needs at least two classes to tell apart")
    if decimals := [name for name in found if _NUMBER.fullmatch(name) and not _WHOLE.fullmatch(name)]:
        raise UserError(
            f"{path}: label is a number with decimals ({tables.some(decimals)}); classes, whole grades or yes/no are "
            "learnt, no measurements: put the numbers into a few grades first"
        )
    if len(found) > MOST_CLASSES or (len(labels) >= 10 and len(found) > len(labels) / 2):
        raise UserError(
            f"{path}: {len(labels)} rows have {len(found)} different labels ({tables.some(found, 3)}); is label the "
            f"right column? At most {MOST_CLASSES} classes, each with several rows"
        )
    _refuse_doubtful_classes(path, kind, found, options)
    if kind == YES_NO:
        if len(found) != 2:
            raise UserError(f"{path}: yes/no labels are {found}; expected two")
        found = found if options.classes else tuple(sorted(found, key=_is_yes))
    return kind, found


def read_options(folder: Path) -> Options:
    """table.json of a folder, where it has one. UserError where it is not one."""
    path = folder / OPTIONS
    if not path.is_file():
        return Options()
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not JSON ({error}); see {PAGE}") from error
    known = {"label", "classes", "crop"}
    if not isinstance(facts, dict) or set(facts) - known:
        raise UserError(f"{path}: holds {facts!r:.60}; expected an object with some of {sorted(known)}, see {PAGE}")
    label, classes, crop = facts.get("label", ""), facts.get("classes", []), facts.get("crop", 0.0)
    if label not in ("", *KINDS):
        raise UserError(f"{path}: label is {label!r}; expected one of {', '.join(KINDS)}")
    if not isinstance(classes, list) or not _are_classes(classes):
        raise UserError(
            f"{path}: classes are {classes!r:.60}; expected a list of two or more different labels in order"
        )
    is_share = isinstance(crop, int | float) and not isinstance(crop, bool) and LEAST_CROP <= crop <= 1
    if "crop" in facts and not is_share:
        raise UserError(
            f"{path}: crop is {crop!r}; expected a share of the image's longer side, from {LEAST_CROP:g} to 1"
        )
    return Options(label, tuple(label_text(str(one)) for one in classes), float(crop))


def _refuse_missing(path: Path, name: str, header: Sequence[str]) -> None:
    others = [one for one in header if one in _OTHER_NAMES[name]]
    hint = f"; is it {others[0]}? Then rename it to {name}" if others else ""
    raise UserError(f"{path}: no column {name}; its columns are {', '.join(header)}{hint} (see {PAGE})")


def _are_classes(classes: Sequence[Any]) -> bool:
    """Whether a list of JSON can name classes: none at all, or several different ones."""
    names = [key_of(str(one)) for one in classes if isinstance(one, str | int | float)]
    return len(classes) != 1 and len({*names} - {""}) == len(classes)


def _refuse_doubtful_classes(path: Path, kind: str, found: Sequence[str], options: Options) -> None:
    keys = {key_of(name) for name in found}
    if keys & {"yes", "no"} and keys & {"0", "1"}:
        raise UserError(f"{path}: labels are {tables.some(found, 10)}; write yes/no in one way, as words or as 0 and 1")
    if taken := [name for name in found if name.lower() in _RESERVED]:
        raise UserError(f"{path}: a class is called {taken[0]!r}, like a column of every submission; rename it")
    if kind == GRADES and not options.classes and not all(_WHOLE.fullmatch(name) for name in found):
        raise UserError(
            f"{path}: grades {tables.some(found, 10)} are texts, whose order nothing tells; name them in their order "
            f"in classes of {OPTIONS}"
        )


def _refuse_other_names(path: Path, header: Sequence[str]) -> None:
    """UserError where columns of patients or boxes have other names, and would be taken for covariates or points."""
    if PATIENT not in header and (named := [name for name in _PATIENT_NAMES if name in header]):
        raise UserError(f"{path}: a column {named[0]} and no column {PATIENT}; rename it to {PATIENT} (see {PAGE})")
    box = next((names for names in _BOX_NAMES if {*names} <= {*header}), ())
    if box and not {*BOX} <= {*header}:
        raise UserError(
            f"{path}: columns {', '.join(box)} tell a box; expected {', '.join(BOX)}, its upper left and lower right "
            f"pixel (see {PAGE})"
        )


def _refuse_half_a_place(path: Path, header: Sequence[str]) -> None:
    for names in (POINT, BOX):
        there = [name for name in names if name in header]
        if there and len(there) < len(names):
            lost = [name for name in names if name not in header]
            raise UserError(f"{path}: columns {', '.join(there)} without {', '.join(lost)}; see {PAGE}")
    if POINT[0] in header and BOX[0] in header:
        raise UserError(f"{path}: columns of points (x, y) and of boxes (x0, y0, x1, y1); keep one of the two")


def _places(path: Path, table: pd.DataFrame, header: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, longer side of the box) of each row, NaN and 0 where it names none."""
    names = POINT if POINT[0] in header else BOX if BOX[0] in header else ()
    nothing = np.full(len(table), np.nan)
    if not names:
        return nothing, nothing, np.zeros(len(table))
    values = {name: tables.numbers(table[name]) for name in names}
    empty = pd.DataFrame({name: table[name] == "" for name in names})
    for name in names:
        bad = (table[name] != "") & ~np.isfinite(values[name])
        tables.refuse(path, table, bad, name, f"{name} is no number")
        tables.refuse(
            path, table, empty[name] & ~empty.all(axis=1), name, f"{name} is empty, its other columns are not"
        )
    if names == POINT:
        return values["x"], values["y"], np.zeros(len(table))
    x0, y0, x1, y1 = (values[name] for name in BOX)
    reversed_box = pd.Series((x1 <= x0) | (y1 <= y0), table.index)
    tables.refuse(
        path, table, reversed_box, "x1", "the box ends before it begins (x1 must be above x0, y1 above y0); x1 is"
    )
    tables.refuse(
        path, table, pd.Series((x1 - x0 < 1) & (y1 - y0 < 1), table.index), "x1",
        "the box is smaller than a pixel; expected pixels, no shares of the image; x1 is",
    )  # fmt: skip
    return (x0 + x1) / 2, (y0 + y1) / 2, np.nan_to_num(np.maximum(x1 - x0, y1 - y0))


def _kind(spelled: Mapping[str, str]) -> str:
    keys = set(spelled)
    if keys <= {"0", "1"} or keys <= {"yes", "no"}:
        return YES_NO
    if len(keys) > 2 and all(_WHOLE.fullmatch(label) for label in spelled.values()):
        return GRADES
    return CLASSES


def _is_yes(label: str) -> bool:
    return key_of(label) in ("yes", "1")


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers first, by their value; then text without case."""
    is_whole = _WHOLE.fullmatch(label) is not None
    return not is_whole, float(label.replace(",", ".")) if is_whole else 0.0, label.casefold()

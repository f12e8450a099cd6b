"""The task `knee-progression`: the risk that osteoarthritis of a knee gets worse, from the radiograph of today.

Joint centres, crops and the reading of images are those of `knee-xray`. One probability a knee: that it progresses. The
net also answers the Kellgren-Lawrence grade of today, and whether progression comes within five years or later; what
is known beside the image (covariates.csv) may be read too. Labels: a table labels.csv or progression.csv.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.tasks import knee_files, tables
from osteograde.tasks.binary_metric import BinaryMetric
from osteograde.tasks.covariates import read_files_known, read_known
from osteograde.tasks.deferred import Deferred
from osteograde.tasks.knee_files import GRADES, SIDES
from osteograde.tasks.knee_xray import CROPS as KNEE_CROPS
from osteograde.tasks.knee_xray import REACH_MM
from osteograde.tasks.knee_xray import TASK as KNEE_XRAY
from osteograde.tasks.names import side_of_cell
from osteograde.tasks.priors import normalised
from osteograde.tasks.regions import boxes_around_sites
from osteograde.tasks.spec import CATEGORY, CLASSES, NUMBER, Covariate, Grader, Head, Site, Study
from osteograde.tasks.spec import GRADES as RISING

log = logging.getLogger(__name__)

TABLES = ("labels.csv", "progression.csv")
BESIDE = "knee-progression"  # a folder beside the images' one, in which the table may lie
PROGRESSED, PROGRESSOR, GRADE = "progressed", "progressor", "kl"
ANSWERS = ("stable", "progresses")
COURSES = ("none", "within_5_years", "later")
COVARIATES = (
    Covariate(GRADE, CATEGORY, GRADES),
    Covariate("age", NUMBER),
    Covariate("sex", CATEGORY, ("female", "male")),
    Covariate("bmi", NUMBER),
    Covariate("injury", CATEGORY, ("no", "yes")),
    Covariate("alignment", NUMBER),
)
HEADS = (Head("course", CLASSES, COURSES), Head("kl", RISING, GRADES))
CROPS = KNEE_CROPS[:1]  # the whole joint
SITES = tuple(Site(side, "progression", "", side, (side,)) for side in SIDES)
# Knees without and with a rise of the grade (Tiulpin et al. 2019), as the labels in docs/data.md count them.
COUNTS = (2715, 957)


@dataclass(frozen=True)
class Row:
    """What a table of labels says of one knee. progressed: 0 or 1; -1: it is not said, and only the grade is learnt.
    course: index into ``COURSES``, -1 where unknown. known: covariate -> value, as texts of its column."""

    progressed: int
    course: int
    known: Mapping[str, float | str]


def read(root: Path, part: str) -> list[Study]:
    """The images below ROOT as `knee-xray` reads them; for "train" those of the knees that the table of labels names.

    UserError where training data have no such table, or no image shows a knee of it.
    """
    root = Path(root)
    if part != "train":
        return knee_files.read(root, part)
    path = table_of(root)
    return labelled(path, knee_files.read_all(root, TABLES), read_rows(path))


def table_of(root: Path) -> Path:
    """The table of labels of a folder of images, or of the folder ``BESIDE`` next to it. UserError where there is
    none."""
    places = [folder / name for folder in (root, root.resolve().parent / BESIDE) for name in TABLES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"{root}: no table {' or '.join(TABLES)} with the columns patient, side, {PROGRESSED}; write one, or let "
            "`osteograde targets knee-progression` build it from a cohort's tables"
        )
    return path


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """(patient, side) -> row of a table patient, side, progressed (or progressor: 0 none, 1 early, 2 later), and
    columns of covariates in any order.

    UserError where a column is missing, a side is no side, a label is not 0, 1 or 2, or rows contradict each other.
    """
    header = [name.strip().lower() for name in tables.header_of(path)]
    answers = [name for name in (PROGRESSED, PROGRESSOR) if name in header]
    if not answers:
        raise UserError(f"{path}: no column {PROGRESSED} or {PROGRESSOR}; found {tables.some(header, 20)}")
    known = [one for one in COVARIATES if one.name in header]
    table = tables.read_table(path, ["patient", "side", *answers, *(one.name for one in known)], ids=["patient"])
    table["side"] = table["side"].map(side_of_cell)
    tables.refuse(path, table, ~table["side"].isin(SIDES), "side", "no side, expected L or R; of the sides")
    for name, allowed in ((PROGRESSED, "01"), (PROGRESSOR, "012")):
        if name in answers:
            table[name] = table[name].map(tables.id_text)
            tables.refuse(
                path, table, ~table[name].isin(["", *allowed]), name, f"expected one of {', '.join(allowed)}; of"
            )
    tables.refuse_conflicts(path, table.drop_duplicates(), ["patient", "side"])
    records = [dict(zip(table.columns, map(str, cells), strict=True)) for cells in table.itertuples(index=False)]
    return {(row["patient"], row["side"]): _row(row, known) for row in records}


def _row(cells: Mapping[str, str], known: Sequence[Covariate]) -> Row:
    course = int(cells.get(PROGRESSOR) or -1)
    progressed = int(cells.get(PROGRESSED) or -1)
    if progressed < 0 <= course:
        progressed = int(course > 0)
    values: dict[str, float | str] = {}
    for one in known:
        number = tables.numbers(pd.Series([cells[one.name]]))[0]
        if one.kind == CATEGORY and cells[one.name]:
            values[one.name] = cells[one.name]
        elif one.kind == NUMBER and np.isfinite(number):
            values[one.name] = float(number)
    return Row(progressed, course, values)


def labelled(path: Path, studies: Sequence[Study], rows: Mapping[tuple[str, str], Row]) -> list[Study]:
    """The studies that show a knee of a table, with its labels, grades and covariates; logs what does not fit.

    Patients match as ``tables.matched`` has it. The grade that the table gives counts more than that of the folder.
    UserError where no study shows a knee of the table.
    """
    same = {patient: own for own, patient in tables.matched({s.patient for s in studies}, {p for p, _ in rows}).items()}
    here = {(same.get(patient, patient), side): row for (patient, side), row in rows.items()}
    kept, met = [], set[tuple[str, str]]()
    for study in studies:
        own = {side: here[study.patient, side] for side in study.targets or SIDES if (study.patient, side) in here}
        if own:
            met |= {(study.patient, side) for side in own}
            kept.append(_with_rows(study, own))
    if not kept:
        some = tables.some([f"{patient} {side}" for patient, side in rows], 3)
        raise UserError(f"{path}: no image shows a knee of this table ({some}); do the patients in both agree?")
    answers = Counter(row.progressed for row in map(here.get, met) if row is not None)
    log.info(
        "%s: %d knees have an image, of which %d progressed and %d did not; %d have none; %d images are not used",
        path, len(met), answers[1], answers[0], len(here) - len(met), len(studies) - len(kept),
    )  # fmt: skip
    return kept


def _with_rows(study: Study, rows: Mapping[str, Row]) -> Study:
    told = {side: tables.id_text(str(row.known.get(GRADE, ""))) for side, row in rows.items()}
    grades = {side: GRADES.index(grade) for side, grade in told.items() if grade in GRADES}
    covariates: dict[str, dict[str, float | str]] = {}
    for side, row in rows.items():
        for name, value in row.known.items():
            covariates.setdefault(name, {})[side] = value
    return replace(
        study,
        labels={side: row.progressed for side, row in rows.items() if row.progressed >= 0},
        head_labels={
            "course": {side: row.course for side, row in rows.items() if row.course >= 0},
            "kl": {**{side: grade for side, grade in study.labels.items() if side in rows}, **grades},
        },
        covariates=covariates,
    )


def read_labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {side: 0 or 1}} of a table row_id, progressed, its row ids ending in _right or _left. UserError else."""
    table = tables.read_table(path, ["row_id", PROGRESSED], ids=(), whole=True)
    table[PROGRESSED] = table[PROGRESSED].map(tables.id_text)
    tables.refuse(path, table, ~table[PROGRESSED].isin(["", "0", "1"]), PROGRESSED, "expected 0 or 1; of the labels")
    tables.refuse_conflicts(path, table.drop_duplicates(), ["row_id"])
    found: dict[str, dict[str, int]] = {}
    for row, answer in zip(table["row_id"], table[PROGRESSED], strict=True):
        study, _, side = row.rpartition("_")
        if side not in SIDES:
            raise UserError(f"{path}: row {row!r} names no side; expected ids that end in _right or _left")
        if answer:
            found.setdefault(study, {})[side] = int(answer)
    return found


TASK = replace(
    KNEE_XRAY,
    name="knee-progression",
    classes=ANSWERS,
    class_weights=(1.0, 1.0),
    graders=(
        Grader(
            "progression",
            SITES,
            CROPS,
            partial(boxes_around_sites, SITES, CROPS, REACH_MM),
            heads=HEADS,
            laterality_invariant=True,
        ),
    ),
    prior=dict.fromkeys(SIDES, normalised(COUNTS)),
    read=partial(read_known, read, COVARIATES, SITES),
    read_labels=read_labels,
    metric=BinaryMetric(SIDES, ANSWERS),
    covariates=COVARIATES,
    read_split=None,
    inspect=Deferred("osteograde.tasks.progression_census", "inspect"),
    read_files=partial(read_files_known, knee_files.read_files, COVARIATES, SITES),
)

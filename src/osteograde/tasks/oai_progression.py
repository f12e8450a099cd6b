"""Labels of the task `knee-progression` from the tables of the Osteoarthritis Initiative.

Two definitions of progression:

* joint space loss (Guan et al., Osteoarthritis and Cartilage 28:428, 2020): the joint space is narrower by at least
  0.7 mm after 48 months, both widths having been read;
* rise of the Kellgren-Lawrence grade (Tiulpin et al., Scientific Reports 9:20038, 2019): by at least one grade, where
  0 to 1 does not count, or a replacement of the joint; within 60 months, or later. A knee without a rise is stable
  only if it was still seen after 84 months.

A knee without a second visit is left out and counted, never called stable. So is one that has nothing left to lose.
What is known of a knee beside its image is that of baseline alone; no value of a later visit becomes a covariate.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.tasks import oai_tables
from osteograde.tasks.oai_tables import Table, pick

VISIT_OF_MONTH = {0: "00", 12: "01", 24: "03", 36: "05", 48: "06", 72: "08", 96: "10"}
MINIMUM = "minimum"
LOCATIONS = (MINIMUM, *map(str, range(150, 301, 25)), *map(str, range(700, 901, 25)))
SIDE_LETTER = {1: "R", 2: "L"}
REPLACED = 5  # what a replacement of the joint counts as among the grades 0 to 4
DAYS_A_MONTH = 365.25 / 12
COLUMNS = ("patient", "side", "progressed", "progressor", "kl", "age", "sex", "bmi", "injury", "alignment")
_ROUNDING = 1e-6  # widths are written with two or three decimals
_SEX = {1.0: "male", 2.0: "female"}
_INJURY = {0.0: "no", 1.0: "yes"}


@dataclass(frozen=True)
class JointSpaceLoss:
    """Progressed: the joint space is narrower by ``loss_mm`` or more ``months`` after baseline. location: "minimum" (of
    the medial compartment), or a fixed place as OAI numbers them: 150 to 300 medial, 700 to 900 lateral.

    UserError for a month without a visit, an unknown place, or a loss that is not above 0.
    """

    months: int = 48
    loss_mm: float = 0.7
    location: str = MINIMUM

    def __post_init__(self) -> None:
        visits = [month for month in VISIT_OF_MONTH if month]
        if self.months not in visits:
            raise UserError(f"no films were read {self.months} months after baseline; films: {visits} months")
        if self.location not in LOCATIONS:
            raise UserError(f"no joint space is measured at {self.location!r}; expected one of {', '.join(LOCATIONS)}")
        if not self.loss_mm > 0:
            raise UserError(f"a loss of {self.loss_mm} mm is none; expected a number above 0, such as 0.7")

    def column(self, months: int) -> str:
        """Name of the column of a visit: V00MCMJSW, or V06JSW250 and V06LJSW800 of fixed places."""
        lateral = "L" if self.location.startswith(("7", "8", "9")) else ""
        place = "MCMJSW" if self.location == MINIMUM else f"{lateral}JSW{self.location}"
        return f"V{VISIT_OF_MONTH[months]}{place}"


@dataclass(frozen=True)
class GradeRise:
    """Progressed: the Kellgren-Lawrence grade rose or the joint was replaced. early_months: class 1 up to then, class 2
    later. seen_months: how long a knee without a rise must have been seen to be stable."""

    early_months: int = 60
    seen_months: int = 84


@dataclass(frozen=True)
class Labelled:
    """rows: one for each labelled knee, the columns of ``COLUMNS``, "" where unknown. flow: (what, how many knees) in
    the order in which knees are counted and left out."""

    rows: pd.DataFrame
    flow: tuple[tuple[str, int], ...] = field(default_factory=tuple)

    def lines(self) -> list[str]:
        """The flow for people, one line each."""
        return [f"{count:>8}  {what}" for what, count in self.flow]


def build(folder: Path, definition: JointSpaceLoss | GradeRise) -> Labelled:
    """The labels and baseline covariates of every knee that the tables below a folder can tell.

    UserError where a table that the definition needs is missing, or no knee can be labelled.
    """
    tables = oai_tables.find_tables(folder)
    if isinstance(definition, JointSpaceLoss):
        labels, flow = _joint_space_loss(folder, tables, definition)
    else:
        labels, flow = _grade_rise(folder, tables, definition)
    if labels.empty:
        told = "; ".join(f"{what}: {count}" for what, count in flow)
        raise UserError(f"{folder}: no knee can be labelled ({told}); are these the tables of all visits?")
    known = _at_baseline(tables, labels.index)
    rows = labels.join(known.drop(columns=[name for name in known if name in labels]))
    patient, side = labels.index.get_level_values("ID"), labels.index.get_level_values("SIDE")
    rows = rows.assign(patient=patient, side=[SIDE_LETTER[one] for one in side])
    rows = rows.reindex(columns=list(COLUMNS)).astype(object).fillna("").reset_index(drop=True)
    return Labelled(rows.sort_values(["patient", "side"], ignore_index=True), tuple(flow))


def save(labelled: Labelled, path: Path) -> None:
    """Write the rows as a table that ``train_folds.py knee-progression`` reads."""
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(labelled.rows.itertuples(index=False))
    part.replace(path)


Flow = list[tuple[str, int]]


def _needed(folder: Path, tables: Sequence[Table], name: str) -> Table:
    table = pick(tables, name)
    if table is None:
        found = oai_tables.some(sorted({table.name for table in tables}), 12) or "none"
        raise UserError(
            f"{folder}: no table {name} (text with |, zip or sas7bdat, any case); found {found}; "
            "unpack the x-ray image assessments of all visits there"
        )
    return table


def _joint_space_loss(folder: Path, tables: Sequence[Table], definition: JointSpaceLoss) -> tuple[pd.DataFrame, Flow]:
    """(progressed by knee, flow)."""
    first, last = definition.column(0), definition.column(definition.months)
    visit = VISIT_OF_MONTH[definition.months]
    before = oai_tables.of_knees(_needed(folder, tables, "kxr_qjsw_duryea00"), [first])
    after = oai_tables.of_knees(_needed(folder, tables, f"kxr_qjsw_duryea{visit}"), [last])
    both = before.join(after, how="outer")
    has_first, has_last = both[first].notna(), both[last].notna()
    loss = both[first] - both[last]
    lost = loss >= definition.loss_mm - _ROUNDING
    cannot = has_first & (both[first] < definition.loss_mm - _ROUNDING)
    gone = has_first & ~cannot & ~has_last
    kept = has_first & has_last & ~cannot
    replaced = _replaced_months(tables, both.index) <= definition.months
    where = f"{first} to {last}"
    flow = [
        (f"knees in the tables of baseline or of month {definition.months} ({where})", len(both)),
        ("knees with a width at baseline", int(has_first.sum())),
        (f"knees with a width at month {definition.months}", int(has_last.sum())),
        ("knees with both widths", int((has_first & has_last).sum())),
        (f"  of these narrower by {definition.loss_mm:g} mm or more", int((lost & has_first & has_last).sum())),
        ("left out: no width at baseline", int((~has_first).sum())),
        (f"left out: baseline width below {definition.loss_mm:g} mm, which cannot be lost", int(cannot.sum())),
        (f"left out: no width at month {definition.months}", int(gone.sum())),
        ("  of these replaced by then", int((gone & replaced).sum())),
        ("labelled as progressed", int((kept & lost).sum())),
        ("labelled as stable", int((kept & ~lost).sum())),
    ]
    return pd.DataFrame({"progressed": lost[kept].astype(int)}), flow


def _grade_rise(folder: Path, tables: Sequence[Table], definition: GradeRise) -> tuple[pd.DataFrame, Flow]:
    """(progressed, progressor and baseline grade by knee, flow)."""
    grades = oai_tables.of_knees(_needed(folder, tables, "kxr_sq_bu00"), ["V00XRKL"])
    for visit in list(VISIT_OF_MONTH.values())[1:]:
        if (table := pick(tables, f"kxr_sq_bu{visit}")) is not None:
            grades = grades.join(oai_tables.of_knees(table, [f"V{visit}XRKL"]), how="left")
    months = np.array([month for month, visit in VISIT_OF_MONTH.items() if f"V{visit}XRKL" in grades])
    if len(months) < 2:
        raise UserError(f"{folder}: no table of grades after baseline (kxr_sq_bu01 to kxr_sq_bu10); nothing to compare")
    values = grades.to_numpy(float)  # (knees, visits)
    values = np.where((values >= 0) & (values <= 4), values, np.nan)
    replaced = _replaced_months(tables, grades.index).to_numpy()
    first = values[:, 0]
    rises = (values[:, 1:] > first[:, None]) & ~((first[:, None] == 0) & (values[:, 1:] == 1))
    rise_month = np.where(rises, months[1:], np.inf).min(1)
    event = np.minimum(rise_month, replaced)
    seen = np.where(np.isfinite(values), months, -1).max(1)
    no_grade, top = ~np.isfinite(first), (first == 4) | (replaced <= 0)
    open_, progressed = ~no_grade & ~top, np.isfinite(event)
    short = open_ & ~progressed & (seen < definition.seen_months)
    kept = open_ & ~short
    progressor = np.where(progressed, np.where(event <= definition.early_months, 1, 2), 0)
    flow = [
        ("knees with a row at baseline", len(grades)),
        ("left out: no grade at baseline", int(no_grade.sum())),
        ("left out: grade 4 or replaced at baseline, which cannot rise", int((~no_grade & top).sum())),
        (f"left out: no rise, and not seen for {definition.seen_months} months", int(short.sum())),
        (f"labelled as progressed within {definition.early_months} months", int((kept & (progressor == 1)).sum())),
        ("labelled as progressed later", int((kept & (progressor == 2)).sum())),
        ("labelled as stable", int((kept & (progressor == 0)).sum())),
    ]
    frame = pd.DataFrame({"progressed": progressed.astype(int), "progressor": progressor}, index=grades.index)
    frame["kl"] = [f"{grade:.0f}" if np.isfinite(grade) else "" for grade in first]
    return frame[kept], flow


def _replaced_months(tables: Sequence[Table], knees: pd.Index) -> pd.Series:
    """Months from baseline to the replacement of each knee; 0 where it was replaced before, inf where it is not known
    to have been."""
    months = pd.Series(np.inf, index=knees)
    table = pick(tables, "outcomes99")
    if table is None:
        return months
    names = {side: (f"V99E{letter}KDAYS", f"V99E{letter}KBLRP") for side, letter in SIDE_LETTER.items()}
    known = oai_tables.of_patients(table, [name for pair in names.values() for name in pair])
    for side, (days, before) in names.items():
        own = months.index.get_level_values("SIDE") == side
        rows = known.reindex(months.index.get_level_values("ID")[own])
        told = (rows[days] / DAYS_A_MONTH).fillna(np.inf).to_numpy()
        months[own] = np.where(rows[before].to_numpy() == 1, 0.0, told)
    return months


def _at_baseline(tables: Sequence[Table], knees: pd.Index) -> pd.DataFrame:
    """Covariates of each knee as text, "" where unknown or where their table is missing."""
    found = pd.DataFrame(index=knees)
    patient, right = knees.get_level_values("ID"), knees.get_level_values("SIDE") == 1
    if (table := pick(tables, "kxr_sq_bu00")) is not None:
        found["kl"] = _cells(oai_tables.of_knees(table, ["V00XRKL"])["V00XRKL"].reindex(knees), 0)
    if (table := pick(tables, "kxr_fta_duryea00")) is not None:
        found["alignment"] = _cells(oai_tables.of_knees(table, ["V00FTANGLE"])["V00FTANGLE"].reindex(knees), 2)
    if (table := pick(tables, "enrollees")) is not None:
        sex = oai_tables.of_patients(table, ["P02SEX"])["P02SEX"].reindex(patient)
        found["sex"] = [_SEX.get(one, "") for one in sex]
    for name in ("subjectchar00", "allclinical00"):
        if "age" not in found and (table := pick(tables, name)) is not None:
            age = oai_tables.of_patients(table, ["V00AGE"])["V00AGE"].reindex(patient)
            if age.notna().any():
                found["age"] = _cells(age, 0)
    if (table := pick(tables, "allclinical00")) is not None:
        clinical = oai_tables.of_patients(table, ["P01BMI", "P01INJR", "P01INJL"]).reindex(patient)
        found["bmi"] = _cells(clinical["P01BMI"], 1)
        injury = np.where(right, clinical["P01INJR"], clinical["P01INJL"])
        found["injury"] = [_INJURY.get(one, "") for one in injury]
    return found


def _cells(values: pd.Series, decimals: int) -> list[str]:
    return [f"{value:.{decimals}f}" if np.isfinite(value) else "" for value in values]

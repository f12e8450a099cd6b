"""Films of the Osteoarthritis Initiative and the grades of its tables kxr_sq_bu00 to kxr_sq_bu10, joined.

The tables grade a knee (ID, SIDE) at a visit; a film shows both knees of a patient at one. The patient of a film is the
one of the tables whose number stands in its path, else in its PatientID; the visit is what a folder says (0.C.2 and
1.E.1 as the films are given away, 00m, 48m, V06, visit 3, baseline), else the tag ClinicalTrialTimePointID, else that
of the only table. Films that are no frontal view of knees by their tags are left out; whatever is not used is counted.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from osteograde.errors import UserError
from osteograde.imaging.dicom.film_views import body_parts_of, film_codes
from osteograde.imaging.dicom.header import header_of
from osteograde.imaging.dicom.tags import text_of
from osteograde.tasks import oai_tables
from osteograde.tasks.knee_sets import Graded
from osteograde.tasks.oai_tables import Table
from osteograde.tasks.tables import some

log = logging.getLogger(__name__)

SIDES = {1: "right", 2: "left"}
VISIT_OF_MONTH = {0: "00", 12: "01", 18: "02", 24: "03", 30: "04", 36: "05", 48: "06", 72: "08", 96: "10"}
_TABLE = re.compile(r"kxr_sq_bu(\d\d)")
_RELEASE = re.compile(r"(\d{1,2})\.[a-z]\.\d+", re.IGNORECASE)  # folders of films as given away: 0.C.2
_MONTHS = re.compile(r"(\d{1,2}) ?_?(?:m|mo|months?)", re.IGNORECASE)
_VISIT = re.compile(r"(?:v|visit)[ _-]?(\d{1,2})", re.IGNORECASE)
_TAGS = (
    "PatientID", "ClinicalTrialTimePointID", "ViewPosition", "ViewCodeSequence", "SeriesDescription", "ProtocolName",
    "BodyPartExamined", "AnatomicRegionSequence", "PatientOrientation", "StudyDescription", "ImageType",
    "PerformedProcedureStepDescription", "AcquisitionDeviceProcessingDescription",
)  # fmt: skip


def tables_below(root: Path) -> list[Table]:
    """The tables of grades below a folder, one for each visit; none where there are none."""
    found = oai_tables.find_tables(root, _TABLE)
    picked = [oai_tables.pick(found, name) for name in sorted({table.name for table in found})]
    return [table for table in picked if table is not None]


def grades_of(tables: Sequence[Table]) -> dict[tuple[str, str], dict[str, int]]:
    """(patient, visit) -> side -> grade, of the reading that counts (``oai_tables.of_knees``). UserError where a table
    is none of grades."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for table in tables:
        visit = table.name[-2:]
        column = f"V{visit}XRKL"
        knees = oai_tables.of_knees(table, [column])
        if knees[column].isna().all():
            raise UserError(f"{table.place}: no grade in a column {column}; is it the table kxr_sq_bu{visit} of OAI?")
        patients, sides = (knees.index.get_level_values(name) for name in oai_tables.KNEE)
        for patient, side, grade in zip(patients, sides, knees[column], strict=True):
            if grade in (0, 1, 2, 3, 4):
                found.setdefault((patient, visit), {})[SIDES[side]] = int(grade)
    return found


def films_below(
    root: Path, folder: Path, files: Sequence[Path], parts: Collection[str]
) -> tuple[dict[Path, Graded], list[str]]:
    """(``graded_films`` by the tables that lie below ROOT, the places of these tables); none where there are none."""
    tables = tables_below(root)
    return (graded_films(folder, files, tables, parts) if tables else {}), [str(table.path) for table in tables]


def graded_films(
    folder: Path, files: Sequence[Path], tables: Sequence[Table], parts: Collection[str]
) -> dict[Path, Graded]:
    """The films below a folder that the tables grade; logs how many join, by visit, and why others do not.

    parts: words, one of which a header that names a part of the body must name.
    """
    grades = grades_of(tables)
    patients, visits = {patient for patient, _ in grades}, {table.name[-2:] for table in tables}
    joined: dict[Path, Graded] = {}
    why: Counter[str] = Counter()
    for file in files:
        header = header_of(file, _TAGS)
        patient = _patient_of(file.relative_to(folder), text_of(header, "PatientID"), patients)
        visit = _visit_of(file.relative_to(folder), text_of(header, "ClinicalTrialTimePointID"), visits)
        told = body_parts_of(header)
        if told and not any(part in one for one in told for part in parts):
            why["show another part of the body"] += 1
        elif film_codes(header):
            why["are no frontal views"] += 1
        elif not patient:
            why["name no patient of the tables"] += 1
        elif not visit:
            why["name no visit, and there are several tables"] += 1
        elif (patient, visit) not in grades:
            why["are of a visit at which the tables do not grade their patient"] += 1
        else:
            joined[file] = Graded(patient, visit, grades[patient, visit])
    _tell(folder, joined, grades, why)
    return joined


def _tell(folder: Path, joined: Mapping[Path, Graded], grades: Mapping, why: Counter[str]) -> None:
    by_visit = Counter(film.visit for film in joined.values())
    if joined:
        knees = sum(len(film.grades) for film in joined.values())
        log.info("%s: %d films with %d graded knees of %d patients, by visit: %s", folder, len(joined), knees,
                 len({film.patient for film in joined.values()}),
                 ", ".join(f"{visit} {count}" for visit, count in sorted(by_visit.items())))  # fmt: skip
    seen = {(film.patient, film.visit) for film in joined.values()}
    if rest := set(grades) - seen:
        names = [f"{patient} at visit {visit}" for patient, visit in sorted(rest)]
        log.info("%s: of %d graded visits there is no film (%s)", folder, len(rest), some(names, 3))
    for reason, count in sorted(why.items()):
        log.warning("%s: %d films %s: not used", folder, count, reason)


def _patient_of(path: Path, tag: str, patients: Collection[str]) -> str:
    """The patient of the tables that a path names, the nearest folder first, else a tag; "" where neither does."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        for number in re.findall(r"\d+", part):
            if number in patients:
                return number
    return tag if tag in patients else ""


def _visit_of(path: Path, tag: str, visits: Collection[str]) -> str:
    for text in (path.stem, *reversed(path.parts[:-1]), tag):
        if visit := visit_of(text):
            return visit
    (only,) = visits if len(visits) == 1 else ("",)
    return only


def visit_of(text: str) -> str:
    """The number of a visit that a name of a folder or a tag says, in two digits; "" where it says none.

    >>> [visit_of(name) for name in ("0.C.2", "10.E.1", "48m", "12 months", "V06", "visit_3", "baseline", "9001695")]
    ['00', '10', '06', '01', '06', '03', '00', '']
    """
    name = text.strip()
    if told := _RELEASE.fullmatch(name) or _VISIT.fullmatch(name):
        return f"{int(told[1]):02d}"
    if told := _MONTHS.fullmatch(name):
        return VISIT_OF_MONTH.get(int(told[1]), "")
    return "00" if name.lower() in ("baseline", "bl", "screening") else ""

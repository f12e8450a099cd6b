"""Synthetic `knee-progression` data: crops of knees, and tables in the form in which OAI gives them away.

Whether a knee progresses depends on what its image shows (grade, width of the joint space) and on what only the tables
say (body mass, injury, alignment), so that a net that reads both can be shown to know more than one that reads either.
The tables have the visits missing, the repeated readings, the codes with labels and the spellings of the real ones.
"""

from __future__ import annotations

import csv
import json
import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import cv2
import numpy as np

from osteograde import logs
from osteograde.phantom.dicom_writer import write_film
from osteograde.phantom.knee import Anatomy, anatomy, radiograph
from osteograde.tasks import oai_progression
from osteograde.tasks.knee_films import compose
from osteograde.tasks.oai_progression import DAYS_A_MONTH, VISIT_OF_MONTH

log = logging.getLogger("osteograde.phantom")
SOURCE = {
    "source": "synthetic knees and tables of osteograde's own phantom",
    "licence": "Apache-2.0, as the code that makes them",
}
TABLES = "tables"  # the folder of the tables, beside the images
LABELS = "labels.csv"
SHARES = (0.34, 0.22, 0.26, 0.13, 0.05)  # frequency of each grade
LETTER = {"right": "R", "left": "L"}
CODE = {"right": "1: Right", "left": "2: Left"}
MISSING = (".: Missing Form/Incomplete Workbook", "", ".")
RISK_OF_GRADE = (-0.7, 0.0, 0.6, 0.9, 0.4)
LOSS_MM = 0.7


@dataclass(frozen=True)
class Knee:
    """One knee: what the image shows, what the tables say, and what becomes of it. width_mm: per month of a visit,
    medial joint space as it is measured; NaN where it was not. grade_of: the same of the grade."""

    side: str
    grade: int
    joint: Anatomy
    injured: bool
    alignment_deg: float
    progresses: bool
    width_mm: Mapping[int, float]
    grade_of: Mapping[int, float]
    replaced_days: int  # 0: never


@dataclass(frozen=True)
class Patient:
    id: str
    age: int
    sex: int  # OAI's codes: 1 male, 2 female
    bmi: float
    knees: tuple[Knee, ...]


def write(out: Path, *, studies: int, test: int = 0, seed: int = 0, workers: int = 1) -> None:
    """Write crops and tables of ``studies`` patients, the labels that follow from the tables, and films of ``test``
    other patients with their truth and covariates. The files depend on nothing but the seed. workers: not used."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "SOURCE.json").write_text(json.dumps({**SOURCE, "seed": seed}) + "\n", encoding="utf-8")
    patients = [patient(np.random.default_rng([seed, 0, index]), 9_000_000 + index) for index in range(studies)]
    for index, one in enumerate(logs.counted(patients, "writing labelled", "patients", log)):
        rng = np.random.default_rng([seed, 1, index])
        for knee in one.knees:
            path = out / "train" / str(knee.grade) / f"{one.id}{LETTER[knee.side]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), crop(knee, rng))
    if patients:
        write_tables(out / TABLES, patients, np.random.default_rng([seed, 2]))
        labelled = oai_progression.build(out / TABLES, oai_progression.JointSpaceLoss())
        oai_progression.save(labelled, out / LABELS)
    if test:
        _films(out, [patient(np.random.default_rng([seed, 3, i]), 9_900_000 + i) for i in range(test)], seed)


def patient(rng: np.random.Generator, number: int) -> Patient:
    """Draw a patient and the fate of both knees."""
    bmi, age = float(np.clip(rng.normal(28.5, 4.5), 18, 45)), int(rng.integers(45, 80))
    knees = tuple(_knee(side, bmi, rng) for side in LETTER)
    return Patient(str(number), age, int(rng.integers(1, 3)), round(bmi, 1), knees)


def _knee(side: str, bmi: float, rng: np.random.Generator) -> Knee:
    grade = int(rng.choice(len(SHARES), p=SHARES))
    joint = anatomy(grade, rng)
    medial = float(rng.uniform(2.6, 5.6)) if grade < 3 else min(joint.space_mm[1], 3.0)  # any width of a mild knee
    joint = replace(joint, space_mm=(max(joint.space_mm[0], medial), medial), medial_worn=True)
    injured, alignment_deg = bool(rng.random() < 0.3), float(rng.normal(-4, 2.2))
    risk = -1.5 + RISK_OF_GRADE[grade] + 0.9 * (medial - 4.1)  # much that can still be lost
    risk += 0.16 * (bmi - 28.5) + 1.3 * injured - 0.35 * (alignment_deg + 4)
    progresses = bool(rng.random() < 1 / (1 + np.exp(-risk)))
    lost_mm = float(rng.uniform(0.8, 2.0)) if progresses else float(np.clip(rng.normal(0.1, 0.2), -0.3, 0.55))
    first = max(0.0, round(medial + rng.normal(0, 0.05), 3))
    width = {month: max(0.0, round(first - lost_mm * min(month / 48, 1.3), 3)) for month in VISIT_OF_MONTH}
    grades = {month: float(min(4, grade + (progresses and month >= 36))) for month in VISIT_OF_MONTH}
    replaced_days = int(rng.integers(700, 1400)) if grade == 4 and rng.random() < 0.3 else 0
    last = 96 if rng.random() < 0.75 else int(rng.choice([0, 12, 24, 36]))  # the last visit of this knee
    last = min(last, int(replaced_days / DAYS_A_MONTH)) if replaced_days else last
    seen = {month: month <= last and (month == 0 or rng.random() < 0.95) for month in VISIT_OF_MONTH}
    seen[0] = rng.random() < 0.96
    width = {month: value if seen[month] else np.nan for month, value in width.items()}
    grades = {month: value if seen[month] else np.nan for month, value in grades.items()}
    return Knee(side, grade, joint, injured, round(alignment_deg, 2), progresses, width, grades, replaced_days)


def crop(knee: Knee, rng: np.random.Generator) -> np.ndarray:
    """(299, 299) uint8 of a knee at baseline; left knees are mirrored right ones."""
    right = radiograph(knee.joint, rng)
    return right if knee.side == "right" else np.ascontiguousarray(right[:, ::-1])


def write_tables(folder: Path, patients: Sequence[Patient], rng: np.random.Generator) -> None:
    """Write the tables of all visits as OAI does: bars between cells, folders by subject, some of it in an archive."""
    images = folder / "X-Ray Image Assessments_ASCII"
    for month, visit in VISIT_OF_MONTH.items():
        upper = visit in ("03", "08")  # the case of names differs from file to file
        widths, grades = f"kxr_qjsw_duryea{visit}.txt", f"kxr_sq_bu{visit}.txt"
        name = f"V{visit}MCMJSW"
        rows = _readings(patients, rng, lambda knee, month=month: knee.width_mm[month], decimals=3)
        header = ("ID", "SIDE", "READPRJ", "VERSION", name, f"V{visit}NOMJSWX")
        _table(
            images / "Quant JSW_ASCII" / (widths.upper() if upper else widths),
            tuple(column.lower() for column in header) if visit == "06" else header,
            ((*row, "0" if row[-1] not in MISSING else "") for row in rows),
        )
        rows = _readings(patients, rng, lambda knee, month=month: knee.grade_of[month], decimals=0)
        _table(
            images / "Semi-Quant Scoring_ASCII" / (grades.upper() if upper else grades),
            ("id", "side", "readprj", "version", f"V{visit}XRKL") if upper else ("ID", "SIDE", "READPRJ", "VERSION",
                                                                                 f"V{visit}XRKL"),
            rows,
        )  # fmt: skip
    _table(
        images / "Alignment_ASCII" / "KXR_FTA_DURYEA00.txt",
        ("ID", "SIDE", "VERSION", "V00FTANGLE"),
        ((one.id, CODE[k.side], "0.6", _cell(k.alignment_deg, 2, rng)) for one in patients for k in one.knees),
    )
    _clinical(folder, patients, rng)


def _readings(patients, rng, value, decimals):
    """Rows (ID, SIDE, READPRJ, VERSION, value) of every knee; some were read by a second project too, which is listed
    first and says something else."""
    for one in patients:
        for knee in one.knees:
            number = value(knee)
            if np.isnan(number) and rng.random() < 0.5:
                continue  # a visit that did not happen has no row, or a row without a value
            cells = (one.id, CODE[knee.side])
            if rng.random() < 0.15:
                other = "" if np.isnan(number) else f"{max(0.0, number - 1):.{decimals}f}"
                yield (*cells, "42", "1.6", other)
            yield (*cells, "15", "1.6", _cell(number, decimals, rng))


def _clinical(folder: Path, patients: Sequence[Patient], rng: np.random.Generator) -> None:
    sex, yes = {1: "1: Male", 2: "2: Female"}, ("0: No", "1: Yes")
    enrollees = _text(
        ("ID", "VERSION", "P02SEX", "P02RACE", "V00SITE"),
        ((one.id, "25", sex[one.sex], "1: White or Caucasian", "C") for one in patients),
    )
    characters = _text(("ID", "V00AGE"), ((one.id, str(one.age)) for one in patients))
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "General_ASCII.zip", "w") as archive:
        for name, text in (("General_ASCII/Enrollees.txt", enrollees), ("General_ASCII/SubjectChar00.txt", characters)):
            archive.writestr(zipfile.ZipInfo(name), text)  # whose date is always the same
    rows = []
    for one in patients:
        right, left = (yes[knee.injured] if rng.random() < 0.96 else MISSING[0] for knee in one.knees)
        rows.append((one.id, _cell(one.bmi, 1, rng), right, left))
    _table(folder / "AllClinical_ASCII" / "AllClinical00.txt", ("ID", "P01BMI", "P01INJR", "P01INJL"), rows)
    outcomes = []
    for one in patients:
        days = [str(knee.replaced_days) if knee.replaced_days else "." for knee in one.knees]
        outcomes.append((one.id, days[0], "0: No", days[1], "0: No"))
    columns = ("id", "V99ERKDAYS", "V99ERKBLRP", "V99ELKDAYS", "V99ELKBLRP")
    _table(folder / "General_ASCII" / "OUTCOMES99.txt", columns, outcomes)


def _cell(number: float, decimals: int, rng: np.random.Generator) -> str:
    """A number as a cell; one that is unknown, and now and then another one, is missing in one of OAI's ways."""
    if np.isnan(number) or (decimals != 3 and rng.random() < 0.02):
        return str(rng.choice(MISSING))
    return f"{number:.{decimals}f}"


def _text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    out = StringIO()
    writer = csv.writer(out, delimiter="|", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(columns, rows), encoding="utf-8")


def _films(out: Path, patients: Sequence[Patient], seed: int) -> None:
    """Films of both knees without labels, the table of what became of them, and what is known of them beside."""
    folder = out / "test_images"
    folder.mkdir(exist_ok=True)
    truth: list[tuple[object, ...]] = []
    known: list[tuple[object, ...]] = []
    for index, one in enumerate(logs.counted(patients, "writing films", "patients", log)):
        rng = np.random.default_rng([seed, 4, index])
        film = compose([(crop(knee, rng), knee.side) for knee in one.knees], rng)
        write_film(folder / f"{one.id}.dcm", film.pixels, film.pixel_mm, one.id, monochrome1=index % 2 == 1)
        truth += [(f"{one.id}_{knee.side}", int(knee.progresses)) for knee in one.knees if knee.side in film.joints]
        sex, bmi = ("male", "female")[one.sex - 1], f"{one.bmi:.1f}"
        for knee in one.knees:
            injury = ("no", "yes")[knee.injured]
            known.append((one.id, knee.side, knee.grade, one.age, sex, bmi, injury, knee.alignment_deg))
    _commas(out / "test_truth.csv", ("row_id", "progressed"), truth)
    columns = ("study", "side", "kl", "age", "sex", "bmi", "injury", "alignment")
    _commas(folder / "covariates.csv", columns, known)


def _commas(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

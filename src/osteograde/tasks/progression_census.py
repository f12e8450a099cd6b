"""What ``osteograde inspect`` counts for the task `knee-progression`. Only counting needs it."""

from __future__ import annotations

from pathlib import Path

from osteograde.tasks import knee_files, tables
from osteograde.tasks.census import Census, Fact
from osteograde.tasks.knee_files import SIDES
from osteograde.tasks.knee_progression import TABLES, read_rows, table_of


def inspect(root: Path) -> Census:
    """Which knees of the table of labels have no image, and which images it does not name. UserError where there is no
    such table, or it names none of the knees."""
    root = Path(root)
    path = table_of(root)
    studies, rows = knee_files.read_all(root, TABLES), read_rows(path)
    same = {patient: own for own, patient in tables.matched({s.patient for s in studies}, {p for p, _ in rows}).items()}
    named = {(same.get(patient, patient), side) for patient, side in rows}
    shown = {(study.patient, side): study.id for study in studies for side in study.targets or SIDES}
    lost = sorted(" ".join(knee) for knee in named - shown.keys())
    unused = sorted({study for knee, study in shown.items() if knee not in named})
    return Census(
        (
            Fact(f"knees of {path.name} without an image", len(lost), len(named), tables.some(lost),
                 "the table names knees that are not there", True),
            Fact(f"images of knees that {path.name} does not name", len(unused), len(studies), tables.some(unused),
                 "they are not learnt from"),
        ),
        (),
    )  # fmt: skip

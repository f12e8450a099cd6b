"""``osteograde inspect``: look through a folder of data before anything is trained on it."""

from __future__ import annotations

import argparse
import logging
from datetime import datetime
from pathlib import Path

from osteograde.errors import UserError
from osteograde.logs import progress, to_stdout
from osteograde.report import data_pictures, data_survey, inspect, oof_tables
from osteograde.report.data_census import Surveyed, census
from osteograde.report.data_survey import Gathered
from osteograde.report.oof_tables import Evidence
from osteograde.tasks import TASKS
from osteograde.tasks.census import Census
from osteograde.tasks.tables import some

log = logging.getLogger("osteograde.report")


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``osteograde inspect`` ask for; the exit code is returned."""
    if not args.json:
        to_stdout(bars=True)
    task = TASKS[args.task]
    evidence = oof_tables.read(args.oof, TASKS) if args.oof else None
    if evidence is not None and evidence.graded is None:
        raise UserError(f"--oof {args.oof}: a member of the ensemble has no oof.csv; give the folder of one that has")
    task = task.as_defined(evidence.task.definition) if evidence else data_survey.as_shown(task, args.data)
    log.info("%s: reading names and tables", args.data)
    gathered = data_survey.gather(task, args.data)
    if evidence:
        _check_same(args.oof, evidence, gathered)
    series = sum(len(study.series) for study in gathered.studies)
    log.info("%s: %d studies, %d series: every image is read once", args.data, len(gathered.studies), series)
    with progress("reading", series, "series", log) as shown:
        looks = data_survey.survey(task, gathered, progress=shown.advance)
    log.info("looking for images that are there twice")
    copies = data_survey.find_copies(task, gathered, looks)
    seen = Surveyed(task, gathered, looks, copies, evidence.fold if evidence else {})
    found = census(seen)
    labels: list[data_pictures.Case] = []
    if evidence:
        doubted = data_pictures.doubt_labels(seen, evidence)
        found = _first(data_pictures.census_of_labels(seen, doubted), found)
        log.info("cutting out the least believable labels")
        labels = data_pictures.label_cases(seen, doubted, evidence)
    title = f"{task.name}: what {args.data.resolve().name} holds"
    written = inspect.write(
        found, args.out, title, datetime.now(),
        classes=task.classes, labels=labels, copies=data_pictures.copy_cases(seen),
    )  # fmt: skip
    if args.json:
        print(inspect.as_json(found))
        return 0
    print(*inspect.lines(found), sep="\n")
    print(f"written: {', '.join(map(str, written))}")
    print(_next_step(args, found))
    return 0


def _check_same(oof: Path, evidence: Evidence, gathered: Gathered) -> None:
    """UserError where no labelled study of a folder has an out-of-fold answer, before any image is read."""
    labelled = [study.id for study in gathered.studies if study.labels]
    answered = set(evidence.graded.studies) if evidence.graded else set()
    if not answered & {*labelled}:
        why = f"; {gathered.refused}" if gathered.refused else f"; it names {some(sorted(answered), 3)}"
        raise UserError(
            f"--oof {oof}: none of the {len(labelled)} labelled studies of {gathered.root} is in its oof.csv{why}; "
            "give weights that were trained on these data"
        )


def _first(labels: Census, found: Census) -> Census:
    """The doubts about labels behind the facts of the folder, their tables before its own."""
    return Census((*found.facts, *labels.facts), (*labels.tables, *found.tables))


def _next_step(args: argparse.Namespace, found: Census) -> str:
    if found.faults:
        return f"next: open {args.out}, mend what it lists, and run the same command again"
    return f"next: osteograde train {args.task} --data {args.data} --out weights/{args.task}-mine"

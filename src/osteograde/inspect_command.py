"""``osteograde inspect``: look through a folder of data before anything is trained on it."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from datetime import datetime

from tqdm import tqdm

from osteograde.errors import UserError
from osteograde.logs import to_stdout
from osteograde.report import data_pictures, data_survey, inspect, oof_tables
from osteograde.report.data_census import Surveyed, census
from osteograde.tasks import TASKS
from osteograde.tasks.census import Census

log = logging.getLogger("osteograde.report")
LINE_SECONDS = 60.0  # between two lines of a log that no terminal shows


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``osteograde inspect`` ask for; the exit code is returned."""
    if not args.json:
        to_stdout()
    evidence = oof_tables.read(args.oof, TASKS) if args.oof else None
    if evidence is not None and evidence.graded is None:
        raise UserError(f"--oof {args.oof}: a member of the ensemble has no oof.csv; give the folder of one that has")
    log.info("%s: reading names and tables", args.data)
    gathered = data_survey.gather(TASKS[args.task], args.data)
    task = gathered.task
    series = sum(len(study.series) for study in gathered.studies)
    log.info("%s: %d studies, %d series: every image is read once", args.data, len(gathered.studies), series)
    looks = data_survey.survey(task, gathered, progress=_progress(series))
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


def _first(labels: Census, found: Census) -> Census:
    """The doubts about labels behind the facts of the folder, their tables before its own."""
    return Census((*found.facts, *labels.facts), (*labels.tables, *found.tables))


def _progress(total: int) -> Callable[[], object]:
    """What is called after each series: a bar on a terminal, else a line a minute."""
    if sys.stderr.isatty():
        return tqdm(total=total, unit=" series", file=sys.stderr).update
    count, last = 0, time.monotonic()

    def step() -> None:
        nonlocal count, last
        count += 1
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            log.info("%d of %d series read", count, total)

    return step


def _next_step(args: argparse.Namespace, found: Census) -> str:
    if found.faults:
        return f"next: open {args.out}, mend what it lists, and run the same command again"
    return f"next: osteograde train {args.task} --data {args.data} --out weights/{args.task}-mine"

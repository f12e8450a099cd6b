"""Weights folders as a table: what was trained, how it differs from its recipe, how long it took and what it scored.

A folder is listed where it holds a manifest.json, an ensemble.json, or the folds and curves of a training that has not
ended yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.learning import calls, compare, folds, history, recipes, reuse, train
from osteograde.models.manifest import ENSEMBLE, MANIFEST, Manifest, is_plain, read_manifest
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import Task

DEPTH = 4  # folders below the given one that are looked into
SKIPPED = ("work", "locate", "grade", "checks", history.FOLDER)  # parts of weights folders
RESAMPLES = 1000
LEVELS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # of a curve in text: bars of rising height
CURVE_WIDTH = 20


@dataclass(frozen=True)
class Curve:
    """The history of a net in short form. best_epoch: that of the lowest held-out loss, else of the lowest loss."""

    net: str
    epochs: int
    final_loss: float
    best_epoch: int
    best_loss: float
    is_held_out: bool
    shape: str


@dataclass(frozen=True)
class TrainedRun:
    """A weights folder in the table.

    changes: choices that differ from the recipe of that name, as "name = value (recipe: value)"; state: "whole", "folds
    missing", "not ended ...", "ensemble", or why it cannot be read. score, interval, prior: the official score
    out-of-fold. better: "higher" or "lower". hours: of all calls, and day: of the last
    one, where they are known (``learning.calls``).
    """

    folder: str
    task: str
    recipe: str
    state: str
    changes: tuple[str, ...] = ()
    folds: str = ""
    studies: int = 0
    score: float | None = None
    interval: tuple[float | None, float | None] = (None, None)
    prior: float | None = None
    better: str = ""
    hours: float | None = None
    day: str = ""
    curves: tuple[Curve, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self)


def find(top: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Weights folders at or below a folder, in the order of their names; what lies in one is not looked into, unless it
    is a member of an ensemble."""
    is_one = _is_finished(top) or (top / folds.FILE).is_file()
    if is_one:
        yield top
    if depth and (not is_one or (top / ENSEMBLE).is_file()):
        with os.scandir(top) as entries:
            below = sorted(one.name for one in entries if one.is_dir() and not one.name.startswith("."))
        for name in below:
            if name not in SKIPPED:
                yield from find(top / name, depth - 1)


def _is_finished(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / ENSEMBLE).is_file()


def survey(tops: Sequence[Path], tasks: Mapping[str, Task]) -> list[TrainedRun]:
    """The weights folders below some folders, by task, the best score first, then those without one."""
    rows = [describe(folder, tasks) for folder in dict.fromkeys(path for top in tops for path in find(top))]

    def place(row: TrainedRun) -> tuple[str, bool, float, str]:
        better = -(row.score or 0.0) if row.better == "higher" else row.score or 0.0
        return row.task, row.score is None, better, row.folder

    return sorted(rows, key=place)


def describe(folder: Path, tasks: Mapping[str, Task]) -> TrainedRun:
    """One row of the table; a folder that cannot be read says why in its state."""
    try:
        if not is_plain(folder):
            return _ensemble(folder, tasks)
        return _trained(folder, tasks) if (folder / MANIFEST).is_file() else _begun(folder, tasks)
    except UserError as error:
        return TrainedRun(str(folder), "?", "?", str(error))


def _trained(folder: Path, tasks: Mapping[str, Task]) -> TrainedRun:
    manifest = read_manifest(folder)
    trained = manifest.folds.trained if manifest.folds else ()
    plain = reuse.current_form(manifest.recipe)
    count = int(plain["scope"]["folds"])
    task = tasks[manifest.task].as_defined(manifest.definition) if manifest.task in tasks else None
    headline = _headline(folder, manifest, task)
    return TrainedRun(
        str(folder),
        manifest.task,
        str(plain.get("name", "?")),
        "whole" if len(trained) in (0, count) else "folds missing",
        changes=tuple(changes(plain, task)),
        folds=f"{', '.join(map(str, trained)) if 0 < len(trained) < count else count} of {count}",
        better="" if task is None else "higher" if "score" in task.metric.higher_is_better else "lower",
        hours=calls.hours(folder),
        day=_day(folder),
        curves=tuple(curves(folder)),
        **headline,
    )


def _headline(folder: Path, manifest: Manifest, task: Task | None) -> dict[str, Any]:
    """studies, score, interval and prior: as the training computed them from its out-of-fold table, or from that table
    where the manifest does not say."""
    grade = manifest.scores.grade
    if grade.get("model"):
        low, high = grade.get("interval_95", {}).get("score", (None, None))
        return {
            "studies": int(grade.get("studies", 0)),
            "score": grade["model"].get("score"),
            "interval": (low, high),
            "prior": grade.get("prior", {}).get("score"),
        }
    if task is None or not (folder / compare.FILE).is_file():
        return {}
    return headline_of_table(task, compare.read_out_of_fold(folder, {task.name: task}))


def headline_of_table(task: Task, table: compare.OofTable, resamples: int = RESAMPLES) -> dict[str, Any]:
    """studies, score and interval of an out-of-fold table, by the metric of its task; patients are drawn."""
    if not table.labels:
        return {}
    statistic = task.metric.bootstrap_statistic(table.labels, table.probs)
    groups = groups_of([table.patient[study] for study in table.labels])
    low, high = interval(statistic, len(groups), resamples, np.random.default_rng(0), groups=groups)
    exact = np.asarray(statistic(np.ones((1, len(groups))))).reshape(-1)
    score, *ends = (_plain(values[-1]) for values in (exact, np.atleast_1d(low), np.atleast_1d(high)))
    return {"studies": len(groups), "score": score, "interval": (ends[0], ends[1])}


def _begun(folder: Path, tasks: Mapping[str, Task]) -> TrainedRun:
    """A training that has not ended."""
    path = folder / "work" / train.RECIPE
    if not path.is_file():
        raise UserError(f"no {MANIFEST}, and no recipe of a training that was begun")
    plain = json.loads(path.read_text(encoding="utf-8"))
    task = tasks.get(recipes.NAMES.get(plain["name"], ""))
    nets = len(list((folder / "work" / "nets").glob("*.sha256")))
    return TrainedRun(
        str(folder),
        "?" if task is None else task.name,
        plain["name"],
        f"not ended, {nets} nets are finished",
        changes=()
        if task is None or task.of_definition
        else tuple(changes(plain, task)),  # what defines it is not kept
        hours=calls.hours(folder),
        day=_day(folder),
        curves=tuple(curves(folder)),
    )


def _ensemble(folder: Path, tasks: Mapping[str, Task]) -> TrainedRun:
    """An ensemble: its score is that of nested selection, as ensemble.json has it."""
    try:
        chosen = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
        names = [member["name"] for member in chosen["members"]]
        nested = chosen.get("nested", {})
        low, high = nested.get("interval_95", (None, None))
        return TrainedRun(
            str(folder),
            chosen["task"],
            f"{chosen['rule']} of {', '.join(names)}",
            "ensemble",
            studies=chosen.get("studies", 0),
            score=nested.get("score"),
            interval=(low, high),
            better=chosen.get("better", ""),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ENSEMBLE}: not what osteograde ensemble writes ({error!r})") from error


def _day(folder: Path) -> str:
    """The date of the last call, else of the youngest history; "" where the folder has neither."""
    if made := calls.read(folder):
        return made[-1].day
    times = [path.stat().st_mtime for path in (folder / history.FOLDER).glob("*.jsonl")]
    return date.fromtimestamp(max(times)).isoformat() if times else ""


def changes(plain: Mapping[str, Any], task: Task | None) -> list[str]:
    """How a recipe as it was trained differs from the one of that name today, a choice each. task: as the weights
    define it."""
    name = str(plain.get("name"))
    if task is None or recipes.NAMES.get(name) != task.name:
        return ["no recipe of this name is known"]
    recipe = recipes.recipe_for(name, task)
    is_small = bool(plain["scope"].get("annotated_points"))
    today = json.loads(json.dumps((recipe.shrunk() if is_small else recipe).plain()))
    differing = train.changed(train.compared(reuse.completed(today)), train.compared(reuse.completed(plain)))
    found = [f"{choice} = {now!r} (recipe: {before!r})" for choice, before, now in differing]
    return ["made small by --debug", *found] if is_small else found


def curves(folder: Path) -> Iterator[Curve]:
    """The histories of a weights folder in short form."""
    for path in sorted((folder / history.FOLDER).glob("*.jsonl")):
        rows = [row for row in history.read(path) if isinstance(row.get("loss"), (int, float))]
        if rows:
            held_out = [row for row in rows if row.get("held_out_loss") is not None]
            key = "held_out_loss" if len(held_out) > 1 else "loss"
            best = min(held_out if len(held_out) > 1 else rows, key=lambda row: row[key])
            yield Curve(
                net=path.stem,
                epochs=max(row["epoch"] for row in rows),
                final_loss=rows[-1]["loss"],
                best_epoch=best["epoch"],
                best_loss=best[key],
                is_held_out=key == "held_out_loss",
                shape=spark([row["loss"] for row in rows]),
            )


def spark(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """Values as a line of bars, a character each; means of neighbours where there are more than ``width``.

    >>> [LEVELS.index(bar) for bar in spark([3.0, 2.0, 1.0])], len(spark([0.5] * 99))
    ([7, 4, 0], 20)
    """
    groups = np.array_split(np.array(values, float), min(width, len(values)))
    means = np.array([group.mean() for group in groups])
    low, high = means.min(), means.max()
    share = (means - low) / ((high - low) or 1)
    return "".join(LEVELS[round(one * (len(LEVELS) - 1))] for one in share)


def _plain(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None

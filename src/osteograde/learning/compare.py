"""Trained weights compared on their out-of-fold tables: each part of the score, and paired differences with intervals.

    tables = [read_out_of_fold(folder, TASKS) for folder in folders]
    comparison = compare_out_of_fold(task_of(folders[0], TASKS), tables)
    print("\\n".join(comparison.lines()))

Only what every table has counts: the rows that are labelled in all of them. Patients are drawn, the same ones for every
table, so what is common to all (easy and hard patients) does not widen the interval of a difference. Labels and
patients come from the weights folders, so the data are not needed. Nothing here imports torch.

Shapes: T targets, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.models.manifest import is_plain, read_ensemble, read_manifest
from osteograde.pipeline import voting
from osteograde.tasks import tables
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import Task
from osteograde.tasks.tables import some

FILE = "oof.csv"
RESAMPLES = 1000
HEADLINE = "score"  # the part of every Metric that is the official one
_DIGITS = 4
Statistic = Callable[[np.ndarray], np.ndarray]  # ``Metric.bootstrap_statistic``


@dataclass(frozen=True, eq=False)
class OofTable:
    """What the nets of a weights folder say of studies that they never saw.

    name: of the folder. task: its name. probs: study -> (T, K), NaN in rows that a study does not have. labels: study
    -> target -> class index, of labelled targets alone. patient, fold: of every study.
    """

    name: str
    task: str
    probs: Mapping[str, np.ndarray]
    labels: Mapping[str, Mapping[str, int]]
    patient: Mapping[str, str]
    fold: Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """A part of the score: the values of all tables, what each table has more than the first one, and the 95 % interval
    of that under resampling of patients. Not a number where a value is not defined."""

    name: str
    higher_is_better: bool
    values: tuple[float, ...]  # of every table
    differences: tuple[float, ...]  # of every table but the first
    intervals: tuple[tuple[float, float], ...]  # of these differences

    def verdict(self, i: int) -> str:
        """Whether the i-th difference speaks for its table: "better", "worse", or "no difference shown" where its
        interval holds 0 or is not defined."""
        low, high = self.intervals[i]
        if not (low > 0 or high < 0):
            return "no difference shown"
        return "better" if (low > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Two or more tables on the rows that all of them have. notes: what a reader must know, a sentence each."""

    task: str
    names: tuple[str, ...]
    studies: int
    patients: int
    rows: int
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> Part:
        """The official score."""
        return next(part for part in self.parts if part.name == HEADLINE)

    def plain(self) -> dict[str, Any]:
        """The comparison as JSON data; None where a value is not defined."""
        return {
            "task": self.task,
            "weights": list(self.names),
            "studies": self.studies,
            "patients": self.patients,
            "rows": self.rows,
            "notes": list(self.notes),
            "parts": {
                part.name: {
                    "better": "higher" if part.higher_is_better else "lower",
                    "values": [_plain(value) for value in part.values],
                    "differences": [_plain(value) for value in part.differences],
                    "interval_95": [[_plain(low), _plain(high)] for low, high in part.intervals],
                }
                for part in self.parts
            },
        }

    def lines(self) -> list[str]:
        """The comparison as lines of text, the official score first."""
        first, *others = self.names
        lines = [f"{self.task}: {self.rows} labelled rows of {self.studies} studies and {self.patients} patients"]
        lines += [f"note: {note}" for note in self.notes]
        parts = sorted(self.parts, key=lambda part: part.name != HEADLINE)
        for i, other in enumerate(others):
            width = max(22, 2 + max(len(part.name) for part in parts))
            lines += ["", f"{other} against {first}"]
            lines.append(f"{'':<{width}}{'first':>9}{'second':>9}{'difference':>12}   95 % interval")
            for part in parts:
                low, high = part.intervals[i]
                cells = f"{_text(part.values[0]):>9}{_text(part.values[i + 1]):>9}{_text(part.differences[i], '+'):>12}"
                between = f"{_text(low, '+')} to {_text(high, '+')}"
                lines.append(f"{part.name:<{width}}{cells}   {between:<22}{part.verdict(i)}")
        return lines


def task_of(folder: Path, tasks: Mapping[str, Task]) -> Task:
    """The task of a weights folder, or of an ensemble's first member, as they define it. UserError where it is none."""
    while not is_plain(folder):
        folder = folder / read_ensemble(folder).members[0].folder
    manifest = read_manifest(folder)
    if manifest.task not in tasks:
        raise UserError(f"{folder}: weights are of task {manifest.task!r}; known tasks: {sorted(tasks)}")
    return tasks[manifest.task].as_defined(manifest.definition)


def read_out_of_fold(folder: Path, tasks: Mapping[str, Task]) -> OofTable:
    """The out-of-fold table of a weights folder; of an ensemble the vote on the tables of its members.

    UserError where the folder is no weights folder, is of an unknown task, lacks folds.csv or oof.csv, or where a table
    is not one that training writes.
    """
    if not is_plain(folder):
        return _voted(folder, tasks)
    task = task_of(folder, tasks)
    for name in (folds.FILE, FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no {name}, so nothing is known of studies that its nets never saw; "
                "compare submissions with osteograde score instead"
            )
    split = folds.read(folder / folds.FILE)
    probs, labels = _read(folder / FILE, task)
    if odd := sorted(set(probs) - set(split.fold)):
        raise UserError(f"{folder / FILE}: {len(odd)} studies are not in {folds.FILE}: {some(odd)}; train again")
    return OofTable(folder.resolve().name, task.name, probs, labels, split.patient, split.fold)


def _voted(folder: Path, tasks: Mapping[str, Task]) -> OofTable:
    """The vote on the tables of an ensemble's members, on the studies that all of them have."""
    chosen = read_ensemble(folder)
    members = [read_out_of_fold(folder / member.folder, tasks) for member in chosen.members]
    first = members[0]
    probs = {}
    for study in first.probs:
        if all(study in member.probs for member in members):
            rows = np.stack([member.probs[study] for member in members])
            has_row = np.isfinite(rows).all((0, 2))
            probs[study] = np.full(rows.shape[1:], np.nan)
            if has_row.any():
                probs[study][has_row] = voting.vote(rows[:, has_row], chosen.rule)[1]
    labels = {study: first.labels[study] for study in probs if study in first.labels}
    return OofTable(folder.resolve().name, first.task, probs, labels, first.patient, first.fold)


def _read(path: Path, task: Task) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """(probabilities, labels) of oof.csv. UserError where it has other columns, or a label is no class."""
    columns, ids, values = tables.read_rows(path)
    k, expected = len(task.classes), [tables.ROW_ID, *task.classes, "fold", "label"]
    if columns != expected:
        raise UserError(f"{path}: columns are {columns}; expected {expected}; train again")
    if doubled := tables.duplicates(ids):
        raise UserError(f"{path}: row ids more than once: {some(doubled)}")
    labels: dict[str, dict[str, int]] = {}
    for row, label in zip(ids, values[:, k + 1], strict=True):
        if np.isfinite(label):
            if label not in range(k):
                raise UserError(f"{path}: row {row!r} has label {label:g}; the classes are 0 to {k - 1}")
            study, target = tables.split_id(task, row)
            labels.setdefault(study, {})[target] = int(label)
    return tables.by_study(task, dict(zip(ids, values[:, :k], strict=True))), labels


def compare_out_of_fold(
    task: Task, sides: Sequence[OofTable], *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Every table against the first one, on the rows that are labelled in all of them.

    resamples: of patients, behind the 95 % intervals of the differences. UserError where there are fewer than two
    tables, one is of another task, their labels or patients contradict each other (they learnt from other data), or no
    labelled row is common. Where the folds or the rows differ, it is compared all the same and a note says so.
    """
    _refuse_strangers(task, sides)
    labels = _common_labels(task, sides)
    if not labels:
        raise UserError(f"{' and '.join(side.name for side in sides)}: no labelled row is in all of their {FILE}")
    studies = list(labels)
    statistics = [task.metric.bootstrap_statistic(labels, {one: side.probs[one] for one in studies}) for side in sides]
    whole = np.ones((1, len(studies)))
    values = np.array([np.asarray(statistic(whole)).reshape(-1) for statistic in statistics])
    groups = groups_of([sides[0].patient[study] for study in studies])
    ends = [
        interval(
            _difference(statistics[0], second), len(studies), resamples, np.random.default_rng(seed), groups=groups
        )
        for second in statistics[1:]  # the same seed, so the same patients, for every table
    ]
    return Comparison(
        task=task.name,
        names=tuple(side.name for side in sides),
        studies=len(studies),
        patients=int(groups.max()) + 1,
        rows=sum(map(len, labels.values())),
        parts=tuple(
            Part(
                name=name,
                higher_is_better=name in task.metric.higher_is_better,
                values=tuple(values[:, p].tolist()),
                differences=tuple((values[1:, p] - values[0, p]).tolist()),
                intervals=tuple((float(low[p]), float(high[p])) for low, high in ends),
            )
            for p, name in enumerate(task.metric.parts)
        ),
        notes=tuple(_notes(sides, labels)),
    )


def _difference(first: Statistic, second: Statistic) -> Statistic:
    return lambda counts: second(counts) - first(counts)


def _refuse_strangers(task: Task, sides: Sequence[OofTable]) -> None:
    """UserError where tables cannot be compared at all."""
    if len(sides) < 2:
        raise UserError(f"{len(sides)} weights folder to compare; name two or more")
    if odd := [f"{side.name} ({side.task})" for side in sides if side.task != task.name]:
        raise UserError(f"not weights of {task.name}: {some(odd)}; compare weights of one task")
    shape, first = (len(task.targets), len(task.classes)), sides[0]
    if odd := [side.name for side in sides for table in [*side.probs.values()][:1] if table.shape != shape]:
        raise UserError(f"{some(odd)}: other classes or targets than {first.name}; compare weights of the same ones")
    for side in sides[1:]:
        both = [(study, target) for study, given in first.labels.items() for target in given
                if target in side.labels.get(study, {})]  # fmt: skip
        odd = [
            f"{study}_{target}" for study, target in both if first.labels[study][target] != side.labels[study][target]
        ]
        if odd:
            raise UserError(
                f"{side.name} and {first.name} learnt from other labels: {len(odd)} of {len(both)} common rows differ, "
                f"{some(odd)}; compare weights that were trained on the same table"
            )
        shared = set(first.probs) & set(side.probs)
        if torn := sorted(study for study in shared if first.patient[study] != side.patient[study]):
            raise UserError(
                f"{side.name} and {first.name}: {len(torn)} studies are of other patients in their {folds.FILE}: "
                f"{some(torn)}; they learnt from other data"
            )


def _common_labels(task: Task, sides: Sequence[OofTable]) -> dict[str, dict[str, int]]:
    """The labels of the rows that every table has and knows the label of, in the order of the first table."""
    column = {target: t for t, target in enumerate(task.targets)}
    labels = {}
    for study, given in sides[0].labels.items():
        kept = {
            target: label
            for target, label in given.items()
            if all(
                target in side.labels.get(study, {}) and np.isfinite(side.probs[study][column[target]]).all()
                for side in sides
            )
        }
        if kept:
            labels[study] = kept
    return labels


def _notes(sides: Sequence[OofTable], labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What differs between the tables beside the nets."""
    notes, first, rows = [], sides[0], sum(map(len, labels.values()))
    for side in sides:
        own = sum(map(len, side.labels.values()))
        if own > rows:
            notes.append(f"{own - rows} of the {own} labelled rows of {side.name} are not in all tables: left out")
    for side in sides[1:]:
        moved = sum(first.fold[study] != side.fold[study] for study in labels)
        if moved:
            notes.append(
                f"{side.name} was trained on other folds than {first.name} ({moved} of {len(labels)} studies are held "
                "out in another one), so the difference is also one of what each net learnt from; --folds-of avoids it"
            )
    return notes


def _plain(value: float) -> float | None:
    return round(float(value), _DIGITS) if np.isfinite(value) else None


def _text(value: float, sign: str = "") -> str:
    return format(value, f"{sign}.{_DIGITS}f") if np.isfinite(value) else "-"

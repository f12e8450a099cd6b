"""The tables that a weights folder holds: the manifest, the folds, and the out-of-fold predictions and landmarks."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.models import bundle
from osteograde.models.manifest import ENSEMBLE, Manifest, NetFile, Scores, is_plain
from osteograde.pipeline import ensemble, voting
from osteograde.tasks import tables
from osteograde.tasks.spec import Grader, Points, Site, Study, Task
from osteograde.tasks.spec import Point as Landmark

AXES = ("x_mm", "y_mm", "z_mm")
POINT_COLUMNS = ("study_id", "fold", "landmark", "confidence", *AXES, *(f"true_{axis}" for axis in AXES))


@dataclass(frozen=True, eq=False)
class Graded:
    """oof.csv, n rows. ids, studies, targets: of each row. probs: (n, K). fold: (n,). label: (n,) class index, -1 where
    it is unknown."""

    ids: tuple[str, ...]
    studies: tuple[str, ...]
    targets: tuple[str, ...]
    probs: np.ndarray
    fold: np.ndarray
    label: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """(n,) booleans: whether the label of a row is known."""
        return self.label >= 0

    def loss(self) -> np.ndarray:
        """(n,): -log p of the true class, NaN where that is unknown. p is at least 1e-15."""
        true = self.probs[np.arange(len(self.label)), np.maximum(self.label, 0)]
        return np.where(self.labelled, -np.log(np.maximum(true, 1e-15)), np.nan)


@dataclass(frozen=True, eq=False)
class Located:
    """oof_points.csv, n rows. found_mm, true_mm: (n, 3) LPS mm, NaN where a landmark was not found or is not annotated.
    confidence: (n,)."""

    studies: tuple[str, ...]
    landmarks: tuple[str, ...]
    found_mm: np.ndarray
    true_mm: np.ndarray
    confidence: np.ndarray

    def errors_mm(self, landmarks: set[str]) -> np.ndarray:
        """Distances in mm between found and annotated points of these landmarks, of the rows that have both, in
        order."""
        chosen = np.array([name in landmarks for name in self.landmarks], bool)
        distance = np.linalg.norm(self.found_mm - self.true_mm, axis=1)
        return distance[chosen & np.isfinite(distance)]

    def annotated(self, landmarks: set[str]) -> int:
        """Number of rows of these landmarks that have an annotated point."""
        has_truth = np.isfinite(self.true_mm).all(1)
        return sum(bool(has) for name, has in zip(self.landmarks, has_truth, strict=True) if name in landmarks)

    def points(self, study: str) -> Points:
        """{landmark: Point} of the landmarks found in one study."""
        rows = [i for i, name in enumerate(self.studies) if name == study and np.isfinite(self.found_mm[i]).all()]
        return {self.landmarks[i]: Landmark(self.found_mm[i], float(self.confidence[i])) for i in rows}


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that a report is made from. graded and located: None where the folder lacks oof.csv or
    oof_points.csv."""

    folder: Path
    task: Task
    manifest: Manifest
    fold: Mapping[str, int]  # study -> fold
    patient: Mapping[str, str]
    graded: Graded | None
    located: Located | None
    voters: tuple[Evidence, ...] = ()  # of an ensemble: what it is of its members, in their order
    chosen: Mapping[str, Any] = field(default_factory=dict)  # of an ensemble: the content of ensemble.json

    @property
    def members(self) -> tuple[Evidence, ...]:
        """Those whose nets answered: the members of an ensemble, else the folder itself."""
        return self.voters or (self,)

    @property
    def sites(self) -> Mapping[str, tuple[Grader, Site]]:
        """target -> its grader and its site."""
        return {site.target: (grader, site) for grader in self.task.graders for site in grader.sites}


def read(folder: Path, tasks: Mapping[str, Task], labels: Mapping[str, Mapping[str, int]] | None = None) -> Evidence:
    """Read a weights folder. tasks: all tasks by name. labels: {study: {target: class}}, for tables without labels.

    Of an ensemble the rows are the vote on those of its members, and the landmarks those of the first member.
    UserError where the folder is no weights folder, or a table is not one that training writes.
    """
    if not is_plain(folder):
        return _voted(folder, tasks, labels)
    manifest = bundle.read_manifest(folder)
    if manifest.task not in tasks:
        raise UserError(f"{folder}: weights are of task {manifest.task!r}; known tasks: {sorted(tasks)}")
    task = bundle.as_read(tasks[manifest.task].as_defined(manifest.definition), manifest, folder)
    fold, patient = _folds(folder / folds.FILE)
    graded, points = folder / "oof.csv", folder / "oof_points.csv"
    return Evidence(
        folder=folder,
        task=task,
        manifest=manifest,
        fold=fold,
        patient=patient,
        graded=_graded(graded, task, labels or {}) if graded.is_file() else None,
        located=_located(points) if points.is_file() else None,
    )


def _voted(folder: Path, tasks: Mapping[str, Task], labels: Mapping[str, Mapping[str, int]] | None) -> Evidence:
    """What an ensemble's members are evidence of together. UserError where their tables are not of the same rows."""
    weights = ensemble.read(folder)
    voters = tuple(read(member.folder, tasks, labels) for member in weights.members)
    first = voters[0]
    files: dict[str, NetFile] = {}
    for member in weights.members:
        files |= {f"{member.name}/{name}": entry for name, entry in member.manifest.files.items()}
    manifest = Manifest(
        first.task.name,
        files=files,
        pixels={},
        test_views=weights.test_views,
        prior=weights.prior,
        recipe={"name": f"{weights.rule} of {', '.join(member.name for member in weights.members)}"},
        folds=first.manifest.folds,
        data=first.manifest.data,
        versions=first.manifest.versions,
        scores=Scores(locate=first.manifest.scores.locate),
    )
    graded = _vote([voter.graded for voter in voters], folder, weights.rule)
    chosen = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    return replace(first, folder=folder, manifest=manifest, graded=graded, voters=voters, chosen=chosen)


def _vote(tables_of: Sequence[Graded | None], folder: Path, rule: str) -> Graded | None:
    """The out-of-fold table of an ensemble; None where a member has none."""
    found = [one for one in tables_of if one is not None]
    if len(found) < len(tables_of):
        return None
    first, *others = found
    if any(one.ids != first.ids or not np.array_equal(one.fold, first.fold) for one in others):
        raise UserError(f"{folder}: the members' {folds.FILE} or oof.csv are not of the same rows; choose it again")
    return replace(first, probs=voting.vote(np.array([one.probs for one in found]), rule)[1])


def labels_of(studies: list[Study]) -> dict[str, dict[str, int]]:
    """{study: {target: class index}} of labelled studies."""
    return {study.id: dict(study.labels) for study in studies}


def _folds(path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """({study: fold}, {study: patient}) of folds.csv; empty where there is none."""
    if not path.is_file():
        return {}, {}
    records = _records(path, folds.COLUMNS)
    fold = {row["study_id"]: int(row["fold"]) for row in records}
    return fold, {row["study_id"]: row["patient"] for row in records}


def _graded(path: Path, task: Task, labels: Mapping[str, Mapping[str, int]]) -> Graded:
    """Read oof.csv. labels: for tables without labels."""
    columns, ids, values = tables.read_rows(path)
    expected = [tables.ROW_ID, *task.classes, "fold"]
    if columns not in (expected, [*expected, "label"]):
        raise UserError(f"{path}: columns are {columns}, expected {[*expected, 'label']}; train again")
    k = len(task.classes)
    probs, fold = values[:, :k], values[:, k]
    if not (np.isfinite(probs).all() and np.isfinite(fold).all()):
        raise UserError(f"{path}: cells that are no numbers; train again")
    names = [tables.split_id(task, row) for row in ids]
    given = np.array([labels.get(study, {}).get(target, -1) for study, target in names], int)
    written = values[:, k + 1] if len(columns) > len(expected) else np.full(len(ids), np.nan)
    label = np.where(np.isfinite(written), np.nan_to_num(written, nan=-1), given).astype(int)
    if odd := sorted({int(index) for index in label if index >= k}):
        raise UserError(f"{path}: labels {odd}; the classes are 0 to {k - 1}")
    return Graded(tuple(ids), tuple(s for s, _ in names), tuple(t for _, t in names), probs, fold.astype(int), label)


def _located(path: Path) -> Located:
    """Read oof_points.csv."""
    records = _records(path, POINT_COLUMNS)

    def positions_mm(prefix: str) -> np.ndarray:
        """(n, 3) of the columns with a prefix; an empty cell is NaN."""
        cells = [[row[prefix + axis] for axis in AXES] for row in records]
        return np.array([[float(cell) if cell else float("nan") for cell in row] for row in cells]).reshape(-1, 3)

    return Located(
        studies=tuple(row["study_id"] for row in records),
        landmarks=tuple(row["landmark"] for row in records),
        found_mm=positions_mm(""),
        true_mm=positions_mm("true_"),
        confidence=np.array([float(row["confidence"]) for row in records]),
    )


def _records(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV table as {column: cell}. UserError where it has other columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != columns:
            raise UserError(f"{path}: columns are {reader.fieldnames}, expected {list(columns)}")
        return list(reader)

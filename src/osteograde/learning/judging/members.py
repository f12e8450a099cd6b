"""Out-of-fold answers of several weights folders side by side: they must have been trained on the same folds.

Shapes: M members, S studies, T targets, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteograde.learning import folds
from osteograde.models import bundle
from osteograde.tasks import rows as tables
from osteograde.tasks.scores.bootstrap import groups_of
from osteograde.tasks.spec import Task
from osteograde.tasks.tables import some

MOST = 10  # members: 1023 subsets
OOF = "oof.csv"


@dataclass(frozen=True, eq=False)
class Answers:
    """What members said of studies they never saw. tables: (M, S, T, K), NaN in rows that a study does not have."""

    task: Task
    members: tuple[str, ...]
    studies: tuple[str, ...]
    tables: np.ndarray
    labels: Mapping[str, Mapping[str, int]]
    fold: np.ndarray  # (S,)
    group: np.ndarray  # (S,) number of the patient
    digest: str  # of folds.csv

    @property
    def sign(self) -> float:
        """1 where a higher score is better, else -1."""
        return 1.0 if "score" in self.task.higher_is_better else -1.0


def gather(task: Task, folders: Sequence[Path], data: Path) -> Answers:
    """The out-of-fold tables of weights folders, side by side.

    ValueError where there are fewer than 2 members or more than MOST, two have one name, one is of another task or was
    trained on other folds, was judged on other studies, or where the data lack labels of the studies or a second fold.
    """
    _check_count(folders)
    digests = {folder: _digest(task, folder) for folder in folders}
    if odd := [str(folder) for folder in folders if digests[folder] != digests[folders[0]]]:
        raise ValueError(
            f"{some(odd)}: not trained on the folds of {folders[0]} (folds.csv differs), so what it says out-of-fold "
            f"is not comparable; copy {folders[0] / 'folds.csv'} into a new folder and train into that"
        )
    split = folds.read(folders[0] / folds.FILE)
    known = {study.id: study.labels for study in task.read(data, "train")}
    judged = [_judged(task, folder, split) for folder in folders]
    for folder, table in zip(folders, judged, strict=True):
        if odd := sorted(set(table) ^ set(judged[0])):
            raise ValueError(
                f"{folder / OOF}: {len(odd)} studies differ from {folders[0] / OOF}: {some(odd)}; train all folds"
            )
    studies = tuple(study for study in judged[0] if known.get(study))
    fold = np.array([split.fold[study] for study in studies], int)
    if len(set(fold.tolist())) < 2:
        raise ValueError(
            f"{data}: labels {len(studies)} of the {len(judged[0])} studies, in fewer than 2 folds; wrong folder?"
        )
    return Answers(
        task=task,
        members=tuple(folder.resolve().name for folder in folders),
        studies=studies,
        tables=np.array([[table[study] for study in studies] for table in judged]),
        labels={study: known[study] for study in studies},
        fold=fold,
        group=groups_of([split.patient[study] for study in studies]),
        digest=digests[folders[0]],
    )


def _check_count(folders: Sequence[Path]) -> None:
    if not 2 <= len(folders) <= MOST:
        raise ValueError(f"{len(folders)} members; an ensemble is chosen from 2 to {MOST} weights folders")
    if doubled := tables.twice([folder.resolve().name for folder in folders]):
        raise ValueError(f"two members are called {some(doubled)}; give weights folders of different names")


def _digest(task: Task, folder: Path) -> str:
    """Hash of the folds a weights folder was trained on."""
    manifest = bundle.read_manifest(folder)
    if manifest["task"] != task.name:
        raise ValueError(f"{folder}: weights are of task {manifest['task']!r}, asked for {task.name!r}")
    for name in (folds.FILE, OOF):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}; an ensemble is chosen from folders as train_folds.py left them")
    digest = folds.digest(folder / folds.FILE)
    if digest != manifest.get("folds", {}).get("sha256", digest):
        raise ValueError(f"{folder / 'folds.csv'}: not the one the manifest knows; it was changed after training")
    return digest


def _judged(task: Task, folder: Path, split: folds.Split) -> dict[str, np.ndarray]:
    """{study: (T, K)} of a member's out-of-fold table."""
    path, k = folder / OOF, len(task.classes)
    columns, ids, values = tables.read(path)
    if columns[: k + 2] != [tables.ROW_ID, *task.classes, "fold"]:
        raise ValueError(f"{path}: columns are {columns}; expected {[tables.ROW_ID, *task.classes, 'fold', 'label']}")
    wrong = [row for row, fold in zip(ids, values[:, k], strict=True) if split.fold.get(_study(task, row)) != fold]
    if wrong:
        raise ValueError(f"{path}: rows whose fold is not that of folds.csv: {some(wrong)}; train again")
    return tables.by_study(task, dict(zip(ids, values[:, :k], strict=True)))


def _study(task: Task, row: str) -> str:
    return tables.split_id(task, row)[0]

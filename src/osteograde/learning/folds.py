"""The split of studies into folds: grouped by patient, stratified on rare severe grades, written once as folds.csv."""

from __future__ import annotations

import csv
import hashlib
import logging
import shutil
import uuid
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from osteograde.errors import UserError
from osteograde.learning.recipe import Recipe
from osteograde.models.manifest import MANIFEST
from osteograde.tasks.names import spellings
from osteograde.tasks.spec import Grader, Study, Task
from osteograde.tasks.tables import cells_of, some

log = logging.getLogger("osteograde.learning")

FEW_SITES = 2  # of one grader: a right and a left one
FILE = "folds.csv"
COLUMNS = ("study_id", "patient", "fold")
SPELLINGS_SHOWN = 2


def spelling_line(studies: Sequence[Study]) -> str:
    """A warning where patients are called alike but for leading zeros, capitals or signs, else "".

    Nobody can know whether 7 and 007 are one person, so they stay two patients, who may lie in different folds.
    """
    groups = spellings(study.patient for study in studies)
    if not groups:
        return ""
    shown = ", ".join(" and ".join(group) for group in groups[:SPELLINGS_SHOWN])
    count = "1 name of a patient is" if len(groups) == 1 else f"{len(groups)} names of patients are"
    return (
        f"{count} written in several ways, which differ in leading zeros, capitals or signs alone: "
        f"{shown}{', ...' * (len(groups) > SPELLINGS_SHOWN)}; each counts as a patient of its own; where they are one "
        "person, write them in one way, else scores are too good"
    )


@dataclass(frozen=True)
class Split:
    """The folds of a data set. fold: study -> fold. patient: study -> patient.

    UserError where studies of one patient are in different folds.
    """

    fold: Mapping[str, int]
    patient: Mapping[str, str]

    def __post_init__(self) -> None:
        folds_of: dict[str, set[int]] = {}
        for study, fold in self.fold.items():
            folds_of.setdefault(self.patient[study], set()).add(fold)
        torn = sorted(patient for patient, folds in folds_of.items() if len(folds) > 1)
        if torn:
            raise UserError(f"folds: patients {torn[:5]} lie in more than one fold; write a new folds.csv")

    @property
    def count(self) -> int:
        """Number of folds."""
        return max(self.fold.values()) + 1

    @cached_property
    def _fold_of_patient(self) -> dict[str, int]:
        return {patient: self.fold[study] for study, patient in self.patient.items()}

    def fold_of(self, study: Study) -> int:
        """The fold of a study.

        A synthetic study is in the fold of the patient whose images it was made of. One without such a patient is
        assigned by a hash of its id.
        """
        if study.id in self.fold:
            return self.fold[study.id]
        return self._fold_of_patient.get(study.patient, zlib.crc32(study.id.encode()) % self.count)

    def held_out(self, studies: Sequence[Study], k: int) -> list[Study]:
        """The studies of fold k."""
        return [study for study in studies if self.fold_of(study) == k]

    def training(self, studies: Sequence[Study], *held_out_folds: int) -> list[Study]:
        """The leak rule: the studies on which a net may be trained that these folds use. They are in none of them.

        For the net of fold k these are the studies of all other folds. For a net from which several folds continue,
        they are the studies of all folds but those.
        """
        return [study for study in studies if self.fold_of(study) not in held_out_folds]


def rarity(task: Task, study: Study) -> str:
    """The key by which folds are stratified: one letter per grader.

    For a grader with many sites, "1" if one of them has the last class, else "0", because most studies have each of the
    other classes somewhere. For a grader with few sites, the worst class itself, or "-" without a label.
    """
    return "".join(_rarity(grader, study, len(task.classes) - 1) for grader in task.graders)


def _rarity(grader: Grader, study: Study, last: int) -> str:
    labels = [study.labels[site.target] for site in grader.sites if site.target in study.labels]
    if len(grader.sites) <= FEW_SITES:
        return str(max(labels)) if labels else "-"
    return str(int(last in labels))


def assign(task: Task, studies: Sequence[Study], count: int, seed: int) -> Split:
    """Split studies into ``count`` folds. UserError where there are fewer patients than folds."""
    from sklearn.model_selection import StratifiedGroupKFold  # a second to import, for new folds alone

    patients = sorted({study.patient for study in studies})
    if len(patients) < count:
        raise UserError(f"{len(patients)} patients cannot fill {count} folds; give more data or fewer folds")
    _tell_rare(task, studies, count)
    ordered = sorted(studies, key=lambda study: study.id)
    keys = [rarity(task, study) for study in ordered]
    if max(Counter(keys).values()) < count:
        keys = [""] * len(keys)  # nothing to stratify by: scikit-learn refuses where no key is in every fold
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    fold: dict[str, int] = {}
    with warnings.catch_warnings():
        # A combination of severe grades may occur in fewer studies than there are folds. It is then in some folds only.
        warnings.filterwarnings("ignore", message="The least populated class")
        for k, (_, held) in enumerate(splitter.split(np.zeros(len(ordered)), keys, [s.patient for s in ordered])):
            fold.update({ordered[i].id: k for i in held})
    return Split({study.id: fold[study.id] for study in studies}, {study.id: study.patient for study in studies})


def _tell_rare(task: Task, studies: Sequence[Study], count: int) -> None:
    """Log the classes that fewer patients have than there are folds: some folds are judged without them."""
    patients: list[set[str]] = [set() for _ in task.classes]
    for study in studies:
        for label in study.labels.values():
            patients[label].add(study.patient)
    rare = [f"{name} ({len(own)})" for name, own in zip(task.classes, patients, strict=True) if 0 < len(own) < count]
    if rare:
        log.warning("classes of fewer patients than the %d folds, some of which are judged without them: %s", count,
                    some(rare, 10))  # fmt: skip


def like(split: Split, studies: Sequence[Study]) -> Split:
    """The folds of other studies, each in the fold that ``split`` has its patient in. UserError for a new patient."""
    fold_of = {patient: split.fold[study] for study, patient in split.patient.items()}
    if new := sorted({study.patient for study in studies} - fold_of.keys()):
        raise UserError(
            f"folds: {len(new)} patients of this run are not in the folds of the weights that its nets start from: "
            f"{some(new)}; nobody can tell whether those nets have seen them"
        )
    fold = {study.id: fold_of[study.patient] for study in studies}
    return Split(fold, {study.id: study.patient for study in studies})


def chosen(recipe: Recipe, only: Sequence[int] | None) -> tuple[int, ...]:
    """The folds that a run trains: those asked for, or all. UserError for a fold that the recipe does not have."""
    if bad := [k for k in only or () if not 0 <= k < recipe.scope.folds]:
        raise UserError(f"--folds {bad}: recipe {recipe.name!r} has folds 0 to {recipe.scope.folds - 1}")
    return tuple(range(recipe.scope.folds)) if only is None else tuple(only)


def refuse_finished(out: Path) -> None:
    """UserError where a folder holds finished weights, which a run that does not resume would replace."""
    if (out / FILE).is_file() and (out / MANIFEST).is_file():
        raise UserError(f"{out}: finished weights are here; give another --out, or --resume to add folds to them")


def save(split: Split, path: Path) -> None:
    """Write folds.csv in one step, sorted by study."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((study, split.patient[study], split.fold[study]) for study in sorted(split.fold))
    part.replace(path)


def _part_of(path: Path) -> Path:
    """A name of its own for a file until it is whole: several processes of a run may write it at once."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


def load(path: Path, studies: Sequence[Study]) -> Split:
    """Read folds.csv. It is never repaired: UserError where it does not name exactly the given studies."""
    split = read(path)
    given = {study.id for study in studies}
    if odd := sorted(set(split.fold) ^ given)[:5]:
        raise UserError(
            f"{path}: it names {len(split.fold)} studies, the data hold {len(given)}; they differ in {odd}; "
            "train into a new folder or give the data it was made from"
        )
    folds_of: dict[str, set[int]] = {}
    for study in studies:
        folds_of.setdefault(study.patient, set()).add(split.fold[study.id])
    if torn := sorted(patient for patient, folds in folds_of.items() if len(folds) > 1):
        raise UserError(
            f"{path}: it puts studies that the data say are of one patient into different folds: {some(torn)}; "
            "train into a new folder"
        )
    return split


def read(path: Path) -> Split:
    """Read folds.csv as it is. UserError where it is no such table or names a study twice."""
    (_, header), *lines = cells_of(path) or [(1, [])]
    if tuple(header) != COLUMNS:
        raise UserError(f"{path}: columns are {header}, expected {list(COLUMNS)}")
    rows = [dict(zip(COLUMNS, cells, strict=False)) for _, cells in lines]
    if bad := [number for number, cells in lines if len(cells) != len(COLUMNS) or not cells[-1].strip().isdigit()]:
        raise UserError(f"{path}: line {some(bad)}: expected a study, a patient and the number of a fold")
    fold = {row["study_id"]: int(row["fold"]) for row in rows}
    if len(fold) < len(rows):
        raise UserError(f"{path}: {len(rows)} lines name {len(fold)} studies; each must be named once")
    return Split(fold, {row["study_id"]: row["patient"] for row in rows})


def holds(path: Path, other: Path) -> bool:
    """Whether every study of another folds.csv is in this one, with the same fold and the same patient."""
    if path.read_bytes() == other.read_bytes():
        return True
    ours, theirs = read(path), read(other)
    return all(ours.fold.get(study) == k and ours.patient[study] == theirs.patient[study]
               for study, k in theirs.fold.items())  # fmt: skip


def check_taken(weights: Path, out: Path, recipe: Recipe, *, option: str = "--folds-of", debug: bool = False) -> None:
    """UserError where an option such as ``--folds-of weights`` cannot be followed: no folds there, another number of
    folds than the recipe has, other folds in ``out`` already, or a debug run, which takes a few patients into folds of
    its own."""
    given, own = weights / FILE, out / FILE
    if debug:
        raise UserError(f"{option} {weights}: --debug makes folds of a few patients; leave one of the two out")
    if not given.is_file():
        raise UserError(f"{option} {weights}: no {FILE} in it; name a weights folder that train_folds.py wrote")
    if (count := read(given).count) != recipe.scope.folds:
        raise UserError(f"{option} {weights}: {count} folds, recipe {recipe.name!r} has {recipe.scope.folds}")
    if own.is_file() and own.read_bytes() != given.read_bytes():
        raise UserError(f"{own}: not the folds of {weights}; train into a new folder")


def check_studies(weights: Path, studies: Sequence[Study], option: str) -> None:
    """UserError where the folds of a weights folder do not name exactly the studies of this run.

    It is asked before they are copied, so that a refused run leaves nothing behind that would stop the next one.
    """
    try:
        load(weights / FILE, studies)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def take(weights: Path, out: Path) -> None:
    """Copy the folds of a weights folder into the folder of a run, in one step."""
    out.mkdir(parents=True, exist_ok=True)
    part = _part_of(out / FILE)
    shutil.copy(weights / FILE, part)
    part.replace(out / FILE)


def keep(out: Path) -> None:
    """Keep a copy of a run's folds beside its unfinished nets. UserError where they were trained by other folds.

    Nets and checkpoints do not say which studies they have seen. If folds.csv were changed between two calls, a resumed
    run would judge them on studies that they were trained on.
    """
    path, kept = out / FILE, out / "work" / FILE
    if kept.is_file() and not holds(path, kept):
        raise UserError(
            f"{path}: not the folds that the nets in {out} were trained by ({kept}); a net may have seen what it would "
            "be judged on; put that file back, or train into a new folder"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(kept)
    shutil.copy(path, part)
    part.replace(kept)


def digest(path: Path) -> str:
    """The sha256 of a file, as hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Choosing which trained weights form an ensemble, and by which voting rule, on out-of-fold tables only.

Every subset of the members under every rule is scored on the same out-of-fold tables. The best of hundreds looks better
than it is, so the number to report is the nested one: for each fold the choice is made on the other folds and predicts
that fold, then all predictions are scored at once. The members must have been trained on the same folds. Folds are
grouped by patient, and so are intervals.

Shapes: M members, S studies, T targets, K classes, F folds, C choices.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.learning.compare import FILE as OOF
from osteograde.learning.compare import OofTable
from osteograde.models import bundle
from osteograde.models.manifest import ENSEMBLE
from osteograde.pipeline import voting
from osteograde.tasks import tables
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import Task
from osteograde.tasks.tables import some

log = logging.getLogger("osteograde.learning")

MOST = 10  # members: 1023 subsets


@dataclass(frozen=True, eq=False)
class OofTables:
    """The out-of-fold tables of all members. tables: (M, S, T, K), NaN in rows that a study does not have."""

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
        return 1.0 if "score" in self.task.metric.higher_is_better else -1.0

    def sides(self) -> list[OofTable]:
        """A table for every member, to be compared (``learning.compare``)."""
        patient = {study: str(number) for study, number in zip(self.studies, self.group.tolist(), strict=True)}
        fold = dict(zip(self.studies, self.fold.tolist(), strict=True))
        return [
            OofTable(name, self.task.name, dict(zip(self.studies, table, strict=True)), self.labels, patient, fold)
            for name, table in zip(self.members, self.tables, strict=True)
        ]


def gather(task: Task, folders: Sequence[Path], data: Path) -> OofTables:
    """The out-of-fold tables of weights folders, side by side.

    UserError where there are fewer than 2 members or more than MOST, two have one name, one is of another task, was
    trained on other folds or has other studies in its table, or where the data lack labels of the studies or a second
    fold.
    """
    _check_count(folders)
    return side_by_side(task, folders, data)


def side_by_side(task: Task, folders: Sequence[Path], data: Path) -> OofTables:
    """The same of one folder or more."""
    digests = {folder: _digest(task, folder) for folder in folders}
    if odd := [str(folder) for folder in folders if digests[folder] != digests[folders[0]]]:
        raise UserError(
            f"{some(odd)}: not trained on the folds of {folders[0]} (folds.csv differs), so its out-of-fold table "
            f"is not comparable; train it into a new folder with --folds-of {folders[0]}"
        )
    split = folds.read(folders[0] / folds.FILE)
    labels = {study.id: study.labels for study in task.read(data, "train")}
    per_member = [_table_of(task, folder, split) for folder in folders]
    for folder, table in zip(folders, per_member, strict=True):
        if odd := sorted(set(table) ^ set(per_member[0])):
            raise UserError(
                f"{folder / OOF}: {len(odd)} studies differ from {folders[0] / OOF}: {some(odd)}; train all folds"
            )
    studies = tuple(study for study in per_member[0] if labels.get(study))
    fold = np.array([split.fold[study] for study in studies], int)
    if len(set(fold.tolist())) < 2:
        raise UserError(
            f"{data}: labels {len(studies)} of the {len(per_member[0])} studies, in fewer than 2 folds; wrong folder?"
        )
    return OofTables(
        task=task,
        members=tuple(folder.resolve().name for folder in folders),
        studies=studies,
        tables=np.array([[table[study] for study in studies] for table in per_member]),
        labels={study: labels[study] for study in studies},
        fold=fold,
        group=groups_of([split.patient[study] for study in studies]),
        digest=digests[folders[0]],
    )


def _check_count(folders: Sequence[Path]) -> None:
    """UserError where there are too few or too many members, or two of them have the same name."""
    if not 2 <= len(folders) <= MOST:
        raise UserError(f"{len(folders)} members; an ensemble is chosen from 2 to {MOST} weights folders")
    if doubled := tables.duplicates([folder.resolve().name for folder in folders]):
        raise UserError(f"two members are called {some(doubled)}; give weights folders of different names")


def _digest(task: Task, folder: Path) -> str:
    """The sha256 of the folds on which a weights folder was trained. UserError where the folder is of another task,
    lacks a file, or its folds.csv is not the one that its manifest names."""
    manifest = bundle.read_manifest(folder)
    if manifest.task != task.name:
        raise UserError(f"{folder}: weights are of task {manifest.task!r}, asked for {task.name!r}")
    for name in (folds.FILE, OOF):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; an ensemble is chosen from folders as train_folds.py left them")
    digest = folds.digest(folder / folds.FILE)
    if manifest.folds and manifest.folds.sha256 not in ("", digest):
        raise UserError(f"{folder / 'folds.csv'}: not the one the manifest knows; it was changed after training")
    return digest


def _table_of(task: Task, folder: Path, split: folds.Split) -> dict[str, np.ndarray]:
    """{study: (T, K) probabilities} of a member's out-of-fold table. UserError where it is not a table of these
    folds."""
    path, k = folder / OOF, len(task.classes)
    columns, ids, values = tables.read_rows(path)
    if columns[: k + 2] != [tables.ROW_ID, *task.classes, "fold"]:
        raise UserError(f"{path}: columns are {columns}; expected {[tables.ROW_ID, *task.classes, 'fold', 'label']}")
    wrong = [row for row, fold in zip(ids, values[:, k], strict=True) if split.fold.get(_study(task, row)) != fold]
    if wrong:
        raise UserError(f"{path}: rows whose fold is not that of folds.csv: {some(wrong)}; train again")
    return tables.by_study(task, dict(zip(ids, values[:, :k], strict=True)))


def _study(task: Task, row: str) -> str:
    """The study of a row id."""
    return tables.split_id(task, row)[0]


BOOTSTRAP = 1000
FILE = ENSEMBLE
_DIGITS = 12  # scores are compared to so many decimals


@dataclass(frozen=True)
class Choice:
    """The members that vote, as indices, and the voting rule. With a single member all rules give the same result."""

    members: tuple[int, ...]
    rule: str


def choose(task: Task, folders: Sequence[Path], data: Path, *, bootstrap: int = BOOTSTRAP) -> dict[str, Any]:
    """Score all choices, write ensemble.json into the folder that holds the first member, and return its content.

    UserError for the user's mistakes: see ``gather``.
    """
    oof = gather(task, folders, data)
    tried = list(choices(len(folders)))
    log.info(f"{len(folders)} members, {len(oof.studies)} studies, {len(tried)} choices of members and rule")
    scores = np.array([_scores(oof, choice) for choice in tried])
    result = {**_result(oof, folders, tried, scores, bootstrap), "bootstrap": bootstrap}
    path = folders[0].resolve().parent / FILE
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    log.info(f"written: {path}")
    return result


def choices(members: int) -> Iterator[Choice]:
    """Every subset of the members under every rule. Fewer members and simpler rules come first, because the first of
    equally good choices is taken."""
    for size in range(1, members + 1):
        for subset in combinations(range(members), size):
            yield from (Choice(subset, rule) for rule in (voting.RULES if size > 1 else voting.RULES[:1]))


def voted(oof: OofTables, choice: Choice) -> np.ndarray:
    """The probabilities (S, T, K) of a choice; NaN in rows that a study does not have."""
    chosen = oof.tables[list(choice.members)]
    probabilities = np.full(chosen.shape[1:], np.nan)
    has_row = np.isfinite(chosen).all((0, -1))
    if has_row.any():
        probabilities[has_row] = voting.vote(chosen[:, has_row], choice.rule)[1]
    return probabilities


def _scores(oof: OofTables, choice: Choice) -> np.ndarray:
    """(1 + F,): the score of a choice times ``sign``, on all studies and then without each fold; -inf where it is not
    defined."""
    counts = np.stack([np.ones(len(oof.fold)), *(oof.fold != k for k in np.unique(oof.fold))]).astype(float)
    values = np.round(oof.sign * _statistic(oof, voted(oof, choice))(counts), _DIGITS)
    return np.where(np.isnan(values), -np.inf, values)


def _statistic(oof: OofTables, predicted: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The task's score alone as a function of counts (B, S) -> (B,)."""
    parts = oof.task.metric.bootstrap_statistic(oof.labels, dict(zip(oof.studies, predicted, strict=True)))
    return lambda counts: np.asarray(parts(counts)).reshape(len(counts), -1)[:, -1]


def nested(oof: OofTables, tried: Sequence[Choice], scores: np.ndarray) -> tuple[np.ndarray, list[Choice]]:
    """Nested selection: (S, T, K) predictions, each fold by the choice with the best score on the other folds, and
    these choices, one per fold.

    scores: (C, 1 + F) of the C choices tried, as of ``_scores``.
    """
    predicted = np.full(oof.tables.shape[1:], np.nan)
    best = [tried[int(scores[:, 1 + i].argmax())] for i in range(scores.shape[1] - 1)]
    for k, choice in zip(np.unique(oof.fold), best, strict=True):
        held = oof.fold == k
        predicted[held] = voted(oof, choice)[held]
    return predicted, best


def _result(
    oof: OofTables, folders: Sequence[Path], tried: Sequence[Choice], scores: np.ndarray, bootstrap: int
) -> dict[str, Any]:
    """The content of ensemble.json, except for ``bootstrap``. scores: (C, 1 + F) of the C choices tried."""
    alone = [i for i, choice in enumerate(tried) if len(choice.members) == 1]
    best = tried[int(scores[:, 0].argmax())]
    all_mean = Choice(tuple(range(len(folders))), "mean")
    together, per_fold = nested(oof, tried, scores)
    single, _ = nested(oof, [tried[i] for i in alone], scores[alone])
    singles = {oof.members[tried[i].members[0]]: _measured(oof, voted(oof, tried[i]), bootstrap) for i in alone}
    gain = [_statistic(oof, predicted) for predicted in (together, single)]
    low, high = _resampled(oof, lambda counts: gain[0](counts) - gain[1](counts), bootstrap)
    whole = np.ones((1, len(oof.studies)))
    return {
        "task": oof.task.name,
        "folds_sha256": oof.digest,
        "studies": len(oof.studies),
        "patients": int(oof.group.max()) + 1,
        "choices": len(tried),
        "better": "higher" if oof.sign > 0 else "lower",
        "singles": singles,
        "members": [
            {**_named(oof, folders, i), "worth": round(value, _DIGITS)}
            for i, value in zip(best.members, worths(oof, best, tried, scores), strict=True)
        ],
        "rule": best.rule,
        "naive": _measured(oof, voted(oof, best), bootstrap),
        "nested": _measured(oof, together, bootstrap),
        "nested_choices": [
            {"fold": int(k), "members": [oof.members[i] for i in choice.members], "rule": choice.rule}
            for k, choice in zip(np.unique(oof.fold), per_fold, strict=True)
        ],
        "all_mean": _measured(oof, voted(oof, all_mean), bootstrap),
        "nested_single": _measured(oof, single, bootstrap),
        "nested_minus_single": {"score": float((gain[0](whole) - gain[1](whole))[0]), "interval_95": [low, high]},
    }


def worths(oof: OofTables, best: Choice, tried: Sequence[Choice], scores: np.ndarray) -> list[float]:
    """What each member of a choice adds to its score: the Shapley value (Shapley, 1953), which is the mean gain over
    all orders in which the members may join one another. Members that know the same share what they know.

    Together they are the score of the choice less that of answering with the share of each class, times ``sign``. A
    subset whose score is not defined counts as that answer. scores: (C, 1 + F) of the C choices tried.
    """
    of_subset = {
        choice.members: float(row[0])
        for choice, row in zip(tried, scores, strict=True)
        if choice.rule == best.rule or len(choice.members) == 1
    }
    nothing = float(oof.sign * _statistic(oof, class_shares(oof))(np.ones((1, len(oof.studies))))[0])
    nothing = nothing if np.isfinite(nothing) else min((v for v in of_subset.values() if np.isfinite(v)), default=0.0)
    of_subset = {(): nothing} | {key: value if np.isfinite(value) else nothing for key, value in of_subset.items()}
    found, count = [], len(best.members)
    for member in best.members:
        others = [one for one in best.members if one != member]
        gains = [
            (of_subset[tuple(sorted((*before, member)))] - of_subset[before]) / (count * comb(count - 1, size))
            for size in range(count)
            for before in combinations(others, size)
        ]
        found.append(sum(gains))
    return found


def class_shares(oof: OofTables) -> np.ndarray:
    """(S, T, K): the share of each class among the labels of each target, in all rows that a study has."""
    classes = oof.tables.shape[-1]
    shares = np.full((len(oof.task.targets), classes), 1 / classes)
    for t, target in enumerate(oof.task.targets):
        known = [labels[target] for labels in oof.labels.values() if target in labels]
        if known:
            shares[t] = np.bincount(known, minlength=classes) / len(known)
    return np.where(np.isfinite(oof.tables[0]), shares, np.nan)


def _named(oof: OofTables, folders: Sequence[Path], i: int) -> dict[str, str]:
    """A chosen member: its name, its folder as seen from ensemble.json and the hash of its manifest."""
    folder = os.path.relpath(folders[i].resolve(), folders[0].resolve().parent)
    return {
        "name": oof.members[i],
        "folder": Path(folder).as_posix(),
        "manifest_sha256": bundle.sha256(folders[i] / bundle.MANIFEST),
    }


def _measured(oof: OofTables, predicted: np.ndarray, bootstrap: int) -> dict[str, Any]:
    """The score of predictions (S, T, K) and its 95 % interval over patients."""
    statistic = _statistic(oof, predicted)
    value = float(statistic(np.ones((1, len(oof.studies))))[0])
    low, high = _resampled(oof, statistic, bootstrap)
    return {"score": value if np.isfinite(value) else None, "interval_95": [low, high]}


def _resampled(
    oof: OofTables, statistic: Callable[[np.ndarray], np.ndarray], bootstrap: int
) -> tuple[float | None, float | None]:
    """The 95 % interval of a statistic over patients. Every statistic is computed on the same resamples."""
    ends = interval(statistic, len(oof.studies), bootstrap, np.random.default_rng(0), groups=oof.group)
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return low, high


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, score and interval) of every member, of the choice and of its gain, in the order of showing."""
    return [
        *result["singles"].items(),
        ("mean of all", result["all_mean"]),
        ("chosen, selected on itself", result["naive"]),
        ("chosen, nested", result["nested"]),
        ("best single, nested", result["nested_single"]),
        ("nested minus single", result["nested_minus_single"]),
    ]


def table(result: Mapping[str, Any]) -> str:
    """The result as lines of text."""
    names = [member["name"] for member in result["members"]]
    chosen = f"{result['rule']} of {', '.join(names)}" if len(names) > 1 else names[0]
    rows = score_rows(result)
    width = 2 + max(len(name) for name, _ in rows)
    lines = [
        f"{result['task']}: {result['studies']} studies of {result['patients']} patients, {result['better']} is better"
    ]
    lines.append(f"{'out-of-fold':<{width}}{'score':>9}{'95 % interval':>20}")
    for name, row in rows:
        score, low, high = ("-" if value is None else f"{value:.4f}" for value in (row["score"], *row["interval_95"]))
        lines.append(f"{name:<{width}}{score:>9}{f'{low} - {high}':>20}")
    lines.append(f"chosen of {result['choices']}: {chosen}")
    for choice in result["nested_choices"]:
        lines.append(f"  without fold {choice['fold']}: {choice['rule']} of {', '.join(choice['members'])}")
    lines.append("report the nested score: the one above it is the best of many, scored on what it was chosen on")
    return "\n".join(lines)

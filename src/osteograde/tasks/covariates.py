"""Covariates: what is known of a patient or a site beside the images, read from covariates.csv and given to nets.

covariates.csv lies beside the images of training and of test data. It has a column ``study`` or ``patient`` (or both),
where sites differ a column ``side`` or ``target``, and a column for each covariate of the task, in any order and case.
Empty cells, rows and tables that are absent are unknown.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.imaging.discovery import part_folder
from osteograde.tasks import tables
from osteograde.tasks.names import side_of_cell
from osteograde.tasks.spec import CATEGORY, KEY_COLUMNS, Covariate, Site, Study

log = logging.getLogger(__name__)

FILE = "covariates.csv"
_STUDY, _PATIENT, _SIDE, _TARGET = KEY_COLUMNS[:2], KEY_COLUMNS[2:4], KEY_COLUMNS[4:5], KEY_COLUMNS[5:]

Known = dict[str, dict[str, float | str]]  # covariate -> target ("": all) -> value


def value_of(covariate: Covariate, study: Study, target: str) -> float:
    """The number of a covariate of one target, or the index of its category; NaN where it is unknown, no number, or
    none of the categories.

    >>> kl = Covariate("kl", "category", ("0", "1", "2"))
    >>> value_of(kl, Study("s", "p", (), covariates={"kl": {"": "1", "left": 2.0}}), "left")
    2.0
    """
    own = study.covariates.get(covariate.name, {})
    value = own.get(target, own.get("", math.nan))
    if covariate.kind == CATEGORY:
        return _index(covariate, value)
    return float(value) if not isinstance(value, str) and math.isfinite(value) else math.nan


def values_of(covariates: Iterable[Covariate], rows: Sequence[tuple[Study, str]]) -> dict[str, np.ndarray]:
    """covariate -> (N,) float32 of the (study, target) of N rows, as ``value_of`` gives them."""
    return {
        covariate.name: np.array([value_of(covariate, study, target) for study, target in rows], np.float32)
        for covariate in covariates
    }


def _index(covariate: Covariate, value: float | str) -> float:
    names, text = [*_spelled(covariate)], _key(str(value))
    return float(names.index(text)) if text in names else math.nan


def _spelled(covariate: Covariate) -> dict[str, str]:
    """What a cell may say, as ``_key`` has it -> the category."""
    return {_key(name): name for name in covariate.categories}


def _key(text: str) -> str:
    """A category without case, and a whole number without its decimals: 3.0 and 3 are the same."""
    return tables.id_text(text).casefold()


def read_known(
    read: Callable[[Path, str], list[Study]],
    covariates: Sequence[Covariate],
    sites: Sequence[Site],
    root: Path,
    part: str,
) -> list[Study]:
    """What a task's own ``read`` makes of a folder, with the covariates of the folder's table: ``Task.read`` of a task
    that has covariates is ``partial(read_known, read, COVARIATES, SITES)``.

    A broken table is a UserError in training; of test data it is logged, and everything is unknown.
    """
    folders = (Path(root), part_folder(Path(root), part))
    return with_covariates(read(root, part), folders, covariates, sites, strict=part == "train")


def read_files_known(
    read: Callable[[Path, Sequence[Path]], list[Study]],
    covariates: Sequence[Covariate],
    sites: Sequence[Site],
    root: Path,
    files: Sequence[Path],
) -> list[Study]:
    """The same for ``Task.read_files``: of single files below a folder that may hold the table."""
    return with_covariates(read(root, files), (Path(root),), covariates, sites, strict=False)


def with_covariates(
    studies: Sequence[Study],
    folders: Sequence[Path],
    covariates: Sequence[Covariate],
    sites: Sequence[Site],
    *,
    strict: bool,
) -> list[Study]:
    """The studies with what covariates.csv of the first of the folders that has one says of them; it counts more than
    what they know already. strict: a broken table is a UserError; else it is logged and not used."""
    path = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if path is None:
        return [*studies]
    try:
        rows = read_rows(path, covariates, sites, strict=strict)
    except UserError as error:
        if strict:
            raise
        log.warning("%s; the table is not used, and its covariates count as unknown", error)
        return [*studies]
    return _joined(path, studies, rows)


@dataclass(frozen=True)
class Rows:
    """What covariates.csv says: id of a study, or of a patient, -> covariate -> target -> value."""

    of_study: Mapping[str, Known] = field(default_factory=dict)
    of_patient: Mapping[str, Known] = field(default_factory=dict)


def read_rows(path: Path, covariates: Sequence[Covariate], sites: Sequence[Site], *, strict: bool) -> Rows:
    """The rows of covariates.csv; what cannot be used is counted and named in log lines.

    UserError where the table has neither studies nor patients or no covariate, where a side is no side, a target is
    none of the task's, or where rows contradict each other (not ``strict``: the first of them counts).
    """
    header = [name.strip().lower() for name in tables.header_of(path)]
    study, patient, side, target = (
        next((name for name in names if name in header), "") for names in (_STUDY, _PATIENT, _SIDE, _TARGET)
    )
    read = [one for one in covariates if one.name.lower() in header]
    if not (study or patient) or not read:
        raise UserError(
            f"{path}: columns are {header}; expected study or patient, side or target where sites differ, and "
            f"covariates of {[one.name for one in covariates]}"
        )
    if unused := [name for name in header if name not in {*KEY_COLUMNS, *(one.name.lower() for one in read)}]:
        log.warning("%s: columns that are no covariates of this task are not used: %s", path, tables.some(unused))
    ids = [name for name in (study, patient) if name]
    keys = [*ids, *filter(None, (side, target))]
    table = tables.read_table(path, [*keys, *(one.name.lower() for one in read)], ids=ids)
    targets = _targets(path, table, side, target, sites, strict=strict)
    values = {one.name: _cells(path, one, table[one.name.lower()]) for one in read}
    found: tuple[dict[str, Known], dict[str, Known]] = ({}, {})
    contradicted: dict[str, None] = {}
    for i, own in enumerate(targets):
        by_study = bool(study) and bool(table[study].iloc[i])
        name = table[study if by_study else patient].iloc[i] if by_study or patient else ""
        known = found[not by_study].setdefault(name, {})
        for covariate, cells in values.items():
            cell = cells[i]
            if cell is None:
                continue
            for one in own:
                first = known.setdefault(covariate, {}).setdefault(one, cell)
                if first != cell:
                    contradicted[f"{covariate} of {name}{'/' if one else ''}{one}"] = None
    if contradicted and strict:
        raise UserError(f"{path}: rows contradict each other about {tables.some(contradicted)}; keep one")
    if contradicted:
        log.warning("%s: rows contradict each other about %s; the first counts", path, tables.some(contradicted))
    return Rows(*found)


def _targets(
    path: Path, table: pd.DataFrame, side: str, target: str, sites: Sequence[Site], *, strict: bool
) -> list[tuple[str, ...]]:
    """The targets that each row speaks of; ("",), all of them, where it names none; () where it cannot be told."""
    of_side: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for site in sites:
        of_side[site.side] += (site.target,)
    named: dict[str, tuple[str, ...]] = {"": ()} | {site.target.lower(): (site.target,) for site in sites}
    sided: dict[str, tuple[str, ...]] = {"": ("",), "both": ("",), "right": of_side["right"], "left": of_side["left"]}
    none = pd.Series([""] * len(table), table.index)
    sides = table[side].map(side_of_cell) if side else none
    targets = table[target].str.lower() if target else none
    for column, cells, known, what in (
        (side, sides, sided, "no side, expected left or right"),
        (target, targets, named, f"no target of this task, such as {tables.some((one.target for one in sites), 3)}"),
    ):
        bad = ~cells.isin([*known])
        if strict:
            tables.refuse(path, table, bad, column, what)
        elif bad.any():
            log.warning("%s: %s: %s; these rows are not used", path, tables.lines(table, bad), what)
    return [
        named.get(one, ()) or sided.get(own, ()) if one in named else ()
        for one, own in zip(targets, sides, strict=True)
    ]


def _cells(path: Path, covariate: Covariate, column: pd.Series) -> list[float | str | None]:
    """The values of a column, None where unknown; those that are no number, or no known category, are counted."""
    if covariate.kind == CATEGORY:
        names = _spelled(covariate)
        if odd := Counter(cell for cell in column if cell and _key(cell) not in names):
            log.warning(
                "%s: %d cells of %s are none of %s and count as unknown: %s",
                path, odd.total(), covariate.name, ", ".join(covariate.categories), tables.some(sorted(odd)),
            )  # fmt: skip
        return [names.get(_key(cell), cell) or None for cell in column]
    values = tables.numbers(column).copy()
    values[~np.isfinite(values)] = np.nan
    bad = (column != "") & np.isnan(values)
    if bad.any():
        log.warning(
            "%s: %d cells of %s are no numbers and count as unknown: %s",
            path, int(bad.sum()), covariate.name, tables.some(sorted(set(column[bad].map(repr)))),
        )  # fmt: skip
    return [None if math.isnan(value) else float(value) for value in values]


def _joined(path: Path, studies: Sequence[Study], rows: Rows) -> list[Study]:
    """The studies with their rows: a row of the study counts more than one of its patient, and a target's own value
    more than that of all targets."""
    called = [(study.id, *(series.id for series in study.series)) for study in studies]
    studies_here = {name for names in called for name in names}
    patients_here = {study.patient for study in studies}
    of_study, of_patient = _as_here(path, rows.of_study, studies_here), _as_here(path, rows.of_patient, patients_here)
    result, known_of = [], Counter[str]()
    for study, names in zip(studies, called, strict=True):
        own = next((of_study[name] for name in names if name in of_study), {})
        merged = merge(study.covariates, of_patient.get(study.patient, {}), own)
        known_of.update(list(merged))
        result.append(replace(study, covariates=merged))
    told = ", ".join(f"{name} of {count}" for name, count in sorted(known_of.items())) or "none of any"
    log.info("%s: covariates known of %d studies: %s", path, len(studies), told)
    return result


def merge(*known: Mapping[str, Mapping[str, float | str]]) -> Known:
    """Several tables of values as one; later ones count more, and their value of all targets replaces single ones.

    >>> merge({"age": {"left": 3.0}}, {"age": {"": 4.0}, "sex": {"": "F"}})
    {'age': {'': 4.0}, 'sex': {'': 'F'}}
    """
    result: Known = {}
    for one in known:
        for name, values in one.items():
            result[name] = {**({} if "" in values else result.get(name, {})), **values}
    return result


def _as_here(path: Path, known: Mapping[str, Known], here: set[str]) -> dict[str, Known]:
    """The rows under the names that studies or patients have here; rows of others are counted."""
    same = tables.matched(known, here)
    found = {same.get(name, name): values for name, values in known.items()}
    if lost := [name for name in found if name not in here]:
        log.info("%s: %d ids speak of no study here: %s", path, len(lost), tables.some(lost))
    return found

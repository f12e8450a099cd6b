"""Studies of `lumbar-mr` from the competition's folder: tables and paths only, no voxel is read here.

Training data ("train") must be right, so every doubt is a ValueError with a way out. Test data ("test") must be
answered, so a doubt costs as little as possible and is logged with a count; a study without files keeps its rows.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.imaging.volume_files import SUFFIXES as VOLUME_SUFFIXES
from osteograde.tasks import tables
from osteograde.tasks.lumbar_names import (
    CLASS_LABELS,
    CLASS_OF_LABEL,
    CONDITION_VIEW,
    SERIES_DESCRIPTIONS,
    TARGET_OF,
    TARGET_OF_TABLE,
    TARGETS,
    landmark_of,
)
from osteograde.tasks.spec import Mark, Series, Study

log = logging.getLogger(__name__)

SERIES_COLUMNS = ("study_id", "series_id", "series_description")
MARK_COLUMNS = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
_VIEW_WORDS = (
    ("sag_t1", {"sag", "t1"}),
    ("sag_t2", {"sag", "t2"}),
    ("sag_t2", {"sag", "stir"}),
    ("axi_t2", {"ax", "t2"}),
)


def split_of(root: Path) -> str:
    """The part of the data that is graded: "test" where test_images exists, else "train". ValueError where neither."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data names the folder that holds test_images or train_images")
    for split in ("test", "train"):
        if (root / f"{split}_images").is_dir():
            return split
    found = tables.some(sorted(path.name for path in root.iterdir())) or "nothing"
    raise UserError(f"{root}: neither test_images nor train_images in it; found {found}")


def read(root: Path, split: str) -> list[Study]:
    """The studies to learn from ("train") or to grade ("test"), in the order of their table.

    "test" reads test_images, and where there is none train_images, without labels and with a test part's patience.
    ValueError says what is wrong, where, and what to do.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    if split == "test":
        return _read_test(root, split_of(root))
    if not (root / "train_images").is_dir():
        raise UserError(f"{root / 'train_images'}: no such folder; unpack the competition's images there")
    return _read_train(root, root / "train_images")


def view_of_description(description: str) -> str:
    """The view a table means; "" where it means none of ours.

    >>> [view_of_description(text) for text in ("Sagittal T2/STIR", " sagittal  stir", "AXIAL T2", "Coronal T2", "")]
    ['sag_t2', 'sag_t2', 'axi_t2', '', '']
    """
    words = re.findall(r"[a-z0-9]+", description.lower())
    plane = next((plane for plane in ("sag", "ax") if any(word.startswith(plane) for word in words)), "")
    given = {plane, *words, *(word[:2] for word in words)}  # "T2w" is a T2
    return next((view for view, needed in _VIEW_WORDS if needed <= given), "")


def read_labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {target: class}} of train.csv or test_truth.csv; empty cells are absent. Unknown texts are refused."""
    table = tables.read_table(path, ("study_id", *TARGETS), ids=("study_id",))
    _refuse_bad_ids(path, table, ("study_id",))
    tables.refuse_conflicts(path, table, ("study_id",))
    for target in TARGETS:
        unknown = ~table[target].isin({*CLASS_LABELS, ""})
        tables.refuse(path, table, unknown, target, f"unknown label in {target}, expected {CLASS_LABELS} or empty")
    cells = {target: table[target].map(CLASS_OF_LABEL).to_numpy(dtype=float) for target in TARGETS}  # "" -> NaN
    return {
        study: {target: int(cells[target][i]) for target in TARGETS if not np.isnan(cells[target][i])}
        for i, study in enumerate(table["study_id"])
    }


def _read_train(root: Path, images: Path) -> list[Study]:
    notes: Counter[str] = Counter()
    paths = [root / f"train{name}.csv" for name in ("", "_series_descriptions", "_label_coordinates")]
    labels = read_labels(paths[0])
    described = tables.read_table(paths[1], SERIES_COLUMNS, ids=SERIES_COLUMNS[:2])
    _refuse_bad_ids(paths[1], described, SERIES_COLUMNS[:2])
    described = _as_folders_say(described, images, notes)
    described["view"] = described["series_description"].map(view_of_description)
    described = described.drop(columns="series_description").drop_duplicates()
    tables.refuse_conflicts(paths[1], described, SERIES_COLUMNS[:2])
    on_disk = tables.subfolders(images)
    same = tables.matched(labels, on_disk)
    labels = {same.get(study, study): known for study, known in labels.items()}
    _refuse_differences(images, set(on_disk), {paths[0]: labels, paths[1]: described["study_id"]})
    marks = _marks(paths[2], images, labels, _views(described), notes)
    found = _series(images, described, notes, strict=True)
    _tell(images, notes)
    return [Study(study, study, found[study], labels[study], marks[study]) for study in labels]


def _read_test(root: Path, part: str) -> list[Study]:
    notes: Counter[str] = Counter()
    images, path = root / f"{part}_images", root / f"{part}_series_descriptions.csv"
    on_disk = tables.subfolders(images)
    try:
        described = tables.read_table(path, SERIES_COLUMNS, ids=SERIES_COLUMNS[:2])
        described = _as_folders_say(described, images, notes)
        described["view"] = described["series_description"].map(view_of_description)
        twice = described.drop_duplicates(["study_id", "series_id", "view"]).duplicated(list(SERIES_COLUMNS[:2]))
        notes["series described in two ways: the first one counts"] += int(twice.sum())
    except UserError as error:  # the rows can still be told from the folders, the views from the pixels' orientation
        log.warning("%s; the folders are walked instead", error)
        described = _walked(images, on_disk)
    described = described[described["study_id"] != ""].drop_duplicates(list(SERIES_COLUMNS[:2]))
    studies = list(dict.fromkeys(described["study_id"]))
    notes["studies on disk that no table lists: ignored"] += len(set(on_disk) - set(studies))
    notes["studies of the table that are not on disk: only the prior is left"] += len(set(studies) - set(on_disk))
    if lost := sorted(set(studies) - set(on_disk)):
        log.info("%s: studies of the table that are not on disk: %s", images, tables.some(lost))
    if on_disk and studies and not set(on_disk) & set(studies):
        log.warning("%s lists none of the %d folders of %s; is this the right table?", path, len(on_disk), images)
    found = _series(images, described, notes, strict=False)
    _count_unused(images, {(study, series.id) for study, many in found.items() for series in many}, notes)
    _tell(images, notes)
    return [Study(study, study, found[study]) for study in studies]


def _count_unused(images: Path, used: Collection[tuple[str, str]], notes: Counter[str]) -> None:
    """Count what lies in the folders of the studies that are graded, and is no part of any series that is read."""
    notes["files beside the folders of studies: ignored"] += tables.count_files(images)
    for study in {study for study, _ in used}:
        extra = {series for series in tables.subfolders(images / study) if (study, series) not in used}
        notes["series folders that no table lists: ignored"] += sum(tables.has_files(images / study / e) for e in extra)
        notes["files beside the folders of series: ignored"] += tables.count_files(images / study)


def _as_folders_say(table: pd.DataFrame, images: Path, notes: Counter[str]) -> pd.DataFrame:
    """A table whose study and series ids are those of the folders, where leading zeros are all that differs: folders
    never go through a spreadsheet."""
    table = table.copy()
    same = tables.matched(table["study_id"], tables.subfolders(images))
    table["study_id"] = table["study_id"].map(lambda study: same.get(study, study))
    notes["study ids that differ from their folders by leading zeros: matched"] = len(same)
    for study, rows in ((str(study), rows) for study, rows in table.groupby("study_id", sort=False)):
        series = {*rows["series_id"]}
        if tables.is_id(study) and not all((images / study / name).is_dir() for name in series if tables.is_id(name)):
            told = tables.matched(series, tables.subfolders(images / study))
            table.loc[rows.index, "series_id"] = rows["series_id"].map(lambda name, told=told: told.get(name, name))
    return table


def _walked(images: Path, studies: Iterable[str]) -> pd.DataFrame:
    """A table of what lies on disk; a study without any series keeps one row, so that it is answered."""
    rows = [(study, series, "") for study in studies for series in tables.subfolders(images / study) or [""]]
    return pd.DataFrame(rows, columns=["study_id", "series_id", "view"], dtype=str)


def _series(
    images: Path, described: pd.DataFrame, notes: Counter[str], *, strict: bool
) -> defaultdict[str, tuple[Series, ...]]:
    """{study: its series with files in them}. Of unknown view: kept as "" for the test part, left out of training."""
    found: defaultdict[str, tuple[Series, ...]] = defaultdict(tuple)
    root = images.resolve()
    for study, series, view in described[["study_id", "series_id", "view"]].itertuples(index=False):
        folder = images / study / series
        if not (tables.is_id(study) and tables.is_id(series)):
            notes["series whose id cannot be a folder: absent"] += 1
        elif not tables.has_files(folder):
            notes["series folders missing or empty: absent"] += 1
        elif not tables.under(folder, root):
            if strict:
                raise UserError(f"{folder}: leads out of {root}; copy the files instead of linking them")
            notes["series folders that lead out of the data: absent"] += 1
        elif strict and not view:
            notes[f"series that are none of {tuple(SERIES_DESCRIPTIONS.values())}: left out"] += 1
        else:
            found[study] += (Series(series, view, folder),)
    _tell_volumes(images, described["study_id"].unique(), found)
    return found


def _tell_volumes(images: Path, studies: Iterable[str], found: Mapping[str, Iterable[Series]]) -> None:
    """Log how many volumes in one file lie where DICOM series are expected. Of a series folder the first file tells
    whether there are any, since folders of slices are long."""
    above = [images, *(images / study for study in studies if tables.is_id(study))]
    series = [one.folder for many in found.values() for one in many]
    volumes = [path for folder in above for path in _volumes_in(folder)]
    volumes += [path for folder in series if _volumes_in(folder, 1) for path in _volumes_in(folder)]
    if volumes:
        named = tables.some([path.relative_to(images) for path in volumes], 3)
        log.warning(
            "%s: %d NIfTI or MetaImage volumes are not read, because lumbar-mr reads DICOM: %s; what only they show "
            "keeps the class prior",
            images,
            len(volumes),
            named,
        )


def _volumes_in(folder: Path, most: int | None = None) -> list[Path]:
    """The volumes among the first ``most`` files of a folder, or among all."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = itertools.islice((entry.name for entry in entries if not entry.name.startswith(".")), most)
        return sorted(folder / name for name in names if name.lower().endswith(VOLUME_SUFFIXES))


def _marks(
    path: Path,
    images: Path,
    labels: Mapping[str, object],
    views: Mapping[tuple[str, str], str],
    notes: Counter[str],
) -> defaultdict[str, tuple[Mark, ...]]:
    """{study: its annotated points}. Points that are no pixel, or lie on another view, are counted and dropped."""
    table = _as_folders_say(tables.read_table(path, MARK_COLUMNS, ids=MARK_COLUMNS[:3]), images, notes)
    tables.refuse_conflicts(path, table, MARK_COLUMNS[:5])
    table["target"] = [
        TARGET_OF_TABLE.get((" ".join(condition.split()).title(), level.replace(" ", "").upper()), "")
        for condition, level in zip(table["condition"], table["level"], strict=True)
    ]
    place = table["condition"] + " " + table["level"]
    tables.refuse(path, table.assign(place=place), table["target"] == "", "place", "unknown condition or level")
    tables.refuse(
        path, table, ~table["study_id"].isin(list(labels)), "study_id", "studies that train.csv does not have"
    )
    marks: defaultdict[str, tuple[Mark, ...]] = defaultdict(tuple)
    columns = (table[name] for name in ("study_id", "series_id", "instance_number", "target"))
    for study, series, instance, target, x, y in zip(
        *columns, tables.numbers(table["x"]), tables.numbers(table["y"]), strict=True
    ):
        if not (np.isfinite([x, y]).all() and min(x, y) >= 0):
            notes["points that are no pixel: dropped"] += 1
        elif views.get((study, series)) != CONDITION_VIEW[TARGET_OF[target].condition]:
            notes["points on a series of another or unknown view: dropped"] += 1
        else:
            marks[study] += (Mark(landmark_of(target), series, instance, float(x), float(y)),)
    return marks


def _views(described: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {(study, series): view for study, series, view in described[["study_id", "series_id", "view"]].to_numpy()}


def _refuse_bad_ids(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        bad = ~table[column].map(tables.is_id).astype(bool)
        tables.refuse(path, table, bad, column, f"{column} may hold letters, digits, '.', '_' and '-' (64 at most)")


def _refuse_differences(images: Path, on_disk: set[str], listed: Mapping[Path, Iterable[str]]) -> None:
    """Training: every table and the folder must name the same studies."""
    wrong = []
    for path, names in listed.items():
        if lost := sorted(set(names) - on_disk):
            wrong.append(
                f"{path} lists {len(lost)} studies that are not in {images}: {tables.some(lost)}; "
                "unpack their folders or take their rows out"
            )
        if extra := sorted(on_disk - set(names)):
            wrong.append(
                f"{images} holds {len(extra)} studies that {path} does not list: {tables.some(extra)}; "
                "add their rows or move the folders to test_images"
            )
    if wrong:
        raise UserError("; ".join(wrong))


def _tell(images: Path, notes: Counter[str]) -> None:
    for what, count in sorted(notes.items()):
        if count:
            log.warning("%s: %d %s", images, count, what)

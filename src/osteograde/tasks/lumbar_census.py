"""What the tables and headers of a `lumbar-mr` folder hold, counted before any training. No pixel is read.

Doubts that training would refuse, or pass over with a count, are listed here with examples. One header of every series
is read: the one of its first file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.imaging.file_facts import FileFacts, facts_of
from osteograde.tasks import tables
from osteograde.tasks.census import Census, Counts, Fact, counted
from osteograde.tasks.lumbar_names import (
    CLASS_LABELS,
    CONDITION_VIEW,
    CONDITIONS,
    SERIES_DESCRIPTIONS,
    SPINAL,
    SUBARTICULAR,
    TARGET_OF,
    TARGET_OF_TABLE,
    TARGETS,
    landmark_of,
)
from osteograde.tasks.lumbar_tables import MARK_COLUMNS, SERIES_COLUMNS, view_of_description
from osteograde.tasks.spine import LEVELS

log = logging.getLogger(__name__)

PAIRS = "left and right subarticular points on one slice"
EMPTY = "empty labels"
SEVERAL_AXIAL = "studies with several axial series"
_USUAL = frozenset({  # what is counted and needs no mending
    "studies with labels", "labels", EMPTY, "studies with an empty label", "studies with series", "series",
    SEVERAL_AXIAL, *(f"studies without {text}" for text in SERIES_DESCRIPTIONS.values()), "points",
    "labels without a point", "points without a label", "studies whose canal points lie on one slice", PAIRS,
    "left and right subarticular points on different series", "images",
})  # fmt: skip
_PLANE_OF_VIEW = {"sag_t1": "sagittal", "sag_t2": "sagittal", "axi_t2": "axial"}


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of the training part, and how many of their rows repeat another word for word. A table that is absent
    has no rows. Added columns: series: view; marks: target, condition_name, side, view, numbers x and y."""

    labels: pd.DataFrame
    series: pd.DataFrame
    marks: pd.DataFrame
    repeated: Mapping[str, int]


def inspect(root: Path) -> Census:
    """Count what the training part of a folder holds; of a folder without one, its test part. UserError where neither
    has a table."""
    root = Path(root)
    part = "train" if (root / "train.csv").is_file() else "test"
    read = read_tables(root, part)
    headers = read_headers(root / f"{part}_images", read.series)
    facts = [
        *_label_facts(read),
        *_series_facts(read),
        *_mark_facts(read),
        *_place_facts(read, headers),
        *_header_facts(root / f"{part}_images", headers),
    ]
    found = [*_label_tables(read), *_series_tables(read), *_mark_tables(read), *_header_tables(headers)]
    told = tuple(replace(fact, is_fault=fact.what not in _USUAL) for fact in facts)
    return Census(told, tuple(table for table in found if table.rows))


def read_tables(root: Path, part: str) -> Tables:
    """The tables of a part of a folder. UserError where none is there."""
    columns = {
        f"{part}.csv": ("study_id", *TARGETS),
        f"{part}_series_descriptions.csv": SERIES_COLUMNS,
        f"{part}_label_coordinates.csv": MARK_COLUMNS,
    }
    if not any((root / name).is_file() for name in columns):
        found = tables.some(sorted(path.name for path in root.iterdir())) or "nothing"
        raise UserError(f"{root}: none of train.csv, train_series_descriptions.csv and their like; found {found}")
    read, repeated = [], {}
    for name, wanted in columns.items():
        path, ids = root / name, [one for one in wanted if one.endswith(("_id", "_number"))]
        if path.is_file():
            read.append(tables.read_table(path, wanted, ids=ids))
            repeated[name] = len(tables.cells_of(path)) - 1 - len(read[-1])
        else:
            read.append(pd.DataFrame(columns=list(wanted), dtype=str))
    labels, series, marks = read
    series = series.assign(view=series["series_description"].map(view_of_description))
    return Tables(labels, series, _with_meaning(marks, series), repeated)


def _with_meaning(marks: pd.DataFrame, series: pd.DataFrame) -> pd.DataFrame:
    """The points with what their texts mean."""
    texts = zip(marks["condition"], marks["level"], strict=True)
    target = [
        TARGET_OF_TABLE.get((" ".join(c.split()).title(), level.replace(" ", "").upper()), "") for c, level in texts
    ]
    view_of = dict(zip(zip(series["study_id"], series["series_id"], strict=True), series["view"], strict=True))
    ids = zip(marks["study_id"], marks["series_id"], strict=True)
    return marks.assign(
        target=target,
        condition_name=[TARGET_OF[name].condition if name else "" for name in target],
        side=[TARGET_OF[name].side if name else "" for name in target],
        place=[TARGET_OF[name].level if name else "" for name in target],
        view=pd.Series([view_of.get(pair) for pair in ids], index=marks.index, dtype=object),
        x=tables.numbers(marks["x"]) if len(marks) else [],
        y=tables.numbers(marks["y"]) if len(marks) else [],
    )


def _label_facts(read: Tables) -> list[Fact]:
    labels = read.labels
    if not len(labels):
        return []
    cells = labels[list(TARGETS)]
    empty, known = cells == "", cells.isin(CLASS_LABELS)
    twice = labels[labels.duplicated("study_id", keep=False)]
    unknown = sorted(set(cells.to_numpy()[(~empty & ~known).to_numpy()]))
    holes = labels["study_id"][empty.any(axis=1)]
    return [
        Fact("studies with labels", labels["study_id"].nunique()),
        Fact("labels", int(known.to_numpy().sum()), cells.size),
        Fact(EMPTY, int(empty.to_numpy().sum()), cells.size, note="left out of training and of every score"),
        Fact("studies with an empty label", len(holes), len(labels), tables.some(holes)),
        Fact(
            "labels of another text",
            int((~empty & ~known).to_numpy().sum()),
            cells.size,
            tables.some(unknown),
            "training refuses them",
        ),
        *(Fact(f"rows of {name} that repeat another word for word", count) for name, count in read.repeated.items()),
        Fact(
            "studies that the table of labels has twice, with other labels",
            twice["study_id"].nunique(),
            len(labels),
            tables.some(twice["study_id"].unique()),
            "training refuses them",
        ),
    ]


def _label_tables(read: Tables) -> list[Counts]:
    rows: list[tuple[object, ...]] = []
    for target in TARGET_OF.values() if len(read.labels) else ():
        column = read.labels[target.name]
        counts = [int((column == name).sum()) for name in CLASS_LABELS]
        known = sum(counts)
        severe = f"{100 * counts[-1] / known:.1f} %" if known else "-"
        rows.append((target.name, *counts, int((column == "").sum()), severe))
    by_condition = []
    for condition in CONDITIONS if rows else ():
        cells = read.labels[[name for name in TARGETS if TARGET_OF[name].condition == condition]]
        by_condition.append(
            (condition, *(int((cells == name).to_numpy().sum()) for name in CLASS_LABELS),
             int((cells == "").to_numpy().sum()))
        )  # fmt: skip
    head = ("condition", *CLASS_LABELS, "empty")
    return [
        Counts("labels by condition", head, tuple(by_condition)),
        Counts("labels by condition, level and side", ("target", *head[1:], "severe"), tuple(rows)),
    ]


def _series_facts(read: Tables) -> list[Fact]:
    series = read.series
    if not len(series):
        return []
    per_view = _series_per_view(series)
    axial = per_view["axi_t2"]
    several = axial.index[axial > 1]
    studies = len(per_view)
    missing = [
        Fact(f"studies without {text}", int((per_view[view] == 0).sum()), studies,
             tables.some(per_view.index[per_view[view] == 0]))
        for view, text in SERIES_DESCRIPTIONS.items()
    ]  # fmt: skip
    twice = series[series.duplicated(["study_id", "series_id"], keep=False)]
    facts = [
        Fact("studies with series", studies),
        Fact("series", len(series)),
        Fact(SEVERAL_AXIAL, len(several), studies, tables.some(several), "all are read, and merged by position"),
        *missing,
        Fact("series of another description", int((series["view"] == "").sum()), len(series),
             tables.some(sorted(set(series["series_description"][series["view"] == ""]))), "left out"),
        Fact("series that the table describes in two ways", twice["series_id"].nunique(), len(series),
             tables.some(twice["series_id"].unique())),
    ]  # fmt: skip
    if len(read.labels):
        labelled, described = set(read.labels["study_id"]), set(series["study_id"])
        for text, lost in (("with labels and without series", labelled - described),
                           ("with series and without labels", described - labelled)):  # fmt: skip
            facts.append(
                Fact(f"studies {text}", len(lost), studies, tables.some(sorted(lost)), "training refuses them")
            )
    return facts


def _series_per_view(series: pd.DataFrame) -> pd.DataFrame:
    """How many series of each view every study has: one row for a study, one column for a view."""
    counts = pd.crosstab(series["study_id"], series["view"])
    return counts.reindex(columns=list(SERIES_DESCRIPTIONS), fill_value=0)


def _series_tables(read: Tables) -> list[Counts]:
    per_view = _series_per_view(read.series)
    most = min(int(per_view.to_numpy().max(initial=0)), 4)
    head = ("series of one study", *(str(n) if n < most or most < 4 else f"{n} or more" for n in range(most + 1)))
    rows = tuple(
        (text, *(int((np.minimum(per_view[view], most) == n).sum()) for n in range(most + 1)))
        for view, text in SERIES_DESCRIPTIONS.items()
    )
    return [Counts("series per study", head, rows if len(per_view) else ())]


def _mark_facts(read: Tables) -> list[Fact]:
    marks = read.marks
    if not len(marks):
        return []
    good = marks[marks["target"] != ""]
    keys = ["study_id", "target"]
    twice = good[good.duplicated(keys, keep=False)]
    wanted = good["condition_name"].map(CONDITION_VIEW)
    strange, wrong = good["view"].isna(), good["view"].notna() & (good["view"] != wanted)
    labelled = {
        (study, target)
        for target in TARGETS if len(read.labels)
        for study in read.labels["study_id"][read.labels[target].isin(CLASS_LABELS)]
    }  # fmt: skip
    pointed = set(zip(good["study_id"], good["target"], strict=True))
    canal = good[good["condition_name"] == SPINAL].groupby("study_id")["instance_number"].nunique()
    return [
        Fact("points", len(marks)),
        Fact("points of an unknown condition or level", len(marks) - len(good), len(marks),
             tables.some(sorted(set(marks["condition"][marks["target"] == ""]))), "training refuses them"),
        Fact("labels without a point", len(labelled - pointed), len(labelled),
             _pairs_text(labelled - pointed), "graded at the points that stage 1 finds"),
        Fact("points without a label", len(pointed - labelled), len(pointed), _pairs_text(pointed - labelled)),
        Fact("places with several points", len(twice.drop_duplicates(keys)), len(pointed),
             _pairs_text(set(zip(twice["study_id"], twice["target"], strict=True)))),
        Fact("points on a series of another view", int(wrong.sum()), len(good),
             _pairs_text(set(zip(good["study_id"][wrong], good["target"][wrong], strict=True))),
             "dropped, and counted"),
        Fact("points on a series that the table of series lacks", int(strange.sum()), len(good),
             _pairs_text(set(zip(good["study_id"][strange], good["target"][strange], strict=True))),
             "dropped, and counted"),
        Fact("studies whose canal points lie on one slice", int((canal == 1).sum()), len(canal)),
        *_level_facts(good),
        *_pair_facts(good),
    ]  # fmt: skip


def _level_facts(good: pd.DataFrame) -> list[Fact]:
    """Sagittal points whose levels do not follow each other down the image."""
    chains = good[good["condition_name"] != SUBARTICULAR].assign(rank=good["place"].map(LEVELS.index))
    wrong = []
    for (study, condition, side), own in chains.groupby(["study_id", "condition_name", "side"]):
        if (np.diff(own.sort_values("rank")["y"].to_numpy(float)) <= 0).any():
            wrong.append(f"{study} {side} {condition}".replace("  ", " "))
    count = len(chains.groupby(["study_id", "condition_name", "side"]))
    return [Fact("chains of levels that do not go down the image", len(wrong), count, tables.some(wrong))]


def recess_pairs(marks: pd.DataFrame) -> pd.DataFrame:
    """Left and right subarticular points of one study and level side by side; columns end in _left and _right."""
    sides = marks[marks["condition_name"] == SUBARTICULAR].drop_duplicates(["study_id", "target"])
    left, right = (sides[sides["side"] == side] for side in ("left", "right"))
    return left.merge(right, on=["study_id", "place"], suffixes=("_left", "_right"))


def on_one_slice(pairs: pd.DataFrame) -> pd.Series:
    """Which of the pairs lie on one slice of one series."""
    return (pairs["series_id_left"] == pairs["series_id_right"]) & (
        pairs["instance_number_left"] == pairs["instance_number_right"]
    )


def _pair_facts(good: pd.DataFrame) -> list[Fact]:
    pairs = recess_pairs(good)
    one = on_one_slice(pairs)
    crossed = one & (pairs["x_left"] <= pairs["x_right"])
    other = pairs["series_id_left"] != pairs["series_id_right"]
    return [
        Fact(PAIRS, int(one.sum()), len(pairs), note="kept: they are two labels, not one that is there twice"),
        Fact("left and right subarticular points on different series", int(other.sum()), len(pairs),
             tables.some(pairs["study_id"][other].unique())),
        Fact("pairs on one slice whose left point lies on the image's left", int(crossed.sum()), int(one.sum()),
             tables.some(pairs["study_id"][crossed].unique()), "left and right may be exchanged"),
    ]  # fmt: skip


def _mark_tables(read: Tables) -> list[Counts]:
    good = read.marks[read.marks["target"] != ""]
    if not len(good):
        return []
    per_slice = good.groupby(["study_id", "series_id", "instance_number"]).size()
    points = [
        (
            condition,
            *(int(((good["condition_name"] == condition) & (good["place"] == level)).sum()) for level in LEVELS),
        )
        for condition in CONDITIONS
    ]
    return [
        Counts("points by condition and level", ("condition", *LEVELS), tuple(points)),
        Counts("points per image", ("points on one slice", "slices"), tuple(sorted(counted(per_slice.tolist())))),
        _distances(recess_pairs(good)),
        cost_of_cleaning(read),
    ]


def _distances(pairs: pd.DataFrame) -> Counts:
    """How many slices lie between the left and the right point of a level."""
    same = pairs[pairs["series_id_left"] == pairs["series_id_right"]]
    left, right = (
        tables.numbers(same[f"instance_number_{side}"]) if len(same) else np.zeros(0) for side in ("left", "right")
    )
    apart = np.minimum(np.abs(left - right), 3)
    rows = [(name, int((apart == n).sum())) for n, name in enumerate(("one slice", "1 apart", "2 apart", "3 or more"))]
    return Counts(
        "left and right recess of a level",
        ("distance", "levels"),
        (*rows, ("different series", len(pairs) - len(same))),
    )


def cost_of_cleaning(read: Tables) -> Counts:
    """What is lost where the right one of two points on a slice is dropped as a duplicate, as a published baseline does
    (recipe seed-frcnn-swin-cleaned)."""
    good = read.marks[read.marks["target"] != ""]
    pairs = recess_pairs(good)
    pairs = pairs[on_one_slice(pairs)]
    label_of = {
        (study, target): cell
        for target in TARGETS if len(read.labels)
        for study, cell in zip(read.labels["study_id"], read.labels[target], strict=True)
    }  # fmt: skip
    lost = [label_of.get(pair, "") for pair in zip(pairs["study_id"], pairs["target_right"], strict=True)]
    right = [cell for (_, target), cell in label_of.items()
             if TARGET_OF[target].condition == SUBARTICULAR and TARGET_OF[target].side == "right"]  # fmt: skip
    rows = []
    for name in CLASS_LABELS:
        share = f"{100 * lost.count(name) / right.count(name):.1f} %" if right.count(name) else "-"
        rows.append((name, lost.count(name), right.count(name), share))
    known, all_right = sum(row[1] for row in rows), sum(row[2] for row in rows)
    rows.append(("all", known, all_right, f"{100 * known / all_right:.1f} %" if all_right else "-"))
    note = "Right subarticular labels that would be lost if points on one slice were taken for duplicates."
    return Counts("cost of the published cleaning", ("label", "lost", "of", "share"), tuple(rows), note)


def _pairs_text(pairs: set[tuple[str, str]]) -> str:
    return tables.some([f"{study} {landmark_of(target)}" for study, target in sorted(pairs)], 3)


@dataclass(frozen=True)
class Header:
    """A series of the table. files: names of all its files. facts: what the header of the first one says."""

    study: str
    series: str
    view: str
    files: frozenset[str]
    facts: FileFacts


def read_headers(images: Path, series: pd.DataFrame) -> list[Header]:
    """One header of every series of the table that lies on disk; none where the images are not there."""
    if not images.is_dir():
        log.info("%s: no such folder: tables alone are counted", images)
        return []
    headers = []
    for study, name, view in series[["study_id", "series_id", "view"]].drop_duplicates().itertuples(index=False):
        folder = images / study / name
        named = tables.is_id(study) and tables.is_id(name)
        files = sorted(path for path in folder.iterdir() if path.is_file()) if named and folder.is_dir() else []
        facts = facts_of(files[0]) if files else FileFacts()
        headers.append(Header(study, name, view, frozenset(path.stem for path in files), facts))
    return headers


def _place_facts(read: Tables, headers: Sequence[Header]) -> list[Fact]:
    """Points that are no pixel of a slice that is there."""
    marks = read.marks
    if not len(marks):
        return []
    odd = ~(np.isfinite(marks["x"]) & np.isfinite(marks["y"]) & (marks["x"] >= 0) & (marks["y"] >= 0))
    facts = [Fact("points that are no pixel", int(odd.sum()), len(marks), tables.some(marks["study_id"][odd].unique()),
                  "dropped, and counted")]  # fmt: skip
    of_series = {(header.study, header.series): header for header in headers if header.files}
    outside, lost = [], []
    for study, series, number, x, y in marks[["study_id", "series_id", "instance_number", "x", "y"]].itertuples(
        index=False
    ):
        if (header := of_series.get((study, series))) is None:
            continue
        if (
            header.facts.columns
            and header.facts.rows
            and (x > header.facts.columns - 0.5 or y > header.facts.rows - 0.5)
        ):
            outside.append(study)
        if number not in header.files:
            lost.append(study)
    if of_series:
        note = "training then looks for the InstanceNumber in the headers"
        facts.append(
            Fact("points outside of their image", len(outside), len(marks), tables.some(dict.fromkeys(outside)))
        )
        facts.append(
            Fact("points whose slice is no file name", len(lost), len(marks), tables.some(dict.fromkeys(lost)), note)
        )
    return facts


def _header_facts(images: Path, headers: Sequence[Header]) -> list[Fact]:
    if not headers:
        return []
    total, there = len(headers), [header for header in headers if header.files]
    empty = [header.series for header in headers if not header.files]
    silent = [header.series for header in there if not header.facts.plane]
    other = [
        header.series
        for header in there
        if header.facts.plane and header.facts.plane != _PLANE_OF_VIEW.get(header.view)
    ]
    listed = {(header.study, header.series) for header in headers}
    studies = {header.study for header in headers}
    unlisted = [name for study in sorted(studies) if tables.is_id(study) for name in tables.subfolders(images / study)
                if (study, name) not in listed]  # fmt: skip
    extra = sorted(set(tables.subfolders(images)) - studies)
    return [
        Fact("images", sum(len(header.files) for header in there)),
        Fact("series without files", len(empty), total, tables.some(empty)),
        Fact("series folders that no table lists", len(unlisted), total, tables.some(unlisted)),
        Fact("study folders that no table lists", len(extra), len(studies), tables.some(extra)),
        Fact("series that do not tell their orientation", len(silent), len(there), tables.some(silent)),
        Fact("series in another plane than their description", len(other), len(there), tables.some(other),
             "the files are followed"),
    ]  # fmt: skip


def _size(facts: FileFacts) -> str:
    return f"{facts.rows} x {facts.columns}" if facts.rows and facts.columns else ""


def _header_tables(headers: Sequence[Header]) -> list[Counts]:
    there = [header for header in headers if header.files]
    views = list(SERIES_DESCRIPTIONS)
    found = []
    for name, of in (
        (
            "size, rows x columns",
            lambda header: f"{header.facts.rows} x {header.facts.columns}" if header.facts.rows else "",
        ),
        ("pixel spacing, mm", lambda header: header.facts.spacing_mm),
        ("distance of slices, mm", lambda header: header.facts.slice_mm),
        ("orientation", lambda header: header.facts.plane),
        ("codec", lambda header: header.facts.codec),
        ("maker", lambda header: header.facts.maker),
        ("field strength, T", lambda header: header.facts.tesla),
        ("slices in a series", lambda header: len(header.files)),
    ):
        often = counted([of(header) for header in there])
        of_view = Counter((of(header), header.view) for header in there)
        rows = [(value or "not stated", *(of_view[value, view] for view in views)) for value, _ in often[:20]]
        left = sum(count for _, count in often[20:])
        note = f"The 20 most frequent of {len(often)} values; {left} series have another one." if left else ""
        found.append(Counts(name, (name, *(SERIES_DESCRIPTIONS[view] for view in views)), tuple(rows), note))
    return found

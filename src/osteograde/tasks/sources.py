"""Where the data of each task are published, how they unpack, and whether a folder holds all of them.

Addresses, licences and numbers are the publishers' own (Chen, doi 10.17632/56rmx5bjcr.1; van der Graaf et al.,
Scientific Data 11:264, 2024; the page of the competition). Nothing here opens a connection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from osteograde.errors import UserError
from osteograde.imaging.discovery import left_by_system
from osteograde.imaging.volume_files import SUFFIXES as VOLUMES

GRADES = ("0", "1", "2", "3", "4")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif")


@dataclass(frozen=True)
class Part:
    """A part of a data set. holds(path below the folder): whether a file belongs to it; a part is counted in ``units``
    of it, files where ``unit`` tells none. count: as published, 0 where any number is right. optional: not needed to
    train or to grade."""

    name: str
    holds: Callable[[PurePath], bool]
    count: int = 0
    optional: bool = False
    unit: Callable[[PurePath], str] = str
    units: str = "files"


@dataclass(frozen=True)
class Source:
    """A published data set. layout: lines of what it unpacks to. parts: what ``check`` counts."""

    title: str
    address: str
    licence: str
    size: str
    layout: tuple[str, ...]
    parts: tuple[Part, ...]
    note: str = ""

    def lines(self) -> list[str]:
        """What a person needs to know to fetch it."""
        told = [self.title, f"  address  {self.address}", f"  licence  {self.licence}", f"  size     {self.size}"]
        told += ["  unpacks to", *(f"    {line}" for line in self.layout)]
        return [*told, f"  {self.note}"] if self.note else told


@dataclass(frozen=True)
class Checked:
    """lines: one for each part. complete: whether all that is needed is there."""

    lines: tuple[str, ...]
    complete: bool


def check(source: Source, data: Path) -> Checked:
    """What of a source lies below a folder, at any depth. UserError where the folder does not exist."""
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; name the one that the download was unpacked into")
    found: dict[str, set[str]] = {part.name: set() for part in source.parts}
    for path in _files(data):
        for part in source.parts:
            if part.holds(path):
                found[part.name].add(part.unit(path))
    lines, complete = [], True
    for part in source.parts:
        count = len(found[part.name])
        wanted = f" of {part.count:,} published" if part.count else ""
        missing = count < part.count if part.count else not count
        word = "OK" if not missing else "absent, not needed" if part.optional and not count else "MISSING"
        complete &= not missing or part.optional
        lines.append(f"  {word:8} {part.name}: {count:,}{wanted} {part.units}")
    return Checked(tuple(lines), complete)


def _files(data: Path) -> Iterator[PurePath]:
    """Every file below a folder, as a path whose first part is the folder's own name; what systems leave is not."""
    above = data.resolve().parent
    for name, folders, files in os.walk(data.resolve()):
        folders[:] = sorted(folder for folder in folders if not left_by_system(folder))
        below = PurePath(os.path.relpath(name, above))
        yield from (below / file for file in sorted(files) if not file.startswith("."))


def _named(*names: str) -> Callable[[PurePath], bool]:
    """Whether a file has one of these names, in any case."""
    return lambda path: path.name.lower() in names


def _below(folder: str, endings: Sequence[str], depth: int = 1) -> Callable[[PurePath], bool]:
    """Whether a file of these endings lies ``depth`` folders deep in a folder of a name."""

    def holds(path: PurePath) -> bool:
        parts = path.parts
        return len(parts) > depth and parts[-1 - depth] == folder and path.name.lower().endswith(tuple(endings))

    return holds


def _knees(split: str) -> Callable[[PurePath], bool]:
    inside = _below(split, PICTURES, 2)
    return lambda path: inside(path) and path.parts[-2] in GRADES


def _stem(path: PurePath) -> str:
    """Of both resolutions of a knee the same."""
    return path.stem


def _study(path: PurePath) -> str:
    return path.parts[-3]


KNEES = Source(
    "Chen: Knee Osteoarthritis Severity Grading Dataset, V1 (2018), images of the Osteoarthritis Initiative",
    "https://data.mendeley.com/datasets/56rmx5bjcr/1 (doi 10.17632/56rmx5bjcr.1)",
    "CC BY 4.0",
    "8,260 knees in two resolutions; either one is enough",
    (
        "KneeXrayData/ClsKLData/kneeKL224/{train,val,test,auto_test}/{0..4}/9003175L.png",
        "KneeXrayData/ClsKLData/kneeKL299/...",
    ),
    (
        Part("train", _knees("train"), 5778, unit=_stem, units="knees"),
        Part("val", _knees("val"), 826, unit=_stem, units="knees"),
        Part("test (never learnt from)", _knees("test"), 1656, True, _stem, "knees"),
        Part("auto_test (never learnt from)", _knees("auto_test"), 1526, True, _stem, "knees"),
    ),
    "give --data any folder above train and val",
)

SPIDER = Source(
    "van der Graaf et al.: SPIDER, lumbar spine segmentation in MR images (Scientific Data 11:264, 2024)",
    "https://zenodo.org/records/10159290 (doi 10.5281/zenodo.10159290)",
    "CC BY 4.0",
    "images.zip 3.7 GB, masks.zip 58 MB, two tables; 447 series of 218 patients",
    ("images/1_t1.mha ...", "masks/1_t1.mha ...", "radiological_gradings.csv", "overview.csv"),
    (
        Part("images", _below("images", VOLUMES), 447, units="series"),
        Part("masks", _below("masks", VOLUMES), 447, units="series"),
        Part("radiological_gradings.csv", _named("radiological_gradings.csv", "gradings.csv"), 1),
        Part("overview.csv", _named("overview.csv"), 1),
    ),
    "give --data the folder that holds images, masks and the tables",
)


def _competition(slug: str) -> Source:
    return Source(
        "RSNA 2024 Lumbar Spine Degenerative Classification",
        f"https://www.kaggle.com/competitions/{slug}/data",
        "non-commercial use, under the rules of the competition, which must be accepted on its page",
        "1,975 labelled studies of 6,294 series; 100 GiB of free disk hold the archive and its files",
        (
            "train.csv, train_series_descriptions.csv, train_label_coordinates.csv",
            "train_images/STUDY/SERIES/1.dcm ...",
            "test_series_descriptions.csv, test_images/STUDY/SERIES/1.dcm ..., sample_submission.csv",
        ),
        (
            Part("train.csv", _named("train.csv"), 1),
            Part("train_series_descriptions.csv", _named("train_series_descriptions.csv"), 1),
            Part("train_label_coordinates.csv", _named("train_label_coordinates.csv"), 1),
            Part("train_images", _below("train_images", (".dcm",), 3), 1975, unit=_study, units="studies"),
            Part("test_images", _below("test_images", (".dcm",), 3), 0, True, _study, "studies"),
            Part("test_series_descriptions.csv", _named("test_series_descriptions.csv"), 1, True),
        ),
        "without --data the same command fetches it with your account",
    )


PROGRESSION = Source(
    "Osteoarthritis Initiative: tables of all visits, beside the crops of knee-xray",
    "https://nda.nih.gov/oai (by application to the NIMH Data Archive)",
    "by its data use terms; the tables may not be shared",
    "tables as text or SAS; the images are those of `osteograde download knee-xray`",
    ("kxr_sq_bu00.txt ... kxr_sq_bu10.txt", "kxr_qjsw_duryea00.txt ...", "{0..4}/9001695L.png", "labels.csv"),
    (
        Part(
            "grades of the visits (kxr_sq_bu*)", lambda path: path.name.lower().startswith("kxr_sq_bu"), 0, True,
            units="tables",
        ),
        Part("labels.csv or progression.csv", _named("labels.csv", "progression.csv"), 1),
        Part("crops", lambda path: path.suffix.lower() in PICTURES and path.parent.name in GRADES, unit=_stem,
             units="knees"),
    ),
    "`osteograde targets knee-progression` builds labels.csv out of the tables",
)  # fmt: skip


def source_of(task: str, slug: str) -> Source:
    """The source of a task's data. slug: of its competition, "" where it has none. UserError where they are the user's
    own."""
    known: Mapping[str, Source] = {"knee-xray": KNEES, "spider": SPIDER, "knee-progression": PROGRESSION}
    if not slug and task not in known:
        raise UserError(f"{task}: its data are your own, nobody publishes them; docs/own-data.md says how they lie")
    return known[task] if not slug else _competition(slug)

"""Which task a folder of images looks like, by headers and names: for people who gave a folder to another task.

Nothing is graded by it. No pixel is read; a few images spread over the whole folder are looked at. What an image shows
is said only where a tag or a name tells it, and of a folder only where most of these images agree.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydicom.uid import UID

from osteograde.imaging.dicom.header import header_of
from osteograde.imaging.dicom.tags import numbers_of, text_of
from osteograde.imaging.discovery import look_at, look_through, stem_of
from osteograde.imaging.file_kind import PICTURE, kind_of_file
from osteograde.tasks.names import read_name
from osteograde.tasks.spec import Study

LOOKED_AT = 24  # images of a folder
_SERIES = 3  # series of a study that are looked at
MOST = 0.6  # share of them that must agree

_TABLES = ("test_series_descriptions.csv", "train_series_descriptions.csv")  # of the layout with series and studies
_FILM = frozenset({"CR", "DX", "DR", "RG", "RF", "XA"})
_OTHERS = frozenset({"MR", "CT", "US", "MG", "NM", "PT"})
_PARTS = {  # what is called which part of the body; the first that a text names counts
    "knees": "knee knees knie genou genu rodilla ginocchio patella tibiofemoral kellgren",
    "spines": "spine lspine lumbar lumbosacral lumbal lws lsp lendenwirbelsaule columna rachis spider",
    "chests": "chest chests thorax torax lung lungs cxr pneumonia covid tuberculosis",
    "hands": "hand hands finger wrist carpal",
    "feet": "foot feet ankle toe",
    "hips": "hip hips pelvis huefte becken",
    "shoulders": "shoulder shoulders elbow humerus",
    "heads": "head heads skull brain neuro",
    "abdomens": "abdomen abdominal liver kidney prostate",
    "breasts": "breast mammo mammography",
}
_PART_OF_WORD = {word: part for part, words in _PARTS.items() for word in words.split()}
_CONTRAST = re.compile(r"(?:^|[^0-9a-z])(?:t1|t2|stir)(?:[^0-9a-z]|$)")
_TAGS = [
    "SOPClassUID", "Modality", "BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName",
    "ImageOrientationPatient",
]  # fmt: skip
_TEXTS = ("BodyPartExamined", "ProtocolName", "SeriesDescription", "StudyDescription")

KNEES, FILMS = "radiographs of knees", "radiographs"
SPINES, MR, SLICES = "MR of spines", "MR images", "pictures of sagittal slices of spines"
COMPETITION = "the folder of the RSNA 2024 lumbar spine competition"
_TASKS = {  # what images show -> the tasks that grade it, the best one first
    KNEES: ("knee-xray", "knee-progression"),
    FILMS: ("knee-xray", "knee-progression"),
    COMPETITION: ("lumbar-mr",),
    SPINES: ("spider", "lumbar-mr"),  # the other way round where there are axial slices
    MR: ("spider", "lumbar-mr"),
    SLICES: ("spider",),
}


@dataclass(frozen=True)
class Seen:
    """What one image says of itself. name: its path below the folder, with the folder's own name in front, "/" between
    folders. kind: "MR", "film", "picture", "" (a DICOM file that does not say) or another modality. words: what its
    tags call it, in lower case. axial: whether its plane is known to be axial."""

    name: str
    kind: str = "picture"
    words: str = ""
    axial: bool = False


@dataclass(frozen=True)
class Guess:
    """What a folder shows, and the tasks that grade it, the best one first; none where no task does."""

    shows: str
    tasks: tuple[str, ...]


def guess(seen: Sequence[Seen], *, competition: bool = False) -> Guess | None:
    """What images of one folder show by most of them; None where nothing tells. competition: they lie in the layout of
    the lumbar competition.

    >>> guess([Seen("a/9000001L.png"), Seen("a/9000001R.png")])
    Guess(shows='radiographs of knees', tasks=('knee-xray', 'knee-progression'))
    >>> guess([Seen("chest/1.png")]), guess([Seen("a/1.png")])
    (Guess(shows='pictures of chests', tasks=()), None)
    """
    shown = Counter(map(_shown_by, seen))
    if competition and (not seen or _share(shown, "MR ", "") >= MOST):
        return Guess(COMPETITION, _TASKS[COMPETITION])
    if not shown:
        return None
    best, count = shown.most_common(1)[0]
    if not best or count < MOST * len(seen):
        return None
    tasks = _TASKS.get(best, ())
    return Guess(best, tasks[::-1] if any(one.axial for one in seen) else tasks)


def hint(task: str, found: Guess | None) -> str:
    """A sentence for people who gave a folder to ``task``; "" where it suits the task, or nothing tells."""
    if found is None or task in found.tasks:
        return ""
    if not found.tasks:
        return f"the images look like {found.shows}, which no task grades"
    return f"the images look like {found.shows}: try the task {' or '.join(found.tasks)} instead of {task}"


def guess_of_studies(places: Sequence[Path], studies: Sequence[Study]) -> Guess | None:
    """What the images of studies show, which a reader listed at these places."""
    roots = [_folder_of(place) for place in places]
    files = [file for study in _spread(studies) for file in islice(_files_of(study), _SERIES)]
    return guess([_look(file, roots) for file in _spread(files)], competition=_in_competition(roots))


def guess_of_places(places: Sequence[Path]) -> Guess | None:
    """What the images in folders and files show, of which a reader could make nothing."""
    roots = [_folder_of(place) for place in places]
    files: list[Path] = []
    for place, root in zip(places, roots, strict=True):
        files += (look_through(place) if place.is_dir() else look_at(root, [place])).files
    return guess([_look(file, roots) for file in _spread(files)], competition=_in_competition(roots))


def _share(shown: Counter[str], *starts: str) -> float:
    """The share of the images that show what begins so; "" stands for images that do not say."""
    counted = sum(n for what, n in shown.items() if any(what.startswith(s) if s else not what for s in starts))
    return counted / max(shown.total(), 1)


def _shown_by(one: Seen) -> str:
    """What one image shows, "" where nothing tells."""
    part = _part(one.words)
    if one.kind == "MR":
        return f"MR of {part}" if part else MR
    if one.kind == "film":
        return f"radiographs of {part}" if part else FILMS
    if one.kind not in ("picture", ""):
        return f"images of the modality {one.kind}"
    stem = one.name.rpartition("/")[2]
    named = read_name(stem)
    if part == "knees" or (named.side and named.patient and named.sure):
        return KNEES
    if _CONTRAST.search(stem.lower()):
        return SLICES
    part = part or _part(one.name)
    return KNEES if part == "knees" else SLICES if part == "spines" else f"pictures of {part}" if part else ""


def _part(text: str) -> str:
    """The part of the body that a text names; knees where it names them among others."""
    words = re.findall(r"[a-z]+", text.lower())
    parts = [_PART_OF_WORD[word] for word in words if word in _PART_OF_WORD]
    return "knees" if "knees" in parts else next(iter(parts), "")


def _look(file: Path, roots: Sequence[Path]) -> Seen:
    name = _name(file, roots)
    if kind_of_file(file) == PICTURE:
        return Seen(name)
    header = header_of(file, _TAGS)
    modality, sop_class = text_of(header, "Modality").upper(), text_of(header, "SOPClassUID")
    words = " ".join(text_of(header, tag) for tag in _TEXTS).lower()
    directions = numbers_of(header, "ImageOrientationPatient", 6)
    of_class = UID(sop_class).name if sop_class else ""
    kind = _kind(modality, of_class)
    axial = directions is not None and int(np.abs(np.cross(directions[:3], directions[3:])).argmax()) == 2
    return Seen(name, kind, words, axial)


def _kind(modality: str, of_class: str) -> str:
    """The kind of a DICOM image by its modality, else by the name of its SOP class; "" where neither says it."""
    if modality in _FILM:
        return "film"
    if modality in _OTHERS:
        return modality
    if "X-Ray" in of_class or "Radiography" in of_class:
        return "film"
    return "MR" if "MR " in of_class else ""


def _name(file: Path, roots: Sequence[Path]) -> str:
    """The path of a file below the place it was found at, without its ending, the place's own name in front."""
    for root in roots:
        for top, below in ((root, file), (root.resolve(), file.resolve())):
            if below.is_relative_to(top):
                return "/".join([root.resolve().name, *below.relative_to(top).parts[:-1], stem_of(file)])
    return stem_of(file)


def _files_of(study: Study) -> Iterable[Path]:
    """A file of each series of a study."""
    for series in study.series:
        if series.files:
            yield series.files[0]
        else:
            yield from _first_files(series.folder)


def _first_files(folder: Path) -> list[Path]:
    """The first file of a folder; none where it has none or may not be read."""
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_file()][:1]
    except OSError:
        return []


def _spread(items: Sequence) -> Sequence:
    """At most ``LOOKED_AT`` of many, evenly spread."""
    return items[:: -(-len(items) // LOOKED_AT) or 1]


def _folder_of(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _in_competition(roots: Sequence[Path]) -> bool:
    return any((folder / name).is_file() for root in roots for folder in (root, root.parent) for name in _TABLES)

"""All images of a folder, read once: what they are, what cannot be read, and a fingerprint of each.

Series are decoded in threads, a few ahead of what is counted, and are let go at once: what is kept of one is some
words and 96 bytes.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging import fingerprint
from osteograde.imaging.dicom import UnreadableSeries
from osteograde.imaging.dicom.patient import patient_key
from osteograde.imaging.discovery import look_at
from osteograde.imaging.file_facts import PLANES, FileFacts, facts_of, rounded
from osteograde.imaging.geometry import Volume
from osteograde.imaging.image_files import UnreadableImage
from osteograde.imaging.windowing import window
from osteograde.pipeline.load import load_series
from osteograde.pipeline.series_views import shown_views
from osteograde.tasks.census import Census
from osteograde.tasks.spec import Series, Study, Task

NO_CONTRAST = "no_contrast"  # code: all pixels are equal
TRAIN, TEST = "train", "test"
_AHEAD = 3  # series that are decoded before they are needed, for each thread
_SPLIT = re.compile(
    r"(?:auto|public|private|official|internal|external)?[-_ ]?"
    r"(train|training|val|valid|validation|dev|test|testing|holdout|fold[-_ ]?[0-9]+)"
    r"(?:set)?(?:[-_ ](?:images?|set|data))?"
)
Given = TypeVar("Given")
Result = TypeVar("Result")
_TESTS = ("test", "holdout")  # words of splits whose images have no labels


@dataclass(frozen=True, eq=False)
class Gathered:
    """The studies of a folder. task: the one that they were read by. remarks: what was logged while
    names and tables were read, each once. refused: why the training part could not be read, "" where it could.
    counted: what the task counts in its own tables; None where it counts nothing or they are not there."""

    task: Task
    root: Path
    studies: tuple[Study, ...]
    remarks: tuple[str, ...] = ()
    refused: str = ""
    counted: Census | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen of one series. study, series: where it stands. view: the view it shows, "" where that is unknown.
    split: the part of the data that its path names. files: how many. slices: that were read. facts: of its first
    file. size, spacing_mm, slice_mm, plane: of its largest stack; spacing is "" where no file says it. codes: what was
    lost or assumed. unreadable: (file, code). person: a key of the patient that DICOM names. prints: (2, 6) uint64,
    the fingerprints of the middle slice as it is and mirrored; None where it shows nothing."""

    study: int
    series: int
    view: str
    split: str
    files: int
    slices: int = 0
    facts: FileFacts = field(default_factory=FileFacts)
    size: str = ""
    spacing_mm: str = ""
    slice_mm: str = ""
    plane: str = ""
    codes: Counter[str] = field(default_factory=Counter)
    unreadable: tuple[tuple[Path, str], ...] = ()
    person: str = ""
    prints: np.ndarray | None = None


def as_shown(task: Task, root: Path) -> Task:
    """The task as a folder of labelled studies defines it, where tasks are made of data (``Task.for_data``). Where the
    folder defines none the task is returned as it is, and ``gather`` tells why."""
    with _remarks():  # all of them are logged again when the studies are read
        try:
            return task.for_data(Path(root))
        except UserError:
            return task


def gather(task: Task, root: Path) -> Gathered:
    """The studies of a folder: those of its training part, and all images that are none of them.

    UserError where neither part can be read.
    """
    root = Path(root)
    found: dict[str, list[Study]] = {TRAIN: [], TEST: []}
    refused: dict[str, str] = {}
    with _remarks() as remarks:
        for part in found:
            try:
                found[part] = task.read(root, part)
            except UserError as error:
                refused[part] = str(error)
        counted = None
        if task.inspect is not None:
            try:
                counted = task.inspect(root)
            except UserError as error:
                remarks.append(f"the tables cannot be counted: {error}")
    if len(refused) == len(found) and counted is None:
        raise UserError(refused[TRAIN])
    known = {place for study in found[TRAIN] for series in study.series for place in _places(series)}
    others = [
        study
        for study in found[TEST]
        if not any(place in known for series in study.series for place in _places(series))
    ]
    told = tuple(dict.fromkeys(remarks))
    return Gathered(task, root, (*found[TRAIN], *others), told, refused.get(TRAIN, ""), counted)


def _places(series: Series) -> tuple[Path, ...]:
    return series.files or (series.folder,)


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """The messages that rooms log meanwhile. They are kept and not printed: the same files are read several times."""
    package, told = logging.getLogger("osteograde"), list[str]()
    handler, before = logging.Handler(), (package.handlers, package.level, package.propagate)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)
    try:
        yield told
    finally:
        package.handlers, _, package.propagate = before
        package.setLevel(before[1])


def split_of(path: Path, root: Path) -> str:
    """The part of the data that a path below ``root`` names, by its outermost folder that is called like one; "" where
    none is.

    >>> split_of(Path("d/set224/auto_test/3/1.png"), Path("d")), split_of(Path("d/train_images/7"), Path("d"))
    ('auto_test', 'train')
    """
    parts = path.relative_to(root).parts if path.is_relative_to(root) else path.parts
    for part in parts:
        if _SPLIT.fullmatch(part.lower()):
            return re.sub(r"[-_ ](images?|set|data)$", "", part.lower())
    return ""


def is_test(split: str) -> bool:
    """Whether images of a split of this name are meant to have no labels."""
    return any(word in split for word in _TESTS)


def survey(
    task: Task, gathered: Gathered, workers: int = 0, progress: Callable[[], object] = lambda: None
) -> list[Look]:
    """Every series of the studies, decoded once, in their order. progress: called after each series."""
    places = [(i, k) for i, study in enumerate(gathered.studies) for k in range(len(study.series))]

    def look(place: tuple[int, int]) -> Look:
        return look_at_series(task, gathered.studies[place[0]].series[place[1]], gathered.root, *place)

    looks = []
    for one in side_by_side(look, places, workers):
        looks.append(one)
        progress()
    return looks


def side_by_side(function: Callable[[Given], Result], items: Iterable[Given], workers: int = 0) -> Iterator[Result]:
    """Results in the order of the items, made by threads that run a few items ahead and no more."""
    threads = workers or os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def look_at_series(task: Task, series: Series, root: Path, study: int = 0, number: int = 0) -> Look:
    """What one series is. Nothing is raised for files that cannot be read: they are named in the result."""
    files = _files(series)
    first = files[0] if files else series.folder
    told = Look(study, number, series.view, split_of(first, root), len(files))
    described = task.view(series.view) if series.view else task.views[0]
    codes: Counter[str] = Counter()
    stacks: Sequence[Volume] = ()
    reason = ""
    try:
        stacks, codes = load_series(series, described)
    except (UnreadableSeries, UnreadableImage) as error:
        reason = error.code
    slices = sum(len(stack.voxels) for stack in stacks)
    unreadable = _unreadable(task, series, files, reason) if reason or codes or slices < len(files) else ()
    if files:
        facts = facts_of(first)
        told = replace(told, facts=facts, person=patient_key(first) if facts.is_dicom else "")
    if not stacks:
        return replace(told, codes=Counter({reason: 1}), unreadable=unreadable or ((first, reason),))
    shown = shown_views(task, series.view, stacks, codes)
    view = shown[0].view if shown else series.view
    copy = small_copy_of(task, view or described.name, stacks)
    codes[NO_CONTRAST] += copy is None
    # Pictures of a task that its folder defines are measured in units of their own, not in mm.
    given_mm = series.spacing_mm if task.of_folder is None else None
    return replace(
        _with_geometry(told, given_mm, max(stacks, key=lambda stack: stack.voxels.size)),
        view=view, slices=slices, codes=+codes, unreadable=unreadable,
        prints=None if copy is None else fingerprint.fingerprints(np.stack([copy, copy[:, ::-1]])),
    )  # fmt: skip


def _files(series: Series) -> tuple[Path, ...]:
    """The image files of a series."""
    if series.files or not series.folder.is_dir():
        return series.files
    return look_at(series.folder, sorted(path for path in series.folder.iterdir() if path.is_file())).files


def _unreadable(task: Task, series: Series, files: Sequence[Path], reason: str) -> tuple[tuple[Path, str], ...]:
    """Those of the files that cannot be read alone, and why."""
    if len(files) == 1:
        return ((files[0], reason),) if reason else ()
    view = task.view(series.view) if series.view else task.views[0]
    found = []
    for file in files:
        try:
            load_series(replace(series, files=(file,), masks=()), view)
        except (UnreadableSeries, UnreadableImage) as error:
            found.append((file, error.code))
    return tuple(found)


def _with_geometry(told: Look, given_mm: Sequence[float] | None, stack: Volume) -> Look:
    """The look with the size of a stack; with its spacing and plane where its files say them.

    given_mm: (D, H, W) spacing that a table or the task states; None where nobody does.
    """
    depth, height, width = stack.voxels.shape
    size = f"{height} x {width}"
    if told.facts.spacing_mm or told.facts.codec.startswith(("NIfTI", "MetaImage")):
        plane = PLANES[int(np.argmax(np.abs(stack.axes[0])))] if depth > 1 or told.facts.plane else ""
        slice_mm = f"{stack.spacing_mm[0]:.1f}" if depth > 1 else told.facts.slice_mm
        return replace(
            told, size=size, spacing_mm=rounded(list(stack.spacing_mm[1:]), 2), slice_mm=slice_mm, plane=plane
        )
    given = f"{rounded(given_mm[1:], 2)} (not in the file)" if given_mm else ""
    return replace(told, size=size, spacing_mm=given, plane=told.facts.plane)


def small_copy_of(task: Task, view: str, stacks: Sequence[Volume]) -> np.ndarray | None:
    """A small copy of the middle slice of the largest stack, windowed as the nets read it; None without contrast."""
    image = middle_slice(task, view, stacks)
    return fingerprint.small_copy(image) if image.any() else None


def middle_slice(task: Task, view: str, stacks: Sequence[Volume]) -> np.ndarray:
    """(H, W) bytes: the middle slice of the largest stack of a series, windowed as the nets read it."""
    seen = window(stacks, *task.view(view).window)
    largest = max(seen, key=lambda stack: stack.voxels.size)
    return largest.voxels[len(largest.voxels) // 2]


def image_of(task: Task, series: Series) -> np.ndarray | None:
    """The middle slice of a series, read anew; None where it cannot be read."""
    view = task.view(series.view) if series.view else task.views[0]
    try:
        stacks, _ = load_series(series, view)
    except (UnreadableSeries, UnreadableImage):
        return None
    return middle_slice(task, view.name, stacks) if stacks else None


@dataclass(frozen=True)
class Copies:
    """Series that show one image. members: numbers of looks. mirrored: some are mirror images of others."""

    members: tuple[int, ...]
    mirrored: bool = False


def find_copies(task: Task, gathered: Gathered, looks: Sequence[Look], workers: int = 0) -> list[Copies]:
    """Groups of series whose images are copies of each other, mirrored ones as well.

    Fingerprints give candidates; their images are read once more and compared. T1 and T2 of one spine look alike:
    series of different views must agree more closely.
    """
    shown = [i for i, look in enumerate(looks) if look.prints is not None]
    if len(shown) < 2:
        return []
    prints = np.stack([looks[i].prints for i in shown])  # type: ignore[misc]
    plain = fingerprint.near_pairs(prints[:, 0])
    mirrored = fingerprint.near_pairs(prints[:, 0], prints[:, 1])
    wanted = sorted({int(i) for pair in (*plain, *mirrored) for i in pair})

    def copy(i: int) -> np.ndarray | None:
        look = looks[shown[i]]
        image = image_of(task, gathered.studies[look.study].series[look.series])
        return None if image is None else fingerprint.small_copy(image)

    copies = dict(zip(wanted, side_by_side(copy, wanted, workers), strict=True))

    def same(i: int, j: int, mirror: bool) -> bool:
        one, other = copies[i], copies[j]
        if one is None or other is None:
            return False
        alike = looks[shown[i]].view == looks[shown[j]].view
        least = fingerprint.LEAST_LIKENESS if alike else fingerprint.SAME_LIKENESS
        return fingerprint.likeness(one, other[:, ::-1] if mirror else other) >= least

    found = [(shown[i], shown[j]) for i, j in plain if same(i, j, False)]
    turned = [(shown[i], shown[j]) for i, j in mirrored if same(i, j, True)]
    turned = [pair for pair in turned if pair not in found]  # what is symmetrical is its own mirror image
    odd = {number for pair in turned for number in pair}
    return [Copies(tuple(group), bool(odd & {*group})) for group in fingerprint.groups([*found, *turned])]

"""What a folder of data holds and what is wrong with it, of any task: facts and tables out of its studies and of what
was seen of their images."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging.discovery import stem_of
from osteograde.report.data_survey import Copies, Gathered, Look, is_test
from osteograde.tasks.census import Census, Counts, Fact, counted
from osteograde.tasks.names import read_name, spellings
from osteograde.tasks.spec import CATEGORY, Series, Study, Task
from osteograde.tasks.tables import some

UNREADABLE = "files that cannot be read"
NO_IMAGE = "labelled studies without a readable image"
NO_ROW = "rows of a table of labels without an image"
NO_LABEL = "studies without labels, outside of test data"
COPIES_WITHIN = "images that are there twice, of one patient"
COPIES_ACROSS = "images that are there twice, of different patients"
COPIES_SPLIT = "images that are there twice, in different splits"
COPIES_LABELS = "images that are there twice, with different labels"
SPLITS = "patients in several splits"
FOLDS = "patients in several folds"
SPELLINGS = "patients whose name is written in several ways"
TWO_NAMES = "patients of DICOM headers that stand under several names"
TWO_PERSONS = "names that stand for several patients of DICOM headers"
NO_PATIENT = "studies from whose name no patient was read"
NO_SIDE = "studies whose side was assumed"
REFUSED = "reasons for which training would be refused"
FLAT = "series without any contrast"
OTHER = "(none)"
_MOST_VALUES = 20
_TRUTH = ("train.csv", "test_truth.csv")


@dataclass(frozen=True, eq=False)
class Surveyed:
    """A folder as it was seen. copies: groups of series that show one image. folds: study -> fold of a weights folder,
    empty where none was given."""

    task: Task
    gathered: Gathered
    looks: Sequence[Look]
    copies: Sequence[Copies]
    folds: Mapping[str, int]

    @property
    def studies(self) -> tuple[Study, ...]:
        return self.gathered.studies

    def series(self, look: Look) -> Series:
        return self.studies[look.study].series[look.series]

    def name(self, look: Look) -> str:
        """Where a series lies, below the folder of the data."""
        series = self.series(look)
        if len(series.files) == 1:
            return below(series.files[0], self.gathered.root)
        place = below(series.folder, self.gathered.root)
        return place if series.folder.name == series.id else f"{place} ({series.id})"


def below(path: Path, root: Path) -> str:
    """A path as it is called below a folder."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def census(seen: Surveyed) -> Census:
    """Everything that is counted of a folder. What the task counts in its own tables comes behind it, and last what was
    logged while they were read."""
    splits = splits_of_studies(seen)
    refused = seen.gathered.refused
    facts = [
        Fact(REFUSED, int(bool(refused)), examples=refused, note="mend this first", is_fault=True),
        *_counts(seen),
        *_file_facts(seen),
        *_label_facts(seen, splits),
        *_copy_facts(seen, splits),
        *_patient_facts(seen, splits),
    ]
    tables = [
        *_label_tables(seen, splits),
        *_covariate_tables(seen),
        *_study_tables(seen, splits),
        *_image_tables(seen),
        *_lists(seen, splits),
    ]
    found = Census(tuple(facts), tuple(table for table in tables if table.rows))
    if seen.gathered.counted is not None:
        found = found.joined(seen.gathered.counted)
    remarks = seen.gathered.remarks
    heard = Counts("remarks of the readers", ("", "remark"), tuple((i + 1, text) for i, text in enumerate(remarks)))
    return replace(found, tables=(*found.tables, heard)) if remarks else found


def splits_of_studies(seen: Surveyed) -> list[frozenset[str]]:
    """The splits of every study; none where its files name none."""
    found: list[set[str]] = [set() for _ in seen.studies]
    for look in seen.looks:
        found[look.study] |= {look.split} - {""}
    return [frozenset(names) for names in found]


def _named(names: Iterable[str]) -> str:
    return some(sorted(dict.fromkeys(names)))


def _counts(seen: Surveyed) -> list[Fact]:
    studies = seen.studies
    labels = sum(len(study.labels) for study in studies)
    return [
        Fact("studies", len(studies)),
        Fact("studies with labels", sum(bool(study.labels) for study in studies), len(studies)),
        Fact("labels", labels),
        Fact("patients", len({study.patient for study in studies})),
        Fact("series", len(seen.looks)),
        Fact("image files", sum(look.files for look in seen.looks)),
    ]


def _file_facts(seen: Surveyed) -> list[Fact]:
    root = seen.gathered.root
    lost = [(below(path, root), code) for look in seen.looks for path, code in look.unreadable]
    flat = [seen.name(look) for look in seen.looks if look.codes["no_contrast"]]
    total = sum(look.files for look in seen.looks)
    return [
        Fact(UNREADABLE, len(lost), total, some([f"{name} ({code})" for name, code in lost], 3), is_fault=True),
        Fact(FLAT, len(flat), len(seen.looks), _named(flat), is_fault=True),
    ]


def _label_facts(seen: Surveyed, splits: Sequence[frozenset[str]]) -> list[Fact]:
    read = {look.study for look in seen.looks if look.slices}
    labelled = [i for i, study in enumerate(seen.studies) if study.labels]
    lost = [seen.studies[i].id for i in labelled if i not in read]
    bare = [
        study.id
        for i, study in enumerate(seen.studies)
        if not study.labels and not any(is_test(name) for name in splits[i])
    ]
    strange = _rows_without_image(seen)
    return [
        Fact(NO_IMAGE, len(lost), len(labelled), _named(lost), "they are not learnt from", True),
        Fact(NO_ROW, len(strange), 0, _named(strange), "the table names studies that are not there", True),
        Fact(NO_LABEL, len(bare), len(seen.studies), _named(bare), "nothing is learnt from them", True),
    ]


def _rows_without_image(seen: Surveyed) -> list[str]:
    """Studies of the tables of truth that are not there."""
    known = {study.id for study in seen.studies}
    found = []
    for name in _TRUTH:
        path = seen.gathered.root / name
        if path.is_file():
            try:
                found += [study for study in seen.task.read_labels(path) if study not in known]
            except UserError:  # a table of another form, which the task's own reader judges
                continue
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _CopyKinds:
    """Of one group of copies: whether it goes across patients, splits, and labels."""

    patients: bool
    splits: bool
    labels: bool


def kinds_of_copies(seen: Surveyed, group: Copies) -> _CopyKinds:
    """What the members of a group of copies do not share. Mirror images may be of other targets: their labels are
    compared as sets of classes."""
    studies = [seen.studies[seen.looks[i].study] for i in group.members]
    splits = {seen.looks[i].split for i in group.members}
    classes = {tuple(sorted(study.labels.values())) for study in studies if study.labels}
    return _CopyKinds(len({study.patient for study in studies}) > 1, len(splits) > 1, len(classes) > 1)


def _copy_facts(seen: Surveyed, splits: Sequence[frozenset[str]]) -> list[Fact]:
    kinds = [(group, kinds_of_copies(seen, group)) for group in seen.copies]
    total = len(seen.looks)

    def fact(what: str, chosen: Callable[[_CopyKinds], bool], note: str) -> Fact:
        groups = [group for group, kind in kinds if chosen(kind)]
        texts = [" = ".join(seen.name(seen.looks[i]) for i in group.members[:3]) for group in groups]
        return Fact(what, sum(len(group.members) - 1 for group in groups), total, some(texts, 3), note, True)

    return [
        fact(COPIES_WITHIN, lambda kind: not kind.patients, "each counts twice in training and in scores"),
        fact(COPIES_ACROSS, lambda kind: kind.patients, "folds by patient cannot keep them together"),
        fact(COPIES_SPLIT, lambda kind: kind.splits, "what is judged was learnt from"),
        fact(COPIES_LABELS, lambda kind: kind.labels, "at least one label is wrong"),
    ]


def _patient_facts(seen: Surveyed, splits: Sequence[frozenset[str]]) -> list[Fact]:
    patients = len({study.patient for study in seen.studies})
    torn, folds = patients_over(seen, splits)
    spelt = spellings(study.patient for study in seen.studies)
    names, persons = _dicom_patients(seen)
    nameless = [study.id for study in seen.studies if _is_nameless(study)]
    sideless = [study.id for study in seen.studies if seen.task.assumed_side and seen.task.assumed_side in study.notes]
    total = len(seen.studies)
    facts = [
        Fact(SPLITS, len(torn), patients, _named(torn), "what is judged was learnt from", True),
        Fact(SPELLINGS, len(spelt), patients, some([" = ".join(group) for group in spelt], 3),
             "they count as different patients", True),
        Fact(TWO_NAMES, len(names), patients, some([" = ".join(group) for group in names], 3),
             "they count as different patients", True),
        Fact(TWO_PERSONS, len(persons), patients, _named(persons), "are they one person?", True),
        Fact(NO_PATIENT, len(nameless), total, _named(nameless),
             "each counts as a patient of its own; patients.csv tells them apart", True),
    ]  # fmt: skip
    if seen.folds:
        facts.append(Fact(FOLDS, len(folds), patients, _named(folds), "scores out-of-fold are too good", True))
    if seen.task.assumed_side:
        facts.append(Fact(NO_SIDE, len(sideless), total, _named(sideless), "taken for the right side", True))
    return facts


def patients_over(seen: Surveyed, splits: Sequence[frozenset[str]]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """(patient -> splits, patient -> folds) of the patients who stand in more than one."""
    of_split: dict[str, set[str]] = defaultdict(set)
    of_fold: dict[str, set[str]] = defaultdict(set)
    for study, names in zip(seen.studies, splits, strict=True):
        of_split[study.patient] |= names
        of_fold[study.patient] |= {str(seen.folds[study.id])} if study.id in seen.folds else set()
    return (
        {patient: names for patient, names in sorted(of_split.items()) if len(names) > 1},
        {patient: names for patient, names in sorted(of_fold.items()) if len(names) > 1},
    )


def _dicom_patients(seen: Surveyed) -> tuple[list[list[str]], list[str]]:
    """(names of one person each, names of several persons), by the keys of DICOM headers. One key that nearly all
    files share names nobody."""
    names: dict[str, set[str]] = defaultdict(set)
    persons: dict[str, set[str]] = defaultdict(set)
    for look in seen.looks:
        if look.person:
            patient = seen.studies[look.study].patient
            names[look.person].add(patient)
            persons[patient].add(look.person)
    if len(names) == 1 and len(persons) > 2:
        return [], []
    return (
        [sorted(group) for group in names.values() if len(group) > 1],
        sorted(patient for patient, keys in persons.items() if len(keys) > 1),
    )


def _is_nameless(study: Study) -> bool:
    """Whether a study's patient is no more than the name of its own file, in which nobody is named."""
    if study.patient != study.id or len(study.series) != 1 or not study.series[0].files:
        return False
    stem = stem_of(study.series[0].files[0])
    plain = re.sub(r"[^0-9A-Za-z._-]+", "_", stem)
    return study.id.endswith(plain) and read_name(stem).patient != study.patient


def _label_tables(seen: Surveyed, splits: Sequence[frozenset[str]]) -> list[Counts]:
    task = seen.task
    labelled = [(study, names) for study, names in zip(seen.studies, splits, strict=True) if study.labels]
    if not labelled:
        return []
    rows: list[tuple[object, ...]] = []
    sums: Counter[int] = Counter()
    for target in task.targets:
        own = Counter(study.labels[target] for study, _ in labelled if target in study.labels)
        rows.append((target, *(own[k] for k in range(len(task.classes))), own.total()))
        sums += own
    rows += [("all", *(sums[k] for k in range(len(task.classes))), sums.total())] if len(rows) > 1 else []
    head = ("site", *task.classes, "all")
    found = [Counts("labels by site and class", head, tuple(rows))]
    parts: dict[str, Counter[int]] = defaultdict(Counter)
    for study, names in labelled:
        parts[" and ".join(sorted(names)) or OTHER].update(study.labels.values())
    if len(parts) > 1:
        by_split = [(name, *(own[k] for k in range(len(task.classes))), own.total()) for name, own in parts.items()]
        found.append(Counts("labels by split and class", ("split", *head[1:]), tuple(sorted(by_split))))
    for head_of in [head for grader in task.graders for head in grader.heads]:
        answers = head_of.classes or ("no", "yes")
        told = Counter(value for study in seen.studies for value in study.head_labels.get(head_of.name, {}).values())
        if told:
            found.append(
                Counts(f"finding: {head_of.name}", ("class", "sites"),
                       tuple((name, told[k]) for k, name in enumerate(answers)))
            )  # fmt: skip
    return found


def _covariate_tables(seen: Surveyed) -> list[Counts]:
    """Of every covariate that some study has: how many know it, and its values."""
    rows = []
    for covariate in seen.task.covariates:
        told = [values for study in seen.studies for values in [study.covariates.get(covariate.name, {})] if values]
        values = [value for one in told for value in one.values()]
        if not values:
            continue
        if covariate.kind == CATEGORY:
            text = ", ".join(f"{value} {count}" for value, count in counted(values)[:8])
        else:
            numbers = np.array([float(value) for value in values])
            text = f"{numbers.min():g} to {numbers.max():g}, median {np.median(numbers):g}"
        rows.append((covariate.name, len(told), len(seen.studies) - len(told), text))
    return [Counts("covariates", ("covariate", "studies", "unknown", "values"), tuple(rows))]


def _study_tables(seen: Surveyed, splits: Sequence[frozenset[str]]) -> list[Counts]:
    per_patient = Counter(study.patient for study in seen.studies)
    often = sorted(Counter(per_patient.values()).items())
    views = _views(seen)
    parts = Counter((look.split or OTHER, look.view or OTHER) for look in seen.looks)
    people: dict[str, set[str]] = defaultdict(set)
    for study, names in zip(seen.studies, splits, strict=True):
        for name in names or {OTHER}:
            people[name].add(study.patient)
    by_split = tuple(
        (split, len(people[split]), *(parts[split, view] for view in views))
        for split in sorted({split for split, _ in parts})
    )
    return [
        Counts("studies of one patient", ("studies", "patients"), tuple(often)),
        Counts("patients and series by split and view", ("split", "patients", *views), by_split),
    ]


def _views(seen: Surveyed) -> list[str]:
    """The views of the task that are there, in its order, then what shows none."""
    there = {look.view or OTHER for look in seen.looks}
    return [view.name for view in seen.task.views if view.name in there] + [OTHER] * (OTHER in there)


_VALUES: tuple[tuple[str, Callable[[Look], object]], ...] = (
    ("size, rows x columns", lambda look: look.size),
    ("pixel spacing, mm", lambda look: look.spacing_mm),
    ("distance of slices, mm", lambda look: look.slice_mm),
    ("orientation", lambda look: look.plane),
    ("codec", lambda look: look.facts.codec),
    ("depth of pixels", lambda look: look.facts.bits),
    ("modality", lambda look: look.facts.modality),
    ("maker", lambda look: look.facts.maker),
    ("field strength, T", lambda look: look.facts.tesla),
    ("slices in a series", lambda look: look.slices),
)


def _image_tables(seen: Surveyed) -> list[Counts]:
    """What the images are, by view; what no file says is left out."""
    there = [look for look in seen.looks if look.slices]
    views = _views(seen)
    found = []
    for name, of in _VALUES:
        often = counted([of(look) for look in there])
        if not any(value for value, _ in often):
            continue
        of_view = Counter((of(look), look.view or OTHER) for look in there)
        rows = [(value or "not stated", *(of_view[value, view] for view in views)) for value, _ in often[:_MOST_VALUES]]
        left = sum(count for _, count in often[_MOST_VALUES:])
        note = f"The {_MOST_VALUES} most frequent of {len(often)} values; {left} series have another one." * bool(left)
        found.append(Counts(name, (name, *views), tuple(rows), note))
    codes: Counter[str] = Counter()
    for look in seen.looks:
        codes.update(dict.fromkeys(look.codes, 1))
    for study in seen.studies:
        codes.update(dict.fromkeys(study.notes, 1))
    note = "How many series or studies each code concerns; docs/inference.md says what they mean."
    found.append(
        Counts("assumed or lost while reading", ("code", "series or studies"), counted(list(codes.elements())), note)
    )
    return found


def _lists(seen: Surveyed, splits: Sequence[frozenset[str]]) -> list[Counts]:
    """Everything that is counted as a fault, name by name."""
    root = seen.gathered.root
    torn, folds = patients_over(seen, splits)
    studies_of = Counter(study.patient for study in seen.studies)
    copies = []
    for number, group in enumerate(seen.copies, 1):
        kinds = kinds_of_copies(seen, group)
        words = ["mirrored"] * group.mirrored
        words += ["different patients" if kinds.patients else "one patient"]
        words += ["different splits"] * kinds.splits + ["different labels"] * kinds.labels
        for i in group.members:
            study = seen.studies[seen.looks[i].study]
            copies.append(
                (number, seen.name(seen.looks[i]), study.patient, labels_text(seen.task, study), ", ".join(words))
            )
    unread = [(below(path, root), code) for look in seen.looks for path, code in look.unreadable]
    return [
        Counts(UNREADABLE, ("file", "reason"), tuple(unread)),
        Counts("images that are there twice", ("group", "file", "patient", "labels", "kind"), tuple(copies)),
        Counts(SPLITS, ("patient", "splits", "studies"),
               tuple((name, " and ".join(sorted(of)), studies_of[name]) for name, of in torn.items())),
        Counts(FOLDS, ("patient", "folds", "studies"),
               tuple((name, " and ".join(sorted(of)), studies_of[name]) for name, of in folds.items())),
    ]  # fmt: skip


def labels_text(task: Task, study: Study) -> str:
    """The labels of a study in words; "-" where it has none."""
    return ", ".join(f"{target} {task.classes[k]}" for target, k in study.labels.items()) or "-"

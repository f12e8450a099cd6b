"""Pictures of what is doubtful in a folder of data: images that are there twice, and labels that are likely wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from osteograde.imaging.resample import crop_stack
from osteograde.learning import label_errors
from osteograde.learning.label_errors import LabelDoubts
from osteograde.pipeline.crops import site_boxes
from osteograde.pipeline.load import Loaded, load_study
from osteograde.report.data_census import Surveyed, kinds_of_copies, labels_text
from osteograde.report.data_survey import image_of
from osteograde.report.oof_tables import Evidence
from osteograde.tasks.census import Census, Counts, Fact
from osteograde.tasks.spec import Site, Study

DOUBTED = "labels that their nets take for another class"
UNBELIEVED = "labels to which their nets give less than one in a hundred"
WITHOUT_ANSWER = "labels without an out-of-fold answer"
LIKELIEST = "likeliest label errors"
UNBELIEVABLE = 0.01
LISTED = 100  # rows of the table of label errors
SHOWN_LABELS, SHOWN_GROUPS, SHOWN_MEMBERS = 24, 12, 4
HEIGHT = 180  # pixels of a picture
_PIXELS = 224  # side of a crop
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture with its caption. image: (H, W) bytes."""

    image: np.ndarray
    words: str


@dataclass(frozen=True, eq=False)
class Case:
    """Something doubtful with its pictures. probs: of the classes, None where nothing was predicted; label: the index
    of the given class."""

    title: str
    words: str
    shots: tuple[Shot, ...]
    probs: np.ndarray | None = None
    label: int = -1


@dataclass(frozen=True, eq=False)
class Doubted:
    """The labels of a folder beside out-of-fold answers. studies: index of the study, targets: its target, of each of n
    rows. probs: (n, K). missing: labels without an answer."""

    studies: tuple[int, ...]
    targets: tuple[str, ...]
    probs: np.ndarray
    doubts: LabelDoubts
    missing: int


def doubt_labels(seen: Surveyed, evidence: Evidence) -> Doubted:
    """The labels that the data have now against the out-of-fold answers of a weights folder."""
    answers: dict[tuple[str, str], np.ndarray] = {}
    if graded := evidence.graded:
        answers = dict(zip(zip(graded.studies, graded.targets, strict=True), graded.probs, strict=True))
    rows = [
        (i, target, label)
        for i, study in enumerate(seen.studies)
        for target, label in study.labels.items()
        if (study.id, target) in answers
    ]
    missing = sum(len(study.labels) for study in seen.studies) - len(rows)
    probs = np.array([answers[seen.studies[i].id, target] for i, target, _ in rows]).reshape(
        len(rows), len(seen.task.classes)
    )
    probs = probs / np.maximum(probs.sum(1, keepdims=True), 1e-9)  # a table has six digits
    condition = {target: site.condition for target, (_, site) in evidence.sites.items()}
    doubts = label_errors.doubts(
        probs, np.array([label for _, _, label in rows], int), [condition[target] for _, target, _ in rows]
    )
    return Doubted(tuple(i for i, _, _ in rows), tuple(target for _, target, _ in rows), probs, doubts, missing)


def census_of_labels(seen: Surveyed, found: Doubted) -> Census:
    """The labels that are likely wrong, as facts and tables."""
    classes, doubts = seen.task.classes, found.doubts
    n = len(found.studies)
    few = int((doubts.self_confidence < UNBELIEVABLE).sum())
    facts = (
        Fact(UNBELIEVED, few, n, note="look at them first", is_fault=True),
        Fact(DOUBTED, int(doubts.doubted.sum()), n, note="an upper bound: grades that are hard to tell count as well"),
        Fact(WITHOUT_ANSWER, found.missing, n + found.missing),
    )
    rows = []
    for rank, i in enumerate(doubts.order[:LISTED], 1):
        study, top = seen.studies[found.studies[i]], int(found.probs[i].argmax())
        rows.append((rank, study.id, found.targets[i], classes[doubts.labels[i]], f"{doubts.self_confidence[i]:.4f}",
                     classes[top], f"{found.probs[i, top]:.3f}"))  # fmt: skip
    joint = doubts.joint(len(classes))
    head = ("rank", "study", "site", "label", "its probability", "most probable", "with")
    note = "By the probability that nets which never saw the patient give to the label."
    tables = (
        Counts(LIKELIEST, head, tuple(rows), note),
        Counts("labels by what they are taken for", ("label", *classes),
               tuple((name, *map(int, joint[k])) for k, name in enumerate(classes)),
               "Confident learning: a row is taken for a class from the mean probability of that class's rows on."),
    )  # fmt: skip
    return Census(facts, tables if n else ())


def label_cases(seen: Surveyed, found: Doubted, evidence: Evidence, count: int = SHOWN_LABELS) -> list[Case]:
    """The least believable labels with the crops that are graded. Reads their images."""
    classes, doubts = seen.task.classes, found.doubts
    chosen = [int(i) for i in doubts.order[:count]]
    shots: dict[int, tuple[Shot, ...]] = {}
    for number in dict.fromkeys(found.studies[i] for i in chosen):
        rows = {found.targets[i]: i for i in chosen if found.studies[i] == number}
        pictures = _shots_of_sites(seen, evidence, load_study(seen.studies[number], seen.task), list(rows))
        shots |= {rows[target]: own for target, own in pictures.items()}
    cases = []
    for rank, i in enumerate(chosen, 1):
        study, top = seen.studies[found.studies[i]], int(found.probs[i].argmax())
        words = f"labelled {classes[doubts.labels[i]]}, looks like {classes[top]}; {_place(seen, study)}"
        title = f"{rank}. {study.id} {found.targets[i].replace('_', ' ')}"
        cases.append(Case(title, words, shots.get(i, ()), found.probs[i], int(doubts.labels[i])))
    return cases


def _place(seen: Surveyed, study: Study) -> str:
    look = next(look for look in seen.looks if seen.studies[look.study] is study)
    return seen.name(look)


def _shots_of_sites(
    seen: Surveyed, evidence: Evidence, loaded: Loaded, targets: Sequence[str]
) -> dict[str, tuple[Shot, ...]]:
    """A picture of every site that can be cut out around the points that stage 1 found, else the annotated ones."""
    points = evidence.located.points(loaded.study.id) if evidence.located else {}
    points = seen.task.fill_missing_landmarks({**loaded.marks, **points})
    found: dict[str, tuple[Shot, ...]] = {}
    for grader in seen.task.graders:
        sites: Mapping[str, Site] = {site.target: site for site in grader.sites}
        boxes = site_boxes(grader, loaded.volumes, points, _PIXELS)
        for target in targets:
            if target not in sites or target not in boxes:
                continue
            shots = []
            first = {crop.view: crop for crop in reversed(grader.crops)}
            for crop in first.values():
                if crop.name in boxes[target]:
                    volume, box = boxes[target][crop.name]
                    pixels = crop_stack(volume, box, _CPU)[box.shape[0] // 2].numpy()
                    mirror = ", mirrored" if sites[target].side == "left" else ""
                    shots.append(Shot(_bytes(pixels), f"{crop.name}{mirror}"))
            found[target] = tuple(shots)
    return found


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """(H, W) floats in 0..1 as bytes, HEIGHT tall."""
    return _tall((np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8))


def _tall(image: np.ndarray) -> np.ndarray:
    width = max(1, round(image.shape[1] * HEIGHT / image.shape[0]))
    return cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)


def copy_cases(seen: Surveyed, count: int = SHOWN_GROUPS) -> list[Case]:
    """Images that are there twice, side by side: those of different patients, splits or labels first."""
    ranked = []
    for number, group in enumerate(seen.copies):
        kinds = kinds_of_copies(seen, group)
        ranked.append((-(kinds.patients + kinds.splits + kinds.labels), number, group, kinds))
    cases = []
    for _, number, group, kinds in sorted(ranked, key=lambda one: one[:2])[:count]:
        shots = []
        for i in group.members[:SHOWN_MEMBERS]:
            look = seen.looks[i]
            study, image = seen.studies[look.study], image_of(seen.task, seen.series(look))
            words = f"{seen.name(look)}; patient {study.patient}; {labels_text(seen.task, study)}"
            shots += [Shot(_tall(image), words)] if image is not None else []
        differ = ["patients"] * kinds.patients + ["splits"] * kinds.splits + ["labels"] * kinds.labels
        words = f"different {', '.join(differ)}" if differ else "one patient"
        words += "; some are mirrored" * group.mirrored
        cases.append(Case(f"Group {number + 1}: {len(group.members)} images", words, tuple(shots)))
    return cases

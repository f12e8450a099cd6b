"""The worst cases of a report: the out-of-fold rows with the largest loss, with Grad-CAM maps of their crops.

A map is made by the nets of the fold that held the study out, on the crop around the points that the locators of that
fold found, so no net on the page saw the study in training.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import count, takewhile

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from osteograde.errors import UserError
from osteograde.learning.cross_fit import net_name
from osteograde.models import bundle
from osteograde.pipeline.crops import site_boxes
from osteograde.pipeline.load import Loaded, load_study
from osteograde.report import heatmaps
from osteograde.report.charts import number, probability_bars
from osteograde.report.heatmaps import Shown
from osteograde.report.oof_tables import Evidence, Graded
from osteograde.report.words import IMAGE, plain
from osteograde.tasks.spec import Pixels, Points, Study

log = logging.getLogger("osteograde.report")
NO_CROP = (
    "<p>No crop: the site was not found. The row holds the prior of its fold, or, in a debug run, the grade at the "
    "annotated point.</p>"
)
WORST = 24
HEIGHT = 200  # pixels of a picture
QUALITY = 82  # of the JPEGs
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Case:
    """One row of the out-of-fold table. predicted, truth: for each crop a picture of the evidence for the predicted and
    for the true class; empty where no crop could be cut."""

    row: int  # of the out-of-fold table
    loss: float
    predicted: Sequence[Shown]
    truth: Sequence[Shown]


def worst_rows(graded: Graded, studies: set[str], count: int = WORST) -> list[int]:
    """Rows of the given studies with the largest -log p of the true class, worst first; among equal ones the first."""
    loss = graded.loss()
    rows = [i for i in np.flatnonzero(graded.labelled).tolist() if graded.studies[i] in studies]
    return sorted(rows, key=lambda i: (-loss[i], i))[:count]


def worst(evidence: Evidence, studies: Sequence[Study], count: int = WORST) -> list[Case]:
    """The worst cases of the studies given, with pictures where a crop could be cut. Reads their images."""
    if evidence.graded is None or evidence.located is None:
        return []
    by_id, nets = {study.id: study for study in studies}, [_Nets(member) for member in evidence.members]
    rows = worst_rows(evidence.graded, set(by_id), count)
    loss = evidence.graded.loss()
    pictures: dict[int, tuple[Sequence[Shown], Sequence[Shown]]] = {}
    wanted = list(dict.fromkeys(evidence.graded.studies[i] for i in rows))
    log.info("worst cases: reading %d studies and making the maps of %d rows", len(wanted), len(rows))
    for study in tqdm(wanted, desc="worst cases", unit="study", disable=None):  # a bar on terminals alone
        loaded = load_study(by_id[study], evidence.task)
        rows_of_study = [i for i in rows if evidence.graded.studies[i] == study]
        pictures |= _pictures(evidence, evidence.graded, loaded, rows_of_study, nets)
    return [Case(i, float(loss[i]), *pictures.get(i, ((), ()))) for i in rows]


def _pictures(
    evidence: Evidence, graded: Graded, loaded: Loaded, rows: Sequence[int], nets: Sequence[_Nets]
) -> dict[int, tuple[Sequence[Shown], Sequence[Shown]]]:
    """{row: (evidence for the predicted class, for the true one)} of some rows of one study; of an ensemble a picture
    for each crop of each member."""
    located = evidence.located
    points = evidence.task.fill_missing_landmarks(located.points(loaded.study.id)) if located else {}
    pictures: dict[int, tuple[Sequence[Shown], Sequence[Shown]]] = {}
    for member, own in zip(evidence.members, nets, strict=True):
        name = f"{member.folder.resolve().name}: " if evidence.voters else ""
        for row, both in _pictures_of(member, graded, loaded, points, rows, own).items():
            predicted, truth = ([replace(one, name=name + one.name) for one in shown] for shown in both)
            before = pictures.get(row, ((), ()))
            pictures[row] = ([*before[0], *predicted], [*before[1], *truth])
    return pictures


def _pictures_of(
    member: Evidence, graded: Graded, loaded: Loaded, points: Points, rows: Sequence[int], nets: _Nets
) -> dict[int, tuple[Sequence[Shown], Sequence[Shown]]]:
    """The pictures that one member makes of the rows of one study. graded: the rows of the answer."""
    pictures: dict[int, tuple[Sequence[Shown], Sequence[Shown]]] = {}
    for grader in member.task.graders:
        row_of = {graded.targets[i]: i for i in rows if member.sites[graded.targets[i]][0] is grader}
        if not row_of:
            continue
        pixels: Pixels = member.manifest.pixels[grader.name]
        boxes = site_boxes(grader, loaded.volumes, points, pixels)
        boxes = {target: views for target, views in boxes.items() if target in row_of}
        fold_nets = nets.of(grader.name, int(graded.fold[rows[0]]))
        predicted, truth = (
            heatmaps.explained(
                grader,
                boxes,
                fold_nets,
                pixels,
                CPU,
                {target: int(classes[row_of[target]]) for target in boxes},
                study=loaded.study,
                height=HEIGHT,
            )
            for classes in (graded.probs.argmax(1), graded.label)
        )
        pictures |= {row_of[target]: (predicted[target], truth[target]) for target in boxes}
    return pictures


class _Nets:
    """Nets by grader and fold, each checked against its hash and loaded at first use."""

    def __init__(self, evidence: Evidence) -> None:
        self.folder = evidence.folder
        self.files = evidence.manifest.files
        self.loaded: dict[str, nn.Module] = {}

    def of(self, grader: str, fold: int) -> list[nn.Module]:
        """All nets of a grader in a fold: the first one, and further ensemble members where the recipe has them."""
        names = list(takewhile(self.files.__contains__, (net_name("grade", grader, fold, m) for m in count())))
        if not names:
            first = net_name("grade", grader, fold)
            raise UserError(f"{self.folder}: oof.csv speaks of fold {fold}, the manifest has no {first}; train again")
        return [self._loaded(name) for name in names]

    def _loaded(self, name: str) -> nn.Module:
        """The net of a file. UserError where the file is not the one that the manifest describes."""
        if name not in self.loaded:
            if bundle.sha256(self.folder / name) != self.files[name].sha256:
                raise UserError(f"{self.folder / name}: not the file that the manifest describes; fetch it again")
            self.loaded[name] = bundle.load_net(self.folder / name, self.files[name].net)
        return self.loaded[name]


def card(case: Case, rank: int, evidence: Evidence, graded: Graded) -> str:
    """A case as HTML: the prediction, the truth, the first crop with its map, and behind a click everything else: the
    other crops, the slices they are from, and the maps for the true class."""
    i, classes = case.row, [plain(name) for name in evidence.task.classes]
    top, true = int(graded.probs[i].argmax()), int(graded.label[i])
    head = (
        f"<h3>{rank}. {escape(plain(graded.targets[i]) or IMAGE)}</h3><p>Study <b>{escape(graded.studies[i])}</b>: "
        f"true <b>{escape(classes[true])}</b>, predicted {escape(classes[top])}; -log p {number(case.loss)}; "
        f"fold {graded.fold[i]}</p>"
        f"{probability_bars(classes, graded.probs[i], true)}"
    )
    views = [
        _figures(predicted, truth if true != top else None, classes[top], classes[true])
        for predicted, truth in zip(case.predicted, case.truth, strict=True)
    ]
    if not views:
        return f'<article class="case">{head}{NO_CROP}</article>'
    first, *others = views
    more = "".join(f'<div class="strip">{"".join(strip)}</div>' for strip in (first[2:], *others))
    return (
        f'<article class="case">{head}<div class="strip">{"".join(first[:2])}</div>'
        f"<details><summary>slice and further maps</summary>{more}</details></article>"
    )


def _figures(predicted: Shown, truth: Shown | None, predicted_class: str, true_class: str) -> list[str]:
    """The crop, the map for the predicted class on the crop and on its slice and, where the prediction is wrong, the
    map for the true class."""
    crop, seen = heatmaps.pair(predicted, HEIGHT)
    images = [(crop, f"crop, {predicted.slice_words}"), (seen, f"evidence for {predicted_class}")]
    images.append((predicted.film, f"evidence for {predicted_class} on the slice"))
    if truth is not None:
        images.append((heatmaps.pair(truth, HEIGHT)[1], f"evidence for {true_class}, {truth.slice_words}"))
    return [_image(image, words) for image, words in images]


def _image(image: np.ndarray, words: str) -> str:
    """A picture with its caption, as HTML."""
    height, width = image.shape[:2]
    return (
        "<figure>"
        f'<img loading="lazy" src="{data_uri(image)}" width="{width}" height="{height}" alt="{escape(words)}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def data_uri(image: np.ndarray) -> str:
    """A BGR or grey picture as a JPEG inside the page."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")

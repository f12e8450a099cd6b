"""Pseudo-labels: a teacher's answers at sites without a label, from which a student learns as from soft labels.

Lee, "Pseudo-Label", ICML workshop 2013; soft answers as in Hinton et al., 2015. The leak rule: teacher and student have
the same folds.csv, and the student of a fold learns from the answers of the teacher's nets of this fold alone, about
studies that this fold trains on. Neither of them has seen a study that the fold holds out, with a label or without.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice, takewhile
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.models import bundle
from osteograde.models.manifest import Manifest
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Grader, Points, Study, Task

FILE = "pseudo_labels.csv"
CHUNK = 8  # studies that go through the nets together

T = TypeVar("T")
Answers = Mapping[str, Mapping[str, np.ndarray]]  # study -> target -> (K,) probabilities of the classes

log = logging.getLogger("osteograde.learning")


def check(teacher: Path, task: Task, chosen: Sequence[int]) -> Manifest:
    """The manifest of a teacher. UserError where it is of another task, its folds.csv is not the one that its nets were
    trained by, or it lacks the nets of a fold that is to be trained."""
    manifest = bundle.verify(teacher)
    if manifest.task != task.name:
        raise UserError(f"--pseudo-labels {teacher}: of task {manifest.task!r}, this run is of {task.name!r}")
    if manifest.folds is None or folds.digest(teacher / folds.FILE) != manifest.folds.sha256:
        raise UserError(f"--pseudo-labels {teacher}: {folds.FILE} is not the one that its nets were trained by")
    for grader in task.graders:
        for k in chosen:
            _net_names(teacher, manifest, grader.name, k)
    return manifest


def _net_names(teacher: Path, manifest: Manifest, grader: str, k: int) -> list[str]:
    """The files of all members of a grader in a fold."""
    members = (f"grade/{grader}/{f'member{m}-' if m else ''}fold{k}.safetensors" for m in count())
    names = list(takewhile(manifest.files.__contains__, members))
    if not names:
        raise UserError(f"--pseudo-labels {teacher}: no net of grader {grader!r} of fold {k}; train this fold there")
    return names


def unlabelled(grader: Grader, study: Study) -> bool:
    """Whether a study has a site of the grader without a label."""
    return any(site.target not in study.labels for site in grader.sites)


def answers(
    teacher: Path,
    grader: Grader,
    k: int,
    studies: Iterable[tuple[Loaded, Points]],
    device: torch.device,
    views: int,
) -> dict[str, dict[str, np.ndarray]]:
    """What the teacher's nets of fold k say of every site without a label: study -> target -> probabilities (K,).

    grader: of the student's task. studies: those that fold k trains on, with the landmarks around which the student's
    crops are cut. views: test-time augmentations that are averaged.
    """
    manifest = bundle.read_manifest(teacher)
    own = {one.name: one for one in bundle.task_of(teacher, manifest, TASKS).graders}[grader.name]
    names = _net_names(teacher, manifest, grader.name, k)
    loaded_nets = [bundle.load_net(bundle.place(teacher, name), manifest.files[name].net) for name in names]
    nets = predict.Nets([bundle.on_device(net, device) for net in loaded_nets], manifest.pixels[grader.name], device)
    classes = len(manifest.prior[grader.sites[0].target])
    found: dict[str, dict[str, np.ndarray]] = {}
    for part in batched(studies, CHUNK):
        graded = predict.grade(own, [loaded for loaded, _ in part], [points for _, points in part], nets, views=views)
        for (loaded, _), said in zip(part, graded, strict=True):
            labels = loaded.study.labels
            found[loaded.study.id] = {target: said[target][:classes] for target in said if target not in labels}
    log.info("%s fold %d: %d pseudo-labels of %s", grader.name, k, sum(map(len, found.values())), teacher)
    return found


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items that follow each other; the last may be shorter.

    >>> list(batched("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def save(path: Path, task: Task, k: int, found: Answers) -> None:
    """Add the answers of the nets of fold k to a table: row_id, class probabilities, and the fold whose student learns
    from them."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(["row_id", *task.classes, "fold"])
        for study, targets in found.items():
            row_of = dict(zip(task.targets, task.rows(study), strict=True))
            for target, values in targets.items():
                writer.writerow([row_of[target], *(f"{value:.6f}" for value in values), k])

"""Which classes the label images of each fold show, and how well a net tells them apart while it is trained.

The Dice of an epoch is a pseudo-Dice, as nnU-Net calls it: over all pixels of the held-out windows together, at the
pixels of the net, and not per patient. It is nan for a class that no held-out window shows, which is no failure of the
net; a class that the *training* part of a fold lacks is one, and is refused before training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from osteograde.errors import UserError
from osteograde.learning.locator_data import LocatorData
from osteograde.learning.loop import Job
from osteograde.learning.recipe import LocatorPlan

log = logging.getLogger("osteograde.learning")


def class_census(data: LocatorData, classes: int) -> np.ndarray:
    """(K,): in how many of the labelled regions of the data each class occurs."""
    counts = np.zeros(classes, int)
    for item in data.items:
        if data.labels is not None and item.labelled:
            present = np.unique(data.labels[item.start : item.start + item.depth])
            counts[[int(label) for label in present if label < classes]] += 1
    return counts


def refuse_missing_classes(data: LocatorData, folds: Mapping[int, tuple[set[str], set[str]]], classes: int) -> None:
    """Check which classes the folds show before a net is trained. folds: fold -> its training and held-out studies.

    UserError where the training part of a fold shows a class nowhere that other studies show: its net could not know
    it. A warning where the held-out part lacks it: its Dice is not a number (nan) there. Data without any label image
    are not checked.
    """
    total = class_census(data, classes)
    if not total.any():
        return
    lost = [label for label in range(1, classes) if not total[label]]
    if lost:
        log.warning("%s: no label image shows class %s", data.locator.name, ", ".join(map(str, lost)))
    for k, (training, held_out) in folds.items():
        known, judged = class_census(data.of(training), classes), class_census(data.of(held_out), classes)
        missing = [label for label in range(1, classes) if total[label] and not known[label]]
        if missing:
            raise UserError(
                f"locator {data.locator.name!r}, fold {k}: its training studies show class {missing} in no label "
                f"image, {[int(total[label]) for label in missing]} regions of other studies do; the net could not "
                "learn it; give more labelled studies, or folds.csv with such studies in several folds"
            )
        unseen = [label for label in range(1, classes) if total[label] and not judged[label]]
        if unseen:
            log.warning(
                "%s fold %d: class %s is in no held-out label image; its Dice is nan there",
                data.locator.name, k, ", ".join(map(str, unseen)),
            )  # fmt: skip


def dice(overlap: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice per class from pixel counts; nan where the truth has no pixel of the class: it is absent from this fold.

    >>> dice(np.array([5, 0, 0]), np.array([10, 3, 0]), np.array([10, 4, 0])).tolist()
    [0.5, 0.0, nan]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, 2 * overlap / (found + true), np.nan)


@torch.no_grad()
def measured(data: LocatorData, plan: LocatorPlan, job: Job, net: Any, epoch: int) -> str:
    """Pseudo-Dice of each class behind the background over the data without augmentation, as a line of the log says it.

    epoch: finished epochs; they change nothing. Only windows of labelled regions count.
    """
    counts = np.zeros((3, net.classes), np.int64)
    labelled = [i for i, item in enumerate(data.items) if item.labelled]
    for start in range(0, len(labelled), plan.training.batch):
        batch = data.batch(
            labelled[start : start + plan.training.batch], job.rng(start, 0, 0, 0), job.device, augment=False
        )
        assert batch.masks is not None
        found = net.segment(batch.images).argmax(1).repeat_interleave(net.stride, 1).repeat_interleave(net.stride, 2)
        counts += class_counts(found, batch.masks, net.classes)
    values = dice(*counts)[1:]
    return "pseudo-Dice " + " ".join(f"{value:.3f}" for value in values)


def class_counts(found: torch.Tensor, true: torch.Tensor, classes: int) -> np.ndarray:
    """(3, K): pixels of each class in both, in what was found, and in the truth, where the truth is known (>= 0)."""
    known = true >= 0
    found, true = found[known], true[known]
    return np.stack(
        [torch.bincount(one, minlength=classes).cpu().numpy() for one in (true[found == true], found, true)]
    )

"""What nets of a fold say of the studies they learnt from, for another net of the same fold to learn.

A teacher has seen exactly the studies of its pupil, so what the fold holds out stays unseen by both.

Shapes: S sites of a batch, N stored sites, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from osteograde.learning.data.grade_data import GradeBatch, GradeData
from osteograde.learning.fit import Data
from osteograde.learning.recipe import Fit

STUDIES = 16  # asked about together


def taught(data: Data, teachers: Sequence[tuple[nn.Module, Fit]], device: torch.device) -> GradeData:
    """The same sites with the teachers' mean probabilities. TypeError for data of locators, which have no classes."""
    if not isinstance(data, GradeData):
        raise TypeError(f"teachers grade sites; got {type(data).__name__}")
    return data.taught_by(np.mean([answers(net, data.learnt_by(plan), device) for net, plan in teachers], 0))


@torch.inference_mode()
def answers(net: nn.Module, data: GradeData, device: torch.device) -> np.ndarray:
    """(N, K) probabilities of the sites of this part of the data, unmoved; where mirror images are graded alike, the
    mean of both. Rows of other studies are 0."""
    net = net.to(device).eval()
    rows, told = [], []
    for start in range(0, len(data), STUDIES):
        indices = range(start, min(start + STUDIES, len(data)))
        rows += [data.rows_of[data.studies[i]] for i in indices]
        told.append(_probabilities(net, data.batch(indices, np.random.default_rng(0), device, augment=False), data))
    said = np.zeros((len(data.labels), told[0].shape[1]))
    said[np.concatenate(rows)] = np.concatenate(told)
    return said


def _probabilities(net: nn.Module, batch: GradeBatch, data: GradeData) -> np.ndarray:
    """(S, K)"""
    looks = [list(batch.crops)]
    if data.group.mirrors:
        every = np.ones(len(batch.labels), bool)
        looks.append([data.mirrored(v, crops, every) for v, crops in enumerate(batch.crops)])
    logits = [net(crops, batch.present).float() for crops in looks]
    classes = logits[0].shape[1] - len(data.group.findings)
    return torch.stack([torch.softmax(one[:, :classes], 1) for one in logits]).mean(0).cpu().numpy()

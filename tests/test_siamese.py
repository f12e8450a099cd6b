"""The Siamese grader: the published size, one encoder for both crops, and crops that lie beside the joint mirrored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from osteograde.errors import UserError
from osteograde.imaging.geometry import Volume, apply, to_index
from osteograde.learning import loop, recipes
from osteograde.learning.cross_fit import nets_of
from osteograde.models.bundle import build_net
from osteograde.models.explain import fold_maps
from osteograde.models.siamese import SMALLEST, SiameseNet
from osteograde.pipeline.ttas import ttas
from osteograde.tasks.knee_xray import TASK
from osteograde.tasks.regions import box_around
from osteograde.tasks.spec import Crop

BOTH = torch.ones(3, 2, dtype=torch.bool)


def net_of(width: int = 8, **options) -> SiameseNet:
    torch.manual_seed(0)
    return SiameseNet(width=width, **options).eval()


def images(pixels: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.rand(3, 1, pixels, pixels, generator=torch.Generator().manual_seed(seed))


def test_it_has_the_published_number_of_parameters_and_map_size():
    net = build_net({"kind": "siamese"})
    assert sum(parameter.numel() for parameter in net.parameters()) == 595_077
    maps = []
    layers = list(net.encoder)
    layers[-3].register_forward_hook(lambda module, inputs, output: maps.append(tuple(output.shape[1:])))
    net.eval()([images(128), images(128, 2)], BOTH)
    assert maps == [(256, 10, 10)] * 2  # of patches of 128 pixels, as published


def test_both_crops_pass_through_the_same_filters():
    net, image = net_of(), images()
    with torch.no_grad():
        net.head.weight[:, net.features :] = net.head.weight[:, : net.features]
        other = images(seed=2)
        assert torch.allclose(net([image, other], BOTH), net([other, image], BOTH), atol=1e-6)


def test_the_encoder_learns_from_both_crops_in_one_step():
    net = net_of().train()
    first = next(iter(net.encoder.parameters()))
    only = {}
    for c in range(2):
        crops = [images(seed=5) if c == k else torch.zeros(3, 1, 64, 64) for k in range(2)]
        present = torch.tensor([[k == c for k in range(2)]] * 3)
        only[c] = torch.autograd.grad(net(crops, present).sum(), first)[0]
        assert only[c].abs().max() > 0
    assert not torch.allclose(only[0], only[1])


def test_an_absent_crop_has_no_influence():
    net, present = net_of(), torch.tensor([[True, False], [False, True], [False, False]])
    one, two = [images(), images(seed=2)], [images(), images(seed=2)]
    one[1][0], one[0][1], one[0][2], one[1][2] = 0.3, 0.9, 0.1, 0.7
    assert torch.equal(net(one, present), net(two, present))
    assert torch.isfinite(net(one, present)).all()


def test_attention_maps_have_the_size_of_their_crops():
    net = net_of()
    maps = fold_maps([net], [images(), images(seed=2)], BOTH, torch.tensor([0, 3, 4]))
    assert [tuple(one.shape) for one in maps] == [(3, 1, 64, 64)] * 2
    assert max(float(one.max()) for one in maps) == 1


@pytest.mark.parametrize("options", [{"crops": 1}, {"crops": 3}, {"normalise": "no"}])
def test_what_it_cannot_be_is_refused_in_one_line(options):
    with pytest.raises(UserError):
        SiameseNet(**options)


def test_a_crop_that_is_too_small_is_refused_with_the_smallest_size():
    net = net_of()
    net([images(SMALLEST)] * 2, BOTH)
    with pytest.raises(ValueError, match=f"{SMALLEST} and more"):
        net([images(SMALLEST - 1)] * 2, BOTH)


LATERAL = Crop("lateral", "film", 1, 51.2, offset_mm=(5.6, -34.4))
MEDIAL = replace(LATERAL, name="medial", offset_mm=(5.6, 34.4), mirrored=True)


def film(step_mm: float = 0.5) -> Volume:
    """A film of 200 mm whose pixels say which row and column they are; patient x grows to the right of the image."""
    n = round(200 / step_mm)
    to_mm = np.eye(4)
    to_mm[:3, :3] = np.array([[0, 0, step_mm], [1, 0, 0], [0, -step_mm, 0]])
    voxels = np.random.default_rng(0).integers(0, 255, (1, n, n)).astype(np.uint8)
    return Volume(voxels, to_mm, series="s")


@pytest.mark.parametrize("side, lateral_x", [("right", -34.4), ("left", 34.4)])
def test_the_lateral_crop_lies_at_the_outer_side_of_both_knees(side, lateral_x):
    volume = film()
    joint = apply(volume.to_mm, np.array([0, 200, 200]))
    for crop, x in ((LATERAL, lateral_x), (MEDIAL, -lateral_x)):
        found = box_around(crop, [volume], joint, side, 128, np.inf)
        assert found is not None
        box = found[1]
        assert box.centre_mm - joint == pytest.approx([x, 0, -5.6], abs=1e-9)  # below the joint
        assert box.spacing_mm[1:] == pytest.approx([0.4, 0.4])
        inner, outer = apply(box.to_mm, np.array([[0, 64, 127], [0, 64, 0]]))  # column 0 is the outer edge of the knee
        assert abs(outer[0] - joint[0]) > abs(inner[0] - joint[0])


def test_a_crop_without_offset_is_the_box_that_it_always_was():
    volume = film()
    joint = apply(volume.to_mm, np.array([0, 200, 200]))
    for side in ("right", "left", ""):
        plain = box_around(Crop("joint", "film", 1, 140.0), [volume], joint, side, 96, np.inf)
        still = box_around(Crop("joint", "film", 1, 140.0, offset_mm=(0.0, 0.0)), [volume], joint, side, 96, np.inf)
        assert plain is not None and still is not None
        assert np.array_equal(plain[1].to_mm, still[1].to_mm)
        middle = to_index(volume, plain[1].centre_mm)[1:]
        assert middle == pytest.approx([200, 200])


def test_the_shipped_grader_reads_the_joint_alone_and_the_parts_lie_beside_it():
    (grader,) = TASK.graders
    assert [crop.name for crop in grader.crops] == ["joint", "lateral", "medial"]
    assert recipes.RECIPES["knee-xray"]().graders["kl"][0].crops == ("joint",)
    lateral, medial = grader.crops[1:]
    # 128 of 300 pixels of 0.4 mm, at either edge, from the row at a third of the height on (Tiulpin et al. 2018)
    assert lateral.field_mm == medial.field_mm == pytest.approx(128 * 0.4)
    assert lateral.offset_mm == pytest.approx(((100 + 64 - 150) * 0.4, (64 - 150) * 0.4))
    assert medial.offset_mm == pytest.approx((lateral.offset_mm[0], -lateral.offset_mm[1]))
    assert medial.mirrored and not lateral.mirrored


def test_parts_beside_a_joint_are_never_mirrored_but_the_whole_joint_is():
    (grader,) = TASK.graders
    assert grader.reading(("joint",)).mirror_images and len(ttas(grader.reading(("joint",)), 6)) == 6
    parts = grader.reading(("lateral", "medial"))
    assert not parts.mirror_images and not any(mirror for _, _, mirror in ttas(parts, 6))


def test_the_recipe_is_the_published_one_with_three_nets_that_differ_by_their_seed():
    recipe = recipes.RECIPES["knee-siamese"]()
    plans = recipe.graders["kl"]
    assert len(plans) == 3 and len({net.repeat for net in nets_of("grade", "kl", plans)}) == 3
    plan = plans[0]
    assert sum(parameter.numel() for parameter in build_net(dict(plan.net)).parameters()) == 595_077
    assert (plan.crops, plan.pixels, plan.sampling) == (("lateral", "medial"), 128, "balanced")
    training = plan.training
    assert (training.optimiser, training.batch, training.weight_decay) == ("adam", 64, 1e-4)
    assert training.epochs * training.steps * training.batch == 100 * 32_000
    assert {loop.rate(plan, step, training.steps) for step in (0, 25_000, 49_999)} == {1e-2}
    assert not plan.augmentation.mirror and recipe.tta == 1
    small = recipes.RECIPES["knee-siamese-small"]().graders["kl"]
    assert len(small) == 1 and small[0].net == plan.net and small[0].crops == plan.crops

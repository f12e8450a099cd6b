"""Maps of gradients: the right pixels, the class that was asked for, and nothing left behind."""

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.models.explain import METHODS, fold_maps
from osteograde.models.grader import GraderNet
from osteograde.models.saliency import raw_saliency, raw_smoothgrad


class Corner(nn.Module):
    """An encoder that reads the upper right quarter of an image: (M, 1, H, W) -> (M, 2), twice its sum and its sum."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        quarter = images[..., : images.shape[-2] // 2, images.shape[-1] // 2 :].sum((1, 2, 3))
        return torch.stack([2 * quarter, quarter], 1)


def corner_net(crops: int = 1) -> GraderNet:
    net = GraderNet("test_resnet", crops, classes=2, pool="mean", width=0, normalise="fixed").eval()
    net.encoder, net.head, net.width = Corner(), nn.Linear(2, 2, bias=False), 2
    net.head.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    return net


YES = torch.ones(2, 1, dtype=torch.bool)


@pytest.mark.parametrize("method", [raw_saliency, raw_smoothgrad])
def test_only_the_pixels_that_the_net_reads_count(method):
    image = torch.rand(2, 1, 8, 8)
    (first,) = method(corner_net(), [image], YES, torch.tensor([0, 1]))
    expected = torch.zeros(2, 1, 8, 8)
    expected[..., :4, 4:] = 1 / 0.25  # what one unit of grey is worth after "fixed"
    expected[0] *= 2
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("method", ["saliency", "smoothgrad"])
def test_sites_do_not_depend_on_each_other_and_absent_crops_have_no_map(method):
    torch.manual_seed(0)
    net = GraderNet("test_resnet", 2, classes=3).eval()
    views, target = [torch.rand(2, 2, 64, 64), torch.rand(2, 1, 64, 64)], torch.tensor([1, 2])
    present = torch.tensor([[True, False], [True, True]])
    both = METHODS[method](net, views, present, target)
    assert [tuple(one.shape) for one in both] == [tuple(view.shape) for view in views]
    assert float(both[1][0].abs().max()) == 0 < float(both[1][1].abs().max())
    if method != "smoothgrad":  # its noise depends on the place in the batch
        alone = METHODS[method](net, [view[:1] for view in views], present[:1], target[:1])
        torch.testing.assert_close(alone[0], both[0][:1], rtol=1e-3, atol=1e-5 * float(both[0].max()))


def test_smoothgrad_is_the_mean_over_noisy_copies_and_the_same_every_time():
    torch.manual_seed(0)
    net, image, target = GraderNet("test_resnet", 1, classes=3).eval(), torch.rand(2, 1, 64, 64), torch.tensor([0, 1])
    torch.manual_seed(1)
    first = raw_smoothgrad(net, [image], YES, target)[0]
    torch.manual_seed(2)
    assert torch.equal(first, raw_smoothgrad(net, [image], YES, target)[0])
    assert not torch.allclose(first, raw_saliency(net, [image], YES, target)[0], rtol=0.05)
    flat = torch.full((2, 1, 64, 64), 0.3)  # no range, so no noise
    torch.testing.assert_close(
        raw_smoothgrad(net, [flat], YES, target)[0], raw_saliency(net, [flat], YES, target)[0], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("method", ["saliency", "smoothgrad"])
def test_it_leaves_nothing_behind(method):
    net = corner_net()
    view = torch.rand(2, 1, 8, 8)
    with torch.inference_mode():  # where the pipeline calls it from
        (found,) = fold_maps([net, net], [view.clone()], YES, torch.tensor([0, 1]), method)
        assert not torch.is_grad_enabled()
    assert float(found.max()) == 1 and not found.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    nothing = fold_maps([net], [view], torch.zeros(2, 1, dtype=torch.bool), torch.tensor([0, 1]), method)
    assert float(nothing[0].abs().max()) == 0
    with pytest.raises(ValueError, match="training mode"):
        fold_maps([net.train()], [view], YES, torch.tensor([0, 1]), method)


def test_transformers_have_saliency_maps_too():
    torch.manual_seed(0)
    net = GraderNet("test_vit", 1, classes=2, pixels=64).eval()
    found = fold_maps([net], [torch.rand(2, 1, 64, 64)], YES, torch.tensor([0, 1]), "saliency")[0].numpy()
    assert np.isfinite(found).all() and found.std() > 0

"""MedViT: as large as what its authors released, a trunk of graders, and Grad-CAM maps that point at what was read."""

import pytest
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.models.backbones import classifier_body
from osteograde.models.explain import fold_maps
from osteograde.models.grader import GraderNet
from osteograde.models.medvit import SIZES, MedVit

# Of the released small, base and large nets without their last layer, added up by hand from the released layers.
PARAMETERS = {"medvit_small": 31_136_440, "medvit_base": 44_405_972, "medvit_large": 57_675_504}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_it_has_the_parameters_of_the_released_nets(name):
    with torch.device("meta"):
        net = MedVit(name)
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]


def test_tiny_is_smaller_than_what_was_released():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in MedVit("medvit_tiny").parameters()) < 20e6
    assert set(SIZES) == {*PARAMETERS, "medvit_tiny"}


@pytest.mark.parametrize("shape", [(32, 32), (64, 96)])
def test_the_trunk_of_a_grader_reads_small_and_oblong_images(shape):
    torch.manual_seed(0)
    net = GraderNet("medvit_tiny", 1, classes=3).eval()
    images, yes = torch.rand(2, 1, *shape), torch.ones(2, 1, dtype=torch.bool)
    with torch.no_grad():
        answers = net([images], yes)
        alone = net([images[1:]], yes[1:])
    assert answers.shape == (2, 3) and torch.isfinite(answers).all()
    torch.testing.assert_close(answers[1:], alone, rtol=1e-4, atol=1e-5)


def test_starting_weights_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="no ImageNet weights"):
        classifier_body("medvit_tiny", 1, pretrained=True)
    with pytest.raises(UserError, match="no stages=3"):
        classifier_body("medvit_tiny", 1, stages=3)


def test_the_grad_cam_map_of_a_net_that_reads_one_corner_points_there():
    class UpperRight(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            seen = torch.zeros_like(maps)
            seen[..., :2, 2:] = 1
            return maps * seen

    torch.manual_seed(0)
    net = GraderNet("medvit_tiny", 1, classes=2).eval()
    net.encoder.norm = nn.Sequential(net.encoder.norm, UpperRight())
    images, yes = torch.rand(2, 1, 128, 128), torch.ones(2, 1, dtype=torch.bool)
    cams = [fold_maps([net], [images], yes, torch.tensor([k, k]))[0][:, 0] for k in (0, 1)]
    assert max(float(cam.amax()) for cam in cams) == 1
    for cam in cams:
        assert float(cam.sum()) == pytest.approx(float(cam[:, :80, 48:].sum()))

"""Starting weights: what a trunk computes is what the file says, whatever it is called and however it reads images."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from osteograde import cli
from osteograde.errors import UserError
from osteograde.learning import pretrained
from osteograde.learning.recipe import Plan, Start, Training
from osteograde.models.bundle import build_net


@pytest.fixture
def rgb():
    """A small colour net with lively batch norms, in evaluation mode."""
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2(width_mult=0.35).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return net


def test_a_grader_reads_a_whitened_grey_crop_as_the_file_reads_a_grey_picture(rgb):
    net = build_net({"kind": "grader", "backbone": "mobilenetv2_035", "views": 1}).eval()
    pretrained.fill_trunk(net.encoder, rgb.state_dict())
    image = torch.randn(2, 1, 64, 64)
    expected = rgb.features((image * pretrained.INPUT_SCALE).repeat(1, 3, 1, 1)).mean((2, 3))
    torch.testing.assert_close(net.encoder(image), expected, rtol=1e-4, atol=1e-4)


def test_a_locator_reads_slices_from_0_to_1_as_the_file_reads_them_from_minus_1_to_1(rgb):
    net = build_net({"kind": "heatmap", "encoder_name": "mobilenetv2_035", "channels": 2, "stages": 5}).eval()
    pretrained.fill_trunk(net.encoder, rgb.state_dict())
    image = torch.rand(1, 1, 64, 64)
    stack = torch.cat([image.repeat(1, 3, 1, 1), torch.randn(1, 1, 64, 64)], 1)
    found = net.encoder(stack)[0]
    expected = rgb.features[:2](image.repeat(1, 3, 1, 1) * 2 - 1)
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-3, atol=1e-3)


def test_weights_of_another_width_are_refused(rgb):
    net = build_net({"kind": "grader", "backbone": "mobilenetv2_100", "views": 1})
    with pytest.raises(ValueError, match="do not fit the trunk"):
        pretrained.fill_trunk(net.encoder, rgb.state_dict())


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path))
    plan = Plan(
        net={"kind": "grader", "backbone": "mobilenetv2_035", "views": 1},
        pixels=32,
        training=Training(epochs=1, batch=1, lr=1.0),
        start=Start(weights="none.npz"),
    )
    with pytest.raises(ValueError, match=r"none.npz: no such starting weights; set OSTEOGRADE_PRETRAINED"):
        pretrained.net_of(plan, None, None, None)


def test_folded_batch_norms_are_told_from_real_ones(rgb):
    state = {key: value.clone() for key, value in rgb.state_dict().items()}
    assert not pretrained.is_folded(state)
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.zero_()
        if key.endswith("running_var"):
            value.fill_(1.0)
    assert pretrained.is_folded(state)


def test_starting_weights_are_read_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path))
    np.savez(tmp_path / "a.npz", one=np.arange(3.0, dtype=np.float32))
    assert pretrained.read_tensors("a.npz")["one"].tolist() == [0.0, 1.0, 2.0]


def test_missing_starting_weights_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path / "nowhere"))
    (tmp_path / "data").mkdir()
    words = ["train", "knee-xray", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "w")]
    with pytest.raises(UserError, match=r"no such starting weights; set OSTEOGRADE_PRETRAINED"):
        cli.main(words)
    assert not (tmp_path / "w").exists()

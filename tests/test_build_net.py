"""Nets come back from plain data and their weights, without a connection; locators keep to one protocol."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.models.backbones import adapt_first_conv, classifier_body, encoder, pyramid_shape
from osteograde.models.bundle import KINDS, build_net
from osteograde.models.locators.base import LocatorBatch
from osteograde.models.locators.faster_rcnn import FasterRcnnLocator
from osteograde.models.locators.heatmap import HeatmapLocator
from tests.locator_maps import decode

CONFIGS: list[dict[str, Any]] = [
    {"kind": "heatmap", "encoder_name": "lcnet_035", "channels": 2, "width": 16, "stride": 4},
    {"kind": "heatmap", "encoder_name": "mobilenetv3_small_050", "channels": 2, "width": 16, "stride": 2, "stages": 4},
    {"kind": "heatmap", "encoder_name": "convnext_atto", "channels": 2, "width": 16, "stride": 2, "stages": 2},
    {"kind": "faster_rcnn", "variant": "mobilenet", "channels": 2, "box_px": [32, 24]},
    {"kind": "unet", "encoder_name": "lcnet_035", "channels": 2, "width": 8, "stride": 2, "stages": 4},
    {"kind": "planned_unet", "channels": 2, "features": 4, "stages": 3, "patch": [32, 48]},
    {"kind": "grader", "backbone": "lcnet_035", "crops": 2, "stages": 5},
    {"kind": "grader", "backbone": "torchvision/mobilenet_v3_small", "crops": 1, "neighbours": True},
    {"kind": "siamese", "width": 8},
]
GRADERS = ("grader", "siamese")
LOCATORS = [config for config in CONFIGS if config["kind"] not in GRADERS]


def name(config: dict[str, Any]) -> str:
    return f"{config['kind']}-{config.get('encoder_name') or config.get('backbone') or config.get('variant', '')}"


@pytest.fixture(autouse=True)
def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a net that is built from its config must not open a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def answer(net: nn.Module, config: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.inference_mode():
        if config["kind"] not in GRADERS:
            return net.maps(torch.rand(2, 4, 64, 64))  # type: ignore[operator]
        views = config.get("crops", 2)
        return net([torch.rand(2, 3, 64, 64) for _ in range(views)], torch.ones(2, views, dtype=torch.bool))


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_a_net_comes_back_from_json_and_its_weights(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    first = build_net(config).eval()
    again = build_net(json.loads(json.dumps(first.config))).eval()
    again.load_state_dict(first.state_dict(), strict=True)
    assert again.config == first.config
    assert first.config.items() >= config.items()
    assert torch.equal(answer(first, config), answer(again, config))


def test_arguments_are_read_by_the_names_that_shipped_manifests_give_them() -> None:
    plain = {"kind": "grader", "backbone": "lcnet_035", "classes": 5, "stages": 5}
    earlier = build_net({**plain, "views": 2, "findings": 3})
    now = build_net({**plain, "crops": 2, "head_outputs": 3})
    assert earlier.config == now.config and "views" not in now.config  # type: ignore[operator]
    assert {k: v.shape for k, v in earlier.state_dict().items()} == {k: v.shape for k, v in now.state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_weights_survive_storage_as_float16(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = build_net(config).eval()
    before = answer(net, config)
    stored = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    assert all(value.isfinite().all() for value in stored.values() if value.is_floating_point())
    net.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in stored.items()})
    assert torch.allclose(before, answer(net, config), atol=0.05)


def teach(points: list[list[float]], pixels: int = 64) -> LocatorBatch:
    stack = torch.tensor([0, 0, 0])
    return LocatorBatch(
        images=torch.rand(3, 4, pixels, pixels, generator=torch.Generator().manual_seed(0)),
        stack=stack,
        points=torch.tensor([points]),
        channel=torch.tensor([0, 1]),
        side=torch.tensor([0, 0]),
        lateral=torch.zeros(3, pixels),
        pixel_mm=2.0,
        slice_mm=4.0,
        sigma_mm=6.0,
    )


@pytest.mark.parametrize("config", LOCATORS, ids=name)
def test_every_locator_keeps_the_protocol(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net: Any = build_net(config)
    batch = teach([[1.0, 30.0, 20.0], [0.6, 40.0, 44.0]])
    loss = net.train().loss(batch)
    loss.backward()
    assert loss.ndim == 0
    assert loss.item() > 0
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    with torch.inference_mode():
        maps = net.eval().maps(batch.images)
        assert net.loss(batch).item() > 0
    assert tuple(maps.shape) == (3, net.channels, 64 // net.stride, 64 // net.stride)
    assert maps.isfinite().all()
    assert not net.training


@pytest.mark.parametrize("config", LOCATORS, ids=name)
def test_a_locator_learns_from_a_batch_without_labels(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    loss = build_net(config).train().loss(teach([[float("nan")] * 3] * 2))  # type: ignore[operator]
    loss.backward()
    assert loss.isfinite()


def test_detections_render_to_maps_that_decode_to_their_centres() -> None:
    net = FasterRcnnLocator("mobilenet", 2, (24, 24))
    boxes = torch.tensor([[8.0, 18.0, 32.0, 42.0], [30.0, 30.0, 54.0, 54.0], [33.0, 30.0, 57.0, 54.0]])
    found = [
        {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.long), "scores": torch.tensor([])},
        {"boxes": boxes, "labels": torch.tensor([1, 2, 2]), "scores": torch.tensor([0.9, 0.3, 0.8])},
        {"boxes": boxes[:1], "labels": torch.tensor([1]), "scores": torch.tensor([0.2])},
    ]
    logits = torch.stack([net._rendered(f, torch.Size((64, 64))) for f in found])
    batch = teach([[1, 29.5, 19.5], [1, 41.5, 44.5]])
    index, confidence = decode(
        logits, batch.stack, batch.channel, batch.side, batch.lateral, pixel_mm=1.0, slice_mm=20.0
    )
    assert (index[0, 0, 1:] - batch.points[0, 0, 1:]).abs().max() < 0.3
    assert (index[0, 1, 1:] - batch.points[0, 1, 1:]).abs().max() < 1.5  # the weaker box beside it pulls a little
    assert index[0, :, 0].round().tolist() == [1, 1]
    assert confidence.min() > 0.5


def test_boxes_lie_around_the_points_of_their_slices() -> None:
    net = FasterRcnnLocator("mobilenet", 2, (20, 12))
    boxes = net._boxes(teach([[1.0, 30.0, 20.0], [0.6, 40.0, 60.0]]))
    assert [b["labels"].tolist() for b in boxes] == [[2], [1, 2], []]
    assert boxes[1]["boxes"].tolist() == [[14.5, 20.5, 26.5, 40.5], [54.5, 30.5, 64.0, 50.5]]


def test_boxes_in_mm_have_the_size_of_their_channel_whatever_the_pixels() -> None:
    config = {"kind": "faster_rcnn", "variant": "mobilenet", "channels": 2, "box_mm": [[10, 20], [16, 20]]}
    net: Any = build_net({**config, "field_mm": 128.0})
    assert build_net(net.config).config == net.config
    batch = teach([[1.0, 30.0, 20.0], [1.0, 40.0, 30.0]])  # 64 pixels: 2 mm each
    labels, boxes = (net._boxes(batch)[1][key].tolist() for key in ("labels", "boxes"))
    assert labels == [1, 2]
    assert boxes == [[20.5 - 5, 30.5 - 2.5, 20.5 + 5, 30.5 + 2.5], [30.5 - 5, 40.5 - 4, 30.5 + 5, 40.5 + 4]]
    found = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor([0.9, 0.8])}
    low, high = net._rendered(found, torch.Size((64, 64))).exp()
    assert (low > 0.1).sum() < (high > 0.1).sum()  # a blob is as wide as its channel's box allows
    for wrong in ({"field_mm": 0.0}, {"field_mm": 128.0, "channels": 3}):
        with pytest.raises(UserError, match="boxes in mm"):
            build_net(config | wrong)


def test_images_that_the_map_does_not_divide_are_refused() -> None:
    net = HeatmapLocator("lcnet_035", 2, stride=4)
    with pytest.raises(ValueError, match="multiples of 4"):
        net.maps(torch.rand(1, 4, 30, 64))


@pytest.mark.parametrize("stride", [2, 4])
def test_maps_have_the_stride_asked_for_whatever_the_encoder(stride: int) -> None:
    for encoder_name in ("lcnet_035", "convnext_atto"):
        net = HeatmapLocator(encoder_name, 3, stride=stride, stages=2).eval()
        with torch.inference_mode():
            assert tuple(net.maps(torch.rand(1, 4, 96, 64)).shape) == (1, 3, 96 // stride, 64 // stride)


def test_the_first_features_of_a_torchvision_net_are_those_of_the_whole_net() -> None:
    whole, _ = classifier_body("torchvision/mobilenet_v2", 1)
    part, features = classifier_body("torchvision/mobilenet_v2", 1, stages=14)
    tensors = whole.state_dict()
    own = part.state_dict()
    assert features == 96 and own.keys() < tensors.keys()
    part.load_state_dict({key: tensors[key] for key in own})
    images = torch.rand(2, 1, 64, 96)
    with torch.no_grad():
        expected = whole.eval().features[:14](images).mean((-2, -1))  # type: ignore[index, operator]
        torch.testing.assert_close(part.eval()(images), expected)


@pytest.mark.parametrize(("name", "stages"), [("mobilenet_v2", 19), ("resnet18", 2)])
def test_features_that_a_torchvision_net_does_not_have_are_refused(name: str, stages: int) -> None:
    with pytest.raises(UserError, match=f"stages={stages}, but it has"):
        classifier_body(f"torchvision/{name}", 1, stages=stages)


def test_fewer_stages_build_fewer_weights() -> None:
    for encoder_name in ("lcnet_050", "mobilenetv3_small_050", "resnet10t"):
        sizes = [sum(p.numel() for p in encoder(encoder_name, 1, stages=s).parameters()) for s in (3, 4, 5)]
        assert sizes[0] < sizes[1] / 1.5 < sizes[2] / 2.25
        channels, reduction = pyramid_shape(encoder(encoder_name, 1, stages=3))
        assert len(channels) == 3
        assert reduction == [2, 4, 8]


def test_the_feature_count_is_what_the_body_returns() -> None:
    for backbone, stages in (("mobilenetv3_small_050", 0), ("lcnet_035", 4), ("torchvision/resnet18", 0)):
        body, features = classifier_body(backbone, 1, stages=stages)
        with torch.inference_mode():
            assert tuple(body.eval()(torch.rand(2, 1, 64, 64)).shape) == (2, features)


def test_one_channel_answers_as_a_grey_image_repeated() -> None:
    torch.manual_seed(0)
    three = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU())
    images = torch.rand(2, 1, 8, 8)
    expected = three(images.expand(-1, 3, -1, -1))
    for channels in (1, 6):
        net = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU())
        net.load_state_dict(three.state_dict())
        adapt_first_conv(net, channels)
        assert torch.allclose(net(images.expand(-1, channels, -1, -1)), expected, atol=1e-5)


@pytest.mark.parametrize("wrong", ["lcnet_05", "torchvision/swin_v2", "hf-hub:someone/net", ""])
def test_unknown_backbones_are_named_with_close_ones(wrong: str) -> None:
    with pytest.raises(ValueError, match="close: "):
        classifier_body(wrong, 1)


def test_close_names_help() -> None:
    with pytest.raises(ValueError, match="lcnet_050"):
        encoder("lcnet_50", 4)


def test_configs_that_fit_no_net_are_refused() -> None:
    kinds = r"\['faster_rcnn', 'grader', 'heatmap', 'planned_unet', 'siamese', 'unet'\]"
    with pytest.raises(ValueError, match=f"expected one of {kinds}"):
        build_net({"kind": "transformer"})
    with pytest.raises(ValueError, match="no argument \\['depth'\\]"):
        build_net({"kind": "heatmap", "encoder_name": "lcnet_035", "channels": 1, "depth": 3})
    with pytest.raises(ValueError, match="variant"):
        build_net({"kind": "faster_rcnn", "variant": "yolo", "channels": 1})
    with pytest.raises(ValueError, match="stride"):
        build_net({"kind": "heatmap", "encoder_name": "lcnet_035", "channels": 1, "stride": 3})
    assert set(KINDS) == {"heatmap", "faster_rcnn", "grader", "planned_unet", "siamese", "unet"}


@pytest.mark.slow
def test_the_large_detector_comes_back_too() -> None:
    config = {"kind": "faster_rcnn", "variant": "resnet50_v2", "channels": 2}
    first, again = build_net(config).eval(), build_net(config).eval()
    again.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(answer(first, config), answer(again, config))

"""Batch norms folded into convolutions: the same answers, by fewer steps."""

import copy
from pathlib import Path

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from osteograde.models import bundle, packing
from osteograde.models.backbones import encoder
from osteograde.models.folding import fold_batch_norms, pack_convolutions
from osteograde.models.packing import PackedConv2d
from osteograde.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def with_statistics(net: nn.Module) -> nn.Module:
    """Norms as training leaves them: no mean is 0 and no deviation 1."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for tensor in (module.running_var, module.weight):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.running_mean, module.bias):
                torch.nn.init.uniform_(tensor, -0.5, 0.5)
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def flat(answer: object) -> list[torch.Tensor]:
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("tf_efficientnet_lite0", 0), ("mobilenetv2_035", 0), ("mobilenetv2_100", 0), ("efficientnet_b0", 0),
        ("tf_efficientnetv2_b0", 0), ("mobilenetv3_small_050", None), ("resnet18", None), ("densenet121", None),
    ],
)  # fmt: skip
def test_a_folded_trunk_answers_the_same(name, left):
    net = with_statistics(encoder(name, 1))
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        before = [tensor.clone() for tensor in flat(net(images))]
        had, folded = norms(net), fold_batch_norms(net)
        after = flat(net(images))
    assert norms(net) == had - folded
    assert left is None or norms(net) == left < had
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_a_norm_is_left_where_something_stands_between_or_its_statistics_are_the_batch_s():
    apart = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    of_batch = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    first = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3))
    for net in (apart, of_batch, first):
        assert fold_batch_norms(net.eval()) == 0 and norms(net) == 1


class Backwards(nn.Sequential):
    """A row whose parts are not called in their order."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self[0](self[1](values))


def test_a_row_that_calls_its_parts_in_an_order_of_its_own_is_left():
    net = with_statistics(Backwards(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    assert fold_batch_norms(net) == 0 and norms(net) == 1


def test_a_net_in_training_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("folder", sorted(ROOT.glob("weights/*/manifest.json")), ids=lambda path: path.parent.name)
def test_nets_that_answer_on_a_cpu_have_no_norms_and_give_the_same_logits(folder):
    weights = bundle.load(folder.parent, TASKS, CPU)
    for kind, stages in (("locate", weights.locators), ("grade", weights.graders)):
        for stage, (folded, *_) in stages.items():
            file = f"{kind}/{stage}/fold0.safetensors"
            plain = bundle.load_net(bundle.place(folder.parent, file), weights.manifest.files[file].net)
            assert norms(plain) > norms(folded) == 0
            depth = plain.config["in_channels"] if kind == "locate" else 3
            images = torch.rand(2, depth, 64, 64, generator=torch.Generator().manual_seed(2))
            with torch.inference_mode():
                if kind == "locate":
                    before, after = (net.encoder(images)[-1] for net in (plain, folded))
                else:
                    crops, present = [images] * plain.crops, torch.ones(2, plain.crops, dtype=torch.bool)
                    before, after = (net(crops, present) for net in (plain, folded))
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


NAMES = ("tf_efficientnet_lite0", "mobilenetv2_035", "mobilenetv4_conv_small_050", "efficientnet_b0", "resnet18")


@pytest.mark.parametrize("name", NAMES)
def test_packed_convolutions_answer_the_same_also_where_gradients_are_asked_for(name):
    net = with_statistics(encoder(name, 1))
    fold_batch_norms(net)
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        before = flat(net(images))
        assert pack_convolutions(net) > 0
        after = flat(copy.deepcopy(net)(images))
        again = flat(net(images))
    asked = images.clone().requires_grad_()
    flat(net(asked))[-1].sum().backward()
    assert asked.grad is not None and asked.grad.abs().max() > 0
    for one, other, repeated in zip(before, after, again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
        assert torch.equal(other, repeated)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU()])
def test_a_packed_convolution_does_what_the_two_did_and_leaves_what_it_cannot_do(activation):
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
    plain = nn.Sequential(conv, nn.Identity(), activation).eval()
    packed = copy.deepcopy(plain)
    assert pack_convolutions(packed) == 1 and isinstance(packed[0], PackedConv2d)
    images = 20 * torch.randn(3, 2, 9, 11)
    with torch.inference_mode():
        torch.testing.assert_close(packed(images), plain(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed(images), plain(images), rtol=1e-5, atol=1e-5)
    assert sorted(packed.state_dict()) == sorted(plain.state_dict())


@pytest.mark.parametrize("kernel", [2, 3, 5, (3, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_padding_of_tensorflow_is_done_by_a_packed_kernel(kernel, stride):
    conv = Conv2dSame(4, 4, kernel, stride=stride, groups=4)
    plain = nn.Sequential(conv, nn.Identity(), nn.ReLU6()).eval()
    packed = copy.deepcopy(plain)
    assert pack_convolutions(packed) == 1 and isinstance(packed[0], PackedConv2d)
    for count, rows, columns in [(3, 9, 11), (3, 9, 12), (3, 8, 12), (16, 8, 11), (3, 9, 11)]:
        images = 20 * torch.randn(count, 4, rows, columns)
        torch.testing.assert_close(packed(images), plain(images), rtol=1e-5, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(packed(images), plain(images), rtol=1e-5, atol=1e-5)


def test_what_is_dilated_as_tensorflow_pads_is_left_alone():
    assert pack_convolutions(nn.Sequential(Conv2dSame(2, 4, 3, dilation=2), nn.Identity()).eval()) == 0


def test_torch_without_the_operators_answers_by_its_own(monkeypatch):
    conv = nn.Conv2d(2, 4, 3, padding=1)
    packed = nn.Sequential(conv, nn.Identity(), nn.ReLU6()).eval()
    plain = copy.deepcopy(packed)
    assert pack_convolutions(packed) == 1
    monkeypatch.setattr(packing, "has_packing", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", None, raising=False)
    images = 20 * torch.randn(3, 2, 9, 11)
    with torch.inference_mode():
        torch.testing.assert_close(packed(images), plain(images), rtol=0, atol=0)

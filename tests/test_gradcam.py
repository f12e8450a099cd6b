"""Grad-CAM against a public implementation, against the formula spelled out, and what it leaves behind."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import SwinTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from osteograde.models.backbones import adapt_first_conv, replace_module
from osteograde.models.explain import fold_maps, scaled
from osteograde.models.gradcam import raw_cam
from osteograde.models.grader import GraderNet

BACKBONES = [
    {"backbone": "mobilenetv4_conv_small_050", "stages": 4},  # a pooled pyramid
    {"backbone": "resnet10t"},
    {"backbone": "torchvision/densenet121"},  # its last map goes through a ReLU in place
    {"backbone": "torchvision/shufflenet_v2_x0_5"},
]


def grader(views: int = 1, seed: int = 0, **options) -> GraderNet:
    torch.manual_seed(seed)
    net = GraderNet(crops=views, classes=4, **{"backbone": "resnet10t", **options}).eval()
    with torch.no_grad():  # so that maps of random weights differ from pixel to pixel
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        net.train()(crops([(16, 3, 64, 64)] * views, seed=9), torch.ones(16, views, dtype=torch.bool))
    return net.eval()


def crops(shapes: list[tuple[int, ...]], seed: int = 1) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    noise = [torch.from_numpy(rng.random(shape, np.float32)) for shape in shapes]
    coarse = [functional.interpolate(functional.avg_pool2d(image, 16), scale_factor=16) for image in noise]
    return [(image + 10 * (soft - 0.5) + 2) / 5 for image, soft in zip(noise, coarse, strict=True)]


class OneImage(nn.Module):
    """A grader of one slice as an ordinary classifier: (B, 1, H, W) -> (B, K)."""

    def __init__(self, net: GraderNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net([images], torch.ones(len(images), 1, dtype=torch.bool))


@pytest.mark.slow  # the public package takes seconds to import
@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_it_equals_the_public_implementation(layer):
    public = pytest.importorskip("pytorch_grad_cam", reason="pip install grad-cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net = grader(normalise="fixed")
    if layer == "layer3":  # an encoder that ends earlier
        net.encoder.layer4, net.token[0] = nn.Identity(), nn.Linear(256, 128)
    (images,), target = crops([(3, 1, 96, 96)]), torch.tensor([0, 3, 2])
    with public.GradCAM(OneImage(net), [getattr(net.encoder, layer)]) as theirs:
        expected = theirs(images, [ClassifierOutputTarget(int(k)) for k in target])
    ours = fold_maps([net], [images], torch.ones(3, 1, dtype=torch.bool), target)[0][:, 0].numpy()
    assert expected.max() > 0.9
    span = lambda maps: maps - maps.min((1, 2), keepdims=True)  # noqa: E731  theirs also shifts each minimum to 0
    ours = span(ours) / span(ours).max((1, 2), keepdims=True)
    assert np.abs(ours - expected).max() < 1e-3


def spelled_out(net: GraderNet, layer: nn.Module, views: list[torch.Tensor], present: torch.Tensor, target: int):
    """Raw maps of ONE site, one slice and one channel at a time; the encoder is run once per slice, not per view."""
    kept: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    tokens, where = [], []
    for v, view in enumerate(views):
        if not present[v]:
            continue
        mean, deviation = view.mean(), view.std(correction=0)
        for d in range(len(view)):
            token = net.token(net.encoder(((view[d] - mean) / deviation)[None, None]))[0]
            place = net.position.weight[d - len(view) // 2 + 16]
            tokens.append(functional.gelu(token + net.view.weight[v] + place))
            where.append((v, d))
    hook.remove()
    table = torch.stack(tokens)
    score = net.score(torch.tanh(net.attend(table)) * torch.sigmoid(net.gate(table)))[:, 0]
    logit = net.head((torch.softmax(score, 0)[:, None] * table).sum(0))[target]
    maps = [np.zeros(view.shape, np.float32) for view in views]
    for (v, d), values, gradient in zip(where, kept, torch.autograd.grad(logit, kept), strict=True):
        total = np.zeros(values.shape[-2:], np.float32)
        for channel in range(values.shape[1]):
            total += gradient[0, channel].mean().item() * values[0, channel].detach().numpy()
        small = torch.from_numpy(np.maximum(total, 0))[None, None]
        maps[v][d] = functional.interpolate(small, views[v].shape[-2:], mode="bilinear")[0, 0].numpy()
    return maps


def test_several_views_and_slices_equal_the_formula_spelled_out():
    net = grader(views=3)
    views = crops([(3, 4, 64, 64), (3, 1, 64, 64), (3, 3, 96, 96)])
    present = torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    target = torch.tensor([1, 0, 3])
    maps = raw_cam(net, views, present, target)
    assert [tuple(view.shape) for view in maps] == [tuple(view.shape) for view in views]
    for b in range(3):
        expected = spelled_out(net, net.encoder.layer4, [v[b] for v in views], present[b], int(target[b]))
        top = max(view.max() for view in expected)
        assert top > 0
        for own, other in zip(maps, expected, strict=True):
            assert np.abs(own[b].numpy() - other).max() < 1e-4 * top
    joint = fold_maps([net], views, present, target)
    assert torch.stack([view.flatten(1).amax(1) for view in joint]).amax(0).tolist() == [1, 1, 1]
    assert min(float(view.min()) for view in joint) >= 0
    assert float(joint[0][1].abs().max()) == float(joint[1][2].abs().max()) == 0  # absent views


@pytest.mark.parametrize("options", BACKBONES, ids=lambda options: options["backbone"])
def test_every_kind_of_encoder_has_a_last_map_of_several_pixels(options):
    net = grader(**options)
    maps = raw_cam(net, crops([(2, 2, 96, 96)]), torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 1]))
    assert maps[0].shape == (2, 2, 96, 96)
    assert torch.isfinite(maps[0]).all() and float(maps[0].std()) > 0


def test_a_site_does_not_depend_on_its_neighbours():
    net, (images,), yes = grader(), crops([(3, 2, 64, 64)]), torch.ones(3, 1, dtype=torch.bool)
    together = raw_cam(net, [images], yes, torch.tensor([2, 0, 1]))[0]
    alone = raw_cam(net, [images[1:2]], yes[1:2], torch.tensor([0]))[0]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5 * float(together.max()))


@pytest.mark.parametrize("frozen", [False, True])
def test_it_leaves_nothing_behind(frozen):
    net = grader().requires_grad_(not frozen)
    views, yes = crops([(2, 2, 64, 64)]), torch.ones(2, 1, dtype=torch.bool)
    before = net(views, yes).detach()
    with torch.inference_mode():  # where the pipeline calls it from
        maps = fold_maps([net], [view.clone() for view in views], yes, torch.tensor([0, 1]))
        assert not torch.is_grad_enabled()
    assert not any(view.requires_grad for view in maps)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(view.grad is None and not view.requires_grad for view in views)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.equal(net(views, yes).detach(), before)


def test_hooks_are_removed_when_the_net_fails():
    net = grader()
    with pytest.raises(RuntimeError):
        raw_cam(net, crops([(1, 1, 64, 64)])[:1], torch.ones(1, 1, dtype=torch.bool), torch.tensor([9]))
    with pytest.raises(ValueError, match="expected 1 crops"):
        raw_cam(net, crops([(1, 1, 64, 64)] * 2), torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_folds_are_averaged_before_they_are_scaled():
    nets, views = [grader(seed=0), grader(seed=5)], crops([(2, 3, 64, 64)])
    yes, target = torch.ones(2, 1, dtype=torch.bool), torch.tensor([3, 1])
    mean = [(raw_cam(net, views, yes, target)[0] / 2) for net in nets]
    torch.testing.assert_close(fold_maps(nets, views, yes, target)[0], scaled([mean[0] + mean[1]])[0])


def test_a_map_of_zeros_stays_zero():
    maps = [torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)]
    maps[1][1, 0, 0, 0] = 4.0
    assert scaled(maps)[0].abs().max() == 0
    assert scaled(maps)[1].flatten(1).tolist() == [[0] * 4, [1, 0, 0, 0]]


def test_the_middle_slice_alone_is_lit_where_only_it_is_pooled():
    net = grader(pool="centre")
    maps = fold_maps([net], crops([(1, 5, 64, 64)]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([1]))[0]
    assert [float(view.max()) > 0 for view in maps[0]] == [False, False, True, False, False]


def test_sites_without_any_view_have_no_map():
    maps = fold_maps([grader()], crops([(2, 2, 64, 64)]), torch.zeros(2, 1, dtype=torch.bool), torch.tensor([0, 1]))
    assert float(maps[0].abs().max()) == 0


class ReadsOneCorner(nn.Module):
    """In place of the layer from whose output the map is made: hides the tokens of all but one corner of the image."""

    def __init__(self, layer: nn.Module, tokens: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("seen", tokens)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values) * self.seen


GRID = 4  # rows and columns of tokens


def upper_right(first_tokens: int | None) -> torch.Tensor:
    """1 at the tokens of the upper right quarter of the grid, and at the first ones, which belong to no patch.
    None: the tokens are kept in rows and columns."""
    grid = torch.zeros(GRID, GRID, 1)
    grid[: GRID // 2, GRID // 2 :] = 1
    return grid if first_tokens is None else torch.cat([torch.ones(first_tokens, 1), grid.flatten(0, 1)])


TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], str, int | None, int]] = {
    # a small one of the kind, the layer that is read last, tokens before those of the patches, pixels of a token
    "class token": (partial(timm.create_model, "test_vit", img_size=64), "blocks.5.norm1", 1, 16),
    "two tokens": (
        partial(timm.create_model, "deit_tiny_distilled_patch16_224", img_size=64, depth=2), "blocks.1.norm1", 2, 16
    ),
    "mean of the tokens": (
        partial(timm.create_model, "test_vit", img_size=64, class_token=False, global_pool="avg"), "norm", 0, 16
    ),
    "swin of timm": (
        partial(timm.create_model, "swin_tiny_patch4_window7_224", img_size=128, embed_dim=24, depths=(1, 1, 1, 1)),
        "norm", None, 32,
    ),
    "swin of torchvision": (
        partial(SwinTransformer, [4, 4], 24, [1] * 4, [3] * 4, [4, 4], block=SwinTransformerBlockV2,
                downsample_layer=PatchMergingV2),
        "norm", None, 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(TRANSFORMERS))
def test_the_map_of_a_transformer_that_reads_one_corner_points_there(kind):
    make, where, first_tokens, pixels_of_a_token = TRANSFORMERS[kind]
    torch.manual_seed(0)
    net = GraderNet("test_resnet", 1, classes=2, normalise="fixed").eval()
    encoder = make()
    layer, pixels = encoder.get_submodule(where), GRID * pixels_of_a_token
    replace_module(encoder, where, ReadsOneCorner(layer, upper_right(first_tokens)))
    net.encoder = encoder
    adapt_first_conv(encoder, 1)
    images, half = crops([(4, 1, pixels, pixels)]), pixels // 2
    net.token[0] = nn.Linear(encoder(images[0]).shape[-1], 128)
    answers = [raw_cam(net, images, torch.ones(4, 1, dtype=torch.bool), torch.full((4,), k))[0][:, 0] for k in (0, 1)]
    assert max(float(cam.amax()) for cam in answers) > 0
    for cam in answers:
        blurred = pixels_of_a_token // 2  # the map is enlarged bilinearly
        inside = cam[:, : half + blurred, half - blurred :].sum()
        assert float(cam.sum()) == pytest.approx(float(inside), rel=1e-5)


def test_tokens_that_make_one_pixel_are_no_map():
    net = GraderNet("torchvision/swin_t", 1).eval()
    with pytest.raises(ValueError, match="no map larger than one pixel"):
        fold_maps([net], crops([(1, 1, 32, 32)]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]))


def test_a_net_whose_tokens_have_no_known_place_is_refused():
    net = GraderNet("mvitv2_tiny", 1, pixels=224).eval()
    with pytest.raises(ValueError, match="Grad-CAM of"):
        fold_maps([net], crops([(1, 1, 224, 224)]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]))


def test_a_net_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        fold_maps([grader().train()], crops([(1, 1, 64, 64)]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]))

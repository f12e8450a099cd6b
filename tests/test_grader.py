"""Graders: absent views have no influence, pooling is what it says, any backbone fits."""

from __future__ import annotations

import pytest
import torch

from osteograde.models.grader import GraderNet

SMALL = {"backbone": "lcnet_035", "stages": 5, "width": 16}


def crops(*depths: int, batch: int = 4, side: int = 32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, d, side, side, generator=generator) for d in depths]


def net(views: int = 2, **options: object) -> GraderNet:
    """A grader whose batch norms have seen some images: untrained ones forget what they are shown."""
    torch.manual_seed(0)
    grader = GraderNet(crops=views, **{**SMALL, **options}).train()  # type: ignore[arg-type]
    for module in grader.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for seed in range(6):
            grader(crops(*[3] * views, seed=seed), torch.ones(4, views, dtype=torch.bool))
    return grader.eval()


PRESENT = torch.tensor([[True, True], [True, False], [False, True], [False, False]])


@pytest.mark.parametrize("pool", ["attention", "mean", "centre"])
@pytest.mark.parametrize("training", [False, True])
def test_pixels_of_an_absent_view_change_nothing(pool: str, training: bool) -> None:
    grader = net(pool=pool, dropout=0.0).train(training)
    given = crops(5, 3)
    other = [crop.clone() for crop in given]
    for v in range(2):
        other[v][~PRESENT[:, v]] = torch.nan
    with torch.no_grad():
        assert torch.equal(grader(given, PRESENT), grader(other, PRESENT))


@pytest.mark.parametrize("pool", ["attention", "mean", "centre"])
def test_a_view_that_is_there_matters_and_none_is_finite(pool: str) -> None:
    grader = net(pool=pool)
    both, gone = torch.ones(4, 2, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.bool)
    given = crops(5, 3)
    with torch.no_grad():
        assert not torch.allclose(grader(given, both), grader(given, PRESENT)[:, :])
        empty = grader(given, gone)
    assert torch.isfinite(empty).all()
    assert torch.equal(empty, grader.head.bias.expand_as(empty))


@pytest.mark.parametrize("pool", ["attention", "mean", "centre"])
def test_pooling_is_in_full_precision_under_autocast(pool: str) -> None:
    """Tokens near 1000 have steps of 4 in bfloat16, and their mean would have as well."""
    grader, tokens = net(pool=pool), 1000 + torch.rand(4, 7, 16)
    if pool == "attention":
        torch.nn.init.zeros_(grader.score.weight)  # every slice counts as much
    mask = torch.ones(4, 7, dtype=torch.bool)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pooled = grader._pooled(tokens, mask)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, tokens.mean(1), atol=0.01, rtol=0)


def test_gradients_are_finite_with_absent_views() -> None:
    grader = net().train()
    grader(crops(5, 3), PRESENT).square().sum().backward()
    gradients = [p.grad for p in grader.parameters() if p.grad is not None]
    assert len(gradients) > 20
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_a_site_does_not_depend_on_the_others_of_its_batch(pool: str) -> None:
    grader = net(pool=pool)
    given = crops(5, 3)
    with torch.no_grad():
        whole = grader(given, PRESENT)
        alone = torch.cat([grader([c[i : i + 1] for c in given], PRESENT[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, alone, atol=1e-5)


def test_attention_equals_a_loop_over_the_slices_that_are_there() -> None:
    grader = net()
    given = crops(5, 3)
    with torch.no_grad():
        tokens = [grader._tokens(v, given[v], PRESENT[:, v]) for v in range(2)]
        result = grader(given, PRESENT)
        for b in range(4):
            bag = [t for v in range(2) if PRESENT[b, v] for t in tokens[v][b]]
            if not bag:
                continue
            score = torch.stack(
                [grader.score(torch.tanh(grader.attend(t)) * torch.sigmoid(grader.gate(t)))[0] for t in bag]
            )
            pooled = sum(w * t for w, t in zip(score.softmax(0), bag, strict=True))
            assert torch.allclose(grader.head(pooled), result[b], atol=1e-5)


def test_the_centre_pool_reads_the_middle_slice_only() -> None:
    grader = net(views=1, pool="centre", normalise="fixed")
    given, there = crops(5), torch.ones(4, 1, dtype=torch.bool)
    moved = [given[0].clone()]
    moved[0][:, [0, 1, 3, 4]] = 0.5
    with torch.no_grad():
        assert torch.equal(grader(given, there), grader(moved, there))
        moved[0][:, 2] = 0.5
        assert not torch.allclose(grader(given, there), grader(moved, there))


def test_neighbours_let_the_middle_slice_see_one_further() -> None:
    grader = net(views=1, pool="centre", normalise="fixed", neighbours=True)
    given, there = crops(5), torch.ones(4, 1, dtype=torch.bool)
    far, near = given[0].clone(), given[0].clone()
    far[:, 0], near[:, 1] = 0.5, 0.5
    with torch.no_grad():
        assert torch.equal(grader(given, there), grader([far], there))
        assert not torch.allclose(grader(given, there), grader([near], there))


def test_crop_normalisation_forgets_brightness_and_contrast() -> None:
    given, there = crops(5), torch.ones(4, 1, dtype=torch.bool)
    darker = [given[0] * 0.5 + 0.1]
    with torch.no_grad():
        for how, same in (("crop", True), ("fixed", False)):
            grader = net(views=1, normalise=how)
            assert torch.allclose(grader(given, there), grader(darker, there), atol=1e-4) == same


def test_the_order_of_slices_is_known_to_the_net() -> None:
    grader = net(views=1)
    given, there = crops(5), torch.ones(4, 1, dtype=torch.bool)
    with torch.no_grad():
        assert not torch.allclose(grader(given, there), grader([given[0].flip(1)], there), atol=1e-6)


def test_a_constant_crop_stays_finite() -> None:
    there = torch.ones(4, 1, dtype=torch.bool)
    with torch.no_grad():
        assert torch.isfinite(net(views=1)([torch.zeros(4, 5, 32, 32)], there)).all()


@pytest.mark.parametrize("bad", [{"pool": "max"}, {"normalise": "batch"}])
def test_unknown_options_name_the_known(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        net(**bad)


def test_the_wrong_number_of_views_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 crops"):
        net()(crops(5), PRESENT[:, :1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet18d", {}),
        ("convnext_atto", {}),
        ("mobilenetv3_small_050", {"stages": 4}),
        ("vit_tiny_patch16_224", {"pixels": 64}),
        ("swin_tiny_patch4_window7_224", {"pixels": 64}),
        ("torchvision/swin_v2_t", {}),
        ("torchvision/densenet121", {}),
        ("torchvision/resnet18", {"neighbours": True}),
    ],
)
def test_any_timm_or_torchvision_backbone_grades(backbone: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    grader = GraderNet(backbone, 1, **options)  # type: ignore[arg-type]
    logits = grader(crops(2, batch=2, side=64), torch.ones(2, 1, dtype=torch.bool))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert torch.isfinite(logits).all()

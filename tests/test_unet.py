"""The U-Net locator: discs from segmentations, segmentations from masks or, where there are none, from points."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from osteograde.models.bundle import build_net
from osteograde.models.locators.base import LocatorBatch
from osteograde.models.locators.unet import (
    DISC,
    Component,
    UnetLocator,
    disc_channels,
    disc_components,
    in_a_column,
    point_shares,
    segmentation_loss,
)
from tests.locator_maps import decode

ENCODER, PIXELS, PIXEL_MM = "mobilenetv4_conv_small_050", 64, 3.0
DISCS = [(10.0, 28.0), (21.0, 31.0), (32.0, 32.0), (43.0, 30.0), (54.0, 26.0)]  # (row, column), top first


def tiny(**options: int) -> UnetLocator:
    torch.manual_seed(0)
    return UnetLocator(ENCODER, **{"channels": 5, "width": 16, "stages": 4, **options})  # type: ignore[arg-type]


def ellipse(centre: tuple[float, float], half: tuple[float, float] = (2.0, 6.0), pixels: int = PIXELS) -> np.ndarray:
    rows, columns = np.mgrid[:pixels, :pixels]
    return ((rows - centre[0]) / half[0]) ** 2 + ((columns - centre[1]) / half[1]) ** 2 <= 1


def spine(centres: Iterable[tuple[float, float]] = DISCS, value: float = 0.9) -> np.ndarray:
    """Disc probabilities (64, 64) of a drawn spine."""
    return np.max([value * ellipse(centre) for centre in centres], 0).astype(np.float32)


def drawn_mask(shift: int) -> np.ndarray:
    """(64, 64): vertebrae 2, discs 1 and a canal 3, as far to the right as ``shift``."""
    mask = np.zeros((PIXELS, PIXELS), np.int64)
    mask[6:58, 20 + shift : 32 + shift] = 2
    mask[6:58, 36 + shift : 42 + shift] = 3
    for row, _ in DISCS:
        mask[ellipse((row, 26.0 + shift))] = DISC
    return mask


def make_batch(stacks: int = 2, *, masks: bool = True) -> LocatorBatch:
    """One slice per stack, whose brightness shows the classes; points on the discs."""
    drawn = np.stack([drawn_mask(4 * n) for n in range(stacks)])
    noise = np.random.default_rng(0).normal(0, 0.05, (stacks, 4, PIXELS, PIXELS))
    points = [[(0.0, row, 26.0 + 4 * n) for row, _ in DISCS] for n in range(stacks)]
    return LocatorBatch(
        images=torch.from_numpy(np.array([0.1, 0.9, 0.4, 0.7])[drawn][:, None] + noise).float(),
        stack=torch.arange(stacks),
        points=torch.tensor(points),
        channel=torch.arange(5),
        side=torch.zeros(5, dtype=torch.long),
        lateral=torch.zeros(stacks, PIXELS),
        pixel_mm=PIXEL_MM,
        slice_mm=4.0,
        sigma_mm=6.0,
        masks=torch.from_numpy(drawn) if masks else None,
    )


def taught(net: UnetLocator, batch: LocatorBatch, steps: int) -> tuple[float, float]:
    """The loss before and after."""
    steady = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = net.train().loss(batch)
        steady.zero_grad()
        loss.backward()
        steady.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


# --------------------------------------------------------------------------------------------------- learning


@pytest.mark.slow
def test_it_learns_two_drawn_images_from_masks() -> None:
    net, batch, start = tiny(), make_batch(), time.thread_time()
    before, after = taught(net, batch, 40)
    assert time.thread_time() - start < 5
    assert after < before / 3
    with torch.inference_mode():
        labels = net.train().segment(batch.images).argmax(1)  # of these two images: the norm's running mean lags
    assert batch.masks is not None
    assert (labels == batch.masks[:, ::2, ::2]).float().mean() > 0.9


def test_it_learns_discs_from_points_where_there_are_no_masks() -> None:
    net, batch = tiny(), make_batch(masks=False)
    before, after = taught(net, batch, 30)
    assert after < before / 2
    with torch.inference_mode():
        disc = net.train().segment(batch.images).softmax(1)[:, DISC]
    centres = (batch.points[..., 1:] / 2).long()
    for n in range(2):
        assert disc[n, centres[n, :, 0], centres[n, :, 1]].min() > 0.5
        between = (centres[n, :-1] + centres[n, 1:]) // 2
        assert disc[n, between[:, 0], between[:, 1]].max() < 0.5


def test_masks_of_which_nothing_is_known_teach_as_much_as_no_masks() -> None:
    net, batch = tiny().eval(), make_batch(masks=False)
    unknown = dataclasses.replace(batch, masks=torch.full((2, PIXELS, PIXELS), -1))
    with torch.inference_mode():
        assert net.loss(unknown).item() == net.loss(batch).item() != net.loss(make_batch()).item()


def test_slices_with_and_without_masks_count_alike() -> None:
    net, masked, bare = tiny().eval(), make_batch(), make_batch(masks=False)
    assert masked.masks is not None
    half = dataclasses.replace(masked, masks=masked.masks.clone())
    assert half.masks is not None
    half.masks[1] = -1

    def alone(batch: LocatorBatch, n: int) -> LocatorBatch:
        masks = None if batch.masks is None else batch.masks[n : n + 1]
        return dataclasses.replace(
            batch,
            images=batch.images[n : n + 1],
            stack=batch.stack[:1],
            points=batch.points[n : n + 1],
            lateral=batch.lateral[:1],
            masks=masks,
        )

    with torch.inference_mode():
        expected = (net.loss(alone(masked, 0)) + net.loss(alone(bare, 1))) / 2
        assert net.loss(half).item() == pytest.approx(expected.item(), abs=1e-4)


def test_unknown_pixels_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = tiny(stride=1).eval(), make_batch()
    assert batch.masks is not None
    masks = batch.masks.clone()
    masks[:, :, :32] = -1
    logits = torch.randn(2, 4, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(net, "segment", lambda images: logits)
    before = net.loss(dataclasses.replace(batch, masks=masks)).item()
    logits[..., :32] += torch.randn(2, 4, PIXELS, 32, generator=torch.Generator().manual_seed(2))
    assert net.loss(dataclasses.replace(batch, masks=masks)).item() == pytest.approx(before, abs=1e-6)
    assert abs(net.loss(batch).item() - before) > 1e-3


def test_loss_equals_cross_entropy_and_dice_in_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 6, 5, generator=generator)
    labels = torch.randint(-1, 3, (2, 6, 5), generator=generator)  # class 3 is not shown
    shares = (labels[:, None] == torch.arange(4)[None, :, None, None]).float()
    p, known = logits.softmax(1).numpy(), labels.numpy() >= 0
    entropy = np.mean(
        [-np.log(p[n, labels[n, y, x], y, x]) for n, y, x in zip(*np.nonzero(known), strict=True)], dtype=float
    )
    dice = [1 - 2 * p[:, k][labels == k].sum() / (p[:, k][known].sum() + (labels == k).sum().item()) for k in (1, 2)]
    assert segmentation_loss(logits.log_softmax(1), shares).item() == pytest.approx(entropy + np.mean(dice), abs=1e-5)


def test_points_draw_ellipses_on_their_slice_and_deny_their_surroundings() -> None:
    batch = dataclasses.replace(
        make_batch(4, masks=False),
        stack=torch.tensor([0, 0, 0, 1]),
        points=torch.tensor([[[1.3, 30.0, 20.0], *[[np.nan] * 3] * 4], [[np.nan] * 3] * 5]),
    )
    shares = point_shares(batch, (32, 32))
    assert shares.flatten(1).any(1).tolist() == [False, True, False, False]
    for row in range(32):
        for column in range(32):
            down, along = ((2 * row + 0.5) - 30) * PIXEL_MM, ((2 * column + 0.5) - 20) * PIXEL_MM
            disc = (down / 4) ** 2 + (along / 12) ** 2 <= 1
            near = np.hypot(down, along) <= 25
            assert shares[1, :, row, column].tolist() == [float(near and not disc), float(disc)]


def test_masks_that_do_not_fit_are_refused() -> None:
    net, batch = tiny().eval(), make_batch()
    with pytest.raises(ValueError, match=r"masks are \(2, 32, 32\); expected \(2, 64, 64\)"):
        net.loss(dataclasses.replace(batch, masks=torch.zeros(2, 32, 32, dtype=torch.long)))
    with pytest.raises(ValueError, match="label 4; the net has classes 0 to 3"):
        net.loss(dataclasses.replace(batch, masks=torch.full((2, 64, 64), 4)))


# --------------------------------------------------------------------------------------------------- components


def test_components_are_the_drawn_discs_from_the_bottom_up() -> None:
    found = disc_components(spine())
    assert np.allclose([(c.y, c.x) for c in found], DISCS[::-1], atol=0.01)
    assert [c.probability for c in found] == pytest.approx([0.9] * 5, abs=1e-5)
    assert found[0].box == (20, 52, 33, 57)


def test_noise_blobs_are_no_discs_even_if_they_are_many() -> None:
    noisy = spine()
    for row, column in [(2, 2), (5, 60), (15, 50), (30, 55), (40, 5), (61, 3), (62, 50), (20, 8)]:
        noisy[row, column : column + 2] = 0.99
    assert disc_components(noisy) == disc_components(spine())
    assert disc_components(np.zeros((8, 8), np.float32)) == []
    assert disc_components(np.full((8, 8), 0.4, np.float32)) == []


@pytest.mark.parametrize("missing", range(5))
def test_a_missing_disc_leaves_its_channel_empty(missing: int) -> None:
    left = [disc for i, disc in enumerate(DISCS) if i != missing]
    found = disc_components(spine(left))
    assert np.allclose([(c.y, c.x) for c in found], left[::-1], atol=0.01)
    # the lowest found is the last channel, whichever it is; above it a gap is a gap
    shift = 1 if missing == 4 else 0
    assert disc_channels(found, 5) == [i + shift for i in range(4, -1, -1) if i != missing]


def test_what_lies_beside_the_spine_is_no_disc() -> None:
    spine = [Component(50.0 + 2 * i, 90.0 - 15 * i, 0.9, (45, 0, 57, 4)) for i in range(6)]
    fat = [Component(20.0, 95.0, 0.7, (14, 0, 26, 4)), Component(22.0, 80.0, 0.7, (16, 0, 28, 4)),
           Component(75.0, 60.0, 0.8, (70, 0, 80, 4)), Component(52.0, 87.0, 0.55, (46, 0, 58, 4))]  # fmt: skip
    everything = sorted([*spine, *fat], key=lambda component: -component.y)
    assert in_a_column(everything) == spine
    assert in_a_column([]) == []
    assert in_a_column(spine[:1]) == spine[:1]


def test_discs_above_the_first_channel_have_none() -> None:
    discs = [Component(0.0, float(-10 * i), 0.9, (0, 0, 1, 1)) for i in range(4)]
    assert disc_channels(discs, 2) == [1, 0, -1, -1]
    assert disc_channels(discs[:1], 2) == [1]
    assert disc_channels([], 2) == []


# --------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("stride", [1, 2])
def test_a_perfect_segmentation_decodes_to_the_centres(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    """Three slices of 128 pixels, the middle one surest; the top disc is not drawn."""
    net = tiny(stride=stride).eval()
    size, centres = 128 // stride, [(2 * row, 2 * column) for row, column in DISCS]
    logits = torch.full((3, 4, size, size), -4.0)
    logits[:, 0] = 4.0
    rows, columns = torch.meshgrid(*[(torch.arange(size) + 0.5) * stride - 0.5] * 2, indexing="ij")
    for row, column in centres[1:]:
        disc = ((rows - row) / 4) ** 2 + ((columns - column) / 12) ** 2 <= 1
        logits[:, DISC, disc] = torch.tensor([4.0, 9.0, 4.0])[:, None]
    monkeypatch.setattr(net, "segment", lambda images: logits)
    maps = net.maps(torch.zeros(3, 4, 128, 128))
    assert tuple(maps.shape) == (3, 5, size, size)
    assert maps[:, 0].max() == maps[:, 0].min() < -10
    stack, lateral = torch.zeros(3, dtype=torch.long), torch.zeros(3, 128)
    args = (maps, stack, torch.arange(5), torch.zeros(5, dtype=torch.long), lateral)
    index, confidence = decode(*args, pixel_mm=1.5, slice_mm=4.0)
    assert (index[0, 1:, 1:] - torch.tensor(centres[1:])).abs().max() < 0.3
    assert index[0, 1:, 0].round().tolist() == [1] * 4
    assert confidence[0, 1:].min() > 0.8
    assert confidence[0, 0] < 0.05


def test_a_surer_disc_scores_higher(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny(stride=1).eval()
    other = torch.from_numpy(np.stack([spine(value=v) for v in (0.6, 0.95)])).clamp(1e-4, 1)
    logits = torch.stack([1 - other, other, *[torch.full_like(other, 1e-9)] * 2], 1).log()
    monkeypatch.setattr(net, "segment", lambda images: logits)
    heights = net.maps(torch.zeros(2, 4, PIXELS, PIXELS)).amax((2, 3)).exp()
    assert torch.allclose(heights, torch.tensor([[0.6], [0.95]]).expand(2, 5), atol=0.01)


# --------------------------------------------------------------------------------------------------- the net


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_segments_have_the_stride_asked_for(stride: int) -> None:
    net = tiny(stride=stride).eval()
    with torch.inference_mode():
        assert tuple(net.segment(torch.rand(1, 4, 96, 64)).shape) == (1, 4, 96 // stride, 64 // stride)
        assert tuple(net(torch.rand(1, 4, 96, 64)).shape) == (1, 5, 96 // stride, 64 // stride)


def test_a_config_rebuilds_the_net() -> None:
    net = tiny(stride=4, channels=3, classes=2).eval()
    again = build_net(json.loads(json.dumps(net.config))).eval()
    assert isinstance(again, UnetLocator)
    again.load_state_dict(net.state_dict(), strict=True)
    images = torch.rand(1, 4, PIXELS, PIXELS)
    with torch.inference_mode():
        assert torch.equal(net.segment(images), again.segment(images))
    assert again.config == net.config


def test_arguments_that_make_no_net_are_refused() -> None:
    with pytest.raises(ValueError, match="stride of the map is 3"):
        tiny(stride=3)
    with pytest.raises(ValueError, match="at least 2"):
        tiny(classes=1)
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny().segment(torch.rand(1, 4, 33, 64))

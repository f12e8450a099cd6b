"""Training moves: image and points move together, in one resample."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.errors import UserError
from osteograde.learning.augment import cut_out, draw_move, move_points, resample, shade, still
from osteograde.learning.recipe import Augmentation


def blob(size: int, row: float, column: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (255 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 18)).astype(np.uint8)


def centre_of_mass(image: torch.Tensor) -> np.ndarray:
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in image.shape), indexing="ij")
    return np.array([float((image * axis).sum() / image.sum()) for axis in (rows, columns)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(38, 52), st.floats(38, 52), st.sampled_from([0.0, 4.0]))
def test_a_point_stays_on_what_it_marks(seed, row, column, elastic_mm):
    rng = np.random.default_rng(seed)
    augmentation = Augmentation(rotation_deg=25, scale=0.2, shift_mm=4, elastic_mm=elastic_mm)
    move = draw_move(rng, 1, augmentation, 1.0, (90, 90))
    image = resample(torch.from_numpy(blob(90, row, column))[None, None], move, (64, 64))
    point = move_points(move, np.array([[[row, column]]]), (90, 90), (64, 64))[0, 0]
    assert np.abs(centre_of_mass(image[0, 0]) - point).max() < (0.8 if elastic_mm else 0.35)  # a bent blob is no circle


def test_standing_still_cuts_the_middle_exactly():
    stored = torch.randint(0, 256, (2, 3, 20, 22), dtype=torch.uint8)
    cut = resample(stored, still(2), (12, 14))
    assert torch.allclose(cut, stored[:, :, 4:16, 4:18].float() / 255, atol=1e-6)


def test_shading_keeps_values_in_range_and_follows_the_generator():
    images = torch.rand(4, 3, 16, 16)
    first, again, other = (shade(np.random.default_rng(s), images, Augmentation()) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


ELASTIC = Augmentation(rotation_deg=0, scale=0, shift_mm=0, elastic_mm=5, elastic_spacing_mm=20)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.3]), st.sampled_from([(64, 64), (40, 90)]))
def test_no_place_moves_further_than_the_plan_says(seed, pixel_mm, size):
    bend = draw_move(np.random.default_rng(seed), 3, ELASTIC, pixel_mm, size).bend
    assert bend is not None
    moved_mm = bend.field(size, torch.device("cpu")).norm(dim=1) * pixel_mm
    assert 0.05 < float(moved_mm.max()) <= 5.0 + 1e-4
    inside = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"), -1).reshape(-1, 2)
    dense = bend.field(size, torch.device("cpu"))[1].permute(1, 2, 0).reshape(-1, 2).numpy()
    assert np.abs(bend.at(1, inside) - dense).max() < 1e-3
    back = bend.before(1, inside + bend.at(1, inside))
    assert np.abs(back - inside).max() < 1e-2


def test_a_place_that_is_unknown_stays_unknown():
    move = draw_move(np.random.default_rng(0), 1, ELASTIC, 1.0, (64, 64))
    moved = move_points(move, np.array([[[np.nan, np.nan], [np.inf, np.inf], [30.0, 30.0]]]), (64, 64), (64, 64))
    assert np.isfinite(moved[0]).all(-1).tolist() == [False, False, True]


def test_nothing_is_drawn_for_what_is_off():
    plain, off = np.random.default_rng(3), np.random.default_rng(3)
    images = torch.rand(2, 3, 16, 16)
    draw_move(plain, 2, Augmentation(), 1.0, (20, 20))
    first = shade(plain, images, Augmentation())
    move = draw_move(off, 2, Augmentation(elastic_mm=0, elastic_spacing_mm=7), 1.0, (20, 20))
    assert move.bend is None
    assert torch.equal(first, shade(off, images, Augmentation(bias_field=0, rician=0)))
    assert plain.bit_generator.state == off.bit_generator.state


def test_a_field_that_could_fold_the_image_is_refused():
    with pytest.raises(UserError, match="could fold the image"):
        Augmentation(elastic_mm=5.1, elastic_spacing_mm=20)


PLAIN = Augmentation(gamma=0, contrast=0, noise=0, blur=0)


def test_a_bias_field_is_smooth_the_same_in_all_slices_and_within_its_factor():
    images = torch.full((4, 3, 40, 60), 0.5)
    shaded = shade(np.random.default_rng(0), images, replace(PLAIN, bias_field=0.4))
    assert torch.equal(shaded[:, 0], shaded[:, 2])
    factor = shaded / 0.5
    assert np.exp(-0.4) - 1e-4 <= float(factor.min()) and float(factor.max()) <= np.exp(0.4) + 1e-4
    assert float(factor.std((2, 3)).max()) > 0.02
    assert float(shaded.diff(dim=-1).abs().max()) < 0.03  # between neighbouring pixels


def test_rician_noise_lifts_what_is_dark_and_hardly_what_is_bright():
    images = torch.zeros(400, 1, 16, 16)
    images[..., 8:] = 0.5
    shaded = shade(np.random.default_rng(0), images, replace(PLAIN, rician=0.2)).clamp(0, 1)
    dark, bright = float(shaded[..., :8].mean()), float(shaded[..., 8:].mean())
    assert dark == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.1)  # Rayleigh's mean of the mean deviation, 0.1
    assert 0 < bright - 0.5 < 0.25 * dark


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.6))
def test_cutout_hides_one_box_of_at_most_its_share_under_the_mean_and_the_same_in_all_slices(seed, largest):
    images = torch.rand(3, 2, 24, 32)
    cut = cut_out(np.random.default_rng(seed), images, largest)
    for before, after in zip(images, cut, strict=True):
        hidden = (after != before).any(0)
        assert torch.equal(after[:, ~hidden], before[:, ~hidden])
        assert torch.allclose(after[:, hidden], before.mean())
        assert float(hidden.float().mean()) <= largest + 1 / 24 + 1 / 32
        rows, columns = hidden.any(1), hidden.any(0)
        assert int(hidden.sum()) == int(rows.sum()) * int(columns.sum())  # one box
    assert torch.equal(cut, cut_out(np.random.default_rng(seed), images, largest))


def test_shading_hides_a_box_where_the_augmentation_says_so():
    images, still_there = torch.rand(8, 1, 24, 32), Augmentation(gamma=0, contrast=0, noise=0, blur=0)
    cut = shade(np.random.default_rng(0), images, replace(still_there, cutout=0.5))
    kept = torch.isclose(cut, images, atol=1e-4).float().mean((1, 2, 3))
    assert (kept >= 0.4).all() and (kept < 0.98).any()

"""Training moves: image and points move together, in one resample."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.learning.augment import draw_move, move_points, resample, shade, still
from osteograde.learning.recipe import Augmentation


def blob(size: int, row: float, column: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (255 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 18)).astype(np.uint8)


def centre_of_mass(image: torch.Tensor) -> np.ndarray:
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in image.shape), indexing="ij")
    return np.array([float((image * axis).sum() / image.sum()) for axis in (rows, columns)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(38, 52), st.floats(38, 52))
def test_a_point_stays_on_what_it_marks(seed, row, column):
    rng = np.random.default_rng(seed)
    augmentation = Augmentation(rotation_deg=25, scale=0.2, shift_mm=4)
    move = draw_move(rng, 1, augmentation, pixel_mm=1.0)
    image = resample(torch.from_numpy(blob(90, row, column))[None, None], move, (64, 64))
    point = move_points(move, np.array([[[row, column]]]), (90, 90), (64, 64))[0, 0]
    assert np.abs(centre_of_mass(image[0, 0]) - point).max() < 0.35


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

"""One window per series: comparable slices, blind to padding, hot pixels and NaN."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from osteograde.imaging.geometry import Volume
from osteograde.imaging.windowing import window


def volume(voxels: np.ndarray) -> Volume:
    return Volume(voxels, np.eye(4), names=tuple(str(k) for k in range(len(voxels))))


def noise(seed: int = 0, shape=(4, 60, 50), scale=100.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1000, scale, shape)


def test_bytes_follow_the_percentiles_of_all_voxels():
    voxels = noise()
    (out,) = window([volume(voxels)])
    low, high = np.percentile(voxels, [0.5, 99.5])
    expected = np.clip(np.rint((voxels - low) / (high - low) * 255), 0, 255)
    assert out.voxels.dtype == np.uint8 and out.voxels.flags.c_contiguous
    assert abs(out.voxels - expected).max() <= 1
    assert out.names == ("0", "1", "2", "3")


def test_the_volumes_of_a_series_share_one_window():
    dark, bright = noise(scale=20), noise(seed=1, scale=20) + 500
    a, b = window([volume(dark), volume(bright)])
    assert a.voxels.mean() < 30 and b.voxels.mean() > 225


def test_scaling_a_series_does_not_change_its_bytes():
    voxels = noise()
    a, b = window([volume(voxels)])[0], window([volume(voxels * 7 - 300)])[0]
    assert abs(a.voxels.astype(int) - b.voxels).max() <= 1


def test_padding_does_not_move_the_window():
    voxels = noise().astype(np.int16)
    padded = np.pad(voxels, ((0, 0), (30, 30), (40, 40)))
    plain, wide = window([volume(voxels)])[0].voxels, window([volume(padded)])[0].voxels
    assert abs(wide[:, 30:-30, 40:-40].astype(int) - plain).max() <= 2
    assert wide[:, :30].max() == 0


def test_a_hot_pixel_does_not_darken_the_rest():
    voxels = noise().astype(np.uint16)
    hot = voxels.copy()
    hot[0, 0, 0] = 65535
    a, b = window([volume(voxels)])[0].voxels, window([volume(hot)])[0].voxels
    assert abs(a.astype(int) - b).ravel()[1:].max() <= 1


def test_no_contrast_or_no_number_becomes_zeros():
    for voxels in (np.full((2, 5, 5), 7, np.uint16), np.full((2, 5, 5), np.nan), np.zeros((1, 8, 8), np.int16)):
        (out,) = window([volume(voxels)])
        assert out.voxels.dtype == np.uint8 and not out.voxels.any()
    assert window([]) == []


def test_nan_and_infinity_become_zero_and_spoil_nothing():
    voxels = noise().astype(np.float32)
    spoiled = voxels.copy()
    spoiled[1, 3, 4:6] = np.nan, np.inf
    a, b = window([volume(voxels)])[0].voxels, window([volume(spoiled)])[0].voxels
    assert b[1, 3, 4] == 0 and b[1, 3, 5] == 0
    b[1, 3, 4:6] = a[1, 3, 4:6]
    assert abs(a.astype(int) - b).max() <= 1


def test_a_picture_of_few_bright_pixels_keeps_them():
    voxels = np.zeros((1, 100, 100), np.uint16)
    voxels[0, 50, 50:53] = 10, 20, 30
    (out,) = window([volume(voxels)])
    assert out.voxels[0, 50, 52] > 200 and out.voxels[0, 0, 0] == 0


def test_the_input_is_not_changed():
    voxels = noise()
    before = voxels.copy()
    window([volume(voxels)])
    np.testing.assert_array_equal(voxels, before)


def test_an_image_of_two_values_keeps_both():
    voxels = np.where(np.arange(64).reshape(1, 8, 8) % 3 == 0, 255, 20).astype(np.uint8)
    (seen,) = window([Volume(voxels, np.eye(4))])
    assert set(np.unique(seen.voxels)) == {0, 255}


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([np.uint8, np.int8, np.uint16, np.int16]),
    st.sampled_from([(0.5, 99.5), (0, 100), (1, 99), (50, 50.0001), (33.3, 66.7)]),
)
@example(2749, np.uint16, (50, 50.0001))  # a window so narrow that OpenCV's whole numbers overflowed
def test_counting_values_gives_the_bytes_of_sorting_them(seed, dtype, percentiles):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    levels = rng.integers(info.min, info.max, rng.integers(1, 40), endpoint=True)
    voxels = rng.choice(levels, (rng.integers(1, 4), *rng.integers(1, 30, 2))).astype(dtype)
    voxels[rng.random(voxels.shape) < rng.choice([0, 0.005, 0.5, 0.999])] = levels.min()
    (counted,), (sorted_,) = (
        window([volume(voxels)], *percentiles),
        window([volume(voxels.astype(float))], *percentiles),
    )
    np.testing.assert_array_equal(counted.voxels, sorted_.voxels)

"""Grids in patient millimetres against obvious loops, and the properties every crop relies on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.imaging.geometry import (
    LEFT,
    Roi,
    Volume,
    affine,
    apply,
    grown,
    mirrored,
    oriented,
    outside_mm,
    plane_distance_mm,
    roi_at,
    roi_on,
    to_index,
)
from tests.grids import random_volume, rotation

POSTERIOR, HEAD = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])  # unit LPS directions
SAGITTAL = np.array([LEFT, -HEAD, POSTERIOR])
AXIAL = np.array([-HEAD, POSTERIOR, LEFT])


volumes = st.integers(0, 2**31).map(lambda seed: random_volume(np.random.default_rng(seed), bool(seed % 2)))
seeds = st.integers(0, 2**31)


def test_an_affine_moves_index_to_mm_as_the_standard_says():
    origin, row, column = np.array([-90.0, -120.0, 60.0]), np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])
    rows_mm, columns_mm, step_mm = 0.7, 0.4, 4.4
    to_mm = affine(origin, np.array([LEFT, column, row]), np.array([step_mm, rows_mm, columns_mm]))
    for z, y, x in np.ndindex(3, 4, 5):
        # PS3.3 C.7.6.2.1.1 for the pixel in column x and row y
        expected = origin + z * step_mm * LEFT + x * columns_mm * row + y * rows_mm * column
        np.testing.assert_allclose(apply(to_mm, np.array([z, y, x])), expected, atol=1e-9)


@given(volumes)
def test_spacing_axes_and_centre_agree_with_loops(volume):
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1.0
        move = apply(volume.to_mm, step) - apply(volume.to_mm, np.zeros(3))
        assert np.isclose(volume.spacing_mm[axis], np.linalg.norm(move))
        np.testing.assert_allclose(volume.axes[axis], move / np.linalg.norm(move), atol=1e-9)
    everywhere = [apply(volume.to_mm, np.array(index)) for index in np.ndindex(volume.voxels.shape)]
    np.testing.assert_allclose(volume.centre_mm, np.mean(everywhere, axis=0), atol=1e-9)


@given(volumes, seeds)
def test_index_and_mm_are_inverse(volume, seed):
    points = np.random.default_rng(seed).normal(size=(2, 5, 3)) * 100
    np.testing.assert_allclose(apply(volume.to_mm, to_index(volume, points)), points, atol=1e-8)


@given(volumes, seeds)
def test_oriented_keeps_the_value_at_every_place(volume, seed):
    directions = rotation(np.random.default_rng(seed))
    turned = oriented(volume, directions)
    assert sorted(turned.voxels.shape[1:]) == sorted(volume.voxels.shape[1:])
    for index in np.ndindex(volume.voxels.shape):
        place = to_index(turned, apply(volume.to_mm, np.array(index, float)))
        there = tuple(np.round(place).astype(int))
        np.testing.assert_allclose(place, there, atol=1e-6)
        assert turned.voxels[there] == volume.voxels[index]
        assert turned.names[there[0]] == volume.names[index[0]]
    assert all(axis @ direction >= -1e-9 for axis, direction in zip(turned.axes, directions, strict=True))


@given(volumes, seeds)
def test_oriented_twice_is_oriented_once(volume, seed):
    directions = rotation(np.random.default_rng(seed))
    once = oriented(volume, directions)
    twice = oriented(once, directions)
    np.testing.assert_array_equal(once.voxels, twice.voxels)
    np.testing.assert_allclose(once.to_mm, twice.to_mm)
    assert once.names == twice.names


def test_oriented_turns_a_mirrored_sagittal_stack_the_same_way_up():
    rng = np.random.default_rng(1)
    volume = Volume(rng.normal(size=(3, 5, 4)), affine(np.zeros(3), SAGITTAL, np.array([4.0, 1.0, 1.0])))
    other = Volume(  # from left to right, upside down, rows and columns exchanged
        np.ascontiguousarray(volume.voxels[::-1, ::-1].transpose(0, 2, 1)),
        affine(np.array([8.0, 0.0, -4.0]), np.array([-LEFT, POSTERIOR, HEAD]), np.array([4.0, 1.0, 1.0])),
    )
    turned = oriented(other, SAGITTAL)
    np.testing.assert_array_equal(turned.voxels, volume.voxels)
    np.testing.assert_allclose(turned.to_mm, volume.to_mm)


@given(seeds, st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 2))
def test_mirrored_reads_the_same_places_backwards(seed, shape, axis):
    rng = np.random.default_rng(seed)
    roi = roi_at(rng.normal(size=3) * 40, rotation(rng), rng.uniform(0.2, 4, 3), shape)
    other = mirrored(roi, axis)
    for index in np.ndindex(shape):
        back = list(index)
        back[axis] = shape[axis] - 1 - index[axis]
        np.testing.assert_allclose(apply(other.to_mm, np.array(index)), apply(roi.to_mm, np.array(back)), atol=1e-9)
    np.testing.assert_allclose(mirrored(other, axis).to_mm, roi.to_mm, atol=1e-9)


@given(seeds, st.tuples(*[st.integers(1, 9)] * 3))
def test_roi_at_is_centred_and_as_wide_as_asked(seed, shape):
    rng = np.random.default_rng(seed)
    centre, axes, spacing = rng.normal(size=3) * 40, rotation(rng), rng.uniform(0.2, 4, 3)
    roi = roi_at(centre, axes, spacing, shape)
    everywhere = [apply(roi.to_mm, np.array(index)) for index in np.ndindex(shape)]
    np.testing.assert_allclose(np.mean(everywhere, axis=0), centre, atol=1e-9)
    np.testing.assert_allclose(roi.centre_mm, centre, atol=1e-9)
    np.testing.assert_allclose(roi.spacing_mm, spacing, atol=1e-9)


@given(volumes, seeds, st.tuples(*[st.integers(1, 8)] * 3))
def test_roi_on_lies_on_the_slices_and_is_centred_in_plane(volume, seed, shape):
    rng = np.random.default_rng(seed)
    point = apply(volume.to_mm, rng.uniform(-1, 7, 3))
    roi = roi_on(volume, point, (0.7, 0.9), shape)
    nearest = round(to_index(volume, point)[0])
    planes = [to_index(volume, apply(roi.to_mm, np.array([d, h, w])))[0] - (nearest + d - shape[0] // 2)
              for d, h, w in np.ndindex(shape)]  # fmt: skip
    np.testing.assert_allclose(planes, 0, atol=1e-7)
    corners = [(shape[0] // 2, h, w) for h in (0, shape[1] - 1) for w in (0, shape[2] - 1)]
    middle = np.mean([to_index(volume, apply(roi.to_mm, np.array(corner))) for corner in corners], axis=0)
    np.testing.assert_allclose(middle[1:], to_index(volume, point)[1:], atol=1e-7)
    np.testing.assert_allclose(roi.spacing_mm[1:], (0.7, 0.9))


@given(seeds, st.tuples(*[st.integers(1, 6)] * 3), st.tuples(*[st.integers(0, 3)] * 3))
def test_grown_keeps_every_old_sample_where_it_was(seed, shape, margin):
    rng = np.random.default_rng(seed)
    roi = roi_at(rng.normal(size=3) * 40, rotation(rng), rng.uniform(0.2, 4, 3), shape)
    wide = grown(roi, margin)
    assert wide.shape == tuple(n + 2 * m for n, m in zip(shape, margin, strict=True))
    for index in np.ndindex(shape):
        moved = np.array(index) + margin
        np.testing.assert_allclose(apply(wide.to_mm, moved), apply(roi.to_mm, np.array(index)), atol=1e-9)


@given(volumes, seeds)
def test_plane_distance_is_the_smallest_over_all_slices(volume, seed):
    point = np.random.default_rng(seed).normal(size=3) * 60
    normal = np.cross(volume.axes[1], volume.axes[2])
    normal /= np.linalg.norm(normal)
    slices = [apply(volume.to_mm, np.array([z, 0, 0])) for z in range(volume.voxels.shape[0])]
    expected = min(abs(normal @ (point - corner)) for corner in slices)
    assert plane_distance_mm(volume, point) == pytest.approx(expected, abs=1e-6)


@given(volumes, seeds)
def test_outside_is_zero_inside_and_the_distance_to_the_edge_beyond(volume, seed):
    rng = np.random.default_rng(seed)
    size = np.array(volume.voxels.shape)
    inside = apply(volume.to_mm, rng.uniform(-0.49, size - 0.51))
    assert outside_mm(volume, inside) == pytest.approx(0, abs=1e-6)
    over = rng.uniform(0, 9)
    beyond = apply(volume.to_mm, np.array([rng.uniform(0, size[0] - 1), size[1] - 0.5 + over, size[2] / 2 - 0.5]))
    assert outside_mm(volume, beyond) == pytest.approx(over * volume.spacing_mm[1], abs=1e-6)


def test_values_are_frozen():
    roi = Roi(np.eye(4), (1, 2, 3))
    with pytest.raises(AttributeError):
        roi.shape = (3, 2, 1)  # type: ignore[misc]


@settings(max_examples=20)
@given(volumes)
def test_patient_left_is_the_last_slice_of_an_oriented_sagittal_stack(volume):
    turned = oriented(volume, SAGITTAL)
    first, last = apply(turned.to_mm, np.zeros(3)), apply(turned.to_mm, np.array([volume.voxels.shape[0] - 1, 0, 0]))
    assert last[0] >= first[0] - 1e-9
    assert oriented(volume, AXIAL).voxels.shape[0] == volume.voxels.shape[0]

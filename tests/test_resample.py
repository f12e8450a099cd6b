"""One sampler for every crop: it gives the voxels back, follows the patient, and equals its slow definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.imaging import resample, upright
from osteograde.imaging.geometry import Roi, Volume, affine, apply, mirrored, oriented, roi_at, roi_on
from osteograde.imaging.resample import crop_stack, crop_stacks, oversample_for, sample, sample_reference
from tests.grids import random_volume, rotation

CPU = torch.device("cpu")
seeds = st.integers(0, 2**31)


def stack_of(rng: np.random.Generator, shape=(7, 24, 20), sheared: bool = False) -> Volume:
    to_mm = affine(rng.normal(size=3) * 50, rotation(rng), rng.uniform([2, 0.3, 0.3], [6, 1.2, 1.2]))
    if sheared:
        to_mm[:3, 0] += to_mm[:3, 1] * rng.uniform(-1, 1)
    return Volume(rng.integers(0, 256, shape).astype(np.uint8), to_mm)


def fast(volume: Volume, roi: Roi, oversample: int = 1) -> np.ndarray:
    voxels = torch.from_numpy(np.ascontiguousarray(volume.voxels))
    return sample(voxels, volume.to_mm, roi.to_mm[None], roi.shape, oversample)[0].numpy()


@pytest.mark.parametrize("sampler", [fast, sample_reference])
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_volumes_own_grid_gives_its_voxels(sampler, seed):
    volume = random_volume(np.random.default_rng(seed), bool(seed % 2))
    own = Roi(volume.to_mm, volume.voxels.shape)
    np.testing.assert_allclose(sampler(volume, own), volume.voxels, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 4))
def test_boxes_in_any_direction_agree_with_the_reference(seed, oversample):
    rng = np.random.default_rng(seed)
    volume = stack_of(rng, sheared=bool(seed % 2))
    centre = volume.centre_mm + rng.normal(size=3) * 6
    roi = roi_at(centre, rotation(rng), rng.uniform(0.4, 3, 3), tuple(rng.integers(1, 14, 3)))
    assert abs(fast(volume, roi, oversample) - sample_reference(volume, roi, oversample)).max() < 0.05


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 3))
def test_boxes_on_the_slices_agree_with_the_reference(seed, oversample):
    rng = np.random.default_rng(seed)
    volume = stack_of(rng, sheared=bool(seed % 2))
    point = apply(volume.to_mm, rng.uniform(-3, np.array(volume.voxels.shape) + 3))
    roi = roi_on(volume, point, tuple(rng.uniform(0.3, 2, 2)), tuple(rng.integers(1, 12, 3)))
    roi = mirrored(roi, int(rng.integers(3)))
    expected = sample_reference(volume, roi, oversample)
    assert abs(fast(volume, roi, oversample) - expected).max() < 0.05
    assert abs(crop_stack(volume, roi, CPU, oversample).numpy() * 255 - expected).max() < 0.05


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_turned_in_plane_boxes_on_the_slices_agree_with_the_reference(seed):
    rng = np.random.default_rng(seed)
    volume = stack_of(rng)
    roi = roi_on(volume, volume.centre_mm, (0.8, 0.8), (3, 15, 11))
    turn = np.eye(4)
    angle = rng.uniform(-3, 3)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    roi = Roi(roi.to_mm @ turn, roi.shape)
    assert resample._slices_of(np.linalg.inv(volume.to_mm) @ roi.to_mm, roi.shape) is not None
    assert abs(fast(volume, roi) - sample_reference(volume, roi)).max() < 0.05


def test_the_two_ways_agree_on_the_same_box(monkeypatch):
    rng = np.random.default_rng(5)
    volume = stack_of(rng, sheared=True)
    roi = roi_on(volume, volume.centre_mm, (0.9, 0.7), (5, 12, 14))
    by_slices = fast(volume, roi, 2)
    monkeypatch.setattr(resample, "_slices_of", lambda *_: None)
    assert abs(by_slices - fast(volume, roi, 2)).max() < 0.05


def test_an_aligned_box_equals_slicing():
    rng = np.random.default_rng(6)
    volume = Volume(rng.integers(0, 255, (6, 30, 40)).astype(np.uint8), affine(np.ones(3), np.eye(3), [4.0, 0.5, 0.5]))
    roi = roi_on(volume, apply(volume.to_mm, np.array([2.3, 14.0, 20.0])), (0.5, 0.5), (3, 11, 7))
    np.testing.assert_allclose(fast(volume, roi), volume.voxels[1:4, 9:20, 17:24], atol=1e-3)


def test_slices_outside_the_stack_are_zero_and_inside_are_not():
    volume = Volume(np.full((3, 20, 20), 200, np.uint8), affine(np.zeros(3), np.eye(3), [4.0, 1.0, 1.0]))
    roi = roi_on(volume, apply(volume.to_mm, np.array([0.0, 9.5, 9.5])), (1.0, 1.0), (5, 8, 8))
    crop = fast(volume, roi)
    np.testing.assert_array_equal(crop[:2], 0)
    np.testing.assert_allclose(crop[2:], 200, atol=1e-3)


def test_a_box_far_away_is_zero():
    volume = stack_of(np.random.default_rng(7))
    for axes in (volume.axes, rotation(np.random.default_rng(8))):
        roi = roi_at(volume.centre_mm + 1e4, axes, [1.0, 1.0, 1.0], (2, 5, 5))
        assert not fast(volume, roi).any()
        assert not crop_stack(volume, roi, CPU).numpy().any()


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(0, 2))
def test_a_mirrored_box_gives_the_flipped_crop(seed, axis):
    rng = np.random.default_rng(seed)
    volume = stack_of(rng)
    roi = roi_at(volume.centre_mm, rotation(rng), [2.0, 0.7, 0.7], (4, 9, 8))
    np.testing.assert_allclose(fast(volume, mirrored(roi, axis)), np.flip(fast(volume, roi), axis), atol=0.05)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_a_bright_voxel_at_a_landmark_lands_on_the_crop_centre(seed):
    rng = np.random.default_rng(seed)
    volume = stack_of(rng)
    voxels = np.zeros_like(volume.voxels)
    index = tuple(int(rng.integers(2, n - 2)) for n in voxels.shape)
    voxels[index] = 255
    volume = Volume(voxels, volume.to_mm)
    mm = apply(volume.to_mm, np.array(index, float))
    for roi in (roi_at(mm, rotation(rng), [1.0, 0.5, 0.5], (5, 7, 9)), roi_on(volume, mm, (0.3, 0.3), (5, 7, 9))):
        crop = fast(volume, roi)
        assert crop[2, 3, 4] == pytest.approx(255, abs=0.05)
        assert np.unravel_index(crop.argmax(), crop.shape) == (2, 3, 4) or crop.max() < 255.05


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_moving_patient_and_box_together_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    volume = stack_of(rng)
    move = affine(rng.normal(size=3) * 30, rotation(rng), np.ones(3))
    roi = roi_at(volume.centre_mm + rng.normal(size=3), rotation(rng), [1.5, 0.6, 0.6], (4, 8, 8))
    there = fast(Volume(volume.voxels, move @ volume.to_mm), Roi(move @ roi.to_mm, roi.shape))
    np.testing.assert_allclose(there, fast(volume, roi), atol=0.05)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_how_a_stack_is_stored_does_not_change_a_crop(seed):
    rng = np.random.default_rng(seed)
    volume = stack_of(rng)
    turned = oriented(volume, rotation(rng))
    for roi in (
        roi_at(volume.centre_mm, rotation(rng), [1.5, 0.6, 0.6], (4, 8, 8)),
        roi_on(volume, volume.centre_mm, (0.6, 0.6), (3, 8, 8)),
    ):
        crops = [crop_stack(which, roi, CPU).numpy() for which in (volume, turned)]
        np.testing.assert_allclose(*crops, atol=1e-3)


def test_oversampling_is_the_mean_of_the_points_in_a_cell():
    rng = np.random.default_rng(9)
    volume = Volume(rng.integers(0, 255, (1, 40, 40)).astype(np.uint8), np.eye(4))
    roi = roi_at(volume.centre_mm, np.eye(3), [1.0, 4.0, 4.0], (1, 10, 10))
    blocks = volume.voxels.reshape(1, 10, 4, 10, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(fast(volume, roi, 4), blocks, atol=0.01)
    np.testing.assert_allclose(sample_reference(volume, roi, 4), blocks, atol=1e-4)
    np.testing.assert_allclose(crop_stack(volume, roi, CPU).numpy() * 255, blocks, atol=0.01)  # chosen by itself


@pytest.mark.parametrize(("ratio", "expected"), [(0.3, 1), (1.0, 1), (1.0000001, 1), (1.01, 2), (2.9, 3), (9.0, 4)])
def test_oversample_grows_with_the_ratio_up_to_four(ratio, expected):
    own = np.array([4.0, 0.5, 0.5])
    assert oversample_for(own, own * [1.0, ratio, ratio]) == expected
    assert oversample_for(own, own * [1.0, 1.0, ratio]) == expected


def test_many_boxes_equal_one_at_a_time_and_chunks_equal_the_whole(monkeypatch):
    rng = np.random.default_rng(10)
    volume = stack_of(rng)
    shape = (5, 9, 8)
    rois = [roi_at(volume.centre_mm, rotation(rng), [1.5, 0.6, 0.6], shape) for _ in range(3)]
    rois += [roi_on(volume, volume.centre_mm + rng.normal(size=3), (0.6, 0.6), shape) for _ in range(3)]
    singly = np.stack([fast(volume, roi) for roi in rois])
    monkeypatch.setattr(resample, "CHUNK_SAMPLES", 150)
    for dtype in (torch.uint8, torch.float32, torch.int16):
        voxels = torch.from_numpy(volume.voxels).to(dtype)
        many = sample(voxels, volume.to_mm, np.stack([roi.to_mm for roi in rois]), shape).numpy()
        np.testing.assert_allclose(many, singly, atol=0.02)


def test_a_radiograph_is_a_stack_of_one_slice():
    rng = np.random.default_rng(11)
    film = Volume(
        rng.integers(0, 255, (1, 300, 200)).astype(np.uint8), affine(np.zeros(3), np.eye(3), [1.0, 0.15, 0.15])
    )
    roi = roi_on(film, apply(film.to_mm, np.array([0.0, 150.0, 100.0])), (0.15, 0.15), (1, 65, 65))
    np.testing.assert_allclose(fast(film, roi)[0], film.voxels[0, 118:183, 68:133], atol=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_agrees_with_the_reference():
    rng = np.random.default_rng(12)
    volume = stack_of(rng)
    for roi in (
        roi_at(volume.centre_mm, rotation(rng), [1.5, 0.6, 0.6], (4, 8, 8)),
        roi_on(volume, volume.centre_mm, (1.6, 0.6), (3, 8, 8)),
    ):
        crop = crop_stack(volume, roi, torch.device("cuda"), 2)
        assert crop.is_cuda
        assert abs(crop.cpu().numpy() * 255 - sample_reference(volume, roi, 2)).max() < 0.1


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_many_boxes_cut_together_equal_the_slow_definition_and_each_cut_alone(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 3))
    volumes = [oriented(stack_of(rng, tuple(rng.integers(1, 40, 3)), sheared=bool(seed % 2)), np.eye(3)) for _ in "ab"]
    boxes = []
    for number in range(6):
        volume = volumes[number % 2]
        point = apply(volume.to_mm, rng.uniform(-4, np.array(volume.voxels.shape) + 4))
        on_slices = roi_on(volume, point, tuple(rng.uniform(0.2, 3, 2)), shape)
        boxes.append((volume, mirrored(on_slices, int(rng.integers(3)))))
    boxes.append((volumes[0], roi_at(volumes[0].centre_mm, rotation(rng), [2.0, 0.7, 0.7], shape)))
    together = crop_stacks(boxes, CPU).numpy()
    for crop, (volume, box) in zip(together, boxes, strict=True):
        points = oversample_for(volume.spacing_mm, box.spacing_mm)
        np.testing.assert_allclose(crop, sample_reference(volume, box, points) / 255, atol=2e-4)
        np.testing.assert_array_equal(crop, crop_stack(volume, box, CPU).numpy())


def test_large_slices_are_cut_one_by_one_to_the_same_values(monkeypatch):
    volume = stack_of(np.random.default_rng(12), (5, 90, 70))
    box = roi_on(volume, volume.centre_mm, (1.1, 0.9), (7, 40, 50))
    together = crop_stack(volume, box, CPU).numpy()
    monkeypatch.setattr(upright, "CACHED_VOXELS", 1)
    np.testing.assert_allclose(crop_stack(volume, box, CPU).numpy(), together, atol=1e-6)

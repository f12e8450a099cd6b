"""Targets, loss and decoding of locators, against obvious numpy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.models.locators.base import (
    LocatorBatch,
    candidates,
    heatmap_loss,
    in_order,
    lateral_on_map,
    probabilities,
    refined,
    side_mask,
    stack_peaks,
)
from tests.locator_maps import decode, decode_probabilities, targets

PIXEL_MM, SLICE_MM, STRIDE = 1.5, 4.0, 4
DEPTHS = (5, 3)
HEIGHT, WIDTH = 48, 64
CHANNEL, SIDE = (0, 0, 1), (-1, 1, 0)


def make_batch(points: np.ndarray, *, across: bool = False) -> LocatorBatch:
    """Two stacks of 5 and 3 slices. across: right and left differ by slice (sagittal), else by column (axial)."""
    stack = torch.repeat_interleave(torch.arange(2), torch.tensor(DEPTHS))
    lateral = (torch.arange(WIDTH).float() - (WIDTH - 1) / 2).expand(sum(DEPTHS), -1) * PIXEL_MM
    if across:
        order = torch.cat([torch.arange(n) - (n - 1) / 2 for n in DEPTHS])
        lateral = order[:, None].expand(-1, WIDTH) * SLICE_MM
    return LocatorBatch(
        images=torch.zeros(sum(DEPTHS), 4, HEIGHT, WIDTH),
        stack=stack,
        points=torch.from_numpy(points).float(),
        channel=torch.tensor(CHANNEL),
        side=torch.tensor(SIDE),
        lateral=lateral.contiguous(),
        pixel_mm=PIXEL_MM,
        slice_mm=SLICE_MM,
        sigma_mm=5.0,
    )


def some_points() -> np.ndarray:
    nan = [np.nan] * 3
    return np.array([[[1.2, 20, 12], [3.4, 25.5, 50], [2, 10, 30.25]], [[0.4, 30, 9], nan, [1.5, 33, 40]]])


def slow_targets(batch: LocatorBatch) -> np.ndarray:
    """(N, L, h, w), place by place."""
    out = np.zeros((sum(DEPTHS), len(SIDE), HEIGHT // STRIDE, WIDTH // STRIDE))
    starts = np.cumsum([0, *DEPTHS])
    for b, points in enumerate(batch.points.numpy()):
        for number, point in enumerate(points):
            if np.isnan(point).any():
                continue
            for n in range(starts[b], starts[b + 1]):
                for i in range(out.shape[2]):
                    for j in range(out.shape[3]):
                        lateral = batch.lateral[n, j * STRIDE : (j + 1) * STRIDE].numpy().mean()
                        if SIDE[number] and lateral * SIDE[number] <= 0:
                            continue
                        row, column = (i + 0.5) * STRIDE - 0.5, (j + 0.5) * STRIDE - 0.5
                        in_plane = ((row - point[1]) ** 2 + (column - point[2]) ** 2) * (PIXEL_MM / 5.0) ** 2
                        out[n, number, i, j] = np.exp(-0.5 * (in_plane + ((n - starts[b] - point[0]) / 0.5) ** 2))
            rows = slice(starts[b], starts[b + 1])
            out[rows, number] /= out[rows, number].sum()
    return out


def slow_probabilities(logits: np.ndarray, batch: LocatorBatch) -> np.ndarray:
    out = np.zeros((logits.shape[0], len(SIDE), *logits.shape[2:]))
    lateral = batch.lateral.numpy().reshape(len(out), -1, STRIDE).mean(-1)
    for b in range(2):
        rows = np.flatnonzero(batch.stack.numpy() == b)
        for number, channel in enumerate(CHANNEL):
            allowed = np.ones((len(rows), 1, logits.shape[3]), bool)
            if SIDE[number]:
                allowed = (lateral[rows] * SIDE[number] > 0)[:, None]
            e = np.exp(logits[rows, channel]) * allowed
            out[rows, number] = e / e.sum()
    return out


@pytest.mark.parametrize("across", [False, True])
def test_targets_loss_and_probabilities_equal_loops(across: bool) -> None:
    points = some_points()
    if across:  # the right lies on the first slices, the left on the last
        points[0, 0, 0], points[0, 1, 0], points[1, 0, 0] = 0.8, 3.2, 0.1
    batch = make_batch(points, across=across)
    expected = slow_targets(batch)
    assert np.allclose(targets(batch, (HEIGHT // STRIDE, WIDTH // STRIDE)).numpy(), expected, atol=1e-6)
    logits = np.random.default_rng(0).normal(0, 2, (sum(DEPTHS), 2, *expected.shape[2:]))
    own = slow_probabilities(logits, batch)
    found = probabilities(torch.from_numpy(logits), batch.stack, batch.channel, batch.side, batch.lateral)
    assert np.allclose(found.numpy(), own, atol=1e-6)
    losses = []
    for b in range(2):
        rows = np.flatnonzero(batch.stack.numpy() == b)
        for number in range(len(SIDE)):
            if expected[rows, number].sum() > 0:
                t, p = expected[rows, number], own[rows, number]
                losses.append(-(t[t > 0] * np.log(p[t > 0])).sum())
    assert len(losses) == 5
    assert float(heatmap_loss(torch.from_numpy(logits), batch)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_is_in_full_precision_under_autocast() -> None:
    """Its logits may come in half precision, but what it sums up of them does not lose any more."""
    batch = make_batch(some_points())
    height, width = (side // STRIDE for side in batch.images.shape[-2:])
    logits = 20 * torch.rand(len(batch.stack), 2, height, width, generator=torch.Generator().manual_seed(3))
    expected = heatmap_loss(logits, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(heatmap_loss(logits, batch)) == pytest.approx(float(expected), abs=1e-5)


def test_points_that_cannot_be_taught_are_left_out() -> None:
    points = some_points()
    wrong_side, far_slice, outside = points.copy(), points.copy(), points.copy()
    wrong_side[0, 0, 2] = 50
    far_slice[0, 0, 0] = 6.5
    outside[0, 0, 1] = HEIGHT + 3
    for case in (wrong_side, far_slice, outside):
        taught = targets(make_batch(case), (HEIGHT // STRIDE, WIDTH // STRIDE)).sum((2, 3))
        assert float(taught[:5, 0].sum()) == 0
        assert float(taught[:5, 1].sum()) == pytest.approx(1, abs=1e-5)


def test_nothing_labelled_gives_zero_loss_and_finite_gradients() -> None:
    logits = torch.randn(sum(DEPTHS), 2, HEIGHT // STRIDE, WIDTH // STRIDE, requires_grad=True)
    loss = heatmap_loss(logits, make_batch(np.full((2, 3, 3), np.nan)))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_a_stack_wholly_on_the_other_side_finds_nothing_and_breaks_nothing() -> None:
    batch = make_batch(some_points())
    logits = torch.randn(sum(DEPTHS), 2, HEIGHT // STRIDE, WIDTH // STRIDE, requires_grad=True)
    lateral = batch.lateral.abs() + 1  # everything is left
    index, confidence = decode(
        logits, batch.stack, batch.channel, batch.side, lateral, pixel_mm=PIXEL_MM, slice_mm=SLICE_MM
    )
    assert index[:, 0].isnan().all()
    assert (confidence[:, 0] == 0).all()
    assert index[:, 1:].isfinite().all()
    loss = heatmap_loss(logits, LocatorBatch(**{**vars(batch), "lateral": lateral}))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def blob(point: np.ndarray, sigma_px: float, stride: int, size: tuple[int, int], depth: int) -> torch.Tensor:
    """Logits (D, 1, h, w) of a gaussian around an index in input pixels."""
    z = torch.arange(depth)[:, None, None]
    rows, columns = ((torch.arange(n) + 0.5) * stride - 0.5 for n in size)
    in_plane = ((rows - point[1]) ** 2)[:, None] + ((columns - point[2]) ** 2)[None]
    return (-0.5 * (in_plane / sigma_px**2 + ((z - point[0]) / 0.5) ** 2))[:, None]


@settings(max_examples=60, deadline=None)
@given(
    z=st.floats(1, 4),
    row=st.floats(30, 98),
    column=st.floats(30, 98),
    stride=st.sampled_from([1, 2, 4]),
    sigma_map=st.floats(0.8, 2.5),
)
def test_a_gaussian_decodes_to_its_own_place(
    z: float, row: float, column: float, stride: int, sigma_map: float
) -> None:
    point = np.array([z, row, column])
    size = (128 // stride, 128 // stride)
    logits = blob(point, sigma_map * stride, stride, size, 6)
    one = torch.zeros(1, dtype=torch.long)
    index, confidence = decode(
        logits, torch.zeros(6, dtype=torch.long), one, one, torch.zeros(6, 128), pixel_mm=1.0, slice_mm=4.0
    )
    error = (index[0, 0].numpy() - point)[1:]
    assert np.abs(error).max() < 0.1
    assert abs(float(index[0, 0, 0]) - z) < 0.1
    assert 0 < float(confidence[0, 0]) <= 1 + 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), across=st.booleans())
def test_a_right_landmark_never_lands_on_the_left(seed: int, across: bool) -> None:
    batch = make_batch(some_points(), across=across)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (sum(DEPTHS), 2, 12, 16)))
    index, _ = decode(
        logits, batch.stack, batch.channel, batch.side, batch.lateral, pixel_mm=PIXEL_MM, slice_mm=SLICE_MM
    )
    starts = (0, DEPTHS[0])
    for b in range(2):
        for number, side in enumerate(SIDE):
            z, _, column = index[b, number].tolist()
            if across:
                lateral = (z - (DEPTHS[b] - 1) / 2) * SLICE_MM
            else:
                lateral = float(np.interp(column, np.arange(WIDTH), batch.lateral[starts[b]].numpy()))
            assert side == 0 or lateral * side > 0


def test_the_midline_is_on_neither_side() -> None:
    mask = side_mask(torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor([-1, 0, 1]))
    assert mask[0].tolist() == [[True, False, False], [True, True, True], [False, False, True]]
    assert lateral_on_map(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 2).tolist() == [[0.5, 2.5]]


def test_decoding_one_fold_equals_decoding_its_probabilities_and_folds_average() -> None:
    batch = make_batch(some_points())
    size = (HEIGHT // STRIDE, WIDTH // STRIDE)
    logits = [torch.randn(sum(DEPTHS), 2, *size, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    args = (batch.stack, batch.channel, batch.side, batch.lateral)
    folds = [probabilities(fold, *args) for fold in logits]
    scale = {"pixel_mm": PIXEL_MM, "slice_mm": torch.tensor([SLICE_MM, SLICE_MM])}
    index, confidence = decode(logits[0], *args, **scale)
    again = decode_probabilities(folds[0], batch.stack, stride=STRIDE, **scale)
    assert torch.equal(index, again.index)
    assert torch.equal(confidence, again.confidence)
    mean = decode_probabilities((folds[0] + folds[1]) / 2, batch.stack, stride=STRIDE, **scale)
    sums = ((folds[0] + folds[1]) / 2).new_zeros(2, 3).index_add(0, batch.stack, folds[0].sum((2, 3)))
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
    assert (mean.confidence <= 1 + 1e-5).all()


def test_confidence_is_the_mass_within_ten_mm() -> None:
    found = torch.zeros(3, 1, 32, 32)
    found[1, 0, 10, 10], found[1, 0, 10, 14], found[1, 0, 30, 30], found[0, 0, 10, 10] = 0.5, 0.2, 0.2, 0.1
    one = torch.zeros(3, dtype=torch.long)
    near = decode_probabilities(found, one, stride=1, pixel_mm=2.0, slice_mm=20.0)
    assert float(near.confidence) == pytest.approx(0.7, abs=1e-6)  # the neighbour slice is 20 mm away
    assert float(decode_probabilities(found, one, stride=1, pixel_mm=2.0, slice_mm=4.0).confidence) == pytest.approx(
        0.8, abs=1e-6
    )


def slow_peak(found: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(found.argmax(), found.shape))


def test_peaks_and_candidates_equal_a_loop() -> None:
    rng = np.random.default_rng(5)
    stack = np.repeat([0, 1], DEPTHS)
    found = rng.random((sum(DEPTHS), 2, 12, 16))
    peaks, scores = candidates(torch.from_numpy(found), torch.from_numpy(stack), count=4, apart_px=3)
    assert torch.equal(peaks[:, :, 0], stack_peaks(torch.from_numpy(found), torch.from_numpy(stack)))
    for b in range(2):
        for number in range(2):
            left = found[stack == b, number].copy()
            for k in range(4):
                peak = slow_peak(left)
                assert tuple(peaks[b, number, k].tolist()) == (peak if left.max() > 0 else (-1, -1, -1))
                left[:, max(peak[1] - 3, 0) : peak[1] + 4, max(peak[2] - 3, 0) : peak[2] + 4] = 0
    assert (scores >= 0).all()


def test_levels_in_order_undo_a_swap_and_a_doubled_level() -> None:
    """Five levels 30 mm apart; the third looks even more like the second, the fifth like nothing plausible."""
    true = np.array([[2.0, 20 + 30 * k, 40.0] for k in range(5)])
    maps = torch.cat([torch.exp(blob(p, 3.0, 1, (160, 80), 4)) for p in true], 1)
    decoy = true[[1, 1, 1, 3, 0]]
    wrong = torch.cat([torch.exp(blob(p, 3.0, 1, (160, 80), 4)) for p in decoy], 1)
    weight = torch.tensor([0.0, 0.0, 1.5, 0.0, 1.2])[None, :, None, None]
    found = maps + weight * wrong
    found = found / found.sum((0, 2, 3), keepdim=True)
    stack = torch.zeros(4, dtype=torch.long)
    naive = stack_peaks(found, stack)[0]
    assert naive[2].tolist() == true[1].astype(int).tolist()
    peaks, scores = candidates(found, stack)
    chosen = in_order(peaks, scores, [range(5)], map_pixel_mm=1.0)
    index, _ = refined(found, stack, chosen, stride=1, pixel_mm=1.0, slice_mm=4.0)
    assert np.abs(index[0].numpy() - true).max() < 0.5


def test_order_is_the_best_of_all_choices() -> None:
    """Dynamic programming against trying every combination."""
    rng = np.random.default_rng(8)
    peaks = torch.from_numpy(rng.integers(0, 90, (6, 4, 3, 3)))
    scores = torch.from_numpy(rng.random((6, 4, 3)))
    chosen = in_order(peaks, scores, [[0, 1, 2, 3]], map_pixel_mm=1.0, penalty=1.0)

    def value(b: int, pick: tuple[int, ...]) -> float:
        places = [peaks[b, i, k, 1:].numpy() for i, k in enumerate(pick)]
        steps = np.diff(np.array(places, float), axis=0)
        distance = np.linalg.norm(steps, axis=1)
        bad = (steps[:, 0] <= 0) | (distance < 18) | (distance > 60)
        return float(sum(np.log(float(scores[b, i, k])) for i, k in enumerate(pick)) - bad.sum())

    for b in range(6):
        best = max(np.ndindex(3, 3, 3, 3), key=lambda pick: value(b, pick))
        assert torch.equal(chosen[b], torch.stack([peaks[b, i, k] for i, k in enumerate(best)]))


def test_landmarks_outside_of_chains_keep_their_peak() -> None:
    peaks = torch.arange(2 * 3 * 2 * 3).reshape(2, 3, 2, 3)
    assert torch.equal(in_order(peaks, torch.rand(2, 3, 2), [], map_pixel_mm=1.0), peaks[:, :, 0])

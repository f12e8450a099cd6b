"""From probability maps to points: peaks, their refinement below a pixel, and levels in a plausible order.

Shape legend: B stacks, N slices, L landmarks, h w map pixels, K candidates. A peak is (slice within the stack, row,
column) in whole *map* pixels; an index is the same in continuous *input* pixels (see ``locator``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

NEAR_MM = 10.0  # confidence = probability this near to the point
_WINDOW = 1.5  # sigma, in map pixels, of the window in which a peak is refined
_REACH = 4  # the window is cut off this many map pixels from the peak
_STEPS = 12


@dataclass(frozen=True, eq=False)
class Decoded:
    index: torch.Tensor  # (B, L, 3)
    confidence: torch.Tensor  # (B, L)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.index, self.confidence))


def start_of(stack: torch.Tensor, stacks: int) -> torch.Tensor:
    """(B,) row of each stack's first slice."""
    counts = torch.bincount(stack, minlength=stacks)
    return counts.cumsum(0) - counts


def stack_peaks(found: torch.Tensor, stack: torch.Tensor) -> torch.Tensor:
    """Highest place of every landmark: (N, L, h, w) -> (B, L, 3) whole map pixels; (-1, -1, -1) where all is 0."""
    stacks = int(stack.max()) + 1 if len(stack) else 0
    flat = found.flatten(2)
    value = flat.amax(-1)  # (N, L); where it lies is looked up on the best slice alone
    counts, start = torch.bincount(stack, minlength=stacks), start_of(stack, stacks)
    order = torch.arange(len(stack), device=stack.device) - start[stack]
    padded = value.new_full((stacks, int(counts.max()) if stacks else 0, value.shape[1]), -1.0)
    padded[stack, order] = value
    best, where = padded.max(1)  # (B, L)
    place = flat[start[:, None] + where, torch.arange(flat.shape[1], device=flat.device)].argmax(-1)
    peak = torch.stack([where, place // found.shape[-1], place % found.shape[-1]], -1)
    return torch.where(best[..., None] > 0, peak, torch.full_like(peak, -1))


def refined(
    found: torch.Tensor,
    stack: torch.Tensor,
    peak: torch.Tensor,
    *,
    stride: int,
    pixel_mm: float,
    slice_mm: float | torch.Tensor,
) -> Decoded:
    """Points around whole-pixel peaks (B, L, 3).

    Across slices: the mean over the peak's slice and its neighbours. In-plane: a window is moved until it is centred
    on the mean of what it sees; unlike one mean over a fixed window this is not pulled towards the peak's pixel
    when the blob is wider than the window.
    """
    patch, slices = _patches(found, stack, peak)  # (B, L, 3, S, S)
    depth = patch.sum((-2, -1))
    z = (depth * slices).sum(-1) / depth.sum(-1).clamp_min(1e-30)
    flat = patch.sum(2)
    flat = flat / flat.sum((-2, -1), keepdim=True).clamp_min(1e-30)
    offset = torch.arange(-_REACH, _REACH + 1, device=found.device, dtype=found.dtype)
    row = column = torch.zeros_like(z)
    for _ in range(_STEPS):
        down = torch.exp(-0.5 * ((offset - row[..., None]) / _WINDOW) ** 2)
        along = torch.exp(-0.5 * ((offset - column[..., None]) / _WINDOW) ** 2)
        seen = flat * down[..., None] * along[..., None, :]
        mass = seen.sum((-2, -1)).clamp_min(1e-30)
        row = (seen.sum(-1) * offset).sum(-1) / mass
        column = (seen.sum(-2) * offset).sum(-1) / mass
    index = torch.stack([z, peak[..., 1] + row, peak[..., 2] + column], -1)
    index[..., 1:] = (index[..., 1:] + 0.5) * stride - 0.5
    absent = peak[..., 0] < 0
    confidence = _near(found, stack, index, stride, pixel_mm, slice_mm)
    index = torch.where(absent[..., None], torch.full_like(index, torch.nan), index)
    return Decoded(index, torch.where(absent, torch.zeros_like(confidence), confidence))


def candidates(
    found: torch.Tensor, stack: torch.Tensor, *, count: int = 5, apart_px: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` highest places that lie more than ``apart_px`` map pixels apart in-plane.

    (N, L, h, w) -> peaks (B, L, K, 3) and their probability (B, L, K), highest first; (-1, -1, -1) and 0 when there
    are fewer.
    """
    # A place that is taken is taken on all slices, so one map a stack is enough.
    parts = found.split(torch.bincount(stack).tolist())
    left = torch.stack([part.amax(0) for part in parts])
    free, alone = torch.ones_like(left), torch.arange(len(left), device=found.device)
    peaks, scores = [], []
    each = torch.arange(found.shape[1], device=found.device)
    rows, columns = (torch.arange(n, device=found.device) for n in found.shape[-2:])
    for _ in range(count):
        flat = stack_peaks(left, alone)  # (B, L, 3)
        row, column = flat[..., 1].clamp_min(0), flat[..., 2].clamp_min(0)
        z = torch.stack([part[:, each, y, x].argmax(0) for part, y, x in zip(parts, row, column, strict=True)])
        peak = torch.where(flat[..., :1] < 0, flat, torch.stack([z, flat[..., 1], flat[..., 2]], -1))
        kept = _patches(free, alone, flat)[0].amax(2, keepdim=True)  # the free map has one slice: the middle of three
        patch = _patches(found, stack, peak)[0] * kept
        peaks.append(peak)
        scores.append(patch.sum((2, 3, 4)) * (peak[..., 0] >= 0))
        near_row = (rows - peak[..., 1:2]).abs() <= apart_px
        near_column = (columns - peak[..., 2:3]).abs() <= apart_px
        taken = near_row[..., None] & near_column[..., None, :]
        left, free = left.masked_fill(taken, 0.0), free.masked_fill(taken, 0.0)
    return torch.stack(peaks, 2), torch.stack(scores, 2)


def in_order(
    peaks: torch.Tensor,
    scores: torch.Tensor,
    chains: Sequence[Sequence[int]],
    *,
    map_pixel_mm: float,
    spacing_mm: tuple[float, float] = (18.0, 60.0),
    penalty: float = 6.0,
) -> torch.Tensor:
    """Choose one candidate per landmark so that every chain (landmark numbers, top first) descends the image.

    peaks (B, L, K, 3), scores (B, L, K) as from ``candidates`` -> (B, L, 3). Dynamic programming: log scores, minus
    ``penalty`` for each pair of neighbours that does not descend, or whose in-plane distance is outside spacing_mm.
    Landmarks in no chain keep their highest peak.
    """
    chosen = peaks[:, :, 0].clone()
    value = scores.clamp_min(1e-9).log()
    batch = torch.arange(len(peaks), device=peaks.device)
    for chain in chains:
        total, back = value[:, chain[0]], []
        for above, below in pairwise(chain):
            step = (peaks[:, below, :, None, 1:] - peaks[:, above, None, :, 1:]).float() * map_pixel_mm
            distance = step.norm(dim=-1)  # (B, K below, K above)
            bad = (step[..., 0] <= 0) | (distance < spacing_mm[0]) | (distance > spacing_mm[1])
            best, where = (total[:, None] - penalty * bad).max(-1)
            back.append(where)
            total = best + value[:, below]
        pick = total.argmax(-1)
        for landmark, where in zip(reversed(chain), [*reversed(back), None], strict=True):
            chosen[:, landmark] = peaks[batch, landmark, pick]
            pick = pick if where is None else where[batch, pick]
    return chosen


def _patches(
    found: torch.Tensor, stack: torch.Tensor, peak: torch.Tensor, reach: int = _REACH, deep: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Surroundings of peaks: (B, L, Z, S, S), 0 outside the stack and the map, and their slice numbers (B, L, Z).

    S = 2 reach + 1 map pixels, Z = 2 deep + 1 slices.
    """
    counts, start = torch.bincount(stack, minlength=len(peak)), start_of(stack, len(peak))
    away = torch.arange(-reach, reach + 1, device=found.device)
    slices = peak[..., :1] + torch.arange(-deep, deep + 1, device=found.device)  # (B, L, Z)
    rows, columns = peak[..., 1:2] + away, peak[..., 2:3] + away  # (B, L, S)
    n = (start[:, None, None] + slices).clamp(0, max(len(stack) - 1, 0))
    landmark = torch.arange(found.shape[1], device=found.device)
    patch = found[
        n[..., None, None],
        landmark[None, :, None, None, None],
        rows.clamp(0, found.shape[-2] - 1)[:, :, None, :, None],
        columns.clamp(0, found.shape[-1] - 1)[:, :, None, None, :],
    ]
    inside = ((slices >= 0) & (slices < counts[:, None, None]))[..., None, None]
    inside = inside & ((rows >= 0) & (rows < found.shape[-2]))[:, :, None, :, None]
    inside = inside & ((columns >= 0) & (columns < found.shape[-1]))[:, :, None, None, :]
    return patch * inside, slices


def _near(
    found: torch.Tensor,
    stack: torch.Tensor,
    index: torch.Tensor,
    stride: int,
    pixel_mm: float,
    slice_mm: float | torch.Tensor,
) -> torch.Tensor:
    """(B, L): probability within NEAR_MM of each index."""
    slice_mm = torch.as_tensor(slice_mm, device=found.device, dtype=found.dtype).expand(len(index))
    if not len(index):
        return found.new_zeros(index.shape[:2])
    step_mm = stride * pixel_mm
    own = torch.cat([index[..., :1], (index[..., 1:] + 0.5) / stride - 0.5], -1)  # in map pixels
    middle = own.round()
    reach = min(math.ceil(NEAR_MM / step_mm) + 1, max(found.shape[-2:]))
    deep = min(math.ceil(NEAR_MM / float(slice_mm.min())) + 1, len(stack))
    patch, slices = _patches(found, stack, middle.long(), reach, deep)
    away = (
        middle[..., 1:, None] - own[..., 1:, None] + torch.arange(-reach, reach + 1, device=found.device)
    )  # (B, L, 2, S)
    across = ((slices - own[..., :1]) * slice_mm[:, None, None]) ** 2
    down, along = ((away * step_mm) ** 2).unbind(2)
    near = across[..., None, None] + down[:, :, None, :, None] + along[:, :, None, None, :] <= NEAR_MM**2
    return (patch * near).sum((2, 3, 4))

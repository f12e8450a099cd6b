"""What every locator shares: the batch it learns from, its loss, and the way from maps to points.

Every landmark reads one channel of the map and may be kept to one side of the patient: its probabilities are a
softmax over all positions of its stack that lie on that side, so it cannot land on the other one. Points are peaks of
these probabilities, levels in a plausible order, refined below a pixel.

Shape legend: B stacks, N slices (all stacks one after the other), D slices of one stack, L landmarks, C channels,
H W input pixels, h w map pixels, K candidates. An index is (slice within its stack, row, column) in *input* pixels,
continuous, integer = pixel centre; map pixel i has its centre at input pixel (i + 0.5) * stride - 0.5. A peak is the
same in whole *map* pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch

NEAR_MM = 10.0  # confidence = probability this near to the point
_WINDOW = 1.5  # sigma, in map pixels, of the window in which a peak is refined
_REACH = 4  # the window is cut off this many map pixels from the peak
_STEPS = 12


@dataclass(frozen=True, eq=False)
class Decoded:
    """index (B, L, 3), NaN where a landmark has no allowed place; confidence (B, L): the probability within 10 mm."""

    index: torch.Tensor
    confidence: torch.Tensor

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
    confidence = _near(found, stack, index, stride, pixel_mm, slice_mm).clamp_max(1.0)  # a sum may be rounded up
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


_BLOCKED = -1e9  # finite, so that a stack without any allowed position still has finite gradients
SLICE_SIGMA = 0.5  # spread of the target across slices, in slices: annotators differ by about one slice


@dataclass(frozen=True, eq=False)
class LocatorBatch:
    """Stacks to learn from. side: +1 = patient's left, -1 = right, 0 = both; lateral: mm to the left of the midline."""

    images: torch.Tensor  # (N, in_channels, H, W): previous, this and next slice, lateral coordinate
    stack: torch.Tensor  # (N,) long, 0..B-1 ascending: the stack each slice belongs to
    points: torch.Tensor  # (B, L, 3) index; NaN where unlabelled
    channel: torch.Tensor  # (L,) long: the map channel each landmark reads
    side: torch.Tensor  # (L,) long in {-1, 0, 1}
    lateral: torch.Tensor  # (N, W) float32, mm, of each pixel column
    pixel_mm: float
    slice_mm: float | torch.Tensor  # one for all, or (B,)
    sigma_mm: float  # in-plane spread of the target
    may_be_absent: bool = (
        False  # one more place, of score 0, outside the image; points of absent landmarks are infinite
    )
    masks: torch.Tensor | None = None  # (N, H, W) long: the class of every input pixel, -1 = unknown

    def to(self, device: torch.device | str) -> LocatorBatch:
        """The same batch on another device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


class TargetParts(NamedTuple):
    """The gaussian targets as an outer product: rows (N, L, h) x columns (N, L, w), summing to 1 over a stack."""

    rows: torch.Tensor
    columns: torch.Tensor
    labelled: torch.Tensor  # (B, L) bool


def side_mask(lateral: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """Where landmarks may lie: lateral (N, w) mm and side (L,) -> (N, L, w) bool. The midline itself is neither."""
    return (side == 0)[None, :, None] | (lateral[:, None] * side[None, :, None] > 0)


def lateral_on_map(lateral: torch.Tensor, stride: int) -> torch.Tensor:
    """Lateral coordinate (N, W) of the input's columns -> (N, w) of the map's."""
    return lateral.unflatten(-1, (-1, stride)).mean(-1)


def target_parts(batch: LocatorBatch, size: tuple[int, int]) -> TargetParts:
    """Targets on a map of ``size`` (h, w), in factors.

    A landmark counts as unlabelled where its point is NaN, more than one slice outside the stack, outside the image,
    or on the wrong side.
    """
    stride = batch.images.shape[-1] // size[1]
    points, stack, height, width = batch.points.float(), batch.stack, *batch.images.shape[-2:]
    rows, columns = (_centres(n, stride, points.device) for n in size)
    slices = torch.arange(len(stack), device=stack.device) - start_of(stack, len(points))[stack]
    target = points.nan_to_num(nan=-1e3)[stack]  # (N, L, 3)
    sigma_px = batch.sigma_mm / batch.pixel_mm
    across = _gaussian(slices[:, None] - target[..., 0], SLICE_SIGMA)
    down = _gaussian(rows - target[..., 1:2], sigma_px)
    along = _gaussian(columns - target[..., 2:3], sigma_px) * across[..., None]
    along = along * side_mask(lateral_on_map(batch.lateral, stride), batch.side)
    inside = (points[..., 1] > -0.5) & (points[..., 1] < height - 0.5)
    inside &= (points[..., 2] > -0.5) & (points[..., 2] < width - 0.5)
    mass = points.new_zeros(points.shape[:2]).index_add(0, stack, down.sum(-1) * along.sum(-1))
    own = points.new_zeros(points.shape[:2]).index_add(0, stack, _own_side(batch, slices).float()) > 0
    full = 2 * math.pi * (sigma_px / stride) ** 2  # of an uncut gaussian on one slice
    labelled = inside & own & (mass > 0.02 * full)
    weight = torch.where(labelled, 1 / mass.clamp_min(1e-12), mass.new_zeros(()))
    return TargetParts(down, along * weight[stack][..., None], labelled)


def heatmap_loss(logits: torch.Tensor, batch: LocatorBatch) -> torch.Tensor:
    """Mean over labelled landmarks of the cross entropy between the softmax over a stack's places and the target.

    logits (N, C, h, w) -> scalar; 0 (with a gradient of 0) when nothing in the batch is labelled.
    """
    logits = logits.float()
    parts = target_parts(batch, (logits.shape[-2], logits.shape[-1]))
    allowed = side_mask(lateral_on_map(batch.lateral, batch.images.shape[-1] // logits.shape[-1]), batch.side)
    total = _stack_logsumexp(logits, batch.stack, batch.channel, allowed, len(batch.points))
    total = _or_absent(total) if batch.may_be_absent else total
    with torch.autocast(logits.device.type, enabled=False):  # which would make a product of halves of the sum
        hit = torch.einsum("nlhw,nlh->nlw", logits.index_select(1, batch.channel), parts.rows)
    hit = (hit * parts.columns).sum(-1)
    hit = torch.zeros_like(total).index_add(0, batch.stack, hit)
    known = parts.labelled | (
        torch.isinf(batch.points[..., 1]) & batch.may_be_absent
    )  # absent ones: hit is 0, all is total
    loss = torch.where(known, total - hit, torch.zeros_like(total))
    return loss.sum() / known.sum().clamp_min(1)


def probabilities(
    logits: torch.Tensor,
    stack: torch.Tensor,
    channel: torch.Tensor,
    side: torch.Tensor,
    lateral: torch.Tensor,
    *,
    may_be_absent: bool = False,
) -> torch.Tensor:
    """(N, C, h, w) logits -> (N, L, h, w): per landmark, sums to 1 over the allowed places of its stack.

    lateral (N, W) at input resolution. All 0 where a stack has no place on the landmark's side. may_be_absent: one
    more place, with logit 0, outside the image takes its share. Average these over folds, then decode.
    """
    logits = logits.float()
    allowed = side_mask(lateral_on_map(lateral, lateral.shape[-1] // logits.shape[-1]), side)
    stacks = int(stack.max()) + 1 if len(stack) else 0
    top = logits.amax(2, keepdim=True).clamp_min(_BLOCKED)  # of every column: all else is computed once, per channel
    above = torch.exp(logits - top)
    columns = (above.sum(2).log() + top[:, :, 0]).index_select(1, channel)
    total = _over_stack(columns, stack, allowed, stacks)
    total = _or_absent(total) if may_be_absent else total
    share = torch.exp(top[:, :, 0].index_select(1, channel) - total[stack][..., None])  # (N, L, w)
    share = torch.where(allowed, share, share.new_zeros(()))
    return above.index_select(1, channel) * share[:, :, None]


def _own_side(batch: LocatorBatch, slices: torch.Tensor) -> torch.Tensor:
    """(N, L) bool: the slice nearest to a labelled point, if the point lies on its landmark's side there."""
    points = batch.points.float().nan_to_num(nan=-1e3)[batch.stack]  # (N, L, 3)
    last = torch.bincount(batch.stack, minlength=len(batch.points))[batch.stack] - 1
    inside = (points[..., 0] > -1) & (points[..., 0] < last[:, None] + 1)
    nearest = torch.minimum(points[..., 0].round().clamp_min(0), last[:, None])
    column = points[..., 2].round().long().clamp(0, batch.lateral.shape[-1] - 1)
    lateral = batch.lateral.gather(1, column)
    return inside & (nearest == slices[:, None]) & ((batch.side == 0) | (lateral * batch.side > 0))


def _stack_logsumexp(
    logits: torch.Tensor, stack: torch.Tensor, channel: torch.Tensor, allowed: torch.Tensor, stacks: int
) -> torch.Tensor:
    """(B, L): log of the sum of exp over the allowed places. The mask is the same for every row, so rows go first."""
    return _over_stack(torch.logsumexp(logits, 2).index_select(1, channel), stack, allowed, stacks)


def _over_stack(columns: torch.Tensor, stack: torch.Tensor, allowed: torch.Tensor, stacks: int) -> torch.Tensor:
    """The same from the columns' own sums (N, L, w)."""
    slices = torch.logsumexp(columns.masked_fill(~allowed, _BLOCKED), -1)  # (N, L)
    top = slices.new_full((stacks, slices.shape[1]), _BLOCKED)
    top = top.scatter_reduce(0, stack[:, None].expand_as(slices), slices.detach(), "amax")
    return top + torch.zeros_like(top).index_add(0, stack, torch.exp(slices - top[stack])).clamp_min(1e-30).log()


def _or_absent(total: torch.Tensor) -> torch.Tensor:
    """Log of the sum with one more place of logit 0: where a landmark is that the image does not show."""
    return torch.logaddexp(total, torch.zeros_like(total))


def _centres(size: int, stride: int, device: torch.device) -> torch.Tensor:
    """Input-pixel coordinate of each map pixel's centre."""
    return (torch.arange(size, device=device) + 0.5) * stride - 0.5


def _gaussian(distance: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.exp(-0.5 * (distance / sigma) ** 2)

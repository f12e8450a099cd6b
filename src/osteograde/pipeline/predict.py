"""The two stages, over many studies at once: locate -> points in mm -> boxes -> grade -> probabilities.

Shapes: N slices, B passes, L landmarks, S sites, K classes. Folds are averaged as probabilities in both stages.

Work on a device whose memory may be too small, with nets that may overflow: halve, move, redo; then give up on one.

What is given up is counted in the faults of its study; its rows keep the prior.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from osteograde.imaging.geometry import Roi, Volume, apply, to_index
from osteograde.models.locators.base import candidates, in_order, probabilities, refined, stack_peaks
from osteograde.models.locators.levels import Chain
from osteograde.pipeline import covariates, levels
from osteograde.pipeline.calibration import Calibration
from osteograde.pipeline.crops import (
    SIGN,
    RegionGrid,
    region_grids,
    regions_images,
    site_boxes,
    site_crops,
    turned,
)
from osteograde.pipeline.load import Loaded
from osteograde.pipeline.ttas import ttas
from osteograde.tasks.spec import YES_NO, Grader, Locator, Pixels, Point, Points, Task, sides

T = TypeVar("T")
R = TypeVar("R")
_CPU = torch.device("cpu")
# Words of torch where the machine's own memory is too small, and of the parts of CUDA that say it in an error of a
# general kind.
_FULL = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


@dataclass(frozen=True)
class Nets:
    """The folds of one stage, the pixels of what they read, and how their answers are calibrated."""

    nets: Sequence[nn.Module]
    pixels: Pixels
    device: torch.device
    calibration: Calibration | None = None


def with_memory_fallback(
    work: Callable[[Sequence[T], Nets], Sequence[R]], batch: Sequence[T], nets: Nets
) -> list[R | None]:
    """``work(batch, nets)``, one answer per item, whatever the size of the device's memory.

    Where memory runs out the batch is halved, down to one item; one that is still too large goes to the CPU, and where
    that fails as well its answer is None. Other errors are not caught.
    """
    try:
        return list(work(batch, nets))
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
    _free(nets.device)  # here and not above: the error holds the tensors of the frames it came through
    if len(batch) > 1:
        half = len(batch) // 2
        return with_memory_fallback(work, batch[:half], nets) + with_memory_fallback(work, batch[half:], nets)
    if nets.device.type == "cpu":
        return [None] * len(batch)
    with _on_cpu(nets) as slower:
        return with_memory_fallback(work, batch, slower)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the machine."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in _FULL)


def logits_of(call: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """``call()`` in half precision where the device is faster so; once more in full where that overflows. float32."""
    half = is_half(device)
    # fp16 and never bf16: the T4 only emulates the latter.
    with torch.autocast(device.type, torch.float16, enabled=half):
        logits = call().float()
    if half and not torch.isfinite(logits).all():
        logits = call().float()
    return logits


def is_half(device: torch.device) -> bool:
    return device.type == "cuda"


def finite_mean(folds: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean over folds of equal shape; of those that are finite where some are not, NaN where none is."""
    stacked = torch.stack(list(folds))
    mean = stacked.mean(0)
    return mean if torch.isfinite(mean.sum()) else stacked.nanmean(0)  # a sum is finite only where all of it is


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _on_cpu(nets: Nets) -> Iterator[Nets]:
    """The same nets on the CPU for a while: moved, since a copy would need the memory that is not there."""
    try:
        _move(nets.nets, _CPU)
        yield replace(nets, device=_CPU)
    finally:
        _move(nets.nets, nets.device)


def _move(nets: Sequence[nn.Module], device: torch.device) -> None:
    """Parameters that are moved in inference mode could not be asked for gradients again, which maps of evidence do."""
    with torch.inference_mode(False):
        for net in nets:
            net.to(device)


NEIGHBOUR_MM = 20.0  # in-plane, how far a landmark may lie from its neighbour
ABSENT_BELOW = 0.05  # a landmark with less of the heatmap's mass near its peak was not found
SLICES_PER_BATCH = 96
CROPS_PER_BATCH = 256
VIEWS_TOGETHER = 16  # crops on a CPU: larger batches gain nothing there, and single crops of a small net do


def locate(locator: Locator, studies: Sequence[Loaded], points: Sequence[Points], nets: Nets) -> list[dict[str, Point]]:
    """The landmarks that one locator finds in each study. ``points``: what earlier locators found there.

    A region that could not be computed is counted in the faults of its study, and none of its landmarks is found.
    """
    side = max(sides(nets.pixels))
    groups: list[tuple[int, list[RegionGrid]]] = []  # regions that go through the net together, with their study
    for i, loaded in enumerate(studies):
        placed = region_grids(locator, loaded.volumes, points[i], side)
        groups += [(i, placed)] if locator.level_rhythm and placed else [(i, [one]) for one in placed]
    found: list[dict[str, Point]] = [{} for _ in studies]
    for batch in _batched(groups, _slices, SLICES_PER_BATCH, nets.device):
        results = with_memory_fallback(partial(_locate_batch, locator), [group for _, group in batch], nets)
        for (i, group), located in zip(batch, results, strict=True):
            if located is None:
                _count_lost(None, studies[i], locator.name)
                continue
            for one, own in zip(group, located, strict=True):
                if np.isnan(own.result[:, -1]).all():
                    _count_lost(own.result, studies[i], locator.name)
                else:
                    found[i] |= _points_of(locator, one, own)
    return found


def _slices(group: Sequence[RegionGrid]) -> int:
    """How many slices a group of regions has."""
    return sum(placed.grid.shape[0] for placed in group)


def _points_of(locator: Locator, placed: RegionGrid, located: Located) -> dict[str, Point]:
    """The landmarks that were found in a region, in doubt where their levels are."""
    names = [landmark.name for landmark in placed.region.landmarks]
    found = {}
    for name, (*index, confidence) in zip(names, located.result, strict=True):
        if confidence >= ABSENT_BELOW:
            found[name] = Point(apply(placed.grid.to_mm, np.array(index)), float(confidence))
    return found if locator.level_rhythm is None else levels.with_doubt(names, found, located.chain)


def _batched(
    entries: Sequence[tuple[int, T]], cost: Callable[[T], int], limit: int, device: torch.device
) -> Iterator[list[tuple[int, T]]]:
    """(study, thing) entries in groups that cost at most ``limit`` (at least one entry).

    A GPU wants batches across studies. On a CPU they gain nothing, and a batch of one study's own gives it the same
    bytes whatever is graded beside it.
    """
    batch: list[tuple[int, T]] = []
    total = 0
    for study, thing in entries:
        other = batch and device.type == "cpu" and batch[-1][0] != study
        if batch and (other or total + cost(thing) > limit):
            yield batch
            batch, total = [], 0
        batch.append((study, thing))
        total += cost(thing)
    if batch:
        yield batch


def _count_lost(result: np.ndarray | None, study: Loaded, net: str) -> None:
    """Count in the study's faults that a net gave no result for lack of memory (None), or none that is finite."""
    study.faults[f"{net}:{'out_of_memory' if result is None else 'not_finite'}"] += 1


@dataclass(frozen=True, eq=False)
class Located:
    """What is found in one region. result (L, 4): index (slice, row, column) of each landmark in the region's grid, and
    the confidence; NaN where no fold is finite. chain: of its levels, where they were told apart by their rhythm."""

    result: np.ndarray
    chain: Chain | None = None


@torch.inference_mode()
def _locate_batch(locator: Locator, groups: Sequence[Sequence[RegionGrid]], nets: Nets) -> list[list[Located]]:
    """What is found in each region of each group; the regions of a group are of one study."""
    regions = [placed for group in groups for placed in group]
    image, lateral = regions_images(regions, nets.device)
    depths = torch.tensor([placed.grid.shape[0] for placed in regions], device=nets.device)
    stack = torch.repeat_interleave(torch.arange(len(regions), device=nets.device), depths)
    landmarks = regions[0].region.landmarks  # of all regions the same channels and sides
    channel = torch.tensor([locator.channels.index(landmark.channel) for landmark in landmarks], device=nets.device)
    side = torch.tensor([SIGN[landmark.side] for landmark in landmarks], device=nets.device)
    folds = []
    for net in nets.nets:
        maps: Callable[..., torch.Tensor] = net.maps  # type: ignore[assignment]
        logits = logits_of(partial(maps, image), nets.device)
        stride = image.shape[-1] // logits.shape[-1]
        folds.append(probabilities(logits, stack, channel, side, lateral, may_be_absent=locator.may_be_absent))
    slice_mm = torch.tensor([placed.grid.spacing_mm[0] for placed in regions], device=nets.device)
    found, pixel_mm = finite_mean(folds), locator.field_mm[1] / max(sides(nets.pixels))
    lost = {int(k) for k in stack[found.isnan().flatten(1).any(1)]}
    found = found.nan_to_num() if lost else found
    found = _near_neighbours(found, regions, stride, pixel_mm)
    peaks = stack_peaks(found, stack)
    if locator.level_spacing_mm is not None:  # a chain of levels: the likeliest places that are in order
        several, scores = candidates(found, stack)
        ordered, step_mm = locator.chains(landmarks), stride * pixel_mm
        peaks = in_order(several, scores, ordered, map_pixel_mm=step_mm, spacing_mm=locator.level_spacing_mm)
    chains: list[Chain | None] = [None] * len(regions)
    if locator.level_rhythm is not None:
        found, peaks, chains = _named(locator, groups, found, peaks, stride, pixel_mm)
    index, confidence = refined(found, stack, peaks, stride=stride, pixel_mm=pixel_mm, slice_mm=slice_mm)
    results = torch.cat([index, confidence[..., None]], -1).cpu().numpy().astype(float)
    results[sorted(lost)] = np.nan
    located = iter([Located(result, chain) for result, chain in zip(results, chains, strict=True)])
    return [[next(located) for _ in group] for group in groups]


def _named(
    locator: Locator,
    groups: Sequence[Sequence[RegionGrid]],
    found: torch.Tensor,
    peaks: torch.Tensor,
    stride: int,
    pixel_mm: float,
) -> tuple[torch.Tensor, torch.Tensor, list[Chain | None]]:
    """Maps (N, L, h, w), peaks (B, L, 3) and chains of levels that are told apart by their rhythm, study by study.

    A level that takes another level's place gets that one's map. Regions in which no three places can be put in order
    keep the peaks they have.
    """
    assert locator.level_rhythm is not None and locator.level_spacing_mm is not None
    found, peaks = found.clone(), peaks.clone()
    chains: list[Chain | None] = []
    start, number = 0, 0
    for group in groups:
        parts = []
        for placed in group:
            parts.append(slice(start, start + placed.grid.shape[0]))
            start = parts[-1].stop
        shown = [
            levels.Shown(found[part], placed.grid, placed.region.volume, stride, stride * pixel_mm)
            for part, placed in zip(parts, group, strict=True)
        ]
        for part, one in zip(
            parts, levels.name_levels(shown, locator.level_rhythm, locator.level_spacing_mm), strict=True
        ):
            chains.append(one.chain if one is not None else None)
            if one is not None:
                peaks[number] = torch.from_numpy(one.peak).to(peaks)
                if (one.source != np.arange(len(one.source))).any():
                    found[part] = found[part][:, one.source.tolist()]
            number += 1
    return found, peaks, chains


def _near_neighbours(found: torch.Tensor, regions: Sequence[RegionGrid], stride: int, pixel_mm: float) -> torch.Tensor:
    """Probabilities (N, L, h, w) in which landmarks with a neighbour are kept to ``NEIGHBOUR_MM`` around it
    in-plane."""
    if not any(placed.region.neighbours_mm for placed in regions):
        return found
    found, start = found.clone(), 0
    rows, columns = ((torch.arange(n, device=found.device) + 0.5) * stride - 0.5 for n in found.shape[-2:])
    for placed in regions:
        part = slice(start, start + placed.grid.shape[0])
        start = part.stop
        for i, landmark in enumerate(placed.region.landmarks):
            if landmark.name not in placed.region.neighbours_mm:
                continue
            _, row, column = to_index(placed.grid, placed.region.neighbours_mm[landmark.name]).tolist()
            away = (rows[:, None] - row) ** 2 + (columns[None] - column) ** 2 > (NEIGHBOUR_MM / pixel_mm) ** 2
            kept = found[part, i].masked_fill(away, 0.0)
            found[part, i] = kept / kept.sum().clamp_min(1e-12)
    return found


def locate_all(
    task: Task, studies: Sequence[Loaded], locators: Mapping[str, Nets]
) -> tuple[list[dict[str, Point]], list[dict[str, Point]]]:
    """Every locator in order, each given what the earlier ones found.

    Returns (found, filled) per study: the points that the nets found or that were given (``Loaded.given``), and these
    with the landmarks that geometry can tell from them. A locator all of whose landmarks are given is not run.
    """
    found: list[dict[str, Point]] = [{} for _ in studies]
    filled: list[dict[str, Point]] = [{} for _ in studies]
    for locator in task.locators:
        names = {landmark.name for landmark in locator.landmarks}
        asked = [i for i, study in enumerate(studies) if not names <= set(study.given)]
        chosen, known = [studies[i] for i in asked], [filled[i] for i in asked]
        new = dict(zip(asked, locate(locator, chosen, known, locators[locator.name]), strict=True))
        for i, study in enumerate(studies):
            found[i] |= new.get(i, {}) | {name: point for name, point in study.given.items() if name in names}
            filled[i] = dict(task.fill_missing_landmarks(found[i]))
    return found, filled


@torch.inference_mode()
def grade(
    grader: Grader,
    studies: Sequence[Loaded],
    points: Sequence[Points],
    nets: Nets,
    *,
    views: int = 1,
) -> list[dict[str, np.ndarray]]:
    """The probabilities that one grader gives to every site that can be seen, per study: target -> (K + F,), the
    classes and then the outputs of each of the grader's heads. views: how many test-time augmentations are averaged. A
    site that could not be computed is counted in its study's faults, and doubts about the covariates of a graded one in
    the faults of its target. Sites that a study is known not to have are left out."""
    graded: list[dict[str, np.ndarray]] = [{} for _ in studies]
    boxes = [site_boxes(grader, loaded.volumes, points[i], nets.pixels) for i, loaded in enumerate(studies)]
    asked = [set(loaded.study.targets) for loaded in studies]
    seen = [(i, target) for i, found in enumerate(boxes) for target in found if not asked[i] or target in asked[i]]
    for batch in _batched(seen, lambda _: 1, CROPS_PER_BATCH, nets.device):
        work = partial(_grade_batch, grader, views)
        rows = [(studies[i].study, target) for i, target in batch]
        results = with_memory_fallback(
            work, [(row, boxes[i][row[1]]) for (i, _), row in zip(batch, rows, strict=True)], nets
        )
        for (i, target), result, doubts in zip(batch, results, covariates.doubts_of(nets.nets, rows), strict=True):
            if result is None or np.isnan(result).all():
                _count_lost(result, studies[i], grader.name)
                continue
            if nets.calibration is not None:
                classes = len(result) - grader.head_outputs
                result[:classes] = nets.calibration(result[:classes])
            graded[i][target] = result
            if doubts:
                studies[i].target_faults[target] = doubts
    return graded


@torch.inference_mode()
def _grade_batch(
    grader: Grader, views: int, sites: Sequence[tuple[covariates.Row, Mapping[str, tuple[Volume, Roi]]]], nets: Nets
) -> list[np.ndarray]:
    """(K + F,) probabilities of each site, whose study and target and boxes by crop name are given: the mean over
    test-time augmentations and folds; NaN where none is finite."""
    rows, members = [row for row, _ in sites], []
    most = VIEWS_TOGETHER if nets.device.type == "cpu" else CROPS_PER_BATCH
    wanted, each = ttas(grader, views), max(1, most // len(sites))
    for begun in range(0, len(wanted), each):
        some = wanted[begun : begun + each]
        turned_boxes = {
            f"{v} {k}": {name: (volume, turned(box, *tta)) for name, (volume, box) in site.items()}
            for v, tta in enumerate(some)
            for k, (_, site) in enumerate(sites)
        }
        crops = site_crops(grader, turned_boxes, nets.pixels, nets.device)
        for net in nets.nets:
            known = covariates.inputs_of(net, rows * len(some), nets.device)
            logits = logits_of(partial(net, list(crops.images), crops.present, *known), nets.device)
            members += np.split(head_probabilities(grader, logits), len(some))
    return list(_finite_mean(np.array(members)))


def _finite_mean(answers: np.ndarray) -> np.ndarray:
    """(S, K + F) mean of (M, S, K + F) over the members whose answer is finite; NaN where none is."""
    if np.isfinite(answers).all():
        return answers.mean(0)
    good = np.isfinite(answers).all(-1, keepdims=True)
    total = np.where(good, answers, 0.0).sum(0)
    return np.divide(total, good.sum(0), out=np.full_like(total, np.nan), where=good.sum(0) > 0)


def head_probabilities(grader: Grader, logits: torch.Tensor) -> np.ndarray:
    """(S, K + F) logits as probabilities: those of the classes, and of a head of classes or grades, sum to 1; the one
    of a yes/no head is that of yes."""
    classes, heads = grader.split_heads(logits, logits.shape[-1] - grader.head_outputs)
    parts = [torch.softmax(classes, -1)]
    for head, part in zip(grader.heads, heads, strict=True):
        parts.append(torch.sigmoid(part) if head.kind == YES_NO else torch.softmax(part, -1))
    return torch.cat(parts, -1).cpu().numpy().astype(float)


def probability_rows(
    task: Task, graded: Mapping[str, np.ndarray], prior: Mapping[str, Sequence[float]], targets: Sequence[str] = ()
) -> np.ndarray:
    """(targets, K) in the task's target order, of those asked: what was graded, else the prior of that target."""
    classes = len(task.classes)
    return np.array(
        [np.asarray(graded.get(target, prior[target]), float)[:classes] for target in task.targets_of(targets)]
    )

"""Work on a device whose memory may be too small, with nets that may overflow: halve, move, redo; then give up on one.

What is given up is counted in the faults of its study; its rows keep the prior.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from osteograde.pipeline.calibration import Calibration
from osteograde.tasks.spec import Pixels

T = TypeVar("T")
R = TypeVar("R")
_CPU = torch.device("cpu")
_CPU_FULL = "can't allocate memory"  # torch's words where the machine's own memory is too small


@dataclass(frozen=True)
class Nets:
    """The folds of one stage, the pixels of what they read, and how their answers are calibrated."""

    nets: Sequence[nn.Module]
    pixels: Pixels
    device: torch.device
    calibration: Calibration | None = None


def in_memory(work: Callable[[Sequence[T], Nets], Sequence[R]], batch: Sequence[T], nets: Nets) -> list[R | None]:
    """``work(batch, nets)``, one answer per item, whatever the size of the device's memory.

    Where memory runs out the batch is halved, down to one item; one that is still too large goes to the CPU, and where
    that fails as well its answer is None. Other errors are not caught.
    """
    try:
        return list(work(batch, nets))
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_memory(error):
            raise
    _free(nets.device)  # here and not above: the error holds the tensors of the frames it came through
    if len(batch) > 1:
        half = len(batch) // 2
        return in_memory(work, batch[:half], nets) + in_memory(work, batch[half:], nets)
    if nets.device.type == "cpu":
        return [None] * len(batch)
    with _on_cpu(nets) as slower:
        return in_memory(work, batch, slower)


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the machine."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _CPU_FULL in str(error)


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


def mean_of(folds: Sequence[torch.Tensor]) -> torch.Tensor:
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
        for net in nets.nets:
            net.to(_CPU)
        yield replace(nets, device=_CPU)
    finally:
        for net in nets.nets:
            net.to(nets.device)

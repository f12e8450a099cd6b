"""Studies side by side on a CPU: one small net does not keep several cores busy, several of them do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def abreast(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``work(item)`` of every item, in order, as many at a time as torch has threads, each with one of them.

    Sums over many values come out differently, in the seventh digit, on another number of threads. With one each, also
    where there is but one item, an answer depends neither on the machine's cores nor on what is done beside it. An
    error ends it; items that are being worked on are not waited for.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not items:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(min(threads, len(items)))
    torch.set_num_threads(1)  # of this thread and of those that begin after it
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)

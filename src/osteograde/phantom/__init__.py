"""Synthetic studies with known truth, written exactly as the real ones are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from osteograde.errors import UserError
from osteograde.phantom import knee_dataset, lumbar_dataset, progression_dataset, spider_dataset

WRITERS: Mapping[str, Callable[..., None]] = {
    "lumbar-mr": lumbar_dataset.write,
    "knee-xray": knee_dataset.write,
    "knee-progression": progression_dataset.write,
    "spider": spider_dataset.write,
    "table": knee_dataset.write_table,
}


def write(task_name: str, out: Path, *, studies: int, test: int = 0, seed: int = 0, workers: int = 1) -> None:
    """Write a data set of a task into ``out``; deterministic from the seed. ValueError for a task without phantoms."""
    if task_name not in WRITERS:
        raise UserError(f"no phantoms for task {task_name!r}; there are some for {', '.join(sorted(WRITERS))}")
    WRITERS[task_name](Path(out), studies=studies, test=test, seed=seed, workers=workers)

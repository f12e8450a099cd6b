"""The curves of a net in training: one line of JSON an epoch, written as it ends, and TensorBoard's events if asked.

A line holds epoch (from 1), loss (mean over its steps), held_out_loss (null where it was not measured), lr (of its last
step) and seconds; and measured, a text, where more is measured after an epoch. A run that goes on after a kill drops
the lines of epochs that it trains again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from osteograde.errors import UserError

FOLDER = "history"  # of a weights folder: <net>.jsonl, and tensorboard/<net>
Row = Mapping[str, float | int | str | None]


def check_tensorboard() -> None:
    """UserError where TensorBoard's events are asked for and the package is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError("--tensorboard: the package is not installed; pip install tensorboard")


@contextmanager
def recorder(path: Path | None, *, finished: int, tensorboard: bool = False) -> Iterator[Callable[[Row], None]]:
    """A function that writes the row of an epoch, and is to be called when it has ended. path: the file of JSON lines;
    None writes nothing. finished: epochs whose lines stay."""
    if path is None:
        yield lambda row: None
        return
    kept = [row for row in read(path) if row["epoch"] <= finished]
    path.parent.mkdir(parents=True, exist_ok=True)
    events: Any = _events(path.parent / "tensorboard" / path.stem, finished) if tensorboard else None
    with path.open("w", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(dict(row)) + "\n")
            file.flush()  # so that it can be watched
            for name in ("loss", "held_out_loss", "lr") if events else ():
                if row[name] is not None:
                    events.add_scalar(name, row[name], row["epoch"])
                    events.flush()

        try:
            for row in kept:
                file.write(json.dumps(row) + "\n")
            file.flush()
            yield write
        finally:
            if events:
                events.close()


def _events(folder: Path, finished: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=finished + 1)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where there is no file. A line that was cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows

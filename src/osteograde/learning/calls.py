"""What is kept of every call that trained into a weights folder: when it began, how long it took, and on what.

A line of JSON a call in ``calls.jsonl``, written as the call ends, also where it was interrupted. Nothing that is
computed depends on it. Nothing here needs torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from osteograde.learning import history

FILE = "calls.jsonl"


@dataclass(frozen=True)
class Call:
    """One call. begun: local time, as ISO 8601 has it. device: in a few words. debug: the recipe was made small.
    finished: it came to its end. epochs: that were trained in it, of all nets."""

    recipe: str
    begun: str
    seconds: float
    device: str
    folds: tuple[int, ...]
    debug: bool = False
    finished: bool = False
    epochs: int = 0

    @property
    def day(self) -> str:
        """The date on which it began."""
        return self.begun[:10]


@contextmanager
def timed(out: Path, recipe: str, device: str, folds: tuple[int, ...], *, debug: bool) -> Iterator[None]:
    """Add the call that the block is to the file in ``out``, if the block has made the folder."""
    begun, clock, before = datetime.now(), time.monotonic(), _epochs(out)
    finished = False
    try:
        yield
        finished = True
    finally:
        if out.is_dir():
            seconds = round(time.monotonic() - clock, 1)
            call = Call(
                recipe,
                begun.isoformat(timespec="seconds"),
                seconds,
                device,
                folds,
                debug,
                finished,
                max(0, _epochs(out) - before),
            )
            with (out / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(call)) + "\n")


def _epochs(out: Path) -> int:
    """The epochs that the histories in a weights folder hold."""
    return sum(len(history.read(path)) for path in (out / history.FOLDER).glob("*.jsonl"))


def read(folder: Path) -> list[Call]:
    """The calls of a weights folder, the oldest first; lines that are no calls are left out."""
    calls = []
    for row in history.read(folder / FILE):
        try:
            calls.append(Call(**{**row, "folds": tuple(row["folds"])}))
        except (KeyError, TypeError):
            continue
    return calls


def hours(folder: Path) -> float | None:
    """Hours of all calls, or those of the epochs in the histories where these are more (a call that was killed leaves
    no line); None where neither is known."""
    rows = [row for path in (folder / history.FOLDER).glob("*.jsonl") for row in history.read(path)]
    seconds = max(sum(call.seconds for call in read(folder)), sum(row.get("seconds") or 0.0 for row in rows))
    return seconds / 3600 if seconds else None

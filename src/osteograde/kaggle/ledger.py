"""The submissions that were made from here, with what was sent and what it scored, as runs/kaggle/TASK.jsonl has them.

Each line of that file is an event, submitted or scored; here they are put together by the number of the submission.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import record

ABSENT = "-"
COLUMNS = ("submitted", "kernel", "weights", "recipe", "out-of-fold", "95 % interval", "public", "private", "state")


@dataclass(frozen=True)
class Submission:
    """A submission. weights: what is known of the weights that were mounted: source, manifest (its hash), recipe,
    changes of the recipe, score and interval out-of-fold, studies. public, private: None while they are not known."""

    task: str
    time: str
    reference: int
    version: int
    kernel: str = ""
    image: str = ""
    commit: str = ""
    sha256: str = ""
    weights: Mapping[str, Any] = field(default_factory=dict)
    status: str = "pending"
    public: float | None = None
    private: float | None = None
    error: str = ""
    scored: str = ""

    @property
    def score(self) -> float | None:
        """Of the weights, out-of-fold."""
        return self.weights.get("score")

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of ``score``."""
        low, high = self.weights.get("interval") or (None, None)
        return low, high

    @property
    def changes(self) -> list[str]:
        """What differs from the recipe of that name, a choice each."""
        return [f"{key} = {now} (recipe: {before})" for key, (before, now) in self.weights.get("changes", {}).items()]

    def plain(self) -> dict[str, Any]:
        """The submission as JSON data."""
        return asdict(self)


def read(path: Path) -> list[Submission]:
    """The submissions of a ledger, oldest first. UserError where the file is not what ``kaggle submit`` writes."""
    found: dict[int, Submission] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            facts = json.loads(line)
            event, reference = facts["event"], int(facts["reference"])
            known = {key: facts[key] for key in Submission.__dataclass_fields__ if facts.get(key) is not None}
            if event == "submitted":
                found[reference] = Submission(**{**known, "task": path.stem})
            elif reference in found:
                scored = {key: facts[key] for key in ("status", "public", "private")} | {
                    "error": facts.get("error", "")
                }
                before = {key: getattr(found[reference], key) for key in Submission.__dataclass_fields__}
                found[reference] = Submission(**{**before, **scored, "scored": facts["time"]})
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number}: not a line that kaggle submit or kaggle score writes ({error!r}); "
                "nothing else should write to this file"
            ) from error
    return list(found.values())


def all_of(folder: Path = record.FOLDER) -> list[Submission]:
    """The submissions of every task, in the order of the tasks' names."""
    return [one for path in sorted(folder.glob("*.jsonl")) for one in read(path)]


def table(submissions: Sequence[Submission]) -> list[str]:
    """The submissions for people, a table for each task, with what differs in the recipe below each row."""
    lines = []
    for task in dict.fromkeys(one.task for one in submissions):
        own = [one for one in submissions if one.task == task]
        cells = [COLUMNS, *(_cells(one) for one in own)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
        lines.append(task)
        for one, row in zip([None, *own], cells, strict=True):
            lines.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
            lines += [f"      {change}" for change in (one.changes if one else ())]
    return lines


def _cells(one: Submission) -> tuple[str, ...]:
    low, high = one.interval
    return (
        one.time[:16].replace("T", " "),
        f"v{one.version}",
        str(one.weights.get("manifest") or one.weights.get("source") or "unknown")[:12],
        str(one.weights.get("recipe") or ABSENT),
        _number(one.score),
        ABSENT if low is None or high is None else f"{low:.4f} to {high:.4f}",
        _number(one.public),
        _number(one.private),
        f"{one.status}: {one.error}" if one.error else one.status,
    )


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"

"""What the last commands came to, in runs/kaggle/TASK.json: no command of the client lists versions of kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLACE = Path("runs") / "kaggle"


def path(task: str, place: Path = PLACE) -> Path:
    return place / f"{task}.json"


def read(task: str, place: Path = PLACE) -> dict[str, Any]:
    """The record of a task; empty where there is none."""
    file = path(task, place)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def keep(task: str, step: str, facts: dict[str, Any], place: Path = PLACE) -> None:
    """Replace what is known of one step. Names, versions and hashes only, never a secret."""
    file = path(task, place)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(read(task, place) | {step: facts}, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def need(task: str, step: str, command: str, place: Path = PLACE) -> dict[str, Any]:
    """What is known of a step. ValueError naming the command that comes first where it was not done."""
    facts = read(task, place).get(step)
    if facts is None:
        raise ValueError(f"{path(task, place)} knows no {step} of {task}: first python -m osteograde kaggle {command}")
    return facts

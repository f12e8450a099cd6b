"""What the last commands for a task came to (runs/kaggle/TASK.json), and a ledger of submissions (TASK.jsonl).

The client does not list the versions of a kernel, so they are remembered here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osteograde.errors import UserError

FOLDER = Path("runs") / "kaggle"


def record_path(task: str, folder: Path = FOLDER) -> Path:
    return folder / f"{task}.json"


def read_record(task: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The record of a task: step -> facts; empty if there is none."""
    file = record_path(task, folder)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def keep_record(task: str, step: str, facts: dict[str, Any], folder: Path = FOLDER) -> None:
    """Replace what is known of one step. The facts are names, versions and hashes, never a secret."""
    file = record_path(task, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(read_record(task, folder) | {step: facts}, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def ledger_path(task: str, folder: Path = FOLDER) -> Path:
    return folder / f"{task}.jsonl"


def append_to_ledger(task: str, facts: Mapping[str, Any], folder: Path = FOLDER) -> None:
    """Add one line to the ledger of a task's submissions, which is never rewritten."""
    path = ledger_path(task, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(facts), sort_keys=True) + "\n")


def read_ledger(task: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The lines of a task's ledger, oldest first; none if nothing was submitted."""
    path = ledger_path(task, folder)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def need_record(task: str, step: str, command: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What is known of a step. Raises UserError, naming the command that comes first, if it was not done."""
    facts = read_record(task, folder).get(step)
    if facts is None:
        path = record_path(task, folder)
        raise UserError(f"{path} knows no {step} of {task}: first python -m osteograde kaggle {command}")
    return facts

"""The tasks the kit knows. A task is a value (spec.py); adding one is adding its name and its module here.

``NAMES`` can be read without importing any task, so a command line refuses a wrong name at once; ``TASKS`` imports all
of them when it is first used.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from osteograde.errors import UserError

if TYPE_CHECKING:
    from osteograde.tasks.spec import Task

    TASKS: dict[str, Task]

WITH_COMPETITION = ("lumbar-mr",)  # those whose ``Task.slug`` names one
NAMES = ("lumbar-mr", "knee-xray", "knee-progression", "spider", "table")


def __getattr__(name: str) -> dict[str, Task]:
    if name != "TASKS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from osteograde.tasks import knee_progression, knee_xray, lumbar_mr, own_data, spider_mr

    modules = (lumbar_mr, knee_xray, knee_progression, spider_mr, own_data)
    globals()["TASKS"] = tasks = {module.TASK.name: module.TASK for module in modules}
    return tasks


def check_name(name: str) -> None:
    """UserError naming the nearest one and all known tasks if ``name`` is none of them."""
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, 1, 0.5)
        hint = f" nearest: {near[0]};" if near else ""
        raise UserError(f"no task {name!r};{hint} known tasks: {', '.join(sorted(NAMES))}")

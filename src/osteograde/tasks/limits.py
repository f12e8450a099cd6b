"""What a run on Kaggle may take: the limits of the task's competition, or those of a session."""

from __future__ import annotations

from osteograde.tasks.spec import Competition, Task

# A session with two T4 GPUs, as of 2026-11; 700 is a usual number of hidden studies.
SESSION = Competition(slug="", hours=9.0, studies=700, memory_gib=30.0)


def limits_of(task: Task) -> Competition:
    """The limits of a task's competition; those of a session for a task without one."""
    return task.competition or SESSION

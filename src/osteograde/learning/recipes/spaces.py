"""Spaces that ship with the kit for ``osteograde tune``: one for each task that has been searched, and one for any.

Each is small: what a grader learns by, from a third to three times of what the default recipe has, or so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANY = "any"  # the space of tasks without one of their own

SPACES: dict[str, Mapping[str, Any]] = {
    "knee-xray": {
        "grade.kl.training.lr": (2e-4, 5e-3, "log"),
        "grade.kl.training.weight_decay": (1e-3, 0.1, "log"),
        "grade.kl.label_smoothing": (0.0, 0.2),
        "grade.kl.net.dropout": (0.0, 0.5),
        "grade.kl.augmentation.rotation_deg": (0.0, 20.0),
        "grade.kl.loss": ["classes", "ordinal"],
    },
    "spider": {
        "grade.*.training.lr": (2e-4, 5e-3, "log"),
        "grade.*.training.weight_decay": (2e-3, 0.2, "log"),
        "grade.*.class_weight_power": (0.0, 1.0),
        "grade.*.drop_view": (0.0, 0.6),
        "grade.*.net.dropout": (0.0, 0.5),
        "grade.*.loss": ["classes", "ordinal"],
    },
    ANY: {
        "grade.*.training.lr": (1e-4, 1e-2, "log"),
        "grade.*.training.weight_decay": (1e-3, 0.1, "log"),
        "grade.*.label_smoothing": (0.0, 0.2),
    },
}


def name_for(task: str) -> str:
    """The space of a task where none is named."""
    return task if task in SPACES else ANY

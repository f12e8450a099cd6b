"""Functions that are imported when they are called: what is learnt from or counted, and never needed to grade.

A kernel carries every module that its entry may import. What is named here as text is not among them, so that readers
of cohort tables and censuses do not fill a script that only grades.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Deferred:
    """A function of a module, such as Deferred("osteograde.tasks.names", "read_name")."""

    module: str
    name: str

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Import the module and call its function."""
        return getattr(import_module(self.module), self.name)(*args, **options)

"""A recipe in a file of the user's own: ``--recipe my_recipe.py``.

The file is Python and is run. It defines ``RECIPE``: a Recipe, or a function that returns one, of no argument or of the
task. Its text and hash go into the manifest with the plans that came out of it.
"""

from __future__ import annotations

import hashlib
import inspect
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from osteograde.errors import UserError

if TYPE_CHECKING:
    from osteograde.learning.recipe import Recipe
    from osteograde.tasks.spec import Task

ENDING, NAME = ".py", "RECIPE"
# What a mistake in a file raises. Everything else (memory, Ctrl-C) is no mistake of the file.
MISTAKES = (
    SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError,
    AssertionError, RuntimeError, OSError,
)  # fmt: skip
Result = TypeVar("Result")


def is_file(recipe: str) -> bool:
    """Whether what ``--recipe`` names is a file and not one of the recipes that ship."""
    return recipe.endswith(ENDING)


def load(path: Path, task: Task) -> Recipe:
    """The recipe that a file defines. UserError where there is no such file, where it cannot be run (with file, line
    and reason), or where it defines no recipe of this task."""
    from dataclasses import replace

    from osteograde.learning.recipe import Recipe

    if not path.is_file():
        raise UserError(f"--recipe {path}: no such file")
    data = path.read_bytes()
    found = _told(path, lambda: runpy.run_path(str(path)))
    if NAME not in found:
        raise UserError(f"{path}: defines no {NAME}; expected {NAME} = a Recipe, or a function that returns one")
    given: Any = found[NAME]
    recipe = _told(path, lambda: _called(given, task)) if callable(given) else given
    if not isinstance(recipe, Recipe):
        what = f"{'returns' if callable(given) else 'is'} {type(recipe).__name__!r}"
        raise UserError(f"{path}: {NAME} {what}; expected a Recipe, or a function that returns one")
    if recipe.task.name != task.name:
        raise UserError(f"{path}: {NAME} is of task {recipe.task.name!r}, asked for {task.name!r}")
    file = {"name": path.name, "sha256": hashlib.sha256(data).hexdigest(), "text": data.decode("utf-8", "replace")}
    return replace(recipe, file=file)


def _called(function: Callable[..., Recipe], task: Task) -> Recipe:
    return function(task) if inspect.signature(function).parameters else function()


def _told(path: Path, run: Callable[[], Result]) -> Result:
    """What a part of the file gives. UserError with the line of the file where it fails."""
    try:
        return run()
    except MISTAKES as error:
        if isinstance(error, SyntaxError) and error.filename == str(path):
            raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
        lines = [step.lineno for step in traceback.extract_tb(error.__traceback__) if step.filename == str(path)]
        if not lines:
            raise  # not the file's doing
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{path}:{lines[-1]}: {kind}{error}") from error

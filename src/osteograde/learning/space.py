"""A space of settings that a search may try: for some keys of ``--set`` a range of numbers or a list of choices.

A space is a mapping, in a Python file of the user's own (``--space my.py``) or one that ships (``recipes/spaces``):

    SPACE = {
        "grade.kl.training.lr": (1e-4, 1e-2, "log"),     a number between two, spread evenly over its logarithm
        "grade.kl.training.epochs": (4, 12),             a whole number, as the recipe declares it
        "grade.kl.loss": ["classes", "ordinal"],         one of a list
        "grade.kl.pixels": ["96,128", "176,240"],        written as ``--set`` reads it
    }

Keys and values are read by the code of ``--set`` (``settings``), so both know the same. Nothing here needs Optuna.
"""

from __future__ import annotations

import math
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.learning import settings
from osteograde.learning.recipe import Recipe
from osteograde.learning.recipe_file import MISTAKES

ENDING, NAME = ".py", "SPACE"
LOG = "log"
OF_THE_SEARCH = ("scope", "calibrate")  # nothing is calibrated in a search
DIGITS = 4  # significant ones of a number that is tried
MOST_LEVELS = 1000  # of a range in a grid

Point = dict[str, str]  # key -> text of a value, as --set reads it


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included. log: they are spread evenly over their logarithm. whole: whole
    numbers."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def text(self, value: float) -> str:
        """A number of the range as ``--set`` reads it, with ``DIGITS`` significant digits.

        >>> Range("a", 0, 1).text(0.123456), Range("a", 1, 9, whole=True).text(3)
        ('0.1235', '3')
        """
        inside = min(max(value, self.low), self.high)
        return str(round(inside)) if self.whole else f"{inside:.{DIGITS}g}"

    def levels(self, count: int) -> list[str]:
        """At most so many texts of evenly spread numbers, the ends included."""
        shares = [i / max(1, count - 1) for i in range(count)]
        return list(dict.fromkeys(self.text(self.at(share)) for share in shares))

    def at(self, share: float) -> float:
        """The number at a share (0 to 1) of the way from low to high."""
        if self.log:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)

    def share(self, text: str) -> float:
        """The other way round: where a value lies, 0 at low and 1 at high."""
        low, high, value = self.low, self.high, float(text)
        if self.log:
            low, high, value = (math.log(one) for one in (low, high, value))
        return (value - low) / (high - low)

    def holds(self, text: str) -> bool:
        """Whether a value lies in the range."""
        try:
            return self.low <= float(text) <= self.high
        except ValueError:
            return False


@dataclass(frozen=True)
class Choice:
    """One of several values, as texts that ``--set`` reads."""

    key: str
    options: tuple[str, ...]

    def levels(self, count: int) -> list[str]:
        """All options, however many are asked for."""
        return list(self.options)

    def share(self, text: str) -> float:
        """Where an option lies among the others, 0 for the first and 1 for the last."""
        return self.options.index(text) / max(1, len(self.options) - 1)

    def holds(self, text: str) -> bool:
        """Whether a value is one of the options."""
        return text in self.options


Dimension = Range | Choice


def load(name: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The mapping that ``--space`` names: one that ships, or that of a file. UserError where there is none."""
    if not name.endswith(ENDING):
        if name not in known:
            raise UserError(
                f"--space {name}: no space of that name; known: {', '.join(known)}, or a file such as my.py"
            )
        return known[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--space {name}: no such file")
    try:
        found = runpy.run_path(name)
    except MISTAKES as error:
        raise UserError(f"{name}: {type(error).__name__}: {error}") from error
    if not isinstance(given := found.get(NAME), Mapping) or not given:
        raise UserError(f"{name}: defines no {NAME}; expected {NAME} = {{KEY: (low, high), KEY: [choice, ...], ...}}")
    return given


def parsed(given: Mapping[str, Any], recipe: Recipe, where: str) -> tuple[Dimension, ...]:
    """The dimensions of a space, in its order. where: the file or name, which errors begin with.

    Raises UserError for a key that the recipe does not have (with the nearest ones), for values of another type than it
    declares, for a range of what is no number, and for values that make no sense in this recipe.
    """
    try:
        _check_keys([str(key) for key in given], recipe)
        dimensions = tuple(_dimension(str(key), value, recipe) for key, value in given.items())
        base = [f"{one.key}={one.levels(2)[0]}" for one in dimensions]
        for i, one in enumerate(dimensions):
            for text in one.levels(2):
                settings.changed(recipe, [*base[:i], f"{one.key}={text}", *base[i + 1 :]])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return dimensions


def _check_keys(keys: Sequence[str], recipe: Recipe) -> None:
    """UserError for a key of the data or the folds, which are those of the search, and for a value that two keys stand
    for: the second would hide the first."""
    by_key: dict[str, str] = {}
    for key in keys:
        if key.split(".")[0] in OF_THE_SEARCH:
            raise UserError(f"{key}: the same for all trials of a search; give it with --set")
        for one in settings.keys_of(recipe, key):
            if one in by_key:
                raise UserError(f"{key}: sets {one}, as {by_key[one]} does; leave one of the two out")
            by_key[one] = key


def _dimension(key: str, value: Any, recipe: Recipe) -> Dimension:
    kind = settings.kind_of(recipe, key)
    if isinstance(value, list):
        options = tuple(_option(kind, _text(one), key) for one in value)
        if len(set(options)) < 2 or len(set(options)) < len(options):
            raise UserError(f"{key}: got {value!r}, expected a list of two or more different choices")
        return Choice(key, options)
    if not (isinstance(value, tuple) and len(value) in (2, 3) and value[2:] in ((), (LOG,))):
        raise UserError(f'{key}: got {value!r}, expected (low, high), (low, high, "{LOG}") or a list of choices')
    if kind not in (int, float):
        raise UserError(f"{key}: got the range {value!r}, but it is no number; expected a list of choices")
    for end in value[:2]:
        settings.parsed(kind, _text(end), key)
    low, high, is_log = float(value[0]), float(value[1]), len(value) == 3
    if not low < high:
        raise UserError(f"{key}: got {value!r}, expected a low end below the high one")
    if is_log and low <= 0:
        raise UserError(f"{key}: got {value!r}, a logarithm needs a low end above 0")
    return Range(key, low, high, is_log, kind is int)


def _option(kind: Any, text: str, key: str) -> str:
    """A choice as the recipe writes it: of 1e-3 and 0.001 one would be tried twice, and not be known as the default."""
    return text if text == settings.NONE else settings.text_of(settings.parsed(kind, text, key))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else settings.text_of(value)


def settings_of(point: Mapping[str, str]) -> list[str]:
    """A point as ``--set`` has it: "KEY=VALUE" for each key."""
    return [f"{key}={text}" for key, text in point.items()]


def default_point(space: Sequence[Dimension], recipe: Recipe) -> Point | None:
    """The values that the recipe has itself; None where one lies outside of the space, or differs between the stages
    or members that its key stands for."""
    point = {}
    every = settings.values(recipe)
    for one in space:
        texts = {every[key] for key in settings.keys_of(recipe, one.key)}
        if len(texts) != 1 or not one.holds(text := texts.pop()):
            return None
        point[one.key] = text
    return point


def grid(space: Sequence[Dimension], trials: int) -> list[Point]:
    """The points of the finest grid of at most so many trials, with the ends of every range; the last key changes
    fastest. UserError where even two values of every range are too many."""
    levels = 2
    if (least := _size(space, levels)) > trials:
        raise UserError(
            f"--trials {trials}: the coarsest grid of these {len(space)} keys has {least} points; give more, or "
            "another method"
        )
    while levels < MOST_LEVELS and _size(space, levels + 1) <= trials:
        levels += 1
    values = [one.levels(levels) for one in space]
    return [dict(zip((one.key for one in space), texts, strict=True)) for texts in product(*values)]


def _size(space: Sequence[Dimension], levels: int) -> int:
    return math.prod(len(one.levels(levels)) for one in space)


def plain(space: Sequence[Dimension]) -> dict[str, Any]:
    """The space as JSON data."""
    return {
        one.key: list(one.options)
        if isinstance(one, Choice)
        else {"low": one.low, "high": one.high, "log": one.log, "whole": one.whole}
        for one in space
    }


def of_plain(plain: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """The space again of what ``plain`` made of it."""
    return tuple(
        Choice(key, tuple(value)) if isinstance(value, list) else Range(key, **value) for key, value in plain.items()
    )

"""``--set KEY=VALUE``: change single values of a recipe, and show all of them in the same form.

A key is the way to a value: ``tta``, ``scope.seed``, ``locate.LOCATOR.training.epochs``, ``grade.GRADER.training.lr``,
with * for all locators or all graders. Where a grader has several members, its key stands for all of them, and
``grade.GRADER.0.training.lr`` for one. Values are read by the type that the recipe declares for them:

    whole number, number    3, 3e-4
    yes or no               true, false
    text                    as it is
    several                 8,16 or joint,lateral; none for none of them
    restarts                8:0.4,10:0.2 (after epoch 8 from 0.4 of the rate, ...); none
    what may be off         none, and its own keys to switch it on: resizing.epochs=2 with resizing.share=0.7
    lists of a net          JSON

All settings are put in together, so their order is of no matter, but of the same key the last one counts.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from osteograde.errors import UserError
from osteograde.learning.recipe import GraderPlan, Recipe, Scope, for_grader

LOCATE, GRADE, ALL, NONE = "locate", "grade", "*", "none"
OF_THE_RECIPE = {"tta": int, "calibrate": bool, "scope": Scope}
OF_THE_TASK = ("kind", "crops", "classes", "channels", "in_channels", "head_outputs", "covariates")  # in a net's config

Tree = dict[str, Any]  # name -> text of a value, or the tree of what lies in it


class _Refused(ValueError):
    """Why a text is no value of its type: what is expected."""


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with every "KEY=VALUE" put in, and the values before and after in ``Recipe.changes``.

    Raises UserError for an unknown key (with the nearest ones and what is possible there), a value of another type
    (with what was got and is expected), and for values that make no sense together.
    """
    if not settings:
        return recipe
    tree = _tree(recipe, settings)
    made: dict[str, Any] = {"scope": _with(recipe.scope, tree.get("scope", {}), "scope")}
    made |= {name: parsed(OF_THE_RECIPE[name], tree[name], name) for name in ("tta", "calibrate") if name in tree}
    locators = {
        name: _with(plan, tree.get(LOCATE, {}).get(name, {}), f"{LOCATE}.{name}")
        for name, plan in recipe.locators.items()
    }
    graders = {
        name: tuple(_member(recipe, name, i, tree.get(GRADE, {}).get(name, {})) for i in range(len(members)))
        for name, members in recipe.graders.items()
    }
    result = replace(recipe, locators=locators, graders=graders, **made)
    before, after = values(recipe), values(result)
    changes = {key: (before.get(key, NONE), after.get(key, NONE)) for key in {**before, **after}}
    return replace(result, changes={key: pair for key, pair in changes.items() if pair[0] != pair[1]})


def lines(recipe: Recipe) -> list[str]:
    """Every value that can be set, as "KEY=VALUE"."""
    return [f"{key}={text}" for key, text in values(recipe).items()]


def values(recipe: Recipe) -> dict[str, str]:
    """Key -> value of everything that can be set, in the order of the recipe, as texts that ``changed`` reads."""
    found: dict[str, str] = {}
    for name in OF_THE_RECIPE:
        found |= _values_in(getattr(recipe, name), name)
    for name, plan in recipe.locators.items():
        found |= _values_in(plan, f"{LOCATE}.{name}")
    for name, members in recipe.graders.items():
        for i, member in enumerate(members):
            found |= _values_in(member, f"{GRADE}.{name}" + (f".{i}" if len(members) > 1 else ""))
    return found


def _values_in(value: Any, key: str) -> dict[str, str]:
    if is_dataclass(value):
        parts = {one.name: getattr(value, one.name) for one in fields(value)}
    elif key.endswith(".net"):
        parts = {name: part for name, part in value.items() if name not in OF_THE_TASK}
        return {f"{key}.{name}": _net_text(part) for name, part in parts.items()}
    else:
        return {key: text_of(value)}
    return {inner: text for name, part in parts.items() for inner, text in _values_in(part, f"{key}.{name}").items()}


def text_of(value: Any) -> str:
    """A value as ``--set`` reads it."""
    if value is None or (isinstance(value, tuple | list | Mapping) and not value):
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{text_of(part)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        return ",".join(map(text_of, value))
    return str(value)


def _net_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | tuple | Mapping) or value is None else text_of(value)


def _tree(recipe: Recipe, settings: Sequence[str]) -> Tree:
    """What is set, by the way to it: * taken for every name, members of graders by their number."""
    tree: Tree = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting}: expected KEY=VALUE, such as grade.*.training.epochs=2")
        for way, _ in _ways(recipe, key):
            place = tree
            for name in way[:-1]:
                place = place.setdefault(name, {})
                if not isinstance(place, dict):
                    raise UserError(f"--set {key}: a value that it lies in is set as well; set one of them")
            if isinstance(place.get(way[-1]), dict):
                raise UserError(f"--set {key}: a value inside of it is set as well; set one of them")
            place[way[-1]] = text
    return tree


def kind_of(recipe: Recipe, key: str) -> Any:
    """The type that the recipe declares for the value of a key, such as float; of what may be off that of what is on.

    Raises UserError for an unknown key, as ``changed`` does, and for one that stands for values of several types.
    """
    kinds = [_optional(kind) for _, kind in _ways(recipe, key)]
    if any(kind != kinds[0] for kind in kinds):
        raise UserError(f"--set {key}: it stands for values of several types {kinds}; name one of them")
    return kinds[0]


def keys_of(recipe: Recipe, key: str) -> list[str]:
    """The keys of ``values`` that a key with * or without a member stands for. UserError for an unknown one."""
    found = []
    for (first, *way), _ in _ways(recipe, key):
        if first == GRADE and len(recipe.graders[way[0]]) == 1:
            way = [way[0], *way[2:]]  # of a single member the number is not shown
        found.append(".".join([first, *way]))
    return found


def _ways(recipe: Recipe, key: str) -> Iterator[tuple[list[str], Any]]:
    """The ways that a key stands for, one for each locator, or for each member of each grader, and the type of the
    value at the end of each."""
    first, *rest = key.split(".")
    if first not in (LOCATE, GRADE):
        if first not in OF_THE_RECIPE:
            raise _unknown(recipe, key, "a recipe", first, [*OF_THE_RECIPE, LOCATE, GRADE])
        kind = _check_way(recipe, key, getattr(recipe, first), rest, first)
        yield [first, *rest], kind
        return
    plans: Mapping[str, Any] = recipe.locators if first == LOCATE else recipe.graders
    name, *inner = rest or [""]
    if not plans:
        raise UserError(f"--set {key}: this recipe has no {'locators' if first == LOCATE else 'graders'}; leave it out")
    if name not in (ALL, *plans):
        raise _unknown(recipe, key, first, name, [ALL, *plans])
    for stage in plans if name == ALL else [name]:
        if first == LOCATE:
            kind = _check_way(recipe, key, plans[stage], inner, f"{first}.{stage}")
            yield [first, stage, *inner], kind
            continue
        members = list(range(len(plans[stage])))
        chosen = members
        if inner and inner[0].isdigit():
            if int(inner[0]) not in members:
                raise _unknown(recipe, key, f"{first}.{stage}", inner[0], [str(i) for i in members])
            chosen, way = [int(inner[0])], inner[1:]
        else:
            way = inner
        for i in chosen:
            kind = _check_way(recipe, key, plans[stage][i], way, f"{first}.{stage}")
            yield [first, stage, str(i), *way], kind


def _check_way(recipe: Recipe, key: str, begin: Any, way: Sequence[str], where: str) -> Any:
    """The type of the value to which a key leads; UserError where it leads to none inside of the one where it
    begins."""
    value, kind = begin, type(begin)
    for name in way:
        known = _inside(value, kind)
        if name not in known:
            raise _unknown(recipe, key, where, name, known)
        value = value[name] if isinstance(value, Mapping) else getattr(value, name, None)
        kind, where = known[name], f"{where}.{name}"
    known, is_optional = _inside(value, kind), _optional(kind) is not kind  # what is optional may be set to none
    if known and not is_optional:
        raise _unknown(recipe, key, where, "", known)
    return kind


def _inside(value: Any, kind: Any) -> dict[str, Any]:
    """The names of what lies in a value, with their types; empty where it is one that is written as a whole."""
    if is_dataclass(inner := _optional(kind)):
        hints = typing.get_type_hints(inner)
        return {one.name: hints[one.name] for one in fields(inner)}  # type: ignore[arg-type]
    if typing.get_origin(kind) is not None and typing.get_args(kind) == (str, Any):  # a net's config
        return {name: type(part) for name, part in value.items() if name not in OF_THE_TASK}
    return {}


def _optional(kind: Any) -> Any:
    """T of "T | None", else the type itself."""
    parts = [part for part in typing.get_args(kind) if part is not types.NoneType]
    is_optional = isinstance(kind, types.UnionType) and len(parts) == 1
    return parts[0] if is_optional else kind


def _unknown(recipe: Recipe, key: str, where: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> UserError:
    every = list(values(recipe))
    begin, _, end = f".{key}.".partition(f".{name}.")  # the rest of the key stays as it was written
    near = [f"{begin}.{one}.{end}".strip(".") for one in difflib.get_close_matches(name, [*known], 3)]
    near += [one for one in every if one.endswith(f".{key}")] + difflib.get_close_matches(key, every, 3)
    hint = f"; nearest: {', '.join(dict.fromkeys(near[:3]))}" if near else ""
    what = f"{where} has no {name!r}" if name else f"{where} is not one value"
    possible = f"possible there: {', '.join(known)}" if known else "it is one value"
    return UserError(f"--set {key}: {what}{hint}; {possible}")


def _member(recipe: Recipe, name: str, i: int, tree: Tree) -> GraderPlan:
    """A member of a grader with what is set; its net is told again which crops and covariates it reads."""
    own = tree.get(str(i), {})
    plan = recipe.graders[name][i]
    made = _with(plan, own, f"{GRADE}.{name}")
    if (made.crops, made.covariates) == (plan.crops, plan.covariates):
        return made
    grader = next(one for one in recipe.task.graders if one.name == name)
    return for_grader(made, grader, recipe.task)


Value = typing.TypeVar("Value")


def _with(value: Value, tree: Tree, key: str) -> Value:
    """A frozen value with what is set in it, at any depth."""
    if not tree:
        return value
    hints, made = typing.get_type_hints(type(value)), {}
    for name, part in tree.items():
        kind, own, inner = hints[name], getattr(value, name), f"{key}.{name}"
        if isinstance(part, str):
            made[name] = parsed(kind, part, inner)
        elif isinstance(own, Mapping):
            made[name] = {**own, **{one: _of_net(own[one], text, f"{inner}.{one}") for one, text in part.items()}}
        elif own is None:
            made[name] = _new(_optional(kind), part, inner)
        else:
            made[name] = _with(own, part, inner)
    try:
        return replace(value, **made)  # type: ignore[type-var]
    except UserError as error:
        raise UserError(f"--set {', '.join(f'{key}.{name}' for name in tree)}: {error}") from error


def _new(kind: Any, tree: Tree, key: str) -> Any:
    """A part that was off, with all of its values."""
    names = [one.name for one in fields(kind)]
    if missing := [name for name in names if name not in tree]:
        raise UserError(f"--set {key}: it is off here; set {', '.join(f'{key}.{one}' for one in missing)} too")
    hints = typing.get_type_hints(kind)
    return kind(**{name: parsed(hints[name], tree[name], f"{key}.{name}") for name in names})


def _of_net(own: Any, text: str, key: str) -> Any:
    """A value of a net's config: of the type of the one that is there."""
    if isinstance(own, bool | int | float | str):
        return parsed(type(own), text, key)
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--set {key}={text}: expected JSON, such as {json.dumps(own)} ({error})") from error
    return own if given == json.loads(json.dumps(own)) else given


def parsed(kind: Any, text: str, key: str) -> Any:
    """A text as a value of a type; key: where it is said. UserError where it is none."""
    try:
        return _read(kind, text)
    except _Refused as expected:
        raise UserError(f"--set {key}={text}: got {text!r}, expected {expected}") from None


def _read(kind: Any, text: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return _read_one_of(parts, text)
    if origin is tuple:
        return _read_tuple(parts, text)
    if parts == (int, float):  # epochs, each with a number
        pairs = [] if text == NONE else [_read_pair(one) for one in text.split(",")]
        if len(dict(pairs)) < len(pairs):
            raise _Refused("every epoch once")
        return dict(pairs)
    if kind is bool:
        if text not in ("true", "false"):
            raise _Refused("true or false")
        return text == "true"
    if kind is int:
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise _Refused("a whole number, such as 3")
        return int(text)
    if kind is float:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            raise _Refused("a number, such as 3e-4")
        return float(text)
    return text


def _read_one_of(kinds: Sequence[Any], text: str) -> Any:
    if types.NoneType in kinds:
        if text != NONE:
            raise _Refused(f"{NONE}, or values for its own keys")
        return None
    single, _ = kinds  # pixels: one number, or one for each side
    words = text.split(",")
    try:
        read = tuple(_read(single, word) for word in words)
    except _Refused:
        read = ()
    if len(read) not in (1, 2):
        raise _Refused("one whole number, or rows,columns")
    return read[0] if len(read) == 1 else read


def _read_tuple(parts: Sequence[Any], text: str) -> tuple[Any, ...]:
    if text == NONE:
        return ()
    words = text.split(",")
    if Ellipsis in parts:
        return tuple(_read(parts[0], word) for word in words)
    if len(words) != len(parts):
        raise _Refused(f"{len(parts)} values with a comma between them")
    return tuple(_read(kind, word) for kind, word in zip(parts, words, strict=True))


def _read_pair(text: str) -> tuple[int, float]:
    epoch, colon, share = text.partition(":")
    if not colon:
        raise _Refused(f"EPOCH:SHARE, such as 8:0.4,10:0.2, or {NONE}")
    return _read(int, epoch), _read(float, share)

"""Weights that belong to the kit: which there are, and where they may lie on this machine. Nothing here needs numpy.

A checkout holds them in weights/NAME. A wheel is small: it holds their names, sizes and hashes (``INDEX``, which
setup.py writes from the checkout it is built in), and ``osteograde weights get`` fetches the files into ``fetched()``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from osteograde.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]  # where the package lies in src/ of one
INDEX = "weights_index.json"  # in the package as it is installed
FOLDER = Path("weights")  # of the current folder
FACTS = ("manifest.json", "ensemble.json")  # one of them makes a folder a weights folder
DIGEST = "sha256"


@dataclass(frozen=True)
class ShippedFile:
    """A file of a weights folder: its name in the folder, with forward slashes, its hash and its size."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ShippedWeights:
    """A weights folder as it was when the wheel was built. name: of the folder. task: what it grades. files: that which
    makes it a weights folder is the last one, so that a folder that was fetched in part is none."""

    name: str
    task: str
    files: tuple[ShippedFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def facts(self) -> ShippedFile:
        """The file that says what the weights are."""
        return next(file for file in self.files if file.name in FACTS)


def is_weights(folder: Path) -> bool:
    """Whether a folder says that it holds weights."""
    return any((folder / name).is_file() for name in FACTS)


def index_of(root: Path) -> tuple[ShippedWeights, ...]:
    """What the folders right below ``root`` hold; every file is hashed. None where there is no such folder."""
    folders = sorted(path for path in root.iterdir() if is_weights(path)) if root.is_dir() else []
    return tuple(_described(folder) for folder in folders)


def _described(folder: Path) -> ShippedWeights:
    facts = next(folder / name for name in FACTS if (folder / name).is_file())
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path == facts, path))
    return ShippedWeights(
        folder.name,
        str(json.loads(facts.read_text(encoding="utf-8"))["task"]),
        tuple(ShippedFile(path.relative_to(folder).as_posix(), digest(path), path.stat().st_size) for path in files),
    )


def digest(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, DIGEST).hexdigest()


def index_text(sets: Sequence[ShippedWeights]) -> str:
    """What is written into ``INDEX``."""
    return json.dumps([asdict(one) for one in sets], indent=1) + "\n"


@cache
def index() -> tuple[ShippedWeights, ...]:
    """The weights of this version: of a checkout those that lie in it, of a wheel those that it names."""
    path = PACKAGE / INDEX
    if not path.is_file():
        return index_of(CHECKOUT / FOLDER) if is_checkout() else ()
    return tuple(_from_json(facts) for facts in json.loads(path.read_text(encoding="utf-8")))


def _from_json(facts: Mapping[str, Any]) -> ShippedWeights:
    return ShippedWeights(facts["name"], facts["task"], tuple(ShippedFile(**file) for file in facts["files"]))


def is_checkout() -> bool:
    """Whether the package runs from a checkout: then its weights, and the scripts of its kernels, lie there."""
    return PACKAGE.parent.name == "src" and (CHECKOUT / "pyproject.toml").is_file()


def fetched() -> Path:
    """Where ``osteograde weights get`` puts weights: osteograde/weights below XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "osteograde" / "weights"


def places() -> tuple[Path, ...]:
    """The folders that weights are looked for in, in this order: weights/ of the current folder, that of the checkout
    that the package lies in, and where they are fetched to."""
    found = [FOLDER, *([CHECKOUT / FOLDER] if is_checkout() else []), fetched()]
    return tuple({path.resolve(): path for path in reversed(found)}.values())[::-1]


def find(task: str) -> Path:
    """The weights of a task: TASK, else the only TASK-*, in the first of ``places`` that has any.

    Fetched weights that are not those of this version are passed over. UserError where a place has several, or no
    place has any: it names all places and says what to do.
    """
    passed: list[Path] = []
    for place in places():
        found = [place / task] if is_weights(place / task) else sorted(filter(is_weights, place.glob(f"{task}-*")))
        if place == fetched():
            passed, found = [path for path in found if not is_current(path)], [*filter(is_current, found)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{len(found)} weights folders for {task!r} in {place} ({names}); name one with --weights")
        if found:
            return found[0]
    looked = ", ".join(str(place / task) for place in places())
    old = f"; {passed[0]} is of another version" if passed else ""
    if any(task in (one.name, one.task) for one in index()):
        advice = f"'osteograde weights get {task}' fetches them, or name a weights folder with --weights"
    else:
        advice = f"none ship for this task: train some (osteograde train {task}), and name their folder with --weights"
    raise UserError(f"no weights for {task!r}: looked for {looked}{old}; {advice}")


def at(folder: Path) -> Path:
    """A weights folder by its name: itself; a relative weights/NAME that is not there, where ``places`` have NAME."""
    if folder.is_dir() or folder.parent != FOLDER:
        return folder
    return next((place / folder.name for place in places() if is_weights(place / folder.name)), folder)


def is_current(folder: Path) -> bool:
    """Whether a fetched folder is that of this version, by the hash of its manifest; of names that this version does
    not know nothing else can be said."""
    known = next((one for one in index() if one.name == folder.name), None)
    return known is None or digest(folder / known.facts.name) == known.facts.sha256


def named(name: str) -> ShippedWeights:
    """The weights of a name, or the only ones of a task. UserError names what there is."""
    sets = index()
    found = [one for one in sets if one.name == name] or [one for one in sets if one.task == name]
    if len(found) != 1:
        known = ", ".join(one.name for one in sets) or "none"
        count = len(found) or "no"
        raise UserError(f"{count} weights of this version are called {name!r}; there are: {known}")
    return found[0]

"""Find the joint, crop it, grade it, submit it: a two-stage competition kit for spine and knee images.

``osteograde.load``, ``train``, ``score``, ``Grader`` and ``Image`` are those of api.py, which is imported when one of
them is first used: importing the package takes no time.
"""

from importlib import import_module
from typing import Any

from osteograde.errors import UserError as UserError

_API = ("Graded", "Grader", "Image", "load", "score", "train")


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not an import statement: a kernel carries what import statements name, and needs none of this.
    globals()[name] = found = getattr(import_module("osteograde.api"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})

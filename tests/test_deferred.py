"""What only training and counting need is named as text: it must be there, and a kernel must not carry it."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from osteograde.kaggle import build_kernel
from osteograde.tasks.deferred import Deferred

TASKS = Path(build_kernel.PACKAGE) / "tasks"


def named() -> list[tuple[str, str]]:
    """(module, function) of every Deferred that the tasks make."""
    calls = [
        node
        for path in sorted(TASKS.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Deferred"
    ]
    return [tuple(ast.literal_eval(part) for part in call.args) for call in calls]


@pytest.mark.parametrize(("module", "name"), named())
def test_a_deferred_function_is_there_and_no_kernel_carries_its_module(module, name):
    assert callable(getattr(import_module(module), name))
    assert module not in build_kernel.closure("osteograde.inference.kernel_main")


def test_some_are_deferred_and_a_call_passes_its_arguments_on():
    assert named()
    assert Deferred("osteograde.tasks.oai_films", "visit_of")("48m") == "06"

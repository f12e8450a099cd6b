"""Every code that may stand in a table of flags or in the log's counts has a line in docs/inference.md.

A code is a word such as "spacing_assumed". Codes are made in many ways (counted, raised, noted, returned), so every
string of that form in the rooms that make them counts as a code, unless it is named below as something else.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "osteograde"
PAGE = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
MAKERS = ("imaging", "pipeline", "inference", "tasks/knee_files.py", "grade_command.py")
OF_ONE_WORD = {"absent", "deadline", "stopped"}  # codes that a form alone does not tell from other words
NO_CODES = {
    "b_value", "file_meta", "n_frames", "tag_v2",  # attributes of libraries and values
    "on_prior", "row_id", "test_images", "kaggle_evaluation",  # fields, columns, folders
    "study_id", "x_mm", "y_mm", "z_mm",  # columns of landmarks
    "films_below",  # a function of a module that is loaded later
}  # fmt: skip


def strings(source: str) -> Iterator[str]:
    """Every string of a module that is no docstring and no exported name; of "view:code" the code."""
    tree = ast.parse(source)
    besides = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            besides |= {id(one) for one in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in besides:
            yield node.value.rpartition(":")[2]


def codes_in(source: str) -> set[str]:
    """The codes of a module; "no_decoder_" is the beginning of codes that end in a name."""
    words = set(strings(source))
    formed = {word for word in words if re.fullmatch(r"[a-z]+(?:_[a-z0-9]+)+_?", word)}
    return (formed - NO_CODES) | (words & OF_ONE_WORD)


def codes() -> set[str]:
    found: set[str] = set()
    for name in MAKERS:
        path = PACKAGE / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            found |= codes_in(file.read_text(encoding="utf-8"))
    return found


def documented() -> set[str]:
    """The codes in the first column of the page's tables, each with its meaning beside it."""
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]*\w[^|]* \|$", PAGE.partition("\n## Flags\n")[2], re.M)
    return {code.replace("NAME", "") for row in rows for code in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('codes["slice_lost"] += 1', "slice_lost"),
        ('raise UnreadableSlice("slice_lost")', "slice_lost"),
        ('faults[f"{view.name}:slice_lost"] += lost', "slice_lost"),
        ('faults.update({f"{view.name}:absent": 1})', "absent"),
        ('LOST = "slice_lost"', "slice_lost"),
        ('return ("slice_lost",)', "slice_lost"),
        ('return f"no_decoder_{syntax}"', "no_decoder_"),
    ],
)
def test_a_code_is_found_however_it_is_made(source, code):
    assert codes_in(source) == {code}


def test_every_code_has_a_line_with_its_meaning():
    assert sorted(codes() - documented()) == []


def test_every_line_is_about_a_code_that_exists():
    assert sorted(documented() - codes()) == []

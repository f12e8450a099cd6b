"""Every notebook in examples/ runs from top to bottom in an empty folder, without data and without a network."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))


def code_of(notebook: nbformat.NotebookNode) -> str:
    """The code cells as one program, which prints what a notebook shows: the last expression of each cell."""
    lines = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            body = ast.parse(cell.source).body
            if isinstance(body[-1], ast.Expr):
                body[-1] = ast.parse(f"print({ast.unparse(body[-1])})").body[0]
            lines += [ast.unparse(node) for node in body]
    return "\n".join(lines) + "\n"


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_links_pages_that_exist(path):
    notebook = read(path)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / target).exists(), target
        assert not re.search(r"[\"'](/|~)\w", cell.source), "a path of one machine"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    # No file: as in a notebook, processes that cells start must not find a program to run again.
    command = [sys.executable, "-c", code_of(read(path))]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

"""A package that is missing is told in one line, before anything is read and before torch is imported."""

import importlib.util
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from osteograde import cli, packages

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == sys.argv[1] else found(name, package)
sys.path.insert(0, "src")
from osteograde import cli
code = cli.run(lambda: cli.train(cli.train_parser().parse_args(sys.argv[2:])))
sys.exit(99 if "torch" in sys.modules else code)
"""


def test_the_packages_that_are_looked_for_are_those_that_are_installed_with_the_kit():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {*packages.NEEDED.values(), *packages.TO_TRAIN.values()} == {name.split(">=")[0] for name in asked}


@pytest.mark.parametrize("module", ["torch", "cv2", "sklearn"])
def test_training_names_a_missing_package_in_a_second_of_processor_time(tmp_path, module):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-c", SCRIPT, module, "knee-xray", "--data", str(tmp_path), "--out", str(tmp_path / "W")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    assert done.returncode == 2, done.stderr
    package = {**packages.NEEDED, **packages.TO_TRAIN}[module]
    assert done.stderr.startswith(f"error: not installed here: {package}; ") and done.stderr.count("\n") == 1


def test_grading_does_without_the_packages_that_only_training_needs(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    missing = {"sklearn"}
    packages.check(to_train=False)
    missing = {"torch", "timm"}
    options = ["knee-xray", "--data", str(tmp_path), "--out", str(tmp_path / "s.csv")]
    assert cli.run(lambda: cli.grade(cli.inference_parser().parse_args(options))) == 2
    assert capsys.readouterr().err.startswith("error: not installed here: torch, timm; ")

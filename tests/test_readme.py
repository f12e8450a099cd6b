"""Every command of the README is one the programs understand, and every page names files that exist."""

import re
import shlex
from pathlib import Path

import pytest

from osteograde import cli
from osteograde.learning.recipes import RECIPES
from osteograde.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("weights/*/README.md"), ROOT / "bench/README.md"}
)
COMMANDS = [
    line.strip()
    for block in re.findall(r"```\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith(("python ", "make "))
]


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[1] == "-m":
        assert words[2] == "osteograde"
        cli.parser().parse_args(words[3:])
    else:
        parser = {"inference.py": cli.inference_parser, "train_folds.py": cli.train_parser}.get(words[1])
        if parser is None:
            assert (ROOT / words[1]).is_file()
        else:
            args = parser().parse_args(words[2:])
            assert args.task in TASKS


def test_recipes_tasks_and_options_named_there_exist():
    for name in re.findall(r"`((?:lumbar-mr|seed)[a-z-]*)`", README):
        assert name in RECIPES or name in TASKS, name
    options = {option for make in (cli.inference_parser, cli.train_parser) for option in make()._option_string_actions}
    for option in re.findall(r"`(--[a-z-]+)", README):
        assert option in options, option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_linked_on_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_merge_was_left_open_on_a_page(page):
    assert not re.search(r"^(<{7}|>{7}|={7}$)", page.read_text(encoding="utf-8"), re.M)


def test_modules_named_in_the_architecture_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    there = [path.as_posix() for folder in ("", "src", "tests", "bench") for path in _modules(folder)]
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert any(path.endswith(f"/{name}") for path in there), name


def _modules(folder: str) -> list[Path]:
    """The modules below a folder of the checkout; of the checkout itself only those that lie in it directly."""
    return sorted((ROOT / folder).rglob("*.py") if folder else ROOT.glob("*.py"))

"""Every bench script can be imported, prints its help, and takes the options that commands in the documents give it."""

import importlib
import io
import re
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHES = sorted(path.stem for path in (ROOT / "bench").glob("*.py"))
IMPORTED = {"baseline_loop", "fuzz_inputs", "machine", "sample_dicom"}  # by other benches; no scripts
DOCUMENTS = ("*.md", "docs/**/*.md", "weights/*/*.md", "bench/*.md", "bench/*.py", "examples/**/*.md")
COMMAND = re.compile(r"\b(\w+)\.py\b([^`\n]*(?:\n +\[?--[^`\n]*)*)")  # may go on in lines that begin with an option
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")

sys.path.insert(0, str(ROOT / "bench"))


@cache
def usage_of(name: str) -> str:
    """How a script says that it is called: its help without the description, which is its docstring. Where it has
    subcommands, theirs as well."""
    own = _help(name)
    subcommands = re.search(r"\{([a-z,]+)\} \.\.\.", own)
    return own + "".join(_help(name, one) for one in (subcommands[1].split(",") if subcommands else ()))


def _help(name: str, *subcommand: str) -> str:
    module, told = importlib.import_module(name), io.StringIO()
    asked = mock.patch.object(sys, "argv", [f"bench/{name}.py", *subcommand, "--help"])
    with asked, redirect_stdout(told), pytest.raises(SystemExit) as ended:
        module.main()
    assert not ended.value.code
    return told.getvalue().partition("\n\n")[0]


@cache
def commands() -> tuple[tuple[str, str, str], ...]:
    """(document, script, option) of every option that a document gives to a script of any folder."""
    files = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    return tuple(
        (path.relative_to(ROOT).as_posix(), command[1], option)
        for path in files
        for command in COMMAND.finditer(path.read_text(encoding="utf-8"))
        for option in OPTION.findall(command[2])
    )


@pytest.mark.parametrize("name", BENCHES)
def test_it_is_imported_and_prints_its_help(name):
    module = importlib.import_module(name)
    assert Path(module.__file__).parent == ROOT / "bench"
    assert hasattr(module, "main") == (name not in IMPORTED)
    if name not in IMPORTED:
        assert f"usage: {name}.py" in usage_of(name)


@pytest.mark.parametrize("name", sorted({*BENCHES} - IMPORTED))
def test_its_commands_name_options_that_it_has(name):
    exists = set(OPTION.findall(usage_of(name)))
    unknown = [(document, option) for document, script, option in commands() if script == name and option not in exists]
    assert unknown == []


def test_commands_are_found_over_several_lines():
    assert ("bench/fit_domain.py", "fit_domain", "--unseen") in commands()  # in the second line of a docstring
    assert ("bench/README.md", "pipeline", "--baseline-studies") in commands()  # between backticks

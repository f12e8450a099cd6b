"""Writes a kernel: what a push needs is one metadata file and the text of one script, so the script carries our source.

The source stays readable inside (raw strings, one per module), and a rebuilt script is equal byte for byte.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import osteograde
from osteograde.kaggle import metadata
from osteograde.models import bundle
from osteograde.tasks import TASKS

ENTRY = "osteograde.inference.kernel_main"
MAX_BYTES = 500_000  # the limit of a kernel's source is not documented; stay well below what is known to pass
QUOTES = "'" * 3
PACKAGE = Path(osteograde.__file__).parent

HEAD = """# Grades {task} studies without a network. Generated from the osteograde package by
#     python -m osteograde kernel build {task}
# so edit the package, not this file. SPDX-License-Identifier: Apache-2.0

TASK = {task!r}
MANIFEST = {manifest!r}  # sha256 of the only manifest.json that is taken; '': any of this task
DATA = {data!r}  # the data set that holds the images; '': a competition, or wherever there are any
SOURCE = {{}}
"""

TAIL = """
if __name__ == "__main__":  # worker processes may import this file again and must not start a second run
    import pathlib
    import sys
    import tempfile

    with tempfile.TemporaryDirectory(prefix="osteograde-") as home:  # not the working folder: that is the output
        for name, text in SOURCE.items():
            path = pathlib.Path(home, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.path.insert(0, home)
        from osteograde.inference.kernel import kernel_main

        code = kernel_main(TASK, MANIFEST, DATA)
    sys.exit(code)
"""


def build(task: str, weights: Path | None, out: Path, *, source: str = "", data: str = "") -> Path:
    """Write ``out``/kernel-metadata.json and ``out``/<task>.py; the script's path is returned.

    With ``weights`` their hashes are verified and the kernel takes no others. source: the data set or model they are
    mounted from; data: the data set of the images, for a task without a competition. Raises ValueError for an unknown
    task, damaged weights or weights of another task, a bad name, and source that a raw string cannot hold.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; known tasks: {', '.join(sorted(TASKS))}")
    if data and TASKS[task].slug:
        raise ValueError(f"{task} reads the competition {TASKS[task].slug}; leave --images {data} out")
    name = f"{task.replace('-', '_')}.py"
    facts = metadata.make(task, TASKS[task].slug, name, source, data)
    text = script(task, sources(closure(ENTRY)), _pin(task, weights), data)
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text, encoding="utf-8", newline="\n")
    (out / metadata.NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8", newline="\n")
    metadata.check(facts, out)
    return out / name


def script(task: str, texts: dict[str, str], manifest: str = "", data: str = "") -> str:
    """The kernel's text. Raises ValueError for what a raw string cannot hold and for more than MAX_BYTES."""
    parts = [HEAD.format(task=task, manifest=manifest, data=data)]
    for name, text in texts.items():
        if QUOTES in text:
            raise ValueError(f"{name}: holds three single quotes, which would end the raw string it is carried in")
        if text and not text.endswith("\n"):
            raise ValueError(f"{name}: must end with a newline to be carried unchanged")
        parts.append(f"\nSOURCE[{name!r}] = r{QUOTES}{text}{QUOTES}\n")
    whole = "".join(parts) + TAIL
    if (size := len(whole.encode())) > MAX_BYTES:
        raise ValueError(f"the kernel of {task} has {size} bytes, more than {MAX_BYTES}; carry fewer modules")
    return whole


def closure(entry: str) -> list[str]:
    """The package's modules that ``entry`` may import, directly or not, also inside functions; sorted."""
    todo, seen = [entry], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += [name.rpartition(".")[0]] if "." in name else []
        todo += _imports(_file(name).read_text(encoding="utf-8"))
    return sorted(seen)


def sources(modules: list[str]) -> dict[str, str]:
    """Path below src/ -> text, for each of ``modules``."""
    files = [_file(name) for name in modules]
    return {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes().decode("utf-8") for path in files}


def _imports(text: str) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"relative import of {node.module!r}: write the full name, so that it can be followed")
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names if _exists(f"{node.module}.{alias.name}")]
    return [name for name in found if name.split(".")[0] == "osteograde"]


def _file(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _exists(module: str) -> bool:
    return module.startswith("osteograde.") and _file(module).is_file()


def _pin(task: str, weights: Path | None) -> str:
    if weights is None:
        return ""
    made_for = bundle.verify(weights)["task"]
    if made_for != task:
        raise ValueError(f"{weights}: weights of {made_for!r}, expected {task!r}; give --weights made for this task")
    return bundle.sha256(weights / bundle.MANIFEST)

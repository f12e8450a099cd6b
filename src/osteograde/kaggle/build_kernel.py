"""Build the script that a push sends: the readable script of a task with the package inside, as text.

A push takes one metadata file and the text of one script, so the built script carries every module that it may import.
The modules stay readable (one raw string each), and building twice from the same source gives the same bytes.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import re
import tarfile
from pathlib import Path

import osteograde
from osteograde.errors import UserError
from osteograde.kaggle import metadata
from osteograde.models.manifest import sha256
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS, check_name

ENTRY = "osteograde.inference.kernel_main"
TRAIN = "train"  # the folder of the script that trains any task
READABLE = Path("kernels")  # one folder a task: the script with its settings, and the metadata
BUILT = Path("build") / "kernels"  # git ignores it
MAX_BYTES = 940_000  # of the built script: Kaggle documents no limit of a kernel source; 1 MB is what users report
QUOTES = "'" * 3
PACKAGE = Path(osteograde.__file__).parent
CARRIED = PACKAGE / "kaggle" / "kernels"  # what an installed package has of READABLE


def build(
    task: str,
    weights: Path | None,
    out: Path,
    *,
    source: str = "",
    data: str = "",
    machine: str = "",
    readable: Path | None = None,
) -> Path:
    """Write ``out``/kernel-metadata.json and ``out``/<task>.py, the self-contained script; its path is returned.

    weights: their hashes are verified, and the kernel accepts no others. source: the data set or model on Kaggle that
    holds them. data: the data set of the images, for a task without a competition. machine: where it runs, "" as the
    metadata say (``metadata.on_machine``). readable: the folder of the script and of the metadata to start from; by
    default that of ``readable_folder``.

    Raises UserError for an unknown task, a script or metadata that lack what is needed, damaged weights or weights of
    another task, the name of a source that cannot be one, and text that a raw string cannot hold.
    """
    check_name(task)
    slug = TASKS[task].slug
    if data and slug:
        raise UserError(f"{task} reads the competition {slug}; leave --images {data} out")
    folder = readable or readable_folder(task)
    path = folder / script_name(task)
    if not path.is_file():
        raise UserError(f"{path}: missing; copy the script of another task and change its TASK")
    settings = path.read_text(encoding="utf-8")
    if setting(path, settings, "TASK") != task:
        raise UserError(f"{path}: TASK is {setting(path, settings, 'TASK')!r}, expected {task!r}")
    if pin := _pin(task, weights):
        settings = with_setting(path, settings, "MANIFEST_SHA256", pin)
    if data:
        settings = with_setting(path, settings, "DATA_SET", data)
    text = script(path, settings, sources(closure(ENTRY)))
    facts = metadata.on_machine(metadata.with_sources(metadata.read(folder), source, data), machine)
    out.mkdir(parents=True, exist_ok=True)
    (out / path.name).write_text(text, encoding="utf-8", newline="\n")
    (out / metadata.NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8", newline="\n")
    metadata.check(facts, out)
    return out / path.name


def build_training(
    task: str,
    out: Path,
    *,
    arguments: str = "",
    data: str = "",
    machine: str = "",
    go_on: bool = False,
    internet: bool = False,
) -> Path:
    """Write the kernel that trains a task to ``out``: its metadata and train.py, whose path is returned.

    arguments: options of train_folds.py beside the task, the data and the folder. data: the data set on Kaggle of the
    labelled studies, for a task without a competition. machine: as of ``build``. go_on: attach the kernel's own last
    output, which exists once it has run. internet: for starting weights that are downloaded; nothing is submitted from
    this kernel.

    UserError for an unknown task, options that train_folds.py does not take, and data that a competition has already.
    """
    check_name(task)
    slug = TASKS[task].slug
    if bool(data) == bool(slug):
        raise UserError(
            f"{task} reads the competition {slug}; leave --images {data} out"
            if slug
            else f"{task} has no competition; name the data set of the labelled studies with --images OWNER/NAME"
        )
    folder = readable_folder(TRAIN)
    path = folder / script_name(TRAIN)
    text = path.read_text(encoding="utf-8")
    settings = {"TASK": task, "ARGUMENTS": arguments, "DATA_SET": data, "PACKAGE": packed(PACKAGE)}
    for name, value in settings.items():
        text = with_setting(path, text, name, value)
    if (size := len(text.encode())) > MAX_BYTES:
        raise UserError(f"{path}: with the package it has {size} bytes, more than {MAX_BYTES}")
    facts = metadata.on_machine(metadata.read(folder), machine)
    facts = metadata.for_training(facts, task, slug, data, go_on=go_on, internet=internet)
    out.mkdir(parents=True, exist_ok=True)
    (out / path.name).write_text(text, encoding="utf-8", newline="\n")
    (out / metadata.NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8", newline="\n")
    metadata.check(facts, out)
    return out / path.name


def packed(package: Path) -> str:
    """All modules of the package as text: base 85 of a tar archive that xz compressed; the same source, the same text.

    It holds every module, which is more than an inference kernel carries, and nobody grades what it says: so it is
    packed, while the script of inference stays readable.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz", preset=9, format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(package.rglob("*.py")):
            data = path.read_bytes()
            member = tarfile.TarInfo(path.relative_to(package.parent).as_posix())
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return base64.b85encode(archive.getvalue()).decode("ascii")


def script_name(task: str) -> str:
    """The file name of a task's script: my-task becomes my_task.py."""
    return f"{task.replace('-', '_')}.py"


def readable_folder(task: str) -> Path:
    """kernels/<task> below the current folder, else in the checkout that the package lies in, else of those that an
    installed package carries; UserError if none."""
    places = [READABLE / task, PACKAGE.parents[1] / READABLE / task, CARRIED / task]
    found = [folder for folder in places if (folder / script_name(task)).is_file()]
    if not found:
        wanted = " and ".join(str(folder / script_name(task)) for folder in places)
        raise UserError(f"{wanted}: missing; copy the folder of another task to {places[0]} and change it")
    return found[0]


def setting(path: Path, text: str, name: str) -> str:
    """The value of ``NAME = "value"`` in a script. UserError if there is not exactly one such line."""
    return str(ast.literal_eval(_setting(path, text, name)[1]))


def with_setting(path: Path, text: str, name: str, value: str) -> str:
    """The script with another value of a setting; comments stay."""
    start, end = _setting(path, text, name).span(1)
    return f"{text[:start]}{json.dumps(value)}{text[end:]}"


def script(path: Path, text: str, modules: dict[str, str]) -> str:
    """The readable script at ``path`` with ``modules`` (path -> text) assigned to its PACKAGE.

    Raises UserError for a module that a raw string cannot hold, and for a result of more than MAX_BYTES.
    """
    parts = []
    for name, source in modules.items():
        if QUOTES in source:
            raise UserError(f"{name}: holds three single quotes, which would end the raw string it is carried in")
        if source and not source.endswith("\n"):
            raise UserError(f"{name}: must end with a newline to be carried unchanged")
        parts.append(f"\nPACKAGE[{name!r}] = r{QUOTES}{source}{QUOTES}\n")
    empty = list(re.finditer(r"^PACKAGE\b.*= *\{\}.*\n", text, re.MULTILINE))
    if len(empty) != 1:
        raise UserError(f"{path}: {len(empty)} lines PACKAGE = {{}}, expected 1: the modules are added below it")
    place = empty[0].end()
    whole = "".join((text[:place], *parts, text[place:]))
    if (size := len(whole.encode())) > MAX_BYTES:
        raise UserError(f"{path}: with the package it has {size} bytes, more than {MAX_BYTES}; carry fewer modules")
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
                raise UserError(f"relative import of {node.module!r}: write the full name, so that it can be followed")
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names if _exists(f"{node.module}.{alias.name}")]
    return [name for name in found if name.split(".")[0] == "osteograde"]


def _file(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _exists(module: str) -> bool:
    return module.startswith("osteograde.") and _file(module).is_file()


def _setting(path: Path, text: str, name: str) -> re.Match[str]:
    found = list(re.finditer(rf"""^{name} = ("[^"\n]*"|'[^'\n]*')""", text, re.MULTILINE))
    if len(found) != 1:
        raise UserError(f'{path}: {len(found)} lines {name} = "...", expected 1; see the script of another task')
    return found[0]


def _pin(task: str, weights: Path | None) -> str:
    if weights is None:
        return ""
    checked = ensemble.verify(weights)
    if checked.task != task:
        raise UserError(f"{weights}: weights of {checked.task!r}, expected {task!r}; give --weights made for this task")
    return sha256(checked.path)

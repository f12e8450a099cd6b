"""The rules of the house that a machine can see: who imports whom, how long a module is, what it may not do."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "osteograde"
MODULES = sorted(PACKAGE.rglob("*.py"))
BENCHES = sorted((ROOT / "bench").glob("*.py"))
# Each imports itself and those before it; inference and learning do not know each other.
BELOW = ("imaging", "tasks", "models", "pipeline")
SEES = {room: set(BELOW[: index + 1]) for index, room in enumerate(BELOW)}
SEES |= {room: {*BELOW, room} for room in ("inference", "learning")}
SEES |= {room: {*BELOW, "inference", "learning", room} for room in ("kaggle", "report")}
SEES["phantom"] = {"imaging", "tasks", "phantom"}
TASK_WORDS = re.compile(r"lumbar|knee|spider|l4_l5|stenosis", re.IGNORECASE)
MAY_NAME_TASKS = re.compile(r"(tasks|phantom)/.*|learning/recipes/.*|cli\.py|__init__\.py")
# cli.py: help and the default task; the package's own __init__.py: one sentence that says what it is for
TORCH_IN = {"imaging/resample.py"}  # of the rooms that describe scans and tasks


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    """The folder right under the package; "" for its own modules."""
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""


def imports(path: Path) -> list[str]:
    """Every module named in an import, also inside functions; ``from a import b`` counts as a and as a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def test_there_is_something_to_look_at():
    assert len(MODULES) > 20
    assert {room_of(path) for path in MODULES} - {""} == set(SEES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_rooms_to_its_left(path):
    room = room_of(path)
    if not room:
        return  # the command line may see everything
    seen = {name.split(".")[1] for name in imports(path) if name.startswith("osteograde.")}
    assert seen <= SEES[room] | {"__version__"}


def test_no_room_has_over_ten_modules():
    rooms: dict[Path, list[str]] = {}
    for path in MODULES:
        if path.name != "__init__.py":
            rooms.setdefault(path.parent, []).append(path.name)
    assert {name_of(room): names for room, names in rooms.items() if len(names) > 10} == {}


def test_scans_and_tasks_do_not_need_torch():
    slow = {"torch", "torchvision", "timm"}
    for path in MODULES:
        if room_of(path) in ("imaging", "tasks", "phantom") and name_of(path) not in TORCH_IN:
            assert not {name.split(".")[0] for name in imports(path)} & slow, name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_over_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_tasks_phantoms_and_recipes_name_a_task(path):
    if MAY_NAME_TASKS.fullmatch(name_of(path)):
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if TASK_WORDS.search(line)] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_source_can_be_carried_in_a_raw_string(path):
    data = path.read_bytes()
    assert b"'" * 3 not in data
    assert b"\r" not in data
    assert data == b"" or data.endswith(b"\n")
    data.decode("ascii")


@pytest.mark.parametrize("path", [*MODULES, *sorted(ROOT.glob("*.py")), *BENCHES], ids=lambda path: path.name)
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "joblib", "dill", "shelve", "kaggle"}
    for call in calls(path):
        called, words = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert called not in ("eval", "exec", "os.system"), f"{path.name}:{call.lineno}"
        assert words.get("shell") in (None, "False"), f"{path.name}:{call.lineno}"
        assert words.get("allow_pickle") in (None, "False"), f"{path.name}:{call.lineno}"
        if called == "torch.load":
            assert words.get("weights_only") == "True", f"{path.name}:{call.lineno}"


@pytest.mark.parametrize("path", [*MODULES, *sorted(ROOT.glob("*.py"))], ids=lambda path: path.name)
def test_failures_are_caught_by_name(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{path.name}:{node.lineno}"


def test_the_lock_pins_every_package_and_names_no_place():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pinned = [re.fullmatch(r"([a-z0-9-]+)==([0-9.]+)( ; .*)?", line) for line in lines]
    assert all(pinned), [line for line, match in zip(lines, pinned, strict=True) if not match]
    names = [match[1] for match in pinned if match]
    assert names == sorted(set(names))
    wanted = re.findall(r'"([a-z0-9-]+)(?:>=[\d.]+)?"', (ROOT / "pyproject.toml").read_text().split("[tool")[0])
    assert {"torch", "kaggle", "six", "pytest"} <= set(wanted) <= {*names, "osteograde"}


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-kaggle.txt", "Makefile", "Dockerfile", "pyproject.toml", ".ci/run"]
)
def test_set_up_depends_on_no_address(name):
    assert "://" not in (ROOT / name).read_text()

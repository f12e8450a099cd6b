"""The rules of the house that a machine can see: one test a rule, which lists everything that breaks it.

Every rule is a function from files to offences, so that it is itself tested: on a file that breaks it.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Room -> the rooms that it may import beside itself; each stands above it. inference and learning are siblings that do
# not know each other: what both need is in pipeline. The package's own modules (command lines) may import everything.
ROOMS = {
    "imaging": "",
    "tasks": "imaging",
    "phantom": "imaging tasks",
    "models": "imaging tasks",
    "pipeline": "imaging tasks models",
    "inference": "imaging tasks models pipeline",
    "learning": "imaging tasks models pipeline",
    "kaggle": "imaging tasks models pipeline inference learning",
    "report": "imaging tasks models pipeline inference learning",
}
EVERYWHERE = {"", "__version__", "errors", "interrupts", "logs"}  # "": the package; the lowest layer
COMMAND_LINE = ""  # the room of modules that lie in no room
TASK_WORDS = re.compile(r"lumbar|knee|spider|l4_l5|stenosis", re.IGNORECASE)
# The command line has a default task; __init__.py says in a sentence what the package is for.
MAY_NAME_TASKS = ("tasks/", "phantom/", "learning/recipes/", "cli.py", "__init__.py")
WITHOUT_TORCH = ("imaging", "tasks", "phantom")  # describing scans and tasks is fast to import
TORCH_IN = ("imaging/resample.py", "imaging/upright.py")  # the modules there that need it
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Source:
    """A file of Python: its path in the package (or in the repository, for scripts), and its bytes."""

    name: str
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode("utf-8")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @property
    def room(self) -> str:
        return self.name.partition("/")[0] if "/" in self.name else COMMAND_LINE

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.name}:{getattr(node, 'lineno', '?')}: {what}"

    def imports(self) -> Iterator[tuple[ast.AST, str]]:
        """Every module named in an import, also inside functions; ``from a import b`` counts as a.b."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def read(folder: Path, pattern: str) -> list[Source]:
    return [Source(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.glob(pattern))]


PACKAGE = read(ROOT / "src" / "osteograde", "**/*.py")
SCRIPTS = read(ROOT, "*.py")
EVERYTHING = [*PACKAGE, *SCRIPTS, *read(ROOT, "bench/*.py")]
Rule = Callable[[Sequence[Source]], list[str]]


def imports_against_the_direction(sources: Sequence[Source]) -> list[str]:
    found = []
    for source in sources:
        for node, name in source.imports():
            own, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if name.startswith("."):
                found.append(source.at(node, f"relative import {name}"))
            elif own == "osteograde" and source.room != COMMAND_LINE:
                allowed = {source.room, *EVERYWHERE, *ROOMS[source.room].split()}
                found += [] if room in allowed else [source.at(node, f"{source.room} must not import {room}")]
    return found


def torch_where_scans_and_tasks_are_described(sources: Sequence[Source]) -> list[str]:
    return [
        source.at(node, f"imports {name}")
        for source in sources
        if source.room in WITHOUT_TORCH and source.name not in TORCH_IN
        for node, name in source.imports()
        if name.partition(".")[0] in ("torch", "torchvision", "timm")
    ]


def names_of_tasks_in_core_rooms(sources: Sequence[Source]) -> list[str]:
    return [
        f"{source.name}:{number}: {line.strip()}"
        for source in sources
        if not source.name.startswith(MAY_NAME_TASKS)
        for number, line in enumerate(source.text.splitlines(), 1)
        if TASK_WORDS.search(line)
    ]


def long_functions(sources: Sequence[Source]) -> list[str]:
    return [
        source.at(node, f"{node.name} has {lines} lines, at most {MAX_FUNCTION_LINES} are allowed")
        for source in sources
        for node in source.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


# An error that reaches the host of a streamed competition ends the whole run, so these two keep every one to its study.
HOSTED = ("inference/serve.py", "kaggle/stand_in_host.py")


def failures_caught_without_a_name(sources: Sequence[Source]) -> list[str]:
    """``except:``, ``except Exception``, also among others, and ``suppress(Exception)``."""
    found = []
    for source in sources:
        if source.name in HOSTED:
            continue
        for node in source.nodes:
            caught: list[ast.AST] = []
            if isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    found.append(source.at(node, "catches everything"))
                caught = [node.type] if node.type else []
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                caught = list(node.args)
            names = {ast.unparse(part) for one in caught for part in ast.walk(one) if isinstance(part, ast.Name)}
            found += [source.at(node, f"catches {name}") for name in sorted(names & {"Exception", "BaseException"})]
    return found


def unpickled_evaluated_or_given_to_a_shell(sources: Sequence[Source]) -> list[str]:
    found = []
    for source in sources:
        for node, name in source.imports():
            if name.partition(".")[0] in ("pickle", "joblib", "dill", "shelve", "kaggle"):
                found.append(source.at(node, f"imports {name}"))
        for node in source.nodes:
            if isinstance(node, ast.Call):
                called, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                unsafe = called in ("eval", "exec", "os.system")
                unsafe |= words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False"
                unsafe |= called == "torch.load" and words.get("weights_only") != "True"
                found += [source.at(node, ast.unparse(node))] if unsafe else []
    return found


def not_to_be_carried_in_a_raw_string(sources: Sequence[Source]) -> list[str]:
    """A kernel carries sources between three single quotes, and every machine reads them alike."""
    reasons: dict[str, Callable[[bytes], bool]] = {
        "three single quotes": lambda data: b"'" * 3 in data,
        "a carriage return": lambda data: b"\r" in data,
        "no newline at the end": lambda data: data != b"" and not data.endswith(b"\n"),
        "a character that is not ASCII": lambda data: not data.isascii(),
    }
    return [f"{source.name}: {why}" for source in sources for why, is_so in reasons.items() if is_so(source.data)]


def test_there_is_something_to_look_at():
    assert len(PACKAGE) > 20
    assert {source.room for source in PACKAGE} - {COMMAND_LINE} == set(ROOMS)


def test_a_room_may_import_only_rooms_above_it():
    rooms = list(ROOMS)
    assert {
        room: allowed for i, (room, allowed) in enumerate(ROOMS.items()) if set(allowed.split()) - {*rooms[:i]}
    } == {}


def test_imports_follow_the_direction_of_the_rooms():
    assert imports_against_the_direction(PACKAGE) == []


def test_scans_and_tasks_do_not_need_torch():
    assert torch_where_scans_and_tasks_are_described(PACKAGE) == []


def test_only_tasks_phantoms_and_recipes_name_a_task():
    assert names_of_tasks_in_core_rooms(PACKAGE) == []


def test_no_function_is_over_60_lines():
    assert long_functions(EVERYTHING) == []


def test_failures_are_caught_by_name():
    assert failures_caught_without_a_name([*PACKAGE, *SCRIPTS]) == []  # benchmarks count crashes of every kind


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    assert unpickled_evaluated_or_given_to_a_shell(EVERYTHING) == []


def test_source_can_be_carried_in_a_raw_string():
    assert not_to_be_carried_in_a_raw_string(PACKAGE) == []


LONG = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
BROKEN: list[tuple[Rule, str, str]] = [
    (imports_against_the_direction, "tasks/x.py", "from osteograde.models import bundle\n"),
    (imports_against_the_direction, "models/x.py", "def f():\n    import osteograde.learning.fit\n"),
    (imports_against_the_direction, "inference/x.py", "from osteograde import phantom\n"),
    (imports_against_the_direction, "report/x.py", "from osteograde.cli import main\n"),
    (imports_against_the_direction, "tasks/deep/x.py", "from . import y\n"),
    (torch_where_scans_and_tasks_are_described, "imaging/x.py", "from torch import nn\n"),
    (names_of_tasks_in_core_rooms, "models/x.py", "SIDES = 2  # as knees have\n"),
    (long_functions, "x.py", LONG),
    (long_functions, "x.py", "class A:\n    async " + LONG.replace("\n", "\n    ")),
    (failures_caught_without_a_name, "x.py", "try:\n    pass\nexcept:\n    pass\n"),
    (failures_caught_without_a_name, "x.py", "try:\n    pass\nexcept (KeyError, Exception):\n    pass\n"),
    (failures_caught_without_a_name, "x.py", "with contextlib.suppress(BaseException):\n    pass\n"),
    (unpickled_evaluated_or_given_to_a_shell, "x.py", "import pickle\n"),
    (unpickled_evaluated_or_given_to_a_shell, "x.py", "eval(text)\n"),
    (unpickled_evaluated_or_given_to_a_shell, "x.py", "torch.load(path)\n"),
    (unpickled_evaluated_or_given_to_a_shell, "x.py", "subprocess.run(command, shell=quick)\n"),
    (unpickled_evaluated_or_given_to_a_shell, "x.py", "np.load(path, allow_pickle=True)\n"),
    (not_to_be_carried_in_a_raw_string, "x.py", "'''text'''\n"),
    (not_to_be_carried_in_a_raw_string, "x.py", "# \u00e4\n"),
    (not_to_be_carried_in_a_raw_string, "x.py", "x = 1"),
    (not_to_be_carried_in_a_raw_string, "x.py", "x = 1\r\n"),
]


def test_every_rule_finds_what_breaks_it():
    missed = [
        (rule.__name__, text) for rule, name, text in BROKEN if len(rule([Source(name, text.encode("utf-8"))])) != 1
    ]
    assert missed == []


NOT_LOCKED = {"ray"}  # large, and used where several machines are


def test_the_lock_pins_every_package_and_names_no_place():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pinned = [re.fullmatch(r"([a-z0-9-]+)==([0-9.]+(?:\.post[0-9]+)?)( ; .*)?", line) for line in lines]
    assert all(pinned), [line for line, match in zip(lines, pinned, strict=True) if not match]
    names = [match[1] for match in pinned if match]
    assert names == sorted(set(names))
    wanted = re.findall(r'"([a-z0-9-]+)(?:>=[\d.]+)?"', (ROOT / "pyproject.toml").read_text().split("[tool")[0])
    assert {"torch", "kaggle", "six", "pytest"} <= set(wanted) <= {*names, "osteograde", *NOT_LOCKED}


def test_set_up_depends_on_no_address():
    pins = [path.name for path in sorted(ROOT.glob("requirements*"))]
    files = [*pins, "Makefile", "Dockerfile", "pyproject.toml", ".ci/run"]
    assert [name for name in files if "://" in (ROOT / name).read_text()] == []

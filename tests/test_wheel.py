"""What pip installs is complete: in an empty folder, without a checkout, every step from images to a kernel works."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from osteograde.kaggle import build_kernel

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 2_000_000  # of a wheel: weights are fetched
TASK = "knee-xray"
# Commands from stdin in one process, as torch need not be imported for each; the first that fails ends it. Behind -c an
# interpreter looks for modules in the folder that it is started in, which is empty.
ONE_AFTER_ANOTHER = """
import sys
import osteograde
from osteograde import cli
print(osteograde.__file__, flush=True)
for line in sys.stdin:
    if code := cli.run(lambda: cli.main(line.split())):
        sys.exit(f"{line.strip()}: exit code {code}")
"""
WITHOUT_NETWORK = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]


def pip(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy: a build leaves its own files beside the sources."""
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("no pip or no setuptools here to build a wheel with")
    source, out = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=leave)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    (source / "weights").symlink_to(ROOT / "weights")
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", out, *WITHOUT_NETWORK)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, which borrows the heavy packages of this one."""
    folder = tmp_path_factory.mktemp("env") / "venv"
    venv.create(folder, with_pip=False)
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip("--python", folder / "bin" / "python", "install", wheel, *WITHOUT_NETWORK)
    return folder


@pytest.mark.slow
def test_a_wheel_is_small_and_carries_what_commands_read(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wheel.stat().st_size < MOST_BYTES
    assert not [name for name in names if name.endswith(".safetensors")]
    files = [path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".pyi", ".typed")]
    assert {path.relative_to(ROOT / "src").as_posix() for path in files} <= names
    kernels = [path for path in (ROOT / "kernels").rglob("*") if path.suffix in (".py", ".json")]
    carried = {f"osteograde/kaggle/kernels/{path.relative_to(ROOT / 'kernels').as_posix()}" for path in kernels}
    assert carried <= names and "osteograde/weights_index.json" in names and len(carried) >= 8


@pytest.mark.slow
def test_every_step_works_from_the_wheel_in_an_empty_folder(installed, tmp_path):
    work = tmp_path / "empty"
    work.mkdir()
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)

    def called(command: list[str], lines: str = "") -> subprocess.CompletedProcess:
        command = [str(installed / "bin" / command[0]), *command[1:]]
        return subprocess.run(command, cwd=work, env=env, input=lines, capture_output=True, text=True, timeout=600)

    def osteograde(words: str, code: int = 0) -> str:
        done = called(["osteograde", *words.split()])
        assert done.returncode == code, (words, done.stdout[-2000:], done.stderr[-2000:])
        assert code != 2 or done.stderr.count("\n") == 1
        return done.stdout + done.stderr

    osteograde(f"phantom {TASK} --out knees --studies 10 --test 1")
    assert f"osteograde weights get {TASK}" in osteograde(f"grade {TASK} --data knees", code=2)
    assert "--from" in osteograde(f"weights get {TASK}", code=2)
    osteograde(f"weights get {TASK} --from {ROOT / 'weights'}")
    assert f"in {tmp_path / 'cache'}" in osteograde("weights list")
    commands = (
        f"grade {TASK} --data knees --overlays pictures",
        "validate --submission submission.csv --template submission.csv",
        f"score {TASK} --data knees --submission submission.csv --bootstrap 0",
        f"train {TASK} --data knees --out mine --debug --folds 0",
        "report mine --data knees",
        f"kernel build {TASK} --weights mine",
        "doctor",
    )
    done = called(["python", "-c", ONE_AFTER_ANOTHER], "\n".join(commands))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith(str(installed)) and "usable" in done.stdout
    there = {path.name for path in work.iterdir()}
    assert {"submission.csv", "submission.points.csv", "pictures", "mine", "report.html", "build"} <= there
    built = build_kernel.build(TASK, work / "mine", tmp_path / "from-the-checkout", readable=ROOT / "kernels" / TASK)
    assert (work / "build" / "kernels" / TASK / built.name).read_bytes() == built.read_bytes()


def test_what_is_asked_for_is_no_newer_than_what_kaggle_has():
    asked = re.findall(r'"([a-z0-9-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text().split("[project.optional")[0])
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([\d.]+)", (ROOT / "requirements-kaggle.txt").read_text(), re.M))

    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.strip(".").split("."))

    known = {name: (pinned[name], least) for name, least in asked if name in pinned}
    assert {"torch", "numpy", "pandas", "scikit-learn"} <= set(known)
    assert {name: pair for name, pair in known.items() if numbers(pair[0]) < numbers(pair[1])} == {}

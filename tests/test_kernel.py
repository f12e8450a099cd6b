"""The kernel: what is pushed, what it may import, and that it does offline exactly what inference.py does."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde.grade_command import infer
from osteograde.inference import kernel_main as offline
from osteograde.inference import submission
from osteograde.kaggle import build_kernel
from osteograde.models import bundle
from osteograde.models.manifest import Manifest
from osteograde.tasks import TASKS
from tests.tiny import random_bundle

ROOT = Path(__file__).resolve().parents[1]
TASK = "lumbar-mr"
SLUG = TASKS[TASK].slug
IN_THE_IMAGE = {
    "torch", "torchvision", "timm", "pydicom", "cv2", "pandas", "numpy", "scipy", "safetensors", "PIL",
    "tqdm",
    "osteograde",
}  # fmt: skip
OPTIONAL = {"osteograde/imaging/dicom/rle_numba.py": {"numba", "llvmlite"}}  # in the image too, and never needed
# Read-only input and no network, by the kernel of the operating system where it lets us.
NAMESPACE = ["unshare", "-rnm", "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"']
# And always by Python: nothing may even try.
NO_SOCKETS = (
    "import runpy, socket, sys\n"
    "def refuse(*_): raise AssertionError('the kernel tried to use the network')\n"
    "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def carried(script: str) -> dict[str, str]:
    """PACKAGE of a built kernel, read without running it."""
    found = {}
    for node in ast.parse(script).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            found[ast.literal_eval(node.targets[0].slice)] = ast.literal_eval(node.value)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build_kernel.build(TASK, None, tmp_path_factory.mktemp("kernels") / TASK)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("weights") / "random", pixels=(64, 64))


@pytest.fixture(scope="module")
def studies(phantoms) -> Path:
    return phantoms(TASK, test=2, seed=5)


def mounted(root: Path, data: Path, weights: Path) -> Path:
    """/kaggle/input as a session has it."""
    shutil.copytree(data, root / "competitions" / SLUG)
    shutil.copytree(weights, root / "datasets" / "some-one" / "some-weights")
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(root).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")
    }


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_readable_kernel_that_builds_self_contained(task, tmp_path):
    readable = ROOT / "kernels" / task
    script = build_kernel.build(task, None, tmp_path / "one")
    assert sorted(path.name for path in readable.iterdir() if path.is_file()) == ["kernel-metadata.json", script.name]
    settings, text = (readable / script.name).read_text(), script.read_text()
    assert len(settings.splitlines()) < 60
    assert [line for line in settings.splitlines() if line not in text.splitlines()] == []
    assert set(carried(text)) == set(build_kernel.sources(build_kernel.closure(build_kernel.ENTRY)))
    assert (tmp_path / "one" / "kernel-metadata.json").read_bytes() == (readable / "kernel-metadata.json").read_bytes()
    assert build_kernel.build(task, None, tmp_path / "two").read_bytes() == script.read_bytes()


def test_nothing_generated_is_committed():
    for script in (ROOT / "kernels").rglob("*.py"):
        assert carried(script.read_text()) == {}
    assert "/build/" in (ROOT / ".gitignore").read_text().splitlines()


def copied(folder: Path, old: str = "", new: str = "") -> Path:
    """The readable kernel of TASK somewhere else, with a change of its script."""
    shutil.copytree(ROOT / "kernels" / TASK, folder)
    script = folder / build_kernel.script_name(TASK)
    text = script.read_text()
    assert old in text
    script.write_text(text.replace(old, new))
    return folder


def alone(script: Path) -> subprocess.CompletedProcess:
    """Run a script where no installed package can be imported."""
    command = [sys.executable, "-S", str(script)]  # -S leaves site-packages out
    return subprocess.run(command, env={}, capture_output=True, text=True, timeout=60, cwd=script.parent)


def test_a_setting_that_a_person_changed_is_in_the_built_script(tmp_path):
    readable = copied(tmp_path / "mine", "TIME_BUDGET_HOURS = 8.5", "TIME_BUDGET_HOURS = 0.25")
    assert "TIME_BUDGET_HOURS = 0.25" in build_kernel.build(TASK, None, tmp_path / "out", readable=readable).read_text()
    settings = (readable / build_kernel.script_name(TASK)).read_text()
    modules = {
        "osteograde/inference/kernel_main.py": "def kernel_main(*settings):\n    print(settings)\n    return 7\n",
    }
    (tmp_path / "script.py").write_text(build_kernel.script(tmp_path / "script.py", settings, modules))
    done = alone(tmp_path / "script.py")
    assert (done.stdout, done.returncode) == (f"('{TASK}', '', '', 0.25)\n", 7), done.stderr


def test_a_readable_script_without_the_package_says_how_to_build_it(tmp_path):
    done = alone(copied(tmp_path / "a" / "b" / "pushed") / build_kernel.script_name(TASK))
    assert done.returncode == 2
    build = f"python -m osteograde kernel build {TASK}"
    told = f"error: this script lacks the package: run {build} and push build/kernels/{TASK}"
    assert done.stderr.splitlines() == [told]


@pytest.mark.slow
def test_a_readable_script_in_a_checkout_runs_with_the_package_of_the_checkout(tmp_path):
    script = ROOT / "kernels" / TASK / build_kernel.script_name(TASK)
    (tmp_path / "input").mkdir()
    environment = {
        "OSTEOGRADE_KAGGLE_INPUT": str(tmp_path / "input"),
        "OSTEOGRADE_KAGGLE_WORKING": str(tmp_path),
        "PATH": os.defpath,
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "error: 0 manifest.json of lumbar-mr" in done.stderr
    assert f'File "{ROOT / "src" / "osteograde"}' in done.stderr.replace("kernels/lumbar-mr/../../", "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'TASK = "{TASK}"', 'TASK = "spider"', "TASK is 'spider', expected 'lumbar-mr'"),
        (f'TASK = "{TASK}"', "TASK = name()", "0 lines TASK"),
        ("PACKAGE: dict[str, str] = {}", "PACKAGE = dict()", "0 lines PACKAGE"),
    ],
)
def test_a_readable_script_that_cannot_be_built_is_refused(old, new, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_kernel.build(TASK, None, tmp_path / "out", readable=copied(tmp_path / "mine", old, new))
    assert not (tmp_path / "out").exists()


def test_metadata_that_a_person_changed_is_in_the_built_folder(tmp_path):
    readable = copied(tmp_path / "mine")
    facts = json.loads((readable / "kernel-metadata.json").read_text())
    facts |= {"machine_shape": "NvidiaL4", "dataset_sources": ["me/first-weights", "me/more-tables"]}
    (readable / "kernel-metadata.json").write_text(json.dumps(facts))
    script = build_kernel.build(TASK, None, tmp_path / "out", source="me/net/pyTorch/best/2", readable=readable)
    made = json.loads((script.parent / "kernel-metadata.json").read_text())
    assert (made["machine_shape"], made["dataset_sources"]) == ("NvidiaL4", ["me/more-tables"])
    assert (made["id"], made["model_sources"]) == (f"me/osteograde-{TASK}", ["me/net/pyTorch/best/2"])


def test_metadata_states_what_a_push_would_otherwise_guess(built):
    facts = json.loads((built.parent / "kernel-metadata.json").read_text())
    owner, slug = facts.pop("id").split("/")
    assert facts.pop("dataset_sources") == [f"{owner}/{slug}-weights"]
    assert re.sub(r"[^a-z0-9]+", "-", facts.pop("title").lower()) == slug
    assert len(slug) >= 5 and len(f"{slug}-weights") <= 50
    assert facts == {
        "code_file": built.name,
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",
        "docker_image_pinning_type": "original",
        "competition_sources": ["rsna-2024-lumbar-spine-degenerative-classification"],
        "kernel_sources": [],
        "model_sources": [],
    }


def test_the_kernel_carries_the_source_unchanged_and_only_what_it_needs(built):
    texts = carried(built.read_text())
    for name, text in texts.items():
        assert text == (ROOT / "src" / name).read_bytes().decode(), name
    rooms = {name.split("/")[1] for name in texts}
    assert {"imaging", "tasks", "models", "inference"} <= rooms
    assert not rooms & {"phantom", "kaggle", "learning", "cli.py", "doctor.py"}


def test_the_kernel_imports_nothing_that_the_image_lacks(built):
    allowed = IN_THE_IMAGE | sys.stdlib_module_names
    for name, text in carried(built.read_text()).items():
        for node in ast.walk(ast.parse(text, feature_version=(3, 11))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found = {module.split(".")[0] for module in modules}
            assert found <= allowed | OPTIONAL.get(name, set()), f"{name}:{node.lineno}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "'" * 3 + "\n", "three single quotes"),
        ("x = 1", "newline"),
        ("#" * build_kernel.MAX_BYTES + "\n", "more than 940000"),
    ],
)
def test_source_that_cannot_be_carried_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        build_kernel.script(Path("kernel.py"), "PACKAGE = {}\n", {"osteograde/odd.py": text})


def test_what_is_carried_comes_out_as_it_went_in():
    text = 'x = "\\n \\" \\\\"  # r"""a"""\ny = "a"\n'
    made = build_kernel.script(Path("kernel.py"), "PACKAGE = {}\n", {"osteograde/odd.py": text})
    assert carried(made) == {"osteograde/odd.py": text}


def test_imports_are_followed_into_functions_and_packages():
    found = build_kernel.closure("osteograde.cli")
    expected = {"osteograde", "osteograde.doctor", "osteograde.kaggle.build_kernel", "osteograde.models.device"}
    assert expected <= set(found)


def test_weights_that_were_changed_are_not_built_in(weights, tmp_path):
    damaged = shutil.copytree(weights, tmp_path / "damaged")
    file = next(damaged.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="sha256"):
        build_kernel.build(TASK, damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_task_are_not_built_in(tmp_path):
    bundle.write_manifest(tmp_path, Manifest("other", {}, {}, 1, {}))
    with pytest.raises(ValueError, match="weights of 'other', expected 'lumbar-mr'"):
        build_kernel.build(TASK, tmp_path, tmp_path / "out")


def test_a_kernel_built_with_weights_takes_no_others(weights, tmp_path):
    script = build_kernel.build(TASK, weights, tmp_path / "out").read_text()
    digest = bundle.sha256(weights / bundle.MANIFEST)
    assert f'MANIFEST_SHA256 = "{digest}"' in script
    shutil.copytree(weights, tmp_path / "input" / "mine")
    bundle.write_manifest(tmp_path / "input", Manifest(TASK, {}, {}, 1, {}))
    assert offline.find_weights(tmp_path / "input", TASK, digest) == tmp_path / "input" / "mine"
    with pytest.raises(ValueError, match="0 manifest"):
        offline.find_weights(tmp_path / "input", TASK, "0" * 64)
    with pytest.raises(ValueError, match="2 manifest"):
        offline.find_weights(tmp_path / "input", TASK)


def layouts(kind: str, name: str) -> list[str]:
    return [f"{kind}/{name}", name.rpartition("/")[2]]


@pytest.mark.parametrize("place", layouts("datasets", "me/my-images"))
def test_a_data_set_is_found_by_its_name_in_both_layouts(place, tmp_path):
    for folder in (place, "datasets/me/other-images"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").write_bytes(b"")
    assert offline.find_data(tmp_path, "", "me/my-images") == tmp_path / place
    with pytest.raises(ValueError, match="2 folders hold images"):
        offline.find_data(tmp_path, "")
    assert offline.find_data(tmp_path, "", skip=tmp_path / "datasets" / "me" / "other-images") == tmp_path / place


@pytest.mark.parametrize(
    "place",
    [*layouts("datasets", "me/my-weights"), "models/me/net/pytorch/default/3", "net/pytorch/default/3"],
)
def test_weights_are_found_wherever_they_are_mounted(place, tmp_path):
    (tmp_path / place).mkdir(parents=True)
    bundle.write_manifest(tmp_path / place, Manifest(TASK, {}, {}, 1, {}))
    assert offline.find_weights(tmp_path, TASK) == tmp_path / place
    assert tmp_path / place in offline.mounts(tmp_path) or place.startswith("net/")


@pytest.mark.parametrize("place", [f"competitions/{SLUG}", SLUG, "competitions/another-name", "a/b/c"])
def test_data_is_found_in_every_layout(place, tmp_path):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "sample_submission.csv").write_text("row_id\n")
    (folder / "test_series_descriptions.csv").write_text("study_id\n")
    assert offline.find_data(tmp_path, SLUG) == folder


def test_two_folders_that_could_be_the_data_are_named_and_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sample_submission.csv").write_text("row_id\n")
    with pytest.raises(ValueError, match=r"2 folders hold .*one.*two"):
        offline.find_data(tmp_path, SLUG)


def test_a_kernel_without_weights_lists_what_is_there_and_keeps_what_was_written(tmp_path, monkeypatch, capsys):
    inputs, working = tmp_path / "input", tmp_path / "working"
    (inputs / "competitions" / SLUG).mkdir(parents=True)
    (inputs / "competitions" / SLUG / "sample_submission.csv").write_text("row_id\n")
    working.mkdir()
    (working / "submission.csv").write_text("written before\n")
    monkeypatch.setenv("OSTEOGRADE_KAGGLE_INPUT", str(inputs))
    monkeypatch.setenv("OSTEOGRADE_KAGGLE_WORKING", str(working))
    assert offline.kernel_main(TASK) == 2
    err = capsys.readouterr().err
    assert "0 manifest.json of lumbar-mr" in err
    assert f"competitions/{SLUG}" in err
    assert (working / "submission.csv").read_text() == "written before\n"


def test_without_a_setting_the_time_budget_is_that_of_the_tasks_competition_less_a_reserve():
    task = TASKS[TASK]
    assert offline.default_hours(task) == 8.5
    assert task.competition is not None
    longer = replace(task, competition=replace(task.competition, hours=12.0))
    assert offline.default_hours(longer) == 11.5
    assert offline.default_hours(replace(task, competition=None)) == 8.5


def can_isolate(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, folder, "true"], capture_output=True, timeout=30).returncode == 0


def rehearse(script: Path, inputs: Path, working: Path, cwd: Path, extra=()) -> subprocess.CompletedProcess:
    """Run a kernel alone: nothing in its folder or environment, no network, input that cannot be written."""
    places = {"OSTEOGRADE_KAGGLE_INPUT": str(inputs), "OSTEOGRADE_KAGGLE_WORKING": str(working), **dict(extra)}
    python = [sys.executable, "-I", "-c", NO_SOCKETS, str(script)]
    isolated = can_isolate(inputs)
    print("network:", "no interface but a dead loopback, and no sockets" if isolated else "no sockets (no namespaces)")
    for path in inputs.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [*NAMESPACE, str(inputs), *python] if isolated else python
    environment = places | ({"PATH": os.defpath} if isolated else {})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


def test_a_rehearsal_has_no_network(tmp_path):
    script = tmp_path / "reach_out.py"
    script.write_text("import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)\n")
    (tmp_path / "input").mkdir()
    done = rehearse(script, tmp_path / "input", tmp_path, tmp_path)
    assert done.returncode == 1
    assert "the kernel tried to use the network" in done.stderr


def pictures(task: str, folder: Path) -> Path:
    """Six studies of a task that reads pictures: noise, which no net says anything about, but every net something."""
    rng = np.random.default_rng(4)
    names = [f"{9000001 + i}L" if task == "knee-xray" else f"{i}_t2" for i in range(6)]
    folder.mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / f"{name}.png"), rng.integers(0, 255, (96, 96), dtype=np.uint8))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "devices"), [("lumbar-mr", ""), ("spider", ""), ("knee-xray", "cpu,cpu")], ids=["mr", "discs", "knees"]
)
def test_the_kernel_alone_writes_the_same_bytes_as_inference(task, devices, weights, studies, tmp_path):
    script = build_kernel.build(task, None, tmp_path / "kernel")
    if task == TASK:
        own, data = weights, studies
        inputs = mounted(tmp_path / "input", data, own)
    else:
        own, data = random_bundle(tmp_path / "random", task), pictures(task, tmp_path / "pictures")
        shutil.copytree(data, tmp_path / "input" / "datasets" / "some-one" / "some-images")
        inputs = tmp_path / "input"
        shutil.copytree(own, inputs / "models" / "some-one" / "some-net" / "pytorch" / "default" / "1")
    before = snapshot(inputs)
    empty, working = tmp_path / "empty", tmp_path / "working"
    empty.mkdir()
    working.mkdir()
    one_thread = {"OMP_NUM_THREADS": "1"}  # as in the process of this test: sums are then the same to the last digit
    done = rehearse(script, inputs, working, empty, {**one_thread, "OSTEOGRADE_DEVICES": devices})
    assert done.returncode == 0, done.stderr
    assert list(empty.iterdir()) == []
    assert snapshot(inputs) == before
    assert bundle.sha256(own / bundle.MANIFEST)[:12] in done.stdout  # the preflight names the weights

    assert infer(task, data, own, tmp_path / "home.csv", device="cpu") == 0
    made = working / "submission.csv"
    assert made.read_bytes() == (tmp_path / "home.csv").read_bytes()
    for beside in ("flags", "points", "findings"):
        name = f"home.{beside}.csv"
        if (tmp_path / name).is_file():
            assert (working / f"submission.{beside}.csv").read_bytes() == (tmp_path / name).read_bytes()

    rows = submission.read_submission(made)
    priors = submission.priors_rows(TASKS[task], rows, bundle.read_manifest(own).prior)
    spoken = sum(not np.allclose(rows[row], priors[row], atol=1e-4) for row in rows)
    assert (
        spoken > 5 or task == "knee-xray"
    )  # random nets find no joint in noise: there the merging is what is compared
    last = done.stdout.splitlines()[-8:]  # one screen for the reader of the log
    assert last[0].startswith(f"== osteograde {task} ")
    assert f"submission.csv sha256 {bundle.sha256(made)}" in last[6]

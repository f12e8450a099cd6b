"""The rehearsal: both runs of a good kernel pass, and each way to fail a competition is told in a clear line."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from osteograde.kaggle import build_kernel, rehearse, sandbox_guard, sandbox_namespaces, staging
from osteograde.kaggle.metadata import parse_source
from osteograde.kaggle.rehearse import WatchedRun
from osteograde.tasks import TASKS
from osteograde.tasks.limits import SESSION, limits_of
from tests.logs import logged
from tests.tiny import noise_knees, random_bundle

TASK = "knee-xray"
SET = "some-one/knee-weights"
IMAGES = "some-one/knee-images"
AT_ONCE = 'if __name__ == "__main__":  # worker'


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return noise_knees(tmp_path_factory.mktemp("data") / "knees")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("weights") / "random", TASK)


@pytest.fixture
def script(weights, tmp_path) -> Path:
    return build_kernel.build(TASK, weights, tmp_path / "kernel", source=SET, data=IMAGES)


def play(script: Path, data: Path, weights: Path, **options) -> tuple[list[str], list[str]]:
    """(faults, lines of the log)."""
    with logged("kaggle") as lines:
        return rehearse.rehearse(TASK, script, data, weights, **options), lines


def broken(script: Path, old: str, new: str) -> Path:
    text = script.read_text()
    assert text.count(old) == 1
    script.write_text(text.replace(old, new))
    return script


def at_once(script: Path, statement: str) -> Path:
    """The kernel does this before anything else."""
    return broken(script, AT_ONCE, f"{statement}\n{AT_ONCE}")


@pytest.mark.parametrize("isolate", [True, False], ids=["namespaces", "plain"])
def test_a_kernel_that_uses_the_network_is_caught_even_if_it_hides_the_error(script, data, weights, isolate):
    reach = (
        "import socket\n"
        "try:\n    socket.create_connection(('10.0.0.1', 80), 1)\nexcept OSError:\n    pass\n"
        "raise SystemExit"
    )
    faults, said = play(at_once(script, reach), data, weights, isolate=isolate)
    assert faults == ["visible run: forbidden: network: socket.getaddrinfo '10.0.0.1'"]
    assert ("plain folder" in said[0]) or isolate


@pytest.mark.parametrize("isolate", [True, False], ids=["namespaces", "plain"])
def test_a_kernel_that_writes_to_its_input_is_caught(script, data, weights, isolate):
    write = (
        "import os, pathlib\n"
        "root = pathlib.Path(os.environ.get('OSTEOGRADE_KAGGLE_INPUT', '/kaggle/input'))\n"
        f"(root / 'datasets' / '{SET}' / 'cache.npy').write_bytes(b'')"
    )
    faults, _ = play(at_once(script, write), data, weights, isolate=isolate)
    assert len(faults) == 1
    assert faults[0].startswith("visible run: forbidden: write to input: open ")
    assert faults[0].endswith(f"/datasets/{SET}/cache.npy")


def test_a_kernel_over_its_budget_is_stopped(script, data, weights):
    slow = at_once(script, "import time\ntime.sleep(600)")
    faults, _ = play(slow, data, weights, start_s=0.5, limits=replace(SESSION, hours=0.1))
    assert faults == ["visible run: over budget: stopped after 1 s with 0 studies done"]


def test_a_kernel_over_its_memory_is_stopped(script, data, weights):
    greedy = at_once(script, "held = b'x' * (300 << 20)\nimport time\ntime.sleep(600)")
    faults, _ = play(greedy, data, weights, limits=replace(SESSION, memory_gib=0.25))
    assert len(faults) == 1
    assert faults[0].startswith("visible run: out of memory: stopped at 0.3 GiB of 0.25")


def test_a_kernel_that_writes_nothing_is_caught(script, data, weights):
    faults, _ = play(at_once(script, "raise SystemExit"), data, weights)
    assert faults == ["visible run: no submission.csv in the working folder"]


@pytest.mark.slow
def test_a_kernel_without_its_weights_is_caught(script, data, weights, tmp_path):
    other = shutil.copytree(weights, tmp_path / "other")
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    faults, _ = play(script, data, other)
    assert len(faults) == 1
    assert faults[0].startswith(
        "visible run: ended with code 2 after 0 studies: error: 0 manifest.json of knee-xray with"
    )


@pytest.mark.slow
def test_a_kernel_that_crashes_in_study_3_is_caught_by_the_hidden_run(script, data, weights):
    add = "            submission.add(result)\n"
    crash = f"{add}            if submission.done == 3:\n                raise RuntimeError('study 3')\n"
    faults, said = play(broken(script, add, crash), data, weights)
    assert len(faults) == 1
    assert faults[0].startswith("hidden run: ended with code 1 after ")
    assert faults[0].endswith("studies: RuntimeError: study 3")
    assert any(line.startswith("visible run: 1 of 1 studies, ") for line in said)


@pytest.mark.slow
def test_a_good_kernel_passes_on_copies_and_tells_what_700_studies_take(script, data, weights):
    faults, said = play(script, data, weights, copies=3)
    assert faults == []
    assert any(line.startswith("hidden run: 12 of 12 studies, ") for line in said)
    assert any(line.startswith("time for 700 studies on this machine: ") for line in said)
    assert any(line.startswith("studies    12 of 12 graded, 0 unreadable") for line in said)


def test_the_pace_is_what_lies_between_the_first_and_the_last_chunk():
    done = WatchedRun(0, 130.0, 2 << 30, ((30.0, 10), (120.0, 100)), "", "")
    time, memory = rehearse.project(done, 100, SESSION)
    assert time == "time for 700 studies on this machine: 0.20 h of 9 (1.00 s a study after 20 s): fits"
    assert memory.startswith("memory: 2.00 GiB at most in 100 studies, of 30")
    assert "DOES NOT FIT" in rehearse.project(done, 100, replace(SESSION, hours=0.1))[0]


def test_limits_are_those_of_the_competition():
    task = TASKS["lumbar-mr"]
    assert limits_of(task) is task.competition
    assert limits_of(TASKS["spider"]) is SESSION


@pytest.mark.parametrize(
    ("event", "args", "kind"),
    [
        ("socket.connect", (None, ("1.2.3.4", 80)), sandbox_guard.NETWORK),
        ("socket.connect", (None, "/run/own.sock"), ""),
        ("open", ("/kaggle/input/a", "r", 0), ""),
        ("open", ("/kaggle/input/a", "w", 0), sandbox_guard.WRITE),
        ("open", ("/kaggle/input/../working/a", "w", 0), ""),
        ("open", (3, "w", 0), ""),
        ("os.rename", ("/kaggle/working/a", "/kaggle/input/a", -1, -1), sandbox_guard.WRITE),
        ("os.mkdir", ("/kaggle/working/a", 511, -1), ""),
    ],
)
def test_what_is_forbidden(event, args, kind):
    assert sandbox_guard.judge(event, args, sandbox_namespaces.INPUT)[0] == kind


def test_sources_are_mounted_where_a_session_has_them():
    assert rehearse.mount(parse_source("me/my-weights")) == "datasets/me/my-weights"
    assert rehearse.mount(parse_source("me/net/pyTorch/default/3")) == "models/me/net/pytorch/default/3"


def test_a_kernel_that_was_not_built_and_an_environment_that_was_not_made_are_told(data, weights, tmp_path):
    with pytest.raises(ValueError, match="first python -m osteograde kernel build"):
        play(tmp_path / "none.py", data, weights)
    with pytest.raises(ValueError, match="make kaggle-env"):
        rehearse.image_python(tmp_path)


def lumbar(root: Path, part: str) -> Path:
    """Three studies of one series each, and the tables that speak of them."""
    lines = ["study_id,series_id,series_description"]
    for study in ("11", "12", "13"):
        folder = root / f"{part}_images" / study / f"{study}1"
        folder.mkdir(parents=True)
        (folder / "1.dcm").write_bytes(study.encode())
        lines.append(f"{study},{study}1,Sagittal T1")
    (root / f"{part}_series_descriptions.csv").write_text("\n".join(lines) + "\n")
    return root


def test_tables_and_template_speak_of_the_studies_that_are_there(tmp_path):
    stock = staging.stock(TASKS["lumbar-mr"], lumbar(tmp_path / "data", "test"))
    out = tmp_path / "out"
    made = staging.lay(stock, stock.studies[1:], out, copies=2, put=staging.link)
    assert sorted(study.id for study in made) == ["12", "13", "900112", "900113"]
    assert (out / "test_images" / "900112" / "121" / "1.dcm").read_bytes() == b"12"
    table = (out / "test_series_descriptions.csv").read_text().splitlines()
    assert table[1:] == [f"{name},{series},Sagittal T1" for name, series in
                         (("12", "121"), ("900112", "121"), ("13", "131"), ("900113", "131"))]  # fmt: skip
    assert len((out / "sample_submission.csv").read_text().splitlines()) == 1 + 4 * 25
    staging.lay(stock, stock.studies[:1], out, copies=1, put=staging.copy)  # the swap leaves nothing behind
    assert [path.name for path in (out / "test_images").iterdir()] == ["11"]


def test_the_interpreter_is_the_one_of_this_environment_by_default():
    assert rehearse.rehearse.__kwdefaults__["python"] == Path(sys.executable)

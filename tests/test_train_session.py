"""The kernel that trains: it stops in time, goes on from its own output, and ends with the bytes of one long run."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from osteograde import cli, phantom, train_session
from osteograde.errors import UserError
from osteograde.kaggle import build_kernel, metadata, push, record
from osteograde.models.manifest import MANIFEST, sha256
from tests.logs import logged

TASK = "knee-xray"
IMAGES = "some-one/knee-films"


@pytest.fixture
def session(tmp_path, monkeypatch):
    """The folders of a session: ``input`` with the data set, and ``working``."""
    root, working = tmp_path / "input", tmp_path / "working"
    (root / "datasets" / IMAGES).mkdir(parents=True)
    working.mkdir()
    monkeypatch.setenv("OSTEOGRADE_KAGGLE_INPUT", str(root))
    monkeypatch.setenv("OSTEOGRADE_KAGGLE_WORKING", str(working))
    return tmp_path


def left_by_a_session(folder: Path, *, finished: bool = False) -> Path:
    """The folder TASK with what an earlier session left, files and folders read-only as the service mounts them."""
    out = folder / TASK
    (out / "work" / "nets").mkdir(parents=True)
    (out / "work" / train_session.RECIPE).write_text("{}")
    (out / "work" / "nets" / "grade_kl_fold0.pt").write_bytes(b"checkpoint")
    if finished:
        (out / MANIFEST).write_text("{}")
    for path in [*out.rglob("*"), out]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return out


def commands_of(monkeypatch, code: int | None = 0) -> list[list[str]]:
    """What would be run, instead of running it."""
    seen: list[list[str]] = []
    monkeypatch.setattr(train_session, "run_for", lambda seconds, command: seen.append(command) or code)
    return seen


def test_a_first_session_begins_anew_and_passes_its_options_on(session, monkeypatch):
    seen = commands_of(monkeypatch)
    assert train_session.train_session(TASK, "--recipe 'knee-siamese' --folds 0,1", IMAGES) == 0
    (command,) = seen
    assert "--resume" not in command
    assert command[-4:] == ["--recipe", "knee-siamese", "--folds", "0,1"]
    assert str(session / "input" / "datasets" / IMAGES) in command


def test_a_later_session_goes_on_from_its_own_output(session, monkeypatch):
    left_by_a_session(session / "input" / "notebooks" / "some-one" / "osteograde-knee-xray-train")
    seen = commands_of(monkeypatch)
    assert train_session.train_session(TASK, "", IMAGES) == 0
    assert "--resume" in seen[0]
    copied = session / "working" / TASK / "work" / "nets" / "grade_kl_fold0.pt"
    assert copied.read_bytes() == b"checkpoint"
    copied.write_bytes(b"the next one")  # what came from a read-only mount can be written to
    for path in (copied, copied.parent, session / "working" / TASK):
        assert path.stat().st_mode & 0o200  # also by users who may not write everywhere


def test_a_finished_training_is_not_begun_again(session, monkeypatch):
    left_by_a_session(session / "input" / "notebooks" / "some-one" / "kernel", finished=True)
    seen = commands_of(monkeypatch)
    assert train_session.train_session(TASK, "", IMAGES) == 0
    assert seen == []
    assert (session / "working" / TASK / MANIFEST).is_file()


def test_a_session_that_is_over_ends_well_and_a_failed_training_does_not(session, monkeypatch):
    commands_of(monkeypatch, code=None)
    with logged("learning") as lines:
        assert train_session.train_session(TASK, "", IMAGES) == 0
    assert any("the session ended first" in line for line in lines)
    assert any("no epoch was finished in this session" in line for line in lines)
    commands_of(monkeypatch, code=2)
    assert train_session.train_session(TASK, "", IMAGES) == 2


def test_outputs_of_two_kernels_are_refused(session, capsys):
    for name in ("one", "two"):
        left_by_a_session(session / "input" / "notebooks" / "some-one" / name)
    assert train_session.train_session(TASK, "", IMAGES) == 2
    assert "2 outputs of earlier sessions" in capsys.readouterr().err


def test_a_command_is_stopped_when_its_time_is_over():
    begun = time.monotonic()
    assert train_session.run_for(0.5, [sys.executable, "-c", "import time; time.sleep(60)"]) is None
    assert time.monotonic() - begun < 30
    assert train_session.run_for(60, [sys.executable, "-c", "raise SystemExit(3)"]) == 3


def built(tmp_path: Path, **options) -> tuple[str, dict]:
    path = build_kernel.build_training(TASK, tmp_path / "built", data=IMAGES, **options)
    return path.read_text(), json.loads((path.parent / metadata.NAME).read_text())


def test_the_kernel_carries_the_package_byte_for_byte(tmp_path):
    text, _ = built(tmp_path)
    archive = base64.b85decode(build_kernel.setting(Path("train.py"), text, "PACKAGE"))
    package = build_kernel.PACKAGE
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:xz") as tar:
        carried = {member.name: tar.extractfile(member).read() for member in tar}
    assert carried == {
        path.relative_to(package.parent).as_posix(): path.read_bytes() for path in sorted(package.rglob("*.py"))
    }
    assert built(tmp_path)[0] == text


def test_only_a_kernel_that_trains_may_go_online_or_read_its_own_output(tmp_path):
    _, facts = built(tmp_path)
    assert (facts["enable_internet"], facts["kernel_sources"]) == (False, [])
    _, facts = built(tmp_path, internet=True, go_on=True)
    assert (facts["enable_internet"], facts["kernel_sources"]) == (True, [facts["id"]])
    metadata.check(facts, tmp_path / "built")
    (tmp_path / "built" / "knee_xray.py").touch()
    with pytest.raises(UserError, match="enable_internet is True, expected False; kernel_sources"):
        metadata.check({**facts, "code_file": "knee_xray.py"}, tmp_path / "built")
    owned = metadata.owned(facts, "me")
    assert owned["kernel_sources"] == [owned["id"]] == ["me/osteograde-knee-xray-train"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["knee-xray", "--train"], "has no competition; name the data set"),
        (["lumbar-mr", "--train", "--images", IMAGES], "reads the competition"),
        (["knee-xray", "--train", "--images", IMAGES, "--weights", "x"], "weights"),
        (["knee-xray", "--go-on"], "add --train"),
    ],
)
def test_what_a_training_kernel_cannot_use_is_refused(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(lambda: cli.main(["kernel", "build", *words])) == 2
    assert told in capsys.readouterr().err


def test_options_that_training_does_not_take_are_refused_before_anything_is_built(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["kernel", "build", TASK, "--train", "--images", IMAGES, "--options", "--recipee", "x"]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "--recipee" in capsys.readouterr().err
    assert not (tmp_path / "build").exists()


def test_the_output_of_training_is_checked_against_the_log(tmp_path, monkeypatch):
    record.keep_record(f"{TASK}-train", "kernel", {"ref": "me/kernel", "version": 3}, tmp_path)

    def fetch(*words: str):
        target = Path(words[words.index("-p") + 1])
        (target / TASK).mkdir(parents=True)
        (target / TASK / MANIFEST).write_text("{}")
        (target / "kernel.log").write_text(f"result  {MANIFEST} sha256 {'0' * 64}\n")
        return push.client.Reply(words, 0, f"Output file downloaded to {target}", "")

    monkeypatch.setattr(push.client, "ask", fetch)
    with pytest.raises(push.Refused, match="another hash than the kernel's log says"):
        push.output_of_training(TASK, records=tmp_path)


@pytest.mark.slow
def test_three_sessions_end_with_the_bytes_of_one(session, monkeypatch):
    """Sessions end after an epoch and not after some time, so that the test holds on any machine: the first one is a
    process that is ended, and the second one, as all others in this process, is stopped at a line of its log."""
    phantom.write(TASK, session / "input" / "datasets" / IMAGES, studies=12, test=0, seed=3, workers=1)
    options = "--debug --device cpu --folds 0"
    sessions = 0

    def in_this_process(command: list[str], stop=lambda line: False) -> int | None:
        assert command[:3] == [sys.executable, "-m", "osteograde"]
        with logged("learning", stop=stop):
            code = cli.run(lambda: cli.main(command[3:]))
        return None if code == cli.INTERRUPTED else code

    def ended_after_an_epoch(command: list[str]) -> None:
        process = subprocess.Popen(command)
        while process.poll() is None and not train_session.epochs_of(session / "working" / TASK):
            time.sleep(0.01)
        assert process.poll() is None
        process.terminate()
        process.wait()

    def for_an_epoch(seconds: float, command: list[str]) -> int | None:
        if sessions == 1:
            return ended_after_an_epoch(command)
        return in_this_process(command, stop=lambda line: sessions == 2 and " epoch " in line)

    monkeypatch.setattr(train_session, "run_for", for_an_epoch)
    assert train_session.train_session(TASK, options, IMAGES, hours=1) == 0
    whole = session / "whole"
    (session / "working" / TASK).rename(whole)
    wanted = {path.name: sha256(path) for path in whole.rglob("*.safetensors")}
    assert wanted

    while not (session / "working" / TASK / MANIFEST).is_file():
        sessions += 1
        assert sessions <= 3
        assert train_session.train_session(TASK, options, IMAGES, hours=1) == 0
        former = session / "input" / "notebooks" / "some-one" / "kernel"
        former.mkdir(parents=True, exist_ok=True)
        if sessions < 3:
            subprocess.run(["rm", "-rf", str(former / TASK)], check=True)
            (session / "working" / TASK).rename(former / TASK)
    assert sessions == 3
    assert {path.name: sha256(path) for path in (session / "working" / TASK).rglob("*.safetensors")} == wanted

"""The ten commands of docs/kaggle.md and the transcript beside it, run against the stand-in of the service."""

import hashlib
import json
import re
import shlex
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from osteograde import cli
from osteograde.kaggle import client
from osteograde.models import shipped
from osteograde.tasks import TASKS
from tests.kaggle_stub import ACCOUNT, SECRET, Stub, client_environment, transcript
from tests.kaggle_stub.warm import WarmClient
from tests.kaggle_stub.world import CAPACITY

ROOT = Path(__file__).resolve().parents[1]
TASK = "lumbar-mr"
SLUG = TASKS[TASK].slug
DOCS = (ROOT / "docs" / "kaggle.md").read_text(encoding="utf-8")
TEN = [line for line in DOCS.split("```")[1].splitlines() if line]
ROWS = "".join(f"1_{target},0.5,0.3,0.2\n" for target in TASKS[TASK].targets)
CSV = f"row_id,{','.join(TASKS[TASK].classes)}\n{ROWS}".encode()
ELSEWHERE = {"doctor": "tests/test_doctor.py", "rehearse": "tests/test_rehearse.py"}  # they need no service


def log_of(line: str) -> str:
    return json.dumps([{"stream_name": "stdout", "time": 1.0, "data": line + "\n"}])


@pytest.fixture(scope="module")
def warm():
    with WarmClient() as running:
        yield running


@pytest.fixture
def world(warm, tmp_path, monkeypatch):
    """The service, as an account without anything finds it, and an empty folder to work in."""
    with Stub() as stub:
        for name, value in client_environment(stub, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(client, "subprocess", warm)
        stub.world.outputs = {"submission.csv": CSV}
        stub.world.log_running = log_of("312/700 studies, 409 s (cuda:1)")
        stub.world.log = log_of(f"result     submission.csv sha256 {hashlib.sha256(CSV).hexdigest()}")
        yield stub.world


def competition(world, folder: Path) -> None:
    """The archive of a competition with one test study."""
    files = {
        "test_images/1/2/1.dcm": b"never opened",
        "test_series_descriptions.csv": b"study_id,series_id,series_description\n1,2,Sagittal T1\n",
        "sample_submission.csv": CSV,
    }
    with zipfile.ZipFile(folder / "made.zip", "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    world.data = {**files, f"{SLUG}.zip": (folder / "made.zip").read_bytes()}


def call(*words: str) -> int:
    return cli.run(lambda: cli.main(list(words)))


def sections() -> dict[str, str]:
    """Command -> what it printed, of the transcript of the ten."""
    parts = transcript.PAGE.read_text(encoding="utf-8").split("\n\n$ ")[1:]
    return {command: told for command, _, told in (part.partition("\n") for part in parts)}


def test_the_transcript_has_the_ten_commands_of_the_page_with_the_client_that_is_locked():
    assert [shlex.split(command) for command in sections()] == [transcript.typed(line) for line in TEN]
    text, lock = transcript.PAGE.read_text(encoding="utf-8"), (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert f"kaggle=={text.partition('client ')[2].split()[0]}" in lock.split()
    assert SECRET not in text and "/home/" not in text and "/tmp/" not in text


@pytest.mark.slow
def test_ten_commands_lead_from_an_empty_account_to_a_submission(world, tmp_path, capsys):
    assert len(TEN) == 10
    told = sections()
    competition(world, tmp_path)
    for line in TEN:
        words = shlex.split(line.replace("ACCOUNT", ACCOUNT))
        if words[1] == "train_folds.py":
            args = cli.train_parser().parse_args(words[2:])
            assert args.data.is_dir()  # the download before it made this folder
            shutil.copytree(shipped.find(args.task), args.out)
        elif set(words) & set(ELSEWHERE):
            cli.parser().parse_args(words[3:])
        else:
            capsys.readouterr()
            assert call(*words[3:]) == 0, capsys.readouterr().err
            if words[4] in ("push", "wait", "output", "submit"):
                assert plain(capsys.readouterr().out) == plain(told.pop(shlex.join(transcript.typed(line))))
    assert len(world.submissions) == 1
    assert world.submissions[0]["competitionName"] == SLUG
    assert world.sent("SaveKernel")[0]["datasetDataSources"] == [f"{ACCOUNT}/osteograde-lumbar-weights"]
    assert SECRET not in str([request for _, request in world.seen])


def plain(text: str) -> list[str]:
    """Lines without numbers and hashes."""
    return [re.sub(r"\b[0-9a-f]{12}\b|\d+(\.\d+)?", "#", line) for line in text.splitlines()]


@pytest.mark.slow
def test_all_in_one_says_what_the_transcript_says(world, capsys):
    weights = str(shipped.find(TASK))
    assert call("kaggle", "all", TASK, "--weights", weights, "--yes") == 0
    told = capsys.readouterr().out
    assert len(world.submissions) == 1
    transcript = (ROOT / "docs" / "kaggle-all.txt").read_text(encoding="utf-8")
    assert plain(told) == plain(transcript.partition("\n\n")[2])
    assert SECRET not in told


@pytest.mark.slow
def test_all_in_one_stops_at_the_step_that_failed(world, capsys):
    source = f"{ACCOUNT}/osteograde-lumbar-weights"
    assert call("kernel", "build", TASK, "--mount", source) == 0
    world.sets[source], world.polls, world.push_error = [[]], 99, CAPACITY
    assert call("kaggle", "all", TASK, "--yes") == 75
    assert "retry later" in capsys.readouterr().err
    assert world.sent("GetKernelSessionStatus") == []
    assert world.submissions == []

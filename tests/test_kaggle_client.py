"""The way to Kaggle against a stand-in of the service: the real client runs, and every silent failure is noticed."""

import importlib.metadata
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from osteograde.kaggle import build_kernel, client, download, ledger, push, record, submit, upload
from osteograde.kaggle.client import Refused, RetryLater
from osteograde.models import bundle
from osteograde.tasks import TASKS
from tests.kaggle_stub import ACCOUNT, SECRET, Stub, client_environment
from tests.kaggle_stub.warm import WarmClient
from tests.kaggle_stub.weights import hashed_weights
from tests.kaggle_stub.world import CAPACITY, QUOTA
from tests.logs import logged

TASK = "lumbar-mr"
SLUG = TASKS[TASK].slug
WEIGHTS_SET = f"{ACCOUNT}/osteograde-lumbar-weights"
WEIGHTS_MODEL = f"{ACCOUNT}/osteograde/pyTorch/lumbar"
WEIGHTS_MODEL_THERE = WEIGHTS_MODEL.replace("pyTorch", "MODEL_FRAMEWORK_PY_TORCH")  # as it goes over the wire
ROW = f"1_{TASKS[TASK].targets[0]}"
CSV = f"row_id,{','.join(TASKS[TASK].classes)}\n{ROW},0.5,0.3,0.2\n".encode()

VERSION = importlib.metadata.version("kaggle")

pytestmark = pytest.mark.slow  # each call of the client takes a part of a second


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return hashed_weights(tmp_path_factory.mktemp("weights"), TASK)


@pytest.fixture(scope="module")
def built(tmp_path_factory, weights) -> Path:
    return build_kernel.build(TASK, weights, tmp_path_factory.mktemp("kernels") / TASK, source=WEIGHTS_SET).parent


@pytest.fixture
def stub(tmp_path, monkeypatch):
    with Stub() as running:
        for name, value in client_environment(running, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield running


@pytest.fixture(scope="module")
def warm():
    with WarmClient() as running:
        yield running


@pytest.fixture
def world(stub, warm, monkeypatch):
    monkeypatch.setattr(client, "subprocess", warm)
    return stub.world


@pytest.fixture
def said():
    with logged("kaggle") as lines:
        yield lines


def send(weights: Path, to: str, patience_s: float = 60.0):
    return upload.upload(weights, to, poll_s=0.01, patience_s=patience_s)


def attached(world) -> None:
    """The weights are there, as after an upload."""
    world.sets[WEIGHTS_SET], world.polls = [[]], 99


def pushed(world, outputs: dict[str, bytes], version: int = 1) -> None:
    """A kernel was pushed, as the record has it."""
    ref = f"{ACCOUNT}/osteograde-{TASK}"
    request = {"newTitle": "Osteograde", "text": "", "kernelType": "script"}
    world.kernels[ref] = {"version": version, "request": request}
    world.run, world.outputs = ("COMPLETE",), outputs
    record.keep_record(TASK, "kernel", {"ref": ref, "version": version})


def test_weights_become_a_data_set(world, weights, said):
    assert str(send(weights, WEIGHTS_SET)) == f"{WEIGHTS_SET}/1"
    names = sorted(blob["name"] for blob in world.blobs.values())
    assert names == [
        "README.md", "grade__spinal__fold0.safetensors", "locate__canal__fold0.safetensors", "manifest.json",
    ]  # fmt: skip
    created = world.sent("CreateDataset")[0]
    assert (created["isPrivate"], created["licenseName"]) == (True, "other")
    assert "cache" not in json.dumps(world.seen)
    assert record.read_record(TASK)["weights"]["source"] == f"{WEIGHTS_SET}/1"
    assert any("blobs_received" in line for line in said)  # it was not ready at once, and was waited for
    assert any("all 4 files there" in line for line in said)


def test_weights_become_the_next_version_of_a_data_set(world, weights):
    attached(world)
    world.ready_after = 0
    assert str(send(weights, WEIGHTS_SET)) == f"{WEIGHTS_SET}/2"
    assert world.sent("CreateDataset") == []


def test_weights_become_a_model(world, weights):
    assert str(send(weights, WEIGHTS_MODEL)) == f"{WEIGHTS_MODEL}/1"
    assert world.sent("CreateModel")[0]["isPrivate"] is True


def test_weights_become_the_next_version_of_a_model(world, weights):
    world.known_models, world.models[WEIGHTS_MODEL_THERE] = {f"{ACCOUNT}/osteograde"}, [[]]
    assert str(send(weights, WEIGHTS_MODEL)) == f"{WEIGHTS_MODEL}/2"
    assert world.sent("CreateModel") == world.sent("CreateModelInstance") == []


@pytest.mark.parametrize("to", [WEIGHTS_SET, WEIGHTS_MODEL])
def test_published_weights_carry_their_card_and_licence(world, weights, tmp_path, to):
    folder = shutil.copytree(weights, tmp_path / "weights")
    (folder / "README.md").write_text("# What they are for\n")
    upload.upload(folder, to, public=True, licence="CC-BY-4.0", poll_s=0.01)
    (sent,) = world.sent("CreateModel" if to == WEIGHTS_MODEL else "CreateDataset")
    assert not sent.get("isPrivate", False)  # what is false is left out on the wire
    assert sent["description"].startswith("# What they are for")
    if to == WEIGHTS_MODEL:
        sent = world.sent("CreateModelInstance")[0]["body"]
    assert sent["licenseName"] == "CC-BY-4.0"


@pytest.mark.parametrize(
    ("options", "card", "told"),
    [
        ({"public": True, "licence": "CC-BY-4.0"}, False, "need a card"),
        ({"public": True}, True, "needs --licence NAME"),
        ({"public": True, "licence": "CC-BY4.0"}, True, "did you mean CC-BY-4.0"),
        ({"licence": "CC-BY-4.0"}, True, "add --public"),
    ],
)
def test_weights_are_not_published_without_what_others_need(world, weights, tmp_path, options, card, told):
    folder = shutil.copytree(weights, tmp_path / "weights")
    (folder / "README.md").unlink(missing_ok=True)
    if card:
        (folder / "README.md").write_text("# What they are for\n")
    with pytest.raises(ValueError, match=told):
        upload.upload(folder, WEIGHTS_SET, **options, poll_s=0.01)
    assert world.seen == []


def test_a_file_that_the_service_lost_is_noticed(world, weights):
    world.ready_after, world.lose = 0, frozenset({"locate__canal__fold0.safetensors"})
    with pytest.raises(Refused, match=r"locate__canal__fold0\.safetensors missing"):
        send(weights, WEIGHTS_SET)
    assert "weights" not in record.read_record(TASK)


def test_a_blob_that_was_refused_is_noticed(world, weights):
    world.put_status = 403
    with pytest.raises(Refused, match="Upload unsuccessful"):
        send(weights, WEIGHTS_SET)


def test_a_data_set_that_never_gets_ready_is_to_be_tried_later(world, weights):
    world.ready_after = -1
    with pytest.raises(RetryLater, match="still blobs_received after"):
        send(weights, WEIGHTS_SET, patience_s=0.0)


def test_a_version_that_does_not_grow_is_noticed(world, weights):
    attached(world)
    world.stale = True
    with pytest.raises(RetryLater, match="still the old version"):
        send(weights, WEIGHTS_SET, patience_s=0.0)


def test_weights_that_hold_a_secret_are_not_sent(world, weights, tmp_path):
    own = shutil.copytree(weights, tmp_path / "own")
    (own / "README.md").write_text(f"KAGGLE_KEY={SECRET}\n")
    with pytest.raises(ValueError, match="nothing was uploaded"):
        send(own, WEIGHTS_SET)
    assert world.seen == []


def test_a_push_sends_what_a_code_competition_needs(world, built):
    attached(world)
    assert push.push(TASK, built) == 1
    sent = world.sent("SaveKernel")[0]
    assert (sent["isPrivate"], sent["enableInternet"], sent["enableGpu"]) == (True, False, True)
    assert (sent["machineShape"], sent["dockerImagePinningType"]) == ("NvidiaTeslaT4", "original")
    assert sent["sessionTimeoutSeconds"] == 9 * 3600
    assert sent["competitionDataSources"] == [SLUG]
    assert sent["datasetDataSources"] == [WEIGHTS_SET]
    assert sent["slug"] == f"{ACCOUNT}/osteograde-{TASK}"
    assert sent["text"] == (built / "lumbar_mr.py").read_text()
    assert SECRET not in json.dumps(world.seen)
    assert record.read_record(TASK)["kernel"]["version"] == 1


@pytest.mark.parametrize(
    ("switch", "value", "error", "message"),
    [
        ("push_error", CAPACITY, RetryLater, "retry later"),
        ("push_error", QUOTA, Refused, "do not retry"),
        ("push_error", "Notebook not found", Refused, "Kernel push error: Notebook not found"),
        ("not_valid", frozenset({WEIGHTS_SET}), Refused, "not valid dataset sources"),
        ("unnumbered", True, Refused, "Kernel version successfully pushed"),
        ("refuse", {"SaveKernel": (403, {"code": 403, "message": "Permission denied"})}, Refused, "denied"),
        ("enable_internet_anyway", True, Refused, "enable_internet is True, sent False"),
    ],
)
def test_a_push_that_failed_is_noticed_whatever_the_exit_code(world, built, switch, value, error, message):
    attached(world)
    setattr(world, switch, value)
    with pytest.raises(Refused, match=message) as refused:
        push.push(TASK, built)
    assert type(refused.value) is error
    assert record.read_record(TASK) == {}


def test_nothing_is_pushed_before_the_weights_are_ready(world, built):
    with pytest.raises(Refused, match="first python -m osteograde kaggle upload-weights"):
        push.push(TASK, built)
    world.sets[WEIGHTS_SET], world.ready_after = [[]], -1
    with pytest.raises(RetryLater, match="retry later"):
        push.push(TASK, built)
    assert world.sent("SaveKernel") == []


def test_without_credentials_the_client_says_so(stub, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(Refused, match="knows no account"):
        client.account()


def test_waiting_tells_the_status_and_ends_with_the_run(world, said):
    pushed(world, {})
    world.run = ("RUNNING", "COMPLETE")
    world.running = iter(["RUNNING"])
    push.wait(TASK, poll_s=0.0)
    assert "RUNNING, 8/8 studies, 3 s" in said[0]
    assert "COMPLETE" in said[-1]


def test_waiting_and_fetching_name_the_version_that_was_pushed(world, said, monkeypatch):
    pushed(world, {"submission.csv": CSV}, version=3)
    ref, asked, ask = f"{ACCOUNT}/osteograde-{TASK}", [], client.ask

    def listen(*words, **options):
        asked.append(words)
        return ask(*words, **options)

    monkeypatch.setattr(client, "ask", listen)
    push.wait(TASK, poll_s=0.0)
    push.output(TASK)
    assert [words[:3] for words in asked] == [("kernels", "status", f"{ref}/3"), ("kernels", "output", f"{ref}/3")]
    labels = [request.get("versionLabel") for _, request in world.seen]
    assert labels == ["v3", "v3"] or VERSION == "2.2.4"  # which ignores the version


def test_a_run_that_failed_shows_the_end_of_its_log(world, said):
    pushed(world, {})
    world.run, world.failure_message = ("ERROR",), "exit code 1"
    world.log = json.dumps([{"stream_name": "stderr", "time": 1.0, "data": "first\nRuntimeError: no\n"}])
    with pytest.raises(Refused, match="ERROR: exit code 1"):
        push.wait(TASK, poll_s=0.0)
    assert said[-1] == "  RuntimeError: no"


def test_an_output_is_checked_against_the_hash_in_the_log(world):
    pushed(world, {"submission.csv": CSV})
    path = push.output(TASK)
    assert path.read_bytes() == CSV
    data = f"result     submission.csv sha256 {'0' * 64}\n"
    world.log = json.dumps([{"stream_name": "stdout", "time": 1.0, "data": data}])
    with pytest.raises(Refused, match="the kernel's log says 0000"):
        push.output(TASK)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"submission.csv": b"<html>Forbidden</html>"}, "not a submission"),
        ({"other.txt": b""}, "left no submission.csv"),
        ({"submission.csv": b"row_id,a,b\n1_x,0.5,0.5\n"}, "expected"),
    ],
)
def test_an_output_that_is_no_submission_is_noticed(world, outputs, message):
    pushed(world, outputs)
    with pytest.raises(Refused, match=message):
        push.output(TASK)


def fetched(tmp_path: Path, version: int = 1) -> None:
    file = tmp_path / "submission.csv"
    file.write_bytes(CSV)
    facts = {
        "ref": f"{ACCOUNT}/osteograde-{TASK}",
        "version": version,
        "file": str(file),
        "sha256": bundle.sha256(file),
    }
    record.keep_record(TASK, "output", facts)


def test_a_submission_is_told_first_and_sent_only_with_yes(world, said, tmp_path):
    pushed(world, {"submission.csv": CSV})
    fetched(tmp_path)
    assert submit.submit(TASK, yes=False) is False
    assert world.seen == []
    assert any(f"kaggle competitions submit {SLUG}" in line for line in said)
    assert submit.submit(TASK, yes=True) is True
    sent = world.sent("CreateCodeSubmission")[0]
    assert (sent["kernelSlug"], sent["kernelVersion"]) == (f"osteograde-{TASK}", 1)
    with pytest.raises(Refused, match="already submitted"):
        submit.submit(TASK, yes=True)


def test_a_score_is_read_back_and_kept_in_a_ledger_that_only_grows(world, said, tmp_path):
    pushed(world, {"submission.csv": CSV})
    fetched(tmp_path)
    with pytest.raises(ValueError, match="first python -m osteograde kaggle submit"):
        submit.score(TASK)
    submit.submit(TASK, yes=True)
    with pytest.raises(RetryLater, match="still pending"):
        submit.score(TASK)
    before = record.ledger_path(TASK).read_bytes()
    world.scored = {"status": "COMPLETE", "publicScore": "0.731", "privateScore": ""}
    for _ in range(2):
        assert submit.wait_for_score(TASK, poll_s=0.0) == submit.Score(1, "complete", 0.731, None)
    assert "submission 1: complete, public 0.731, private None" in said
    after = record.ledger_path(TASK).read_bytes()
    assert after.startswith(before)
    assert [line["event"] for line in record.read_ledger(TASK)] == ["submitted", "scored"]
    (told,) = ledger.read(record.ledger_path(TASK))
    assert (told.status, told.public, told.private) == ("complete", 0.731, None)


def test_the_ledger_knows_what_was_trained_and_scored_out_of_fold_of_what_was_submitted(
    world, built, weights, tmp_path
):
    manifest = bundle.read_manifest(weights)
    send(weights, WEIGHTS_SET)
    push.push(TASK, built)
    fetched(tmp_path)
    world.run, world.outputs = ("COMPLETE",), {"submission.csv": CSV}
    world.running = iter([])
    send(weights, f"{ACCOUNT}/other-weights")  # what is uploaded after the push was not submitted
    submit.submit(TASK, yes=True)
    (told,) = ledger.read(record.ledger_path(TASK))
    assert told.weights["source"] == f"{WEIGHTS_SET}/1"
    assert told.weights["manifest"] == bundle.sha256(weights / bundle.MANIFEST)
    assert (told.weights["changes"], told.score) == (manifest.recipe.get("changes", {}), None)
    assert told.image.startswith("gcr.io/")


def test_kernels_that_hold_a_session_are_named_before_a_push(world, built, said):
    attached(world)
    push.push(TASK, built)
    ref = f"{ACCOUNT}/osteograde-{TASK}/1"
    assert not any("holds a session" in line for line in said)
    world.run = ("RUNNING",)
    push.push(TASK, built)
    assert f"{ref} is still running and holds a session" in said
    world.refuse = {"GetKernelSessionStatus": (503, {"code": 503, "message": "Service Unavailable"})}
    assert push.still_running() == []


def test_a_submission_that_failed_is_told_with_the_error_of_the_service(world, tmp_path):
    pushed(world, {"submission.csv": CSV})
    fetched(tmp_path)
    submit.submit(TASK, yes=True)
    world.scored = {"status": "ERROR", "errorDescription": "Submission Scoring Error:\ntoo many rows"}
    text = "" if VERSION == "2.2.4" else ": Submission Scoring Error: too many rows"  # 2.2.4 does not print it
    with pytest.raises(Refused, match=f"submission 1: error{text}$"):
        submit.score(TASK)
    assert record.read_ledger(TASK)[-1]["status"] == "error"


def test_the_quota_is_shown_before_a_push_and_its_lack_stops_nothing(world, built, said):
    attached(world)
    push.push(TASK, built)
    assert "GPU hours left this week: 29.00h of 30.00h, renewed 2026-01-01T00:00" in said
    world.refuse = {"GetAcceleratorQuotaStatistics": (503, {"code": 503, "message": "Service Unavailable"})}
    push.push(TASK, built)
    assert "GPU hours left this week: unknown" in said


@pytest.mark.skipif(VERSION == "2.2.4", reason="kaggle 2.2.4 has no --no-run")
def test_a_version_may_be_saved_without_running(world, built, said):
    attached(world)
    assert push.push(TASK, built, run=False) == 1
    assert any("version 1 saved without running" in line for line in said)


def test_a_submission_that_is_not_listed_afterwards_is_noticed(world, tmp_path):
    pushed(world, {"submission.csv": CSV})
    fetched(tmp_path)
    world.forget_submission = True
    with pytest.raises(Refused, match=r"no submission .* is listed"):
        submit.submit(TASK, yes=True)


def test_another_version_than_the_one_fetched_is_not_submitted(world, tmp_path):
    pushed(world, {"submission.csv": CSV}, version=2)
    fetched(tmp_path)
    with pytest.raises(ValueError, match="version 1 was fetched, version 2 pushed"):
        submit.submit(TASK, yes=True)
    assert world.seen == []


def competition(world, tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = tmp_path / "made.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    world.data = {**files, f"{SLUG}.zip": archive.read_bytes()}


def test_a_download_is_unpacked_once_and_what_is_lost_is_unpacked_again(world, tmp_path):
    competition(world, tmp_path, {"train.csv": b"study_id\n", "a/b.txt": b"b"})
    out = tmp_path / "data"
    download.download(TASK, out, None)
    assert (out / "a" / "b.txt").read_bytes() == b"b"
    (out / "train.csv").unlink()
    assert download.unpack(out / f"{SLUG}.zip", out) == (2, 1)


def test_a_download_needs_room_first(world, tmp_path):
    with pytest.raises(ValueError, match=r"1000000.0 GiB needed"):
        download.download(TASK, tmp_path / "data", 1_000_000)
    assert world.seen == []

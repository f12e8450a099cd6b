"""What is checked before anything is sent to Kaggle: names, metadata, secrets; and how refusals are told apart."""

import shutil
import zipfile
from pathlib import Path

import pytest

from osteograde.kaggle import build_kernel, client, credentials, download, metadata, submit, upload
from osteograde.kaggle.client import Refused, Reply, RetryLater
from osteograde.models import bundle
from tests.kaggle_stub import ACCOUNT, SECRET
from tests.kaggle_stub.weights import hashed_weights

TASK = "lumbar-mr"
WEIGHTS_SET = f"{ACCOUNT}/osteograde-lumbar-weights"
WEIGHTS_MODEL = f"{ACCOUNT}/osteograde/pyTorch/lumbar"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return hashed_weights(tmp_path_factory.mktemp("weights"), TASK)


@pytest.fixture(scope="module")
def built(tmp_path_factory, weights) -> Path:
    return build_kernel.build(TASK, weights, tmp_path_factory.mktemp("kernels") / TASK, source=WEIGHTS_SET).parent


def test_flat_weights_are_read_as_those_in_folders(weights, tmp_path):
    for name, path in upload.to_send(weights, bundle.verify(weights)).items():
        shutil.copy(path, tmp_path / name)
    assert bundle.verify(tmp_path) == bundle.verify(weights)
    (tmp_path / bundle.flat("locate/canal/fold0.safetensors")).write_bytes(b"other")
    with pytest.raises(ValueError, match="locate__canal"):
        bundle.verify(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", f"my key is {SECRET}", "your own Kaggle key"),
        ("README.md", '{"username": "x", "key": "fedcba9876543210fedcba9876543210"}', "a Kaggle key"),
        ("README.md", "-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("kaggle.json", "{}", "file of secrets"),
    ],
)
def test_secrets_are_refused_and_not_repeated(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        credentials.refuse_secrets([tmp_path / name], known=[SECRET])
    assert SECRET not in str(refused.value)


def test_a_secret_across_two_blocks_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(credentials, "BLOCK", 600)
    (tmp_path / "net.safetensors").write_bytes(b"\0" * 590 + SECRET.encode() + b"\0" * 5000)
    with pytest.raises(ValueError, match="your own Kaggle key"):
        credentials.refuse_secrets([tmp_path / "net.safetensors"], known=[SECRET])


def test_what_the_client_prints_is_free_of_secrets():
    assert credentials.hide_secrets(f"user:{SECRET}", [SECRET]) == f"user:{credentials.HIDDEN}"


def test_a_task_without_a_competition_is_not_submitted():
    with pytest.raises(ValueError, match="no competition to submit to"):
        submit.submit("spider", yes=True)


def test_an_archive_that_leads_out_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("../evil.txt", b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="leads out of"):
        download.unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("out", "error", "word"),
    [
        ("Kernel push error: Maximum batch GPU session count of 2 reached.", RetryLater, "retry later"),
        ("Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.", Refused, "do not retry"),
        ("Skipping folder: pkg; use '--dir-mode' to upload folders\nDone", Refused, "Skipping folder"),
    ],
)
def test_refusals_are_told_apart_by_their_words(out, error, word):
    with pytest.raises(Refused, match=word) as refused:
        client.expect(Reply(("kernels", "push"), 0, out, ""), "Done")
    assert type(refused.value) is error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enable_internet": True}, "enable_internet is True"),
        ({"enable_gpu": "true"}, "enable_gpu is 'true'"),
        ({"enable_interent": False}, "'enable_interent' is no key"),
        ({"machine_shape": "NvidiaTeslaP100"}, "the image's torch cannot run there"),
        ({"machine_shape": "NvidiaT4"}, "expected one of"),
        ({"title": "Another"}, "comes to 'another'"),
        ({"competition_sources": ["competitions/x"]}, "bare name"),
        ({"dataset_sources": ["weights"]}, "1 parts"),
        ({"dataset_sources": ["me/my-weights/2"]}, "names a version"),
        ({"model_sources": ["a/model/pyTorch/x"]}, "lacks its version"),
        ({"docker_image": "python:3.12"}, "not an image of Kaggle's"),
        ({"code_file": "other.py"}, "not in the folder"),
    ],
)
def test_metadata_that_a_push_would_take_in_silence_is_refused(built, change, message):
    with pytest.raises(ValueError, match=message):
        metadata.check({**metadata.read(built), **change}, built)


def test_a_missing_switch_is_refused_since_it_means_on(built):
    facts = metadata.read(built)
    del facts["enable_internet"]
    with pytest.raises(ValueError, match="'enable_internet' is missing"):
        metadata.check(facts, built)


def test_a_kernel_of_nobody_becomes_the_accounts(tmp_path):
    build_kernel.build("spider", None, tmp_path / "k")
    facts = metadata.owned(metadata.read(tmp_path / "k"), "me")
    assert facts["id"] == "me/osteograde-spider"
    assert facts["dataset_sources"] == ["me/osteograde-spider-weights", "me/osteograde-spider-data"]
    assert facts["competition_sources"] == []


@pytest.mark.parametrize(
    "name", ["me/my-weights", "me/my-weights/2", "me/net/pyTorch/default", "me/net/pyTorch/default/3"]
)
def test_a_source_is_written_as_it_was_read(name):
    assert str(metadata.parse_source(name)) == name


@pytest.mark.parametrize(
    "name", ["weights", "me/we", "me/My-weights", "me/my-weights/x", "me/net/keras/a", "me/net/pyTorch/a/0"]
)
def test_a_name_that_is_no_source_is_refused(name):
    with pytest.raises(ValueError, match=r"expected|letters"):
        metadata.parse_source(name)


def test_the_data_set_that_an_upload_names_is_mounted_in_its_latest_version(weights, tmp_path):
    build_kernel.build(TASK, weights, tmp_path, source=f"{WEIGHTS_SET}/2")
    assert metadata.read(tmp_path)["dataset_sources"] == [WEIGHTS_SET]


def test_weights_in_a_model_are_mounted_by_version(weights, tmp_path):
    build_kernel.build(TASK, weights, tmp_path, source=f"{WEIGHTS_MODEL}/3")
    assert metadata.read(tmp_path)["model_sources"] == [f"{WEIGHTS_MODEL}/3"]
    with pytest.raises(ValueError, match="mounted by its version"):
        build_kernel.build(TASK, weights, tmp_path, source=WEIGHTS_MODEL)

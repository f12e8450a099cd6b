"""What is checked before anything is sent to Kaggle: names, metadata, secrets; and how refusals are told apart."""

import base64
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from osteograde.kaggle import build_kernel, client, credentials, download, metadata, submit, upload
from osteograde.kaggle.client import Refused, Reply, RetryLater
from osteograde.models import bundle
from osteograde.pipeline import ensemble
from tests.kaggle_stub import ACCOUNT, SECRET
from tests.kaggle_stub.weights import hashed_weights

ROOT = Path(__file__).resolve().parents[1]
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
    for name, path in upload.to_send(ensemble.verify(weights)).items():
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


TOKEN = "plain0token1for2tests3only4x5"  # has the shape of nothing: only its place tells what it is
HEX, KGAT = "fedcba9876543210fedcba9876543210", "KGAT_" + "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


@pytest.mark.parametrize(
    ("place", "text", "environment"),
    [
        (".kaggle/access_token", TOKEN + "\n", {}),
        (".kaggle/access_token.txt", TOKEN, {}),
        (".kaggle/access_token", TOKEN, {"KAGGLE_CONFIG_DIR": "elsewhere"}),
        (".kaggle/kaggle.json", json.dumps({"username": "somebody", "key": TOKEN}), {}),
        (".kaggle/credentials.json", json.dumps({"refresh_token": TOKEN, "username": "somebody", "scopes": []}), {}),
        (".config/kaggle/kaggle.json", json.dumps({"username": "somebody", "key": TOKEN}), {}),
        (".kaggle/access_token", f"\ufeff{TOKEN}", {}),
        ("settings/kaggle/kaggle.json", json.dumps({"key": TOKEN}), {"XDG_CONFIG_HOME": "settings"}),
        ("other/kaggle.json", json.dumps({"key": TOKEN}), {"KAGGLE_CONFIG_DIR": "other"}),
        ("secret.txt", TOKEN, {"KAGGLE_API_TOKEN": "secret.txt"}),
        ("secret.txt", TOKEN, {"KAGGLE_API_V1_TOKEN": "secret.txt"}),
    ],
)
def test_what_the_client_would_read_is_a_secret_wherever_it_lies(place, text, environment, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / place).parent.mkdir(parents=True, exist_ok=True)
    (home / place).write_text(text)
    for name in (*credentials.SECRET_VARIABLES, "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    for name, value in environment.items():
        monkeypatch.setenv(name, str(home / value))
    assert credentials.own_secrets() == [TOKEN]
    (tmp_path / "README.md").write_text(f"notes to myself: auth {TOKEN}\n")
    with pytest.raises(ValueError, match="your own Kaggle key"):
        credentials.refuse_secrets([tmp_path / "README.md"])


def test_a_variable_that_holds_the_token_itself_is_a_secret_however_long_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "x1" * 3000)  # no path is that long
    assert credentials.own_secrets() == ["x1" * 3000]


def utf16(text: str) -> bytes:
    return text.encode("utf-16")


@pytest.mark.parametrize(
    "data",
    [
        utf16(f"auth {TOKEN}"),
        b"\0\1" + TOKEN.encode() + b"\xff",
        base64.b64encode(f"somebody:{TOKEN}".encode()),
        base64.b64encode(f"someone:{TOKEN}".encode()),
        base64.urlsafe_b64encode(f"somebody1:{TOKEN}".encode()),
        TOKEN.encode().hex().encode(),
    ],
)
def test_the_users_own_token_is_found_in_other_encodings(data, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"\0" * 100 + b" " + data + b"\n" + b"\0" * 100)
    with pytest.raises(ValueError, match="your own Kaggle key"):
        credentials.refuse_secrets([tmp_path / "net.safetensors"], known=[TOKEN])


@pytest.mark.parametrize(
    "text",
    [
        f"token {KGAT}",
        f"TOKEN={KGAT}",
        f"x_{KGAT}_y",
        f"key: {HEX}",
        f"'key' : '{HEX}'",
        f"KAGGLE_KEY={HEX}",
        f"export KAGGLE_KEY = {HEX.upper()}",
        f'os.environ["KAGGLE_KEY"] = "{HEX}"',
        f'os.environ.setdefault("KAGGLE_KEY", "{HEX}")',
        json.dumps({"source": [json.dumps({"username": "me", "key": HEX})]}),  # a notebook: quotes are escaped
        json.dumps({"source": [f"!echo '{json.dumps({'username': 'me', 'key': TOKEN})}' > ~/.kaggle/kaggle.json"]}),
        f'{{"key": "{TOKEN}", "username": "me"}}',
        f"username: me\nkey: {TOKEN}\n",
        f"KAGGLE_API_TOKEN={TOKEN}",
        f'{{"refresh_token": "{TOKEN}"}}',
        f"Authorization: Bearer {TOKEN}",
        "Authorization: Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode(),
        base64.b64encode(f"somebody:{HEX}".encode()).decode(),
        base64.b64encode(f"somebody:{KGAT}".encode()).decode(),
        base64.b64encode(json.dumps({"username": "me", "key": HEX}).encode()).decode(),
        "github_pat_" + "A1" * 20,
    ],
)
def test_what_has_the_shape_of_a_credential_is_refused_whoevers_it_is(text, tmp_path):
    for name, data in (("a.md", f"before\n{text}\nafter\n".encode()), ("b.txt", utf16(f"{text}\n"))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="looks like") as refused:
            credentials.refuse_secrets([tmp_path / name], known=[])
        assert TOKEN not in str(refused.value) and HEX not in str(refused.value)


@pytest.mark.parametrize("name", [f"{KGAT}.safetensors", "kaggle (1).json", ".env.local", "_netrc", "id_ed25519"])
def test_names_of_files_are_searched_too(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="nothing was uploaded") as refused:
        credentials.refuse_secrets([tmp_path / name], known=[])
    assert KGAT not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "put the token into KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or kaggle.json",
        "export KAGGLE_API_TOKEN=xxxxxxxxxxxxxx",
        "KAGGLE_KEY = user_secrets.get_secret('kaggle_key')",
        f"sha256 {HEX}{HEX}, md5 {HEX}",
        '{"files": {"a": {"sha256": "' + HEX * 2 + '", "bytes": 12}}, "key": "l4_l5"}',
        "the key: a word that follows a colon",
        base64.b64encode(b"an ordinary text of more than forty letters in base64").decode(),
    ],
)
def test_what_only_speaks_of_credentials_is_not_refused(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    credentials.refuse_secrets([tmp_path / "README.md"], known=[])


def test_nothing_in_the_shipped_weights_looks_like_a_secret():
    for folder in sorted(path.parent for path in (ROOT / "weights").glob("*/manifest.json")):
        credentials.refuse_secrets(upload.to_send(ensemble.verify(folder)).values(), known=[])


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


def test_a_key_in_a_file_with_a_mistake_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/kaggle.json").write_text(f'{{"username": "a", "refresh_token": "{TOKEN}",}}')
    assert TOKEN in credentials.own_secrets() and "refresh_token" not in credentials.own_secrets()


@pytest.mark.parametrize(("name", "value"), [("KAGGLE_USER_SECRETS_TOKEN", TOKEN), ("KAGGLE_API_TOKEN", "~/token")])
def test_variables_of_other_versions_and_paths_below_home_are_read(name, value, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv(name, value)
    assert TOKEN in credentials.own_secrets()


@pytest.mark.parametrize(
    ("machine", "shape", "has_gpu"),
    [("", "NvidiaTeslaT4", True), ("t4x2", "NvidiaTeslaT4", True), ("L4", "NvidiaL4X1", True), ("cpu", "", False)],
)
def test_a_kernel_is_built_for_the_machine_that_is_named(machine, shape, has_gpu, tmp_path):
    out = build_kernel.build(TASK, None, tmp_path / "built", machine=machine).parent
    facts = json.loads((out / metadata.NAME).read_text())
    assert (facts["machine_shape"], facts["enable_gpu"]) == (shape, has_gpu)
    metadata.check(facts, out)
    with pytest.raises(ValueError, match=r"contradict each other|expected True"):
        metadata.check({**facts, "enable_gpu": not has_gpu}, out)


@pytest.mark.parametrize(("machine", "told"), [("p100", "cannot run there"), ("t4", "is none of t4x2, cpu")])
def test_a_machine_that_the_service_does_not_have_is_refused(machine, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        build_kernel.build(TASK, None, tmp_path / "built", machine=machine)

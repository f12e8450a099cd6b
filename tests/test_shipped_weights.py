"""Weights of the kit outside of a checkout: where they are looked for, and what is fetched and believed."""

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from osteograde import cli, weights_command
from osteograde.errors import UserError
from osteograde.models import shipped
from osteograde.models.manifest import sha256

ROOT = Path(__file__).resolve().parents[1]


def make_weights(folder: Path, task: str = "elbow", net: bytes = b"numbers") -> Path:
    (folder / "grade" / "a").mkdir(parents=True)
    (folder / "grade" / "a" / "fold0.safetensors").write_bytes(net)
    (folder / "oof.csv").write_text("row_id\n")
    (folder / "manifest.json").write_text(json.dumps({"task": task, "net": net.hex()}))
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    """What a release holds: the folder above the weights elbow-first."""
    return make_weights(tmp_path / "release" / "elbow-first").parent


@pytest.fixture(autouse=True)
def wheel(source, tmp_path, monkeypatch):
    """The package as a wheel installs it, an empty working folder and an empty cache."""
    package = tmp_path / "site-packages" / "osteograde"
    package.mkdir(parents=True)
    (package / shipped.INDEX).write_text(shipped.index_text(shipped.index_of(source)))
    monkeypatch.setattr(shipped, "PACKAGE", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(weights_command.VARIABLE, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    shipped.index.cache_clear()
    yield
    shipped.index.cache_clear()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_index_of_a_wheel_names_every_file_by_hash_and_size(source):
    (found,) = shipped.index()
    assert (found.name, found.task) == ("elbow-first", "elbow")
    assert sorted(file.name for file in found.files) == names(source / "elbow-first")
    for file in found.files:
        path = source / "elbow-first" / file.name
        assert (file.sha256, file.bytes) == (sha256(path), path.stat().st_size)
    assert found.facts == found.files[-1]


def test_a_checkout_needs_no_index(monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", ROOT / "src" / "osteograde")
    assert {one.name for one in shipped.index()} == {path.parent.name for path in ROOT.glob("weights/*/manifest.json")}


def test_weights_of_the_working_folder_come_before_fetched_ones(source, tmp_path):
    fetched = weights_command.get("elbow", str(source))
    assert shipped.find("elbow") == fetched == tmp_path / "cache" / "osteograde" / "weights" / "elbow-first"
    own = make_weights(Path("weights") / "elbow")
    assert shipped.find("elbow") == own


def test_where_there_are_no_weights_every_place_that_was_looked_in_is_named():
    with pytest.raises(UserError) as told:
        shipped.find("elbow")
    assert all(str(place) in str(told.value) for place in ("weights/elbow", shipped.fetched() / "elbow"))
    assert "osteograde weights get elbow" in str(told.value) and "--weights" in str(told.value)


def test_a_task_without_weights_of_its_own_is_told_to_train_some():
    with pytest.raises(UserError, match=r"none ship for this task: train some \(osteograde train wrist\)") as told:
        shipped.find("wrist")
    assert "weights get" not in str(told.value)


def test_what_was_fetched_is_followed_by_the_command_that_grades_with_it(source, capsys):
    assert cli.run(lambda: cli.main(["weights", "get", "elbow-first", "--from", str(source)])) == 0
    *_, folder, following = capsys.readouterr().out.splitlines()
    assert folder == str(shipped.fetched() / "elbow-first")
    assert following.startswith("next: osteograde grade elbow --data")


def test_two_weights_of_a_task_are_not_chosen_from():
    make_weights(Path("weights") / "elbow-a")
    make_weights(Path("weights") / "elbow-b")
    with pytest.raises(UserError, match="2 weights folders for 'elbow'"):
        shipped.find("elbow")


def test_fetched_weights_of_another_version_are_passed_over_and_replaced(source):
    make_weights(shipped.fetched() / "elbow-first", net=b"older")
    with pytest.raises(UserError, match="is of another version"):
        shipped.find("elbow")
    assert weights_command.lines()[0].endswith("(another version)")
    assert weights_command.get("elbow", str(source)) == shipped.find("elbow")


def test_weights_by_their_name_are_found_where_they_were_fetched_to(source):
    name = Path("weights/elbow-first")
    assert shipped.at(name) == name
    assert weights_command.get("elbow", str(source)) == shipped.at(name) != name
    assert shipped.at(Path("runs/elbow-first")) == Path("runs/elbow-first")


def served(folder: Path) -> ThreadingHTTPServer:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def flat(source: Path) -> Path:
    """The same files as the assets of a release lie: in no folders."""
    out = source.parent / "flat"
    out.mkdir()
    for name in names(source):
        shutil.copyfile(source / name, out / name.replace("/", "__"))
    return out


@pytest.mark.parametrize("layout", ["folders", "flat"])
@pytest.mark.parametrize("how", ["folder", "file", "http", "variable"])
def test_weights_are_fetched_whole_from_folders_and_addresses(source, layout, how, monkeypatch):
    base = flat(source) if layout == "flat" else source
    server = served(base) if how == "http" else None
    address = {"folder": str(base), "variable": str(base), "file": base.as_uri()}.get(how)
    address = address or f"http://127.0.0.1:{server.server_address[1]}/"
    if how == "variable":
        monkeypatch.setenv(weights_command.VARIABLE, address)
    folder = weights_command.get("elbow-first", None if how == "variable" else address)
    if server:
        server.shutdown()
    assert names(folder) == names(source / "elbow-first")
    assert all((folder / name).read_bytes() == (source / "elbow-first" / name).read_bytes() for name in names(folder))


def test_what_is_there_and_right_is_not_fetched_again(source):
    folder = weights_command.get("elbow", str(source))
    (source / "elbow-first" / "grade" / "a" / "fold0.safetensors").unlink()  # it cannot be asked for again
    (folder / "manifest.json").write_text("cut")
    assert weights_command.get("elbow", str(source)) == folder == shipped.find("elbow")


@pytest.mark.parametrize("given", [b"numbers and more", b"numb", b"NUMBERS"])
def test_a_file_that_is_not_the_one_of_this_version_is_refused_and_leaves_nothing(source, given):
    (source / "elbow-first" / "grade" / "a" / "fold0.safetensors").write_bytes(given)
    with pytest.raises(UserError, match=r"fold0.safetensors has \d+ bytes.*this version of osteograde names 7 bytes"):
        weights_command.get("elbow", str(source))
    assert not shipped.fetched().exists() or names(shipped.fetched()) == []
    with pytest.raises(UserError, match="no weights for 'elbow'"):  # a part of a folder is no weights folder
        shipped.find("elbow")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["elbow"], "OSTEOGRADE_WEIGHTS_URL"),
        (["elbow", "--from", "http://127.0.0.1:9/weights"], "without a network, copy weights/elbow-first"),
        (["elbow", "--from", "nowhere"], "neither elbow-first/grade/a/fold0.safetensors nor"),
        (["elbow", "--from", "file:///nowhere"], "neither elbow-first/grade/a/fold0.safetensors nor"),
        (["elbow", "--from", "ftp://host/weights"], "addresses begin with http, https, file"),
        (["wrist", "--from", "nowhere"], "no weights of this version are called 'wrist'; there are: elbow-first"),
    ],
)
def test_what_hinders_fetching_is_one_line_that_says_what_to_do(words, told, capsys):
    assert cli.run(lambda: cli.main(["weights", "get", *words])) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_the_list_tells_what_there_is_and_where_it_lies(source, capsys):
    assert cli.run(lambda: cli.main(["weights", "list"])) == 0
    assert "not here: osteograde weights get elbow-first" in capsys.readouterr().out
    weights_command.get("elbow", str(source))
    assert cli.run(lambda: cli.main(["weights", "list"])) == 0
    assert f"in {shipped.fetched() / 'elbow-first'}\n" in capsys.readouterr().out

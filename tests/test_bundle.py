"""Weights: hashes first, strict loading, and a sentence for everything that does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.models.bundle import build_net
from osteograde.tasks import TASKS
from tests.tiny import random_bundle

TASK = TASKS["lumbar-mr"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("weights"), folds=2, test_views=2)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "weights"))


def edit(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_what_is_saved_is_loaded_for_every_stage_and_fold(folder):
    loaded = bundle.load(folder, TASKS, CPU)
    assert {stage: len(nets) for stage, nets in {**loaded.locators, **loaded.graders}.items()} == {
        stage.name: 2 for stage in (*TASK.locators, *TASK.graders)
    }
    assert not any(net.training for nets in loaded.locators.values() for net in nets)


def test_a_net_comes_back_as_its_fp16_self(tmp_path):
    net = build_net(dict(RECIPES["lumbar-mr-small"]().graders["spinal"][0].net))
    bundle.save_net(net, tmp_path / "net.safetensors")
    back = bundle.load_net(
        tmp_path / "net.safetensors", bundle.config_of(RECIPES["lumbar-mr-small"]().graders["spinal"][0].net)
    )
    for key, value in net.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(back.state_dict()[key], expected), key


def test_one_changed_byte_is_found_before_anything_is_built(folder, monkeypatch):
    path = folder / "grade" / "spinal" / "fold1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(bundle, "build_net", lambda config: pytest.fail("a net was built"))
    with pytest.raises(ValueError, match=r"fold1.safetensors: sha256 is .* the manifest says"):
        bundle.load(folder, TASKS, CPU)


def test_a_missing_file_is_named(folder):
    (folder / "locate" / "canal" / "fold0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"canal/fold0.safetensors: missing"):
        bundle.verify(folder)


def test_a_folder_without_manifest_or_with_another_format_is_refused(folder, tmp_path_factory):
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        bundle.verify(tmp_path_factory.mktemp("empty"))
    edit(folder, format=99)
    with pytest.raises(ValueError, match="format is not"):
        bundle.verify(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        bundle.verify(folder)


def test_a_manifest_that_lacks_something_says_what(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"'files'.*missing"):
        bundle.verify(folder)


def test_a_path_out_of_the_folder_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(iter(manifest["files"].values()))
    edit(folder, files={"../outside.safetensors": entry})
    with pytest.raises(ValueError, match="outside of the folder"):
        bundle.verify(folder)


def test_weights_of_an_unknown_task_name_the_known_ones(folder):
    edit(folder, task="elbow")
    with pytest.raises(ValueError, match=r"'elbow'; known tasks: .*lumbar-mr"):
        bundle.load(folder, TASKS, CPU)


def test_a_stage_without_nets_is_named(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(folder, files={name: entry for name, entry in manifest["files"].items() if "/canal/" not in name})
    with pytest.raises(ValueError, match="locate nets are"):
        bundle.load(folder, TASKS, CPU)


def test_tensors_that_do_not_fit_the_net_are_told_apart(tmp_path):
    net = RECIPES["lumbar-mr-small"]().graders["spinal"][0].net
    bundle.save_net(build_net(dict(net)), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"2 tensors do not fit.*head.bias: net \(5,\), file \(3,\)"):
        bundle.load_net(tmp_path / "net.safetensors", {**net, "classes": 5})


def test_what_is_no_safetensors_is_never_unpickled(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        bundle.load_net(tmp_path / "net.safetensors", RECIPES["lumbar-mr-small"]().graders["spinal"][0].net)

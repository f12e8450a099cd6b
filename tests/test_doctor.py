"""The doctor tells what works by trying it, and says so in words when it does not."""

import json

import numpy as np
import pytest
import torch
from pydicom.uid import UID

from osteograde import doctor
from osteograde.models import device


def test_pick_takes_a_device_that_computes():
    assert device.fault(torch.device("cpu")) == ""
    chosen = device.pick("auto")
    assert chosen.type in ("cpu", "cuda")
    assert device.fault(chosen) == ""
    assert device.pick("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA"])
def test_an_unknown_device_is_refused_with_the_choices(name):
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        device.pick(name)


def test_a_gpu_that_is_not_there_is_refused_by_name_and_passed_by_auto():
    with pytest.raises(ValueError, match=r"--device cuda:99: .*use --device cpu"):
        device.pick("cuda:99")


def test_a_device_that_computes_wrongly_is_found_out(monkeypatch):
    right = device.functional.conv2d
    answers = iter([lambda *a, **k: right(*a, **k) + 1, right])
    monkeypatch.setattr(device.functional, "conv2d", lambda *a, **k: next(answers)(*a, **k))
    assert "off by 1" in device.fault(torch.device("cpu"))


def test_what_the_reader_decodes_itself_is_read_back_here():
    for uid in doctor.MADE:
        np.testing.assert_array_equal(doctor._round_trip(uid), doctor._sample())
    assert [finding.fault for finding in doctor.decoders()] == [""] * len(doctor.SYNTAXES)


def test_a_syntax_without_a_decoder_is_named_with_the_code_that_counts_it():
    found = {finding.what: finding.found for finding in doctor.decoders()}
    assert set(found) == set(doctor.SYNTAXES.values())
    for uid, name in doctor.SYNTAXES.items():
        if found[name].startswith("not available"):
            assert found[name].endswith(f"no_decoder_{UID(uid).keyword}")
        else:
            assert found[name].startswith(("read back right", "available, by "))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("numpy>=2.0", ""),
        ("numpy", ""),
        ("numpy>=99.1", "older than 99.1"),
        ("no-such-package>=1", "pip install no-such-package"),
    ],
)
def test_package_versions_are_compared_as_numbers(line, fault):
    assert doctor._package(line).fault == fault


def test_versions_are_not_compared_as_text():
    assert doctor._numbers("2.10.0+cu128") > doctor._numbers("2.9.1")


def test_damaged_weights_make_the_environment_unusable(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "weights" / "broken"
    folder.mkdir(parents=True)
    entry = {"sha256": "0" * 64, "bytes": 1, "net": {}}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "task": "t", "files": {"a.safetensors": entry}}))
    monkeypatch.chdir(tmp_path)
    assert doctor.main() == 2
    printed = capsys.readouterr()
    assert "weights/broken" in printed.err
    assert printed.err.count("\n") == 1


def test_this_environment_is_usable(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith("usable")
    for word in ("python", "torch", "CPU cores", "memory", "free disk", "--device auto is", "RLE lossless", "OSTEO"):
        assert word in out

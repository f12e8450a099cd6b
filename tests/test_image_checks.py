"""Checks of the image itself: the side by anatomy, images unlike all known ones, and what they leave as it was."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from osteograde import phantom
from osteograde.errors import UserError
from osteograde.grade_command import infer
from osteograde.kaggle.upload import to_send
from osteograde.models import bundle
from osteograde.models.manifest import read_manifest, sha256, write_manifest
from osteograde.pipeline import ensemble, image_checks
from osteograde.pipeline.predict import Nets

WEIGHTS = Path(__file__).parents[1] / "weights" / "knee-xray"


@pytest.fixture(scope="module")
def nets() -> Nets:
    entry = read_manifest(WEIGHTS).files["grade/kl/fold0.safetensors"]
    net = bundle.load_net(WEIGHTS / "grade" / "kl" / "fold0.safetensors", entry.net)
    return Nets([net], (64, 96), torch.device("cpu"))


def leg(seed: int, *, grain: float = 0.02) -> np.ndarray:
    """(64, 96) a thick bone and a thin one on its left."""
    rng = np.random.default_rng(seed)
    image = np.zeros((64, 96), np.float32)
    for column, width in ((rng.uniform(44, 54), rng.uniform(12, 16)), (rng.uniform(18, 26), rng.uniform(4, 6))):
        image += np.exp(-(((np.arange(96) - column) / width) ** 4)).astype(np.float32)[None] * rng.uniform(0.4, 0.6)
    return image + rng.normal(0, grain, image.shape).astype(np.float32)


def halves(nets: Nets, crops: list[np.ndarray]) -> np.ndarray:
    return image_checks.half_features(torch.from_numpy(np.ascontiguousarray(crops)), nets)


@pytest.fixture(scope="module")
def checks(nets: Nets) -> image_checks.ImageChecks:
    return image_checks.fit(halves(nets, [leg(seed) for seed in range(40)]), axes=8)


def test_a_mirror_image_has_exactly_the_opposite_score_and_crops_that_were_not_seen_are_on_the_right_side(
    nets: Nets, checks: image_checks.ImageChecks
):
    unseen = [leg(seed) for seed in range(100, 112)]
    scores = checks.score(halves(nets, unseen))
    assert scores.min() > 0
    np.testing.assert_allclose(checks.score(halves(nets, [crop[:, ::-1] for crop in unseen])), -scores)


def test_crops_of_the_kind_that_was_learnt_are_near_and_others_far(nets: Nets, checks: image_checks.ImageChecks):
    near = checks.distance(halves(nets, [leg(seed) for seed in range(100, 112)]))
    noise = [np.random.default_rng(seed).random((64, 96)).astype(np.float32) for seed in range(6)]
    turned = [np.ascontiguousarray(cv2.resize(np.rot90(leg(seed)), (96, 64))) for seed in range(6)]
    far = checks.distance(halves(nets, noise + turned))
    assert near.max() * 1.5 < far.min()
    assert checks.distance(np.full((1, 2, halves(nets, noise[:1]).shape[-1]), np.nan)).tolist() == [np.inf]


def test_too_few_crops_are_refused():
    with pytest.raises(ValueError, match="at least 48"):
        image_checks.fit(np.zeros((47, 2, 5)))


def one_fold(folder: Path) -> Path:
    """The shipped weights of fold 0 alone, without checks."""
    manifest = read_manifest(WEIGHTS)
    kept = {name: entry for name, entry in manifest.files.items() if "fold0" in name}
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WEIGHTS / name, folder / name)
    write_manifest(folder, replace(manifest, files=kept, test_views=2, checks={}))
    return folder


def with_checks(folder: Path, sign: float, unusual: float) -> Path:
    """Weights whose checks call every crop surely of one side (which one: sign), and unusual from a distance on."""
    one_fold(folder)
    count = 32 * image_checks.GRID[0] * image_checks.GRID[1]
    tensors = {
        "lateral": np.full(count, sign),
        "mean": np.zeros(2 * count),
        "axes": np.eye(1, 2 * count),
    }
    (folder / "checks").mkdir()
    file = folder / "checks" / "image.safetensors"
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, file)
    entry = {"file": "checks/image.safetensors", "sha256": sha256(file), "bytes": file.stat().st_size, "grader": "kl"}
    numbers = {"rest": 1.0, "sure": 1e-6, "unusual": unusual}
    write_manifest(folder, replace(read_manifest(folder), checks=entry | numbers))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crop of one knee under a name with a side, and the same under one without."""
    folder = tmp_path_factory.mktemp("pictures")
    phantom.write("knee-xray", folder / "made", studies=1, seed=1)
    crop = next((folder / "made").rglob("*.png"))
    for name in ("some.png", "9000001_R.png"):
        shutil.copy(crop, folder / name)
    shutil.rmtree(folder / "made")
    return folder


def graded(data: Path, weights: Path, out: Path) -> tuple[bytes, set[tuple[str, str]]]:
    """The submission, and (row, code) of its flags."""
    assert infer("knee-xray", data, weights, out, device="cpu") == 0
    with out.with_name(out.stem + ".flags.csv").open(newline="") as file:
        return out.read_bytes(), {(row["row_id"], row["reason"]) for row in csv.DictReader(file)}


def probabilities(submission: bytes) -> np.ndarray:
    """(rows, classes) of a submission, whatever its rows are called."""
    return np.array([line.split(",")[1:] for line in submission.decode().splitlines()[1:]], float)


def test_a_knee_that_the_image_shows_to_be_a_left_one_becomes_a_left_row_and_named_ones_stay(
    pictures: Path, tmp_path: Path
):
    plain, before = graded(pictures, one_fold(tmp_path / "plain"), tmp_path / "plain.csv")
    assert ("some_right", "side_assumed") in before
    for sign, row in ((1.0, "some_right"), (-1.0, "some_left")):
        weights = with_checks(tmp_path / f"side{sign}", sign, np.finfo(float).max)
        same, flags = graded(pictures, weights, tmp_path / "same.csv")
        assert {line.partition(b",")[0].decode() for line in same.split()} == {"row_id", "9000001_R_right", row}
        told = tmp_path / row
        told.mkdir()
        shutil.copy(pictures / "some.png", told / f"some_{row[5].upper()}.png")
        named, _ = graded(told, weights, tmp_path / "named.csv")
        assert probabilities(same)[-1].tolist() == probabilities(named)[-1].tolist()
        assert {code for name, code in flags if name == row} == {image_checks.BY_ANATOMY}
        assert {name for name, _ in flags - before} == {row}
        assert (same == plain) == (sign > 0)


def test_a_row_that_a_template_names_keeps_its_side_and_says_that_it_is_unlikely(pictures: Path, tmp_path: Path):
    shutil.copytree(pictures, tmp_path / "data" / "test_images")
    (tmp_path / "data" / "sample_submission.csv").write_text("row_id,kl_0,kl_1,kl_2,kl_3,kl_4\nsome_right,1,0,0,0,0\n")
    weights = with_checks(tmp_path / "weights", -1.0, np.finfo(float).max)
    _, flags = graded(tmp_path / "data", weights, tmp_path / "out.csv")
    assert {code for row, code in flags if row == "some_right"} == {image_checks.UNLIKELY}


def test_an_unusual_image_is_flagged_and_its_grade_stays(pictures: Path, tmp_path: Path):
    plain, before = graded(pictures, one_fold(tmp_path / "plain"), tmp_path / "plain.csv")
    same, flags = graded(pictures, with_checks(tmp_path / "odd", 1.0, 0.0), tmp_path / "odd.csv")
    assert same == plain
    assert flags - before == {(row, image_checks.UNUSUAL) for row in ("some_right", "9000001_R_right")}
    assert ("some_right", "side_assumed") in flags


def test_the_file_of_checks_is_hashed_and_sent_and_the_manifest_names_what_it_lacks(tmp_path: Path):
    weights = with_checks(tmp_path / "weights", 1.0, 1.0)
    manifest = bundle.verify(weights)
    assert read_manifest(weights).plain()["checks"] == manifest.checks
    assert "checks__image.safetensors" in to_send(ensemble.verify(weights))
    file = weights / "checks" / "image.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"image\.safetensors: sha256"):
        bundle.verify(weights)
    write_manifest(weights, replace(manifest, checks={**manifest.checks, "sure": "no"}))
    with pytest.raises(UserError, match="checks/sure"):
        read_manifest(weights)

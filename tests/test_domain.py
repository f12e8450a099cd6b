"""What weights know of images: known ones are believed, others are not, and the flags say so."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osteograde.grade_command import infer
from osteograde.imaging.geometry import Volume, affine
from osteograde.inference import run
from osteograde.inference.deadline import Effort
from osteograde.models import bundle
from osteograde.models.bundle import build_net
from osteograde.models.manifest import parse_manifest, read_manifest, write_manifest
from osteograde.pipeline import domain
from osteograde.pipeline.crops import region_grids, region_images
from osteograde.pipeline.load import load_study
from osteograde.pipeline.predict import Nets
from osteograde.tasks import TASKS
from osteograde.tasks.spine import SAGITTAL

LOCATOR = TASKS["lumbar-mr"].locators[0]


def nets() -> Nets:
    torch.manual_seed(0)
    net = build_net({"kind": "heatmap", "encoder_name": "mobilenetv4_conv_small_050", "stages": 5, "channels": 5})
    return Nets([net.eval()], 64, torch.device("cpu"))


def seen(seed: int, noise: float, net: Nets) -> np.ndarray:
    """Features of blobs with noise, which is what tells two kinds of images apart here."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:128, :128]
    image = sum(np.exp(-((rows - a) ** 2 + (columns - b) ** 2) / 200) for a, b in rng.uniform(0, 128, (6, 2)))
    voxels = np.stack([image / np.max(image) * 180 + rng.normal(0, noise, (128, 128)) for _ in range(5)])
    to_mm = affine(np.zeros(3), np.array(SAGITTAL), np.array([4.0, 2.0, 2.0]))
    volume = Volume(np.clip(voxels, 0, 255).astype(np.uint8), to_mm)
    (region,) = region_grids(LOCATOR, {"sag_t2": (volume,)}, {}, 64)
    return domain.features(region, net)


def test_images_of_the_kind_that_was_learnt_are_near_and_others_far():
    net = nets()
    spread = domain.fit_spread(np.array([seen(seed, 4.0, net) for seed in range(40)]))
    same = [spread.distance(seen(seed, 4.0, net)) for seed in range(100, 110)]
    other = [spread.distance(seen(seed, 40.0, net)) for seed in range(100, 110)]
    assert max(same) * 1.5 < min(other)


def test_trust_falls_from_one_to_zero_between_the_two_distances():
    known = domain.Domain("x", {}, 2.0, 4.0)
    assert [known.trust(d) for d in (0, 2, 3, 4, np.inf)] == [1, 1, 0.5, 0, 0]
    assert domain.Domain("x", {}, 2.0, 2.0).trust(2.1) == 0


def test_features_that_are_not_finite_are_far_and_few_images_are_refused():
    spread = domain.fit_spread(np.random.default_rng(0).normal(size=(20, 3)))
    assert spread.distance(np.array([0.0, np.nan, 0.0])) == np.inf
    with pytest.raises(ValueError, match="at least ten"):
        domain.fit_spread(np.zeros((9, 3)))


def test_a_manifest_keeps_a_domain_and_one_of_other_features_is_not_used():
    rows = np.random.default_rng(0).normal(size=(30, 4))
    known = domain.Domain("blobs", {"canal": domain.fit_spread(rows)}, 1.0, 2.0)
    facts = {"task": "t", "files": {}, "pixels": {}, "test_views": 1, "prior": {}, "domain": known.plain()}
    read = parse_manifest(json.loads(json.dumps(facts)), Path("manifest.json"))
    again = domain.domain_from_manifest(read.domain)
    assert again is not None
    far = rows[0] + 3
    assert again.spreads["canal"].distance(far) == pytest.approx(known.spreads["canal"].distance(far), rel=0.01)
    assert read.plain()["domain"] == known.plain()
    assert domain.domain_from_manifest({**known.plain(), "stage": 7}) is None
    assert domain.domain_from_manifest({}) is None


def test_what_is_not_believed_is_the_prior():
    graded = {"a": np.array([0.0, 1.0, 0.7])}  # two classes, and one output of an auxiliary head
    mixed = domain.mixed_with_prior(graded, {"a": (0.6, 0.4)}, 0.25)
    assert np.allclose(mixed["a"], [0.45, 0.55, 0.7])


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_rows_of_unknown_images_are_priors_and_flagged_and_the_log_says_so_once(
    small_studies, tmp_path, caplog, inside
):
    data, shared = small_studies
    weights = Path(shutil.copytree(shared, tmp_path / "weights"))
    loaded = bundle.load(weights, TASKS, torch.device("cpu"))
    own = run.nets_of(loaded, "locate", Effort(1, 1))["canal"]
    study = loaded.task.read(data, "test")[0]
    (grid,) = region_grids(LOCATOR, load_study(study, loaded.task).volumes, {}, own.pixels)
    mean = domain.features(grid, own) + (0 if inside else 100)
    known = domain.Domain("blobs", {"canal": domain.Spread(mean, np.eye(len(mean)))}, 50.0, 60.0)
    write_manifest(weights, replace(read_manifest(weights), domain=known.plain()))
    out = tmp_path / "submission.csv"
    with caplog.at_level(logging.WARNING):
        assert infer("lumbar-mr", data, weights, out, device="cpu") == 0
    with (tmp_path / "submission.flags.csv").open(newline="") as file:
        flagged = {row["row_id"] for row in csv.DictReader(file) if row["reason"] == domain.OUT_OF_DOMAIN}
    told = [record for record in caplog.records if "do not look like them" in record.getMessage()]
    assert len(told) == (0 if inside else 1)
    with out.open(newline="") as file:
        rows = {row["row_id"]: row for row in csv.DictReader(file)}
    assert bool(flagged) is not inside
    for row in flagged:
        target = row.partition("_")[2]
        prior = loaded.prior[target]
        assert [float(rows[row][name]) for name in loaded.task.classes] == pytest.approx(list(prior), abs=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 9])
def test_only_the_middle_slices_are_cut_and_their_features_are_those_of_the_whole_pyramid(depth):
    net = nets()
    to_mm = affine(np.zeros(3), np.array(SAGITTAL), np.array([4.0, 2.0, 2.0]))
    voxels = np.random.default_rng(depth).integers(0, 255, (depth, 128, 128)).astype(np.uint8)
    (region,) = region_grids(LOCATOR, {"sag_t2": (Volume(voxels, to_mm),)}, {}, 64)
    images, _ = region_images(region, net.device)
    first = max((depth - domain.SLICES) // 2, 0)
    middle = images[first : first + domain.SLICES].clone()
    middle[:, -1] = 0
    with torch.inference_mode():
        maps = net.nets[0].encoder(middle)[domain.STAGE]
    expected = torch.cat([maps.mean((0, 2, 3)), maps.std((0, 2, 3))]).numpy()
    np.testing.assert_allclose(domain.features(region, net), expected, atol=1e-5)

"""What weights know of images: known ones are believed, others are not, and the flags say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from osteograde.imaging.geometry import Volume, affine
from osteograde.models.manifest import parse_manifest
from osteograde.pipeline import domain
from osteograde.tasks.spine import SAGITTAL


def stack(seed: int, *, noise: float, height: int = 96) -> Volume:
    """Blobs with noise, which is what tells two kinds of images apart here."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :96]
    image = sum(np.exp(-((rows - a) ** 2 + (columns - b) ** 2) / 200) for a, b in rng.uniform(0, 96, (6, 2)))
    voxels = np.stack([image / np.max(image) * 180 + rng.normal(0, noise, image.shape) for _ in range(7)])
    return Volume(np.clip(voxels, 0, 255).astype(np.uint8), affine(np.zeros(3), np.array(SAGITTAL), np.full(3, 1.2)))


def fitted() -> domain.Domain:
    return domain.fit_domain("blobs", ({"view": (stack(seed, noise=4),)} for seed in range(40)), 3.0, 5.0)


def test_images_of_the_kind_that_was_learnt_are_believed_and_others_are_not():
    known = fitted()
    same = [known.trust(known.distance({"view": (stack(seed, noise=4),)})) for seed in range(100, 110)]
    other = [known.trust(known.distance({"view": (stack(seed, noise=40),)})) for seed in range(100, 110)]
    assert same == [1.0] * 10
    assert other == [0.0] * 10


def test_one_strange_stack_is_enough_and_views_that_are_not_described_do_not_count():
    known = fitted()
    usual, strange = stack(100, noise=4), stack(101, noise=40)
    assert known.trust(known.distance({"view": (usual, strange)})) == 0
    assert known.trust(known.distance({"view": (usual,), "other": (strange,)})) == 1
    assert known.distance({}) == 0


def test_an_image_without_any_contrast_is_outside():
    known = fitted()
    even = Volume(np.zeros((5, 64, 64), np.uint8), affine(np.zeros(3), np.array(SAGITTAL), np.ones(3)))
    assert known.trust(known.distance({"view": (even,)})) == 0


def test_trust_falls_from_one_to_zero_between_the_two_distances():
    known = domain.Domain("x", {}, 2.0, 4.0)
    assert [known.trust(d) for d in (0, 2, 3, 4, np.inf)] == [1, 1, 0.5, 0, 0]
    assert domain.Domain("x", {}, 2.0, 2.0).trust(2.1) == 0


def test_a_manifest_keeps_a_domain_and_one_of_other_statistics_is_not_used():
    known = fitted()
    facts = {"task": "t", "files": {}, "pixels": {}, "test_views": 1, "prior": {}, "domain": known.plain()}
    read = parse_manifest(json.loads(json.dumps(facts)), "manifest.json")
    again = domain.domain_from_manifest(read.domain)
    assert again is not None
    volumes = {"view": (stack(100, noise=6),)}
    assert again.distance(volumes) == pytest.approx(known.distance(volumes), rel=0.02)
    assert read.plain()["domain"] == known.plain()
    assert domain.domain_from_manifest({**known.plain(), "statistics": ["another"]}) is None
    assert domain.domain_from_manifest({}) is None


def test_what_is_not_believed_is_the_prior():
    graded = {"a": np.array([0.0, 1.0, 0.7])}  # two classes, and one output of an auxiliary head
    mixed = domain.mixed_with_prior(graded, {"a": (0.6, 0.4)}, 0.25)
    assert np.allclose(mixed["a"], [0.45, 0.55, 0.7])

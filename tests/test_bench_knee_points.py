"""The common part of two errors is told from the part that is one's own."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import knee_points


def test_the_scatter_of_crop_centres_and_the_locators_own_are_told_apart():
    rng = np.random.default_rng(0)
    centres, film, crop = (rng.normal(0, sd, (20_000, 2)) for sd in ((1.5, 3.0), (1.0, 1.0), (0.7, 0.7)))
    found = knee_points.summary(centres + film, centres + crop)
    assert found["crop_centres_sd_mm_x_z"] == pytest.approx([1.5, 3.0], rel=0.03)
    assert found["locator_alone_median_mm"] == pytest.approx(1.177, rel=0.03)  # of a Rayleigh distribution of scale 1

"""Checks of maps: the band around a point in mm, whichever way a box lies, and nets that have learnt nothing."""

import numpy as np
import pytest
import torch

from osteograde.imaging.geometry import Roi, apply, mirrored
from osteograde.models.explain import fold_maps
from osteograde.models.grader import GraderNet
from osteograde.report.map_checks import band, rank_correlation, share_inside, with_random_weights

BOX = Roi(np.array([[0.0, 0, 2, -40], [1, 0, 0, 5], [0, -2, 0, 60], [0, 0, 0, 1]]), (1, 61, 41))  # rows run down


def test_the_band_is_counted_in_mm_from_the_point():
    point = apply(BOX.to_mm, np.array([0.0, 30, 20]))
    rows = np.flatnonzero(band(BOX, point, 10.0)[0].all(1))
    assert rows.tolist() == list(range(25, 36))  # 2 mm a row
    assert band(BOX, point, 10.0).mean() == pytest.approx(11 / 61)
    moved = point + np.array([7.0, 3.0, -8.0])  # to the side and out of the plane nothing changes, 8 mm down is 4 rows
    assert np.flatnonzero(band(BOX, moved, 10.0)[0].all(1)).tolist() == list(range(29, 40))
    assert np.array_equal(band(mirrored(BOX, 2), point, 10.0), band(BOX, point, 10.0))


def test_a_uniform_map_has_the_share_of_the_area_and_an_empty_one_has_none():
    inside = band(BOX, apply(BOX.to_mm, np.array([0.0, 30, 20])), 10.0)
    assert share_inside(np.ones(BOX.shape), inside) == pytest.approx(inside.mean())
    assert share_inside(inside.astype(float), inside) == 1
    assert np.isnan(share_inside(np.zeros(BOX.shape), inside))


def test_correlation_is_of_ranks():
    a = np.random.default_rng(0).random((2, 5, 5))
    assert rank_correlation(a, np.exp(9 * a)) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert np.isnan(rank_correlation(a, np.zeros_like(a)))


def test_nets_with_random_weights_are_other_nets_of_the_same_kind():
    torch.manual_seed(5)
    net = GraderNet("test_resnet", 1, classes=3).eval()
    state = torch.get_rng_state()
    (other,), (again,) = with_random_weights([net], 0), with_random_weights([net], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.config == net.config and not other.training
    views, yes, target = [torch.rand(1, 1, 64, 64)], torch.ones(1, 1, dtype=torch.bool), torch.tensor([0])
    own, theirs, same = (fold_maps([one], views, yes, target, "saliency")[0] for one in (net, other, again))
    assert torch.equal(theirs, same) and not torch.allclose(own, theirs)

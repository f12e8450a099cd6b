"""Thin slices averaged to thick ones stay where they were."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.imaging.geometry import Volume, affine, apply
from osteograde.imaging.resample import average_thin_slices


def stack(count: int, step: float, dtype=np.uint8) -> Volume:
    rng = np.random.default_rng(count)
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    voxels = rng.integers(0, 200, (count, 4, 5)).astype(dtype)
    names = tuple(str(i) for i in range(count))
    return Volume(voxels, affine(np.array([-20.0, 5, 7]), axes, np.array([step, 0.5, 0.5])), names=names)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.floats(0.4, 1.9))
def test_each_slab_is_the_mean_of_its_slices_and_lies_at_their_mean_place(count, step):
    thin = stack(count, step)
    thick = average_thin_slices(thin)
    each = min(round(4.0 / step), count)
    assert thick.voxels.shape[0] == count // each
    places = [apply(thin.to_mm, np.array([z, 1, 2])) for z in range(count)]
    for s in range(len(thick.voxels)):
        own = range((count % each) // 2 + s * each, (count % each) // 2 + (s + 1) * each)
        assert np.allclose(apply(thick.to_mm, np.array([s, 1, 2])), np.mean([places[z] for z in own], 0))
        assert np.abs(thick.voxels[s] - thin.voxels[list(own)].mean(0)).max() <= 0.5
        assert int(thick.names[s]) in own


def test_ordinary_stacks_are_left_alone():
    thick = stack(15, 4.0)
    assert average_thin_slices(thick) is thick

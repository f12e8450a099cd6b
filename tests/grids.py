"""Random grids in space for tests."""

from __future__ import annotations

import numpy as np

from osteograde.imaging.geometry import Volume, affine


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def random_volume(rng: np.random.Generator, sheared: bool = False) -> Volume:
    shape = rng.integers(2, 8, 3)
    to_mm = affine(rng.normal(size=3) * 50, rotation(rng), rng.uniform([2, 0.3, 0.3], [6, 1.5, 1.5]))
    if sheared:
        to_mm[:3, 0] += to_mm[:3, 1] * rng.uniform(-1, 1)
    names = tuple(f"n{k}" for k in range(shape[0]))
    return Volume(rng.normal(size=shape), to_mm, "frame", "series", names)

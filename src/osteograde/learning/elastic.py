"""Smooth random fields on images: free-form deformation by cubic B-splines (Rueckert et al., IEEE TMI 18:712, 1999).

The weights of a B-spline are not negative and sum to 1, so no value of a field is larger than the largest of its
control points.

Shapes: B samples, R rows and C columns of control points, L positions, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

BEYOND = 4  # control points more than there are steps over the image, so that every pixel has its four on each axis
ROUNDS = 40  # of the search for where a position came from; each round at least halves what is left of most fields


@dataclass(frozen=True, eq=False)
class Bend:
    """A displacement field per sample. control (B, 2, R, C): (row, column) of the displacements of the control points,
    in pixels; spacing: pixels from one control point to the next. The lattice is centred on the image."""

    control: np.ndarray
    spacing: float

    def at(self, sample: int, positions: np.ndarray) -> np.ndarray:
        """The displacement (L, 2) of a sample at positions (L, 2), (row, column) in pixels from the image's centre; nan
        where a position is not finite."""
        known = np.isfinite(positions).all(-1)
        moved = np.full(positions.shape, np.nan)
        rows, columns = (
            spline_weights(positions[known, axis] / self.spacing, self.control.shape[2 + axis]) for axis in (0, 1)
        )
        moved[known] = np.einsum("lr,krc,lc->lk", rows, self.control[sample], columns)
        return moved

    def before(self, sample: int, positions: np.ndarray) -> np.ndarray:
        """The positions (L, 2) that a sample's field moves to ``positions`` (L, 2)."""
        found = positions
        for _ in range(ROUNDS):
            found = positions - self.at(sample, found)
        return found

    def field(self, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """(B, 2, H, W): the displacement of every pixel of an image of this size."""
        return smooth_field(self.control, size, self.spacing, device)


def draw_bend(rng: np.random.Generator, count: int, size: tuple[int, int], largest: float, spacing: float) -> Bend:
    """A random field for each of ``count`` images of a size, in pixels: no displacement is longer than ``largest``, and
    each sample has a share of it of its own."""
    shape = (count, *lattice(size, spacing))
    share = rng.random((count, 1, 1)) * np.sqrt(rng.random(shape))
    angle = rng.uniform(0, 2 * np.pi, shape)
    return Bend(largest * share[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1), spacing)


def lattice(size: tuple[int, int], spacing: float) -> tuple[int, int]:
    """Rows and columns of the control points that an image of this size needs."""
    return int(np.ceil(size[0] / spacing)) + BEYOND, int(np.ceil(size[1] / spacing)) + BEYOND


def smooth_field(control_BKRC: np.ndarray, size: tuple[int, int], spacing: float, device: torch.device) -> torch.Tensor:
    """(B, K, H, W) from control points (B, K, R, C) ``spacing`` pixels apart, centred on the image."""
    rows, columns = (
        torch.from_numpy(spline_weights((np.arange(n) - (n - 1) / 2) / spacing, points).astype(np.float32)).to(device)
        for n, points in zip(size, control_BKRC.shape[2:], strict=True)
    )
    control = torch.from_numpy(control_BKRC.astype(np.float32)).to(device)
    return torch.einsum("hr,bkrc,wc->bkhw", rows, control, columns)


def spline_weights(positions: np.ndarray, points: int) -> np.ndarray:
    """(L, points) the weight of each control point at positions (L,), in steps from the middle of a row of control
    points; beyond their ends the field goes on as at the ends."""
    place = np.clip(positions + (points - 1) / 2, 1, points - 2 - 1e-6)
    first = np.floor(place).astype(int) - 1
    t = place - np.floor(place)
    four = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], -1) / 6
    weights = np.zeros((len(place), points))
    np.put_along_axis(weights, first[:, None] + np.arange(4), four, 1)
    return weights

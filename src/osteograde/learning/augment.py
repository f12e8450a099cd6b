"""Augmentation of training samples: a random move is drawn first and then applied in a single resampling.

Shapes: B samples, C slices, H' W' stored pixels (with a margin), H W pixels the net reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, grid_sample

from osteograde.learning.recipe import Augmentation


@dataclass(frozen=True, eq=False)
class Move:
    """An affine map per sample, from output pixels to stored pixels, both (row, column) measured from the centre of
    their image: stored = matrix @ output + shift, with matrix (B, 2, 2) and shift (B, 2)."""

    matrix: np.ndarray
    shift: np.ndarray


def still(count: int) -> Move:
    """The identity for ``count`` samples."""
    return Move(np.tile(np.eye(2), (count, 1, 1)), np.zeros((count, 2)))


def draw_move(rng: np.random.Generator, count: int, augmentation: Augmentation, pixel_mm: float) -> Move:
    """A random rotation, scaling and shift for each of ``count`` samples of ``pixel_mm`` a pixel."""
    angle = np.deg2rad(rng.uniform(-augmentation.rotation_deg, augmentation.rotation_deg, count))
    scale = np.exp(rng.uniform(-augmentation.scale, augmentation.scale, count))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    shift = rng.uniform(-augmentation.shift_mm, augmentation.shift_mm, (count, 2)) / pixel_mm
    return Move(turn * scale[:, None, None], shift)


def move_points(move: Move, points_index: np.ndarray, stored: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Move positions (B, L, 2), (row, column) in stored pixels, to output pixels. It is the inverse of the map by which
    ``resample`` reads."""
    centred = points_index - (np.array(stored) - 1) / 2 - move.shift[:, None]
    return np.einsum("bij,blj->bli", np.linalg.inv(move.matrix), centred) + (np.array(size) - 1) / 2


def resample(stored_BCHW: torch.Tensor, move: Move, size: tuple[int, int]) -> torch.Tensor:
    """Resample stored uint8 crops (B, C, H', W') to (B, C, H, W) floats in 0..1: bilinear, zero outside."""
    grid = sampling_grid(move, (stored_BCHW.shape[2], stored_BCHW.shape[3]), size, stored_BCHW.device)
    return grid_sample(stored_BCHW.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sampling_grid(move: Move, stored: tuple[int, int], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(B, H, W, 2): the position in the stored image of each output pixel, in the units of ``grid_sample`` with
    align_corners=False."""
    matrix = torch.from_numpy(move.matrix.astype(np.float32)).to(device)
    shift = torch.from_numpy(move.shift.astype(np.float32)).to(device)
    rows = torch.arange(size[0], device=device, dtype=torch.float32) - (size[0] - 1) / 2
    columns = torch.arange(size[1], device=device, dtype=torch.float32) - (size[1] - 1) / 2
    out = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    source = torch.einsum("bij,hwj->bhwi", matrix, out) + shift[:, None, None]
    half = torch.tensor([stored[0] / 2, stored[1] / 2], device=device)
    return (source / half).flip(-1)  # centred pixels / (n / 2), x before y


def shade(rng: np.random.Generator, images_BCHW: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Change contrast and gamma, blur and add noise, each sample by numbers of its own. Values stay in 0..1."""
    count, device = images_BCHW.shape[0], images_BCHW.device

    def column(values: np.ndarray) -> torch.Tensor:
        """(B,) numbers as (B, 1, 1, 1)."""
        return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None, None]

    gamma = column(np.exp(rng.uniform(-augmentation.gamma, augmentation.gamma, count)))
    gain = column(1 + rng.uniform(-augmentation.contrast, augmentation.contrast, count))
    lift = column(rng.uniform(-augmentation.contrast, augmentation.contrast, count) * 0.3)
    images = images_BCHW.clamp(1e-4, 1).pow(gamma) * gain + lift
    blurred = column((rng.random(count) < augmentation.blur).astype(np.float64)) > 0
    images = torch.where(blurred, avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + noise * column(rng.uniform(0, augmentation.noise, count))).clamp(0, 1)

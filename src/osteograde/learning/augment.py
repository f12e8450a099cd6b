"""Augmentation of training samples: a random move is drawn first and then applied in a single resampling.

Shapes: B samples, C slices, H' W' stored pixels (with a margin), H W pixels the net reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, grid_sample

from osteograde.learning.elastic import Bend, draw_bend, lattice, smooth_field
from osteograde.learning.mixing import random_box
from osteograde.learning.recipe import Augmentation

BIAS_PERIODS = 2  # control points of a bias field lie half an image apart


@dataclass(frozen=True, eq=False)
class Move:
    """A map per sample, from output pixels to stored pixels, both (row, column) measured from the image's centre:
    stored = s + bend(s) with s = matrix @ output + shift, matrix (B, 2, 2), shift (B, 2) and bend None for none."""

    matrix: np.ndarray
    shift: np.ndarray
    bend: Bend | None = None


def still(count: int) -> Move:
    """The identity for ``count`` samples."""
    return Move(np.tile(np.eye(2), (count, 1, 1)), np.zeros((count, 2)))


def draw_move(
    rng: np.random.Generator, count: int, augmentation: Augmentation, pixel_mm: float, stored: tuple[int, int]
) -> Move:
    """A random rotation, scaling, shift and elastic deformation for each of ``count`` samples of ``stored`` pixels of
    ``pixel_mm``."""
    angle = np.deg2rad(rng.uniform(-augmentation.rotation_deg, augmentation.rotation_deg, count))
    scale = np.exp(rng.uniform(-augmentation.scale, augmentation.scale, count))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    shift = rng.uniform(-augmentation.shift_mm, augmentation.shift_mm, (count, 2)) / pixel_mm
    bend = None
    if augmentation.elastic_mm:
        largest, spacing = augmentation.elastic_mm / pixel_mm, augmentation.elastic_spacing_mm / pixel_mm
        bend = draw_bend(rng, count, stored, largest, spacing)
    return Move(turn * scale[:, None, None], shift, bend)


def move_points(move: Move, points_index: np.ndarray, stored: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Move positions (B, L, 2), (row, column) in stored pixels, to output pixels. It is the inverse of the map by which
    ``resample`` reads."""
    centred = points_index - (np.array(stored) - 1) / 2
    if move.bend is not None:
        centred = np.stack([move.bend.before(b, positions) for b, positions in enumerate(centred)])
    centred = centred - move.shift[:, None]
    return np.einsum("bij,blj->bli", np.linalg.inv(move.matrix), centred) + (np.array(size) - 1) / 2


def read_at(move: Move, sample: int, positions: np.ndarray) -> np.ndarray:
    """Where in its stored image a sample is read for output positions (L, 2), both in pixels from the centre."""
    straight = positions @ move.matrix[sample].T + move.shift[sample]
    return straight if move.bend is None else straight + move.bend.at(sample, straight)


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
    if move.bend is not None:
        field, straight = move.bend.field(stored, device), (source / half).flip(-1)
        bent = grid_sample(field, straight, mode="bilinear", padding_mode="border", align_corners=False)
        source = source + bent.permute(0, 2, 3, 1)
    return (source / half).flip(-1)  # centred pixels / (n / 2), x before y


def shade(rng: np.random.Generator, images_BCHW: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Change contrast and gamma, blur and add noise, each sample by numbers of its own; brighten unevenly, add
    the noise of MR magnitude images and hide a box where the augmentation says so. Values stay in 0..1."""
    count, device = images_BCHW.shape[0], images_BCHW.device

    def column(values: np.ndarray) -> torch.Tensor:
        """(B,) numbers as (B, 1, 1, 1)."""
        return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None, None]

    gamma = column(np.exp(rng.uniform(-augmentation.gamma, augmentation.gamma, count)))
    gain = column(1 + rng.uniform(-augmentation.contrast, augmentation.contrast, count))
    lift = column(rng.uniform(-augmentation.contrast, augmentation.contrast, count) * 0.3)
    uneven = _bias_field(rng, images_BCHW, augmentation.bias_field) if augmentation.bias_field else images_BCHW
    images = uneven.clamp(1e-4, 1).pow(gamma) * gain + lift
    blurred = column((rng.random(count) < augmentation.blur).astype(np.float64)) > 0
    images = torch.where(blurred, avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    if augmentation.rician:
        images = _rician(images.clamp_min(0), column(rng.uniform(0, augmentation.rician, count)), generator)
    noise = torch.randn(images.shape, generator=generator, device=device)
    images = (images + noise * column(rng.uniform(0, augmentation.noise, count))).clamp(0, 1)
    return cut_out(rng, images, augmentation.cutout) if augmentation.cutout else images


def cut_out(rng: np.random.Generator, images_BCHW: torch.Tensor, largest: float) -> torch.Tensor:
    """Hide a box at a random place of each sample under its mean grey value, the same box in all of its slices (cutout,
    DeVries and Taylor 2017). Its share of the image is drawn between 0 and ``largest``."""
    height, width = images_BCHW.shape[2:]
    hidden = np.zeros((len(images_BCHW), 1, height, width), bool)
    for sample in hidden:
        sample[(0, *random_box(rng, (height, width), rng.uniform(0, largest)))] = True
    mean = images_BCHW.mean((1, 2, 3), keepdim=True)
    return torch.where(torch.from_numpy(hidden).to(images_BCHW.device), mean, images_BCHW)


def _bias_field(rng: np.random.Generator, images_BCHW: torch.Tensor, largest: float) -> torch.Tensor:
    """The images times a smooth factor within exp(-largest) and exp(largest), the same for all slices of a sample."""
    size = (images_BCHW.shape[2], images_BCHW.shape[3])
    spacing = max(size) / BIAS_PERIODS
    control = rng.uniform(-largest, largest, (len(images_BCHW), 1, *lattice(size, spacing)))
    return images_BCHW * smooth_field(control, size, spacing, images_BCHW.device).exp()


def _rician(images: torch.Tensor, deviation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The magnitude of images with Gaussian noise in both of their channels (Gudbjartsson and Patz, MRM, 1995)."""
    real, imaginary = (
        torch.randn(images.shape, generator=generator, device=images.device) * deviation for _ in range(2)
    )
    return ((images + real) ** 2 + imaginary**2).sqrt()

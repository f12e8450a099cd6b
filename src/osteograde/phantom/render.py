"""Render a plane through a spine as a scanner would: tissue, sensitivity of the coil, blur, noise, 12 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from osteograde.phantom.acquisition import Acquisition
from osteograde.phantom.spine import Spine
from osteograde.phantom.tissue import CONTRASTS, SIGNAL, column, contrast, trunk

COARSE = 4  # the trunk is painted at every 4th pixel and enlarged: it has no fine detail
NEAR = (40.0, -26.0, 62.0)  # mm: the spine lies where |x| is below the first, and a is between the other two
FULL_SCALE = 4095  # 12 bits stored
PARTS = (("annulus", "nucleus"), ("marrow", "cortex"), ("csf", "cord", "root"))  # disc, vertebra, canal


@dataclass(frozen=True, eq=False)
class Look:
    """The appearance of one series: signals, coil, blur, noise and gain. It does not depend on grades."""

    signal: Mapping[str, float]
    coil_mm: float  # the coil lies at the back: signal falls over this distance
    tilt: tuple[float, float]  # slow shading across the image
    blur_mm: float
    noise: float
    gain: float
    texture_mm: float


def draw_look(kind: str, rng: np.random.Generator) -> Look:
    """Draw the appearance of a series of a contrast ("t1", "t2" or "stir"). ValueError for another contrast."""
    if kind not in CONTRASTS:
        raise ValueError(f"contrast {kind!r}; known: {CONTRASTS}")
    return Look(
        signal=contrast(kind, rng),
        coil_mm=float(rng.uniform(110, 450)),
        tilt=(float(rng.normal(0, 0.12)), float(rng.normal(0, 0.12))),
        blur_mm=float(rng.uniform(0.25, 0.75)),
        noise=float(rng.uniform(0.008, 0.035)),
        gain=float(rng.uniform(500, 2200)),
        texture_mm=float(rng.uniform(4, 9)),
    )


def slice_pixels(
    spine: Spine, acquisition: Acquisition, to_mm: np.ndarray, look: Look, rng: np.random.Generator
) -> np.ndarray:
    """Render one slice: (rows, columns) uint16. to_mm: (4, 4) from index (0, row, column, 1) to LPS mm."""
    rows, columns = acquisition.shape
    row, col = np.arange(0, rows, COARSE), np.arange(0, columns, COARSE)
    x, a, s, y = _curved(spine, to_mm, row, col)
    pixel_mm = float(np.linalg.norm(to_mm[:3, 2]))
    texture = _texture(x.shape, look.texture_mm / (pixel_mm * COARSE), rng)
    back = trunk(spine, x, a, s, look.signal, texture)
    coil = np.exp((y - y.max()) / look.coil_mm) * (1.6 if look.coil_mm < 150 else 1.2)
    u, v = np.linspace(-1, 1, len(row))[:, None], np.linspace(-1, 1, len(col))[None]
    coil = (coil * (1 + look.tilt[0] * u + look.tilt[1] * v)).astype(np.float32)
    image = _enlarged(back, acquisition.shape)
    near = (np.abs(x) < NEAR[0]) & (a > NEAR[1]) & (a < NEAR[2])
    if near.any():
        # The curved coordinates are smooth, so they are enlarged too; only shapes are painted at full resolution.
        fine = [_enlarged(field, acquisition.shape) for field in (x, a, s, texture)]
        part = _part(near, acquisition.shape)
        x, a, s, texture = (field[part] for field in fine)
        image[part] = column(spine, x, a, s, look.signal, texture, image[part].copy())
    image *= _enlarged(coil, acquisition.shape)
    image = cv2.GaussianBlur(image, (0, 0), max(look.blur_mm / pixel_mm, 0.3))
    shape = (2, rows, columns)
    noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(look.noise)
    magnitude = np.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)  # Rician, as magnitude images are
    return np.clip(magnitude * look.gain, 0, FULL_SCALE).astype(np.uint16)


def slice_labels(spine: Spine, to_mm: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The label image of one slice: (rows, columns) uint8, 0 the background, from 1 on the PARTS whose tissues
    prevail."""
    x, a, s, _ = _curved(spine, to_mm, np.arange(shape[0]), np.arange(shape[1]))
    labels, no_texture = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    for number, tissues in enumerate(PARTS, start=1):
        signal = {name: float(name in tissues) for name in SIGNAL}
        labels[column(spine, x, a, s, signal, no_texture, np.zeros(shape, np.float32)) > 0.5] = number
    return labels


def _part(near: np.ndarray, shape: tuple[int, int]) -> tuple[slice, slice]:
    """The rectangle of full-resolution pixels that holds the spine."""
    spans = []
    for axis, size in ((1, shape[0]), (0, shape[1])):
        lines = np.flatnonzero(near.any(axis)) * COARSE
        spans.append(slice(int(lines[0]), min(int(lines[-1]) + COARSE, size)))
    return spans[0], spans[1]


def _curved(spine: Spine, to_mm: np.ndarray, rows: np.ndarray, columns: np.ndarray):
    """(x, a, s, y) float32 of the plane's pixels: curved coordinates, and patient y for the coil."""
    m = to_mm.astype(np.float32)
    r, c = rows.astype(np.float32)[:, None], columns.astype(np.float32)[None]
    x, y, z = (m[i, 1] * r + m[i, 2] * c + m[i, 3] for i in range(3))
    a, s = spine.to_curved(y, z)
    return x - spine.midline[spine.index(s)].astype(np.float32), a, s, y


def _texture(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of standard deviation 0.5. sigma: of the smoothing, in pixels."""
    field = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), max(sigma, 0.5))
    return field / (2 * field.std() + 1e-6)


def _enlarged(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate a field that was sampled at every COARSE-th pixel to all pixels; the samples keep their positions."""
    warp = np.array([[1 / COARSE, 0, 0], [0, 1 / COARSE, 0]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(field, warp, shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)

"""Synthetic knees: AP crops whose Kellgren-Lawrence grade shows as joint space, osteophytes and sclerosis alone.

A right knee as a radiograph shows it: the medial side is on the right of the image. Positions are mm from the centre of
the joint, x to the right of the image and y down. Anatomy, exposure and grain are drawn independently of the grade.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FIELD_MM = 140.0
SPACE_MM = (5.2, 4.6, 3.7, 2.2, 0.5)  # joint space of the narrower compartment by grade (Buckland-Wright 1995: about 5)
OTHER_MM = (5.4, 5.2, 5.0, 4.4, 3.6)  # and of the other one
SPUR_MM = (0.0, 1.3, 3.2, 5.2, 7.5)  # osteophytes at the margins
SCLEROSIS = (0.0, 0.0, 0.03, 0.08, 0.15)  # brightness added under the worn plateau
_SHIFT = 4  # bits of sub-pixel precision in polygons


@dataclass(frozen=True)
class Anatomy:
    """width_mm: of the condyles. space_mm: (lateral, medial) joint space. spur_mm, sclerosis: see above."""

    width_mm: float
    space_mm: tuple[float, float]
    spur_mm: float
    sclerosis: float
    medial_worn: bool


def anatomy(grade: int, rng: np.random.Generator) -> Anatomy:
    """A knee of a grade 0 to 4. ValueError for another grade."""
    if not 0 <= grade < len(SPACE_MM):
        raise ValueError(f"grade {grade}; expected 0 to {len(SPACE_MM) - 1}")
    worn = max(0.2, SPACE_MM[grade] + rng.normal(0, 0.35))
    other = max(worn, OTHER_MM[grade] + rng.normal(0, 0.35))
    medial = bool(rng.random() < 0.8)
    space = (other, worn) if medial else (worn, other)
    spur = max(0.0, SPUR_MM[grade] * rng.uniform(0.8, 1.25))
    return Anatomy(rng.uniform(92, 112), space, spur, SCLEROSIS[grade] * rng.uniform(0.7, 1.3), medial)


def knee(grade: int, rng: np.random.Generator, pixels: int = 299) -> np.ndarray:
    """(pixels, pixels) uint8 of a right knee, 140 mm wide, its joint at the centre."""
    own = anatomy(grade, rng)
    femur, tibia = _filled(_femur(own), pixels), _filled(_tibia(own), pixels)
    bones = [
        femur,
        tibia,
        0.8 * _filled(_fibula(own), pixels),
        0.35 * _ellipse((rng.uniform(-4, 4), -34), (26, 28), pixels),
    ]
    flesh = _filled(_flesh(own, rng), pixels)
    image: np.ndarray = 0.30 * cv2.GaussianBlur(flesh, (0, 0), pixels * rng.uniform(0.01, 0.03))
    for bone in bones:
        image += 0.27 * bone + 0.22 * _cortex(bone, pixels)
    image += _texture(pixels, rng) * np.clip(femur + tibia, 0, 1)
    if own.sclerosis > 0:
        image += own.sclerosis * _band(own, pixels) * np.clip(femur + tibia, 0, 1)
    image = cv2.GaussianBlur(image, (0, 0), pixels / 299 * rng.uniform(0.6, 1.1))
    slope = rng.uniform(-0.2, 0.2, 2)
    rows, columns = np.linspace(-0.5, 0.5, pixels)[:, None], np.linspace(-0.5, 0.5, pixels)[None]
    image = np.clip(image * (1 + slope[0] * rows + slope[1] * columns), 0, 1.5) ** rng.uniform(0.75, 1.35)
    image = image / image.mean() * rng.uniform(0.3, 0.55) + rng.normal(0, 0.012, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _femur(own: Anatomy) -> np.ndarray:
    """Outline (N, 2) mm: shaft, flare, two condyles and the notch between them."""
    half = own.width_mm / 2
    lateral, medial = (space / 2 for space in own.space_mm)
    spur = own.spur_mm
    return np.array([
        (-30, -85), (-32, -60), (-half * 0.82, -30), (-half, -16), (-half - spur * 0.6, -lateral - 3.5),
        (-half - spur, -lateral - 1.5), (-half * 0.93, -lateral - 2.2), (-half * 0.72, -lateral - 0.3),
        (-half * 0.45, -lateral), (-half * 0.25, -lateral - 3), (-9, -15), (0, -20), (9, -15),
        (half * 0.25, -medial - 3), (half * 0.45, -medial), (half * 0.72, -medial - 0.3), (half * 0.93, -medial - 2.2),
        (half + spur, -medial - 1.5), (half + spur * 0.6, -medial - 3.5), (half, -18), (half * 0.86, -32), (32, -60),
        (30, -85),
    ])  # fmt: skip


def _tibia(own: Anatomy) -> np.ndarray:
    half = own.width_mm / 2 * 0.97
    lateral, medial = (space / 2 for space in own.space_mm)
    spur = own.spur_mm
    return np.array([
        (-half - spur, lateral + 0.6), (-half * 0.9, lateral + 0.3), (-half * 0.5, lateral),
        (-half * 0.25, lateral - 0.6),
        (-6, -5.5), (-3, -1), (0, -0.5), (3, -1.5), (6, -6.5), (half * 0.25, medial - 0.6), (half * 0.5, medial),
        (half * 0.9, medial + 0.3), (half + spur, medial + 0.6), (half + spur * 0.5, medial + 3.5), (half * 0.97, 14),
        (half * 0.72, 30), (32, 55), (28, 85), (-26, 85), (-30, 55), (-half * 0.7, 30), (-half * 0.97, 14),
        (-half - spur * 0.5, lateral + 3.5),
    ])  # fmt: skip


def _fibula(own: Anatomy) -> np.ndarray:
    x = -own.width_mm / 2 * 0.9
    return np.array([(x - 4, 17), (x + 5, 15), (x + 9, 24), (x + 7, 80), (x - 3, 80), (x - 6, 26)])


def _flesh(own: Anatomy, rng: np.random.Generator) -> np.ndarray:
    half = own.width_mm / 2
    top, middle, bottom = half + rng.uniform(18, 40), half + rng.uniform(6, 18), half + rng.uniform(4, 24)
    return np.array([(-top, -80), (-middle, 0), (-bottom, 80), (bottom, 80), (middle, 0), (top, -80)])


def _filled(outline_mm: np.ndarray, pixels: int) -> np.ndarray:
    """(pixels, pixels) float32, 1 inside of the outline."""
    points = (_rounded(outline_mm) / FIELD_MM * pixels + (pixels - 1) / 2) * (1 << _SHIFT)
    mask = np.zeros((pixels, pixels), np.uint8)
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 255, cv2.LINE_AA, _SHIFT)
    return mask.astype(np.float32) / 255


def _rounded(outline: np.ndarray, times: int = 2) -> np.ndarray:
    """A closed outline (N, 2) with its corners cut (Chaikin 1974)."""
    for _ in range(times):
        after = np.roll(outline, -1, axis=0)
        outline = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], 1).reshape(-1, 2)
    return outline


def _ellipse(centre_mm: tuple[float, float], half_mm: tuple[float, float], pixels: int) -> np.ndarray:
    around = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return _filled(np.column_stack([np.cos(around), np.sin(around)]) * half_mm + centre_mm, pixels)


def _cortex(bone: np.ndarray, pixels: int) -> np.ndarray:
    """The bright rim of a bone, where the beam runs along its wall."""
    return np.clip(bone - cv2.GaussianBlur(bone, (0, 0), pixels * 0.008), 0, 1)


def _texture(pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Trabeculae: noise drawn out along the limb."""
    return 0.05 * cv2.GaussianBlur(rng.normal(0, 1, (pixels, pixels)).astype(np.float32), (0, 0), 0.8, sigmaY=3.0) * 3


def _band(own: Anatomy, pixels: int) -> np.ndarray:
    """The bone beside the worn joint space."""
    x = own.width_mm / 4 * (1 if own.medial_worn else -1)
    return cv2.GaussianBlur(_ellipse((x, 0), (own.width_mm * 0.2, 7), pixels), (0, 0), pixels * 0.008)

"""Synthetic knees: AP crops in which only joint space, osteophytes and sclerosis depend on the grade.

The grade is that of Kellgren and Lawrence. The image is a radiograph of a right knee: its medial side is on the right.
Positions are mm from the centre of the joint, x to the right of the image and y down. Anatomy, exposure and grain are
drawn independently of the grade.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FIELD_MM = 140.0
SPACE_MM = (5.2, 4.6, 3.7, 2.2, 0.5)  # joint space of the narrower compartment by grade (Buckland-Wright 1995: about 5)
OTHER_MM = (5.4, 5.2, 5.0, 4.4, 3.6)  # joint space of the other compartment by grade
SPUR_MM = (0.0, 1.3, 3.2, 5.2, 7.5)  # length of the osteophytes at the margins by grade
SCLEROSIS = (0.0, 0.0, 0.03, 0.08, 0.15)  # brightness added beside the narrower compartment by grade
_SHIFT = 4  # bits of sub-pixel precision in polygons


@dataclass(frozen=True)
class Anatomy:
    """The parts of a knee that are drawn at random. width_mm: of the condyles. space_mm: (lateral, medial) joint space.
    spur_mm: length of the osteophytes. sclerosis: added brightness. medial_worn: the medial compartment is the narrower
    one."""

    width_mm: float
    space_mm: tuple[float, float]
    spur_mm: float
    sclerosis: float
    medial_worn: bool


def anatomy(grade: int, rng: np.random.Generator) -> Anatomy:
    """Draw the anatomy of a knee of grade 0 to 4. ValueError for another grade."""
    if not 0 <= grade < len(SPACE_MM):
        raise ValueError(f"grade {grade}; expected 0 to {len(SPACE_MM) - 1}")
    worn = max(0.2, SPACE_MM[grade] + rng.normal(0, 0.35))
    other = max(worn, OTHER_MM[grade] + rng.normal(0, 0.35))
    medial = bool(rng.random() < 0.8)
    space = (other, worn) if medial else (worn, other)
    spur = max(0.0, SPUR_MM[grade] * rng.uniform(0.8, 1.25))
    return Anatomy(rng.uniform(92, 112), space, spur, SCLEROSIS[grade] * rng.uniform(0.7, 1.3), medial)


def knee(grade: int, rng: np.random.Generator, pixels: int = 299) -> np.ndarray:
    """Draw a right knee of a grade: (pixels, pixels) uint8, 140 mm wide, the joint at the centre."""
    return radiograph(anatomy(grade, rng), rng, pixels)


def radiograph(joint: Anatomy, rng: np.random.Generator, pixels: int = 299) -> np.ndarray:
    """Draw a right knee of a given anatomy: (pixels, pixels) uint8, 140 mm wide, the joint at the centre."""
    femur, tibia = _filled(_femur(joint), pixels), _filled(_tibia(joint), pixels)
    bones = [
        femur,
        tibia,
        0.8 * _filled(_fibula(joint), pixels),
        0.35 * _ellipse((rng.uniform(-4, 4), -34), (26, 28), pixels),
    ]
    flesh = _filled(_flesh(joint, rng), pixels)
    image: np.ndarray = 0.30 * cv2.GaussianBlur(flesh, (0, 0), pixels * rng.uniform(0.01, 0.03))
    for bone in bones:
        image += 0.27 * bone + 0.22 * _cortex(bone, pixels)
    image += _texture(pixels, rng) * np.clip(femur + tibia, 0, 1)
    if joint.sclerosis > 0:
        image += joint.sclerosis * _band(joint, pixels) * np.clip(femur + tibia, 0, 1)
    image = cv2.GaussianBlur(image, (0, 0), pixels / 299 * rng.uniform(0.6, 1.1))
    slope = rng.uniform(-0.2, 0.2, 2)
    rows, columns = np.linspace(-0.5, 0.5, pixels)[:, None], np.linspace(-0.5, 0.5, pixels)[None]
    image = np.clip(image * (1 + slope[0] * rows + slope[1] * columns), 0, 1.5) ** rng.uniform(0.75, 1.35)
    image = image / image.mean() * rng.uniform(0.3, 0.55) + rng.normal(0, 0.012, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _femur(joint: Anatomy) -> np.ndarray:
    """Outline (N, 2) mm of the femur: shaft, flare, two condyles and the notch between them."""
    half = joint.width_mm / 2
    lateral, medial = (space / 2 for space in joint.space_mm)
    spur = joint.spur_mm
    return np.array([
        (-30, -85), (-32, -60), (-half * 0.82, -30), (-half, -16), (-half - spur * 0.6, -lateral - 3.5),
        (-half - spur, -lateral - 1.5), (-half * 0.93, -lateral - 2.2), (-half * 0.72, -lateral - 0.3),
        (-half * 0.45, -lateral), (-half * 0.25, -lateral - 3), (-9, -15), (0, -20), (9, -15),
        (half * 0.25, -medial - 3), (half * 0.45, -medial), (half * 0.72, -medial - 0.3), (half * 0.93, -medial - 2.2),
        (half + spur, -medial - 1.5), (half + spur * 0.6, -medial - 3.5), (half, -18), (half * 0.86, -32), (32, -60),
        (30, -85),
    ])  # fmt: skip


def _tibia(joint: Anatomy) -> np.ndarray:
    """Outline (N, 2) mm of the tibia: plateau with its eminence, flare and shaft."""
    half = joint.width_mm / 2 * 0.97
    lateral, medial = (space / 2 for space in joint.space_mm)
    spur = joint.spur_mm
    return np.array([
        (-half - spur, lateral + 0.6), (-half * 0.9, lateral + 0.3), (-half * 0.5, lateral),
        (-half * 0.25, lateral - 0.6),
        (-6, -5.5), (-3, -1), (0, -0.5), (3, -1.5), (6, -6.5), (half * 0.25, medial - 0.6), (half * 0.5, medial),
        (half * 0.9, medial + 0.3), (half + spur, medial + 0.6), (half + spur * 0.5, medial + 3.5), (half * 0.97, 14),
        (half * 0.72, 30), (32, 55), (28, 85), (-26, 85), (-30, 55), (-half * 0.7, 30), (-half * 0.97, 14),
        (-half - spur * 0.5, lateral + 3.5),
    ])  # fmt: skip


def _fibula(joint: Anatomy) -> np.ndarray:
    """Outline (N, 2) mm of the fibula."""
    x = -joint.width_mm / 2 * 0.9
    return np.array([(x - 4, 17), (x + 5, 15), (x + 9, 24), (x + 7, 80), (x - 3, 80), (x - 6, 26)])


def _flesh(joint: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Outline (N, 2) mm of the soft tissue."""
    half = joint.width_mm / 2
    top, middle, bottom = half + rng.uniform(18, 40), half + rng.uniform(6, 18), half + rng.uniform(4, 24)
    return np.array([(-top, -80), (-middle, 0), (-bottom, 80), (bottom, 80), (middle, 0), (top, -80)])


def _filled(outline_mm: np.ndarray, pixels: int) -> np.ndarray:
    """(pixels, pixels) float32: 1 inside of an outline (N, 2) mm, 0 outside, with soft borders."""
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
    """(pixels, pixels) float32: 1 inside of an ellipse, 0 outside."""
    around = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return _filled(np.column_stack([np.cos(around), np.sin(around)]) * half_mm + centre_mm, pixels)


def _cortex(bone: np.ndarray, pixels: int) -> np.ndarray:
    """The bright rim of a bone, where the beam runs along its wall."""
    return np.clip(bone - cv2.GaussianBlur(bone, (0, 0), pixels * 0.008), 0, 1)


def _texture(pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Trabeculae: noise that is smoothed along the limb."""
    return 0.05 * cv2.GaussianBlur(rng.normal(0, 1, (pixels, pixels)).astype(np.float32), (0, 0), 0.8, sigmaY=3.0) * 3


def _band(joint: Anatomy, pixels: int) -> np.ndarray:
    """(pixels, pixels) float32: 1 in the bone beside the narrower joint space, falling to 0 around it."""
    x = joint.width_mm / 4 * (1 if joint.medial_worn else -1)
    return cv2.GaussianBlur(_ellipse((x, 0), (joint.width_mm * 0.2, 7), pixels), (0, 0), pixels * 0.008)

"""Files for the benchmarks of reading: studies of 74 RLE slices as large as the competition's, made in seconds.

Not anatomy: a body, a bright band, vertebrae, a smooth texture and the noise of a magnitude image, so that RLE leaves
about 0.53 of the bytes (files of the competition: 0.48 to 0.62).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from osteograde.imaging.geometry import affine
from osteograde.phantom.acquisition import Acquisition, Plane
from osteograde.phantom.dicom_writer import write_slice

SERIES = (("sag_t1", 18, 512), ("sag_t2", 18, 512), ("axi_t2", 38, 384))  # name, slices, rows and columns
AXES = {"sag": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)), "axi": ((0, 0, -1), (0, 1, 0), (1, 0, 0))}  # slice, row, column


def picture(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) uint16 of 12 bits."""
    y, x = np.mgrid[:size, :size] / size
    body = (x - 0.5) ** 2 / 0.2 + (y - 0.5) ** 2 / 0.24 < 1
    texture = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 12)
    image = np.where(body, 350 + 90 * texture / texture.std(), 0)
    image[(x > 0.8) & body] = 900
    for level in range(7):
        image[(abs(x - 0.5) < 0.09) & (abs(y - 0.12 - 0.12 * level) < 0.045)] += 250
    real, imaginary = rng.normal(scale=6, size=(2, size, size))
    return np.hypot(image + real, imaginary).clip(0, 4095).astype(np.uint16)


def write_study(folder: Path, number: int = 0) -> dict[str, np.ndarray]:
    """Write the three series of a study, files in no order of theirs; {series: its volume as it must be read}."""
    rng = np.random.default_rng(number)
    written = {}
    for name, count, size in SERIES:
        axes = np.array(AXES[name[:3]], float)
        spacing = np.array([4.4, 280 / size, 280 / size])
        planes = []
        for k in range(count):
            corner = axes[0] * spacing[0] * k - (axes[1] + axes[2]) * 140
            planes.append(Plane(affine(corner, axes, spacing), int(count - k)))
        acquisition = Acquisition(name, "t2", (size, size), 4.0, 4.4, tuple(planes))
        volume = np.stack([picture(size, rng) for _ in range(count)])
        (folder / name).mkdir(parents=True)
        for k in rng.permutation(count):
            path = folder / name / f"{planes[k].number}.dcm"
            write_slice(path, volume[k], acquisition, planes[k], str(number), name)
        normal = np.cross(axes[2], axes[1])  # volumes are sorted along it
        written[name] = volume if normal @ axes[0] > 0 else volume[::-1]
    return written

"""Where a scan is: grids of voxels and regions of interest in patient millimetres.

Conventions, tested in tests/test_geometry.py:

* arrays are (Z, Y, X); an integer index is a voxel *centre*;
* an affine ``to_mm`` (4, 4) maps the column (z, y, x, 1) to DICOM patient coordinates in mm (LPS: +x to the
  patient's left, +y to the back, +z to the head; PS3.3 C.7.6.2.1.1);
* DICOM PixelSpacing is rows first: element 0 is the step of y (down the column), element 1 the step of x;
* points are (..., 3) arrays of mm; a landmark that was not found is absent, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from osteograde.imaging.acquisition import UNKNOWN, Acquisition

LEFT = np.array([1.0, 0.0, 0.0])  # unit LPS direction


@dataclass(frozen=True, eq=False)
class Volume:
    """A regular stack of parallel slices of one size; a radiograph is a stack with one slice.

    voxels: (Z, Y, X), any numeric dtype. to_mm: (4, 4) from index (z, y, x, 1) to LPS mm. frame: the frame of
    reference; points may move between volumes only where frames are equal ("" = unknown). series: the id of the
    series it came from. names: per slice, the stem of the file it was read from. instances: per slice, its
    InstanceNumber (0020,0013) or frame number, None where it has none; empty for pictures. acquisition: how the scanner
    made the slices, as far as their headers say.
    """

    voxels: np.ndarray
    to_mm: np.ndarray
    frame: str = ""
    series: str = ""
    names: tuple[str, ...] = ()
    instances: tuple[int | None, ...] = ()
    acquisition: Acquisition = UNKNOWN

    # Every site of a study asks for these again: they are computed once.

    @cached_property
    def spacing_mm(self) -> np.ndarray:
        """Distance between neighbouring voxel centres along (z, y, x)."""
        return np.linalg.norm(self.to_mm[:3, :3], axis=0)

    @cached_property
    def axes(self) -> np.ndarray:
        """(3, 3): row i is the unit LPS direction of index axis i."""
        return (self.to_mm[:3, :3] / self.spacing_mm).T

    @cached_property
    def from_mm(self) -> np.ndarray:
        """(4, 4): LPS mm to continuous index (z, y, x)."""
        return np.linalg.inv(self.to_mm)

    @cached_property
    def step_mm(self) -> float:
        """Distance between neighbouring slices along their normal; less than ``spacing_mm[0]`` where they lean."""
        return abs(float(self.to_mm[:3, 0] @ np.cross(self.axes[1], self.axes[2])))

    @property
    def centre_mm(self) -> np.ndarray:
        return apply(self.to_mm, (np.array(self.voxels.shape) - 1) / 2)


@dataclass(frozen=True, eq=False)
class Roi:
    """A grid in space, (D, H, W) samples; ``to_mm`` maps (d, h, w, 1) to LPS mm. It knows nothing of any image."""

    to_mm: np.ndarray
    shape: tuple[int, int, int]

    @property
    def spacing_mm(self) -> np.ndarray:
        return np.linalg.norm(self.to_mm[:3, :3], axis=0)

    @property
    def from_mm(self) -> np.ndarray:
        """(4, 4): LPS mm to continuous index (d, h, w)."""
        return np.linalg.inv(self.to_mm)

    @property
    def centre_mm(self) -> np.ndarray:
        return apply(self.to_mm, (np.array(self.shape) - 1) / 2)


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Move points (..., 3) by a (4, 4) affine.

    >>> apply(np.diag([2.0, 1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [2.0, 2.0, 3.0]
    """
    return np.asarray(points) @ affine[:3, :3].T + affine[:3, 3]


def to_index(grid: Volume | Roi, points_mm: np.ndarray) -> np.ndarray:
    """Continuous index (z, y, x) of points (..., 3) in mm."""
    return apply(grid.from_mm, points_mm)


def affine(origin_mm: np.ndarray, axes: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(4, 4) of a grid whose index 0 lies at origin_mm; row i of ``axes`` is the unit direction of index axis i."""
    to_mm = np.eye(4)
    to_mm[:3, :3] = np.transpose(axes) * np.asarray(spacing_mm)
    to_mm[:3, 3] = origin_mm
    return to_mm


def roi_at(centre_mm: np.ndarray, axes: np.ndarray, spacing_mm: np.ndarray, shape: tuple[int, int, int]) -> Roi:
    """A grid of ``shape`` samples, ``spacing_mm`` apart along the unit ``axes`` (rows), centred on a point."""
    to_mm = affine(np.zeros(3), axes, spacing_mm)
    to_mm[:3, 3] = np.asarray(centre_mm) - to_mm[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Roi(to_mm, (int(shape[0]), int(shape[1]), int(shape[2])))


def oriented(volume: Volume, directions: np.ndarray) -> Volume:
    """The same voxels with index axes permuted and flipped to lie closest to the unit ``directions`` (rows).

    Only the in-plane axes are permuted: the slice axis stays axis 0. A view of the array, nothing is resampled.
    """
    axes, directions = volume.axes, np.asarray(directions)
    straight = abs(axes[1] @ directions[1]) + abs(axes[2] @ directions[2])
    swapped = abs(axes[1] @ directions[2]) + abs(axes[2] @ directions[1])
    order = (0, 1, 2) if straight >= swapped else (0, 2, 1)
    voxels = volume.voxels.transpose(order)
    to_mm = volume.to_mm[:, [*order, 3]].copy()
    names, instances = volume.names, volume.instances
    for axis in range(3):
        if to_mm[:3, axis] @ directions[axis] < 0:
            voxels = np.flip(voxels, axis)
            to_mm = to_mm @ _flip(axis, voxels.shape[axis])
            names, instances = (names[::-1], instances[::-1]) if axis == 0 else (names, instances)
    return replace(volume, voxels=voxels, to_mm=to_mm, names=names, instances=instances)


def roi_on(volume: Volume, centre_mm: np.ndarray, spacing_mm: tuple[float, float], shape: tuple[int, int, int]) -> Roi:
    """A box along the volume's own axes and on its own slices: never a blend across thick slices.

    The slice nearest to ``centre_mm`` is sample D // 2 (for even D the box reaches one slice further down);
    in-plane the box is centred on the point, with ``spacing_mm`` = (h, w).
    """
    z, y, x = to_index(volume, centre_mm)
    step = volume.to_mm[:3, :3]
    own_mm = volume.spacing_mm
    middle = apply(volume.to_mm, np.array([round(z), y, x]))
    roi = roi_at(middle, (step / own_mm).T, np.array([own_mm[0], *spacing_mm]), shape)
    if shape[0] % 2 == 0:  # the centre of an even box lies between two slices
        roi = replace(roi, to_mm=roi.to_mm @ _shift((-0.5, 0, 0)))
    return roi


def mirrored(roi: Roi, axis: int) -> Roi:
    """The same box read from its other end along ``axis``. Twice is the identity."""
    return replace(roi, to_mm=roi.to_mm @ _flip(axis, roi.shape[axis]))


def moved(roi: Roi, offset_mm: tuple[float, float]) -> Roi:
    """The same box moved within its own plane by (down, right) mm along its index axes."""
    down, right = (mm / step for mm, step in zip(offset_mm, roi.spacing_mm[1:], strict=True))
    return replace(roi, to_mm=roi.to_mm @ _shift((0.0, down, right)))


def lateral_axis(roi: Roi) -> int:
    """The index axis of a box that runs most nearly from right to left."""
    return int(np.argmax(np.abs(roi.to_mm[0, :3]) / roi.spacing_mm))


def grown(roi: Roi, margin: tuple[int, int, int]) -> Roi:
    """The same grid with ``margin`` more samples on both ends of each axis."""
    shape = tuple(n + 2 * m for n, m in zip(roi.shape, margin, strict=True))
    return Roi(roi.to_mm @ _shift(tuple(-float(m) for m in margin)), shape)  # type: ignore[arg-type]


def plane_distance_mm(volume: Volume, point_mm: np.ndarray) -> float:
    """How far a point lies from the nearest slice of the volume, mm along the slice normal (tilt-safe)."""
    z = float(to_index(volume, point_mm)[0])
    return abs(z - min(max(round(z), 0), volume.voxels.shape[0] - 1)) * volume.step_mm


def outside_mm(volume: Volume, point_mm: np.ndarray) -> float:
    """How far a point lies outside the slices' rectangle, mm; 0 inside."""
    index = to_index(volume, point_mm)[1:]
    size = np.array(volume.voxels.shape[1:])
    over = np.maximum(np.maximum(-0.5 - index, index - (size - 0.5)), 0.0)
    return float(np.linalg.norm(over * volume.spacing_mm[1:]))


def _flip(axis: int, size: int) -> np.ndarray:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1.0, size - 1.0
    return flip


def _shift(steps: tuple[float, ...]) -> np.ndarray:
    shift = np.eye(4)
    shift[:3, 3] = steps
    return shift

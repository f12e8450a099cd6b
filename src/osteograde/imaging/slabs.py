"""Thin-slice stacks as thick ones: a 3-D acquisition read the way two-dimensional series are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from osteograde.imaging.geometry import Volume

THIN_MM = 2.0  # stacks with slices closer than this are averaged ...
SLAB_MM = 4.0  # ... to about this step, that of ordinary spine series


def slabs(volume: Volume, thin_mm: float = THIN_MM, slab_mm: float = SLAB_MM) -> Volume:
    """The same stack with neighbouring thin slices averaged; unchanged where its slices are at least thin_mm apart.

    Nets learn on slices about 4 mm apart, with their partial volume; a mean over thin slices is just that. What is
    left over is cut off evenly at both ends. names: those of the middle slices.
    """
    step = volume.spacing_mm[0]
    count = volume.voxels.shape[0]
    each = min(round(slab_mm / step), count) if step < thin_mm else 1
    if each <= 1:
        return volume
    first = (count % each) // 2
    kept = volume.voxels[first : first + count // each * each]
    grouped = kept.reshape(-1, each, *kept.shape[1:]).astype(np.float32).mean(1)
    if np.issubdtype(volume.voxels.dtype, np.integer):
        grouped = np.rint(grouped)
    to_index = np.diag([float(each), 1.0, 1.0, 1.0])
    to_index[0, 3] = first + (each - 1) / 2  # a slab lies at the centre of its slices
    names = volume.names[first + each // 2 :: each][: len(grouped)]
    return replace(volume, voxels=grouped.astype(volume.voxels.dtype), to_mm=volume.to_mm @ to_index, names=names)

"""Writing label stacks as NIfTI-1 files (.nii.gz), which viewers of medical images open in the place of the scan.

The header is that of the NIfTI-1.1 standard (nifti1.h, public domain): 348 bytes, four more, then the voxels. The place
in space is the ``sform``. In NIfTI x grows to the patient's right and y to the front, in DICOM to the left and to the
back, so two rows of the affine change their sign. ``volume_files.read_volume`` reads such files.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from osteograde.imaging.geometry import Volume

HEADER_BYTES = 348
UINT8 = 2  # code of the data type
MILLIMETRES = 2  # code of the unit
SCANNER = 1  # code of the space: that of the scanner
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_labels(path: Path, volume: Volume) -> None:
    """Write a stack of labels (Z, Y, X) uint8 as ``path`` (.nii.gz). Equal stacks make equal bytes."""
    data = header_of(volume) + bytes(4) + np.ascontiguousarray(volume.voxels, np.uint8).tobytes()
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(gzip.compress(data, mtime=0))
    part.replace(path)


def header_of(volume: Volume) -> bytes:
    """The 348 bytes of the header, little-endian."""
    slices, rows, columns = volume.voxels.shape
    ras = RAS_FROM_LPS @ volume.to_mm[:, [2, 1, 0, 3]]  # NIfTI counts x first, then y, then slices
    header = bytearray(HEADER_BYTES)
    struct.pack_into("<i", header, 0, HEADER_BYTES)
    struct.pack_into("<8h", header, 40, 3, columns, rows, slices, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, UINT8, 8)
    struct.pack_into("<8f", header, 76, 1.0, *(float(mm) for mm in volume.spacing_mm[::-1]), 0, 0, 0, 0)
    struct.pack_into("<fff", header, 108, HEADER_BYTES + 4, 1.0, 0.0)  # where voxels begin, slope, intercept
    struct.pack_into("<B", header, 123, MILLIMETRES)
    struct.pack_into("<hh", header, 252, 0, SCANNER)
    struct.pack_into("<12f", header, 280, *ras[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)

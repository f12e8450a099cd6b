"""RLE Lossless (PS3.5 annex G) at the speed of C: OpenCV's TIFF writer does the PackBits."""

from __future__ import annotations

import struct

import cv2
import numpy as np

TIFF_COMPRESSION, TIFF_ROWS_PER_STRIP, PACKBITS = 259, 278, 32773
STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
SIZES = {3: ("H", 2), 4: ("I", 4)}  # TIFF field types that hold offsets and counts


def encode_rle(pixels: np.ndarray) -> bytes:
    """One frame (rows, columns) of uint16 as an RLE Lossless fragment: two segments, the high byte plane first."""
    planes = [packbits((pixels >> shift).astype(np.uint8)) for shift in (8, 0)]
    planes = [plane + b"\0" * (len(plane) % 2) for plane in planes]
    offsets = [64, 64 + len(planes[0])]
    return struct.pack("<16I", 2, *offsets, *[0] * 13) + b"".join(planes)


def packbits(plane: np.ndarray) -> bytes:
    """PackBits of a byte plane, row by row as the standard asks."""
    rows = plane.shape[0]
    options = [TIFF_COMPRESSION, PACKBITS, TIFF_ROWS_PER_STRIP, rows]
    done, encoded = cv2.imencode(".tif", np.ascontiguousarray(plane), options)
    if not done:
        raise RuntimeError(f"OpenCV {cv2.__version__} could not write a PackBits TIFF of {plane.shape}")
    data = encoded.tobytes()
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack_from(order + "I", data, 4)[0]
    fields = {}
    for i in range(struct.unpack_from(order + "H", data, directory)[0]):
        tag, kind, count, _ = struct.unpack_from(order + "HHII", data, directory + 2 + 12 * i)
        if tag in (STRIP_OFFSETS, STRIP_BYTE_COUNTS):
            code, size = SIZES[kind]
            at = directory + 10 + 12 * i
            at = at if count * size <= 4 else struct.unpack_from(order + "I", data, at)[0]
            fields[tag] = struct.unpack_from(f"{order}{count}{code}", data, at)
    strips = zip(fields[STRIP_OFFSETS], fields[STRIP_BYTE_COUNTS], strict=True)
    return b"".join(data[start : start + size] for start, size in strips)

"""RLE Lossless frames through OpenCV: the same bytes, dressed as a TIFF file in memory.

An RLE frame (PS3.5 annex G) is sixteen uint32 - the number of segments and their offsets - and one PackBits segment per
byte plane, most significant first. TIFF knows PackBits as compression 32773, so a header of 200 bytes in front of the
unchanged segments lets libtiff decode them outside the interpreter's lock. Declared as 16-bit samples: OpenCV then
copies the strips and refuses damaged ones, where 8-bit samples would be converted and missing data become zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import cv2
import numpy as np

MAX_PIXELS = 64 << 20
MAX_EXPANSION = 64  # PackBits writes at most 128 bytes for 2
_SHORT, _LONG = 3, 4
_HEADER_BYTES = 64
_DIRECTORY_AT, _ENTRIES = 8, 10
_DATA_AT = _DIRECTORY_AT + 2 + 12 * _ENTRIES + 4


def decode_rle(data: bytes, rows: int, columns: int, bytes_per_sample: int = 2) -> np.ndarray | None:
    """One grey RLE Lossless frame as (rows, columns) uint8 or uint16, exact to the bit.

    None where this route cannot decode it: damaged or other segments than one per byte, sizes beyond the caps
    (``MAX_PIXELS``, ``MAX_EXPANSION``; checked before anything is allocated). The caller then asks pydicom.
    """
    planes = _segments(data)
    if bytes_per_sample not in (1, 2) or len(planes) != bytes_per_sample or rows < 1 or columns < 1:
        return None
    size = rows * columns
    if size > MAX_PIXELS or any(size > MAX_EXPANSION * len(plane) for plane in planes):
        return None
    pixels = _unpack(planes, rows, columns)
    if pixels is None and size % 2 and all(plane[-1:] == b"\0" for plane in planes):
        pixels = _unpack([plane[:-1] for plane in planes], rows, columns)  # an even-length pad hid the fill bytes
    if pixels is None and size % 2 and len(planes) == 2:
        for cut in ((1, 0), (0, 1)):  # only one of the two segments was padded
            trimmed = [plane[: len(plane) - n] for plane, n in zip(planes, cut, strict=True)]
            pixels = _unpack(trimmed, rows, columns) if pixels is None else pixels
    return pixels


def _segments(data: bytes) -> list[bytes]:
    """The segments of a frame, or an empty list where the header makes no sense."""
    if len(data) < _HEADER_BYTES:
        return []
    count, *offsets = struct.unpack_from("<16L", data)
    if not 1 <= count <= 15:
        return []
    edges = [*offsets[:count], len(data)]
    if edges[0] < _HEADER_BYTES or any(a >= b for a, b in pairwise(edges)):
        return []
    return [data[a:b] for a, b in pairwise(edges)]


def _unpack(planes: list[bytes], rows: int, columns: int) -> np.ndarray | None:
    size = rows * columns
    width, height = columns, rows  # of the 16-bit image that holds one plane
    if columns % 2 == 0:
        width //= 2
    elif rows % 2 == 0:
        height //= 2
    else:  # an odd number of bytes: one more per row, written as PackBits runs behind the data
        width = (columns + 1) // 2
        planes = [plane + _zeros(rows) for plane in planes]
    image = _decode_tiff(_tiff(planes, width, height))
    if image is None or image.dtype != np.uint16 or image.shape != (height * len(planes), width):
        return None
    stacked = image.view(np.uint8).reshape(len(planes), -1)[:, :size].reshape(len(planes), rows, columns)
    if len(planes) == 1:
        return np.ascontiguousarray(stacked[0])
    merged = cv2.merge([stacked[1], stacked[0]])  # low byte first
    return merged.reshape(rows, columns * 2).view("<u2")


def _zeros(count: int) -> bytes:
    """PackBits for exactly ``count`` zeros."""
    full, rest = divmod(count, 128)
    tail = b"" if rest == 0 else b"\0\0" if rest == 1 else bytes([257 - rest, 0])
    return b"\x81\0" * full + tail


def _tiff(planes: list[bytes], width: int, height: int) -> bytes:
    """A little-endian TIFF file: one PackBits strip per plane, planes below each other, 16-bit samples."""
    count = len(planes)
    starts = [_DATA_AT + 8 * count + sum(map(len, planes[:k])) for k in range(count)]
    lengths = [len(plane) for plane in planes]
    pointers = (starts[0], lengths[0]) if count == 1 else (_DATA_AT, _DATA_AT + 4 * count)
    entries = (
        (256, _LONG, 1, width),
        (257, _LONG, 1, height * count),
        (258, _SHORT, 1, 16),  # bits per sample
        (259, _SHORT, 1, 32773),  # PackBits
        (262, _SHORT, 1, 1),  # black is zero
        (273, _LONG, count, pointers[0]),  # strip offsets
        (277, _SHORT, 1, 1),  # samples per pixel
        (278, _LONG, 1, height),  # rows per strip
        (279, _LONG, count, pointers[1]),  # strip lengths
        (284, _SHORT, 1, 1),  # planar configuration
    )
    head = struct.pack("<2sHLH", b"II", 42, _DIRECTORY_AT, len(entries))
    head += b"".join(struct.pack("<HHLL", *entry) for entry in entries) + struct.pack("<L", 0)
    return b"".join([head, struct.pack(f"<{2 * count}L", *starts, *lengths), *planes])


def _decode_tiff(content: bytes) -> np.ndarray | None:
    with _quiet_opencv():
        try:
            return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:  # the image is too wide or too large for OpenCV's own limits
            return None


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """libtiff reports every damaged strip; one bad series would flood the log."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)

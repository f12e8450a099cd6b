"""RLE Lossless frames through OpenCV: the same bytes, dressed as a TIFF file in memory.

An RLE frame (PS3.5 annex G) is sixteen uint32 - the number of segments and their offsets - and one PackBits segment per
byte plane, most significant first. TIFF knows PackBits as compression 32773, so a header of 150 bytes in front of the
unchanged segments lets libtiff decode them outside the interpreter's lock. Declared as 16-bit samples: OpenCV then
copies the strips and refuses damaged ones, where 8-bit samples would be converted and missing data become zeros.

Nearly all the time is memory traffic, so nothing is copied on the way: the header is written over the bytes in front of
the segments, which are read by then, and they are put back. Where numba is installed its code does the same
(``rle_numba``).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from functools import cache
from itertools import accumulate, pairwise

import cv2
import numpy as np

MAX_PIXELS = 64 << 20
MAX_EXPANSION = 64  # PackBits writes at most 128 bytes for 2
Buffer = bytearray | memoryview  # bytes that may be written to
Strip = tuple[int, int]  # where the PackBits of a plane start and how long they are
_SHORT, _LONG = 3, 4
_HEADER_BYTES = 64
_DIRECTORY_AT, _ENTRIES = 8, 10
_DATA_AT = _DIRECTORY_AT + 2 + 12 * _ENTRIES + 4
_HEADS = {count: struct.Struct("<2sHLH" + "HHLL" * _ENTRIES + "L" * (1 + 2 * count)) for count in (1, 2)}


@cache
def accelerator() -> Callable[[Buffer, list[Strip], int, int], np.ndarray | None] | None:
    """The decoder that numba compiles (seconds, once), tried out; None where there is none or it does not work."""
    try:
        from osteograde.imaging.dicom import rle_numba
    except (ImportError, AttributeError):  # no numba, or one that this numpy or this code does not go with
        return None
    return rle_numba.decode if rle_numba.works() else None


def decoder() -> str:
    """What decodes RLE here, for a report."""
    return "numba" if accelerator() else "OpenCV"


def decode_rle(data: bytes | memoryview, rows: int, columns: int, bytes_per_sample: int = 2) -> np.ndarray | None:
    """One grey RLE Lossless frame as (rows, columns) uint8 or uint16, exact to the bit.

    None where this route cannot decode it: damaged or other segments than one per byte, sizes beyond the caps
    (``MAX_PIXELS``, ``MAX_EXPANSION``; checked before anything is allocated). The caller then asks pydicom.
    """
    room = _HEADS[2].size
    return decode_rle_within(bytearray(room) + data, room, len(data), rows, columns, bytes_per_sample)


def decode_rle_within(
    buffer: Buffer, at: int, length: int, rows: int, columns: int, bytes_per_sample: int = 2
) -> np.ndarray | None:
    """The same for a frame of ``length`` bytes that starts at ``at``; the buffer is changed while this runs."""
    strips = _segments(buffer, at, length)
    if bytes_per_sample not in (1, 2) or len(strips) != bytes_per_sample or rows < 1 or columns < 1:
        return None
    size = rows * columns
    if size > MAX_PIXELS or any(size > MAX_EXPANSION * count for _, count in strips):
        return None
    faster = accelerator() if bytes_per_sample == 2 else None
    if faster is not None and (pixels := faster(buffer, strips, rows, columns)) is not None:
        return pixels
    pixels = _unpack(buffer, strips, rows, columns)
    if pixels is None and size % 2 and all(buffer[start + count - 1] == 0 for start, count in strips):
        # an even-length pad hid the fill bytes
        pixels = _unpack(buffer, [(start, count - 1) for start, count in strips], rows, columns)
    if pixels is None and size % 2 and len(strips) == 2:
        for cut in ((1, 0), (0, 1)):  # only one of the two segments was padded
            trimmed = [(start, count - n) for (start, count), n in zip(strips, cut, strict=True)]
            pixels = _unpack(buffer, trimmed, rows, columns) if pixels is None else pixels
    return pixels


def _segments(buffer: Buffer, at: int, length: int) -> list[Strip]:
    """The segments of a frame, or an empty list where the header makes no sense."""
    if length < _HEADER_BYTES or at + length > len(buffer):
        return []
    count, *offsets = struct.unpack_from("<16L", buffer, at)
    if not 1 <= count <= 15:
        return []
    edges = [*offsets[:count], length]
    if edges[0] < _HEADER_BYTES or any(a >= b for a, b in pairwise(edges)):
        return []
    return [(at + a, b - a) for a, b in pairwise(edges)]


def _unpack(buffer: Buffer, strips: list[Strip], rows: int, columns: int) -> np.ndarray | None:
    size = rows * columns
    width, height = columns, rows  # of the 16-bit image that holds one plane
    if columns % 2 == 0:
        width //= 2
    elif rows % 2 == 0:
        height //= 2
    else:  # an odd number of bytes: one more per row, written as PackBits runs behind the data
        width = (columns + 1) // 2
        buffer, strips = _lengthened(buffer, strips, rows)
    image = _decode_strips(buffer, strips, width, height)
    if image is None or image.dtype != np.uint16 or image.shape != (height * len(strips), width):
        return None
    stacked = image.view(np.uint8).reshape(len(strips), -1)[:, :size].reshape(len(strips), rows, columns)
    if len(strips) == 1:
        return np.ascontiguousarray(stacked[0])
    merged = cv2.merge([stacked[1], stacked[0]])  # low byte first
    return merged.reshape(rows, columns * 2).view("<u2")


def _lengthened(buffer: Buffer, strips: list[Strip], zeros: int) -> tuple[Buffer, list[Strip]]:
    """A buffer of the strips alone, each followed by PackBits for that many zeros."""
    full, rest = divmod(zeros, 128)
    tail = b"" if rest == 0 else b"\0\0" if rest == 1 else bytes([257 - rest, 0])
    more = b"\x81\0" * full + tail
    parts = [bytes(buffer[start : start + count]) + more for start, count in strips]
    starts = accumulate(map(len, parts[:-1]), initial=_HEADS[2].size)
    return bytearray(_HEADS[2].size) + b"".join(parts), [(a, len(part)) for a, part in zip(starts, parts, strict=True)]


def _decode_strips(buffer: Buffer, strips: list[Strip], width: int, height: int) -> np.ndarray | None:
    """The image (planes * height, width) of 16-bit samples that OpenCV makes of PackBits strips, one per plane."""
    head = _HEADS[len(strips)]
    first, last = strips[0][0] - head.size, sum(strips[-1])
    if first < 0:
        return None
    covered = bytes(buffer[first : first + head.size])
    buffer[first : first + head.size] = _tiff_head([(start - first, count) for start, count in strips], width, height)
    try:
        with _quiet_opencv:
            return cv2.imdecode(np.frombuffer(buffer, np.uint8)[first:last], cv2.IMREAD_UNCHANGED)
    except cv2.error:  # the image is too wide or too large for OpenCV's own limits
        return None
    finally:
        buffer[first : first + head.size] = covered


def _tiff_head(strips: list[Strip], width: int, height: int) -> bytes:
    """The start of a little-endian TIFF file: one PackBits strip per plane, planes below each other."""
    count = len(strips)
    starts, lengths = zip(*strips, strict=True)
    starts_at, lengths_at = (starts[0], lengths[0]) if count == 1 else (_DATA_AT, _DATA_AT + 4 * count)
    # fmt: off
    return _HEADS[count].pack(
        b"II", 42, _DIRECTORY_AT, _ENTRIES,
        256, _LONG, 1, width,
        257, _LONG, 1, height * count,
        258, _SHORT, 1, 16,  # bits per sample
        259, _SHORT, 1, 32773,  # PackBits
        262, _SHORT, 1, 1,  # black is zero
        273, _LONG, count, starts_at,  # of the strips
        277, _SHORT, 1, 1,  # samples per pixel
        278, _LONG, 1, height,  # rows per strip
        279, _LONG, count, lengths_at,  # of the strips
        284, _SHORT, 1, 1,  # planar configuration
        0, *starts, *lengths,
    )
    # fmt: on


class _Quiet:
    """A block in which OpenCV logs nothing: libtiff reports every damaged strip, and one bad series floods the log.

    OpenCV has one log level for the whole process, and several threads decode at once. The first thread that enters
    remembers the level and the last one that leaves restores it, so the level ends as it began however they overlap.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0  # threads
        self.level = 0  # before the first of them entered

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                cv2.utils.logging.setLogLevel(self.level)


_quiet_opencv = _Quiet()

"""What a compressed frame says of its own size, read before a decoder allocates (ISO 10918-1, 14495-1, 15444-1)."""

from __future__ import annotations

import struct

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    HTJ2K,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

FAMILIES = frozenset({*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes})
FAMILIES |= {HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL}
_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a frame header, JPEG-LS's among them
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_J2K = b"\xff\x4f\xff\x51"  # start of code stream, then its size
_J2K_WITHIN = 4096  # bytes that a container may put in front


def sizes_agree(dataset: Dataset, frames: int) -> bool:
    """Whether every frame of a JPEG, JPEG-LS or JPEG 2000 data set declares the Rows and Columns of the tags."""
    wanted = (int(dataset.Rows), int(dataset.Columns))
    return all(stream_size(frame) == wanted for frame in generate_frames(dataset.PixelData, number_of_frames=frames))


def stream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a code stream declares; None where it is none.

    >>> stream_size(bytes.fromhex("ffd8ffc0000b08000300050101 1100"))
    (3, 5)
    """
    at = frame.find(_J2K, 0, _J2K_WITHIN)
    if at >= 0 and len(frame) >= at + 24:
        right, bottom, left, top = struct.unpack_from(">4L", frame, at + 8)
        return bottom - top, right - left
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _SIZES:
            return struct.unpack_from(">2H", frame, at + 5)
        at += 1 if marker == 0xFF else 2 if marker in _BARE else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None

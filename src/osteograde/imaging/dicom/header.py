"""The short way into the usual file: explicit little-endian, one grey 16-bit frame, RLE or uncompressed.

Building a full data set costs several times more than decoding its pixels. This walk keeps the few elements that the
reader asks for and gives up (None) at the first surprise; the file then goes to pydicom. It must never know better.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from osteograde.imaging.dicom.rle import MAX_PIXELS, decode_rle

Header = dict[str, Any]

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_META, _TRANSFER_SYNTAX, _PIXELS, _ITEM, _END = 0x0002FFFF, 0x00020010, 0x7FE00010, 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_FRAMES = range(0x52009229, 0x52009231)  # functional groups: several frames, or geometry inside sequences


def _text(value: bytes) -> str:
    return value.decode("ascii").strip(" \0")


def _decimals(value: bytes) -> list[float]:
    return [float(part) for part in value.rstrip(b" \0").split(b"\\") if part.strip()]


def _integers(value: bytes) -> list[int]:
    return [int(part) for part in value.rstrip(b" \0").split(b"\\") if part.strip()]


def _short(value: bytes) -> int:
    return struct.unpack("<H", value)[0]


_WANTED: dict[int, tuple[str, bytes, Callable[[bytes], Any]]] = {
    0x00020010: ("TransferSyntaxUID", b"UI", _text),
    0x00180050: ("SliceThickness", b"DS", _decimals),
    0x00180088: ("SpacingBetweenSlices", b"DS", _decimals),
    0x00181164: ("ImagerPixelSpacing", b"DS", _decimals),
    0x00200013: ("InstanceNumber", b"IS", _integers),
    0x00200032: ("ImagePositionPatient", b"DS", _decimals),
    0x00200037: ("ImageOrientationPatient", b"DS", _decimals),
    0x00200052: ("FrameOfReferenceUID", b"UI", _text),
    0x00201041: ("SliceLocation", b"DS", _decimals),
    0x00280002: ("SamplesPerPixel", b"US", _short),
    0x00280004: ("PhotometricInterpretation", b"CS", _text),
    0x00280008: ("NumberOfFrames", b"IS", _integers),
    0x00280010: ("Rows", b"US", _short),
    0x00280011: ("Columns", b"US", _short),
    0x00280030: ("PixelSpacing", b"DS", _decimals),
    0x00280100: ("BitsAllocated", b"US", _short),
    0x00280101: ("BitsStored", b"US", _short),
    0x00280102: ("HighBit", b"US", _short),
    0x00280103: ("PixelRepresentation", b"US", _short),
    0x00281052: ("RescaleIntercept", b"DS", _decimals),
    0x00281053: ("RescaleSlope", b"DS", _decimals),
}


def quick_read(data: bytes) -> tuple[Header, np.ndarray] | None:
    """The wanted elements by keyword and the stored (rows, columns) pixels of a usual file, else None."""
    if data[128:132] != b"DICM":
        return None
    try:
        walked = _walk(data)
        if walked is None:
            return None
        header, at, length = walked
        pixels = _pixels(data, header, at, length) if _is_usual(header) else None
    except (struct.error, ValueError):  # cut short, or text that is no number
        return None
    return None if pixels is None else (header, pixels)


def _walk(data: bytes) -> tuple[Header, int, int] | None:
    """Elements up to the pixels, where their value starts, and its declared length."""
    header: Header = {}
    at, last = 132, 0
    while True:
        group, element, kind = struct.unpack_from("<HH2s", data, at)
        tag = group << 16 | element
        if kind in _LONG:
            length, start = struct.unpack_from("<L", data, at + 8)[0], at + 12
        else:
            length, start = struct.unpack_from("<H", data, at + 6)[0], at + 8
        if tag <= last or tag in _FRAMES or (tag > _META and last <= _META and not _is_syntax_known(header)):
            return None
        if tag == _PIXELS:
            return header, start, length
        if length == _UNDEFINED or start + length > len(data) or not kind.isalpha() or tag > _PIXELS:
            return None
        if tag in _WANTED:
            keyword, expected, parse = _WANTED[tag]
            if kind != expected:
                return None
            header[keyword] = parse(data[start : start + length])
        at, last = start + length, tag


def _is_syntax_known(header: Header) -> bool:
    return header.get("TransferSyntaxUID") in (ExplicitVRLittleEndian, RLELossless)


def _is_usual(header: Header) -> bool:
    size = header.get("Rows", 0) * header.get("Columns", 0)
    return (
        0 < size <= MAX_PIXELS
        and header.get("SamplesPerPixel") == 1
        and header.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
        and header.get("NumberOfFrames", [1]) == [1]
        and header.get("BitsAllocated") == 16
        and "BitsStored" in header
        and header.get("PixelRepresentation") in (0, 1)
    )


def _pixels(data: bytes, header: Header, at: int, length: int) -> np.ndarray | None:
    rows, columns = header["Rows"], header["Columns"]
    if header["TransferSyntaxUID"] == RLELossless:
        frame = _only_fragment(data, at) if length == _UNDEFINED else None
        pixels = None if frame is None else decode_rle(frame, rows, columns)
    elif length == 2 * rows * columns and at + length <= len(data):
        pixels = np.frombuffer(data, "<u2", rows * columns, at).reshape(rows, columns)
    else:
        pixels = None
    return pixels.view(np.int16) if pixels is not None and header["PixelRepresentation"] else pixels


def _only_fragment(data: bytes, at: int) -> bytes | None:
    """The one fragment behind the offset table."""
    start, length = _item(data, at, _ITEM)
    start, length = _item(data, start + length, _ITEM)
    if _item(data, start + length, _END)[1] != 0:
        return None
    return data[start : start + length]


def _item(data: bytes, at: int, expected: int) -> tuple[int, int]:
    group, element, length = struct.unpack_from("<HHL", data, at)
    if group << 16 | element != expected:
        raise ValueError("another item than expected")
    return at + 8, length

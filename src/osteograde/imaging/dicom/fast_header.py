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

from osteograde.imaging.dicom.acquisition_tags import B_VALUES, GE_COMPONENT, acquisition_of_bytes
from osteograde.imaging.dicom.rle import MAX_PIXELS, Buffer, decode_rle_within

Header = dict[str, Any]
ACQUISITION = "acquisition"  # key of a header: how the image was made, as ``Acquisition``


def _code(representation: str) -> int:
    """A value representation as the number that its two letters are in the file."""
    return int.from_bytes(representation.encode("ascii"), "little")


_LONG = {_code(kind) for kind in ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")}
_BRIEF = {  # two bytes of length; the others have four
    *map(_code, ("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST")),
    *map(_code, ("TM", "UI", "UL", "US")),
}
_element = struct.Struct("<HHHH").unpack_from  # group, element, representation, length where it is brief
_length = struct.Struct("<L").unpack_from
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


def _double(value: bytes) -> float:
    return struct.unpack("<d", value)[0]


_WANTED: dict[int, tuple[str, int, Callable[[bytes], Any]]] = {
    0x00020010: ("TransferSyntaxUID", _code("UI"), _text),
    0x00180050: ("SliceThickness", _code("DS"), _decimals),
    0x00180088: ("SpacingBetweenSlices", _code("DS"), _decimals),
    0x00181164: ("ImagerPixelSpacing", _code("DS"), _decimals),
    0x00080032: ("AcquisitionTime", _code("TM"), _text),
    0x00080033: ("ContentTime", _code("TM"), _text),
    0x00181090: ("CardiacNumberOfImages", _code("IS"), _integers),
    0x00200105: ("NumberOfTemporalPositions", _code("IS"), _integers),
    0x00209153: ("NominalCardiacTriggerDelayTime", _code("FD"), _double),
    0x00541300: ("FrameReferenceTime", _code("DS"), _decimals),
    0x00181060: ("TriggerTime", _code("DS"), _decimals),
    0x00181063: ("FrameTime", _code("DS"), _decimals),
    0x00200012: ("AcquisitionNumber", _code("IS"), _integers),
    0x00200100: ("TemporalPositionIdentifier", _code("IS"), _integers),
    0x00200013: ("InstanceNumber", _code("IS"), _integers),
    0x00200032: ("ImagePositionPatient", _code("DS"), _decimals),
    0x00200037: ("ImageOrientationPatient", _code("DS"), _decimals),
    0x00200052: ("FrameOfReferenceUID", _code("UI"), _text),
    0x00201041: ("SliceLocation", _code("DS"), _decimals),
    0x00280002: ("SamplesPerPixel", _code("US"), _short),
    0x00280004: ("PhotometricInterpretation", _code("CS"), _text),
    0x00280008: ("NumberOfFrames", _code("IS"), _integers),
    0x00280010: ("Rows", _code("US"), _short),
    0x00280011: ("Columns", _code("US"), _short),
    0x00280030: ("PixelSpacing", _code("DS"), _decimals),
    0x00280100: ("BitsAllocated", _code("US"), _short),
    0x00280101: ("BitsStored", _code("US"), _short),
    0x00280102: ("HighBit", _code("US"), _short),
    0x00280103: ("PixelRepresentation", _code("US"), _short),
    0x00280120: ("PixelPaddingValue", _code("US"), _short),
    0x00280121: ("PixelPaddingRangeLimit", _code("US"), _short),
    0x20500020: ("PresentationLUTShape", _code("CS"), _text),
    0x00281052: ("RescaleIntercept", _code("DS"), _decimals),
    0x00281053: ("RescaleSlope", _code("DS"), _decimals),
}

_SIGNED_TOO = ("PixelPaddingValue", "PixelPaddingRangeLimit")  # words, read as unsigned; who compares them wraps them
_LUTS = (0x00283000, 0x00283010)  # Modality LUT and VOI LUT sequences
_KEPT: dict[int, tuple[str | int, int]] = {  # read as bytes: all slices of a series say the same, once is enough
    0x00080008: ("ImageType", _code("CS")),
    0x0008103E: ("SeriesDescription", _code("LO")),
    0x00089208: ("ComplexImageComponent", _code("CS")),
    0x00089209: ("AcquisitionContrast", _code("CS")),
    0x00180010: ("ContrastBolusAgent", _code("LO")),
    0x00180020: ("ScanningSequence", _code("CS")),
    0x00180021: ("SequenceVariant", _code("CS")),
    0x00180022: ("ScanOptions", _code("CS")),
    0x00180024: ("SequenceName", _code("SH")),
    0x00180080: ("RepetitionTime", _code("DS")),
    0x00180081: ("EchoTime", _code("DS")),
    0x00180082: ("InversionTime", _code("DS")),
    0x00180086: ("EchoNumbers", _code("IS")),
    0x00180091: ("EchoTrainLength", _code("IS")),
    0x00181030: ("ProtocolName", _code("LO")),
    0x00181314: ("FlipAngle", _code("DS")),
    0x0020000E: ("SeriesInstanceUID", _code("UI")),
    0x00200011: ("SeriesNumber", _code("IS")),
    **{tag: (tag, _code(kind)) for tag, kind in B_VALUES.items()},
    GE_COMPONENT: (GE_COMPONENT, _code("SS")),
}
_CHARACTERS = 0x00080005  # SpecificCharacterSet
_ENCODINGS = {"": "ascii", "ISO_IR 6": "ascii", "ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}


def quick_read(data: Buffer) -> tuple[Header, np.ndarray] | None:
    """The wanted elements by keyword and the stored (rows, columns) pixels of a usual file, else None.

    Uncompressed pixels are a view of the data; while this runs, the data are changed and put back.
    """
    if data[128:132] != b"DICM":
        return None
    try:
        walked = _walk(data)
        if walked is None:
            return None
        header, at, length = walked
        pixels = _pixels(data, header, at, length) if _is_usual(header) else None
    except (struct.error, ValueError):  # cut short, or text that is no number or no text
        return None
    return None if pixels is None else (header, pixels)


def _walk(data: Buffer) -> tuple[Header, int, int] | None:
    """Elements up to the pixels, where their value starts, and its declared length."""
    header: Header = {}
    kept: list[tuple[str | int, bytes]] = []
    encoding = "ascii"
    at, last, size = 132, 0, len(data)
    while True:
        group, element, kind, length = _element(data, at)
        tag = group << 16 | element
        if kind in _BRIEF:
            start = at + 8
        elif kind in _LONG:
            length, start = _length(data, at + 8)[0], at + 12
        else:
            return None
        if (
            tag <= last
            or tag in _FRAMES
            or tag in _LUTS
            or (tag > _META and last <= _META and not _is_syntax_known(header))
        ):
            return None
        if tag == _PIXELS:
            header[ACQUISITION] = acquisition_of_bytes(tuple(kept), encoding)
            return header, start, length
        at = start + length
        if at > size or tag > _PIXELS:  # an undefined length lies beyond every end
            return None
        if tag in _WANTED:
            keyword, expected, parse = _WANTED[tag]
            if kind != expected and (keyword not in _SIGNED_TOO or kind != _code("SS")):
                return None
            header[keyword] = parse(bytes(data[start:at]))
        elif tag in _KEPT:
            name, expected = _KEPT[tag]
            if kind != expected:
                return None
            kept.append((name, bytes(data[start:at])))
        elif tag == _CHARACTERS:
            encoding = _ENCODINGS.get(_text(bytes(data[start:at])), "")
            if not encoding:
                return None
        last = tag


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


def _pixels(data: Buffer, header: Header, at: int, length: int) -> np.ndarray | None:
    rows, columns = header["Rows"], header["Columns"]
    if header["TransferSyntaxUID"] == RLELossless:
        frame = _only_fragment(data, at) if length == _UNDEFINED else None
        pixels = None if frame is None else decode_rle_within(data, *frame, rows, columns)
    elif length == 2 * rows * columns and at + length <= len(data):
        pixels = np.frombuffer(data, "<u2", rows * columns, at).reshape(rows, columns)
    else:
        pixels = None
    return pixels.view(np.int16) if pixels is not None and header["PixelRepresentation"] else pixels


def _only_fragment(data: Buffer, at: int) -> tuple[int, int] | None:
    """Where the one fragment behind the offset table starts, and its length."""
    start, length = _item(data, at, _ITEM)
    start, length = _item(data, start + length, _ITEM)
    return (start, length) if _item(data, start + length, _END)[1] == 0 else None


def _item(data: Buffer, at: int, expected: int) -> tuple[int, int]:
    group, element, length = struct.unpack_from("<HHL", data, at)
    if group << 16 | element != expected:
        raise ValueError("another item than expected")
    return at + 8, length

# Grades spider studies without a network. Generated from the osteograde package by
#     python -m osteograde kernel build spider
# so edit the package, not this file. SPDX-License-Identifier: Apache-2.0

TASK = 'spider'
MANIFEST = ''  # sha256 of the only manifest.json that is taken; '': any of this task
DATA = ''  # the data set that holds the images; '': a competition, or wherever there are any
SOURCE = {}

SOURCE['osteograde/__init__.py'] = r'''"""Find the joint, crop it, grade it, submit it: a two-stage competition kit for spine and knee images."""
'''

SOURCE['osteograde/imaging/__init__.py'] = r'''"""What a scan is and where it is: geometry, DICOM reading, intensity, crop sampling."""
'''

SOURCE['osteograde/imaging/dicom/__init__.py'] = r'''"""DICOM files to volumes: header and pixels of one file (slices), slices to stacks, a folder to volumes (series)."""

from osteograde.imaging.dicom.series import UnreadableSeries, read_series
from osteograde.imaging.dicom.slices import Slice, UnreadableSlice, read_slice, read_slices

__all__ = ["Slice", "UnreadableSeries", "UnreadableSlice", "read_series", "read_slice", "read_slices"]
'''

SOURCE['osteograde/imaging/dicom/header.py'] = r'''"""The short way into the usual file: explicit little-endian, one grey 16-bit frame, RLE or uncompressed.

Building a full data set costs several times more than decoding its pixels. This walk keeps the few elements that the
reader asks for and gives up (None) at the first surprise; the file then goes to pydicom. It must never know better.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from osteograde.imaging.dicom.rle import MAX_PIXELS, Buffer, decode_rle_within

Header = dict[str, Any]


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


_WANTED: dict[int, tuple[str, int, Callable[[bytes], Any]]] = {
    0x00020010: ("TransferSyntaxUID", _code("UI"), _text),
    0x00180050: ("SliceThickness", _code("DS"), _decimals),
    0x00180088: ("SpacingBetweenSlices", _code("DS"), _decimals),
    0x00181164: ("ImagerPixelSpacing", _code("DS"), _decimals),
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
    0x00281052: ("RescaleIntercept", _code("DS"), _decimals),
    0x00281053: ("RescaleSlope", _code("DS"), _decimals),
}


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
    except (struct.error, ValueError):  # cut short, or text that is no number
        return None
    return None if pixels is None else (header, pixels)


def _walk(data: Buffer) -> tuple[Header, int, int] | None:
    """Elements up to the pixels, where their value starts, and its declared length."""
    header: Header = {}
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
        if tag <= last or tag in _FRAMES or (tag > _META and last <= _META and not _is_syntax_known(header)):
            return None
        if tag == _PIXELS:
            return header, start, length
        at = start + length
        if at > size or tag > _PIXELS:  # an undefined length lies beyond every end
            return None
        if tag in _WANTED:
            keyword, expected, parse = _WANTED[tag]
            if kind != expected:
                return None
            header[keyword] = parse(bytes(data[start:at]))
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
'''

SOURCE['osteograde/imaging/dicom/pixels.py'] = r'''"""The pixels of a DICOM data set as grey values, after everything declared was held against caps and bytes present."""

from __future__ import annotations

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import RLELossless

from osteograde.imaging.dicom import streams
from osteograde.imaging.dicom.rle import MAX_EXPANSION, MAX_PIXELS, decode_rle
from osteograde.imaging.dicom.tags import DAMAGE, UnreadableSlice, whole_of

MAX_FRAMES = 4096
MAX_FRAME_BYTES = 2 << 30  # all frames of a file
FREE_BYTES, MAX_RATIO = 64 << 20, 200  # decoded pixels beyond so many bytes may not be more times what is there


def checked_frames(dataset: Dataset) -> int:
    """The number of frames, after everything declared has been held against the caps."""
    rows, columns = whole_of(dataset, "Rows", 0), whole_of(dataset, "Columns", 0)
    frames = max(1, whole_of(dataset, "NumberOfFrames", 1))
    bits, samples = max(1, whole_of(dataset, "BitsAllocated", 8)), max(1, whole_of(dataset, "SamplesPerPixel", 1))
    if rows < 1 or columns < 1:
        raise UnreadableSlice("no_size")
    size = rows * columns * frames * samples * max(1, bits // 8)
    if rows * columns > MAX_PIXELS or frames > MAX_FRAMES or size > MAX_FRAME_BYTES:
        raise UnreadableSlice("image_too_large")
    present = len(dataset.get("PixelData") or b"")
    if dataset.file_meta.TransferSyntaxUID == RLELossless and size > MAX_EXPANSION * present * max(1, 8 // bits):
        raise UnreadableSlice("pixels_cut")
    compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if compressed and size > max(FREE_BYTES, MAX_RATIO * present):
        raise UnreadableSlice("image_too_large")
    if not compressed and rows * columns * frames * samples * bits // 8 > 2 * _present(dataset):
        raise UnreadableSlice("pixels_cut")
    return frames


def _present(dataset: Dataset) -> int:
    """Bytes of pixels in a file that does not compress them."""
    return max(len(dataset.get(keyword) or b"") for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def complete(dataset: Dataset) -> None:
    """Say how pixels are stored where the file does not: plain unsigned grey that uses all its bits."""
    if "BitsAllocated" not in dataset:
        dataset.BitsAllocated = 16
    bits = whole_of(dataset, "BitsAllocated", 16)
    usual = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
    for keyword, value in {**usual, "BitsStored": bits}.items():
        if keyword not in dataset:
            setattr(dataset, keyword, value)


def fill_cut_pixels(dataset: Dataset) -> tuple[str, ...]:
    """Uncompressed pixels cut short: zeros for the rest where half is there; returns the notes."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return ()
    expected, present = get_expected_length(dataset), len(dataset.PixelData or b"")
    if 2 * present < expected:
        raise UnreadableSlice("pixels_cut")
    if present >= expected:
        return ()
    dataset.PixelData = dataset.PixelData + bytes(expected - present + expected % 2)
    return ("pixels_filled",)


def decoded_frames(dataset: Dataset, frames: int) -> np.ndarray:
    """(frames, rows, columns) of grey values as stored."""
    syntax = dataset.file_meta.TransferSyntaxUID
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    samples, bits = whole_of(dataset, "SamplesPerPixel", 1), whole_of(dataset, "BitsAllocated", 0)
    stored = whole_of(dataset, "BitsStored", bits)
    high = whole_of(dataset, "HighBit", stored - 1)
    if high != stored - 1:  # left-aligned bits: pydicom would cut off the upper ones
        dataset.BitsStored = bits
    array = None
    try:
        if syntax == RLELossless and frames == samples == 1 and bits in (8, 16):
            array = decode_rle(get_frame(dataset.PixelData, 0, number_of_frames=1), rows, columns, bits // 8)
            if array is not None and whole_of(dataset, "PixelRepresentation", 0) == 1:
                array = array.view(f"i{array.itemsize}")
        if array is None and syntax in streams.FAMILIES and not streams.sizes_agree(dataset, frames):
            raise UnreadableSlice("pixels_damaged" if _decodable(dataset) else f"no_decoder_{syntax.keyword}")
        if array is None:
            array = dataset.pixel_array
        grey = _grey(dataset, array, samples, stored, high)
    except UnreadableSlice:
        raise
    except DAMAGE:
        raise UnreadableSlice("pixels_damaged" if _decodable(dataset) else f"no_decoder_{syntax.keyword}") from None
    if grey.size != frames * rows * columns:
        raise UnreadableSlice("pixels_damaged")
    return grey.reshape(frames, rows, columns)


def _decodable(dataset: Dataset) -> bool:
    try:
        return bool(pydicom.pixels.get_decoder(dataset.file_meta.TransferSyntaxUID).is_available)
    except NotImplementedError:  # so pydicom says that it knows no such transfer syntax
        return False


def _grey(dataset: Dataset, array: np.ndarray, samples: int, stored: int, high: int) -> np.ndarray:
    photometric = str(dataset.PhotometricInterpretation).strip()
    if photometric == "PALETTE COLOR":
        array, samples = apply_color_lut(array, dataset), 3
    if samples >= 3:
        return array[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey_values(array, photometric, stored, high)


def grey_values(array: np.ndarray, photometric: str, stored: int, high: int) -> np.ndarray:
    """Stored words as grey values, brighter is more: sign and unused bits put right, MONOCHROME1 inverted."""
    array = _sign_extended(array, stored, high)
    if photometric != "MONOCHROME1":
        return array
    if array.dtype.kind == "f":
        return np.nanmax(array, initial=0.0) - array
    if array.dtype.kind == "i":
        return ~array
    return array ^ array.dtype.type((1 << min(max(stored, 1), 8 * array.itemsize)) - 1)


def _sign_extended(array: np.ndarray, stored: int, high: int) -> np.ndarray:
    """Only the stored bits of each word, the highest of them as the sign where pixels are signed."""
    allocated = 8 * array.itemsize
    if array.dtype.kind not in "iu" or not 1 <= stored < allocated:
        return array
    high = high if stored - 1 <= high < allocated else stored - 1
    if array.dtype.kind == "u" and high == stored - 1 and int(array.max()) < 1 << stored:
        return array
    return (array << (allocated - 1 - high)) >> (allocated - stored)
'''

SOURCE['osteograde/imaging/dicom/radiograph.py'] = r'''"""One DICOM radiograph (CR, DX, RG or a secondary capture) as a picture with bone bright, and what it says of itself.

A radiograph has no position in the patient; where left and right are is said by the standard view (the patient's left
on the image right) and by PatientOrientation (PS3.3 C.7.6.1.1.1), how large a pixel is by several tags of which the
detector's comes first (PS3.3 C.8.11.4.1.1: PixelSpacing may be calibrated, or a copy). No magnification is removed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.utils import get_expected_length

from osteograde.imaging.dicom.pixels import checked_frames, complete, decoded_frames, fill_cut_pixels
from osteograde.imaging.dicom.rle import MAX_PIXELS
from osteograde.imaging.dicom.slices import DEFLATED, contents, parsed, rescaled
from osteograde.imaging.dicom.tags import DAMAGE, UnreadableSlice, number_of, numbers_of, quiet_pydicom, whole_of
from osteograde.imaging.raster import UnreadableImage

SPACING_MM = (0.02, 5.0)  # beyond these it is a typing error
_SPACINGS = ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing")
_OUTLINE = ["Rows", "Columns", "ImageLaterality", "Laterality", *_SPACINGS]
_SIDES = {"R": "right", "L": "left", "B": "both"}


@dataclass(frozen=True, eq=False)
class Film:
    """pixels: (H, W), bone bright, the patient's left on the image right where the file says how it lies; integers as
    stored or, rescaled or from colours, float32. pixel_mm: steps between (rows, columns), None where no tag gives a
    sensible one. laterality: "right", "left", "both" or "" (unknown). view_position: as tagged, upper case ("PA",
    "AP", "LL", ...). codes: what was assumed or repaired, counted."""

    pixels: np.ndarray
    pixel_mm: tuple[float, float] | None = None
    laterality: str = ""
    view_position: str = ""
    codes: Counter[str] = field(default_factory=Counter)


def read_film(path: Path) -> Film:
    """The first image of a DICOM file, which is opened once. Raises UnreadableImage with a code of the slice reader."""
    with quiet_pydicom():
        try:
            return _film(parsed(contents(path)))
        except UnreadableSlice as error:
            raise UnreadableImage(error.code) from None
        except DAMAGE:  # any tag may turn out to be nonsense when it is looked at
            raise UnreadableImage("damaged_header") from None


def film_outline(path: Path) -> tuple[int, int, str, float]:
    """(width, height, laterality, width in mm) as the header says, 0 mm where it does not; no pixel is read. Raises
    UnreadableImage."""
    with quiet_pydicom():
        try:
            dataset = _header(Path(path))
        except UnreadableSlice as error:
            raise UnreadableImage(error.code) from None
        except FileNotFoundError:
            raise UnreadableImage("file_unreadable") from None
        except DAMAGE:
            raise UnreadableImage("not_dicom") from None
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableImage("not_dicom")
    width, height = whole_of(dataset, "Columns", 0), whole_of(dataset, "Rows", 0)
    if width < 1 or height < 1:
        raise UnreadableImage("no_size")
    if width * height > MAX_PIXELS:
        raise UnreadableImage("image_too_large")
    steps_mm = _pixel_mm(dataset, Counter())
    return width, height, _laterality(dataset, Counter()), width * steps_mm[1] if steps_mm else 0.0


def _header(path: Path) -> Dataset:
    with path.open("rb") as file:
        if DEFLATED in file.read(2048):  # opening inflates the whole file, so it is held against its cap first
            return parsed(contents(path))
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_OUTLINE)


def _film(dataset: Dataset) -> Film:
    if not dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
        raise UnreadableSlice("unknown_syntax")
    complete(dataset)
    codes: Counter[str] = Counter()
    frames = checked_frames(dataset)
    if frames > 1:
        _keep_first_frame(dataset, frames)
        codes["several_frames"] += 1
    codes.update(fill_cut_pixels(dataset))
    pixels = decoded_frames(dataset, 1)[0]
    pixels = rescaled(pixels, number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept"))
    return Film(
        pixels=_turned(dataset, pixels, codes),
        pixel_mm=_pixel_mm(dataset, codes),
        laterality=_laterality(dataset, codes),
        view_position=_words(dataset, "ViewPosition")[0],
        codes=codes,
    )


def _keep_first_frame(dataset: Dataset, frames: int) -> None:
    """A film is one image; the others are not decoded."""
    try:
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            dataset.PixelData = encapsulate([get_frame(dataset.PixelData, 0, number_of_frames=frames)])
        dataset.NumberOfFrames = 1
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated and "PixelData" in dataset:
            length = get_expected_length(dataset)
            dataset.PixelData = dataset.PixelData[: length + length % 2]
    except DAMAGE:
        raise UnreadableSlice("pixels_damaged") from None


def _turned(dataset: Dataset, pixels: np.ndarray, codes: Counter[str]) -> np.ndarray:
    """Mirrored where rows run to the patient's right, upside down where columns run to the head."""
    along_row, down_column = [*_words(dataset, "PatientOrientation"), "", ""][:2]
    if along_row.startswith("R") and down_column[:1] in ("F", "H"):
        pixels = pixels[:, ::-1]
        codes["orientation_mirrored"] += 1
    if along_row[:1] in ("L", "R", "A", "P") and down_column.startswith("H"):
        pixels = pixels[::-1]
        codes["orientation_upside_down"] += 1
    return np.ascontiguousarray(pixels)


def _pixel_mm(dataset: Dataset, codes: Counter[str]) -> tuple[float, float] | None:
    for keyword in _SPACINGS:
        found = numbers_of(dataset, keyword, 2)
        if found is not None and np.all((found >= SPACING_MM[0]) & (found <= SPACING_MM[1])):
            return float(found[0]), float(found[1])
        if any(_words(dataset, keyword)):
            codes["spacing_ignored"] += 1
    return None


def _laterality(dataset: Dataset, codes: Counter[str]) -> str:
    sides = [_SIDES.get(_words(dataset, keyword)[0], "") for keyword in ("ImageLaterality", "Laterality")]
    if all(sides) and sides[0] != sides[1]:
        codes["laterality_differs"] += 1
    return sides[0] or sides[1]


def _words(dataset: Dataset, keyword: str) -> list[str]:
    """The values of a tag in upper case; [""] where it is absent or nonsense."""
    try:
        value = dataset.get(keyword)
        many = [value] if value is None or isinstance(value, str) else list(value)
    except DAMAGE:
        return [""]
    return ["" if one is None else str(one).strip().upper() for one in many] or [""]
'''

SOURCE['osteograde/imaging/dicom/rle.py'] = r'''"""RLE Lossless frames through OpenCV: the same bytes, dressed as a TIFF file in memory.

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
'''

SOURCE['osteograde/imaging/dicom/rle_numba.py'] = r'''"""RLE Lossless at the speed of C, for environments that have numba; the package does not ask for it.

A run is copied 64 bytes at a time and may be written beyond its end, onto what the next run overwrites or into spare
room behind the plane: most runs are short, and copying byte by byte takes ten times longer. Whatever is not exactly one
plane per segment is left to the other decoders. Importing this module without numba is an ImportError.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

STEP = 64
SPARE = STEP  # bytes behind a plane, and words behind the pixels, that the last copy may reach
_BYTES, _PAIRED = ir.VectorType(ir.IntType(8), STEP), ir.VectorType(ir.IntType(8), 2 * STEP)
_LANES, _PAIRED_LANES = ir.VectorType(ir.IntType(32), STEP), ir.VectorType(ir.IntType(32), 2 * STEP)


def _pointer(context, builder, kind, array, index, block=_BYTES):
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), block.as_pointer())


def _spread(builder, value):
    """A block of one byte, STEP times."""
    empty = ir.Constant(_BYTES, ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, empty, ir.Constant(_LANES, [0] * STEP))


def _store_words(context, builder, kinds, words, at, low, upper):
    """words[at : at + STEP] = upper[at : at + STEP] << 8 | low, a block of STEP bytes."""
    high = builder.load(_pointer(context, builder, kinds[1], upper, at), align=1)
    order = [lane for pair in zip(range(STEP), range(STEP, 2 * STEP), strict=True) for lane in pair]
    both = builder.shuffle_vector(low, high, ir.Constant(_PAIRED_LANES, order))
    builder.store(both, _pointer(context, builder, kinds[0], words, at, _PAIRED), align=1)


@intrinsic
def _copy(_, target, at, source, start):
    """target[at : at + STEP] = source[start : start + STEP], of bytes and without a check."""

    def made(context, builder, signature, values):
        first, _, second, _ = signature.args
        block = builder.load(_pointer(context, builder, second, values[2], values[3]), align=1)
        builder.store(block, _pointer(context, builder, first, values[0], values[1]), align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), made


@intrinsic
def _fill(_, target, at, value):
    """target[at : at + STEP] = value, of bytes and without a check."""

    def made(context, builder, signature, values):
        block = _spread(builder, values[2])
        builder.store(block, _pointer(context, builder, signature.args[0], values[0], values[1]), align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint8), made


@intrinsic
def _copy_words(_, words, at, source, start, upper):
    """words[at : at + STEP] = upper[at : at + STEP] << 8 | source[start : start + STEP], without a check."""

    def made(context, builder, signature, values):
        kinds = signature.args
        low = builder.load(_pointer(context, builder, kinds[2], values[2], values[3]), align=1)
        _store_words(context, builder, (kinds[0], kinds[4]), values[0], values[1], low, values[4])
        return context.get_dummy_value()

    return types.void(words, types.intp, source, types.intp, upper), made


@intrinsic
def _fill_words(_, words, at, value, upper):
    """words[at : at + STEP] = upper[at : at + STEP] << 8 | value, without a check."""

    def made(context, builder, signature, values):
        kinds = signature.args
        low = _spread(builder, values[2])
        _store_words(context, builder, (kinds[0], kinds[3]), values[0], values[1], low, values[3])
        return context.get_dummy_value()

    return types.void(words, types.intp, types.uint8, upper), made


def _compiled(function):
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep the code in: compiled anew by every process
        return numba.njit(nogil=True)(function)


@_compiled
def _plane(source, start, end, target, size):
    """Unpack source[start:end] into target[:size], which has SPARE bytes more; whether it is exactly that."""
    at = np.int64(0)
    while start < end and at < size:
        code = np.int64(source[start])
        start += 1
        if code < 128:
            count = code + 1
            if start + count > end or at + count > size:
                return False
            if start + count + STEP > source.size:
                for i in range(count):
                    target[at + i] = source[start + i]
            else:
                for i in range(0, count, STEP):
                    _copy(target, at + i, source, start + i)
            start += count
            at += count  # type: ignore[assignment]
        elif code > 128:
            count = 257 - code
            if start >= end or at + count > size:
                return False
            for i in range(0, count, STEP):
                _fill(target, at + i, source[start])
            start += 1
            at += count  # type: ignore[assignment]
    return at == size


@_compiled
def _words(source, start, end, upper, words, size):
    """The same for the low plane, each byte put below that of ``upper`` at once; words has SPARE words more."""
    at = np.int64(0)
    while start < end and at < size:
        code = np.int64(source[start])
        start += 1
        if code < 128:
            count = code + 1
            if start + count > end or at + count > size:
                return False
            if start + count + STEP > source.size:
                for i in range(count):
                    words[at + i] = np.uint16(upper[at + i]) << 8 | np.uint16(source[start + i])
            else:
                for i in range(0, count, STEP):
                    _copy_words(words, at + i, source, start + i, upper)
            start += count
            at += count  # type: ignore[assignment]
        elif code > 128:
            count = 257 - code
            if start >= end or at + count > size:
                return False
            for i in range(0, count, STEP):
                _fill_words(words, at + i, source[start], upper)
            start += 1
            at += count  # type: ignore[assignment]
    return at == size


@_compiled
def _frame(source, high, low, upper, words, size):
    """Two planes, (start, length) each, to words; whether both are whole."""
    return _plane(source, high[0], high[0] + high[1], upper, size) and _words(
        source, low[0], low[0] + low[1], upper, words, size
    )


def decode(buffer: bytearray | memoryview, strips: list[tuple[int, int]], rows: int, columns: int) -> np.ndarray | None:
    """(rows, columns) uint16 of the PackBits of the high and the low plane, each (start, length) in the buffer.

    None where one of them is not exactly rows x columns bytes. The interpreter's lock is released meanwhile.
    """
    (high, low), size = strips, rows * columns
    source = np.frombuffer(buffer, np.uint8)
    if min(*high, *low) < 0 or max(sum(high), sum(low)) > source.size:
        return None
    upper, words = np.empty(size + SPARE, np.uint8), np.empty(size + SPARE, np.uint16)
    return words[:size].reshape(rows, columns) if _frame(source, high, low, upper, words, size) else None


def works() -> bool:
    """Compile it and try it: literals, repeats, and three frames that are damaged."""
    literal = bytes(range(100))
    behind = bytes(STEP)  # or no run would be copied in blocks, for want of room
    buffer = bytearray(b"\x81\x07" + b"\x63" + literal + b"\x80" + b"\xe5\xff" + b"\x81\x07" * 2 + behind)
    high, low, longer = (0, 2), (2, 104), (106, 4)
    words = np.frombuffer(literal + b"\xff" * 28, np.uint8).reshape(8, 16) + np.uint16(0x0700)
    try:
        found = decode(buffer, [high, low], 8, 16)
        damaged = [decode(buffer, [longer, low], 16, 16), decode(buffer, [high, (2, 50)], 8, 16)]
        damaged.append(decode(buffer, [high, low], 8, 15))
    except (NumbaError, AttributeError, TypeError, OSError):  # made for another numba
        return False
    return found is not None and np.array_equal(found, words) and all(one is None for one in damaged)
'''

SOURCE['osteograde/imaging/dicom/series.py'] = r'''"""A folder of DICOM files to volumes. Each file is opened once; one that cannot be read costs its own slice only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from osteograde.imaging.dicom.slices import Slice, UnreadableSlice, read_slices
from osteograde.imaging.dicom.stacks import stack
from osteograde.imaging.dicom.tags import quiet_pydicom
from osteograde.imaging.geometry import Volume


class UnreadableSeries(ValueError):
    """A folder that gives no volume. ``code`` says why in one word; ``codes`` counts the reasons per file."""

    def __init__(self, code: str, codes: Counter[str] | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.codes = codes or Counter()


def read_series(
    folder: Path,
    *,
    files: Sequence[Path] = (),
    default_directions: np.ndarray | None = None,
    map: Callable[..., Iterable] = map,
) -> tuple[list[Volume], Counter[str]]:
    """All regular files of a folder as volumes, and how often a slice was dropped or a value assumed, by code.

    Files may have any name; what is no DICOM image is passed over and counted. files: only these.
    ``default_directions`` (rows D, H, W in
    LPS) stand in for a missing orientation. ``map`` may be a thread pool's: decoding runs outside the interpreter's
    lock. Raises UnreadableSeries where the folder is missing or empty, or none of its files gives a slice.
    """
    folder = Path(folder)
    paths = list(files) or _files(folder)
    codes: Counter[str] = Counter()
    slices: list[Slice] = []
    with quiet_pydicom():
        for found in map(_slices_or_code, paths):
            if isinstance(found, str):
                codes[found] += 1
            else:
                slices += found
    if not slices:
        code = codes.most_common(1)[0][0] if codes else "empty_folder"
        raise UnreadableSeries(code, codes)
    volumes, assumed = stack(slices, folder.name, default_directions, lost=sum(codes.values()))
    return volumes, codes + assumed


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_file(entry))
    except OSError:
        raise UnreadableSeries("no_folder") from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def _slices_or_code(path: Path) -> tuple[Slice, ...] | str:
    try:
        return read_slices(path)
    except UnreadableSlice as error:
        return error.code
'''

SOURCE['osteograde/imaging/dicom/slices.py'] = r'''"""One DICOM file to slices: pixels as the values that were measured, and where the file says they lie.

No tag but the size and the pixels is needed. What is declared is checked against caps and against the bytes present
before anything is allocated. Errors carry a code and never a tag's value, so that they can be counted and logged.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from osteograde.imaging import files
from osteograde.imaging.dicom.header import quick_read
from osteograde.imaging.dicom.pixels import checked_frames, complete, decoded_frames, fill_cut_pixels, grey_values
from osteograde.imaging.dicom.tags import DAMAGE, Source, UnreadableSlice, number_of, numbers_of

MAX_FILE_BYTES = 512 << 20
MAX_INFLATED_BYTES = 1 << 30
_FREE_INFLATED_BYTES, _MAX_INFLATION = 64 << 20, 200
DEFLATED = b"1.2.840.10008.1.2.1.99"
_SPACING_MM = (0.01, 20.0)  # a pixel spacing beyond these is a typing error


@dataclass(frozen=True, eq=False)
class Slice:
    """One image of a file. Missing or senseless tags are None.

    pixels: (rows, columns), sign-extended, MONOCHROME1 inverted, rescaled where the file says so. position_mm: (3,)
    LPS of the first pixel's centre. orientation: (6,) unit directions of a row and of a column. spacing_mm: (2,), the
    step between rows first. gap_mm: distance to the next slice (SpacingBetweenSlices). notes: codes of repairs.
    """

    pixels: np.ndarray
    name: str
    position_mm: np.ndarray | None = None
    orientation: np.ndarray | None = None
    spacing_mm: np.ndarray | None = None
    gap_mm: float | None = None
    thickness_mm: float | None = None
    frame: str = ""
    instance: int | None = None
    location_mm: float | None = None
    notes: tuple[str, ...] = ()


def read_slice(path: Path) -> Slice:
    """The only slice of a file; UnreadableSlice("several_frames") where there are more."""
    slices = read_slices(path)
    if len(slices) != 1:
        raise UnreadableSlice("several_frames")
    return slices[0]


def read_slices(path: Path) -> tuple[Slice, ...]:
    """All slices of one DICOM file, which is opened once; raises UnreadableSlice."""
    data, name = contents(path), _stem(path)
    quick = quick_read(data)
    if quick is not None:
        header, pixels = quick
        stored = header["BitsStored"]
        pixels = grey_values(pixels, header["PhotometricInterpretation"], stored, header.get("HighBit", stored - 1))
        return (_slice(header, pixels, 0, 1, name, ()),)
    dataset = parsed(data)
    try:
        return _slices(dataset, name)
    except UnreadableSlice:
        raise
    except DAMAGE:  # any tag may turn out to be nonsense when it is looked at
        raise UnreadableSlice("damaged_header") from None


def _slices(dataset: Dataset, name: str) -> tuple[Slice, ...]:
    if not dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
        raise UnreadableSlice("unknown_syntax")
    complete(dataset)
    frames = checked_frames(dataset)
    notes = fill_cut_pixels(dataset)
    if frames > 1 and not _frames_are_placed(dataset, frames):
        notes = (*notes, "frame_without_position")  # all lie where the file lies, if it says that much
    pixels = decoded_frames(dataset, frames)
    return tuple(_slice(dataset, pixels[k], k, frames, name, notes) for k in range(frames))


def contents(path: Path) -> memoryview:
    """The bytes of a file; UnreadableSlice beyond the cap and for an empty file."""
    try:
        data = files.contents(Path(path), MAX_FILE_BYTES)
    except files.FileTooLarge:
        raise UnreadableSlice("file_too_large") from None
    except OSError:
        raise UnreadableSlice("file_unreadable") from None
    if not data:
        raise UnreadableSlice("empty_file")
    return data


def parsed(data: memoryview) -> Dataset:
    """The data set with a transfer syntax, also where preamble or file meta are missing."""
    marked = data[128:132] == b"DICM"
    if DEFLATED in bytes(data[:2048]):
        _check_inflation(data)
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True)
        sized = "Rows" in dataset and "Columns" in dataset
        if sized and not getattr(dataset.file_meta, "TransferSyntaxUID", ""):
            dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
    except DAMAGE:
        raise UnreadableSlice("damaged_header" if marked else "not_dicom") from None
    if not sized:
        raise UnreadableSlice("not_dicom" if not marked else "no_image" if len(dataset) else "file_cut")
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadableSlice("no_pixels")
    return dataset


def _guessed_syntax(dataset: Dataset) -> UID:
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check_inflation(data: memoryview) -> None:
    """pydicom inflates a deflated file whole on opening; look first how far it goes."""
    length = struct.unpack_from("<L", data, 140)[0] if len(data) > 144 else 0
    limit = min(MAX_INFLATED_BYTES, max(_FREE_INFLATED_BYTES, _MAX_INFLATION * len(data)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    rest: bytes | memoryview = data[144 + length :]
    written = 0
    try:
        while rest and not inflater.eof:
            written += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
            if written > limit:
                raise UnreadableSlice("inflates_too_far")
    except zlib.error:
        raise UnreadableSlice("damaged_header") from None


def _slice(dataset: Source, pixels: np.ndarray, k: int, frames: int, name: str, notes: tuple[str, ...]) -> Slice:
    measures = _macro(dataset, k, "PixelMeasuresSequence")
    sources = (dataset,) if measures is dataset else (measures, dataset)
    values = _macro(dataset, k, "PixelValueTransformationSequence")
    gaps = [number_of(source, "SpacingBetweenSlices") for source in sources]
    thick = [number_of(source, "SliceThickness") for source in sources]
    return Slice(
        pixels=rescaled(pixels, number_of(values, "RescaleSlope"), number_of(values, "RescaleIntercept")),
        name=name if frames == 1 else f"{name}-{k + 1}",
        position_mm=numbers_of(_macro(dataset, k, "PlanePositionSequence"), "ImagePositionPatient", 3),
        orientation=_unit(numbers_of(_macro(dataset, k, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)),
        spacing_mm=_spacing(*sources),
        gap_mm=next((abs(gap) for gap in gaps if gap), None),
        thickness_mm=next((abs(size) for size in thick if size), None),
        frame=str(dataset.get("FrameOfReferenceUID", "") or ""),
        instance=_instance(dataset, k, frames),
        location_mm=number_of(dataset, "SliceLocation") if frames == 1 else None,
        notes=notes,
    )


def _macro(dataset: Source, k: int, sequence: str) -> Source:
    """Where frame k keeps a group of tags: its own functional group, the shared one, or the data set itself."""
    if isinstance(dataset, dict):  # of a usual file: one frame, no groups
        return dataset
    for keyword, index in (("PerFrameFunctionalGroupsSequence", k), ("SharedFunctionalGroupsSequence", 0)):
        try:
            return dataset[keyword].value[index][sequence].value[0]
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return dataset


def _frames_are_placed(dataset: Dataset, frames: int) -> bool:
    groups = [_macro(dataset, k, "PlanePositionSequence") for k in range(frames)]
    return all(group is not dataset and numbers_of(group, "ImagePositionPatient", 3) is not None for group in groups)


def rescaled(pixels: np.ndarray, slope: float | None, intercept: float | None) -> np.ndarray:
    slope, intercept = slope or 1.0, intercept or 0.0
    if (slope, intercept) == (1.0, 0.0):
        return pixels
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _spacing(*sources: Source) -> np.ndarray | None:
    for source in sources:
        for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
            found = numbers_of(source, keyword, 2)
            if found is not None and all(_SPACING_MM[0] <= step <= _SPACING_MM[1] for step in found.tolist()):
                return found
    return None


def _unit(orientation: np.ndarray | None) -> np.ndarray | None:
    """Two perpendicular unit vectors, or None where the tag holds something else."""
    return None if orientation is None else _unit_of(tuple(orientation.tolist()))


@lru_cache(maxsize=256)  # all slices of a series say the same
def _unit_of(numbers: tuple[float, ...]) -> np.ndarray | None:
    row, column = np.array(numbers[:3]), np.array(numbers[3:])
    lengths = math.sqrt(row @ row), math.sqrt(column @ column)
    if min(lengths) < 0.5 or max(lengths) > 2.0:
        return None
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > 0.02:
        return None
    column = column - (row @ column) * row
    unit = np.concatenate([row, column / math.sqrt(column @ column)])
    unit.flags.writeable = False
    return unit


def _instance(dataset: Source, k: int, frames: int) -> int | None:
    if frames > 1:
        return k + 1
    number = number_of(dataset, "InstanceNumber")
    return None if number is None else int(number)


def _stem(path: Path) -> str:
    """The name without its extension; the last part of a UID is no extension."""
    name = os.path.basename(path)  # noqa: PTH119 (a Path's own parts cost as much as a header)
    stem, _, extension = name.rpartition(".")
    return stem if stem and extension and not extension.isdigit() else name
'''

SOURCE['osteograde/imaging/dicom/stacks.py'] = r'''"""Slices to volumes: ordered along the slice normal, one volume per regular stack.

Slices of another size, spacing, tilt or frame, behind a gap, or lying on top of each other are different volumes. What
a file does not say is taken from its neighbours first, then from the caller, then from a default; each is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from osteograde.imaging.dicom.slices import Slice
from osteograde.imaging.geometry import Volume

ANGLE_DEGREES = 0.25  # directions closer than this are the same tilt; 0.5 mm at 100 mm from the corner
STEP_RANGE = (0.6, 1.5)  # of the stack's step: nearer is another stack, further a gap
DEFAULT_STEP_MM = 4.0
SAME_PLACE_MM = 0.05
UNSIZED = "spacing_unknown"  # code: no slice of the series has a pixel spacing, all were taken for 1 mm
AXIAL = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def stack(
    slices: Sequence[Slice], series: str = "", default_directions: np.ndarray | None = None, lost: int = 0
) -> tuple[list[Volume], Counter[str]]:
    """All slices of a series as volumes, and the codes of what had to be assumed.

    default_directions: unit LPS rows of the (slice, row, column) axes, used where orientation or positions are missing.
    lost: files of the series that could not be read; so many slices, and those of another size, may be missing inside a
    stack without splitting it.
    """
    codes: Counter[str] = Counter(note for one in slices for note in one.notes)
    directions = AXIAL if default_directions is None else np.asarray(default_directions, float)
    ordered = sorted(slices, key=_file_order)
    ordered = _with_orientation(ordered, directions, codes)
    ordered = _with_spacing(ordered, codes)
    volumes = []
    told = any(one.position_mm is not None for one in ordered)
    for group in _alike(ordered):
        placed = _with_positions(group, directions[0], codes, told)
        aside = sum(_same_tilt(group[0], one) and not _same_grid(group[0], one) for one in ordered)
        chains = _bridged(_chains(placed), lost + aside, codes) if placed else []
        volumes += [_volume(chain, series, codes) for chain in chains]
    return volumes, +codes


def _file_order(one: Slice) -> tuple:
    """Instance number, then name with its numbers read as numbers: stable where positions tie or are missing."""
    parts = tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", one.name))
    return (one.instance is None, one.instance or 0, parts)


def _with_orientation(slices: list[Slice], directions: np.ndarray, codes: Counter[str]) -> list[Slice]:
    lost = sum(one.orientation is None for one in slices)
    if not lost:
        return slices
    codes["orientation_assumed"] += lost
    known = [one.orientation for one in slices if one.orientation is not None]
    usual = known[len(known) // 2] if known else np.concatenate([directions[2], directions[1]])
    return [one if one.orientation is not None else replace(one, orientation=usual) for one in slices]


def _with_spacing(slices: list[Slice], codes: Counter[str]) -> list[Slice]:
    lost = sum(one.spacing_mm is None for one in slices)
    if not lost:
        return slices
    known = [one.spacing_mm for one in slices if one.spacing_mm is not None]
    codes["spacing_assumed" if known else UNSIZED] += lost
    usual = np.median(known, axis=0) if known else np.ones(2)
    return [one if one.spacing_mm is not None else replace(one, spacing_mm=usual) for one in slices]


def _alike(slices: list[Slice]) -> list[list[Slice]]:
    """Groups of one size, spacing, tilt and frame of reference, in the order in which they first appear."""
    groups: list[list[Slice]] = []
    for one in slices:
        for group in groups:
            if _same_grid(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _same_grid(a: Slice, b: Slice) -> bool:
    assert a.spacing_mm is not None and b.spacing_mm is not None
    return bool(
        a.pixels.shape == b.pixels.shape
        and (a.frame == b.frame or not a.frame or not b.frame)
        and (_equal(a.spacing_mm, b.spacing_mm) or np.allclose(a.spacing_mm, b.spacing_mm, rtol=0.005))
        and _same_tilt(a, b)
    )


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Same to the bit: the usual case, told without arithmetic."""
    return a.tobytes() == b.tobytes()


def _same_tilt(a: Slice, b: Slice) -> bool:
    assert a.orientation is not None and b.orientation is not None
    one, other = a.orientation, b.orientation
    if _equal(one, other):
        return True
    turned = max(np.linalg.norm(one[:3] - other[:3]), np.linalg.norm(one[3:] - other[3:]))
    return bool(turned < np.radians(ANGLE_DEGREES))


def _with_positions(slices: list[Slice], forward: np.ndarray, codes: Counter[str], told: bool) -> list[Slice]:
    """Every slice with a position: its own, on the line through the others, or one step after another.

    told: some slice of the series has a position. A group of another size that has none, such as a picture of the
    screen, could lie anywhere and is dropped.
    """
    known = [one for one in slices if one.position_mm is not None]
    if told and not known:
        codes["position_missing"] += len(slices)
        return []
    start = np.zeros(3) if not known else np.asarray(known[0].position_mm)
    if len(known) > 1 and len({one.instance for one in known}) == len(known) and _span_mm(known) < SAME_PLACE_MM:
        codes["positions_equal"] += len(known)
        known = []
    if len(known) == len(slices):
        return slices
    if known:
        return _on_the_line(slices, known, codes)
    codes["position_assumed"] += len(slices)
    if len({one.instance for one in slices}) < len(slices):
        locations = [one.location_mm for one in slices if one.location_mm is not None]
        if len(set(locations)) == len(slices):
            slices = sorted(slices, key=lambda one: one.location_mm or 0.0)
    normal = _normal(slices[0])
    step = normal * (_step_mm(slices) * (1.0 if normal @ forward >= 0 else -1.0))
    return [replace(one, position_mm=start + k * step) for k, one in enumerate(slices)]


def _on_the_line(slices: list[Slice], known: list[Slice], codes: Counter[str]) -> list[Slice]:
    """Missing positions from instance numbers, where the known ones run straight with theirs; else dropped."""
    lost = len(slices) - len(known)
    numbers = [one.instance for one in slices]
    if len(known) > 1 and None not in numbers and len(set(numbers)) == len(numbers):
        design = np.array([[1.0, one.instance] for one in known], float)
        positions = np.array([one.position_mm for one in known])
        fit = np.linalg.lstsq(design, positions, rcond=None)[0]
        if abs(design @ fit - positions).max() < 0.25 * np.linalg.norm(fit[1]):
            codes["position_interpolated"] += lost
            line = {id(one): np.array([1.0, one.instance or 0]) @ fit for one in slices}
            return [one if one.position_mm is not None else replace(one, position_mm=line[id(one)]) for one in slices]
    codes["position_missing"] += lost
    return known


def _chains(slices: list[Slice]) -> list[list[Slice]]:
    """Regular stacks: with the first step that needs fewest of them, an uneven one counted as three."""
    normal = _normal(slices[0])
    places = np.array([one.position_mm for one in slices])
    order = np.argsort(places @ normal, kind="stable")
    slices, places = [slices[k] for k in order], places[order]
    along = places @ normal
    best: list[list[int]] = []
    fewest = len(slices) * 3 + 1
    for step in _step_candidates(slices, along):
        chains = _linked(places, normal, step)
        count = len(chains) + 2 * sum(_is_uneven(places[chain], normal) for chain in chains)
        if count < fewest:
            best, fewest = chains, count
        if fewest == 1:
            break
    return [[slices[k] for k in chain] for chain in best]


def _step_candidates(slices: list[Slice], along_mm: np.ndarray) -> list[float]:
    """Distances that may be the stack's step; every second slice counts where two stacks interleave."""
    found = []
    for apart in (1, 2):
        steps = along_mm[apart:] - along_mm[:-apart]
        if (steps > SAME_PLACE_MM).any():
            found.append(float(np.percentile(steps[steps > SAME_PLACE_MM], 50, method="lower")))
    return [*found, _step_mm(slices)]


def _linked(places_mm: np.ndarray, normal: np.ndarray, step_mm: float) -> list[list[int]]:
    """Each place joined to the chain that it continues best, else it starts one."""
    count = len(places_mm)
    alone = _misfits_mm(places_mm[:1], places_mm[:-1], np.arange(count - 1), places_mm[1:], normal, step_mm)
    if (alone < np.inf).all():  # the usual series: one chain from end to end
        return [list(range(count))]
    chains: list[list[int]] = [[0]]
    for k in range(1, count):
        first, last = ([chain[end] for chain in chains] for end in (0, -1))
        steps = np.array([len(chain) - 1 for chain in chains])
        misfits = _misfits_mm(places_mm[first], places_mm[last], steps, places_mm[k], normal, step_mm)
        if misfits.min() < np.inf:
            chains[int(np.argmin(misfits))].append(k)
        else:
            chains.append([k])
    return chains


def _misfits_mm(
    first_mm: np.ndarray,
    last_mm: np.ndarray,
    steps: np.ndarray,
    place_mm: np.ndarray,
    normal: np.ndarray,
    step_mm: float,
) -> np.ndarray:
    """(n,) how far places lie from where chains go on; infinite where one does not belong to it.

    first_mm, last_mm (n, 3): the ends of the chains; steps (n,): how many lie between them.
    """
    move = place_mm - last_mm
    along = move @ normal
    shear = (last_mm - first_mm) / np.maximum(1, steps)[:, None]
    sideways = (move - along[:, None] * normal) - (shear - (shear @ normal)[:, None] * normal)
    drift = np.linalg.norm(sideways, axis=1)
    allowed = np.where(steps > 0, 0.5, 1.0) * step_mm  # one slice does not tell yet how the stack leans
    near, far = STEP_RANGE
    belongs = (along > near * step_mm) & (along < far * step_mm) & (drift <= allowed)
    return np.where(belongs, abs(along - step_mm) + drift, np.inf)


def _bridged(chains: list[list[Slice]], lost: int, codes: Counter[str]) -> list[list[Slice]]:
    """Chains joined again where just the slices between them could not be read: one bad file does not halve a stack."""
    joined = [chains[0]]
    for chain in chains[1:]:
        filling = _filling(joined[-1], chain, lost - codes["slice_repeated"])
        codes["slice_repeated"] += len(filling)
        if filling:
            joined[-1] = [*joined[-1], *filling, *chain]
        else:
            joined.append(chain)
    return joined


def _filling(before: list[Slice], after: list[Slice], lost: int) -> list[Slice]:
    """The last slice repeated, one step after another, up to the next chain; empty where that does not fit."""
    places = np.array([one.position_mm for one in max(before, after, key=len)])
    last, following = (np.array(one.position_mm) for one in (before[-1], after[0]))
    move = following - last
    step = (places[-1] - places[0]) / max(1, len(places) - 1)
    count = round(float(move @ step) / float(step @ step)) if step.any() else 0
    if not 2 <= count <= min(3, lost + 1) or np.linalg.norm(move - count * step) > 0.25 * np.linalg.norm(step):
        return []
    return [replace(before[-1], position_mm=last + k * step) for k in range(1, count)]


def _volume(chain: list[Slice], series: str, codes: Counter[str]) -> Volume:
    places = np.array([one.position_mm for one in chain])
    middle, normal = chain[len(chain) // 2], _normal(chain[0])
    assert middle.orientation is not None and middle.spacing_mm is not None
    to_mm = np.eye(4)
    if len(chain) > 1:
        to_mm[:3, 0] = (places[-1] - places[0]) / (len(chain) - 1)
        if _is_uneven(places, normal):
            codes["uneven_slices"] += 1
    else:
        to_mm[:3, 0] = normal * _step_mm(chain)
    to_mm[:3, 1] = middle.orientation[3:] * middle.spacing_mm[0]
    to_mm[:3, 2] = middle.orientation[:3] * middle.spacing_mm[1]
    to_mm[:3, 3] = places[0]
    frame = next((one.frame for one in chain if one.frame), "")
    return Volume(np.stack([one.pixels for one in chain]), to_mm, frame, series, tuple(one.name for one in chain))


def _is_uneven(places_mm: np.ndarray, normal: np.ndarray) -> bool:
    """Whether a place lies further than a quarter of a step from the even stack between the first and the last."""
    step = (places_mm[-1] - places_mm[0]) / max(1, len(places_mm) - 1)
    line = places_mm[0] + np.arange(len(places_mm))[:, None] * step
    return bool(np.linalg.norm(places_mm - line, axis=1).max() > 0.25 * abs(step @ normal))


def _step_mm(slices: list[Slice]) -> float:
    """The distance between slices as the files tell it: between slices, else their thickness, else a usual one."""
    for told in ([one.gap_mm for one in slices], [one.thickness_mm for one in slices]):
        known = [value for value in told if value is not None and 0.1 <= value <= 50.0]
        if known:
            return float(np.median(known))
    return DEFAULT_STEP_MM


def _normal(one: Slice) -> np.ndarray:
    assert one.orientation is not None
    return np.cross(one.orientation[:3], one.orientation[3:])


def _span_mm(slices: list[Slice]) -> float:
    places = np.array([one.position_mm for one in slices])
    return float(np.linalg.norm(places - places[0], axis=1).max())
'''

SOURCE['osteograde/imaging/dicom/streams.py'] = r'''"""What a compressed frame says of its own size, read before a decoder allocates (ISO 10918-1, 14495-1, 15444-1)."""

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
'''

SOURCE['osteograde/imaging/dicom/tags.py'] = r'''"""Numbers out of DICOM tags, where any tag may be missing, empty or nonsense; and what damaged files raise."""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

Source = Dataset | Mapping[str, Any]  # a data set, or values by keyword

# What pydicom raises on damaged headers, values and pixels.
DAMAGE = (
    BytesLengthException,
    InvalidDicomError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,  # and those derived from it: recursion, syntaxes that pydicom does not know
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class UnreadableSlice(ValueError):
    """A file that gives no slice; ``code`` says why in one word, without any value of the file."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _floats(source: Source, keyword: str) -> list[float]:
    """The finite numbers of a tag; none of them where one is nonsense. Empty values between backslashes are passed."""
    try:
        value = source.get(keyword)
        many = [value] if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) else value
        numbers = [float(one) for one in many if one not in (None, "")]
    except DAMAGE:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def numbers_of(source: Source, keyword: str, count: int) -> np.ndarray | None:
    """``count`` finite numbers of a tag, or None."""
    numbers = _floats(source, keyword)
    return np.array(numbers) if len(numbers) == count else None


def number_of(source: Source, keyword: str) -> float | None:
    numbers = _floats(source, keyword)
    return numbers[0] if len(numbers) == 1 else None


def whole_of(dataset: Source, keyword: str, default: int) -> int:
    number = number_of(dataset, keyword)
    return default if number is None else int(number)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom warns and logs with the values of the tags in its sentences; a run report must not hold them."""
    logger = logging.getLogger("pydicom")
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pydicom|osteograde\.imaging")
            yield
    finally:
        logger.propagate = propagate
'''

SOURCE['osteograde/imaging/files.py'] = r'''"""Whole files into memory: regular files only, held against a cap, asked again where a network mount stumbles."""

from __future__ import annotations

import errno
import os
import stat
import time
from io import FileIO
from pathlib import Path

import numpy as np

ASK_AGAIN_S = (0.1, 0.4)  # waits before the second and the third try
PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY})


class FileTooLarge(OSError):
    """A file that has more bytes than the caller takes."""


def contents(path: Path, most: int) -> memoryview:
    """The bytes of a regular file of at most ``most`` bytes; raises OSError (FileTooLarge where it has more).

    They may be written to. Errors that pass on a network mount are tried twice more, after a moment; others, such as a
    forbidden file, are not.
    """
    for wait_s in (*ASK_AGAIN_S, None):
        try:
            return _read(path, most)
        except OSError as error:
            if wait_s is None or error.errno not in PASSING:
                raise
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _read(path: Path, most: int) -> memoryview:
    # Without O_NONBLOCK opening a named pipe would wait for ever; regular files ignore it. Reading into a buffer of the
    # file's size takes half the time of a buffered file, a third less again where it is not zeroed first.
    with FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        told = os.fstat(file.fileno())
        if not stat.S_ISREG(told.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if told.st_size > most:
            raise FileTooLarge(errno.EFBIG, "larger than expected")
        data, filled = np.empty(told.st_size, np.uint8).data, 0
        while filled < len(data) and (count := file.readinto(data[filled:])):
            filled += count
        return data[:filled]
'''

SOURCE['osteograde/imaging/geometry.py'] = r'''"""Where a scan is: grids of voxels and regions of interest in patient millimetres.

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

LEFT = np.array([1.0, 0.0, 0.0])  # unit LPS directions
POSTERIOR = np.array([0.0, 1.0, 0.0])
HEAD = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class Volume:
    """A regular stack of parallel slices of one size; a radiograph is a stack with one slice.

    voxels: (Z, Y, X), any numeric dtype. to_mm: (4, 4) from index (z, y, x, 1) to LPS mm. frame: the frame of
    reference; points may move between volumes only where frames are equal ("" = unknown). series: the id of the
    series it came from. names: per slice, the stem of the file it was read from (the competition's instance number).
    """

    voxels: np.ndarray
    to_mm: np.ndarray
    frame: str = ""
    series: str = ""
    names: tuple[str, ...] = ()

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
    names = volume.names
    for axis in range(3):
        if to_mm[:3, axis] @ directions[axis] < 0:
            voxels = np.flip(voxels, axis)
            to_mm = to_mm @ _flip(axis, voxels.shape[axis])
            names = names[::-1] if axis == 0 else names
    return replace(volume, voxels=voxels, to_mm=to_mm, names=names)


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
'''

SOURCE['osteograde/imaging/intensity.py'] = r'''"""Grey values: one window per series, so that every slice of it is comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from osteograde.imaging.geometry import Volume

SAMPLED = 1 << 18  # values per series that the percentiles are taken from
PADDING_SHARE = 0.01  # the lowest value is padding where it fills more than this


def window(volumes: Sequence[Volume], low: float = 0.5, high: float = 99.5) -> list[Volume]:
    """The same stacks as uint8 (Z, Y, X), C-contiguous: percentile ``low`` of the series is 0, ``high`` is 255.

    All volumes of the series share one window. Constant padding does not count, nor do NaN and infinity, which become
    0; a series without contrast becomes zeros.
    """
    limits = _limits(_sample(volumes), low, high)
    if limits is None:
        return [replace(volume, voxels=np.zeros(volume.voxels.shape, np.uint8)) for volume in volumes]
    return [replace(volume, voxels=_bytes(volume.voxels, *limits)) for volume in volumes]


def _sample(volumes: Sequence[Volume]) -> np.ndarray:
    """Evenly spread values of all volumes."""
    total = sum(volume.voxels.size for volume in volumes)
    step = max(1, round((total / SAMPLED) ** 0.5))  # the same in rows and columns; every slice counts
    parts = [volume.voxels[:, ::step, ::step].ravel() for volume in volumes]
    return np.concatenate(parts) if parts else np.empty(0)


def _limits(sample: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """The two percentiles of the finite values without their padding; None where all are equal."""
    if sample.dtype.kind in "iu" and sample.itemsize <= 2 and sample.size:
        return _limits_counted(sample, low, high)
    values = sample.astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0 or values.min() == values.max():
        return None
    inside = values[values > values.min()]
    padded = inside.size < (1 - PADDING_SHARE) * values.size
    values = inside if padded and inside.min() < inside.max() else values  # of two values both are the image
    floor, ceiling = np.percentile(values, [low, high])
    if ceiling <= floor:  # nearly all one value: whatever differs is the image
        floor, ceiling = values.min(), values.max()
    return float(floor), float(ceiling)


def _limits_counted(sample: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """The same from how often each value of at most 16 bits occurs: equal to the bit and faster than sorting."""
    least = int(sample.min())
    counts = np.bincount(sample.astype(np.intp) - least)
    if len(counts) == 1:
        return None
    padded = sample.size - counts[0] < (1 - PADDING_SHARE) * sample.size
    if padded and np.count_nonzero(counts) > 2:  # of two values both are the image
        counts[0] = 0
    behind = np.cumsum(counts)  # how many values are at most this

    def ranked(rank: np.ndarray) -> np.ndarray:
        return (np.searchsorted(behind, rank, side="right") + least).astype(np.float64)

    place = (behind[-1] - 1) * np.true_divide([low, high], 100)  # as numpy's percentile, rounding included
    before = np.floor(place)
    a, b, part = ranked(before), ranked(np.minimum(before + 1, behind[-1] - 1)), place - before
    floor, ceiling = np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part))
    if ceiling <= floor:  # nearly all one value: whatever differs is the image
        floor, ceiling = np.flatnonzero(counts)[[0, -1]] + least
    return float(floor), float(ceiling)


def _bytes(voxels: np.ndarray, floor: float, ceiling: float) -> np.ndarray:
    out = np.zeros(voxels.shape, np.uint8)
    if ceiling <= floor:
        return out
    scale = 255.0 / (ceiling - floor)
    if voxels.dtype.kind in "iu" and voxels.itemsize <= 2 and float(floor).is_integer():
        base = np.full(voxels.shape[1:], floor, voxels.dtype)  # with a scalar numpy's maximum takes five times longer
        for k, plane in enumerate(voxels):  # slice by slice: stays in the cache
            above = np.maximum(plane, base)
            above -= base  # signed values wrap where the difference is too large for them; read as unsigned it is right
            cv2.convertScaleAbs(above.view(f"u{above.itemsize}"), out[k], scale)
        return out
    for k, plane in enumerate(voxels):
        values = plane.astype(np.float32)
        values -= np.float32(floor)
        values *= np.float32(scale)
        if plane.dtype.kind == "f":
            values[~np.isfinite(values)] = 0.0
        np.clip(values, 0.0, 255.0, out=values)
        np.rint(values, out=values)
        out[k] = values
    return out
'''

SOURCE['osteograde/imaging/memory.py'] = r'''"""Memory that was given back stays with the process, so that the next scan does not have to be paged in anew."""

from __future__ import annotations

import ctypes

import numpy as np

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_BYTES = (32 << 20) - (64 << 10)  # the largest block that still moves glibc's threshold is 32 MiB


def keep_freed_memory() -> None:
    """Tell the allocator by example: glibc keeps freed blocks up to the largest that it ever had to return.

    Until then every array beyond 128 kB comes from the operating system as new pages, and touching those costs more
    than decoding into them (reading a study: 51 ms, afterwards 35). Elsewhere this does nothing.
    """
    np.empty(_BYTES, np.uint8)


def keep_all_freed_memory() -> None:
    """The same without a limit, by glibc's own switches: for training, whose steps ask for the same blocks for hours.

    The activations of a batch are larger than what ``keep_freed_memory`` reaches, and new pages for them are a third of
    a step on a CPU (MobileNetV2, 32 images of 144 x 288: 81 ms each, afterwards 56). Elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
'''

SOURCE['osteograde/imaging/raster.py'] = r'''"""Pictures without a header of their own (PNG, JPEG, WebP, BMP, TIFF) as grey values and as volumes.

Nothing of such a file says how large a pixel is or which way the patient faces: the caller does. An orientation noted
by a camera (EXIF) is ignored on purpose: what is exported from an archive carries none, and ``size`` and
``read_pixels`` must agree about rows and columns. Errors carry a code and no value of the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from osteograde.imaging.files import FileTooLarge, contents
from osteograde.imaging.geometry import Volume, roi_at

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})  # compare in lower case
MAX_FILE_BYTES = 512 << 20
MAX_PIXELS = 89_478_485  # from here on the decoder itself warns of a bomb; the longest films have 60 million
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 3
_DAMAGE = (  # what the decoders raise on damaged files
    AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


class UnreadableImage(ValueError):
    """A file that gives no image; ``code`` says why in one word."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def is_image(path: Path) -> bool:
    """Whether a file is called like a picture; its content is looked at by the readers only."""
    return Path(path).suffix.lower() in SUFFIXES


def size(path: Path) -> tuple[int, int]:
    """(width, height) as the header says; no pixel is decoded. Raises UnreadableImage."""
    try:
        with Path(path).open("rb") as file, _opened(file) as image:
            return image.size
    except OSError:
        raise UnreadableImage("file_unreadable") from None


def read_pixels(path: Path) -> np.ndarray:
    """(H, W) grey values, uint8 or uint16, of a file's first image; brighter is more. The file is opened once.

    Colours and palettes become luminance (ITU-R BT.601), transparency is dropped, 1-bit images become 0 and 255. Words
    beyond 16 bits and fractions are stretched to 16 bits: a window is relative anyway. Raises UnreadableImage with code
    "file_unreadable", "file_too_large", "empty_file", "not_an_image", "too_large" or "pixels_damaged" (also: cut).
    """
    with _opened(BytesIO(_contents(Path(path)))) as image:
        try:
            image.load()
            return _grey(image)
        except _DAMAGE:
            raise UnreadableImage("pixels_damaged") from None


def read_images(
    files: Sequence[Path],
    directions: np.ndarray,
    spacing_mm: tuple[float, float, float],
    centre_mm: np.ndarray | tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> list[Volume]:
    """Files as stacks (Z, Y, X), slices in the order given; the middle of every stack lies at ``centre_mm``.

    Files of one size and depth make one stack, others stacks of their own. ``directions`` (3, 3): unit LPS rows of
    the axes D (file to file), H (down) and W (to the right); ``spacing_mm``: steps along them. Slices are named by
    the files' stems. Raises UnreadableImage at the first file that cannot be read.
    """
    stacks: dict[tuple[tuple[int, ...], np.dtype], list[tuple[str, np.ndarray]]] = {}
    for file in files:
        pixels = read_pixels(file)
        stacks.setdefault((pixels.shape, pixels.dtype), []).append((Path(file).stem, pixels))
    volumes = []
    for ((height, width), _), slices in stacks.items():
        grid = roi_at(
            np.asarray(centre_mm), np.asarray(directions), np.asarray(spacing_mm), (len(slices), height, width)
        )
        voxels = np.stack([pixels for _, pixels in slices])
        volumes.append(Volume(voxels, grid.to_mm, names=tuple(name for name, _ in slices)))
    return volumes


def _contents(path: Path) -> memoryview:
    try:
        return contents(path, MAX_FILE_BYTES)
    except FileTooLarge:
        raise UnreadableImage("file_too_large") from None
    except OSError:
        raise UnreadableImage("file_unreadable") from None


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    """The image of an open file after its header was held against the caps; not yet decoded."""
    if not file.read(1):
        raise UnreadableImage("empty_file")
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImage("not_an_image") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too_large") from None
    except _DAMAGE:
        raise UnreadableImage("header_damaged") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage("too_large")
        yield image


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
        inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return ~pixels if inverted else pixels  # the decoder inverts words of up to 8 bits only
    if image.mode in ("I", "F"):
        return _to_words(np.asarray(image))
    return np.asarray(image.convert("L"))


def _to_words(values: np.ndarray) -> np.ndarray:
    """Whole numbers that fit stay as they are; all else is stretched from least to most. Not finite becomes least."""
    finite = np.isfinite(values)
    least, most = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    if values.dtype.kind == "i" and least >= 0 and most <= 65535:
        return values.astype(np.uint16)
    scale = 65535.0 / (most - least) if most > least else 0.0
    return np.rint((np.where(finite, values, least) - least) * scale).astype(np.uint16)
'''

SOURCE['osteograde/imaging/sampling.py'] = r'''"""Regions of interest out of volumes: the only place where an image is resampled.

``sample_reference`` says what is meant, slowly; ``sample`` does it in torch on any device. Outside the volume is zero,
and interpolation fades to it over one voxel. ``oversample`` k takes every sample as the mean of k x k points spread
evenly inside its own in-plane cell, which keeps a coarse grid on a fine image from aliasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from scipy.sparse import csr_array
from torch.nn import functional

from osteograde.imaging.geometry import Roi, Volume, apply

MAX_OVERSAMPLE = 4
CHUNK_SAMPLES = 1 << 22  # sampled values held at once
_UPRIGHT = 1e-6  # voxels that the far end of a row may lie above or below its beginning
_ON_SLICE = 1e-3  # slices; a plane this close to a slice of the volume lies on it


def oversample_for(volume_spacing_mm: np.ndarray, roi_spacing_mm: np.ndarray) -> int:
    """In-plane sub-samples per axis so that none of the volume's pixels is passed over; 1 to MAX_OVERSAMPLE.

    >>> oversample_for(np.array([4.0, 0.5, 0.5]), np.array([4.0, 1.2, 1.2]))
    3
    """
    ratio = float(np.max(np.asarray(roi_spacing_mm)[1:] / np.asarray(volume_spacing_mm)[1:]))
    return min(MAX_OVERSAMPLE, max(1, math.ceil(ratio - 1e-3)))


def sample_reference(volume: Volume, roi: Roi, oversample: int = 1) -> np.ndarray:
    """(D, H, W) float32 of the volume on the grid of the box, trilinear; the slow definition of ``sample``."""
    k = oversample
    depth, height, width = roi.shape
    fine = np.meshgrid(
        np.arange(depth),
        (np.arange(height * k) + 0.5) / k - 0.5,
        (np.arange(width * k) + 0.5) / k - 0.5,
        indexing="ij",
    )
    index = apply(volume.from_mm @ roi.to_mm, np.stack(fine, axis=-1))
    # "grid-constant": with "constant" rounding puts border samples outside, where they lose their whole value.
    values = map_coordinates(
        volume.voxels.astype(np.float64), np.moveaxis(index, -1, 0), order=1, mode="grid-constant", cval=0.0
    )
    return values.reshape(depth, height, k, width, k).mean(axis=(2, 4)).astype(np.float32)


def sample(
    voxels: torch.Tensor,
    volume_to_mm: np.ndarray,
    rois_to_mm: np.ndarray,
    shape: tuple[int, int, int],
    oversample: int = 1,
) -> torch.Tensor:
    """(B, D, H, W) float32 of a volume (Z, Y, X), any real dtype, on B boxes (B, 4, 4) of one shape.

    Runs where ``voxels`` lie. Boxes on the volume's own slices are sampled slice by slice in two dimensions (on a CPU
    rows, then columns, where they are not turned), others in three; all agree with ``sample_reference`` to float32.
    """
    moves = np.linalg.inv(volume_to_mm) @ np.asarray(rois_to_mm, np.float64).reshape(-1, 4, 4)
    out = torch.zeros((len(moves), *shape), dtype=torch.float32, device=voxels.device)
    volume = None
    for filled, move in zip(out, moves, strict=True):
        z = _slices_of(move, shape)
        if z is not None:
            _fill_from_slices(
                filled, lambda z, y, x: voxels[torch.from_numpy(z), y, x], voxels.shape, z, move, oversample
            )
        else:
            volume = voxels.float() if volume is None else volume
            _fill_from_volume(filled, volume, move, oversample)
    return out


def crop_stack(volume: Volume, roi: Roi, device: torch.device, oversample: int | None = None) -> torch.Tensor:
    """(D, H, W) float32 in 0..1 of a volume of bytes, anti-aliased as its spacing asks unless told otherwise."""
    k = oversample_for(volume.spacing_mm, roi.spacing_mm) if oversample is None else oversample
    move = volume.from_mm @ roi.to_mm
    z = _slices_of(move, roi.shape)
    if z is None:
        voxels = torch.from_numpy(np.ascontiguousarray(volume.voxels)).to(device)
        return sample(voxels, volume.to_mm, roi.to_mm[None], roi.shape, k)[0] / 255.0

    def gather(z: np.ndarray, y: slice, x: slice) -> torch.Tensor:  # only what the box touches leaves the host
        return torch.from_numpy(np.ascontiguousarray(volume.voxels[z, y, x])).to(device)

    out = torch.zeros(roi.shape, dtype=torch.float32, device=device)
    _fill_from_slices(out, gather, volume.voxels.shape, z, move, k)
    return out.div_(255.0)


def _slices_of(move: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The slice number of each plane of a box that lies on the volume's own slices, else None."""
    depth, height, width = shape
    step, down, across, start = move[0].tolist()
    z = step * np.arange(depth) + start  # of the first corner; the others lie ``rise`` further on
    rise = [a + b for a in (0.0, down * (height - 1)) for b in (0.0, across * (width - 1))]
    whole = np.round(z)
    away = z - whole
    farthest = max(away.max() + max(rise), -away.min() - min(rise))
    return whole.astype(np.int64) if farthest < _ON_SLICE else None


def _fill_from_slices(
    out_DHW: torch.Tensor,
    gather: Callable[[np.ndarray, slice, slice], torch.Tensor],
    size_ZYX: tuple[int, ...],
    z: np.ndarray,
    move: np.ndarray,
    oversample: int,
) -> None:
    """Planes of a box from slices z; ``gather`` gives the (n, y, x) voxels of some slices in ranges of y and x."""
    depth, height, width = out_DHW.shape
    inside = np.flatnonzero((z >= 0) & (z < size_ZYX[0]))
    leaning = abs(move[1:3, 0]).max() * depth > _ON_SLICE  # a sheared stack: each plane lies elsewhere on its slice
    most = 1 if leaning else max(1, CHUNK_SAMPLES // (height * width * oversample**2))
    for chunk in [inside[i : i + most] for i in range(0, len(inside), most)]:
        plane = np.column_stack([move[1:3, 1:3], move[1:3, 3] + move[1:3, 0] * chunk[0]])  # (y, x) of (h, w, 1)
        y, x = (_touched(row, (height, width), size) for row, size in zip(plane, size_ZYX[1:], strict=True))
        if y.start >= y.stop or x.start >= x.stop:
            continue
        slices = gather(z[chunk], y, x)  # as channels of one image: the weights are computed once
        plane = plane - np.array([[0, 0, y.start], [0, 0, x.start]])
        upright = (
            slices.device.type == "cpu" and max(abs(plane[0, 1]), abs(plane[1, 0])) * max(height, width) < _UPRIGHT
        )
        values = (_stretched if upright else _interpolated)(slices, plane, (height, width), oversample)
        out_DHW[int(chunk[0]) : int(chunk[-1]) + 1] = values  # slices follow each other: what lies inside has no gap


def _touched(row: np.ndarray, shape: tuple[int, ...], size: int) -> slice:
    """The range of voxels along one axis that a plane's samples, a cell beyond its ends included, can reach."""
    *steps, start = row.tolist()
    ends = [sorted((-step, step * count)) for step, count in zip(steps, shape, strict=True)]
    least, most = (start + sum(side) for side in zip(*ends, strict=True))
    return slice(max(0, math.floor(least) - 1), min(size, math.ceil(most) + 2))


def _stretched(images: torch.Tensor, move: np.ndarray, shape: tuple[int, int], oversample: int) -> torch.Tensor:
    """The same of images (C, Y, X) on a CPU, for a ``move`` without a turn: rows and columns one after the other.

    Either is a sparse matrix of a few weights a row, which reads every pixel about once, where sampling in two
    dimensions reads four for each of oversample^2 points.
    """
    rows, columns = (_weights(move[i, i], move[i, 2], shape[i], images.shape[i + 1], oversample) for i in (0, 1))
    count, height, width = images.shape
    values = images.numpy().transpose(1, 0, 2).astype(np.float32, order="C")  # (Y, C, X)
    values = (rows @ values.reshape(height, count * width)).reshape(shape[0], count, width)
    values = np.ascontiguousarray(values.transpose(2, 1, 0)).reshape(width, count * shape[0])
    values = (columns @ values).reshape(shape[1], count, shape[0])
    return torch.from_numpy(np.ascontiguousarray(values.transpose(1, 2, 0)))


def _weights(step: float, start: float, count: int, size: int, oversample: int) -> csr_array:
    """(count, size) weights of linear interpolation at start + step * i, each the mean of ``oversample`` points."""
    at = step * ((np.arange(count * oversample) + 0.5) / oversample - 0.5) + start
    below = np.floor(at).clip(-2, size)  # what lies outside stays there, however far
    index, weight = np.empty((len(at), 2), np.int32), np.empty((len(at), 2), np.float32)
    index[:, 0], index[:, 1] = below, below + 1
    weight[:, 1] = (at - below) / oversample
    weight[:, 0] = 1 / oversample - weight[:, 1]
    if index[0, 0] < 0 or index[-1, 0] < 0 or max(index[0, 1], index[-1, 1]) >= size:  # the ends reach farthest
        weight[(index < 0) | (index >= size)] = 0
        index.clip(0, size - 1, out=index)
    ends = np.arange(0, index.size + 1, 2 * oversample, dtype=np.int32)  # a column may come twice in a row: they add up
    return csr_array((weight.ravel(), index.ravel(), ends), shape=(count, size))


def _fill_from_volume(out_DHW: torch.Tensor, volume_ZYX: torch.Tensor, move: np.ndarray, oversample: int) -> None:
    depth, height, width = out_DHW.shape
    most = max(1, CHUNK_SAMPLES // (height * width * oversample**2))
    for start in range(0, depth, most):
        part = move[:3].copy()
        part[:, 3] += move[:3, 0] * start
        count = min(most, depth - start)
        values = _interpolated(volume_ZYX[None], part, (count, height, width), oversample)
        out_DHW[start : start + count] = values[0]


def _interpolated(images: torch.Tensor, move: np.ndarray, shape: tuple[int, ...], oversample: int) -> torch.Tensor:
    """(C, *size) images sampled at ``move`` (n, n + 1) of the grid ``shape`` of n axes, zero outside: (C, *shape)."""
    images = images.float()
    size = np.array(images.shape[1:])
    extent = np.array(shape)
    theta = np.empty_like(move)  # between units: both grids from -1 to 1, edge to edge
    theta[:, :-1] = move[:, :-1] * extent / size[:, None]
    theta[:, -1] = (2 * (move[:, :-1] @ ((extent - 1) / 2) + move[:, -1]) + 1) / size - 1
    theta = np.column_stack([theta[::-1, -2::-1], theta[::-1, -1]])  # torch names the axes x, y, z
    fine = [*shape[:-2], shape[-2] * oversample, shape[-1] * oversample]
    units = torch.from_numpy(theta[None]).to(images.device, torch.float32)
    grid = functional.affine_grid(units, [1, 1, *fine], align_corners=False)
    values = functional.grid_sample(images[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    if oversample == 1:
        return values
    return functional.avg_pool2d(values.reshape(-1, *fine[-2:]), oversample).reshape(len(images), *shape)
'''

SOURCE['osteograde/imaging/slabs.py'] = r'''"""Thin-slice stacks as thick ones: a 3-D acquisition read the way two-dimensional series are."""

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
'''

SOURCE['osteograde/inference/__init__.py'] = r'''"""How weights are used: volumes to points to boxes to probabilities to submission.csv."""
'''

SOURCE['osteograde/inference/answers/__init__.py'] = r'''"""What is written down: submission, flags, findings."""
'''

SOURCE['osteograde/inference/answers/findings.py'] = r'''"""What graders say beside the grade: a table of yes/no findings next to the submission, for tasks that have any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from osteograde.inference import whole
from osteograde.tasks.contract import Task

Finding = tuple[str, tuple[float, ...]]  # row id, probability of each finding


def names(task: Task) -> tuple[str, ...]:
    """The findings of a task, in the order of its graders."""
    return tuple(dict.fromkeys(name for group in task.grade for name in group.findings))


def findings_of(task: Task, study: str, graded: Mapping[str, np.ndarray]) -> list[Finding]:
    """The findings of one study's graded rows; NaN where a row's grader does not ask."""
    columns, found = names(task), []
    for group in task.grade:
        for site in group.sites:
            if group.findings and site.target in graded:
                said = dict(zip(group.findings, graded[site.target][len(task.classes) :], strict=True))
                found.append((f"{study}_{site.target}", tuple(float(said.get(name, np.nan)) for name in columns)))
    return found


def write(path: Path, columns: Sequence[str], rows: Sequence[Finding]) -> None:
    lines = [",".join(["row_id", *columns])]
    lines += [",".join([row, *("" if np.isnan(v) else f"{v:.6f}" for v in values)]) for row, values in rows]
    whole.write(path, "\n".join(lines) + "\n")


def path_beside(out: Path) -> Path:
    """submission.csv -> submission.findings.csv."""
    return out.with_name(out.stem + ".findings.csv")
'''

SOURCE['osteograde/inference/answers/flags.py'] = r'''"""Rows that a person should look at before believing them, and why. No patient data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from osteograde.inference import whole
from osteograde.inference.reading import Loaded
from osteograde.tasks.contract import Point, Site, Study, Task

Flag = tuple[str, str, int]  # row id, reason, how often
COLUMNS = ("row_id", "reason", "count")
LOW_CONFIDENCE = 0.5  # of a landmark: less than this share of its probability lies within 10 mm of it
UNCERTAIN = 0.35  # no class is more probable than this

NOT_GRADED = "not_graded"  # the row holds the class prior
NOT_SEEN = "low_confidence"
UNSURE = "uncertain_grade"


def flags_of(task: Task, loaded: Loaded, points: Mapping[str, Point], graded: Mapping[str, np.ndarray]) -> list[Flag]:
    """The flags of one study's rows: what was lost in reading it, rows on the prior, landmarks and grades in doubt."""
    sites = {site.target: site for group in task.grade for site in group.sites}
    study, found = loaded.study, []
    for target in task.asked(study.targets):
        row = f"{study.id}_{target}"
        found += [(row, code, count) for code, count in sorted(loaded.faults.items())]
        found += [(row, reason, 1) for reason in _doubts(task, sites[target], points, graded)]
    return found


def not_reached(task: Task, study: Study, why: str) -> list[Flag]:
    """The flags of a study that the run ended before."""
    return [(row, reason, 1) for row in task.rows(study.id, study.targets) for reason in (why, NOT_GRADED)]


def _doubts(task: Task, site: Site, points: Mapping[str, Point], graded: Mapping[str, np.ndarray]) -> list[str]:
    if site.target not in graded:
        return [NOT_GRADED]
    seen = [points[name].confidence for name in site.landmarks if name in points]
    low = [NOT_SEEN] if max(seen, default=0.0) < LOW_CONFIDENCE else []
    return low + ([UNSURE] if graded[site.target][: len(task.classes)].max() < UNCERTAIN else [])


def write(path: Path, flags: Sequence[Flag]) -> None:
    """The flags as a table of ``COLUMNS``; only its first line where there are none."""
    lines = [",".join(COLUMNS), *(f"{row},{reason},{count}" for row, reason, count in flags)]
    whole.write(path, "\n".join(lines) + "\n")


def path_beside(out: Path) -> Path:
    """Where the flags of a submission go: submission.csv -> submission.flags.csv."""
    return out.with_name(out.stem + ".flags.csv")
'''

SOURCE['osteograde/inference/answers/sheet.py'] = r'''"""What a run writes: rows that are priors until their study is done, flags and findings, and the summary."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.inference import pipeline
from osteograde.inference.answers import findings, flags, submission
from osteograde.inference.reading import Loaded
from osteograde.tasks.contract import Point, Study, Task


@dataclass(frozen=True, eq=False)
class Result:
    """Everything one study came to."""

    loaded: Loaded
    points: Mapping[str, Point]  # found and completed
    graded: Mapping[str, np.ndarray]  # target -> (K + F,) of the targets that could be seen, see ``pipeline.grade``


@dataclass
class Tally:
    """What happened, for the log, the flags file and the benchmark."""

    studies: int = 0
    unread: int = 0
    on_prior: int = 0  # targets
    faults: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    flags: list[flags.Flag] = field(default_factory=list)
    findings: list[findings.Finding] = field(default_factory=list)


class Sheet:
    """The rows of the submission: priors at first, replaced study by study, written whole each time.

    Rows are those of the template, in its order, and then those of studies that a stale template does not know. The
    tables of flags and findings lie beside it and are written with it.
    """

    def __init__(
        self,
        task: Task,
        prior: Mapping[str, Sequence[float]],
        studies: Sequence[Study],
        out: Path,
        template: Sequence[str],
        tally: Tally,
    ) -> None:
        self.task, self.prior, self.studies, self.out, self.tally, self.done = task, prior, studies, out, tally, 0
        own = [row for study in studies for row in self.task.rows(study.id, study.targets)]
        self.rows = submission.priors_rows(self.task, dict.fromkeys((*template, *own)), self.prior)

    def _set(self, study: Study, graded: Mapping[str, np.ndarray]) -> None:
        table = pipeline.rows(self.task, graded, self.prior, study.targets)
        self.rows |= dict(zip(self.task.rows(study.id, study.targets), table, strict=True))

    def put(self, result: Result) -> None:
        study, tally = result.loaded.study, self.tally
        self._set(study, result.graded)
        self.done += 1
        tally.findings += findings.findings_of(self.task, study.id, result.graded)
        tally.flags += flags.flags_of(self.task, result.loaded, result.points, result.graded)
        tally.on_prior += len(self.task.asked(study.targets)) - len(result.graded)

    def leave(self, why: str) -> None:
        """Flag the rows of studies that were not reached."""
        left = self.studies[self.done :]
        self.tally.flags += [flag for study in left for flag in flags.not_reached(self.task, study, why)]
        if left:
            self.tally.faults[why] += len(left)

    def write(self) -> None:
        submission.write(self.out, self.rows, self.task.classes)
        write_beside(self.task, self.tally, self.out)

    def try_to_write(self) -> bool:
        """Write, unless the disk is full or gone for the moment: what was written before stays, grading goes on."""
        try:
            self.write()
        except OSError:
            self.tally.faults["not_written_yet"] += 1
            return False
        return True


def write_beside(task: Task, tally: Tally, out: Path) -> None:
    """The tables beside the submission: flags, and findings of tasks that have any."""
    flags.write(flags.path_beside(out), tally.flags)
    if columns := findings.names(task):
        findings.write(findings.path_beside(out), columns, tally.findings)


def summary(tally: Tally, done: int, out: Path) -> list[str]:
    """What a reader of the log wants to know."""
    spent: dict[str, Any] = {name: f"{seconds:.1f} s" for name, seconds in tally.seconds.items()}
    lines = [f"time: {', '.join(f'{name} {seconds}' for name, seconds in spent.items())}"]
    if tally.faults:
        lines.append("faults: " + ", ".join(f"{code} x {count}" for code, count in sorted(tally.faults.items())))
    lines.append(
        f"{done} of {tally.studies} studies graded ({tally.unread} unreadable), "
        f"{tally.on_prior} targets on the prior -> {out}"
    )
    return lines
'''

SOURCE['osteograde/inference/answers/submission.py'] = r'''"""submission.csv: written whole or not at all, the same bytes for the same numbers, and checked against a template."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from osteograde.inference import whole
from osteograde.tasks import rows as tables
from osteograde.tasks.contract import Task
from osteograde.tasks.rows import ROW_ID, twice
from osteograde.tasks.tables import some

log = logging.getLogger(__name__)

TEMPLATE = "sample_submission.csv"
FLOOR = 1e-6  # the least probability written: what one confident mistake may cost is bounded
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
DIGITS = 9  # rows still sum to 1 within 1e-6 after rounding

Rows = Mapping[str, np.ndarray]  # row id -> (classes,) probabilities, in the order of writing


@dataclass(frozen=True)
class Problem:
    """What is wrong with a submission. ``repairable``: nothing but the order has to change (see ``ordered``)."""

    what: str
    repairable: bool = False

    def __str__(self) -> str:
        return self.what


def priors_rows(
    task: Task, row_ids: Iterable[str], prior: Mapping[str, Sequence[float]] | None = None
) -> dict[str, np.ndarray]:
    """{row id: the prior of its target}; the task's own prior where none is given.

    ValueError where a row id ends in no target of the task: then the template is another competition's.
    """
    table = task.prior if prior is None else prior
    return {row: np.asarray(table[tables.split_id(task, row)[1]], dtype=float) for row in row_ids}


def ordered(rows: Rows, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The same rows: those a template names first, in its order, then the rest in theirs."""
    first = [row for row in ids if row in rows]
    named = set(first)
    return {row: rows[row] for row in (*first, *(row for row in rows if row not in named))}


def written(probs: np.ndarray) -> np.ndarray:
    """Probabilities (rows, classes) as they are written: at least ``FLOOR`` (before the last division), summing to 1.

    ValueError where one is not finite or negative, or a row is all zero.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if not np.isfinite(probs).all() or (probs < 0).any() or not (probs.sum(-1) > 0).all():
        raise ValueError("probabilities to be written are not finite, negative, or all zero in some row")
    clipped = np.clip(probs / probs.sum(-1, keepdims=True), FLOOR, 1.0)
    return clipped / clipped.sum(-1, keepdims=True)


def write(path: Path, rows: Rows, columns: Sequence[str]) -> None:
    """Replace ``path`` by a table of all rows in one step: at every moment it is the old file or the new one.

    columns: names of the classes. An existing file's permissions are kept. Raises ValueError before touching the file
    where a probability cannot be written (see ``written``), OSError where the folder cannot be written.
    """
    path = Path(path).resolve()
    table = written(np.stack(list(rows.values()))) if rows else np.zeros((0, len(columns)))
    if table.shape[1] != len(columns):
        raise ValueError(f"{path}: rows have {table.shape[1]} classes, the columns are {list(columns)}")
    text = StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow((ROW_ID, *columns))
    out.writerows((row, *(f"{p:.{DIGITS}f}" for p in ps)) for row, ps in zip(rows, table.tolist(), strict=True))
    whole.write(path, text.getvalue())


def read(path: Path) -> dict[str, np.ndarray]:
    """{row id: (classes,)} of a submission, in its order. ValueError where it is unreadable or a row appears twice."""
    _, ids, values = tables.read(path)
    if doubled := twice(ids):
        raise ValueError(f"{path}: row ids more than once: {some(doubled)}")
    return dict(zip(ids, values, strict=True))


def template_ids(path: Path) -> list[str] | None:
    """The row ids of a template, in its order; ValueError where it is unreadable.

    Of a folder of data: those of its sample_submission.csv, None where there is none, where it cannot be read (this is
    logged), or where the folder has no test part (the template then speaks of other studies).
    """
    if not Path(path).is_dir():
        return tables.read(path)[1]
    if not (Path(path) / TEMPLATE).is_file() or not (Path(path) / "test_images").is_dir():
        return None
    try:
        return tables.read(Path(path) / TEMPLATE)[1]
    except ValueError as error:
        log.warning("%s; rows are written in the order of the studies", error)
        return None


def validate(submission: Path, template: Path) -> list[Problem]:
    """Everything that is wrong with a submission; an empty list says it may be sent.

    ValueError where the template itself cannot be read: then nothing can be said about the submission.
    """
    columns, wanted, _ = tables.read(template)
    if doubled := twice(wanted):
        raise ValueError(f"{template}: the template names row ids more than once: {some(doubled)}")
    try:
        found, ids, values = tables.read(submission)
    except ValueError as error:
        return [Problem(str(error))]
    if found != columns:
        return [Problem(f"wrong columns: expected {','.join(columns)}, found {','.join(found)}")]
    return _id_problems(ids, wanted) + _value_problems(ids, values)


def _id_problems(ids: list[str], wanted: list[str]) -> list[Problem]:
    given, needed = set(ids), set(wanted)
    problems = []
    for what, rows in (
        ("missing", [row for row in wanted if row not in given]),
        ("that the template does not have", [row for row in dict.fromkeys(ids) if row not in needed]),
        ("more than once", twice(ids)),
    ):
        if rows:
            problems.append(Problem(f"{len(rows)} row ids {what}: {some(rows)}"))
    if not problems and ids != wanted:
        first = next(i for i, (a, b) in enumerate(zip(ids, wanted, strict=True)) if a != b)
        problems.append(
            Problem(
                f"wrong order: row {first + 1} is {ids[first]}, the template has {wanted[first]}; "
                "repairable: all rows are there, sort them like the template",
                repairable=True,
            )
        )
    return problems


def _value_problems(ids: list[str], values: np.ndarray) -> list[Problem]:
    finite = np.isfinite(values).all(1)
    negative = finite & (values < 0).any(1)
    off = finite & ~negative & ~(np.abs(values.sum(1) - 1) <= SUM_TOLERANCE)
    named = (("not a finite number", ~finite), ("negative", negative), ("not summing to 1", off))
    return [
        Problem(f"{int(bad.sum())} rows with values {what}: {some(np.array(ids)[bad])}")
        for what, bad in named
        if bad.any()
    ]
'''

SOURCE['osteograde/inference/budget.py'] = r'''"""How much work a deadline allows: test-time views are shed first, then folds, and never the submission."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHARE = 0.1  # of the time left that one chunk may take, by its least cost
RESERVE = 0.1  # share of the budget kept for what cannot be foreseen


@dataclass(frozen=True)
class Effort:
    """What one chunk of studies gets."""

    views: int
    folds: int


@dataclass
class Budget:
    """Seconds left, and what a study has cost so far. The clock is monotonic; tests bring their own.

    Cost model per study: reading + folds * (locating + views * grading), each term measured on finished chunks.
    """

    seconds: float | None
    views: int
    folds: int
    clock: Callable[[], float] = time.monotonic
    begun: float = field(init=False)
    studies: int = 0
    read_s: float = 0.0
    locate_s: float = 0.0  # per fold
    grade_s: float = 0.0  # per fold and view

    def __post_init__(self) -> None:
        self.begun = self.clock()

    def left(self) -> float:
        """Seconds that may still be used; infinite without a budget."""
        if self.seconds is None:
            return float("inf")
        return self.seconds * (1 - RESERVE) - (self.clock() - self.begun)

    def record(self, studies: int, effort: Effort, *, read_s: float, locate_s: float, grade_s: float) -> None:
        """Add what a chunk took."""
        self.studies += studies
        self.read_s += read_s
        self.locate_s += locate_s / effort.folds
        self.grade_s += grade_s / (effort.folds * effort.views)

    def cost(self, effort: Effort) -> float:
        """Expected seconds per study; 0 before anything was measured."""
        total = self.read_s + effort.folds * (self.locate_s + effort.views * self.grade_s)
        return total / max(self.studies, 1)

    def effort(self, remaining: int) -> Effort | None:
        """The most that fits for the remaining studies; the least possible where nothing fits; None past the end."""
        left = self.left()
        if left <= 0:
            return None
        choices = [Effort(views, self.folds) for views in range(self.views, 0, -1)]
        choices += [Effort(1, folds) for folds in range(self.folds - 1, 0, -1)]
        return next((choice for choice in choices if self.cost(choice) * remaining <= left), choices[-1])

    def chunk(self, most: int) -> int:
        """How many studies to take at once: one until a cost is known, and never a large share of what is left."""
        if self.seconds is None:
            return most
        least = self.cost(Effort(1, 1))
        return 1 if least == 0 else int(min(max(SHARE * self.left() / least, 1), most))

    def fits(self, studies: int, effort: Effort) -> bool:
        """Whether a chunk is expected to end in time."""
        return self.cost(effort) * studies <= self.left()
'''

SOURCE['osteograde/inference/calibration.py'] = r'''"""Probabilities made honest by a small map of their logarithms, fitted on out-of-fold answers.

Matrix scaling of Guo et al. (ICML 2017), softmax(M log p + b), held near one shared temperature. Nets taught with
softened targets say softened probabilities; this takes the softening back, gets the class frequencies right, and
knows which neighbouring classes a net mixes up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

SMALLEST = 1e-6  # probability
STIFFNESS = 1e-3  # of the penalty on the squared bias: keeps classes that hardly occur where they are
MIXING = 1e-2  # of the penalty on the squared distance of the map from a temperature alone


@dataclass(frozen=True)
class Calibration:
    """mix (K, K) and bias (K,): scores = mix @ centred log p + bias."""

    mix: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """(..., K) probabilities -> (..., K), rows sum to 1."""
        scores = _centred(probs) @ np.asarray(self.mix).T + np.asarray(self.bias)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return scores / scores.sum(-1, keepdims=True)

    def plain(self) -> dict[str, Any]:
        mix = [[round(value, 5) for value in row] for row in self.mix]
        return {"mix": mix, "bias": [round(value, 5) for value in self.bias]}


def read(plain: Mapping[str, Any]) -> Calibration:
    """From a manifest. Those of before the map hold a temperature in its place."""
    bias = tuple(float(value) for value in plain["bias"])
    mix = plain["mix"] if "mix" in plain else np.eye(len(bias)) / float(plain["temperature"])
    return Calibration(tuple(tuple(float(value) for value in row) for row in mix), bias)


def fit(probs: np.ndarray, labels: np.ndarray, weights: Sequence[float] | np.ndarray) -> Calibration:
    """The calibration with the lowest class-weighted log loss, penalties added: probs (n, K), labels (n,), weights
    (K,)."""
    logs, own = _centred(probs), np.asarray(weights, float)[labels]
    own = own / own.sum()
    k = probs.shape[1]
    wanted = np.eye(k)[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; parameters: log of 1 / temperature, bias (K), distance of the map from it (K * K)."""
        sharp, bias, apart = np.exp(parameters[0]), parameters[1 : k + 1], parameters[k + 1 :].reshape(k, k)
        scores = logs @ (sharp * np.eye(k) + apart).T + bias
        scores = scores - scores.max(1, keepdims=True)
        logp = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        value = -(own * (wanted * logp).sum(1)).sum() + STIFFNESS * (bias**2).sum() + MIXING * (apart**2).sum()
        error = own[:, None] * (np.exp(logp) - wanted)
        by_map = error.T @ logs
        slope = [[sharp * np.trace(by_map)], error.sum(0) + 2 * STIFFNESS * bias, (by_map + 2 * MIXING * apart).ravel()]
        return float(value), np.concatenate(slope)

    bounds = [(-2.0, 2.0)] * (k + 1) + [(None, None)] * (k * k)
    best = minimize(loss, np.zeros(1 + k + k * k), jac=True, method="L-BFGS-B", bounds=bounds).x
    mix = np.exp(best[0]) * np.eye(k) + best[k + 1 :].reshape(k, k)
    bias = best[1 : k + 1] - best[1 : k + 1].mean()
    return Calibration(tuple(tuple(map(float, row)) for row in mix), tuple(map(float, bias)))


def _centred(probs: np.ndarray) -> np.ndarray:
    """Logarithms less their mean over the classes: a factor common to all classes says nothing."""
    logs = np.log(np.maximum(probs, SMALLEST))
    return logs - logs.mean(-1, keepdims=True)
'''

SOURCE['osteograde/inference/kernel.py'] = r'''"""The main job inside an offline kernel: find data and weights below the input folder, then what inference.py does.

With two GPUs each gets a process and half of the studies (shards.py). The log ends with one screen for its reader.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from osteograde.inference import run
from osteograde.inference.answers import submission
from osteograde.inference.answers.sheet import Sheet, Tally
from osteograde.inference.processes import shards
from osteograde.models import bundle, device
from osteograde.tasks import TASKS
from osteograde.tasks.image_files import images

TIME_BUDGET_HOURS = 8.5  # of the 9 a code competition gives
MARKERS = ("test_series_descriptions.csv", "sample_submission.csv")
SHOWN = ("torch", "torchvision", "timm", "numpy", "pandas", "scipy", "pydicom", "cv2", "safetensors")
WIDTH = 78


def kernel_main(task: str, manifest_sha256: str = "", data_set: str = "") -> int:
    """Grade the test studies into submission.csv of the working folder; the exit code is returned.

    data_set: owner/name of the data set that holds the images, for a task without a competition. The variables
    OSTEOGRADE_KAGGLE_INPUT and OSTEOGRADE_KAGGLE_WORKING move both folders, to rehearse; OSTEOGRADE_DEVICES names the
    devices to use ("cpu,cpu"), where they are not to be tried out.
    """
    begun = time.monotonic()
    root = Path(os.environ.get("OSTEOGRADE_KAGGLE_INPUT", "/kaggle/input"))
    out = Path(os.environ.get("OSTEOGRADE_KAGGLE_WORKING", "/kaggle/working")) / "submission.csv"
    try:
        weights = find_weights(root, task, manifest_sha256)
        data = find_data(root, TASKS[task].slug, data_set, skip=weights)
        devices = preflight(data, weights, out.parent)
        tally, left = grade(task, data, weights, out, devices, TIME_BUDGET_HOURS - (time.monotonic() - begun) / 3600)
    except (ValueError, OSError) as error:  # whatever was written stays; the log is all its reader has
        traceback.print_exc()
        print(f"error: {error}\nbelow {root}:", *tree(root), sep="\n  ", file=sys.stderr, flush=True)
        return 2
    print(*closing(task, data, out, tally, left, devices, time.monotonic() - begun), sep="\n", flush=True)
    return 0


def grade(task: str, data: Path, weights: Path, out: Path, devices: list[str], hours: float) -> tuple[Tally, int]:
    """What happened, and how many studies keep their priors: one process per device, or all in this one."""
    if len(devices) > 1:
        tally = shards.infer(task, data, weights, out, devices, hours=hours, say=_say)
        return tally, tally.faults[shards.DIED] + tally.faults[shards.DEADLINE]
    known, manifest, studies = run.prepare(task, data, weights)
    tally = Tally(studies=len(studies))
    sheet = Sheet(known, manifest["prior"], studies, out, submission.template_ids(data) or (), tally)
    sheet.write()
    run.fill(weights, manifest, sheet, device=device.pick(devices[0]), seconds=hours * 3600, say=_say)
    return tally, len(studies) - sheet.done


def find_data(root: Path, slug: str, data_set: str = "", skip: Path | None = None) -> Path:
    """The folder of the studies: the competition's or data set's new mount, its old one, else the only folder that
    holds a marker file or, for a task without a competition, the only one that holds images."""
    owner, _, name = data_set.partition("/")
    for folder in (root / "competitions" / slug, root / slug):
        if slug and any((folder / marker).is_file() for marker in MARKERS):
            return folder
    for folder in (root / "datasets" / owner / name, root / name):
        if name and folder.is_dir():
            return folder
    found = sorted({path.parent for marker in MARKERS for path in search(root, marker, skip)})
    expected = " or ".join(MARKERS)
    if not found and not slug:
        found, expected = [folder for folder in mounts(root) if folder != skip and images(folder)], "images"
    if len(found) != 1:
        raise ValueError(f"{len(found)} folders hold {expected}, expected 1: {[str(path) for path in found]}")
    return found[0]


def mounts(root: Path) -> list[Path]:
    """What is attached: below the folders of kinds and owners in the new layout, right below the root in the old."""
    kinds = {"competitions": 1, "datasets": 2, "models": 5, "notebooks": 2}
    folders = [path for path in root.iterdir() if path.is_dir() and path.name not in kinds] if root.is_dir() else []
    for kind, depth in kinds.items():
        folders += [path for path in root.glob("/".join([kind, *["*"] * depth])) if path.is_dir()]
    return sorted(folders)


def find_weights(root: Path, task: str, manifest_sha256: str = "") -> Path:
    """The folder of the only manifest.json of ``task`` (and of that sha256, if given)."""
    found = []
    for path in search(root, bundle.MANIFEST):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and facts.get("task") == task:
            found.append(path)
    if manifest_sha256:
        found = [path for path in found if bundle.sha256(path) == manifest_sha256]
    if len(found) != 1:
        which = f" with sha256 {manifest_sha256[:12]}..." if manifest_sha256 else ""
        raise ValueError(f"{len(found)} manifest.json of {task}{which}, expected 1: {[str(p) for p in sorted(found)]}")
    return found[0].parent


def search(root: Path, name: str, skip: Path | None = None, depth: int = 8) -> Iterator[Path]:
    """Files called ``name`` at most ``depth`` folders down; image folders and ``skip`` are not entered."""
    if (root / name).is_file():
        yield root / name
    if depth and root.is_dir():
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and folder != skip and not folder.name.endswith("_images"):
                yield from search(folder, name, skip, depth - 1)


def preflight(data: Path, weights: Path, working: Path) -> list[str]:
    """Print what a reader of the log will ask first, and return the devices to use: each GPU that a real operation
    works on, else the CPU."""
    versions = ", ".join(f"{name} {getattr(importlib.import_module(name), '__version__', '?')}" for name in SHOWN)
    print(f"python {platform.python_version()}, {versions}")
    works = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", index)
        fault = device.fault(gpu)
        works += [] if fault else [str(gpu)]
        print(f"{gpu} {torch.cuda.get_device_name(gpu)}: {fault or 'works'}")
    chosen = [name for name in os.environ.get("OSTEOGRADE_DEVICES", "").split(",") if name] or works or ["cpu"]
    print(f"devices {', '.join(chosen)}; torch built for {torch.cuda.get_arch_list() or 'the CPU'}")
    kaggle = {name: os.environ.get(name, "") for name in ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_IS_COMPETITION_RERUN")}
    print(f"{os.cpu_count()} CPUs, {shutil.disk_usage(working).free / 2**30:.0f} GiB free, {kaggle}")
    print(f"data {data}\nweights {weights}, manifest {bundle.sha256(weights / bundle.MANIFEST)[:12]}", flush=True)
    return chosen


def closing(task: str, data: Path, out: Path, tally: Tally, left: int, devices: list[str], seconds: float) -> list[str]:
    """One screen at the end of the log: studies, faults, times, and the hash that a downloaded file must have."""
    template = data / submission.TEMPLATE
    problems = submission.validate(out, template) if submission.template_ids(data) else []
    state = f"{len(problems)} problems, such as {problems[0]}" if problems else "valid"
    stages = ", ".join(f"{name} {spent:.1f} s" for name, spent in tally.seconds.items()) or "none"
    faults = ", ".join(f"{code} x {count}" for code, count in sorted(tally.faults.items())) or "none"
    return [
        f"== osteograde {task} ".ljust(WIDTH, "="),
        f"studies    {tally.studies - left} of {tally.studies} graded, {tally.unread} unreadable",
        f"rows       {len(submission.read(out))}, {tally.on_prior} on their prior; {state}",
        f"faults     {faults}",
        f"stages     {stages}",
        f"time       {seconds:.0f} s on {', '.join(devices)}, peak memory {peak_mib():.0f} MiB a process",
        f"result     {out.name} sha256 {bundle.sha256(out)}",
        "=" * WIDTH,
    ]


def peak_mib() -> float:
    """Most memory that this process or one of its children held at once."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def tree(root: Path) -> list[str]:
    """What lies below ``root``, two levels deep, at most 50 names a folder."""
    if not root.is_dir():
        return [f"{root} is not a folder"]
    lines = []
    for path in sorted(root.iterdir())[:50]:
        below = sorted(path.iterdir())[:50] if path.is_dir() else []
        lines += [path.name, *(f"{path.name}/{inner.name}" for inner in below)]
    return lines or ["nothing"]


def _say(line: str) -> None:
    print(line, flush=True)  # a log is read while the kernel runs
'''

SOURCE['osteograde/inference/pipeline.py'] = r'''"""The two stages, over many studies at once: locate -> points in mm -> boxes -> grade -> probabilities.

Shapes: N slices, B passes, L landmarks, S sites, K classes. Folds are averaged as probabilities in both stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from osteograde.imaging.geometry import Roi, Volume, apply, to_index
from osteograde.inference.reading import Loaded
from osteograde.inference.sharing import Nets, in_memory, logits_of, mean_of
from osteograde.inference.views import SIGN, Pass, pass_images, passes, site_boxes, site_crops, test_views, turned
from osteograde.models.locators.locator import probabilities
from osteograde.models.locators.peaks import candidates, in_order, refined, stack_peaks
from osteograde.tasks.contract import Grade, Locate, Point, Points, Task, sides

T = TypeVar("T")
ABSENT_BELOW = 0.05  # a landmark with less of the heatmap's mass near its peak was not found
SLICES_PER_BATCH = 96
CROPS_PER_BATCH = 256


def locate(stage: Locate, studies: Sequence[Loaded], points: Sequence[Points], nets: Nets) -> list[dict[str, Point]]:
    """What one locator finds in each study. ``points``: what earlier locators found there.

    What could not be computed is counted in the faults of its study and not found.
    """
    side = max(sides(nets.pixels))
    looks = [(i, look) for i, loaded in enumerate(studies) for look in passes(stage, loaded.volumes, points[i], side)]
    found: list[dict[str, Point]] = [{} for _ in studies]
    for batch in _batched(looks, lambda look: look.roi.shape[0], SLICES_PER_BATCH, nets.device):
        answers = in_memory(partial(_find, stage), [look for _, look in batch], nets)
        for (i, look), answer in zip(batch, answers, strict=True):
            if _is_lost(answer, studies[i], stage.name) or answer is None:
                continue
            for landmark, (*index, confidence) in zip(look.landmarks, answer, strict=True):
                if confidence >= ABSENT_BELOW:
                    found[i][landmark.name] = Point(apply(look.roi.to_mm, np.array(index)), float(confidence))
    return found


def _batched(
    entries: Sequence[tuple[int, T]], cost: Callable[[T], int], limit: int, device: torch.device
) -> Iterator[list[tuple[int, T]]]:
    """(study, thing) entries in groups that cost at most ``limit`` (at least one entry).

    A GPU wants batches across studies. On a CPU they gain nothing, and a batch of one study's own gives it the same
    bytes whatever is graded beside it.
    """
    batch: list[tuple[int, T]] = []
    total = 0
    for study, thing in entries:
        other = batch and device.type == "cpu" and batch[-1][0] != study
        if batch and (other or total + cost(thing) > limit):
            yield batch
            batch, total = [], 0
        batch.append((study, thing))
        total += cost(thing)
    if batch:
        yield batch


def _is_lost(answer: np.ndarray | None, study: Loaded, stage: str) -> bool:
    """Whether there is no answer, or none in numbers; counted in the study's faults."""
    if answer is not None and not np.isnan(answer).all():
        return False
    study.faults[f"{stage}:{'out_of_memory' if answer is None else 'not_finite'}"] += 1
    return True


@torch.inference_mode()
def _find(stage: Locate, looks: Sequence[Pass], nets: Nets) -> list[np.ndarray]:
    """Per pass (L, 4): index of each landmark in the pass's box, and the confidence; NaN where no fold is finite."""
    images, laterals = zip(*(pass_images(look, nets.device) for look in looks), strict=True)
    image = (images[0] if len(images) == 1 else torch.cat(images)).contiguous(memory_format=torch.channels_last)
    lateral = torch.cat(laterals)
    depths = torch.tensor([look.roi.shape[0] for look in looks], device=nets.device)
    stack = torch.repeat_interleave(torch.arange(len(looks), device=nets.device), depths)
    landmarks = looks[0].landmarks
    channel = torch.tensor([stage.channels.index(landmark.channel) for landmark in landmarks], device=nets.device)
    side = torch.tensor([SIGN[landmark.side] for landmark in landmarks], device=nets.device)
    folds = []
    for net in nets.nets:
        maps: Callable[..., torch.Tensor] = net.maps  # type: ignore[assignment]
        logits = logits_of(partial(maps, image), nets.device)
        stride = image.shape[-1] // logits.shape[-1]
        folds.append(probabilities(logits, stack, channel, side, lateral, nowhere=stage.absent))
    slice_mm = torch.tensor([look.roi.spacing_mm[0] for look in looks], device=nets.device)
    found, pixel_mm = mean_of(folds), stage.field_mm[1] / max(sides(nets.pixels))
    lost = {int(k) for k in stack[found.isnan().flatten(1).any(1)]}
    found = found.nan_to_num() if lost else found
    found = _beside(found, looks, stage, stride, pixel_mm)
    peaks = stack_peaks(found, stack)
    if stage.apart_mm is not None:  # a chain of levels: the likeliest places that are in order
        several, scores = candidates(found, stack)
        chains, step_mm = stage.chains(landmarks), stride * pixel_mm
        peaks = in_order(several, scores, chains, map_pixel_mm=step_mm, spacing_mm=stage.apart_mm)
    index, confidence = refined(found, stack, peaks, stride=stride, pixel_mm=pixel_mm, slice_mm=slice_mm)
    answers = torch.cat([index, confidence[..., None]], -1).cpu().numpy().astype(float)
    answers[sorted(lost)] = np.nan
    return list(answers)


def _beside(found: torch.Tensor, looks: Sequence[Pass], stage: Locate, stride: int, pixel_mm: float) -> torch.Tensor:
    """Probabilities (N, L, h, w) of landmarks that lie beside a known one, kept to its surroundings in-plane."""
    if not any(look.near_mm for look in looks):
        return found
    found, start = found.clone(), 0
    rows, columns = ((torch.arange(n, device=found.device) + 0.5) * stride - 0.5 for n in found.shape[-2:])
    for look in looks:
        part = slice(start, start + look.roi.shape[0])
        start = part.stop
        for i, landmark in enumerate(look.landmarks):
            if landmark.name not in look.near_mm:
                continue
            _, row, column = to_index(look.roi, look.near_mm[landmark.name]).tolist()
            away = (rows[:, None] - row) ** 2 + (columns[None] - column) ** 2 > (stage.near_mm / pixel_mm) ** 2
            kept = found[part, i].masked_fill(away, 0.0)
            found[part, i] = kept / kept.sum().clamp_min(1e-12)
    return found


def locate_all(
    task: Task, studies: Sequence[Loaded], locators: Mapping[str, Nets]
) -> tuple[list[dict[str, Point]], list[dict[str, Point]]]:
    """Every locator in order, each prompted by what the earlier ones found.

    Returns (found, completed): what the nets found, and that with what geometry can tell of the rest.
    """
    found: list[dict[str, Point]] = [{} for _ in studies]
    completed: list[dict[str, Point]] = [{} for _ in studies]
    for stage in task.locate:
        for i, new in enumerate(locate(stage, studies, completed, locators[stage.name])):
            found[i] |= new
            completed[i] = dict(task.complete(found[i]))
    return found, completed


@torch.inference_mode()
def grade(
    group: Grade,
    studies: Sequence[Loaded],
    points: Sequence[Points],
    nets: Nets,
    *,
    views: int = 1,
) -> list[dict[str, np.ndarray]]:
    """What one grader says of every site that can be seen, per study: target -> (K + F,), the probabilities of the
    classes and then of each of the group's findings. What could not be computed is counted in its study's faults."""
    graded: list[dict[str, np.ndarray]] = [{} for _ in studies]
    boxes = [site_boxes(group, loaded.volumes, points[i], nets.pixels) for i, loaded in enumerate(studies)]
    seen = [(i, target) for i, found in enumerate(boxes) for target in found]
    for batch in _batched(seen, lambda _: 1, CROPS_PER_BATCH, nets.device):
        answers = in_memory(partial(_judge, group, views), [boxes[i][target] for i, target in batch], nets)
        for (i, target), answer in zip(batch, answers, strict=True):
            if _is_lost(answer, studies[i], group.name) or answer is None:
                continue
            if nets.calibration is not None:
                classes = len(answer) - len(group.findings)
                answer[:classes] = nets.calibration(answer[:classes])
            graded[i][target] = answer
    return graded


@torch.inference_mode()
def _judge(group: Grade, views: int, boxes: Sequence[Mapping[str, tuple[Volume, Roi]]], nets: Nets) -> list[np.ndarray]:
    """(K + F,) probabilities of each box: the mean over test-time views and folds; NaN where none is finite."""
    answers = []
    for look in test_views(group, views):
        seen = {
            str(k): {view: (volume, turned(roi, *look)) for view, (volume, roi) in box.items()}
            for k, box in enumerate(boxes)
        }
        crops = site_crops(group, seen, nets.pixels, nets.device)
        for net in nets.nets:
            logits = logits_of(partial(net, list(crops.views), crops.present), nets.device)
            answers.append(_answers(logits, len(group.findings)))
    return list(_finite_mean(np.array(answers)))


def _finite_mean(answers: np.ndarray) -> np.ndarray:
    """(S, K + F) mean of (M, S, K + F) over the members whose answer is finite; NaN where none is."""
    if np.isfinite(answers).all():
        return answers.mean(0)
    good = np.isfinite(answers).all(-1, keepdims=True)
    total = np.where(good, answers, 0.0).sum(0)
    return np.divide(total, good.sum(0), out=np.full_like(total, np.nan), where=good.sum(0) > 0)


def _answers(logits: torch.Tensor, findings: int) -> np.ndarray:
    """(S, K + F) logits as probabilities: the classes exclude each other, the findings do not."""
    classes = logits.shape[-1] - findings
    exclusive, free = torch.softmax(logits[:, :classes], -1), torch.sigmoid(logits[:, classes:])
    return torch.cat([exclusive, free], -1).cpu().numpy().astype(float)


def rows(
    task: Task, graded: Mapping[str, np.ndarray], prior: Mapping[str, Sequence[float]], targets: Sequence[str] = ()
) -> np.ndarray:
    """(targets, K) in the task's target order, of those asked: what was graded, else the prior of that target."""
    classes = len(task.classes)
    return np.array([np.asarray(graded.get(target, prior[target]), float)[:classes] for target in task.asked(targets)])
'''

SOURCE['osteograde/inference/processes/__init__.py'] = r'''"""Several studies and several processes at once, and how they end."""
'''

SOURCE['osteograde/inference/processes/abreast.py'] = r'''"""Studies side by side on a CPU: one small net does not keep several cores busy, several of them do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def abreast(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``work(item)`` of every item, in order, as many at a time as torch has threads, each with one of them.

    Sums over many values come out differently, in the seventh digit, on another number of threads. With one each, also
    where there is but one item, an answer depends neither on the machine's cores nor on what is done beside it. An
    error ends it; items that are being worked on are not waited for.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not items:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(min(threads, len(items)))
    torch.set_num_threads(1)  # of this thread and of those that begin after it
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)
'''

SOURCE['osteograde/inference/processes/shards.py'] = r'''"""Several devices, one process each: lists of studies are dealt out, and their parts become one submission.

A process that dies (no memory, a broken driver, a file that kills a library) loses nothing that it had finished. What
is left of its list goes to another device, the studies it died on last and one at a time; a study that two processes
died on keeps its priors. Rows are merged as text, so the bytes are those of one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from osteograde.inference import run, whole
from osteograde.inference.answers import submission
from osteograde.inference.answers.sheet import Sheet, Tally, write_beside
from osteograde.inference.processes import worker
from osteograde.inference.processes.worker import Job

POLL_S = 0.5
MAX_DEATHS = 2  # of processes on one study
MAX_PROCESSES = 16  # started in all: where they die for a reason that no study has, it ends here
LAST_LINES = 12
DIED, DEADLINE = "process_died", "deadline"
PACKAGE = Path(run.__file__).resolve().parents[2]


@dataclass(eq=False)
class Running:
    """A process and its job; ``seen``: studies whose rows were taken over already."""

    job: Job
    folder: Path
    process: subprocess.Popen[bytes]
    seen: int = 0


@dataclass(eq=False)
class Plan:
    """Who works on what. ``orphans``: jobs whose process died, to be taken by a device that is free."""

    free: list[str]
    orphans: list[Job]
    running: list[Running] = field(default_factory=list)
    ended: list[worker.Progress] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)  # studies that stay on their priors
    retired: list[str] = field(default_factory=list)  # devices that a process died on, the last one last


def deal(ids: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Lists of nearly equal length, neighbours apart: studies of one scanner lie together and take equally long.

    >>> deal(["a", "b", "c"], 2)
    [('a', 'c'), ('b',)]
    """
    return [tuple(ids[k::count]) for k in range(min(count, len(ids)))]


def rest(job: Job, done: Sequence[str], deaths: Mapping[str, int]) -> tuple[Job, list[str]]:
    """What is left of a dead process's job, and those it died on once too often. Suspects come last, one at a time."""
    left = [name for name in job.ids if name not in set(done)]
    suspects = left[: job.chunk]
    lost = [name for name in suspects if deaths[name] >= MAX_DEATHS]
    again = [*left[job.chunk :], *(name for name in suspects if name not in lost)]
    return replace(job, ids=tuple(again), chunk=1), lost


def infer(
    task: str,
    data: Path,
    weights: Path,
    out: Path,
    devices: Sequence[str],
    *,
    hours: float,
    say: Callable[[str], None],
    poll_s: float = POLL_S,
) -> Tally:
    """Grade ``data`` on all ``devices`` into ``out``, as ``run.infer`` does on one; what happened is returned.

    ValueError or OSError: the user's mistake, told before any work.
    """
    begun = time.monotonic()
    known, manifest, studies = run.prepare(task, data, weights)
    Sheet(known, manifest["prior"], studies, out, submission.template_ids(data) or (), Tally()).write()
    table = Table(out, {study.id: known.rows(study.id, study.targets) for study in studies})
    threads = max(1, min(8, (os.cpu_count() or 1) // len(devices)))
    jobs = [
        Job(task, str(data), str(weights), device, ids, hours, threads)
        for device, ids in zip(devices, deal([study.id for study in studies], len(devices)), strict=False)
    ]
    with tempfile.TemporaryDirectory(prefix="osteograde-") as home:
        plan = Plan(free=list(devices), orphans=jobs)
        try:
            _supervise(plan, table, Path(home), begun + hours * 3600, poll_s, say)
        finally:
            for one in plan.running:
                one.process.kill()
                one.process.wait()
    tally = total([part.tally for part in plan.ended], [study.id for study in studies], table.rows)
    tally.studies = len(studies)
    tally.faults[DIED] += len(plan.lost)
    tally.faults[DEADLINE] += max(0, len(studies) - len(table.done) - len(plan.lost) - tally.faults[DEADLINE])
    tally.faults = +tally.faults
    tally.on_prior += sum(len(table.rows[study.id]) for study in studies if study.id not in table.done)
    write_beside(known, tally, out)
    return tally


def _supervise(
    plan: Plan, table: Table, home: Path, deadline: float, poll_s: float, say: Callable[[str], None]
) -> None:
    begun, count = time.monotonic(), 0
    while plan.orphans or plan.running:
        if count >= MAX_PROCESSES and plan.orphans:
            say(f"{count} processes were started: what is left of the lists keeps its priors")
            plan.lost += [name for job in plan.orphans for name in job.ids]
            plan.orphans.clear()
        if not plan.free and not plan.running and plan.retired:
            plan.free.append(plan.retired.pop(0))  # none is left: try the one that died longest ago
        while plan.orphans and plan.free and count < MAX_PROCESSES and time.monotonic() < deadline:
            job = replace(plan.orphans.pop(0), device=plan.free.pop(0), hours=(deadline - time.monotonic()) / 3600)
            plan.running.append(start(job, home / str(count)))
            count += 1
        time.sleep(poll_s)
        for one in list(plan.running):
            code = one.process.poll()  # before the parts are read: what it wrote last is then there
            if table.take(one):
                say(f"{len(table.done)}/{len(table.rows)} studies, {time.monotonic() - begun:.0f} s ({one.job.device})")
            if code is not None:
                _ended(plan, one, code, say)
        if time.monotonic() > deadline + 60:
            say("out of time: what is not graded keeps its priors")
            plan.ended += [worker.progress(one.folder) for one in plan.running]
            return
        if time.monotonic() > deadline and not plan.running:
            return


def _ended(plan: Plan, one: Running, code: int, say: Callable[[str], None]) -> None:
    plan.running.remove(one)
    came = worker.progress(one.folder)
    plan.ended.append(came)
    if code == 0:
        plan.free.append(one.job.device)
        return
    plan.retired.append(one.job.device)
    left = [name for name in one.job.ids if name not in set(came.done)]
    plan.deaths.update(left[: one.job.chunk])
    job, lost = rest(one.job, came.done, plan.deaths)
    plan.lost += lost
    say(f"the process on {one.job.device} died with code {code} at study {left[0] if left else '-'}; it said last:")
    for line in (one.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
        say(f"  {line}")
    if job.ids:
        say(f"{len(job.ids)} studies of its list go to another device")
        plan.orphans.append(job)


def start(job: Job, folder: Path) -> Running:
    """Start a process on a job. A GPU is the only one that its process sees."""
    folder.mkdir(parents=True)
    kind, _, number = job.device.partition(":")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH", ""))))}
    if kind == "cuda":
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        env["CUDA_VISIBLE_DEVICES"] = seen[int(number)] if seen else number
    worker.give(folder, replace(job, device="cuda:0" if kind == "cuda" else "cpu"))
    command = [sys.executable, "-m", "osteograde.inference.processes.worker", str(folder)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    return Running(job, folder, process)


class Table:
    """The lines of the submission, as they were written with priors, and then as the parts have them."""

    def __init__(self, out: Path, rows: Mapping[str, Sequence[str]]) -> None:
        self.out, self.rows, self.done = out, rows, dict[str, None]()
        self.head, *lines = out.read_text(encoding="utf-8").splitlines()
        self.lines = {line.partition(",")[0]: line for line in lines}

    def take(self, one: Running) -> bool:
        """Take over the rows of studies that a process has finished since; whether there were any."""
        new = worker.progress(one.folder).done[one.seen :]
        if not new:
            return False
        own = (one.folder / worker.PART).read_text(encoding="utf-8").splitlines()[1:]
        part = {line.partition(",")[0]: line for line in own}
        for study in new:
            self.lines |= {row: part[row] for row in self.rows[study]}
        self.done |= dict.fromkeys(new)
        one.seen += len(new)
        whole.write(self.out, "\n".join((self.head, *self.lines.values())) + "\n")
        return True


def total(parts: Sequence[Tally], order: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Tally:
    """All tallies as one, flags and findings in the order of the studies. Seconds add up over processes."""
    every, place = Tally(), {name: i for i, name in enumerate(order)}
    study_of = {row: place[study] for study, own in rows.items() for row in own}
    for part in parts:
        every.unread += part.unread
        every.on_prior += part.on_prior
        every.faults += part.faults
        every.flags += part.flags
        every.findings += part.findings
        for name, seconds in part.seconds.items():
            every.seconds[name] += seconds
    every.flags.sort(key=lambda flag: study_of[flag[0]])
    every.findings.sort(key=lambda finding: study_of[finding[0]])
    return every
'''

SOURCE['osteograde/inference/processes/stop.py'] = r'''"""A run that is told to stop (SIGTERM: a notebook's limit, a queue's) writes down what it has, instead of dying."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """Raised wherever the run is when the signal arrives. No Exception: nothing that repairs faults may swallow it."""


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the writing
    raise Stopped


@contextmanager
def on_sigterm() -> Iterator[None]:
    """SIGTERM raises ``Stopped`` inside; the handler that was there before comes back. Other threads see no change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
'''

SOURCE['osteograde/inference/processes/worker.py'] = r'''"""One process of several: grades the studies of its list on its device, and tells after every chunk how far it came.

    python -m osteograde.inference.processes.worker FOLDER

reads FOLDER/job.json and leaves FOLDER/part.csv and FOLDER/progress.json, each replaced in one step.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osteograde.inference import run
from osteograde.inference.answers.sheet import Sheet, Tally
from osteograde.models.device import pick

JOB, PART, PROGRESS = "job.json", "part.csv", "progress.json"


@dataclass(frozen=True)
class Job:
    """What one process does. ``hours``: what it may take; ``chunk``: studies that go through the nets together."""

    task: str
    data: str
    weights: str
    device: str
    ids: tuple[str, ...]
    hours: float
    workers: int
    chunk: int = run.CHUNK


@dataclass(frozen=True)
class Progress:
    """Studies that are finished, and what happened up to them."""

    done: tuple[str, ...]
    tally: Tally


def give(folder: Path, job: Job) -> None:
    (folder / JOB).write_text(json.dumps(asdict(job)), encoding="utf-8")


def progress(folder: Path) -> Progress:
    """How far a process came; nothing done where it has not said anything."""
    path = folder / PROGRESS
    if not path.is_file():
        return Progress((), Tally())
    facts = json.loads(path.read_text(encoding="utf-8"))
    tally = Tally(facts["studies"], facts["unread"], facts["on_prior"])
    tally.faults = Counter(facts["faults"])
    tally.seconds = defaultdict(float, facts["seconds"])
    tally.flags = [(row, reason, count) for row, reason, count in facts["flags"]]
    tally.findings = [(row, tuple(values)) for row, values in facts["findings"]]
    return Progress(tuple(facts["done"]), tally)


def main(folder: Path) -> int:
    """Do the job in ``folder``. Errors are not caught: what was written stays, and whoever started it sees the code."""
    facts: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
    job = Job(**{**facts, "ids": tuple(facts["ids"])})
    task, manifest, studies = run.prepare(job.task, Path(job.data), Path(job.weights))
    by_id = {study.id: study for study in studies}
    mine = [by_id[name] for name in job.ids]
    tally = Tally(studies=len(mine))
    sheet = Sheet(task, manifest["prior"], mine, folder / PART, (), tally)
    sheet.write()
    done: list[str] = []

    def after(ids: Sequence[str]) -> None:
        done.extend(ids)
        _tell(folder, done, tally)

    run.fill(
        Path(job.weights), manifest, sheet, device=pick(job.device), seconds=job.hours * 3600, workers=job.workers,
        chunk=job.chunk, after=after, say=_say,
    )  # fmt: skip
    _tell(folder, done, tally)
    return 0


def _tell(folder: Path, done: Sequence[str], tally: Tally) -> None:
    part = folder / (PROGRESS + ".part")
    facts = {"done": list(done), **vars(tally)}  # counters are dicts to JSON
    part.write_text(json.dumps(facts), encoding="utf-8")
    part.replace(folder / PROGRESS)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
'''

SOURCE['osteograde/inference/reading.py'] = r'''"""Studies to volumes: every file read once, one window per series, every stack the same way up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from osteograde.imaging import raster
from osteograde.imaging.dicom import UnreadableSeries, read_series
from osteograde.imaging.dicom.radiograph import read_film
from osteograde.imaging.dicom.stacks import UNSIZED
from osteograde.imaging.geometry import LEFT, Volume, apply, oriented, roi_at
from osteograde.imaging.intensity import window
from osteograde.imaging.slabs import slabs
from osteograde.tasks.contract import Mark, Point, Series, Study, Task, View

SIDE_MM = 200.0  # an image of one side alone is put this far from the patient's midline: all of it lies on that side
LATERAL = frozenset({"LL", "RL", "LATERAL", "LLD", "RLD"})  # View Position (0018,5101) of a film from the side
ASSUMED = "size_assumed"  # code: the pixels of an image have no size in mm, the view's usual width is taken
STEEP_DEGREES = 60.0  # slabs through the lowest disc may lean by 45 degrees and more; a stack beyond is another view's
_SIGN = {"right": -1.0, "": 0.0, "left": 1.0}


@dataclass(frozen=True, eq=False)
class Loaded:
    """What could be read of a study: view -> stacks of uint8, and why the rest could not.

    marks: annotated landmarks in mm whose slice was read. absent: landmarks known not to be there.
    """

    study: Study
    volumes: Mapping[str, tuple[Volume, ...]]
    faults: Counter[str] = field(default_factory=Counter)
    marks: Mapping[str, Point] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()

    @property
    def readable(self) -> bool:
        return any(self.volumes.values())


def load_study(study: Study, task: Task, *, map: Callable[..., Iterable] = map) -> Loaded:
    """Read every series of a study. ``map`` may be a thread pool's; a series that fails costs that series only."""
    volumes: dict[str, list[Volume]] = {view.name: [] for view in task.views}
    faults: Counter[str] = Counter()
    marks: dict[str, Point] = {}
    unsized: list[tuple[str, list[Volume], str]] = []
    for series in study.series:
        told = task.view(series.view) if series.view else task.views[0]  # a folder that no table names
        try:
            stacks, codes = read(series, told, map=map)
        except (UnreadableSeries, raster.UnreadableImage) as error:
            faults[f"{series.view or 'unnamed'}:{error.code}"] += 1
            continue
        name, stacks = _in_plane(task, series.view, stacks, codes)
        faults.update({f"{name or series.view or 'unnamed'}:{code}": count for code, count in codes.items()})
        if name and UNSIZED in codes:
            unsized.append((name, stacks, series.id))
        elif name:
            marks |= marked(study.marks, series.id, stacks)
            volumes[name] += _seen(task.view(name), stacks, faults)
    for name, stacks, series_id in unsized:
        stacks = [_sized(stack, _usual_mm(task, volumes, name)) for stack in stacks]
        marks |= marked(study.marks, series_id, stacks)
        volumes[name] += _seen(task.view(name), stacks, faults)
    faults.update({f"{view.name}:absent": 1 for view in task.views if view.needed and not volumes[view.name]})
    absent = frozenset(mark.landmark for mark in study.marks if np.isnan(mark.x))
    return Loaded(study, {name: tuple(stacks) for name, stacks in volumes.items()}, faults, marks, absent)


def _in_plane(task: Task, told: str, stacks: list[Volume], codes: Counter[str]) -> tuple[str, list[Volume]]:
    """The view of a series and those of its stacks that lie in its plane; ("", []) where they lie in no view's.

    Where table and files contradict each other, the files are right. What lies across the other stacks, a localizer
    for example, is dropped.
    """
    name = told
    if not told or not any(task.view(told).shows(stack, STEEP_DEGREES) for stack in stacks):
        largest = sorted(stacks, key=lambda stack: -stack.voxels.shape[0])
        name = next(filter(None, map(task.view_of_orientation, largest)), "")
        codes["orientation_contradicts"] += bool(told)
    kept = [stack for stack in stacks if name and task.view(name).shows(stack, STEEP_DEGREES)]
    codes["no_view" if not name else "other_plane"] += _slices(stacks) - _slices(kept)
    for code in [code for code, count in codes.items() if not count]:
        del codes[code]
    return name, kept


def _slices(stacks: Sequence[Volume]) -> int:
    return sum(stack.voxels.shape[0] for stack in stacks)


def _seen(view: View, stacks: Sequence[Volume], faults: Counter[str]) -> list[Volume]:
    """Stacks as the nets see them; those without any contrast show nothing and are left out."""
    grey = window(stacks, *view.window)
    kept = [volume for volume in grey if volume.voxels.any()]
    if len(kept) < len(grey):
        faults[f"{view.name}:no_contrast"] += len(grey) - len(kept)
    return [oriented(slabs(volume), np.array(view.directions)) for volume in kept]


def _usual_mm(task: Task, volumes: Mapping[str, Sequence[Volume]], name: str) -> float:
    """Median pixel size in mm of the view's other stacks, else of those of its plane, else of the study's, else 1."""
    plane = [view.name for view in task.views if view.directions == task.view(name).directions]
    for names in ([name], plane, list(volumes)):
        if sizes := [stack.spacing_mm[1:] for one in names for stack in volumes[one]]:
            return float(np.median(sizes))
    return 1.0


def _sized(volume: Volume, pixel_mm: float) -> Volume:
    """A stack read at 1 mm a pixel with the pixels of that size; its first pixel stays where it is."""
    return replace(volume, to_mm=volume.to_mm @ np.diag([1.0, pixel_mm, pixel_mm, 1.0]))


def read(series: Series, view: View, *, map: Callable[..., Iterable] = map) -> tuple[list[Volume], Counter[str]]:
    """Stacks of one series as its files have them, and a count of what was lost or assumed, by code.

    UnreadableSeries or UnreadableImage where nothing can be read.
    """
    directions = np.array(view.directions)
    if not series.files:
        return read_series(series.folder, default_directions=directions, map=map)
    centre_mm = LEFT * SIDE_MM * _SIGN[series.side]
    if raster.is_image(series.files[0]):
        stacks, codes = _images(series, view, directions, centre_mm)
        return [replace(stack, series=series.id) for stack in stacks], codes
    if view.film:
        return _film(series, view, directions, centre_mm)
    return read_series(series.folder, files=series.files, default_directions=directions, map=map)


def _images(series: Series, view: View, directions: np.ndarray, centre_mm: np.ndarray):
    spacing, codes = series.spacing_mm, Counter[str]()
    if spacing is None:
        codes[ASSUMED] += 1
        width, height = raster.size(series.files[0])
        spacing = (view.slice_mm, *(assumed_mm(view, width, height),) * 2)
    return raster.read_images(series.files, directions, spacing, centre_mm), codes


def _film(series: Series, view: View, directions: np.ndarray, centre_mm: np.ndarray):
    film = read_film(series.files[0])
    codes = Counter(film.codes)
    if film.view_position in LATERAL:
        codes["lateral_view"] += 1
    height, width = film.pixels.shape
    pixel_mm = film.pixel_mm
    if pixel_mm is None:
        codes[ASSUMED] += 1
        pixel_mm = (assumed_mm(view, width, height),) * 2
    grid = roi_at(centre_mm, directions, np.array([view.slice_mm, *pixel_mm]), (1, height, width))
    volume = Volume(film.pixels[None], grid.to_mm, series=series.id, names=(series.files[0].stem,))
    return [volume], codes


def assumed_mm(view: View, width: int, height: int) -> float:
    """Pixel size in mm of an image that does not say: the view's usual width over its pixels."""
    return view.width_mm[width <= height] / width


def marked(marks: Sequence[Mark], series: str, stacks: Sequence[Volume]) -> dict[str, Point]:
    """Annotated pixels of a series in mm. The stacks must be as read: pixel (x, y) is column and row of the file."""
    places = {name: (stack, z) for stack in stacks for z, name in enumerate(stack.names)}
    return {
        mark.landmark: Point(
            apply(places[mark.instance][0].to_mm, np.array([places[mark.instance][1], mark.y, mark.x]))
        )
        for mark in marks
        if mark.series == series and mark.instance in places and not np.isnan(mark.x)
    }
'''

SOURCE['osteograde/inference/run.py'] = r'''"""A folder of studies and a folder of weights to one submission.csv. Nothing that is written is ever lost.

A full, valid submission of class priors stands on disk before a net is built or an image opened; it is replaced
atomically after every chunk. One unreadable series costs that series; a study of which nothing can be read keeps its
priors and is counted. SIGTERM and deadlines end the run with what is done. Memory that runs out, a device that is lost
and a disk that is full for a while are lived through, and counted. Nothing else is caught.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteograde.imaging.memory import keep_freed_memory
from osteograde.inference import calibration, pipeline
from osteograde.inference.answers import submission
from osteograde.inference.answers.sheet import Result, Sheet, Tally, summary
from osteograde.inference.budget import Budget, Effort
from osteograde.inference.processes.abreast import abreast
from osteograde.inference.processes.stop import Stopped, on_sigterm
from osteograde.inference.reading import Loaded, load_study
from osteograde.models import bundle as bundles
from osteograde.models.bundle import Bundle
from osteograde.models.device import pick
from osteograde.tasks import TASKS
from osteograde.tasks.contract import Point, Study, Task

log = logging.getLogger("osteograde.inference")
CHUNK = 8  # studies that go through the nets together
FIRST = 4  # the first chunk is the fourth part of one
Draw = Callable[[Result, Bundle], None]


def infer(
    task: str,
    data: Path,
    weights: Path,
    out: Path,
    *,
    device: str = "auto",
    limit: int = 0,
    workers: int = 0,
    time_budget_hours: float | None = None,
    max_unread: int = 0,
    draw: Draw | None = None,
    say: Callable[[str], None] = log.info,
) -> int:
    """Grade ``data`` with ``weights`` into ``out``; returns the exit code (1: more than max_unread studies unread).

    ValueError or OSError: the user's mistake, told before any work; a submission already at ``out`` is untouched. (Only
    weights that are whole and yet do not fit their own manifest are found out after the priors are written.) OSError at
    the end: the last submission could not be written; the one before it is in place.
    """
    begun = time.monotonic()
    keep_freed_memory()
    chosen = None if device == "auto" else pick(device)  # looking for a GPU takes seconds: after the priors
    known, manifest, studies = prepare(task, data, weights)
    studies = studies[:limit] if limit else studies
    template = () if limit else submission.template_ids(Path(data)) or ()
    tally = Tally(studies=len(studies))
    sheet = Sheet(known, manifest["prior"], studies, out, template, tally)
    sheet.write()
    seconds = None if time_budget_hours is None else time_budget_hours * 3600 - (time.monotonic() - begun)
    fill(weights, manifest, sheet, device=chosen, seconds=seconds, workers=workers, draw=draw, say=say)
    for line in summary(tally, sheet.done, out):
        say(line)
    if tally.unread > max_unread:
        say(f"{tally.unread} studies could not be read, --max-unread is {max_unread}; their rows are class priors")
        return 1
    return 0


def prepare(task: str, data: Path, weights: Path) -> tuple[Task, dict[str, Any], list[Study]]:
    """(task, manifest of the verified weights, all studies of the test part). ValueError: the user's mistake."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {sorted(TASKS)}")
    if not Path(data).is_dir():
        raise ValueError(f"{data}: no such folder; --data is the folder that holds the tables and the images")
    manifest = bundles.verify(Path(weights))
    known = bundles.task_of(Path(weights), manifest, TASKS)
    if known.name != task:
        raise ValueError(f"{weights}: weights are of task {known.name!r}, asked for {task!r}")
    return known, manifest, known.read(Path(data), "test")


def fill(
    weights: Path,
    manifest: Mapping[str, Any],
    sheet: Sheet,
    *,
    device: torch.device | None,
    seconds: float | None,
    workers: int = 0,
    chunk: int = 0,
    draw: Draw | None = None,
    after: Callable[[Sequence[str]], None] | None = None,
    say: Callable[[str], None] = log.info,
) -> None:
    """Grade the studies of a sheet and write it after every chunk. device None: one that works. seconds: to spend.
    chunk: studies that go through the nets together, 0: CHUNK.

    after: called with the ids of finished studies, once their rows are written. OSError: the last writing failed.
    """
    begun, late, unwritten = time.monotonic(), "deadline", list[str]()

    def written() -> None:
        if after is not None and unwritten:
            after(tuple(unwritten))
        unwritten.clear()

    try:
        with on_sigterm():
            budget = _budget(manifest, seconds, begun)
            load = partial(bundles.load, Path(weights), TASKS, manifest=manifest)
            for results, bundle in _chunks(load, device or pick("auto"), sheet, budget, workers, chunk or CHUNK):
                for result in results:
                    sheet.put(result)
                    unwritten.append(result.loaded.study.id)
                    if draw is not None:
                        _draw(draw, result, bundle, sheet.tally)
                if sheet.try_to_write():
                    written()
                say(f"{sheet.done}/{len(sheet.studies)} studies, {time.monotonic() - begun:.0f} s")
    except Stopped:
        late = "stopped"
        say("told to stop: what is done is written, all other rows are class priors")
    sheet.leave(late)
    sheet.write()
    written()


def _budget(manifest: Mapping[str, Any], seconds: float | None, begun: float) -> Budget:
    """What may be spent: of ``seconds``, what is left since ``begun``; at most the views and folds of the weights."""
    folds = Counter(name.rpartition("/")[0] for name in manifest["files"])
    left = None if seconds is None else seconds - (time.monotonic() - begun)
    return Budget(left, views=int(manifest["test_views"]), folds=max(folds.values()))


def _chunks(
    load: Callable[[torch.device], Bundle],
    device: torch.device,
    sheet: Sheet,
    budget: Budget,
    workers: int,
    most: int,
) -> Iterator[tuple[list[Result], Bundle]]:
    """Finished chunks and the nets that did them. A GPU that is lost is not asked again: the CPU does the rest."""
    bundle = load(device)
    while True:
        try:
            for results in run(bundle, sheet.studies[sheet.done :], budget, sheet.tally, workers=workers, most=most):
                yield results, bundle
            return
        except torch.AcceleratorError:
            if bundle.device.type == "cpu":
                raise
            sheet.tally.faults["device_lost"] += 1
            bundle = load(torch.device("cpu"))


def _draw(draw: Draw, result: Result, bundle: Bundle, tally: Tally) -> None:
    """A picture that cannot be drawn or written costs that picture."""
    try:
        draw(result, bundle)
    except (OSError, torch.OutOfMemoryError, torch.AcceleratorError):
        tally.faults["picture_not_written"] += 1


def run(
    bundle: Bundle, studies: Sequence[Study], budget: Budget, tally: Tally, *, workers: int = 0, most: int = CHUNK
) -> Iterator[list[Result]]:
    """Chunk by chunk: the next chunk is read in a pool of threads while the nets work on this one."""
    threads = workers or min(8, os.cpu_count() or 1)
    pool, ahead = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)

    def fetch(start: int) -> tuple[Sequence[Study], Future[tuple[list[Loaded], float]] | None]:
        size = budget.chunk(most)
        # Nothing can be graded while the first chunk is read: it is a small one.
        chunk = studies[start : start + (size if start else -(-size // FIRST))]
        return chunk, ahead.submit(_read, chunk, bundle.task, pool) if chunk else None

    try:
        done, (chunk, reading) = 0, fetch(0)
        while reading is not None:
            effort = budget.effort(len(studies) - done)
            if effort is None or not budget.fits(len(chunk), effort):
                return
            begun = time.monotonic()
            try:
                loaded, read_s = reading.result(None if budget.seconds is None else budget.left())
            except TimeoutError:  # a disk that does not answer
                return
            tally.seconds["waiting to read"] += time.monotonic() - begun
            done += len(chunk)
            chunk, reading = fetch(done)
            yield _grade_chunk(bundle, loaded, read_s, effort, budget, tally)
    finally:  # told to stop, or late: what is still being read is not waited for
        for executor in (ahead, pool):
            executor.shutdown(wait=False, cancel_futures=True)


def _read(chunk: Sequence[Study], task: Task, pool: ThreadPoolExecutor) -> tuple[list[Loaded], float]:
    begun = time.monotonic()
    return [_load(study, task, pool) for study in chunk], time.monotonic() - begun


def _load(study: Study, task: Task, pool: ThreadPoolExecutor) -> Loaded:
    """One study; where memory runs out once more, file by file; where that fails too, nothing of it."""
    try:
        return load_study(study, task, map=pool.map)
    except MemoryError:
        pass
    try:
        loaded = load_study(study, task)
    except MemoryError:
        return Loaded(study, {}, Counter(out_of_memory=1))
    loaded.faults["read_twice"] += 1
    return loaded


def _grade_chunk(
    bundle: Bundle, loaded: list[Loaded], read_s: float, effort: Effort, budget: Budget, tally: Tally
) -> list[Result]:
    begun = time.monotonic()
    apart = [[study] for study in loaded] if bundle.device.type == "cpu" else [loaded]
    done = abreast(partial(_answers, bundle, effort), apart)
    points = [one for found, _, _ in done for one in found]
    graded = [one for _, answers, _ in done for one in answers]
    locating, grading = np.sum([seconds for _, _, seconds in done], axis=0)
    wall_s = time.monotonic() - begun
    locate_s = wall_s * locating / max(locating + grading, 1e-9)
    spent = {"read": read_s, "locate": locate_s, "grade": wall_s - locate_s}
    for name, seconds in spent.items():
        tally.seconds[name] += seconds
    budget.record(len(loaded), effort, **{f"{name}_s": seconds for name, seconds in spent.items()})
    for study in loaded:
        tally.unread += not study.readable
        tally.faults.update(study.faults)
    return [Result(*parts) for parts in zip(loaded, points, graded, strict=True)]


def _answers(
    bundle: Bundle, effort: Effort, loaded: Sequence[Loaded]
) -> tuple[list[dict[str, Point]], list[dict[str, np.ndarray]], tuple[float, float]]:
    """(points, probabilities) of each study that goes through the nets together, and the seconds of both stages."""
    begun = time.monotonic()
    _, points = pipeline.locate_all(bundle.task, loaded, nets_of(bundle, "locate", effort))
    located = time.monotonic()
    graded: list[dict[str, np.ndarray]] = [{} for _ in loaded]
    graders = nets_of(bundle, "grade", effort)
    for group in bundle.task.grade:
        for i, new in enumerate(pipeline.grade(group, loaded, points, graders[group.name], views=effort.views)):
            graded[i] |= new
    return points, graded, (located - begun, time.monotonic() - located)


def nets_of(bundle: Bundle, kind: str, effort: Effort) -> dict[str, pipeline.Nets]:
    """The nets of every stage, at most as many folds as the effort says."""
    nets = bundle.locators if kind == "locate" else bundle.graders
    return {
        stage: pipeline.Nets(
            folds[: effort.folds],
            bundle.pixels[stage],
            bundle.device,
            calibration.read(bundle.calibration[stage]) if stage in bundle.calibration else None,
        )
        for stage, folds in nets.items()
    }
'''

SOURCE['osteograde/inference/sharing.py'] = r'''"""Work on a device whose memory may be too small, with nets that may overflow: halve, move, redo; then give up on one.

What is given up is counted in the faults of its study; its rows keep the prior.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from osteograde.inference.calibration import Calibration
from osteograde.tasks.contract import Pixels

T = TypeVar("T")
R = TypeVar("R")
_CPU = torch.device("cpu")
_CPU_FULL = "can't allocate memory"  # torch's words where the machine's own memory is too small


@dataclass(frozen=True)
class Nets:
    """The folds of one stage, the pixels of what they read, and how their answers are calibrated."""

    nets: Sequence[nn.Module]
    pixels: Pixels
    device: torch.device
    calibration: Calibration | None = None


def in_memory(work: Callable[[Sequence[T], Nets], Sequence[R]], batch: Sequence[T], nets: Nets) -> list[R | None]:
    """``work(batch, nets)``, one answer per item, whatever the size of the device's memory.

    Where memory runs out the batch is halved, down to one item; one that is still too large goes to the CPU, and where
    that fails as well its answer is None. Other errors are not caught.
    """
    try:
        return list(work(batch, nets))
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_memory(error):
            raise
    _free(nets.device)  # here and not above: the error holds the tensors of the frames it came through
    if len(batch) > 1:
        half = len(batch) // 2
        return in_memory(work, batch[:half], nets) + in_memory(work, batch[half:], nets)
    if nets.device.type == "cpu":
        return [None] * len(batch)
    with _on_cpu(nets) as slower:
        return in_memory(work, batch, slower)


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the machine."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _CPU_FULL in str(error)


def logits_of(call: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """``call()`` in half precision where the device is faster so; once more in full where that overflows. float32."""
    half = is_half(device)
    # fp16 and never bf16: the T4 only emulates the latter.
    with torch.autocast(device.type, torch.float16, enabled=half):
        logits = call().float()
    if half and not torch.isfinite(logits).all():
        logits = call().float()
    return logits


def is_half(device: torch.device) -> bool:
    return device.type == "cuda"


def mean_of(folds: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean over folds of equal shape; of those that are finite where some are not, NaN where none is."""
    stacked = torch.stack(list(folds))
    mean = stacked.mean(0)
    return mean if torch.isfinite(mean.sum()) else stacked.nanmean(0)  # a sum is finite only where all of it is


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _on_cpu(nets: Nets) -> Iterator[Nets]:
    """The same nets on the CPU for a while: moved, since a copy would need the memory that is not there."""
    try:
        for net in nets.nets:
            net.to(_CPU)
        yield replace(nets, device=_CPU)
    finally:
        for net in nets.nets:
            net.to(nets.device)
'''

SOURCE['osteograde/inference/views.py'] = r'''"""What the nets see: the boxes of both stages and their pixels. Training and inference cut with these functions.

Shapes: D slices, H W pixels, V views, S sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from osteograde.imaging.geometry import (
    Roi,
    Volume,
    apply,
    lateral_axis,
    mirrored,
    outside_mm,
    plane_distance_mm,
    roi_at,
    roi_on,
)
from osteograde.imaging.sampling import crop_stack
from osteograde.tasks.contract import Grade, Landmark, Locate, Pixels, Points, Volumes, sides

SIGN = {"right": -1, "": 0, "left": 1}  # of patient x minus the midline
LATERAL_SCALE_MM = 50.0  # the lateral-coordinate channel is x / 50 mm: about -1..1 over a sagittal stack


@dataclass(frozen=True, eq=False)
class Pass:
    """One look of a locator at one box: a whole stack, or a few slices around a prompt."""

    landmarks: tuple[Landmark, ...]
    volume: Volume
    roi: Roi  # (D, H, W), on the volume's own slices
    midline_mm: float  # patient x that divides right from left
    near_mm: Mapping[str, np.ndarray] = field(default_factory=dict)  # landmark -> the point (mm) it lies beside


def passes(stage: Locate, volumes: Volumes, points: Points, pixels: int) -> list[Pass]:
    """The boxes a locator looks at in one study; none where the view, or every prompt, is absent."""
    found = []
    for view, prompt in stage.looks:
        stacks = volumes.get(view, ())
        if not stacks:
            continue
        landmarks = tuple(
            landmark
            for landmark in stage.landmarks
            if landmark.prompt == prompt and (landmark.view or stage.view) == view
        )
        if not prompt:
            found.append(_whole_stack(stage, landmarks, stacks, points, pixels))
        elif prompt in points:
            box = _around(stage, stacks, points[prompt].mm, pixels)
            if box is not None:
                found.append(Pass(landmarks, *box, midline_mm=float(points[prompt].mm[0])))
    return found


def _whole_stack(
    stage: Locate, landmarks: tuple[Landmark, ...], stacks: Sequence[Volume], points: Points, pixels: int
) -> Pass:
    volume = max(stacks, key=lambda stack: (stack.voxels.shape[0], stack.series))
    longest_mm = float(np.max(volume.spacing_mm[1:] * volume.voxels.shape[1:]))
    field_mm = (longest_mm, longest_mm) if stage.whole else stage.field_mm
    spacing = np.array([volume.spacing_mm[0], field_mm[0] / pixels, field_mm[1] / pixels])
    roi = roi_at(volume.centre_mm, volume.axes, spacing, (volume.voxels.shape[0], pixels, pixels))
    known = [0.0] if stage.own_midline else [points[name].mm[0] for name in stage.midline if name in points]
    near = {landmark.name: points[landmark.near].mm for landmark in landmarks if landmark.near in points}
    return Pass(landmarks, volume, roi, float(np.mean(known)) if known else float(volume.centre_mm[0]), near)


def _around(stage: Locate, stacks: Sequence[Volume], point_mm: np.ndarray, pixels: int) -> tuple[Volume, Roi] | None:
    """The box around a prompt in the stack whose slices come closest to it; None beyond ``far_mm``."""
    volume, distance = nearest(stacks, point_mm)
    if distance > stage.far_mm:
        return None
    spacing = (stage.field_mm[0] / pixels, stage.field_mm[1] / pixels)
    return volume, roi_on(volume, point_mm, spacing, (stage.slices, pixels, pixels))


def nearest(stacks: Sequence[Volume], point_mm: np.ndarray) -> tuple[Volume, float]:
    """The stack whose slices come closest to a point, and how close in mm (out of the plane and out of the field)."""
    distances = [plane_distance_mm(stack, point_mm) + outside_mm(stack, point_mm) for stack in stacks]
    best = min(range(len(stacks)), key=lambda i: (round(distances[i], 3), -stacks[i].voxels.shape[0], stacks[i].series))
    return stacks[best], distances[best]


def lateral_mm(roi: Roi, midline_mm: float) -> np.ndarray:
    """(D, W): patient x of each pixel column of each slice (at the middle row) relative to the midline."""
    d, h, w = roi.shape
    index = np.stack(np.meshgrid(np.arange(d), np.arange(w), indexing="ij"), -1).astype(float)
    middle = np.full(index.shape[:2], (h - 1) / 2)
    return apply(roi.to_mm, np.stack([index[..., 0], middle, index[..., 1]], -1))[..., 0] - midline_mm


def neighbours(crop_DHW: torch.Tensor, lateral_DW: torch.Tensor) -> torch.Tensor:
    """(D, 4, H, W): the slice before, the slice, the slice after (the ends repeat), and the lateral coordinate.

    Channels last in memory, as nets read them: written once, in place of a copy each time they are stacked.
    """
    depth, height, width = crop_DHW.shape
    images = torch.empty(
        (depth, 4, height, width), dtype=crop_DHW.dtype, device=crop_DHW.device, memory_format=torch.channels_last
    )
    images[:, :3] = torch.cat([crop_DHW[:1], crop_DHW, crop_DHW[-1:]]).unfold(0, 3, 1).permute(0, 3, 1, 2)
    images[:, 3] = (lateral_DW / LATERAL_SCALE_MM)[:, None]
    return images


def pass_images(look: Pass, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (D, 4, H, W) of a pass and the lateral coordinate (D, W) in mm of its pixel columns."""
    lateral = torch.from_numpy(lateral_mm(look.roi, look.midline_mm).astype(np.float32)).to(device)
    return neighbours(crop_stack(look.volume, look.roi, device), lateral), lateral


@dataclass(frozen=True, eq=False)
class SiteCrops:
    """The crops of the sites of one grader in one study. views: per crop spec (S, D, H, W); present: (S, V)."""

    targets: tuple[str, ...]
    views: tuple[torch.Tensor, ...]
    present: torch.Tensor


def site_boxes(group: Grade, volumes: Volumes, points: Points, pixels: Pixels) -> dict[str, dict]:
    """{target: {view: (volume, roi)}} of the sites that can be seen at all."""
    boxes = group.rois(volumes, points, pixels)
    return {target: dict(found) for target, found in boxes.items() if found}


def site_crops(group: Grade, boxes: dict[str, dict], pixels: Pixels, device: torch.device) -> SiteCrops:
    """Sample every box once. A view without a box is zeros with present = False; the nets give it no weight."""
    targets = tuple(boxes)
    views = []
    present = torch.zeros(len(targets), len(group.crops), dtype=torch.bool)
    for v, spec in enumerate(group.crops):
        stack = torch.zeros(len(targets), spec.slices, *sides(pixels), device=device)
        for s, target in enumerate(targets):
            if spec.view in boxes[target]:
                volume, roi = boxes[target][spec.view]
                stack[s] = crop_stack(volume, roi, device)
                present[s, v] = True
        views.append(stack)
    return SiteCrops(targets, tuple(views), present.to(device))


def turned(roi: Roi, degrees: float, scale: float, mirror: bool = False) -> Roi:
    """The same box turned in its own plane about its centre and scaled, or mirrored: a test-time view."""
    centre = (np.array(roi.shape) - 1) / 2
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    seen = Roi(roi.to_mm @ turn, roi.shape)
    return mirrored(seen, lateral_axis(seen)) if mirror else seen


# Test-time views in order of worth: as it is, then small turns with a slightly larger field. The first is always used.
TEST_VIEWS = ((0.0, 1.0), (6.0, 1.06), (-6.0, 0.96), (0.0, 1.1))


def test_views(group: Grade, count: int) -> list[tuple[float, float, bool]]:
    """(degrees, scale, mirrored) of the first ``count`` looks at a site; where mirror images are graded alike, each
    is seen both ways."""
    ways = (False, True) if group.mirrors else (False,)
    return [(degrees, scale, mirror) for degrees, scale in TEST_VIEWS for mirror in ways][:count]
'''

SOURCE['osteograde/inference/whole.py'] = r'''"""Files that are there whole or not at all: whoever reads them, or is killed while writing, meets no half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8, keeping its mode. OSError: what was there before is still there.

    Bytes of a file name that are no text, which Python keeps as lone surrogates, are written as escapes.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # two runs at once do not write into each other's
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
'''

SOURCE['osteograde/models/__init__.py'] = r'''"""Nets, their losses, and weights that describe themselves."""
'''

SOURCE['osteograde/models/backbones.py'] = r'''"""Trunks of the nets, from timm and torchvision. With pretrained=False nothing here opens a connection.

Shape legend: N images, C input channels, H W pixels, F features.
"""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
import torchvision
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import nn

_TORCHVISION = "torchvision/"
_IMAGENET_CLASSES = 1000


class PooledPyramid(nn.Module):
    """(N, C, H, W) -> (N, F): the first stages of a feature pyramid, averaged over the image. Small nets only."""

    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pyramid(images)[-1].mean((-2, -1))


def encoder(
    name: str,
    in_channels: int,
    pretrained: bool = False,
    *,
    stages: int = 0,
) -> nn.Module:
    """Feature pyramid of a timm net: (N, C, H, W) -> list of maps, finest first.

    stages: keep this many stages only (0 = all); what lies deeper is not built. See
    ``pyramid_shape``. Raises ValueError for a name timm does not know.
    """
    _known(name)
    options: dict[str, Any] = {"pretrained": pretrained, "features_only": True, "in_chans": in_channels}
    if not stages:
        return timm.create_model(name, **options)
    options["out_indices"] = tuple(range(stages))
    net = timm.create_model(name, **{**options, "pretrained": False})
    if isinstance(net, (EfficientNetFeatures, MobileNetV3Features)):  # these keep what lies deeper; this does not:
        options["feature_cls"] = "getter"
    return timm.create_model(name, **options)


def pyramid_shape(pyramid: Any) -> tuple[list[int], list[int]]:
    """Per map of a feature pyramid: its channels, and how many input pixels one of its pixels spans."""
    info = pyramid.feature_info
    return list(info.channels()), list(info.reduction())


def classifier_body(
    name: str,
    in_channels: int,
    pretrained: bool = False,
    *,
    stages: int = 0,
    pixels: int = 0,
) -> tuple[nn.Module, int]:
    """A net without its last layer: (N, C, H, W) -> (N, F), and F.

    name: any timm name, or "torchvision/<name>" for a torchvision classifier with one linear head. stages: average
    the first stages of the pyramid instead (timm only; a fraction of the parameters). pixels: the crop's side, needed
    by nets built for one size (ViT, Swin of timm). Raises ValueError for names that neither library knows.
    """
    if name.startswith(_TORCHVISION):
        if stages:
            raise ValueError(f"{name!r}: stages={stages} needs a timm backbone; use stages=0 or a timm name")
        return _torchvision_body(name.removeprefix(_TORCHVISION), in_channels, pretrained)
    _known(name)
    if stages:
        pyramid = encoder(name, in_channels, pretrained, stages=stages)
        return PooledPyramid(pyramid), pyramid_shape(pyramid)[0][-1]
    cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    options: dict[str, Any] = {"img_size": pixels} if pixels and cfg is not None and cfg.fixed_input_size else {}
    body = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=in_channels, **options)
    features: Any = getattr(body, "head_hidden_size", None) or body.num_features
    return body, int(features)


def _known(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(f"backbone {name!r} is not in timm {timm.__version__}; close: {', '.join(close) or 'none'}")


def _torchvision_body(name: str, in_channels: int, pretrained: bool) -> tuple[nn.Module, int]:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
        raise ValueError(
            f"backbone {_TORCHVISION + name!r} is not in torchvision {torchvision.__version__}; "
            f"close: {', '.join(close) or 'none'}"
        )
    body = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    heads = [
        key
        for key, module in body.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == _IMAGENET_CLASSES
    ]
    if len(heads) != 1:
        raise ValueError(f"backbone {_TORCHVISION + name!r} has {len(heads)} linear heads; expected 1; use another net")
    features = int(body.get_submodule(heads[0]).in_features)  # type: ignore[arg-type]
    replace_module(body, heads[0], nn.Identity())
    adapt_first_conv(body, in_channels)
    return body, features


def adapt_first_conv(net: nn.Module, in_channels: int) -> None:
    """Let the first convolution of ``net`` read in_channels instead of 3, in place.

    One channel: the filters are summed, which equals repeating a grey image three times. More: they are repeated
    and scaled so that a constant image gives the same response.
    """
    key, old = next((k, m) for k, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels == in_channels:
        return
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        repeats = -(-in_channels // old.in_channels)
        weight = old.weight.sum(1, keepdim=True) if in_channels == 1 else old.weight.repeat(1, repeats, 1, 1)
        scale = 1.0 if in_channels == 1 else old.in_channels / in_channels
        new.weight.copy_(weight[:, :in_channels] * scale)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    replace_module(net, key, new)


def replace_module(net: nn.Module, key: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted ``key`` of ``net``."""
    parent, _, leaf = key.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
'''

SOURCE['osteograde/models/build.py'] = r'''"""Nets from plain data: what a net's ``config`` says is enough to build it again, without any download."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from osteograde.models.grader import Grader
from osteograde.models.locators.faster_rcnn import FasterRcnnLocator
from osteograde.models.locators.heatmap import HeatmapLocator
from osteograde.models.locators.unet import UnetLocator

KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "heatmap": HeatmapLocator,
    "faster_rcnn": FasterRcnnLocator,
    "unet": UnetLocator,
    "grader": Grader,
}


def build(config: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """The net of a config such as ``net.config``: {"kind": one of KINDS, ...the arguments of its class}.

    pretrained: start the trunk from ImageNet weights (a download; training only, never part of a config).
    Raises ValueError for an unknown kind or an argument that the kind does not have.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"net of kind {kind!r}; expected one of {sorted(KINDS)}")
    taken = set(inspect.signature(KINDS[kind]).parameters) - {"pretrained"}
    if odd := set(arguments) - taken:
        raise ValueError(f"a {kind!r} net has no argument {sorted(odd)}; it takes {sorted(taken)}")
    return KINDS[kind](**arguments, pretrained=pretrained)
'''

SOURCE['osteograde/models/bundle.py'] = r'''"""Weights that describe themselves: a folder of safetensors and one manifest.json.

The manifest holds what is needed to rebuild every net without a download and to know where it came from. Loading
checks every hash before a net is built, loads strictly and never unpickles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from osteograde.models.build import build
from osteograde.tasks.contract import Pixels, Task

FORMAT = 1
MANIFEST = "manifest.json"
NEEDED = ("task", "files", "pixels", "test_views", "prior")


@dataclass(frozen=True, eq=False)
class Bundle:
    """Trained nets of a task. ``locators`` and ``graders``: stage name -> the nets of its folds, in order of fold."""

    task: Task
    manifest: Mapping[str, Any]
    locators: Mapping[str, tuple[nn.Module, ...]]
    graders: Mapping[str, tuple[nn.Module, ...]]
    device: torch.device

    @property
    def prior(self) -> Mapping[str, list[float]]:
        return self.manifest["prior"]

    @property
    def pixels(self) -> Mapping[str, Pixels]:
        """Stage -> pixels of what its nets read: a side, or (H, W)."""
        return self.manifest["pixels"]

    @property
    def calibration(self) -> Mapping[str, Mapping[str, Any]]:
        """Grader -> what makes its answers honest (inference/calibration.py); none where it is not calibrated."""
        return self.manifest.get("calibration", {})

    @property
    def test_views(self) -> int:
        return int(self.manifest["test_views"])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flat(name: str) -> str:
    """The name of a bundle's file where there are no folders: in a data set or a model on Kaggle.

    >>> flat("grade/spinal/fold0.safetensors")
    'grade__spinal__fold0.safetensors'
    """
    return name.replace("/", "__")


def place(folder: Path, name: str) -> Path:
    """Where a file of a bundle lies: in its folders, or flat."""
    path = Path(folder) / name
    beside = Path(folder) / flat(name)
    return beside if beside.is_file() and not path.is_file() else path


def save_net(net: nn.Module, path: Path, *, half: bool = True) -> None:
    """Write the tensors of a net; floating point ones in fp16, which is what every score is measured with."""
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in net.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # save_file would write in place, readable by its owner alone
    part.write_bytes(save(tensors))
    part.replace(path)


def load_net(path: Path, config: Mapping[str, Any]) -> nn.Module:
    """Rebuild a net from its config and load its tensors strictly, as float32, in evaluation mode."""
    net = build(dict(config))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); fetch it again") from error
    own = net.state_dict()
    wrong = sorted(
        f"{key}: net {tuple(own[key].shape) if key in own else 'has none'}, "
        f"file {tuple(tensors[key].shape) if key in tensors else 'has none'}"
        for key in own.keys() | tensors.keys()
        if key not in own or key not in tensors or own[key].shape != tensors[key].shape
    )
    if wrong:
        raise ValueError(f"{path}: {len(wrong)} tensors do not fit the net of the manifest; first: {wrong[:3]}")
    net.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()}, strict=True)
    return net.eval()


def on_device(net: nn.Module, device: torch.device) -> nn.Module:
    """The net on its device in channels-last layout, which is free and faster for small convolutions."""
    net = net.to(device)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The complete config of a net, with what a recipe left at its default."""
    net: Any = build(dict(config))
    return net.config


def file_entry(folder: Path, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / name
    return {"sha256": sha256(path), "bytes": path.stat().st_size, "net": dict(config)}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, **manifest}, indent=1, sort_keys=False) + "\n"
    part = folder / (MANIFEST + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a weights folder. ValueError where it is absent, unreadable or of another format."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: no {MANIFEST}; a weights folder is what train_folds.py --out wrote")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: format is not {FORMAT}; this version of osteograde cannot read it")
    if lost := [key for key in NEEDED if key not in manifest]:
        raise ValueError(f"{path}: {lost} missing; the manifest was changed or cut short, fetch it again")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a weights folder against its manifest; return the manifest. ValueError names the file."""
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = place(folder, name)
        if not path.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"{folder}: the manifest names {name}, which is outside of the folder; do not use it")
        if not path.is_file():
            raise ValueError(f"{path}: missing; the manifest expects sha256 {entry['sha256'][:12]}; fetch it again")
        digest = sha256(path)
        if digest != entry["sha256"]:
            raise ValueError(
                f"{path}: sha256 is {digest[:12]}..., the manifest says {entry['sha256'][:12]}...; "
                "the file was changed or cut short, fetch it again"
            )
    return manifest


def task_of(folder: Path, manifest: Mapping[str, Any], tasks: Mapping[str, Task]) -> Task:
    """The task that weights were trained for. ValueError where this version has none with their targets."""
    name = manifest["task"]
    if name not in tasks:
        raise ValueError(f"{folder}: weights are of task {name!r}; known tasks: {sorted(tasks)}")
    if sorted(manifest["prior"]) != sorted(tasks[name].targets):
        raise ValueError(f"{folder}: its targets are not those of task {name!r}; train again with this version")
    return tasks[name]


def load(
    folder: Path, tasks: Mapping[str, Task], device: torch.device, manifest: Mapping[str, Any] | None = None
) -> Bundle:
    """Verify all hashes, then rebuild and load every net. ValueError names what does not fit.

    manifest: what ``verify`` returned for this folder a moment ago; it is not verified again.
    """
    manifest = verify(folder) if manifest is None else manifest
    task = task_of(folder, manifest, tasks)
    nets: dict[str, dict[str, list[nn.Module]]] = {"locate": {}, "grade": {}}
    for file, entry in sorted(manifest["files"].items()):
        kind, stage, _ = file.split("/")
        net = on_device(load_net(place(folder, file), entry["net"]), device)
        nets[kind].setdefault(stage, []).append(net)
    wanted = {"locate": {stage.name for stage in task.locate}, "grade": {group.name for group in task.grade}}
    for kind, stages in wanted.items():
        if stages != set(nets[kind]):
            raise ValueError(f"{folder}: {kind} nets are {sorted(nets[kind])}, {task.name!r} needs {sorted(stages)}")
    return Bundle(
        task=task,
        manifest=manifest,
        locators={stage: tuple(found) for stage, found in nets["locate"].items()},
        graders={stage: tuple(found) for stage, found in nets["grade"].items()},
        device=device,
    )
'''

SOURCE['osteograde/models/device.py'] = r'''"""Choosing a device by doing work on it: a driver that lists a GPU which cannot compute is common enough."""

from __future__ import annotations

import torch
from torch.nn import functional

CHOICES = "auto, cpu, cuda or cuda:N"


def pick(name: str) -> torch.device:
    """The device called ``name``: "auto" takes the first GPU that computes rightly, else the CPU.

    Raises ValueError for another word, and for a GPU asked for by name that cannot compute.
    """
    if name == "auto":
        gpu = torch.device("cuda:0")
        return torch.device("cpu") if fault(gpu) else gpu
    kind, _, number = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (":" in name and not (number.isascii() and number.isdigit())):
        raise ValueError(f"--device is {name!r}; expected {CHOICES}")
    gpu = torch.device(kind, int(number or 0))
    if reason := fault(gpu):
        raise ValueError(f"--device {name}: {reason}; use --device cpu, or auto to take what works")
    return gpu


def fault(device: torch.device) -> str:
    """What keeps ``device`` from computing, "" for nothing: a small convolution there against the CPU's answer."""
    if device.type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without GPU support"
    grid = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    kernel = torch.linspace(-1, 1, 4 * 3 * 3 * 3).reshape(4, 3, 3, 3)
    try:
        answer = functional.conv2d(grid.to(device), kernel.to(device), padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        answer = answer.cpu()
    except RuntimeError as error:  # no driver, no such GPU, no code for its generation, out of memory
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    worst = float((answer - functional.conv2d(grid, kernel, padding=1)).abs().max())
    # TF32 keeps 10 bits of mantissa; sums here stay below 10.
    return "" if worst < 0.05 else f"a small convolution is off by {worst:.3g}; expected the CPU's answer"
'''

SOURCE['osteograde/models/grader.py'] = r'''"""Graders: slices of one or more views -> one shared encoder -> pooling over all slices -> class logits.

Shape legend: B sites, V views, D slices of one view, H W pixels, M present slices of a view over the whole batch,
S slices of all views together, F encoder features, T token width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from osteograde.models.backbones import classifier_body

_FURTHEST = 16  # slices further than this from the crop's centre share one position
_NORMALISE = {"fixed": (0.5, 0.25), "imagenet": (0.449, 0.226)}  # mean, deviation; ImageNet: means over its channels
_FLATTEST = 0.02  # smallest standard deviation a crop is divided by: noise of an empty crop is not blown up


class Grader(nn.Module):
    """Crops of V views, and which of them exist, -> logits (B, K).

    A view that is absent is never encoded nor pooled: its pixels have exactly no influence. With no view at all the
    logits are those of an empty bag, finite. backbone, stages, pixels: see ``backbones.classifier_body``.
    pool: "attention" (gated, over the slices of all present views), "mean", or "centre" (each present view's middle
    slice D // 2). neighbours: every slice is read with the two beside it as three channels (2.5D).
    findings: further logits behind the K classes, yes or no each: (B, K + findings).
    normalise: "crop" (each crop to mean 0 and deviation 1), "fixed" (0..1 to about -2..2) or "imagenet" (the mean and
    deviation of ImageNet's grey values, which torchvision's weights expect). width: 0 = the encoder's features are the
    tokens as they are, and the net is its trunk with one linear layer.
    """

    def __init__(
        self,
        backbone: str,
        views: int,
        classes: int = 3,
        dropout: float = 0.2,
        pool: str = "attention",
        *,
        width: int = 128,
        stages: int = 0,
        pixels: int = 0,
        neighbours: bool = False,
        normalise: str = "crop",
        findings: int = 0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if pool not in ("attention", "mean", "centre"):
            raise ValueError(f"pool is {pool!r}; expected 'attention', 'mean' or 'centre'")
        if normalise not in ("crop", *_NORMALISE):
            raise ValueError(f"normalise is {normalise!r}; expected 'crop' or one of {sorted(_NORMALISE)}")
        self.config: dict[str, Any] = {
            "kind": "grader",
            "backbone": backbone,
            "views": views,
            "classes": classes,
            "dropout": dropout,
            "pool": pool,
            "width": width,
            "stages": stages,
            "pixels": pixels,
            "neighbours": neighbours,
            "normalise": normalise,
            "findings": findings,
        }
        self.views, self.pool = views, pool
        self.neighbours, self.normalise = neighbours, normalise
        self.encoder, features = classifier_body(
            backbone, 3 if neighbours else 1, pretrained, stages=stages, pixels=pixels
        )
        self.plain = width == 0
        width = self.width = width or features
        self.token = nn.Identity() if self.plain else nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width))
        if not self.plain:
            self.view = nn.Embedding(views, width)
            self.position = nn.Embedding(2 * _FURTHEST + 1, width)
            for table in (self.view, self.position):
                nn.init.normal_(table.weight, std=0.02)
        if not self.plain or pool == "attention":
            self.attend, self.gate = nn.Linear(width, 64), nn.Linear(width, 64)
            self.score = nn.Linear(64, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes + findings)

    def forward(self, crops: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """crops: V tensors (B, D_v, H, W) in 0..1; present (B, V) bool -> (B, K)."""
        if len(crops) != self.views or tuple(present.shape) != (len(present), self.views):
            raise ValueError(
                f"got {len(crops)} views of crops and present {tuple(present.shape)}; expected {self.views} views"
            )
        tokens, mask = [], []
        for v, crop in enumerate(crops):
            tokens.append(self._tokens(v, crop, present[:, v]))
            mask.append(self._counted(crop.shape[1], present[:, v]))
        pooled = self._pooled(torch.cat(tokens, 1), torch.cat(mask, 1))
        return self.head(self.dropout(pooled.to(self.head.weight.dtype)))

    def _tokens(self, view: int, crop: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """(B, D, H, W) -> (B, D, T); rows of absent crops are 0."""
        b, d = crop.shape[:2]
        rows = present.nonzero()[:, 0]
        if not len(rows):
            return crop.new_zeros((b, d, self.width), dtype=torch.float32)
        slices = _normalised(crop[rows].float(), self.normalise)  # (M / D, D, H, W)
        images = _with_neighbours(slices) if self.neighbours else slices[:, :, None]
        token = self.token(self.encoder(images.flatten(0, 1))).float().unflatten(0, (-1, d))
        if self.plain:
            return token.new_zeros((b, d, self.width)).index_copy(0, rows, token)
        place = (torch.arange(d, device=crop.device) - d // 2).clamp(-_FURTHEST, _FURTHEST) + _FURTHEST
        token = nn.functional.gelu(token + self.view.weight[view] + self.position(place))
        return token.new_zeros((b, d, self.width)).index_copy(0, rows, token)

    def _counted(self, d: int, present: torch.Tensor) -> torch.Tensor:
        """(B, D) bool: the slices that are pooled."""
        mask = present[:, None].expand(-1, d)
        if self.pool != "centre":
            return mask
        return mask & (torch.arange(d, device=present.device) == d // 2)

    def _pooled(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, S, T), (B, S) bool -> (B, T); 0 where the mask is empty. In float32 also under autocast."""
        weight = mask.float()
        if self.pool == "attention":
            score = self.score(torch.tanh(self.attend(tokens)) * torch.sigmoid(self.gate(tokens)))[..., 0].float()
            top = score.detach().masked_fill(~mask, torch.finfo(score.dtype).min).amax(1, keepdim=True)
            weight = (score - top).masked_fill(~mask, -torch.inf).exp()
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        return torch.einsum("bs,bst->bt", weight, tokens.float())


def _normalised(crops: torch.Tensor, how: str) -> torch.Tensor:
    if how in _NORMALISE:
        mean_grey, deviation_grey = _NORMALISE[how]
        return (crops - mean_grey) / deviation_grey
    deviation, mean = torch.std_mean(crops, (-3, -2, -1), keepdim=True, correction=0)
    return (crops - mean) / deviation.clamp_min(_FLATTEST)


def _with_neighbours(slices: torch.Tensor) -> torch.Tensor:
    """(M, D, H, W) -> (M, D, 3, H, W): previous, this, next; the ends repeat themselves."""
    before = torch.cat([slices[:, :1], slices[:, :-1]], 1)
    after = torch.cat([slices[:, 1:], slices[:, -1:]], 1)
    return torch.stack([before, slices, after], 2)
'''

SOURCE['osteograde/models/locators/__init__.py'] = r'''"""Nets that find landmarks, and the way from their maps to points."""
'''

SOURCE['osteograde/models/locators/faster_rcnn.py'] = r'''"""A detector as locator: torchvision's Faster R-CNN finds boxes, which are rendered to maps like the heatmap's.

Shape legend: N slices (of all stacks of a batch), B stacks, L landmarks, C landmark channels (detector class c + 1),
H W input pixels, h w map pixels. Boxes are (x0, y0, x1, y1) in input pixels, as torchvision has them.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from osteograde.models.backbones import adapt_first_conv
from osteograde.models.locators.locator import LocatorBatch, heatmap_loss, target_parts
from osteograde.models.locators.peaks import start_of

_VARIANTS = {  # name: (detector, the classifier whose ImageNet weights fit its trunk)
    "resnet50_v2": (fasterrcnn_resnet50_fpn_v2, "resnet50"),
    "mobilenet": (fasterrcnn_mobilenet_v3_large_fpn, "mobilenet_v3_large"),
}
_FLOOR = 1e-6  # score of a place without any detection
_REACH = 0.75  # slices: a box is taught on slices this near to its point


class _AsItIs(GeneralizedRCNNTransform):
    """Batches images at their own size: upscaling to 800 pixels, the default, costs ten times the work."""

    def resize(
        self, image: torch.Tensor, target: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        return image, target


class FasterRcnnLocator(nn.Module):
    """(N, in_channels, H, W) -> log scores (N, channels, H / stride, W / stride).

    variant: "resnet50_v2" or "mobilenet". box_px: (height, width) of the box taught around a point, input pixels; the
    smallest anchors are 32 px, so a box below about 20 px is hard to learn. proposals: kept per image; the default of
    1000 is most of a detector's cost. Raises ValueError for an unknown variant.
    """

    def __init__(
        self,
        variant: str,
        channels: int,
        box_px: tuple[float, float] = (32.0, 32.0),
        in_channels: int = 4,
        stride: int = 4,
        *,
        proposals: int = 100,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if variant not in _VARIANTS:
            raise ValueError(f"Faster R-CNN variant {variant!r}; expected one of {sorted(_VARIANTS)}")
        self.config: dict[str, Any] = {
            "kind": "faster_rcnn",
            "variant": variant,
            "channels": channels,
            "box_px": [float(side) for side in box_px],
            "in_channels": in_channels,
            "stride": stride,
            "proposals": proposals,
        }
        self.channels, self.stride, self.box_px = channels, stride, (float(box_px[0]), float(box_px[1]))
        make, trunk = _VARIANTS[variant]
        self.detector = make(
            weights=None,
            weights_backbone=None,
            num_classes=channels + 1,
            rpn_post_nms_top_n_test=proposals,
            rpn_post_nms_top_n_train=2 * proposals,
            box_score_thresh=0.01,
            box_detections_per_img=10 * channels,
        )
        if pretrained:
            _load_trunk(self.detector.backbone.body, trunk)
        adapt_first_conv(self.detector.backbone.body, in_channels)
        self.detector.transform = _AsItIs(0, 0, image_mean=[0.5] * in_channels, image_std=[0.25] * in_channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps(images)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Log scores (N, C, h, w): per class, the highest of score x gaussian around each detected box's centre."""
        training = self.detector.training
        self.detector.eval()
        found = self.detector(list(images))
        self.detector.train(training)
        return torch.stack([self._rendered(boxes, images.shape[-2:]) for boxes in found])

    def loss(self, batch: LocatorBatch) -> torch.Tensor:
        """In training mode the sum of the detector's four losses; in eval mode the heatmap loss of the maps, which
        compares with other locators. Teaches the slices with boxes, and as many drawn from the others."""
        if not self.training:
            return heatmap_loss(self.maps(batch.images), batch)
        boxes = self._boxes(batch)
        positive = torch.tensor([len(b["labels"]) > 0 for b in boxes])
        other = (~positive).nonzero()[:, 0]
        other = other[torch.randperm(len(other))[: max(int(positive.sum()), 1)]]
        chosen = torch.cat([positive.nonzero()[:, 0], other]).tolist()
        parts = self.detector([batch.images[n] for n in chosen], [boxes[n] for n in chosen])
        return torch.stack(list(parts.values())).sum()

    def _boxes(self, batch: LocatorBatch) -> list[dict[str, torch.Tensor]]:
        """torchvision's targets, one per slice."""
        height, width = batch.images.shape[-2:]
        labelled = target_parts(batch, (height // self.stride, width // self.stride)).labelled[batch.stack]
        order = torch.arange(len(batch.stack), device=batch.stack.device)
        order = order - start_of(batch.stack, len(batch.points))[batch.stack]
        points = batch.points[batch.stack]
        shown = labelled & ((points[..., 0] - order[:, None]).abs() <= _REACH)
        half = points.new_tensor([self.box_px[1], self.box_px[0]]) / 2
        targets = []
        for n in range(len(order)):
            centre = points[n, shown[n]][:, [2, 1]] + 0.5  # torchvision counts pixel edges, we count centres
            box = torch.cat([centre - half, centre + half], 1).clamp_min(0)
            box = torch.minimum(box, box.new_tensor([width, height, width, height]))
            targets.append({"boxes": box, "labels": batch.channel[shown[n]] + 1})
        return targets

    def _rendered(self, found: dict[str, torch.Tensor], size: torch.Size) -> torch.Tensor:
        """Detections of one slice -> (C, h, w)."""
        boxes, labels, scores = found["boxes"].float(), found["labels"], found["scores"].float()
        h, w = size[0] // self.stride, size[1] // self.stride
        sigma = min(self.box_px) / 4
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5
        rows, columns = ((torch.arange(n, device=boxes.device) + 0.5) * self.stride - 0.5 for n in (h, w))
        down = torch.exp(-0.5 * ((rows - centre[:, 1:]) / sigma) ** 2)
        along = torch.exp(-0.5 * ((columns - centre[:, :1]) / sigma) ** 2)
        blobs = scores[:, None, None] * down[..., None] * along[:, None]  # (detections, h, w)
        maps = boxes.new_zeros((self.channels, h, w))
        place = (labels - 1)[:, None, None].expand_as(blobs)
        return torch.log(maps.scatter_reduce(0, place, blobs, "amax") + _FLOOR)


def _load_trunk(body: nn.Module, classifier: str) -> None:
    """ImageNet weights into a detector's trunk. Not torchvision's own way, which also swaps the norm layers, so that
    a net rebuilt without a download would not match."""
    source = torchvision.models.get_model(classifier, weights="DEFAULT").state_dict()
    state = {key.removeprefix("features."): value for key, value in source.items()}
    lost = body.load_state_dict(state, strict=False).missing_keys
    if lost:
        raise ValueError(f"torchvision's {classifier} lacks {lost[:3]} that the detector's trunk has")
'''

SOURCE['osteograde/models/locators/heatmap.py'] = r'''"""The default locator: a timm pyramid and a light decoder that scores every pixel of every slice.

Shape legend: N slices (of all stacks of a batch), C landmark channels, H W input pixels, h w map pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from osteograde.models.backbones import encoder, pyramid_shape
from osteograde.models.locators.locator import LocatorBatch, heatmap_loss


class HeatmapLocator(nn.Module):
    """(N, in_channels, H, W) -> logits (N, channels, H / stride, W / stride).

    The input channels are the previous, this and the next slice, and the lateral coordinate. The logits are scores
    over all positions of a stack; ``locator.decode`` turns them into points. stages: how many stages of the encoder
    are used (0 = all). Raises ValueError for an unknown encoder, stride, or an image size that stride does not divide.
    """

    def __init__(
        self,
        encoder_name: str,
        channels: int,
        in_channels: int = 4,
        width: int = 32,
        stride: int = 4,
        stages: int = 0,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if stride not in (1, 2, 4, 8):
            raise ValueError(f"stride of the map is {stride}; expected 1, 2, 4 or 8")
        self.config: dict[str, Any] = {
            "kind": "heatmap",
            "encoder_name": encoder_name,
            "channels": channels,
            "in_channels": in_channels,
            "width": width,
            "stride": stride,
            "stages": stages,
        }
        self.channels, self.stride = channels, stride
        self.encoder = encoder(encoder_name, in_channels, pretrained, stages=stages)
        counts, reduction = pyramid_shape(self.encoder)
        self.used = [i for i, r in enumerate(reduction) if r >= stride] or [len(reduction) - 1]
        self.laterals = nn.ModuleList(nn.Conv2d(counts[i], width, 1) for i in self.used)
        self.blocks = nn.ModuleList(_separable(width) for _ in self.used)
        self.head = nn.Conv2d(width, channels, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        h, w = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        if (h * self.stride, w * self.stride) != tuple(images.shape[-2:]):
            raise ValueError(f"images are {tuple(images.shape[-2:])} pixels; expected multiples of {self.stride}")
        pyramid = self.encoder(images)
        maps: torch.Tensor | None = None
        for i, lateral, block in reversed(list(zip(self.used, self.laterals, self.blocks, strict=True))):
            here = lateral(pyramid[i])
            maps = block(here if maps is None else here + _resized(maps, here.shape[-2], here.shape[-1]))
        assert maps is not None
        return self.head(_resized(maps, h, w))

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C, h, w)."""
        return self(images)

    def loss(self, batch: LocatorBatch) -> torch.Tensor:
        """Scalar, mean over labelled landmarks; see ``locator.heatmap_loss``."""
        return heatmap_loss(self(batch.images), batch)


def _resized(maps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == (h, w):
        return maps
    return F.interpolate(maps, size=(h, w), mode="bilinear", align_corners=False)


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
'''

SOURCE['osteograde/models/locators/locator.py'] = r'''"""What every locator shares: the batch it learns from, its loss, and the way from maps to points.

Shape legend: B stacks, N slices (all stacks one after the other), D slices of one stack, L landmarks, C channels,
H W input pixels, h w map pixels, K candidates. An index is (slice within its stack, row, column) in *input* pixels,
continuous, integer = pixel centre; map pixel i has its centre at input pixel (i + 0.5) * stride - 0.5.

Every landmark reads one channel of the map and may be kept to one side of the patient: its probabilities are a
softmax over all positions of its stack that lie on that side, so it cannot land on the other one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch

from osteograde.models.locators.peaks import Decoded, refined, stack_peaks, start_of

_BLOCKED = -1e9  # finite, so that a stack without any allowed position still has finite gradients
SLICE_SIGMA = 0.5  # spread of the target across slices, in slices: annotators differ by about one slice


@dataclass(frozen=True, eq=False)
class LocatorBatch:
    """Stacks to learn from. side: +1 = patient's left, -1 = right, 0 = both; lateral: mm to the left of the midline."""

    images: torch.Tensor  # (N, in_channels, H, W): previous, this and next slice, lateral coordinate
    stack: torch.Tensor  # (N,) long, 0..B-1 ascending: the stack each slice belongs to
    points: torch.Tensor  # (B, L, 3) index; NaN where unlabelled
    channel: torch.Tensor  # (L,) long: the map channel each landmark reads
    side: torch.Tensor  # (L,) long in {-1, 0, 1}
    lateral: torch.Tensor  # (N, W) float32, mm, of each pixel column
    pixel_mm: float
    slice_mm: float | torch.Tensor  # one for all, or (B,)
    sigma_mm: float  # in-plane spread of the target
    nowhere: bool = False  # landmarks may be absent: a place of score 0 outside the image; points are then infinite
    masks: torch.Tensor | None = None  # (N, H, W) long: the class of every input pixel, -1 = unknown

    def to(self, device: torch.device | str) -> LocatorBatch:
        """The same batch on another device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


class Locator(Protocol):
    """A net that scores places. ``config`` rebuilds it through ``build``; ``maps`` are logits (N, C, h, w)."""

    config: dict[str, Any]
    channels: int
    stride: int

    def maps(self, images: torch.Tensor) -> torch.Tensor: ...

    def loss(self, batch: LocatorBatch) -> torch.Tensor: ...


class TargetParts(NamedTuple):
    """The gaussian targets as an outer product: rows (N, L, h) x columns (N, L, w), summing to 1 over a stack."""

    rows: torch.Tensor
    columns: torch.Tensor
    labelled: torch.Tensor  # (B, L) bool


def side_mask(lateral: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """Where landmarks may lie: lateral (N, w) mm and side (L,) -> (N, L, w) bool. The midline itself is neither."""
    return (side == 0)[None, :, None] | (lateral[:, None] * side[None, :, None] > 0)


def lateral_on_map(lateral: torch.Tensor, stride: int) -> torch.Tensor:
    """Lateral coordinate (N, W) of the input's columns -> (N, w) of the map's."""
    return lateral.unflatten(-1, (-1, stride)).mean(-1)


def target_parts(batch: LocatorBatch, size: tuple[int, int]) -> TargetParts:
    """Targets on a map of ``size`` (h, w), in factors.

    A landmark counts as unlabelled where its point is NaN, more than one slice outside the stack, outside the image,
    or on the wrong side.
    """
    stride = batch.images.shape[-1] // size[1]
    points, stack, height, width = batch.points.float(), batch.stack, *batch.images.shape[-2:]
    rows, columns = (_centres(n, stride, points.device) for n in size)
    slices = torch.arange(len(stack), device=stack.device) - start_of(stack, len(points))[stack]
    target = points.nan_to_num(nan=-1e3)[stack]  # (N, L, 3)
    sigma_px = batch.sigma_mm / batch.pixel_mm
    across = _gaussian(slices[:, None] - target[..., 0], SLICE_SIGMA)
    down = _gaussian(rows - target[..., 1:2], sigma_px)
    along = _gaussian(columns - target[..., 2:3], sigma_px) * across[..., None]
    along = along * side_mask(lateral_on_map(batch.lateral, stride), batch.side)
    inside = (points[..., 1] > -0.5) & (points[..., 1] < height - 0.5)
    inside &= (points[..., 2] > -0.5) & (points[..., 2] < width - 0.5)
    mass = points.new_zeros(points.shape[:2]).index_add(0, stack, down.sum(-1) * along.sum(-1))
    own = points.new_zeros(points.shape[:2]).index_add(0, stack, _own_side(batch, slices).float()) > 0
    full = 2 * math.pi * (sigma_px / stride) ** 2  # of an uncut gaussian on one slice
    labelled = inside & own & (mass > 0.02 * full)
    weight = torch.where(labelled, 1 / mass.clamp_min(1e-12), mass.new_zeros(()))
    return TargetParts(down, along * weight[stack][..., None], labelled)


def targets(batch: LocatorBatch, size: tuple[int, int]) -> torch.Tensor:
    """The same as one dense map (N, L, h, w): sums to 1 over each stack, 0 where unlabelled."""
    parts = target_parts(batch, size)
    return parts.rows[..., None] * parts.columns[..., None, :]


def heatmap_loss(logits: torch.Tensor, batch: LocatorBatch) -> torch.Tensor:
    """Mean over labelled landmarks of the cross entropy between the softmax over a stack's places and the target.

    logits (N, C, h, w) -> scalar; 0 (with a gradient of 0) when nothing in the batch is labelled.
    """
    logits = logits.float()
    parts = target_parts(batch, (logits.shape[-2], logits.shape[-1]))
    allowed = side_mask(lateral_on_map(batch.lateral, batch.images.shape[-1] // logits.shape[-1]), batch.side)
    total = _stack_logsumexp(logits, batch.stack, batch.channel, allowed, len(batch.points))
    total = _or_nowhere(total) if batch.nowhere else total
    hit = torch.einsum("nlhw,nlh->nlw", logits.index_select(1, batch.channel), parts.rows)
    hit = (hit * parts.columns).sum(-1)
    hit = torch.zeros_like(total).index_add(0, batch.stack, hit)
    known = parts.labelled | (torch.isinf(batch.points[..., 1]) & batch.nowhere)  # absent ones: hit is 0, all is total
    loss = torch.where(known, total - hit, torch.zeros_like(total))
    return loss.sum() / known.sum().clamp_min(1)


def probabilities(
    logits: torch.Tensor,
    stack: torch.Tensor,
    channel: torch.Tensor,
    side: torch.Tensor,
    lateral: torch.Tensor,
    *,
    nowhere: bool = False,
) -> torch.Tensor:
    """(N, C, h, w) logits -> (N, L, h, w): per landmark, sums to 1 over the allowed places of its stack.

    lateral (N, W) at input resolution. All 0 where a stack has no place on the landmark's side. nowhere: one more
    place, with logit 0, outside the image takes its share. Average these over folds, then decode.
    """
    logits = logits.float()
    allowed = side_mask(lateral_on_map(lateral, lateral.shape[-1] // logits.shape[-1]), side)
    stacks = int(stack.max()) + 1 if len(stack) else 0
    top = logits.amax(2, keepdim=True).clamp_min(_BLOCKED)  # of every column: all else is computed once, per channel
    above = torch.exp(logits - top)
    columns = (above.sum(2).log() + top[:, :, 0]).index_select(1, channel)
    total = _over_stack(columns, stack, allowed, stacks)
    total = _or_nowhere(total) if nowhere else total
    share = torch.exp(top[:, :, 0].index_select(1, channel) - total[stack][..., None])  # (N, L, w)
    share = torch.where(allowed, share, share.new_zeros(()))
    return above.index_select(1, channel) * share[:, :, None]


def decode(
    logits: torch.Tensor,
    stack: torch.Tensor,
    channel: torch.Tensor,
    side: torch.Tensor,
    lateral: torch.Tensor,
    *,
    pixel_mm: float,
    slice_mm: float | torch.Tensor,
) -> Decoded:
    """Logits (N, C, h, w) -> index (B, L, 3) in input pixels and confidence (B, L); see ``decode_probabilities``."""
    found = probabilities(logits, stack, channel, side, lateral)
    stride = lateral.shape[-1] // logits.shape[-1]
    return decode_probabilities(found, stack, stride=stride, pixel_mm=pixel_mm, slice_mm=slice_mm)


def decode_probabilities(
    found: torch.Tensor,
    stack: torch.Tensor,
    *,
    stride: int,
    pixel_mm: float,
    slice_mm: float | torch.Tensor,
) -> Decoded:
    """Probabilities (N, L, h, w) of one net, or averaged over folds -> Decoded.

    index (B, L, 3): the highest place of the stack, refined below a map pixel; NaN where nothing is allowed.
    confidence (B, L): the probability within 10 mm of it.
    """
    return refined(found, stack, stack_peaks(found, stack), stride=stride, pixel_mm=pixel_mm, slice_mm=slice_mm)


def _own_side(batch: LocatorBatch, slices: torch.Tensor) -> torch.Tensor:
    """(N, L) bool: the slice nearest to a labelled point, if the point lies on its landmark's side there."""
    points = batch.points.float().nan_to_num(nan=-1e3)[batch.stack]  # (N, L, 3)
    last = torch.bincount(batch.stack, minlength=len(batch.points))[batch.stack] - 1
    inside = (points[..., 0] > -1) & (points[..., 0] < last[:, None] + 1)
    nearest = torch.minimum(points[..., 0].round().clamp_min(0), last[:, None])
    column = points[..., 2].round().long().clamp(0, batch.lateral.shape[-1] - 1)
    lateral = batch.lateral.gather(1, column)
    return inside & (nearest == slices[:, None]) & ((batch.side == 0) | (lateral * batch.side > 0))


def _stack_logsumexp(
    logits: torch.Tensor, stack: torch.Tensor, channel: torch.Tensor, allowed: torch.Tensor, stacks: int
) -> torch.Tensor:
    """(B, L): log of the sum of exp over the allowed places. The mask is the same for every row, so rows go first."""
    return _over_stack(torch.logsumexp(logits, 2).index_select(1, channel), stack, allowed, stacks)


def _over_stack(columns: torch.Tensor, stack: torch.Tensor, allowed: torch.Tensor, stacks: int) -> torch.Tensor:
    """The same from the columns' own sums (N, L, w)."""
    slices = torch.logsumexp(columns.masked_fill(~allowed, _BLOCKED), -1)  # (N, L)
    top = slices.new_full((stacks, slices.shape[1]), _BLOCKED)
    top = top.scatter_reduce(0, stack[:, None].expand_as(slices), slices.detach(), "amax")
    return top + torch.zeros_like(top).index_add(0, stack, torch.exp(slices - top[stack])).clamp_min(1e-30).log()


def _or_nowhere(total: torch.Tensor) -> torch.Tensor:
    """Log of the sum with one more place of logit 0: where a landmark is that the image does not show."""
    return torch.logaddexp(total, torch.zeros_like(total))


def _centres(size: int, stride: int, device: torch.device) -> torch.Tensor:
    """Input-pixel coordinate of each map pixel's centre."""
    return (torch.arange(size, device=device) + 0.5) * stride - 0.5


def _gaussian(distance: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.exp(-0.5 * (distance / sigma) ** 2)
'''

SOURCE['osteograde/models/locators/peaks.py'] = r'''"""From probability maps to points: peaks, their refinement below a pixel, and levels in a plausible order.

Shape legend: B stacks, N slices, L landmarks, h w map pixels, K candidates. A peak is (slice within the stack, row,
column) in whole *map* pixels; an index is the same in continuous *input* pixels (see ``locator``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

NEAR_MM = 10.0  # confidence = probability this near to the point
_WINDOW = 1.5  # sigma, in map pixels, of the window in which a peak is refined
_REACH = 4  # the window is cut off this many map pixels from the peak
_STEPS = 12


@dataclass(frozen=True, eq=False)
class Decoded:
    index: torch.Tensor  # (B, L, 3)
    confidence: torch.Tensor  # (B, L)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.index, self.confidence))


def start_of(stack: torch.Tensor, stacks: int) -> torch.Tensor:
    """(B,) row of each stack's first slice."""
    counts = torch.bincount(stack, minlength=stacks)
    return counts.cumsum(0) - counts


def stack_peaks(found: torch.Tensor, stack: torch.Tensor) -> torch.Tensor:
    """Highest place of every landmark: (N, L, h, w) -> (B, L, 3) whole map pixels; (-1, -1, -1) where all is 0."""
    stacks = int(stack.max()) + 1 if len(stack) else 0
    flat = found.flatten(2)
    value = flat.amax(-1)  # (N, L); where it lies is looked up on the best slice alone
    counts, start = torch.bincount(stack, minlength=stacks), start_of(stack, stacks)
    order = torch.arange(len(stack), device=stack.device) - start[stack]
    padded = value.new_full((stacks, int(counts.max()) if stacks else 0, value.shape[1]), -1.0)
    padded[stack, order] = value
    best, where = padded.max(1)  # (B, L)
    place = flat[start[:, None] + where, torch.arange(flat.shape[1], device=flat.device)].argmax(-1)
    peak = torch.stack([where, place // found.shape[-1], place % found.shape[-1]], -1)
    return torch.where(best[..., None] > 0, peak, torch.full_like(peak, -1))


def refined(
    found: torch.Tensor,
    stack: torch.Tensor,
    peak: torch.Tensor,
    *,
    stride: int,
    pixel_mm: float,
    slice_mm: float | torch.Tensor,
) -> Decoded:
    """Points around whole-pixel peaks (B, L, 3).

    Across slices: the mean over the peak's slice and its neighbours. In-plane: a window is moved until it is centred
    on the mean of what it sees; unlike one mean over a fixed window this is not pulled towards the peak's pixel
    when the blob is wider than the window.
    """
    patch, slices = _patches(found, stack, peak)  # (B, L, 3, S, S)
    depth = patch.sum((-2, -1))
    z = (depth * slices).sum(-1) / depth.sum(-1).clamp_min(1e-30)
    flat = patch.sum(2)
    flat = flat / flat.sum((-2, -1), keepdim=True).clamp_min(1e-30)
    offset = torch.arange(-_REACH, _REACH + 1, device=found.device, dtype=found.dtype)
    row = column = torch.zeros_like(z)
    for _ in range(_STEPS):
        down = torch.exp(-0.5 * ((offset - row[..., None]) / _WINDOW) ** 2)
        along = torch.exp(-0.5 * ((offset - column[..., None]) / _WINDOW) ** 2)
        seen = flat * down[..., None] * along[..., None, :]
        mass = seen.sum((-2, -1)).clamp_min(1e-30)
        row = (seen.sum(-1) * offset).sum(-1) / mass
        column = (seen.sum(-2) * offset).sum(-1) / mass
    index = torch.stack([z, peak[..., 1] + row, peak[..., 2] + column], -1)
    index[..., 1:] = (index[..., 1:] + 0.5) * stride - 0.5
    absent = peak[..., 0] < 0
    confidence = _near(found, stack, index, stride, pixel_mm, slice_mm)
    index = torch.where(absent[..., None], torch.full_like(index, torch.nan), index)
    return Decoded(index, torch.where(absent, torch.zeros_like(confidence), confidence))


def candidates(
    found: torch.Tensor, stack: torch.Tensor, *, count: int = 5, apart_px: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` highest places that lie more than ``apart_px`` map pixels apart in-plane.

    (N, L, h, w) -> peaks (B, L, K, 3) and their probability (B, L, K), highest first; (-1, -1, -1) and 0 when there
    are fewer.
    """
    # A place that is taken is taken on all slices, so one map a stack is enough.
    parts = found.split(torch.bincount(stack).tolist())
    left = torch.stack([part.amax(0) for part in parts])
    free, alone = torch.ones_like(left), torch.arange(len(left), device=found.device)
    peaks, scores = [], []
    each = torch.arange(found.shape[1], device=found.device)
    rows, columns = (torch.arange(n, device=found.device) for n in found.shape[-2:])
    for _ in range(count):
        flat = stack_peaks(left, alone)  # (B, L, 3)
        row, column = flat[..., 1].clamp_min(0), flat[..., 2].clamp_min(0)
        z = torch.stack([part[:, each, y, x].argmax(0) for part, y, x in zip(parts, row, column, strict=True)])
        peak = torch.where(flat[..., :1] < 0, flat, torch.stack([z, flat[..., 1], flat[..., 2]], -1))
        kept = _patches(free, alone, flat)[0].amax(2, keepdim=True)  # the free map has one slice: the middle of three
        patch = _patches(found, stack, peak)[0] * kept
        peaks.append(peak)
        scores.append(patch.sum((2, 3, 4)) * (peak[..., 0] >= 0))
        near_row = (rows - peak[..., 1:2]).abs() <= apart_px
        near_column = (columns - peak[..., 2:3]).abs() <= apart_px
        taken = near_row[..., None] & near_column[..., None, :]
        left, free = left.masked_fill(taken, 0.0), free.masked_fill(taken, 0.0)
    return torch.stack(peaks, 2), torch.stack(scores, 2)


def in_order(
    peaks: torch.Tensor,
    scores: torch.Tensor,
    chains: Sequence[Sequence[int]],
    *,
    map_pixel_mm: float,
    spacing_mm: tuple[float, float] = (18.0, 60.0),
    penalty: float = 6.0,
) -> torch.Tensor:
    """Choose one candidate per landmark so that every chain (landmark numbers, top first) descends the image.

    peaks (B, L, K, 3), scores (B, L, K) as from ``candidates`` -> (B, L, 3). Dynamic programming: log scores, minus
    ``penalty`` for each pair of neighbours that does not descend, or whose in-plane distance is outside spacing_mm.
    Landmarks in no chain keep their highest peak.
    """
    chosen = peaks[:, :, 0].clone()
    value = scores.clamp_min(1e-9).log()
    batch = torch.arange(len(peaks), device=peaks.device)
    for chain in chains:
        total, back = value[:, chain[0]], []
        for above, below in pairwise(chain):
            step = (peaks[:, below, :, None, 1:] - peaks[:, above, None, :, 1:]).float() * map_pixel_mm
            distance = step.norm(dim=-1)  # (B, K below, K above)
            bad = (step[..., 0] <= 0) | (distance < spacing_mm[0]) | (distance > spacing_mm[1])
            best, where = (total[:, None] - penalty * bad).max(-1)
            back.append(where)
            total = best + value[:, below]
        pick = total.argmax(-1)
        for landmark, where in zip(reversed(chain), [*reversed(back), None], strict=True):
            chosen[:, landmark] = peaks[batch, landmark, pick]
            pick = pick if where is None else where[batch, pick]
    return chosen


def _patches(
    found: torch.Tensor, stack: torch.Tensor, peak: torch.Tensor, reach: int = _REACH, deep: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Surroundings of peaks: (B, L, Z, S, S), 0 outside the stack and the map, and their slice numbers (B, L, Z).

    S = 2 reach + 1 map pixels, Z = 2 deep + 1 slices.
    """
    counts, start = torch.bincount(stack, minlength=len(peak)), start_of(stack, len(peak))
    away = torch.arange(-reach, reach + 1, device=found.device)
    slices = peak[..., :1] + torch.arange(-deep, deep + 1, device=found.device)  # (B, L, Z)
    rows, columns = peak[..., 1:2] + away, peak[..., 2:3] + away  # (B, L, S)
    n = (start[:, None, None] + slices).clamp(0, max(len(stack) - 1, 0))
    landmark = torch.arange(found.shape[1], device=found.device)
    patch = found[
        n[..., None, None],
        landmark[None, :, None, None, None],
        rows.clamp(0, found.shape[-2] - 1)[:, :, None, :, None],
        columns.clamp(0, found.shape[-1] - 1)[:, :, None, None, :],
    ]
    inside = ((slices >= 0) & (slices < counts[:, None, None]))[..., None, None]
    inside = inside & ((rows >= 0) & (rows < found.shape[-2]))[:, :, None, :, None]
    inside = inside & ((columns >= 0) & (columns < found.shape[-1]))[:, :, None, None, :]
    return patch * inside, slices


def _near(
    found: torch.Tensor,
    stack: torch.Tensor,
    index: torch.Tensor,
    stride: int,
    pixel_mm: float,
    slice_mm: float | torch.Tensor,
) -> torch.Tensor:
    """(B, L): probability within NEAR_MM of each index."""
    slice_mm = torch.as_tensor(slice_mm, device=found.device, dtype=found.dtype).expand(len(index))
    if not len(index):
        return found.new_zeros(index.shape[:2])
    step_mm = stride * pixel_mm
    own = torch.cat([index[..., :1], (index[..., 1:] + 0.5) / stride - 0.5], -1)  # in map pixels
    middle = own.round()
    reach = min(math.ceil(NEAR_MM / step_mm) + 1, max(found.shape[-2:]))
    deep = min(math.ceil(NEAR_MM / float(slice_mm.min())) + 1, len(stack))
    patch, slices = _patches(found, stack, middle.long(), reach, deep)
    away = (
        middle[..., 1:, None] - own[..., 1:, None] + torch.arange(-reach, reach + 1, device=found.device)
    )  # (B, L, 2, S)
    across = ((slices - own[..., :1]) * slice_mm[:, None, None]) ** 2
    down, along = ((away * step_mm) ** 2).unbind(2)
    near = across[..., None, None] + down[:, :, None, :, None] + along[:, :, None, None, :] <= NEAR_MM**2
    return (patch * near).sum((2, 3, 4))
'''

SOURCE['osteograde/models/locators/unet.py'] = r'''"""A segmenting locator: a U-Net labels every pixel, and the discs it outlines become maps like the heatmap's.

Shape legend: N slices (of all stacks of a batch), B stacks, L landmarks, C landmark channels (top level first),
K classes, H W input pixels, h w map pixels. Boxes are (x0, y0, x1, y1), pixel edges, as torchvision has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from osteograde.models.backbones import encoder, pyramid_shape
from osteograde.models.locators.locator import LocatorBatch, target_parts
from osteograde.models.locators.peaks import start_of

DISC = 1  # classes: 0 background, 1 disc, 2 vertebra, 3 canal
DISC_HALF_MM = (
    4.0,
    12.0,
)  # (down, along): half axes of the ellipse that stands for a disc where only its point is known
NEAR_MM = 25.0  # this near to a point, what is outside of every ellipse is no disc
_SMALL = 0.25  # of the usual area: a component below is noise
_FLOOR = 1e-6  # score of a place without any component
_WIDEST = 8  # the decoder doubles its width with every halving, up to this many times the finest width


class Component(NamedTuple):
    """One connected disc. x, y: its centroid, integer = pixel centre; probability: the mean over its pixels."""

    x: float
    y: float
    probability: float
    box: tuple[int, int, int, int]


class UnetLocator(nn.Module):
    """(N, in_channels, H, W) -> log scores (N, channels, H / stride, W / stride).

    A U-Net (Ronneberger et al. 2015) whose contracting half is a timm encoder; ``segment`` returns its class logits.
    width: features of the finest decoder block. stages: how many stages of the encoder are used (0 = all). Raises
    ValueError for an unknown encoder, a stride other than 1, 2, 4 or 8, fewer than two classes, or an image size that
    stride does not divide.
    """

    def __init__(
        self,
        encoder_name: str,
        channels: int,
        in_channels: int = 4,
        width: int = 32,
        stride: int = 2,
        stages: int = 0,
        classes: int = 4,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if stride not in (1, 2, 4, 8):
            raise ValueError(f"stride of the map is {stride}; expected 1, 2, 4 or 8")
        if classes <= DISC:
            raise ValueError(f"U-Net of {classes} classes; expected at least {DISC + 1}, background and disc")
        self.config: dict[str, Any] = {
            "kind": "unet",
            "encoder_name": encoder_name,
            "channels": channels,
            "in_channels": in_channels,
            "width": width,
            "stride": stride,
            "stages": stages,
            "classes": classes,
        }
        self.channels, self.stride, self.classes = channels, stride, classes
        self.encoder = encoder(encoder_name, in_channels, pretrained, stages=stages)
        counts, reduction = pyramid_shape(self.encoder)
        self.used = [i for i, r in enumerate(reduction) if r >= stride] or [len(reduction) - 1]
        widths = [width * min(2**k, _WIDEST) for k in range(len(self.used))]
        self.deepest = _block(counts[self.used[-1]], widths[-1])
        skips = zip(self.used[:-1], pairwise(widths), strict=True)
        self.blocks = nn.ModuleList(_block(counts[i] + below, here) for i, (here, below) in skips)
        self.head = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps(images)

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (N, K, H / stride, W / stride)."""
        h, w = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        if (h * self.stride, w * self.stride) != tuple(images.shape[-2:]):
            raise ValueError(f"images are {tuple(images.shape[-2:])} pixels; expected multiples of {self.stride}")
        pyramid = self.encoder(images)
        maps = self.deepest(pyramid[self.used[-1]])
        for i, block in reversed(list(zip(self.used[:-1], self.blocks, strict=True))):
            skip = pyramid[i]
            maps = block(torch.cat([_resized(maps, skip.shape[-2], skip.shape[-1]), skip], 1))
        return _resized(self.head(maps), h, w)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Log scores (N, C, h, w), without gradient: per channel a gaussian on its disc, as high as the disc is sure.

        The lowest disc of a slice is the last channel. Channels without a disc are flat and low.
        """
        found = self.segment(images).detach().float().softmax(1)[:, DISC]
        maps = torch.full((len(found), self.channels, *found.shape[1:]), _FLOOR, device=found.device)
        for n, probability in enumerate(found.cpu().numpy()):
            components = in_a_column(disc_components(probability))
            for component, channel in zip(components, disc_channels(components, self.channels), strict=True):
                if channel >= 0:
                    maps[n, channel] += _bump(component, maps.shape[-2:], maps.device)
        return torch.log(maps)

    def loss(self, batch: LocatorBatch) -> torch.Tensor:
        """Scalar. Slices with a mask learn from it, all others from discs drawn around the points of their stack.

        Each of the two is cross entropy plus soft Dice loss, as nnU-Net sums them (Isensee et al. 2021); they count by
        their slices. 0, with a gradient of 0, where nothing is known. Raises ValueError for a mask of another size than
        the images, or with a label that is no class.
        """
        log_p = self.segment(batch.images).float().log_softmax(1)
        shares = self._mask_shares(batch)
        masked = shares.flatten(1).any(1)
        binary = torch.stack([_log_without(log_p, DISC), log_p[:, DISC]], 1)
        drawn = point_shares(batch, (log_p.shape[-2], log_p.shape[-1]))
        pointed = drawn.flatten(1).any(1) & ~masked
        total = log_p.sum() * 0
        for told, scores, target in ((masked, log_p, shares), (pointed, binary, drawn)):
            if told.any():
                weight = told.sum() / (masked | pointed).sum()
                total = total + weight * segmentation_loss(scores[told], target[told])
        return total

    def _mask_shares(self, batch: LocatorBatch) -> torch.Tensor:
        """(N, K, h, w): each map pixel's part that the mask gives to each class; their sum is the known part."""
        size, masks = (len(batch.images), *batch.images.shape[-2:]), batch.masks
        if masks is None:
            return batch.images.new_zeros(
                (size[0], self.classes, size[1] // self.stride, size[2] // self.stride)
            ).float()
        if tuple(masks.shape) != size:
            raise ValueError(
                f"masks are {tuple(masks.shape)}; expected {size}, one per slice at the images' resolution"
            )
        if int(masks.max()) >= self.classes:
            raise ValueError(f"masks hold label {int(masks.max())}; the net has classes 0 to {self.classes - 1}")
        labels = torch.arange(self.classes, device=masks.device)[None, :, None, None]
        return F.avg_pool2d((masks[:, None] == labels).float(), self.stride)


def segmentation_loss(log_p: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus soft Dice loss over the known pixels of a batch -> scalar.

    log_p (N, K, h, w): log probabilities. shares (N, K, h, w): the target's part of each class in a pixel; they sum to
    1 where all of the pixel is known and to 0 where nothing is. Dice: over the whole batch, averaged over the
    foreground classes that it shows. 0 where nothing is known.
    """
    known = shares.sum(1, keepdim=True)
    entropy = -(shares * log_p).sum() / known.sum().clamp_min(1e-6)
    p = log_p.exp() * known
    overlap, size = (p * shares).sum((0, 2, 3))[1:], (p + shares).sum((0, 2, 3))[1:]
    shown = shares.sum((0, 2, 3))[1:] > 0
    dice = torch.where(shown, 1 - 2 * overlap / size.clamp_min(1e-6), torch.zeros_like(size))
    return entropy + dice.sum() / shown.sum().clamp_min(1)


def point_shares(batch: LocatorBatch, size: tuple[int, int]) -> torch.Tensor:
    """(N, 2, h, w) on a map of ``size``: no disc and disc, as far as the points tell; 0 in both where unknown.

    On the slice nearest to each labelled point an ellipse of half axes DISC_HALF_MM around it is disc; what lies within
    NEAR_MM of a point and in no ellipse is no disc.
    """
    stride = batch.images.shape[-1] // size[1]
    points, stack = batch.points.float(), batch.stack
    order = torch.arange(len(stack), device=stack.device) - start_of(stack, len(points))[stack]
    last = torch.bincount(stack, minlength=len(points)) - 1
    nearest = torch.minimum(points[..., 0].round().clamp_min(0), last[:, None])[stack]
    shown = target_parts(batch, size).labelled[stack] & (nearest == order[:, None])
    n, landmark = shown.nonzero(as_tuple=True)
    centre = points[stack[n], landmark, 1:]
    rows, columns = ((torch.arange(s, device=stack.device) + 0.5) * stride - 0.5 for s in size)
    down = ((rows - centre[:, :1]) * batch.pixel_mm)[:, :, None]
    along = ((columns - centre[:, 1:]) * batch.pixel_mm)[:, None]
    inside = (down / DISC_HALF_MM[0]) ** 2 + (along / DISC_HALF_MM[1]) ** 2 <= 1
    around = down**2 + along**2 <= NEAR_MM**2
    empty = points.new_zeros((len(stack), *size))
    disc = empty.index_add(0, n, inside.float()) > 0
    near = empty.index_add(0, n, around.float()) > 0
    return torch.stack([near & ~disc, disc], 1).float()


def disc_components(probability: np.ndarray) -> list[Component]:
    """Discs in a map of disc probabilities (h, w), the lowest of the image first.

    Connected pixels above 0.5; components below a quarter of the usual area are noise. The usual area is that of the
    component in which the median pixel lies, so many specks of noise do not make a speck usual.
    """
    mask = (probability > 0.5).astype(np.uint8)
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return []
    area = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    usual = np.median(np.repeat(area[1:], area[1:]))
    mean = np.bincount(labels.ravel(), weights=probability.ravel().astype(float), minlength=count) / area
    found = []
    for i in np.flatnonzero(area[1:] >= _SMALL * usual) + 1:
        x0, y0, wide, high = (int(v) for v in stats[i, :4])
        box = (x0, y0, x0 + wide, y0 + high)
        found.append(Component(float(centroids[i, 0]), float(centroids[i, 1]), float(mean[i]), box))
    return sorted(found, key=lambda component: -component.y)


def in_a_column(components: Sequence[Component]) -> list[Component]:
    """Those of the components, the lowest first, that lie above one another as discs do: the surest such column.

    From one disc to the next it goes up more than aside, and at least half as far and at most four times as far as a
    disc is wide. Fat and bowel that look like discs are less sure, and beside the spine.
    """
    if not components:
        return []
    wide = float(np.median([component.box[2] - component.box[0] for component in components]))
    best, below = [(2 * component.probability - 1) ** 2 for component in components], [-1] * len(components)
    for i, upper in enumerate(components):
        own = best[i]
        for k, lower in enumerate(components[:i]):
            rise, aside = lower.y - upper.y, abs(lower.x - upper.x)
            if aside < rise and 0.5 * wide <= np.hypot(rise, aside) <= 4 * wide and own + best[k] > best[i]:
                best[i], below[i] = own + best[k], k
    column, i = [], int(np.argmax(best))
    while i >= 0:
        column.append(components[i])
        i = below[i]
    return column[::-1]


def disc_channels(components: Sequence[Component], channels: int) -> list[int]:
    """Channel of each component, given the lowest first: that one is the last channel, and -1 is above the first.

    A step that is 1.5 times as long as the usual one or longer skips channels: a disc in between was not found, and the
    ones above keep their level. The usual step is the lower median, which one gap among two steps does not move.
    """
    if not components:
        return []
    steps = [float(np.hypot(a.x - b.x, a.y - b.y)) for a, b in pairwise(components)]
    usual = sorted(steps)[(len(steps) - 1) // 2] if steps else 1.0
    taken = [channels - 1]
    for step in steps:
        taken.append(taken[-1] - max(1, int(step / usual + 0.5)))
    return [max(channel, -1) for channel in taken]


def _bump(component: Component, size: Sequence[int], device: torch.device) -> torch.Tensor:
    """(h, w): a gaussian, sigma a quarter of the component's thickness, as high as its mean probability."""
    x0, y0, x1, y1 = component.box
    sigma = max(min(x1 - x0, y1 - y0) / 4, 1.0)
    rows, columns = (torch.arange(n, device=device) for n in size)
    down = torch.exp(-0.5 * ((rows - component.y) / sigma) ** 2)
    along = torch.exp(-0.5 * ((columns - component.x) / sigma) ** 2)
    return component.probability * down[:, None] * along


def _log_without(log_p: torch.Tensor, label: int) -> torch.Tensor:
    """log(1 - p of the label): (N, K, h, w) -> (N, h, w). Summed from the others, so it is exact near p = 1."""
    return torch.cat([log_p[:, :label], log_p[:, label + 1 :]], 1).logsumexp(1)


def _resized(maps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == (h, w):
        return maps
    return F.interpolate(maps, size=(h, w), mode="bilinear", align_corners=False)


def _block(before: int, after: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
'''

SOURCE['osteograde/tasks/__init__.py'] = r'''"""The tasks the kit knows. A task is a value (contract.py); adding one is adding its module here."""

from osteograde.tasks.contract import Task
from osteograde.tasks.knee import task as knee_xray
from osteograde.tasks.lumbar import task as lumbar_mr
from osteograde.tasks.spider import task as spider

TASKS: dict[str, Task] = {task.name: task for task in (lumbar_mr.TASK, knee_xray.TASK, spider.TASK)}
'''

SOURCE['osteograde/tasks/boxes.py'] = r'''"""Boxes around landmarks on the stacks that show them best. Pure geometry, LPS mm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks.contract import CropSpec, Pixels, Points, Rois, Site, Volumes, sides, spacing_mm


def around(
    sites: Sequence[Site],
    crops: Sequence[CropSpec],
    reach_mm: Mapping[str, float],
    volumes: Volumes,
    points: Points,
    pixels: Pixels,
) -> Rois:
    """{target: {view: (stack, box)}} around the landmark of each site; left sites are read mirrored, as right ones.

    reach_mm: per view, how far along the normal a point may lie from the nearest slice. Sites whose landmark is absent,
    and views that do not show it, are left out. See ``contract.Grade``.
    """
    found: dict[str, dict[str, tuple[Volume, Roi]]] = {}
    for site in sites:
        if site.landmark not in points:
            continue
        for crop in crops:
            stacks, reach = volumes.get(crop.view, ()), reach_mm[crop.view]
            seen = box(crop, stacks, points[site.landmark].mm, site.side, pixels, reach)
            if seen is not None:
                found.setdefault(site.target, {})[crop.view] = seen
    return found


def box(
    crop: CropSpec, stacks: Sequence[Volume], point_mm: np.ndarray, side: str, pixels: Pixels, reach_mm: float
) -> tuple[Volume, Roi] | None:
    """The stack of a view that shows a point best and the box on its slices; None where no stack shows it."""
    near = [
        (round(distance, 3), -stack.voxels.shape[0], stack.series, i)  # every tie is broken the same way each time
        for i, stack in enumerate(stacks)
        if (distance := geometry.plane_distance_mm(stack, point_mm)) <= reach_mm
        and geometry.outside_mm(stack, point_mm) == 0
    ]
    if not near:
        return None
    stack = stacks[min(near)[-1]]
    shape = (crop.slices, *sides(pixels))
    roi = geometry.roi_on(stack, onto_a_slice(stack, point_mm), spacing_mm(crop.field_mm, pixels), shape)
    return stack, canonical(roi, side)


def onto_a_slice(stack: Volume, point_mm: np.ndarray) -> np.ndarray:
    """The point itself, or for a point beyond the first or last slice the place on that slice next to it."""
    index = geometry.to_index(stack, point_mm)
    index[0] = np.clip(index[0], 0, stack.voxels.shape[0] - 1)
    return geometry.apply(stack.to_mm, index)


def canonical(roi: Roi, side: str) -> Roi:
    """A box of the left side read as one of the right: mirrored along its left-right axis. Others as they are."""
    if side != "left":
        return roi
    return geometry.mirrored(roi, geometry.lateral_axis(roi))


def along_the_line(known: dict[int, np.ndarray], count: int) -> dict[int, np.ndarray]:
    """All of ``count`` points from at least two of them: linear between neighbours and beyond the ends; else as given.

    >>> {i: p.tolist() for i, p in along_the_line({0: np.zeros(3), 1: np.ones(3)}, 3).items()}
    {0: [0.0, 0.0, 0.0], 1: [1.0, 1.0, 1.0], 2: [2.0, 2.0, 2.0]}
    """
    if len(known) < 2:
        return dict(known)
    have = sorted(known)
    line = dict(known)
    for i in set(range(count)) - set(have):
        after = min(max(int(np.searchsorted(have, i)), 1), len(have) - 1)  # the segment i lies in or is nearest to
        a, b = have[after - 1], have[after]
        line[i] = known[a] + (known[b] - known[a]) * ((i - a) / (b - a))
    return {i: line[i] for i in sorted(line)}
'''

SOURCE['osteograde/tasks/contract.py'] = r'''"""What a task is: plain values that the rest of the kit reads. Adding a task is one file; see CONTRIBUTING.md.

Stage 1 (``Locate``) finds landmarks in patient mm, stage 2 (``Grade``) reads crops around them. Every name that is
submitted is derived from sites, conditions and levels here and in the task's file, never typed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks.study import Mark as Mark
from osteograde.tasks.study import Point as Point
from osteograde.tasks.study import Points as Points
from osteograde.tasks.study import Series as Series
from osteograde.tasks.study import Study as Study
from osteograde.tasks.study import Volumes as Volumes

Pixels = int | Sequence[int]  # the side of a square crop, or its (H, W)
Rois = Mapping[str, Mapping[str, tuple[Volume, Roi]]]  # site -> view -> the stack to sample and the box in it


@dataclass(frozen=True)
class View:
    """A kind of series. ``directions``: unit LPS rows that a stack's (D, H, W) axes are turned to, e.g. sagittal
    (left, feet, back), so that every net sees every patient the same way up.

    window: percentiles of a series' grey values that become black and white. width_mm: what images without a pixel
    size are taken to be wide, (landscape, portrait or square); slice_mm: and how thick. film: files are projections,
    one image each. needed: a study without it is incomplete.
    """

    name: str
    description: str  # how the tables call it
    directions: tuple[tuple[float, float, float], ...]
    window: tuple[float, float] = (0.5, 99.5)
    width_mm: tuple[float, float] = (280.0, 280.0)
    slice_mm: float = 4.0
    film: bool = False
    needed: bool = True

    def along(self, volume: Volume) -> float:
        """How nearly parallel a stack's slices lie to those of the view: |cosine|, 1 = parallel."""
        normal = np.cross(volume.axes[1], volume.axes[2])
        return round(abs(float(np.cross(self.directions[1], self.directions[2]) @ normal)), 6)

    def shows(self, volume: Volume, degrees: float = 45.0) -> bool:
        """Whether a stack's slices lie within so many degrees of the view's."""
        return self.along(volume) > np.cos(np.radians(degrees))


@dataclass(frozen=True)
class Landmark:
    """What a locator finds. Several landmarks may share a channel: the same structure on the right and on the left.

    ``side`` ("right", "left" or "") keeps the landmark to that side of the patient's midline in the locator's
    view; ``prompt`` names the landmark of an earlier locator around which this one is looked for; ``near`` one that it
    lies beside (``Locate.near_mm``), so that levels told apart once are not told apart again. ``view``: where it is
    looked for if not in the locator's own view: one net may read several views that look alike to it.
    """

    name: str
    channel: str
    side: str = ""
    prompt: str = ""
    near: str = ""
    view: str = ""


@dataclass(frozen=True)
class Locate:
    """One locator. Landmarks without a prompt are looked for in the whole stack of the view (the one with the most
    slices); landmarks with a prompt on ``slices`` slices nearest to it, over all stacks of the view.

    field_mm: (H, W) of the image the net sees, centred on the stack or on the prompt. midline: landmarks of earlier
    locators whose mean x divides right from left; without them the stack's centre does (a prompt is its own midline).
    apart_mm: where given, the landmarks of a side follow each other down the image at such distances (levels).
    near_mm: how far in-plane a landmark may lie from the one it is ``near``, where that was found.
    sigma_mm: spread of the heatmap target in-plane. far_mm: a prompt further than this from every slice finds nothing.
    whole: the net sees the image as far as it goes, and ``field_mm`` is only its usual size: for images whose size in
    mm is not to be relied on. absent: landmarks may be missing from an image that should show them; the net learns to
    say so. own_midline: the patient's midline is x = 0 (films), whatever the image's centre is.
    """

    name: str
    view: str
    landmarks: tuple[Landmark, ...]
    field_mm: tuple[float, float]
    slices: int = 0  # 0: all
    midline: tuple[str, ...] = ()
    far_mm: float = 10.0
    sigma_mm: float = 4.0
    apart_mm: tuple[float, float] | None = None
    near_mm: float = 20.0
    whole: bool = False
    absent: bool = False
    own_midline: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(landmark.channel for landmark in self.landmarks))

    def chains(self, landmarks: Sequence[Landmark]) -> tuple[tuple[int, ...], ...]:
        """Numbers of those of ``landmarks`` that follow each other down the image, per side; none without
        ``apart_mm``."""
        if self.apart_mm is None:
            return ()
        sides = dict.fromkeys(landmark.side for landmark in landmarks)
        return tuple(tuple(i for i, mark in enumerate(landmarks) if mark.side == side) for side in sides)

    @property
    def looks(self) -> tuple[tuple[str, str], ...]:
        """(view, prompt) of every look the locator takes, in order; prompt "" for whole stacks."""
        return tuple(dict.fromkeys((landmark.view or self.view, landmark.prompt) for landmark in self.landmarks))


@dataclass(frozen=True)
class Site:
    """One graded place = one submitted row. ``target`` is its name in the tables; left sites are mirrored.

    also: the same place under the names it has in views that share no coordinates with the landmark's.
    """

    target: str
    condition: str
    level: str
    side: str = ""
    landmark: str = ""
    also: tuple[str, ...] = ()

    @property
    def landmarks(self) -> tuple[str, ...]:
        return self.landmark, *self.also


@dataclass(frozen=True)
class CropSpec:
    """What a grader sees of one view: slices and in-plane field in mm (the recipe chooses the pixels)."""

    view: str
    slices: int
    field_mm: float


@dataclass(frozen=True)
class Grade:
    """One grader: the sites of one condition group, the crops it reads, and where they lie.

    rois(volumes, points, pixels) -> {site target: {view: (volume, roi)}} is pure; views that cannot be seen are left
    out. ``pixels``: a side, or (H, W); the field of a spec spans the longer one (``sides``). findings: further yes/no
    questions that the same net answers about every site; they help it learn and are written beside the submission.
    """

    name: str
    sites: tuple[Site, ...]
    crops: tuple[CropSpec, ...]
    rois: Callable[[Volumes, Points, Pixels], Rois]
    any_severe: bool = False  # adds the any-severe term over the sites of a study to the loss
    findings: tuple[str, ...] = ()
    mirrors: bool = False  # a site and its mirror image are graded alike: so it is learnt and seen a second time


@dataclass(frozen=True)
class Task:
    """A competition: what a study may hold, what is found, what is graded, how it is read and scored."""

    name: str
    slug: str  # the competition's name on Kaggle; "" where there is none
    views: tuple[View, ...]
    classes: tuple[str, ...]  # columns of the submission
    weights: tuple[float, ...]  # of the classes, in loss and metric
    locate: tuple[Locate, ...]
    grade: tuple[Grade, ...]
    targets: tuple[str, ...]  # in the order of the template
    prior: Mapping[str, tuple[float, ...]]  # target -> class probabilities where nothing can be seen
    read: Callable[[Path, str], list[Study]]  # (root, "train" or "test"); lazy: tables and paths, no voxels
    labels: Callable[[Path], dict[str, dict[str, int]]]  # a table of truth -> {study: {target: class}}
    score: Callable[[Mapping[str, Mapping[str, int]], Mapping[str, np.ndarray]], dict[str, float]]
    # the same score as a function of how often each of the labelled studies counts: (B, studies) -> (B, parts), the
    # parts in the order of ``score``'s; what makes resampling cheap
    counted: Callable[[Mapping[str, Mapping[str, int]], Mapping[str, np.ndarray]], Callable[[np.ndarray], np.ndarray]]
    complete: Callable[[Points], Points]  # fills what can be told by geometry from what was found
    score_groups: tuple[str, ...] = ()
    rows_vary: bool = False  # studies have some of the targets only (``Study.targets``)
    higher_is_better: frozenset[str] = frozenset()  # parts of the score, "score" among them; of all others lower is
    confusion: Callable[[Mapping[str, Mapping[str, int]], Mapping[str, np.ndarray]], np.ndarray] | None = None
    patient: Callable[[str], str] = str  # whose study an id names: patients are resampled whole; default: own each

    def __post_init__(self) -> None:
        found: set[str] = set()
        views = {view.name for view in self.views}
        for stage in self.locate:
            self._check_locate(stage, found, views)
            found |= {landmark.name for landmark in stage.landmarks}
        graded = [site.target for group in self.grade for site in group.sites]
        if sorted(graded) != sorted(self.targets):
            odd = sorted(set(graded) ^ set(self.targets)) or sorted({t for t in graded if graded.count(t) > 1})
            raise ValueError(f"{self.name}: every target must be graded once; look at {odd[:5]}")
        for group in self.grade:
            if lost := {crop.view for crop in group.crops} - views:
                raise ValueError(f"{self.name}: grader {group.name!r} reads {sorted(lost)}; views are {sorted(views)}")
            if lost := {site.landmark for site in group.sites} - found:
                raise ValueError(f"{self.name}: grader {group.name!r} needs {sorted(lost)}, which no locator finds")
        if set(self.prior) != set(self.targets):
            raise ValueError(f"{self.name}: the prior must name every target once")

    def _check_locate(self, stage: Locate, found: set[str], views: set[str]) -> None:
        if lost := {stage.view, *(view for view, _ in stage.looks)} - views:
            raise ValueError(f"{self.name}: locator {stage.name!r} reads {min(lost)!r}; views are {sorted(views)}")
        prompts, near = {prompt for _, prompt in stage.looks}, {landmark.near for landmark in stage.landmarks}
        needed = (prompts | near | {*stage.midline}) - {""}
        if unknown := needed - found:
            raise ValueError(
                f"{self.name}: locator {stage.name!r} is prompted by {sorted(unknown)}, "
                f"which no earlier locator finds; found so far: {sorted(found)}"
            )
        if twice := {landmark.name for landmark in stage.landmarks} & found:
            raise ValueError(f"{self.name}: {sorted(twice)} found by {stage.name!r} and by an earlier locator")

    def view(self, name: str) -> View:
        return next(view for view in self.views if view.name == name)

    def view_of_orientation(self, volume: Volume) -> str:
        """The view that a stack of unknown description most likely is: the first whose slices lie most nearly
        parallel to its own; "" where all are more than 45 degrees away."""
        best = max(self.views, key=lambda view: view.along(volume))  # the first of equals
        return best.name if best.shows(volume) else ""

    def rows(self, study: str, targets: Sequence[str] = ()) -> list[str]:
        """The submitted row ids of a study, in the template's order; ``targets``: those asked, if not all."""
        return [f"{study}_{target}" for target in self.asked(targets)]

    def asked(self, targets: Sequence[str] = ()) -> tuple[str, ...]:
        """The targets of a study in the template's order; none named = all."""
        return tuple(target for target in self.targets if target in targets) if targets else self.targets


def sides(pixels: Pixels) -> tuple[int, int]:
    """(H, W) of a crop.

    >>> sides([16, 24])
    (16, 24)
    """
    if isinstance(pixels, int):
        return pixels, pixels
    height, width = pixels
    return int(height), int(width)


def spacing_mm(field_mm: float, pixels: Pixels) -> tuple[float, float]:
    """(row, column) spacing of a crop whose longer side spans ``field_mm``."""
    return (field_mm / max(sides(pixels)),) * 2  # type: ignore[return-value]
'''

SOURCE['osteograde/tasks/image_files.py'] = r'''"""Folders of image files without tables: which files there are, and what they may be called in a submission."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from osteograde.imaging import raster

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_ODD = re.compile(r"[^0-9A-Za-z._-]+")
MOST = 64  # characters of a name


def images(root: Path) -> list[Path]:
    """All image files below a folder in order of their paths: pictures and DICOM files, known by their suffix, and
    files without a suffix that start as DICOM does. Hidden files and folders are passed over, links to folders are not
    followed."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(files) if not name.startswith("."))
        found += [path for path in paths if path.is_file() and _is_image(path)]  # a named pipe would never end
    return found


def names(files: Sequence[Path], root: Path) -> list[str]:
    """One name per file: its stem where no other file has it, else its path below ``root``; odd characters become _.

    >>> names([Path("a/x.png"), Path("b/x.png"), Path("b/my y.png")], Path("."))
    ['a_x', 'b_x', 'my_y']
    """
    stems = Counter(_plain(file.stem) for file in files)
    short = [_plain(file.stem) for file in files]
    long = [_plain("_".join(file.relative_to(root).with_suffix("").parts)) for file in files]
    chosen = [a if stems[a] == 1 else b for a, b in zip(short, long, strict=True)]
    again = Counter(chosen)
    return [name if again[name] == 1 else f"{name}_{i}" for i, name in enumerate(chosen)]


def part_of(root: Path, part: str) -> Path:
    """The folder of a part: ROOT/<part>_images, or ROOT itself where there is none."""
    folder = Path(root) / f"{part}_images"
    return folder if folder.is_dir() else Path(root)


def _plain(name: str) -> str:
    return _ODD.sub("_", name)[-MOST:] or "_"


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if raster.is_image(path) or suffix in DICOM_SUFFIXES:
        return True
    if suffix:
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
'''

SOURCE['osteograde/tasks/knee/__init__.py'] = r'''"""Knees on radiographs."""
'''

SOURCE['osteograde/tasks/knee/files.py'] = r'''"""Reading of `knee-xray`: single-knee crops, with grade folders or without, and full films as pictures or DICOM.

What an image is follows from its size and header alone, so that every row is known before a pixel is decoded:

* a small square picture is a crop of one knee, 140 mm wide, as all public sets of crops are;
* a film wider than tall, or as wide as two knees are, shows both (two rows), unless its header names one side;
* any other film shows one knee (one row), of the side its header or its file's name says, else taken as a right one.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from osteograde.imaging import raster
from osteograde.imaging.dicom.radiograph import film_outline
from osteograde.tasks.contract import Mark, Series, Study
from osteograde.tasks.image_files import images, names, part_of
from osteograde.tasks.tables import some

VIEW = "film"
SIDES = ("right", "left")
GRADES = ("0", "1", "2", "3", "4")
CROP_MM = 140.0
CROP_PIXELS = 640  # a larger picture is a film
BOTH_MM = 290.0  # a film at least as wide shows both knees, however tall
SQUARE = 0.05  # sides of a crop differ by less than this share
_NAMED = re.compile(
    r"^(?P<patient>[0-9]+)_?(?P<side>[LRlr]|(?<=_)[12])$"
)  # 9001695L, or OAI's codes: _1 right, _2 left
_PATIENT = re.compile(r"(?:^|_)([0-9]+)_?(?:[LRlr]|(?<=_)[12])$")  # the same behind folders (image_files.names)
_SIDE = {"r": "right", "l": "left", "1": "right", "2": "left"}
GRADE_COLUMNS = ("row_id", "grade")


def read(root: Path, part: str) -> list[Study]:
    """Every image below ROOT as a study; for "train" those in grade folders 0..4, with labels and joint centres.

    For "test" ROOT/test_images where it exists; labels and folder names are not looked at. ValueError where there is
    no image.
    """
    root = Path(root)
    folder = part_of(root, part)
    files = images(folder)
    if part == "train":
        files = [file for file in files if file.parent.name in GRADES]
    if not files:
        kind = "images in grade folders 0 to 4" if part == "train" else "image files (png, jpg, webp, tif, bmp, dcm)"
        raise ValueError(f"{folder}: no {kind}; give the folder that holds them")
    made = (study(file, name, part == "train") for file, name in zip(files, names(files, folder), strict=True))
    return sorted(made, key=lambda one: one.id)


def study(file: Path, name: str, labelled: bool) -> Study:
    """One image as a study. See the module for what it is taken to be."""
    width, height, side, width_mm = _outline(file)
    told = _NAMED.match(file.stem)
    patient = patient_of(name)
    named = _SIDE[told["side"].lower()] if told else ""
    if raster.is_image(file) and max(width, height) <= CROP_PIXELS and abs(width - height) <= SQUARE * max(width, 1):
        side = named or "right"
        pixel_mm = CROP_MM / max(width, 1)
        series = Series(name, VIEW, file.parent, (file,), (4.0, pixel_mm, pixel_mm), side)
    elif side in SIDES or (width <= height and width_mm < BOTH_MM):
        side = side if side in SIDES else named or "right"
        series = Series(name, VIEW, file.parent, (file,), side=side)
    else:
        return Study(name, patient, (Series(name, VIEW, file.parent, (file,)),))
    labels = {side: int(file.parent.name)} if labelled else {}
    marks = (Mark(side, name, file.stem, (width - 1) / 2, (height - 1) / 2),) if labelled else ()
    return Study(name, patient, (series,), labels, marks, targets=(side,))


def patient_of(study_id: str) -> str:
    """Whose knee a study shows: the digits before the side, else nobody else's.

    >>> patient_of("9001695L"), patient_of("9001695_2"), patient_of("val_3_9001695R"), patient_of("film12")
    ('9001695', '9001695', '9001695', 'film12')
    """
    told = _PATIENT.search(study_id)
    return told[1] if told else study_id


def _outline(file: Path) -> tuple[int, int, str, float]:
    """(width, height, side, width in mm) of a file's header; zeros where it does not say, or cannot be read: reading it
    will tell why."""
    try:
        return (*raster.size(file), "", 0.0) if raster.is_image(file) else film_outline(file)
    except raster.UnreadableImage:
        return 0, 0, "", 0.0


def labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {side: grade}} of a table row_id,grade whose row ids end in _right or _left. ValueError otherwise."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not set(GRADE_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}: columns are {reader.fieldnames}; expected {','.join(GRADE_COLUMNS)}")
        rows = [(row["row_id"].rpartition("_"), row["grade"].strip()) for row in reader]
    bad = ["".join(parts) for parts, grade in rows if parts[2] not in SIDES or grade not in ("", *GRADES)]
    if bad:
        raise ValueError(f"{path}: rows without a side or with an unknown grade: {some(bad)}; expected _right or _left")
    found: dict[str, dict[str, int]] = {}
    for (name, _, side), grade in rows:
        if grade:
            found.setdefault(name, {})[side] = int(grade)
    return found
'''

SOURCE['osteograde/tasks/knee/task.py'] = r'''"""The task `knee-xray`: Kellgren-Lawrence grades 0 to 4 of the knees on radiographs.

The joint centres are found on the film, by position right or left of its middle; a picture of one knee lies wholly on
its own side. Around each a crop of 140 mm is graded, left knees mirrored. Files: files.py.
"""

from __future__ import annotations

from functools import partial

from osteograde.tasks import boxes
from osteograde.tasks.contract import CropSpec, Grade, Landmark, Locate, Points, Site, Task, View
from osteograde.tasks.knee import files as knee_files
from osteograde.tasks.knee.files import GRADES, SIDES, VIEW
from osteograde.tasks.prior import normalised
from osteograde.tasks.scores.ordinal import OrdinalMetric

CORONAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))  # an AP film as it is hung: patient's left on its right
WINDOW = (5.0, 99.0)  # percentiles over the whole film (Tiulpin et al., Scientific Reports 8:1727, 2018)
WIDTH_MM = (400.0, 220.0)  # of a film that does not say: both knees, or one
REACH_MM = {VIEW: float("inf")}  # a projection shows what lies at any depth

# Knees per grade in the Osteoarthritis Initiative's baseline as published with the crops (doi 10.17632/56rmx5bjcr.1).
COUNTS = (3253, 1495, 2175, 1086, 251)

SITES = tuple(Site(side, "kellgren_lawrence", "", side, side) for side in SIDES)
CROPS = (CropSpec(VIEW, 1, knee_files.CROP_MM),)
METRIC = OrdinalMetric(SIDES, GRADES)


def complete(points: Points) -> Points:
    """What was found: nothing tells one knee from the other."""
    return dict(points)


TASK = Task(
    name="knee-xray",
    slug="",
    views=(View(VIEW, "AP or PA radiograph", CORONAL, WINDOW, WIDTH_MM, film=True),),
    classes=tuple(f"kl_{grade}" for grade in GRADES),
    weights=(1.0,) * len(GRADES),
    locate=(
        Locate(
            "joint",
            VIEW,
            tuple(Landmark(side, channel="joint", side=side) for side in SIDES),
            field_mm=(400.0, 400.0),
            sigma_mm=5.0,
            absent=True,
            own_midline=True,
        ),
    ),
    grade=(Grade("kl", SITES, CROPS, partial(boxes.around, SITES, CROPS, REACH_MM), mirrors=True),),
    targets=SIDES,
    prior=dict.fromkeys(SIDES, normalised(COUNTS)),
    read=knee_files.read,
    labels=knee_files.labels,
    score=METRIC.score,
    counted=METRIC.counted,
    complete=complete,
    score_groups=METRIC.groups,
    rows_vary=True,
    higher_is_better=METRIC.higher_is_better,
    confusion=METRIC.confusion,
    patient=knee_files.patient_of,
)
'''

SOURCE['osteograde/tasks/lumbar/__init__.py'] = r'''"""The 25 gradings of a lumbar spine from three MR series."""
'''

SOURCE['osteograde/tasks/lumbar/metric.py'] = r'''"""The official score of `lumbar-mr`: the mean of four weighted log losses, lower is better.

Spinal, foraminal and subarticular cells are pooled over levels, sides and studies; cell weights are 1 / 2 / 4 by true
class. The fourth part asks per study whether any level of the canal is severe: the prediction is the largest severe
probability, the weight that of the worst level. Unlabelled cells are left out. Probabilities are clipped to
[eps, 1 - eps] of float64 and rows must sum to 1, so the result does not depend on the version of anybody's log_loss.

Every part is a ratio of sums over studies, so one table of sums (``study_sums``) serves the score and its resampling.
Letters: S studies, T targets (of the template, in its order), K classes, P parts, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from osteograde.tasks.lumbar.names import CONDITIONS, SHORT, SPINAL, TARGET_OF, TEMPLATE_TARGETS, WEIGHTS

PARTS = (*(SHORT[condition] for condition in CONDITIONS), "any_severe_spinal")
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
EPS = float(np.finfo(np.float64).eps)

_COLUMNS = {
    condition: np.array([TARGET_OF[name].condition == condition for name in TEMPLATE_TARGETS])
    for condition in CONDITIONS
}
_CLASS_WEIGHTS = np.array(WEIGHTS)
_SEVERE = len(WEIGHTS) - 1


def score(labels: Mapping[str, Mapping[str, int]], probs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The four parts and their mean, "score".

    labels: {study: {target: class}}. probs: {study: (T, K)} in the template's order; studies without labels are
    ignored. A part without any labelled cell is NaN, and so is the mean. ValueError where a labelled study has no
    probabilities, or these are not finite, negative, or do not sum to 1.
    """
    values = counted(labels, probs)(np.ones((1, len(labels))))[0]
    return dict(zip((*PARTS, "score"), map(float, values), strict=True))


def counted(
    labels: Mapping[str, Mapping[str, int]], probs: Mapping[str, np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """The score as a function of how often each study of ``labels`` counts: (B, S) -> (B, P + 1), the mean last."""
    numerators, denominators = study_sums(*tables(labels, probs))

    def values(counts: np.ndarray) -> np.ndarray:
        below = counts @ denominators
        parts = np.divide(counts @ numerators, below, out=np.full(below.shape, np.nan), where=below > 0)
        return np.column_stack([parts, parts.mean(1)])

    return values


def tables(labels: Mapping[str, Mapping[str, int]], probs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Labels (S, T) with -1 where unlabelled, and probabilities (S, T, K) of the same studies. See ``score``."""
    if lost := sorted(set(labels) - set(probs)):
        raise ValueError(f"{len(lost)} labelled studies have no probabilities: {lost[:5]}")
    classes = [[given.get(target, -1) for target in TEMPLATE_TARGETS] for given in labels.values()]
    shape = (len(TEMPLATE_TARGETS), len(WEIGHTS))
    rows = np.zeros((len(labels), *shape))
    for i, study in enumerate(labels):
        if np.shape(probs[study]) != shape:
            raise ValueError(f"study {study}: probabilities are {np.shape(probs[study])}, expected {shape}")
        rows[i] = probs[study]
    wrong = ~np.isfinite(rows).all(-1) | (rows < 0).any(-1) | ~(np.abs(rows.sum(-1) - 1) <= SUM_TOLERANCE)
    if wrong.any():
        bad = [
            f"{study}_{TEMPLATE_TARGETS[t]}"
            for study, row in zip(labels, wrong, strict=True)
            for t in np.flatnonzero(row)
        ]
        raise ValueError(f"{len(bad)} rows are not finite, negative or do not sum to 1: {bad[:5]}")
    return np.array(classes, int).reshape(len(labels), len(TEMPLATE_TARGETS)), rows


def study_sums(labels: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per study and part the sums of weight * loss and of weight, (S, P) each. labels (S, T), probs (S, T, K)."""
    loss, weight = weighted_log_losses(probs, labels, _CLASS_WEIGHTS)
    sums = [((loss[:, columns]).sum(1), weight[:, columns].sum(1)) for columns in _COLUMNS.values()]
    spinal = _COLUMNS[SPINAL]
    sums.append(any_severe_losses(probs[:, spinal, _SEVERE], labels[:, spinal], weight[:, spinal]))
    above, below = zip(*sums, strict=True)
    return np.stack(above, 1), np.stack(below, 1)


def weighted_log_losses(probs: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight * -log p of the true class, and weight; both shaped like labels (...), zero where labels are -1."""
    given = labels >= 0
    true = np.where(given, labels, 0)
    weight = np.where(given, weights[true], 0.0)
    p = np.take_along_axis(probs, true[..., None], -1)[..., 0]
    return weight * -np.log(np.clip(p, EPS, 1 - EPS)), weight


def any_severe_losses(severe: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight * loss and weight (S,) of "is any labelled level severe". severe: (S, levels) probabilities."""
    given = labels >= 0
    p = np.clip(np.where(given, severe, 0.0).max(1, initial=0.0), EPS, 1 - EPS)
    true = (labels == _SEVERE).any(1)
    worst = weight.max(1, initial=0.0)  # weights rise with severity; 0 where no level is labelled
    return worst * -np.log(np.where(true, p, 1 - p)), worst
'''

SOURCE['osteograde/tasks/lumbar/names.py'] = r'''"""Every name of `lumbar-mr`, derived once: levels, sides, conditions, targets, landmarks and how the tables spell them.

Standard library only, so that anything may import it.
"""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")  # discs, head to feet
SIDES = ("right", "left")  # right is canonical; left is right, mirrored

SPINAL, FORAMINAL, SUBARTICULAR = "spinal_canal_stenosis", "neural_foraminal_narrowing", "subarticular_stenosis"
CONDITIONS = (SPINAL, FORAMINAL, SUBARTICULAR)
SHORT = {SPINAL: "spinal", FORAMINAL: "foraminal", SUBARTICULAR: "subarticular"}  # parts of the score
STRUCTURE = {SPINAL: "canal", FORAMINAL: "foramen", SUBARTICULAR: "recess"}  # what a point of the condition marks

CLASS_LABELS = ("Normal/Mild", "Moderate", "Severe")  # cells of train.csv; the index is the class
CLASSES = ("normal_mild", "moderate", "severe")  # columns of the submission
WEIGHTS = (1.0, 2.0, 4.0)

SERIES_DESCRIPTIONS = {"sag_t1": "Sagittal T1", "sag_t2": "Sagittal T2/STIR", "axi_t2": "Axial T2"}  # view -> table
CONDITION_VIEW = {SPINAL: "sag_t2", FORAMINAL: "sag_t1", SUBARTICULAR: "axi_t2"}  # the view that holds its points


@dataclass(frozen=True)
class Target:
    """One graded place. ``side`` is "" for the spinal canal."""

    condition: str
    level: str
    side: str = ""

    @property
    def name(self) -> str:
        """Its column in train.csv and its part of a row id.

        >>> Target("spinal_canal_stenosis", "l1_l2").name
        'spinal_canal_stenosis_l1_l2'
        """
        return "_".join(part for part in (self.side, self.condition, self.level) if part)

    @property
    def landmark(self) -> str:
        """The landmark it is graded at."""
        return landmark(STRUCTURE[self.condition], self.level, self.side)

    @property
    def table_condition(self) -> str:
        """Its condition as train_label_coordinates.csv spells it, e.g. "Left Neural Foraminal Narrowing"."""
        return f"{self.side}_{self.condition}".strip("_").replace("_", " ").title()

    @property
    def table_level(self) -> str:
        """Its level as train_label_coordinates.csv spells it, e.g. "L1/L2"."""
        return self.level.replace("_", "/").upper()


def landmark(structure: str, level: str, side: str = "") -> str:
    """Name of a landmark.

    >>> landmark("foramen", "l5_s1", "left"), landmark("canal", "l1_l2")
    ('foramen_left_l5_s1', 'canal_l1_l2')
    """
    return "_".join(part for part in (structure, side, level) if part)


def _targets() -> tuple[Target, ...]:
    spinal = [Target(SPINAL, level) for level in LEVELS]
    sided = [
        Target(condition, level, side)
        for condition in (FORAMINAL, SUBARTICULAR)
        for side in sorted(SIDES)  # left first, as in train.csv
        for level in LEVELS
    ]
    return (*spinal, *sided)


TARGET_OF = {target.name: target for target in _targets()}
TARGETS = tuple(TARGET_OF)  # columns of train.csv after study_id, in its order
TEMPLATE_TARGETS = tuple(sorted(TARGETS))  # rows of sample_submission.csv, in its order
TARGET_OF_TABLE = {(t.table_condition, t.table_level): t.name for t in TARGET_OF.values()}  # coordinates -> target
CLASS_OF_LABEL = {label: index for index, label in enumerate(CLASS_LABELS)}
VIEW_OF_DESCRIPTION = {description: view for view, description in SERIES_DESCRIPTIONS.items()}


def landmark_of(target: str) -> str:
    """The landmark at which a target is graded.

    >>> landmark_of("left_subarticular_stenosis_l4_l5")
    'recess_left_l4_l5'
    """
    return TARGET_OF[target].landmark
'''

SOURCE['osteograde/tasks/lumbar/rois.py'] = r'''"""Where the points of `lumbar-mr` lie when they were not found, and the boxes around them. Pure geometry, LPS mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osteograde.tasks import boxes
from osteograde.tasks.boxes import along_the_line
from osteograde.tasks.contract import CropSpec, Pixels, Point, Points, Rois, Site, Volumes
from osteograde.tasks.lumbar.names import LEVELS, SIDES, landmark

# Typical way from the canal point to the structures of the left side (x to the left, y to the back, z to the head), mm.
# Textbook proportions of an adult lumbar spine, not fitted to any data; only for points that no locator found.
FORAMEN_MM = np.array([17.0, -4.0, 2.0])
RECESS_MM = np.array([8.5, -4.0, 0.0])
OFFSETS_MM = {"foramen": FORAMEN_MM, "recess": RECESS_MM}
MIRROR = np.array([-1.0, 1.0, 1.0])
FILLED = 0.01  # confidence of a point that was not seen

# A structure further than this from every slice of a view (along the normal) is not in that view.
REACH_MM = {"sag_t1": 6.0, "sag_t2": 6.0, "axi_t2": 8.0}


def complete(points: Points) -> Points:
    """The points found, and those that geometry can tell from them with a confidence of 0.01.

    Canal points come from the foramina of both sides, else along the line of the other levels (two at least). Foramina
    and recesses come from the other side mirrored about the canal, else from the canal by typical offsets.
    """
    canal = {i: points[name].mm for i, level in enumerate(LEVELS) if (name := landmark("canal", level)) in points}
    for i, level in enumerate(LEVELS):
        sides = [points[name].mm for side in SIDES if (name := landmark("foramen", level, side)) in points]
        if i not in canal and len(sides) == len(SIDES):
            canal[i] = np.mean(sides, axis=0) - FORAMEN_MM * [0, 1, 1]
    canal = along_the_line(canal, len(LEVELS))
    whole = {landmark("canal", LEVELS[i]): mm for i, mm in canal.items()}
    for structure, offset in OFFSETS_MM.items():
        for i, middle in canal.items():
            for side in SIDES:
                other = landmark(structure, LEVELS[i], "left" if side == "right" else "right")
                typical = offset if side == "left" else offset * MIRROR
                away = (points[other].mm - middle) * MIRROR if other in points else typical
                whole[landmark(structure, LEVELS[i], side)] = middle + away
    filled = {name: Point(np.asarray(mm, float), FILLED) for name, mm in whole.items()}
    return {**filled, **points}


def rois(sites: Sequence[Site], crops: Sequence[CropSpec], volumes: Volumes, points: Points, pixels: Pixels) -> Rois:
    """The boxes around the landmark of each site; see ``boxes.around``."""
    return boxes.around(sites, crops, REACH_MM, volumes, points, pixels)
'''

SOURCE['osteograde/tasks/lumbar/tables.py'] = r'''"""Studies of `lumbar-mr` from the competition's folder: tables and paths only, no voxel is read here.

Training data ("train") must be right, so every doubt is a ValueError with a way out. Test data ("test") must be
answered, so a doubt costs as little as possible and is logged with a count; a study without files keeps its rows.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.tasks import tables
from osteograde.tasks.contract import Mark, Series, Study
from osteograde.tasks.lumbar.names import (
    CLASS_LABELS,
    CLASS_OF_LABEL,
    CONDITION_VIEW,
    SERIES_DESCRIPTIONS,
    TARGET_OF,
    TARGET_OF_TABLE,
    TARGETS,
    landmark_of,
)

log = logging.getLogger(__name__)

SERIES_COLUMNS = ("study_id", "series_id", "series_description")
MARK_COLUMNS = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
_VIEW_WORDS = (
    ("sag_t1", {"sag", "t1"}),
    ("sag_t2", {"sag", "t2"}),
    ("sag_t2", {"sag", "stir"}),
    ("axi_t2", {"ax", "t2"}),
)


def split_of(root: Path) -> str:
    """The part of the data that is graded: "test" where test_images exists, else "train". ValueError where neither."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --data names the folder that holds test_images or train_images")
    for split in ("test", "train"):
        if (root / f"{split}_images").is_dir():
            return split
    found = tables.some(sorted(path.name for path in root.iterdir())) or "nothing"
    raise ValueError(f"{root}: neither test_images nor train_images in it; found {found}")


def read(root: Path, split: str) -> list[Study]:
    """The studies to learn from ("train") or to grade ("test"), in the order of their table.

    "test" reads test_images, and where there is none train_images, without labels and with a test part's patience.
    ValueError says what is wrong, where, and what to do.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    if split == "test":
        return _read_test(root, split_of(root))
    if not (root / "train_images").is_dir():
        raise ValueError(f"{root / 'train_images'}: no such folder; unpack the competition's images there")
    return _read_train(root, root / "train_images")


def view_of_description(description: str) -> str:
    """The view a table means; "" where it means none of ours.

    >>> [view_of_description(text) for text in ("Sagittal T2/STIR", " sagittal  stir", "AXIAL T2", "Coronal T2", "")]
    ['sag_t2', 'sag_t2', 'axi_t2', '', '']
    """
    words = re.findall(r"[a-z0-9]+", description.lower())
    plane = next((plane for plane in ("sag", "ax") if any(word.startswith(plane) for word in words)), "")
    given = {plane, *words, *(word[:2] for word in words)}  # "T2w" is a T2
    return next((view for view, needed in _VIEW_WORDS if needed <= given), "")


def read_labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {target: class}} of train.csv or test_truth.csv; empty cells are absent. Unknown texts are refused."""
    table = tables.read_table(path, ("study_id", *TARGETS), ids=("study_id",))
    _refuse_bad_ids(path, table, ("study_id",))
    tables.refuse_conflicts(path, table, ("study_id",))
    for target in TARGETS:
        unknown = ~table[target].isin({*CLASS_LABELS, ""})
        tables.refuse(path, table, unknown, target, f"unknown label in {target}, expected {CLASS_LABELS} or empty")
    cells = {target: table[target].map(CLASS_OF_LABEL).to_numpy(dtype=float) for target in TARGETS}  # "" -> NaN
    return {
        study: {target: int(cells[target][i]) for target in TARGETS if not np.isnan(cells[target][i])}
        for i, study in enumerate(table["study_id"])
    }


def _read_train(root: Path, images: Path) -> list[Study]:
    notes: Counter[str] = Counter()
    paths = [root / f"train{name}.csv" for name in ("", "_series_descriptions", "_label_coordinates")]
    labels = read_labels(paths[0])
    described = tables.read_table(paths[1], SERIES_COLUMNS, ids=SERIES_COLUMNS[:2])
    _refuse_bad_ids(paths[1], described, SERIES_COLUMNS[:2])
    described["view"] = described["series_description"].map(view_of_description)
    described = described.drop(columns="series_description").drop_duplicates()
    tables.refuse_conflicts(paths[1], described, SERIES_COLUMNS[:2])
    _refuse_differences(images, set(tables.subfolders(images)), {paths[0]: labels, paths[1]: described["study_id"]})
    marks = _marks(paths[2], labels, _views(described), notes)
    found = _series(images, described, notes, strict=True)
    _tell(images, notes)
    return [Study(study, study, found[study], labels[study], marks[study]) for study in labels]


def _read_test(root: Path, part: str) -> list[Study]:
    notes: Counter[str] = Counter()
    images, path = root / f"{part}_images", root / f"{part}_series_descriptions.csv"
    on_disk = tables.subfolders(images)
    try:
        described = tables.read_table(path, SERIES_COLUMNS, ids=SERIES_COLUMNS[:2])
        described["view"] = described["series_description"].map(view_of_description)
    except ValueError as error:  # the rows can still be told from the folders, the views from the pixels' orientation
        log.warning("%s; the folders are walked instead", error)
        described = _walked(images, on_disk)
    described = described[described["study_id"] != ""].drop_duplicates(list(SERIES_COLUMNS[:2]))
    studies = list(dict.fromkeys(described["study_id"]))
    notes["studies on disk that no table lists: ignored"] += len(set(on_disk) - set(studies))
    notes["studies of the table that are not on disk: only the prior is left"] += len(set(studies) - set(on_disk))
    if on_disk and studies and not set(on_disk) & set(studies):
        log.warning("%s lists none of the %d folders of %s; is this the right table?", path, len(on_disk), images)
    found = _series(images, described, notes, strict=False)
    _tell(images, notes)
    return [Study(study, study, found[study]) for study in studies]


def _walked(images: Path, studies: Iterable[str]) -> pd.DataFrame:
    """A table of what lies on disk; a study without any series keeps one row, so that it is answered."""
    rows = [(study, series, "") for study in studies for series in tables.subfolders(images / study) or [""]]
    return pd.DataFrame(rows, columns=["study_id", "series_id", "view"], dtype=str)


def _series(
    images: Path, described: pd.DataFrame, notes: Counter[str], *, strict: bool
) -> defaultdict[str, tuple[Series, ...]]:
    """{study: its series with files in them}. Of unknown view: kept as "" for the test part, left out of training."""
    found: defaultdict[str, tuple[Series, ...]] = defaultdict(tuple)
    root = images.resolve()
    for study, series, view in described[["study_id", "series_id", "view"]].itertuples(index=False):
        folder = images / study / series
        if not (tables.is_id(study) and tables.is_id(series)):
            notes["series whose id cannot be a folder: absent"] += 1
        elif not tables.has_files(folder):
            notes["series folders missing or empty: absent"] += 1
        elif not tables.under(folder, root):
            if strict:
                raise ValueError(f"{folder}: leads out of {root}; copy the files instead of linking them")
            notes["series folders that lead out of the data: absent"] += 1
        elif strict and not view:
            notes[f"series that are none of {tuple(SERIES_DESCRIPTIONS.values())}: left out"] += 1
        else:
            found[study] += (Series(series, view, folder),)
    return found


def _marks(
    path: Path, labels: Mapping[str, object], views: Mapping[tuple[str, str], str], notes: Counter[str]
) -> defaultdict[str, tuple[Mark, ...]]:
    """{study: its annotated points}. Points that are no pixel, or lie on another view, are counted and dropped."""
    table = tables.read_table(path, MARK_COLUMNS, ids=MARK_COLUMNS[:3])
    tables.refuse_conflicts(path, table, MARK_COLUMNS[:5])
    table["target"] = [
        TARGET_OF_TABLE.get((" ".join(condition.split()).title(), level.replace(" ", "").upper()), "")
        for condition, level in zip(table["condition"], table["level"], strict=True)
    ]
    place = table["condition"] + " " + table["level"]
    tables.refuse(path, table.assign(place=place), table["target"] == "", "place", "unknown condition or level")
    tables.refuse(
        path, table, ~table["study_id"].isin(list(labels)), "study_id", "studies that train.csv does not have"
    )
    marks: defaultdict[str, tuple[Mark, ...]] = defaultdict(tuple)
    columns = (table[name] for name in ("study_id", "series_id", "instance_number", "target"))
    for study, series, instance, target, x, y in zip(
        *columns, tables.numbers(table["x"]), tables.numbers(table["y"]), strict=True
    ):
        if not (np.isfinite([x, y]).all() and min(x, y) >= 0):
            notes["points that are no pixel: dropped"] += 1
        elif views.get((study, series)) != CONDITION_VIEW[TARGET_OF[target].condition]:
            notes["points on a series of another or unknown view: dropped"] += 1
        else:
            marks[study] += (Mark(landmark_of(target), series, instance, float(x), float(y)),)
    return marks


def _views(described: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {(study, series): view for study, series, view in described[["study_id", "series_id", "view"]].to_numpy()}


def _refuse_bad_ids(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        bad = ~table[column].map(tables.is_id).astype(bool)
        tables.refuse(path, table, bad, column, f"{column} may hold letters, digits, '.', '_' and '-' (64 at most)")


def _refuse_differences(images: Path, on_disk: set[str], listed: Mapping[Path, Iterable[str]]) -> None:
    """Training: every table and the folder must name the same studies."""
    wrong = []
    for path, names in listed.items():
        if lost := sorted(set(names) - on_disk):
            wrong.append(
                f"{path} lists {len(lost)} studies that are not in {images}: {tables.some(lost)}; "
                "unpack their folders or take their rows out"
            )
        if extra := sorted(on_disk - set(names)):
            wrong.append(
                f"{images} holds {len(extra)} studies that {path} does not list: {tables.some(extra)}; "
                "add their rows or move the folders to test_images"
            )
    if wrong:
        raise ValueError("; ".join(wrong))


def _tell(images: Path, notes: Counter[str]) -> None:
    for what, count in sorted(notes.items()):
        if count:
            log.warning("%s: %d %s", images, count, what)
'''

SOURCE['osteograde/tasks/lumbar/task.py'] = r'''"""The task `lumbar-mr`: 25 grades of a lumbar spine from sagittal T1, sagittal T2/STIR and axial T2 series.

Canal points are found on sagittal T2, foramina on sagittal T1, recesses on axial T2 around the canal points. The canal
is graded on sagittal and axial slices, the foramina on sagittal T1, the recesses on axial T2 with sagittal T2 as a
second view. Names: names.py; tables: tables.py; score: metric.py; boxes: rois.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from osteograde.tasks.contract import CropSpec, Grade, Landmark, Locate, Site, Task, View
from osteograde.tasks.lumbar import metric as lumbar_metric
from osteograde.tasks.lumbar import names as lumbar_names
from osteograde.tasks.lumbar import rois as lumbar_rois
from osteograde.tasks.lumbar import tables as lumbar_tables
from osteograde.tasks.lumbar.names import FORAMINAL, LEVELS, SIDES, SPINAL, SUBARTICULAR, WEIGHTS, landmark
from osteograde.tasks.prior import normalised

# Unit LPS directions of a stack's (D, H, W) axes.
SAGITTAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
AXIAL = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

# Published counts of the training labels (normal/mild, moderate, severe) and percent severe per level. Moderates are
# published only over all levels; ``_published`` spreads them in proportion to the square root of the severe share,
# an assumption (milder disease is spread more evenly). Weights carry priors counted from their own training labels;
# these are used only where no weights are at hand.
COUNTS = {SPINAL: (8664, 736, 470), FORAMINAL: (15357, 3564, 779), SUBARTICULAR: (13733, 3660, 1840)}
SEVERE_PERCENT = {
    SPINAL: (1.1, 2.7, 6.2, 12.9, 1.0),
    FORAMINAL: (0.4, 0.4, 2.1, 6.9, 10.1),
    SUBARTICULAR: (1.4, 4.1, 9.9, 23.3, 8.1),
}


APART_MM = (18.0, 60.0)  # between the points of neighbouring levels, from children to tall adults with high discs


def _published(condition: str) -> dict[str, tuple[float, ...]]:
    """{level: class probabilities}, each class by its share times its weight: the best constant under the metric."""
    severe = np.array(SEVERE_PERCENT[condition]) / 100
    moderate = np.sqrt(severe) / np.sqrt(severe).mean() * COUNTS[condition][1] / sum(COUNTS[condition])
    shares = np.stack([1 - moderate - severe, moderate, severe], 1)
    return {level: normalised(share * np.array(WEIGHTS)) for level, share in zip(LEVELS, shares, strict=True)}


def _prior() -> dict[str, tuple[float, ...]]:
    by_level = {condition: _published(condition) for condition in COUNTS}
    return {name: by_level[target.condition][target.level] for name, target in lumbar_names.TARGET_OF.items()}


def _locators() -> tuple[Locate, ...]:
    canal = tuple(Landmark(name, channel=name) for name in (landmark("canal", level) for level in LEVELS))
    sided = [(level, side) for side in SIDES for level in LEVELS]
    foramina = tuple(
        Landmark(
            landmark("foramen", level, side),
            channel=landmark("foramen", level),
            side=side,
            near=landmark("canal", level),
        )
        for level, side in sided
    )
    recesses = tuple(
        Landmark(landmark("recess", level, side), channel="recess", side=side, prompt=landmark("canal", level))
        for level, side in sided
    )
    return (
        Locate("canal", "sag_t2", canal, field_mm=(256.0, 256.0), apart_mm=APART_MM),
        Locate(
            "foramen",
            "sag_t1",
            foramina,
            field_mm=(256.0, 256.0),
            midline=tuple(point.name for point in canal),
            apart_mm=APART_MM,
        ),
        Locate("recess", "axi_t2", recesses, field_mm=(96.0, 96.0), slices=5, far_mm=10.0),
    )


def _grader(name: str, condition: str, crops: tuple[CropSpec, ...], *, any_severe: bool = False) -> Grade:
    sites = tuple(
        Site(target.name, condition, target.level, target.side, target.landmark)
        for target in lumbar_names.TARGET_OF.values()
        if target.condition == condition
    )
    return Grade(name, sites, crops, partial(lumbar_rois.rois, sites, crops), any_severe)


TASK = Task(
    name="lumbar-mr",
    slug="rsna-2024-lumbar-spine-degenerative-classification",
    views=tuple(  # a sagittal stack of unknown contrast is taken for the first sagittal view
        View(name, lumbar_names.SERIES_DESCRIPTIONS[name], AXIAL if name == "axi_t2" else SAGITTAL)
        for name in ("sag_t2", "sag_t1", "axi_t2")
    ),
    classes=lumbar_names.CLASSES,
    weights=WEIGHTS,
    locate=_locators(),
    grade=(
        _grader("spinal", SPINAL, (CropSpec("sag_t2", 3, 56.0), CropSpec("axi_t2", 3, 64.0)), any_severe=True),
        _grader("foraminal", FORAMINAL, (CropSpec("sag_t1", 5, 48.0),)),
        _grader("subarticular", SUBARTICULAR, (CropSpec("axi_t2", 3, 56.0), CropSpec("sag_t2", 3, 48.0))),
    ),
    targets=lumbar_names.TEMPLATE_TARGETS,
    prior=_prior(),
    read=lumbar_tables.read,
    labels=lumbar_tables.read_labels,
    score=lumbar_metric.score,
    counted=lumbar_metric.counted,
    complete=lumbar_rois.complete,
    score_groups=lumbar_metric.PARTS,
)
'''

SOURCE['osteograde/tasks/prior.py'] = r'''"""Class priors: the best constant answer under a weighted log loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from osteograde.tasks.contract import Study


def weighted_prior(
    studies: Iterable[Study], targets: Sequence[str], weights: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """{target: class probabilities}: p_k proportional to (n_k + 1) * w_k, n_k counted over labelled studies.

    Without the + 1 this is the constant with the lowest weighted log loss; with it no class is ever impossible.
    """
    counts = {target: np.ones(len(weights)) for target in targets}
    for study in studies:
        for target, label in study.labels.items():
            if target in counts:
                counts[target][label] += 1
    return {target: normalised(count * np.asarray(weights)) for target, count in counts.items()}


def normalised(masses: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Masses as probabilities."""
    return tuple(float(mass) for mass in masses / np.sum(masses))


def as_rows(prior: Mapping[str, Sequence[float]], targets: Sequence[str]) -> np.ndarray:
    """(targets, classes) of a prior, in the order of ``targets``."""
    return np.array([prior[target] for target in targets], dtype=float)
'''

SOURCE['osteograde/tasks/rows.py'] = r'''"""Tables of graded rows (row_id, one column per class): what a submission, a template and out-of-fold files share."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from osteograde.tasks.contract import Task
from osteograde.tasks.tables import some

ROW_ID = "row_id"


def split_id(task: Task, row: str) -> tuple[str, str]:
    """(study, target) of a row id. ValueError where it ends in no target of the task."""
    for target in task.targets:
        if row.endswith(f"_{target}"):
            return row[: -len(target) - 1], target
    raise ValueError(f"row id {row!r} ends in no target of {task.name}, such as {task.targets[0]!r}")


def by_study(task: Task, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{study: (targets, classes)} in the task's order; NaN for rows a study does not have. ValueError where a study
    lacks rows of a task whose studies all have the same."""
    place = {target: i for i, target in enumerate(task.targets)}
    found: dict[str, np.ndarray] = {}
    for row, values in rows.items():
        study, target = split_id(task, row)
        if study not in found:
            found[study] = np.full((len(task.targets), len(task.classes)), np.nan)
        found[study][place[target]] = values
    lost = [row for study in found for row in task.rows(study) if row not in rows]
    if lost and not task.rows_vary:
        raise ValueError(f"{len(lost)} rows are missing: {some(lost)}; every study needs {len(task.targets)} rows")
    return found


def read(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """(columns, row ids, values (rows, classes)) of a table; cells that are no number are NaN. ValueError otherwise."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            records = [record for record in csv.reader(file) if record]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a comma-separated table in UTF-8 ({error})") from error
    if not records:
        raise ValueError(f"{path}: empty; the first line must be {ROW_ID} and the classes")
    columns = [name.strip() for name in records[0]]
    if columns[0] != ROW_ID or len(columns) < 2:
        raise ValueError(f"{path}: wrong columns: expected {ROW_ID} and the classes, found {','.join(columns)}")
    ragged = [i + 1 for i, record in enumerate(records) if len(record) != len(columns)]
    if ragged:
        raise ValueError(f"{path}: lines without {len(columns)} cells: {some(ragged)}")
    values = np.array([[_number(cell) for cell in record[1:]] for record in records[1:]], dtype=float)
    return columns, [record[0].strip() for record in records[1:]], values.reshape(len(records) - 1, len(columns) - 1)


def twice(ids: Sequence[str]) -> list[str]:
    """The ids that occur more than once, each once."""
    seen: set[str] = set()
    found: dict[str, None] = {}
    for row in ids:
        if row in seen:
            found[row] = None
        seen.add(row)
    return list(found)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
'''

SOURCE['osteograde/tasks/scores/__init__.py'] = r'''"""What scores are made of: counts, rankings, intervals."""
'''

SOURCE['osteograde/tasks/scores/confusion.py'] = r'''"""Figures of agreement as pure functions of confusion matrices (..., K, K): rows are the truth, columns the prediction.

The cells are weights, not only counts, so one call serves every resample of a bootstrap. What is not defined is NaN: a
class that never occurs has no recall, one that is never predicted no precision. Means over classes run over the
classes that occur in the truth, as scikit-learn's ``balanced_accuracy_score`` does.
"""

from __future__ import annotations

import numpy as np


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """(...,): share of the weight on the diagonal."""
    return share(_right(confusion).sum(-1), confusion.sum((-2, -1)))


def recalls(confusion: np.ndarray) -> np.ndarray:
    """(..., K): share of each true class that is predicted as such."""
    return share(_right(confusion), confusion.sum(-1))


def precisions(confusion: np.ndarray) -> np.ndarray:
    """(..., K): share of each predicted class that is truly so."""
    return share(_right(confusion), confusion.sum(-2))


def f1s(confusion: np.ndarray) -> np.ndarray:
    """(..., K): 2 TP / (2 TP + FP + FN); 0 for a class that occurs or is predicted, but never both at once."""
    return share(2 * _right(confusion), confusion.sum(-1) + confusion.sum(-2))


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean recall over the classes that occur."""
    return mean_where(recalls(confusion), confusion.sum(-1) > 0)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean F1 over the classes that occur."""
    return mean_where(f1s(confusion), confusion.sum(-1) > 0)


def mean_absolute_error(confusion: np.ndarray) -> np.ndarray:
    """(...,): mean number of grades between truth and prediction."""
    return share((confusion * np.abs(_steps(confusion))).sum((-2, -1)), confusion.sum((-2, -1)))


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """(...,): Cohen's kappa with squared distances as weights (Cohen, Psychol Bull 1968;70:213-220).

    1 - observed / expected disagreement; NaN where truth and prediction are one and the same class throughout, as no
    disagreement is to be expected then.
    """
    steps = _steps(confusion) ** 2
    expected = confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :]
    observed = (steps * confusion).sum((-2, -1)) * confusion.sum((-2, -1))
    return 1 - share(observed, (steps * expected).sum((-2, -1)))


def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where nothing is below."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), np.nan), where=below > 0)


def mean_where(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of ``values`` (..., K) over the classes that count, (..., K) booleans; NaN where none does."""
    return share(np.where(counts, values, 0.0).sum(-1), counts.sum(-1))


def _right(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _steps(confusion: np.ndarray) -> np.ndarray:
    grades = np.arange(confusion.shape[-1])
    return grades[:, None] - grades[None, :]
'''

SOURCE['osteograde/tasks/scores/ordinal.py'] = r'''"""The score of tasks whose classes are ordered and exclusive: quadratic kappa, and what else is asked of a grader.

All labelled cells (study, target) are pooled. The predicted grade is the most probable one (the lower of equals), also
for the mean absolute error: it is the error of the grade that is reported, not of the expected grade. Everything but
AUC and average precision is a function of sums over studies, so one table of sums serves the score and its resampling.
Means over classes run over the classes that occur in the truth of a resample. Letters: S studies, n labelled cells, T
targets, K classes, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from osteograde.tasks.scores import confusion as agreement
from osteograde.tasks.scores.confusion import mean_where, share
from osteograde.tasks.scores.ranking import ranked

Labels = Mapping[str, Mapping[str, int]]
Probs = Mapping[str, np.ndarray]

BINS = 15  # of the calibration error
SUM_TOLERANCE = 1e-3  # how far a row may be from summing to 1
EPS = float(np.finfo(np.float64).eps)
LOWER_IS_BETTER = frozenset({"mae", "brier", "log_loss", "ece"})


@dataclass(frozen=True)
class Cells:
    """The labelled cells: study_index (n,) into the studies of the labels, true (n,) classes, probs (n, K)."""

    study_index: np.ndarray
    true: np.ndarray
    probs: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(n,) the most probable class, the lower of equals."""
        return self.probs.argmax(1)


@dataclass(frozen=True)
class OrdinalMetric:
    """Plain values only, so that a task holding its methods travels to other processes.

    targets: of the task, in its order. grades: names of the classes, rising. threshold: index of the class from which
    on ``auc_ge_<grade>`` calls a cell positive; it is scored by the sum of the probabilities of those classes.

    >>> OrdinalMetric(("right", "left"), ("0", "1", "2")).parts[10:13]
    ('precision_0', 'precision_1', 'precision_2')
    """

    targets: tuple[str, ...]
    grades: tuple[str, ...]
    threshold: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.threshold < len(self.grades):
            raise ValueError(
                f"threshold {self.threshold} divides none of the {len(self.grades)} grades {self.grades}; "
                f"expected 1 to {len(self.grades) - 1}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in their order; "score", the quadratic kappa, is the last."""
        pooled = ("accuracy", "balanced_accuracy", "macro_f1", "mae", "auc", f"auc_ge_{self.grades[self.threshold]}")
        proper = ("average_precision", "brier", "log_loss", "ece")
        by_grade = tuple(f"{what}_{grade}" for what in ("precision", "recall", "f1") for grade in self.grades)
        return (*pooled, *proper, *by_grade, "score")

    @property
    def groups(self) -> tuple[str, ...]:
        """``Task.score_groups``: the parts but "score"."""
        return self.parts[:-1]

    @property
    def higher_is_better(self) -> frozenset[str]:
        """``Task.higher_is_better``: the parts of which more is better."""
        return frozenset(self.parts) - LOWER_IS_BETTER

    def score(self, labels: Labels, probs: Probs) -> dict[str, float]:
        """Every part of ``parts``; those that the labels leave undefined are NaN.

        labels: {study: {target: class index}}. probs: {study: (T, K)}; rows without a label are not looked at and may
        be NaN. ValueError where a labelled study has no probabilities, a label is unknown, or a labelled row is not
        finite, negative or does not sum to 1.
        """
        values = self.counted(labels, probs)(np.ones((1, len(labels))))[0]
        return dict(zip(self.parts, map(float, values), strict=True))

    def counted(self, labels: Labels, probs: Probs) -> Callable[[np.ndarray], np.ndarray]:
        """The score as a function of how often each study of ``labels`` counts: (B, S) -> (B, parts)."""
        cells = self.cells(labels, probs)
        k = len(self.grades)
        sums = study_sums(cells, len(labels), k)
        ranks = [ranked(cells.probs[:, grade], cells.true == grade, cells.study_index) for grade in range(k)]
        high = cells.probs[:, self.threshold :].sum(1)
        ranks.append(ranked(high, cells.true >= self.threshold, cells.study_index))

        def values(counts: np.ndarray) -> np.ndarray:
            counts = np.asarray(counts, float)
            table = counts @ sums
            matrix = table[:, : k * k].reshape(-1, k, k)
            by_study = np.ascontiguousarray(counts.T)
            aucs, precisions = (np.stack(of, -1) for of in zip(*(rank(by_study) for rank in ranks), strict=True))
            return _columns(matrix, table[:, k * k :], aucs, precisions)

        return values

    def confusion(self, labels: Labels, probs: Probs) -> np.ndarray:
        """(K, K) numbers of cells: rows the truth, columns the prediction. Reads and refuses what ``score`` does."""
        cells, k = self.cells(labels, probs), len(self.grades)
        return np.bincount(cells.true * k + cells.predicted, minlength=k * k).reshape(k, k)

    def cells(self, labels: Labels, probs: Probs) -> Cells:
        """The labelled cells, in the order of ``labels``. See ``score``."""
        if lost := sorted(set(labels) - set(probs)):
            raise ValueError(f"{len(lost)} labelled studies have no probabilities: {lost[:5]}")
        column = {target: i for i, target in enumerate(self.targets)}
        names = [(study, target, label) for study, given in labels.items() for target, label in given.items()]
        known = range(len(self.grades))
        if odd := [name for name in names if name[1] not in column or name[2] not in known]:
            raise ValueError(
                f"{len(odd)} labels (study, target, class) are unknown: {odd[:5]}; "
                f"targets are {self.targets[:5]}, classes 0 to {known[-1]}"
            )
        index = {study: i for i, study in enumerate(labels)}
        tables = {study: self._table(study, probs[study]) for study in labels}
        rows = np.array([tables[study][column[target]] for study, target, _ in names], float)
        rows = rows.reshape(len(names), len(self.grades))
        wrong = ~np.isfinite(rows).all(1) | (rows < 0).any(1) | ~(np.abs(rows.sum(1) - 1) <= SUM_TOLERANCE)
        if wrong.any():
            bad = [f"{names[i][0]}_{names[i][1]}" for i in np.flatnonzero(wrong)]
            raise ValueError(f"{len(bad)} rows are not finite, negative or do not sum to 1: {bad[:5]}")
        true = np.array([label for *_, label in names], int)
        return Cells(np.array([index[study] for study, *_ in names], int), true, rows)

    def _table(self, study: str, table: np.ndarray) -> np.ndarray:
        shape = (len(self.targets), len(self.grades))
        if np.shape(table) != shape:
            raise ValueError(f"study {study}: probabilities are {np.shape(table)}, expected {shape} (targets, classes)")
        return np.asarray(table)


def study_sums(cells: Cells, studies: int, k: int) -> np.ndarray:
    """(S, K * K + 2 + BINS) sums over the cells of each study: the confusion matrix, row by row; the squared error of
    the probabilities over all classes (Brier, Mon Weather Rev 1950;78:1-3); -log p of the true class, p clipped to
    [eps, 1 - eps] of float64; and, by ``confidence_bin``, right (1 or 0) minus confidence."""
    rows, predicted = np.arange(len(cells.true)), cells.predicted
    confidence = cells.probs[rows, predicted]
    values = np.zeros((len(rows), k * k + 2 + BINS))
    values[rows, cells.true * k + predicted] = 1
    values[:, k * k] = ((cells.probs - np.eye(k)[cells.true]) ** 2).sum(1)
    values[:, k * k + 1] = -np.log(np.clip(cells.probs[rows, cells.true], EPS, 1 - EPS))
    values[rows, k * k + 2 + confidence_bin(confidence)] = (cells.true == predicted) - confidence
    sums = np.zeros((studies, values.shape[1]))
    np.add.at(sums, cells.study_index, values)
    return sums


def confidence_bin(confidence: np.ndarray) -> np.ndarray:
    """Which of ``BINS`` equal bins ((b - 1) / BINS, b / BINS] a top probability lies in, counted from 0."""
    return np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")


def _columns(matrix: np.ndarray, losses: np.ndarray, aucs: np.ndarray, precisions: np.ndarray) -> np.ndarray:
    """(B, parts) in the order of ``OrdinalMetric.parts``.

    matrix (B, K, K); losses (B, 2 + BINS) as ``study_sums`` has them; aucs and precisions (B, K + 1), the last column
    of which is the threshold's. The calibration error is the weight of a bin times |right - confidence|, summed (Naeini
    et al., AAAI 2015).
    """
    total, occurs = matrix.sum((1, 2)), matrix.sum(2) > 0
    by_class = aucs[:, :-1]
    pooled = (
        agreement.accuracy(matrix),
        agreement.balanced_accuracy(matrix),
        agreement.macro_f1(matrix),
        agreement.mean_absolute_error(matrix),
        mean_where(by_class, ~np.isnan(by_class)),
        aucs[:, -1],
        mean_where(precisions[:, :-1], occurs),
        share(losses[:, 0], total),
        share(losses[:, 1], total),
        share(np.abs(losses[:, 2:]).sum(1), total),
    )
    by_grade = (agreement.precisions(matrix), agreement.recalls(matrix), agreement.f1s(matrix))
    return np.column_stack([*pooled, *by_grade, agreement.quadratic_kappa(matrix)])
'''

SOURCE['osteograde/tasks/scores/ranking.py'] = r'''"""Area under the ROC curve and average precision of many resamples at once: sorted once, counted by cumulative sums.

Both only need, for every positive cell, how much weight lies at or above its score. Ties are exact: cells of one score
are one step of the curve. Letters: n cells, P positive cells, S studies, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from osteograde.tasks.scores.confusion import share


def ranked(
    scores: np.ndarray, true: np.ndarray, study_index: np.ndarray
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(AUC, average precision) as a function of how often each study counts: (S, B) -> (B,) and (B,).

    scores (n,) of cells, true (n,) booleans, study_index (n,) which study a cell is of. AUC: the chance that a
    positive cell scores above a negative one, ties counting half (the trapezium rule); NaN without either. Average
    precision: the sum over thresholds of precision times the step in recall, without interpolation (scikit-learn's
    definition); NaN without positive cells.
    """
    order = np.argsort(-scores, kind="stable")
    falling, positive = -scores[order], np.flatnonzero(true[order])
    above = np.searchsorted(falling, falling[positive], side="left")  # (P,) how many cells score higher,
    reached = np.searchsorted(falling, falling[positive], side="right")  # and how many at least as high
    positive_above, positive_reached = np.searchsorted(positive, above), np.searchsorted(positive, reached)
    studies, positive_studies = study_index[order], study_index[order][positive]

    def values(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = counts[positive_studies]
        cells, hits = _running(counts[studies]), _running(weight)
        called, found = cells[reached], hits[positive_reached]
        beaten_by = ((called - found) + (cells[above] - hits[positive_above])) / 2  # negatives; half of those tied
        hit, missed = hits[-1], cells[-1] - hits[-1]
        auc = share((weight * (missed - beaten_by)).sum(0), hit * missed)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return auc, share((weight * precision).sum(0), hit)

    return values


def _running(weight: np.ndarray) -> np.ndarray:
    """(n + 1, B): sums of the first 0, 1, ... n rows."""
    sums = np.zeros((len(weight) + 1, weight.shape[1]))
    np.cumsum(weight, axis=0, out=sums[1:])
    return sums
'''

SOURCE['osteograde/tasks/spider/__init__.py'] = r'''"""Lumbar discs on sagittal slices and stacks."""
'''

SOURCE['osteograde/tasks/spider/files.py'] = r'''"""Reading of `spider`: sagittal slices and stacks of lumbar spines, with the data set's tables or without any.

* ``<patient>_t1.*`` and ``<patient>_t2.*`` are two views of one study, ``<patient>``;
* ``<patient>_t2_SPACE.*`` is a study of its own, and so is the stack of ``<patient>_t2_SPACE_slice<k>.*``;
* any other picture or DICOM file is a study of its own, taken for T2; a folder of DICOM files is one study.

Tables (overview.csv, gradings.csv, boxes.csv) are looked for beside the images; without them pictures are taken to be
280 mm wide. Nothing that is graded depends on that: crops are as large as the patient's own discs lie apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from osteograde.imaging import raster
from osteograde.tasks.image_files import images, names, part_of
from osteograde.tasks.lumbar.names import LEVELS
from osteograde.tasks.spider import marks as spider_marks
from osteograde.tasks.study import Mark, Series, Study
from osteograde.tasks.tables import numbers, read_table, refuse, some

GRADES = ("1", "2", "3", "4", "5")
FINDINGS = {"narrowing": "disc narrowing", "bulging": "disc bulging"}
MASKS = "masks"  # folder of label images, never images to grade
_NAMED = re.compile(r"^(?P<patient>[0-9A-Za-z]+)_(?P<view>t1|t2)(?P<space>_SPACE)?(?:_slice(?P<slice>[0-9]+))?$")
GRADE_COLUMNS = ("row_id", "grade")
COLUMNS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {  # texts, needed and other numbers
    "overview.csv": (("new_file_name", "pixelspacing"), (), ("slicethickness", "spacingbetweenslices")),
    "gradings.csv": (("patient",), ("ivd label",), ("pfirrman grade", *FINDINGS.values())),
    "boxes.csv": (("slice",), ("ivd_label", "x0", "y0", "x1", "y1"), ()),
}


def level_of(label: int) -> str:
    """The level of a disc label, counted up from 1 = L5/S1; "" beyond the five lowest.

    >>> level_of(1), level_of(5), level_of(6)
    ('l5_s1', 'l1_l2', '')
    """
    return LEVELS[-label] if 1 <= label <= len(LEVELS) else ""


def patient_of(study: str) -> str:
    """The patient of a study's id; ids of other files are patients of their own."""
    told = re.match(r"^([0-9A-Za-z]+)_t2_SPACE(_stack)?$", study)
    return told[1] if told else study


def read(root: Path, part: str) -> list[Study]:
    """Every image below ROOT (for "test" ROOT/test_images where it exists) as studies; "train": with what is known.

    ValueError where there is no image, where a table is broken, or where nothing is known about any image.
    """
    root = Path(root)
    folder = part_of(root, part)
    files = [file for file in images(folder) if MASKS not in file.relative_to(folder).parts[:-1]]
    if not files:
        raise ValueError(f"{folder}: no image files (png, jpg, webp, tif, bmp, dcm); give the folder that holds them")
    first = {(file.parent, file.stem): file for file in reversed(files)}  # one of 1_t2.png and 1_t2.jpg is named so
    named = [file for file in files if _match(file) and first[file.parent, file.stem] == file]
    odd = sorted({*files} - {*named})
    placed = [*_named(named, _spacing(_table(root, "overview.csv"))), *_others(odd, folder)]
    called = names([place for place, _ in placed], folder)
    studies = [
        replace(study, id=name, patient=study.patient or name) for (_, study), name in zip(placed, called, strict=True)
    ]
    if part == "train":
        studies = _known(root, studies)
        if not studies:
            raise ValueError(f"{root}: gradings.csv, boxes.csv or masks say nothing about its images; nothing to learn")
    return sorted(studies, key=lambda study: study.id)


def _named(files: Sequence[Path], spacing: Mapping[str, tuple[float, float, float]]) -> Iterator[tuple[Path, Study]]:
    """Studies, yet without ids, of files that are called as the data set's, and paths that the ids are told from.

    Views of a patient may lie in different folders; where one file name comes twice, each folder has its own patients.
    """
    count = Counter(file.stem for file in files)
    groups: dict[tuple[str, str], list[tuple[Path, str]]] = defaultdict(list)
    for file in files:
        if told := _match(file):
            ending = f"_t2_SPACE{'_stack' if told['slice'] else ''}" if told["space"] else ""
            groups[told["patient"] + ending, told["patient"]].append((file, told["view"]))
    for (name, patient), group in groups.items():
        twice = any(count[file.stem] > 1 for file, _ in group)
        parts: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for file, view in group:
            parts[str(file.parent) if twice else ""][view].append(file)
        for views in parts.values():
            series = tuple(_series(view, views[view], spacing) for view in sorted(views, reverse=True))
            yield series[0].folder / f"{name}.study", Study("", patient, series)


def _series(view: str, files: list[Path], spacing: Mapping[str, tuple[float, float, float]]) -> Series:
    ordered = sorted(files, key=lambda file: (int((_match(file) or {"slice": 0})["slice"] or 0), file.name))
    name = re.sub(r"_slice[0-9]+$", "", ordered[0].stem)
    masks = tuple(file.parents[1] / MASKS / f"{file.stem}.png" for file in ordered)
    known = all(mask.is_file() for mask in masks)
    return Series(name, view, ordered[0].parent, tuple(ordered), spacing.get(name), masks=masks if known else ())


def _others(files: Sequence[Path], root: Path) -> Iterator[tuple[Path, Study]]:
    """The same of files of any other name: unknown contrast counts as T2. DICOM files of a folder are one study."""
    slices: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        if not raster.is_image(file):
            slices[file.parent].append(file)
        else:
            view = told["view"] if (told := _match(file)) else "t2"
            yield file, Study("", "", (Series(file.stem, view, file.parent, (file,)),))
    for folder, together in slices.items():
        if len(together) > 1:
            place = (root if folder == root else folder.parent) / f"{folder.absolute().name}.study"
            yield place, Study("", "", (Series(folder.absolute().name, "", folder),))
        else:
            file = together[0]
            yield file, Study("", "", (Series(file.stem, "", folder, (file,)),))


def _match(file: Path) -> re.Match[str] | None:
    return _NAMED.match(file.stem) if raster.is_image(file) else None


def _known(root: Path, studies: Sequence[Study]) -> list[Study]:
    """The studies that a table or a mask tells something about, with their labels, findings and marks."""
    boxes, grades = _table(root, "boxes.csv"), _grades(_table(root, "gradings.csv"))
    marks = spider_marks.of_boxes(boxes) if boxes is not None else {}
    found = []
    for study in studies:
        own: list[Mark] = []
        for series in study.series:
            own += marks.get(series.id, []) if not series.masks else spider_marks.of_masks(series)
        labels, findings = grades.get(study.patient, ({}, {}))
        if own or labels:
            found.append(Study(study.id, study.patient, study.series, labels, tuple(own), findings=findings))
    return found


def _grades(table: pd.DataFrame | None) -> dict[str, tuple[dict[str, int], dict[str, dict[str, int]]]]:
    """patient -> (level -> class index, finding -> level -> 0 or 1). Empty cells are unknown."""
    found: dict[str, tuple[dict[str, int], dict[str, dict[str, int]]]] = {}
    for row in table.to_dict("records") if table is not None else []:
        level = level_of(int(row["ivd label"]))
        if not level:
            continue
        labels, findings = found.setdefault(row["patient"], ({}, {name: {} for name in FINDINGS}))
        if 1 <= row["pfirrman grade"] <= len(GRADES):
            labels[level] = int(row["pfirrman grade"]) - 1
        for name, column in FINDINGS.items():
            if row[column] >= 0:
                findings[name][level] = int(row[column] > 0)
    return found


def _spacing(table: pd.DataFrame | None) -> dict[str, tuple[float, float, float]]:
    """series -> mm between (slices, rows, columns)."""
    found = {}
    for row in table.to_dict("records") if table is not None else []:
        told = re.fullmatch(r"\[\s*([0-9.]+)[\s,]+([0-9.]+)\s*\]", str(row["pixelspacing"]).strip())
        if not told:
            raise ValueError(
                f"overview.csv: PixelSpacing of {row['new_file_name']} is {row['pixelspacing']!r}; "
                'expected mm of rows and columns as "[0.5, 0.5]"'
            )
        step = row["spacingbetweenslices"] if row["spacingbetweenslices"] > 0 else row["slicethickness"]
        found[row["new_file_name"]] = (float(step), float(told[1]), float(told[2]))
    return found


def _table(root: Path, name: str) -> pd.DataFrame | None:
    """A table of the data set beside the images or up to two folders above them; None where there is none.

    ValueError where it is broken. Above the images, a table of that name without its columns is something else's.
    """
    ids, needed, others = COLUMNS[name]
    for path in (folder / name for folder in (root, *root.resolve().parents[:2])):
        if path.is_file() and (path.parent == root or _has_columns(path, (*ids, *needed, *others))):
            table = read_table(path, (*ids, *needed, *others), ids)
            for column in (*needed, *others):
                values = numbers(table[column])
                if column in needed:
                    refuse(path, table, pd.Series(np.isnan(values), table.index), column, "not a number")
                table[column] = values
            return table
    return None


def _has_columns(path: Path, columns: Sequence[str]) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = {name.strip().lower() for name in file.readline().split(",")}
    return {*columns} <= header


def labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {level: class index}} of a table row_id,grade. ValueError for unknown grades or levels."""
    table = pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    if not set(GRADE_COLUMNS) <= set(table.columns):
        raise ValueError(f"{path}: columns are {list(table.columns)}; expected {','.join(GRADE_COLUMNS)}")
    found: dict[str, dict[str, int]] = {}
    bad = []
    for row, grade in zip(table["row_id"], table["grade"], strict=True):
        level = next((name for name in LEVELS if str(row).endswith(f"_{name}")), "")
        if not level or grade not in GRADES:
            bad.append(row)
        else:
            found.setdefault(row[: -len(level) - 1], {})[level] = GRADES.index(grade)
    if bad:
        raise ValueError(f"{path}: rows without a known level and grade: {some(bad)}")
    return found
'''

SOURCE['osteograde/tasks/spider/marks.py'] = r'''"""Disc centres as boxes and masks give them. Levels are counted up from the lowest disc."""

from __future__ import annotations

from collections import defaultdict

import cv2
import numpy as np
import pandas as pd

from osteograde.imaging import raster
from osteograde.tasks.lumbar.names import LEVELS
from osteograde.tasks.study import Mark, Series

DISC, VERTEBRA, CANAL = 1, 2, 3
SMALL = 0.3  # a component below this share of the median disc's area is a fragment


def landmark(view: str, level: str) -> str:
    return f"{view}_disc_{level}"


def of_boxes(table: pd.DataFrame) -> dict[str, list[Mark]]:
    """series -> marks at the middles of boxes, x0 <= pixel < x1, of the five lowest discs."""
    found: dict[str, list[Mark]] = defaultdict(list)
    for row in table.to_dict("records"):
        label, series = int(row["ivd_label"]), str(row["slice"])
        if 1 <= label <= len(LEVELS):
            view = "t1" if series.endswith("_t1") else "t2"
            x, y = (row["x0"] + row["x1"] - 1) / 2, (row["y0"] + row["y1"] - 1) / 2
            found[series].append(Mark(landmark(view, LEVELS[-label]), series, series, float(x), float(y)))
    return dict(found)


def of_masks(series: Series) -> list[Mark]:
    """The five lowest discs of a stack, each where its middle slice of the canal shows it.

    The slice is the one with most canal in it: the midline, as the data set's own slices are near it.
    """
    masks = [raster.read_pixels(path) for path in series.masks]
    middle = int(np.argmax([(mask == CANAL).sum() for mask in masks]))
    discs = discs_of(masks[middle])
    return [
        Mark(landmark(series.view, level), series.id, series.files[middle].stem, float(x), float(y))
        for level, (x, y) in zip(reversed(LEVELS), discs, strict=False)
    ]


def discs_of(mask: np.ndarray) -> list[tuple[float, float]]:
    """(x, y) middles of the bounding boxes of the discs of a label image (H, W), the lowest first."""
    count, _, stats, centres = cv2.connectedComponentsWithStats((mask == DISC).astype(np.uint8), connectivity=8)
    if count < 2:
        return []
    stats, centres = stats[1:], centres[1:]
    kept = stats[:, cv2.CC_STAT_AREA] >= SMALL * np.median(stats[:, cv2.CC_STAT_AREA])
    left, top, width, height = (stats[kept, i] for i in range(4))
    middles = np.stack([left + (width - 1) / 2, top + (height - 1) / 2], 1)
    return [(float(x), float(y)) for x, y in middles[np.argsort(-centres[kept][:, 1])]]
'''

SOURCE['osteograde/tasks/spider/rois.py'] = r'''"""Boxes around discs: turned with the spine and as large as its own discs lie apart. Pure geometry, LPS mm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from osteograde.imaging import geometry
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks.boxes import along_the_line, onto_a_slice
from osteograde.tasks.contract import CropSpec, Pixels, Point, Points, Rois, Site, Volumes, sides, spacing_mm
from osteograde.tasks.lumbar.names import LEVELS
from osteograde.tasks.spider.marks import landmark

APART_MM = 36.0  # usual distance of neighbouring lumbar discs; fields are given for a spine like this
SCALE = (0.5, 3.0)  # beyond these the distances are not those of discs
FILLED = 0.01  # confidence of a point that was not seen


def complete(points: Points) -> Points:
    """The points found, and missing levels on the line of at least two others of the same view."""
    filled: dict[str, Point] = {}
    for view in ("t2", "t1"):
        known = {i: points[name].mm for i, level in enumerate(LEVELS) if (name := landmark(view, level)) in points}
        line = along_the_line(known, len(LEVELS))
        filled |= {landmark(view, LEVELS[i]): Point(np.asarray(mm, float), FILLED) for i, mm in line.items()}
    return {**filled, **points}


def apart_mm(discs: Mapping[int, np.ndarray]) -> float:
    """Median distance of neighbouring discs (level number -> mm); the usual one where no two are known."""
    steps = [np.linalg.norm(discs[b] - discs[a]) / (b - a) for a, b in pairwise(sorted(discs))]
    return float(np.median(steps)) if steps else APART_MM


def turn_of(discs: Mapping[int, np.ndarray], i: int, volume: Volume) -> float:
    """Radians by which the spine at disc i is turned in the slice plane: 0 where it runs straight down the image."""
    known = [j for j in (i - 1, i, i + 1) if j in discs]
    if len(known) < 2:
        return 0.0
    down, across = volume.axes[1:] @ (discs[known[-1]] - discs[known[0]])
    return float(np.arctan2(-across, down))


def rois(sites: Sequence[Site], crops: Sequence[CropSpec], volumes: Volumes, points: Points, pixels: Pixels) -> Rois:
    """{level: {view: (stack, box)}}: in each view around that view's own point. See ``contract.Grade``."""
    found: dict[str, dict[str, tuple[Volume, Roi]]] = {}
    for crop in crops:
        stacks = volumes.get(crop.view, ())
        discs = {i: points[name].mm for i, level in enumerate(LEVELS) if (name := landmark(crop.view, level)) in points}
        if not stacks or not discs:
            continue
        volume = max(stacks, key=lambda stack: (stack.voxels.shape[0], stack.series))  # where stage 1 looked
        scale = float(np.clip(apart_mm(discs) / APART_MM, *SCALE))
        for site in sites:
            i = LEVELS.index(site.level)
            if i in discs and geometry.outside_mm(volume, discs[i]) == 0:
                roi = _box(crop, volume, discs, i, scale, pixels)
                found.setdefault(site.target, {})[crop.view] = (volume, roi)
    return found


def _box(crop: CropSpec, volume: Volume, discs: Mapping[int, np.ndarray], i: int, scale: float, pixels: Pixels) -> Roi:
    step_mm = spacing_mm(crop.field_mm * scale, pixels)
    roi = geometry.roi_on(volume, onto_a_slice(volume, discs[i]), step_mm, (crop.slices, *sides(pixels)))
    angle = turn_of(discs, i, volume)
    centre = (np.array(roi.shape) - 1) / 2
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return replace(roi, to_mm=roi.to_mm @ turn)
'''

SOURCE['osteograde/tasks/spider/task.py'] = r'''"""The task `spider`: Pfirrmann grades 1 to 5 of the five lumbar discs on sagittal T2 and T1 slices.

Disc centres are found in each view, levels counted up from the lowest disc. A crop around each, turned with the spine
and as large as the patient's discs lie apart, is graded; narrowing and bulging are asked of the same net. Files:
files.py, marks: marks.py, boxes: rois.py.
"""

from __future__ import annotations

from functools import partial

from osteograde.tasks.contract import CropSpec, Grade, Landmark, Locate, Site, Task, View
from osteograde.tasks.lumbar.names import LEVELS
from osteograde.tasks.lumbar.task import SAGITTAL
from osteograde.tasks.prior import normalised
from osteograde.tasks.scores.ordinal import OrdinalMetric
from osteograde.tasks.spider import files as spider_files
from osteograde.tasks.spider import rois as spider_rois
from osteograde.tasks.spider.marks import landmark

VIEWS = ("t2", "t1")
FIELD_MM = 64.0  # a disc, half of the vertebrae beside it, and the canal behind it

# Discs per Pfirrmann grade in SPIDER's gradings.csv as given here (173 patients), by level.
COUNTS = {
    "l1_l2": (39, 51, 40, 31, 12),
    "l2_l3": (30, 42, 52, 30, 19),
    "l3_l4": (23, 37, 53, 40, 20),
    "l4_l5": (18, 19, 59, 44, 33),
    "l5_s1": (20, 17, 44, 45, 47),
}

SITES = tuple(
    Site(level, "pfirrmann", level, landmark=landmark("t2", level), also=(landmark("t1", level),)) for level in LEVELS
)
CROPS = tuple(CropSpec(view, 1, FIELD_MM) for view in VIEWS)
METRIC = OrdinalMetric(LEVELS, spider_files.GRADES)

TASK = Task(
    name="spider",
    slug="",
    views=tuple(View(view, f"sagittal {view.upper()}", SAGITTAL, needed=False) for view in VIEWS),
    classes=tuple(f"pfirrmann_{grade}" for grade in spider_files.GRADES),
    weights=(1.0,) * len(spider_files.GRADES),
    locate=(
        Locate(
            "disc",
            "t2",
            tuple(
                Landmark(landmark(view, level), channel=f"disc_{level}", view=view)
                for view in VIEWS
                for level in LEVELS
            ),
            field_mm=(300.0, 300.0),
            apart_mm=(14.0, 80.0),
            whole=True,
        ),
    ),
    grade=(
        Grade(
            "pfirrmann", SITES, CROPS, partial(spider_rois.rois, SITES, CROPS), findings=tuple(spider_files.FINDINGS)
        ),
    ),
    targets=LEVELS,
    prior={level: normalised(COUNTS[level]) for level in LEVELS},
    read=spider_files.read,
    labels=spider_files.labels,
    score=METRIC.score,
    counted=METRIC.counted,
    complete=spider_rois.complete,
    score_groups=METRIC.groups,
    patient=spider_files.patient_of,
    higher_is_better=METRIC.higher_is_better,
    confusion=METRIC.confusion,
)
'''

SOURCE['osteograde/tasks/study.py'] = r'''"""What a study is: a patient's examination as paths and what is known of it, and points in it. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from osteograde.imaging.geometry import Volume

Volumes = Mapping[str, Sequence[Volume]]  # view -> stacks, each oriented along the view's directions


@dataclass(frozen=True, eq=False)
class Point:
    """One landmark found: (3,) LPS mm, and a confidence in [0, 1]."""

    mm: np.ndarray
    confidence: float = 1.0


Points = Mapping[str, Point]  # landmark -> Point; absent landmarks are absent, never zero


@dataclass(frozen=True)
class Series:
    """Files of one view; nothing is read until somebody asks.

    files: image files or films by name; none = every DICOM file of the folder. spacing_mm: (slice, row, column) of
    image files whose pixels have no size of their own; None where nobody knows (``View.width_mm``). side: "right" or
    "left" where the whole image shows that side of the patient only. masks: label images of ``files``, one for one.
    """

    id: str
    view: str
    folder: Path
    files: tuple[Path, ...] = ()
    spacing_mm: tuple[float, float, float] | None = None
    side: str = ""
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Mark:
    """An annotated landmark as the tables give it: pixel (x, y) on one file of one series.

    x and y are NaN where it is known that the series does not show the landmark.
    """

    landmark: str
    series: str
    instance: str
    x: float
    y: float


@dataclass(frozen=True)
class Study:
    """A patient's examination: which series hold which view, and what is known of it (labels, marks).

    targets: the rows asked of this study; none = all of the task's. findings: finding -> target -> yes or no.
    """

    id: str
    patient: str
    series: tuple[Series, ...]
    labels: Mapping[str, int] = field(default_factory=dict)  # target -> class index; unlabelled targets are absent
    marks: tuple[Mark, ...] = ()
    targets: tuple[str, ...] = ()
    findings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
'''

SOURCE['osteograde/tasks/tables.py'] = r'''"""Reading competition tables and folders: text stays text, and what is wrong is said with file, rows and a way out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

ID = re.compile(r"(?=.*[0-9A-Za-z])[0-9A-Za-z._-]{1,64}")  # of a study, a series or a file, as a folder may be called
_FLOAT = re.compile(r"[0-9]+\.[0-9]*([eE]\+?[0-9]+)?")  # an integer that went through a spreadsheet: 4003253.0, 4.0e9


def some(values: Iterable[object], most: int = 5) -> str:
    """The first few of many, for a message.

    >>> some(range(9), 3)
    '0, 1, 2, ... (9 in all)'
    """
    texts = [str(value) for value in values]
    return ", ".join(texts[:most]) + (f", ... ({len(texts)} in all)" if len(texts) > most else "")


def lines(table: pd.DataFrame, bad: pd.Series) -> str:
    """The rows of a mask, counted as an editor counts lines: the header is line 1."""
    return "line " + some(int(row) + 2 for row in table.index[bad])


def id_text(text: str) -> str:
    """An identifier as text; integers that a spreadsheet turned into floats come back whole.

    >>> id_text(" 4.0e9 "), id_text("4003253.0"), id_text("007"), id_text("a.5")
    ('4000000000', '4003253', '007', 'a.5')
    """
    text = text.strip()
    if _FLOAT.fullmatch(text) and float(text) < 1e18 and float(text).is_integer():
        return str(int(float(text))) if "e" in text.lower() else text.split(".")[0]
    return text


def read_table(path: Path, columns: Sequence[str], ids: Sequence[str]) -> pd.DataFrame:
    """The named columns of a CSV as stripped text ("" = empty), identical rows once.

    Byte order marks, CRLF and column names in another case are accepted. ``ids``: the columns that hold identifiers.
    The index counts the file's rows from 0 (see ``lines``). ValueError where the file or a column is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the competition's tables belong next to the image folders")
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skip_blank_lines=False)
    except ValueError as error:  # empty, ragged or not UTF-8: pandas and the decoder raise kinds of ValueError
        raise ValueError(f"{path}: not a comma-separated table in UTF-8 ({error})") from error
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    missing = [name for name in columns if name not in table.columns]
    if missing:
        hint = "; it seems to be separated by semicolons, save it with commas" if ";" in "".join(table.columns) else ""
        raise ValueError(f"{path}: no column {some(missing)}; found {some(table.columns, 40)}{hint}")
    table = table[list(columns)].dropna(how="all").fillna("").apply(lambda column: column.str.strip())
    for name in ids:
        table[name] = table[name].map(id_text)
    return table.drop_duplicates()


def refuse(path: Path, table: pd.DataFrame, bad: pd.Series, column: str, what: str) -> None:
    """ValueError that names the lines and the cells of ``column`` where ``bad`` holds; nothing where none does."""
    if bad.any():
        raise ValueError(f"{path}: {lines(table, bad)}: {what}: {some(sorted(set(table.loc[bad, column].map(repr))))}")


def refuse_conflicts(path: Path, table: pd.DataFrame, key: Sequence[str]) -> None:
    """ValueError where rows agree in ``key`` and differ elsewhere."""
    twice = table.duplicated(list(key), keep=False)
    if twice.any():
        names = sorted({"/".join(row) for row in table.loc[twice, list(key)].itertuples(index=False)})
        raise ValueError(f"{path}: {lines(table, twice)}: rows contradict each other about {some(names)}; keep one")


def is_id(text: str) -> bool:
    """Whether a text may be used as the name of a folder.

    >>> is_id("4003253"), is_id(".."), is_id("a/b"), is_id("")
    (True, False, False, False)
    """
    return ID.fullmatch(text) is not None


def numbers(column: pd.Series) -> np.ndarray:
    """Floats of a text column; NaN where a cell is no number."""
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out; none where the folder does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def has_files(folder: Path) -> bool:
    """Whether a folder exists and holds at least one file."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_file() for entry in entries)


def under(folder: Path, root: Path) -> bool:
    """Whether a folder, links followed, lies in ``root`` (which must be resolved already)."""
    return folder.resolve().is_relative_to(root)
'''

if __name__ == "__main__":  # worker processes may import this file again and must not start a second run
    import pathlib
    import sys
    import tempfile

    with tempfile.TemporaryDirectory(prefix="osteograde-") as home:  # not the working folder: that is the output
        for name, text in SOURCE.items():
            path = pathlib.Path(home, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.path.insert(0, home)
        from osteograde.inference.kernel import kernel_main

        code = kernel_main(TASK, MANIFEST, DATA)
    sys.exit(code)

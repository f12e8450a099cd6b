"""One DICOM file to slices: pixels as the values that were measured, and where the file says they lie.

No tag but the size and the pixels is needed. What is declared is checked against caps and against the bytes present
before anything is allocated. Errors carry a code and never a tag's value, so that they can be counted and logged.

Numbers out of DICOM tags, where any tag may be missing, empty or nonsense; and what damaged files raise.

What a compressed frame says of its own size, read before a decoder allocates (ISO 10918-1, 14495-1, 15444-1).

The pixels of a DICOM data set as grey values, after everything declared was held against caps and bytes present.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    HTJ2K,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from osteograde.errors import UserError
from osteograde.imaging import files
from osteograde.imaging.dicom.fast_header import quick_read
from osteograde.imaging.dicom.rle import MAX_EXPANSION, MAX_PIXELS, decode_rle

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
    data, name = file_contents(path), _stem(path)
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
    complete_frames(dataset)
    frames = checked_frames(dataset)
    notes = fill_cut_pixels(dataset)
    if frames > 1 and not _frames_are_placed(dataset, frames):
        notes = (*notes, "frame_without_position")  # all lie where the file lies, if it says that much
    pixels = decoded_frames(dataset, frames)
    return tuple(_slice(dataset, pixels[k], k, frames, name, notes) for k in range(frames))


def file_contents(path: Path) -> memoryview:
    """The bytes of a file; UnreadableSlice beyond the cap and for an empty file."""
    try:
        data = files.read_bytes(Path(path), MAX_FILE_BYTES)
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


class UnreadableSlice(UserError):
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


def complete_frames(dataset: Dataset) -> None:
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
        if array is None and syntax in FAMILIES and not sizes_agree(dataset, frames):
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

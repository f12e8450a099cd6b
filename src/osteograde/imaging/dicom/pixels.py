"""The pixels of a DICOM data set as grey values, after everything declared was held against caps and bytes present.

What a compressed frame says of its own size is read before a decoder allocates (ISO 10918-1, 14495-1, 15444-1).
"""

from __future__ import annotations

import struct

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    HTJ2K,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from osteograde.imaging.dicom.other_decoders import decode_otherwise
from osteograde.imaging.dicom.rle import MAX_EXPANSION, MAX_PIXELS, decode_rle
from osteograde.imaging.dicom.tags import DAMAGE, Source, UnreadableSlice, number_of, texts_of, whole_of

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
    at = _frame_header(frame)
    return struct.unpack_from(">2H", frame, at + 5) if at else None


def stream_precision(frame: bytes) -> int | None:
    """Bits per sample that a JPEG or JPEG-LS stream declares; None where it is none."""
    at = _frame_header(frame)
    return frame[at + 4] if at else None


def _frame_header(frame: bytes) -> int:
    """Where the marker of a JPEG stream's frame header lies; 0 where there is none."""
    if frame[:2] != b"\xff\xd8":
        return 0
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _SIZES:
            return at
        at += 1 if marker == 0xFF else 2 if marker in _BARE else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return 0


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
            raise UnreadableSlice(_refusal(dataset))
        if array is None:
            array = dataset.pixel_array if _decodable(dataset) else decode_otherwise(dataset, frames)
        if array is None:
            raise UnreadableSlice(_refusal(dataset))
        grey = _grey(dataset, array, samples, stored, high)
    except UnreadableSlice:
        raise
    except DAMAGE:
        raise UnreadableSlice(_refusal(dataset)) from None
    if grey.size != frames * rows * columns:
        raise UnreadableSlice("pixels_damaged")
    return grey.reshape(frames, rows, columns)


def _refusal(dataset: Dataset) -> str:
    """Why frames were not decoded: their format has no decoder here, else they are damaged."""
    decodable = _decodable(dataset) and not _is_deep_jpeg(dataset)
    return "pixels_damaged" if decodable else f"no_decoder_{dataset.file_meta.TransferSyntaxUID.keyword}"


def _is_deep_jpeg(dataset: Dataset) -> bool:
    """Whether frames are JPEG Baseline or Extended with more than 8 bits, which the decoders at hand do not know."""
    if dataset.file_meta.TransferSyntaxUID not in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return False
    try:
        precision = stream_precision(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    except (*DAMAGE, StopIteration):
        return False
    return (precision or 8) > 8


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
    found, _ = is_inverted(dataset)
    words = _sign_extended(array, stored, high)
    values = measured_by_lut(dataset, words)
    if values is None:
        return without_padding(grey_values(array, found, stored, high), words, dataset)
    return without_padding(np.nanmax(values) - values if found else values, words, dataset)


def measured_by_lut(dataset: Dataset, words: np.ndarray) -> np.ndarray | None:
    """The values that a Modality LUT Sequence gives to stored words (PS3.3 C.11.1); None where there is none that can
    be used. It stands in place of rescale slope and intercept."""
    try:
        if not dataset.get("ModalityLUTSequence"):
            return None
        return apply_modality_lut(words, dataset).astype(np.float32)
    except DAMAGE:
        return None


def has_modality_lut(source: Source) -> bool:
    """Whether a Modality LUT gave the pixels their values, so that no rescaling is left to do."""
    return isinstance(source, Dataset) and measured_by_lut(source, np.zeros(1, np.uint16)) is not None


def is_inverted(source: Source) -> tuple[bool, tuple[str, ...]]:
    """Whether the stored values are brightest where the picture is dark, and codes of what the tags say about it.

    MONOCHROME1 inverts. A PresentationLUTShape that disagrees with it is counted ("polarity_contradicts"; PS3.3
    C.11.6.1.2 binds INVERSE to MONOCHROME1): INVERSE beside MONOCHROME2 is believed, since nobody writes it by default,
    IDENTITY beside MONOCHROME1 is not. A VOI LUT that falls from its first entry to its last inverts once more
    ("voi_lut_inverts").
    """
    if isinstance(source, dict) and "PresentationLUTShape" not in source:  # of a usual file
        return source["PhotometricInterpretation"] == "MONOCHROME1", ()
    inverted = _text_of(source, "PhotometricInterpretation") == "MONOCHROME1"
    shape, codes = _text_of(source, "PresentationLUTShape"), []
    if shape in ("INVERSE", "IDENTITY") and (shape == "INVERSE") != inverted:
        inverted = True
        codes.append("polarity_contradicts")
    if _voi_lut_falls(source):
        inverted = not inverted
        codes.append("voi_lut_inverts")
    return inverted, tuple(codes)


def _text_of(source: Source, keyword: str) -> str:
    return next(iter(texts_of(source, keyword)), "")


def _voi_lut_falls(source: Source) -> bool:
    """Whether the first VOI LUT gives low words high values: its mean value falls from the first to the last half."""
    try:
        items = source.get("VOILUTSequence")
        if not items:
            return False
        count, _, bits = (int(one) for one in items[0].LUTDescriptor)
        data = items[0].LUTData
        if isinstance(data, bytes):
            data = np.frombuffer(data, "<u2" if len(data) >= 2 * (count or 1 << 16) else np.uint8)
        entries = np.asarray(data, np.float64)[: count or 1 << 16]
    except DAMAGE:
        return False
    half = len(entries) // 2
    return half > 0 and bool(entries[-half:].mean() < entries[:half].mean() and 1 <= bits <= 16)


def without_padding(grey: np.ndarray, words: np.ndarray, source: Source) -> np.ndarray:
    """Grey values whose padding is darker than all else, so that windows leave it out (PS3.3 C.7.5.1.1.2).

    words: the stored values of the same pixels. Padding is what PixelPaddingValue names, up to PixelPaddingRangeLimit.
    """
    first = number_of(source, "PixelPaddingValue")
    if first is None or words.dtype.kind not in "iu" or words.shape != grey.shape:
        return grey
    limit = number_of(source, "PixelPaddingRangeLimit")
    low, high = sorted(_wrapped(int(value), words.dtype) for value in (first, first if limit is None else limit))
    padding = words == low if low == high else (words >= low) & (words <= high)
    rest = grey[~padding]
    if rest.size in (0, grey.size):
        return grey
    darkest = rest.min()
    if grey[padding].max() < darkest:
        return grey
    if grey.dtype.kind == "f" or darkest > np.iinfo(grey.dtype).min:
        darkest = darkest - 1
    return np.where(padding, grey.dtype.type(darkest), grey)


def _wrapped(value: int, dtype: np.dtype) -> int:
    """A number as a word of this type holds it: -1 and 65535 are one word."""
    bits = 8 * dtype.itemsize
    value %= 1 << bits
    return value - (1 << bits) if dtype.kind == "i" and value >= 1 << (bits - 1) else value


def grey_values(array: np.ndarray, inverted: bool, stored: int, high: int) -> np.ndarray:
    """Stored words as grey values, brighter is more: sign and unused bits put right, inverted where asked."""
    array = _sign_extended(array, stored, high)
    if not inverted:
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

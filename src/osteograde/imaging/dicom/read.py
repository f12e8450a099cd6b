"""One DICOM file to slices: pixels as the values that were measured, and where the file says they lie.

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
from osteograde.imaging.acquisition import UNKNOWN, Acquisition
from osteograde.imaging.dicom.acquisition_tags import acquisition_of, moment_of
from osteograde.imaging.dicom.fast_header import ACQUISITION, quick_read
from osteograde.imaging.dicom.pixels import (
    checked_frames,
    complete_frames,
    decoded_frames,
    fill_cut_pixels,
    grey_values,
    has_modality_lut,
    is_inverted,
    without_padding,
)
from osteograde.imaging.dicom.tags import (
    DAMAGE,
    Source,
    UnreadableSlice,
    number_of,
    numbers_of,
)

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
    acquisition: how the image was made. moment: when, a number or None for each of ``acquisition_tags.MOMENTS``.
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
    acquisition: Acquisition = UNKNOWN
    moment: tuple[float | None, ...] = ()


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
        inverted, codes = is_inverted(header)
        stored = header["BitsStored"]
        grey = grey_values(pixels, inverted, stored, header.get("HighBit", stored - 1))
        if "PixelPaddingValue" in header:
            words = grey_values(pixels, False, stored, header.get("HighBit", stored - 1))
            grey = without_padding(grey, words, header)
        return (_slice(header, grey, 0, 1, name, codes),)
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
    notes = (*fill_cut_pixels(dataset), *is_inverted(dataset)[1])
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
    slope = None if has_modality_lut(dataset) else number_of(values, "RescaleSlope")
    intercept = None if has_modality_lut(dataset) else number_of(values, "RescaleIntercept")
    return Slice(
        pixels=rescaled(pixels, slope, intercept),
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
        acquisition=acquisition_of(dataset, k) if isinstance(dataset, Dataset) else dataset[ACQUISITION],
        moment=moment_of(dataset, k),
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

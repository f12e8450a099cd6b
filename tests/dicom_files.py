"""Tiny DICOM files for tests: real bytes, every tag under control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # rows run to the back, columns to the feet
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
MR = UID("1.2.840.10008.5.1.4.1.1.4")
FRAME = "1.2.3.4"


def dataset(
    pixels: np.ndarray,
    *,
    position: Sequence[float] = (0.0, 0.0, 0.0),
    orientation: Sequence[float] = SAGITTAL,
    spacing: Sequence[float] = (0.5, 0.5),
    instance: int = 1,
    rle: bool = False,
    without: Sequence[str] = (),
    **tags: object,
) -> FileDataset:
    """One grey slice (rows, columns); ``tags`` are set last and ``without`` are then removed."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MR
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = MR, meta.MediaStorageSOPInstanceUID
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.itemsize
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, min(bits, 12), min(bits, 12) - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.ImagePositionPatient = [float(x) for x in position]
    made.ImageOrientationPatient = [float(x) for x in orientation]
    made.PixelSpacing = [float(x) for x in spacing]
    made.SpacingBetweenSlices, made.SliceThickness = 4.0, 3.5
    made.InstanceNumber, made.FrameOfReferenceUID = instance, FRAME
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    made["PixelData"].VR = "OW"
    if rle:
        made.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    for keyword in without:
        del made[keyword]
    return made


def write(path: Path, made: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def pattern(k: int, shape: tuple[int, int] = (16, 12)) -> np.ndarray:
    """A slice that tells its own number: its first pixel is 100 + k, the rest a ramp."""
    ramp = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape) + np.uint16(300)
    ramp[0, 0] = 100 + k
    return ramp


def write_series(folder: Path, count: int = 6, *, step: Sequence[float] = (4.0, 0.0, 0.0), **changes: object) -> Path:
    """Slices 0..count-1 along ``step``, named after their instance number; ``changes`` go to every slice."""
    origin = np.array(changes.pop("origin", (-10.0, 20.0, 30.0)), float)
    for k in range(count):
        place = origin + k * np.array(step)
        write(folder / f"{k + 1}.dcm", dataset(pattern(k), position=place, instance=k + 1, **changes))  # type: ignore[arg-type]
    return folder

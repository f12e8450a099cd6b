"""Frames that pydicom cannot decode here, through decoders that may be at hand: OpenCV, then SimpleITK.

OpenCV decodes JPEG Lossless of 8 bits and HTJ2K to the bit. SimpleITK, where somebody installed it, decodes all of
JPEG Lossless and JPEG-LS; it is looked for only when a frame needs it and is never imported otherwise. Plugins of
pydicom (pylibjpeg, GDCM) need no help: pydicom finds them itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGLossless,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
)

from osteograde.imaging.dicom.tags import DAMAGE, whole_of

_BY_OPENCV = frozenset({JPEGLossless, JPEGLosslessSV1, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL})
_JPEG_END = b"\xff\xd9"
_PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
)  # fmt: skip


def decode_otherwise(dataset: Dataset, frames: int) -> np.ndarray | None:
    """(frames, rows, columns) or (frames, rows, columns, 3) RGB as stored; None where nothing here decodes them."""
    found = by_opencv(dataset, frames)
    return by_simpleitk(dataset, frames) if found is None else found


def by_opencv(dataset: Dataset, frames: int) -> np.ndarray | None:
    """Frames of 8 or 16 bits that OpenCV decodes; None for other syntaxes, cut frames and images of another size."""
    if dataset.file_meta.TransferSyntaxUID not in _BY_OPENCV:
        return None
    depth = np.uint8 if whole_of(dataset, "BitsAllocated", 8) == 8 else np.uint16
    samples = whole_of(dataset, "SamplesPerPixel", 1)
    shape = (whole_of(dataset, "Rows", 0), whole_of(dataset, "Columns", 0), *([samples] if samples > 1 else []))
    decoded = []
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
        if frame[:2] == b"\xff\xd8" and _JPEG_END not in frame[-4:]:  # OpenCV would fill the rest with grey
            return None
        try:
            image = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            return None
        if image is None or image.dtype != depth or image.shape != shape:
            return None
        decoded.append(image if image.ndim == 2 else image[..., ::-1])
    return np.stack(decoded) if len(decoded) == frames else None


def by_simpleitk(dataset: Dataset, frames: int) -> np.ndarray | None:
    """The same through SimpleITK, from a file of its own that holds nothing but the pixels; None where it is not
    installed or gives up."""
    if importlib.util.find_spec("SimpleITK") is None:
        return None
    sitk = importlib.import_module("SimpleITK")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.dcm"
        try:
            _pixels_alone(dataset).save_as(path, enforce_file_format=True)
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except DAMAGE:  # SimpleITK raises RuntimeError
            return None
    samples = whole_of(dataset, "SamplesPerPixel", 1)
    shape = (frames, whole_of(dataset, "Rows", 0), whole_of(dataset, "Columns", 0), *([samples] if samples > 1 else []))
    return array.reshape(shape) if array.size == np.prod(shape) else None


def _pixels_alone(dataset: Dataset) -> FileDataset:
    """A secondary capture of the pixels: no rescaling that the decoder would apply, and nothing of a person."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, UID("1.2.3")
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for keyword in _PIXELS:
        if keyword in dataset:
            made[keyword] = dataset[keyword]
    return made

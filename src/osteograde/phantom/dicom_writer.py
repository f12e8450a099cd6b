"""Write synthetic images as DICOM files. No file holds data of a person.

Slices are written as those of the competition: RLE Lossless, 12 bits stored in 16, few tags. Their SOP class is
Enhanced MR Image Storage although each file holds one frame, and they have no Modality, no rescale and no window.

Films are written as digital radiographs: uncompressed, 12 bits stored in 16.

RLE Lossless is that of PS3.5 annex G. OpenCV's TIFF writer does the PackBits encoding, which is fast.
"""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid

from osteograde.phantom.acquisition import Acquisition, Plane

ENHANCED_MR = UID("1.2.840.10008.5.1.4.1.1.4.1")


def uid(*parts: object) -> UID:
    """A UID that depends on nothing but ``parts``."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def decimal(value: float) -> str:
    """A number as a DICOM decimal string, which has at most 16 bytes."""
    return f"{value:.6f}"[:16]


def write_slice(
    path: Path, pixels: np.ndarray, acquisition: Acquisition, plane: Plane, study: str, series: str
) -> None:
    """Write one slice. pixels: (rows, columns) uint16 of 12 bits. The columns of ``plane.to_mm`` are the steps of
    (slice, row, column); ImageOrientationPatient gives the direction along a row first."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds.file_meta.MediaStorageSOPClassUID = ENHANCED_MR
    instance = uid("instance", study, series, plane.number)
    ds.file_meta.MediaStorageSOPInstanceUID = instance
    ds.SOPClassUID, ds.SOPInstanceUID = ENHANCED_MR, instance
    ds.PatientID = study
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("study", study), uid("series", study, series)
    ds.FrameOfReferenceUID = uid("frame", study)
    ds.InstanceNumber = plane.number
    down, along = plane.to_mm[:3, 1], plane.to_mm[:3, 2]
    spacing = [float(np.linalg.norm(down)), float(np.linalg.norm(along))]
    ds.ImagePositionPatient = [decimal(v) for v in plane.to_mm[:3, 3]]
    ds.ImageOrientationPatient = [decimal(v) for v in (*(along / spacing[1]), *(down / spacing[0]))]
    ds.PixelSpacing = [decimal(v) for v in spacing]  # rows first: the step down the image, then the step along it
    ds.SliceThickness = decimal(acquisition.thickness_mm)
    ds.SpacingBetweenSlices = decimal(acquisition.step_mm)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = encapsulate([encode_rle(pixels)])
    ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)


DIGITAL_XRAY = UID("1.2.840.10008.5.1.4.1.1.1.1")
WHITE = 4095


def write_film(path: Path, pixels: np.ndarray, pixel_mm: float, study: str, *, monochrome1: bool = False) -> None:
    """Write a film. pixels: (H, W) uint8, bone bright. pixel_mm: its ImagerPixelSpacing. monochrome1: the grey values
    are stored inverted."""
    stored = pixels.astype(np.uint16) * 16
    stored = WHITE - stored if monochrome1 else stored
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = DIGITAL_XRAY
    instance = uid("film", study)
    ds.file_meta.MediaStorageSOPInstanceUID = instance
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = DIGITAL_XRAY, instance, "DX"
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = study, uid("study", study), uid("series", study)
    ds.ImagerPixelSpacing = [decimal(pixel_mm)] * 2
    ds.PatientOrientation = ["L", "F"]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if monochrome1 else "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = stored.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


TIFF_COMPRESSION, TIFF_ROWS_PER_STRIP, PACKBITS = 259, 278, 32773
STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279
SIZES = {3: ("H", 2), 4: ("I", 4)}  # TIFF field types that hold offsets and counts


def encode_rle(pixels: np.ndarray) -> bytes:
    """One frame (rows, columns) of uint16 as an RLE Lossless fragment: two segments, the high byte plane first."""
    planes = [packbits((pixels >> shift).astype(np.uint8)) for shift in (8, 0)]
    planes = [plane + b"\0" * (len(plane) % 2) for plane in planes]
    offsets = [64, 64 + len(planes[0])]
    return struct.pack("<16I", 2, *offsets, *[0] * 13) + b"".join(planes)


def packbits(plane: np.ndarray) -> bytes:
    """PackBits of a byte plane (rows, columns) uint8. Each row is encoded by itself, as the standard demands.

    RuntimeError where this OpenCV cannot write such a TIFF.
    """
    rows = plane.shape[0]
    options = [TIFF_COMPRESSION, PACKBITS, TIFF_ROWS_PER_STRIP, rows]
    done, encoded = cv2.imencode(".tif", np.ascontiguousarray(plane), options)
    if not done:
        raise RuntimeError(f"OpenCV {cv2.__version__} could not write a PackBits TIFF of {plane.shape}")
    data = encoded.tobytes()
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack_from(order + "I", data, 4)[0]
    fields = {}
    for i in range(struct.unpack_from(order + "H", data, directory)[0]):
        tag, kind, count, _ = struct.unpack_from(order + "HHII", data, directory + 2 + 12 * i)
        if tag in (STRIP_OFFSETS, STRIP_BYTE_COUNTS):
            code, size = SIZES[kind]
            at = directory + 10 + 12 * i
            at = at if count * size <= 4 else struct.unpack_from(order + "I", data, at)[0]
            fields[tag] = struct.unpack_from(f"{order}{count}{code}", data, at)
    strips = zip(fields[STRIP_OFFSETS], fields[STRIP_BYTE_COUNTS], strict=True)
    return b"".join(data[start : start + size] for start, size in strips)

"""Slices as DICOM files like those of the competition: RLE Lossless, 12 bits stored in 16, few tags.

SOP class Enhanced MR Image Storage, yet one frame per file; no Modality, no rescale, no window, nothing of a person.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, RLELossless, generate_uid

from osteograde.phantom.acquisition import Acquisition, Plane
from osteograde.phantom.writers.rle_encode import encode_rle

ENHANCED_MR = UID("1.2.840.10008.5.1.4.1.1.4.1")


def uid(*parts: object) -> UID:
    """A UID that depends on the parts alone."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def decimal(value: float) -> str:
    """A decimal string of at most 16 bytes."""
    return f"{value:.6f}"[:16]


def write_slice(
    path: Path, pixels: np.ndarray, acquisition: Acquisition, plane: Plane, study: str, series: str
) -> None:
    """Write one plane. ``to_mm`` columns are steps of (slice, row, column); DICOM wants row direction first."""
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

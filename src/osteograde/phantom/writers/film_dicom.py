"""A film as a DICOM file: digital radiograph, uncompressed, 12 bits in 16, no data of any person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from osteograde.phantom.dicom_writer import decimal, uid

DIGITAL_XRAY = UID("1.2.840.10008.5.1.4.1.1.1.1")
WHITE = 4095


def write_film(path: Path, pixels: np.ndarray, pixel_mm: float, study: str, *, monochrome1: bool = False) -> None:
    """Write (H, W) uint8, bone bright, as a file of ``ImagerPixelSpacing`` pixel_mm; MONOCHROME1 stores it inverted."""
    words = pixels.astype(np.uint16) * 16
    words = WHITE - words if monochrome1 else words
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
    ds.PixelData = words.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)

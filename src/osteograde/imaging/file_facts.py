"""What the header of one image file says of how it was made: codec, size of its pixels, plane, maker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom.uid import UID

from osteograde.imaging.dicom.header import header_of
from osteograde.imaging.file_kind import DICOM_IMAGE, PICTURE, kind_of_file
from osteograde.imaging.volume_files import is_volume_file

TAGS = (
    "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "ImageOrientationPatient", "Manufacturer", "PhotometricInterpretation",
    "MagneticFieldStrength", "BitsStored", "Modality",
)  # fmt: skip
PLANES = ("sagittal", "coronal", "axial")  # by the LPS axis that the normal of the slices is nearest to
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True)
class FileFacts:
    """What a header says, as texts for a table; "" where it says nothing. rows, columns: of the image, 0 where it says
    nothing. plane: of the slices. codec: the name of the transfer syntax of a DICOM file, the format of another."""

    rows: int = 0
    columns: int = 0
    spacing_mm: str = ""
    slice_mm: str = ""
    plane: str = ""
    codec: str = ""
    maker: str = ""
    tesla: str = ""
    modality: str = ""
    bits: str = ""
    is_dicom: bool = False


def facts_of(path: Path) -> FileFacts:
    """The facts of a file. Nothing is raised: a file that cannot be read says nothing."""
    if is_volume_file(path):
        name = path.name.lower()
        return FileFacts(codec="NIfTI" + " packed" * name.endswith(".gz") if ".nii" in name else "MetaImage")
    kind = kind_of_file(path)
    if kind == PICTURE:
        return _of_picture(path)
    return _of_dicom(path) if kind == DICOM_IMAGE else FileFacts()


def _of_picture(path: Path) -> FileFacts:
    try:
        with Image.open(path) as image:
            return FileFacts(image.height, image.width, codec=str(image.format), bits=f"mode {image.mode}")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return FileFacts()


def _of_dicom(path: Path) -> FileFacts:
    header = header_of(path, TAGS)
    meta = getattr(header, "file_meta", {})
    syntax = str(meta.get("TransferSyntaxUID") or "")
    spacing = next((found for tag in _SPACINGS if (found := rounded(header.get(tag)))), "")
    return FileFacts(
        rows=int(header.get("Rows") or 0),
        columns=int(header.get("Columns") or 0),
        spacing_mm=spacing,
        slice_mm=rounded([header.get("SpacingBetweenSlices") or header.get("SliceThickness") or ""]),
        plane=plane_of(header.get("ImageOrientationPatient")),
        codec=UID(syntax).name if syntax else "",
        maker=str(header.get("Manufacturer") or ""),
        tesla=rounded([header.get("MagneticFieldStrength") or ""]),
        modality=str(header.get("Modality") or ""),
        bits=f"{header.get('BitsStored')} bits" if header.get("BitsStored") else "",
        is_dicom=True,
    )


def rounded(values: Sequence[object] | None, digits: int = 1) -> str:
    """Numbers as a text with a few digits behind the point; "" where they are none.

    >>> rounded(["0.51", 0.5]), rounded(None), rounded(["wide"])
    ('0.5 x 0.5', '', '')
    """
    try:
        return " x ".join(f"{float(str(value)):.{digits}f}" for value in values or ())
    except ValueError:
        return ""


def plane_of(cosines: Sequence[object] | None) -> str:
    """The plane of slices, by the directions of their rows and columns (six numbers, LPS); "" where they are none."""
    try:
        row, column = np.array([float(str(value)) for value in cosines or ()]).reshape(2, 3)
    except ValueError:
        return ""
    return PLANES[int(np.argmax(np.abs(np.cross(row, column))))]

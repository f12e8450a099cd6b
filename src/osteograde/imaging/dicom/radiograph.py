"""One DICOM radiograph (CR, DX, RG or a secondary capture) as a picture with bone bright, and what it says of itself.

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

from osteograde.imaging.dicom.film_views import body_parts_of, film_codes
from osteograde.imaging.dicom.pixels import (
    checked_frames,
    complete_frames,
    decoded_frames,
    fill_cut_pixels,
    has_modality_lut,
    is_inverted,
)
from osteograde.imaging.dicom.read import DEFLATED, file_contents, parsed, rescaled
from osteograde.imaging.dicom.rle import MAX_PIXELS
from osteograde.imaging.dicom.tags import DAMAGE, UnreadableSlice, number_of, numbers_of, quiet_pydicom, whole_of
from osteograde.imaging.image_files import UnreadableImage

SPACING_MM = (0.02, 5.0)  # beyond these it is a typing error
_SPACINGS = ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing")
MAX_ASPECT = 10.0
_OUTLINE = ["Rows", "Columns", "PixelAspectRatio", "ImageLaterality", "Laterality", *_SPACINGS]
_SIDES = {"R": "right", "L": "left", "B": "both"}


@dataclass(frozen=True, eq=False)
class Film:
    """pixels: (H, W), bone bright, the patient's left on the image right where the file says how it lies; integers as
    stored or, rescaled or from colours, float32. pixel_mm: steps between (rows, columns), None where no tag gives a
    sensible one. pixel_height: of a pixel whose size is not known, its height in its own widths. laterality: "right",
    "left", "both" or "" (unknown). body_parts: what the header calls the part of the body. codes: what was assumed or
    repaired, and what the tags say against a frontal view (``film_views``), counted."""

    pixels: np.ndarray
    pixel_mm: tuple[float, float] | None = None
    pixel_height: float = 1.0
    laterality: str = ""
    body_parts: tuple[str, ...] = ()
    codes: Counter[str] = field(default_factory=Counter)


def read_film(path: Path) -> Film:
    """The first image of a DICOM file, which is opened once. Raises UnreadableImage with a code of the slice reader."""
    with quiet_pydicom():
        try:
            return _film(parsed(file_contents(path)))
        except UnreadableSlice as error:
            raise UnreadableImage(error.code) from None
        except DAMAGE:  # any tag may turn out to be nonsense when it is looked at
            raise UnreadableImage("damaged_header") from None


def film_outline(path: Path) -> tuple[int, int, str, float]:
    """(width, height, laterality, width in mm) as the header says, 0 mm where it does not; no pixel is read.

    The height of pixels that are not square is given in their widths. Raises UnreadableImage.
    """
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
    height = height if steps_mm else round(height * _pixel_height(dataset))
    return width, height, _laterality(dataset, Counter()), width * steps_mm[1] if steps_mm else 0.0


def _header(path: Path) -> Dataset:
    with path.open("rb") as file:
        if DEFLATED in file.read(2048):  # opening inflates the whole file, so it is held against its cap first
            return parsed(file_contents(path))
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_OUTLINE)


def _film(dataset: Dataset) -> Film:
    if not dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
        raise UnreadableSlice("unknown_syntax")
    complete_frames(dataset)
    codes: Counter[str] = Counter()
    frames = checked_frames(dataset)
    if frames > 1:
        _keep_first_frame(dataset, frames)
        codes["several_frames"] += 1
    codes.update(fill_cut_pixels(dataset))
    pixels = decoded_frames(dataset, 1)[0]
    codes.update(is_inverted(dataset)[1])
    codes.update(film_codes(dataset))
    if not has_modality_lut(dataset):
        pixels = rescaled(pixels, number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept"))
    return Film(
        pixels=_turned(dataset, pixels, codes),
        pixel_mm=_pixel_mm(dataset, codes),
        pixel_height=_pixel_height(dataset),
        laterality=_laterality(dataset, codes),
        body_parts=body_parts_of(dataset),
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


def _pixel_height(dataset: Dataset) -> float:
    """The height of a pixel over its width by PixelAspectRatio (PS3.3 C.7.6.3.1.7), 1 where it makes no sense."""
    ratio = numbers_of(dataset, "PixelAspectRatio", 2)
    if ratio is None or min(ratio) <= 0 or not 1 / MAX_ASPECT <= ratio[0] / ratio[1] <= MAX_ASPECT:
        return 1.0
    return float(ratio[0] / ratio[1])


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

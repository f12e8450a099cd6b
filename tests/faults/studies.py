"""Small healthy studies to break: a lumbar phantom with six pixels averaged to one, every file rewritten plainly."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from osteograde import phantom
from osteograde.imaging.dicom import read_slice

FACTOR = 6
VIEWS = {"sag_t1": "Sagittal T1", "sag_t2": "Sagittal T2/STIR", "axi_t2": "Axial T2"}
KEPT = {"sag_t1": 2, "sag_t2": 2, "axi_t2": 2}  # every second slice, with the spacing that goes with it
PATIENT = {"PatientName": "Doe^Jane", "PatientID": "P-4711", "PatientBirthDate": "19561112", "AccessionNumber": "A-9"}


@dataclass
class Study:
    """One study that a case may change: its folder of series, and how its table describes them."""

    folder: Path
    described: dict[str, str]  # series id -> description

    def series(self, view: str) -> Path:
        return self.folder / view

    def files(self, view: str) -> list[Path]:
        return sorted(self.series(view).iterdir(), key=lambda path: int(path.stem))

    def third(self, view: str = "sag_t2") -> Path:
        return self.files(view)[2]

    def each(self, change: Callable[[Dataset], None], view: str = "sag_t2", **how: object) -> None:
        """Rewrite every file of a series."""
        for path in self.files(view):
            rewrite(path, change, **how)


def rewrite(path: Path, change: Callable[[Dataset], None], **how: object) -> None:
    made = pydicom.dcmread(path)
    change(made)
    pydicom.dcmwrite(path, made, **{"enforce_file_format": True, **how})  # type: ignore[arg-type]


def write_healthy(folder: Path) -> Path:
    """Write the healthy study into ``folder``: series named after their views, files 1.dcm, 2.dcm, ..."""
    phantom.write("lumbar-mr", folder / "phantom", studies=0, test=1, seed=5)
    with (folder / "phantom" / "test_series_descriptions.csv").open(newline="") as file:
        described = {row["series_description"]: row for row in csv.DictReader(file)}
    for view, description in VIEWS.items():
        row = described[description]
        source = folder / "phantom" / "test_images" / row["study_id"] / row["series_id"]
        paths = sorted(source.iterdir(), key=lambda path: int(path.stem))[:: KEPT[view]]
        (folder / "healthy" / view).mkdir(parents=True)
        for k, path in enumerate(paths):
            made = _small(path, k + 1, KEPT[view])
            pydicom.dcmwrite(folder / "healthy" / view / f"{k + 1}.dcm", made, enforce_file_format=True)
    return folder / "healthy"


def _small(path: Path, number: int, skipped: int) -> Dataset:
    """The file with FACTOR x FACTOR pixels averaged to one, uncompressed, with a name in it that no log may hold."""
    made, pixels = pydicom.dcmread(path), read_slice(path).pixels
    rows, columns = (size // FACTOR for size in pixels.shape)
    blocks = pixels[: rows * FACTOR, : columns * FACTOR].reshape(rows, FACTOR, columns, FACTOR)
    small = np.rint(blocks.mean((1, 3))).astype("<u2")
    along, down = np.array(made.ImageOrientationPatient, float).reshape(2, 3)
    step = np.array(made.PixelSpacing, float)
    middle = (FACTOR - 1) / 2
    place = np.array(made.ImagePositionPatient, float) + middle * (along * step[1] + down * step[0])
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.ImagePositionPatient = [f"{value:.5f}" for value in place]
    made.PixelSpacing = [f"{value:.6f}" for value in step * FACTOR]
    made.SpacingBetweenSlices = f"{float(made.SpacingBetweenSlices) * skipped:.4f}"
    made.Rows, made.Columns, made.InstanceNumber = rows, columns, number
    set_pixels(made, small)
    for keyword, value in PATIENT.items():
        setattr(made, keyword, value)
    return made


def set_pixels(made: Dataset, pixels: np.ndarray) -> None:
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    if "is_undefined_length" in dir(made["PixelData"]):
        made["PixelData"].is_undefined_length = False


def stored(made: Dataset) -> np.ndarray:
    """The words of an uncompressed 16-bit file."""
    return np.frombuffer(made.PixelData, "<u2", made.Rows * made.Columns).reshape(made.Rows, made.Columns)


def write_table(data: Path, studies: dict[str, Study]) -> None:
    """test_series_descriptions.csv of studies by their ids."""
    with (data / "test_series_descriptions.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("study_id", "series_id", "series_description"))
        out.writerows(
            (name, series, text) for name, study in studies.items() for series, text in study.described.items()
        )


def elements(made: Dataset) -> Iterator[str]:
    """Every value of a data set that could tell who the patient is."""
    yield from (str(made.get(keyword)) for keyword in PATIENT if keyword in made)


def syntax(uid: str) -> Callable[[Dataset], None]:
    """A change that declares another transfer syntax and leaves the bytes."""

    def change(made: Dataset) -> None:
        made.file_meta.TransferSyntaxUID = UID(uid)

    return change

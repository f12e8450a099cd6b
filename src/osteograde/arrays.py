"""Arrays as studies: written as image files into a folder that lasts as long as the run, and read as all others are.

So an array is graded exactly as the file would be that holds it: a film as a DICOM radiograph with its pixel size and
side, a stack as a MetaImage volume with its place in LPS mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from osteograde.errors import UserError
from osteograde.imaging.geometry import roi_at
from osteograde.tasks.spec import Series, Study, Task, View
from osteograde.tasks.tables import ID

LATERALITY = {"right": "R", "left": "L", "both": "B"}
DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}  # LPS
META_TYPES = {
    "u1": "MET_UCHAR", "i1": "MET_CHAR", "u2": "MET_USHORT", "i2": "MET_SHORT", "u4": "MET_UINT", "i4": "MET_INT",
    "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip
MOST = 65535  # grey value of a film


@dataclass(frozen=True, eq=False)
class Image:
    """An array to be graded.

    pixels: (rows, columns) of a film, bone bright; (slices, rows, columns) of a stack. spacing_mm: distance between
    neighbouring pixels along each axis of the array, or one number for all of them. side: of a film, "right", "left" or
    "both". orientation: of a stack, the directions in which slices, rows and columns follow each other, three letters
    of L R (the patient's left, right), A P (front, back), S I (head, feet): "LIP" of a sagittal stack that begins on
    the right. view: which of the task's views a stack is, where the task has several. name: the study's id; stacks of
    one name are series of one study.
    """

    pixels: np.ndarray
    spacing_mm: float | Sequence[float]
    side: str = ""
    orientation: str = ""
    view: str = ""
    name: str = "image"


def studies_of(task: Task, images: Sequence[Image], folder: Path) -> list[Study]:
    """The images as studies, in their order; ``folder``, which is empty, holds their files.

    UserError where an image lacks what the task needs (``Image``), or is no array of grey values.
    """
    for image in images:
        if not ID.fullmatch(image.name):
            raise UserError(f"image {image.name!r}: names have letters, digits, dots, _ and -, at most 64")
    are_films = task.views[0].projection
    studies = _films(task, images, folder) if are_films else _stacks(task, images, folder)
    by_id = {study.id: study for study in studies}
    return [by_id[name] for name in dict.fromkeys(image.name for image in images)]


def _films(task: Task, images: Sequence[Image], folder: Path) -> list[Study]:
    """As the task reads single files: it decides what a film shows."""
    if task.read_files is None:
        raise UserError(f"{task.name} reads folders of studies, no single images")
    names = [image.name for image in images]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"several films are called {twice[0]!r}; give each a name of its own")
    files = [folder / f"{image.name}.dcm" for image in images]
    for path, image in zip(files, images, strict=True):
        _write_film(path, image)
    studies = task.read_files(folder, files)
    for study in studies:
        if task.assumed_side and task.assumed_side in study.notes:
            raise UserError(f"image {study.id!r}: nothing tells which side it shows; give side: right, left or both")
    return studies


def _stacks(task: Task, images: Sequence[Image], folder: Path) -> list[Study]:
    series: dict[str, list[Series]] = {}
    for number, image in enumerate(images):
        view = _view_of(task, image)
        path = folder / f"{number}.mha"
        _write_stack(path, image)
        series.setdefault(image.name, []).append(Series(f"{image.name}_{view.name}", view.name, folder, (path,)))
    for name, own in series.items():
        views = [one.view for one in own]
        if twice := sorted({view for view in views if views.count(view) > 1}):
            raise UserError(
                f"study {name!r} has several stacks of view {twice[0]!r}; give each study a name of its own"
            )
    return [Study(name, name, tuple(own)) for name, own in series.items()]


def _view_of(task: Task, image: Image) -> View:
    known = {view.name: view for view in task.views}
    if not image.view and len(known) == 1:
        return task.views[0]
    if image.view not in known:
        raise UserError(f"image {image.name!r}: view is {image.view!r}; {task.name} has {', '.join(known)}")
    return known[image.view]


def _array(image: Image, axes: int, what: str) -> np.ndarray:
    """The pixels, checked. UserError where they have another number of axes or are no numbers."""
    pixels = np.asarray(image.pixels)
    if pixels.ndim != axes or 0 in pixels.shape or pixels.dtype.kind not in "buif":
        raise UserError(
            f"image {image.name!r}: got shape {pixels.shape} of {pixels.dtype}, expected grey values of {what}"
        )
    return pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels


def _spacing(image: Image, axes: int) -> tuple[float, ...]:
    given = np.atleast_1d(np.asarray(image.spacing_mm, dtype=float))
    values = tuple(np.repeat(given, axes).tolist() if given.shape == (1,) else given.tolist())
    if given.ndim != 1 or len(values) != axes or not all(np.isfinite(v) and v > 0 for v in values):
        raise UserError(
            f"image {image.name!r}: spacing_mm is {image.spacing_mm!r}; expected one number above 0, or {axes}: "
            f"{'slices, rows, columns' if axes == 3 else 'rows, columns'}"
        )
    return values


def _write_film(path: Path, image: Image) -> None:
    """A digital radiograph in the standard view, the patient's left on the image right."""
    if image.side and image.side not in LATERALITY:
        raise UserError(f"image {image.name!r}: side is {image.side!r}; expected right, left or both")
    pixels = _grey(_array(image, 2, "a film: (rows, columns)"))
    bits = 8 * pixels.dtype.itemsize
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(entropy_srcs=[image.name])
    ds.Modality, ds.PatientOrientation = "DX", ["L", "F"]
    if image.side:
        ds.ImageLaterality = LATERALITY[image.side]
    ds.ImagerPixelSpacing = [f"{mm:.10g}"[:16] for mm in _spacing(image, 2)]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits, bits - 1, 0
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 grey values: as they are where they fit, else stretched from the least to the most."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind in "ui" and pixels.min() >= 0 and pixels.max() <= MOST:
        return pixels.astype(np.uint16)
    finite = np.isfinite(pixels)
    least, most = (float(pixels[finite].min()), float(pixels[finite].max())) if finite.any() else (0.0, 0.0)
    scale = MOST / (most - least) if most > least else 0.0
    return np.rint((np.where(finite, pixels, least) - least) * scale).astype(np.uint16)


def _write_stack(path: Path, image: Image) -> None:
    """A MetaImage volume whose middle lies at the origin of the patient's coordinates."""
    pixels = _array(image, 3, "a stack: (slices, rows, columns)")
    kind = f"{pixels.dtype.kind}{pixels.dtype.itemsize}"
    if kind not in META_TYPES:
        pixels, kind = pixels.astype(np.float64), "f8"
    axes = np.array([DIRECTIONS.get(letter, (0, 0, 0)) for letter in image.orientation.upper()], dtype=float)
    if axes.shape != (3, 3) or abs(np.linalg.det(axes)) != 1:
        raise UserError(
            f"image {image.name!r}: orientation is {image.orientation!r}; expected the directions of slices, rows and "
            'columns as letters of L or R, A or P, S or I, such as "LIP"'
        )
    spacing = _spacing(image, 3)
    grid = roi_at(np.zeros(3), axes, np.array(spacing), pixels.shape)
    header: Mapping[str, object] = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "TransformMatrix": " ".join(f"{value:g}" for value in axes[::-1].ravel()),
        "Offset": " ".join(repr(float(value)) for value in grid.to_mm[:3, 3]),
        "ElementSpacing": " ".join(repr(value) for value in spacing[::-1]),
        "DimSize": " ".join(str(size) for size in pixels.shape[::-1]),
        "ElementType": META_TYPES[kind],
        "ElementDataFile": "LOCAL",
    }
    text = "".join(f"{name} = {value}\n" for name, value in header.items())
    path.write_bytes(text.encode("ascii") + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())

"""Images of people who bring their own: which file or folder a name in labels.csv means, and what lies in a folder.

An image is a picture, a radiograph (one DICOM file), or a volume: a NIfTI or MetaImage file, or a folder of DICOM
slices. What it is follows from its content; one table holds images of one kind, or pictures beside radiographs.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging import image_files
from osteograde.imaging.dicom import UnreadableSeries, read_series
from osteograde.imaging.dicom.radiograph import film_outline
from osteograde.imaging.discovery import Found, stem_of, unique_names
from osteograde.imaging.geometry import Volume
from osteograde.imaging.volume_files import read_volume, slices_first
from osteograde.tasks import tables

log = logging.getLogger(__name__)

PICTURE, FILM, VOLUME = "picture", "film", "volume"
KINDS = (PICTURE, FILM, VOLUME)
UNITS = 100.0  # longer side of a picture or radiograph in units of its own, for images whose pixels have no size
LOOKED_AT = 8  # volumes that are read to learn their plane and size
PLANES = {  # name -> directions of (slices, rows, columns), unit LPS
    "axial": ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    "sagittal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    "coronal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)),
}
FLAT = "coronal"  # how pictures and radiographs are taken to lie


@dataclass(frozen=True)
class Image:
    """One image. path: its file, or the folder of its slices. kind: one of ``KINDS``."""

    path: Path
    kind: str

    @property
    def is_folder(self) -> bool:
        return self.kind == VOLUME and self.path.is_dir()


def images_of(found: Found, *, skip: Iterable[Path] = ()) -> list[Image]:
    """Every image below a folder, in order: single files, and folders of DICOM slices as one volume beside them.

    skip: folders whose files are not meant.
    """
    left_out = [*skip]
    images = [
        Image(path, VOLUME if path in found.volumes else FILM if path in found.dicom else PICTURE)
        for path in (*found.files, *found.volumes)
        if not any(path.is_relative_to(folder) for folder in left_out)
    ]
    return sorted(images, key=lambda image: image.path.as_posix())


def folders_of(images: Sequence[Image]) -> list[Image]:
    """The folders that hold DICOM files, each as one volume."""
    return [Image(folder, VOLUME) for folder in sorted({image.path.parent for image in images if image.kind == FILM})]


def as_volumes(images: Sequence[Image]) -> list[Image]:
    """The volumes among the images of a folder: files that hold one, and folders of DICOM slices."""
    return sorted(
        [*(image for image in images if image.kind == VOLUME), *folders_of(images)], key=lambda i: i.path.as_posix()
    )


def ids_of(images: Sequence[Image], root: Path) -> dict[Path, str]:
    """The name of each image, which no other has: its file name without ending, or the name of its folder."""
    places = {
        image.path: image.path.with_name(f"{image.path.name}.study") if image.is_folder else image.path
        for image in images
    }
    return dict(zip(places, unique_names([*places.values()], root), strict=True))


class Names:
    """What the images below some folders may be called in a table: by path or name, with ending or without, in any
    case. A path that leads elsewhere means the file of its name, unless another cell means that file as well."""

    def __init__(self, images: Sequence[Image], roots: Sequence[Path]) -> None:
        self._of: dict[str, dict[Path, Image]] = defaultdict(dict)
        for image in [*images, *folders_of(images)]:
            for name in self._called(image, roots):
                self._of[_folded(name)].setdefault(image.path, image)

    @staticmethod
    def _called(image: Image, roots: Sequence[Path]) -> set[str]:
        path = image.path
        names = {path.name, path.name if image.is_folder else stem_of(path)}
        for root in roots:
            if path.is_relative_to(root):
                below = path.relative_to(root)
                names |= {below.as_posix(), (below.parent / stem_of(below)).as_posix()}
        return names

    def find(self, cells: Sequence[str]) -> dict[str, Image]:
        """{cell: image} of those that name one. UserError where a cell names several images."""
        found, doubtful, elsewhere = {}, {}, []
        lost = []
        for cell in dict.fromkeys(cells):
            name = _folded(cell.replace("\\", "/").strip().removeprefix("./").rstrip("/"))
            for tried in (name, name.rpartition("/")[2]):
                several = self._of.get(tried, {})
                if len(several) > 1:
                    doubtful[cell] = several
                if several:
                    found[cell] = next(iter(several.values()))
                    elsewhere += [cell] if tried != name else []
                    break
            else:
                lost.append(cell)
        meant = Counter(image.path for image in found.values())
        for cell in elsewhere:  # a/1.png and b/1.png are two images, even where one of the folders is missing
            if cell not in doubtful and meant[found[cell].path] > 1:
                del found[cell]
        if doubtful:
            cell, several = next(iter(doubtful.items()))
            raise UserError(
                f"{len(doubtful)} names in the column image mean several files, such as {cell!r}: "
                f"{tables.some(several, 3)}; write the path below the folder of data"
            )
        for cell, same in tables.matched(lost, [*self._of]).items():  # a spreadsheet has taken 007 for 7
            found[cell] = next(iter(self._of[same].values()))
        return found


def _folded(name: str) -> str:
    """A name without case, its accents written in one of the two ways that file systems have."""
    return unicodedata.normalize("NFC", name).casefold()


def kind_of(path: Path, images: Iterable[Image]) -> str:
    """The one kind of the images that a table names. UserError where volumes stand beside others."""
    counts = Counter(image.kind for image in images)
    if counts[VOLUME] and len(+counts) > 1:
        told = ", ".join(f"{count} {kind}s" for kind, count in sorted(counts.items()))
        raise UserError(f"{path}: names {told}; one table holds volumes or flat images, not both: make two of it")
    return VOLUME if counts[VOLUME] else FILM if counts[FILM] else PICTURE


def size_of(image: Image) -> tuple[int, int] | None:
    """(width, height) of a picture or radiograph by its header; None where that cannot be read, and of volumes."""
    try:
        if image.kind == PICTURE:
            return image_files.image_size(image.path)
        return film_outline(image.path)[:2] if image.kind == FILM else None
    except image_files.UnreadableImage:
        return None


@dataclass(frozen=True)
class Shape:
    """How volumes lie and how large they are. extent_mm: longer side of a slice, pixel_mm: of its pixels; medians."""

    plane: str
    extent_mm: float
    pixel_mm: float


def shape_of(images: Sequence[Image]) -> Shape:
    """The plane and size of a few volumes spread over the given ones. UserError where none of them can be read."""
    stacks = [stack for image in images[:: -(-len(images) // LOOKED_AT)] for stack in _largest(image)]
    if not stacks:
        raise UserError(f"{images[0].path}: none of the volumes that were tried can be read")
    planes = Counter(max(PLANES, key=lambda name: _along(stack, name)) for stack in stacks)
    extents = [float(np.max(stack.spacing_mm[1:] * stack.voxels.shape[1:])) for stack in stacks]
    pixels = [float(np.mean(stack.spacing_mm[1:])) for stack in stacks]
    return Shape(planes.most_common(1)[0][0], float(np.median(extents)), float(np.median(pixels)))


def _largest(image: Image) -> list[Volume]:
    """The stack with most slices of a volume; none where it cannot be read."""
    try:
        if image.is_folder:
            stacks, _ = read_series(image.path, default_directions=np.array(PLANES["axial"]))
        else:
            stacks = [slices_first(read_volume(image.path), np.array(PLANES["axial"][0]))]
    except (UnreadableSeries, image_files.UnreadableImage):
        return []
    return [max(stacks, key=lambda stack: stack.voxels.shape[0])] if stacks else []


def _along(stack: Volume, plane: str) -> float:
    normal = np.cross(stack.axes[1], stack.axes[2])
    return abs(float(normal @ np.array(PLANES[plane][0])))


def tell_lost(path: Path, cells: Sequence[str], found: Mapping[str, Image]) -> None:
    """Log the images of a table that are not there. UserError where they are more than half."""
    named = [*dict.fromkeys(cells)]
    lost = [cell for cell in named if cell not in found]
    if 2 * len(lost) > len(named):
        raise UserError(
            f"{path}: {len(lost)} of {len(named)} images are not below its folder of data, or of no kind that is read "
            f"(pictures, DICOM, NIfTI, MetaImage), such as {tables.some(lost, 3)}; give the folder that holds both, "
            "and names or paths below it"
        )
    if lost:
        log.warning("%s: %d images are not there and not used: %s", path, len(lost), tables.some(lost))

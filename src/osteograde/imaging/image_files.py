"""Pictures without a header of their own (PNG, JPEG, WebP, BMP, TIFF, GIF, JPEG 2000) as grey values and as volumes.

Nothing of such a file says how large a pixel is or which way the patient faces: the caller does. ``image_size`` and
``read_picture`` agree about rows and columns. Errors carry a code and no value of the file.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from osteograde.errors import UserError
from osteograde.imaging.file_kind import PICTURE, kind_of_file
from osteograde.imaging.files import FileTooLarge, read_bytes
from osteograde.imaging.geometry import Volume, roi_at

SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jp2", ".gif", ".webp", ".bmp", ".tif", ".tiff",
})  # compare in lower case  # fmt: skip
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".dic", ".acr"})
MAX_FILE_BYTES = 512 << 20
MAX_PIXELS = 89_478_485  # from here on the decoder itself warns of a bomb; the longest films have 60 million
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000")
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274
_ON_THEIR_SIDE = frozenset({5, 6, 7, 8})  # orientations that exchange rows and columns
_JPEG_END = b"\xff\xd9"
MAX_PAGES = 1000
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 3
_DAMAGE = (  # what the decoders raise on damaged files
    AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


class UnreadableImage(UserError):
    """A file that gives no image; ``code`` says why in one word."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def is_image(path: Path) -> bool:
    """Whether a file is a picture and no DICOM file: its content says so, or its ending where the content says nothing.

    Opens the file and reads its first bytes.
    """
    kind = kind_of_file(path)
    return kind == PICTURE if kind else Path(path).suffix.lower() in SUFFIXES


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: (H, W) grey values, uint8 or uint16, brighter is more. codes: what was assumed or repaired, counted."""

    pixels: np.ndarray
    codes: Counter[str] = field(default_factory=Counter)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture as it is read, by its header alone. Raises UnreadableImage."""
    try:
        with Path(path).open("rb") as file, _opened(file) as image:
            size = _largest_page(image)[1]
            return size[::-1] if _orientation(image) in _ON_THEIR_SIDE and image.format != "TIFF" else size
    except OSError:
        raise UnreadableImage("file_unreadable") from None


def read_pixels(path: Path) -> np.ndarray:
    """(H, W) grey values of a picture; see ``read_picture``."""
    return read_picture(path).pixels


def read_picture(path: Path) -> Picture:
    """A picture as grey values. The file is opened once.

    Colours and palettes become luminance (ITU-R BT.601), transparency is dropped, 1-bit images become 0 and 255. Words
    beyond 16 bits and fractions are stretched to 16 bits: a window is relative anyway. Of several pages the largest is
    read, of equal ones the first ("several_pages" counts the others); an orientation noted by a camera (EXIF) is turned
    back ("turned_by_exif"); a JPEG without its end is read where at least half of its rows are there ("jpeg_cut").

    Raises UnreadableImage with code "file_unreadable", "file_too_large", "empty_file", "not_an_image",
    "image_too_large", "damaged_header" or "pixels_damaged" (also: cut).
    """
    contents = _contents(Path(path))
    codes: Counter[str] = Counter()
    with _opened(BytesIO(contents)) as image:
        orientation = _orientation(image)
        try:
            codes["several_pages"] += _seek_largest(image)
            pixels = _decoded(image, contents, codes)
        except _DAMAGE:
            raise UnreadableImage("pixels_damaged") from None
        if orientation != 1:
            codes["turned_by_exif"] += 1
            # the decoder has turned a TIFF file already
            pixels = pixels if image.format == "TIFF" else _upright(pixels, orientation)
    return Picture(pixels, +codes)


def _decoded(image: Image.Image, contents: memoryview, codes: Counter[str]) -> np.ndarray:
    try:
        image.load()
    except OSError:
        cut = _cut_jpeg(contents) if image.format in ("JPEG", "MPO") else None
        if cut is None:
            raise
        codes["jpeg_cut"] += 1
        return cut
    deep = _deep_colours(image, contents)
    return _grey(image) if deep is None else deep


def _cut_jpeg(contents: memoryview) -> np.ndarray | None:
    """A JPEG whose end is missing, with even grey for what is not there; None where that is more than half.

    The marker of the end is put behind what is there: the decoder then fills up the rest.
    """
    with Image.open(BytesIO(bytes(contents) + _JPEG_END), formats=("JPEG",)) as image:
        image.load()
        pixels = _grey(image)
    there = np.flatnonzero((pixels != pixels[-1, -1]).any(axis=1))
    return pixels if len(there) and 2 * (there[-1] + 1) >= len(pixels) else None


def _largest_page(image: Image.Image) -> tuple[int, tuple[int, int]]:
    """(number, (width, height)) of the page with most pixels; the image is left at its first page."""
    best, size = 0, image.size
    if image.format != "TIFF":  # pages of other formats are of one size
        return best, size
    try:
        for page in range(1, MAX_PAGES):
            image.seek(page)
            if size[0] * size[1] < image.width * image.height <= MAX_PIXELS:
                best, size = page, image.size
    except _DAMAGE:  # behind the last page, or a page that makes no sense
        pass
    image.seek(0)
    return best, size


def _seek_largest(image: Image.Image) -> int:
    """Go to the page with most pixels; returns how many others there are."""
    image.seek(_largest_page(image)[0])
    return min(getattr(image, "n_frames", 1), MAX_PAGES) - 1


def _orientation(image: Image.Image) -> int:
    """The orientation that EXIF or TIFF notes, 1 (upright) to 8; 1 where it makes no sense.

    Of PNG only what stands before the pixels is looked at: the rest would have to be decoded for it.
    """
    try:
        if image.format == "PNG" and "exif" not in image.info:
            return 1
        told = image.getexif().get(_ORIENTATION, 1)
        return int(told) if int(told) in range(1, 9) else 1
    except _DAMAGE:
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W) turned as EXIF orientation 2 to 8 asks (Exif 2.32, 4.6.4 A)."""
    if orientation in _ON_THEIR_SIDE:
        pixels = pixels.T
    down, across = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return np.ascontiguousarray(pixels[::down, ::across])


def read_images(
    files: Sequence[Path],
    directions: np.ndarray,
    spacing_mm: tuple[float, float, float],
    centre_mm: np.ndarray | tuple[float, float, float] = (0.0, 0.0, 0.0),
    codes: Counter[str] | None = None,
) -> list[Volume]:
    """Files as stacks (Z, Y, X), slices in the order given; the middle of every stack lies at ``centre_mm``.

    Files of one size and depth make one stack, others stacks of their own. ``directions`` (3, 3): unit LPS rows of
    the axes D (file to file), H (down) and W (to the right); ``spacing_mm``: steps along them. Slices are named by
    the files' stems. codes: where given, what was assumed or repaired is counted in it. Raises UnreadableImage at the
    first file that cannot be read.
    """
    stacks: dict[tuple[tuple[int, ...], np.dtype], list[tuple[str, np.ndarray]]] = {}
    for file in files:
        picture = read_picture(file)
        pixels = picture.pixels
        if codes is not None:
            codes.update(picture.codes)
        stacks.setdefault((pixels.shape, pixels.dtype), []).append((Path(file).stem, pixels))
    volumes = []
    for ((height, width), _), slices in stacks.items():
        grid = roi_at(
            np.asarray(centre_mm), np.asarray(directions), np.asarray(spacing_mm), (len(slices), height, width)
        )
        voxels = np.stack([pixels for _, pixels in slices])
        volumes.append(Volume(voxels, grid.to_mm, names=tuple(name for name, _ in slices)))
    return volumes


def _contents(path: Path) -> memoryview:
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except FileTooLarge:
        raise UnreadableImage("file_too_large") from None
    except OSError:
        raise UnreadableImage("file_unreadable") from None


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    """The image of an open file after its header was held against the caps; not yet decoded."""
    if not file.read(1):
        raise UnreadableImage("empty_file")
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImage("not_an_image") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("image_too_large") from None
    except _DAMAGE:
        raise UnreadableImage("damaged_header") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage("image_too_large")
        yield image


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
        inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return ~pixels if inverted else pixels  # the decoder inverts words of up to 8 bits only
    if image.mode in ("I", "F"):
        return _to_words(np.asarray(image))
    return np.asarray(image.convert("L"))


def _deep_colours(image: Image.Image, contents: memoryview) -> np.ndarray | None:
    """Luminance of colours, or grey beside transparency, of 16 bits, of which Pillow keeps the upper 8; None of all
    other pictures."""
    is_deep_png = image.format == "PNG" and contents[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")
    depths = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    if not is_deep_png and not (image.format == "TIFF" and len(depths) > 1 and max(depths) == 16):
        return None
    colours = cv2.imdecode(np.frombuffer(contents, np.uint8), cv2.IMREAD_UNCHANGED)
    if colours is None or colours.dtype != np.uint16 or colours.shape[:2] != image.size[::-1]:
        return None
    if colours.ndim == 2:
        return colours
    if colours.shape[2] < 3:
        return colours[..., 0]
    blue, green, red = (colours[..., k].astype(np.float32) for k in range(3))
    return np.rint(0.114 * blue + 0.587 * green + 0.299 * red).astype(np.uint16)


def _to_words(values: np.ndarray) -> np.ndarray:
    """Whole numbers that fit stay as they are; all else is stretched from least to most. Not finite becomes least."""
    finite = np.isfinite(values)
    least, most = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    if values.dtype.kind == "i" and least >= 0 and most <= 65535:
        return values.astype(np.uint16)
    scale = 65535.0 / (most - least) if most > least else 0.0
    return np.rint((np.where(finite, values, least) - least) * scale).astype(np.uint16)

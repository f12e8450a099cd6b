"""Pictures without a header of their own (PNG, JPEG, WebP, BMP, TIFF, GIF, JPEG 2000) as grey values and as volumes.

Nothing of such a file says how large a pixel is or which way the patient faces: the caller does. An orientation noted
by a camera (EXIF) is ignored on purpose: what is exported from an archive carries none, and ``size`` and
``read_pixels`` must agree about rows and columns. Errors carry a code and no value of the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
_BITS_PER_SAMPLE = 258
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


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as the header says; no pixel is decoded. Raises UnreadableImage."""
    try:
        with Path(path).open("rb") as file, _opened(file) as image:
            return image.size
    except OSError:
        raise UnreadableImage("file_unreadable") from None


def read_pixels(path: Path) -> np.ndarray:
    """(H, W) grey values, uint8 or uint16, of a file's first image; brighter is more. The file is opened once.

    Colours and palettes become luminance (ITU-R BT.601), transparency is dropped, 1-bit images become 0 and 255. Words
    beyond 16 bits and fractions are stretched to 16 bits: a window is relative anyway. Raises UnreadableImage with code
    "file_unreadable", "file_too_large", "empty_file", "not_an_image", "too_large" or "pixels_damaged" (also: cut).
    """
    contents = _contents(Path(path))
    with _opened(BytesIO(contents)) as image:
        try:
            image.load()
            deep = _deep_colours(image, contents)
            return _grey(image) if deep is None else deep
        except _DAMAGE:
            raise UnreadableImage("pixels_damaged") from None


def read_images(
    files: Sequence[Path],
    directions: np.ndarray,
    spacing_mm: tuple[float, float, float],
    centre_mm: np.ndarray | tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> list[Volume]:
    """Files as stacks (Z, Y, X), slices in the order given; the middle of every stack lies at ``centre_mm``.

    Files of one size and depth make one stack, others stacks of their own. ``directions`` (3, 3): unit LPS rows of
    the axes D (file to file), H (down) and W (to the right); ``spacing_mm``: steps along them. Slices are named by
    the files' stems. Raises UnreadableImage at the first file that cannot be read.
    """
    stacks: dict[tuple[tuple[int, ...], np.dtype], list[tuple[str, np.ndarray]]] = {}
    for file in files:
        pixels = read_pixels(file)
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
        raise UnreadableImage("too_large") from None
    except _DAMAGE:
        raise UnreadableImage("header_damaged") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage("too_large")
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

"""Volumes that lie in one file: NIfTI (.nii, .nii.gz) and MetaImage (.mha, and .mhd with its raw file beside it).

NIfTI-1 and -2: nifti.nimh.nih.gov, headers nifti1.h and nifti2.h; its world is RAS, so x and y change their signs.
MetaImage: itk.org/Wiki/MetaIO/Documentation; its world is LPS as DICOM's is. Both store x fastest, so that arrays come
out as (Z, Y, X) where the file says (x, y, z).
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.imaging.files import FileTooLarge, read_bytes
from osteograde.imaging.geometry import Volume, affine
from osteograde.imaging.image_files import UnreadableImage

SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd")
MAX_FILE_BYTES = 1 << 30
MAX_VOXELS = 1 << 29
_THICK = 1.5  # the axis of the slices is the one whose step is so many times the next larger one

_NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_NIFTI_UNITS_MM = {1: 1000.0, 3: 0.001}  # metres and micrometres; all else is mm
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def is_volume_file(path: Path) -> bool:
    """Whether a file is a NIfTI or MetaImage volume. Its name says so first, then the start of its content.

    Opens the file only where the name has one of ``SUFFIXES``.
    """
    name = Path(path).name.lower()
    if not name.endswith(SUFFIXES):
        return False
    try:
        with Path(path).open("rb") as file:
            head = file.read(1024)
            if head[:2] == b"\x1f\x8b":
                head = zlib.decompressobj(wbits=31).decompress(head, 600)
    except (OSError, zlib.error):
        return False
    if name.endswith((".mha", ".mhd")):
        return b"NDims" in head
    return _nifti_order(head) is not None


def read_volume(path: Path, codes: Counter[str] | None = None) -> Volume:
    """A file as one volume in LPS mm, slices as they lie in the file; see ``slices_first``.

    Grey values are scaled as the header says; whole numbers stay whole where it does not. Of several volumes in one
    file (time, echoes) the first is read, which is counted in ``codes`` as "several_volumes". Slices are named by their
    numbers, counted from 0.

    Raises UnreadableImage with code "file_unreadable", "file_too_large", "empty_file", "not_an_image",
    "damaged_header", "image_too_large", "unsupported_pixels" (colours, vectors, complex numbers) or "pixels_damaged"
    (also: cut).
    """
    path = Path(path)
    codes = Counter() if codes is None else codes
    try:
        contents = bytes(read_bytes(path, MAX_FILE_BYTES))
    except FileTooLarge:
        raise UnreadableImage("file_too_large") from None
    except OSError:
        raise UnreadableImage("file_unreadable") from None
    if not contents:
        raise UnreadableImage("empty_file")
    is_meta = path.name.lower().endswith((".mha", ".mhd"))
    voxels, to_mm = _meta_image(contents, path, codes) if is_meta else _nifti(contents, codes)
    if not np.isfinite(to_mm).all() or abs(np.linalg.det(to_mm[:3, :3])) < 1e-9:
        raise UnreadableImage("damaged_header")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        voxels = np.nan_to_num(voxels, nan=float(np.nanmin(voxels, initial=0.0, where=np.isfinite(voxels))))
        codes["not_finite"] += 1
    return _numbered(Volume(voxels, to_mm))


def slices_first(volume: Volume, slice_direction: np.ndarray) -> Volume:
    """The same voxels with the axis of the slices as axis 0; the others keep their order. Nothing is resampled.

    It is the axis with by far the longest step, where there is one, else the axis most nearly parallel to
    ``slice_direction`` (unit LPS).
    """
    steps = volume.spacing_mm
    order = np.argsort(steps)
    is_thick = steps[order[2]] >= _THICK * steps[order[1]]
    first = int(order[2]) if is_thick else int(np.argmax(np.abs(volume.axes @ np.asarray(slice_direction))))
    axes = [first, *(axis for axis in range(3) if axis != first)]
    return _numbered(replace(volume, voxels=volume.voxels.transpose(axes), to_mm=volume.to_mm[:, [*axes, 3]]))


def _numbered(volume: Volume) -> Volume:
    count = volume.voxels.shape[0]
    return replace(volume, names=tuple(map(str, range(count))), instances=tuple(range(count)))


def _unzipped(contents: bytes, most: int) -> bytes:
    """At least the first ``most`` bytes of a file that may be packed by gzip, and hardly more.

    So a small file that unpacks to gigabytes does not fill the memory. A file that is read to its end is held against
    its checksum.
    """
    if contents[:2] != b"\x1f\x8b":
        return contents
    try:
        return gzip.GzipFile(fileobj=io.BytesIO(contents)).read(most + 1)
    except (zlib.error, EOFError, OSError):
        raise UnreadableImage("pixels_damaged") from None


def _size(start: int, kind: np.dtype, shape: list[int]) -> int:
    """Where the values of a volume of ``shape`` end, in bytes. start: as the header has it, which may be damaged."""
    count = int(np.prod(shape, dtype=object))
    if start < 0:
        raise UnreadableImage("pixels_damaged")
    if count > MAX_VOXELS or start > MAX_FILE_BYTES:
        raise UnreadableImage("image_too_large")
    return start + count * kind.itemsize


# --- NIfTI -----------------------------------------------------------------------------------------------------------


def _nifti_order(head: bytes) -> tuple[str, int] | None:
    """(byte order, version) of a NIfTI header; None where it is none."""
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(order + "i", head)[0] == 348 and head[344:347] in (b"n+1", b"ni1"):
            return order, 1
        if len(head) >= 540 and struct.unpack_from(order + "i", head)[0] == 540 and head[4:7] in (b"n+2", b"ni2"):
            return order, 2
    return None


def _nifti(contents: bytes, codes: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    head = _unzipped(contents, _NIFTI_HEAD)
    found = _nifti_order(head)
    if found is None:
        raise UnreadableImage("not_an_image")
    order, version = found
    places = _NIFTI_PLACES[version]

    def field(name: str) -> tuple[Any, ...]:
        at, form = places[name]
        return struct.unpack_from(order + form, head, at)

    dims, pixdim = field("dim"), [float(v) for v in field("pixdim")]
    if not 2 <= dims[0] <= 7 or any(n < 1 for n in dims[1 : dims[0] + 1]):
        raise UnreadableImage("damaged_header")
    shape = [int(n) for n in (*dims[1 : min(dims[0], 3) + 1], 1)[:3]]
    codes["several_volumes"] += int(np.prod([max(1, n) for n in dims[4 : dims[0] + 1]], dtype=object) > 1)
    if field("datatype")[0] not in _NIFTI_TYPES:
        raise UnreadableImage("unsupported_pixels")
    kind = np.dtype(order + _NIFTI_TYPES[field("datatype")[0]])
    if not math.isfinite(field("start")[0]):
        raise UnreadableImage("damaged_header")
    start = int(field("start")[0]) or (352 if version == 1 else 544)
    voxels = _values(_unzipped(contents, _size(start, kind, shape)), start, kind, shape)
    slope, offset = (float(v) for v in field("scale"))
    if np.isfinite([slope, offset]).all() and slope != 0 and (slope, offset) != (1.0, 0.0):
        voxels = voxels.astype(np.dtype("f4" if kind.itemsize < 4 else "f8")) * slope + offset
    ras = _nifti_affine(field, pixdim, shape)
    ras[:3] *= _NIFTI_UNITS_MM.get(field("units")[0] & 7, 1.0)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras
    return voxels, lps[:, [2, 1, 0, 3]]


_NIFTI_HEAD = 540  # bytes of the longer of the two headers
_NIFTI_PLACES: dict[int, dict[str, tuple[int, str]]] = {  # name -> (byte, struct format)
    1: {"dim": (40, "8h"), "datatype": (70, "h"), "pixdim": (76, "8f"), "start": (108, "f"), "scale": (112, "2f"),
        "units": (123, "B"), "codes": (252, "2h"), "quatern": (256, "6f"), "srow": (280, "12f")},
    2: {"dim": (16, "8q"), "datatype": (12, "h"), "pixdim": (104, "8d"), "start": (168, "q"), "scale": (176, "2d"),
        "units": (500, "i"), "codes": (344, "2i"), "quatern": (352, "6d"), "srow": (400, "12d")},
}  # fmt: skip


def _nifti_affine(field: Callable[[str], tuple[Any, ...]], pixdim: list[float], shape: list[int]) -> np.ndarray:
    """(4, 4) from (x, y, z, 1) to RAS: the sform where there is one, else the qform, else the steps alone, with the
    middle of the volume at 0 and x towards the left, as nibabel takes it."""
    qform, sform = field("codes")
    steps = np.array([abs(step) or 1.0 for step in pixdim[1:4]])
    if sform > 0:
        return np.vstack([np.array(field("srow"), float).reshape(3, 4), [0, 0, 0, 1]])
    to_ras = np.eye(4)
    if qform > 0:
        b, c, d, *origin = (float(v) for v in field("quatern"))
        a = np.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
        turn = np.array([
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ])  # fmt: skip
        to_ras[:3, :3] = turn * steps * np.array([1.0, 1.0, -1.0 if pixdim[0] < 0 else 1.0])
        to_ras[:3, 3] = origin
        return to_ras
    to_ras[:3, :3] = np.diag(steps * np.array([-1.0, 1.0, 1.0]))
    to_ras[:3, 3] = -to_ras[:3, :3] @ ((np.array(shape) - 1) / 2)
    return to_ras


# --- MetaImage -------------------------------------------------------------------------------------------------------


def _meta_image(contents: bytes, path: Path, codes: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    header, start = _meta_header(contents)
    try:
        dims = int(header["ndims"])
        shape = [int(n) for n in header["dimsize"].split()]
        kind = _META_TYPES.get(header["elementtype"].upper())
        channels = int(header.get("elementnumberofchannels", "1"))
        steps = _numbers(header, ("elementspacing", "elementsize"), [1.0] * dims)
        origin = _numbers(header, ("offset", "position", "origin"), [0.0] * dims)
        turn = _numbers(header, ("transformmatrix", "rotation", "orientation"), list(np.eye(dims).ravel()))
    except (KeyError, ValueError):
        raise UnreadableImage("damaged_header") from None
    sizes = len(shape), len(steps), len(origin), len(turn)
    if dims not in (2, 3, 4) or sizes != (dims, dims, dims, dims * dims) or min(shape) < 1:
        raise UnreadableImage("damaged_header")
    if kind is None or channels != 1:
        raise UnreadableImage("unsupported_pixels")
    big = any(header.get(key, "").lower() == "true" for key in ("binarydatabyteordermsb", "elementbyteordermsb"))
    codes["several_volumes"] += int(dims == 4 and shape[3] > 1)
    values = np.dtype((">" if big else "<") + kind)
    pixels = _meta_pixels(header, contents, start, path, _size(0, values, [*shape, 1][:3]))
    voxels = _values(pixels, 0, values, [*shape, 1][:3])
    axes, step, place = np.eye(3), np.ones(3), np.zeros(3)
    keep = min(dims, 3)
    axes[:keep, :keep] = np.array(turn).reshape(dims, dims)[:keep, :keep]  # row i: the direction of axis i
    step[:keep], place[:keep] = steps[:keep], origin[:keep]
    return voxels, affine(place, axes[::-1], step[::-1])


def _meta_header(contents: bytes) -> tuple[dict[str, str], int]:
    """({name in lower case: text}, where the pixels begin). ``ElementDataFile`` is the last line."""
    header: dict[str, str] = {}
    at = 0
    while at < min(len(contents), 1 << 16):
        end = contents.find(b"\n", at)
        end = len(contents) if end < 0 else end
        name, equals, text = contents[at:end].decode("latin-1").partition("=")
        at = end + 1
        if equals:
            header[name.strip().lower()] = text.strip()
        if equals and name.strip().lower() == "elementdatafile":
            return header, at
    raise UnreadableImage("not_an_image")


def _meta_pixels(header: dict[str, str], contents: bytes, start: int, path: Path, most: int) -> bytes:
    """The bytes of the pixels, unpacked; of those that are packed the first ``most``."""
    name = header["elementdatafile"]
    if name.upper() != "LOCAL":
        beside = path.parent / Path(name).name  # never a path that leads out of the folder
        try:
            contents, start = bytes(read_bytes(beside, MAX_FILE_BYTES)), 0
        except FileTooLarge:
            raise UnreadableImage("file_too_large") from None
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            raise UnreadableImage("file_unreadable") from None
        skip = int(header.get("headersize", "0")) if header.get("headersize", "0").isdigit() else 0
        start += skip
    if header.get("compresseddata", "").lower() != "true":
        return contents[start:]
    try:
        return zlib.decompressobj(wbits=47).decompress(contents[start:], most)  # zlib or gzip
    except zlib.error:
        raise UnreadableImage("pixels_damaged") from None


def _numbers(header: dict[str, str], names: tuple[str, ...], usual: list[float]) -> list[float]:
    text = next((header[name] for name in names if name in header), "")
    return [float(value) for value in text.split()] if text else usual


def _values(contents: bytes, start: int, kind: np.dtype, shape: list[int]) -> np.ndarray:
    """(Z, Y, X) native values of a volume of ``shape`` (x, y, z) that begins at a byte."""
    if start < 0 or len(contents) < _size(start, kind, shape):
        raise UnreadableImage("pixels_damaged")
    values = np.frombuffer(contents, kind, int(np.prod(shape, dtype=object)), start)
    return values.astype(kind.newbyteorder("=")).reshape(shape[::-1])

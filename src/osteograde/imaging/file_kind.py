"""What kind of file a path leads to, told by its first bytes and never by its name.

Pictures are told by the signatures of their formats. DICOM files are told by the mark "DICM" behind a preamble of 128
bytes (PS3.10 section 7.1), or, where preamble or file meta information are missing, by data elements that follow each
other as the standard asks (ascending tags, known value representations, lengths that fit; PS3.5 section 7.1). Whether a
DICOM object is an image is told by its SOP class (PS3.6 annex A).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from pydicom import config
from pydicom.uid import UID

PICTURE = "picture"
DICOM_IMAGE = "dicom image"
DICOM_OTHER = "dicom other: "
HEAD_BYTES = 8192  # the file meta information and the first elements of the data set lie within these

_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"BM",
    b"II*\0",  # TIFF, little-endian and big-endian
    b"MM\0*",
    b"GIF87a",
    b"GIF89a",
    b"\0\0\0\x0cjP  ",  # JPEG 2000: in a container, and a bare code stream
    b"\xff\x4f\xff\x51",
)
_CLASS_IN_META, _SYNTAX, _CLASS, _MODALITY = 0x00020002, 0x00020010, 0x00080016, 0x00080060
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BRIEF = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_ENOUGH = 2  # elements in order that make a file without a preamble DICOM
_PRIVATE = (("1.3.12.2.1107.5.9.1", "Siemens non-image"), ("1.3.46.670589.11.0.0.12", "Philips non-image"))
_SHORT = {"1.2.840.10008.1.3.10": "DICOMDIR"}  # whose official name says less
_OTHER_MODALITIES = {  # of objects whose SOP class is absent or a vendor's own (PS3.3 C.7.3.1.1.1)
    "AU", "DOC", "ECG", "EPS", "FID", "HD", "KO", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTRECORD", "RTSTRUCT",
    "RWV", "SEG", "SMR", "SR", "TEXTUREMAP",
}  # fmt: skip


def kind_of_file(path: Path) -> str:
    """What the content of a file is; its name is not looked at, and at most ``HEAD_BYTES`` bytes are read.

    Returns "picture" for PNG, JPEG, WebP, BMP, TIFF, GIF and JPEG 2000; "dicom image" for a DICOM object that may hold
    an image; "dicom other: NAME" for one that holds none, with the name of its SOP class or its modality (DICOMDIR,
    structured reports, presentation states, key object selections, encapsulated documents, waveforms); "" for all else:
    other formats, empty files, files that cannot be opened and what is no regular file. Nothing is raised. A file whose
    start is damaged may be "" although its name says image: the caller decides what a name is worth.
    """
    try:
        return kind_of_bytes(_head(Path(path)))
    except OSError:
        return ""


def kind_of_bytes(head: bytes) -> str:
    """The same of the first bytes of a file."""
    if head[128:132] == b"DICM":
        return _kind_of_object(_elements(head, 132))
    if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return PICTURE
    found = _elements(head, 0)
    return _kind_of_object(found) if found.pop("count") >= _ENOUGH else ""


def _head(path: Path) -> bytes:
    # Without O_NONBLOCK opening a named pipe would wait for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        return os.read(handle, HEAD_BYTES) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    finally:
        os.close(handle)


def _kind_of_object(found: dict) -> str:
    """image or other, by SOP class, else by modality; an object that tells neither may be an image."""
    sop_class = _text(found.get(_CLASS) or found.get(_CLASS_IN_META))
    for prefix, name in _PRIVATE:
        if sop_class == prefix or sop_class.startswith(f"{prefix}."):
            return DICOM_OTHER + name
    name = UID(sop_class, validation_mode=config.IGNORE).name if sop_class else ""
    if name and name != sop_class:
        is_image = "Image" in name or "Volume Storage" in name
        return DICOM_IMAGE if is_image else DICOM_OTHER + _SHORT.get(sop_class, re.sub(r" Storage( - .*)?$", "", name))
    modality = _text(found.get(_MODALITY))
    return DICOM_OTHER + modality if modality in _OTHER_MODALITIES else DICOM_IMAGE


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace").strip(" \0")


def _elements(head: bytes, at: int) -> dict:
    """{tag: value} of the elements that tell the kind of an object, and under "count" how many elements make sense."""
    found: dict = {"count": 0}
    for tag, value in _walked(head, at):
        found["count"] += 1
        if tag in (_CLASS_IN_META, _CLASS, _MODALITY):
            found[tag] = value
        if tag > _MODALITY:
            break
    return found


def _walked(head: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """(tag, value) of element after element, up to the first that makes no sense; groups 0002 and 0008 come first."""
    order, last, deflated = "<", 0, False
    while at + 8 <= len(head):
        group, number = struct.unpack_from("<HH", head, at)
        if group != 0x0002 and last >> 16 in (0, 0x0002):  # the data set begins: only now it tells its byte order
            order = ">" if group == 0x0800 else "<"
            if deflated:
                return
        if order == ">":
            group, number = struct.unpack_from(">HH", head, at)
        tag = group << 16 | number
        if tag <= last or group < 0x0002 or (last <= 0x0002FFFF and group not in (0x0002, 0x0008)):
            return
        start, length = _value(head, at, order)
        if length < 0 or (length > HEAD_BYTES and group <= 0x0008):
            return
        value = head[start : start + length]
        deflated = deflated or (tag == _SYNTAX and _text(value) == _DEFLATED)
        yield tag, value
        at, last = start + length, tag


def _value(head: bytes, at: int, order: str) -> tuple[int, int]:
    """Where an element's value starts and how long it is; -1 where the length is undefined or nonsense."""
    representation = head[at + 4 : at + 6]
    if representation in _BRIEF:
        return at + 8, struct.unpack_from(order + "H", head, at + 6)[0]
    if representation in _LONG:
        if at + 12 > len(head):
            return at, -1
        start, length = at + 12, struct.unpack_from(order + "L", head, at + 8)[0]
    else:  # no representation is written: implicit, always little-endian
        start, length = at + 8, struct.unpack_from("<L", head, at + 4)[0]
    return start, -1 if length == _UNDEFINED else length

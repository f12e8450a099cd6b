"""Healthy small files of every kind that the readers know, and ways to break them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from osteograde.phantom.dicom_writer import encode_rle, packbits

PICTURES = ("png", "jpg", "webp", "tif", "bmp", "f.tif")
ODD = (0, 1, 2, 3, 7, 8, 16, 127, 255, 256, 4095, 32767, 32768, 65535)
_TAGS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_TEXTS = ("nan", "inf", "-1e400", "1e-320", "", "\\\\", "0\\0\\0", "1.0\\", "9" * 16, "a\\b", "-0", "1,5\\1,5")
_NUMBERS = {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
            "SpacingBetweenSlices", "SliceThickness", "InstanceNumber", "NumberOfFrames", "SliceLocation"}  # fmt: skip


def bases() -> dict[str, bytes]:
    """{kind: bytes} of healthy files."""
    rng = np.random.default_rng(0)
    grey = (rng.integers(0, 4096, (40, 36)) // 64 * 64).astype("<u2")
    byte = (grey >> 4).astype(np.uint8)
    made = {
        "raw": written(described(grey, grey.tobytes())),
        "rle": written(described(grey, encapsulate([encode_rle(grey)]), RLELossless)),
        "rle8": written(described(byte, encapsulate([rle8(byte)]), RLELossless)),
        "implicit": written(described(grey, grey.tobytes(), ImplicitVRLittleEndian)),
        "big": written(described(grey, grey.astype(">u2").tobytes(), ExplicitVRBigEndian)),
        "deflated": written(described(grey, grey.tobytes(), DeflatedExplicitVRLittleEndian)),
        "mono1": written(described(grey, grey.tobytes(), PhotometricInterpretation="MONOCHROME1")),
        "signed": written(described(grey, (grey.astype("<i2") - 700).tobytes(), PixelRepresentation=1)),
        "word32": written(described(grey.astype("<u4"), grey.astype("<u4").tobytes())),
        "bit": written(described(byte, bytes(180), BitsAllocated=1, BitsStored=1, HighBit=0)),
        "rgb": written(colour(byte)),
        "palette": written(palette(byte)),
        "frames": written(enhanced(grey, 3)),
        "float": written(floating(grey)),
        "nested": written(nested(grey)),
        "film": written(described(grey, grey.tobytes(), ImagerPixelSpacing=[0.2, 0.2], PatientOrientation=["L", "F"],
                                  Modality="DX", ViewPosition="PA", ImageLaterality="R")),
        "jpegls": written(described(grey, encapsulate([byte.tobytes()]), JPEGLSLossless)),
        "jpeg": written(described(byte, encapsulate([picture(byte, "JPEG")]), JPEGBaseline8Bit)),
        "jp2": written(described(byte, encapsulate([picture(byte, "JPEG2000", no_jp2=True)]), JPEG2000Lossless)),
    }  # fmt: skip
    pictures = {"png": (byte, "PNG"), "jpg": (byte, "JPEG"), "webp": (byte, "WEBP"), "bmp": (byte, "BMP"),
                "tif": (grey, "TIFF"), "f.tif": (grey.astype(np.float32), "TIFF")}  # fmt: skip
    return made | {kind: picture(pixels, form) for kind, (pixels, form) in pictures.items()}


def described(pixels: np.ndarray, data: bytes, syntax: UID = ExplicitVRLittleEndian, **tags: object) -> Dataset:
    """A slice (rows, columns) whose pixels are stored as ``data``."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4")
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = UID("1.2.3.4")
    bits = 8 * pixels.itemsize
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, min(bits, 16), min(bits, 16) - 1
    made.ImagePositionPatient, made.ImageOrientationPatient = [1.5, -20, 30], [0, 1, 0, 0, 0, -1]
    made.PixelSpacing, made.SpacingBetweenSlices, made.SliceThickness = [0.5, 0.5], 4, 3.5
    made.InstanceNumber, made.FrameOfReferenceUID, made.PatientName = 3, "1.2.3", "Doe^Jane"
    made.PixelData = data
    made["PixelData"].VR = "OB" if syntax.is_encapsulated or bits == 8 else "OW"
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return made


def written(made: Dataset) -> bytes:
    out = BytesIO()
    pydicom.dcmwrite(out, made, enforce_file_format=True)
    return out.getvalue()


def rle8(pixels: np.ndarray) -> bytes:
    plane = packbits(pixels)
    return struct.pack("<16I", 1, 64, *[0] * 14) + plane + b"\0" * (len(plane) % 2)


def colour(byte: np.ndarray) -> Dataset:
    made = described(byte, np.repeat(byte[..., None], 3, -1).tobytes(), PhotometricInterpretation="RGB")
    made.SamplesPerPixel, made.PlanarConfiguration = 3, 0
    return made


def palette(byte: np.ndarray) -> Dataset:
    made = described(byte, byte.tobytes(), PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", (np.arange(256) * 200).astype("<u2").tobytes())
    return made


def enhanced(grey: np.ndarray, count: int) -> Dataset:
    """Several frames, each with its own position."""
    made = described(grey, np.stack([grey] * count).tobytes(), NumberOfFrames=count)
    made.PerFrameFunctionalGroupsSequence = []
    for k in range(count):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [4.0 * k, 0, 0]
        frame.PlanePositionSequence = [place]
        made.PerFrameFunctionalGroupsSequence.append(frame)
    return made


def floating(grey: np.ndarray) -> Dataset:
    made = described(grey, b"")
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del made[keyword]
    made.BitsAllocated, made.FloatPixelData = 32, grey.astype("<f4").tobytes()
    return made


def nested(grey: np.ndarray) -> Dataset:
    made, inner = described(grey, grey.tobytes()), Dataset()
    for _ in range(30):
        outer = Dataset()
        outer.add_new(0x00091001, "SQ", [inner])
        outer[0x00091001].is_undefined_length = True
        inner = outer
    made.add_new(0x00091001, "SQ", [inner])
    return made


def picture(pixels: np.ndarray, form: str, **options: object) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, form, **options)  # type: ignore[arg-type]
    return out.getvalue()


def mutant(made: Mapping[str, bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """(kind, bytes) of one broken file: some bytes, some lengths, some tags, or some of another file."""
    kind = str(rng.choice(list(made)))
    data = made[kind]
    if kind not in PICTURES and rng.random() < 0.5:
        data = retagged(data, rng)
    for _ in range(int(rng.integers(0, 4))):
        data = _WAYS[rng.integers(len(_WAYS))](data, rng, made)
    return kind, data


def retagged(data: bytes, rng: np.random.Generator) -> bytes:
    """Values that a header may hold and that make no sense."""
    made = pydicom.dcmread(BytesIO(data), force=True)
    for keyword in rng.choice(_TAGS, int(rng.integers(0, 3))):
        if keyword in made:
            setattr(made, str(keyword), int(rng.choice(ODD)))
    out = BytesIO()
    pydicom.dcmwrite(out, made)
    data = out.getvalue()
    for keyword in rng.choice(sorted(_NUMBERS), int(rng.integers(0, 3))):
        data = _retyped(data, str(keyword), str(rng.choice(_TEXTS)).encode())
    return data


def _retyped(data: bytes, keyword: str, value: bytes) -> bytes:
    """The text of an explicit little-endian number replaced, whatever a writer would say to it."""
    tag = pydicom.datadict.tag_for_keyword(keyword) or 0
    at = data.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (b"IS" if "Number" in keyword else b"DS"), 132)
    if at < 0:
        return data
    length = struct.unpack_from("<H", data, at + 6)[0]
    value += b" " * (len(value) % 2)
    return data[: at + 6] + struct.pack("<H", len(value)) + value + data[at + 8 + length :]


def _flipped(data: bytes, rng: np.random.Generator, made: Mapping[str, bytes]) -> bytes:
    out = bytearray(data)
    for at in rng.integers(0, max(len(out), 1), int(rng.integers(1, 12))):
        if out:
            out[at] = rng.integers(256)
    return bytes(out)


def _header_flipped(data: bytes, rng: np.random.Generator, made: Mapping[str, bytes]) -> bytes:
    out = bytearray(data)
    for at in rng.integers(0, max(min(len(out), 900), 1), int(rng.integers(1, 8))):
        if out:
            out[at] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))])
    return bytes(out)


def _lengths(data: bytes, rng: np.random.Generator, made: Mapping[str, bytes]) -> bytes:
    if len(data) < 8:
        return data
    at = int(rng.integers(0, len(data) - 4))
    form, values = ("<L", (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**30, 65536)) if rng.random() < 0.5 else ("<H", ODD)
    value = struct.pack(form, int(rng.choice(values)))
    return data[:at] + value + data[at + len(value) :]


def _cut(data: bytes, rng: np.random.Generator, made: Mapping[str, bytes]) -> bytes:
    return data[: int(rng.integers(0, len(data) + 1))]


def _without(data: bytes, rng: np.random.Generator, made: Mapping[str, bytes]) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(0, len(data) + 1, 2))
    return data[:a] + data[min(b, a + 200) :]


def _again(data: bytes, rng: np.random.Generator, made: Mapping[str, bytes]) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(0, len(data) + 1, 2))
    return data[:a] + data[a : min(b, a + 300)] * int(rng.integers(2, 5)) + data[a:]


def _spliced(data: bytes, rng: np.random.Generator, made: Mapping[str, bytes]) -> bytes:
    other = made[str(rng.choice(list(made)))]
    return data[: int(rng.integers(0, len(data) + 1))] + other[int(rng.integers(0, len(other) + 1)) :]


_WAYS = (_flipped, _header_flipped, _lengths, _cut, _without, _again, _spliced)

"""Small files that ask for much: refused by what they declare, before anything is allocated; and nothing ever waits."""

import os
import struct
import sys
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import fuzz

from osteograde.imaging import discovery, files
from osteograde.imaging import image_files as raster
from osteograde.imaging.dicom import UnreadableSlice, read_slice
from osteograde.imaging.dicom.pixels import stream_size
from osteograde.imaging.dicom.radiograph import read_film
from tests.dicom_files import dataset, pattern, write

LIMIT = 150 << 20  # bytes that refusing a bomb may take


def deflated(path: Path, inflated: int) -> Path:
    made = dataset(pattern(0))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = write(path, made).read_bytes()
    squeezer, length = zlib.compressobj(9, wbits=-zlib.MAX_WBITS), struct.unpack_from("<L", head, 140)[0]
    body = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(inflated >> 20)) + squeezer.flush()
    path.write_bytes(head[: 144 + length] + body)
    return path


def rle(path: Path, **tags: object) -> Path:
    return write(path, dataset(np.zeros((64, 64), np.uint16), rle=True, **tags))


def jpeg(path: Path, **tags: object) -> Path:
    made = dataset(np.zeros((64, 64), np.uint8), BitsStored=8, HighBit=7)
    out = BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(out, "JPEG")
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate([out.getvalue()])
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return write(path, made)


def lying_jpeg(path: Path) -> Path:
    """The tags say 64 x 64, the stream 65500 x 65500."""
    data = jpeg(path).read_bytes()
    size = struct.pack(">2H", 64, 64)
    at = data.index(b"\xff\xc0") + 5
    assert data[at : at + 4] == size
    path.write_bytes(data[:at] + struct.pack(">2H", 65500, 65500) + data[at + 4 :])
    return path


BOMBS = {
    "40000 x 40000 of RLE": (lambda path: rle(path, Rows=40000, Columns=40000), "image_too_large"),
    "8000 x 8000 of RLE": (lambda path: rle(path, Rows=8000, Columns=8000), "pixels_cut"),
    "4000 frames of RLE": (lambda path: rle(path, NumberOfFrames=4000), "pixels_cut"),
    "400 MB deflated": (lambda path: deflated(path, 400 << 20), "inflates_too_far"),
    "raw pixels that are not there": (
        lambda path: write(path, dataset(pattern(0), Rows=8000, Columns=8000)),
        "pixels_cut",
    ),
    "2000 frames of JPEG": (lambda path: jpeg(path, NumberOfFrames=2000, Rows=1000, Columns=1000), "image_too_large"),
    "a JPEG stream larger than its tags": (lying_jpeg, "pixels_damaged"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_with_little_memory(tmp_path, name):
    make, code = BOMBS[name]
    path = make(tmp_path / "bomb.dcm")
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableSlice, match=code):
            read_slice(path)
        with pytest.raises(raster.UnreadableImage):
            read_film(path)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def test_a_healthy_jpeg_passes_the_checks(tmp_path):
    assert read_slice(jpeg(tmp_path / "a.dcm")).pixels.shape == (64, 64)


@pytest.mark.parametrize(("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG2000", {}),
                                               ("JPEG2000", {"no_jp2": True})])  # fmt: skip
def test_the_size_of_a_stream_is_that_of_its_image(form, options):
    out = BytesIO()
    Image.fromarray(np.zeros((37, 53), np.uint8)).save(out, form, **options)
    assert stream_size(out.getvalue()) == (37, 53)
    for end in range(0, len(out.getvalue()), 7):
        assert stream_size(out.getvalue()[:end]) in (None, (37, 53))
    assert stream_size(b"") is None and stream_size(b"\xff\xd8" + b"\xff" * 99) is None
    assert JPEG2000Lossless.is_encapsulated


def test_a_picture_that_declares_too_many_pixels_is_refused(tmp_path):
    out = BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = struct.pack(">2L", 60000, 60000)
    data[29:33] = struct.pack(">L", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(raster.UnreadableImage, match="image_too_large"):
        raster.read_pixels(tmp_path / "bomb.png")


def test_pipes_and_devices_are_no_files_and_nothing_waits_for_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.dcm").symlink_to("/dev/zero")
    assert discovery.find_images(tmp_path) == []
    for name in ("pipe.png", "zero.dcm"):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_bytes(tmp_path / name, 100)
        with pytest.raises(UnreadableSlice, match="file_unreadable"):
            read_slice(tmp_path / name)


def test_only_errors_that_pass_are_asked_again(tmp_path, monkeypatch):
    tries = []

    def failing(path, most):
        tries.append(1)
        raise OSError(failing.number, "no")

    monkeypatch.setattr(files, "_read", failing)
    monkeypatch.setattr(files, "ASK_AGAIN_S", (0.0, 0.0))
    for number, expected in ((5, 3), (116, 3), (13, 1), (2, 1)):  # EIO, ESTALE, EACCES, ENOENT
        failing.number, tries[:] = number, []
        with pytest.raises(OSError, match="no"):
            files.read_bytes(tmp_path, 9)
        assert len(tries) == expected


def test_a_file_beyond_the_cap_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert files.read_bytes(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(files.FileTooLarge):
        files.read_bytes(tmp_path / "a", 10)


def test_two_hundred_mutated_files_break_no_reader():
    outcomes, broken, done = fuzz.run(0, 200, 77, limit_s=60, keep=None)
    assert not broken, broken[:3]
    assert done == sum(outcomes.values()) and len(outcomes) > 5

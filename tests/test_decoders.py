"""Frames that pydicom does not decode, and pictures that are cut, turned or have several pages."""

from __future__ import annotations

import importlib.util
import struct
import sys
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless

from osteograde.imaging.dicom import UnreadableSlice, read_slice
from osteograde.imaging.dicom.radiograph import read_film
from osteograde.imaging.image_files import UnreadableImage, image_size, read_picture, read_pixels
from tests.dicom_files import dataset, write

GREY = np.add.outer(np.arange(64) * 3, np.arange(48) * 2).astype(np.uint8)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_lossless(pixels: np.ndarray, bits: int) -> bytes:
    """ISO 10918-1 process 14: differences to the left neighbour, sizes 0 to 16 as codes of five bits."""
    values = pixels.astype(int)
    left = np.empty_like(values)
    left[:, 1:], left[1:, 0], left[0, 0] = values[:, :-1], values[:-1, 0], 1 << (bits - 1)
    text = ""
    for step in (values - left).ravel().tolist():
        size = abs(step).bit_length()
        text += f"{size:05b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")
    text += "1" * (-len(text) % 8)
    entropy = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHBBBB", bits, *pixels.shape, 1, 1, 0x11, 0)
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    scan = bytes([1, 1, 0, 1, 0, 0])
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, scan) + entropy + b"\xff\xd9"


def compressed(path, stream: bytes, syntax, shape, bits=8):
    dtype = np.uint8 if bits == 8 else np.uint16
    made = dataset(np.zeros(shape, dtype), BitsStored=bits, HighBit=bits - 1)
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    made["PixelData"].VR = "OB"
    return write(path, made)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
def test_lossless_jpeg_of_eight_bits_is_decoded_to_the_bit(tmp_path, syntax):
    path = compressed(tmp_path / "a.dcm", jpeg_lossless(GREY, 8), syntax, GREY.shape)
    np.testing.assert_array_equal(read_slice(path).pixels, GREY)
    np.testing.assert_array_equal(read_film(path).pixels, GREY)


def code_of(path) -> str:
    with pytest.raises(UnreadableSlice) as caught:
        read_slice(path)
    return caught.value.code


def without(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


def test_what_no_decoder_reads_is_said_to_have_none(tmp_path, monkeypatch):
    without(monkeypatch, "SimpleITK")
    deep = compressed(tmp_path / "a", jpeg_lossless(GREY.astype(np.uint16) * 16, 12), JPEGLosslessSV1, GREY.shape, 12)
    assert code_of(deep) == "no_decoder_JPEGLosslessSV1"
    cut = compressed(tmp_path / "b", jpeg_lossless(GREY, 8)[:-40], JPEGLosslessSV1, GREY.shape)
    assert code_of(cut) == "no_decoder_JPEGLosslessSV1"
    assert code_of(compressed(tmp_path / "c", b"\xff\xd8" + bytes(90), JPEGLSLossless, GREY.shape)).startswith("no_dec")
    assert "SimpleITK" not in sys.modules


@pytest.mark.parametrize(("bits", "code"), [(12, "no_decoder_JPEGExtended12Bit"), (8, "pixels_damaged")])
def test_twelve_bits_of_jpeg_extended_are_no_damage(tmp_path, bits, code):
    frame = struct.pack(">BHHBBBB", bits, *GREY.shape, 1, 1, 0x11, 0)
    stream = b"\xff\xd8" + segment(0xC1, frame) + segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + bytes(50) + b"\xff\xd9"
    assert code_of(compressed(tmp_path / "a", stream, JPEGExtended12Bit, GREY.shape, bits)) == code


def test_simpleitk_decodes_where_it_is_installed(tmp_path):
    pytest.importorskip("SimpleITK")
    words = GREY.astype(np.uint16) * 16
    path = compressed(tmp_path / "a", jpeg_lossless(words, 12), JPEGLosslessSV1, GREY.shape, 12)
    np.testing.assert_array_equal(read_slice(path).pixels, words)


# --- pictures --------------------------------------------------------------------------------------------------------


def jpeg(pixels: np.ndarray, **options) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=97, **options)
    return file.getvalue()


LARGE = np.add.outer(np.arange(320), np.arange(240)).astype(np.uint8)


@pytest.mark.parametrize("cut", [-2, -1, -100, 0.9, 0.6])
def test_a_jpeg_without_its_end_is_read_as_far_as_it_goes(tmp_path, cut):
    whole = jpeg(LARGE)
    (tmp_path / "a.jpg").write_bytes(whole[: cut if cut < 0 else int(len(whole) * cut)])
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.codes == {"jpeg_cut": 1} and picture.pixels.shape == LARGE.shape
    assert np.abs(picture.pixels[:160].astype(int) - LARGE[:160]).mean() < 1


@pytest.mark.parametrize("cut", [0.4, 0.1])
def test_a_jpeg_of_which_less_than_half_is_there_is_damaged(tmp_path, cut):
    whole = jpeg(LARGE)
    (tmp_path / "a.jpg").write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(UnreadableImage, match="pixels_damaged"):
        read_picture(tmp_path / "a.jpg")


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_an_orientation_noted_by_a_camera_is_turned_back(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    options = {"lossless": True} if kind == "WEBP" else {"quality": 97} if kind == "JPEG" else {}
    Image.fromarray(LARGE).transpose(TURNS[orientation]).save(path, kind, exif=exif, **options)
    picture = read_picture(path)
    assert picture.codes == {"turned_by_exif": 1} and image_size(path) == LARGE.shape[::-1]
    assert np.abs(picture.pixels.astype(int) - LARGE).max() <= (12 if kind == "JPEG" else 1)


def test_an_upright_picture_has_no_code(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(LARGE).save(tmp_path / "a.jpg", exif=exif)
    assert not read_picture(tmp_path / "a.jpg").codes


def test_of_several_pages_the_largest_is_read_and_counted(tmp_path):
    small = cv2.resize(LARGE, (60, 80))
    Image.fromarray(small).save(
        tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(LARGE), Image.fromarray(small)]
    )
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, LARGE)
    assert picture.codes == {"several_pages": 2} and image_size(tmp_path / "a.tif") == LARGE.shape[::-1]
    Image.fromarray(LARGE).save(tmp_path / "b.tif", save_all=True, append_images=[Image.fromarray(LARGE // 2)])
    np.testing.assert_array_equal(read_pixels(tmp_path / "b.tif"), LARGE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_image_is_read_and_the_others_are_counted(tmp_path, kind):
    frames = [Image.fromarray(np.roll(LARGE, 20 * k, 0)).convert("RGB") for k in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], **options)
    picture = read_picture(tmp_path / "a")
    assert np.abs(picture.pixels.astype(int) - LARGE).max() <= 1 and picture.codes == {"several_pages": 2}

"""RLE Lossless through OpenCV equals pydicom to the bit, and gives up on whatever it cannot decode."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, get_encoder
from pydicom.uid import RLELossless

from osteograde.imaging.dicom import rle
from osteograde.imaging.dicom.rle import decode_rle


def encoded(image: np.ndarray) -> bytes:
    return get_encoder(RLELossless).encode(image, encoding_plugin="pydicom", **described(image))


def described(image: np.ndarray) -> dict:
    bits = 8 * image.itemsize
    rows, columns = image.shape
    return {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": bits,
        "bits_stored": bits,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": 0,
    }


def by_pydicom(frame: bytes, image: np.ndarray) -> np.ndarray:
    source = encapsulate([frame])
    array, _ = get_decoder(RLELossless).as_array(
        source, decoding_plugin="pydicom", pixel_keyword="PixelData", **described(image)
    )
    return array


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([np.uint8, np.uint16]), st.integers(0, 2**31))
def test_equals_pydicom_for_any_size_and_content(rows, columns, dtype, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, rng.choice([2, 5, 256, np.iinfo(dtype).max]), (rows, columns)).astype(dtype)
    image[rng.random(image.shape) < rng.random()] = 0  # runs of every length
    frame = encoded(image)
    found = decode_rle(frame, rows, columns, image.itemsize)
    assert found is not None and found.dtype == dtype
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(found, by_pydicom(frame, image))


@pytest.mark.parametrize("shape", [(384, 384), (540, 384), (129, 255), (301, 301), (257, 128), (1, 1), (1, 999)])
def test_odd_and_large_sizes_are_exact(shape):
    image = np.random.default_rng(3).integers(0, 4096, shape).astype(np.uint16)
    found = decode_rle(encoded(image), *shape)
    assert found is not None
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("shape", [(32, 32), (33, 32), (32, 33), (33, 33)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.97])
def test_a_cut_frame_is_refused_not_filled(shape, share):
    image = np.random.default_rng(4).integers(0, 4096, shape).astype(np.uint16)
    frame = encoded(image)
    assert decode_rle(frame[: int(len(frame) * share)], *shape) is None


def test_wrong_headers_are_refused():
    image = np.random.default_rng(5).integers(0, 4096, (16, 16)).astype(np.uint16)
    frame = encoded(image)
    assert decode_rle(frame, 16, 16, 1) is None  # one byte per sample needs one segment
    assert decode_rle(frame, 16, 16, 4) is None
    assert decode_rle(frame, 0, 16) is None
    assert decode_rle(struct.pack("<16L", 2, 64, 2**31, *[0] * 13) + frame[64:], 16, 16) is None
    assert decode_rle(struct.pack("<16L", 200, *[64] * 15) + frame[64:], 16, 16) is None
    assert decode_rle(struct.pack("<16L", 2, 4, 300, *[0] * 13) + frame[64:], 16, 16) is None


def test_a_bomb_is_refused_before_anything_is_built(monkeypatch):
    frame = encoded(np.zeros((64, 64), np.uint16))
    monkeypatch.setattr(rle, "_decode_strips", lambda *_: pytest.fail("a TIFF was built for a frame beyond the caps"))
    assert decode_rle(frame, 40000, 40000) is None  # more pixels than any scan has
    assert decode_rle(frame, 4000, 4000) is None  # more than PackBits can expand these bytes to


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12))
def test_damaged_bytes_never_raise(seed, hits):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 4096, (20, 21)).astype(np.uint16)
    frame = bytearray(encoded(image))
    for at in rng.integers(0, len(frame), hits):
        frame[at] = rng.integers(256)
    found = decode_rle(bytes(frame), 20, 21)
    assert found is None or (found.shape == (20, 21) and found.dtype == np.uint16)


def test_damage_is_not_written_to_the_log(capfd):
    frame = encoded(np.random.default_rng(6).integers(0, 4096, (32, 32)).astype(np.uint16))
    assert decode_rle(frame[:900], 32, 32) is None
    assert capfd.readouterr() == ("", "")

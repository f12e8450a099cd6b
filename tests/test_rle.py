"""RLE Lossless through OpenCV equals pydicom to the bit, and gives up on whatever it cannot decode."""

import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder, get_encoder
from pydicom.uid import RLELossless

from osteograde.imaging.dicom import rle
from osteograde.imaging.dicom.rle import decode_rle, decode_rle_within

DATA = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))


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
    assert decode_rle(frame[:-100], 32, 32) is None
    assert capfd.readouterr() == ("", "")


def test_opencv_s_log_level_is_as_it_was_after_damaged_frames_in_many_threads(capfd):
    frame = encoded(np.random.default_rng(6).integers(0, 4096, (32, 32)).astype(np.uint16))[
        :-100
    ]  # the last plane is cut
    logging = cv2.utils.logging
    before, interval = logging.getLogLevel(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads overlap in every order within a second
    try:
        for _ in range(10):
            with ThreadPoolExecutor(4) as pool:
                assert set(pool.map(lambda _: decode_rle(frame, 32, 32), range(200))) == {None}
            assert logging.getLogLevel() == before
    finally:
        sys.setswitchinterval(interval)
        logging.setLogLevel(before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason="no real files: set OSTEOGRADE_DATA to a folder with dicom/")
def test_every_grey_frame_of_the_real_files_equals_pydicom():
    frames = 0
    for path in sorted((DATA / "dicom").rglob("*_[rR][lL][eE]*.dcm")):
        made = pydicom.dcmread(path)
        if made.BitsAllocated not in (8, 16) or made.SamplesPerPixel != 1:
            continue
        count = int(made.get("NumberOfFrames", 1))
        expected = made.pixel_array.reshape(count, made.Rows, made.Columns)
        for frame, image in zip(generate_frames(made.PixelData, number_of_frames=count), expected, strict=True):
            found = decode_rle(frame, made.Rows, made.Columns, made.BitsAllocated // 8)
            assert found is not None
            np.testing.assert_array_equal(found, image.view(found.dtype))
            frames += 1
    assert frames >= 10


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_the_buffer_is_as_it_was_after_decoding_in_place(seed, cut):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 4096, rng.integers(1, 30, 2)).astype(np.uint16)
    frame, before, behind = encoded(image), rng.bytes(int(rng.integers(100, 400))), rng.bytes(int(rng.integers(50)))
    buffer = bytearray(before + frame + behind)
    whole = bytes(buffer)
    length = len(frame) // 2 if cut else len(frame)
    found = decode_rle_within(buffer, len(before), length, *image.shape)
    assert bytes(buffer) == whole
    if found is not None:
        np.testing.assert_array_equal(found, image)
    assert found is not None or cut


def test_a_frame_at_the_very_start_of_a_buffer_is_left_to_pydicom():
    image = np.random.default_rng(7).integers(0, 4096, (8, 8)).astype(np.uint16)
    frame = encoded(image)
    found = decode_rle_within(bytearray(frame), 0, len(frame), 8, 8)  # no room for a header before the segments
    assert found is None or np.array_equal(found, image)


def test_an_accelerator_that_cannot_be_loaded_or_refuses_changes_nothing(monkeypatch):
    image = np.random.default_rng(8).integers(0, 4096, (20, 30)).astype(np.uint16)
    monkeypatch.setattr(rle, "accelerator", lambda: lambda *_: None)
    np.testing.assert_array_equal(decode_rle(encoded(image), 20, 30), image)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "osteograde.imaging.dicom.rle_numba", raising=False)
    monkeypatch.delattr(sys.modules["osteograde.imaging.dicom"], "rle_numba", raising=False)
    assert rle.accelerator.__wrapped__() is None


@pytest.fixture(scope="module")
def numba_decode():
    """What numba compiled; what it does not take, OpenCV and pydicom judge as they do without it."""
    pytest.importorskip("numba", reason="numba is an optional accelerator")
    from osteograde.imaging.dicom import rle_numba

    assert rle_numba.works()
    return rle_numba.decode


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_numba_equals_the_image_or_takes_nothing(numba_decode, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, rng.choice([2, 5, 256, 65536]), rng.integers(1, 40, 2)).astype(np.uint16)
    image[rng.random(image.shape) < rng.random()] = 0
    frame = bytearray(encoded(image))
    strips = rle._segments(frame, 0, len(frame))
    np.testing.assert_array_equal(numba_decode(frame, strips, *image.shape), image)
    for at in rng.integers(64, len(frame), rng.integers(1, 9)):
        frame[at] = rng.integers(256)
    cut = frame[: int(rng.integers(64, len(frame) + 1))]
    for damaged in (frame, cut):
        strips = rle._segments(damaged, 0, len(damaged))
        if len(strips) == 2:
            found = numba_decode(damaged, strips, *image.shape)
            assert found is None or found.shape == image.shape


def test_numba_refuses_planes_outside_the_buffer(numba_decode):
    for strips in ([(0, 2), (2, 1000)], [(-4, 2), (0, 2)], [(0, 2), (900, 2)]):
        assert numba_decode(bytearray(100), strips, 4, 4) is None

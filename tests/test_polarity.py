"""Bone is bright whatever the tags are called that say so; padding and deep colours do not change the picture."""

from __future__ import annotations

import struct
import zlib
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from osteograde.imaging.dicom import read_slice
from osteograde.imaging.dicom.radiograph import film_outline, read_film
from osteograde.imaging.film_polarity import crop_score, is_background_bright, is_negative_crop
from osteograde.imaging.geometry import Volume
from osteograde.imaging.image_files import read_pixels
from osteograde.imaging.windowing import window
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Series, Study
from tests.dicom_files import dataset, write
from tests.test_dicom import DATA

TOP = 4095
RAMP = np.add.outer(np.arange(60) * 40, np.arange(40) * 30).astype(np.uint16)  # 0 to 3530


def lut(entries, name="VOILUTSequence", first=0):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, 16]
    item.add_new(0x00283006, "OW", np.asarray(entries, "<u2").tobytes())
    if name == "ModalityLUTSequence":
        item.ModalityLUTType = "US"
    return {name: Sequence([item])}


FALLING = np.arange(TOP, -1, -1)
RISING = np.sqrt(np.arange(TOP + 1)) * 64


def film(tmp_path, pixels, **tags):
    return read_film(write(tmp_path / "film.dcm", dataset(pixels.astype(np.uint16), **tags)))


@pytest.mark.parametrize(
    ("tags", "is_inverted", "codes"),
    [
        ({}, False, ()),
        ({"PhotometricInterpretation": "MONOCHROME1"}, True, ()),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True, ()),
        ({"PresentationLUTShape": "IDENTITY"}, False, ()),
        ({"PresentationLUTShape": "INVERSE"}, True, ("polarity_contradicts",)),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            True,
            ("polarity_contradicts",),
        ),
        (lut(FALLING), True, ("voi_lut_inverts",)),
        (lut(RISING), False, ()),
        (lut(FALLING[:50], first=1000), True, ("voi_lut_inverts",)),
        (lut(FALLING, "ModalityLUTSequence"), True, ()),
        ({"PhotometricInterpretation": "MONOCHROME1", **lut(FALLING, "ModalityLUTSequence")}, False, ()),
        ({"PhotometricInterpretation": "MONOCHROME1", **lut(FALLING)}, False, ("voi_lut_inverts",)),
    ],
    ids=str,
)
def test_what_is_stored_inverted_is_read_upright(tmp_path, tags, is_inverted, codes):
    stored = TOP - RAMP if is_inverted else RAMP
    read = film(tmp_path, stored, **tags)
    assert np.corrcoef(read.pixels.ravel(), RAMP.ravel())[0, 1] > 0.99
    assert read.codes == Counter(codes)
    one = read_slice(tmp_path / "film.dcm")  # a slice is read alike
    assert np.corrcoef(one.pixels.ravel(), RAMP.ravel())[0, 1] > 0.99 and one.notes == codes


def test_a_modality_lut_gives_the_values_and_no_rescaling_follows(tmp_path):
    entries = np.arange(TOP + 1) * 2
    read = film(tmp_path, RAMP, RescaleSlope=5, RescaleIntercept=9, **lut(entries, "ModalityLUTSequence"))
    np.testing.assert_array_equal(read.pixels, 2.0 * RAMP)


@pytest.mark.parametrize("change", ["descriptor", "data", "empty"])
def test_a_lut_that_makes_no_sense_is_left_alone(tmp_path, change):
    tags = lut(FALLING, "ModalityLUTSequence")
    item = tags["ModalityLUTSequence"][0]
    if change == "descriptor":
        del item.LUTDescriptor
    elif change == "data":
        del item[0x00283006]
    else:
        tags = {"ModalityLUTSequence": Sequence([]), "VOILUTSequence": Sequence([])}
    np.testing.assert_array_equal(film(tmp_path, RAMP, **tags).pixels, RAMP)


def seen(pixels: np.ndarray) -> np.ndarray:
    return window([Volume(pixels[None], np.eye(4))])[0].voxels[0]


@pytest.mark.parametrize(
    ("photometric", "padding", "limit", "signed"),
    [("MONOCHROME2", TOP, None, False), ("MONOCHROME1", 0, None, False), ("MONOCHROME2", 4000, TOP, False),
     ("MONOCHROME2", TOP, 4000, False), ("MONOCHROME2", -2000, None, True), ("MONOCHROME2", 2000, None, True),
     ("MONOCHROME2", 0, None, False)],
)  # fmt: skip
@pytest.mark.parametrize("read", [lambda path: read_film(path).pixels, lambda path: read_slice(path).pixels])
def test_padding_is_no_part_of_the_window(tmp_path, photometric, padding, limit, signed, read):
    dtype = np.int16 if signed else np.uint16
    picture = (RAMP // 2 + 500).astype(dtype) - (1000 if signed else 0)
    stored = picture if photometric == "MONOCHROME2" else TOP - picture
    stored = stored.astype(dtype)
    stored[:, :8] = padding
    if limit is not None:
        stored[:9, :8] = limit
    tags = {
        "PhotometricInterpretation": photometric,
        "BitsStored": 16 if signed else 12,
        "HighBit": 15 if signed else 11,
    }
    made = dataset(stored, **tags)
    made.add_new(0x00280120, "SS" if signed else "US", padding)
    if limit is not None:
        made.add_new(0x00280121, "SS" if signed else "US", limit)
    grey = seen(read(write(tmp_path / "a.dcm", made)))
    alone = seen(picture[:, 8:])
    np.testing.assert_allclose(grey[:, 8:].astype(int), alone.astype(int), atol=1)
    assert (grey[:, :8] == 0).all()


def test_pixels_that_are_not_square_are_as_high_as_the_file_says(tmp_path):
    made = dataset(RAMP, PixelAspectRatio=[2, 1], without=("PixelSpacing",))
    path = write(tmp_path / "a.dcm", made)
    assert read_film(path).pixel_height == 2.0 and read_film(path).pixel_mm is None
    assert film_outline(path) == (40, 120, "", 0.0)
    loaded = load_study(Study("a", "a", (Series("a", "film", tmp_path, (path,)),)), TASKS["knee-xray"])
    steps = loaded.volumes["film"][0].spacing_mm
    assert steps[1] == pytest.approx(2 * steps[2]) and loaded.faults["film:pixels_not_square"] == 1
    write(path, dataset(RAMP, PixelAspectRatio=[0, 1], without=("PixelSpacing",)))
    assert read_film(path).pixel_height == 1.0


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits; OpenCV writes no grey beside transparency."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("scale", [1, 8, 16])
def test_deep_colours_keep_all_their_values(tmp_path, scale):
    deep = (RAMP * scale).astype(np.uint16)
    colours = np.repeat(deep[..., None], 3, -1)
    cv2.imwrite(str(tmp_path / "rgb.png"), colours)
    cv2.imwrite(str(tmp_path / "rgb.tif"), colours)
    cv2.imwrite(str(tmp_path / "rgba.png"), np.dstack([colours, np.full_like(deep, 65535)]))
    (tmp_path / "grey_alpha.png").write_bytes(png16(np.dstack([deep, np.full_like(deep, 65535)]), 4))
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_pixels(path), deep, err_msg=path.name)


def test_deep_colours_become_luminance(tmp_path):
    red = np.zeros((4, 5, 3), np.uint16)
    red[..., 2] = 10000  # OpenCV's last channel
    cv2.imwrite(str(tmp_path / "red.png"), red)
    assert (read_pixels(tmp_path / "red.png") == 2990).all()


def joint(seed=0) -> np.ndarray:
    """A bright bone in its middle, dark air at its sides, and some grain."""
    x = np.abs(np.linspace(-1, 1, 200))
    grain = np.random.default_rng(seed).normal(0, 6, (200, 200))
    return np.clip(200 - 170 * x**2 + grain, 0, 255).astype(np.uint8)


def test_a_negative_of_a_crop_is_turned_and_counted(tmp_path):
    for name, pixels in (("plain", joint()), ("negative", 255 - joint())):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    seen = {}
    for name in ("plain", "negative"):
        series = Series(name, "film", tmp_path, (tmp_path / f"{name}.png",), (4.0, 0.7, 0.7), "right")
        loaded = load_study(Study(name, name, (series,), targets=("right",)), TASKS["knee-xray"])
        seen[name] = loaded.volumes["film"][0].voxels
        assert loaded.faults["film:negative_turned"] == (name == "negative")
    np.testing.assert_allclose(seen["plain"].astype(int), seen["negative"].astype(int), atol=1)


def test_a_film_whose_air_is_bright_is_in_doubt():
    film = np.zeros((300, 400), np.uint8)
    bone = cv2.resize(np.random.default_rng(0).integers(90, 255, (60, 20)).astype(np.uint8), (100, 300))
    film[:, 60:160], film[:, 240:340] = bone, bone
    assert not is_background_bright(film) and is_background_bright(255 - film)
    assert not is_background_bright(np.zeros((50, 50), np.uint8))


def test_no_real_crop_is_near_the_limit():
    """Of 6,604 crops 84 are negatives; here every twentieth is looked at."""
    files = sorted((DATA / "knee-kl").rglob("*.webp"))[::20]
    if not files:
        pytest.skip(f"{DATA / 'knee-kl'} is not there")
    scores = np.array([crop_score(read_pixels(path)) for path in files])
    assert not ((scores > -0.2) & (scores < 0.1)).any()
    assert 1 <= sum(is_negative_crop(read_pixels(path)) for path in files) <= 10

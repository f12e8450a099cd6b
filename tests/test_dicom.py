"""A folder of files to volumes: ordered by where the slices lie, split where they do not belong together, never lost
to one bad file."""

import os
import struct
import tracemalloc
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless

from osteograde.imaging.dicom import UnreadableSeries, UnreadableSlice, fast_header, read_series, read_slice
from osteograde.imaging.dicom import read as slices
from osteograde.imaging.geometry import apply
from tests.dicom_files import AXIAL, FRAME, SAGITTAL, dataset, pattern, write, write_series

GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")
STEPS = ("SpacingBetweenSlices", "SliceThickness")
DIRECTIONS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # of a sagittal view
DATA = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).parent.parent / "../shared/data"))


def numbers(volume) -> list[int]:
    """Which of the patterns 0, 1, ... each slice holds."""
    return [int(plane[0, 0]) - 100 for plane in volume.voxels]


def only(folder: Path, **options):
    volumes, codes = read_series(folder, **options)
    assert len(volumes) == 1
    return volumes[0], codes


# --- healthy series --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rle", [False, True])
def test_a_healthy_series_is_one_volume_with_nothing_to_report(tmp_path, rle):
    volume, codes = only(write_series(tmp_path / "77", rle=rle, spacing=(0.7, 0.4)))
    # the normal of rows to the back and columns to the feet points to the patient's right
    assert numbers(volume) == [5, 4, 3, 2, 1, 0] and not codes
    assert volume.names == ("6", "5", "4", "3", "2", "1")
    assert volume.voxels.dtype == np.uint16 and volume.series == "77" and volume.frame == FRAME
    np.testing.assert_array_equal(volume.voxels[0], pattern(5))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31))
def test_every_pixel_is_where_its_own_file_says(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("oblique")
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    step = np.cross(axes[0], axes[1]) * rng.uniform(2, 6) + axes[0] * rng.uniform(-0.5, 0.5)  # leaning a little
    origin, spacing = rng.normal(size=3) * 80, rng.uniform(0.3, 1.2, 2)
    count = int(rng.integers(2, 6))
    for name, k in enumerate(rng.permutation(count)):  # names and instance numbers tell nothing
        made = dataset(
            pattern(k),
            position=np.round(origin + k * step, 5),
            orientation=np.round([*axes[0], *axes[1]], 7),
            spacing=np.round(spacing, 6),
            instance=int(rng.integers(5000)),
        )
        write(folder / f"{name}.dcm", made)
    volume, codes = only(folder)
    assert not codes
    for z, name in enumerate(volume.names):
        file = pydicom.dcmread(folder / f"{name}.dcm")
        row, column = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
        y, x = int(rng.integers(16)), int(rng.integers(12))
        place = np.array(file.ImagePositionPatient, float)
        place += x * row * float(file.PixelSpacing[1]) + y * column * float(file.PixelSpacing[0])
        np.testing.assert_allclose(apply(volume.to_mm, np.array([z, y, x])), place, atol=1e-3)
        assert volume.voxels[z, y, x] == file.pixel_array[y, x]


def test_falling_instance_numbers_change_the_names_only(tmp_path):
    rising, _ = only(write_series(tmp_path / "a"))
    for k in range(6):
        place = np.array([-10.0 + 4 * k, 20.0, 30.0])
        write(tmp_path / "b" / f"{99 - k}.dcm", dataset(pattern(k), position=place, instance=99 - k))
    falling, _ = only(tmp_path / "b")
    np.testing.assert_array_equal(rising.voxels, falling.voxels)
    np.testing.assert_allclose(rising.to_mm, falling.to_mm)
    assert falling.names == ("94", "95", "96", "97", "98", "99")


def test_a_thread_pool_gives_the_same(tmp_path):
    write_series(tmp_path / "s", 9, rle=True)
    plain, _ = only(tmp_path / "s")
    with ThreadPoolExecutor(3) as pool:
        pooled, _ = only(tmp_path / "s", map=pool.map)
    np.testing.assert_array_equal(plain.voxels, pooled.voxels)
    assert plain.names == pooled.names


def test_names_and_extensions_mean_nothing(tmp_path):
    for k, name in enumerate(["IM-0000.DCM", "b", "1.2.840.7", "\u8108 Gr\u00f6\u00dfe.dcm"]):
        write(tmp_path / name, dataset(pattern(k), position=(4.0 * k, 0, 0), instance=k))
    volume, codes = only(tmp_path)
    assert numbers(volume) == [3, 2, 1, 0] and not codes
    assert volume.names == ("\u8108 Gr\u00f6\u00dfe", "1.2.840.7", "b", "IM-0000")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_the_short_way_into_a_file_agrees_with_pydicom(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    kind = rng.choice(["<u2", "<i2"])
    tags = {
        "PhotometricInterpretation": str(rng.choice(["MONOCHROME1", "MONOCHROME2"])),
        "BitsStored": int(rng.choice([10, 12, 16])),
        "PixelSpacing": [float(x) for x in np.round(rng.uniform(0.2, 2, 2), 4)],
        "SliceLocation": float(np.round(rng.normal(), 3)),
        "RescaleSlope": float(rng.choice([1.0, 2.0])),
        "RescaleIntercept": float(rng.choice([0.0, -5.0])),
        "PatientName": "A" * int(rng.integers(0, 30)),
        "SpecificCharacterSet": str(rng.choice(["ISO_IR 100", "ISO_IR 192"])),
        "SeriesInstanceUID": "1.2.3.40",
        "SeriesNumber": int(rng.integers(1, 9)),
        "SeriesDescription": str(rng.choice(["t2_tse_sag", "T1 pond\u00e9r\u00e9 ", "a\\b"])),
        "ProtocolName": " L-SPINE ",
        "ImageType": ["ORIGINAL", "PRIMARY", str(rng.choice(["M", "P", "R", "I", "OTHER"]))],
        "ScanningSequence": [["SE"], ["SE", "IR"], "GR"][int(rng.integers(3))],
        "EchoTime": float(rng.choice([0.0, 9.5, 101.0])),
        "RepetitionTime": 3500.5,
        "InversionTime": 160,
        "EchoNumbers": int(rng.integers(1, 3)),
        "FlipAngle": 90.0,
        "ContrastBolusAgent": str(rng.choice(["", "Gadovist", "NONE"])),
        "DiffusionBValue": float(rng.choice([0.0, 800.0])),
        "TriggerTime": 40.25,
        "TemporalPositionIdentifier": 2,
        "AcquisitionNumber": 3,
        "AcquisitionTime": "101530.25",
    }
    tags["HighBit"] = tags["BitsStored"] - 1
    gone = [tag for tag in (*GEOMETRY, *STEPS, "InstanceNumber", "HighBit", "RescaleSlope") if rng.random() < 0.2]
    pixels = rng.integers(0, 1000, rng.integers(1, 20, 2)).astype(kind)
    rle = bool(rng.random() < 0.5)
    made = dataset(pixels, rle=rle, instance=int(rng.integers(-9, 9999)), without=gone, **tags)
    if rng.random() < 0.5:
        made.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        made.add_new(0x0019100C, "IS", 50)
        made.add_new(0x00431039, "IS", [1000000400, 8, 0])
        made.add_new(0x0043102F, "SS", int(rng.integers(0, 4)))
    path = write(tmp_path_factory.mktemp("short") / "a", made)
    assert fast_header.quick_read(bytearray(path.read_bytes())) is not None
    short = read_slice(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "quick_read", lambda data: None)
        full = read_slice(path)
    for field in fields(short):
        np.testing.assert_array_equal(getattr(short, field.name), getattr(full, field.name), err_msg=field.name)
    assert short.pixels.dtype == full.pixels.dtype


# --- splitting -------------------------------------------------------------------------------------------------------


def test_each_tilt_is_a_volume(tmp_path):
    for group, degrees in enumerate((0.0, 8.0, 17.0)):
        angle = np.radians(degrees)
        row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), -np.sin(angle)])
        for k in range(3):
            place = np.array([0, 0, -40.0 * group]) + 4.0 * k * np.cross(row, column)
            n = 3 * group + k
            write(
                tmp_path / f"{n}.dcm",
                dataset(pattern(n), position=place, orientation=[*row, *column], instance=n),
            )
    volumes, codes = read_series(tmp_path)
    assert [numbers(volume) for volume in volumes] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]] and not codes


def test_a_rounded_orientation_is_the_same_tilt(tmp_path):
    for k in range(4):
        turned = np.array(SAGITTAL) + (0.0004 if k % 2 else 0.0)
        write(tmp_path / f"{k}.dcm", dataset(pattern(k), position=(4.0 * k, 0, 0), orientation=turned, instance=k))
    assert numbers(only(tmp_path)[0]) == [3, 2, 1, 0]


def test_a_gap_splits_and_a_small_irregularity_does_not(tmp_path):
    for k, x in enumerate([0.0, 4.0, 8.0, 12.3, 30.0, 34.0]):
        write(tmp_path / f"{k}.dcm", dataset(pattern(k), position=(x, 0, 0), instance=k))
    volumes, codes = read_series(tmp_path)
    assert sorted(numbers(volume) for volume in volumes) == [[3, 2, 1, 0], [5, 4]] and not codes
    np.testing.assert_allclose(sorted(volume.spacing_mm[0] for volume in volumes), [4.0, 4.1], atol=1e-6)


def test_slabs_of_one_tilt_that_overlap_are_taken_apart(tmp_path):
    places = [0.0, 4.0, 8.0, 12.0, 10.0, 14.0, 18.0, 22.0]
    for k, z in enumerate(places):
        write(tmp_path / f"{k}.dcm", dataset(pattern(k), position=(0, 0, z), orientation=AXIAL, instance=k))
    volumes, _ = read_series(tmp_path)
    assert [numbers(volume) for volume in volumes] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_slabs_that_are_shifted_sideways_are_taken_apart(tmp_path):
    for k in range(6):
        place = (0.0, 0.0 if k < 3 else 15.0, 4.0 * k)
        write(tmp_path / f"{k}.dcm", dataset(pattern(k), position=place, orientation=AXIAL, instance=k))
    volumes, _ = read_series(tmp_path)
    assert [numbers(volume) for volume in volumes] == [[0, 1, 2], [3, 4, 5]]


def test_sizes_and_spacings_are_kept_apart(tmp_path):
    for k in range(6):
        shape, spacing = (
            ((16, 12), (0.5, 0.5)) if k < 3 else ((20, 12), (0.5, 0.5)) if k < 5 else ((16, 12), (0.5, 0.6))
        )
        made = dataset(pattern(k, shape), position=(0, 0, 4.0 * k), orientation=AXIAL, spacing=spacing, instance=k)
        write(tmp_path / f"{k}.dcm", made)
    volumes, _ = read_series(tmp_path)
    assert [numbers(volume) for volume in volumes] == [[0, 1, 2], [3, 4], [5]]


def test_repeats_of_a_position_become_volumes_of_their_own(tmp_path):
    for echo in range(2):
        for k in range(3):
            n = 3 * echo + k
            write(tmp_path / f"{n}.dcm", dataset(pattern(n), position=(0, 0, 4.0 * k), orientation=AXIAL, instance=n))
    volumes, codes = read_series(tmp_path)
    assert [numbers(volume) for volume in volumes] == [[0, 1, 2], [3, 4, 5]]
    assert codes == Counter(places_repeated=3)


def test_an_uneven_stack_is_said_to_be_uneven(tmp_path):
    for k, z in enumerate([0.0, 4.0, 8.0, 13.5, 19.0, 24.5]):
        write(tmp_path / f"{k}.dcm", dataset(pattern(k), position=(0, 0, z), orientation=AXIAL, instance=k))
    volumes, codes = read_series(tmp_path)
    assert sum(len(volume.names) for volume in volumes) == 6
    assert codes["uneven_slices"] == (len(volumes) == 1)


def test_frames_of_reference_are_kept_apart(tmp_path):
    for k in range(4):
        frame = "1.2.3" if k < 2 else "1.2.9"
        write(
            tmp_path / f"{k}.dcm", dataset(pattern(k), position=(4.0 * k, 0, 0), instance=k, FrameOfReferenceUID=frame)
        )
    assert sorted(volume.frame for volume in read_series(tmp_path)[0]) == ["1.2.3", "1.2.9"]


def test_one_slice_takes_its_step_from_the_tags_or_a_usual_one(tmp_path):
    write(tmp_path / "a" / "1.dcm", dataset(pattern(0)))
    write(tmp_path / "b" / "1.dcm", dataset(pattern(0), without=("SpacingBetweenSlices",)))
    write(tmp_path / "c" / "1.dcm", dataset(pattern(0), without=("SpacingBetweenSlices", "SliceThickness")))
    steps = [only(tmp_path / name)[0].to_mm[:3, 0] for name in "abc"]
    np.testing.assert_allclose(steps, [[-4.0, 0, 0], [-3.5, 0, 0], [-4.0, 0, 0]])


# --- missing tags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags", [("InstanceNumber",), STEPS, ("FrameOfReferenceUID",), ("SOPInstanceUID", "SOPClassUID"), ("HighBit",)]
)
def test_tags_that_are_not_needed_change_nothing(tmp_path, tags):
    for k in range(6):
        made = dataset(pattern(k), position=(4.0 * k, 0, 0), instance=k)
        for tag in tags:
            del made[tag]
        made.save_as(tmp_path / f"{k}.dcm", enforce_file_format=False)
    volume, codes = only(tmp_path)
    assert numbers(volume) == [5, 4, 3, 2, 1, 0] and not codes


def test_without_positions_instance_numbers_order_along_the_views_direction(tmp_path):
    write_series(tmp_path / "s", without=("ImagePositionPatient",))
    volume, codes = only(tmp_path / "s", default_directions=DIRECTIONS)
    order = numbers(volume)
    left = [apply(volume.to_mm, np.array([z, 0, 0]))[0] for z in np.argsort(order)]
    np.testing.assert_allclose(np.diff(left), 4.0)
    assert codes == Counter(position_assumed=6)


def test_without_positions_and_instance_numbers_the_location_orders(tmp_path):
    for k in range(6):
        made = dataset(pattern(k), instance=1, SliceLocation=40.0 - 4 * k, without=("ImagePositionPatient",))
        write(tmp_path / f"{k}.dcm", made)
    volume, _ = only(tmp_path)
    assert numbers(volume) in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])


def test_a_missing_position_between_others_is_interpolated(tmp_path):
    write_series(tmp_path / "s")
    write(tmp_path / "s" / "3.dcm", dataset(pattern(2), instance=3, without=("ImagePositionPatient",)))
    volume, codes = only(tmp_path / "s")
    assert numbers(volume) == [5, 4, 3, 2, 1, 0] and codes == Counter(position_interpolated=1)
    assert volume.spacing_mm[0] == pytest.approx(4.0)


def test_equal_or_senseless_positions_fall_back_to_instance_numbers(tmp_path):
    write_series(tmp_path / "equal", step=(0.0, 0.0, 0.0))
    for k in range(6):
        made = dataset(pattern(k), instance=k)
        made["ImagePositionPatient"]._value = ["nan", "nan", "nan"]
        write(tmp_path / "nan" / f"{k}.dcm", made)
    for folder, code in (("equal", "positions_equal"), ("nan", "position_assumed")):
        volume, codes = only(tmp_path / folder)
        assert numbers(volume) == [5, 4, 3, 2, 1, 0] or numbers(volume) == [0, 1, 2, 3, 4, 5]
        assert codes[code] == 6


def test_a_missing_orientation_comes_from_the_others_or_from_the_view(tmp_path):
    write_series(tmp_path / "some")
    place = (2.0, 20.0, 30.0)
    made = dataset(pattern(3), position=place, instance=4, without=("ImageOrientationPatient",))
    write(tmp_path / "some" / "4.dcm", made)
    volume, codes = only(tmp_path / "some")
    assert numbers(volume) == [5, 4, 3, 2, 1, 0] and codes == Counter(orientation_assumed=1)
    write_series(tmp_path / "all", without=("ImageOrientationPatient",))
    volume, codes = only(tmp_path / "all", default_directions=DIRECTIONS)
    assert codes == Counter(orientation_assumed=6)
    np.testing.assert_allclose(volume.axes, [-DIRECTIONS[0], DIRECTIONS[1], DIRECTIONS[2]])


@pytest.mark.parametrize("value", [None, [0.0, 0.0], [-1.0, 0.5], [500.0, 500.0]])
def test_a_missing_or_senseless_spacing_is_the_median_of_the_others(tmp_path, value):
    write_series(tmp_path / "s", spacing=(0.6, 0.4))
    made = dataset(pattern(2), position=(-2.0, 20.0, 30.0), instance=3, PixelSpacing=value)
    write(tmp_path / "s" / "3.dcm", made)
    volume, codes = only(tmp_path / "s")
    np.testing.assert_allclose(volume.spacing_mm, [4.0, 0.6, 0.4])
    assert codes == Counter(spacing_assumed=1)


def test_a_file_with_nothing_but_pixels_is_read(tmp_path):
    made = dataset(pattern(0), without=(*GEOMETRY, *STEPS, "InstanceNumber"))
    write(tmp_path / "1.dcm", made)
    volume, codes = only(tmp_path)
    assert volume.voxels.shape == (1, 16, 12) and np.isfinite(volume.to_mm).all()
    assert codes == Counter(orientation_assumed=1, spacing_unknown=1, position_assumed=1)


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rle", [False, True])
def test_monochrome1_is_inverted(tmp_path, rle):
    made = dataset(pattern(0), rle=rle, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_slice(write(tmp_path / "a", made)).pixels, 4095 - pattern(0))
    signed = pattern(0).astype(np.int16) - 350
    made = dataset(signed, rle=rle, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_slice(write(tmp_path / "b", made)).pixels, -1 - signed)


@pytest.mark.parametrize("rle", [False, True])
def test_signed_pixels_are_sign_extended_from_the_stored_bits(tmp_path, rle):
    values = np.arange(-96, 96, dtype=np.int16).reshape(16, 12)
    plain = dataset(values, rle=rle)
    np.testing.assert_array_equal(read_slice(write(tmp_path / "a", plain)).pixels, values)
    cut = dataset((values & 0x0FFF).astype(np.uint16), rle=rle, PixelRepresentation=1)  # no sign above bit 11
    found = read_slice(write(tmp_path / "b", cut)).pixels
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, values)


def test_bits_outside_the_stored_ones_are_ignored(tmp_path):
    overlaid = pattern(0) | np.uint16(0x8000)  # an old-style overlay in the top bit
    np.testing.assert_array_equal(read_slice(write(tmp_path / "a", dataset(overlaid))).pixels, pattern(0))
    high = dataset(pattern(0) << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read_slice(write(tmp_path / "b", high)).pixels, pattern(0))


def test_rescale_is_applied_where_present_and_sensible(tmp_path):
    made = dataset(pattern(0), RescaleSlope=2.5, RescaleIntercept=-100)
    np.testing.assert_allclose(read_slice(write(tmp_path / "a", made)).pixels, pattern(0) * 2.5 - 100)
    made = dataset(pattern(0), RescaleSlope=0, RescaleIntercept=0)
    np.testing.assert_array_equal(read_slice(write(tmp_path / "b", made)).pixels, pattern(0))
    made = dataset(pattern(0), RescaleSlope=1, RescaleIntercept=0)
    assert read_slice(write(tmp_path / "c", made)).pixels.dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_other_depths_are_accepted(tmp_path, dtype):
    values = (pattern(0) % 250).astype(dtype)
    for rle in (False, True) if dtype == np.uint8 else (False,):
        np.testing.assert_array_equal(read_slice(write(tmp_path / "a", dataset(values, rle=rle))).pixels, values)


def test_float_pixels_are_accepted(tmp_path):
    values = pattern(0).astype(np.float32) / 7
    made = dataset(pattern(0), BitsAllocated=32, without=("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    made.FloatPixelData = values.tobytes()
    np.testing.assert_allclose(read_slice(write(tmp_path / "a", made)).pixels, values)


@pytest.mark.parametrize("rle", [False, True])
def test_colour_becomes_grey(tmp_path, rle):
    colour = np.random.default_rng(0).integers(0, 255, (16, 12, 3)).astype(np.uint8)
    made = dataset(colour, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsStored=8)
    made.HighBit = 7
    if rle:
        made.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
    expected = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_slice(write(tmp_path / "a", made)).pixels, expected, atol=0.01)


def test_a_palette_becomes_grey(tmp_path):
    index = (pattern(0) % 4).astype(np.uint8)
    made = dataset(index, PhotometricInterpretation="PALETTE COLOR", BitsStored=8, HighBit=7)
    grey = np.array([0, 1000, 20000, 65535], "<u2")
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(made, f"{colour}PaletteColorLookupTableData", grey.tobytes())
    np.testing.assert_allclose(read_slice(write(tmp_path / "a", made)).pixels, grey[index], rtol=1e-5)


def multiframe(count: int, placed: bool) -> Dataset:
    frames = np.stack([pattern(k) for k in range(count)])
    made = dataset(pattern(0), NumberOfFrames=count, PixelData=frames.tobytes(), without=GEOMETRY[:3])
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = list(SAGITTAL)
    measures.PixelSpacing = [0.5, 0.5]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    if placed:
        made.SharedFunctionalGroupsSequence = [shared]
        made.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(count)]
        for k, group in enumerate(made.PerFrameFunctionalGroupsSequence):
            place = Dataset()
            place.ImagePositionPatient = [4.0 * k, 0.0, 0.0]
            group.PlanePositionSequence = [place]
    return made


def test_frames_with_their_own_positions_are_slices(tmp_path):
    write(tmp_path / "all.dcm", multiframe(4, placed=True))
    volume, codes = only(tmp_path)
    assert numbers(volume) == [3, 2, 1, 0] and not codes
    np.testing.assert_allclose(volume.spacing_mm, [4.0, 0.5, 0.5])
    with pytest.raises(UnreadableSlice, match="several_frames"):
        read_slice(tmp_path / "all.dcm")


def test_frames_without_positions_are_slices_in_their_order(tmp_path):
    write(tmp_path / "all.dcm", multiframe(4, placed=False))
    volume, codes = only(tmp_path)
    assert numbers(volume) in ([0, 1, 2, 3], [3, 2, 1, 0])
    assert codes["frame_without_position"] == codes["position_assumed"] == 4


def test_frames_of_files_that_say_where_they_lie_are_repeats_of_a_stack(tmp_path):
    for k in range(3):
        frames = np.stack([pattern(10 * frame + k) for frame in range(2)])
        made = dataset(pattern(0), position=(0, 0, 4.0 * k), orientation=AXIAL, NumberOfFrames=2)
        made.PixelData = frames.tobytes()
        write(tmp_path / f"{k}.dcm", made)
    volumes, codes = read_series(tmp_path)
    assert [numbers(volume) for volume in volumes] == [[0, 1, 2], [10, 11, 12]]
    assert codes == Counter(frame_without_position=6, places_repeated=3)


def test_a_picture_of_the_screen_lies_nowhere_and_is_dropped(tmp_path):
    write_series(tmp_path, 4)
    write(tmp_path / "9.dcm", dataset(pattern(9, (20, 30)), instance=9, without=GEOMETRY))
    volume, codes = only(tmp_path)
    assert numbers(volume) == [3, 2, 1, 0] and codes["position_missing"] == 1


# --- bad files: each costs its own slice, with its reason ------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no DICOM at all, but named like one\n" * 40)
    elif how == "header cut":
        path.write_bytes(data[:200])
    elif how == "cut":
        path.write_bytes(data[: -60 if b"1.2.840.10008.1.2.5\0" in data else -250])
    elif how == "no pixels":
        write(path, dataset(pattern(2), instance=3, without=("PixelData",)))
    elif how == "huge":
        write(path, dataset(pattern(2), instance=3, Rows=65535, Columns=65535))
    elif how == "zero rows":
        write(path, dataset(pattern(2), instance=3, Rows=0))
    elif how == "no decoder":
        made = dataset(pattern(2), instance=3, rle=True)
        made.file_meta.TransferSyntaxUID = JPEGLSLossless
        write(path, made)
    elif how == "unknown syntax":
        made = dataset(pattern(2), instance=3)
        made.file_meta.TransferSyntaxUID = "1.2.3.4.5"
        made.save_as(path, implicit_vr=False, little_endian=True)


@pytest.mark.parametrize(
    ("how", "rle", "code"),
    [
        ("empty", False, "empty_file"),
        ("text", False, "not_dicom"),
        ("header cut", False, "file_cut"),
        ("cut", False, "pixels_cut"),
        ("cut", True, "file_cut"),
        ("no pixels", False, "no_pixels"),
        ("huge", False, "image_too_large"),
        ("zero rows", False, "no_size"),
        ("no decoder", False, "no_decoder_JPEGLSLossless"),
        ("unknown syntax", False, "unknown_syntax"),
    ],
)
def test_a_bad_file_costs_its_own_slice(tmp_path, how, rle, code):
    write_series(tmp_path / "s", 7, rle=rle)
    spoil(tmp_path / "s" / "7.dcm", how)
    volume, codes = only(tmp_path / "s")
    assert numbers(volume) == [5, 4, 3, 2, 1, 0]
    assert codes == Counter({code: 1})
    for k in range(1, 7):
        (tmp_path / "s" / f"{k}.dcm").unlink()
    with pytest.raises(UnreadableSeries) as error:
        read_series(tmp_path / "s")
    assert error.value.code == code and error.value.codes == Counter({code: 1})


def test_a_bad_file_in_the_middle_does_not_halve_the_stack(tmp_path):
    write_series(tmp_path / "bad", 7)
    spoil(tmp_path / "bad" / "3.dcm", "empty")
    volume, codes = only(tmp_path / "bad")
    assert numbers(volume) == [6, 5, 4, 3, 3, 1, 0] and codes == Counter(empty_file=1, slice_repeated=1)
    assert volume.spacing_mm[0] == pytest.approx(4.0)
    write_series(tmp_path / "gap", 7)
    (tmp_path / "gap" / "3.dcm").unlink()  # nothing says that there ever was one
    assert [numbers(volume) for volume in read_series(tmp_path / "gap")[0]] == [[6, 5, 4, 3], [1, 0]]


def test_strangers_in_the_folder_are_passed_over(tmp_path):
    write_series(tmp_path / "s")
    (tmp_path / "s" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(600))
    (tmp_path / "s" / "inner").mkdir()
    write_series(tmp_path / "s" / "inner")
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s" / "loop")
    volume, codes = only(tmp_path / "s")
    assert len(volume.names) == 6 and codes == Counter(not_dicom=1)


def test_pixels_cut_short_by_less_than_half_are_filled(tmp_path):
    write_series(tmp_path / "s")
    path = tmp_path / "s" / "6.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    volume, codes = only(tmp_path / "s")
    assert numbers(volume) == [5, 4, 3, 2, 1, 0] and codes == Counter(pixels_filled=1)
    np.testing.assert_array_equal(volume.voxels[0].ravel()[:-50], pattern(5).ravel()[:-50])
    assert not volume.voxels[0].ravel()[-50:].any()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_uncompressed_syntaxes_are_read(tmp_path, syntax):
    made = dataset(pattern(0), PixelData=pattern(0).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes())
    made.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(tmp_path / "a", made, enforce_file_format=True)
    np.testing.assert_array_equal(read_slice(tmp_path / "a").pixels, pattern(0))


@pytest.mark.parametrize("rle", [False, True])
def test_a_file_without_preamble_is_read(tmp_path, rle):
    path = write(tmp_path / "a", dataset(pattern(0), rle=rle))
    path.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read_slice(path).pixels, pattern(0))


@pytest.mark.parametrize("implicit", [False, True])
def test_a_file_without_preamble_and_meta_is_read(tmp_path, implicit):
    made = Dataset({element.tag: element for element in dataset(pattern(0))})
    made.save_as(tmp_path / "a", implicit_vr=implicit, little_endian=True)
    np.testing.assert_array_equal(read_slice(tmp_path / "a").pixels, pattern(0))


@pytest.mark.parametrize(("depth", "read"), [(100, True), (300, None), (20000, False)])
def test_deep_nesting_costs_at_most_its_own_slice(tmp_path, depth, read):
    path = write(tmp_path / "1.dcm", dataset(pattern(0)))
    data = path.read_bytes()
    at = 144 + struct.unpack_from("<L", data, 140)[0]
    opening = bytes.fromhex("09000110") + b"SQ\0\0" + b"\xff" * 4 + bytes.fromhex("feff00e0") + b"\xff" * 4
    closing = bytes.fromhex("feff0de0") + bytes(4) + bytes.fromhex("feffdde0") + bytes(4)
    path.write_bytes(data[:at] + opening * depth + closing * depth + data[at:])
    write(tmp_path / "2.dcm", dataset(pattern(1), position=(4.0, 0, 0), instance=2))
    volume, codes = only(tmp_path)
    assert numbers(volume) in ([[1, 0]] if read else [[1]] if read is False else [[1, 0], [1]])
    assert codes == ({"damaged_header": 1} if len(volume.names) == 1 else {})


def test_bombs_are_refused_before_anything_is_allocated(tmp_path):
    made = dataset(np.zeros((64, 64), np.uint16), rle=True, Rows=8000, Columns=8000)
    rle = write(tmp_path / "rle", made)
    made = dataset(pattern(0))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = write(tmp_path / "deflated", made)
    head = deflated.read_bytes()
    length = struct.unpack_from("<L", head, 140)[0]
    squeezer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated.write_bytes(head[: 144 + length] + squeezer.compress(bytes(100 << 20)) + squeezer.flush())
    tracemalloc.start()
    with pytest.raises(UnreadableSlice, match="pixels_cut"):
        read_slice(rle)
    with pytest.raises(UnreadableSlice, match="inflates_too_far"):
        read_slice(deflated)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 90 << 20  # they ask for 128 and 100 MiB


def test_empty_and_missing_folders_are_refused_with_a_reason(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, code in (("empty", "empty_folder"), ("missing", "no_folder")):
        with pytest.raises(UnreadableSeries) as error:
            read_series(tmp_path / name)
        assert error.value.code == code


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_flipped_and_cut_bytes_never_raise_anything_else(tmp_path_factory, seed, rle):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("flipped")
    write_series(folder, 3, rle=rle)
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        for at in rng.integers(128, len(data), rng.integers(0, 6)):
            data[at] = rng.integers(256)
        path.write_bytes(data[: len(data) - int(rng.integers(0, 50)) * int(rng.integers(0, 2))])
    try:
        volumes, _ = read_series(folder)
    except UnreadableSeries as error:
        assert error.code and sum(error.codes.values()) == 3
    else:
        assert all(np.isfinite(volume.to_mm).all() for volume in volumes)
        assert 1 <= sum(len(volume.names) for volume in volumes) <= 4


def test_reasons_and_warnings_tell_no_patient_data(tmp_path, capfd, recwarn, caplog):
    write_series(tmp_path / "s", PatientName="Doe^Jane", PatientID="P-4711", PatientBirthDate="nonsense")
    for k, how in enumerate(("cut", "header cut", "no decoder", "huge")):
        spoil(tmp_path / "s" / f"{k + 1}.dcm", how)
    capfd.readouterr()
    recwarn.clear()
    caplog.clear()
    _, codes = read_series(tmp_path / "s")
    assert len(codes) == 4
    shown = "".join([*codes, *capfd.readouterr(), caplog.text, *(str(warning.message) for warning in recwarn.list)])
    assert not any(secret in shown for secret in ("Doe", "Jane", "4711", "nonsense"))


# --- real files ------------------------------------------------------------------------------------------------------


def real_folders() -> list[Path]:
    return sorted({path.parent for path in (DATA / "dicom").rglob("*") if path.is_file()})


@pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason="no real files: set OSTEOGRADE_DATA to a folder with dicom/")
def test_every_real_series_is_sorted_or_refused_with_a_reason():
    outcomes = Counter()
    for folder in real_folders():
        try:
            volumes, codes = read_series(folder)
        except UnreadableSeries as error:
            assert error.code
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        files = sum(path.is_file() for path in folder.iterdir())
        dropped = sum(count for code, count in codes.items() if not code.endswith(("assumed", "interpolated", "equal")))
        assert sum(len(volume.names) for volume in volumes) + dropped >= files
        for volume in volumes:
            assert volume.voxels.ndim == 3 and np.isfinite(volume.to_mm).all()
            assert abs(np.linalg.det(volume.to_mm)) > 0
    assert outcomes["read"] >= 4, outcomes


@pytest.mark.skipif(not (DATA / "dicom").is_dir(), reason="no real files: set OSTEOGRADE_DATA to a folder with dicom/")
@pytest.mark.parametrize("folder", ["5005_Product_EPI_Sag_Ascending", "6001_Product_EPI_Sag_Interleaved"])
def test_a_real_stack_is_one_volume_in_the_order_of_its_positions(folder):
    volume, codes = only(DATA / "dicom" / "dcm-qa-sag/In/XA30/classic" / folder)
    assert not codes and volume.voxels.shape[0] == 63
    for z in (0, 31, 62):
        (path,) = (DATA / "dicom").rglob(f"{folder}/{volume.names[z]}.dcm")
        file = pydicom.dcmread(path)
        np.testing.assert_allclose(apply(volume.to_mm, np.array([z, 0, 0])), file.ImagePositionPatient, atol=0.01)
        np.testing.assert_array_equal(volume.voxels[z], file.pixel_array)

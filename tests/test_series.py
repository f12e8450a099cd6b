"""What belongs together: series, echoes, parts of the signal and moments are told apart by their tags, and no stack
mixes them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from osteograde.imaging.dicom import read_series
from tests.dicom_files import SAGITTAL, dataset, pattern, write

SLICES = 4


def numbers(volume) -> list[int]:
    return [int(plane[0, 0]) - 100 for plane in volume.voxels]


def read(folder):
    """{numbers of the patterns of a stack, in rising order: its acquisition}, and the codes."""
    volumes, codes = read_series(folder)
    return {tuple(sorted(numbers(volume))): volume.acquisition for volume in volumes}, codes


def mixed(folder, *ways, seed=0, places=SLICES, step=4.0):
    """Two or more images of every place, one for each mapping of tags, under names and numbers that tell nothing.

    Image k of way n holds pattern 10 * n + k.
    """
    order = np.random.default_rng(seed).permutation(len(ways) * places)
    for name, n in enumerate(order):
        way, k = divmod(int(n), places)
        made = dataset(pattern(10 * way + k), position=(step * k, 0, 0), instance=name + 1)
        for keyword, value in ways[way].items():
            if isinstance(keyword, int):
                made.add_new(keyword, *value)
            else:
                setattr(made, keyword, value(k) if callable(value) else value)
        write(folder / f"{name:03d}.dcm", made)
    return folder


FIRST, SECOND = tuple(range(SLICES)), tuple(range(10, 10 + SLICES))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"SeriesInstanceUID": "1.2.3"}, {"SeriesInstanceUID": "1.2.4"}),
        ({"SeriesNumber": 3}, {"SeriesNumber": 4}),
        ({"SeriesDescription": "sag T2"}, {"SeriesDescription": "sag T1"}),
        ({"EchoTime": 20.0}, {"EchoTime": 90.0}),
        ({"EchoNumbers": 1}, {"EchoNumbers": 2}),
        ({"EchoTime": 2.3}, {"EchoTime": 4.6}),
        ({"RepetitionTime": 550.0}, {"RepetitionTime": 3500.0}),
        ({"InversionTime": 160.0}, {"InversionTime": 0.0}),
        ({"FlipAngle": 5.0}, {"FlipAngle": 20.0}),
        ({"ImageType": ["DERIVED", "PRIMARY", "W"]}, {"ImageType": ["DERIVED", "PRIMARY", "F"]}),
        ({"ImageType": ["DERIVED", "PRIMARY", "X"]}, {"ImageType": ["DERIVED", "PRIMARY", "Y"]}),
        ({"ContrastBolusAgent": "Gadovist"}, {"ContrastBolusAgent": ""}),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}),
        ({}, {"DiffusionBValue": 800.0}),
        ({0x0019100C: ("IS", 0)}, {0x0019100C: ("IS", 600)}),
        ({"ScanningSequence": "SE"}, {"ScanningSequence": "GR"}),
        ({"ProtocolName": "one"}, {"ProtocolName": "two"}),
    ],
    ids=str,
)
def test_contrasts_of_the_same_places_are_two_stacks(tmp_path, one, other):
    stacks, codes = read(mixed(tmp_path, one, other))
    assert set(stacks) == {FIRST, SECOND} and not codes


@pytest.mark.parametrize(
    ("magnitude", "other"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "SE"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P", "SE"]}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M_FFE"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP"]}),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "R_IR"]}),
        ({}, {"ImageType": ["ORIGINAL", "PRIMARY", "I"]}),
        ({"ComplexImageComponent": "MAGNITUDE"}, {"ComplexImageComponent": "PHASE"}),
        ({0x0043102F: ("SS", 0)}, {0x0043102F: ("SS", 3)}),
    ],
    ids=str,
)
def test_only_the_magnitude_of_a_signal_is_kept(tmp_path, magnitude, other):
    stacks, codes = read(mixed(tmp_path, magnitude, other))
    assert set(stacks) == {FIRST} and codes == Counter(not_magnitude=SLICES)


def test_phase_images_alone_are_still_read(tmp_path):
    stacks, codes = read(mixed(tmp_path, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}))
    assert set(stacks) == {FIRST} and not codes and stacks[FIRST].component == "phase"


@pytest.mark.parametrize("word", ["LOCALIZER", "PROJECTION IMAGE", "ADC", "SUBTRACTION", "MIP"])
def test_derived_images_are_left_out_where_there_are_others(tmp_path, word):
    plain = {"ImageType": ["ORIGINAL", "PRIMARY", "M"]}
    stacks, codes = read(mixed(tmp_path, plain, {"ImageType": ["DERIVED", "SECONDARY", word]}))
    assert set(stacks) == {FIRST} and codes == Counter(derived_image=SLICES)


@pytest.mark.parametrize(
    "tags",
    [
        {"EchoTime": lambda k: 90.0 + 0.3 * k},
        {"EchoTime": lambda k: None if k == 2 else 90.0},
        {"SeriesInstanceUID": lambda k: f"1.2.3.{k}"},
        {"SeriesInstanceUID": lambda k: "" if k == 1 else "1.2.3"},
        {"RepetitionTime": lambda k: 900.0 + 40 * k},
        {"TriggerTime": lambda k: 30.0 * k, "AcquisitionNumber": lambda k: k, "AcquisitionTime": lambda k: f"10150{k}"},
        {"ImageType": lambda k: ["ORIGINAL", "PRIMARY", "M", "NORM"][: 3 + k % 2]},
        {"TemporalPositionIdentifier": 1},
    ],
    ids=["echo drifts", "echo missing", "uids", "uid missing", "repetition drifts", "triggered", "type", "moment"],
)
def test_what_differs_between_slices_of_one_stack_does_not_part_it(tmp_path, tags):
    stacks, codes = read(mixed(tmp_path, tags))
    assert set(stacks) == {FIRST} and not codes


MOMENTS = {
    "trigger": {"TriggerTime": lambda n: 40.0 * n},
    "temporal position": {"TemporalPositionIdentifier": lambda n: n + 1},
    "acquisition number": {"AcquisitionNumber": lambda n: n + 1},
    "time": {"AcquisitionTime": lambda n: f"1015{n:02d}.5"},
    "content time": {"ContentTime": lambda n: f"1015{n:02d}.5"},
    "delay": {"NominalCardiacTriggerDelayTime": lambda n: 40.0 * n},
    "reference time": {"FrameReferenceTime": lambda n: 1000.0 * n},
}


@pytest.mark.parametrize("name", MOMENTS)
def test_of_several_moments_of_a_stack_the_first_is_kept(tmp_path, name):
    ways = [{keyword: moment(n) for keyword, moment in MOMENTS[name].items()} for n in range(3)]
    stacks, codes = read(mixed(tmp_path, *ways))
    assert set(stacks) == {FIRST} and codes == Counter(several_moments=2 * SLICES)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_cine_is_one_slice_and_no_stack(tmp_path, name):
    for n in range(6):
        tags = {keyword: moment(n) for keyword, moment in MOMENTS[name].items()}
        write(tmp_path / f"{9 - n}.dcm", dataset(pattern(n), position=(5.0, 6.0, 7.0), instance=9 - n, **tags))
    stacks, codes = read(tmp_path)
    assert set(stacks) == {(0,)} and codes == Counter(several_moments=5)


@pytest.mark.parametrize("count", ["NumberOfTemporalPositions", "CardiacNumberOfImages"])
def test_instance_numbers_are_moments_where_a_file_says_that_there_are_several(tmp_path, count):
    for n in range(6):
        made = dataset(pattern(n), position=(5.0, 6.0, 7.0), instance=9 - n, **{count: 6})
        write(tmp_path / f"{n}.dcm", made)
    stacks, codes = read(tmp_path)
    assert set(stacks) == {(5,)} and codes == Counter(several_moments=5)


def test_frames_that_follow_each_other_in_time_are_one_slice(tmp_path):
    made = dataset(pattern(0), NumberOfFrames=5, FrameTime=40.0)
    made.PixelData = np.stack([pattern(k) for k in range(5)]).tobytes()
    write(tmp_path / "cine.dcm", made)
    stacks, codes = read(tmp_path)
    assert set(stacks) == {(0,)} and codes == Counter(several_moments=4, frame_without_position=5)


def test_positions_that_are_all_zero_are_no_cine_for_times_of_acquisition_alone(tmp_path):
    for k in range(4):
        write(tmp_path / f"{k}.dcm", dataset(pattern(k), position=(0, 0, 0), instance=k, AcquisitionTime=f"10150{k}"))
    stacks, codes = read(tmp_path)
    assert set(stacks) == {FIRST} and codes == Counter(positions_equal=4, position_assumed=4)


def test_copies_of_a_slice_are_taken_once(tmp_path):
    mixed(tmp_path, {})
    for path in sorted(tmp_path.iterdir()):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    stacks, codes = read(tmp_path)
    assert set(stacks) == {FIRST} and codes == Counter(slice_copied=SLICES)


def enhanced(folder, frames, *, echo_ms=None, indices=True, component=None):
    """One file of frames (place k, way n) in the order given; frame (k, n) holds pattern 10 * n + k."""
    made = dataset(pattern(0), NumberOfFrames=len(frames), without=("ImagePositionPatient", "ImageOrientationPatient"))
    made.PixelData = np.stack([pattern(10 * n + k) for k, n in frames]).tobytes()
    plane, shared, groups = Dataset(), Dataset(), []
    plane.ImageOrientationPatient = list(SAGITTAL)
    shared.PlaneOrientationSequence = Sequence([plane])
    for k, n in frames:
        group, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [4.0 * k, 0.0, 0.0]
        content.StackID = "1"
        if indices:
            content.DimensionIndexValues = [1, k + 1, n + 1]
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([place]), Sequence([content])
        if echo_ms:
            echo = Dataset()
            echo.EffectiveEchoTime = float(echo_ms[n])
            group.MREchoSequence = Sequence([echo])
        if component:
            kind = Dataset()
            kind.FrameType, kind.ComplexImageComponent = ["ORIGINAL", "PRIMARY", "X", "NONE"], component[n]
            group.MRImageFrameTypeSequence = Sequence([kind])
        groups.append(group)
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    made.PerFrameFunctionalGroupsSequence = Sequence(groups)
    write(folder / "one.dcm", made)
    return folder


FRAMES = [(2, 1), (0, 0), (3, 0), (1, 1), (0, 1), (3, 1), (1, 0), (2, 0)]


@pytest.mark.parametrize("tells", [{"echo_ms": (20, 90), "indices": False}, {}, {"echo_ms": (20, 90)}], ids=str)
def test_frames_of_an_enhanced_object_are_told_apart_by_echo_or_by_index(tmp_path, tells):
    stacks, codes = read(enhanced(tmp_path, FRAMES, **tells))
    assert set(stacks) == {FIRST, SECOND} and not codes
    if "echo_ms" in tells:
        assert [stacks[FIRST].echo_ms, stacks[SECOND].echo_ms] == [20.0, 90.0]


def test_phase_frames_of_an_enhanced_object_are_left_out(tmp_path):
    stacks, codes = read(enhanced(tmp_path, FRAMES, component=("MAGNITUDE", "PHASE"), indices=False))
    assert set(stacks) == {FIRST} and codes == Counter(not_magnitude=SLICES)

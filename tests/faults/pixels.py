"""Cases of pixels (catalogue 3d)."""

from __future__ import annotations

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from tests.faults.case import DROPPED, HEALTHY, NO_T2, VALID, Case
from tests.faults.files import LOST, rle
from tests.faults.studies import Study, set_pixels, stored
from tests.faults.tags import all_files, drop, put, third

EIGHT = "8-bit pixels"


def words(change, **tags: object):
    """Other stored words, and tags that say so."""

    def make(made: Dataset) -> None:
        pixels = change(stored(made))
        for keyword, value in tags.items():
            setattr(made, keyword, value)
        set_pixels(made, pixels)

    return make


def eight(pixels: np.ndarray) -> np.ndarray:
    return (pixels >> 4).astype(np.uint8)


def eight_rle(study: Study) -> None:
    def change(made: Dataset) -> None:
        words(eight, **BYTE)(made)
        made.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom", generate_instance_uid=False)

    study.each(change)


def colour(made: Dataset) -> None:
    grey = eight(stored(made))
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    words(lambda _: np.repeat(grey[..., None], 3, -1), **BYTE)(made)


def palette(made: Dataset) -> None:
    index = eight(stored(made))
    for name in ("Red", "Green", "Blue"):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        made[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(made, f"{name}PaletteColorLookupTableData", (np.arange(256) * 100).astype("<u2").tobytes())
    made.PhotometricInterpretation = "PALETTE COLOR"
    words(lambda _: index, **BYTE)(made)


def floating(change=lambda values: values):
    def make(made: Dataset) -> None:
        values = change(stored(made).astype("<f4"))
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            del made[keyword]
        made.BitsAllocated, made.FloatPixelData = 32, values.tobytes()

    return make


def mostly_nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.ravel()[::3] = np.nan
    return values


def one_file(study: Study) -> None:
    """All slices as frames of one file, each with its own position (an enhanced MR image)."""
    paths = study.files("sag_t2")
    slices = [pydicom.dcmread(path) for path in paths]
    made = slices[0]
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices = made.PixelSpacing, made.SpacingBetweenSlices
    plane.ImageOrientationPatient = made.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], []
    for one in slices:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        frame.PlanePositionSequence = [place]
        made.PerFrameFunctionalGroupsSequence.append(frame)
    pixels = np.stack([stored(one) for one in slices])
    made.NumberOfFrames = len(slices)
    for keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        del made[keyword]
    set_pixels(made, pixels)
    for path in paths:
        path.unlink()
    pydicom.dcmwrite(paths[0], made, enforce_file_format=True)


def frames_without_places(made: Dataset) -> None:
    made.NumberOfFrames = 2
    set_pixels(made, np.stack([stored(made)] * 2))


def hot(made: Dataset) -> None:
    pixels = stored(made).copy()
    pixels[3, 4] = 65535
    made.BitsStored, made.HighBit = 16, 15
    set_pixels(made, pixels)


def tiny(made: Dataset) -> None:
    made.Rows, made.Columns = 8, 8
    set_pixels(made, np.ascontiguousarray(stored_part(made)))


def stored_part(made: Dataset) -> np.ndarray:
    return np.frombuffer(made.PixelData, "<u2")[:64].reshape(8, 8)


def localiser(study: Study) -> None:
    """A coronal slice through the stack, and a picture of the screen that says nothing of where it lies."""
    folder = study.series("sag_t2")
    coronal = pydicom.dcmread(study.third())
    put(ImageOrientationPatient=[1, 0, 0, 0, 0, -1], InstanceNumber=90)(coronal)
    pydicom.dcmwrite(folder / "90.dcm", coronal, enforce_file_format=True)
    screen = pydicom.dcmread(study.third())
    drop("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")(screen)
    screen.Rows, screen.Columns, screen.InstanceNumber = 40, 50, 91
    set_pixels(screen, np.random.default_rng(0).integers(0, 4000, (40, 50)).astype("<u2"))
    pydicom.dcmwrite(folder / "91.dcm", screen, enforce_file_format=True)


def bomb(made: Dataset) -> None:
    """64 x 64 pixels of RLE that say they are 40000 x 40000."""
    rle(made)
    made.Rows = made.Columns = 40000


BYTE = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
NOTHING = ("sag_t2:no_contrast", "sag_t2:absent")
PIXELS = (
    Case(35, "MONOCHROME1", all_files(words(lambda p: 4095 - p, PhotometricInterpretation="MONOCHROME1"))),
    Case(
        36,
        "signed, 500 lower",
        all_files(words(lambda p: p.astype("<i2") - 500, PixelRepresentation=1, BitsStored=16, HighBit=15)),
        near=1e-3,
    ),
    Case(36, "left-aligned bits", all_files(words(lambda p: p << 4, HighBit=15))),
    Case(36, "an overlay in the unused bits", all_files(words(lambda p: p | np.uint16(0x8000)))),
    Case(37, "rescale slope 0", all_files(put(RescaleSlope=0, RescaleIntercept=0))),
    Case(37, "rescaled", all_files(put(RescaleSlope=2, RescaleIntercept=-1000)), near=1e-3),
    Case(38, "window of several values", all_files(put(WindowCenter=[40, 50], WindowWidth=[80, 0]))),
    Case(38, "decimal window", all_files(put(WindowCenter="259.5", WindowWidth="-3"))),
    Case(39, EIGHT, all_files(words(eight, **BYTE)), VALID),
    Case(39, "8-bit RLE of one segment", eight_rle, EIGHT),
    Case(39, "32-bit pixels", all_files(words(lambda p: p.astype("<u4"), BitsAllocated=32, BitsStored=32, HighBit=31))),
    Case(39, "floating-point pixels", all_files(floating())),
    Case(40, "RGB", all_files(colour), EIGHT, near=1e-3),
    Case(40, "palette", all_files(palette), EIGHT, near=1e-3),
    Case(41, "an enhanced MR image of all slices", one_file),
    Case(
        41,
        "frames without places",
        all_files(frames_without_places),
        HEALTHY,
        ("sag_t2:frame_without_position", "sag_t2:slice_copied"),
    ),
    Case(42, "constant image", all_files(words(lambda p: np.full_like(p, 7))), NO_T2, NOTHING),
    Case(42, "zero image", all_files(words(np.zeros_like)), NO_T2, NOTHING),
    Case(43, "one hot pixel", third(hot), near=0.05),
    Case(44, "a third of the pixels NaN", all_files(floating(mostly_nan)), VALID),
    Case(44, "all pixels NaN", all_files(floating(lambda values: values * np.nan)), NO_T2, NOTHING),
    Case(
        45, "65535 x 65535 declared", third(put(Rows=65535, Columns=65535)), DROPPED, ("sag_t2:image_too_large", LOST)
    ),
    Case(45, "an RLE bomb", third(bomb), DROPPED, ("sag_t2:image_too_large", LOST)),
    Case(45, "more frames than bytes", third(put(NumberOfFrames=4000)), DROPPED, ("sag_t2:pixels_cut", LOST)),
    Case(46, "Rows 0", third(put(Rows=0)), DROPPED, ("sag_t2:no_size", LOST)),
    Case(46, "Rows absent", third(drop("Rows")), DROPPED, ("sag_t2:no_image", LOST)),
    Case(46, "PixelData absent", third(drop("PixelData")), DROPPED, ("sag_t2:no_pixels", LOST)),
    Case(
        46,
        "Rows three times what is there",
        third(lambda made: put(Rows=3 * made.Rows)(made)),
        DROPPED,
        ("sag_t2:pixels_cut", LOST),
    ),
    Case(47, "8 x 8 pixels", all_files(tiny), VALID),
    Case(
        48,
        "a localiser and a picture of the screen",
        localiser,
        codes=("sag_t2:other_plane", "sag_t2:position_missing", "sag_t2:orientation_assumed", "sag_t2:spacing_assumed"),
    ),
)

"""Cases of geometry and tags (catalogue 3c)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from tests.faults.case import NO_T2, VALID, Case
from tests.faults.studies import Study, rewrite, set_pixels, stored


def drop(*keywords: str) -> Callable[[Dataset], None]:
    def change(made: Dataset) -> None:
        for keyword in keywords:
            del made[keyword]

    return change


def put(**values: object) -> Callable[[Dataset], None]:
    def change(made: Dataset) -> None:
        for keyword, value in values.items():
            setattr(made, keyword, value)

    return change


def all_files(change: Callable[[Dataset], object], view: str = "sag_t2") -> Callable[[Study], None]:
    return lambda study: study.each(change, view)


def third(change: Callable[[Dataset], None]) -> Callable[[Study], None]:
    return lambda study: rewrite(study.third(), change)


def bytes_of(keyword: str, change: Callable[[bytes], bytes], every: bool = True) -> Callable[[Study], None]:
    """Change the written text of a tag, keeping its length even: whatever a scanner may have put there."""

    def make(study: Study) -> None:
        for path in study.files("sag_t2") if every else [study.third()]:
            made = pydicom.dcmread(path)
            tag = made[keyword].tag
            raw = bytes(pydicom.dcmread(path).get_item(tag).value)  # type: ignore[union-attr]
            new = change(raw)
            new += b" " * (len(new) % 2)
            head = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + b"DS"
            data = path.read_bytes()
            old = head + len(raw).to_bytes(2, "little") + raw
            assert data.count(old) == 1
            path.write_bytes(data.replace(old, head + len(new).to_bytes(2, "little") + new))

    return make


def renumbered(number: Callable[[int], int]) -> Callable[[Study], None]:
    def make(study: Study) -> None:
        for k, path in enumerate(study.files("sag_t2")):
            rewrite(path, put(InstanceNumber=number(k)))

    return make


def reversed_files(study: Study) -> None:
    paths = study.files("sag_t2")
    for path in paths:
        path.rename(path.with_suffix(".old"))
    for k, path in enumerate(paths):
        new = path.with_name(f"{len(paths) - k}.dcm")
        path.with_suffix(".old").rename(new)
        rewrite(new, put(InstanceNumber=len(paths) - k))


def repeated(study: Study) -> None:
    for k, path in enumerate(study.files("sag_t2")):
        again = path.with_name(f"{k + 101}.dcm")
        again.write_bytes(path.read_bytes())
        rewrite(again, put(InstanceNumber=k + 101))


def turned(made: Dataset, axis: int) -> None:
    """The same slice with its rows (0) or columns (1) the other way round; the tags say so."""
    pixels = np.flip(stored(made), axis)
    directions = np.array(made.ImageOrientationPatient, float).reshape(2, 3)  # along a row, down a column
    way = directions[1 - axis]
    length = (pixels.shape[axis] - 1) * float(made.PixelSpacing[axis])
    made.ImagePositionPatient = [f"{v:.6f}"[:16] for v in np.array(made.ImagePositionPatient, float) + way * length]
    directions[1 - axis] = -way
    made.ImageOrientationPatient = [f"{v:.6f}" for v in directions.ravel()]
    set_pixels(made, np.ascontiguousarray(pixels))


def tilted(study: Study) -> None:
    """The lower half of the axial slices turned by three degrees about the left-right axis."""
    cos, sin = np.cos(np.radians(3.0)), np.sin(np.radians(3.0))
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    files = study.files("axi_t2")
    for path in files[len(files) // 2 :]:
        made = pydicom.dcmread(path)
        directions = np.array(made.ImageOrientationPatient, float).reshape(2, 3) @ turn.T
        rewrite(path, put(ImageOrientationPatient=[f"{v:.6f}" for v in directions.ravel()]))


def padded(made: Dataset) -> None:
    pixels = np.pad(stored(made), ((0, 6), (0, 4)))
    made.Rows, made.Columns = pixels.shape
    set_pixels(made, pixels)


def twice(
    first: dict[str, object], second: dict[str, object], change: Callable[[np.ndarray], np.ndarray] | None = None
):
    """Every slice a second time at its place, with other tags and, where asked, other pixels."""

    def make(study: Study) -> None:
        for k, path in enumerate(study.files("sag_t2")):
            again = path.with_name(f"{k + 101}.dcm")
            again.write_bytes(path.read_bytes())
            rewrite(path, put(**first))
            rewrite(again, put(InstanceNumber=k + 101, **second))
            if change is not None:
                rewrite(again, lambda made: set_pixels(made, change(stored(made)).astype("<u2")))

    return make


def t1_beside(study: Study) -> None:
    """The sagittal T1 in the folder of the sagittal T2; the headers tell them apart."""
    folder = study.files("sag_t2")[0].parent
    for path in study.files("sag_t1"):
        again = folder / f"t1-{path.name}"
        again.write_bytes(path.read_bytes())
        rewrite(again, put(EchoTime=10, RepetitionTime=550))


M, P = ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]
SPACING = ("SpacingBetweenSlices", "SliceThickness")
PLACE, DIRECTION = "ImagePositionPatient", "ImageOrientationPatient"
TAGS = (
    Case(24, "InstanceNumber missing", all_files(drop("InstanceNumber"))),
    Case(24, "InstanceNumber doubled", renumbered(lambda k: 1)),
    Case(24, "InstanceNumber from 1000", renumbered(lambda k: 1000 - k)),
    Case(25, "position missing in all", all_files(drop(PLACE)), VALID, ("sag_t2:position_assumed",)),
    Case(
        25,
        "position and InstanceNumber missing",
        all_files(drop(PLACE, "InstanceNumber")),
        VALID,
        ("sag_t2:position_assumed",),
    ),
    Case(25, "position missing in one", third(drop(PLACE)), codes=("sag_t2:position_interpolated",), near=0.02),
    Case(26, "orientation missing in one", third(drop(DIRECTION)), codes=("sag_t2:orientation_assumed",)),
    Case(26, "orientation missing in all", all_files(drop(DIRECTION)), VALID, ("sag_t2:orientation_assumed",)),
    Case(
        27,
        "position NaN in one",
        bytes_of(PLACE, lambda raw: b"nan\\nan\\nan", False),
        codes=("sag_t2:position_interpolated",),
        near=0.02,
    ),
    Case(
        27,
        "position inf in one",
        bytes_of(PLACE, lambda raw: b"inf" + raw[raw.index(b"\\") :], False),
        codes=("sag_t2:position_interpolated",),
        near=0.02,
    ),
    Case(
        27,
        "position empty in one",
        bytes_of(PLACE, lambda raw: b"", False),
        codes=("sag_t2:position_interpolated",),
        near=0.02,
    ),
    Case(27, "trailing backslash", bytes_of(PLACE, lambda raw: raw.strip() + b"\\")),
    Case(28, "every slice twice", repeated, codes=("sag_t2:slice_copied",)),
    Case(
        28,
        "positions all equal",
        all_files(put(ImagePositionPatient=[0.0, 0.0, 0.0])),
        VALID,
        ("sag_t2:positions_equal", "sag_t2:position_assumed"),
    ),
    Case(29, "two tilts in an axial series", tilted, VALID),
    Case(30, "one slice of another size", third(padded), VALID, ("sag_t2:slice_repeated",)),
    Case(31, "PixelSpacing missing in one", third(drop("PixelSpacing")), codes=("sag_t2:spacing_assumed",)),
    Case(31, "PixelSpacing zero in one", third(put(PixelSpacing=[0, 0])), codes=("sag_t2:spacing_assumed",)),
    Case(31, "PixelSpacing negative in one", third(put(PixelSpacing=[-1, 1])), codes=("sag_t2:spacing_assumed",)),
    Case(
        31,
        "PixelSpacing with a comma in one",
        bytes_of("PixelSpacing", lambda raw: raw.replace(b".", b","), False),
        codes=("sag_t2:spacing_assumed",),
    ),
    Case(31, "PixelSpacing missing in all", all_files(drop("PixelSpacing")), VALID, ("sag_t2:spacing_unknown",)),
    Case(
        31,
        "PixelSpacing missing in a series of no view",
        all_files(lambda made: (drop("PixelSpacing")(made), put(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])(made))),
        NO_T2,
        tuple(f"sag_t2:{code}" for code in ("absent", "no_view", "orientation_contradicts", "spacing_unknown")),
    ),
    Case(32, "SpacingBetweenSlices and SliceThickness missing", all_files(drop(*SPACING))),
    Case(33, "files in reversed order", reversed_files),
    Case(33, "rows from the feet up", all_files(lambda made: turned(made, 0)), near=0.02),
    Case(34, "axial columns from left to right", all_files(lambda made: turned(made, 1), "axi_t2"), near=0.02),
    Case(
        121,
        "two echoes of every place",
        twice({"EchoTime": 95, "EchoNumbers": 2}, {"EchoTime": 20, "EchoNumbers": 1}, lambda pixels: pixels // 3),
        codes=("sag_t2:several_echoes",),
    ),
    Case(
        122,
        "phase images beside magnitude images",
        twice({"ImageType": M}, {"ImageType": P}, lambda pixels: pixels[::-1]),
        codes=("sag_t2:not_magnitude",),
    ),
    Case(123, "a T1 series in the folder of the T2", t1_beside, codes=("sag_t2:other_contrast",)),
    Case(
        124,
        "two moments of every place",
        twice(
            {"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, lambda pixels: np.roll(pixels, 9, 0)
        ),
        codes=("sag_t2:several_moments",),
    ),
    Case(
        125,
        "T2 in the table, T1 in the header",
        all_files(put(EchoTime=10, RepetitionTime=550)),
        codes=("sag_t2:contrast_contradicts",),
    ),
)

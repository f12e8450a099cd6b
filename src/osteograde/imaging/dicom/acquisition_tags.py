"""Where a DICOM file says how an image was made: plain tags, and the functional groups of enhanced objects.

PS3.3 C.7.6.16 (functional groups), C.8.3.1 (MR image), C.8.13 (enhanced MR). A few private tags of vendors stand in for
standard ones that older software does not write: b-values, and GE's part of the complex signal.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydicom.dataset import Dataset

from osteograde.imaging.acquisition import IMAGINARY, MAGNITUDE, PHASE, REAL, Acquisition, component_of
from osteograde.imaging.dicom.tags import DAMAGE, Source, number_of, text_of, texts_of, whole_or_none

# keyword -> how the bytes of a file with explicit little-endian elements are read
TEXTS = (
    "SeriesInstanceUID", "SeriesDescription", "ProtocolName", "SequenceName", "ImageType", "ScanningSequence",
    "SequenceVariant", "ScanOptions", "ContrastBolusAgent", "ComplexImageComponent", "AcquisitionContrast",
)  # fmt: skip
NUMBERS = (
    "SeriesNumber", "RepetitionTime", "EchoTime", "InversionTime", "EchoNumbers", "EchoTrainLength", "FlipAngle",
)  # fmt: skip
# When an image was taken. The first TRIGGERS are written only where one place is taken several times; InstanceNumber is
# among them only where one of COUNTS says that there are several moments.
COUNTS = ("NumberOfTemporalPositions", "CardiacNumberOfImages")
MOMENTS = (
    "TemporalPositionIdentifier", "TriggerTime", "FrameTime", "TemporalPositionIndex", "NominalCardiacTriggerDelayTime",
    "FrameReferenceTime", "InstanceNumber", "AcquisitionNumber", "AcquisitionTime", "ContentTime",
)  # fmt: skip
FRAME_TIME, INSTANCE, TRIGGERS = 2, 6, 7
_GROUPS = {  # keyword -> (functional group, the keyword there)
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "EchoTrainLength": ("MRTimingAndRelatedParametersSequence", "EchoTrainLength"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    "AcquisitionContrast": ("MRImageFrameTypeSequence", "AcquisitionContrast"),
    "ImageType": ("MRImageFrameTypeSequence", "FrameType"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
}
B_VALUES = {  # tags that hold a b-value: the standard's, Siemens', Philips', GE's (the first that is there counts)
    0x00189087: "FD", 0x0019100C: "IS", 0x20011003: "FL", 0x00431039: "IS",
}  # fmt: skip
GE_COMPONENT = 0x0043102F  # SS
_PACKED = {"FD": "<d", "FL": "<f", "SS": "<h"}
_GE_COMPONENTS: Mapping[float | None, str] = {0: MAGNITUDE, 1: PHASE, 2: REAL, 3: IMAGINARY}
_NO_AGENT = frozenset({"", "NO", "NONE", "N", "NO CONTRAST", "WITHOUT", "N/A", "NA", "0"})


def acquisition_of(dataset: Dataset, k: int) -> Acquisition:
    """How frame ``k`` of a data set was made; of a file with one image k is 0."""
    groups = _frame_groups(dataset, k)
    found = {keyword: _value(dataset, groups, keyword) for keyword in (*TEXTS, *NUMBERS)}
    told = [number_of({"one": _value(dataset, groups, "DiffusionBValue")}, "one")]
    found["b_value"] = _b_value([*told, *(_private(dataset, tag) for tag in B_VALUES)])
    found["component"] = _GE_COMPONENTS.get(_private(dataset, GE_COMPONENT), "")
    return _acquisition(found, _dimensions(groups))


def moment_of(dataset: Source, k: int) -> tuple[float | None, ...]:
    """When frame ``k`` was taken, a number for each of ``MOMENTS``; None where the file does not say."""
    several = any((number_of(dataset, keyword) or 0) > 1 for keyword in COUNTS if keyword in dataset)
    if isinstance(dataset, dict):  # of a usual file: one frame, no groups
        found = [number_of(dataset, keyword) if keyword in dataset else None for keyword in MOMENTS]
    else:
        groups = _frame_groups(dataset, k)
        found = [number_of({"one": _value(dataset, groups, keyword)}, "one") for keyword in MOMENTS]
        if (step := found[FRAME_TIME]) is not None:  # frames follow each other so many ms apart
            found[FRAME_TIME] = step * k
    if not several:
        found[INSTANCE] = None
    return tuple(found)


@lru_cache(maxsize=256)  # all slices of a series say the same
def acquisition_of_bytes(told: tuple[tuple[str | int, bytes], ...], encoding: str) -> Acquisition:
    """The same of a file's elements as bytes, by keyword or, of ``B_VALUES`` and ``GE_COMPONENT``, by tag.

    UnicodeError where they are no text of this encoding.
    """
    found: dict[str, Any] = {}
    numbers: dict[int, float | None] = {}
    for name, value in told:
        if isinstance(name, int):
            numbers[name] = _number(value, B_VALUES.get(name, "SS"))
        else:
            parts = [part.rstrip(" \0") for part in value.decode(encoding).rstrip(" \0").split("\\")]
            found[name] = parts if len(parts) > 1 else parts[0]
    found["b_value"] = _b_value([numbers.get(tag) for tag in B_VALUES])
    found["component"] = _GE_COMPONENTS.get(numbers.get(GE_COMPONENT), "")
    return _acquisition(found, ())


def _number(value: bytes, representation: str) -> float | None:
    """The first number of an element."""
    try:
        if representation == "IS":
            return float(int(value.split(b"\\")[0]))
        return float(struct.unpack_from(_PACKED[representation], value)[0])
    except (ValueError, struct.error):
        return None


def _acquisition(found: Mapping[str, Any], dimensions: tuple[int, ...]) -> Acquisition:
    image_type = texts_of(found, "ImageType")
    component = next(iter(texts_of(found, "ComplexImageComponent")), "")
    return Acquisition(
        series=text_of(found, "SeriesInstanceUID"),
        series_number=whole_or_none(found, "SeriesNumber"),
        description=text_of(found, "SeriesDescription"),
        protocol=text_of(found, "ProtocolName"),
        sequence_name=text_of(found, "SequenceName"),
        scanning=texts_of(found, "ScanningSequence"),
        variant=texts_of(found, "SequenceVariant"),
        options=texts_of(found, "ScanOptions"),
        repetition_ms=_positive(found, "RepetitionTime"),
        echo_ms=_positive(found, "EchoTime"),
        inversion_ms=_positive(found, "InversionTime"),
        echo_number=whole_or_none(found, "EchoNumbers"),
        echo_train=whole_or_none(found, "EchoTrainLength"),
        flip_degrees=number_of(found, "FlipAngle"),
        b_value=found["b_value"],
        image_type=image_type,
        component=component_of(image_type, component) or found["component"],
        contrast=next(iter(texts_of(found, "AcquisitionContrast")), ""),
        agent=text_of(found, "ContrastBolusAgent").upper() not in _NO_AGENT,
        dimensions=dimensions,
    )


def _positive(found: Mapping[str, Any], keyword: str) -> float | None:
    """Times are above zero: files that do not know them often write 0."""
    number = number_of(found, keyword)
    return number if number is not None and number > 0 else None


def _frame_groups(dataset: Source, k: int) -> list[Dataset]:
    """The functional groups of frame k, then the shared ones; none of a plain file."""
    found = []
    for keyword, index in (("PerFrameFunctionalGroupsSequence", k), ("SharedFunctionalGroupsSequence", 0)):
        try:
            found.append(dataset[keyword].value[index])
        except DAMAGE:
            continue
    return found


def _value(dataset: Source, groups: list[Dataset], keyword: str) -> Any:
    """A tag's value where frame, shared group or data set give one, in this order."""
    sequence, inner = _GROUPS.get(keyword, ("", ""))
    for group in groups if sequence else []:
        try:
            return group[sequence].value[0][inner].value
        except DAMAGE:
            continue
    try:
        return dataset.get(keyword)
    except DAMAGE:
        return None


def _b_value(told: list[float | None]) -> float | None:
    """The first that is told. GE adds 1e9 to a b-value that it keeps among other numbers."""
    found = next((value for value in told if value is not None), None)
    return found % 1e5 if found is not None and found > 1e5 else found


def _private(dataset: Dataset, tag: int) -> float | None:
    """The first number of an element; None where it is absent, no number or unread bytes."""
    try:
        value = dataset[tag].value
        many = value if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") else [value]
        return float(next(iter(many)))
    except (*DAMAGE, StopIteration):
        return None


def _dimensions(groups: list[Dataset]) -> tuple[int, ...]:
    for group in groups[:1]:
        try:
            values = group["FrameContentSequence"].value[0]["DimensionIndexValues"].value
            return tuple(int(one) for one in (values if hasattr(values, "__iter__") else [values]))
        except DAMAGE:
            break
    return ()

"""Values out of DICOM tags, where any tag may be missing, empty or nonsense, and what damaged files raise.

Errors carry a code and never a tag's value, so that they can be counted and logged.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from osteograde.errors import UserError

Source = Dataset | Mapping[str, Any]  # a data set, or values by keyword

# What pydicom raises on damaged headers, values and pixels.
DAMAGE = (
    BytesLengthException,
    InvalidDicomError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,  # and those derived from it: recursion, syntaxes that pydicom does not know
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class UnreadableSlice(UserError):
    """A file that gives no slice; ``code`` says why in one word, without any value of the file."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _floats(source: Source, keyword: str) -> list[float]:
    """The finite numbers of a tag; none of them where one is nonsense. Empty values between backslashes are passed."""
    try:
        value = source.get(keyword)
        many = [value] if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) else value
        numbers = [float(one) for one in many if one not in (None, "")]
    except DAMAGE:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def numbers_of(source: Source, keyword: str, count: int) -> np.ndarray | None:
    """``count`` finite numbers of a tag, or None."""
    numbers = _floats(source, keyword)
    return np.array(numbers) if len(numbers) == count else None


def number_of(source: Source, keyword: str) -> float | None:
    numbers = _floats(source, keyword)
    return numbers[0] if len(numbers) == 1 else None


def whole_of(dataset: Source, keyword: str, default: int) -> int:
    number = number_of(dataset, keyword)
    return default if number is None else int(number)


def texts_of(source: Source, keyword: str) -> tuple[str, ...]:
    """The values of a tag as texts in upper case without blanks around them; () where it is absent or nonsense.

    >>> texts_of({"ImageType": ["ORIGINAL", "PRIMARY", " m "]}, "ImageType")
    ('ORIGINAL', 'PRIMARY', 'M')
    """
    try:
        value = source.get(keyword)
        many = [value] if isinstance(value, (str, bytes, int, float)) or not isinstance(value, Sequence) else value
        return tuple(str(one).strip(" \0").upper() for one in many if one not in (None, ""))
    except DAMAGE:
        return ()


def text_of(source: Source, keyword: str) -> str:
    """The text of a tag as written, several values joined by blanks; "" where it is absent or nonsense."""
    try:
        value = source.get(keyword)
        many = [value] if isinstance(value, (str, bytes, int, float)) or not isinstance(value, Sequence) else value
        return " ".join(str(one).strip(" \0") for one in many if one not in (None, ""))
    except DAMAGE:
        return ""


def whole_or_none(source: Source, keyword: str) -> int | None:
    number = number_of(source, keyword)
    return None if number is None else int(number)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom warns and logs with the values of the tags in its sentences; a run report must not hold them."""
    logger = logging.getLogger("pydicom")
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pydicom|osteograde\.imaging")
            yield
    finally:
        logger.propagate = propagate

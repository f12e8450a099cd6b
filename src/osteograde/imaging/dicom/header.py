"""A few tags of a DICOM file, without its pixels and without ever failing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from osteograde.imaging.dicom.read import DEFLATED
from osteograde.imaging.dicom.tags import DAMAGE, quiet_pydicom

_META_BYTES = 2048  # the transfer syntax is named within these


def header_of(path: Path, keywords: Sequence[str]) -> Dataset:
    """The named tags of a regular file; none where it cannot be read, is no DICOM, or is deflated as a whole: such a
    file had to be inflated, however large it is then."""
    with quiet_pydicom():
        try:
            with Path(path).open("rb") as file:
                if DEFLATED in file.read(_META_BYTES):
                    return Dataset()
                file.seek(0)
                return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(keywords))
        except DAMAGE:
            return Dataset()

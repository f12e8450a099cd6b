"""Whose file a DICOM file is, as a key that names nobody."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pydicom

from osteograde.imaging.dicom.tags import DAMAGE, quiet_pydicom

_NOBODY = frozenset({  # what is written in place of an identifier
    "", "0", "1", "anon", "anonym", "anonymous", "anonymised", "anonymized", "none", "nobody", "unknown", "na", "n/a",
    "patient", "test", "dummy", "removed", "deleted", "deidentified", "de-identified", "xxxx", "noid", "no id",
})  # fmt: skip
_DIGITS = 12  # of a hash


def patient_key(path: Path) -> str:
    """A key that files of one PatientID (0010,0020) share: part of a hash of it, so that no identifier is written
    anywhere. "" where the file has none, has a word in its place, or cannot be read."""
    with quiet_pydicom():
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["PatientID"])
            told = str(dataset.get("PatientID") or "").strip()
        except DAMAGE:
            return ""
    if told.lower() in _NOBODY or not told.strip("0x-_ "):
        return ""
    return "id-" + hashlib.sha256(told.encode()).hexdigest()[:_DIGITS]

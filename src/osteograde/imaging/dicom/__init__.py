"""DICOM files to volumes: header and pixels of one file (slices), slices to stacks, a folder to volumes (series)."""

from osteograde.imaging.dicom.read import Slice, read_slice, read_slices
from osteograde.imaging.dicom.tags import UnreadableSlice
from osteograde.imaging.dicom.volumes import UnreadableSeries, read_series

__all__ = ["Slice", "UnreadableSeries", "UnreadableSlice", "read_series", "read_slice", "read_slices"]

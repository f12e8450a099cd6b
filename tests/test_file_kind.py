"""What a file is, told by its content: pictures, DICOM images, DICOM objects that are no images, and all else."""

from __future__ import annotations

import os
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from osteograde.imaging.file_kind import DICOM_IMAGE, PICTURE, kind_of_file
from tests.dicom_files import dataset, pattern, write


def without_image(path, sop_class="", modality="", in_meta=True):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if in_meta:
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    made = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID, made.PatientID = sop_class, generate_uid(), "nobody"
    made.Modality = modality
    made.save_as(path)
    return path


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("JPEG", "L"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("BMP", "L"), ("TIFF", "I;16"), ("GIF", "P"),
     ("JPEG2000", "L")],
)  # fmt: skip
def test_pictures_are_told_by_their_content_whatever_they_are_called(tmp_path, kind, mode):
    path = tmp_path / "image.dcm"
    Image.new(mode, (20, 16)).save(path, kind)
    assert kind_of_file(path) == PICTURE


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda syntax: syntax.keyword,
)
@pytest.mark.parametrize("name", ["1.2.840.113.99.1", "IM0001", "MR.1.2.3", "image.001", "a.jpg"])
def test_a_dicom_image_is_told_whatever_it_is_called(tmp_path, syntax, name):
    made = dataset(pattern(0))
    made.file_meta.TransferSyntaxUID = syntax
    dcmwrite(tmp_path / name, made, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian,
             force_encoding=True)  # fmt: skip
    assert kind_of_file(tmp_path / name) == DICOM_IMAGE


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("part", ["no preamble", "no preamble and no file meta"])
def test_dicom_without_preamble_is_told_by_its_elements(tmp_path, part, implicit):
    made = dataset(pattern(0))
    buffer = BytesIO()
    if part == "no preamble":
        write(tmp_path / "whole", made)
        (tmp_path / "RAW").write_bytes((tmp_path / "whole").read_bytes()[132:])
    else:
        made.preamble, made.file_meta = None, FileMetaDataset()
        made.save_as(buffer, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        (tmp_path / "RAW").write_bytes(buffer.getvalue())
    assert kind_of_file(tmp_path / "RAW") == DICOM_IMAGE


@pytest.mark.parametrize(
    ("sop_class", "name"),
    [
        ("1.2.840.10008.1.3.10", "DICOMDIR"),
        ("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR"),
        ("1.2.840.10008.5.1.4.1.1.88.67", "X-Ray Radiation Dose SR"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "Key Object Selection Document"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "12-lead ECG Waveform"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set"),
        ("1.3.12.2.1107.5.9.1", "Siemens non-image"),
    ],
)
@pytest.mark.parametrize("in_meta", [True, False])
def test_objects_that_are_no_images_are_named_by_their_sop_class(tmp_path, sop_class, name, in_meta):
    assert kind_of_file(without_image(tmp_path / "x.dcm", sop_class, in_meta=in_meta)) == f"dicom other: {name}"


def test_a_class_of_a_vendor_is_judged_by_its_modality(tmp_path):
    assert kind_of_file(without_image(tmp_path / "a", "1.9.9.9", "SR")) == "dicom other: SR"
    assert kind_of_file(without_image(tmp_path / "b", "1.9.9.9", "MR")) == DICOM_IMAGE


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"study_id,grade\n1,2\n", b"\0\5\x16\7" + bytes(120), bytes(4000), b"\xff" * 4000,
        b"PK\3\4" + bytes(300), b"%PDF-1.7\n", np.random.default_rng(0).bytes(4000), b"\2\0\0\0", b"\x08\0" * 300,
        b"{\n  \"Modality\": \"MR\"\n}\n" * 20,
    ],
)  # fmt: skip
def test_all_else_is_nothing(tmp_path, data):
    (tmp_path / "x.dcm").write_bytes(data)
    assert kind_of_file(tmp_path / "x.dcm") == ""


def test_what_cannot_be_opened_is_nothing_and_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert kind_of_file(tmp_path / "pipe") == ""
    assert kind_of_file(tmp_path / "missing") == ""
    assert kind_of_file(tmp_path) == ""


def test_every_start_of_a_file_is_judged_without_an_error(tmp_path):
    write(tmp_path / "whole", dataset(pattern(0)))
    whole = (tmp_path / "whole").read_bytes()
    for start in (0, 132):
        for length in range(0, 700, 7):
            (tmp_path / "cut").write_bytes(whole[start : start + length])
            assert kind_of_file(tmp_path / "cut") in ("", DICOM_IMAGE)

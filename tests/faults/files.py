"""Cases of the input tree and of files (catalogue 3a and 3b), by small mutators."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from osteograde.phantom.dicom_writer import encode_rle
from tests.faults.case import DROPPED, NO_AXIAL, NO_T2, PRIOR, VALID, Case
from tests.faults.studies import Study, rewrite, stored, syntax

# --- the input tree --------------------------------------------------------------------------------------------------


def gone(study: Study) -> None:
    shutil.rmtree(study.folder)


def without(view: str):
    return lambda study: shutil.rmtree(study.series(view))


def emptied(study: Study) -> None:
    shutil.rmtree(study.series("axi_t2"))
    study.series("axi_t2").mkdir()


def unlisted(study: Study) -> None:
    del study.described["axi_t2"]


def doubled(study: Study) -> None:
    shutil.copytree(study.series("axi_t2"), study.folder / "zz_again")
    study.described["zz_again"] = "Axial T2"


def kept(*numbers: int):
    def make(study: Study) -> None:
        for k, path in enumerate(study.files("sag_t2")):
            if k not in numbers:
                path.unlink()

    return make


def described(view: str, text: str):
    def make(study: Study) -> None:
        study.described[view] = text

    return make


def strangers(study: Study) -> None:
    folder = study.series("sag_t2")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(600))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(900))
    (folder / "notes.txt").write_text("Doe^Jane, seen on Monday\n" * 30)
    (folder / "inner").mkdir()
    listing = Dataset()
    listing.file_meta = pydicom.dataset.FileMetaDataset()
    listing.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
    listing.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    listing.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listing.FileSetID, listing.PatientName = "OUT", "Doe^Jane"
    entry = Dataset()
    entry.ReferencedFileID = ["ETC", "PASSWD"]
    listing.DirectoryRecordSequence = [entry]
    pydicom.dcmwrite(folder / "DICOMDIR", listing, enforce_file_format=True)


def renamed(names):
    def make(study: Study) -> None:
        for k, path in enumerate(study.files("sag_t2")):
            path.rename(path.with_name(os.fsdecode(names(k))))

    return make


def looped(study: Study) -> None:
    folder = study.series("sag_t2")
    (folder / "loop.dcm").symlink_to(folder / "loop.dcm")
    (folder / "round").symlink_to(folder)
    (study.folder / "ring").symlink_to(study.folder / "ring")
    study.described["ring"] = "Axial T2"


def led_out(study: Study) -> None:
    outside = study.folder.parents[2] / f"outside_{study.folder.name}"
    shutil.move(study.series("axi_t2"), outside)
    study.series("axi_t2").symlink_to(outside)


def climbing(study: Study) -> None:
    outside = study.folder.parents[2] / f"outside_{study.folder.name}"
    shutil.move(study.series("axi_t2"), outside)
    del study.described["axi_t2"]
    study.described[f"../../../{outside.name}"] = "Axial T2"


def piped(study: Study) -> None:
    os.mkfifo(study.series("sag_t2") / "99.dcm")
    (study.series("sag_t2") / "98.dcm").symlink_to("/dev/zero")


TREE = (
    Case(1, "study in the table, not on disk", gone, PRIOR, ("sag_t1:absent", "sag_t2:absent", "axi_t2:absent")),
    Case(3, NO_AXIAL, without("axi_t2"), VALID, ("axi_t2:absent",)),
    Case(3, NO_T2, without("sag_t2"), VALID, ("sag_t2:absent",)),
    Case(3, "series folder empty", emptied, NO_AXIAL, ("axi_t2:absent",)),
    Case(4, "series type absent from the table", unlisted, NO_AXIAL, ("axi_t2:absent",)),
    Case(5, "two series of one type", doubled),
    Case(6, "one slice", kept(3), VALID),
    Case(7, "two slices", kept(3, 4), VALID),
    Case(8, "description in another case, with spaces", described("sag_t2", "  sagittal  t2 ")),
    Case(8, "description STIR", described("sag_t2", "SAG STIR")),
    Case(8, "description blank", described("sag_t2", ""), codes=("sag_t2:contrast_assumed",)),
    Case(8, "description unknown", described("axi_t2", "Series 7"), codes=("axi_t2:contrast_assumed",)),
    Case(
        9,
        "axial series described as sagittal",
        described("axi_t2", "Sagittal T1"),
        codes=("axi_t2:orientation_contradicts",),
    ),
    Case(
        9,
        "sagittal series described as axial",
        described("sag_t2", "Axial T2"),
        codes=("sag_t2:orientation_contradicts",),
    ),
    Case(10, "strangers in the folder", strangers, codes=("sag_t2:not_dicom", "sag_t2:no_image")),
    Case(11, "names with a prefix and upper-case suffix", renamed(lambda k: b"IM-%04d.DCM" % (90 - k))),
    Case(11, "names without a suffix", renamed(lambda k: b"%d" % (900 - 7 * k))),
    Case(12, "names that are no text", renamed(lambda k: b"\xff\xfe %d" % k + "Gr\u00f6\u00dfe \u810a\u690e".encode())),
    Case(13, "links that lead to themselves", looped),
    Case(13, "a link out of the data", led_out, NO_AXIAL, ("axi_t2:absent",)),
    Case(13, "a path out of the data in the table", climbing, NO_AXIAL, ("axi_t2:absent",)),
    Case(13, "pipes and devices among the files", piped),
    Case(14, "a mount that stumbles once", renamed(lambda k: b"%d_stumbles.dcm" % k)),
    Case(
        14,
        "a file that may not be read",
        lambda study: study.third().rename(study.series("sag_t2") / "3_denied.dcm"),
        DROPPED,
        ("sag_t2:file_unreadable", "sag_t2:slice_repeated"),
    ),
)

# --- files -----------------------------------------------------------------------------------------------------------


def third(change):
    """A case that changes the bytes of the third file."""

    def make(study: Study) -> None:
        path = study.third()
        path.write_bytes(change(path.read_bytes()))

    return make


def cut_pixels(share: float):
    """Keep the first ``share`` of the pixels of the third file."""

    def make(study: Study) -> None:
        path = study.third()
        length = len(pydicom.dcmread(path).PixelData)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - int(length * (1 - share))])

    return make


def rle(made: Dataset, frame: bytes | None = None, **how: object) -> None:
    frame = encode_rle(stored(made)) if frame is None else frame
    made.file_meta.TransferSyntaxUID = RLELossless
    made.PixelData = encapsulate([frame], **how)  # type: ignore[arg-type]
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True


def third_rle(change):
    return lambda study: rewrite(study.third(), lambda made: rle(made, change(encode_rle(stored(made)))))


def wrong_offsets(frame: bytes) -> bytes:
    return struct.pack("<16L", 2, 2**31, 7, *[0] * 13) + frame[64:]


def garbage(frame: bytes) -> bytes:
    return frame[:64] + np.random.default_rng(1).integers(0, 256, 300).astype(np.uint8).tobytes()


def cut_rle(study: Study) -> None:
    third_rle(lambda frame: frame)(study)
    path = study.third()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def without_meta(data: bytes) -> bytes:
    length = struct.unpack_from("<L", data, 140)[0]
    return data[144 + length :]


def each_bytes(change):
    def make(study: Study) -> None:
        for path in study.files("sag_t2"):
            path.write_bytes(change(path.read_bytes()))

    return make


def written_as(uid: str):
    def change(made: Dataset) -> None:
        made.file_meta.TransferSyntaxUID = UID(uid)
        if uid == ExplicitVRBigEndian:
            made.PixelData = stored(made).astype(">u2").tobytes()

    return lambda study: study.each(change)


def nested(depth: int, path: Path) -> None:
    """Private sequences of undefined length inside each other, before the pixels."""
    opened = b"\x09\x00\x01\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"

    data = path.read_bytes()
    at = data.index(b"\x10\x00\x10\x00PN")  # group 0009 comes right before PatientName's
    path.write_bytes(data[:at] + opened * depth + closed * depth + data[at:])


LOST = "sag_t2:slice_repeated"  # the neighbour stands in for a lost slice inside a stack
FILES = (
    Case(15, DROPPED, third(lambda data: b""), VALID, ("sag_t2:empty_file", LOST)),
    Case(16, "header cut", third(lambda data: data[:300]), DROPPED, ("sag_t2:file_cut", LOST)),
    Case(17, "raw pixels cut to 60 %", cut_pixels(0.6), VALID, ("sag_t2:pixels_filled",)),
    Case(17, "raw pixels cut to 40 %", cut_pixels(0.4), DROPPED, ("sag_t2:pixels_cut", LOST)),
    Case(18, "RLE cut to 60 % of the file", cut_rle, DROPPED, ("sag_t2:file_cut", LOST)),
    Case(18, "RLE of garbage", third_rle(garbage), DROPPED, ("sag_t2:pixels_damaged", LOST)),
    Case(19, "RLE with wrong offsets", third_rle(wrong_offsets), DROPPED, ("sag_t2:pixels_damaged", LOST)),
    Case(19, "RLE", lambda study: study.each(rle)),
    Case(
        19,
        "RLE with an offset table, in fragments",
        lambda study: study.each(lambda made: rle(made, fragments_per_frame=3, has_bot=True)),
    ),
    Case(
        10,
        "text named like DICOM",
        third(lambda data: b"no DICOM, named like one\n" * 40),
        DROPPED,
        ("sag_t2:not_dicom", LOST),
    ),
    Case(20, "preamble missing", each_bytes(lambda data: data[132:])),
    Case(20, "file meta missing", each_bytes(without_meta)),
    Case(21, "big endian", written_as(ExplicitVRBigEndian)),
    Case(21, "implicit", written_as(ImplicitVRLittleEndian)),
    Case(21, "deflated", written_as(DeflatedExplicitVRLittleEndian)),
    Case(
        22,
        "one file without a decoder",
        lambda study: rewrite(study.third(), lambda made: (rle(made), syntax(JPEGLSLossless)(made))),
        DROPPED,
        ("sag_t2:no_decoder_JPEGLSLossless", LOST),
    ),
    Case(
        22,
        "no decoder for a series",
        lambda study: study.each(lambda made: (rle(made), syntax(JPEGLSLossless)(made))),
        NO_T2,
        ("sag_t2:no_decoder_JPEGLSLossless", "sag_t2:absent"),
    ),
    Case(23, "private sequences nested 100 deep", lambda study: [nested(100, path) for path in study.files("sag_t2")]),
    Case(
        23,
        "private sequences nested 9000 deep",
        lambda study: nested(9000, study.third()),
        DROPPED,
        ("sag_t2:damaged_header", LOST),
    ),
    Case(23, "sequences of undefined length", lambda study: [nested(1, path) for path in study.files("sag_t2")]),
)

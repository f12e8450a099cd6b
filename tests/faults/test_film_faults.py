"""Faults of films and of pictures through inference.py: no row lost, no other film touched, every reason counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless

from osteograde.phantom.dicom_writer import WHITE, write_film
from tests.faults.case import HEALTHY, VALID
from tests.faults.runner import Outcome, grade, worst
from tests.faults.studies import rewrite, set_pixels, stored
from tests.faults.tags import drop, put
from tests.tiny import random_bundle

LOST = "lost"  # nothing of the film can be read: its rows are the priors
Change = Callable[[Path], None]
pytestmark = pytest.mark.slow


def film() -> np.ndarray:
    """A film that is wider than tall and looks like nothing in particular, not alike on both sides."""
    rough = np.random.default_rng(8).random((9, 13))
    picture = Image.fromarray((rough * 255).astype(np.uint8)).resize((130, 90), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def header(change: Callable[[Dataset], None]) -> Change:
    return lambda path: rewrite(path, change)


def raw(change: Callable[[bytes], bytes]) -> Change:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def inverted(made: Dataset) -> None:
    made.PhotometricInterpretation = "MONOCHROME1"
    set_pixels(made, (WHITE - stored(made)).astype("<u2"))


def inverse_shape(made: Dataset) -> None:
    made.PresentationLUTShape = "INVERSE"
    set_pixels(made, (WHITE - stored(made)).astype("<u2"))


def falling(sequence: str) -> Callable[[Dataset], None]:
    """Pixels stored inverted, and a lookup table that turns them back."""

    def change(made: Dataset) -> None:
        item = Dataset()
        item.LUTDescriptor = [WHITE + 1, 0, 16]
        item.add_new(0x00283006, "OW", np.arange(WHITE, -1, -1).astype("<u2").tobytes())
        if sequence == "ModalityLUTSequence":
            item.ModalityLUTType = "US"
        setattr(made, sequence, Sequence([item]))
        set_pixels(made, (WHITE - stored(made)).astype("<u2"))

    return change


def not_square(made: Dataset) -> None:
    drop("ImagerPixelSpacing")(made)
    made.PixelAspectRatio = [2, 1]


def mirrored(made: Dataset) -> None:
    made.PatientOrientation = ["R", "F"]
    set_pixels(made, np.ascontiguousarray(stored(made)[:, ::-1]))


def upside_down(made: Dataset) -> None:
    made.PatientOrientation = ["L", "H"]
    set_pixels(made, np.ascontiguousarray(stored(made)[::-1]))


def colour(made: Dataset) -> None:
    grey = (stored(made) >> 4).astype(np.uint8)
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    set_pixels(made, np.repeat(grey[..., None], 3, -1))


def frames(made: Dataset) -> None:
    made.NumberOfFrames = 3
    set_pixels(made, np.stack([stored(made), *np.zeros((2, *stored(made).shape), "<u2")]))


def undecodable(made: Dataset) -> None:
    made.file_meta.TransferSyntaxUID = JPEGLSLossless
    made.PixelData = encapsulate([made.PixelData[:500]])
    made["PixelData"].VR = "OB"


def cut(share: float) -> Change:
    return raw(lambda data: data[: int(len(data) * share)])


def rename(name: str) -> Change:
    return lambda path: path.rename(path.with_name(name)) and None


# fault, name, change, whose rows it must have, codes
FILMS: tuple[tuple[int, str, Change, str, tuple[str, ...]], ...] = (
    (35, "mono1", header(inverted), HEALTHY, ()),
    (34, "mirrored", header(mirrored), HEALTHY, ("film:orientation_mirrored",)),
    (33, "upside", header(upside_down), HEALTHY, ("film:orientation_upside_down",)),
    (40, "rgb", header(colour), HEALTHY, ()),
    (41, "frames", header(frames), HEALTHY, ("film:several_frames",)),
    (37, "slope0", header(put(RescaleSlope=0, RescaleIntercept=0)), HEALTHY, ()),
    (38, "window", header(put(WindowCenter=[1, 2], WindowWidth=[0, -5])), HEALTHY, ()),
    (31, "nospacing", header(drop("ImagerPixelSpacing")), VALID, ("film:size_assumed",)),
    (31, "nospace0", header(put(ImagerPixelSpacing=[0, 0])), VALID, ("film:size_assumed", "film:spacing_ignored")),
    (20, "nopreamble", raw(lambda data: data[132:]), HEALTHY, ()),
    (17, "cut70", cut(0.7), VALID, ("film:pixels_filled",)),
    (17, "cut30", cut(0.3), LOST, ("film:absent", "film:pixels_cut")),
    (16, "cuthead", raw(lambda data: data[:300]), LOST, ("film:absent", "film:file_cut")),
    (15, "empty", raw(lambda data: b""), LOST, ("film:absent", "film:empty_file")),
    (10, "text", raw(lambda data: b"no film\n" * 90), LOST, ("film:absent", "film:not_dicom")),
    (22, "jpegls", header(undecodable), LOST, ("film:absent", "film:no_decoder_JPEGLSLossless")),
    (45, "huge", header(put(Rows=65535, Columns=65535)), LOST, ("film:absent", "film:image_too_large")),
    (46, "norows", header(put(Rows=0)), LOST, ("film:absent", "film:no_size")),
    (46, "nopixels", header(drop("PixelData")), LOST, ("film:absent", "film:no_pixels")),
    (42, "black", header(lambda made: set_pixels(made, 0 * stored(made))), LOST, ("film:absent", "film:no_contrast")),
    (11, "UPPER", rename("UPPER.DCM"), HEALTHY, ()),
    (126, "shape", header(inverse_shape), HEALTHY, ("film:polarity_contradicts",)),
    (127, "voi", header(falling("VOILUTSequence")), HEALTHY, ("film:voi_lut_inverts",)),
    (128, "modality", header(falling("ModalityLUTSequence")), HEALTHY, ()),
    (129, "aspect", header(not_square), VALID, ("film:pixels_not_square", "film:size_assumed")),
    (130, "lateral", header(put(ViewPosition="LAT")), HEALTHY, ("film:lateral_view",)),
    (130, "skyline", header(put(SeriesDescription="knee skyline")), HEALTHY, ("film:other_view",)),
    (131, "chest", header(put(BodyPartExamined="CHEST")), HEALTHY, ("film:other_body_part",)),
    (12, "odd", rename("od\u0111 \u810a.dcm"), HEALTHY, ()),
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[Outcome, Outcome]:
    folder = tmp_path_factory.mktemp("films")
    weights = random_bundle(folder / "weights", "knee-xray")
    for part in ("clean", "broken"):
        (folder / part).mkdir()
        for name in ("a_healthy", "z_healthy"):
            write_film(folder / part / f"{name}.dcm", film(), 1.5, name)
    for _, name, change, _, _ in FILMS:
        path = folder / "broken" / f"{name}.dcm"
        write_film(path, film(), 1.5, name)
        rewrite(path, put(PatientName="Doe^Jane"))
        change(path)
    return tuple(  # type: ignore[return-value]
        grade("knee-xray", folder / part, weights, folder / f"{part}.csv") for part in ("clean", "broken")
    )


def test_untouched_films_differ_in_no_byte_and_no_patient_is_named(outcome):
    clean, broken = outcome
    assert clean.code == broken.code == 0
    assert len(broken.cells) == len(FILMS) + 2
    for name in ("a_healthy", "z_healthy"):
        assert clean.cells[name] == broken.cells[name]
    assert not any(word in broken.said + broken.out.read_text() for word in ("Doe", "Jane"))


@pytest.mark.parametrize(("fault", "name", "change", "like", "codes"), FILMS, ids=[f"{f[0]}: {f[1]}" for f in FILMS])
def test_a_fault_of_a_film_costs_what_it_must_and_is_counted(outcome, fault, name, change, like, codes):
    _, broken = outcome
    name = next((study for study in broken.cells if name == "odd" and study.startswith("od")), name)
    cells, healthy, reasons = broken.cells[name], broken.cells["a_healthy"], broken.reasons.get(name, {})
    assert {reason for reason in reasons if ":" in reason} == set(codes)
    assert all(f"{code} x " in broken.said for code in codes)
    assert all(abs(sum(map(float, values)) - 1) < 1e-6 for values in cells.values())
    if like == HEALTHY:
        assert worst(cells, healthy) <= (1e-4 if fault in (40, 128) else 0)
    elif like == LOST:
        assert "not_graded" in reasons
        common = cells.keys() & broken.cells["empty"].keys()
        assert common and all(cells[side] == broken.cells["empty"][side] for side in common)


def test_a_broken_picture_of_a_stack_costs_its_study_and_no_other(tmp_path):
    weights = random_bundle(tmp_path / "weights", "spider")
    for part in ("clean", "broken"):
        (tmp_path / part).mkdir()
        for patient in (1, 2, 3):
            pixels = np.roll(film(), 9 * patient, 1).T.copy()
            Image.fromarray(pixels).save(tmp_path / part / f"{patient}_t2.png")
    path = tmp_path / "broken" / "2_t2.png"
    path.write_bytes(path.read_bytes()[:900])
    (tmp_path / "broken" / "Thumbs.db").write_bytes(bytes(90))
    clean, broken = (
        grade("spider", tmp_path / part, weights, tmp_path / f"{part}.csv") for part in ("clean", "broken")
    )
    assert clean.code == broken.code == 0 and clean.cells.keys() == broken.cells.keys()
    assert all(clean.cells[study] == broken.cells[study] for study in "13")
    assert broken.reasons["2"]["t2:pixels_damaged"] == 1 and "t2:pixels_damaged x 1" in broken.said

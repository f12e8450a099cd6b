"""SPIDER as it is published: whole volumes as MetaImage files with numbered masks, beside radiological_gradings.csv."""

from __future__ import annotations

import numpy as np
import pytest

from osteograde.errors import UserError
from osteograde.imaging.geometry import Roi, apply
from osteograde.learning.locator_data import cut_labels, label_volume
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spine import LEVELS
from tests.test_volume_files import metaimage

TASK = TASKS["spider"]
SLICES, ROWS, COLUMNS = 5, 60, 40
STEP_MM = (4.0, 1.0, 1.0)  # slice, row, column
DISC_ROWS = {201 + k: 48 - 9 * k for k in range(5)}  # L5/S1 lowest


def written(root, *, order="xyz"):
    """One patient whose discs are bright and numbered. Arrays here are (left-right, foot-head, back-front)."""
    rng = np.random.default_rng(0)
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[1:4, 5:55, 25:30] = 100
    labels[2, 5:55, 24] = 100  # the middle slice has most canal
    for number, row in DISC_ROWS.items():
        labels[1:4, row : row + 3, 10:23] = number
        labels[1:4, row + 3 : row + 9, 10:23] = number - 200
    image = (rng.integers(0, 50, labels.shape) + 300 * (labels > 200) + 100 * (labels == 100)).astype(np.int16)
    directions = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # left, feet, back
    steps = np.array(STEP_MM)
    for folder, voxels in (("images", image), ("masks", labels)):
        (root / folder).mkdir(parents=True)
        for view in ("t1", "t2"):
            axes = {"xyz": (2, 1, 0), "published": (0, 2, 1)}[order]  # which of ours the file's x, y, z are
            stored = np.ascontiguousarray(voxels.transpose(axes[::-1]))
            contents = metaimage(
                stored,
                spacing=tuple(steps[list(axes)]),
                origin=(0.0, 0.0, 0.0),
                axes=directions[list(axes)],
            )
            (root / folder / f"7_{view}.mha").write_bytes(contents)
    (root / "radiological_gradings.csv").write_text(
        "Patient,IVD label,Modic,UP endplate,LOW endplate,Spondylolisthesis,Disc herniation,Disc narrowing,"
        "Disc bulging,Pfirrman grade\n" + "".join(f"7,{k},0,0,0,0,0,{k % 2},1,{k}\n" for k in range(1, 6))
    )
    (root / "overview.csv").write_text(
        "new_file_name,PixelSpacing,SliceThickness,SpacingBetweenSlices\n"
        + "".join(f'7_{view},"[1.0, 1.0]",4.0,4.0\n' for view in ("t1", "t2"))
    )
    return labels


@pytest.mark.parametrize("order", ["xyz", "published"])
def test_discs_are_marked_where_their_numbers_lie_whatever_the_order_of_the_axes(tmp_path, order):
    written(tmp_path, order=order)
    (study,) = TASK.read(tmp_path, "train")
    assert study.id == study.patient == "7"
    assert study.labels == {level: 4 - k for k, level in enumerate(LEVELS)}
    loaded = load_study(study, TASK)
    assert not loaded.faults
    for k, level in enumerate(reversed(LEVELS)):
        for view in ("t1", "t2"):
            mm = loaded.marks[f"{view}_disc_{level}"].mm
            np.testing.assert_allclose(mm, [2 * 4.0, 16.0, -(DISC_ROWS[201 + k] + 1.0)], atol=1e-6)


def test_the_classes_of_the_masks_lie_on_the_voxels_that_the_nets_read(tmp_path):
    labels = written(tmp_path, order="published")
    (study,) = TASK.read(tmp_path, "train")
    (volume,) = load_study(study, TASK).volumes["t2"]
    classes = cut_labels(label_volume(study, volume), Roi(volume.to_mm, volume.voxels.shape))
    assert set(np.unique(classes)) == {0, 1, 2, 3}
    assert (volume.voxels[classes == 1].mean()) > 2 * volume.voxels[classes == 0].mean()
    assert (classes == 1).sum() == (labels > 200).sum()
    middle = apply(volume.to_mm, (np.array(volume.voxels.shape) - 1) / 2)
    np.testing.assert_allclose(middle, [8.0, 19.5, -29.5], atol=1e-6)


def test_a_volume_is_graded_without_any_table_or_mask(tmp_path):
    written(tmp_path / "all")
    (tmp_path / "bare").mkdir()
    (tmp_path / "all" / "images" / "7_t2.mha").rename(tmp_path / "bare" / "7_t2.mha")
    (study,) = TASK.read(tmp_path / "bare", "test")
    assert load_study(study, TASK).volumes["t2"][0].voxels.shape == (SLICES, ROWS, COLUMNS)


def test_a_damaged_mask_is_named(tmp_path):
    written(tmp_path)
    path = tmp_path / "masks" / "7_t2.mha"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"7_t2\.mha: labels cannot be read \(pixels_damaged\)"):
        TASK.read(tmp_path, "train")


def test_tasks_without_volumes_count_them(tmp_path, caplog):
    written(tmp_path)
    (tmp_path / "knee.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    TASKS["knee-xray"].read(tmp_path, "test")
    assert "4 volumes in one file" in caplog.text


def test_a_folder_of_volumes_alone_is_refused_with_what_lies_there(tmp_path):
    (tmp_path / "a.mha").write_bytes(metaimage(np.zeros((3, 5, 4), "i2")))
    with pytest.raises(UserError, match="1 NIfTI or MetaImage volumes, which are no radiographs, and no image files"):
        TASKS["knee-xray"].read(tmp_path, "test")


def test_the_pixels_beside_a_header_that_is_read_are_not_counted_as_unused(tmp_path, caplog):
    head, pixels = metaimage(np.zeros((3, 5, 4), "i2")).split(b"LOCAL\n")
    (tmp_path / "1_t2.mhd").write_bytes(head + b"1_t2.raw\n")
    (tmp_path / "1_t2.raw").write_bytes(pixels)
    assert TASKS["spider"].read(tmp_path, "test")
    assert "not used" not in caplog.text
    (tmp_path / "other.raw").write_bytes(pixels)
    TASKS["spider"].read(tmp_path, "test")
    assert "not used: 1 other files (.raw x 1)" in caplog.text

"""Real images, read from OSTEOGRADE_DATA: stacks come out sorted, references lie where they should."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde.grade_command import infer
from osteograde.imaging.dicom import UnreadableSeries, read_series
from osteograde.inference import submission
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spine import LEVELS
from tests.spider_studies import CANAL, patients, slices, spacings, write_studies
from tests.tiny import random_bundle

DATA = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
SOURCE = DATA / "spider"
TASK = TASKS["lumbar-mr"]
needs_spider = pytest.mark.skipif(
    not (SOURCE / "t2space").is_dir(), reason=f"no spider/t2space under {DATA}: set OSTEOGRADE_DATA to the real images"
)
needs_dicom = pytest.mark.skipif(
    not (DATA / "dicom").is_dir(), reason=f"no dicom under {DATA}: set OSTEOGRADE_DATA to the real images"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    return folder, write_studies(SOURCE, folder, patients(SOURCE)[:2])


@needs_spider
def test_a_real_stack_is_one_volume_of_thick_slices_head_up(written):
    folder, references = written
    for study, patient in zip(TASK.read(folder, "test"), patients(SOURCE)[:2], strict=True):
        loaded = load_study(study, TASK)
        [volume] = loaded.volumes["sag_t2"]
        pixel, step = spacings(SOURCE)[patient]
        thick = round(4.0 / step)
        assert volume.voxels.shape[0] == len(slices(SOURCE, patient)) // thick
        assert np.allclose(volume.spacing_mm, [thick * step, pixel, pixel], atol=1e-3)
        assert np.allclose(volume.axes, TASK.view("sag_t2").directions, atol=1e-6)
        assert loaded.faults["sag_t1:absent"] == loaded.faults["axi_t2:absent"] == 1
        assert set(references[study.id].canal) <= set(LEVELS)


@needs_spider
def test_reference_points_lie_in_the_canal_and_descend(written):
    _, references = written
    for (_, reference), patient in zip(references.items(), patients(SOURCE)[:2], strict=True):
        pixel, _ = spacings(SOURCE)[patient]
        masks = [
            cv2.imread(str(SOURCE / "t2space" / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
            for path in slices(SOURCE, patient)
        ]
        mask = max(masks, key=lambda one: (one == CANAL).sum())
        heights = [reference.canal[level][2] for level in LEVELS if level in reference.canal]
        assert len(heights) >= 4 and heights == sorted(heights, reverse=True)
        for level, point in reference.canal.items():
            row, column = round(-point[2] / pixel), round(point[1] / pixel)
            assert mask[row, column] == CANAL
            assert point[1] > reference.discs[level][1]  # behind its disc


@needs_spider
@pytest.mark.slow
def test_real_patients_get_every_row_with_two_of_three_views_missing(written, tmp_path):
    folder, references = written
    out = tmp_path / "submission.csv"
    weights = random_bundle(tmp_path / "weights")
    assert infer("lumbar-mr", folder, weights, out, device="cpu") == 0
    assert submission.validate(out, folder / "sample_submission.csv") == []
    assert len(submission.read_submission(out)) == 25 * len(references)


@needs_dicom
def test_every_real_dicom_folder_is_read_or_refused_with_a_reason():
    folders = sorted({path.parent for path in (DATA / "dicom").rglob("*") if path.is_file()})
    volumes = 0
    for folder in folders:
        try:
            found, _ = read_series(folder)
        except UnreadableSeries as error:
            assert error.code and error.codes
            continue
        for volume in found:
            assert np.isfinite(volume.to_mm).all() and volume.voxels.ndim == 3
            assert len(volume.names) == volume.voxels.shape[0]
            assert np.linalg.det(volume.to_mm[:3, :3]) != 0
        volumes += len(found)
    assert folders and volumes > 5

"""The main job: whatever happens to files, every row is there, valid, and nothing written is lost."""

import csv
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from osteograde import phantom
from osteograde.grade_command import infer
from osteograde.imaging.dicom import read
from osteograde.inference import run, submission
from osteograde.inference.deadline import Budget, Voter
from osteograde.inference.submission import RunSummary
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from tests.tiny import random_bundle

TASK = TASKS["lumbar-mr"]
SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "lumbar-mr-phantom"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("weights"), folds=2, test_views=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "studies"
    phantom.write("lumbar-mr", folder, studies=0, test=3, seed=21)
    return folder


@pytest.fixture
def data(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def grade(data: Path, weights: Path, out: Path, **options) -> dict[str, np.ndarray]:
    code = infer("lumbar-mr", data, weights, out, **{"device": "cpu", "max_unread": 99, **options})
    assert code == 0
    assert submission.validate(out, data / "sample_submission.csv") == []
    return submission.read_submission(out)


def series_of(data: Path, study: int, description: str) -> list[Path]:
    with (data / "test_series_descriptions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ids = list(dict.fromkeys(row["study_id"] for row in rows))
    own = [row for row in rows if row["study_id"] == ids[study] and row["series_description"] == description]
    return [data / "test_images" / row["study_id"] / row["series_id"] for row in own]


def of_study(rows: dict[str, np.ndarray], study: str) -> np.ndarray:
    return np.array([values for row, values in rows.items() if row.startswith(study)])


@pytest.mark.slow
def test_a_lost_series_costs_that_series_and_other_studies_not_a_byte(original, data, tmp_path):
    weights = SHIPPED  # nets that find the places which the lost series shows
    clean = grade(original, weights, tmp_path / "clean.csv")
    for folder in series_of(data, 1, "Axial T2"):
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:200])
    broken = grade(data, weights, tmp_path / "broken.csv")
    first, second, third = (study.id for study in TASK.read(data, "test"))
    for other in (first, third):
        assert np.array_equal(of_study(clean, other), of_study(broken, other))  # not a byte
    assert np.abs(of_study(clean, second) - of_study(broken, second)).max() > 1e-3
    flags = (tmp_path / "broken.flags.csv").read_text()
    assert f"{second}_{TASK.targets[0]},axi_t2:absent,1\n" in flags and f"{first}_{TASK.targets[0]},axi" not in flags


@pytest.mark.slow
def test_an_unreadable_study_keeps_its_priors_and_is_counted(data, weights, tmp_path):
    study = TASK.read(data, "test")[1].id
    shutil.rmtree(data / "test_images" / study)
    (data / "test_images" / study).mkdir()
    rows = grade(data, weights, tmp_path / "s.csv")
    prior = submission.written(np.array([TASK.prior[target] for target in TASK.targets]))
    assert np.abs(of_study(rows, study) - prior).max() < 1e-8
    code = infer("lumbar-mr", data, weights, tmp_path / "s.csv", device="cpu", max_unread=0)
    assert code == 1
    assert submission.validate(tmp_path / "s.csv", data / "sample_submission.csv") == []


@pytest.mark.slow
def test_without_time_the_priors_stand(data, weights, tmp_path):
    rows = grade(data, weights, tmp_path / "s.csv", time_budget_hours=1e-9)
    assert len(rows) == 75
    prior = submission.written(np.array([TASK.prior[target] for target in TASK.targets]))
    assert np.abs(of_study(rows, TASK.read(data, "test")[0].id) - prior).max() < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "folder", "message"),
    [("elbow", "data", "unknown task"), ("lumbar-mr", "nowhere", "no such folder"), ("lumbar-mr", "empty", "neither")],
)
def test_mistakes_are_told_before_any_work_and_lose_nothing(data, weights, tmp_path, task, folder, message):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "s.csv"
    out.write_text("what was there")
    with pytest.raises(ValueError, match=message):
        infer(task, tmp_path / folder, weights, out, device="cpu")
    assert out.read_text() == "what was there"


def test_a_run_removes_a_table_of_an_earlier_run_and_says_so(data, weights, tmp_path, caplog):
    out = tmp_path / "s.csv"
    job = run.prepare("lumbar-mr", data, weights, device="cpu")
    run.start(job, out, decide="most-probable")
    assert submission.predicted_path(out).is_file()
    with caplog.at_level(logging.INFO, "osteograde.inference"):
        run.start(job, out)
    assert not submission.predicted_path(out).exists()
    (told,) = [one.getMessage() for one in caplog.records if "earlier run" in one.getMessage()]
    assert "s.predicted.csv" in told


@pytest.mark.slow
def test_tampered_weights_lose_nothing(data, weights, tmp_path):
    bad = Path(shutil.copytree(weights, tmp_path / "bad"))
    path = next(bad.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    out = tmp_path / "s.csv"
    out.write_text("what was there")
    with pytest.raises(ValueError, match="changed or cut short"):
        infer("lumbar-mr", data, bad, out, device="cpu")
    assert out.read_text() == "what was there"


@pytest.mark.slow
def test_every_row_of_a_stale_template_is_answered(data, weights, tmp_path):
    template = data / "sample_submission.csv"
    extra = [f"99_{target},0.3,0.3,0.4" for target in TASK.targets]
    template.write_text(template.read_text() + "\n".join(extra) + "\n")
    assert len(grade(data, weights, tmp_path / "s.csv", time_budget_hours=1e-9)) == 100


@pytest.mark.slow
def test_the_log_names_no_patient_and_studies_in_a_batch_do_not_touch(data, weights, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    together = grade(data, weights, tmp_path / "s.csv")
    loaded = bundle.load(weights, TASKS, pick("cpu"))
    study = TASK.read(data, "test")[0]
    budget = Budget(None, (Voter(2, 2),))
    [[result]] = run.graded_chunks(loaded, [study], budget, RunSummary())
    expected = submission.written(predict.probability_rows(TASK, result.graded, loaded.prior))
    assert np.abs(of_study(together, study.id) - expected).max() < 1e-5
    assert "PatientID" not in caplog.text


@pytest.mark.slow
def test_points_survive_a_missing_view(original, weights):
    loaded = bundle.load(weights, TASKS, pick("cpu"))
    study = load_study(TASK.read(original, "test")[0], TASK)
    nets = run.nets_of(loaded, "locate", run.Effort(1, 1))
    hidden = {view: () if view == "axi_t2" else stacks for view, stacks in study.volumes.items()}
    found, completed = predict.locate_all(TASK, [run.Loaded(study.study, hidden)], nets)
    assert not any(name.startswith("recess") for name in found[0])
    assert all(np.isfinite(point.mm).all() for point in completed[0].values())


@pytest.mark.slow
def test_pixels_of_unknown_size_are_as_large_as_those_of_another_series_in_their_plane(small_studies):
    data, _ = small_studies
    study = TASK.read(data, "test")[0]
    known = load_study(study, TASK)
    with pytest.MonkeyPatch.context() as patch:
        spacing = read._spacing
        patch.setattr(read, "_spacing", lambda *sources: None if sources[-1]["Rows"] == rows else spacing(*sources))
        rows = known.volumes["sag_t2"][0].voxels.shape[1]
        told = load_study(study, TASK)
    assert told.faults["sag_t2:spacing_unknown"] == known.volumes["sag_t2"][0].voxels.shape[0]
    np.testing.assert_allclose(told.volumes["sag_t2"][0].spacing_mm[1:], known.volumes["sag_t1"][0].spacing_mm[1:])
    np.testing.assert_allclose(told.volumes["sag_t2"][0].spacing_mm[0], known.volumes["sag_t2"][0].spacing_mm[0])


def test_grading_starts_without_the_parts_of_scipy_that_it_does_not_use():
    """They are half of what the package's own modules cost at every start."""
    unused = {"scipy.ndimage", "scipy.optimize", "sklearn"}
    program = f"import sys, osteograde.inference.run; print({unused} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

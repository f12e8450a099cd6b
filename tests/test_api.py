"""``import osteograde``: light to import, and it says what the command lines say."""

import ast
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import osteograde
from osteograde import api, cli, phantom
from osteograde.errors import UserError
from osteograde.grade_command import infer
from osteograde.imaging.image_files import read_pixels
from osteograde.inference import points_file, submission
from osteograde.tasks import TASKS
from tests.tiny import random_bundle

ROOT = Path(__file__).resolve().parents[1]
TASK = "knee-xray"


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("knees") / "data"
    phantom.write(TASK, folder, studies=2, test=2, seed=5)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("weights"), "knee-xray", folds=2, pixels=(64, 64))


@pytest.fixture(scope="module")
def grader(weights) -> api.Grader:
    return osteograde.load(weights, device="cpu")


@pytest.fixture(scope="module")
def written(knees, weights, tmp_path_factory) -> Path:
    """What inference.py writes."""
    out = tmp_path_factory.mktemp("out") / "submission.csv"
    assert infer(TASK, knees, weights, out, device="cpu") == 0
    return out


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def middle(pixels: np.ndarray, name: str, side: str = "left") -> pd.DataFrame:
    """The joint in the middle of a crop, as a user gives it: nets that know nothing may not find it."""
    height, width = pixels.shape
    return pd.DataFrame({"study_id": [name], "landmark": [side], "x": [(width - 1) / 2], "y": [(height - 1) / 2]})


def crops(knees: Path) -> list[Path]:
    return sorted(knees.glob("train/*/*L.png"))


def test_importing_the_package_imports_nothing_heavy():
    program = "import sys, osteograde; print(sorted({'torch', 'numpy', 'pandas', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_every_name_is_typed_and_there():
    stub = ast.parse((ROOT / "src" / "osteograde" / "__init__.pyi").read_text())
    named = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert named == set(api.__all__) <= set(dir(osteograde))
    assert all(getattr(osteograde, name) is getattr(api, name) for name in named)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        osteograde.lod  # noqa: B018


def test_grades_are_those_of_the_submission_to_the_printed_digit(grader, knees, written):
    for data in (knees, str(knees)):
        table = grader.grade(data)
        assert list(table.row_id) == [row["row_id"] for row in cells(written)]
        for name in grader.classes:
            assert [f"{value:.9f}" for value in table[name]] == [row[name] for row in cells(written)]
    probs = table[list(grader.classes)].to_numpy()
    assert list(table.predicted) == [grader.classes[k] for k in probs.argmax(1)]
    assert np.array_equal(table.confidence, probs.max(1))
    assert list(table.row_id) == [
        f"{study}_{target}" for study, target in zip(table.study_id, table.target, strict=True)
    ]


def test_flags_and_points_are_those_of_the_tables_beside_it(grader, knees, written):
    done = grader.run(knees)
    texts = dict(zip(done.grades.row_id, done.grades["flags"], strict=True))
    flags = {(row, reason) for row, text in texts.items() for reason in text.split("; ")}
    told = {(row["row_id"], row["reason"]) for row in cells(submission.flags_path(written))}
    assert {flag for flag in flags if flag[1]} == told
    rows = cells(points_file.points_path(written))
    assert len(rows) == len(done.points) > 0
    for row, (_, point) in zip(rows, done.points.iterrows(), strict=True):
        assert [row[name] for name in ("study_id", "landmark", "file")] == [point.study_id, point.landmark, point.file]
        for name in api.NUMBERS:
            assert float(row[name]) == point[name] if row[name] else np.isnan(point[name])


def test_points_given_back_give_the_same_grades_and_moved_ones_others(grader, knees):
    done = grader.run(knees)
    again = grader.grade(knees, points=done.points)
    probs = list(grader.classes)
    assert again[probs].equals(done.grades[probs])
    moved = done.points.assign(x_mm=done.points.x_mm + 15)
    assert not grader.grade(knees, points=moved)[probs].equals(done.grades[probs])


def test_nets_are_loaded_once(grader, knees, monkeypatch):
    monkeypatch.setattr(api.run.ensemble, "load", lambda *_: pytest.fail("loaded again"))
    assert len(grader.grade(knees, limit=1)) == 2


def test_a_film_as_an_array_is_graded_as_its_file(grader, knees):
    path = crops(knees)[0]
    pixels = read_pixels(path)
    from_file = grader.grade(path, points=middle(pixels, path.stem))

    def graded(width_mm: float, side: str) -> pd.DataFrame:
        spacing = width_mm / pixels.shape[1]
        return grader.grade(pixels, spacing_mm=spacing, side=side, points=middle(pixels, "image", side))

    probs, from_array = list(grader.classes), graded(140, "left")
    assert np.allclose(from_file[probs], from_array[probs], atol=1e-6)
    assert (from_array.row_id[0], from_array.target[0]) == ("image_left", "left")
    assert "not_graded" not in from_array["flags"][0]
    assert not np.allclose(from_file[probs], graded(180, "left")[probs], atol=1e-5)
    assert list(graded(140, "right").row_id) == ["image_right"]


def test_several_arrays_keep_their_order_and_names(grader, knees):
    pixels = read_pixels(crops(knees)[0])
    table = grader.grade([pixels, pixels.astype(np.float32) / 255], spacing_mm=0.3, side="right")
    assert list(table.row_id) == ["image1_right", "image2_right"]
    named = [osteograde.Image(pixels, 0.3, side, name=name) for name, side in (("b", "left"), ("a", "right"))]
    assert list(grader.grade(named).row_id) == ["b_left", "a_right"]


def test_both_knees_of_a_wide_film_are_graded(grader):
    table = grader.grade(np.full((300, 400), 90, np.uint16), spacing_mm=1.0, side="both")
    assert list(table.target) == ["right", "left"]


FILM, STACK = np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("data", "said", "message"),
    [
        (FILM, {}, "spacing_mm is missing"),
        (FILM, {"spacing_mm": 0.2}, "nothing tells which side"),
        (FILM, {"spacing_mm": -1, "side": "left"}, "expected one number above 0"),
        (FILM, {"spacing_mm": (1, 1, 1), "side": "left"}, "expected one number above 0"),
        (FILM, {"spacing_mm": 0.2, "side": "port"}, "expected right, left or both"),
        (STACK, {"spacing_mm": 0.2, "side": "left"}, r"got shape \(3, 8, 8\)"),
        (np.array([["a"]]), {"spacing_mm": 0.2, "side": "left"}, "expected grey values"),
        ([FILM, "x.png"], {"spacing_mm": 0.2}, "mixed"),
        ([osteograde.Image(FILM, 0.2, "left")], {"side": "left"}, "leave them out"),
        ([osteograde.Image(FILM, 0.2, "left")] * 2, {}, "several films are called 'image'"),
        (osteograde.Image(FILM, 0.2, "left", name="../up"), {}, "names have letters"),
        ("nowhere", {}, "no such folder or file"),
        ("nowhere", {"side": "left"}, "are of arrays"),
        ([], {}, "no data are given"),
    ],
)
def test_what_cannot_be_graded_is_one_sentence(grader, data, said, message):
    with pytest.raises(UserError, match=message) as told:
        grader.grade(data, **said)
    assert "\n" not in str(told.value)


def test_a_stack_lies_where_its_orientation_says(tmp_path_factory):
    """The same voxels turned to other axes are the same study: the same points in mm and the same grades."""
    grader = osteograde.load(random_bundle(tmp_path_factory.mktemp("spine"), "spider"), device="cpu")
    rng = np.random.default_rng(3)
    pixels = np.cumsum(rng.normal(size=(5, 40, 30)), axis=1).astype(np.float32)
    said = {"view": "t2", "spacing_mm": (4.0, 2.0, 1.5)}
    first = grader.run(pixels, orientation="LIP", **said)
    turned = grader.run(pixels.transpose(1, 2, 0)[::-1], orientation="SPL", view="t2", spacing_mm=(2.0, 1.5, 4.0))
    assert np.allclose(first.points[["x_mm", "y_mm", "z_mm"]], turned.points[["x_mm", "y_mm", "z_mm"]], atol=1e-6)
    assert np.allclose(first.grades[list(grader.classes)], turned.grades[list(grader.classes)], atol=1e-6)
    mirrored = grader.run(pixels, orientation="LSP", **said)
    assert not np.allclose(first.points.z_mm, mirrored.points.z_mm)
    assert set(submission.finding_names(TASKS["spider"])) <= set(first.grades.columns)
    both = [osteograde.Image(pixels, (4.0, 2.0, 1.5), orientation="LIP", view=view, name="7") for view in ("t1", "t2")]
    given = pd.DataFrame([("7", f"{view}_disc_l4_l5", 0.0, 0.0, 0.0) for view in ("t1", "t2")])
    given.columns = ["study_id", "landmark", "x_mm", "y_mm", "z_mm"]
    seen = grader.points(both, points=given).query("x_mm == 0")
    assert set(zip(seen.study_id, seen.x, seen.y, strict=True)) == {("7", 14.5, 19.5)} and len(seen) == 2
    with pytest.raises(UserError, match="view is ''; spider has t"):
        grader.grade(pixels, spacing_mm=1.0, orientation="LIP")
    for orientation in ("", "LIX", "LLP"):
        with pytest.raises(UserError, match="orientation is"):
            grader.grade(pixels, orientation=orientation, **said)


def test_the_columns_of_a_table_have_names_of_their_own():
    fixed = {api.ROW, api.STUDY, api.TARGET, api.PREDICTED, api.CONFIDENCE, api.FLAGS}
    for task in TASKS.values():
        names = [*fixed, *task.classes, *submission.finding_names(task)]
        assert len(set(names)) == len(names), task.name


def test_evidence_is_a_colour_picture_of_one_site(grader, knees, monkeypatch):
    path = crops(knees)[0]
    said = {"points": middle(read_pixels(path), path.stem), "method": "saliency"}
    picture = grader.explain(path, **said)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert (picture[..., 0] != picture[..., 2]).any()
    assert np.array_equal(picture, grader.explain(path, target="left", **said))
    for wrong, message in [
        ({"target": "right"}, "target is 'right'"),
        ({"target": "top"}, "grades right, left"),
        ({"method": "guess"}, "expected one of gradcam"),
    ]:
        with pytest.raises(UserError, match=message):
            grader.explain(path, **{**said, **wrong})
    with pytest.raises(UserError, match="2 studies are given"):
        grader.explain(knees)
    with pytest.raises(UserError, match="0 studies are called 'x'"):
        grader.explain(knees, study="x")
    same = {**said, "points": middle(read_pixels(path), path.stem)}
    assert np.array_equal(picture, grader.explain(crops(knees), study=path.stem, **same))
    monkeypatch.setattr(api.heatmaps, "pictures", lambda *_: {"left": np.array([[[1, 2, 3]]], np.uint8)})
    assert grader.explain(path, **said).tolist() == [[[3, 2, 1]]]  # red first


def test_a_table_is_scored_as_its_file(grader, knees, written, capsys):
    words = ["score", TASK, "--data", str(knees), "--submission", str(written), "--json"]
    capsys.readouterr()
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        osteograde.score(TASK, knees, grader.grade(knees)) == told == osteograde.score(TASK, str(knees), str(written))
    )
    with pytest.raises(UserError, match="no column kl_0"):
        osteograde.score(TASK, knees, pd.DataFrame({"row_id": ["a_left"]}))
    with pytest.raises(UserError, match="no task 'elbow'"):
        osteograde.score("elbow", knees, written)


def test_training_takes_the_options_of_the_command(monkeypatch, tmp_path, weights):
    asked = []
    monkeypatch.setattr(cli, "train", lambda args: asked.append(args) or 0)
    scores = osteograde.train(
        TASK, "data", weights, recipe="knee-xray-small", folds=(0, 2), debug=True, reuse=["a", "b"], folds_of=Path("c"),
        set=["a.b=1", "c=2"],
    )  # fmt: skip
    assert set(scores) == {"locate", "grade", "findings"}
    words = ["--recipe", "knee-xray-small", "--folds", "0,2", "--debug", "--reuse", "a", "b", "--folds-of", "c"]
    words += ["--set", "a.b=1", "--set", "c=2"]
    same = cli.train_parser().parse_args([TASK, "--data", "data", "--out", str(weights), *words])
    (given,) = (vars(args) for args in asked)
    assert {**given, "typed": ""} == {**vars(same), "typed": ""}  # but for the order in which they are typed again
    with pytest.raises(UserError, match="epochs is no option of"):
        osteograde.train(TASK, "data", weights, epochs=3)
    with pytest.raises(UserError, match="not a list of different fold numbers"):
        osteograde.train(TASK, "data", weights, folds=[0, 0])


def test_what_cannot_be_loaded_names_the_tasks():
    with pytest.raises(UserError, match="neither a weights folder nor a task; tasks are knee-"):
        osteograde.load("no-such-weights")


def test_a_task_that_its_data_define_is_scored_by_the_classes_of_the_table(tmp_path):
    phantom.write("table", tmp_path, studies=12, seed=2)
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    classes = sorted(labels["label"].unique())
    ids = [Path(name).stem for name in labels["image"]]
    sure = pd.DataFrame({name: (labels["label"] == name).astype(float) for name in classes})
    table = sure.assign(row_id=ids, study_id=ids, target="", predicted="", confidence=1.0, flags="")
    result = osteograde.score("table", tmp_path, table, bootstrap=0)
    assert result["studies"] == len(ids) and result["confusion"] == np.diag(sure.sum().astype(int)).tolist()

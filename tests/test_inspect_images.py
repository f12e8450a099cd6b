"""Faults planted in folders of images of any task are found, each by its name, and sound folders have none."""

import csv
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from osteograde import cli, phantom
from osteograde.errors import UserError
from osteograde.imaging import fingerprint
from osteograde.learning import label_errors
from osteograde.report import data_census as census
from osteograde.report import data_pictures
from osteograde.report.data_survey import gather, split_of
from osteograde.tasks import NAMES, TASKS
from tests import dicom_files

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "knee-xray"
KNEES = "knee-xray"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Crops of a dozen knees in grade folders, without any fault."""
    out = tmp_path_factory.mktemp("sound")
    phantom.write(KNEES, out, studies=8, test=0, seed=3)
    return out


@pytest.fixture
def knees(sound, tmp_path) -> Path:
    """A copy of them that a test may spoil."""
    shutil.copytree(sound, tmp_path / "data")
    return tmp_path / "data"


def crops(root: Path) -> list[Path]:
    return sorted(root.glob("train/*/*.png"))


@pytest.fixture
def told(capsys) -> Callable[..., dict]:
    """The command's JSON: {"facts": {name: count}, "tables": {name: rows}, "faults": {...}}."""

    def run(root: Path, task: str = KNEES, *options: str) -> dict:
        page = root.parent / "page.html"
        assert cli.main(["inspect", task, "--data", str(root), "--out", str(page), "--json", *options]) == 0
        said = json.loads(capsys.readouterr().out)
        return {
            "facts": {fact["what"]: fact["count"] for fact in said["facts"]},
            "faults": {fact["what"]: fact["count"] for fact in said["facts"] if fact["fault"] and fact["count"]},
            "named": {fact["what"]: fact["examples"] for fact in said["facts"]},
            "tables": {table["name"]: table["rows"] for table in said["tables"]},
            "page": page.read_text(),
        }

    return run


@pytest.fixture(scope="module")
def spines(phantoms) -> Path:
    """Three patients of the task spider, without any fault; copied by tests that spoil them."""
    return phantoms("spider", studies=2, test=1, seed=5)


@pytest.mark.parametrize(
    "task",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("lumbar-mr", "spider") else []) for name in NAMES],
)
def test_a_sound_folder_of_every_task_has_no_fault(task, tmp_path, told, request):
    data = request.getfixturevalue("spines") if task == "spider" else tmp_path / "data"
    if task != "spider":
        phantom.write(task, data, studies=1 if task == "lumbar-mr" else 2, test=1, seed=5)
    found = told(data, task)
    studies = gather(TASKS[task], data).studies
    assert found["facts"]["patients"] == len({study.patient for study in studies}) > 0
    assert found["facts"]["image files"] > 0 and found["facts"][census.UNREADABLE] == 0
    # films of the test part are nobody's, and a table of labels may leave images out
    assert set(found["faults"]) <= {census.NO_PATIENT, census.NO_LABEL}
    assert found["tables"]["codec"] and found["tables"]["size, rows x columns"]
    assert "<script" not in found["page"] and "http" not in found["page"].replace("http://www.w3.org", "")


def test_labels_of_a_table_are_counted_under_the_classes_that_the_table_defines(tmp_path, told):
    phantom.write("table", tmp_path, studies=12, test=0, seed=5)
    with (tmp_path / "labels.csv").open(encoding="utf-8") as lines:
        given = Counter(row["label"] for row in csv.DictReader(lines))
    rows = told(tmp_path, "table")["tables"]["labels by site and class"]
    assert len(given) > 2 and rows == [["", *(given[name] for name in sorted(given)), 12]]


def test_a_sound_folder_has_no_fault_at_all(sound, told):
    found = told(sound)
    assert found["faults"] == {}
    assert found["facts"]["labels"] == len(crops(sound)) == found["facts"]["image files"]
    assert found["tables"]["patients and series by split and view"] == [
        ["train", found["facts"]["patients"], len(crops(sound))]
    ]
    assert found["tables"]["labels by site and class"][-1][-1] == len(crops(sound))


def _jpeg(grey):
    return cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], cv2.IMREAD_GRAYSCALE)


WAYS = {
    "packed again": _jpeg,
    "resized": lambda grey: cv2.resize(grey, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA),
    "brighter": lambda grey: (grey * 0.8 + 30).astype(np.uint8),
    "mirrored": lambda grey: grey[:, ::-1],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_under_another_patient_is_found_however_it_was_saved(knees, told, way):
    path = crops(knees)[0]
    made = WAYS[way](cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    cv2.imwrite(str(path.with_name("7000001L.png")), made)
    found = told(knees)
    assert found["faults"] == {census.COPIES_ACROSS: 1}
    pair = [row[1] for row in found["tables"]["images that are there twice"]]
    assert sorted(pair) == sorted(f"train/{path.parent.name}/{name}" for name in (path.name, "7000001L.png"))
    assert "Images that are there twice" in found["page"]
    assert ("mirrored" in str(found["tables"]["images that are there twice"])) == (way == "mirrored")


def test_a_copy_with_another_label_or_in_another_split_is_told_apart(knees, told):
    path = crops(knees)[0]
    other = knees / "val" / ("4" if path.parent.name != "4" else "0")
    other.mkdir(parents=True)
    shutil.copy(path, other / f"{path.stem}_v2.png")
    found = told(knees)
    assert found["faults"] == {
        census.COPIES_WITHIN: 1,
        census.COPIES_SPLIT: 1,
        census.COPIES_LABELS: 1,
        census.SPLITS: 1,
    }


def test_patients_over_splits_and_patients_of_two_spellings_are_named(knees, told):
    both = {path.stem[:-1]: path for path in crops(knees) if path.stem.endswith("L")}
    torn, spelt = [
        patient for patient in both if sum(path.stem.startswith(patient) for path in crops(knees)) == 2
    ][:2]  # fmt: skip
    place = knees / "val" / both[torn].parent.name
    place.mkdir(parents=True)
    both[torn].rename(place / both[torn].name)
    both[spelt].rename(both[spelt].with_name(f"0{both[spelt].name}"))
    found = told(knees)
    assert found["faults"] == {census.SPLITS: 1, census.SPELLINGS: 1}
    assert found["tables"][census.SPLITS] == [[torn, "train and val", 2]]


def test_files_that_cannot_be_read_are_named_with_the_reason(knees, told):
    empty, cut, text = crops(knees)[:3]
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text.write_bytes(b"<html>not found</html>")
    found = told(knees)
    assert found["faults"] == {census.UNREADABLE: 3, census.NO_IMAGE: 3}
    reasons = {Path(name).name: reason for name, reason in found["tables"][census.UNREADABLE]}
    assert reasons == {empty.name: "empty_file", cut.name: "pixels_damaged", text.name: "not_an_image"}


def test_one_damaged_slice_of_a_series_is_named(tmp_path, told):
    folder = tmp_path / "data" / "test_images" / "1" / "2"
    pixels = np.random.default_rng(0).integers(0, 999, (64, 64)).astype(np.uint16)
    for number in range(6):
        place = (number * 4.0, 0, 0)
        made = dicom_files.dataset(pixels, orientation=dicom_files.SAGITTAL, instance=number, position=place)
        dicom_files.write(folder / f"{number}.dcm", made)
    (folder / "3.dcm").write_bytes((folder / "3.dcm").read_bytes()[:300])
    (tmp_path / "data" / "test_series_descriptions.csv").write_text(
        "study_id,series_id,series_description\n1,2,Sagittal T1\n"
    )
    found = told(tmp_path / "data", "lumbar-mr")
    names = [Path(name).name for name, _ in found["tables"][census.UNREADABLE]]
    assert names == ["3.dcm"] and found["facts"][census.UNREADABLE] == 1


def test_images_without_a_grade_and_names_without_patient_or_side_are_listed(knees, told):
    first, second = crops(knees)[:2]
    first.rename(knees / "train" / first.name)
    second.rename(second.with_name("film.png"))
    found = told(knees)
    assert found["faults"] == {census.NO_LABEL: 1, census.NO_PATIENT: 1, census.NO_SIDE: 1}


@pytest.mark.slow
def test_rows_of_tables_without_an_image_are_listed(spines, tmp_path, told):
    shutil.copytree(spines, tmp_path / "s")
    with (tmp_path / "s" / "test_truth.csv").open("a") as file:
        file.write("nobody_l5_s1,2\n")
    lost = min((tmp_path / "s" / "slices").glob("*_t1.png")).name.partition("_")[0]
    for path in (tmp_path / "s").rglob(f"{lost}_*"):
        path.unlink()
    found = told(tmp_path / "s", "spider")
    assert found["named"][census.NO_ROW] == "nobody"
    assert found["faults"][census.NO_ROW] == 1 and found["faults"]["patients of gradings.csv without an image"] == 1

    phantom.write("knee-progression", tmp_path / "p", studies=4, test=0, seed=5)
    with (tmp_path / "p" / "labels.csv").open() as file:
        row = next(csv.DictReader(file))
    letter = "L" if row["side"].lower().startswith("l") else "R"
    for path in (tmp_path / "p").rglob(f"{row['patient']}{letter}.*"):
        path.unlink()
    assert told(tmp_path / "p", "knee-progression")["faults"]["knees of labels.csv without an image"] == 1


def test_patients_of_dicom_headers_are_held_against_the_names(tmp_path, told):
    rng, rows = np.random.default_rng(0), ["study_id,series_id,series_description"]
    persons = {("1", "11"): "A55512", ("2", "12"): "A55512", ("3", "13"): "B7", ("3", "14"): "C8"}
    for (study, series), person in persons.items():
        rows.append(f"{study},{series},{'Sagittal T1' if series != '14' else 'Axial T2'}")
        for number in range(3):
            pixels = (cv2.GaussianBlur(rng.random((64, 64)), (0, 0), 2) * 4000).astype(np.uint16)
            plane = dicom_files.SAGITTAL if series != "14" else dicom_files.AXIAL
            place = (number * 4.0, 0, 0) if series != "14" else (0, 0, number * 4.0)
            made = dicom_files.dataset(pixels, instance=number, orientation=plane, position=place, PatientID=person)
            dicom_files.write(tmp_path / "data" / "test_images" / study / series / f"{number}.dcm", made)
    (tmp_path / "data" / "test_series_descriptions.csv").write_text("\n".join(rows) + "\n")
    faults = told(tmp_path / "data", "lumbar-mr")["faults"]
    assert (faults[census.TWO_NAMES], faults[census.TWO_PERSONS]) == (1, 1)
    assert not {census.COPIES_ACROSS, census.COPIES_WITHIN, census.UNREADABLE} & {*faults}


def _oof(folder: Path, root: Path, wrong: dict[str, int]) -> Path:
    """Weights whose out-of-fold answers are right about every knee, whatever folder it lies in."""
    folder.mkdir()
    shutil.copy(WEIGHTS / "manifest.json", folder)
    rng = np.random.default_rng(1)
    rows, fold = [], []
    for path in crops(root):
        truth, side = wrong.get(path.stem, int(path.parent.name)), {"L": "left", "R": "right"}[path.stem[-1]]
        probs = np.exp(-1.5 * np.abs(np.arange(5) - truth) + rng.normal(0, 0.2, 5))
        probs /= probs.sum()
        rows.append([f"{path.stem}_{side}", *(f"{p:.6f}" for p in probs), 0, path.parent.name])
        fold.append([path.stem, path.stem[:-1], 0])
    with (folder / "oof.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["row_id", *TASKS[KNEES].classes, "fold", "label"], *rows])
    with (folder / "folds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["study_id", "patient", "fold"], *fold])
    return folder


def test_labels_changed_on_purpose_lead_the_list_and_have_their_picture(knees, tmp_path, told):
    chosen = [path for path in crops(knees) if path.parent.name in "01"][:2]
    truth = {}
    for path in chosen:
        truth[path.stem] = int(path.parent.name)
        (knees / "train" / "4").mkdir(exist_ok=True)
        path.rename(knees / "train" / "4" / path.name)
    found = told(knees, KNEES, "--oof", str(_oof(tmp_path / "w", knees, truth)))
    ranked = found["tables"][data_pictures.LIKELIEST]
    assert {row[1] for row in ranked[:2]} == set(truth)
    assert all(row[3] == "kl_4" and row[5] == f"kl_{truth[row[1]]}" for row in ranked[:2])
    assert found["facts"][data_pictures.DOUBTED] >= 2
    assert "Likeliest label errors" in found["page"] and "data:image/jpeg" in found["page"]


def test_a_patient_in_two_folds_is_found(knees, tmp_path, told):
    weights = _oof(tmp_path / "w", knees, {})
    assert told(knees, KNEES, "--oof", str(weights))["faults"] == {}
    lines = (weights / "folds.csv").read_text().splitlines()
    patients = [line.split(",")[1] for line in lines]
    twice = next(i for i, patient in enumerate(patients) if patients.count(patient) == 2)
    lines[twice] = lines[twice][:-1] + "1"
    (weights / "folds.csv").write_text("\n".join(lines) + "\n")
    assert told(knees, KNEES, "--oof", str(weights))["faults"] == {census.FOLDS: 1}


def test_confident_learning_has_thresholds_of_its_own_for_every_group_and_class():
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45], [0.2, 0.8], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1, 1, 0])
    one = label_errors.doubts(probs, labels, ["a"] * 6)
    assert one.thresholds["a"] == pytest.approx([0.65, 0.65])
    assert one.taken_for.tolist() == [0, -1, 1, -1, 1, -1] and not one.doubted.any()
    two = label_errors.doubts(probs, labels, ["a", "a", "a", "b", "b", "b"])
    assert two.thresholds["b"] == pytest.approx([0.45, 0.625])
    assert two.taken_for.tolist() == [0, -1, 1, 0, 1, 0] and two.doubted.tolist() == [False] * 3 + [True, False, False]
    assert two.joint(2).tolist() == [[2, 0], [1, 2]]
    assert one.order.tolist()[:2] == [3, 5]
    with pytest.raises(ValueError, match="6 rows of probabilities, 5 labels"):
        label_errors.doubts(probs, labels[:5], ["a"] * 6)


def test_planted_label_errors_are_ranked_first():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 500)
    scores = rng.normal(0, 1, (500, 4)) + 4.0 * np.eye(4)[truth]
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels, wrong = truth.copy(), rng.choice(500, 15, replace=False)
    labels[wrong] = (truth[wrong] + rng.integers(1, 4, 15)) % 4
    found = label_errors.doubts(probs, labels, ["x"] * 500)
    assert len({*found.order[:25].tolist()} & {*wrong.tolist()}) >= 13
    assert found.doubted[wrong].mean() > 0.7 and found.doubted.sum() < 60


def test_near_pairs_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    prints = rng.integers(0, 2**63, (300, 6)).astype(np.uint64)
    for i in range(0, 90, 3):  # copies that differ in some bits
        prints[i + 1] = prints[i] ^ np.uint64(2 ** rng.integers(0, 63) if i % 2 else 0)
        prints[i + 2] = prints[i] ^ np.array([2**40 - 1, 0, 0, 0, 0, 0], np.uint64)
    far = {(i, j) for i in range(300) for j in range(i) if np.bitwise_count(prints[i] ^ prints[j]).sum() <= 40}
    pairs = fingerprint.near_pairs(prints, most_bits=40)
    assert len(far) >= 60 and (pairs[:, 0] < pairs[:, 1]).all()
    joined = {tuple(group) for group in fingerprint.groups(far)}
    assert {tuple(group) for group in fingerprint.groups(pairs)} == joined
    assert len(fingerprint.near_pairs(np.repeat(prints[:1], 50, 0))) == 49


def test_mirror_images_are_searched_for_in_both_directions():
    rng = np.random.default_rng(0)
    images = np.stack([cv2.GaussianBlur(rng.normal(128, 400, (64, 64)), (0, 0), 2) for _ in range(8)])
    copies = np.clip(images, 0, 255).astype(np.uint8)
    for first, second in ((2, 5), (5, 2)):
        turned = copies.copy()
        turned[second] = copies[first][:, ::-1]
        plain, mirror = fingerprint.fingerprints(turned), fingerprint.fingerprints(turned[:, :, ::-1])
        assert fingerprint.near_pairs(plain).tolist() == []
        assert fingerprint.near_pairs(plain, mirror).tolist() == [[2, 5]]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("d/train/3/1.png", "train"),
        ("d/kneeKL224/auto_test/0/1.png", "auto_test"),
        ("d/validation/1.png", "validation"),
        ("d/test_images/7/8", "test"),
        ("d/fold_2/1.png", "fold_2"),
        ("d/contest/1.png", ""),
        ("d/3/training.png", ""),
    ],
)
def test_the_split_is_read_from_the_folders_above(path, split):
    assert split_of(Path(path), Path("d")) == split


def test_what_is_printed_says_first_what_to_look_at(knees, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("osteograde"), "handlers", [])
    crops(knees)[0].write_bytes(b"")
    page = tmp_path / "seen.html"
    assert cli.main(["inspect", KNEES, "--data", str(knees), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert f"{census.UNREADABLE}: 1 of" in said.partition("To look at:")[2].partition("Counted:")[0]
    assert f"written: {page}, {page.with_suffix('.csv')}" in said and "next: open" in said
    with page.with_suffix(".csv").open(newline="") as file:
        assert ["facts", census.UNREADABLE, "count", "1"] in list(csv.reader(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", ".", "--out", "."], r"--out \.: name a page"),
        (["--data", ".", "--out", "page.txt"], r"--out page\.txt: name a page"),
        (["--data", "docs", "--oof", "tests"], "manifest"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(options, message):
    with pytest.raises(UserError, match=message):
        cli.main(["inspect", KNEES, *options])


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no image and no table"):
        cli.main(["inspect", KNEES, "--data", str(tmp_path), "--out", str(tmp_path / "p.html")])

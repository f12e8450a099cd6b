"""The report page: it holds every section, asks for nothing else, and its figures are those of the files."""

import csv
import json
import math
import re
import shutil
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osteograde import cli, phantom
from osteograde.imaging.geometry import Volume, apply, mirrored, roi_on, to_index
from osteograde.models import bundle
from osteograde.models.explain import fold_maps
from osteograde.models.manifest import Manifest
from osteograde.pipeline.crops import site_boxes, site_crops, turned
from osteograde.pipeline.load import load_study
from osteograde.report import charts, class_figures, heatmaps, page, score_sections, worst_cases
from osteograde.report.oof_tables import Graded, read
from osteograde.report.words import plain
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import auc_and_precision
from tests.oof import SHIPPED, judged_folder

TASK = TASKS["lumbar-mr"]
KNEES = SHIPPED.parent / "knee-xray"
MADE = datetime(2026, 11, 21, 10, 30)
SECTIONS = [
    "Result", "Scores", "Classes", "ROC and precision-recall", "Calibration", "Landmark errors",
    "By level, side and class", "Worst cases", "Folds", "Weights",
]  # fmt: skip
VOID = {"meta", "img"}  # written without an end
CLOSED = {"rect", "line", "polyline", "circle"}  # in pictures they may end themselves


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    phantom.write("lumbar-mr", folder, studies=3, seed=41)
    return folder


@pytest.fixture(scope="module")
def judged(data, tmp_path_factory) -> Path:
    return judged_folder(data, tmp_path_factory.mktemp("weights") / "judged")


@pytest.fixture(scope="module")
def whole(data, judged, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    page.write(judged, out, TASKS, data=data, made=MADE)
    return out.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags must close in order; collects links, pictures, headings and tables (lists of rows of cell texts)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images: list[dict] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.links += [named[name] for name in ("src", "href", "action", "data", "srcset") if name in named]
        if tag == "img":
            self.images.append(named)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "h2":
            self.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID | CLOSED

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th", "small", "b"):
            if "table" in self.open:
                self.tables[-1][-1][-1] += text if self.open[-1] != "small" else f" {text}"
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += text


def table_of(text: str, corner: str, number: int = 0) -> dict[str, list[str]]:
    """{first cell: the other cells} of the table whose top left cell is ``corner``."""
    found = [rows for rows in Reader(text).tables if rows[0][0] == corner][number]
    return {row[0]: row[1:] for row in found[1:]}


def records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_page_holds_every_section_and_nothing_from_elsewhere(whole):
    read_page = Reader(whole)
    assert read_page.headings == SECTIONS
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in read_page.links)
    anchors = [link for link in read_page.links if link.startswith("#")]
    assert len(anchors) == len(SECTIONS) and all(f'id="{anchor[1:]}"' in whole for anchor in anchors)
    visible = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", whole)
    assert not re.search(r"https?:|//|<script|<link|<iframe|url\(|@import", visible)
    assert all(image["alt"] and image["width"] and image["height"] for image in read_page.images)
    drawn = re.findall('<svg [^>]*role="img" aria-label="([^"]+)"', visible)
    assert len(drawn) == visible.count("<svg")  # every chart says what it shows
    kinds = [
        "Probabilities: ",
        "ROC curves",
        "Precision-recall curves",
        "Reliability",
        *(one.name for one in TASK.locators),
    ]
    counts = [sum(label.startswith(kind) for label in drawn) for kind in kinds]
    assert counts == [worst_cases.WORST, 4, 4, 1, *(1 for _ in TASK.locators)]  # four: all rows and three conditions
    assert "2026-11-21 10:30" in visible and "lumbar-mr-small" in visible


@pytest.mark.slow
def test_the_fold_table_counts_the_files(judged, whole):
    shown, rows = table_of(whole, "held out"), records(judged / "oof.csv")
    for k in ("0", "1"):
        studies = [row for row in records(judged / "folds.csv") if row["fold"] == k]
        labels = [row["label"] for row in rows if row["fold"] == k and row["label"]]
        counts = [str(labels.count(str(c))) for c in range(3)]
        patients = {row["patient"] for row in studies}
        assert shown[f"fold {k}"] == [str(len(studies)), str(len(patients)), str(len(labels)), *counts]
    assert shown["all"][0] == "3"


@pytest.mark.slow
def test_the_scores_are_those_of_the_manifest(judged, whole):
    scores = json.loads((judged / "manifest.json").read_text())["scores"]["grade"]
    shown = table_of(whole, "score")
    words = TASK.metric.words
    assert list(shown) == [words[name] for name in ["score", *(part for part in scores["model"] if part != "score")]]
    assert f"{scores['studies']} held-out studies." in whole and "The interval resamples patients." in whole
    assert f'<p class="big">{scores["model"]["score"]:.3f}</p>' in whole
    for part, value in scores["model"].items():
        name = words[part]
        low, high = scores["interval_95"][part]
        assert shown[name][:2] == ["lower", f"{value:.4f}"]
        assert shown[name][2] == ("-" if low is None else f"{low:.4f} to {high:.4f}")


@pytest.mark.slow
def test_the_confusion_matrices_and_the_calibration_are_counted_from_the_table(judged, whole):
    rows = [row for row in records(judged / "oof.csv") if row["label"]]
    probs = [[float(row[name]) for name in TASK.classes] for row in rows]
    counts = [[0] * 3 for _ in range(3)]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, p in zip(rows, probs, strict=True):
        top = p.index(max(p))
        counts[int(row["label"])][top] += 1
        bins.setdefault(min(math.ceil(max(p) * 15) - 1, 14), []).append((max(p), str(top) == row["label"]))
    shown = table_of(whole, "true \\ predicted")
    for name, expected in zip(TASK.classes, counts, strict=True):
        cells = [f"{n} {100 * n / max(sum(expected), 1):.0f} %" for n in expected]
        assert shown[plain(name)] == [*cells, str(sum(expected))]
    each = [table_of(whole, "true \\ predicted", 1 + i) for i in range(len(TASK.graders))]
    total = sum(int(cells[-1]) for cells in shown.values())
    assert sum(int(cells[-1]) for part in each for cells in part.values()) == total == len(rows)
    gaps = [abs(sum(p for p, _ in b) / len(b) - sum(hit for _, hit in b) / len(b)) * len(b) for b in bins.values()]
    assert f"(ECE) {sum(gaps) / len(rows):.4f} over {len(rows)} rows" in whole
    assert sorted(int(n) for n in re.findall(r"<title>(\d+) rows: mean probability", whole)) == sorted(
        2 * [len(b) for b in bins.values()]
    )


@pytest.mark.slow
def test_the_landmark_errors_are_the_distances_of_the_table(judged, whole):
    shown = table_of(whole, "locator")
    told = json.loads((judged / "manifest.json").read_text())["scores"]["locate"]
    for stage in TASK.locators:
        names = {landmark.name for landmark in stage.landmarks}
        own = [row for row in records(judged / "oof_points.csv") if row["landmark"] in names and row["true_x_mm"]]
        errors = [
            math.dist([float(row[axis]) for axis in ["x_mm", "y_mm", "z_mm"]],
                      [float(row[f"true_{axis}"]) for axis in ["x_mm", "y_mm", "z_mm"]])
            for row in own if row["x_mm"]
        ]  # fmt: skip
        middle, far = np.median(errors), np.percentile(errors, 95)
        assert shown[plain(stage.name)][:5] == [
            str(len(own)), f"{100 * len(errors) / len(own):.1f} %", f"{middle:.2f}", f"{far:.2f}",
            f"{100 * told[stage.name]['right_level']:.1f} %",
        ]  # fmt: skip
        assert middle == pytest.approx(told[stage.name]["median_mm"], abs=0.002)
    bars = [int(n) for n in re.findall(r"mm: (\d+)</title>", whole)]
    assert sum(bars) == sum(int(cells[0]) for cells in shown.values())  # every annotated point was found


@pytest.mark.slow
def test_each_part_is_the_mean_of_its_rows(judged, whole):
    rows = [row for row in records(judged / "oof.csv") if row["label"]]
    truth = [-math.log(float(row[TASK.classes[int(row["label"])]])) for row in rows]
    for name, of in (("level", "_l4_l5"), ("side", "_left_")):
        own = [loss for row, loss in zip(rows, truth, strict=True) if of in row["row_id"]]
        shown = table_of(whole, name)[plain(of.strip("_"))]
        assert shown[:2] == [str(len(own)), f"{sum(own) / len(own):.3f}"]
    assert sum(int(cells[0]) for cells in table_of(whole, "true class").values()) == len(rows)


@pytest.mark.slow
def test_the_cases_are_the_rows_of_largest_loss_in_order(judged, whole):
    rows = [row for row in records(judged / "oof.csv") if row["label"]]
    chance = lambda row: float(row[TASK.classes[int(row["label"])]])  # noqa: E731
    worst = sorted(rows, key=chance)[: worst_cases.WORST]
    pattern = r"<h3>(\d+)\. ([^<]+)</h3><p>Study <b>(\d+)</b>: true <b>([^<]+)</b>.*?-log p ([\d.]+); fold (\d)</p>"
    told = re.findall(pattern, whole)
    assert [int(rank) for rank, *_ in told] == list(range(1, worst_cases.WORST + 1))
    for (_, target, study, true, loss, fold), row in zip(told, worst, strict=True):
        own = row["row_id"].partition("_")
        assert (study, target) == (own[0], plain(own[2]))
        assert (true, fold) == (plain(TASK.classes[int(row["label"])]), row["fold"])
        assert float(loss) == pytest.approx(-math.log(chance(row)), abs=6e-4)
    assert whole.count("<article") == worst_cases.WORST
    assert len(Reader(whole).images) >= 3 * worst_cases.WORST


@pytest.mark.slow
def test_a_map_is_made_by_the_fold_that_held_the_study_out(data, judged):
    evidence, studies = read(judged, TASKS), TASK.read(data, "train")
    case = worst_cases.worst(evidence, studies, 1)[0]
    graded, folds = evidence.graded, {row["study_id"]: row["fold"] for row in records(judged / "folds.csv")}
    study, target = graded.studies[case.row], graded.targets[case.row]
    group, _ = evidence.sites[target]
    loaded = load_study(next(one for one in studies if one.id == study), TASK)
    points = TASK.fill_missing_landmarks(evidence.located.points(study))
    pixels = evidence.manifest.pixels[group.name]
    box = {target: site_boxes(group, loaded.volumes, points, pixels)[target]}
    crops = site_crops(group, box, pixels, torch.device("cpu"))
    maps = {}
    for k in ("0", "1"):
        name = f"grade/{group.name}/fold{k}.safetensors"
        net = bundle.load_net(judged / name, evidence.manifest.files[name].net)
        maps[k] = fold_maps([net], crops.images, crops.present, torch.tensor([graded.probs[case.row].argmax()]))
    views = [v for v, spec in enumerate(group.crops) if spec.view in box[target]]
    own, other = maps[folds[study]], maps["1" if folds[study] == "0" else "0"]
    for v, shown in zip(views, case.predicted, strict=True):
        np.testing.assert_allclose(shown.heat, own[v][0, shown.number - 1].numpy(), atol=1e-5)
        np.testing.assert_allclose(shown.crop, crops.images[v][0, shown.number - 1].numpy())
    assert max(float((a - b).abs().max()) for a, b in zip(own, other, strict=True)) > 0.05


@pytest.mark.slow
def test_without_data_the_page_is_the_same_but_for_the_cases(judged, whole, tmp_path):
    page.write(judged, tmp_path / "alone.html", TASKS, data=None, made=MADE)
    alone = (tmp_path / "alone.html").read_text()
    assert "Cases are left out" in alone and "<img" not in alone
    assert alone.split("<h2>Worst cases")[0] == whole.split("<h2>Worst cases")[0]


@pytest.mark.slow
def test_tables_without_labels_are_read_with_those_of_the_data(data, judged, whole, tmp_path):
    old = Path(shutil.copytree(judged, tmp_path / "judged"))
    rows = (old / "oof.csv").read_text().splitlines()
    (old / "oof.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows) + "\n")
    page.write(old, tmp_path / "with.html", TASKS, data=data, made=MADE)
    assert (tmp_path / "with.html").read_text() == whole
    page.write(old, tmp_path / "without.html", TASKS, data=None, made=MADE)
    assert (tmp_path / "without.html").read_text().count(score_sections.NO_LABELS) == 4


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused_and_nothing_written(data, judged, tmp_path):
    other = tmp_path / "other"
    phantom.write("lumbar-mr", other, studies=1, seed=77)
    with pytest.raises(ValueError, match="holds none of the studies"):
        page.write(judged, tmp_path / "r.html", TASKS, data=other, made=MADE)
    changed = Path(shutil.copytree(judged, tmp_path / "judged"))
    for path in changed.glob("grade/*/*.safetensors"):
        path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(ValueError, match="not the file that the manifest describes"):
        page.write(changed, tmp_path / "r.html", TASKS, data=data, made=MADE)
    (changed / "oof.csv").write_text("row_id,a,b\n")
    with pytest.raises(ValueError, match="columns are"):
        page.write(changed, tmp_path / "r.html", TASKS, data=None, made=MADE)
    assert not list(tmp_path.glob("r.html*"))


def test_the_command_makes_a_page_of_weights_without_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(lambda: cli.main(["report", str(SHIPPED)])) == 0
    text = Path("report.html").read_text()
    assert Reader(text).headings == SECTIONS
    told = json.loads((SHIPPED / "manifest.json").read_text())["scores"]["locate"]["canal"]["median_mm"]
    assert "oof.csv is not in the folder" in text and f"{told:.2f}" in text
    assert cli.run(lambda: cli.main(["report", str(tmp_path / "none")])) == 2
    assert "no manifest.json" in capsys.readouterr().err


def random_folder(task, folder: Path) -> Path:
    """A weights folder of any task with random out-of-fold tables and no nets."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(5)
    bundle.write_manifest(folder, Manifest(task.name, {}, {}, 1, {}))
    studies = [f"s<{i}>" for i in range(6)]
    folds = "".join(f"{study},p{i // 2},{i // 2}\n" for i, study in enumerate(studies))
    (folder / "folds.csv").write_text("study_id,patient,fold\n" + folds)
    lines = [",".join(["row_id", *task.classes, "fold", "label"])]
    for i, study in enumerate(studies):
        for target in task.targets:
            p = rng.dirichlet(np.ones(len(task.classes)))
            label = "" if rng.random() < 0.2 else str(rng.integers(len(task.classes)))
            lines.append(",".join([f"{study}_{target}", *(f"{v:.6f}" for v in p), str(i // 2), label]))
    (folder / "oof.csv").write_text("\n".join(lines) + "\n")
    names = [landmark.name for stage in task.locators for landmark in stage.landmarks]
    places = [f"s<0>,0,{name},0.5," + ",".join(f"{v:.3f}" for v in rng.normal(size=6)) for name in names]
    axes = "x_mm,y_mm,z_mm,true_x_mm,true_y_mm,true_z_mm"
    (folder / "oof_points.csv").write_text("\n".join([f"study_id,fold,landmark,confidence,{axes}", *places]) + "\n")
    return folder


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_page_can_be_made_for_every_task(name, tmp_path):
    task = TASKS[name]
    page.write(random_folder(task, tmp_path), tmp_path / "r.html", TASKS, data=None, made=MADE)
    text = (tmp_path / "r.html").read_text()
    assert Reader(text).headings == SECTIONS
    labels = [row["label"] for row in records(tmp_path / "oof.csv")]
    shown = table_of(text, "true \\ predicted")
    assert [int(shown[plain(c)][-1]) for c in task.classes] == [labels.count(str(k)) for k in range(len(task.classes))]
    assert table_of(text, "held out")["all"][:2] == ["6", "3"]


@given(st.integers(0, 500), st.integers(2, 60), st.booleans())
def test_curves_enclose_the_areas_that_are_told(seed, rows, coarse):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, rows) / 5 if coarse else rng.random(rows)
    positive = rng.random(rows) < 0.4
    positive[:2] = True, False
    auc, precision = auc_and_precision(scores, positive, np.arange(rows))(np.ones((rows, 1)))
    roc, pr = class_figures.roc_curve(scores, positive), class_figures.precision_recall_curve(scores, positive)
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(auc[0])
    assert np.trapezoid(pr[:, 1], pr[:, 0]) == pytest.approx(precision[0])
    for curve in (roc, pr):
        assert (np.diff(curve[:, 0]) >= 0).all() and (curve >= 0).all() and (curve <= 1).all()
        thin = class_figures.thinned(curve)
        assert tuple(thin[0]) == tuple(curve[0]) and tuple(thin[-1]) == tuple(curve[-1])


def test_intervals_of_classes_draw_whole_patients():
    """Ten copies of every row of a patient leave the interval as it is: rows of one patient are not independent."""
    rng, studies = np.random.default_rng(1), [f"s{i}" for i in range(60)]
    probs, label = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)
    patient = {f"{study}{copy}": study for study in studies for copy in range(10)}

    def figures(copies: int) -> class_figures.ClassFigures:
        names = tuple(f"{study}{copy}" for study in studies for copy in range(copies))
        n = len(names)
        graded = Graded(names, names, names, probs.repeat(copies, 0), np.zeros(n, int), label.repeat(copies))
        return class_figures.of_rows(graded, np.ones(n, bool), 3, patient, np.random.default_rng(0))

    once, often = figures(1), figures(10)
    for name in ("scores", "accuracy", "auc", "average_precision"):
        for end in ("value", "low", "high"):
            np.testing.assert_allclose(getattr(getattr(once, name), end), getattr(getattr(often, name), end))
    assert (once.accuracy.low < once.accuracy.value) and (once.accuracy.value < once.accuracy.high)


def test_a_comparison_shows_the_paired_difference_and_refuses_other_labels(tmp_path):
    first, second = (random_folder(TASKS["spider"], tmp_path / name) for name in ("first", "second"))
    rows = records(second / "oof.csv")
    (second / "oof.csv").write_text("\n".join([",".join(rows[0]), *(",".join(better(row)) for row in rows)]) + "\n")
    page.write(first, tmp_path / "r.html", TASKS, data=None, made=MADE, others=[second, first])
    text = (tmp_path / "r.html").read_text()
    assert Reader(text).headings == [SECTIONS[0], "Comparison", *SECTIONS[1:]]
    tables = [rows for rows in Reader(text).tables if rows[0][2:4] == ["first", "second"]]
    kappa = next(row for row in tables[0] if row[0] == "quadratic weighted kappa")
    assert kappa[3] == "1.0000" and kappa[-1] == "better"
    assert float(kappa[4]) == pytest.approx(1 - float(kappa[2]), abs=2e-4)
    same = next(rows for rows in Reader(text).tables if rows[0][2:4] == ["first", "first"])
    assert {row[4] for row in same[1:]} <= {"+0.0000", "-"}
    flipped = (first / "oof.csv").read_text().splitlines()
    i = next(i for i, row in enumerate(flipped) if row.endswith(",1"))
    flipped[i] = flipped[i][:-1] + "2"
    (second / "oof.csv").write_text("\n".join(flipped) + "\n")
    (tmp_path / "r.html").unlink()
    with pytest.raises(ValueError, match="learnt from other labels"):
        page.write(first, tmp_path / "r.html", TASKS, data=None, made=MADE, others=[second])
    assert not (tmp_path / "r.html").exists()


def better(row: dict[str, str]) -> list[str]:
    """A row of an out-of-fold table whose true class is certain."""
    names = list(row)[1:-2]
    return [row["row_id"], *(str(float(row["label"] == str(k))) if row["label"] else row[name]
                             for k, name in enumerate(names)), row["fold"], row["label"]]  # fmt: skip


def test_the_result_stands_first_and_parts_have_words(tmp_path):
    page.write(KNEES, tmp_path / "r.html", TASKS, data=None, made=MADE)
    text = (tmp_path / "r.html").read_text()
    told = json.loads((KNEES / "manifest.json").read_text())["scores"]["grade"]
    low, high = told["interval_95"]["score"]
    assert text.index(f'<p class="big">{told["model"]["score"]:.3f}</p>') < text.index("<table")
    assert f"95 % interval {low:.3f} to {high:.3f}" in text and "Quadratic weighted kappa, higher is better" in text
    shown = re.sub(r"<[^>]+>", " ", text)
    assert not [part for part in TASKS["knee-xray"].metric.parts if "_" in part and part in shown]
    for k, name in enumerate(TASKS["knee-xray"].classes):
        cells = table_of(text, "class")[plain(name)]
        expected = [told["model"][f"{what}_{k}"] for what in ("precision", "recall", "f1")]
        assert [float(cell) for cell in cells[1::2]] == pytest.approx(expected, abs=6e-4)


def test_names_are_shown_as_they_are_written():
    text = charts.table(["<i>", "b"], [["a & <b>", 'c"d']], caption="<x>")
    assert Reader(text).tables == [[["<i>", "b"], ["a & <b>", 'c"d']]]
    assert "<x>" not in text


def test_errors_beyond_the_last_edge_are_one_bar():
    svg = charts.histogram(np.array([0.1, 0.2, 14.9, 15.0, 80.0]), "x")
    assert re.findall(r"<title>([^<]+)</title>", svg) == ["0 to 0.5 mm: 2", "14.5 to 15 mm: 1", "over 15 mm: 2"]


def slanted(seed: int) -> Volume:
    """A stack in general position: its axes lie along no axis of the patient."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    to_mm = np.eye(4)
    to_mm[:3, :3], to_mm[:3, 3] = axes * [4.0, 0.7, 0.9], rng.normal(size=3) * 50
    return Volume(rng.integers(0, 255, (7, 60, 50)).astype(np.uint8), to_mm)


@given(st.integers(0, 50), st.booleans(), st.floats(-30, 30), st.sampled_from([40, 60, 97]))
def test_a_map_lies_on_the_film_where_its_box_lies_in_the_patient(seed, mirror, degrees, height):
    volume = slanted(seed)
    roi = turned(roi_on(volume, volume.centre_mm, (0.5, 0.6), (3, 40, 36)), degrees, 1.0)
    roi = mirrored(roi, 2) if mirror else roi
    linear = lambda mm: mm @ np.array([0.01, -0.02, 0.015]) + 3  # noqa: E731  a function of the place alone
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in roi.shape), indexing="ij"), -1)
    z = heatmaps.slice_of(volume, roi, 1)
    back = heatmaps.projected(linear(apply(roi.to_mm, grid)), roi, volume, z, height)
    assert back.shape == heatmaps.film(volume, z, height).shape
    rows, columns = (np.arange(n) for n in back.shape)
    scale = np.array(volume.voxels.shape[1:]) / back.shape
    y, x = np.meshgrid((rows + 0.5) * scale[0] - 0.5, (columns + 0.5) * scale[1] - 0.5, indexing="ij")
    mm = apply(volume.to_mm, np.stack([np.full_like(y, z), y, x], -1))
    index = to_index(roi, mm)[..., 1:]
    inside = ((index >= 0) & (index <= np.array(roi.shape[1:]) - 1)).all(-1)
    outside = ((index < -1) | (index > np.array(roi.shape[1:]))).any(-1)
    assert inside.any() and outside.any()
    np.testing.assert_allclose(back[inside], linear(mm)[inside], atol=1e-6)
    assert (back[outside] == 0).all()


def test_the_slice_shown_is_the_strongest_that_the_volume_has():
    volume = slanted(1)
    maps = np.zeros((5, 8, 8))
    maps[0], maps[3] = 1.0, 0.5
    inside = roi_on(volume, apply(volume.to_mm, np.array([3, 30, 25])), (1.0, 1.0), (5, 8, 8))
    edge = roi_on(volume, apply(volume.to_mm, np.array([0, 30, 25])), (1.0, 1.0), (5, 8, 8))
    assert heatmaps.strongest(maps, volume, inside) == 0
    assert heatmaps.strongest(maps, volume, edge) == 3  # slice 0 of the box lies outside of the stack
    assert heatmaps.strongest(np.zeros((5, 8, 8)), volume, inside) == 2
    assert heatmaps.slice_of(volume, inside, 0) == 1


def test_a_map_of_zeros_leaves_the_image_as_it_is():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(heatmaps.tinted(grey, np.zeros((8, 8))), np.repeat(grey[..., None], 3, -1))
    assert not np.array_equal(heatmaps.tinted(grey, np.ones((8, 8))), np.repeat(grey[..., None], 3, -1))


def test_a_map_is_made_by_every_net_of_the_fold_and_by_no_other(monkeypatch):
    names = [f"grade/kl/{member}fold{k}.safetensors" for member in ("", "member1-") for k in (1, 11)]
    nets = worst_cases._Nets(SimpleNamespace(folder=Path("w"), manifest=SimpleNamespace(files=dict.fromkeys(names))))
    monkeypatch.setattr(nets, "_loaded", lambda name: name)
    assert nets.of("kl", 1) == ["grade/kl/fold1.safetensors", "grade/kl/member1-fold1.safetensors"]
    with pytest.raises(ValueError, match=r"no grade/kl/fold2\.safetensors"):
        nets.of("kl", 2)


@pytest.mark.parametrize(("patients", "said"), [
    ({"a_L": "a", "b": "b"}, "as far as the names of the files tell patients apart. 1 of 2 studies name no patient"),
    ({"a_L": "a", "a_R": "a"}, "as far as the names of the files tell patients apart.<"),
])  # fmt: skip
def test_the_fold_table_claims_no_more_than_names_tell(patients, said):
    evidence = SimpleNamespace(
        fold=dict.fromkeys(patients, 0), patient=patients, graded=None, task=TASKS["knee-xray"],
        manifest=SimpleNamespace(folds=None),
    )  # fmt: skip
    assert said in page.fold_table(evidence)
    evidence.task = TASKS["lumbar-mr"]  # whose tables name every patient
    assert "No patient is in two folds.<" in page.fold_table(evidence)

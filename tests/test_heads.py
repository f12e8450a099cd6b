"""Auxiliary heads of every kind on a tiny made-up grader: learnt, scored, given as probabilities and written."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, roc_auc_score

from osteograde.inference import submission
from osteograde.learning import evaluate
from osteograde.learning.grader_loss import head_loss, heads_loss
from osteograde.models.grader import GraderNet
from osteograde.pipeline.predict import head_probabilities
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.spec import (
    CLASSES,
    GRADES,
    YES_NO,
    Crop,
    Grader,
    Head,
    Landmark,
    Locator,
    Site,
    Study,
    Task,
    View,
)

BULGE = Head("bulge")
MODIC = Head("modic", CLASSES, ("none", "fatty", "sclerotic"))
WEAR = Head("wear", GRADES, ("0", "1", "2", "3"))
HEADS = (BULGE, MODIC, WEAR)
TARGETS = ("upper", "lower")
GRADER = Grader(
    "disc",
    tuple(Site(target, "disc", target, "", (target,)) for target in TARGETS),
    (Crop("near", "plain", 1, 40.0), Crop("far", "plain", 1, 80.0)),  # two crops of one view
    lambda volumes, points, pixels: {},
    heads=HEADS,
)
TASK = Task(
    name="made-up",
    views=(View("plain", ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))),),
    classes=("good", "bad"),
    class_weights=(1.0, 1.0),
    locators=(Locator("disc", tuple(Landmark(t, t) for t in TARGETS), ("plain",), lambda v, p: [], (90.0, 90.0)),),
    graders=(GRADER,),
    prior=dict.fromkeys(TARGETS, (0.5, 0.5)),
    read=lambda root, part: [],
    read_labels=lambda path: {},
    metric=OrdinalMetric(TARGETS, ("good", "bad"), threshold=1),
)
KINDS = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)


def sizes(head: Head) -> int:
    return len(head.classes) or 2


def random_labels(rng: np.random.Generator, rows: int, empty: float = 0.3) -> np.ndarray:
    labels = np.stack([rng.integers(sizes(head), size=rows) for head in HEADS], 1)
    labels[rng.random(labels.shape) < empty] = -1
    return labels


def split(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return GRADER.split_heads(logits, len(TASK.classes))[1]


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_unknown_labels_have_no_influence_and_no_gradient(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(random_labels(rng, rows, empty=0.5))
    logits = torch.from_numpy(rng.normal(0, 2, (rows, 2 + GRADER.head_outputs))).float().requires_grad_()
    loss = heads_loss(HEADS, split(logits), labels)
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None
    for gradient, column in zip(split(logits.grad), labels.T, strict=True):
        assert (gradient[column < 0] == 0).all()
        assert (gradient[column >= 0] != 0).any(-1).all()
    if not (labels >= 0).any():
        assert loss.item() == 0


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_losses_equal_an_obvious_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, 9, empty=0.2)
    logits = rng.normal(0, 2, (9, 2 + GRADER.head_outputs))
    for head, part, column in zip(HEADS, split(torch.from_numpy(logits).float()), labels.T, strict=True):
        expected = []
        for row, label in zip(part.double().numpy(), column, strict=True):
            if label < 0:
                continue
            if head.kind == YES_NO:
                p = 1 / (1 + np.exp(-row[0]))
                expected.append(-np.log(p if label else 1 - p))
                continue
            logp = row - np.log(np.exp(row).sum())
            far = np.array([float(k - label) ** 2 for k in range(len(row))])
            aim = np.exp(-2 * far) / np.exp(-2 * far).sum() if head.kind == GRADES else (far == 0).astype(float)
            expected.append(-(aim * logp).sum())
        value = float(head_loss(head, part, torch.from_numpy(column)))
        assert value == pytest.approx(np.mean(expected) if expected else 0.0, rel=1e-4, abs=1e-6)


@KINDS
def test_a_net_learns_every_kind_of_head(head: Head) -> None:
    """Labels that the pixels show are learnt by heart, those of the other heads being unknown."""
    torch.manual_seed(0)
    net = GraderNet("resnet10t", crops=2, classes=2, dropout=0.0, width=16, stages=2, head_outputs=GRADER.head_outputs)
    truth = torch.arange(12) % sizes(head)
    near = (truth[:, None, None, None] / sizes(head)) * torch.ones(12, 1, 16, 16)
    crops = [near + 0.02 * torch.rand(12, 1, 16, 16), torch.rand(12, 1, 16, 16)]
    crops[0][:, :, :, 8:] = 0.5  # a pattern: each crop is brought to mean 0
    labels = torch.full((12, len(HEADS)), -1)
    labels[:, HEADS.index(head)] = truth
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        heads_loss(HEADS, split(net(crops, torch.ones(12, 2, dtype=torch.bool))), labels).backward()
        optimiser.step()
    with torch.no_grad():
        outputs = head_probabilities(GRADER, net.eval()(crops, torch.ones(12, 2, dtype=torch.bool)))
    part = GRADER.split_heads(outputs, 2)[1][HEADS.index(head)]
    said = (part[:, 0] > 0.5).astype(int) if head.kind == YES_NO else part.argmax(1)
    assert (said == truth.numpy()).mean() > 0.9


def test_probabilities_of_exclusive_heads_sum_to_one_and_yes_no_stands_alone() -> None:
    logits = torch.randn(7, 2 + GRADER.head_outputs, generator=torch.Generator().manual_seed(0))
    outputs = head_probabilities(GRADER, logits)
    classes, (bulge, modic, wear) = GRADER.split_heads(outputs, 2)
    for part in (classes, modic, wear):
        np.testing.assert_allclose(part.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(bulge, torch.sigmoid(logits[:, 2:3]).numpy(), atol=1e-6)


def graded_studies(seed: int = 0) -> tuple[list[Study], dict[str, dict[str, np.ndarray]]]:
    """Thirty studies of fifteen patients with labels of most heads, and answers that lean towards them."""
    rng = np.random.default_rng(seed)
    studies, graded = [], {}
    for i in range(30):
        labels = random_labels(rng, len(TARGETS), empty=0.2)
        known = {
            head.name: {t: int(labels[j, h]) for j, t in enumerate(TARGETS) if labels[j, h] >= 0}
            for h, head in enumerate(HEADS)
        }
        studies.append(Study(f"s{i}", f"p{i // 2}", (), head_labels=known))
        graded[f"s{i}"] = {}
        for j, target in enumerate(TARGETS):
            parts = [np.array([0.6, 0.4])]
            for h, head in enumerate(HEADS):
                leaning = 0.4 * np.eye(sizes(head))[labels[j, h]] + 0.6 * rng.dirichlet(np.ones(sizes(head)))
                parts.append(leaning[1:] if head.kind == YES_NO else leaning)
            graded[f"s{i}"][target] = np.concatenate(parts)
    del graded["s3"]["upper"]  # a site that could not be seen
    return studies, graded


def cells(studies, graded, head: Head) -> tuple[np.ndarray, np.ndarray]:
    h, rows = HEADS.index(head), []
    for study in studies:
        for target, label in study.head_labels[head.name].items():
            if target in graded[study.id]:
                rows.append((GRADER.split_heads(graded[study.id][target], 2)[1][h], label))
    return np.array([p for p, _ in rows]), np.array([label for _, label in rows])


def test_heads_are_scored_as_scikit_learn_scores_them() -> None:
    studies, graded = graded_studies()
    scores = evaluate.head_scores(TASK, studies, graded, 30, 0)
    assert list(scores) == ["bulge", "modic", "wear"]
    p, y = cells(studies, graded, BULGE)
    assert scores["bulge"]["auc"]["value"] == pytest.approx(roc_auc_score(y, p[:, 0]), abs=1e-4)
    p, y = cells(studies, graded, MODIC)
    assert scores["modic"]["auc"]["value"] == pytest.approx(roc_auc_score(y, p, multi_class="ovr"), abs=1e-4)
    assert scores["modic"]["accuracy"]["value"] == pytest.approx(accuracy_score(y, p.argmax(1)), abs=1e-4)
    p, y = cells(studies, graded, WEAR)
    kappa = cohen_kappa_score(y, p.argmax(1), weights="quadratic")
    assert scores["wear"]["quadratic_kappa"]["value"] == pytest.approx(kappa, abs=1e-4)
    assert scores["wear"]["rows"] == len(y) and len(scores["wear"]["share"]) == 4
    for name, part, value, (low, high) in evaluate.head_lines(scores):
        assert low < value < high, (name, part)


def test_a_head_of_one_class_only_has_no_score() -> None:
    studies, graded = graded_studies()
    same = [
        Study(s.id, s.patient, (), head_labels={**s.head_labels, "bulge": dict.fromkeys(s.head_labels["bulge"], 1)})
        for s in studies
    ]
    assert list(evaluate.head_scores(TASK, same, graded, 10, 0)) == ["modic", "wear"]


def test_the_table_beside_the_submission_has_a_column_for_every_output(tmp_path) -> None:
    _, graded = graded_studies()
    columns = submission.finding_names(TASK)
    assert columns == ("bulge", "modic_none", "modic_fatty", "modic_sclerotic", "wear_0", "wear_1", "wear_2", "wear_3")
    rows = [row for study in ("s2", "s3") for row in submission.findings_of(TASK, study, graded[study])]
    submission.write_findings(tmp_path / "s.csv", columns, rows)
    with (tmp_path / "s.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["row_id"] for row in written] == ["s2_upper", "s2_lower", "s3_lower"]
    np.testing.assert_allclose([float(written[0][c]) for c in columns], graded["s2"]["upper"][2:], atol=1e-6)


def test_heads_that_make_no_sense_are_refused() -> None:
    for wrong in ({"kind": "ranks"}, {"classes": ("yes", "no")}, {"kind": GRADES, "classes": ("0",)}):
        with pytest.raises(ValueError, match="head 'h'"):
            Head("h", **wrong)

"""Losses equal the score's terms on the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osteograde.models.losses import target_cross_entropy, targets_of
from osteograde.tasks.lumbar_metric import LumbarMetric, any_severe_loss
from osteograde.tasks.lumbar_names import CONDITIONS, SHORT, SPINAL, TARGET_OF, TEMPLATE_TARGETS, WEIGHTS


def random_table(seed: int, studies: int = 17, sites: int = 5, empty: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, S, 3) and labels (N, S) with empty ones, among them a study without any label."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, (studies, sites), p=(0.7, 0.2, 0.1))
    labels[rng.random(labels.shape) < empty] = -1
    labels[3] = -1
    labels[0, 0] = 2
    return rng.normal(0, 2, (studies, sites, 3)), labels


def weighted_cross_entropy(logits, labels, weights=None, *, label_smoothing=0.0) -> torch.Tensor:
    """As a grader learns: the targets of the labels, each row weighted by its class."""
    known = (torch.ones(logits.shape[-1]) if weights is None else weights)[labels.clamp_min(0)]
    return target_cross_entropy(logits, targets_of(labels, logits.shape[-1], "classes", label_smoothing), known)


def metric_loss(logits, labels, weights) -> torch.Tensor:
    """The two terms of a grader whose score also asks for any severe site of a study."""
    return weighted_cross_entropy(logits, labels, weights) + any_severe_loss(logits, labels, weights)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def slow_cross_entropy(p: np.ndarray, labels: np.ndarray) -> float:
    top = bottom = 0.0
    for row, label in zip(p.reshape(-1, 3), labels.ravel(), strict=True):
        if label >= 0:
            top -= WEIGHTS[label] * np.log(row[label])
            bottom += WEIGHTS[label]
    return top / bottom


def slow_any_severe(p: np.ndarray, labels: np.ndarray) -> float:
    top = bottom = 0.0
    for rows, known in zip(p, labels, strict=True):
        sites = [s for s in range(len(known)) if known[s] >= 0]
        if not sites:
            continue
        truth = any(known[s] == 2 for s in sites)
        weight = max(WEIGHTS[known[s]] for s in sites)
        severe = max(rows[s][2] for s in sites)
        top -= weight * np.log(severe if truth else 1 - severe)
        bottom += weight
    return top / bottom


@pytest.mark.parametrize("seed", range(5))
def test_both_terms_equal_an_obvious_loop(seed: int) -> None:
    logits, labels = random_table(seed)
    args = (torch.from_numpy(logits), torch.from_numpy(labels), torch.tensor(WEIGHTS))
    spinal, severe = slow_cross_entropy(softmax(logits), labels), slow_any_severe(softmax(logits), labels)
    assert float(weighted_cross_entropy(*args)) == pytest.approx(spinal, rel=1e-5)
    assert float(any_severe_loss(*args)) == pytest.approx(severe, rel=1e-5)
    assert float(metric_loss(*args)) == pytest.approx(spinal + severe, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_parts_of_the_official_metric(seed: int) -> None:
    logits, labels = random_table(seed, sites=len(TEMPLATE_TARGETS))
    given = [{t: int(k) for t, k in zip(TEMPLATE_TARGETS, row, strict=True) if k >= 0} for row in labels]
    parts = LumbarMetric().score(
        {str(n): row for n, row in enumerate(given)}, {str(n): p for n, p in enumerate(softmax(logits))}
    )
    for condition in CONDITIONS:
        columns = [i for i, name in enumerate(TEMPLATE_TARGETS) if TARGET_OF[name].condition == condition]
        args = (torch.from_numpy(logits[:, columns]), torch.from_numpy(labels[:, columns]), torch.tensor(WEIGHTS))
        assert float(weighted_cross_entropy(*args)) == pytest.approx(parts[SHORT[condition]], rel=1e-5)
        if condition == SPINAL:
            both = parts[SHORT[condition]] + parts["any_severe_spinal"]
            assert float(any_severe_loss(*args)) == pytest.approx(parts["any_severe_spinal"], rel=1e-5)
            assert float(metric_loss(*args)) == pytest.approx(both, rel=1e-5)


def test_unlabelled_rows_have_no_influence_and_no_gradient() -> None:
    logits, labels = random_table(1)
    a = torch.from_numpy(logits).requires_grad_()
    changed = torch.from_numpy(np.where(labels[..., None] < 0, 9.0, logits))
    weights, known = torch.tensor(WEIGHTS), torch.from_numpy(labels)
    loss = metric_loss(a, known, weights)
    loss.backward()
    assert torch.equal(loss.detach(), metric_loss(changed, known, weights))
    assert a.grad is not None
    assert (a.grad[known < 0] == 0).all()
    assert (a.grad[known >= 0] != 0).any()


def test_a_batch_without_labels_gives_zero_and_finite_gradients() -> None:
    logits = torch.randn(4, 5, 3, requires_grad=True)
    loss = metric_loss(logits, torch.full((4, 5), -1), torch.tensor(WEIGHTS))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[-200.0, 0.0, 200.0]], [[200.0, 0.0, -200.0]]], requires_grad=True)
    loss = metric_loss(logits, torch.tensor([[0], [2]]), torch.tensor(WEIGHTS))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_log_probabilities_will_do_as_logits() -> None:
    logits, labels = (torch.from_numpy(a) for a in random_table(2))
    weights = torch.tensor(WEIGHTS)
    assert torch.allclose(metric_loss(logits, labels, weights), metric_loss(logits.log_softmax(-1), labels, weights))


def test_without_weights_it_is_the_plain_mean() -> None:
    logits, labels = (torch.from_numpy(a) for a in random_table(3))
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-1)
    assert torch.allclose(weighted_cross_entropy(logits, labels), plain)


def test_smoothing_equals_a_soft_target() -> None:
    logits, labels = (torch.from_numpy(a) for a in random_table(4, empty=0.0))
    keep = labels.flatten() >= 0
    rows, known = logits.flatten(0, 1)[keep].float(), labels.flatten()[keep]
    plain = torch.nn.functional.cross_entropy(rows, known, label_smoothing=0.1)
    assert torch.allclose(weighted_cross_entropy(rows, known, label_smoothing=0.1), plain)


def test_weights_follow_the_label_not_the_prediction() -> None:
    logits = torch.zeros(2, 3)
    logits[0, 0] = 1.0
    labels, weights = torch.tensor([0, 2]), torch.tensor(WEIGHTS)
    logp = logits.log_softmax(-1)
    assert torch.allclose(weighted_cross_entropy(logits, labels, weights), -(logp[0, 0] + 4 * logp[1, 2]) / 5)

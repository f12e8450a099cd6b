"""The loss of a grader: the task's weighted cross entropy, its auxiliary heads, and its term over whole studies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from osteograde.learning.grader_data import GraderBatch
from osteograde.learning.loop import Loss
from osteograde.learning.recipe import GraderPlan, Recipe
from osteograde.models.losses import UNLABELLED, binary_cross_entropy, target_cross_entropy, targets_of
from osteograde.tasks.spec import GRADES, YES_NO, Grader, Head


def grader_loss(grader: Grader, recipe: Recipe, plan: GraderPlan) -> Loss:
    """The loss that a plan of a grader learns by, as a function of the net and a ``GraderBatch``.

    Cross entropy weighted by the task's class weights and by the weight of the site, plus the auxiliary heads, plus
    ``Grader.study_loss`` where the grader has one. Sites without a label of the target count for their heads alone, or
    with a teacher's probabilities in place of the label.
    """
    class_weights = torch.tensor(recipe.task.class_weights)

    def loss(net: nn.Module, batch: GraderBatch) -> torch.Tensor:
        covariates = (batch.covariates,) if batch.covariates else ()
        outputs = net(list(batch.crops), batch.present, *covariates).float()
        if batch.partner is not None:  # cross entropy is linear in what it aims at, so each label has its share of it
            outputs, batch = torch.cat([outputs, outputs]), batch.taken_apart()
        weights = class_weights.to(outputs.device)
        logits, head_logits = grader.split_heads(outputs, len(weights))
        logits = logits + batch.log_prior_shift
        aim = targets_of(batch.labels, len(weights), plan.loss, plan.label_smoothing)
        counted = weights[batch.labels.clamp_min(0)]
        if batch.pseudo is not None:
            aim, counted = _with_pseudo(aim, counted, batch.pseudo * weights, batch.labels)
        value = target_cross_entropy(logits, aim, counted * batch.weight)
        if grader.heads:
            value = value + plan.head_weight * heads_loss(grader.heads, head_logits, batch.head_labels, batch.own)
        if grader.study_loss is not None:
            value = value + grader.study_loss(*by_study(logits, batch, len(grader.sites)), weights)
        return value

    return loss


def _with_pseudo(
    aim: torch.Tensor, counted: torch.Tensor, weighted: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Aims (S, K) and weights (S,). At sites without a label the loss becomes the weighted cross entropy that a label
    drawn from the teacher's answer would have on average. weighted (S, K): the answers times the class weights."""
    total = weighted.sum(-1)
    is_pseudo = (labels == UNLABELLED) & (total > 0)
    soft = weighted / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]
    return torch.where(is_pseudo[:, None], soft, aim), torch.where(is_pseudo, total, counted)


def heads_loss(
    heads: Sequence[Head], logits: Sequence[torch.Tensor], labels: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean of the heads' losses over those that have a label in the batch; 0, with a gradient of 0, if none has.

    logits: per head (S, outputs). labels: (S, heads), -1 where unlabelled, which is left out. weight: (S,) how much
    each site counts; None: all alike.
    """
    known = (labels != UNLABELLED).any(0)
    losses = [head_loss(head, logits[h], labels[:, h], weight) for h, head in enumerate(heads)]
    return (torch.stack(losses) * known).sum() / known.sum().clamp_min(1)


def head_loss(
    head: Head, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over labelled sites: binary cross entropy of a yes/no head, cross entropy of a head of classes, and of
    grades that against the ordinal targets of ``losses.targets_of``. logits (S, outputs), labels and weight (S,)."""
    if head.kind == YES_NO:
        return binary_cross_entropy(logits[:, 0], labels, weight)
    aim = targets_of(labels, logits.shape[-1], "ordinal" if head.kind == GRADES else "classes")
    return target_cross_entropy(logits, aim, torch.ones_like(aim[:, 0]) if weight is None else weight)


def by_study(logits: torch.Tensor, batch: GraderBatch, sites: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sites of a batch put together by study: logits (N, sites, K) and labels (N, sites), -1 where a study has
    fewer sites."""
    studies = int(batch.study.max()) + 1
    table = logits.new_zeros(studies, sites, logits.shape[-1])
    labels = batch.labels.new_full((studies, sites), UNLABELLED)
    position = torch.arange(len(batch.study), device=logits.device)
    position = position - torch.searchsorted(batch.study, batch.study)  # of the site within its study
    index = (batch.study, position)
    return table.index_put(index, logits), labels.index_put(index, batch.labels)

"""The loss of a grader: the task's weighted cross entropy, its auxiliary questions, and the any-severe term."""

from __future__ import annotations

import torch
from torch import nn

from osteograde.learning.grader_data import GraderBatch
from osteograde.learning.loop import Loss
from osteograde.learning.recipe import Fit, Recipe
from osteograde.models.losses import any_severe_loss, finding_loss, target_cross_entropy, targets_of
from osteograde.tasks.spec import Grader

FINDINGS_SHARE = 0.5  # of a grader's yes/no findings in its loss


def grader_loss(group: Grader, recipe: Recipe, plan: Fit) -> Loss:
    """The metric as a loss: weighted cross entropy, plus the any-severe term where the grader has it."""
    weights = torch.tensor(recipe.task.class_weights)

    def loss(net: nn.Module, batch: GraderBatch) -> torch.Tensor:
        answers = net(list(batch.crops), batch.present).float()
        own = weights.to(answers.device)
        logits, findings = answers[:, : len(own)], answers[:, len(own) :]
        wanted = targets_of(batch.labels, len(own), plan.loss, plan.label_smoothing)
        value = target_cross_entropy(logits, wanted, own[batch.labels] * batch.weight)
        if group.findings:
            value = value + FINDINGS_SHARE * finding_loss(findings, batch.findings)
        return value + _any_severe(group, logits, batch, own) if group.any_severe else value

    return loss


def _any_severe(group: Grader, logits: torch.Tensor, batch: GraderBatch, own: torch.Tensor) -> torch.Tensor:
    sites, studies = len(group.sites), int(batch.study.max()) + 1
    table = logits.new_zeros(studies, sites, logits.shape[-1])
    labels = batch.labels.new_full((studies, sites), -1)
    place = torch.arange(len(batch.study), device=logits.device)
    place = place - torch.searchsorted(batch.study, batch.study)  # position of the site within its study
    table = table.index_put((batch.study, place), logits)
    labels = labels.index_put((batch.study, place), batch.labels)
    return any_severe_loss(table, labels, own)

"""The last layer alone is fitted: exactly, by the loss of the plan, and without a change to anything before it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.learning import head_fit, loop
from osteograde.learning.head_fit import fit_head
from osteograde.learning.recipe import LBFGS, Plan, Training

PLAN = Plan(net={}, pixels=1, training=Training(epochs=2, batch=16, lr=0.0, optimiser=LBFGS, weight_decay=0.01))


@dataclass(frozen=True)
class Batch:
    crops: tuple[torch.Tensor, ...]
    labels: torch.Tensor


class Points:
    """Sixty points of two classes; augmented they shake."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.y = np.arange(60) % 2
        self.x = rng.normal(0, 1, (60, 3)) * [1, 100, 0.01] + np.outer(self.y, [1, 100, 0])

    def __len__(self) -> int:
        return 60

    def batch(self, indices, rng, device, *, augment):
        x = self.x[indices] + augment * rng.normal(0, 0.01, (len(indices), 3))
        return Batch((torch.from_numpy(x).float(),), torch.from_numpy(self.y[indices]))

    def in_epoch(self, epoch):
        return self

    def order(self, rng, count):
        return loop.every_sample(len(self), rng, count)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.ReLU()), nn.Linear(5, 2)

    def forward(self, crops):
        return self.head(self.encoder(crops[0]))


def loss(net, batch):
    return nn.functional.cross_entropy(net(list(batch.crops)), batch.labels)


def fit(tmp_path: Path, plan: Plan = PLAN, held_out=None) -> Net:
    job = loop.Job("points", 0, 7, torch.device("cpu"), tmp_path / "points.pt")
    found = fit_head(Net, plan, Points(), held_out, loss, job)
    assert isinstance(found, Net)
    return found


def penalised(net: Net, data: Points) -> torch.Tensor:
    """The fitted function of head weights on the data as they are."""
    batch = data.batch(np.arange(60), np.random.default_rng(0), torch.device("cpu"), augment=False)
    with torch.no_grad():
        features = net.encoder(batch.crops[0])
    deviation = features.std(0)
    weight = torch.where(deviation > 1e-6, net.head.weight * deviation, 0.0)
    return loss(lambda crops: net.head(features), batch) + 0.01 * weight.square().sum()


def test_no_change_of_the_last_layer_lowers_the_loss(tmp_path):
    net = fit(tmp_path, replace(PLAN, training=replace(PLAN.training, epochs=1)))
    best = float(penalised(net, Points()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        again = fit(tmp_path, replace(PLAN, training=replace(PLAN.training, epochs=1)))
        with torch.no_grad():
            again.head.weight += 0.05 * torch.randn(again.head.weight.shape, generator=generator)
            again.head.bias += 0.05 * torch.randn(2, generator=generator)
        assert float(penalised(again, Points())) >= best - 1e-5


def test_nothing_before_the_last_layer_changes(tmp_path):
    job = loop.Job("points", 0, 7, torch.device("cpu"), tmp_path / "points.pt")
    torch.manual_seed(int(job.rng().integers(2**62)))
    start = Net().state_dict()
    net = fit(tmp_path)
    for key, value in net.state_dict().items():
        assert torch.equal(value, start[key]) != key.startswith("head."), key


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, second = fit(tmp_path), fit(tmp_path)
    assert torch.equal(first.head.weight, second.head.weight)


def test_two_classes_apart_are_told_apart(tmp_path):
    net, data = fit(tmp_path), Points()
    said = net([torch.from_numpy(data.x).float()]).argmax(1).numpy()
    assert (said == data.y).mean() > 0.6


def test_what_is_known_beside_the_crops_is_fitted_too(tmp_path):
    """The label itself, given as a covariate, decides."""

    class Knowing(Net):
        def __init__(self) -> None:
            super().__init__()
            self.covariate_head = nn.Linear(1, 2, bias=False)
            nn.init.zeros_(self.covariate_head.weight)

        def forward(self, crops, known):
            return super().forward(crops) + self.covariate_head(known)

    def with_label(net, batch):
        return nn.functional.cross_entropy(net(list(batch.crops), batch.labels[:, None].float()), batch.labels)

    job = loop.Job("points", 0, 7, torch.device("cpu"), tmp_path / "points.pt")
    net, data = fit_head(Knowing, PLAN, Points(), None, with_label, job), Points()
    said = net([torch.from_numpy(data.x).float()], torch.from_numpy(data.y)[:, None].float()).argmax(1).numpy()
    assert (said == data.y).all()


def test_a_loss_that_is_no_number_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(head_fit, "minimise", lambda *given: float("nan"))
    with pytest.raises(loop.Diverged, match="raise weight_decay"):
        fit(tmp_path)

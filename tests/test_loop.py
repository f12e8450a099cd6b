"""The loop: killed and resumed it ends the same, and it stops when the loss is no number."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.learning import loop
from osteograde.learning.recipe import Plan, Training
from tests.logs import logged

PLAN = Plan(net={}, pixels=1, training=Training(epochs=4, batch=4, lr=0.05, ema=0.9, clip=10.0))


def changed(plan: Plan, **choices) -> Plan:
    """The plan with other choices, each in the part of the plan that has it."""
    for part in ("training", "schedule", "start"):
        own = {name: choices.pop(name) for name in list(choices) if hasattr(getattr(plan, part), name)}
        plan = replace(plan, **{part: replace(getattr(plan, part), **own)})
    assert not choices
    return plan


class Line:
    """y = 2 x - 1 with noise drawn from the generator it is given."""

    def __len__(self) -> int:
        return 20

    def batch(self, indices, rng, device, *, augment):
        x = torch.tensor(np.asarray(indices), dtype=torch.float32)[:, None] / 10
        noise = torch.from_numpy(rng.normal(0, 0.05 * augment, x.shape).astype(np.float32))
        return x, 2 * x - 1 + noise

    def fit(self, net):
        pass

    def in_epoch(self, epoch):
        return self

    def order(self, rng, count):
        return loop.every_sample(len(self), rng, count)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))


def loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def job(folder: Path, fold: int = 0) -> loop.Job:
    return loop.Job("line", fold, 7, torch.device("cpu"), folder / "line.pt")


def run(folder: Path, plan: Plan = PLAN, *, resume: bool = False, held: bool = True):
    data = Line()
    return loop.train(net, plan, data, data if held else None, loss, job(folder), resume=resume)


def held_out_losses(lines: list[str]) -> list[float]:
    return [float(line.split("held-out loss ")[1].split(",")[0]) for line in lines]


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_it_learns(tmp_path):
    trained = run(tmp_path, changed(PLAN, epochs=60))
    assert loop.evaluate(trained, Line(), PLAN, loss, job(tmp_path)) < 0.05


@pytest.mark.parametrize("bfloat16", [False, True])
def test_on_a_cpu_products_are_in_bfloat16_where_the_plan_says_so_and_it_still_learns(tmp_path, bfloat16):
    kinds = set()

    def told(model, batch):
        model[0].register_forward_hook(lambda module, inputs, output: kinds.add((module.training, output.dtype)))
        return loss(model, batch)

    plan, data = changed(PLAN, epochs=60, bfloat16=bfloat16), Line()
    trained = loop.train(net, plan, data, data, told, job(tmp_path), resume=False)
    half = torch.bfloat16 if bfloat16 else torch.float32
    assert kinds == {(True, half), (False, torch.float32)}  # what is kept is judged in full precision
    assert all(value.dtype == torch.float32 for value in trained.state_dict().values())
    assert loop.evaluate(trained, data, PLAN, loss, job(tmp_path)) < 0.05


@pytest.mark.parametrize(
    "changes", [{}, {"patience": 3}, {"restarts": {1: 0.5, 3: 0.25}, "swa": True}, {"accumulate": 2, "batch": 2}]
)
def test_killed_in_any_epoch_and_resumed_it_ends_the_same(tmp_path, changes):
    plan = changed(PLAN, **changes)
    whole = run(tmp_path / "whole", plan)
    with logged("learning", stop=lambda line: " epoch 2/" in line), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", plan)
    resumed = run(tmp_path / "killed", plan, resume=True)
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_run_is_resumed_where_the_other_precision_is_used(tmp_path, before, after, monkeypatch):
    """As where a run that was begun on a CPU goes on on a GPU: only one of them scales its gradients."""
    scaler, scales = torch.amp.GradScaler, iter([before, after])
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler("cpu", enabled=next(scales)))
    with logged("learning", stop=lambda line: " epoch 2/" in line), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    trained = run(tmp_path, resume=True)
    assert torch.isfinite(weights(trained)).all()
    saved = torch.load(job(tmp_path).checkpoint, weights_only=True)
    assert bool(saved["scaler"]) == after and saved["epoch"] == PLAN.training.epochs


@pytest.mark.parametrize("together", [2, 5])
def test_a_step_of_several_batches_equals_one_of_a_batch_with_all_of_their_samples(tmp_path, together):
    """Of a net without batch norm and dropout, over whole epochs: clipping, rates and moving average are per step."""

    class Still(Line):
        def batch(self, indices, rng, device, *, augment):
            return super().batch(indices, rng, device, augment=False)

    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    plan = changed(PLAN, batch=10, clip=0.1)
    split = changed(plan, batch=10 // together, accumulate=together)
    with logged("learning") as lines:
        one = loop.train(plain, plan, Still(), Still(), loss, job(tmp_path / "one"), resume=False)
        several = loop.train(plain, split, Still(), Still(), loss, job(tmp_path / "several"), resume=False)
    assert torch.allclose(weights(one), weights(several), atol=1e-6)
    shown = [line.partition(" s,")[0].rpartition(",")[0] for line in lines]
    assert shown[:4] == shown[4:]  # the same losses as well


@pytest.mark.parametrize(
    ("device", "asked", "has", "expected"),
    [
        ("cuda", False, True, torch.float16),
        ("cuda", True, True, torch.bfloat16),
        ("cuda", True, False, torch.float16),
        ("cpu", True, False, torch.bfloat16),
        ("cpu", False, False, None),
    ],
)
def test_bfloat16_is_used_where_it_is_asked_for_and_the_device_has_it(device, asked, has, expected):
    training = replace(PLAN.training, bfloat16=asked)
    assert loop.half_of(torch.device(device), training, has_bfloat16=has) == expected


@pytest.mark.parametrize(("device", "asked"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_the_trunk_is_compiled_on_cuda_where_the_plan_says_so_and_keeps_its_names(device, asked, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    made = Trunk()
    loop.compile_trunk(made, replace(PLAN.training, compile=asked), torch.device(device))
    assert compiled == ([made.encoder] if device == "cuda" and asked else [])


def test_a_compiled_trunk_keeps_the_names_of_its_weights_and_computes_the_same():
    made = Trunk().eval()
    names, x = list(made.state_dict()), torch.linspace(-1, 1, 6)[:, None]
    before = made(x)
    made.encoder.compile(backend="eager")
    assert list(made.state_dict()) == names
    assert torch.allclose(made(x), before, atol=1e-6)


def test_without_resume_a_checkpoint_is_not_used(tmp_path):
    first = run(tmp_path, changed(PLAN, epochs=2))
    assert torch.equal(weights(first), weights(run(tmp_path, changed(PLAN, epochs=2))))


def test_folds_and_seeds_differ(tmp_path):
    data = Line()
    other = loop.train(net, PLAN, data, None, loss, job(tmp_path, fold=1), resume=False)
    assert not torch.equal(weights(run(tmp_path)), weights(other))


def test_a_loss_that_is_no_number_stops_with_a_message(tmp_path):
    with pytest.raises(loop.Diverged, match=r"line fold 0 epoch 1 step 1: the loss is nan; lower lr"):
        loop.train(net, PLAN, Line(), None, lambda m, b: loss(m, b) * math.nan, job(tmp_path), resume=False)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    run(tmp_path)
    torch.save({"format": 0}, tmp_path / "line.pt")
    with pytest.raises(ValueError, match="another version"):
        run(tmp_path, resume=True)


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    plan = changed(PLAN, epochs=200, patience=3, lr=0.2)
    with logged("learning") as lines:
        best = run(tmp_path, plan)
    values = held_out_losses(lines)
    assert len(values) < 200
    assert abs(loop.evaluate(best, Line(), PLAN, loss, job(tmp_path)) - min(values)) < 1e-3


def test_the_schedule_rises_then_falls_to_one_percent():
    rates = [loop.warm_up_and_cosine(step, 100, 0.1) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert 0.01 <= rates[-1] < 0.012


def test_an_unknown_optimiser_is_named(tmp_path):
    with pytest.raises(ValueError, match="known: "):
        run(tmp_path, changed(PLAN, optimiser="sgdd"))


def test_early_stopping_without_anything_to_judge_by_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs held-out data"):
        run(tmp_path, changed(PLAN, patience=2), held=False)


class Trunk(nn.Module):
    """A net with a trunk, as graders are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


PUBLISHED = changed(
    PLAN, optimiser="adam", lr=1e-3, weight_decay=1e-4, ema=0.0, clip=1e9, epochs=5, head_epochs=1, head_lr=1e-2,
    milestones=(3,),
)  # fmt: skip


def slow_and_obvious(plan: Plan, at: loop.Job, epochs: int) -> nn.Module:
    """The published schedule written out: the head alone with an Adam of its own, then a new Adam over everything."""
    torch.manual_seed(int(at.rng().integers(2**62)))
    model, data = Trunk(), Line()
    size = plan.training.batch
    steps = len(data) // size
    model.train()
    for epoch in range(epochs):
        if epoch == 0:
            model.encoder.requires_grad_(False).eval()
            adam = torch.optim.Adam(model.head.parameters(), lr=1e-2)
        if epoch == 1:
            model.encoder.requires_grad_(True).train()
            weights_of = [p for p in model.parameters() if p.ndim > 1]
            others = [p for p in model.parameters() if p.ndim == 1]
            groups = [{"params": weights_of, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
            adam = torch.optim.Adam(groups)
        for group in adam.param_groups:
            group["lr"] = [1e-2, 1e-3, 1e-3, 1e-4, 1e-4][epoch]
        order = at.rng(epoch).permutation(len(data))
        for step in range(steps):
            rng = at.rng(epoch, step)
            batch = data.batch(order[step * size : (step + 1) * size], rng, at.device, augment=True)
            adam.zero_grad()
            loss(model, batch).backward()
            adam.step()
    return model


def test_the_published_schedule_is_the_head_alone_and_then_a_new_adam(tmp_path):
    for epochs in (1, 2, 5):
        folder = tmp_path / str(epochs)
        plan = changed(PUBLISHED, epochs=epochs)
        mine = loop.train(Trunk, plan, Line(), None, loss, job(folder), resume=False)
        torch.testing.assert_close(weights(mine), weights(slow_and_obvious(plan, job(folder), epochs)))


def test_a_run_killed_after_the_head_s_epochs_and_resumed_ends_the_same(tmp_path):
    def run_to(folder: Path, epochs: int, resume: bool) -> torch.Tensor:
        plan = changed(PUBLISHED, epochs=epochs)  # the rate depends on milestones, not on how many epochs there are
        return weights(loop.train(Trunk, plan, Line(), None, loss, job(folder), resume=resume))

    whole = run_to(tmp_path / "whole", 5, resume=False)
    for stop in (1, 2, 4):
        run_to(tmp_path / str(stop), stop, resume=False)
        assert torch.equal(run_to(tmp_path / str(stop), 5, resume=True), whole)


def test_patience_of_all_epochs_keeps_the_best_epoch_and_never_stops(tmp_path):
    values = [1.0, 0.2, 0.9, 0.8, 0.7, 0.6]
    plan = changed(PLAN, epochs=6, patience=6, ema=0.0, milestones=(9,))

    def judged(model, batch):
        return torch.tensor(batch) if isinstance(batch, float) else loss(model, batch)

    with logged("learning") as lines:
        best = loop.train(net, plan, Line(), Scripted(values), judged, job(tmp_path), resume=False)
    assert len(lines) == 6
    second = loop.train(net, changed(plan, epochs=2, patience=0), Line(), None, loss, job(tmp_path / "b"), resume=False)
    assert torch.equal(weights(best), weights(second))


class Scripted:
    """Held-out losses as given: one element per epoch."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def __len__(self) -> int:
        return 1

    def batch(self, indices, rng, device, *, augment):
        return next(self.values)


@pytest.mark.parametrize(
    ("min_delta", "epochs", "kept"),
    [
        (0.0, 4, 2),  # 1.0, 0.5, then two that are not better
        (0.1, 7, 5),  # 0.58 and 0.6 lie within 0.1 of 0.5 and count for nothing; 0.45 is better; 0.9, 0.8 are bad
    ],
)
def test_an_epoch_counts_as_bad_only_beyond_min_delta(tmp_path, min_delta, epochs, kept):
    values = [1.0, 0.5, 0.58, 0.6, 0.45, 0.9, 0.8, 0.44, 0.43]
    plan = changed(PLAN, epochs=9, patience=2, min_delta=min_delta, ema=0.0, milestones=(9,))

    def judged(model, batch):
        return torch.tensor(batch) if isinstance(batch, float) else loss(model, batch)

    with logged("learning") as lines:
        best = loop.train(net, plan, Line(), Scripted(values), judged, job(tmp_path), resume=False)
    assert len(lines) == epochs
    to_there = loop.train(net, changed(plan, epochs=kept, patience=0), Line(), None, loss, job(tmp_path / "b"),
                         resume=False)  # fmt: skip
    assert torch.equal(weights(best), weights(to_there))


def test_restarts_begin_the_cosine_anew_from_a_share_of_the_rate_and_leave_the_first_cycle_as_it_was():
    short = changed(PLAN, epochs=3, lr=1.0, warm_up=0.1)
    long = changed(short, epochs=5, restarts={3: 0.5})
    steps = 20
    first = [loop.rate(short, step, steps) for step in range(3 * steps)]
    both = [loop.rate(long, step, steps) for step in range(5 * steps)]
    assert both[: 3 * steps] == first
    assert max(both[3 * steps :]) == pytest.approx(0.5) and both[3 * steps - 1] < 0.02 and both[-1] < 0.01
    whole = changed(long, restarts={3: 1.0})
    assert max(loop.rate(whole, step, steps) for step in range(3 * steps, 5 * steps)) == pytest.approx(1.0)


def test_swa_ends_with_the_mean_of_the_nets_at_the_ends_of_the_cycles(tmp_path, monkeypatch):
    plan = changed(PLAN, epochs=5, restarts={1: 0.5, 3: 0.25}, lr=0.2)
    ends, own = [], loop._save

    def save(path, progress):
        ends.append(weights(progress.average))
        own(path, progress)

    monkeypatch.setattr(loop, "_save", save)
    last = run(tmp_path / "last", plan)
    with logged("learning") as lines:
        mean = run(tmp_path / "mean", changed(plan, swa=True))
    assert torch.equal(weights(last), ends[4]) and all(
        torch.equal(a, b) for a, b in zip(ends[:4], ends[5:9], strict=True)
    )
    assert torch.allclose(weights(mean), (ends[0] + ends[2] + ends[4]) / 3, atol=1e-6)
    measured = loop.evaluate(mean, Line(), PLAN, loss, job(tmp_path))
    assert held_out_losses(lines[-1:]) == [pytest.approx(measured, abs=1e-4)]


class Trunked(nn.Module):
    """A net with a trunk of two named parts, each with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        for name in ("low", "high"):
            self.encoder.add_module(name, nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.ReLU()))
        self.head = nn.Linear(4, 1)
        self.encoder(torch.zeros(2, 1))

    def forward(self, x):
        return self.head(self.encoder(x))


@pytest.mark.parametrize(("frozen", "part"), [("low", "encoder.low."), ("", "encoder.")])
def test_frozen_modules_keep_their_weights_and_statistics_and_the_others_learn(tmp_path, frozen, part):
    """ "" freezes the whole trunk, of which no gradient is computed then."""
    plan = changed(PLAN, frozen=(frozen,), ema=0.0)
    data, begun, graphs = Line(), {}, []

    def make():
        made = Trunked()
        made.encoder.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
        begun.update({key: value.clone() for key, value in made.state_dict().items()})
        return made

    trained = loop.train(make, plan, data, None, loss, job(tmp_path), resume=False)
    for key, value in trained.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        assert torch.equal(value, begun[key]) == key.startswith(part), key
    assert graphs and all(has_graph == (frozen != "") for has_graph in graphs)


def test_every_epoch_is_trained_on_its_own_data_in_as_many_steps(tmp_path):
    """As many steps as the data of the first epoch give, whatever the later ones hold."""
    read = []

    @dataclass
    class Growing(Line):
        count: int = 12

        def __len__(self):
            return self.count

        def in_epoch(self, epoch):
            return Growing(8 if epoch < 3 else 12)

        def batch(self, indices, rng, device, *, augment):
            read.append((self.count, max(indices) < self.count))
            return super().batch([i % 4 for i in indices], rng, device, augment=augment)

    loop.train(net, changed(PLAN, epochs=5), Growing(), None, loss, job(tmp_path), resume=False)
    assert read == [(8, True)] * 2 * 3 + [(12, True)] * 2 * 2

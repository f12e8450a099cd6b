"""One net, one fold: the loop. It reads in the order things happen and can be killed at any moment.

All randomness of a step is derived from (seed, stage, fold, epoch, step), so a run resumed at an epoch's end goes on
exactly as if it had never stopped.

Means of a net's weights over its training.
"""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.learning.recipe import Fit
from osteograde.models.bundle import on_device

CHECKPOINT_FORMAT = 1


class Diverged(UserError):
    """The loss is no longer a number."""


class Data(Protocol):
    """What the loop needs of a data set: its units (passes or studies) and batches of them."""

    def __len__(self) -> int: ...

    def batch(
        self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, device: torch.device, *, augment: bool
    ) -> Any: ...


Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class Where:
    """Names a run: its stage and fold, the seed all its randomness comes from, the device and the checkpoint.

    common: the folds that go on from this run's net, of which ``fold`` is the first; empty for a fold's own run.
    """

    stage: str
    fold: int
    seed: int
    device: torch.device
    checkpoint: Path
    common: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        return (
            f"{self.stage} folds {', '.join(map(str, self.common))}"
            if self.common
            else f"{self.stage} fold {self.fold}"
        )

    def rng(self, *more: int) -> np.random.Generator:
        stage = f"{self.stage} in common" if self.common else self.stage
        return np.random.default_rng([self.seed, zlib.crc32(stage.encode()), self.fold, *more])


def train(
    build_net: Callable[[], nn.Module],
    plan: Fit,
    data: Data,
    held_out: Data | None,
    loss: Loss,
    where: Where,
    *,
    resume: bool,
    log: Callable[[str], None],
) -> nn.Module:
    """Train one net; return its averaged weights in evaluation mode. Raises Diverged on a non-finite loss."""
    if plan.patience and held_out is None:
        raise UserError(f"{where.stage}: patience {plan.patience} needs held-out data to judge by; set patience to 0")
    torch.manual_seed(int(where.rng().integers(2**62)))
    net = on_device(build_net(), where.device)
    average = copy.deepcopy(net).requires_grad_(False)
    optimiser = _optimiser(net, plan, head=plan.head_epochs > 0)
    scaler = torch.amp.GradScaler(where.device.type, enabled=where.device.type == "cuda")
    steps = plan.steps or max(1, len(_as_given(data, plan)) // plan.batch)
    state: dict[str, Any] = {"epoch": 0, "best": math.inf, "bad": 0}
    best = copy.deepcopy(average.state_dict()) if plan.patience or plan.swa else None
    if resume and where.checkpoint.is_file():
        state, best = _load(where.checkpoint, net, average, optimiser, scaler, where.device)
        log(f"{where.title}: resumed after epoch {state['epoch']}")
    while state["epoch"] < plan.epochs and not (plan.patience and state["bad"] >= plan.patience):
        epoch, begun, total = state["epoch"], time.perf_counter(), 0.0
        _thaw(net, epoch >= plan.head_epochs, plan.frozen)
        if 0 < epoch == plan.head_epochs:
            optimiser = _optimiser(net, plan)  # momentum of the head's own epochs is not carried into the others
        for step, batch in enumerate(fetched := Fetched(_as_read(data, plan, epoch), plan, where, epoch, steps)):
            for group in optimiser.param_groups:
                group["lr"] = rate(plan, epoch * steps + step, steps)
            torch.manual_seed(int(where.rng(epoch, step, 1).integers(2**62)))  # dropout and proposals
            total += _step(net, batch, loss, optimiser, scaler, plan, where, f"epoch {epoch + 1} step {step + 1}")
            update_ema(average, net, plan.ema, epoch * steps + step)
        state["epoch"] = epoch + 1
        if best is not None and plan.swa:
            update_swa(best, average, [*plan.restarts, plan.epochs], state["epoch"])
        last = plan.patience or epoch + 1 == plan.epochs  # judging earlier epochs of a fixed run is only time
        value = evaluate(average, held_out, plan, loss, where) if held_out is not None and last else math.nan
        if plan.patience:
            better, near = value < state["best"], plan.slack > 0 and value <= state["best"] + plan.slack
            state |= {"best": min(value, state["best"]), "bad": 0 if better or near else state["bad"] + 1}
            best = copy.deepcopy(average.state_dict()) if better else best
        _save(where.checkpoint, state, best, net, average, optimiser, scaler)
        seconds = time.perf_counter() - begun
        log(
            f"{where.title} epoch {epoch + 1}/{plan.epochs}: loss {total / steps:.4f} "
            f"{'' if math.isnan(value) else f'held-out {value:.4f} '}{seconds:.0f} s, "
            f"waiting for data {fetched.waited / seconds:.0%}"
        )
    if best is not None:
        average.load_state_dict(best)
    return average.eval()


class Fetched:
    """The batches of one epoch in order, the next one made while the net works on this one."""

    def __init__(self, data: Data, plan: Fit, where: Where, epoch: int, steps: int) -> None:
        self.data, self.plan, self.where, self.epoch, self.steps = data, plan, where, epoch, steps
        self.order = where.rng(epoch).permutation(max(len(data), steps * plan.batch)) % len(data)
        self.waited = 0.0  # seconds the net had nothing to do

    def _make(self, step: int) -> Any:
        indices = self.order[step * self.plan.batch : (step + 1) * self.plan.batch]
        return self.data.batch(indices, self.where.rng(self.epoch, step), self.where.device, augment=True)

    def __iter__(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._make, 0)
            for step in range(self.steps):
                begun = time.perf_counter()
                batch = coming.result()
                self.waited += time.perf_counter() - begun
                if step + 1 < self.steps:
                    coming = ahead.submit(self._make, step + 1)
                yield batch


def rate(plan: Fit, step: int, steps: int) -> float:
    """Learning rate of a step, ``steps`` of them an epoch: of the head alone in its epochs, then falling at the
    milestones, or by ``schedule``, begun anew at every restart from a share of the rate (SGDR, Loshchilov 2017)."""
    head = plan.head_epochs * steps
    if step < head:
        return plan.head_lr
    if plan.milestones:
        return plan.lr * 0.1 ** sum(step >= epoch * steps for epoch in plan.milestones)
    begins = [plan.head_epochs, *plan.restarts]
    cycle = sum(step >= epoch * steps for epoch in begins) - 1
    begin, end = begins[cycle], [*begins, plan.epochs][cycle + 1]
    return plan.lr * plan.restart_share**cycle * schedule(step - begin * steps, (end - begin) * steps, plan.warmup)


def _as_read(data: Any, plan: Fit, epoch: int) -> Data:
    """The data as an epoch reads them: smaller in the first epochs where the recipe says so (Tan and Le 2021), and with
    what was made for practice in the last ones only."""
    epochs, share = plan.early
    data = _as_given(data, plan) if epoch < plan.epochs - plan.practice else data
    return data.smaller(share) if epoch < epochs else data


def _as_given(data: Any, plan: Fit) -> Data:
    """Without what was made for practice, of a plan that learns from it in some epochs only."""
    return data.without_practice() if plan.practice else data


def _thaw(net: nn.Module, whole: bool, frozen: Sequence[str] = ()) -> None:
    """Let the whole net learn, or only what is not its trunk (``encoder``), whose statistics then stay as well.

    frozen: modules of the trunk that never learn.
    """
    net.train()
    trunk = getattr(net, "encoder", None)
    if trunk is None:
        return
    trunk.requires_grad_(whole)
    trunk.train(whole)
    for name in frozen:
        trunk.get_submodule(name).requires_grad_(False).train(False)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine down to 1 %."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _optimiser(net: nn.Module, plan: Fit, *, head: bool = False) -> torch.optim.Optimizer:
    """A new optimiser of all parameters. head: of the epochs of the head alone, in which nothing is decayed."""
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    if plan.optimiser not in kinds:
        raise UserError(f"optimiser {plan.optimiser!r} is unknown; known: {sorted(kinds)}")
    decay = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]  # norms and biases are not decayed
    groups = [
        {"params": decay, "weight_decay": 0.0 if head else plan.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return kinds[plan.optimiser](groups, lr=plan.lr)


def _step(net, batch, loss: Loss, optimiser, scaler, plan: Fit, where: Where, what: str) -> float:
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast(where.device.type, torch.float16, enabled=where.device.type == "cuda"):
        value = loss(net, batch)
    if not torch.isfinite(value):
        raise Diverged(
            f"{where.title} {what}: the loss is {value.item()}; "
            f"lower lr (now {plan.lr:g}) or raise warmup in the recipe, then start again"
        )
    scaler.scale(value).backward()
    scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
    scaler.step(optimiser)
    scaler.update()
    return value.item()


@torch.no_grad()
def evaluate(net: nn.Module, data: Data, plan: Fit, loss: Loss, where: Where) -> float:
    """Mean loss over held-out data, unmoved."""
    if not len(data):
        return math.nan
    was_training = net.training
    net.eval()
    values = []
    for start in range(0, len(data), plan.batch):
        indices = range(start, min(start + plan.batch, len(data)))
        batch = data.batch(list(indices), where.rng(start, 0, 0, 0), where.device, augment=False)
        values.append((loss(net, batch).item(), len(indices)))
    net.train(was_training)
    return float(np.average([v for v, _ in values], weights=[n for _, n in values]))


def _save(path: Path, state: dict, best: dict | None, net, average, optimiser, scaler) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(
        {
            "format": CHECKPOINT_FORMAT,
            "state": state,
            "best": best,
            "net": net.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(),
        },
        part,
    )
    part.replace(path)


def _load(path: Path, net, average, optimiser, scaler, device) -> tuple[dict, dict | None]:
    saved = torch.load(path, map_location=device, weights_only=True)
    if saved.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: a checkpoint of another version; delete it and start this fold again")
    net.load_state_dict(saved["net"])
    average.load_state_dict(saved["average"])
    optimiser.load_state_dict(saved["optimiser"])
    scaler.load_state_dict(saved["scaler"])
    return saved["state"], saved["best"]


@torch.no_grad()
def update_ema(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and buffers; starts fast so that early steps do not linger."""
    decay = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    for slow, fast in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


@torch.no_grad()
def update_swa(mean: dict[str, torch.Tensor], net: nn.Module, ends: Sequence[int], epoch: int) -> None:
    """Where a cycle of the learning rate ends, take its net into the mean of those before (Izmailov et al. 2018); after
    the last one the net is that mean. Statistics of batch norms are averaged as weights are.

    ends: the epochs after which cycles end, in order.
    """
    if epoch not in ends:
        return
    for value, own in zip(mean.values(), net.state_dict().values(), strict=True):
        if value.is_floating_point():
            value.lerp_(own, 1 / (1 + ends.index(epoch)))
        else:
            value.copy_(own)
    if epoch == ends[-1]:
        net.load_state_dict(mean)

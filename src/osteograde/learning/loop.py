"""The training loop of one net. It can be killed at any moment and resumed from the last finished epoch.

All randomness of a step is derived from (seed, stage, fold, epoch, step), so a resumed run ends with the same bytes as
one that was never stopped.
"""

from __future__ import annotations

import copy
import logging
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

from osteograde import logs
from osteograde.errors import UserError
from osteograde.learning.history import Row, recorder
from osteograde.learning.optimiser import optimiser_of, set_rate
from osteograde.learning.recipe import Plan, Start, Training
from osteograde.models.bundle import on_device

CHECKPOINT_FORMAT = 2
Weights = dict[str, torch.Tensor]  # a state dict

log = logging.getLogger("osteograde.learning")


class Diverged(UserError):
    """The loss is infinite or not a number."""


class Data(Protocol):
    """What the loop needs of a data set: its samples (regions or studies), batches of them, and those of an epoch."""

    def __len__(self) -> int: ...

    def batch(
        self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator, device: torch.device, *, augment: bool
    ) -> Any: ...

    def fit(self, net: nn.Module) -> None:
        """Give a new net what it must know of its training data before the first step; most nets need nothing."""
        ...

    def in_epoch(self, epoch: int) -> Data:
        """The data as the plan uses them in an epoch, counted from 0: some samples only, or smaller images."""
        ...

    def order(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) indices of the samples of an epoch, in the order of training."""
        ...


def every_sample(samples: int, rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) indices in random order, each of ``samples`` equally often, or once more than others."""
    return rng.permutation(count) % samples


Loss = Callable[[nn.Module, Any], torch.Tensor]
AfterEpoch = Callable[[nn.Module, int], str]  # (the averaged net, finished epochs) -> what its log line ends with


@dataclass(frozen=True)
class Job:
    """Which net is trained: its stage and fold, the seed of all its randomness, its device and its checkpoint.

    shared_by: the folds that continue from this net, of which ``fold`` is the first; empty for the net of one fold.
    history: the file of its curves, see ``learning.history``; None writes none. tensorboard: its events as well.
    progress: of the run, in epochs, as whose part this net is shown; None where it is trained alone.
    """

    stage: str
    fold: int
    seed: int
    device: torch.device
    checkpoint: Path
    shared_by: tuple[int, ...] = ()
    history: Path | None = None
    tensorboard: bool = False
    progress: logs.Progress | None = None

    @property
    def title(self) -> str:
        if self.shared_by:
            return f"{self.stage} folds {', '.join(map(str, self.shared_by))}"
        return f"{self.stage} fold {self.fold}"

    def rng(self, *more: int) -> np.random.Generator:
        """A random generator of its own for every use, named by numbers such as (epoch, step)."""
        stage = f"{self.stage} in common" if self.shared_by else self.stage  # old words: they decide the random numbers
        return np.random.default_rng([self.seed, zlib.crc32(stage.encode()), self.fold, *more])


@dataclass(eq=False)
class Progress:
    """A net in training: everything that a checkpoint must hold.

    average: the moving average of the net's weights, which is judged and kept. best: the average of the epoch with the
    lowest held-out loss, where the plan stops early. cycle_mean: the mean of the averages at the ends of the cycles so
    far, where the plan asks for stochastic weight averaging.
    """

    net: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0  # finished epochs
    best_loss: float = math.inf
    bad_epochs: int = 0  # in a row
    best: Weights | None = None
    cycle_mean: Weights | None = None


@dataclass
class EpochLog:
    """What is reported about an epoch: mean loss of its steps, seconds, and seconds without data to work on."""

    loss: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    held_out: float = math.nan  # loss; not a number where it was not measured
    measured: str = ""  # what ``after_epoch`` says


def train(
    build_net: Callable[[], nn.Module],
    plan: Plan,
    data: Data,
    held_out: Data | None,
    loss: Loss,
    job: Job,
    *,
    resume: bool,
    after_epoch: AfterEpoch | None = None,
) -> nn.Module:
    """Train one net and return it in evaluation mode, with the weights that the plan says are kept.

    held_out: data for the held-out loss, which is measured after the last epoch, and after every epoch if the plan
    stops early. resume: continue from the checkpoint of the job if there is one. after_epoch: measures of the net that
    the log of every epoch shows. Raises Diverged where the loss is not a finite number, and UserError for a checkpoint
    of another version or early stopping without held-out data.
    """
    training = plan.training
    if training.patience and held_out is None:
        raise UserError(f"{job.stage}: patience {training.patience} needs held-out data to judge by; set patience to 0")
    progress = _begin(build_net, plan, job)
    if resume and job.checkpoint.is_file():
        _load(job.checkpoint, progress, job.device)
        log.info("%s: resumed after epoch %d", job.title, progress.epoch)
    steps = steps_per_epoch(plan, data)
    with recorder(job.history, finished=progress.epoch, tensorboard=job.tensorboard) as record:
        while progress.epoch < training.epochs and not _is_stopped(progress, training):
            report = _train_epoch(progress, plan, data, steps, loss, job)
            progress.epoch += 1
            _end_cycle(progress, plan)
            is_last = progress.epoch == training.epochs
            if held_out is not None and (training.patience or is_last):  # measuring it earlier would only take time
                report.held_out = evaluate(progress.average, held_out, plan, loss, job)
            if training.patience and progress.epoch > plan.first_judged_epoch:
                _compare_with_best(progress, report.held_out, training)
            report.measured = _measured(after_epoch, progress)
            _save(job.checkpoint, progress)
            record(_row(progress, report))
            _log_epoch(job, progress.epoch, training.epochs, report)
    if progress.best is not None:
        progress.average.load_state_dict(progress.best)
    return progress.average.eval()


def steps_per_epoch(plan: Plan, data: Data) -> int:
    """As the plan says, else one pass over the data of the first epoch; the same number in all epochs."""
    return plan.training.steps or max(1, len(data.in_epoch(0)) // (plan.training.batch * plan.training.accumulate))


def _begin(build_net: Callable[[], nn.Module], plan: Plan, job: Job) -> Progress:
    torch.manual_seed(int(job.rng().integers(2**62)))
    net = on_device(build_net(), job.device)
    average = copy.deepcopy(net).requires_grad_(False)
    optimiser = optimiser_of(net, plan, decay=plan.start.head_epochs == 0)
    half = half_of(job.device, plan.training, has_bfloat16=_has_bfloat16(job.device))
    scaler = torch.amp.GradScaler(job.device.type, enabled=half == torch.float16)  # bfloat16 has the range of float32
    compile_trunk(net, plan.training, job.device)
    progress = Progress(net, average, optimiser, scaler)
    if plan.training.patience:
        progress.best = copy.deepcopy(average.state_dict())
    if plan.schedule.swa:
        progress.cycle_mean = copy.deepcopy(average.state_dict())
    return progress


def compile_trunk(net: nn.Module, training: Training, device: torch.device) -> None:
    """Compile the trunk, or a net without one, in place, where the plan says so and the device is CUDA. Weights keep
    their names, and only the net in training is compiled: what is judged and kept is not."""
    if training.compile and device.type == "cuda":
        getattr(net, "encoder", net).compile()


def _train_epoch(progress: Progress, plan: Plan, data: Data, steps: int, loss: Loss, job: Job) -> EpochLog:
    """Take the steps of the next epoch."""
    begun, epoch = time.perf_counter(), progress.epoch
    _set_trained_parts(progress.net, plan.start, epoch)
    if 0 < epoch == plan.start.head_epochs:  # momentum of the head's epochs is not carried into those of the whole net
        progress.optimiser = optimiser_of(progress.net, plan)
    batches = Batches(data.in_epoch(epoch), plan, job, epoch, steps)
    report, together = EpochLog(), plan.training.accumulate
    for number, batch in enumerate(batches):
        step, done = number // together, epoch * steps + number // together
        if number % together == 0:
            set_rate(progress.optimiser, rate(plan, done, steps))
            progress.optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(int(job.rng(epoch, number, 1).integers(2**62)))  # dropout and proposals
        title = f"{job.title} epoch {epoch + 1} step {step + 1}"
        report.loss += _add_gradient(progress, batch, loss, plan.training, title)
        if (number + 1) % together == 0:
            _step(progress, plan.training)
            update_ema(progress.average, progress.net, plan.training.ema, done)
    report.loss /= steps * together
    report.seconds, report.waited = time.perf_counter() - begun, batches.waited
    return report


def _measured(after_epoch: AfterEpoch | None, progress: Progress) -> str:
    """What ``after_epoch`` says of the averaged net, which is shown to it in evaluation mode."""
    if after_epoch is None:
        return ""
    was_training = progress.average.training
    progress.average.eval()
    said = after_epoch(progress.average, progress.epoch)
    progress.average.train(was_training)
    return said


def _row(progress: Progress, report: EpochLog) -> Row:
    """The finished epoch as ``learning.history`` writes it."""
    return {
        "epoch": progress.epoch,
        "loss": report.loss,
        "held_out_loss": None if math.isnan(report.held_out) else report.held_out,
        "lr": progress.optimiser.param_groups[0]["lr"],
        "seconds": round(report.seconds, 2),
        **({"measured": report.measured} if report.measured else {}),
    }


def _log_epoch(job: Job, epoch: int, epochs: int, report: EpochLog) -> None:
    held_out = "" if math.isnan(report.held_out) else f", held-out loss {report.held_out:.4f}"
    share = report.waited / report.seconds
    is_shown = epoch == epochs or report.seconds >= logs.LINE_EVERY_S  # of short epochs a log has one a minute
    log.info(
        f"{job.title} epoch {epoch}/{epochs}: loss {report.loss:.4f}{held_out}, {report.seconds:.0f} s, "
        f"{share:.0%} of it waiting for data{report.measured and ', '}{report.measured}",
        extra=None if is_shown else logs.PROGRESS,
    )
    if job.progress is not None:
        job.progress.advance(note=f"{job.title}, loss {report.loss:.4f}{held_out}")


class Batches:
    """The batches of one epoch in order, ``accumulate`` of them for each step of the optimiser. The next one is made in
    a thread while the net works on this one."""

    def __init__(self, data: Data, plan: Plan, job: Job, epoch: int, steps: int) -> None:
        self.data, self.job, self.epoch = data, job, epoch
        self.steps = steps * plan.training.accumulate
        self.size = plan.training.batch
        self.order = data.order(job.rng(epoch), max(len(data), self.steps * self.size))
        self.waited = 0.0  # seconds in which the net had nothing to do
        self.title = f"{job.title} epoch {epoch + 1}/{plan.training.epochs}"

    def _make(self, step: int) -> Any:
        indices = self.order[step * self.size : (step + 1) * self.size]
        return self.data.batch(indices, self.job.rng(self.epoch, step), self.job.device, augment=True)

    def __iter__(self) -> Iterator[Any]:
        shown_as = logs.progress(self.title, self.steps, "steps", log, self.job.progress)
        with ThreadPoolExecutor(1) as ahead, shown_as as shown:
            coming = ahead.submit(self._make, 0)
            for step in range(self.steps):
                begun = time.perf_counter()
                batch = coming.result()
                self.waited += time.perf_counter() - begun
                if step + 1 < self.steps:
                    coming = ahead.submit(self._make, step + 1)
                yield batch
                shown.advance()


def rate(plan: Plan, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0 over all epochs of ``steps`` steps each.

    In the first epochs of the head alone it is ``Start.head_lr``. After them it falls at the milestones if the plan has
    any, or polynomially if it has a power; else it follows ``warm_up_and_cosine``, which starts anew after every
    restart.
    """
    training, schedule, head_epochs = plan.training, plan.schedule, plan.start.head_epochs
    if step < head_epochs * steps:
        return plan.start.head_lr
    if schedule.milestones:
        return training.lr * 0.1 ** sum(step >= epoch * steps for epoch in schedule.milestones)
    if schedule.power:
        done, all_steps = step - head_epochs * steps, (training.epochs - head_epochs) * steps
        return training.lr * (1 - done / all_steps) ** schedule.power
    begins = {head_epochs: 1.0, **dict(sorted(schedule.restarts.items()))}
    begin = max(epoch for epoch in begins if step >= epoch * steps)
    end = min((epoch for epoch in begins if epoch > begin), default=training.epochs)
    share = warm_up_and_cosine(step - begin * steps, (end - begin) * steps, schedule.warm_up)
    return training.lr * begins[begin] * share


def warm_up_and_cosine(step: int, steps: int, warm_up: float) -> float:
    """Share of the learning rate in a cycle of ``steps``: a linear rise, then half a cosine down to 1 %."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _set_trained_parts(net: nn.Module, start: Start, epoch: int) -> None:
    """Put the net into training mode, but not what keeps its weights and statistics in this epoch.

    That is the whole trunk in the epochs of the head alone, and the trunk's frozen modules always. A net without a
    trunk (``encoder``) is trained as a whole.
    """
    net.train()
    trunk = getattr(net, "encoder", None)
    if trunk is None:
        return
    is_trained = epoch >= start.head_epochs
    trunk.requires_grad_(is_trained)
    trunk.train(is_trained)
    for name in start.frozen:
        trunk.get_submodule(name).requires_grad_(False).train(False)


def _add_gradient(progress: Progress, batch: Any, loss: Loss, training: Training, title: str) -> float:
    """Add a batch's part of the gradient of a step to the parameters; returns the loss of the batch."""
    net = progress.net
    with _half_precision(next(net.parameters()).device, training):
        value = loss(net, batch)
    if not torch.isfinite(value):
        raise Diverged(
            f"{title}: the loss is {value.item()}; "
            f"lower lr (now {training.lr:g}) or raise warm_up in the recipe, then start again"
        )
    progress.scaler.scale(value / training.accumulate).backward()
    return value.item()


def _step(progress: Progress, training: Training) -> None:
    """One step of the optimiser along the gradient that the parameters have."""
    progress.scaler.unscale_(progress.optimiser)
    nn.utils.clip_grad_norm_(progress.net.parameters(), training.clip)
    progress.scaler.step(progress.optimiser)
    progress.scaler.update()


def half_of(device: torch.device, training: Training, *, has_bfloat16: bool) -> torch.dtype | None:
    """In which half precision a net is run in training; None: in full precision. On CUDA always in one, in bfloat16
    where the plan asks for it and the device has it; on a CPU where the plan asks for it."""
    if device.type == "cuda":
        return torch.bfloat16 if training.bfloat16 and has_bfloat16 else torch.float16
    return torch.bfloat16 if training.bfloat16 else None


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _half_precision(device: torch.device, training: Training) -> torch.autocast:
    """The context in which a net is run in training."""
    half = half_of(device, training, has_bfloat16=_has_bfloat16(device))
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)


@torch.no_grad()
def evaluate(net: nn.Module, data: Data, plan: Plan, loss: Loss, job: Job) -> float:
    """Mean loss over data without augmentation, weighted by samples; not a number if there are none."""
    if not len(data):
        return math.nan
    was_training = net.training
    net.eval()
    values, counts, size = [], [], plan.training.batch
    for start in range(0, len(data), size):
        indices = list(range(start, min(start + size, len(data))))
        batch = data.batch(indices, job.rng(start, 0, 0, 0), job.device, augment=False)
        values.append(loss(net, batch).item())
        counts.append(len(indices))
    net.train(was_training)
    return float(np.average(values, weights=counts))


def _is_stopped(progress: Progress, training: Training) -> bool:
    return training.patience > 0 and progress.bad_epochs >= training.patience


def _compare_with_best(progress: Progress, held_out: float, training: Training) -> None:
    """Keep the average if its held-out loss is the lowest one so far, and count bad epochs in a row."""
    if held_out < progress.best_loss:
        progress.best = copy.deepcopy(progress.average.state_dict())
        progress.bad_epochs = 0
    elif training.min_delta > 0 and held_out <= progress.best_loss + training.min_delta:
        progress.bad_epochs = 0
    else:
        progress.bad_epochs += 1
    progress.best_loss = min(held_out, progress.best_loss)


@torch.no_grad()
def _end_cycle(progress: Progress, plan: Plan) -> None:
    """Where a cycle of the learning rate ends, take the average into the mean of the cycles (Izmailov et al. 2018).

    After the last cycle the average is replaced by that mean. Statistics of batch norms are averaged as weights are.
    """
    ends = [*sorted(plan.schedule.restarts), plan.training.epochs]
    if progress.cycle_mean is None or progress.epoch not in ends:
        return
    cycle = ends.index(progress.epoch)
    for mean, value in zip(progress.cycle_mean.values(), progress.average.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 / (1 + cycle))
        else:
            mean.copy_(value)
    if progress.epoch == ends[-1]:
        progress.average.load_state_dict(progress.cycle_mean)


@torch.no_grad()
def update_ema(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and buffers. It starts fast, so that the first steps are soon forgotten."""
    decay = min(decay, (1 + step) / (10 + step)) if decay else 0.0
    for slow, fast in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


def _save(path: Path, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(
        {
            "format": CHECKPOINT_FORMAT,
            "net": progress.net.state_dict(),
            "average": progress.average.state_dict(),
            "optimiser": progress.optimiser.state_dict(),
            "scaler": progress.scaler.state_dict(),
            "epoch": progress.epoch,
            "best_loss": progress.best_loss,
            "bad_epochs": progress.bad_epochs,
            "best": progress.best,
            "cycle_mean": progress.cycle_mean,
        },
        part,
    )
    part.replace(path)


def _load(path: Path, progress: Progress, device: torch.device) -> None:
    saved = torch.load(path, map_location=device, weights_only=True)
    if saved.get("format") != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path}: checkpoint of version {saved.get('format')}, expected {CHECKPOINT_FORMAT}; it was written by "
            "another version of this program; delete it and start this fold again"
        )
    progress.net.load_state_dict(saved["net"])
    progress.average.load_state_dict(saved["average"])
    progress.optimiser.load_state_dict(saved["optimiser"])
    if saved["scaler"]:  # empty where the earlier epochs were not in float16, as on a CPU
        progress.scaler.load_state_dict(saved["scaler"])
    progress.epoch, progress.best_loss = saved["epoch"], saved["best_loss"]
    progress.bad_epochs, progress.best, progress.cycle_mean = saved["bad_epochs"], saved["best"], saved["cycle_mean"]

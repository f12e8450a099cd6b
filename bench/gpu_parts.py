"""What ``gpu.py`` measures, one part a process. Each adds lines of JSON to a file as it goes.

probe: what device, driver and torch there are, and whether a convolution there is right. phantoms: makes the studies
that all others read. answers: the shipped weights in half precision, as inference runs them on CUDA, against the same
in full precision, there and on the CPU. inference: the whole run of each shipped task beside its limits. train-*: steps
of the default recipes in fp16 or bf16, compiled or not. two-devices: the kernel's way of using several GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
import pandas as pd
import pipeline
import torch
from training import short

from osteograde import phantom
from osteograde.inference import multi_gpu, run
from osteograde.inference.deadline import Budget, Voter
from osteograde.inference.submission import Result, RunSummary
from osteograde.learning import loop, pretrained, train
from osteograde.learning.recipe import AnyPlan, Plan, Recipe
from osteograde.learning.recipes import RECIPES
from osteograde.models import bundle
from osteograde.models.device import fault, keep_all_freed_memory, keep_freed_memory, pick
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
SHIPPED = ("lumbar-mr-phantom", "knee-xray", "spider", "knee-progression")
TRAINED = ("knee-xray", "lumbar-mr", "spider", "knee-progression")  # recipes, in the order of interest
SEED, MIB = 888021, 2**20
Say = Callable[..., None]  # with the values of a row by name


@dataclass(frozen=True)
class Setting:
    """Where everything runs, on how little, and the folder of the phantoms: a folder in it for each task."""

    device: torch.device
    tiny: bool
    data: Path

    @property
    def shipped(self) -> tuple[str, ...]:
        """Folders of the shipped weights that are tried."""
        return SHIPPED[:2] if self.tiny else SHIPPED

    @property
    def trained(self) -> tuple[str, ...]:
        """Recipes that are timed."""
        return TRAINED[:1] if self.tiny else TRAINED

    def studies(self, task: str) -> int:
        """How many studies are graded. One of a spine is work enough for a test of this script."""
        return 12 if not self.tiny else 1 if task == "lumbar-mr" else 3


def probe(setting: Setting, say: Say) -> None:
    device, cuda = setting.device, setting.device.type == "cuda"
    facts: dict[str, Any] = {
        "machine": machine.described(),
        "device": str(device),
        "convolution": fault(device) or "right",
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda or "none",
        "built for": " ".join(torch.cuda.get_arch_list()) or "CPU",
        "GPUs": torch.cuda.device_count(),
    }
    if cuda:
        about = torch.cuda.get_device_properties(device)
        facts |= {
            "name": about.name,
            "capability": f"{about.major}.{about.minor}",
            "memory, MiB": about.total_memory // MIB,
            "driver": _driver(),
            "cuDNN": torch.backends.cudnn.version(),
            "bfloat16 in hardware": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    say(**facts)


def _driver() -> str:
    """The version of the driver as its own program says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"not told ({error})"


def phantoms(setting: Setting, say: Say) -> None:
    taught = {RECIPES[name]().task.name for name in setting.trained}
    for task in dict.fromkeys(_task_of(name) for name in setting.shipped):
        begun, count = time.perf_counter(), 8 if task in taught else 0
        workers = 1 if setting.tiny else os.cpu_count() or 1
        test = setting.studies(task)
        phantom.write(task, setting.data / task, studies=count, test=test, seed=SEED, workers=workers)
        say(task=task, to_train=count, to_grade=test, seconds=round(time.perf_counter() - begun, 1))


def _task_of(weights: str) -> str:
    return json.loads((WEIGHTS / weights / "manifest.json").read_text(encoding="utf-8"))["task"]


def _shipped(setting: Setting, name: str, device: torch.device) -> tuple[bundle.Bundle, Sequence[Study]]:
    """Shipped weights on a device, and the studies that they are tried on."""
    nets = bundle.load(WEIGHTS / name, TASKS, device)
    return nets, nets.task.read(setting.data / nets.task.name, "test")


@contextmanager
def _precision(half: bool) -> Iterator[None]:
    """Nets run in fp16 within, or in full precision, whatever their device."""
    before = predict.is_half
    predict.is_half = lambda device: half
    try:
        yield
    finally:
        predict.is_half = before


def _graded(weights: bundle.Bundle, studies: Sequence[Study], effort: tuple[int, int], *, half: bool) -> list[Result]:
    """effort: views of test-time augmentation, and folds."""
    with _precision(half):
        budget = Budget(None, (Voter(*effort),))
        return [one for chunk in run.graded_chunks(weights, studies, budget, RunSummary()) for one in chunk]


def each(names: Sequence[str], say: Say, work: Callable[[str], None]) -> None:
    """``work(name)`` of all names. An error is a result like others: it is said, and the next name is tried; only
    then does the part count as failed."""
    failed = []
    for name in names:
        try:
            work(name)
        except Exception as error:  # whatever a device may do: this is what the script is run for
            traceback.print_exc()
            say(name=name, failed=f"{type(error).__name__}: {error}".splitlines()[0])
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def answers(setting: Setting, say: Say) -> None:
    def compare(name: str) -> None:
        weights, studies = _shipped(setting, name, setting.device)
        effort = (1, 1) if setting.tiny else (weights.test_views, pipeline.folds_of(weights))
        half, full = (_graded(weights, studies, effort, half=half) for half in (True, False))
        say(name=name, of="fp16", against=f"fp32 on {setting.device}", **differences(half, full))
        if setting.device.type != "cpu":
            few = studies[:4]  # a CPU takes its time
            exact = _graded(_shipped(setting, name, torch.device("cpu"))[0], few, effort, half=False)
            for of, found in (("fp16", half), (f"fp32 on {setting.device}", full)):
                say(name=name, of=of, against="fp32 on cpu", **differences(found[: len(few)], exact))

    each(setting.shipped, say, compare)


def differences(ours: Sequence[Result], theirs: Sequence[Result]) -> dict[str, Any]:
    """The largest differences between the answers of two runs over the same studies, and what one alone answered."""
    pairs = list(zip(ours, theirs, strict=True))
    both = [(a.graded[t], b.graded[t]) for a, b in pairs for t in a.graded.keys() & b.graded.keys()]
    points = [(a.points[p].mm, b.points[p].mm) for a, b in pairs for p in a.points.keys() & b.points.keys()]
    return {
        "studies": len(pairs),
        "targets": len(both),
        "largest difference of a probability": max((float(np.abs(a - b).max()) for a, b in both), default=0.0),
        "other class": sum(int(a.argmax() != b.argmax()) for a, b in both),
        "points": len(points),
        "largest distance, mm": max((float(np.linalg.norm(a - b)) for a, b in points), default=0.0),
        "answered by one alone": sum(len(a.graded.keys() ^ b.graded.keys()) for a, b in pairs),
        "found by one alone": sum(len(a.points.keys() ^ b.points.keys()) for a, b in pairs),
    }


def inference(setting: Setting, say: Say) -> None:
    """ms a study of the run as inference.py does it, beside what it cannot do without, each alone: decoding (one
    thread), the copy of all voxels to the device, and the nets on the batches of that run."""
    repeats = 1 if setting.tiny else 3

    def measure(name: str) -> None:
        weights, studies = _shipped(setting, name, setting.device)
        calls = pipeline.batches(weights, studies)  # warms everything
        _reset_peak(setting.device)
        watch, rows = machine.Watch(), []
        for _ in range(repeats):
            parts, _ = pipeline.whole(weights, studies)
            loaded, decode_s = _timed(setting.device, lambda: [load_study(study, weights.task) for study in studies])
            voxels = [volume.voxels for one in loaded for stack in one.volumes.values() for volume in stack]
            row = {**parts, "decode, one thread": decode_s, **_copies(setting.device, voxels)}
            row["nets alone"] = _timed(setting.device, lambda: pipeline.nets_alone(calls, setting.device))[1]
            rows.append({name: 1000 * value / len(studies) for name, value in row.items()})
        say(name=name, studies=len(studies), **{key: median(row[key] for row in rows) for key in rows[0]},
            **_peak(setting.device), busy=watch.is_busy)  # fmt: skip

    each(setting.shipped, say, measure)


def _copies(device: torch.device, voxels: Sequence[np.ndarray]) -> dict[str, float]:
    """Seconds that the bytes take to the device, from memory as it is and, of CUDA, from pinned memory."""
    tensors = [torch.from_numpy(np.array(one)) for one in voxels]
    seconds = {"copy to the device": _timed(device, lambda: [one.to(device) for one in tensors])[1]}
    if device.type == "cuda":
        pinned = [one.pin_memory() for one in tensors]
        seconds["copy, pinned"] = _timed(device, lambda: [one.to(device, non_blocking=True) for one in pinned])[1]
    return seconds


def _timed(device: torch.device, work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and its seconds until the device has done all of it."""
    _wait(device)
    begun = time.perf_counter()
    found = work()
    _wait(device)
    return found, time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> dict[str, int]:
    """Most memory of the device since ``_reset_peak``, allocated and reserved; nothing of a CPU."""
    if device.type != "cuda":
        return {}
    found = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"allocated, MiB": found[0] // MIB, "reserved, MiB": found[1] // MIB}


def training(setting: Setting, say: Say, *, bfloat16: bool, compiled: bool) -> None:
    """The last of a few epochs of every stage of the default recipes, in which nothing is compiled or tuned any more:
    steps with their data as they come, and the same steps again on the last batch, which is the net alone."""

    epochs = 2 if setting.tiny else 3

    class Timed(loop.Batches):
        recipe = ""

        def __init__(self, data: loop.Data, plan: Plan, job: loop.Job, epoch: int, steps: int) -> None:
            super().__init__(data, plan, job, epoch, steps)
            self.last = epoch + 1 == plan.training.epochs

        def __iter__(self) -> Iterator[Any]:
            last, device = self.last, self.job.device
            if last:
                _wait(device)
                _reset_peak(device)
            begun = time.perf_counter()
            for batch in super().__iter__():
                yield batch
            _wait(device)
            middle = time.perf_counter()
            for _ in range(self.steps if last else 0):
                yield batch
            _wait(device)
            if last:
                with_data, alone = middle - begun, time.perf_counter() - middle
                say(name=self.recipe, stage=self.job.stage, batch=self.size, **{
                    "steps/s": self.steps / with_data, "net alone, steps/s": self.steps / alone,
                    "waiting for data": f"{self.waited / with_data:.0%}"}, **_peak(device))  # fmt: skip

    def measure(name: str) -> None:
        Timed.recipe = name
        recipe = measured_recipe(RECIPES[name](), setting.tiny, epochs, bfloat16=bfloat16, compiled=compiled)
        out = setting.data.parent / f"trained-{name}-{bfloat16}-{compiled}"
        train.train(recipe, setting.data / recipe.task.name, out, only=[0], device=setting.device, resume=False)

    loop.Batches = Timed  # type: ignore[misc]
    each(setting.trained, say, measure)


def measured_recipe(recipe: Recipe, tiny: bool, epochs: int, *, bfloat16: bool, compiled: bool) -> Recipe:
    """A recipe with few steps of its own nets and pixels from random weights, or with little of all if tiny."""

    def chosen(stage: str, plan: AnyPlan) -> AnyPlan:
        return replace(plan, training=replace(plan.training, bfloat16=bfloat16, compile=compiled))

    small = pretrained.without_missing_weights(recipe.shrunk()) if tiny else short(recipe, epochs, 8)
    return replace(small, scope=replace(small.scope, annotated_points=True)).map_plans(chosen)


def two_devices(setting: Setting, say: Say) -> None:
    """The studies of the knees by one process, and by one for each of two GPUs, as a kernel on Kaggle does it."""
    count = torch.cuda.device_count() if setting.device.type == "cuda" else 2
    if count < 2:
        say(result=f"left out: {count} GPU")
        return
    both = [f"cuda:{i}" for i in range(2)] if setting.device.type == "cuda" else ["cpu", "cpu"]
    found = {}
    for devices in (both[:1], both):
        out = setting.data.parent / f"by-{len(devices)}.csv"
        job = run.prepare("knee-xray", setting.data / "knee-xray", WEIGHTS / "knee-xray", device="auto", hours=0.5)
        begun = time.perf_counter()
        summary = multi_gpu.infer_on_devices(job, setting.data / "knee-xray", out, devices, poll_s=0.1)
        found[len(devices)] = pd.read_csv(out, index_col=0)
        say(processes=len(devices), studies=summary.studies, seconds=round(time.perf_counter() - begun, 2),
            rows_on_prior=summary.on_prior, faults=json.dumps(summary.faults))  # fmt: skip
    apart = float((found[1] - found[2]).abs().to_numpy().max())
    say(processes="1 against 2", **{"largest difference of a probability": apart})


PARTS: Mapping[str, Callable[[Setting, Say], None]] = {
    "probe": probe,
    "phantoms": phantoms,
    "answers": answers,
    "inference": inference,
    "train-fp16": lambda setting, say: training(setting, say, bfloat16=False, compiled=False),
    "train-bf16": lambda setting, say: training(setting, say, bfloat16=True, compiled=False),
    "train-fp16-compiled": lambda setting, say: training(setting, say, bfloat16=False, compiled=True),
    "train-bf16-compiled": lambda setting, say: training(setting, say, bfloat16=True, compiled=True),
    "two-devices": two_devices,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("rows", type=Path, help="the file that lines are added to")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    keep_all_freed_memory() if args.part.startswith("train") else keep_freed_memory()

    def say(**row: Any) -> None:
        with args.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    PARTS[args.part](Setting(pick(args.device), args.tiny, args.data), say)


if __name__ == "__main__":
    main()

"""Where the time of inference goes, and how much of it is not the nets.

    python bench/pipeline.py --weights weights/lumbar-mr-phantom --studies 32 --repeats 3

Prints, per study, the median over repeats: reading bytes, decoding, cutting boxes, locating and grading nets; the whole
run as inference.py does it (reading of the next chunk overlaps the nets); the nets alone on the very batches of that
run, so that the overhead is a ratio; and our reader against pydicom alone on the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pydicom
import torch

from osteograde import phantom
from osteograde.imaging.dicom import read_slice
from osteograde.inference import run, views
from osteograde.inference.budget import Budget
from osteograde.inference.sheet import Tally
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.tasks import TASKS

TASK = TASKS["lumbar-mr"]


class Stopwatch:
    """Adds up the seconds spent in functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


def whole(weights: bundle.Bundle, studies: list, workers: int) -> dict[str, float]:
    """One run as inference.py does it; seconds."""
    cutting, original = Stopwatch(), views.crop_stack
    tally = Tally()
    folds = max(len(nets) for nets in weights.locators.values())
    views.crop_stack = cutting.around(original)
    try:
        begun = time.perf_counter()
        for _ in run.run(weights, studies, Budget(None, weights.test_views, folds), tally, workers=workers):
            pass
        total = time.perf_counter() - begun
    finally:
        views.crop_stack = original
    nets = tally.seconds["locate"] + tally.seconds["grade"]
    return {
        "whole": total,
        "read and decode (threads)": tally.seconds["read"],
        "waiting to read": tally.seconds["waiting to read"],
        "crop": cutting.seconds,
        "locate and grade, without crop": nets - cutting.seconds,
        "locate": tally.seconds["locate"],
        "grade": tally.seconds["grade"],
    }


def batches(weights: bundle.Bundle, studies: list) -> list[tuple[torch.nn.Module, tuple]]:
    """(net, input) of every call the run makes."""
    seen: list[tuple[torch.nn.Module, tuple]] = []
    nets = [net for group in (weights.locators, weights.graders) for folds in group.values() for net in folds]
    hooks = [net.register_forward_pre_hook(lambda net, inputs: seen.append((net, inputs))) for net in nets]
    folds = max(len(nets) for nets in weights.locators.values())
    for _ in run.run(weights, studies, Budget(None, weights.test_views, folds), Tally()):
        pass
    for hook in hooks:
        hook.remove()
    return seen


@torch.inference_mode()
def nets_alone(calls: list[tuple[torch.nn.Module, tuple]]) -> float:
    begun = time.perf_counter()
    for net, inputs in calls:
        net(*inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def seconds(function: Callable, items: list) -> float:
    begun = time.perf_counter()
    for item in items:
        function(item)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    weights = bundle.load(args.weights, TASKS, pick("auto"))
    with tempfile.TemporaryDirectory() as folder:
        phantom.write(TASK.name, Path(folder), studies=0, test=args.studies, seed=888001, workers=os.cpu_count() or 1)
        studies = TASK.read(Path(folder), "test")
        files = sorted(Path(folder).glob("test_images/*/*/*.dcm"))
        calls = batches(weights, studies)
        rows = []
        for _ in range(args.repeats):
            row = whole(weights, studies, args.workers) | {"nets alone": nets_alone(calls)}
            some = files[:: max(1, len(files) // 200)]
            row["read bytes"] = seconds(Path.read_bytes, files)
            row["our slice"] = seconds(read_slice, some) / len(some)
            row["pydicom slice"] = seconds(lambda path: pydicom.dcmread(path).pixel_array, some) / len(some)
            rows.append(row)
    middle = {key: median(row[key] for row in rows) for key in rows[0]}
    threads = torch.get_num_threads()
    print(f"{len(studies)} studies, {len(files)} slices, {args.repeats} repeats, {threads} threads of torch")
    for key, value in middle.items():
        if "slice" not in key:
            print(f"{key:<34}{1000 * value / len(studies):>10.1f} ms per study")
    ratio = median(row["whole"] / row["nets alone"] for row in rows)
    reader = median(row["pydicom slice"] / row["our slice"] for row in rows)
    print(f"{'studies per second':<34}{len(studies) / middle['whole']:>10.2f}")
    print(f"{'whole run / nets alone':<34}{ratio:>10.2f}")
    print(f"{'our reader, ms per slice':<34}{1000 * middle['our slice']:>10.2f}")
    print(f"{'pydicom alone / our reader':<34}{reader:>10.2f}")
    print(
        json.dumps(
            {"studies": len(studies), "slices": len(files), "whole_over_nets": ratio, "reader": reader, **middle}
        )
    )


if __name__ == "__main__":
    main()

"""The whole run against the sum of its limits, and against a baseline loop with the same nets (baseline_loop.py).

    python bench/pipeline.py --weights weights/lumbar-mr-phantom --studies 30 --repeats 5

Limits, each measured alone on what that very run reads and computes: the bytes of its files read, its frames decoded
(one thread), its nets on its batches (with all threads in one operation, or with one thread each side by side: the
faster one). The run overlaps reading with the nets, so it may come below their sum where there are cores to spare. Both
ways must give the same probabilities to 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import baseline_loop
import machine
import numpy as np
import torch

from osteograde import phantom
from osteograde.imaging.dicom import fast_header, rle
from osteograde.imaging.dicom.read import file_contents
from osteograde.inference import run
from osteograde.inference.deadline import Budget, Effort, Voter
from osteograde.inference.submission import RunSummary
from osteograde.models import bundle
from osteograde.models.device import keep_freed_memory, pick
from osteograde.pipeline import crops, predict
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study

TASK = TASKS["lumbar-mr"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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


def folds_of(weights: bundle.Bundle) -> int:
    return max(len(nets) for nets in weights.locators.values())


def whole(
    weights: bundle.Bundle, studies: Sequence[Study], clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, float], list]:
    """One run as inference.py does it: seconds by part, and its answers."""
    cutting, original = Stopwatch(), crops.crop_stacks
    tally, answers = RunSummary(), []
    crops.crop_stacks = cutting.around(original)
    try:
        begun = clock()
        budget = Budget(None, (Voter(weights.test_views, folds_of(weights)),))
        for results in run.graded_chunks(weights, studies, budget, tally):
            answers += [result.graded for result in results]
        total = clock() - begun
    finally:
        crops.crop_stacks = original
    parts = {
        "whole run": total,
        "- reading, in the background": tally.seconds["read"],
        "- waiting to read": tally.seconds["waiting to read"],
        "- cutting boxes": cutting.seconds,
        "- locating": tally.seconds["locate"],
        "- grading": tally.seconds["grade"],
    }
    return parts, answers


def batches(weights: bundle.Bundle, studies: Sequence[Study]) -> list[tuple[Callable, tuple]]:
    """(what is called, with what) of every use of a net in a run, both stages."""
    seen: list[tuple[Callable, tuple]] = []
    nets = [net for group in (weights.locators, weights.graders) for folds in group.values() for net in folds]

    def noting(call: Callable) -> Callable:
        def noted(*args):
            seen.append((call, args))
            return call(*args)

        return noted

    used = [(net, "maps" if hasattr(net, "maps") else "forward") for net in nets]
    for net, name in used:
        setattr(net, name, noting(getattr(net, name)))
    whole(weights, studies)
    for net, name in used:
        delattr(net, name)
    return seen


@torch.inference_mode()
def nets_alone(calls: list[tuple[Callable, tuple]], device: torch.device) -> None:
    """Every use of a net once more, in the precision of a run on this device."""
    for call, args in calls:
        predict.logits_of(partial(call, *args), device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def nets_side_by_side(calls: list[tuple[Callable, tuple]], device: torch.device) -> None:
    """The same with as many uses side by side as torch has threads, each with one of them, as a run does on a CPU."""
    count = torch.get_num_threads()
    run.map_single_threaded(partial(nets_alone, device=device), [calls[i::count] for i in range(count)])


def frames(files: list[Path]) -> list[tuple[memoryview, int, int, int, int]]:
    """What ``decode_rle_within`` takes of every file. SystemExit where a file is none that the phantoms consist of: it
    would be decoded in another way, and the limit would be of something else."""
    found = []
    for file in files:
        data = file_contents(file)
        walked = fast_header._walk(data)
        fragment = None if walked is None else fast_header._only_fragment(data, walked[1])
        if walked is None or fragment is None:
            raise SystemExit(f"{file}: no RLE Lossless slice with one fragment; give phantoms by --data, or none")
        found.append((data, *fragment, walked[0]["Rows"], walked[0]["Columns"]))
    return found


def seconds(clock: Callable[[], float], function: Callable, *args) -> float:
    begun = clock()
    function(*args)
    return clock() - begun


def each(function: Callable, items: list) -> None:
    for item in items:
        function(item)


def same(ours: list, theirs: list) -> float:
    """The largest difference between two runs' probabilities; they must speak of the same targets."""
    if [set(one) for one in ours] != [set(one) for one in theirs]:
        raise SystemExit("the baseline loop graded other targets")
    return max(float(np.abs(a[name] - b[name]).max()) for a, b in zip(ours, theirs, strict=True) for name in a)


def measured(
    weights: bundle.Bundle, studies: Sequence[Study], repeats: int, baseline_studies: int, clock: Callable[[], float]
) -> list[dict[str, float]]:
    """Seconds per study of everything, repeat by repeat."""
    some = studies[:baseline_studies]
    files = [file for study in studies for one in study.series for file in sorted(Path(one.folder).glob("*.dcm"))]
    effort = Effort(weights.test_views, folds_of(weights))
    calls, decodable = batches(weights, studies), frames(files)
    rows = []
    for _ in range(repeats):
        parts, answers = whole(weights, studies, clock)
        row = {name: value / len(studies) for name, value in parts.items()}
        row["read the bytes"] = seconds(clock, each, Path.read_bytes, files) / len(studies)
        row["decode alone"] = seconds(clock, each, lambda frame: rle.decode_rle_within(*frame), decodable) / len(
            studies
        )
        ways = (nets_alone, nets_side_by_side) if weights.device.type == "cpu" else (nets_alone,)
        row["nets alone"] = min(seconds(clock, way, calls, weights.device) for way in ways) / len(studies)
        row["sum of the limits"] = row["read the bytes"] + row["decode alone"] + row["nets alone"]
        begun = clock()
        theirs = baseline_loop.infer(weights, some, effort)
        row["baseline loop"] = (clock() - begun) / len(some)
        apart = same(answers[: len(some)], theirs)
        if apart > 1e-3:
            raise SystemExit(f"the baseline loop gives other probabilities, by {apart}")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=30)
    parser.add_argument("--baseline-studies", type=int, default=8, help="of them, for the baseline loop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="phantoms made before, instead of new ones")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that is busy otherwise")
    args = parser.parse_args()
    keep_freed_memory()
    weights = bundle.load(args.weights, TASKS, pick("auto"))
    print(f"{machine.described()}, torch {torch.get_num_threads()} threads, {weights.device}")
    with tempfile.TemporaryDirectory() as made:
        folder = args.data or Path(made)
        if not args.data:
            phantom.write(TASK.name, folder, studies=0, test=args.studies, seed=888001, workers=os.cpu_count() or 1)
        studies = TASK.read(folder, "test")[: args.studies]
        watch = machine.Watch()
        rows = measured(weights, studies, args.repeats, args.baseline_studies, CLOCKS[args.clock])
        watch.ends()
    print(f"| per study, {args.clock} time | ms |\n|---|---|")
    for name in rows[0]:
        print(f"| {name} | {1000 * median(row[name] for row in rows):.1f} |")
    ratios = {
        "baseline loop / whole run": median(row["baseline loop"] / row["whole run"] for row in rows),
        "whole run / sum of the limits": median(row["whole run"] / row["sum of the limits"] for row in rows),
    }
    for name, ratio in ratios.items():
        print(f"| {name} | {watch.ratio(ratio)} |")
    print(watch)
    print(json.dumps({} if watch.is_busy else ratios))


if __name__ == "__main__":
    main()

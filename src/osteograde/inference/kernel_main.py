"""What an offline Kaggle kernel runs: find data and weights below the input folder, then grade as inference.py does.

With two GPUs each gets a process and half of the studies (multi_gpu.py). The log ends with one screen for its reader.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import platform
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from osteograde import logs
from osteograde.errors import UserError
from osteograde.imaging.discovery import has_images
from osteograde.inference import multi_gpu, run, serve, submission
from osteograde.inference.submission import RunSummary
from osteograde.models import bundle, device
from osteograde.models.manifest import ENSEMBLE
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS
from osteograde.tasks.limits import limits_of
from osteograde.tasks.spec import Task

SPARE_HOURS = 0.5  # of those that a run may take: a slow end must not cost the whole run
MARKERS = ("test_series_descriptions.csv", "sample_submission.csv")
SHOWN = ("torch", "torchvision", "timm", "numpy", "pandas", "scipy", "pydicom", "cv2", "safetensors")
WIDTH = 78
log = logging.getLogger("osteograde.inference")


def kernel_main(task: str, manifest_sha256: str = "", data_set: str = "", hours: float = 0.0) -> int:
    """Grade the test studies into submission.csv of the working folder; the exit code is returned.

    data_set: owner/name of the data set that holds the images, for a task without a competition. hours: the time
    budget, 0 for that of the task (``default_hours``); studies that are not graded by then keep their prior
    probabilities. The variables OSTEOGRADE_KAGGLE_INPUT and OSTEOGRADE_KAGGLE_WORKING move both folders, to rehearse;
    OSTEOGRADE_DEVICES names the devices to use ("cpu,cpu"), where they are not to be tried out.
    """
    begun = time.monotonic()
    hours = hours or default_hours(TASKS[task])
    logs.to_stdout(every_s=0.0)  # ``kaggle rehearse`` reads how many studies are done from these lines
    root = Path(os.environ.get("OSTEOGRADE_KAGGLE_INPUT", "/kaggle/input"))
    out = Path(os.environ.get("OSTEOGRADE_KAGGLE_WORKING", "/kaggle/working")) / "submission.csv"
    try:
        weights = find_weights(root, task, manifest_sha256)
        data = find_data(root, TASKS[task].slug, data_set, skip=weights)
        devices = preflight(data, weights, out.parent)
        if serve.is_served(data):
            known = TASKS[task].as_defined(ensemble.read(weights).definition)
            return answer_host(known, data, weights, out, devices[0], hours, begun)
        summary, left = grade(task, data, weights, out, devices, hours - (time.monotonic() - begun) / 3600)
    except (ValueError, OSError) as error:  # whatever was written stays; the log is all its reader has
        traceback.print_exc()
        print(f"error: {error}\nbelow {root}:", *tree(root), sep="\n  ", file=sys.stderr, flush=True)
        return 2
    for line in closing(task, data, out, summary, left, devices, time.monotonic() - begun):
        log.info(line)
    return 0


def answer_host(task: Task, data: Path, weights: Path, out: Path, device_name: str, hours: float, begun: float) -> int:
    """Answer the calls of a competition's host, and write the tables beside the submission; the exit code, always 0.

    One device answers, as one study is asked about at a time. The submission itself is written by the host.
    """
    predictor = serve.Predictor(task, ensemble.verify(weights), torch.device(device_name), ends=begun + hours * 3600)
    serve.serve(predictor, data, begun)
    submission.write_beside(task, predictor.summary, out)
    for line in closing_served(predictor, time.monotonic() - begun):
        log.info(line)
    return 0


def closing_served(predictor: serve.Predictor, seconds: float) -> list[str]:
    """One screen at the end of the log of a kernel that answered a host."""
    summary = predictor.summary
    return [
        f"== osteograde {predictor.task.name}, served ".ljust(WIDTH, "="),
        f"studies    {predictor.calls} calls, {summary.unread} studies unreadable",
        f"rows       {summary.on_prior} graded rows on their prior",
        f"faults     {told_faults(summary)}",
        f"time       {seconds:.0f} s, slowest answer after the first {predictor.slowest_s:.1f} s of "
        f"{predictor.task.serving.study_s:.0f}, peak memory {peak_mib():.0f} MiB",
        "=" * WIDTH,
    ]


def told_faults(summary: RunSummary) -> str:
    """The codes of everything that was lost, and how often."""
    return ", ".join(f"{code} x {count}" for code, count in sorted(summary.faults.items())) or "none"


def default_hours(task: Task) -> float:
    """The time budget of a kernel that sets none: the hours that the task's competition allows, or those of a session,
    less ``SPARE_HOURS``."""
    return limits_of(task).hours - SPARE_HOURS


def grade(task: str, data: Path, weights: Path, out: Path, devices: list[str], hours: float) -> tuple[RunSummary, int]:
    """What happened, and how many studies keep their priors: one process per device, or all in this one."""
    several = len(devices) > 1  # each process then chooses its device itself
    job = run.prepare(task, data, weights, device="auto" if several else devices[0], hours=hours)
    if several:
        summary = multi_gpu.infer_on_devices(job, data, out, devices)
        return summary, summary.faults[multi_gpu.DIED] + summary.faults[run.DEADLINE]
    submission = run.start(job, out)
    with run.grading(job, submission) as chunks:
        for _ in chunks:
            pass  # nothing is drawn here
    return submission.summary, len(job.studies) - submission.done


def find_data(root: Path, slug: str, data_set: str = "", skip: Path | None = None) -> Path:
    """The folder of the studies: the competition's or data set's new mount, its old one, else the only folder that
    holds a marker file or, for a task without a competition, the only one that holds images."""
    owner, _, name = data_set.partition("/")
    for folder in (root / "competitions" / slug, root / slug):
        if slug and (serve.is_served(folder) or any((folder / marker).is_file() for marker in MARKERS)):
            return folder
    for folder in (root / "datasets" / owner / name, root / name):
        if name and folder.is_dir():
            return folder
    found = sorted({path.parent for marker in MARKERS for path in search(root, marker, skip)})
    expected = " or ".join(MARKERS)
    if not found and not slug:
        found, expected = [folder for folder in mounts(root) if folder != skip and has_images(folder)], "images"
    if len(found) != 1:
        raise UserError(f"{len(found)} folders hold {expected}, expected 1: {[str(path) for path in found]}")
    return found[0]


def mounts(root: Path) -> list[Path]:
    """What is attached: below the folders of kinds and owners in the new layout, right below the root in the old."""
    kinds = {"competitions": 1, "datasets": 2, "models": 5, "notebooks": 2}
    folders = [path for path in root.iterdir() if path.is_dir() and path.name not in kinds] if root.is_dir() else []
    for kind, depth in kinds.items():
        folders += [path for path in root.glob("/".join([kind, *["*"] * depth])) if path.is_dir()]
    return sorted(folders)


def find_weights(root: Path, task: str, manifest_sha256: str = "") -> Path:
    """The folder of the only manifest.json or ensemble.json of ``task`` (and of that sha256, if given).

    A manifest of a member in a folder of its own below ensemble.json is not counted, unless its hash is asked for.
    """
    found, ensembles = [], [path.parent for path in search(root, ENSEMBLE)]
    for path in (*search(root, bundle.MANIFEST), *search(root, ENSEMBLE)):
        facts = json.loads(path.read_text(encoding="utf-8"))
        within = path.name != ENSEMBLE and any(folder in path.parents for folder in ensembles)
        if isinstance(facts, dict) and facts.get("task") == task and (manifest_sha256 or not within):
            found.append(path)
    if manifest_sha256:
        found = [path for path in found if bundle.sha256(path) == manifest_sha256]
    if len(found) != 1:
        which = f" with sha256 {manifest_sha256[:12]}..." if manifest_sha256 else ""
        raise UserError(f"{len(found)} manifest.json of {task}{which}, expected 1: {[str(p) for p in sorted(found)]}")
    return found[0].parent


def search(root: Path, name: str, skip: Path | None = None, depth: int = 8) -> Iterator[Path]:
    """Files called ``name`` at most ``depth`` folders down; image folders and ``skip`` are not entered."""
    if (root / name).is_file():
        yield root / name
    if depth and root.is_dir():
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and folder != skip and not folder.name.endswith("_images"):
                yield from search(folder, name, skip, depth - 1)


def preflight(data: Path, weights: Path, working: Path) -> list[str]:
    """Log what its reader will ask first, and return the devices to use: each GPU that a real operation
    works on, else the CPU."""
    versions = ", ".join(f"{name} {getattr(importlib.import_module(name), '__version__', '?')}" for name in SHOWN)
    log.info(f"python {platform.python_version()}, {versions}")
    works = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", index)
        fault = device.fault(gpu)
        works += [] if fault else [str(gpu)]
        log.info(f"{gpu} {torch.cuda.get_device_name(gpu)}: {fault or 'works'}")
    chosen = [name for name in os.environ.get("OSTEOGRADE_DEVICES", "").split(",") if name] or works or ["cpu"]
    log.info(f"devices {', '.join(chosen)}; torch built for {torch.cuda.get_arch_list() or 'the CPU'}")
    kaggle = {name: os.environ.get(name, "") for name in ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_IS_COMPETITION_RERUN")}
    log.info(f"{os.cpu_count()} CPUs, {shutil.disk_usage(working).free / 2**30:.0f} GiB free, {kaggle}")
    log.info(f"data {data}")
    said = ensemble.read(weights)
    log.info(f"weights {weights}, {said.path.name} {bundle.sha256(said.path)[:12]}, {len(said.members)} members")
    return chosen


def closing(
    task: str, data: Path, out: Path, summary: RunSummary, left: int, devices: list[str], seconds: float
) -> list[str]:
    """One screen at the end of the log: studies, faults, times, and the hash that a downloaded file must have."""
    template = data / submission.TEMPLATE
    problems = submission.validate(out, template) if submission.template_ids(data) else []
    state = f"{len(problems)} problems, such as {problems[0]}" if problems else "valid"
    stages = ", ".join(f"{name} {spent:.1f} s" for name, spent in summary.seconds.items()) or "none"
    return [
        f"== osteograde {task} ".ljust(WIDTH, "="),
        f"studies    {summary.studies - left} of {summary.studies} graded, {summary.unread} unreadable",
        f"rows       {len(submission.read_submission(out))}, {summary.on_prior} on their prior; {state}",
        f"faults     {told_faults(summary)}",
        f"stages     {stages}",
        f"time       {seconds:.0f} s on {', '.join(devices)}, peak memory {peak_mib():.0f} MiB a process",
        f"result     {out.name} sha256 {bundle.sha256(out)}",
        "=" * WIDTH,
    ]


def peak_mib() -> float:
    """Most memory that this process or one of its children held at once."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def tree(root: Path) -> list[str]:
    """What lies below ``root``, two levels deep, at most 50 names a folder."""
    if not root.is_dir():
        return [f"{root} is not a folder"]
    lines = []
    for path in sorted(root.iterdir())[:50]:
        below = sorted(path.iterdir())[:50] if path.is_dir() else []
        lines += [path.name, *(f"{path.name}/{inner.name}" for inner in below)]
    return lines or ["nothing"]

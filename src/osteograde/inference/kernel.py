"""The main job inside an offline kernel: find data and weights below the input folder, then what inference.py does."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from osteograde.inference import run
from osteograde.models import bundle, device
from osteograde.tasks import TASKS

TIME_BUDGET_HOURS = 8.5  # of the 9 a code competition gives
MAX_UNREAD = 1_000_000  # a kernel that stops scores nothing; the count is in its log
MARKERS = ("test_series_descriptions.csv", "sample_submission.csv")
SHOWN = ("torch", "torchvision", "timm", "numpy", "pandas", "scipy", "pydicom", "cv2", "safetensors")


def kernel_main(task: str, manifest_sha256: str = "") -> int:
    """Grade the competition's test studies into submission.csv of the working folder; the exit code is returned.

    The environment variables OSTEOGRADE_KAGGLE_INPUT and OSTEOGRADE_KAGGLE_WORKING move both folders, to rehearse.
    """
    root = Path(os.environ.get("OSTEOGRADE_KAGGLE_INPUT", "/kaggle/input"))
    out = Path(os.environ.get("OSTEOGRADE_KAGGLE_WORKING", "/kaggle/working")) / "submission.csv"
    try:
        data = find_data(root, TASKS[task].slug)
        weights = find_weights(root, task, manifest_sha256, skip=data)
        preflight(data, weights, out.parent)
        return run.infer(task, data, weights, out, time_budget_hours=TIME_BUDGET_HOURS, max_unread=MAX_UNREAD, say=_say)
    except (ValueError, OSError) as error:  # whatever was written stays; the log is all its reader has
        traceback.print_exc()
        print(f"error: {error}\nbelow {root}:", *tree(root), sep="\n  ", file=sys.stderr, flush=True)
        return 2


def find_data(root: Path, slug: str) -> Path:
    """The competition's folder: the new mount, the old mount, else the only folder that holds a marker file."""
    for folder in (root / "competitions" / slug, root / slug):
        if slug and any((folder / marker).is_file() for marker in MARKERS):
            return folder
    found = sorted({path.parent for marker in MARKERS for path in search(root, marker)})
    if len(found) != 1:
        raise ValueError(f"{len(found)} folders hold {' or '.join(MARKERS)}, expected 1: {[str(p) for p in found]}")
    return found[0]


def find_weights(root: Path, task: str, manifest_sha256: str = "", skip: Path | None = None) -> Path:
    """The folder of the only manifest.json of ``task`` (and of that sha256, if given)."""
    found = []
    for path in search(root, bundle.MANIFEST, skip):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and facts.get("task") == task:
            found.append(path)
    if manifest_sha256:
        found = [path for path in found if bundle.sha256(path) == manifest_sha256]
    if len(found) != 1:
        which = f" with sha256 {manifest_sha256[:12]}..." if manifest_sha256 else ""
        raise ValueError(f"{len(found)} manifest.json of {task}{which}, expected 1: {[str(p) for p in sorted(found)]}")
    return found[0].parent


def search(root: Path, name: str, skip: Path | None = None, depth: int = 8) -> Iterator[Path]:
    """Files called ``name`` at most ``depth`` folders down; image folders and ``skip`` are not entered."""
    if (root / name).is_file():
        yield root / name
    if depth and root.is_dir():
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and folder != skip and not folder.name.endswith("_images"):
                yield from search(folder, name, skip, depth - 1)


def preflight(data: Path, weights: Path, working: Path) -> None:
    """Print what a reader of the log will ask first; the GPU is tried by a real operation."""
    versions = ", ".join(f"{name} {getattr(importlib.import_module(name), '__version__', '?')}" for name in SHOWN)
    print(f"python {platform.python_version()}, {versions}")
    for index in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", index)
        print(f"{gpu} {torch.cuda.get_device_name(gpu)}: {device.fault(gpu) or 'works'}")
    print(f"device {device.pick('auto')}, torch built for {torch.cuda.get_arch_list() or 'the CPU'}")
    kaggle = {name: os.environ.get(name, "") for name in ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_IS_COMPETITION_RERUN")}
    print(f"{os.cpu_count()} CPUs, {shutil.disk_usage(working).free / 2**30:.0f} GiB free, {kaggle}")
    print(f"data {data}\nweights {weights}, manifest {bundle.sha256(weights / bundle.MANIFEST)[:12]}", flush=True)


def tree(root: Path) -> list[str]:
    """What lies below ``root``, two levels deep, at most 50 names a folder."""
    if not root.is_dir():
        return [f"{root} is not a folder"]
    lines = []
    for path in sorted(root.iterdir())[:50]:
        below = sorted(path.iterdir())[:50] if path.is_dir() else []
        lines += [path.name, *(f"{path.name}/{inner.name}" for inner in below)]
    return lines or ["nothing"]


def _say(line: str) -> None:
    print(line, flush=True)  # a log is read while the kernel runs

"""The rehearsal of a kernel that trains: several short sessions, each of which goes on from the output of the last."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from osteograde.kaggle import build_kernel, metadata
from osteograde.kaggle.client import logger
from osteograde.kaggle.metadata import parse_source
from osteograde.kaggle.rehearse import Stage, judge, play, prepared
from osteograde.kaggle.rehearse import mount as mount_of
from osteograde.models import bundle
from osteograde.models.manifest import MANIFEST
from osteograde.tasks import TASKS
from osteograde.tasks.limits import limits_of

LATE_S = 120.0  # that a session may take beyond its limit to come to its end


def rehearse_training(
    task: str,
    script: Path,
    data: Path,
    *,
    sessions: int = 3,
    minutes: float = 2.0,
    python: Path = Path(sys.executable),
    isolate: bool = True,
    keep: Path | None = None,
) -> list[str]:
    """Let the kernel train in ``sessions`` sessions of ``minutes`` each; everything that would fail, one line each.

    data: labelled studies. keep: where the output of the last session is copied to. A training that ends earlier needs
    no further session; one that has not ended after the last is no fault, and is told.

    UserError before any run for a kernel that was not built.
    """
    facts = metadata.read(script.parent)
    metadata.check(facts, script.parent)
    slug = TASKS[task].slug
    place = f"competitions/{slug}" if slug else mount_of(parse_source(facts["dataset_sources"][0]))
    memory_gib = limits_of(TASKS[task]).memory_gib
    with prepared(python, isolate) as (home, isolated):
        former = home / "former"
        for number in range(1, sessions + 1):
            mounts = {place: data.resolve()} | ({f"notebooks/{facts['id']}": former} if former.is_dir() else {})
            limited = with_hours(script, home / "train.py", minutes / 60)
            stage = Stage(home, python, limited, mounts, isolated)
            name = f"session {number}"
            limit_s = minutes * 60 + LATE_S
            done = play(stage, name, limit_s, memory_gib)
            if faults := judge(name, done, limit_s, memory_gib):
                return faults
            shutil.rmtree(former, ignore_errors=True)
            shutil.copytree(home / "working", former)
            for line in done.out.splitlines()[-6:]:
                logger.info("%s: %s", name, line)
            if (former / task / MANIFEST).is_file():
                bundle.verify(former / task)
                break
        if keep is not None:
            shutil.copytree(former, keep, dirs_exist_ok=True)
    return []


def with_hours(script: Path, out: Path, hours: float) -> Path:
    """The script with another limit of its session, at ``out``."""
    text = build_kernel.with_setting(script, script.read_text(encoding="utf-8"), "HOURS", f"{hours:.6f}")
    out.write_text(text, encoding="utf-8")
    return out

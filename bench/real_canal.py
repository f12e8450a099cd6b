"""How far canal points found on real patients lie from the real discs and canal of the masks.

    python bench/real_canal.py --weights weights/lumbar-mr-phantom [--data DIR] [--folds FILE] [--overlays DIR]
                               [--out submission.csv]

--data (default: OSTEOGRADE_DATA or ../shared/data) holds spider/t2space and spider/overview.csv. Each patient becomes a
study with one sagittal T2 series, so two of three views are missing. Levels are counted up from the lowest disc.
Patients that --folds (default: the folds.csv of the weights) names are looked at by the nets of the fold that holds
them out alone, and left out where the weights have none: nets that learnt from real patients are judged on others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the writer of real studies, which tests share

from osteograde.grade_command import infer
from osteograde.inference import run
from osteograde.learning import folds
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.pipeline import predict
from osteograde.pipeline.load import load_study
from osteograde.pipeline.predict import Nets
from osteograde.report import overlays
from osteograde.tasks import TASKS
from osteograde.tasks.lumbar_names import landmark
from osteograde.tasks.spine import LEVELS
from tests.spider_studies import Reference, write_studies


def compare(points, reference: Reference) -> list[dict]:
    """One row per reference level: distances in the sagittal plane (mm) of the point of that name, or None."""
    rows = []
    for level, true in reference.canal.items():
        found = points.get(landmark("canal", level))
        row = {"level": level, "found": found is not None}
        if found is not None:
            flat = {other: np.linalg.norm((found.mm - mm)[1:]) for other, mm in reference.canal.items()}
            row |= {
                "canal_mm": float(flat[level]),
                "disc_mm": float(np.linalg.norm((found.mm - reference.discs[level])[1:])),
                "aside_mm": float(abs(found.mm[0] - true[0])),
                "right_level": min(flat, key=lambda other: flat[other]) == level,
                "nearest_mm": float(min(flat.values())),
            }
        rows.append(row)
    return rows


def held_out(nets: Mapping[str, Nets], trained: Sequence[int], k: int | None) -> Mapping[str, Nets] | None:
    """The nets of fold k; all for a study that no fold has; None where the fold was not trained."""
    if k is None:
        return nets
    return (
        {name: replace(own, nets=[own.nets[trained.index(k)]]) for name, own in nets.items()} if k in trained else None
    )


def summary(rows: list[dict]) -> dict:
    found = [row for row in rows if row["found"]]
    values = {key: np.array([row[key] for row in found]) for key in ("canal_mm", "disc_mm", "aside_mm", "nearest_mm")}
    return {
        "points": len(rows),
        "found": round(len(found) / max(len(rows), 1), 4),
        "right_level": round(float(np.mean([row["right_level"] for row in found])), 4) if found else None,
        **{f"{key[:-3]}_median_mm": round(float(np.median(v)), 2) for key, v in values.items() if len(v)},
        **{f"{key[:-3]}_p95_mm": round(float(np.percentile(v, 95)), 2) for key, v in values.items() if len(v)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data")),
    )
    parser.add_argument("--folds", type=Path)
    parser.add_argument("--overlays", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    task = TASKS["lumbar-mr"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        references = write_studies(args.data / "spider", data)
        loaded = bundle.load(args.weights, TASKS, pick("auto"))
        nets = run.nets_of(loaded, "locate", run.Effort(1, 99))
        known, split = loaded.manifest.folds, folds.read(args.folds or args.weights / folds.FILE)
        if known is None:
            sys.exit(f"{args.weights}: the manifest does not say which folds were trained: nobody is held out")
        rows = []
        for study in task.read(data, "test"):
            own = held_out(nets, known.trained, split.fold.get(study.id))
            if own is None:
                continue
            found, _ = predict.locate_all(task, [load_study(study, task)], own)
            rows += [row | {"study": study.id} for row in compare(found[0], references[study.id])]
        out = args.out or data / "submission.csv"
        draw = [overlays.overlay_drawer(args.overlays)] if args.overlays else []
        code = infer(task.name, data, args.weights, out, drawers=draw)
        written = len(out.read_text().splitlines()) - 1
    seen = len({row["study"] for row in rows})
    print(f"points of {seen} patients; {len(references)} patients graded, exit code {code}, {written} rows written")
    keys = ("points", "found", "right_level", "canal_median_mm", "canal_p95_mm", "nearest_median_mm", "disc_median_mm")
    table = {level: summary([row for row in rows if row["level"] == level]) for level in LEVELS}
    table["all"] = summary(rows)
    print(f"{'level':<8}" + "".join(f"{key:>19}" for key in keys))
    for level, own in table.items():
        print(f"{level:<8}" + "".join(f"{own.get(key)!s:>19}" for key in keys))
    print(json.dumps({"patients": len(references), "rows": written, **table}))


if __name__ == "__main__":
    main()

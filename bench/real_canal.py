"""How far canal points found on real patients lie from the real discs and canal of the masks.

    python bench/real_canal.py --weights weights/lumbar-mr-phantom [--data DIR] [--folds FILE] [--slices]
                               [--against OTHER] [--overlays DIR] [--out submission.csv]

--data (default: OSTEOGRADE_DATA or ../shared/data) holds spider/t2space and spider/overview.csv. Each patient becomes a
study with one sagittal T2 series, so two of three views are missing. Levels are counted up from the lowest disc.
Patients that --folds (default: the folds.csv of the weights) names are looked at by the nets of the fold that holds
them out alone, and left out where the weights have none: nets that learnt from real patients are judged on others.
--slices: also the T1 and T2 slices with disc boxes, whose canal points are derived from the boxes
(tests/spider_slices.py). --against: other weights on the same images, with the same folds; differences with 95 %
intervals over patients.
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
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import Study, Task
from osteograde.tasks.spine import LEVELS
from tests.spider_slices import fit, known_stacks, slices_with_boxes, study_of, view_of, write_slices
from tests.spider_studies import Reference, write_studies

KEYS = ("points", "found", "right_level", "canal_median_mm", "canal_p95_mm", "nearest_median_mm", "disc_median_mm")
STACK = "t2_SPACE stack"
WITHIN_MM = 5.0


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


def rows_of(
    task: Task, studies: Sequence[Study], references: Mapping[str, Reference], weights: Path, split: folds.Split
) -> list[dict]:
    """A row per level of each study that a trained fold of the weights holds out, or that no fold has."""
    loaded = bundle.load(weights, TASKS, pick("auto"))
    nets, known = run.nets_of(loaded, "locate", run.Effort(1, 99)), loaded.manifest.folds
    if known is None:
        sys.exit(f"{weights}: the manifest does not say which folds were trained: nobody is held out")
    rows = []
    for study in studies:
        own = held_out(nets, known.trained, split.fold.get(study.id))
        if own is not None:
            found, _ = predict.locate_all(task, [load_study(study, task)], own)
            rows += [row | {"study": study.id} for row in compare(found[0], references[study.id])]
    return rows


def write_real(source: Path, data: Path, *, with_slices: bool) -> tuple[dict[str, Reference], dict[str, str]]:
    """Write the real studies as the test part of ``data``; (references, kind of image) of each study."""
    references = write_studies(source, data)
    kinds = dict.fromkeys(references, STACK)
    if with_slices:
        chosen = slices_with_boxes(source)
        own = write_slices(source, data / "slices", fit(list(known_stacks(source).values())), chosen)
        kinds |= {study_of(one, cut=False): view_of(one.name) for one in chosen}
        references |= own
    return references, kinds


def measures(rows: Sequence[dict]) -> np.ndarray:
    """Median mm, 95th percentile, share at the right level, share within 5 mm; a point that is missing is far off."""
    mm = np.array([row["canal_mm"] if row["found"] else 100.0 for row in rows])
    right = np.array([row["found"] and row["right_level"] for row in rows])
    return np.array([np.median(mm), np.percentile(mm, 95), right.mean(), (mm <= WITHIN_MM).mean()])


def paired(ours: Sequence[dict], theirs: Sequence[dict], patients: Mapping[str, str]) -> str:
    """What two weights say of the same studies, and the differences with 95 % intervals over patients."""
    studies = sorted({row["study"] for row in ours} & {row["study"] for row in theirs})
    pairs = [[[row for row in rows if row["study"] == study] for rows in (ours, theirs)] for study in studies]

    def both(weight: np.ndarray) -> np.ndarray:
        drawn = [pair for pair, n in zip(pairs, weight.astype(int), strict=True) for _ in range(n)]
        a, b = (measures([row for pair in drawn for row in pair[i]]) for i in (0, 1))
        return np.concatenate([a, b, a - b])

    groups = groups_of([patients[study] for study in studies])
    low, high = interval(
        lambda counts: np.array([both(one) for one in counts]), len(studies), 1000, np.random.default_rng(0),
        groups=groups,
    )  # fmt: skip
    value, lines = both(np.ones(len(studies))), []
    for i, name in enumerate(("median mm", "95th percentile", "right level", "within 5 mm")):
        ends = [f"{value[k]:.3f} ({low[k]:.3f} - {high[k]:.3f})" for k in (i, i + 4, i + 8)]
        lines.append(f"  {name:<17}{ends[0]:<28}{ends[1]:<28}{ends[2]}")
    count = len({patients[study] for study in studies})
    return "\n".join([f"{len(studies)} images of {count} patients; own, other, difference", *lines])


def show(rows: Sequence[dict]) -> dict[str, dict]:
    """Print and return the table by level."""
    table = {level: summary([row for row in rows if row["level"] == level]) for level in LEVELS}
    table["all"] = summary(list(rows))
    print(f"{'level':<8}" + "".join(f"{key:>19}" for key in KEYS))
    for level, own in table.items():
        print(f"{level:<8}" + "".join(f"{own.get(key)!s:>19}" for key in KEYS))
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--folds", type=Path)
    parser.add_argument("--slices", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--overlays", type=Path)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args, task, result = arguments(), TASKS["lumbar-mr"], {}
    split = folds.read(args.folds or args.weights / folds.FILE)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        references, kinds = write_real(args.data / "spider", data, with_slices=args.slices)
        parts = [data, *([data / "slices"] if args.slices else [])]
        studies = [study for part in parts for study in task.read(part, "test")]
        rows = rows_of(task, studies, references, args.weights, split)
        others = rows_of(task, studies, references, args.against, split) if args.against else []
        out = args.out or data / "submission.csv"
        draw = [overlays.overlay_drawer(args.overlays)] if args.overlays else []
        code = infer(task.name, data, args.weights, out, drawers=draw)
        written = len(out.read_text().splitlines()) - 1
    patients = {study: study[1:6] for study in references}
    for kind in dict.fromkeys(kinds.values()):
        own = [row for row in rows if kinds[row["study"]] == kind]
        print(f"\n{kind}: {len({row['study'] for row in own})} images of held-out patients")
        result[kind] = show(own)
        if args.against:
            print(paired(own, [row for row in others if kinds[row["study"]] == kind], patients))
    print(f"\n{sum(kind == STACK for kind in kinds.values())} stacks graded, exit code {code}, {written} rows written")
    print(json.dumps({"rows": written, **result}))


if __name__ == "__main__":
    main()

"""Two trainings of one task compared out-of-fold: each part of the score, and the difference with its interval.

    python bench/compare_oof.py TASK --data DIR --first W1 --second W2 [--bootstrap 2000]

W1 and W2 are weights folders trained on the same folds.csv. Patients are drawn, the same ones for both sides, so what
is common to both (easy and hard patients) does not widen the interval of the difference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from osteograde.learning.ensemble import OofTables, gather
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import interval


def compare(oof: OofTables, bootstrap: int, seed: int = 0) -> dict[str, dict[str, object]]:
    """part -> both values, second - first, and the 95 % interval of that under resampling of patients."""
    task = oof.task
    sides = [dict(zip(oof.studies, table, strict=True)) for table in oof.tables]
    statistics = [task.metric.bootstrap_statistic(oof.labels, side) for side in sides]
    low, high = interval(
        lambda counts: statistics[1](counts) - statistics[0](counts),
        len(oof.studies),
        bootstrap,
        np.random.default_rng(seed),
        groups=oof.group,
    )
    values = [task.metric.score(oof.labels, side) for side in sides]
    return {
        part: {
            "first": round(values[0][part], 4),
            "second": round(values[1][part], 4),
            "difference": round(values[1][part] - values[0][part], 4),
            "interval_95": [round(float(a), 4), round(float(b), 4)],
        }
        for part, a, b in zip(task.metric.parts, low, high, strict=True)
    }


def table(oof: OofTables, parts: dict[str, dict[str, object]]) -> str:
    """The comparison for people."""
    patients = oof.group.max() + 1
    lines = [f"{len(oof.studies)} studies of {patients} patients: {' against '.join(oof.members)}"]
    for part, row in parts.items():
        low, high = row["interval_95"]  # type: ignore[misc]
        values = f"{row['first']:>9}{row['second']:>9}{row['difference']:>+9.4f}"
        lines.append(f"{part:<22}{values}   {low:+.4f} .. {high:+.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    for name in ("--data", "--first", "--second"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--bootstrap", type=int, default=2000)
    args = parser.parse_args()
    oof = gather(TASKS[args.task], [args.first, args.second], args.data)
    parts = compare(oof, args.bootstrap)
    print(table(oof, parts))
    print(json.dumps(parts))


if __name__ == "__main__":
    main()

"""How far canal points that are derived from disc boxes lie from those of masks (SPIDER, see tests/spider_slices.py).

    python bench/canal_from_boxes.py [--data DIR]

Each stack with masks is looked at by a rule that was fitted on the other patients: first with the boxes of its own
mask, then, where boxes.csv has boxes of the same slice, with those.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the reader of real slices, which tests share

from osteograde.tasks.metrics import interval
from osteograde.tasks.spine import LEVELS
from tests.spider_slices import canal_points, fit, known_stacks, slices_with_boxes


def show(kind: str, errors: dict[str, dict[int, float]]) -> None:
    """Median and 95th percentile of all points and the median of each level, with intervals over patients."""
    lists = [np.array(list(own.values())) for own in errors.values()]

    def measures(counts: np.ndarray) -> np.ndarray:
        rows = [np.concatenate([np.tile(own, int(n)) for own, n in zip(lists, one, strict=True)]) for one in counts]
        return np.array([np.percentile(row, [50, 95]) for row in rows])

    low, high = interval(measures, len(lists), 1000, np.random.default_rng(0))
    value = measures(np.ones((1, len(lists))))[0]
    told = [f"{v:.2f} ({a:.2f} - {b:.2f})" for v, a, b in zip(value, low, high, strict=True)]
    print(
        f"{kind}: {len(lists)} patients, {sum(map(len, lists))} points; median {told[0]} mm, 95th percentile {told[1]}"
    )
    for i, level in enumerate(reversed(LEVELS)):
        print(f"  {level}  {np.median([own[i] for own in errors.values() if i in own]):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    parser.add_argument("--data", type=Path, default=default)
    source = parser.parse_args().data / "spider"
    known = known_stacks(source)
    rules = {patient: fit([pair for other, pair in known.items() if other != patient]) for patient in known}
    own, listed = {}, {}
    for patient, (boxes, canal) in known.items():
        found = canal_points(rules[patient], boxes)
        own[patient] = {i: float(np.linalg.norm(found[i] - point)) for i, point in canal.items()}
    for one in slices_with_boxes(source):
        if one.name.endswith("SPACE") and one.patient in known:
            found, canal = canal_points(rules[one.patient], one.boxes), known[one.patient][1]
            listed[one.patient] = {i: float(np.linalg.norm(found[i] - point)) for i, point in canal.items()}
    show("boxes of the masks", own)
    show("boxes of boxes.csv", listed)


if __name__ == "__main__":
    main()

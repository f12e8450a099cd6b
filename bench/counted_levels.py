"""Levels of spines that are easily counted wrongly: right level, levels not shown, and studies in doubt.

    python bench/counted_levels.py --weights weights/lumbar-mr-phantom [--studies 12] [--seed 888001]

Sagittal T2 phantoms of a seed that no weights were trained on, seen by the canal locator; each kind with levels told
apart by their order alone ("order") and by the rhythm of the spine ("rhythm").

* usual; severe: the canal is closed at one level; transitional: the disc below L5/S1 is as tall as the others;
* tall: the body of the third lumbar vertebra is twice as tall; no L5/S1, no L1/L2: the image ends before that level.

* four, six: so many lumbar vertebrae. Levels are counted up from the lowest disc in any case, as an image without ribs
  allows nothing else; the sizes of the bodies and discs above change.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.imaging.geometry import Volume, apply, to_index
from osteograde.imaging.windowing import window
from osteograde.inference import run
from osteograde.inference.deadline import Effort
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.phantom import acquisition, grades, render
from osteograde.phantom.spine import ABOVE, Spine, spine
from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.lumbar_names import landmark
from osteograde.tasks.spec import Study
from osteograde.tasks.spine import LEVELS

TASK = TASKS["lumbar-mr"]
CANAL = [landmark("canal", level) for level in LEVELS]
SLICES = 5  # around the midline: canal points lie there


def shown(patient: Spine, rng: np.random.Generator) -> Volume:
    """The middle slices of a sagittal T2 series, windowed."""
    scan = acquisition.sagittal(patient, "sag_t2", "t2", rng)
    planes = sorted(scan.planes, key=lambda plane: float(plane.to_mm[0, 3]))
    planes = planes[(len(planes) - SLICES) // 2 :][:SLICES]
    look = render.draw_look("t2", rng)
    voxels = np.stack([render.slice_pixels(patient, scan, plane.to_mm, look, rng) for plane in planes])
    to_mm = planes[0].to_mm.copy()
    to_mm[:3, 0] = planes[1].to_mm[:3, 3] - planes[0].to_mm[:3, 3]
    return window([Volume(voxels, to_mm)])[0]


def cut(volume: Volume, patient: Spine, *, above: bool) -> Volume:
    """The image without its first level (above) or its last: cut between the two outermost discs."""
    outer, inner = (0, 1) if above else (4, 3)
    rows = [to_index(volume, patient.points()[CANAL[i]])[1] for i in (outer, inner)]
    row = round(float(0.4 * rows[0] + 0.6 * rows[1]))
    if not above:
        return replace(volume, voxels=volume.voxels[:, :row])
    to_mm = volume.to_mm.copy()
    to_mm[:3, 3] = apply(volume.to_mm, np.array([0.0, row, 0.0]))
    return replace(volume, voxels=volume.voxels[:, row:], to_mm=to_mm)


def drawn(kind: str, seed: int, index: int) -> tuple[Volume, dict[str, np.ndarray]]:
    """One image of a kind and the points of the levels that it shows."""
    body, scan = (np.random.default_rng([seed, index, stream]) for stream in range(2))
    stenosis = grades.closed(grades.severities(body), body)
    if kind == "severe":
        stenosis[CANAL[int(body.integers(len(CANAL)))]] = 1.0
    make: Callable[..., Spine] = partial(spine, stenosis, body)
    unusual: dict[str, dict[str, Any]] = {
        "transitional": {"s1_s2_mm": 8.5}, "tall": {"tall": ABOVE + 2}, "four": {"lumbar": 4}, "six": {"lumbar": 6},
    }  # fmt: skip
    patient = make(**unusual.get(kind, {}))
    volume = shown(patient, scan)
    if kind.startswith("no"):
        volume = cut(volume, patient, above=kind == "no L1/L2")
    points = {name: patient.points()[name] for name in CANAL}
    rows = {name: to_index(volume, mm)[1] for name, mm in points.items()}
    return volume, {name: mm for name, mm in points.items() if 0 <= rows[name] < volume.voxels.shape[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--seed", type=int, default=888001)
    args = parser.parse_args()
    loaded = bundle.load(args.weights, TASKS, pick("auto"))
    nets = run.nets_of(loaded, "locate", Effort(1, 99))["canal"]
    canal = next(locator for locator in TASK.locators if locator.name == "canal")
    ways = {"order": replace(canal, level_rhythm=None), "rhythm": canal}
    print(f"{'kind':<14}{'by':<8}{'right':>7}{'wrong':>7}{'not found':>11}{'not shown, claimed':>20}{'in doubt':>10}")
    for kind in ("usual", "severe", "transitional", "tall", "four", "six", "no L5/S1", "no L1/L2"):
        counts: dict[str, Counter[str]] = {way: Counter() for way in ways}
        for index in range(args.studies):
            volume, true = drawn(kind, args.seed, index)
            study = Loaded(Study(str(index), str(index), ()), {"sag_t2": (volume,)})
            for way, locator in ways.items():
                points = predict.locate(locator, [study], [{}], nets)[0]
                for name in CANAL:
                    if name not in true:
                        counts[way]["claimed"] += name in points
                    elif name not in points:
                        counts[way]["not found"] += 1
                    else:
                        away = {other: np.linalg.norm((points[name].mm - mm)[1:]) for other, mm in true.items()}
                        counts[way]["right" if min(away, key=lambda n: away[n]) == name else "wrong"] += 1
                counts[way]["in doubt"] += any(point.in_doubt for point in points.values())
        for way, count in counts.items():
            print(
                f"{kind:<14}{way:<8}{count['right']:>7}{count['wrong']:>7}{count['not found']:>11}"
                f"{count['claimed']:>20}{count['in doubt']:>10}",
                flush=True,
            )


if __name__ == "__main__":
    main()

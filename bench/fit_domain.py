"""State in weights what images they know: spread of a locator's features over training images, into the manifest.

    python bench/fit_domain.py --weights weights/lumbar-mr-phantom --data PHANTOMS --name phantoms [--studies 120]
                               [--others DIR [--others-part test]] [--unseen DIR]

Only the manifest's entry ``domain`` changes; files of nets and their hashes stay. --unseen: studies of the same kind
that were not fitted, --others: studies of another kind; their distances are printed, with the share believed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from osteograde.inference import run
from osteograde.inference.deadline import Effort
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.models.manifest import read_manifest, write_manifest
from osteograde.pipeline import domain, predict
from osteograde.pipeline.crops import region_grids
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.spec import sides

INSIDE, OUTSIDE = 1.2, 1.4  # unseen phantoms lie within the first, real images beyond the second (docs/experiments.md)


def rows(loaded: bundle.Bundle, names: list[str], data: Path, part: str, count: int) -> dict[str, np.ndarray]:
    """{locator: (n, F)} features of the regions of studies, around the points that the nets find there."""
    nets = run.nets_of(loaded, "locate", Effort(1, 99))
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for study in loaded.task.read(data, part)[:count]:
        own = load_study(study, loaded.task)
        points = predict.locate_all(loaded.task, [own], nets)[1][0]
        for locator in loaded.task.locators:
            if locator.name in names:
                side = max(sides(nets[locator.name].pixels))
                for grid in region_grids(locator, own.volumes, points, side):
                    found[locator.name].append(domain.features(grid, nets[locator.name]))
    return {name: np.array(values) for name, values in found.items()}


def show(kind: str, known: domain.Domain, values: dict[str, np.ndarray]) -> None:
    for name, features in values.items():
        if len(features):
            away = [known.spreads[name].distance(row) for row in features]
            believed = np.mean([known.trust(distance) for distance in away])
            ends = ", ".join(f"{value:.2f}" for value in np.percentile(away, (0, 5, 50, 95, 100)))
            print(f"{kind:<8}{name:<10}{len(away):>5} images; distance {ends}; believed {believed:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--locators", default="canal,foramen")
    parser.add_argument("--studies", type=int, default=120)
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--others", type=Path)
    parser.add_argument("--others-part", default="test")
    args = parser.parse_args()
    loaded = bundle.load(args.weights, TASKS, pick("auto"))
    names = args.locators.split(",")
    train = rows(loaded, names, args.data, "train", args.studies)
    spreads = {name: domain.fit_spread(values) for name, values in train.items()}
    known = domain.Domain(args.name, spreads, INSIDE, OUTSIDE)
    show("fitted", known, train)
    if args.unseen:
        show("unseen", known, rows(loaded, names, args.unseen, "train", args.studies))
    if args.others:
        show("others", known, rows(loaded, names, args.others, args.others_part, args.studies))
    manifest = read_manifest(args.weights)
    write_manifest(args.weights, replace(manifest, domain=known.plain()))


if __name__ == "__main__":
    main()

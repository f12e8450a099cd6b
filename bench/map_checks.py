"""Do maps of evidence lie at the joint, and do they depend on what the nets learnt? One line per method.

    python bench/map_checks.py --data DIR [--weights weights/knee-xray] [--sites 100] [--band 12] [--pictures DIR]
        [--answer progresses]

DIR: images in the form of the task of the weights, best ones that the nets never saw. Of every graded site the map of
the predicted class, or of --answer, by the first fold's net: the share of its sum within --band mm above and below the
site's landmark (mean and 95 % interval over patients), the share of the crop that this band covers, and the rank
correlation with the map of a net with random weights for the same class (Adebayo et al. 2018). --pictures: the first
sites, with the maps of all methods side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np
import torch

from osteograde.inference import run
from osteograde.inference.deadline import Effort
from osteograde.models import bundle
from osteograde.models.explain import METHODS, fold_maps
from osteograde.models.grader import GraderNet
from osteograde.pipeline import predict
from osteograde.pipeline.crops import site_boxes, site_crops
from osteograde.pipeline.load import load_study
from osteograde.report.heatmaps import enlarged, tinted
from osteograde.report.map_checks import band, rank_correlation, share_inside, with_random_weights
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import groups_of, interval

PICTURES, HEIGHT = 12, 260
CPU = torch.device("cpu")


class Row(NamedTuple):
    """One crop of one site: its patient, the band's share of the crop, and per method (share inside, correlation)."""

    patient: str
    area: float
    methods: dict[str, tuple[float, float]]


def rows_of(
    loaded: bundle.Bundle, data: Path, sites: int, half_mm: float, pictures: Path | None, answer: str = ""
) -> Iterator[Row]:
    """The rows of the first ``sites`` sites of the studies, taken evenly from all of them. answer: the class whose
    evidence is mapped; "": of each site the predicted one."""
    studies = loaded.task.read(data, "test")
    studies = studies[:: max(1, len(studies) // sites)][:sites]
    effort = Effort(1, 1)
    locators, graders = run.nets_of(loaded, "locate", effort), run.nets_of(loaded, "grade", effort)
    random = {name: with_random_weights(nets.nets, 0) for name, nets in graders.items()}
    drawn = 0
    for study in studies:
        own = load_study(study, loaded.task)
        points = predict.locate_all(loaded.task, [own], locators)[1][0]
        for grader in loaded.task.graders:
            nets = graders[grader.name]
            trained = cast("Sequence[GraderNet]", nets.nets)  # a bundle builds nothing else for a grader
            boxes = site_boxes(grader, own.volumes, points, nets.pixels)
            if not boxes:
                continue
            crops = site_crops(grader, boxes, nets.pixels, CPU)
            with torch.inference_mode():
                target = nets.nets[0](list(crops.images), crops.present)[:, : len(loaded.task.classes)].argmax(1)
            if answer:
                target = torch.full_like(target, loaded.task.classes.index(answer))
            maps = {name: fold_maps(trained, crops.images, crops.present, target, name) for name in METHODS}
            others = {
                name: fold_maps(random[grader.name], crops.images, crops.present, target, name) for name in METHODS
            }
            landmark = {site.target: site.landmark for site in grader.sites}
            for s, site in enumerate(crops.targets):
                for c, crop in enumerate(grader.crops):
                    if crop.name not in boxes[site]:
                        continue
                    inside = band(boxes[site][crop.name][1], points[landmark[site]].mm, half_mm)
                    found = {name: (maps[name][c][s].numpy(), others[name][c][s].numpy()) for name in METHODS}
                    if pictures and drawn < PICTURES:
                        draw(pictures / f"{study.id}_{site}_{crop.name}.png", crops.images[c][s].numpy(), found)
                        drawn += 1
                    yield Row(
                        study.patient,
                        float(inside.mean()),
                        {n: (share_inside(a, inside), rank_correlation(a, b)) for n, (a, b) in found.items()},
                    )


def draw(path: Path, crop: np.ndarray, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The middle slice of a crop, then of each method the map of the trained net and that of the random one."""
    middle = len(crop) // 2
    grey = np.rint(enlarged(crop[middle], HEIGHT) * 255).astype(np.uint8)
    panels = [cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)]
    panels += [tinted(grey, enlarged(heat[middle], HEIGHT)) for pair in found.values() for heat in pair]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(panels, 1))


def line(name: str, values: np.ndarray, groups: np.ndarray) -> str:
    """Mean and interval over patients of the values that are known."""
    known = np.isfinite(values)

    def mean(counts: np.ndarray) -> np.ndarray:
        return (counts[:, known] * values[known]).sum(1) / np.maximum(counts[:, known].sum(1), 1)

    low, high = interval(mean, len(values), 1000, np.random.default_rng(0), groups=groups)
    return f"{name:<44}{values[known].mean():7.3f}  ({float(low):.3f} - {float(high):.3f}), {int(known.sum())} maps"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("weights/knee-xray"))
    parser.add_argument("--sites", type=int, default=100, help="studies, taken evenly")
    parser.add_argument("--band", type=float, default=12.0, help="mm above and below the landmark")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--answer", default="", help="the class whose evidence is mapped; default: the predicted one")
    args = parser.parse_args(argv)
    loaded = bundle.load(args.weights, TASKS, CPU)
    rows = list(rows_of(loaded, args.data, args.sites, args.band, args.pictures, args.answer))
    report(rows, args.band)


def report(rows: Sequence[Row], band_mm: float) -> None:
    """Print a line for every method and measure."""
    groups = groups_of([row.patient for row in rows])
    print(f"{len(rows)} crops of {len(set(groups.tolist()))} patients; band of {band_mm:g} mm above and below")
    print(line("equal values: share inside the band", np.array([row.area for row in rows]), groups))
    for name in METHODS:
        for i, what in enumerate(("share inside the band", "correlation with random weights")):
            print(line(f"{name}: {what}", np.array([row.methods[name][i] for row in rows]), groups))


if __name__ == "__main__":
    main()

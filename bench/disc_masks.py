"""Masks of discs from coordinates against the real ones, beside the bare ellipse and the net's own discs.

    python bench/disc_masks.py --data DIR --nets OUT [--net mobilenet]

OUT is the --out of bench/segmentation_dice.py. In the middle slice of every stack the five lowest real discs count, all
together. Vertebrae are outlined by the net of the fold that held the patient out. Ways to make the discs:

ellipse: 8 x 24 mm around the annotated point, not turned. annotated: ``pipeline.disc_masks`` at the annotated points.
found: the same at the points that the net itself finds. real vertebrae: at annotated points between the real vertebrae.
net: the pixels that the net itself calls disc, of the parts that overlap one of the five.
Intervals draw patients; differences to the ellipse are paired.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from segmentation_dice import BOOTSTRAP, CPU, SEED, STAGE, TASK, all_slices, middle_only, segment, truth_of

from osteograde.imaging.geometry import to_index
from osteograde.learning import folds
from osteograde.models import bundle
from osteograde.pipeline import predict
from osteograde.pipeline.disc_masks import DISC, bare_ellipse, disc_masks
from osteograde.pipeline.load import Loaded
from osteograde.tasks.metrics import interval
from osteograde.tasks.spec import Points

WAYS = ("ellipse", "annotated", "found", "real vertebrae", "net")


def centres_of(one: Loaded, points: Points) -> list[tuple[float, float] | None]:
    """(row, column) of the discs in the middle slice, from top to bottom; None where there is no point."""
    (volume,) = one.volumes["t2"]
    names = [name for name in (landmark.name for landmark in STAGE.landmarks) if name.startswith("t2")]
    places = [to_index(volume, points[name].mm)[1:] if name in points else None for name in names]
    return [None if place is None else (float(place[0]), float(place[1])) for place in places]


def parts_at(labels: np.ndarray, centres: Sequence[tuple[float, float] | None]) -> np.ndarray:
    """(Y, X) bool: the connected discs of a label image of which one has its middle nearest to a centre."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats((labels == DISC).astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros(labels.shape, bool)
    left, top, wide, high = stats[1:, :4].T
    middles = np.stack([top + (high - 1) / 2, left + (wide - 1) / 2], 1)
    chosen = {1 + int(np.linalg.norm(middles - c, axis=1).argmin()) for c in centres if c is not None}
    return np.isin(parts, sorted(chosen))


def union(
    labels: np.ndarray, spacing: tuple[float, float], centres: Sequence[tuple[float, float] | None]
) -> np.ndarray:
    masks = [one.mask for one in disc_masks(labels, spacing, centres) if one is not None]
    return np.any([np.zeros(labels.shape, bool), *masks], 0)


def ways_of(net, one: Loaded, pixels: int) -> dict[str, list[float]]:
    """Twice the overlap and the sum of both sizes of each way, in pixels."""
    shown = middle_only(one)
    (volume,) = shown.volumes["t2"]
    spacing = (float(volume.spacing_mm[1]), float(volume.spacing_mm[2]))
    truth, labels = truth_of(shown)[0], segment(net, shown, pixels)[0]
    annotated = centres_of(shown, one.marks)
    found = predict.locate(STAGE, [one], [{}], predict.Nets([net], pixels, CPU))[0]
    real = parts_at(truth, annotated)
    without = np.where(labels == DISC, 0, labels)
    touching, parts = cv2.connectedComponents((labels == DISC).astype(np.uint8), connectivity=8)
    own = np.isin(parts, [k for k in range(1, touching) if (real & (parts == k)).any()])
    ellipses = [bare_ellipse(truth.shape, spacing, centre) for centre in annotated if centre is not None]
    made = {
        "ellipse": np.any(ellipses, 0),
        "annotated": union(without, spacing, annotated),
        "found": union(without, spacing, centres_of(shown, found)),
        "real vertebrae": union(np.where(truth == DISC, 0, truth), spacing, annotated),
        "net": own,
    }
    return {way: [2.0 * float((mask & real).sum()), float(mask.sum() + real.sum())] for way, mask in made.items()}


def rows(told: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Dice over all patients of each way with its interval, and its difference to the ellipse."""
    table = np.array([[one[way] for way in WAYS] for one in told.values()])  # (patients, ways, 2)

    def dice(counts: np.ndarray) -> np.ndarray:
        over, size = (counts @ table[..., i] for i in (0, 1))
        return over / size

    def difference(counts: np.ndarray) -> np.ndarray:
        values = dice(counts)
        return values - values[:, :1]

    result = {}
    for title, statistic in (("", dice), (" minus ellipse", difference)):
        low, high = interval(statistic, len(table), BOOTSTRAP, np.random.default_rng(SEED))
        values = statistic(np.ones((1, len(table))))[0]
        for way, *three in zip(WAYS, values, low, high, strict=True):
            result[way + title] = [round(float(x), 3) for x in three]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nets", type=Path, required=True, metavar="OUT")
    parser.add_argument("--net", default="mobilenet")
    args = parser.parse_args()
    split = folds.read(args.nets / folds.FILE)
    config = json.loads((args.nets / args.net / "net.json").read_text(encoding="utf-8"))
    studies = sorted((s for s in TASK.read(args.data, "train") if s.series[0].masks), key=lambda s: s.id)
    told: dict[str, dict[str, list[float]]] = {}
    for k in range(split.count):
        path = args.nets / args.net / f"fold{k}.safetensors"
        if path.is_file():
            net = bundle.load_net(path, config["net"])
            told |= {s.patient: ways_of(net, all_slices(s), config["pixels"]) for s in split.held_out(studies, k)}
    result = rows(told)
    print(f"{len(told)} patients")
    for way, (value, low, high) in result.items():
        print(f"  {way:<30}{value:>8.3f}   ({low:.3f} to {high:.3f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Locators of the task `spider` compared on the same out-of-fold patients: points, boxes, masks, cost.

    python bench/locators.py --data DIR --runs heatmap=W1 unet=W2 faster_rcnn=W3 [--out table.json]

Each W is the --out of `train_folds.py spider --recipe spider | spider-unet | spider-faster-rcnn`, trained on the same
folds.csv (or on some of its folds: those that all have count). Every annotated study is looked at by the net of the
fold that held it out. Boxes are compared on slices with boxes: those around every net's points, as wide as 1.15 and as
high as 0.45 of the patient's disc spacing (``around``), and a net's own (``boxes``): Faster R-CNN's most sure detection
per level, the U-Net's components.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from osteograde.imaging.geometry import apply, to_index
from osteograde.learning import average_precision as precision
from osteograde.learning import evaluate, folds
from osteograde.learning.locator_data import UNKNOWN, cut_labels, label_volume
from osteograde.models import bundle
from osteograde.models.locators.unet import disc_components, in_a_column
from osteograde.pipeline import predict
from osteograde.pipeline.crops import RegionGrid, region_grids, region_images
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import groups_of, interval
from osteograde.tasks.spec import sides
from osteograde.tasks.spider_mr import apart_mm
from osteograde.tasks.spine import LEVELS

TASK = TASKS["spider"]
STAGE = TASK.locators[0]
SHARE = (0.45, 1.15)  # height and width of a box around a point, of the disc spacing
CPU = torch.device("cpu")


def held_out(run: Path, studies: Sequence, split: folds.Split, trained: Sequence[int]) -> dict[str, dict]:
    """{study: {"points", "boxes", "dice"}} by the net of the fold that held it out."""
    manifest = bundle.read_manifest(run)
    said: dict[str, dict] = {}
    for k in trained:
        name = f"locate/{STAGE.name}/fold{k}.safetensors"
        net = bundle.on_device(bundle.load_net(run / name, manifest.files[name].net), CPU)
        nets = predict.Nets([net], manifest.pixels[STAGE.name], CPU)
        for study in studies:
            if split.fold_of(study) == k:
                loaded = load_study(study, TASK)
                points = predict.locate(STAGE, [loaded], [{}], nets)[0]
                looks = _looks(loaded, nets)
                said[study.id] = {
                    "points": points,
                    "boxes": {look.region.volume.series: _boxes(net, look) for look in looks},
                    "around": {look.region.volume.series: _around(look, points) for look in looks},
                    "dice": _dice(net, study, loaded, nets),
                }
    return said


def _looks(loaded: Loaded, nets: predict.Nets) -> list[RegionGrid]:
    return region_grids(STAGE, loaded.volumes, {}, max(sides(nets.pixels)))


@torch.inference_mode()
def _boxes(net, look: RegionGrid) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) boxes in pixels of the file and (N,) scores on a single slice, by the net itself; none by heatmaps."""
    if look.grid.shape[0] > 1 or net.config["kind"] == "heatmap":
        return np.zeros((0, 4)), np.zeros(0)
    image, _ = region_images(look, CPU)
    if net.config["kind"] == "faster_rcnn":
        found = net.detector(list(image))[0]
        best = [int(i) for label in found["labels"].unique() for i in (found["labels"] == label).nonzero()[:1, 0]]
        return _in_file(look, found["boxes"][best].numpy() - 0.5), found["scores"][best].numpy()
    disc = torch.softmax(net.segment(image), 1)[0, 1].numpy()
    parts = in_a_column(disc_components(disc))[: len(LEVELS)]
    edges = np.array([part.box for part in parts], float).reshape(-1, 4) * net.stride - 0.5
    return _in_file(look, edges), np.array([part.probability for part in parts])


def _around(look: RegionGrid, points: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """The same around points, of a size that follows from how far they lie apart."""
    mm = {i: points[mark.name].mm for i, mark in enumerate(look.region.landmarks) if mark.name in points}
    if len(mm) < 2 or look.grid.shape[0] > 1:
        return np.zeros((0, 4)), np.zeros(0)
    half = np.array(SHARE) * apart_mm(mm) / look.region.volume.spacing_mm[1:] / 2
    centres = np.array([to_index(look.region.volume, point)[1:] for point in mm.values()])[:, ::-1] + 0.5
    scores = np.array([points[look.region.landmarks[i].name].confidence for i in mm])
    return np.concatenate([centres - half[::-1], centres + half[::-1]], 1), scores


def _in_file(look: RegionGrid, edges: np.ndarray) -> np.ndarray:
    """Corners (N, 4) at continuous index (x, y) of the box the net read -> pixel edges of the file."""
    corners = edges.reshape(-1, 2)
    index = np.column_stack([np.zeros(len(corners)), corners[:, 1], corners[:, 0]])
    moved = to_index(look.region.volume, apply(look.grid.to_mm, index))
    return moved[:, [2, 1]].reshape(-1, 4) + 0.5


@torch.inference_mode()
def _dice(net, study, loaded: Loaded, nets: predict.Nets) -> dict[str, tuple[float, float]]:
    """{class: (twice the overlap, sum of sizes)} over a stack with masks; empty for other nets and studies."""
    if net.config["kind"] != "unet" or not study.series[0].masks:
        return {}
    (look,) = _looks(loaded, nets)
    truth = cut_labels(label_volume(study, look.region.volume), look.grid)
    image, _ = region_images(look, CPU)
    labels = torch.cat([net.segment(one[None]).argmax(1) for one in image])
    found = labels.repeat_interleave(net.stride, 1).repeat_interleave(net.stride, 2).numpy()
    known = truth < UNKNOWN
    return {
        name: (
            2.0 * float((known & (found == c) & (truth == c)).sum()),
            float((known & (found == c)).sum() + (truth == c).sum()),
        )
        for c, name in ((1, "disc"), (2, "vertebra"), (3, "canal"))
    }


def points_row(studies: Sequence, loaded: Mapping[str, Loaded], said: Mapping[str, dict]) -> dict:
    """Errors and levels with patient-level intervals."""
    kept = [study for study in studies if study.id in said]
    errors, owner, level = [], [], []
    for i, study in enumerate(kept):
        one, found = loaded[study.id], said[study.id]["points"]
        for name in one.marks.keys() & found.keys():
            errors.append(float(np.linalg.norm(found[name].mm - one.marks[name].mm)))
            owner.append(i)
        level.append(evaluate.right_level(STAGE, [one], {study.id: found}) or 0.0)
    error, own, right = np.array(errors), np.array(owner), np.array(level)

    def measures(counts: np.ndarray) -> np.ndarray:
        rows = []
        for weight in counts:
            some = np.repeat(error, weight[own].astype(int))
            rows.append([*np.percentile(some, [50, 95]), float(np.average(right, weights=weight))])
        return np.array(rows)

    groups = groups_of([study.patient for study in kept])
    low, high = interval(measures, len(kept), 500, np.random.default_rng(0), groups=groups)
    value = measures(np.ones((1, len(kept))))[0]
    names = ("median_mm", "p95_mm", "right_level")
    return {n: [round(float(x), 3) for x in (v, a, b)] for n, v, a, b in zip(names, value, low, high, strict=True)}


def boxes_row(table: pd.DataFrame, said: Mapping[str, dict], kind: str) -> dict:
    """Average precision and recall of boxes of a kind, its name behind them; nothing where the net has none."""
    true = table[table["ivd_label"] <= len(LEVELS)].groupby("slice")
    found = {series: pair for one in said.values() for series, pair in one[kind].items()}
    if not any(len(scores) for _, scores in found.values()):
        return {}
    images = [(*found[name], rows[["x0", "y0", "x1", "y1"]].to_numpy(float)) for name, rows in true if name in found]
    values = precision.table(images).items()
    return {f"{name}_{kind}": round(value, 3) for name, value in values} | {"slices": len(images)}


def dice_row(said: Mapping[str, dict]) -> dict:
    total: dict[str, np.ndarray] = {}
    for one in said.values():
        for name, pair in one["dice"].items():
            total[name] = total.get(name, np.zeros(2)) + pair
    return {f"dice_{name}": round(float(pair[0] / max(pair[1], 1)), 3) for name, pair in total.items()}


def cost_row(run: Path) -> dict:
    """GFLOPs and milliseconds of one slice through the net and its decoding to maps, one thread."""
    manifest = bundle.read_manifest(run)
    name = next(name for name in manifest.files if name.startswith(f"locate/{STAGE.name}/"))
    net: Any = bundle.on_device(bundle.load_net(run / name, manifest.files[name].net), CPU)
    side = max(sides(manifest.pixels[STAGE.name]))
    image = torch.rand(1, 4, side, side)
    torch.set_num_threads(1)
    times = []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            net.maps(image)
        for _ in range(5):
            begun = time.perf_counter()
            net.maps(image)
            times.append(1000 * (time.perf_counter() - begun))
    return {
        "gflops": round(counter.get_total_flops() / 1e9, 2),
        "ms": round(statistics.median(times), 1),
        "mb": round(manifest.files[name].bytes / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the task's data")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = {name: Path(folder) for name, _, folder in (run.partition("=") for run in args.runs)}
    if len({folds.digest(run / "folds.csv") for run in runs.values()}) > 1:
        parser.error("the runs were trained on different folds.csv; copy one of them into each --out before training")
    split = folds.read(next(iter(runs.values())) / "folds.csv")
    told = [bundle.read_manifest(run).folds for run in runs.values()]
    every = [set(one.trained) if one else set() for one in told]
    trained = sorted(set.intersection(*every))  # the folds that all of them have: the same patients for all
    if not trained:
        parser.error("no fold is trained in all of the runs")
    studies = [study for study in TASK.read(args.data, "train") if study.marks]
    loaded = {study.id: load_study(study, TASK) for study in studies}
    table = pd.read_csv(args.data / "boxes.csv", dtype={"slice": str})
    result = {}
    for name, run in runs.items():
        said = held_out(run, studies, split, trained)
        result[name] = {
            **points_row(studies, loaded, said), **boxes_row(table, said, "around"), **boxes_row(table, said, "boxes"),
            **dice_row(said), **cost_row(run),
        }  # fmt: skip
        print(name)
        for key, value in result[name].items():
            text = f"{value[0]:.3f}   ({value[1]:.3f} - {value[2]:.3f})" if isinstance(value, list) else str(value)
            print(f"  {key:<14}{text}")
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

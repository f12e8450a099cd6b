"""Three nets that segment T2-SPACE slices compared: Dice of disc, vertebra and canal over patient-grouped folds.

    python bench/segmentation_dice.py --data DIR --out DIR --nets mobilenet resnet planned [--pixels 128] [--folds 0,1]

The nets are trained here, on all slices of the stacks with label images, each for the same number of slices; a second
call goes on where the first one ended. Every slice is segmented by the net of the fold that held its patient out, and
compared with its label image on the pixels of the file. Dice of a class is over all pixels of all slices (``pooled``),
or the mean over patients; intervals draw patients, and differences are paired by patient. ``strip-NET.jpg`` shows the
middle slice of one held-out stack after every epoch, and the truth.

mobilenet: the net of recipe spider-unet on MobileNetV2 0.35. resnet: the net of spider-unet-resnet34, with the encoder
that --encoder names and random weights. planned: the net of spider-nnunet. Sizes here are chosen for one CPU core.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from osteograde.imaging.geometry import oriented
from osteograde.imaging.windowing import window
from osteograde.learning import cross_fit, folds, locator_data, loop, pretrained
from osteograde.learning.locator_data import UNKNOWN, LocatorData, label_volume
from osteograde.learning.recipe import LocatorPlan, Start
from osteograde.learning.recipes import RECIPES
from osteograde.logs import to_stdout
from osteograde.models import bundle
from osteograde.pipeline.crops import region_grids
from osteograde.pipeline.load import Loaded, load_series, marks_in_mm
from osteograde.pipeline.predict import Nets
from osteograde.pipeline.segment import label_image
from osteograde.tasks import TASKS
from osteograde.tasks.metrics import interval
from osteograde.tasks.spec import Study, sides

TASK = TASKS["spider"]
(STAGE,) = TASK.locators
CLASSES = {1: "disc", 2: "vertebra", 3: "canal"}
RECIPE_OF = {"mobilenet": "spider-unet", "resnet": "spider-unet-resnet34", "planned": "spider-nnunet"}
# mobilenet: of 3e-3 and 1e-2 the one with the lower training loss; the others were not tried at another rate
RATES = {"mobilenet": 1e-2, "resnet": 3e-3, "planned": 3e-3}
COLOURS = np.array([[0, 0, 0], [80, 200, 255], [90, 160, 90], [230, 120, 60]], np.uint8)  # BGR
CPU = torch.device("cpu")
BOOTSTRAP, SEED = 2000, 0
log = logging.getLogger("osteograde.learning")

Sums = Mapping[str, Sequence[float]]  # class -> (twice the overlap, sum of both sizes), in pixels of the file


def all_slices(study: Study) -> Loaded:
    """A stack as the file has it: thin slices are not averaged, so every one of them is segmented and compared."""
    (series,) = study.series
    view = TASK.view(series.view)
    stacks, _ = load_series(series, view)
    marks = marks_in_mm(study.marks, series.id, stacks)
    seen = tuple(oriented(one, np.array(view.directions)) for one in window(stacks, *view.window))
    return Loaded(study, {view.name: seen}, marks=marks)


def plan_of(name: str, args: argparse.Namespace, stacks: Sequence[Loaded]) -> LocatorPlan:
    """The plan of a recipe's locator, at the size that the command line chooses."""
    plan = RECIPES[RECIPE_OF[name]]().locators[STAGE.name]
    encoder, stages, start = {
        "mobilenet": ("mobilenetv2_035", 5, f"file:{args.mobilenet_start}" if args.mobilenet_start else ""),
        "resnet": (args.encoder, args.stages, ""),
        "planned": ("", 0, ""),
    }[name]
    net = dict(plan.net)
    if name == "planned":
        from osteograde.learning import planning

        limits = {"features": args.planned_features, "budget": args.planned_budget}
        sized = replace(plan, net=net | limits, pixels=args.pixels)
        plan = planning.planned(sized, STAGE, stacks)
        training = replace(plan.training, epochs=args.epochs, steps=args.steps, batch=args.batch)
        if args.adam:  # momentum 0.99 needs more steps than one core takes
            training = replace(training, optimiser="adamw", lr=RATES[name], ema=0.95, clip=1.0)
        return replace(plan, training=training, start=Start(shared_epochs=args.shared), window=1, any_window=True)
    training = replace(plan.training, epochs=args.epochs, steps=args.steps, batch=args.batch, lr=RATES[name], ema=0.95)
    net |= {"encoder_name": encoder, "stages": stages, "width": args.width}
    begin = Start(weights=start, shared_epochs=args.shared)
    return replace(plan, net=net, pixels=args.pixels, training=training, window=1, any_window=True, start=begin)


def sums_of(found: np.ndarray, truth: np.ndarray) -> dict[str, list[float]]:
    """Twice the overlap and the sum of sizes of every class over two label stacks (Z, Y, X)."""
    known = truth < UNKNOWN
    return {
        name: [2.0 * float((known & (found == c) & (truth == c)).sum()),
               float((known & (found == c)).sum() + (known & (truth == c)).sum())]
        for c, name in CLASSES.items()
    }  # fmt: skip


def dice_of(sums: Sums) -> dict[str, float]:
    return {name: round(over / size, 3) if size else float("nan") for name, (over, size) in sums.items()}


def segment(net: torch.nn.Module, one: Loaded, pixels: int) -> np.ndarray:
    (placed,) = region_grids(STAGE, one.volumes, {}, pixels)
    return label_image(placed, Nets([net.eval()], pixels, CPU))


def truth_of(one: Loaded) -> np.ndarray:
    (volume,) = one.volumes["t2"]
    labels = label_volume(one.study, volume)
    assert labels is not None
    return labels.voxels


def middle_only(one: Loaded) -> Loaded:
    """The middle slice of a stack."""
    (volume,) = one.volumes["t2"]
    z = len(volume.voxels) // 2
    kept = replace(volume, voxels=volume.voxels[z : z + 1], names=volume.names[z : z + 1])
    return replace(one, volumes={"t2": (kept,)})


def train_and_judge(
    name: str, plan: LocatorPlan, stacks: Sequence[Loaded], split: folds.Split, k: int, out: Path
) -> None:
    """Train the net of fold k and write fold<k>.json: {patient: sums} of its held-out stacks."""
    done = out / name / f"fold{k}.json"
    if done.is_file():
        return
    folder = out / name
    stored = locator_data.store(STAGE, plan, stacks, folder / "stored")
    own = {one.study.id for one in stacks if split.fold_of(one.study) != k}
    held = [one for one in stacks if one.study.id not in own]
    shown = middle_only(held[0])

    def after_epoch(net: torch.nn.Module, epoch: int) -> str:
        labels = segment(net, shown, max(sides(plan.pixels)))
        path = folder / "epochs"
        path.mkdir(exist_ok=True)
        path = path / f"fold{k}-{len(list(path.iterdir())):03d}.png"
        cv2.imwrite(str(path), labels[0])
        return f"Dice of one held-out slice {dice_of(sums_of(labels, truth_of(shown)))}"

    (folder / "net.json").write_text(json.dumps({"net": dict(plan.net), "pixels": plan.pixels}), encoding="utf-8")
    job = loop.Job(name, k, SEED, CPU, folder / f"fold{k}.pt")
    watch = after_epoch if k == 0 else None
    shared = partial(shared_net, name, plan, stored, split, stacks, k, folder, watch)
    own_plan = cross_fit.after_shared_epochs(plan)
    net = loop.train(shared, own_plan, stored.of(own), None, loss_of, job, resume=True, after_epoch=watch)
    bundle.save_net(net, folder / f"fold{k}.safetensors")
    net = bundle.load_net(folder / f"fold{k}.safetensors", plan.net)
    told = {one.study.patient: sums_of(segment(net, one, max(sides(plan.pixels))), truth_of(one)) for one in held}
    if k == 0:
        strip(folder, shown, out / f"strip-{name}.jpg")
    done.write_text(json.dumps(told), encoding="utf-8")
    log.info(
        "%s fold %d: %s",
        name,
        k,
        {c: np.mean([dice_of(one)[c] for one in told.values()]).round(3) for c in CLASSES.values()},
    )


def loss_of(net, batch):
    return net.loss(batch)


def shared_net(
    name: str,
    plan: LocatorPlan,
    stored: LocatorData,
    split: folds.Split,
    stacks: Sequence[Loaded],
    k: int,
    folder: Path,
    watch: loop.AfterEpoch | None,
) -> torch.nn.Module:
    """The net that fold k continues from: trained on the patients that neither it nor its sharing folds hold out."""
    together = cross_fit.sharing_folds(split.count, k)
    own = {one.study.id for one in stacks if split.fold_of(one.study) not in together}
    job = loop.Job(name, together[0], SEED, CPU, folder / f"common{together[0]}.pt", together)
    data = stored.of(own)
    build = partial(pretrained.net_of, plan, data, loss_of, job)
    common = loop.train(
        build, cross_fit.shared_epochs_of(plan), data, None, loss_of, job, resume=True, after_epoch=watch
    )
    return common.requires_grad_(True)


def strip(folder: Path, shown: Loaded, path: Path) -> None:
    """Write the slice with the labels of every epoch beside one another, the truth last."""
    (volume,) = shown.volumes["t2"]
    grey = cv2.cvtColor(volume.voxels[0], cv2.COLOR_GRAY2BGR)
    labels = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((folder / "epochs").glob("fold0-*.png"))]
    drawn = [np.where(one[..., None] > 0, grey // 2 + COLOURS[one] // 2, grey) for one in [*labels, truth_of(shown)[0]]]
    cv2.imwrite(
        str(path), cv2.resize(np.concatenate([grey, *drawn], 1), None, fx=0.4, fy=0.4), [cv2.IMWRITE_JPEG_QUALITY, 80]
    )


def told_of(out: Path, name: str) -> dict[str, Sums]:
    """{patient: sums} of all folds that are finished."""
    return {patient: sums for path in sorted((out / name).glob("fold?.json"))
            for patient, sums in json.loads(path.read_text(encoding="utf-8")).items()}  # fmt: skip


def measures(told: Mapping[str, Sums], patients: Sequence[str]):
    """A statistic for ``metrics.interval``: (draws, patients) counts -> pooled Dice of each class, then mean Dice."""
    table = np.array([[told[p][c] for c in CLASSES.values()] for p in patients])  # (patients, classes, 2)
    each = table[..., 0] / np.maximum(table[..., 1], 1)

    def statistic(counts: np.ndarray) -> np.ndarray:
        over, size = (np.einsum("bp,pc->bc", counts, table[..., i]) for i in (0, 1))
        return np.concatenate([over / size, counts @ each / counts.sum(1, keepdims=True)], 1)

    return statistic


def compare(out: Path, names: Sequence[str]) -> dict:
    """Dice of every net, and the difference of each to the first one, over the patients that all of them have."""
    told = {name: told_of(out, name) for name in names}
    patients = sorted(set.intersection(*(set(one) for one in told.values())))
    statistics = {name: measures(one, patients) for name, one in told.items()}
    first = statistics[names[0]]
    parts = [f"{way} {c}" for way in ("pooled", "mean") for c in CLASSES.values()]
    ones = np.ones((1, len(patients)))
    result: dict = {"patients": len(patients)}
    for name, own in statistics.items():
        rows = {"dice": own} | ({f"minus {names[0]}": lambda n, own=own: own(n) - first(n)} if own is not first else {})
        for title, statistic in rows.items():
            low, high = interval(statistic, len(patients), BOOTSTRAP, np.random.default_rng(SEED))
            values = zip(parts, statistic(ones)[0], low, high, strict=True)
            result[f"{name} {title}"] = {part: [round(float(x), 3) for x in three] for part, *three in values}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the task's data")
    parser.add_argument("--out", type=Path, required=True, help="nets, checkpoints, answers per fold and strips")
    parser.add_argument("--nets", nargs="+", default=list(RECIPE_OF), choices=list(RECIPE_OF))
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--encoder", default="resnet18", help="of the net `resnet`; default: %(default)s")
    parser.add_argument("--stages", type=int, default=4, help="stages of that encoder that are used; 0: all")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--width", type=int, default=16, help="features of the finest decoder block")
    parser.add_argument("--epochs", type=int, default=17)
    parser.add_argument("--shared", type=int, default=14, help="of these epochs so many are shared by folds")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=6, help="slices of a step")
    parser.add_argument("--adam", action="store_true", help="the planned net learns by AdamW, for few steps")
    parser.add_argument("--planned-features", type=int, default=8, help="of the finest stage of the planned net")
    parser.add_argument("--planned-budget", type=float, default=1.5e6, help="see learning/planning.py")
    parser.add_argument("--mobilenet-start", metavar="FILE", help="starting weights of the MobileNet; default: random")
    args = parser.parse_args()
    to_stdout()
    studies = sorted((s for s in TASK.read(args.data, "train") if s.series[0].masks), key=lambda s: s.id)
    if not studies:
        sys.exit(f"{args.data}: no stack with label images (masks); nothing to compare")
    stacks = [all_slices(study) for study in studies]
    split = folds.assign(TASK, studies, 5, SEED)
    folds.save(split, args.out / folds.FILE)
    for name in args.nets:
        plan = plan_of(name, args, stacks)
        for k in map(int, args.folds.split(",")):
            train_and_judge(name, plan, stacks, split, k, args.out)
    result = compare(args.out, args.nets)
    for title, row in result.items():
        print(title, row if isinstance(row, int) else "")
        for part, (value, low, high) in row.items() if isinstance(row, dict) else ():
            print(f"  {part:<16}{value:>8.3f}   ({low:.3f} to {high:.3f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Phantoms and real sagittal images in one folder, to train `lumbar-mr` on both.

    python bench/join_real.py --phantoms PHANTOMS --out JOINED [--data DIR] [--discs weights/spider/oof_points.csv]
                              [--reuse weights/lumbar-mr-phantom --run W]
    python train_folds.py lumbar-mr --recipe lumbar-mr-small --data JOINED --out W --folds 0,1 --resume

The real images are SPIDER's (--data, default OSTEOGRADE_DATA or ../shared/data). Its T2-SPACE stacks are written as
series of sagittal T2 with the canal point of each level marked, where the disc's long axis meets the canal of the mask.
Its T1 and T2 slices with disc boxes are written as series of one slice, twice, the second time with a smaller field of
view; their canal points are derived from the boxes (tests/spider_slices.py). --discs: likewise all T2 slices without
boxes, by the discs that spider weights found out-of-fold. None carries grades. Phantoms are hard links where the disk
allows. --reuse: keep the phantoms in the folds of earlier weights, spread the real patients over
them, each with all its images in one fold, and reuse every net but the canal's, which alone can learn from them.
W/start then holds a copy of the earlier weights whose folds name the new patients, which its nets never saw, so that
the canal nets may start from it: --set locate.canal.start.weights=weights:W/start.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from memory import link

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the writer of real studies, which tests share

from osteograde.learning import folds
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import reuse_nets
from osteograde.models.manifest import TrainedFolds, read_manifest, sha256, write_manifest
from osteograde.tasks.spine import LEVELS
from tests.spider_slices import fit, known_stacks, slices_with_boxes, slices_with_points, study_of, write_slices
from tests.spider_studies import Reference, patients, slices, spacings, write_studies

TABLES = ("train.csv", "train_label_coordinates.csv", "train_series_descriptions.csv")
SOURCE = {
    "source": "osteograde's lumbar phantoms, and T2-SPACE stacks with masks and T1 and T2 slices with disc boxes of "
    "SPIDER (van der Graaf et al. 2024, Scientific Data 11:264)",
    "licence": "Apache-2.0 (phantoms), CC BY 4.0 (SPIDER)",
}


@dataclass(frozen=True)
class Sizes:
    """Of a real series: the patient, mm of a pixel's row and column, mm from slice to slice, and how many slices."""

    patient: str
    row: float
    column: float
    step: float = 1.0
    count: int = 1


def marks(study: str, reference: Reference, sizes: Sizes) -> list[list[object]]:
    """Rows of train_label_coordinates.csv: the canal point of each level, on the slice it was found on."""
    rows: list[list[object]] = []
    for level, mm in reference.canal.items():
        instance = round(mm[0] / sizes.step + (sizes.count - 1) / 2) + 1
        name = level.upper().replace("_", "/")
        x, y = mm[1] / sizes.column, -mm[2] / sizes.row
        rows.append([study, f"{study}1", instance, "Spinal Canal Stenosis", name, x, y])
    return rows


def write_real(real: Path, out: Path, discs: Path | None) -> dict[str, tuple[Reference, Sizes]]:
    """Write stacks and slices as the test part of ``out``; study -> where its levels are, and its sizes."""
    found = {}
    pixels, numbers = spacings(real), {f"9{int(patient):05d}": patient for patient in patients(real)}
    for study, reference in write_studies(real, out).items():
        patient = numbers[study]
        pixel, step = pixels[patient]
        found[study] = (reference, Sizes(patient, pixel, pixel, step, len(slices(real, patient))))
    rule = fit(list(known_stacks(real).values()))
    chosen = slices_with_boxes(real) + (slices_with_points(real, discs) if discs else [])
    sizes = {study_of(one, cut=cut): Sizes(one.patient, *one.pixel_mm) for one in chosen for cut in (False, True)}
    for study, reference in write_slices(real, out, rule, chosen, cuts=True).items():
        found[study] = (reference, sizes[study])
    return found


def join(phantoms: Path, real: Path, out: Path, discs: Path | None = None) -> dict[str, str]:
    """Write the joined data set; {real study: patient}. ValueError where ``out`` holds one already."""
    if (out / TABLES[0]).exists():
        raise ValueError(f"{out}: holds a data set already; give another --out")
    images = out / "train_images"
    images.mkdir(parents=True)
    for folder in sorted((phantoms / "train_images").iterdir()):
        shutil.copytree(folder, images / folder.name, copy_function=link)
    written = write_real(real, out, discs)
    for study in written:
        (out / "test_images" / study).rename(images / study)
    tables = {name: list(csv.reader((phantoms / name).open(newline="", encoding="utf-8"))) for name in TABLES}
    width = len(tables["train.csv"][0])
    for study, (reference, sizes) in written.items():
        tables["train.csv"].append([study, *[""] * (width - 1)])
        tables["train_series_descriptions.csv"].append([study, f"{study}1", "Sagittal T2/STIR"])
        points = marks(study, reference, sizes)
        tables["train_label_coordinates.csv"] += [[str(cell) for cell in row] for row in points]
    for name, rows in tables.items():
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    (out / "SOURCE.json").write_text(json.dumps(SOURCE), encoding="utf-8")
    for left in ("test_series_descriptions.csv", "sample_submission.csv"):
        (out / left).unlink()
    return {study: sizes.patient for study, (_, sizes) in written.items()}


def split_of(real: Mapping[str, str], old: folds.Split) -> folds.Split:
    """The folds of earlier weights with all studies of the real patients added; {study: patient}.

    A patient that the earlier nets know stays in its fold: they may have learnt from it in all others. The new ones are
    dealt to the folds in a random order.
    """
    group = {study: f"9{int(patient):05d}" for study, patient in real.items()}
    known = {old.patient[study]: k for study, k in old.fold.items()}
    new = sorted({*group.values()} - {*known})
    order = np.random.default_rng(0).permutation(len(new))
    fold = known | {new[i]: int(k % old.count) for k, i in enumerate(order)}
    return folds.Split({**{study: fold[own] for study, own in group.items()}, **old.fold}, {**group, **old.patient})


def start_folder(weights: Path, out: Path, split: folds.Split) -> None:
    """A copy of earlier weights with the folds of ``split``, which hold further patients that no net of theirs saw."""
    shutil.copytree(weights, out)
    folds.save(split, out / folds.FILE)
    manifest = read_manifest(out)
    told = replace(manifest.folds or TrainedFolds(), sha256=sha256(out / folds.FILE))
    write_manifest(out, replace(manifest, folds=told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    parser.add_argument("--phantoms", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--discs", type=Path)
    parser.add_argument("--reuse", type=Path)
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    real = join(args.phantoms, args.data / "spider", args.out, args.discs)
    print(f"{len({*real.values()})} real patients, {len(real)} series, {len(LEVELS)} levels -> {args.out}")
    if args.reuse and args.run:
        split = split_of(real, folds.read(args.reuse / folds.FILE))
        args.run.mkdir(parents=True, exist_ok=True)
        folds.save(split, args.run / folds.FILE)
        start_folder(args.reuse, args.run / "start", split)
        reused = reuse_nets(args.reuse, args.run, RECIPES["lumbar-mr-small"](), without=("canal",))
        print(f"folds of {len(split.fold)} studies and {len(reused)} nets -> {args.run}")


if __name__ == "__main__":
    main()

"""Phantoms and real sagittal stacks in one folder, to train `lumbar-mr` on both.

    python bench/join_real.py --phantoms PHANTOMS --out JOINED [--data DIR] [--reuse weights/lumbar-mr-phantom --run W]
    python train_folds.py lumbar-mr --recipe lumbar-mr-small --data JOINED --out W --folds 0,1 --resume

The real stacks are SPIDER's T2-SPACE slices (--data, default OSTEOGRADE_DATA or ../shared/data), written as series of
sagittal T2 with the canal point of each level marked, where the disc's long axis meets the canal of the mask. They
carry no grades. Phantoms are hard links where the disk allows. --reuse: keep the phantoms in the folds of earlier
weights, spread the real patients over them, and reuse every net but the canal's, which alone can learn from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from memory import link

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the writer of real studies, which tests share

from osteograde.learning import folds
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import reuse_nets
from osteograde.tasks.spine import LEVELS
from tests.spider_studies import Reference, patients, slices, spacings, write_studies

TABLES = ("train.csv", "train_label_coordinates.csv", "train_series_descriptions.csv")
SOURCE = {
    "source": "osteograde's lumbar phantoms, and sagittal T2-SPACE stacks with masks of SPIDER (van der Graaf et al. "
    "2024, Scientific Data 11:264)",
    "licence": "Apache-2.0 (phantoms), CC BY 4.0 (SPIDER)",
}


def marks(study: str, reference: Reference, pixel: float, step: float, count: int) -> list[list[object]]:
    """Rows of train_label_coordinates.csv: the canal point of each level, on the slice it was found on."""
    rows = []
    for level, mm in reference.canal.items():
        instance = round(mm[0] / step + (count - 1) / 2) + 1
        name = level.upper().replace("_", "/")
        rows.append([study, f"{study}1", instance, "Spinal Canal Stenosis", name, mm[1] / pixel, -mm[2] / pixel])
    return rows


def join(phantoms: Path, real: Path, out: Path) -> list[str]:
    """Write the joined data set; the ids of the real studies. ValueError where ``out`` holds one already."""
    if (out / TABLES[0]).exists():
        raise ValueError(f"{out}: holds a data set already; give another --out")
    images = out / "train_images"
    images.mkdir(parents=True)
    for folder in sorted((phantoms / "train_images").iterdir()):
        shutil.copytree(folder, images / folder.name, copy_function=link)
    references = write_studies(real, out)
    sizes, numbers = spacings(real), {f"9{int(patient):05d}": patient for patient in patients(real)}
    for study in references:
        (out / "test_images" / study).rename(images / study)
    tables = {name: list(csv.reader((phantoms / name).open(newline="", encoding="utf-8"))) for name in TABLES}
    width = len(tables["train.csv"][0])
    for study, reference in references.items():
        tables["train.csv"].append([study, *[""] * (width - 1)])
        tables["train_series_descriptions.csv"].append([study, f"{study}1", "Sagittal T2/STIR"])
        patient = numbers[study]
        points = marks(study, reference, *sizes[patient], len(slices(real, patient)))
        tables["train_label_coordinates.csv"] += [[str(cell) for cell in row] for row in points]
    for name, rows in tables.items():
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    (out / "SOURCE.json").write_text(json.dumps(SOURCE), encoding="utf-8")
    for left in ("test_series_descriptions.csv", "sample_submission.csv"):
        (out / left).unlink()
    return list(references)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    parser.add_argument("--phantoms", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--reuse", type=Path)
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    real = join(args.phantoms, args.data / "spider", args.out)
    print(f"{len(real)} real patients, {len(LEVELS)} levels -> {args.out}")
    if args.reuse and args.run:
        old = folds.read(args.reuse / folds.FILE)
        order = np.random.default_rng(0).permutation(len(real))
        fold = {real[i]: int(k % old.count) for k, i in enumerate(order)}
        # A patient that the earlier nets know stays in its fold: they may have learnt from it in all others.
        split = folds.Split({**fold, **old.fold}, {**dict(zip(real, real, strict=True)), **old.patient})
        folds.save(split, args.run / folds.FILE)
        reused = reuse_nets(args.reuse, args.run, RECIPES["lumbar-mr-small"](), without=("canal",))
        print(f"folds of {len(split.fold)} studies and {len(reused)} nets -> {args.run}")


if __name__ == "__main__":
    main()

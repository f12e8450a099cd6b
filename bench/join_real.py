"""Phantoms and real sagittal images in one folder, to train `lumbar-mr` on both.

    python bench/join_real.py --phantoms PHANTOMS --out JOINED [--data DIR] [--discs weights/spider/oof_points.csv]
    python train_folds.py lumbar-mr --recipe lumbar-mr-small --data JOINED --folds-of JOINED --out W \
        --folds 0,1,2 --resume

The real images are SPIDER's (--data, default OSTEOGRADE_DATA or ../shared/data). Its T2-SPACE stacks are written as
series of sagittal T2 with the canal point of each level marked, where the disc's long axis meets the canal of the mask.
Its T1 and T2 slices with disc boxes are written as series of one slice, twice, the second time with a smaller field of
view; their canal points are derived from the boxes (tests/spider_slices.py). --discs: likewise all T2 slices without
boxes, by the discs that spider weights found out-of-fold. None carries grades, so only the canal's locator learns from
them. The competition has one study a patient; these patients have several, so JOINED/folds.csv says which fold holds a
patient's images. Phantoms are hard links where the disk allows.
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

from memory import link

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the writer of real studies, which tests share

from osteograde.learning import folds
from osteograde.learning.recipes import RECIPES
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


def split_of(joined: Path, patient: Mapping[str, str]) -> folds.Split:
    """The folds of the joined studies, all studies of a real patient in one. patient: {real study: patient}."""
    recipe = RECIPES["lumbar-mr-small"]()
    studies = [
        replace(study, patient=f"9{int(patient[study.id]):05d}") if study.id in patient else study
        for study in recipe.task.read(joined, "train")
    ]
    return folds.assign(recipe.task, studies, recipe.scope.folds, recipe.scope.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    parser.add_argument("--phantoms", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--discs", type=Path)
    args = parser.parse_args()
    real = join(args.phantoms, args.data / "spider", args.out, args.discs)
    folds.save(split_of(args.out, real), args.out / folds.FILE)
    print(f"{len({*real.values()})} real patients, {len(real)} series, {len(LEVELS)} levels -> {args.out}")


if __name__ == "__main__":
    main()

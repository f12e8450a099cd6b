"""``osteograde segment``: label images of studies, by the nets of a weights folder whose locator labels every pixel."""

from __future__ import annotations

import argparse
import csv
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2

from osteograde.errors import UserError
from osteograde.imaging import nifti
from osteograde.inference import run
from osteograde.logs import counted, to_stdout
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.pipeline import ensemble, predict, segment
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.outputs import prepare_outputs
from osteograde.tasks.spec import Locator, Study

log = logging.getLogger("osteograde.inference")
COLUMNS = ("study_id", "view", "slice", "landmark", "area_mm2", "height_mm", "confidence", "source")


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``osteograde segment`` ask for; the exit code is returned."""
    to_stdout(bars=True)
    job = run.prepare(args.task, args.data, args.weights, device=args.device, limit=args.limit, points=args.points)
    device = pick(args.device) if job.device is None else job.device
    voters = ensemble.load(job.weights, TASKS, device)
    nets = voters if isinstance(voters, bundle.Bundle) else voters.members[0]  # segmentations do not vote
    able = _segmenting(nets)
    prepare_outputs(args.data, {"--out": args.out})
    args.out.mkdir(parents=True, exist_ok=True)
    sources: Counter[str] = Counter()
    stacks = 0
    with (args.out / "discs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for study in counted(job.studies, "segmenting", "studies", log):
            for one in _segmented(study, nets, able, args.out):
                stacks += 1
                sources.update(disc.source for disc in one.discs)
                writer.writerows(
                    (study.id, one.view, disc.name, disc.landmark, f"{disc.area_mm2:.1f}", f"{disc.height_mm:.1f}",
                     f"{disc.confidence:.3f}", disc.source)
                    for disc in one.discs
                )  # fmt: skip
    told = ", ".join(f"{count} by {source}" for source, count in sources.most_common()) or "none"
    log.info("%d stacks of %d studies; discs in slices: %s", stacks, len(job.studies), told)
    log.info("written: %s, and beside it a .nii.gz and a folder of .png for each stack", args.out / "discs.csv")
    return 0


def _segmenting(nets: bundle.Bundle) -> list[Locator]:
    """The locators whose nets label every pixel. UserError where there is none."""
    able = [stage for stage in nets.task.locators if segment.can_segment(nets.locators[stage.name])]
    if not able:
        kinds = {
            str(entry.net.get("kind")) for name, entry in nets.manifest.files.items() if name.startswith("locate/")
        }
        raise UserError(
            f"the locators of these weights are of kind {', '.join(sorted(kinds))}, which labels no pixels; give "
            "weights of a recipe whose locator is a U-Net (docs/recipes.md names them)"
        )
    return able


def _segmented(study: Study, nets: bundle.Bundle, able: Sequence[Locator], out: Path) -> Iterator[segment.Segmented]:
    """The label stacks of a study; their files are written."""
    locators = {name: predict.Nets(found, nets.pixels[name], nets.device) for name, found in nets.locators.items()}
    loaded = load_study(study, nets.task)
    _, (points,) = predict.locate_all(nets.task, [loaded], locators)
    for stage in able:
        for one in segment.segment_study(stage, loaded, points, locators[stage.name]):
            name = f"{study.id}_{one.view}"
            nifti.write_labels(out / f"{name}.nii.gz", one.labels)
            folder = out / name
            folder.mkdir(exist_ok=True)
            for z, labels in enumerate(one.labels.voxels):
                path = folder / f"{one.labels.names[z] if one.labels.names else f'slice{z}'}.png"
                if not cv2.imwrite(str(path), labels):
                    raise OSError(f"{path} could not be written")
            yield one

"""Learn the checks of the image itself from knee crops, write them into weights, and print what they find.

    python bench/image_checks.py --data DIR --weights weights/knee-xray [--crops 800] [--held 500] [--films 80]
                                 [--spines DIR] [--others 40] [--keep FEATURES.npz] [--dry]

DIR: the crops that the weights were trained on, in grade folders. The checks are learnt from crops and composed films
of folds 1 to 4, which the first net knows. Fold 0 is unseen by both: half of its patients give the thresholds, the
other half and all other images are counted. --spines: pictures of spines, such as those of SPIDER. --keep: features are
kept there and used again. --dry: nothing is written.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import save

from osteograde import phantom
from osteograde.imaging import image_files
from osteograde.inference import run
from osteograde.inference.deadline import Effort
from osteograde.models import bundle
from osteograde.models.device import pick
from osteograde.models.manifest import sha256, write_manifest
from osteograde.pipeline import image_checks, predict
from osteograde.pipeline.crops import site_boxes, site_crops
from osteograde.pipeline.load import load_study
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import SIDES, compose
from osteograde.tasks.spec import Study

GRADER, FILE = "kl", "checks/image.safetensors"
USUAL = 99.5  # percentile of known images that is still usual
COVERED, SURE = 0.95, 0.99  # share of crops whose side is told, at most, and how many of them must be right, at least
SIDE = 224  # pixels of pictures made here


@dataclass(frozen=True, eq=False)
class Seen:
    """Features (S, 2, F) of the crops of some studies, the patient of each, and how many studies have no crop."""

    halves: np.ndarray
    patients: np.ndarray
    without: int = 0

    def half(self, part: int) -> Seen:
        """Every other patient, from the ``part``-th on."""
        names, which = np.unique(self.patients, return_inverse=True)
        kept = which % 2 == part if len(names) > 1 else np.arange(len(which)) % 2 == part
        return Seen(self.halves[kept], self.patients[kept], 0)


class Reader:
    """Features of pictures, as inference with the first nets alone reads them."""

    def __init__(self, weights: Path) -> None:
        self.loaded = bundle.load(weights, TASKS, pick("auto"))
        self.task = self.loaded.task
        self.locators = run.nets_of(self.loaded, "locate", Effort(1, 1))
        self.nets = run.nets_of(self.loaded, "grade", Effort(1, 1))[GRADER]
        self.grader = next(grader for grader in self.task.graders if grader.name == GRADER)

    def of(self, studies: Sequence[Study]) -> Seen:
        rows, patients, without = [], [], 0
        for study in studies:
            own = load_study(study, self.task)
            points = predict.locate_all(self.task, [own], self.locators)[1][0]
            boxes = site_boxes(self.grader, own.volumes, points, self.nets.pixels)
            without += not boxes
            if boxes:
                crops = site_crops(self.grader, boxes, self.nets.pixels, self.nets.device).images[0]
                rows.append(image_checks.half_features(crops[:, crops.shape[1] // 2], self.nets))
                patients += [study.patient] * len(boxes)
        return Seen(np.concatenate(rows) if rows else np.zeros((0, 2, 1)), np.array(patients), without)

    def of_pictures(self, pictures: Iterator[np.ndarray], ending: str = "_R") -> Seen:
        """Of pictures that are given names with an ending, of a right knee or "" of a film."""
        with tempfile.TemporaryDirectory() as folder:
            for i, picture in enumerate(pictures):
                cv2.imwrite(f"{folder}/P{i:04d}{ending}.png", picture)
            return self.of(self.task.read(Path(folder), "test"))


def films(studies: Sequence[Study], count: int) -> Iterator[np.ndarray]:
    """Composed films of the patients of some crops."""
    own: dict[str, dict[str, Path]] = {}
    for study in studies:
        own.setdefault(study.patient, {})[study.series[0].side] = study.series[0].files[0]
    for i, patient in enumerate(np.random.default_rng(0).choice(sorted(own), count)):
        knees = [(image_files.read_pixels(own[patient][side]), side) for side in SIDES if side in own[patient]]
        rng = np.random.default_rng([1, i])
        yield compose(knees, rng, pixel_mm=float(rng.uniform(0.45, 0.7))).pixels


def square(image: np.ndarray) -> np.ndarray:
    """The middle of a picture as a square of the size of a crop."""
    side = min(image.shape)
    top, left = ((length - side) // 2 for length in image.shape)
    return cv2.resize(image[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def stretched(image: np.ndarray) -> np.ndarray:
    return (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


def noise(rng: np.random.Generator) -> np.ndarray:
    return stretched(cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), float(rng.uniform(0.3, 2.5))))


def ramp(rng: np.random.Generator) -> np.ndarray:
    turn, grid = rng.uniform(0, 2 * np.pi), np.mgrid[:SIDE, :SIDE]
    return stretched(stretched(np.cos(turn) * grid[0] + np.sin(turn) * grid[1]) ** rng.uniform(0.5, 2))


def texture(rng: np.random.Generator) -> np.ndarray:
    """Noise whose spectrum falls as that of photographs does."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * frequency ** -rng.uniform(0.8, 1.8)
    return stretched(np.fft.ifft2(spectrum).real)


def shapes(rng: np.random.Generator) -> np.ndarray:
    """Boxes and discs over each other, as a picture of things."""
    image = np.full((SIDE, SIDE), rng.integers(0, 200), np.uint8)
    for _ in range(25):
        x, y, width, height, grey = (int(v) for v in rng.integers([0, 0, 10, 10, 0], [SIDE, SIDE, 90, 90, 255]))
        if rng.random() < 0.5:
            cv2.rectangle(image, (x, y), (x + width, y + height), grey, -1)
        else:
            cv2.circle(image, (x, y), width // 2, grey, -1)
    return cv2.GaussianBlur(image, (0, 0), 1)


def as_jpeg(image: np.ndarray) -> np.ndarray:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))


def phantom_spines(count: int) -> Iterator[np.ndarray]:
    """The middle slices of synthetic spines."""
    with tempfile.TemporaryDirectory() as folder:
        phantom.write("spider", Path(folder), studies=count, seed=5)
        for study in TASKS["spider"].read(Path(folder), "train"):
            stacks = [stack for found in load_study(study, TASKS["spider"]).volumes.values() for stack in found]
            yield from (square(stack.voxels[len(stack.voxels) // 2]) for stack in stacks[:1])


def others(held: Sequence[Study], count: int, spines: Path | None) -> dict[str, Iterator[np.ndarray]]:
    """Kind -> pictures that should be flagged, and (the last ones) altered knees."""

    def made(maker: Callable[[np.random.Generator], np.ndarray]) -> Iterator[np.ndarray]:
        return (maker(np.random.default_rng([2, i])) for i in range(count))

    def knees(change: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
        crops = (image_files.read_pixels(study.series[0].files[0]) for study in held[:count])
        return (np.ascontiguousarray(change(crop)) for crop in crops)

    paths = sorted(spines.glob("*.webp")) if spines else []
    steps = max(len(paths) // max(count, 1), 1)
    return {
        "spines (real MR)": (square(image_files.read_pixels(path)) for path in paths[::steps][:count]),
        "spines (phantoms)": phantom_spines(count),
        "noise": made(noise),
        "ramps": made(ramp),
        "photograph-like textures": made(texture),
        "boxes and discs": made(shapes),
        "knees turned by 90 degrees": knees(np.rot90),
        "knees upside down": knees(lambda crop: crop[::-1]),
        "knees inverted": knees(lambda crop: 255 - crop),
        "knees blurred (2 pixels)": knees(lambda crop: cv2.GaussianBlur(crop, (0, 0), 2)),
        "knees as JPEG of quality 50": knees(as_jpeg),
    }


def collect(args: argparse.Namespace) -> dict[str, Seen]:
    """Features of every kind of image; "fitted ..." are learnt from, "held-out ..." are of fold 0."""
    reader = Reader(args.weights)
    with (args.weights / "folds.csv").open(newline="") as file:
        fold = {row["study_id"]: int(row["fold"]) for row in csv.DictReader(file)}
    studies = [study for study in reader.task.read(args.data, "train") if study.id in fold]
    order = np.random.default_rng(3).permutation(len(studies))
    known = [studies[i] for i in order if fold[studies[i].id] > 0]
    held = [studies[i] for i in order if fold[studies[i].id] == 0]
    seen = {"fitted crops": reader.of(known[: args.crops]), "held-out crops": reader.of(held[: args.held])}
    seen["fitted films"] = reader.of_pictures(films(known, args.films), "")
    seen["held-out films"] = reader.of_pictures(films(held, args.films), "")
    for kind, pictures in others(held, args.others, args.spines).items():
        seen[kind] = reader.of_pictures(pictures)
        print(f"{kind}: {len(seen[kind].halves)} crops read", flush=True)
    return seen


def learnt(seen: dict[str, Seen]) -> image_checks.ImageChecks:
    """Fitted, with thresholds from one half of the held-out patients."""
    known = np.concatenate([seen["fitted crops"].halves, seen["fitted films"].halves])
    checks = replace(image_checks.fit(known), lateral=image_checks.fit(seen["fitted crops"].halves).lateral)
    crops, composed = seen["held-out crops"].half(0), seen["held-out films"].half(0)
    distances = [checks.distance(part.halves) for part in (crops, composed)]
    unusual = max(float(np.percentile(part, USUAL)) for part in distances)
    scores = checks.score(crops.halves)
    return replace(checks, unusual=round(unusual, 4), sure=round(least_sure(scores), 4))


def least_sure(scores: np.ndarray) -> float:
    """The least size of a score that ``COVERED`` of the crops reach, or more where less than ``SURE`` of those that
    reach it are on the right side."""
    size = np.abs(scores)
    for limit in np.sort(size[size >= np.percentile(size, 100 * (1 - COVERED))]):
        if np.mean(scores[size >= limit] > 0) >= SURE:
            return float(limit)
    return float(size.max())


def by_patients(values: np.ndarray, patients: np.ndarray) -> str:
    """Mean of 0/1 values and its 95 % interval over resampled patients."""
    names, which = np.unique(patients, return_inverse=True)
    sums, counts = np.bincount(which, values, len(names)), np.bincount(which, minlength=len(names))
    drawn = np.random.default_rng(0).integers(0, len(names), (2000, len(names)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return f"{values.mean():.4f} ({low:.4f} - {high:.4f}, {len(values)} of {len(names)} patients)"


def show(checks: image_checks.ImageChecks, seen: dict[str, Seen]) -> None:
    rest = seen["held-out crops"].half(1)
    scores = checks.score(rest.halves)
    sure = np.abs(scores) >= checks.sure
    print(f"side, held-out crops: right {by_patients(scores > 0, rest.patients)}")
    print(f"side where sure: {sure.mean():.3f} of them, right {by_patients(scores[sure] > 0, rest.patients[sure])}")
    print(f"{'images':<30}{'studies without a crop':>24}{'crops':>7}{'flagged':>9}{'share':>8}{'median distance':>17}")
    for kind, own in seen.items():
        part = own.half(1) if kind.startswith("held-out") else own
        if len(part.halves):
            away = checks.distance(part.halves)
            flagged = int(np.sum(away > checks.unusual))
            print(
                f"{kind:<30}{own.without:>24}{len(away):>7}{flagged:>9}{flagged / len(away):>8.3f}"
                f"{np.median(away):>17.2f}"
            )
    print(f"threshold {checks.unusual}")


def write(weights: Path, checks: image_checks.ImageChecks) -> None:
    """The tensors as fp32 beside the nets, and the entry ``checks`` of the manifest."""
    tensors = {name: getattr(checks, name).astype(np.float32) for name in image_checks.TENSORS}
    path = weights / FILE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(save(tensors))
    facts = {"file": FILE, "sha256": sha256(path), "bytes": path.stat().st_size, "grader": GRADER}
    numbers = {name: round(float(getattr(checks, name)), 4) for name in image_checks.NUMBERS}
    write_manifest(weights, replace(bundle.read_manifest(weights), checks=facts | numbers))


def kept(path: Path | None, args: argparse.Namespace) -> dict[str, Seen]:
    """What ``collect`` gives, from ``path`` where it was kept there."""
    if path and path.is_file():
        with np.load(path) as stored:
            names = [name for name in stored.files if name.endswith("/halves")]
            parts = [name.rpartition("/")[0] for name in names]
            return {
                part: Seen(stored[f"{part}/halves"], stored[f"{part}/patients"], int(stored[f"{part}/without"]))
                for part in parts
            }
    seen = collect(args)
    if path:
        np.savez(path, **{f"{kind}/{name}": value for kind, own in seen.items() for name, value in vars(own).items()})
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=800)
    parser.add_argument("--held", type=int, default=500)
    parser.add_argument("--films", type=int, default=80)
    parser.add_argument("--others", type=int, default=40)
    parser.add_argument("--spines", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen = kept(args.keep, args)
    checks = learnt(seen)
    show(checks, seen)
    if not args.dry:
        write(args.weights, checks)


if __name__ == "__main__":
    main()

"""Faults planted in a copy of a folder of data, and which of them `osteograde inspect` finds: recall and false alarms.

A copy is made of links; of what is planted new files are written. Planted are copies of images (packed again, resized,
brighter, mirrored), patients who are torn (between two splits, or under two spellings of one name), files that cannot
be read, and labels that are changed. Everything found beyond what was planted, and beyond what the untouched folder
gives, is a false alarm. Changed labels are also planted in memory many times over, which needs no image.

    python bench/inspect_faults.py knee-xray --data DIR/knee-kl --oof weights/knee-xray
    python bench/inspect_faults.py spider --data DIR/spider --oof weights/spider
    python bench/inspect_faults.py knee-xray --data DIR/knee-kl --limits 600
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from osteograde.imaging import fingerprint
from osteograde.imaging.discovery import stem_of
from osteograde.report import data_census, data_pictures, data_survey, oof_tables
from osteograde.report.data_census import Surveyed
from osteograde.report.data_survey import Gathered
from osteograde.report.oof_tables import Evidence
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study, Task
from osteograde.tasks.spider_files import level_of

COPIES, TORN, UNREADABLE, FLIPPED = 10, 5, 5, 20
TOP = (20, 50, 100, 200)
Writer = Callable[[np.ndarray, Path], Path]


@dataclass
class Planted:
    """What was planted: copies as pairs of stems, torn patients, unreadable files by name, changed labels."""

    copies: set[frozenset[str]] = field(default_factory=set)
    kinds: dict[frozenset[str], str] = field(default_factory=dict)
    splits: set[str] = field(default_factory=set)
    spellings: set[frozenset[str]] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)
    flipped: set[tuple[str, str]] = field(default_factory=set)


def _saved(fmt: str, quality: int, change: Callable[[np.ndarray], np.ndarray] = lambda grey: grey) -> Writer:
    def write(grey: np.ndarray, path: Path) -> Path:
        path = path.with_suffix("." + fmt.lower())
        Image.fromarray(change(grey)).save(path, fmt, quality=quality)
        return path

    return write


def _scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda grey: cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


WAYS: dict[str, Writer] = {
    "png": _saved("PNG", 0),
    "jpeg 75": _saved("JPEG", 75),
    "webp 50": _saved("WEBP", 50),
    "0.75 times as large, jpeg 85": _saved("JPEG", 85, _scaled(0.75)),
    "1.1 times as large": _saved("PNG", 0, _scaled(1.1)),
    "half as large, jpeg 60": _saved("JPEG", 60, _scaled(0.5)),
    "brighter, less contrast": _saved("PNG", 0, lambda grey: (grey * 0.85 + 25).clip(0, 255).astype(np.uint8)),
    "gamma 0.8": _saved("PNG", 0, lambda grey: (255 * (grey / 255) ** 0.8).astype(np.uint8)),
    "mirrored": _saved("PNG", 0, lambda grey: np.ascontiguousarray(grey[:, ::-1])),
    "mirrored, jpeg 75": _saved("JPEG", 75, lambda grey: np.ascontiguousarray(grey[:, ::-1])),
}


def linked(source: Path, out: Path) -> None:
    """A copy of a folder as links to its files."""
    for path in sorted(source.rglob("*")):
        place = out / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())


def pictures_of(gathered: Gathered) -> list[Path]:
    """The files of series of one picture each, in random order for the caller to choose from."""
    return [one.files[0] for study in gathered.studies for one in study.series if len(one.files) == 1]


def plant_copies(files: Sequence[Path], name_of: Callable[[Path, int, bool], str], planted: Planted) -> None:
    """Copies beside their originals, half of them under the name of another patient."""
    for number, (path, (way, write)) in enumerate(zip(files, WAYS.items(), strict=False)):
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        made = write(grey, path.with_name(name_of(path, number, number % 2 == 0)))
        pair = frozenset({stem_of(path), stem_of(made)})
        planted.copies.add(pair)
        planted.kinds[pair] = way


def plant_unreadable(files: Sequence[Path], planted: Planted) -> None:
    """Files that are empty, cut, something else, or damaged at their start or in their middle."""
    for number, path in enumerate(files):
        contents = path.read_bytes()
        path.unlink()
        damaged = (
            b"",
            contents[: len(contents) // 3],
            b"<html>not found</html>" * 40,
            b"\0" * 64 + contents[64:],
            _damaged_png(contents),
        )[number % 5]
        path.write_bytes(damaged)
        planted.unreadable.add(path.name)


def _damaged_png(contents: bytes) -> bytes:
    """The image as PNG whose pixels were overwritten in the middle."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(contents)) as image:
        image.convert("L").save(packed, "PNG")
    data = bytearray(packed.getvalue())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\xff" * 400
    return bytes(data)


def plant_knees(root: Path, task: Task, rng: np.random.Generator) -> Planted:
    """All faults in a folder SPLIT/GRADE/<patient><L or R>.* of crops."""
    planted, files = Planted(), pictures_of(data_survey.gather(task, root))
    files = [file for file in files if file.parent.name.isdigit()]  # films of a test part lie in no grade folder
    chosen = [files[i] for i in rng.permutation(len(files))]
    take = iter({file.stem[:-1]: file for file in chosen}.values())  # one knee of each patient
    plant_unreadable([next(take) for _ in range(UNREADABLE)], planted)

    def name_of(path: Path, number: int, other: bool) -> str:
        return f"{7000000 + number}{path.stem[-1]}.x" if other else f"{path.stem}_v2.x"

    plant_copies([next(take) for _ in range(COPIES)], name_of, planted)
    knees = Counter(file.stem[:-1] for file in files)
    both = [file for file in take if knees[file.stem[:-1]] == 2]
    for number, path in enumerate(both[:TORN]):
        patient = path.stem[:-1]
        if number < 3:
            split = path.relative_to(root).parts[0]
            other = root / ("val" if split == "train" else "train") / path.parent.name / path.name
            other.parent.mkdir(parents=True, exist_ok=True)
            path.rename(other)
            planted.splits.add(patient)
        else:
            path.rename(path.with_name(f"0{path.name}"))
            planted.spellings.add(frozenset({patient, f"0{patient}"}))
    for path in both[TORN : TORN + FLIPPED]:
        grade = int(path.parent.name)
        new = flipped(grade, len(task.classes), rng, far=True)
        other = path.parents[1] / str(new) / path.name
        other.parent.mkdir(parents=True, exist_ok=True)
        path.rename(other)
        side = {"L": "left", "R": "right"}[path.stem[-1]]
        planted.flipped.add((path.stem, side))
    return planted


def plant_spider(root: Path, task: Task, rng: np.random.Generator) -> Planted:
    """All faults in a folder slices/<patient>_<t1 or t2>.* with gradings.csv."""
    planted, gathered = Planted(), data_survey.gather(task, root)
    pairs = [study for study in gathered.studies if len(study.series) == 2]
    chosen = iter([pairs[i] for i in rng.permutation(len(pairs))])

    def t2(study: Study) -> Path:
        return next(one.files[0] for one in study.series if one.view == "t2")

    plant_unreadable([t2(next(chosen)) for _ in range(UNREADABLE)], planted)

    def name_of(path: Path, number: int, other: bool) -> str:
        # a patient has one T2 image: what is there twice is a patient's by its T2-SPACE name
        return f"{900 + number}_t2.x" if other else f"{path.stem}_SPACE.x"

    plant_copies([t2(next(chosen)) for _ in range(COPIES)], name_of, planted)
    for number, study in enumerate(next(chosen) for _ in range(TORN)):
        path = t2(study)
        if number < 3:
            for part, one in (("train", study.series[0].files[0]), ("val", study.series[1].files[0])):
                (one.parent / part).mkdir(exist_ok=True)
                one.rename(one.parent / part / one.name)
            planted.splits.add(study.patient)
        else:
            path.rename(path.with_name(f"0{path.name}"))
            planted.spellings.add(frozenset({study.patient, f"0{study.patient}"}))
    table = pd.read_csv(root / "gradings.csv", dtype=str)
    (root / "gradings.csv").unlink()
    names = {str(column).lower(): str(column) for column in table}
    grade, label, patient = names["pfirrman grade"], names["ivd label"], names["patient"]
    rows = table.index[table[label].astype(float).between(1, 5) & table[grade].notna()]
    for row in rng.choice(rows, FLIPPED, replace=False):
        new = flipped(int(float(table.loc[row, grade])) - 1, len(task.classes), rng, far=True)
        table.loc[row, grade] = str(new + 1)
        planted.flipped.add((str(table.loc[row, patient]), level_of(int(float(table.loc[row, label])))))
    table.to_csv(root / "gradings.csv", index=False)
    return planted


def flipped(label: int, classes: int, rng: np.random.Generator, far: bool) -> int:
    """Another class: two or more away where ``far``, else a neighbour."""
    away = np.abs(np.arange(classes) - label)
    return int(rng.choice(np.flatnonzero(away >= 2 if far else away == 1)))


def surveyed(task: Task, root: Path, evidence: Evidence | None) -> Surveyed:
    gathered = data_survey.gather(task, root)
    looks = data_survey.survey(task, gathered)
    copies = data_survey.find_copies(task, gathered, looks)
    return Surveyed(task, gathered, looks, copies, evidence.fold if evidence else {})


def found_in(seen: Surveyed) -> Planted:
    """What the census says, in the same form."""
    found = Planted()
    for group in seen.copies:
        stems = [_stem(seen, i) for i in group.members]
        found.copies |= {frozenset({stems[0], other}) for other in stems[1:]}
    splits = data_census.splits_of_studies(seen)
    found.splits = set(data_census.patients_over(seen, splits)[0])
    found.spellings = {frozenset(group) for group in data_census.spellings(s.patient for s in seen.studies)}
    found.unreadable = {path.name for look in seen.looks for path, _ in look.unreadable}
    return found


def _stem(seen: Surveyed, i: int) -> str:
    series = seen.series(seen.looks[i])
    return stem_of(series.files[0]) if len(series.files) == 1 else f"{series.id} (stack)"


def report(planted: Planted, found: Planted, before: Planted) -> None:
    print(f"{'fault':<34} planted  found  false alarms  in the untouched folder")
    for name in ("copies", "splits", "spellings", "unreadable"):
        wanted, got, old = (getattr(one, name) for one in (planted, found, before))
        false = got - wanted - old
        print(f"{name:<34} {len(wanted):7} {len(got & wanted):6} {len(false):13}  {len(old)}")
        for one in sorted(map(str, wanted - got)):
            print(f"    missed: {one}")
        for one in sorted(map(str, false))[:5]:
            print(f"    false alarm: {one}")
    for pair in planted.copies - found.copies:
        print(f"    a missed copy was: {planted.kinds[pair]}")


def report_labels(seen: Surveyed, evidence: Evidence, wanted: Iterable[tuple[str, str]]) -> None:
    """Where the changed labels stand among the least believable ones, on the folder itself."""
    rows = data_pictures.doubt_labels(seen, evidence)
    patients = {study.id: study.patient for study in seen.studies}
    keys = [(seen.studies[i].id, target) for i, target in zip(rows.studies, rows.targets, strict=True)]
    hit = np.array([key in wanted or (patients[key[0]], key[1]) in wanted for key in keys])
    order = rows.doubts.order
    unbelieved = rows.doubts.self_confidence < data_pictures.UNBELIEVABLE
    print(f"changed labels: {len(set(wanted))}, their rows {int(hit.sum())} of {len(hit)}")
    for top in TOP:
        print(f"    among the {top:3} least believable: {int(hit[order[:top]].sum())}")
    print(f"    below one in a hundred: {int((hit & unbelieved).sum())} of {int(unbelieved.sum())} rows")
    print(f"    taken for another class: {int((hit & rows.doubts.doubted).sum())} of {int(rows.doubts.doubted.sum())}")


def many_flips(seen: Surveyed, evidence: Evidence, draws: int, far: bool) -> None:
    """Labels changed in memory, ``draws`` times: mean recall among the first rows, and the area under the curve."""
    places = [(i, target) for i, study in enumerate(seen.studies) for target in study.labels]
    recall, areas, below = np.zeros((draws, len(TOP))), np.zeros(draws), np.zeros((draws, 2))
    for draw in range(draws):
        rng = np.random.default_rng(1000 + draw)
        new: dict[int, dict[str, int]] = {}
        chosen = {places[k] for k in rng.choice(len(places), FLIPPED, replace=False)}
        for i, target in sorted(chosen):
            labels = new.setdefault(i, dict(seen.studies[i].labels))
            labels[target] = flipped(labels[target], len(seen.task.classes), rng, far)
        studies = tuple(replace(s, labels=new.get(i, s.labels)) for i, s in enumerate(seen.studies))
        changed = replace(seen, gathered=replace(seen.gathered, studies=studies))
        rows = data_pictures.doubt_labels(changed, evidence)
        hit = np.array([key in chosen for key in zip(rows.studies, rows.targets, strict=True)])
        order = rows.doubts.order
        recall[draw] = [hit[order[:top]].sum() for top in TOP]
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        areas[draw] = (rank[~hit].mean() - rank[hit].mean()) / len(hit) + 0.5
        unbelieved = rows.doubts.self_confidence < data_pictures.UNBELIEVABLE
        below[draw] = (hit & unbelieved).sum(), unbelieved.sum()
    name = "two or more classes away" if far else "one class away"
    means = ", ".join(f"{mean:.1f} in the first {top}" for mean, top in zip(recall.mean(0), TOP, strict=True))
    print(f"{FLIPPED} labels {name}, mean of {draws} draws: {means}; area under the curve {areas.mean():.3f}; "
          f"below one in a hundred {below[:, 0].mean():.1f} of {below[:, 1].mean():.1f} rows")  # fmt: skip


def _cut(grey: np.ndarray, share: float) -> np.ndarray:
    rows, columns = (round(side * share) for side in grey.shape)
    return np.ascontiguousarray(grey[rows:-rows, columns:-columns])


def _turned(grey: np.ndarray, degrees: float) -> np.ndarray:
    height, width = grey.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return cv2.warpAffine(grey, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)


HARDER: dict[str, Writer] = {
    "0.43 times as large, jpeg 60": _saved("JPEG", 60, _scaled(0.43)),
    "jpeg 40": _saved("JPEG", 40),
    "0.7 % cut off at each side": _saved("PNG", 0, lambda grey: _cut(grey, 0.007)),
    "1.7 % cut off at each side": _saved("PNG", 0, lambda grey: _cut(grey, 0.017)),
    "turned by 1 degree": _saved("PNG", 0, lambda grey: _turned(grey, 1.0)),
}


def limits(seen: Surveyed, count: int, rng: np.random.Generator) -> None:
    """How many of ``count`` copies of each kind lie within the limits, and how near different images come to them."""
    shown = [i for i, look in enumerate(seen.looks) if look.prints is not None and look.files == 1]
    prints = np.stack([seen.looks[i].prints for i in shown])  # type: ignore[misc]
    for name, others in (("as they are", None), ("mirrored", prints[:, 1])):
        pairs = fingerprint.near_pairs(prints[:, 0], others, most_bits=70)
        other = prints[:, 0] if others is None else others
        bits = sorted(int(np.bitwise_count(prints[i, 0] ^ other[j]).sum()) for i, j in pairs)
        print(f"{len(shown)} images, nearest different ones {name}: bits {bits[:5]}")
    chosen = [shown[k] for k in rng.choice(len(shown), min(count, len(shown)), replace=False)]
    for name, write in (WAYS | HARDER).items():
        apart, alike = zip(*(_of_copy(seen, i, write) for i in chosen), strict=True)
        found = [
            b <= fingerprint.MOST_BITS and a >= fingerprint.LEAST_LIKENESS for b, a in zip(apart, alike, strict=True)
        ]
        print(f"{name:<32} found {np.mean(found):.3f}  bits: median {np.median(apart):.0f}, most {max(apart)}; "
              f"likeness: median {np.median(alike):.3f}, least {min(alike):.3f}")  # fmt: skip


def _of_copy(seen: Surveyed, i: int, write: Writer) -> tuple[int, float]:
    """(bits, likeness) of an image and a copy of it; of mirror images the nearer of both ways."""
    series = seen.series(seen.looks[i])
    with Image.open(series.files[0]) as image:
        grey = np.asarray(image.convert("L"))
    with tempfile.TemporaryDirectory() as folder:
        made = write(grey, Path(folder) / series.files[0].name)
        copy = data_survey.image_of(seen.task, replace(series, files=(made,)))
    own = data_survey.image_of(seen.task, series)
    assert own is not None and copy is not None
    small, other = fingerprint.small_copy(own), fingerprint.small_copy(copy)
    both = []
    for one in (other, other[:, ::-1]):
        prints = fingerprint.fingerprints(np.stack([small, one]))
        both.append((int(np.bitwise_count(prints[0] ^ prints[1]).sum()), fingerprint.likeness(small, one)))
    return min(both)


PLANTERS: Mapping[str, Callable[[Path, Task, np.random.Generator], Planted]] = {
    "knee-xray": plant_knees,
    "spider": plant_spider,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(PLANTERS))
    parser.add_argument("--data", type=Path, required=True, help="grade folders of crops, or slices with gradings.csv")
    parser.add_argument("--oof", type=Path, help="the weights folder whose oof.csv judges the labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=30, help="of labels changed in memory")
    parser.add_argument("--limits", type=int, default=0, metavar="N", help="measure N copies of each kind, and no more")
    args = parser.parse_args()
    task = TASKS[args.task]
    evidence = oof_tables.read(args.oof, TASKS) if args.oof else None
    before = surveyed(task, args.data, evidence)
    if args.limits:
        limits(before, args.limits, np.random.default_rng(args.seed))
        return
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder) / "data"
        linked(args.data, root)
        planted = PLANTERS[args.task](root, task, np.random.default_rng(args.seed))
        seen = surveyed(task, root, evidence)
        print(f"{args.task}: {len(seen.studies)} studies, {len(seen.looks)} series")
        report(planted, found_in(seen), found_in(before))
        if evidence:
            report_labels(seen, evidence, planted.flipped)
    if evidence:
        for far in (True, False):
            many_flips(before, evidence, args.draws, far)


if __name__ == "__main__":
    main()

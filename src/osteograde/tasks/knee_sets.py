"""Published sets of knee crops as their publishers lay them out: which image counts, and which are never learnt from.

Chen's set (Mendeley Data V1, doi 10.17632/56rmx5bjcr.1) unpacks to

    KneeXrayData/ClsKLData/kneeKL224/{train,val,test,auto_test}/{0..4}/9003175L.png
    KneeXrayData/ClsKLData/kneeKL299/ ... the same knees in another resolution

The split is made by patient; auto_test holds knees of the patients of test that a program cropped (9003175_1.png is the
right one, 9003175_2.png the left). Both are held back for scores. The same folders without the ones above them, or with
more above them, are read alike.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from osteograde.errors import UserError
from osteograde.tasks.tables import some

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "auto_test")
HELD_BACK = ("test", "auto_test")
_RESOLUTION = re.compile(r"kneeKL(\d{2,4})", re.IGNORECASE)


@dataclass(frozen=True)
class Graded:
    """What the tables say of a film: its patient, the visit ("00" is baseline), and side -> Kellgren-Lawrence grade."""

    patient: str
    visit: str
    grades: Mapping[str, int]


def split_of(file: Path, folder: Path, grades: Sequence[str]) -> str:
    """The published split that an image below a folder lies in: the name of the folder above that of its grade; ""
    where that is none. The folder itself may be the split, or a grade of it."""
    parts = (*folder.resolve().parts[-2:], *file.relative_to(folder).parts)
    if len(parts) < 3 or parts[-2] not in grades:
        return ""
    return parts[-3] if parts[-3] in SPLITS else ""


def largest_of_each(files: Sequence[Path], folder: Path) -> list[Path]:
    """The images without those that lie there in a larger resolution as well (kneeKL224 beside kneeKL299)."""
    best: dict[Path, tuple[int, Path]] = {}
    keys = {}
    for file in files:
        parts = file.relative_to(folder).parts
        sizes = [(i, int(told[1])) for i, part in enumerate(parts) if (told := _RESOLUTION.fullmatch(part))]
        if sizes:
            place, size = sizes[-1]
            key = Path(*parts[:place], "*", *parts[place + 1 :]).with_suffix("")
            keys[file] = key
            best[key] = max(best.get(key, (size, file)), (size, file), key=lambda pair: pair[0])
    kept = [file for file in files if file not in keys or best[keys[file]][1] == file]
    if len(kept) < len(files):
        log.info("%s: %d images lie there in a larger resolution as well: each knee counts once",
                 folder, len(files) - len(kept))  # fmt: skip
    return kept


def to_learn_from(
    files: Sequence[Path], folder: Path, grades: Sequence[str], patient_of: Mapping[Path, str]
) -> list[Path]:
    """The images without those of the splits that are held back, and without other images of their patients.

    patient_of: "" where an image names none. UserError where nothing is left.
    """
    splits = {file: split_of(file, folder, grades) for file in files}
    held = [file for file in files if splits[file] in HELD_BACK]
    if not held:
        return list(files)
    patients = {patient_of[file] for file in held} - {""}
    torn = [file for file in files if splits[file] not in HELD_BACK and patient_of[file] in patients]
    kept = [file for file in files if splits[file] not in HELD_BACK and file not in {*torn}]
    counts = Counter(splits.values())
    told = ", ".join(f"{name} {counts[name]}" for name in HELD_BACK if counts[name])
    if not kept:
        raise UserError(
            f"{folder}: all images lie in splits that are held back for scores ({told}); give the folder that holds "
            "train and val, or call the folder of your own images otherwise"
        )
    own = Counter(splits[file] or "others" for file in kept)
    log.info("%s: to learn from: %s; held back and never learnt from: %s (score them with --split)", folder,
             ", ".join(f"{name} {count}" for name, count in own.items()), told)  # fmt: skip
    if torn:
        log.warning("%s: %d images outside of these splits show their patients: left out (%s)", folder, len(torn),
                    some([file.relative_to(folder) for file in torn], 3))  # fmt: skip
    return kept

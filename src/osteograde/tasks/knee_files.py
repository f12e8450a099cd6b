"""Reading of `knee-xray`: single-knee crops, with grade folders or without, and full films as pictures or DICOM.

What an image is follows from its size and header alone, so that every row is known before a pixel is decoded:

* a small square picture is a crop of one knee, 140 mm wide, as all public sets of crops are;
* a film wider than tall, or as wide as two knees are, shows both (two rows), unless its header names one side;
* any other film shows one knee (one row), of the side its header or its file's name says, else taken as a right one.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from osteograde.errors import UserError
from osteograde.imaging import image_files
from osteograde.imaging.dicom.radiograph import film_outline
from osteograde.imaging.discovery import look_through, part_folder, stem_of, unique_names
from osteograde.tasks.spec import Mark, Series, Study
from osteograde.tasks.tables import row_grades, some

log = logging.getLogger(__name__)

VIEW = "film"
SIDES = ("right", "left")
GRADES = ("0", "1", "2", "3", "4")
CROP_MM = 140.0
CROP_PIXELS = 640  # a larger picture is a film
BOTH_MM = 290.0  # a film at least as wide shows both knees, however tall
SQUARE = 0.05  # sides of a crop differ by less than this share
_NAMED = re.compile(
    r"^(?P<patient>[0-9]+)_?(?P<side>[LRlr]|(?<=_)[12])$"
)  # 9001695L, or OAI's codes: _1 right, _2 left
_PATIENT = re.compile(r"(?:^|_)([0-9]+)_?(?:[LRlr]|(?<=_)[12])$")  # the same behind folders (image_files.names)
_SIDE = {"r": "right", "l": "left", "1": "right", "2": "left"}


def read(root: Path, part: str) -> list[Study]:
    """Every image below ROOT as a study; for "train" those in grade folders 0..4, with labels and joint centres.

    For "test" ROOT/test_images where it exists; labels and folder names are not looked at. ValueError where there is
    no image.
    """
    root = Path(root)
    folder = part_folder(root, part)
    found = look_through(folder)
    found.tell(used=[root / name for name in ("test_truth.csv", "train.csv")])
    files = list(found.files)
    if part == "train":
        files = [file for file in files if file.parent.name in GRADES]
        if files and len(files) < len(found.files):
            log.info("%s: %d images lie in no grade folder: not used", folder, len(found.files) - len(files))
    if not files:
        kind = "images in grade folders 0 to 4" if part == "train" else "image files (png, jpg, webp, tif, bmp, dcm)"
        raise UserError(f"{folder}: no {kind}; give the folder that holds them")
    made = (
        study_of_image(file, name, part == "train")
        for file, name in zip(files, unique_names(files, folder), strict=True)
    )
    return sorted(made, key=lambda one: one.id)


def study_of_image(file: Path, name: str, labelled: bool) -> Study:
    """One image as a study. See the module for what it is taken to be."""
    width, height, side, width_mm = _outline(file)
    told = _NAMED.match(stem_of(file))
    patient = patient_of(name)
    named = _SIDE[told["side"].lower()] if told else ""
    if (
        image_files.is_image(file)
        and max(width, height) <= CROP_PIXELS
        and abs(width - height) <= SQUARE * max(width, 1)
    ):
        side = named or "right"
        pixel_mm = CROP_MM / max(width, 1)
        series = Series(name, VIEW, file.parent, (file,), (4.0, pixel_mm, pixel_mm), side)
    elif side in SIDES or (width <= height and width_mm < BOTH_MM):
        side = side if side in SIDES else named or "right"
        series = Series(name, VIEW, file.parent, (file,), side=side)
    else:
        return Study(name, patient, (Series(name, VIEW, file.parent, (file,)),))
    labels = {side: int(file.parent.name)} if labelled else {}
    marks = (Mark(side, name, file.stem, (width - 1) / 2, (height - 1) / 2),) if labelled else ()
    return Study(name, patient, (series,), labels, marks, targets=(side,))


def patient_of(study_id: str) -> str:
    """Whose knee a study shows: the digits before the side, else nobody else's.

    >>> patient_of("9001695L"), patient_of("9001695_2"), patient_of("val_3_9001695R"), patient_of("film12")
    ('9001695', '9001695', '9001695', 'film12')
    """
    told = _PATIENT.search(study_id)
    return told[1] if told else study_id


def _outline(file: Path) -> tuple[int, int, str, float]:
    """(width, height, side, width in mm) of a file's header; zeros where it does not say, or cannot be read: reading it
    will tell why."""
    try:
        return (*image_files.image_size(file), "", 0.0) if image_files.is_image(file) else film_outline(file)
    except image_files.UnreadableImage:
        return 0, 0, "", 0.0


def labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {side: grade}} of a table row_id,grade whose row ids end in _right or _left. ValueError otherwise."""
    rows = [(line, row.rpartition("_"), grade) for line, row, grade in row_grades(path, GRADES)]
    if bad := [f"{''.join(parts)} (line {line})" for line, parts, _ in rows if parts[2] not in SIDES]:
        raise UserError(f"{path}: rows without a side: {some(bad)}; expected ids that end in _right or _left")
    found: dict[str, dict[str, int]] = {}
    for _, (name, _, side), grade in rows:
        if grade:
            found.setdefault(name, {})[side] = int(grade)
    return found

"""Reading of `spider`: sagittal slices and stacks of lumbar spines, with the data set's tables or without any.

* ``<patient>_t1.*`` and ``<patient>_t2.*`` are two views of one study, ``<patient>``;
* ``<patient>_t2_SPACE.*`` is a study of its own, and so is the stack of ``<patient>_t2_SPACE_slice<k>.*``;
* the same names with .mha or .nii.gz are whole volumes, as the set is published: images/1_t2.mha, masks/1_t2.mha;
* any other picture or DICOM file is a study of its own, taken for T2; a folder of DICOM files is one study.

Tables (overview.csv, gradings.csv, boxes.csv) are looked for beside the images; without them pictures are taken to be
280 mm wide. Nothing that is graded depends on that: crops are as large as the patient's own discs lie apart.

Disc centres as boxes and masks give them. Levels are counted up from the lowest disc.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from osteograde.errors import UserError
from osteograde.imaging import image_files
from osteograde.imaging.discovery import Found, look_at, look_through, part_folder, stem_of, unique_names
from osteograde.imaging.geometry import LEFT
from osteograde.imaging.volume_files import SUFFIXES as VOLUME_SUFFIXES
from osteograde.imaging.volume_files import read_volume, slices_first
from osteograde.tasks.census import Census, Fact
from osteograde.tasks.covariates import FILE as COVARIATES_FILE
from osteograde.tasks.names import PATIENTS, People, read_people
from osteograde.tasks.spec import CATEGORY, Covariate, Mark, Series, Study
from osteograde.tasks.spine import LEVELS
from osteograde.tasks.tables import (
    cells_of,
    header_of,
    matched,
    numbers,
    read_table,
    refuse,
    refuse_conflicts,
    row_grades,
    some,
)

log = logging.getLogger(__name__)

_Known = tuple[dict[str, int], dict[str, dict[str, int]]]  # level -> class index, finding -> level -> 0 or 1
GRADES = ("1", "2", "3", "4", "5")
FINDINGS = {"narrowing": "disc narrowing", "bulging": "disc bulging"}  # yes/no heads and their columns
MASKS = "masks"  # folder of label images, never images to grade
_NAMED = re.compile(r"^(?P<patient>[0-9A-Za-z]+)_(?P<view>t1|t2)(?P<space>_SPACE)?(?:_slice(?P<slice>[0-9]+))?$")
ALSO_CALLED = {"gradings.csv": "radiological_gradings.csv"}  # as the set is published
KEYS = {
    "overview.csv": ("new_file_name",),
    "gradings.csv": ("patient", "ivd label"),
    "boxes.csv": ("slice", "ivd_label"),
}
COLUMNS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {  # texts, needed and other numbers
    "overview.csv": (("new_file_name", "pixelspacing"), (), ("slicethickness", "spacingbetweenslices")),
    "gradings.csv": (("patient",), ("ivd label",), ("pfirrman grade", *FINDINGS.values())),
    "boxes.csv": (("slice",), ("ivd_label", "x0", "y0", "x1", "y1"), ()),
}
COVARIATES = (  # of a scan or its patient, as overview.csv and covariates.csv may have them
    Covariate("sex", CATEGORY, ("F", "M")),
    Covariate("age"),
    Covariate("field_tesla", CATEGORY, ("1.5", "3.0")),
    Covariate("maker", CATEGORY, ("Siemens", "Philips")),
)
_COVARIATE_COLUMNS = {  # of overview.csv; what it calls a date of birth is an age in years
    "sex": "sex",
    "birth_date": "age",
    "magneticfieldstrength": "field_tesla",
    "manufacturer": "maker",
}


def level_of(label: int) -> str:
    """The level of a disc label, counted up from 1 = L5/S1; "" beyond the five lowest.

    >>> level_of(1), level_of(5), level_of(6)
    ('l5_s1', 'l1_l2', '')
    """
    return LEVELS[-label] if 1 <= label <= len(LEVELS) else ""


def patient_of(study: str) -> str:
    """The patient of a study's id; ids of other files are patients of their own."""
    told = re.match(r"^([0-9A-Za-z]+)_t2_SPACE(_stack)?$", study)
    return told[1] if told else study


def read(root: Path, part: str) -> list[Study]:
    """Every image below ROOT (for "test" ROOT/test_images where it exists) as studies; "train": with what is known.

    UserError where there is no image, where a table is broken, or where nothing is known about any image.
    """
    root = Path(root)
    studies = _studies(root, look_through(part_folder(root, part)))
    if part == "train":
        studies = _known(root, studies)
        if not studies:
            raise UserError(f"{root}: gradings.csv, boxes.csv or masks say nothing about its images; nothing to learn")
    return sorted(studies, key=lambda study: study.id)


def read_files(root: Path, files: Sequence[Path]) -> list[Study]:
    """Single images below ROOT as studies to be graded; DICOM files of one folder are one study. UserError where none
    of them is an image, or a table is broken."""
    found = look_at(root, files)
    studies = _studies(Path(root), found, apart={file.parent for file in found.files})
    return sorted(studies, key=lambda study: study.id)


def _studies(root: Path, found: Found, apart: Collection[Path] = ()) -> list[Study]:
    """The images as studies. apart: folders of which not all DICOM files are meant."""
    folder = found.root
    tables = (*COLUMNS, *ALSO_CALLED.values(), "SOURCE.json", PATIENTS, COVARIATES_FILE)
    found.tell(used=[*(root / name for name in tables), *found.volumes])
    every = (*found.files, *found.volumes)
    files = [file for file in every if MASKS not in file.relative_to(folder).parts[:-1]]
    if len(files) < len(every):
        log.info("%s: %d label images in folders called %s", folder, len(every) - len(files), MASKS)
    if not files:
        raise UserError(
            f"{folder}: no image files (png, jpg, webp, tif, bmp, dcm, mha, nii); give the folder that holds them"
        )
    pictures = [file for file in files if file not in found.dicom]
    # one of 1_t2.png and 1_t2.jpg is named so
    first = {(file.parent, stem_of(file)): file for file in reversed(pictures)}
    named = [file for file in pictures if _match(file) and first[file.parent, stem_of(file)] == file]
    odd = sorted({*pictures} - {*named})
    placed = [
        *_named(named, _spacing(_table(root, "overview.csv"))),
        *_other_pictures(odd),
        *_dicom([file for file in files if file in found.dicom], folder, {*apart, *(file.parent for file in pictures)}),
    ]
    called = unique_names([place for place, _ in placed], folder)
    told = _scan_covariates(root)
    studies = [
        replace(study, id=name, patient=study.patient or name, covariates=_covariates_of(study, told))
        for (_, study), name in zip(placed, called, strict=True)
    ]
    return _with_patients(studies, read_people((root, folder)))


def _with_patients(studies: Sequence[Study], people: People) -> list[Study]:
    """The studies with the patients of patients.csv, which calls them by their id, or by a file or series of theirs."""
    called = [
        [study.id, *(name for one in study.series for name in (one.id, *(file.name for file in one.files)))]
        for study in studies
    ]
    people = people.fitted({name for names in called for name in names})
    told = [people.of(names) for names in called]
    return [
        replace(study, patient=known[0]) if known and known[0] else study
        for study, known in zip(studies, told, strict=True)
    ]


def _named(files: Sequence[Path], spacing: Mapping[str, tuple[float, float, float]]) -> Iterator[tuple[Path, Study]]:
    """Studies, yet without ids, of files that are called as the data set's, and paths that the ids are told from.

    Views of a patient may lie in different folders; where one file name comes twice, each folder has its own patients.
    """
    count = Counter(stem_of(file) for file in files)
    groups: dict[tuple[str, str], list[tuple[Path, str]]] = defaultdict(list)
    for file in files:
        if told := _match(file):
            ending = f"_t2_SPACE{'_stack' if told['slice'] else ''}" if told["space"] else ""
            groups[told["patient"] + ending, told["patient"]].append((file, told["view"]))
    for (name, patient), group in groups.items():
        twice = any(count[stem_of(file)] > 1 for file, _ in group)
        parts: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for file, view in group:
            parts[str(file.parent) if twice else ""][view].append(file)
        for views in parts.values():
            series = tuple(_series(view, views[view], spacing) for view in sorted(views, reverse=True))
            yield series[0].folder / f"{name}.study", Study("", patient, series)


def _series(view: str, files: list[Path], spacing: Mapping[str, tuple[float, float, float]]) -> Series:
    ordered = sorted(files, key=lambda file: (int((_match(file) or {"slice": 0})["slice"] or 0), file.name))
    name = re.sub(r"_slice[0-9]+$", "", stem_of(ordered[0]))
    if ordered[0].name.lower().endswith(VOLUME_SUFFIXES):
        mask = ordered[0].parents[1] / MASKS / ordered[0].name
        numbered = (mask,) if mask.is_file() else ()
        return Series(name, view, ordered[0].parent, (ordered[0],), masks=numbered, label_classes=LABEL_CLASSES)
    masks = tuple(file.parents[1] / MASKS / f"{file.stem}.png" for file in ordered)
    known = all(mask.is_file() for mask in masks)
    return Series(name, view, ordered[0].parent, tuple(ordered), spacing.get(name), masks=masks if known else ())


def _other_pictures(files: Sequence[Path]) -> Iterator[tuple[Path, Study]]:
    """The same of pictures of any other name: unknown contrast counts as T2."""
    for file in files:
        view = told["view"] if (told := _match(file)) else "t2"
        yield file, Study("", "", (Series(stem_of(file), view, file.parent, (file,)),))


def _dicom(files: Sequence[Path], root: Path, mixed: Collection[Path]) -> Iterator[tuple[Path, Study]]:
    """The same of DICOM files: those of a folder are one study. mixed: folders that hold more than these files; of
    them these files alone are read."""
    slices: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        slices[file.parent].append(file)
    for folder, together in slices.items():
        if len(together) > 1:
            name = folder.absolute().name
            place = (root if folder == root else folder.parent) / f"{name}.stack"
            yield place, Study("", "", (Series(name, "", folder, tuple(together) if folder in mixed else ()),))
        else:
            file = together[0]
            yield file, Study("", "", (Series(stem_of(file), "", folder, (file,)),))


def _match(file: Path) -> re.Match[str] | None:
    """What the name of a picture says, where it is called as the data set's are."""
    return _NAMED.match(stem_of(file))


def _known(root: Path, studies: Sequence[Study]) -> list[Study]:
    """The studies that a table or a mask tells something about, with their labels, those of auxiliary heads, and
    marks."""
    boxes, grades = _table(root, "boxes.csv"), _grades(_table(root, "gradings.csv"))
    marks = of_boxes(boxes) if boxes is not None else {}
    grades = _as_files_say(root, grades, {study.patient for study in studies})
    _tell_unused(root, grades, marks, studies)
    found = []
    for study in studies:
        own: list[Mark] = []
        for series in study.series:
            own += marks.get(series.id, []) if not series.masks else of_masks(series)
        labels, head_labels = grades.get(study.patient, ({}, {}))
        if own or labels:
            found.append(replace(study, labels=labels, marks=tuple(own), head_labels=head_labels))
    return found


def _as_files_say(root: Path, grades: dict[str, _Known], patients: Collection[str]) -> dict[str, _Known]:
    """The grades under the patients' names of the files, where leading zeros are all that differs."""
    same = matched(grades, patients)
    if same:
        log.warning("%s: %d patients of gradings.csv differ from the files by leading zeros: matched", root, len(same))
    return {same.get(patient, patient): known for patient, known in grades.items()}


def _tell_unused(
    root: Path, grades: Mapping[str, _Known], marks: Mapping[str, Sequence[Mark]], studies: Sequence[Study]
) -> None:
    """Log how many rows of the tables speak of no image."""
    lost, boxless = _without_image(grades, marks, studies)
    if lost:
        log.warning("%s: %d patients of gradings.csv have no image: %s", root, len(lost), some(lost))
    if boxless:
        log.warning("%s: boxes.csv speaks of %d images that are not there: %s", root, len(boxless), some(boxless))


def _without_image(
    grades: Mapping[str, _Known], marks: Mapping[str, Sequence[Mark]], studies: Sequence[Study]
) -> tuple[list[str], list[str]]:
    """(graded patients, images with boxes) that are not there."""
    patients, series = {study.patient for study in studies}, {one.id for study in studies for one in study.series}
    lost = sorted(patient for patient, (labels, _) in grades.items() if labels and patient not in patients)
    return lost, sorted(name for name in marks if name not in series)


def inspect(root: Path) -> Census:
    """What the tables tell of images that are not there, and which images they leave out. UserError where a table is
    broken or there is no image."""
    root = Path(root)
    studies = _studies(root, look_through(part_folder(root, "train")))
    boxes, overview = _table(root, "boxes.csv"), _table(root, "overview.csv")
    marks = of_boxes(boxes) if boxes is not None else {}
    patients = {study.patient for study in studies}
    grades = _as_files_say(root, _grades(_table(root, "gradings.csv")), patients)
    lost, boxless = _without_image(grades, marks, studies)
    named = {one.id for study in studies for one in study.series if _NAMED.match(one.id)}
    unsized = sorted(named - set(overview["new_file_name"])) if overview is not None else []
    told = "the table speaks of images that are not there"
    return Census(
        (
            Fact("patients of gradings.csv without an image", len(lost), len(grades), some(lost), told, True),
            Fact("images of boxes.csv that are not there", len(boxless), len(marks), some(boxless), told, True),
            Fact("images that overview.csv leaves out", len(unsized), len(named), some(unsized),
                 "their size in mm is assumed", True),
        ),
        (),
    )  # fmt: skip


def _grades(table: pd.DataFrame | None) -> dict[str, _Known]:
    """patient -> (level -> class index, finding -> level -> 0 or 1). Empty cells are unknown."""
    found: dict[str, _Known] = {}
    for row in table.to_dict("records") if table is not None else []:
        level = level_of(int(row["ivd label"]))
        if not level:
            continue
        labels, findings = found.setdefault(row["patient"], ({}, {name: {} for name in FINDINGS}))
        if 1 <= row["pfirrman grade"] <= len(GRADES):
            labels[level] = int(row["pfirrman grade"]) - 1
        for name, column in FINDINGS.items():
            if row[column] >= 0:
                findings[name][level] = int(row[column] > 0)
    return found


def _spacing(table: pd.DataFrame | None) -> dict[str, tuple[float, float, float]]:
    """series -> mm between (slices, rows, columns)."""
    found = {}
    for row in table.to_dict("records") if table is not None else []:
        told = re.fullmatch(r"\[\s*([0-9.]+)[\s,]+([0-9.]+)\s*\]", str(row["pixelspacing"]).strip())
        if not told:
            raise UserError(
                f"overview.csv: PixelSpacing of {row['new_file_name']} is {row['pixelspacing']!r}; "
                'expected mm of rows and columns as "[0.5, 0.5]"'
            )
        step = row["spacingbetweenslices"] if row["spacingbetweenslices"] > 0 else row["slicethickness"]
        found[row["new_file_name"]] = (float(step), float(told[1]), float(told[2]))
    return found


def _scan_covariates(root: Path) -> dict[str, dict[str, float | str]]:
    """series -> covariate -> value, of those columns of overview.csv that are there; empty cells are absent."""
    path = _path(root, "overview.csv")
    if path is None:
        return {}
    header = [name.lower() for name in header_of(path)]
    columns = [column for column in _COVARIATE_COLUMNS if header.count(column) == 1]
    key = KEYS["overview.csv"][0]
    found: dict[str, dict[str, float | str]] = {}
    for row in read_table(path, (key, *columns), (key,)).to_dict("records") if columns else []:
        cells = {_COVARIATE_COLUMNS[column]: _told(column, row[column]) for column in columns}
        found.setdefault(row[key], {name: value for name, value in cells.items() if value is not None})
    return found


def _told(column: str, cell: str) -> float | str | None:
    """What a cell of overview.csv says; None where it says nothing."""
    if column == "birth_date":
        years = numbers(pd.Series([cell]))[0]
        return float(years) if np.isfinite(years) else None
    return (cell.split(maxsplit=1)[0] if column == "manufacturer" and cell else cell) or None


def _covariates_of(study: Study, told: Mapping[str, Mapping[str, float | str]]) -> dict[str, dict[str, float | str]]:
    """covariate -> value of all targets, by the first of the study's series that says it."""
    found: dict[str, dict[str, float | str]] = {}
    for series in study.series:
        for name, value in told.get(series.id, {}).items():
            found.setdefault(name, {"": value})
    return found


def _table(root: Path, name: str) -> pd.DataFrame | None:
    """A table of the data set beside the images or up to two folders above them; None where there is none.

    UserError where it is broken.
    """
    path = _path(root, name)
    if path is None:
        return None
    ids, needed, others = COLUMNS[name]
    table = read_table(path, (*ids, *needed, *others), ids)
    for column in (*needed, *others):
        values = numbers(table[column])
        if column in needed:
            refuse(path, table, pd.Series(np.isnan(values), table.index), column, "not a number")
        table[column] = values
    refuse_conflicts(path, table.drop_duplicates(), KEYS[name])
    return table.drop_duplicates()


def _path(root: Path, name: str) -> Path | None:
    """Where a table lies, beside the images or above them; above, one without its columns is something else's."""
    columns = [column for part in COLUMNS[name] for column in part]
    names = (name, ALSO_CALLED.get(name, name))
    for path in (folder / one for folder in (root, *root.resolve().parents[:2]) for one in names):
        if path.is_file() and (path.parent == root or _has_columns(path, columns)):
            return path
    return None


def _has_columns(path: Path, columns: Sequence[str]) -> bool:
    """Whether a table has all these columns; not where it is no table at all."""
    try:
        rows = cells_of(path)
    except UserError:
        return False
    return bool(rows) and {*columns} <= {name.strip().lower() for name in rows[0][1]}


def labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {level: class index}} of a table row_id,grade. UserError for unknown grades or levels."""
    found: dict[str, dict[str, int]] = {}
    bad = []
    for line, row, grade in row_grades(path, GRADES):
        level = next((name for name in LEVELS if row.endswith(f"_{name}")), "")
        if not level or not grade:
            bad.append(f"{row} (line {line})")
        else:
            found.setdefault(row[: -len(level) - 1], {})[level] = GRADES.index(grade)
    if bad:
        raise UserError(f"{path}: rows without a known level and grade: {some(bad)}")
    return found


DISC, VERTEBRA, CANAL = 1, 2, 3
# As the set is published: vertebrae are numbered from L5 up, those cut off by the image from 101 on, discs from L5/S1.
CANAL_LABEL, DISC_LABEL = 100, 201
LABEL_CLASSES = ((1, 25, VERTEBRA), (CANAL_LABEL, CANAL_LABEL, CANAL), (101, 125, VERTEBRA), (DISC_LABEL, 225, DISC))
SMALL = 0.3  # a component below this share of the median disc's area is a fragment


def landmark(view: str, level: str) -> str:
    return f"{view}_disc_{level}"


def of_boxes(table: pd.DataFrame) -> dict[str, list[Mark]]:
    """series -> marks at the middles of boxes, x0 <= pixel < x1, of the five lowest discs."""
    found: dict[str, list[Mark]] = defaultdict(list)
    for row in table.to_dict("records"):
        label, series = int(row["ivd_label"]), str(row["slice"])
        if 1 <= label <= len(LEVELS):
            view = "t1" if series.endswith("_t1") else "t2"
            x, y = (row["x0"] + row["x1"] - 1) / 2, (row["y0"] + row["y1"] - 1) / 2
            found[series].append(Mark(landmark(view, LEVELS[-label]), series, series, float(x), float(y)))
    return dict(found)


def of_masks(series: Series) -> list[Mark]:
    """The five lowest discs of a stack, each where its middle slice of the canal shows it.

    The slice is the one with most canal in it: the midline, as the data set's own slices are near it.
    """
    if series.masks[0].name.lower().endswith(VOLUME_SUFFIXES):
        return _of_label_file(series)
    masks = [image_files.read_pixels(path) for path in series.masks]
    middle = int(np.argmax([(mask == CANAL).sum() for mask in masks]))
    discs = discs_of(masks[middle])
    return [
        Mark(landmark(series.view, level), series.id, series.files[middle].stem, float(x), float(y))
        for level, (x, y) in zip(reversed(LEVELS), discs, strict=False)
    ]


def _of_label_file(series: Series) -> list[Mark]:
    """The same of a volume whose discs are numbered, so that no level has to be counted."""
    try:
        labels = slices_first(read_volume(series.masks[0]), LEFT).voxels
    except image_files.UnreadableImage as error:
        path = series.masks[0]
        raise UserError(f"{path}: labels cannot be read ({error.code}); replace or remove the file") from None
    middle = int(np.argmax((labels == CANAL_LABEL).sum((1, 2))))
    found = []
    for number, level in enumerate(reversed(LEVELS)):
        rows, columns = np.nonzero(labels[middle] == DISC_LABEL + number)
        if len(rows):
            x, y = (float(side.min() + side.max()) / 2 for side in (columns, rows))
            found.append(Mark(landmark(series.view, level), series.id, str(middle), x, y))
    return found


def discs_of(mask: np.ndarray) -> list[tuple[float, float]]:
    """(x, y) middles of the bounding boxes of the discs of a label image (H, W), the lowest first."""
    count, _, stats, centres = cv2.connectedComponentsWithStats((mask == DISC).astype(np.uint8), connectivity=8)
    if count < 2:
        return []
    stats, centres = stats[1:], centres[1:]
    kept = stats[:, cv2.CC_STAT_AREA] >= SMALL * np.median(stats[:, cv2.CC_STAT_AREA])
    left, top, width, height = (stats[kept, i] for i in range(4))
    middles = np.stack([left + (width - 1) / 2, top + (height - 1) / 2], 1)
    return [(float(x), float(y)) for x, y in middles[np.argsort(-centres[kept][:, 1])]]

"""The task `table`: images and labels of one's own, as a table labels.csv names them. docs/own-data.md is its page.

It is made of data: classes, places, sides and covariates are what a folder of labelled images shows, kept as a
``Definition`` in the manifest of the weights, so that other folders are graded by the same task without labels. Where
points or boxes are given a locator finds the place, where none are the whole image is graded. Pictures and radiographs
are measured in units of their own, 100 of which are their longer side, since their pixels often have no size; volumes
in millimetres.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging import geometry
from osteograde.imaging.discovery import Found, look_at, look_through, part_folder
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks import covariates as covariate_tables
from osteograde.tasks import own_images, own_table, tables
from osteograde.tasks.binary_metric import BinaryMetric
from osteograde.tasks.class_metric import ClassMetric
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.own_images import FLAT, PICTURE, PLANES, UNITS, VOLUME, Image
from osteograde.tasks.own_table import Options, Row, Table
from osteograde.tasks.priors import normalised
from osteograde.tasks.regions import boxes_around_sites, canonical, largest_stack, whole_stack_region
from osteograde.tasks.spec import (
    CATEGORY,
    CLASSES,
    GRADES,
    KEY_COLUMNS,
    NUMBER,
    YES_NO,
    Boxes,
    Covariate,
    Crop,
    Grader,
    Landmark,
    Locator,
    Mark,
    Metric,
    Pixels,
    Points,
    Series,
    Site,
    Study,
    Task,
    View,
    Volumes,
    row_id,
    sides,
)

log = logging.getLogger(__name__)

NAME, VIEW, GRADER, POINT = "table", "image", "label", "point"
SIDES = ("right", "left")
SIDE_ASSUMED = "side_assumed"
ONE, BOTH = "one", "both"  # sides that an image of a table with the column side shows
SHARE = 0.3  # of the longer side of an image that a crop around a point spans, where nothing else tells
BOX_SHARE = 0.9  # of the boxes fit into the crop, which is larger than they are by
BOX_MARGIN = 1.2
SLICES, PLACE_SLICES = 8, 5  # that a grader reads of a whole volume, and around a point in one
REACH_MM = 10.0  # a point in a volume may lie so far from the nearest slice
SIGMA, SIGMA_MM = 0.04, 6.0  # spread of the locator's target as a share of the field, and at most
MOST_CATEGORIES = 20
MOST_REGIONS = 50


@dataclass(frozen=True)
class Definition:
    """What makes a task of a table. kind: of the labels, one of ``own_table.KINDS``. classes: in order. counts: labels
    of each. images: one of ``own_images.KINDS``. places: "", "point" or "box". regions: names of the graded places of
    an image, ("",) where there is one. sides: "" without the column side, ONE or BOTH in an image. crop: share of the
    longer side of an image that a crop spans. extent: that side in units or mm. plane: of the slices."""

    kind: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    images: str = PICTURE
    places: str = ""
    regions: tuple[str, ...] = ("",)
    sides: str = ""
    crop: float = 1.0
    extent: float = UNITS
    plane: str = FLAT
    covariates: tuple[Covariate, ...] = field(default=())

    def plain(self) -> dict[str, Any]:
        """As JSON data, for a manifest."""
        return asdict(self)


def definition_of(plain: Mapping[str, Any]) -> Definition:
    """The definition of ``Definition.plain()``. UserError where it is none."""
    try:
        facts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        known = tuple(
            Covariate(one["name"], one["kind"], tuple(one["categories"])) for one in facts.pop("covariates", ())
        )
        return Definition(**facts, covariates=known)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"the manifest's definition of the task {NAME} cannot be read ({error}); fetch the weights again, or train "
            "again with this version"
        ) from error


def task_of(definition: Definition, patient_of: Callable[[str], str] = str) -> Task:
    """The task that a definition describes. patient_of: the patient of a study, where a table tells."""
    landmarks = _landmarks(definition)
    sites = _sites(definition)
    flat = definition.images != VOLUME
    view = View(VIEW, PLANES[definition.plane], projection=flat, dark_background=False)
    around = PLACE_SLICES if definition.places else SLICES
    crop = Crop(VIEW, VIEW, 1 if flat else around, definition.crop * definition.extent)
    if landmarks:
        regions = partial(place_boxes, sites, (crop,), None if not flat else definition.extent)
    else:
        regions = partial(image_boxes, sites, (crop,))
    prior = normalised(np.array(definition.counts, float) + 1)
    targets = tuple(site.target for site in sites)
    return Task(
        name=NAME,
        views=(view,),
        classes=definition.classes,
        class_weights=(1.0,) * len(definition.classes),
        locators=(_locator(definition, landmarks),) if landmarks else (),
        graders=(Grader(GRADER, sites, (crop,), regions),),
        prior=dict.fromkeys(targets, prior),
        read=partial(covariate_tables.read_known, partial(read, definition), definition.covariates, sites),
        read_labels=partial(read_truth, definition),
        metric=_metric(definition, targets),
        per_study_targets=targets != ("",),
        assumed_side=SIDE_ASSUMED if definition.sides == ONE else "",
        patient_of=patient_of,
        read_files=partial(
            covariate_tables.read_files_known, partial(read_files, definition), definition.covariates, sites
        ),
        covariates=definition.covariates,
        of_folder=of_folder,
        classes_are_ordered=definition.kind != CLASSES,
        of_definition=of_definition,
        definition=definition.plain(),
    )


def of_definition(plain: Mapping[str, Any]) -> Task:
    """``Task.of_definition``."""
    return task_of(definition_of(plain))


def of_folder(root: Path, classes: Sequence[str] = ()) -> Task:
    """``Task.of_folder``: the task as labels.csv and the images beside it define it."""
    labelled = _labelled(Path(root))
    table, images = labelled.table, labelled.images
    known = [row for row in table.rows if row.image in images]
    labels = [row.label for row in known if row.label]
    if not labels:
        raise UserError(f"{table.path}: no image that is there has a label")
    options = labelled.options
    if classes:
        options = replace(options, classes=tuple(classes), told_by="the submission")
    kind, names = own_table.kind_and_classes(table.path, labels, options)
    kind_of_images = own_images.kind_of(table.path, [images[row.image] for row in known])
    shape = None
    if kind_of_images == VOLUME:
        shape = own_images.shape_of([*dict.fromkeys(images[row.image] for row in known)])
    counts = Counter(own_table.key_of(label) for label in labels)
    definition = Definition(
        kind=kind,
        classes=names,
        counts=tuple(counts[own_table.key_of(name)] for name in names),
        images=kind_of_images,
        places="" if not table.places else "point" if table.places == own_table.POINT else "box",
        regions=_regions(table),
        sides=_sides_shown(known, images) if table.has(own_table.SIDE) else "",
        crop=_crop(table, known, images, options, shape.pixel_mm / shape.extent_mm if shape else 0.0),
        extent=shape.extent_mm if shape else UNITS,
        plane=shape.plane if shape else FLAT,
        covariates=_covariates(table, known),
    )
    _tell(labelled, definition)
    return task_of(definition, partial(_patient_of, _patients(labelled)))


def _patients(labelled: _Labelled) -> dict[str, str]:
    """{study: patient} of the images whose rows name one."""
    named = {
        labelled.images[row.image].path: row.patient for row in labelled.table.rows if row.image in labelled.images
    }
    ids = own_images.ids_of([*dict.fromkeys(labelled.images.values())], labelled.root)
    return {ids[path]: patient for path, patient in named.items() if patient}


def _patient_of(patients: Mapping[str, str], study: str) -> str:
    return patients.get(study, study)


# The parts of the task


def _targets(definition: Definition) -> list[tuple[str, str, str]]:
    """(target, side, region) of every site, in order."""
    shown = SIDES if definition.sides else ("",)
    return [("_".join(filter(None, (side, region))), side, region) for region in definition.regions for side in shown]


def _landmark_name(definition: Definition, side: str, region: str) -> str:
    """One landmark for each region; also for each side of images that show both."""
    parts = (side if definition.sides == BOTH else "", region)
    return "_".join(filter(None, parts)) or POINT


def _landmarks(definition: Definition) -> tuple[Landmark, ...]:
    if not definition.places:
        return ()
    both = definition.sides == BOTH
    found = {
        (name := _landmark_name(definition, side, region)): Landmark(name, region or POINT, side if both else "")
        for _, side, region in _targets(definition)
    }
    return tuple(found.values())


def _sites(definition: Definition) -> tuple[Site, ...]:
    return tuple(
        Site(
            target,
            condition=GRADER,
            level=region,
            side=side,
            landmarks=(_landmark_name(definition, side, region),) if definition.places else (),
        )
        for target, side, region in _targets(definition)
    )


def _locator(definition: Definition, landmarks: tuple[Landmark, ...]) -> Locator:
    field_mm = (definition.extent, definition.extent)
    sigma_mm = min(SIGMA * definition.extent, SIGMA_MM)
    regions = partial(whole_stack_region, VIEW, landmarks, None)
    return Locator(POINT, landmarks, (VIEW,), regions, field_mm, sigma_mm=sigma_mm)


def _metric(definition: Definition, targets: tuple[str, ...]) -> Metric:
    classes = definition.classes
    if definition.kind == YES_NO:
        return BinaryMetric(targets, (classes[0], classes[1]))
    if definition.kind == GRADES:
        return OrdinalMetric(targets, classes, threshold=max(1, len(classes) // 2))
    return ClassMetric(targets, classes)


def image_boxes(
    sites: Sequence[Site], crops: Sequence[Crop], volumes: Volumes, points: Points, pixels: Pixels
) -> Boxes:
    """{target: {crop name: (stack, box)}}: the whole of the largest stack of each crop's view, whatever its size in mm;
    its slices are spread over the depth. Left sites are read mirrored. See ``spec.Grader``."""
    found: dict[str, dict[str, tuple[Volume, Roi]]] = {}
    for crop in crops:
        if not (stacks := volumes.get(crop.view, ())):
            continue
        stack, shape = largest_stack(stacks), sides(pixels)
        extent_mm = stack.spacing_mm * stack.voxels.shape
        pixel_mm = float(np.max(extent_mm[1:] / shape))
        slice_mm = float(extent_mm[0]) / crop.slices
        step_mm = np.array([slice_mm, pixel_mm, pixel_mm])
        roi = geometry.roi_at(stack.centre_mm, stack.axes, step_mm, (crop.slices, *shape))
        for site in sites:
            found.setdefault(site.target, {})[crop.name] = (stack, canonical(roi, site.side))
    return found


def place_boxes(
    sites: Sequence[Site],
    crops: Sequence[Crop],
    extent_mm: float | None,
    volumes: Volumes,
    points: Points,
    pixels: Pixels,
) -> Boxes:
    """The same around the landmark of each site. extent_mm: where sizes are shares of the image, the longer side that
    the crops' fields are given for; None: they are mm. See ``spec.Grader``."""
    reach_mm = {crop.view: REACH_MM if extent_mm is None else float("inf") for crop in crops}
    stacks = volumes.get(crops[0].view, ())
    if extent_mm is not None and stacks:
        stack = largest_stack(stacks)
        scale = float(np.max(stack.spacing_mm[1:] * stack.voxels.shape[1:])) / extent_mm
        crops = [replace(crop, field_mm=crop.field_mm * scale) for crop in crops]
    return boxes_around_sites(sites, crops, reach_mm, volumes, points, pixels)


# What a folder of labelled images shows


@dataclass(frozen=True)
class _Labelled:
    """A folder of labelled images. images: cell of the column image -> the image that it names."""

    root: Path
    found: Found
    all_images: tuple[Image, ...]
    table: Table
    options: Options
    images: Mapping[str, Image]


def _labelled(root: Path) -> _Labelled:
    """Look through a folder and read its table. UserError where either is not there."""
    folder = part_folder(root, "train")
    path = own_table.find(root, folder)
    table = own_table.read(path)
    found = look_through(folder)
    options = own_table.read_options(path.parent if (path.parent / own_table.OPTIONS).is_file() else root)
    all_images = own_images.images_of(found, skip=[root / "test_images"] if folder == root else [])
    if not all_images:
        unused = found.not_used([path])
        what = f", but {unused}" if unused else ""
        raise UserError(
            f"{folder}: no images in it (pictures, DICOM, NIfTI or MetaImage){what}; {own_table.PAGE} says more"
        )
    cells = [row.image for row in table.rows]
    names = own_images.Names(all_images, list(dict.fromkeys((folder, root, path.parent))))
    images = names.find(cells)
    own_images.tell_lost(path, cells, images)
    return _Labelled(root, found, tuple(all_images), table, options, images)


def _regions(table: Table) -> tuple[str, ...]:
    if not table.has(own_table.REGION):
        return ("",)
    if not table.places:
        raise UserError(
            f"{table.path}: a column region without points or boxes: all regions of an image would look alike; give "
            "x, y or x0, y0, x1, y1, or make a table of each region"
        )
    if empty := [row.line for row in table.rows if not row.region]:
        raise UserError(f"{table.path}: line {tables.some(empty)}: region is empty; name it as in the other rows")
    names = sorted({row.region for row in table.rows}, key=lambda name: (name.casefold(), name))
    several = [name for name in names if sum(other.casefold() == name.casefold() for other in names) > 1]
    if several:
        raise UserError(f"{table.path}: regions {tables.some(several)} differ in case alone; write each in one way")
    nested = [(name, other) for name in names for other in names if name.endswith(f"_{other}")]
    if nested:
        raise UserError(
            f"{table.path}: region {nested[0][0]!r} ends in {nested[0][1]!r}, so that rows of one would be read "
            "as rows of the other; rename one of them"
        )
    if len(names) > MOST_REGIONS or (len(table.rows) >= 10 and len(names) > len(table.rows) / 2):
        raise UserError(
            f"{table.path}: {len(table.rows)} rows have {len(names)} different regions ({tables.some(names, 3)}); is "
            f"region the right column? At most {MOST_REGIONS} places of an image, each with several rows"
        )
    if odd := [name for name in names if not tables.is_id(name)]:
        raise UserError(f"{table.path}: regions {tables.some(odd)}; use letters, digits, dots, dashes and underscores")
    return tuple(names)


def _sides_shown(rows: Sequence[Row], images: Mapping[str, Image]) -> str:
    shown: dict[Path, set[str]] = defaultdict(set)
    for row in rows:
        shown[images[row.image].path].add(row.side)
    return BOTH if any(len(own) > 1 for own in shown.values()) else ONE


def _crop(
    table: Table, rows: Sequence[Row], images: Mapping[str, Image], options: Options, pixel_share: float
) -> float:
    """The share of an image's longer side that a crop spans: as table.json says, else so that most boxes fit in. Checks
    that points lie in their images. pixel_share: of a volume, of its longer side."""
    if not table.places:
        if options.crop:
            raise UserError(f"{table.path}: {own_table.OPTIONS} names a crop, but there are no points or boxes")
        return 1.0
    placed = [row for row in rows if row.has_point]
    if not placed:
        raise UserError(f"{table.path}: the columns {', '.join(table.places)} are empty; fill them or leave them out")
    shares, outside, longest = [], [], 0.0
    for row in placed:
        image = images[row.image]
        size = own_images.size_of(image)
        if size is not None:
            longest = max(longest, *size)
            if not (-0.5 <= row.x <= size[0] - 0.5 and -0.5 <= row.y <= size[1] - 0.5):
                outside.append(f"{row.line} ({row.x:g}, {row.y:g} of {size[0]} x {size[1]})")
            shares.append(row.size / max(size))
        elif image.kind == VOLUME:
            shares.append(row.size * pixel_share)
    if outside:
        raise UserError(
            f"{table.path}: points or boxes whose middle lies outside of their image: line {tables.some(outside, 3)}; "
            "x counts columns and y rows of pixels, from 0 at the upper left"
        )
    if longest > 2 and all(0 <= row.x <= 1 and 0 <= row.y <= 1 for row in placed):
        raise UserError(
            f"{table.path}: every {', '.join(table.places)} lies between 0 and 1; expected pixels, no shares "
            "of the image"
        )
    if options.crop:
        return options.crop
    boxes = [share for share in shares if share > 0]
    if not boxes:
        return SHARE
    share = round(min(1.0, float(np.quantile(boxes, BOX_SHARE)) * BOX_MARGIN), 3)
    return max(share, own_table.LEAST_CROP)


def _covariates(table: Table, rows: Sequence[Row]) -> tuple[Covariate, ...]:
    """The further columns: numbers, or few texts that come back. Others are not used, which is said."""
    found, unused = [], []
    for name in table.more:
        cells = [cell for row in rows if (cell := row.more[name])]
        texts = sorted(set(cells), key=lambda text: (text.casefold(), text))
        keys = {text.casefold() for text in texts}
        if name in KEY_COLUMNS or not cells:
            unused.append(name)
        elif not any(_is_no_number(cell) for cell in cells):
            found.append(Covariate(name, NUMBER))
        elif 2 <= len(keys) <= MOST_CATEGORIES and 2 * len(keys) <= len(cells):
            spelled = {text.casefold(): text for text in reversed(texts)}  # the first spelling of each
            found.append(Covariate(name, CATEGORY, tuple(spelled[key] for key in sorted(spelled))))
        else:
            unused.append(name)
    if unused:
        log.info("%s: columns that are neither numbers nor a few categories are not used: %s", table.path,
                 tables.some(unused, 10))  # fmt: skip
    return tuple(found)


def _is_no_number(cell: str) -> bool:
    try:
        return not np.isfinite(float(cell.replace(",", ".")))
    except ValueError:
        return True


def _tell(labelled: _Labelled, definition: Definition) -> None:
    """Log what the task is taken to be, and what of the folder is not used."""
    table, images = labelled.table, labelled.images
    labelled.found.tell(
        used=[table.path, *(labelled.root / name for name in (own_table.OPTIONS, covariate_tables.FILE, "SOURCE.json")),
              *labelled.found.volumes]
    )  # fmt: skip
    paths = {images[row.image].path for row in table.rows if row.image in images}
    where = {"": "the whole image", "point": "crops around points", "box": "crops around boxes"}[definition.places]
    counted = ", ".join(f"{name} x {n}" for name, n in zip(definition.classes, definition.counts, strict=True))
    log.info(
        "%s: %d images (%s); label is read as %s (%s); graded is %s",
        table.path, len(paths), definition.images, definition.kind.replace("_", "/"), counted, where,
    )  # fmt: skip
    others = [i for i in labelled.all_images if i.path not in paths and i.path.parent not in paths]
    if others:
        log.info("%s: %d images are not in the table and not used, such as %s", table.path, len(others),
                 tables.some((image.path.name for image in others), 3))  # fmt: skip
    if empty := [row.line for row in table.rows if not row.label]:
        log.warning("%s: %d rows have no label (empty, NA or None) and are not learnt from: line %s; a class must not "
                    "be called so", table.path, len(empty), tables.some(empty))  # fmt: skip
    if table.places and (without := [row.line for row in table.rows if not row.has_point]):
        log.warning("%s: %d rows have no point; they are graded where the locator finds one: line %s", table.path,
                    len(without), tables.some(without))  # fmt: skip
    if definition.covariates:
        log.info("%s: covariates %s; recipes that end in -covariates read them, the others read images alone",
                 table.path, ", ".join(one.name for one in definition.covariates))  # fmt: skip
    patients = {row.patient for row in table.rows if row.image in images} - {""}
    nameless = sum(not row.patient for row in table.rows)
    if not patients:
        log.warning("%s: no column patient: every image counts as a patient of its own, so that two images of one "
                    "person may part, and scores may be too good", table.path)  # fmt: skip
    else:
        log.info("%s: %d patients%s", table.path, len(patients),
                 f"; {nameless} rows name none, and count as patients of their own" * bool(nameless))  # fmt: skip


# Studies


def read(definition: Definition, root: Path, part: str) -> list[Study]:
    """``Task.read``: "train", the images that labels.csv names; "test", all images of ROOT/test_images or ROOT, whose
    labels and points are not looked at. UserError where there are none."""
    if part == "train":
        return _studies(_labelled(Path(root)), definition)
    return _unseen(definition, Path(root), look_through(part_folder(Path(root), part)))


def read_files(definition: Definition, root: Path, files: Sequence[Path]) -> list[Study]:
    """``Task.read_files``: single images below a folder."""
    return _unseen(definition, Path(root), look_at(Path(root), files))


def _studies(labelled: _Labelled, definition: Definition) -> list[Study]:
    """The images of a table with labels and marks. UserError where rows contradict each other or the definition."""
    table = labelled.table
    rows_of: dict[Path, list[Row]] = defaultdict(list)
    image_of: dict[Path, Image] = {}
    for row in table.rows:
        if row.image in labelled.images:
            image = labelled.images[row.image]
            rows_of[image.path].append(row)
            image_of[image.path] = image
    ids = own_images.ids_of([*image_of.values()], labelled.root)
    index = {own_table.key_of(name): i for i, name in enumerate(definition.classes)}
    odd = [f"{row.label!r} (line {row.line})" for row in table.rows
           if row.label and own_table.key_of(row.label) not in index]  # fmt: skip
    if odd:
        raise UserError(f"{table.path}: labels {tables.some(odd)}; the classes are {', '.join(definition.classes)}")
    studies = []
    for path, rows in rows_of.items():
        once = _one_a_site(table, rows, definition)
        study = _study(image_of[path], ids[path], once, definition)
        labels = {_target(definition, row): index[own_table.key_of(row.label)] for row in once if row.label}
        studies.append(replace(study, labels=labels, marks=_marks(table, definition, study, once)))
    return sorted(studies, key=lambda study: study.id)


def _target(definition: Definition, row: Row) -> str:
    parts = (row.side if definition.sides else "", row.region if definition.regions != ("",) else "")
    return "_".join(filter(None, parts))


def _one_a_site(table: Table, rows: Sequence[Row], definition: Definition) -> list[Row]:
    """The rows of one image, one for each of its sites. UserError where two contradict each other, or patients do."""
    kept: dict[str, Row] = {}
    for row in rows:
        first = kept.setdefault(_target(definition, row), row)
        where = f"{table.path}: line {first.line} and {row.line}: image {row.image}"
        if own_table.key_of(first.label) != own_table.key_of(row.label):
            raise UserError(f"{where} has the labels {first.label!r} and {row.label!r}; keep one")
        if first.has_point and row.has_point and (first.x, first.y) != (row.x, row.y):
            raise UserError(
                f"{where} has two places; a column region names them, a column side tells right from left, or keep one"
            )
        if odd := [
            name for name in row.more if first.more[name] and row.more[name] and first.more[name] != row.more[name]
        ]:
            cells = f"{first.more[odd[0]]!r} and {row.more[odd[0]]!r}"
            raise UserError(f"{where} has two values of {odd[0]}, {cells}; keep one")
    if len(patients := {row.patient for row in rows}) > 1:
        raise UserError(f"{table.path}: line {rows[0].line}: image {rows[0].image} is of patients {sorted(patients)}")
    return [*kept.values()]


def _marks(table: Table, definition: Definition, study: Study, rows: Sequence[Row]) -> tuple[Mark, ...]:
    marks = []
    for row in rows:
        if definition.places and row.has_point:
            if definition.images == VOLUME and not row.slice:
                raise UserError(
                    f"{table.path}: line {row.line}: a point in a volume needs its slice; add a column slice"
                )
            series = study.series[0]
            instance = row.slice if definition.images == VOLUME else series.files[0].stem
            marks.append(Mark(_landmark_name(definition, row.side, row.region), series.id, instance, row.x, row.y))
    return tuple(marks)


def _study(image: Image, name: str, rows: Sequence[Row], definition: Definition) -> Study:
    """An image with what its rows say beside labels and points."""
    spacing = None
    if image.kind == PICTURE and (size := own_images.size_of(image)) is not None:
        unit = UNITS / max(size)
        spacing = (4.0, unit, unit)
    folder = image.path if image.is_folder else image.path.parent
    series = Series(name, VIEW, folder, () if image.is_folder else (image.path,), spacing)
    patient = next((row.patient for row in rows if row.patient), name)
    known: dict[str, dict[str, float | str]] = defaultdict(dict)
    for covariate in definition.covariates:
        for row in rows:
            cell = row.more.get(covariate.name, "")
            if cell and covariate.kind == CATEGORY:
                known[covariate.name][_target(definition, row)] = cell
            elif cell and not _is_no_number(cell):
                known[covariate.name][_target(definition, row)] = float(cell.replace(",", "."))
    targets = tuple(_target(definition, row) for row in rows) if definition.sides or definition.regions != ("",) else ()
    return Study(name, patient, (series,), targets=targets, covariates=dict(known))


def _unseen(definition: Definition, root: Path, found: Found) -> list[Study]:
    """Images to be graded. A table labels.csv beside them, if there is one, tells side, patient and covariates."""
    all_images = own_images.images_of(found)
    is_volume = definition.images == VOLUME
    images = own_images.as_volumes(all_images) if is_volume else [i for i in all_images if i.kind != VOLUME]
    path = next((folder / own_table.FILE for folder in (root, found.root) if (folder / own_table.FILE).is_file()), None)
    found.tell(used=[*([path] if path else []), root / covariate_tables.FILE, *(found.volumes if is_volume else ())])
    if not images:
        kind = "volumes (NIfTI, MetaImage or folders of DICOM slices)" if is_volume else "pictures or DICOM images"
        raise UserError(f"{found.root}: no {kind}, which these weights grade; give the folder that holds them")
    rows = _rows_of_unseen(path, images, [found.root, root]) if path else {}
    ids = own_images.ids_of(images, found.root)
    studies = []
    for image in images:
        study = _study(image, ids[image.path], rows.get(image.path, ()), definition)
        if definition.sides:
            study = _with_side(definition, study, rows.get(image.path, ()))
        elif study.targets:
            study = replace(study, targets=())
        studies.append(study)
    if assumed := sum(SIDE_ASSUMED in study.notes for study in studies):
        log.warning("%s: nothing names the side of %d images: taken for right ones; a table %s with the columns image "
                    "and side tells it", found.root, assumed, own_table.FILE)  # fmt: skip
    return sorted(studies, key=lambda study: study.id)


def _rows_of_unseen(path: Path, images: Sequence[Image], roots: Sequence[Path]) -> dict[Path, list[Row]]:
    """The rows of a table beside images that are graded; a broken one is logged and not used."""
    try:
        table = own_table.read(path, labelled=False)
        of = own_images.Names(images, roots).find([row.image for row in table.rows])
    except UserError as error:
        log.warning("%s; the table is not used", error)
        return {}
    rows: dict[Path, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.image in of:
            rows[of[row.image].path].append(row)
    return rows


def _with_side(definition: Definition, study: Study, rows: Sequence[Row]) -> Study:
    """The sites of an unseen image by the sides that its table names; without them both where images show both, else
    those of a right one, which is noted."""
    named = {row.side for row in rows} & {*SIDES}
    if not named and definition.sides == BOTH:
        return replace(study, targets=())
    targets = tuple(target for target, side, _ in _targets(definition) if side in (named or {SIDES[0]}))
    return replace(study, targets=targets, notes=study.notes if named else (*study.notes, SIDE_ASSUMED))


def read_truth(definition: Definition, path: Path) -> dict[str, dict[str, int]]:
    """{study: {target: class index}} of a table row_id,grade, for ``osteograde score``. UserError otherwise."""
    index = {own_table.key_of(name): i for i, name in enumerate(definition.classes)}
    targets = [target for target, *_ in _targets(definition)]
    table = tables.read_table(path, tables.GRADE_COLUMNS, ids=(), whole=True)
    table["grade"] = table["grade"].map(own_table.label_text)
    keys = table["grade"].map(own_table.key_of)
    tables.refuse_conflicts(path, table, tables.GRADE_COLUMNS[:1])
    tables.refuse(path, table, ~keys.isin(["", *index]), "grade", f"none of {', '.join(definition.classes)}")
    found: dict[str, dict[str, int]] = {}
    for row, key in zip(table["row_id"], keys, strict=True):
        target = next((one for one in targets if row.endswith(row_id("", one))), None)
        if target is None:
            raise UserError(f"{path}: row {row!r} ends in none of {tables.some(targets)}")
        if key:
            found.setdefault(row.removesuffix(row_id("", target)), {})[target] = index[key]
    return found


_UNDEFINED = Definition(YES_NO, ("no", "yes"), (1, 1), places="point", crop=SHARE)


def _read_undefined(root: Path, part: str) -> list[Study]:
    """``Task.read`` of the task that no folder has defined yet: the folder that is read does."""
    if part == "train":
        return of_folder(root).read(root, part)
    found = look_through(part_folder(Path(root), part))
    is_volume = bool(found.volumes) and not found.files
    return _unseen(replace(_UNDEFINED, images=VOLUME if is_volume else PICTURE), Path(root), found)


TASK = replace(task_of(_UNDEFINED), read=_read_undefined, definition={})

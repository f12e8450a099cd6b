"""Reading of `knee-xray`: single-knee crops, with grade folders or without, and full films as pictures or DICOM.

What an image is follows from its size, its header and its name alone, so that every row is known before a pixel is
decoded:

* a picture in a grade folder shows one knee: the folder says one grade;
* a small square picture is a crop of one knee, 140 mm wide, as all public sets of crops are;
* a film wider than tall, nearly so and of unknown size, or as wide as two knees are, shows both (two rows), unless its
  header or its name gives one side;
* any other film shows one knee (one row).

Where nothing but the shape says so, the other ways to read the image go with the study (``Study.readings``), and the
joints that are found in it decide (knee_count.py).

The side of one knee is that of the header, else of patients.csv or of the name, else it is taken for a right one. What
was assumed is noted in ``Study.notes`` and becomes flags of the rows: "side_assumed" (nothing names the side),
"side_contradicts" (header and name give different sides, the header's is taken), "one_knee_assumed" (the shape would
fit both knees as well). Two more are noted once the image has decided: "counted_by_joints" (it shows another number of
knees than its shape says) and "side_by_anatomy" (nothing names the side, and the image shows a left knee).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from osteograde.errors import UserError
from osteograde.imaging import image_files
from osteograde.imaging.dicom.patient import patient_key
from osteograde.imaging.dicom.radiograph import film_outline
from osteograde.imaging.discovery import Found, look_at, look_through, part_folder, stem_of, unique_names
from osteograde.tasks import knee_sets
from osteograde.tasks.deferred import Deferred
from osteograde.tasks.knee_sets import Graded
from osteograde.tasks.names import BOTH, Named, People, patient_of_id, read_name, read_people
from osteograde.tasks.spec import Mark, Series, Study
from osteograde.tasks.tables import row_grades, some

log = logging.getLogger(__name__)

VIEW = "film"
SIDES = ("right", "left")
GRADES = ("0", "1", "2", "3", "4")
CROP_MM = 140.0
CROP_PIXELS = 640  # a larger picture is a film
BOTH_MM = 290.0  # a film at least as wide shows both knees, however tall
NARROW_MM = 200.0  # a narrower one has no room for two
FILM_MM = (400.0, 220.0)  # width of a film of both knees, and of one, that says no size
CLOSE_MM = 300.0  # width of a film of both knees that was cut close
SQUARE = 0.05  # sides of a crop differ by less than this share
NEAR_SQUARE = 0.92  # films of both knees are at least so wide, as a share of their height (measured: from 0.92)
PORTRAIT = 0.83  # films of one knee are at most so wide (measured: up to 0.83); between the two nobody knows
SIDE_ASSUMED = "side_assumed"
SIDE_CONTRADICTS = "side_contradicts"
ONE_KNEE_ASSUMED = "one_knee_assumed"
COUNTED_BY_JOINTS = "counted_by_joints"
SIDE_BY_ANATOMY = "side_by_anatomy"  # as the checks of the image call it
SIZE_ASSUMED = f"{VIEW}:size_assumed"

BODY_PARTS = (  # a film of the leg shows the knee
    "KNEE", "KNIE", "GENOU", "RODILLA", "GINOCCHI", "JOELHO", "KOLEN", "PATELL", "LEG", "EXTREM", "LOWER", "LOWEXT",
    "LEXT", "JOINT", "TIBIA", "TIBFIB", "FEMUR", "LLIMB",
)  # fmt: skip

patient_of = patient_of_id


def read(root: Path, part: str) -> list[Study]:
    """Every image below ROOT as a study; for "train" those in grade folders 0..4, with labels and joint centres.

    Where tables of the Osteoarthritis Initiative lie below ROOT, its films are labelled as well, by these; where the
    joints are on them is not known. For "test" ROOT/test_images where it exists; labels and folder names are not looked
    at. UserError where there is no image.
    """
    found = look_through(part_folder(root, part))
    if part != "train":
        return _studies(Path(root), found, training=False)
    films = [file for file in found.files if file.parent.name not in GRADES]
    graded, tables = _films_below(Path(root), found.root, films, BODY_PARTS)
    return _studies(Path(root), found, training=True, graded=graded, used=tables)


_films_below = Deferred("osteograde.tasks.oai_films", "films_below")  # of training alone


def read_all(root: Path, used: Sequence[str] = ()) -> list[Study]:
    """Every image below ROOT's part "train" as a study: those in grade folders with labels and joint centres, all
    others without. used: names of further tables in ROOT that the caller reads. UserError where there is no image."""
    return _studies(Path(root), look_through(part_folder(root, "train")), training=True, ungraded=True, used=used)


def read_files(root: Path, files: Sequence[Path]) -> list[Study]:
    """Single images below ROOT as studies to be graded. UserError where none of them is an image."""
    return _studies(Path(root), look_at(root, files), training=False)


def read_split(root: Path, split: str) -> list[Study]:
    """The labelled images of one split of a published set (``knee_sets.SPLITS``), such as "test", which is never learnt
    from. UserError where ROOT holds none of it."""
    return _studies(Path(root), look_through(part_folder(root, "train")), training=True, split=split)


def _studies(
    root: Path,
    found: Found,
    training: bool,
    *,
    ungraded: bool = False,
    used: Sequence[str] = (),
    split: str = "",
    graded: Mapping[Path, Graded] = MappingProxyType({}),
) -> list[Study]:
    """ungraded: images that lie in no grade folder are training data too. split: the images of this one alone. graded:
    films in no grade folder whose grades tables know."""
    folder, people = found.root, read_people((root, found.root))
    read = [root / name for name in ("test_truth.csv", "train.csv", "SOURCE.json", *used)]
    found.tell(used=[*read, people.path] if people.path else read)
    graded_only = training and not ungraded
    images = knee_sets.largest_of_each(found.files, folder)
    files = [file for file in images if not graded_only or file.parent.name in GRADES or file in graded]
    if not files:
        kind = "images in grade folders 0 to 4" if graded_only else "image files (png, jpg, webp, tif, bmp, dcm)"
        volumes = f"{len(found.volumes)} NIfTI or MetaImage volumes, which are no radiographs, and " * bool(
            found.volumes
        )
        raise UserError(f"{folder}: {volumes}no {kind}; give the folder that holds them")
    if len(files) < len(images):
        log.info("%s: %d images lie in no grade folder: not used", folder, len(images) - len(files))
    if split:
        files = [file for file in files if knee_sets.split_of(file, folder, GRADES) == split]
        if not files:
            raise UserError(f"{folder}: no images in grade folders of a split {split!r}, such as {split}/2/knee_L.png")
    elif training:
        patients = {file: _patient_below(file, folder, graded) for file in files}
        files = knee_sets.to_learn_from(files, folder, GRADES, patients)
    called = unique_names(files, folder)
    named = _named(files, called, folder, people)
    if training:
        named = [
            replace(told, patient=graded[file].patient) if file in graded else told
            for file, told in zip(files, named, strict=True)
        ]
        named = _with_patients(folder, files, named, found.dicom - set(graded))
    made = [
        study_of_image(file, name, training and file.parent.name in GRADES, told, picture=file not in found.dicom)
        for file, name, told in zip(files, called, named, strict=True)
    ]
    if training:
        made = [_with_grades(study, graded.get(file)) for file, study in zip(files, made, strict=True)]
    _tell_sides(folder, made)
    studies = _one_knee_each(folder, made) if graded_only else made
    return sorted(studies, key=lambda one: one.id)


def _named(files: Sequence[Path], ids: Sequence[str], folder: Path, people: People) -> list[Named]:
    """What the table of patients, else the name says of every image. Folders count from the nearest one on."""
    result = []
    called = [_called(file, name, folder) for file, name in zip(files, ids, strict=True)]
    people = people.fitted({name for names in called for name in names})
    for names in called:
        told = read_name(names[1])
        if (known := people.of(names)) is not None:
            patient, side = known
            told = Named(side or told.side, patient or told.patient, bool(side) or told.sure, known=bool(side))
        result.append(told)
    return result


def _name_below(file: Path, folder: Path) -> str:
    """The name by which sides and patients are read: the path below a folder without ending."""
    below = file.relative_to(folder)
    return "/".join([*below.parts[:-1], stem_of(below)])


def _called(file: Path, name: str, folder: Path) -> list[str]:
    """The names that an image may have in a table: path with ending and without, file, stem, id."""
    below = file.relative_to(folder)
    return [below.as_posix(), _name_below(file, folder), file.name, stem_of(file), name]


def _patient_below(file: Path, folder: Path, graded: Mapping[Path, Graded]) -> str:
    return graded[file].patient if file in graded else read_name(_name_below(file, folder)).patient


def _with_grades(study: Study, film: Graded | None) -> Study:
    """A study to learn from: what the file is taken to show counts, with the grades that a table has of it."""
    labels = {side: film.grades[side] for side in study.targets or SIDES if side in film.grades} if film else {}
    return replace(study, readings=(), labels=labels or study.labels)


def _with_patients(folder: Path, files: Sequence[Path], named: Sequence[Named], dicom: Collection[Path]) -> list[Named]:
    """The same with DICOM's own patients where names give none, and one spelling a patient; says how many there are."""
    keys = {file: patient_key(file) for file, told in zip(files, named, strict=True) if file in dicom}
    shared = Counter(keys.values())
    if len(keys) > 2 and len(shared) == 1:
        keys = {}  # one identifier for all is none
    spelling: dict[str, str] = {}
    result = []
    for file, told in zip(files, named, strict=True):
        patient = keys.get(file) or told.patient
        result.append(replace(told, patient=spelling.setdefault(patient.lower(), patient)))
    unknown = [stem_of(file) for file, told in zip(files, result, strict=True) if not told.patient]
    told_apart = len({told.patient for told in result} - {""})
    log.info("%s: %d patients told apart by the names of %d images", folder, told_apart, len(files) - len(unknown))
    if unknown:
        log.warning(
            "%s: the names of %d images give no patient (such as %s): each counts as a patient of its own, so that two "
            "knees of one patient may part; a table patients.csv with the columns image and patient tells them apart",
            folder,
            len(unknown),
            some(unknown, 3),
        )
    return result


def _tell_sides(folder: Path, studies: Sequence[Study]) -> None:
    assumed = [study.id for study in studies if SIDE_ASSUMED in study.notes]
    if assumed:
        log.warning(
            "%s: nothing names the side of %d knees: taken for right ones (%s)", folder, len(assumed), some(assumed, 3)
        )


def _one_knee_each(folder: Path, studies: Sequence[Study]) -> list[Study]:
    """The studies to learn from: a film of both knees has two joints, and a folder tells the grade of one."""
    kept = [study for study in studies if study.targets or study.labels]
    if len(kept) < len(studies):
        log.warning(
            "%s: %d films of both knees lie in a folder of one grade: left out", folder, len(studies) - len(kept)
        )
    return kept


@dataclass(frozen=True)
class Outline:
    """What an image says of itself before a pixel is decoded: pixels, side ("right", "left", "both" or ""), width in mm
    (0 where it does not say), and whether it is a picture and no DICOM file."""

    width: int
    height: int
    side: str
    width_mm: float
    picture: bool


@dataclass(frozen=True)
class Shown:
    """What an image is taken to show. side: of one knee, "" for both. width_mm: of the image, where it is assumed here
    (else its header or ``View.width_mm`` says it). notes: what was assumed."""

    side: str = ""
    width_mm: float | None = None
    notes: tuple[str, ...] = ()


def study_of_image(file: Path, name: str, labelled: bool, named: Named, *, picture: bool) -> Study:
    """One image as a study, with its other readings. See the module for what it is taken to be."""
    outline = _outline(file, picture)
    shown = shown_by(outline, named, labelled)
    study = _study(file, name, labelled, named, outline, shown)
    others = [] if labelled else other_readings(outline, named, shown)
    return replace(study, readings=tuple(_study(file, name, False, named, outline, one) for one in others))


def _study(file: Path, name: str, labelled: bool, named: Named, outline: Outline, shown: Shown) -> Study:
    pixel_mm = shown.width_mm / max(outline.width, 1) if shown.width_mm else None
    spacing = (4.0, pixel_mm, pixel_mm) if pixel_mm else None
    series = Series(name, VIEW, file.parent, (file,), spacing, shown.side)
    patient = named.patient or name
    if not shown.side:
        return Study(name, patient, (series,), notes=shown.notes)
    labels = {shown.side: int(file.parent.name)} if labelled else {}
    middle = (outline.width - 1) / 2, (outline.height - 1) / 2
    marks = (Mark(shown.side, name, stem_of(file), *middle),) if labelled else ()
    return Study(name, patient, (series,), labels, marks, targets=(shown.side,), notes=shown.notes)


def shown_by(outline: Outline, named: Named, labelled: bool) -> Shown:
    """What an image shows, by size, header and name. labelled: it lies in a folder of one grade."""
    width, height = outline.width, outline.height
    told = [named.side, outline.side] if named.known else [outline.side, named.side]
    sides = [side for side in told if side in SIDES]
    side = sides[0] if sides else ""
    notes = (SIDE_ASSUMED,) if not side and width else (SIDE_CONTRADICTS,) if len({*sides}) > 1 else ()
    one = Shown(side or "right", notes=notes)
    small = outline.picture and max(width, height) <= CROP_PIXELS
    if small and abs(width - height) <= SQUARE * max(width, 1) and (labelled or named.side != BOTH):
        return replace(one, width_mm=CROP_MM)
    if labelled and outline.width_mm < BOTH_MM:
        return _landscape_knee(one, outline, small) if width > height else one
    if named.known and side and named.side == side:
        return _landscape_knee(one, outline, small) if width > height else one
    if outline.side in SIDES:
        return one
    if BOTH in (outline.side, named.side) or outline.width_mm >= BOTH_MM:
        return _both(outline)
    if width > height:
        if not side or not named.sure:
            return _both(outline)
        return _doubted(_landscape_knee(one, outline, small))
    if outline.width_mm or small or width <= PORTRAIT * height:
        return one
    if width < NEAR_SQUARE * height:
        return one if side else _doubted(one)
    return _doubted(one) if side and named.sure else _both(outline)


def other_readings(outline: Outline, named: Named, shown: Shown) -> list[Shown]:
    """What else an image may show that nothing but its shape was judged by; none where a header, a table or a word in
    its name says it.

    Of both knees and of one, in the sizes that are usual where none is known; of one in both sides where none is named.
    """
    if not outline.width or named.known or outline.side or named.side == BOTH:
        return []
    if named.side in SIDES and named.sure and shown.side and ONE_KNEE_ASSUMED not in shown.notes:
        return []  # name and shape agree
    sides, notes = ((named.side,), ()) if named.side in SIDES else (SIDES, (SIDE_ASSUMED,))
    size = () if outline.width_mm or not outline.picture else (SIZE_ASSUMED,)
    small = outline.picture and max(outline.width, outline.height) <= CROP_PIXELS
    ways = []
    if outline.width_mm >= NARROW_MM or not outline.width_mm:
        ways += [Shown("", width, size) for width in ((None,) if outline.width_mm else (FILM_MM[0], CLOSE_MM))]
    if outline.width_mm:
        ways += [Shown(side, None, notes) for side in sides]
    else:
        ways += [Shown(side, CROP_MM, notes) for side in sides if small]
        ways += [Shown(side, width, (*notes, *size)) for width in FILM_MM[::-1] for side in sides]
    width_mm = _width_mm(outline, shown)
    if shown.side:  # the other side of what it is taken for: the same in all else
        ways = [
            replace(way, width_mm=shown.width_mm, notes=tuple(note for note in shown.notes if note != ONE_KNEE_ASSUMED))
            if way.side and _width_mm(outline, way) == width_mm
            else way
            for way in ways
        ]
    return [way for way in ways if (way.side, _width_mm(outline, way)) != (shown.side, width_mm)]


def _width_mm(outline: Outline, shown: Shown) -> float:
    """The width that an image has as it is read; ``View.width_mm`` where nothing is assumed here."""
    return shown.width_mm or outline.width_mm or FILM_MM[outline.width <= outline.height]


def _both(outline: Outline) -> Shown:
    """Both knees; a film that is no wider than tall and says no size is wider than the usual film of its shape."""
    if outline.width > outline.height or outline.width_mm or not outline.width:
        return Shown()
    return Shown(width_mm=FILM_MM[0], notes=(SIZE_ASSUMED,) if outline.picture else ())


def _landscape_knee(one: Shown, outline: Outline, small: bool) -> Shown:
    """One knee on a picture that is wider than tall: the usual width of its shape is that of both knees."""
    if outline.width_mm:
        return one
    notes = (*one.notes, SIZE_ASSUMED) if outline.picture and not small else one.notes
    return replace(one, width_mm=CROP_MM if small else FILM_MM[1], notes=notes)


def _doubted(one: Shown) -> Shown:
    return replace(one, notes=(*one.notes, ONE_KNEE_ASSUMED))


def _outline(file: Path, picture: bool) -> Outline:
    """What a file's header says; zeros where it does not, or cannot be read: reading it will tell why."""
    try:
        if picture:
            return Outline(*image_files.image_size(file), "", 0.0, picture)
        return Outline(*film_outline(file), picture)
    except image_files.UnreadableImage:
        return Outline(0, 0, "", 0.0, picture)


def labels(path: Path) -> dict[str, dict[str, int]]:
    """{study: {side: grade}} of a table row_id,grade whose row ids end in _right or _left. UserError otherwise."""
    rows = [(line, row.rpartition("_"), grade) for line, row, grade in row_grades(path, GRADES)]
    if bad := [f"{''.join(parts)} (line {line})" for line, parts, _ in rows if parts[2] not in SIDES]:
        raise UserError(f"{path}: rows without a side: {some(bad)}; expected ids that end in _right or _left")
    found: dict[str, dict[str, int]] = {}
    for _, (name, _, side), grade in rows:
        if grade:
            found.setdefault(name, {})[side] = int(grade)
    return found

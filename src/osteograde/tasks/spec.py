"""The contract of a task: frozen values that the rest of the kit reads. CONTRIBUTING.md shows how to add a task.

A ``Study`` is a patient's examination as paths and labels. A ``Locator`` finds landmarks in patient millimetres, a
``Grader`` grades crops around them. Every name that is submitted is derived from the sites of the graders and the
prior, so no name is typed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging.geometry import Roi, Volume
from osteograde.tasks.census import Census
from osteograde.tasks.spine import Rhythm

Volumes = Mapping[str, Sequence[Volume]]  # view -> stacks, each oriented along the view's directions


@dataclass(frozen=True, eq=False)
class Point:
    """The position of a landmark: mm, (3,) in DICOM patient coordinates (LPS), and a confidence in [0, 1].

    in_doubt: whether the levels of the chain that it belongs to may be counted wrongly. names: only then; the
    probability that the structure this landmark names truly lies at the point of another landmark (or at its own), by
    that one's name. What is missing to 1 is the probability that it lies at none of them.
    """

    mm: np.ndarray
    confidence: float = 1.0
    in_doubt: bool = False
    names: Mapping[str, float] = field(default_factory=dict)


Points = Mapping[str, Point]  # landmark -> Point; absent landmarks are absent, never zero


@dataclass(frozen=True)
class Series:
    """The files of one series; nothing is read before the study is loaded.

    view: name of a ``View``; "" where no table names it. files: image files or radiographs; none: every DICOM file of
    ``folder``. spacing_mm: (slice, row, column) of image files, which have no pixel size of their own; None where it is
    unknown (``View.width_mm`` is assumed). side: "right" or "left" where the whole image shows that side of the patient
    only. masks: label images (segmentations) of ``files``, one for each, in the same order. label_classes: (first
    label, last label, class) of label images that number every structure; () where the labels are the classes.
    """

    id: str
    view: str
    folder: Path
    files: tuple[Path, ...] = ()
    spacing_mm: tuple[float, float, float] | None = None
    side: str = ""
    masks: tuple[Path, ...] = ()
    label_classes: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Mark:
    """An annotated landmark as the tables give it.

    series: its id. instance: the stem of the file. x, y: column and row of the pixel, an integer being a pixel centre;
    NaN where it is known that the series does not show the landmark.
    """

    landmark: str
    series: str
    instance: str
    x: float
    y: float


@dataclass(frozen=True)
class Study:
    """A patient's examination: which series hold which view, and what is known of it (labels, marks).

    labels: target -> class index; unlabelled targets are absent. marks: annotated landmarks. targets: those of the
    task's targets that this study has; none = all. head_labels: auxiliary head -> target -> index of its class (of a
    yes/no head 1 or 0); unlabelled targets are absent. notes: codes of what was assumed about its rows when names and
    headers were read, such as "side_assumed"; they are reported as flags of each row. given, given_marks: landmarks
    whose place is given by hand, in mm or as pixels, and is not looked for in the images. covariates: covariate ->
    target -> its number or category; the target "" stands for all targets that have no value of their own; what is
    unknown is absent. readings: other ways to read the same files where nothing but the image can tell which is right
    (``Task.settle``); they differ in the targets, the side, the size in mm and the notes.
    """

    id: str
    patient: str
    series: tuple[Series, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    targets: tuple[str, ...] = ()
    head_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    given: Mapping[str, Point] = field(default_factory=dict)
    given_marks: tuple[Mark, ...] = ()
    covariates: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    readings: tuple[Study, ...] = ()


NUMBER, CATEGORY = "number", "category"  # kinds of covariates
KEY_COLUMNS = ("study", "study_id", "patient", "patient_id", "side", "target")  # of covariates.csv: no covariates


@dataclass(frozen=True)
class Covariate:
    """Something known of a patient or a site beside the images, which a grader may read: age, sex, an earlier grade.

    kind: NUMBER or CATEGORY. categories: names of the values that a category may have, in any order; none of a number.
    ValueError for another kind, a name that is empty or a key column of covariates.csv, or categories that do not fit
    the kind.
    """

    name: str
    kind: str = NUMBER
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip() or self.name.lower() in KEY_COLUMNS:
            raise ValueError(f"a covariate is called {self.name!r}; expected a name that is none of {KEY_COLUMNS}")
        if self.kind not in (NUMBER, CATEGORY):
            raise ValueError(f"covariate {self.name!r} is of kind {self.kind!r}; expected {NUMBER} or {CATEGORY}")
        named = [name.casefold() for name in self.categories]
        fits = len(named) >= 2 and len(set(named)) == len(named) if self.kind == CATEGORY else not named
        if not fits:
            raise ValueError(
                f"covariate {self.name!r} of kind {self.kind} names categories {self.categories}; "
                f"expected none for {NUMBER}, at least two different ones for {CATEGORY}"
            )


Pixels = int | Sequence[int]  # the side of a square crop, or its (H, W)
Boxes = Mapping[str, Mapping[str, tuple[Volume, Roi]]]  # target -> crop name -> the stack to sample and the box in it


@dataclass(frozen=True)
class View:
    """A kind of series, for example sagittal T2.

    directions: unit LPS rows to which the (D, H, W) axes of a stack are turned, e.g. sagittal (left, feet, back), so
    that every net sees every patient the same way up. window: percentiles of a series' grey values that become black
    and white. width_mm: the width that is assumed for images without a pixel size, as (landscape, portrait or square).
    projection: the files are radiographs, one image each, not slices. dark_background: what lies around the body on
    them is dark; where it is not the image may be a negative, which is flagged, or turned where a crop tells. required:
    a study without this view is incomplete, which is counted. contrasts: kinds of MR series that the view shows ("T1",
    "T2", "STIR"), by which series are told apart that no table names; () = any. body_parts: words in upper case, one of
    which must occur in what a radiograph's header calls the body part, if it calls it anything; () = any.
    """

    name: str
    directions: tuple[tuple[float, float, float], ...]
    window: tuple[float, float] = (0.5, 99.5)
    width_mm: tuple[float, float] = (280.0, 280.0)
    projection: bool = False
    dark_background: bool = True
    required: bool = True
    contrasts: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()

    def along(self, volume: Volume) -> float:
        """How nearly parallel a stack's slices lie to those of the view: |cosine| of their normals, 1 = parallel."""
        normal = np.cross(volume.axes[1], volume.axes[2])
        return round(abs(float(np.cross(self.directions[1], self.directions[2]) @ normal)), 6)

    def shows(self, volume: Volume, degrees: float = 45.0) -> bool:
        """Whether a stack's slices lie within ``degrees`` of the view's."""
        return self.along(volume) > np.cos(np.radians(degrees))


@dataclass(frozen=True)
class Landmark:
    """What a locator finds. Several landmarks may share a channel: the same structure on the right and on the left.

    side: "right" or "left" keeps the landmark to that side of its region's midline; "" leaves it free.
    """

    name: str
    channel: str
    side: str = ""


@dataclass(frozen=True, eq=False)
class Region:
    """A field of view in which a locator's net looks for landmarks, in millimetres; the pipeline lays the net's pixels
    over it.

    volume: the stack whose slices the net sees. field_mm: (H, W) of every slice. midline_mm: patient x that divides
    right from left. centre_mm: (3,) the middle of the region, of which the ``slices`` nearest slices are seen; None:
    all slices of the stack about its own middle. neighbours_mm: landmark -> the point (3,) beside which it is looked
    for, as levels that were told apart by an earlier locator are not told apart again.
    """

    landmarks: tuple[Landmark, ...]
    volume: Volume
    field_mm: tuple[float, float]
    midline_mm: float
    centre_mm: np.ndarray | None = None
    slices: int = 0
    neighbours_mm: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Locator:
    """One locator: the landmarks it finds, the regions in which its net looks for them, and how maps become points.

    regions(volumes, points): the regions of one study, given what earlier locators found in it; a pure function, none
    where the study does not show what is looked for. All regions of a locator have landmarks of the same channels and
    sides in the same order. needs: names of the views and of the earlier locators' landmarks that ``regions`` reads; a
    task that lacks one of them is refused. field_mm: (H, W) of the field that the net is made for: distances within the
    net's image, of the next four fields, are measured as if it spanned so much. sigma_mm: spread of the heatmap target
    in-plane. level_spacing_mm: least and greatest distance of neighbouring landmarks of a side, which follow each other
    down the image in their order; None: they do not. level_rhythm: of the steps between these levels; with it all
    regions of a study, which then show the same levels of the same spine, are named together. may_be_absent: a region
    may lack its landmarks, and the net learns to say so.
    """

    name: str
    landmarks: tuple[Landmark, ...]
    needs: tuple[str, ...]
    regions: Callable[[Volumes, Points], list[Region]]
    field_mm: tuple[float, float]
    sigma_mm: float = 4.0
    level_spacing_mm: tuple[float, float] | None = None
    level_rhythm: Rhythm | None = None
    may_be_absent: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of the net's maps, in order."""
        return tuple(dict.fromkeys(landmark.channel for landmark in self.landmarks))

    def chains(self, landmarks: Sequence[Landmark]) -> tuple[tuple[int, ...], ...]:
        """Per side the indices of those of ``landmarks`` that follow each other down the image; none without
        ``level_spacing_mm``."""
        if self.level_spacing_mm is None:
            return ()
        sides = dict.fromkeys(landmark.side for landmark in landmarks)
        return tuple(tuple(i for i, mark in enumerate(landmarks) if mark.side == side) for side in sides)


@dataclass(frozen=True)
class Site:
    """One graded place, which is one submitted row.

    target: its name in the tables; "" for the only site of a task, whose rows are called as its studies. condition,
    level, side: what the tables of a report are grouped by; left sites are read mirrored. landmarks: where it lies, the
    landmark that measures its error first. Further ones are the same place in views whose series share no frame of
    reference with the first one's. None: the site is the whole image.
    """

    target: str
    condition: str
    level: str
    side: str
    landmarks: tuple[str, ...]

    @property
    def landmark(self) -> str:
        """The landmark that measures its error; "" where the site is the whole image."""
        return next(iter(self.landmarks), "")


@dataclass(frozen=True)
class Crop:
    """What a grader sees of one view around a site: slices and in-plane field in mm; the recipe chooses the pixels.

    name: unique within the grader; two crops may come from one view. offset_mm: (down, right) of the middle of the crop
    from the site's landmark, in the image as the grader reads it, where left sites are mirrored. mirrored: the crop is
    read mirrored once more, as the medial half of a joint is to be compared with the lateral one.
    """

    name: str
    view: str
    slices: int
    field_mm: float
    offset_mm: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False


YES_NO, CLASSES, GRADES = "yes_no", "classes", "grades"  # kinds of heads


@dataclass(frozen=True)
class Head:
    """A further question that a grader's net answers about every site, behind the classes of the target.

    It helps the net learn, is scored out-of-fold, and its probabilities are written beside the submission. kind:
    YES_NO, CLASSES (exclusive, in no order) or GRADES (exclusive and rising). classes: their names; none for YES_NO.
    ValueError for another kind, or a number of classes that does not fit it.
    """

    name: str
    kind: str = YES_NO
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in (YES_NO, CLASSES, GRADES):
            raise ValueError(f"head {self.name!r} is of kind {self.kind!r}; expected {YES_NO}, {CLASSES} or {GRADES}")
        if (self.kind == YES_NO and self.classes) or (self.kind != YES_NO and len(self.classes) < 2):
            raise ValueError(
                f"head {self.name!r} of kind {self.kind} names classes {self.classes}; "
                f"expected none for {YES_NO}, at least two for {CLASSES} and {GRADES}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """A name for every output of the head, as the table beside the submission has it.

        >>> Head("bulging").columns, Head("modic", CLASSES, ("none", "type1")).columns
        (('bulging',), ('modic_none', 'modic_type1'))
        """
        return tuple(f"{self.name}_{name}" for name in self.classes) or (self.name,)


@dataclass(frozen=True)
class Grader:
    """One grader: the sites it grades, the crops it reads of each, and where these lie.

    regions(volumes, points, pixels): {target: {crop name: (volume, box)}}, a pure function; crops that cannot be seen
    are left out. pixels: a side, or (H, W), whose longer one spans the field of a crop (``sides``). heads: what the
    net answers beside the target's classes. laterality_invariant: a site and its mirror image are graded alike, so
    mirror images are learnt from and averaged over as well. study_loss(logits (N, S, K), labels (N, S), class weights
    (K,)): a term of the loss over all S sites of each of N studies, labels -1 where unknown, all of them tensors.
    """

    name: str
    sites: tuple[Site, ...]
    crops: tuple[Crop, ...]
    regions: Callable[[Volumes, Points, Pixels], Boxes]
    heads: tuple[Head, ...] = ()
    laterality_invariant: bool = False
    study_loss: Callable[[Any, Any, Any], Any] | None = None

    @property
    def mirror_images(self) -> bool:
        """Whether the mirror image of every crop is a crop of a site that is graded alike. That of a crop beside its
        landmark is not: it would be a crop of the site's other part."""
        return self.laterality_invariant and not any(crop.offset_mm[1] or crop.mirrored for crop in self.crops)

    @property
    def head_outputs(self) -> int:
        """How many outputs the net has behind the target's classes."""
        return sum(len(head.columns) for head in self.heads)

    def reading(self, names: Sequence[str]) -> Grader:
        """This grader with the named crops alone, in its own order; the grader itself where none or all are named.

        A site of which no named crop can be seen is not graded. UserError for a name that is none of its crops.
        """
        known = [crop.name for crop in self.crops]
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"grader {self.name!r} has no crop {unknown[0]!r}; its crops are {known}")
        if not names or set(names) == set(known):
            return self
        chosen = tuple(crop for crop in self.crops if crop.name in names)
        return replace(self, crops=chosen, regions=partial(_chosen_boxes, self.regions, frozenset(names)))

    def of_side(self, side: str) -> Grader:
        """This grader for the sites of one side alone, called NAME_SIDE. Left sites stay mirrored."""
        sites = tuple(site for site in self.sites if site.side == side)
        targets = frozenset(site.target for site in sites)
        regions = partial(_boxes_of_targets, self.regions, targets)
        return replace(self, name=side_name(self.name, side), sites=sites, regions=regions)

    def split_heads(self, outputs: Any, classes: int) -> tuple[Any, tuple[Any, ...]]:
        """(..., K + head_outputs) as (the K classes, each head's own part), of an array or a tensor."""
        parts, start = [], classes
        for head in self.heads:
            parts.append(outputs[..., start : start + len(head.columns)])
            start += len(head.columns)
        return outputs[..., :classes], tuple(parts)


def side_name(grader: str, side: str) -> str:
    """The name of a grader of one side alone.

    >>> side_name("subarticular", "left")
    'subarticular_left'
    """
    return f"{grader}_{side}"


def _boxes_of_targets(
    regions: Callable[[Volumes, Points, Pixels], Boxes],
    targets: frozenset[str],
    volumes: Volumes,
    points: Points,
    pixels: Pixels,
) -> Boxes:
    """The boxes of some targets of a grader."""
    return {target: boxes for target, boxes in regions(volumes, points, pixels).items() if target in targets}


def _chosen_boxes(
    regions: Callable[[Volumes, Points, Pixels], Boxes],
    names: frozenset[str],
    volumes: Volumes,
    points: Points,
    pixels: Pixels,
) -> Boxes:
    """The boxes of a grader without those of crops that are not named."""
    return {
        target: {name: box for name, box in boxes.items() if name in names}
        for target, boxes in regions(volumes, points, pixels).items()
    }


Labels = Mapping[str, Mapping[str, int]]  # study -> target -> class index; unlabelled targets are absent
Probabilities = Mapping[str, np.ndarray]  # study -> (targets, classes), in the order of the task


class Metric(Protocol):
    """How a task is scored. ``parts``: names of the figures in their order, of which "score", the official one, is the
    last. ``higher_is_better``: those of the parts of which more is better; of all others less is. ``words``: what
    people call each part, for pages and pictures."""

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def higher_is_better(self) -> frozenset[str]: ...

    @property
    def words(self) -> Mapping[str, str]: ...

    def score(self, labels: Labels, probs: Probabilities) -> dict[str, float]:
        """Every part; NaN where the labels leave one undefined. Studies without labels are ignored. ValueError where a
        labelled study has no probabilities, or they are not finite, negative, or do not sum to 1."""
        ...

    def bootstrap_statistic(self, labels: Labels, probs: Probabilities) -> Callable[[np.ndarray], np.ndarray]:
        """The same score as a function of how often each of the labelled studies was drawn: counts (B, studies), in
        the order of ``labels``, to (B, parts). Resampling is cheap with it."""
        ...

    def confusion(self, labels: Labels, probs: Probabilities) -> np.ndarray | None:
        """(K, K) numbers of labelled targets, rows the truth, columns the most probable class; None where the task
        shows no such table."""
        ...


@dataclass(frozen=True)
class Competition:
    """What a code competition on Kaggle allows: the slug in its address, the hours and the memory of a run, and how
    many studies its hidden test set holds."""

    slug: str
    hours: float
    studies: int
    memory_gib: float


Settle = Callable[[Study, Callable[[Study], Points], Callable[[Study], bool]], Study]  # see ``Task``
SIDE_MM = 200.0  # an image of one side alone is put this far from the patient's midline: all of it lies on that side


@dataclass(frozen=True)
class Serving:
    """How a competition asks that hands its studies one by one to a predictor, and reads no table.

    Its data hold the package ``kaggle_evaluation`` then. server: module and class in that package, as "module:Class".
    studies(*args): the studies that one call of the predictor asks about; no image is opened, and a UserError or
    OSError says that nothing is there. None: all that lie at the path which is the first argument. table({row id: (K,)
    probabilities}): the columns of the table that the predictor returns. None: the columns of a submission. start_s:
    seconds that a kernel may take before it serves. study_s: seconds that an answer may take, the first one excepted.
    """

    server: str = "default_inference_server:DefaultInferenceServer"
    studies: Callable[..., list[Study]] | None = None
    table: Callable[[Mapping[str, np.ndarray]], Mapping[str, Sequence[Any]]] | None = None
    start_s: float = 900.0
    study_s: float = 60.0


@dataclass(frozen=True)
class Task:
    """What a study may hold, what is found in it, what is graded, and how that is read and scored.

    classes: columns of the submission, from the least to the most severe unless classes_are_ordered says that they
    have no order. class_weights: their weights in the loss, the calibration and the prior.
    prior: target -> class probabilities where nothing can be seen; its order is that of the submitted rows.
    read(root, "train" or "test"): the studies of a folder, lazily: tables and paths, no voxels. read_labels(path): a
    table of truth as {study: {target: class index}}. fill_missing_landmarks: adds to the points found those that
    geometry can tell from them; points that were found stay as they are. per_study_targets: studies have some of the
    targets only (``Study.targets``). assumed_side: code of the notes of studies whose side was assumed, "" where that
    never happens; weights that can tell the side of an image then do. patient_of: the patient whose study an id names;
    patients are resampled whole. read_files: studies to be graded of single files below a folder; None where the task
    takes whole folders alone. covariates: what its studies may tell beside the images; every grader's plan chooses
    those that its net reads.
    read_split(root, split): the labelled studies of a split that is published with the data and never learnt from; None
    where there are no such splits.
    settle(study, points_of, is_other_side): which reading of a study that has several (``Study.readings``) its image
    fits. points_of(reading): the points that the locators find in it; is_other_side(reading): whether the weights can
    tell that a reading of one assumed side shows the other one. None: studies of this task have one reading.
    inspect: counts what the task's own tables hold, beside what is counted of the studies of every task; None where
    there is nothing to add. serving: how its kernel answers where a competition streams the studies.

    A task may be made of data: which classes there are, and what is looked for, is then told by a folder of labelled
    studies, and kept in the manifest of the weights. of_folder(root, classes): the task as a folder defines it, whose
    classes are the given ones where any are given. of_definition(definition): the same task again out of
    ``definition``, plain JSON data, which is what the manifest keeps of it. None and {}: the task is the same always.
    """

    name: str
    views: tuple[View, ...]
    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    locators: tuple[Locator, ...]
    graders: tuple[Grader, ...]
    prior: Mapping[str, tuple[float, ...]]
    read: Callable[[Path, str], list[Study]]
    read_labels: Callable[[Path], dict[str, dict[str, int]]]
    metric: Metric
    fill_missing_landmarks: Callable[[Points], Points] = dict
    per_study_targets: bool = False
    assumed_side: str = ""
    patient_of: Callable[[str], str] = str
    read_files: Callable[[Path, Sequence[Path]], list[Study]] | None = None
    competition: Competition | None = None
    covariates: tuple[Covariate, ...] = ()
    read_split: Callable[[Path, str], list[Study]] | None = None
    inspect: Callable[[Path], Census] | None = None
    settle: Settle | None = None
    serving: Serving = Serving()
    of_folder: Callable[[Path, Sequence[str]], Task] | None = None
    of_definition: Callable[[Mapping[str, Any]], Task] | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)
    classes_are_ordered: bool = True

    def for_data(self, root: Path, classes: Sequence[str] = ()) -> Task:
        """The task as a folder of labelled studies defines it; itself where it is the same always. classes: those that
        a submission names already. UserError where the folder does not define one."""
        return self if self.of_folder is None else self.of_folder(Path(root), classes)

    def as_defined(self, definition: Mapping[str, Any]) -> Task:
        """The task as the manifest of weights defines it; itself where it is the same always. UserError where the
        definition is not one."""
        return self if self.of_definition is None or not definition else self.of_definition(definition)

    @property
    def slug(self) -> str:
        """The competition's name in its address on Kaggle; "" for a task without one."""
        return self.competition.slug if self.competition else ""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is graded, in the order of the submitted rows."""
        return tuple(self.prior)

    def __post_init__(self) -> None:
        views = {view.name for view in self.views}
        found: set[str] = set()
        for locator in self.locators:
            self._check_locator(locator, views, found)
            found |= {landmark.name for landmark in locator.landmarks}
        graded = [site.target for grader in self.graders for site in grader.sites]
        if sorted(graded) != sorted(self.targets):
            odd = sorted(set(graded) ^ set(self.targets)) or sorted({t for t in graded if graded.count(t) > 1})
            raise ValueError(f"{self.name}: every target of the prior must be graded once; look at {odd[:5]}")
        for grader in self.graders:
            self._check_grader(grader, views, found)
        called = [covariate.name.lower() for covariate in self.covariates]
        if twice := sorted({name for name in called if called.count(name) > 1}):
            raise ValueError(f"{self.name}: several covariates are called {twice}; give each a name of its own")

    def _check_locator(self, locator: Locator, views: set[str], found: set[str]) -> None:
        where = f"{self.name}: locator {locator.name!r}"
        if unknown := set(locator.needs) - views - found:
            raise ValueError(
                f"{where} needs {sorted(unknown)}, neither a view nor a landmark that an earlier locator finds; "
                f"views are {sorted(views)}, found so far: {sorted(found)}"
            )
        if not set(locator.needs) & views:
            raise ValueError(f"{where} needs no view; name those that it reads, of {sorted(views)}")
        if twice := {landmark.name for landmark in locator.landmarks} & found:
            raise ValueError(f"{where} finds {sorted(twice)}, as an earlier locator does; name every landmark once")

    def _check_grader(self, grader: Grader, views: set[str], found: set[str]) -> None:
        where = f"{self.name}: grader {grader.name!r}"
        if lost := {crop.view for crop in grader.crops} - views:
            raise ValueError(f"{where} reads {sorted(lost)}; views are {sorted(views)}")
        names = [crop.name for crop in grader.crops]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{where} has several crops called {twice}; give each a name of its own")
        heads = [head.name for head in grader.heads]
        if twice := sorted({name for name in heads if heads.count(name) > 1}):
            raise ValueError(f"{where} has several heads called {twice}; give each a name of its own")
        if lost := {name for site in grader.sites for name in site.landmarks} - found:
            raise ValueError(f"{where} needs {sorted(lost)}, which no locator finds")

    def reading(self, crops: Mapping[str, Sequence[str]]) -> Task:
        """This task with graders that read the named crops alone: grader -> names, as ``Grader.reading`` takes them.
        The task itself where that changes nothing."""
        graders = tuple(grader.reading(crops.get(grader.name, ())) for grader in self.graders)
        return self if graders == self.graders else replace(self, graders=graders)

    def by_side(self, names: Collection[str]) -> Task:
        """This task with two graders, left and right, in place of each of the named ones. The task itself where none is
        named. UserError for a grader that the task does not have, or that has sites of no side or of one alone."""
        by_name = {grader.name: grader for grader in self.graders}
        for name in names:
            found = {site.side for site in by_name[name].sites} if name in by_name else set()
            if found != {"left", "right"}:
                have = f"its sites are of {sorted(found)}" if name in by_name else f"graders are {sorted(by_name)}"
                raise UserError(f"{self.name}: {name!r} is no grader of a left and a right side; {have}")
        graders: list[Grader] = []
        for grader in self.graders:
            split = grader.name in names
            graders += [grader.of_side(side) for side in ("left", "right")] if split else [grader]
        return replace(self, graders=tuple(graders)) if names else self

    def view(self, name: str) -> View:
        return next(view for view in self.views if view.name == name)

    def view_of_orientation(self, volume: Volume) -> str:
        """Name of the view whose slices lie most nearly parallel to those of a stack, of equals the first; "" where all
        are more than 45 degrees away."""
        best = max(self.views, key=lambda view: view.along(volume))  # the first of equals
        return best.name if best.shows(volume) else ""

    def rows(self, study: str, targets: Sequence[str] = ()) -> list[str]:
        """The submitted row ids of a study, in the order of ``targets_of``."""
        return [row_id(study, target) for target in self.targets_of(targets)]

    def targets_of(self, targets: Sequence[str] = ()) -> tuple[str, ...]:
        """Those of the task's targets that a study has, in the task's order. ``targets``: ``Study.targets``, where none
        named means all."""
        return tuple(target for target in self.targets if target in targets) if targets else self.targets


def row_id(study: str, target: str) -> str:
    """The id of a submitted row; that of the study alone where it has one site without a name.

    >>> row_id("77", "left"), row_id("77", "")
    ('77_left', '77')
    """
    return f"{study}_{target}" if target else study


def sides(pixels: Pixels) -> tuple[int, int]:
    """(H, W) of a crop, of which ``pixels`` is the side or the (H, W).

    >>> sides([16, 24])
    (16, 24)
    """
    if isinstance(pixels, int):
        return pixels, pixels
    height, width = pixels
    return int(height), int(width)


def spacing_mm(field_mm: float, pixels: Pixels) -> tuple[float, float]:
    """(row, column) spacing in mm of a crop whose longer side spans ``field_mm``."""
    return (field_mm / max(sides(pixels)),) * 2  # type: ignore[return-value]

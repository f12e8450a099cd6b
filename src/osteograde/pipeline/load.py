"""Studies to volumes: every file read once, one window per series, every stack the same way up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from osteograde.imaging import image_files
from osteograde.imaging.dicom import UnreadableSeries, read_series
from osteograde.imaging.dicom.radiograph import read_film
from osteograde.imaging.dicom.volumes import UNSIZED
from osteograde.imaging.film_polarity import is_background_bright, is_negative_crop
from osteograde.imaging.geometry import LEFT, Volume, apply, oriented, roi_at
from osteograde.imaging.resample import average_thin_slices
from osteograde.imaging.volume_files import is_volume_file, read_volume, slices_first
from osteograde.imaging.windowing import window
from osteograde.pipeline.series_views import Shown, shown_views, surest
from osteograde.tasks.spec import SIDE_MM, Mark, Point, Series, Study, Task, View

SLICE_MM = 4.0  # thickness of images that have none, as radiographs and single pictures
WITHOUT_SLICE = "point_without_slice"  # code: a point was given on a slice that was not read
ASSUMED = "size_assumed"  # code: the pixels of an image have no size in mm, the view's usual width is taken
_SIGN = {"right": -1.0, "": 0.0, "left": 1.0}


@dataclass(frozen=True, eq=False)
class FileGrid:
    """The pixels of one stack as its files have them, before the stack was turned to its view's directions.

    names: per slice, the stem of its file, or its number where several slices lie in one file. to_mm: (4, 4) from index
    (slice, row, column, 1) to LPS mm. shape: (Z, Y, X).
    """

    view: str
    series: str
    names: tuple[str, ...]
    to_mm: np.ndarray
    shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Loaded:
    """What could be read of a study.

    volumes: view -> stacks of bytes (uint8). faults: how often something was lost or assumed, by code. marks: annotated
    landmarks in mm, of slices that were read. absent: landmarks known not to be in the study. given: landmarks that
    are not looked for, since their place is given. grids: of the stacks that were read.
    target_faults: what is in doubt about single targets, by target and code.
    """

    study: Study
    volumes: Mapping[str, tuple[Volume, ...]]
    faults: Counter[str] = field(default_factory=Counter)
    marks: Mapping[str, Point] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    given: Mapping[str, Point] = field(default_factory=dict)
    grids: tuple[FileGrid, ...] = ()
    target_faults: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def readable(self) -> bool:
        return any(self.volumes.values())


def load_study(study: Study, task: Task, *, map: Callable[..., Iterable] = map) -> Loaded:
    """Read every series of a study. ``map`` may be that of a thread pool, which reads files side by side. A series that
    cannot be read is counted in the faults and left out."""
    volumes: dict[str, list[Volume]] = {view.name: [] for view in task.views}
    faults: Counter[str] = Counter(study.notes)
    marks: dict[str, Point] = {}
    given = dict(study.given)
    grids: list[FileGrid] = []
    found: list[tuple[Series, Shown, bool]] = []
    for series in study.series:
        described = task.view(series.view) if series.view else task.views[0]  # a folder that no table names
        try:
            stacks, codes = load_series(series, described, map=map)
        except (UnreadableSeries, image_files.UnreadableImage) as error:
            faults[f"{series.view or 'unnamed'}:{error.code}"] += 1
            continue
        shown = shown_views(task, series.view, stacks, codes)
        name = next((one.view for one in shown), series.view or "unnamed")
        faults.update({f"{name}:{code}": count for code, count in codes.items() if count})
        found += [(series, one, UNSIZED in codes) for one in shown]
    found = [one for view in task.views for one in _serving(view, found, faults)]
    for series, one, is_unsized in sorted(found, key=lambda told: told[2]):  # sizes are taken from the others
        stacks = one.stacks
        if is_unsized:
            stacks = [_sized(stack, _usual_mm(task, volumes, one.view)) for stack in stacks]
        marks |= marks_in_mm(study.marks, series.id, stacks)
        given |= marks_in_mm(study.given_marks, series.id, stacks)
        grids += [_grid_of(one.view, series.id, stack) for stack in stacks]
        volumes[one.view] += _seen(task.view(one.view), stacks, faults)
    faults.update({f"{view.name}:absent": 1 for view in task.views if view.required and not volumes[view.name]})
    absent = frozenset(mark.landmark for mark in study.marks if np.isnan(mark.x))
    if lost := sum(mark.landmark not in given for mark in study.given_marks):
        faults[WITHOUT_SLICE] += lost
    seen = {name: tuple(stacks) for name, stacks in volumes.items()}
    return Loaded(study, seen, faults, marks, absent, given, tuple(grids))


def _grid_of(view: str, series: str, stack: Volume) -> FileGrid:
    depth, height, width = stack.voxels.shape
    names = stack.names
    if len(set(names)) < depth and stack.instances:
        names = tuple("" if number is None else str(number) for number in stack.instances)
    return FileGrid(view, series, names, stack.to_mm, (depth, height, width))


def _serving(
    view: View, found: Sequence[tuple[Series, Shown, bool]], faults: Counter[str]
) -> list[tuple[Series, Shown, bool]]:
    """What serves a view, of all that the study's series show."""
    codes: Counter[str] = Counter()
    kept = surest([one for _, one, _ in found if one.view == view.name], codes)
    faults.update({f"{view.name}:{code}": count for code, count in codes.items() if count})
    return [told for told in found if any(told[1] is one for one in kept)]


def _seen(view: View, stacks: Sequence[Volume], faults: Counter[str]) -> list[Volume]:
    """Stacks as the nets read them: windowed to bytes, thin slices averaged, turned to the view's directions. Stacks
    without any contrast are left out and counted."""
    grey = window(stacks, *view.window)
    kept = [volume for volume in grey if volume.voxels.any()]
    if len(kept) < len(grey):
        faults[f"{view.name}:no_contrast"] += len(grey) - len(kept)
    return [oriented(average_thin_slices(volume), np.array(view.directions)) for volume in kept]


def _usual_mm(task: Task, volumes: Mapping[str, Sequence[Volume]], name: str) -> float:
    """Pixel size in mm that is assumed for a stack without one: the median of the view's other stacks, else of the
    stacks in its plane, else of all stacks of the study, else 1."""
    plane = [view.name for view in task.views if view.directions == task.view(name).directions]
    for names in ([name], plane, list(volumes)):
        if sizes := [stack.spacing_mm[1:] for view in names for stack in volumes[view]]:
            return float(np.median(sizes))
    return 1.0


def _sized(volume: Volume, pixel_mm: float) -> Volume:
    """A stack that was read as if its pixels were 1 mm wide, given ``pixel_mm``; its first pixel stays where it is."""
    return replace(volume, to_mm=volume.to_mm @ np.diag([1.0, pixel_mm, pixel_mm, 1.0]))


def load_series(series: Series, view: View, *, map: Callable[..., Iterable] = map) -> tuple[list[Volume], Counter[str]]:
    """Stacks of one series with the grey values and axes of its files, and counts of what was lost or assumed, by code.

    UnreadableSeries or UnreadableImage where nothing can be read.
    """
    directions = np.array(view.directions)
    if not series.files:
        return read_series(series.folder, default_directions=directions, map=map)
    centre_mm = LEFT * SIDE_MM * _SIGN[series.side]
    if is_volume_file(series.files[0]):
        codes: Counter[str] = Counter()
        volumes = [slices_first(read_volume(file, codes), directions[0]) for file in series.files]
        return [replace(volume, series=series.id) for volume in volumes], codes
    if image_files.is_image(series.files[0]):
        stacks, codes = _images(series, view, directions, centre_mm)
        return [replace(stack, series=series.id) for stack in stacks], codes
    if view.projection:
        return _film(series, view, directions, centre_mm)
    return read_series(series.folder, files=series.files, default_directions=directions, map=map)


def _images(series: Series, view: View, directions: np.ndarray, centre_mm: np.ndarray):
    spacing, codes = series.spacing_mm, Counter[str]()
    if spacing is None:
        codes[ASSUMED] += 1
        width, height = image_files.image_size(series.files[0])
        spacing = (SLICE_MM, *(assumed_pixel_mm(view, width, height),) * 2)
    stacks = image_files.read_images(series.files, directions, spacing, centre_mm, codes)
    if not (view.projection and view.dark_background):
        return stacks, codes
    if _is_crop(series, view):  # a crop of one joint, whose polarity its edges tell
        stacks = [_bone_bright(stack, codes) for stack in stacks]
    elif any(is_background_bright(stack.voxels[0]) for stack in stacks):
        codes["polarity_in_doubt"] += 1
    return stacks, codes


def _is_crop(series: Series, view: View) -> bool:
    """Whether a picture whose size is known shows less than a film of the view usually does."""
    if series.spacing_mm is None:
        return False
    return image_files.image_size(series.files[0])[0] * series.spacing_mm[2] < min(view.width_mm)


def _bone_bright(crop: Volume, codes: Counter[str]) -> Volume:
    """A crop of a joint, turned where it is a negative ("negative_turned")."""
    if not is_negative_crop(crop.voxels[0]):
        return crop
    codes["negative_turned"] += 1
    return replace(crop, voxels=crop.voxels.max() - crop.voxels)


def _film(series: Series, view: View, directions: np.ndarray, centre_mm: np.ndarray):
    film = read_film(series.files[0])
    codes = Counter(film.codes)
    if (
        film.body_parts
        and view.body_parts
        and not any(one in part for part in film.body_parts for one in view.body_parts)
    ):
        codes["other_body_part"] += 1
    if view.dark_background and is_background_bright(film.pixels):
        codes["polarity_in_doubt"] += 1
    height, width = film.pixels.shape
    pixel_mm = film.pixel_mm
    if pixel_mm is None:
        codes[ASSUMED] += 1
        codes["pixels_not_square"] += film.pixel_height != 1.0
        across_mm = assumed_pixel_mm(view, width, round(height * film.pixel_height))
        pixel_mm = series.spacing_mm[1:] if series.spacing_mm else (across_mm * film.pixel_height, across_mm)
    grid = roi_at(centre_mm, directions, np.array([SLICE_MM, *pixel_mm]), (1, height, width))
    volume = Volume(film.pixels[None], grid.to_mm, series=series.id, names=(series.files[0].stem,))
    return [volume], codes


def assumed_pixel_mm(view: View, width: int, height: int) -> float:
    """Pixel size in mm of an image without one: the view's usual width divided by the number of columns."""
    return view.width_mm[width <= height] / width


def marks_in_mm(marks: Sequence[Mark], series: str, stacks: Sequence[Volume]) -> dict[str, Point]:
    """Annotated pixels of a series in mm. The stacks must be as read: pixel (x, y) is column and row of the file.

    A mark names its slice by InstanceNumber or by the name of the file: of a series that way counts by which more marks
    find a slice, of two alike the number. A number that two slices share tells nothing.
    """
    own = [mark for mark in marks if mark.series == series and not np.isnan(mark.x)]
    ways = (_places_by_instance(stacks), _places_by_name(stacks))
    places = max(ways, key=lambda way: sum(mark.instance in way for mark in own))  # the first of equals
    return {
        mark.landmark: Point(
            apply(places[mark.instance][0].to_mm, np.array([places[mark.instance][1], mark.y, mark.x]))
        )
        for mark in own
        if mark.instance in places
    }


def _places_by_name(stacks: Sequence[Volume]) -> dict[str, tuple[Volume, int]]:
    """name of a file, also without its leading zeros -> (stack, slice)."""
    named = {name: (stack, z) for stack in stacks for z, name in enumerate(stack.names)}
    return {name.lstrip("0"): place for name, place in named.items() if name.isdigit()} | named


def _places_by_instance(stacks: Sequence[Volume]) -> dict[str, tuple[Volume, int]]:
    told = [(str(number), (stack, z)) for stack in stacks for z, number in enumerate(stack.instances)]
    count = Counter(number for number, _ in told)
    return {number: place for number, place in told if count[number] == 1 and number != "None"}

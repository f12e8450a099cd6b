"""One picture per study: the slices that were used, the points that were found, the crops that were graded, and beside
them the probabilities.

Points have numbers, which stand before the rows that were graded there. They are green on the right, orange on the left
and cyan on the midline. A dot was found by a net, a ring was told from other landmarks by geometry; small ones lie on a
neighbouring slice. Outlines are the crops that the graders read. What is not there is not listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from osteograde.imaging.geometry import Roi, Volume, apply, to_index
from osteograde.inference.submission import Result
from osteograde.pipeline.crops import site_boxes
from osteograde.pipeline.ensemble import Voters
from osteograde.report import drawing
from osteograde.report.drawing import INK, LARGE, NORMAL, RULE, SMALL, SOFT, Words, percent
from osteograde.report.words import IMAGE, plain
from osteograde.tasks.spec import YES_NO, Head, Landmark, Point, Region, Site, Task, Volumes

CropBox = tuple[str, Volume, Roi]  # side of the site, and where one of its crops lies
COLOURS = {"right": (90, 220, 90), "left": (60, 160, 255), "": (255, 220, 60)}  # BGR
FILLED_ABOVE = 0.02  # points filled in by geometry carry less confidence than any net's
SIDE_WIDTH = 560  # pixels of the column of probabilities
LEAST_HEIGHT, MOST_WIDTH = 500, 1100  # pixels of the picture; of its slices
TITLE, GAP = 26, 10  # pixels above a slice, and between slices
BARS = 30  # classes of all rows together for which each has a bar of its own
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@dataclass(frozen=True, eq=False)
class Shown:
    """A slice that a picture shows, or a part of it.

    view: its name. corner_mm: (row, column) of the upper left corner of the part, from the corner of the slice.
    size_mm: (H, W) of the part. landmarks: those whose points lie there.
    """

    view: str
    volume: Volume
    z: int
    corner_mm: np.ndarray
    size_mm: np.ndarray
    landmarks: tuple[Landmark, ...]

    @property
    def aspect(self) -> float:
        """Width by height."""
        return float(self.size_mm[1] / self.size_mm[0])

    @property
    def slice_words(self) -> str:
        """The view, and which of its slices it is where there are several."""
        depth = self.volume.voxels.shape[0]
        return plain(self.view) + (f", slice {self.z + 1} of {depth}" if depth > 1 else "")


@dataclass(frozen=True, eq=False)
class StudyMarks:
    """What is drawn of a study: points by landmark, their numbers, and the crops that were graded. looks: whether the
    task looks for points at all."""

    points: Mapping[str, Point]
    number: Mapping[str, int]
    boxes: Sequence[CropBox]
    looks: bool = True


def file_stem(study: str) -> str:
    """The name of a study as that of a file: what would lead to another folder becomes a line.

    >>> file_stem("../a/b"), file_stem("9001695L")
    ('.._a_b', '9001695L')
    """
    return "".join("_" if c in "/\\\0" else c for c in study) or "_"


def overlay_drawer(folder: Path) -> Callable[[Result, Voters], None]:
    """A function that draws a finished study: FOLDER/<study>.jpg."""
    folder.mkdir(parents=True, exist_ok=True)

    def draw(result: Result, voters: Voters) -> None:
        save(folder / f"{file_stem(result.loaded.study.id)}.jpg", picture(result, voters))

    return draw


def save(path: Path, image: np.ndarray) -> None:
    """Write a picture as a JPEG. OSError where it cannot be written."""
    _, data = cv2.imencode(".jpg", image, JPEG)
    path.write_bytes(data.tobytes())


def marks_of(result: Result, voters: Voters) -> StudyMarks:
    """The points, their numbers in the task's order, and the crops of a study."""
    landmarks = [landmark for locator in voters.task.locators for landmark in locator.landmarks]
    found = [landmark.name for landmark in landmarks if landmark.name in result.points]
    boxes = [
        (site.side, volume, box)
        for member in voters.members
        for grader in member.task.graders
        for site in grader.sites
        if site.target in result.graded
        for volume, box in site_boxes(grader, result.loaded.volumes, result.points, member.pixels[grader.name])
        .get(site.target, {})
        .values()
    ]
    return StudyMarks(result.points, {name: i for i, name in enumerate(found, 1)}, boxes, bool(landmarks))


def picture(result: Result, voters: Voters) -> np.ndarray:
    """The picture of a study: (H, W, 3) BGR uint8."""
    marks = marks_of(result, voters)
    shown = [
        one
        for locator in voters.task.locators
        for region in locator.regions(result.loaded.volumes, result.points)
        for one in _of_region(region, result.loaded.volumes, result.points)
    ]
    shown = shown or _middle_slices(result.loaded.volumes)
    column = _column(result, voters, marks)
    height = max(len(column), LEAST_HEIGHT if shown else 0)
    column = np.pad(column, ((0, height - len(column)), (0, 0), (0, 0)), mode="edge")
    if not shown:
        return column
    return np.concatenate([_slices(shown, marks, height), column], 1)


def _of_region(region: Region, volumes: Volumes, points: Mapping[str, Point]) -> list[Shown]:
    """The slices of a region on which its points lie: one, or one per side where the region is a whole stack of several
    slices."""
    view = next(name for name, stacks in volumes.items() if any(stack is region.volume for stack in stacks))
    volume, spacing = region.volume, region.volume.spacing_mm[1:]
    landmarks_of: dict[str, list[Landmark]] = {}
    for landmark in region.landmarks:
        if landmark.name in points:
            landmarks_of.setdefault(landmark.side if region.centre_mm is None else "", []).append(landmark)
    size_mm, corner_mm = np.array(volume.voxels.shape[1:]) * spacing, np.zeros(2)
    if region.centre_mm is not None:
        size_mm = np.array(region.field_mm)
        corner_mm = to_index(volume, region.centre_mm)[1:] * spacing - size_mm / 2
    on_slice: dict[int, list[Landmark]] = {}
    for landmarks in landmarks_of.values():
        middle = np.median([points[landmark.name].mm for landmark in landmarks], axis=0)
        z = int(np.clip(round(float(to_index(volume, middle)[0])), 0, volume.voxels.shape[0] - 1))
        on_slice.setdefault(z, []).extend(landmarks)
    return [Shown(view, volume, z, corner_mm, size_mm, tuple(found)) for z, found in on_slice.items()]


def _middle_slices(volumes: Volumes) -> list[Shown]:
    """The middle slice of the first stack of every view, for studies in which nothing was found."""
    return [_whole(view, stacks[0], stacks[0].voxels.shape[0] // 2, ()) for view, stacks in volumes.items() if stacks]


def _whole(view: str, volume: Volume, z: int, landmarks: tuple[Landmark, ...]) -> Shown:
    """A whole slice of a stack."""
    size_mm = np.array(volume.voxels.shape[1:]) * volume.spacing_mm[1:]
    return Shown(view, volume, z, np.zeros(2), size_mm, landmarks)


def _slices(shown: Sequence[Shown], marks: StudyMarks, height: int) -> np.ndarray:
    """All slices side by side in rows that fill a picture of a height."""
    rows, width = layout([one.aspect for one in shown], height)
    image, words = drawing.ground(height, round(width) + GAP), []
    top, start = 0.0, 0
    for count in rows:
        part = shown[start : start + count]
        tall = (width - GAP * (count - 1)) / sum(one.aspect for one in part)
        left = 0.0
        for one in part:
            size = (max(1, round(tall)), max(1, round(tall * one.aspect)))
            drawn = slice_picture(one, marks, size)
            y, x = round(top) + TITLE, round(left)
            drawn = drawn[: height - y, : image.shape[1] - x]
            image[y : y + drawn.shape[0], x : x + drawn.shape[1]] = drawn
            words.append(Words(x + 4, y - TITLE / 2, drawing.fitted(title(one, marks), SMALL, size[1] - 8), SMALL))
            left += tall * one.aspect + GAP
        top, start = top + tall + TITLE + GAP, start + count
    return drawing.with_words(image, words)


def title(shown: Shown, marks: StudyMarks) -> str:
    """What a slice is, and which points lie there."""
    numbers = [marks.number[landmark.name] for landmark in shown.landmarks]
    nothing = ": nothing was found" if marks.looks else ""
    points = f": point{'s' if len(numbers) > 1 else ''} {ranges(numbers)}" if numbers else nothing
    return shown.slice_words + points


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in words, runs of them as their ends.

    >>> ranges([3, 1, 2, 7, 9, 10])
    '1-3, 7, 9, 10'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def layout(aspects: Sequence[float], height: int) -> tuple[list[int], float]:
    """(number of slices in each row, width of all rows) such that rows of equal width fill a height, and the whole is
    about as wide as high; at most ``MOST_WIDTH``."""
    tried = []
    for count in range(1, len(aspects) + 1):
        rows = _rows(aspects, count)
        ends = np.cumsum(rows)
        sums = [sum(aspects[end - n : end]) for n, end in zip(rows, ends, strict=True)]
        free = (
            height - count * TITLE - (count - 1) * GAP + sum(GAP * (n - 1) / s for n, s in zip(rows, sums, strict=True))
        )
        width = free / sum(1 / s for s in sums)
        tried.append((width > MOST_WIDTH, abs(np.log(max(width, 1.0) / height)), rows, width))
    *_, rows, width = min(tried, key=lambda one: one[:2])
    return rows, min(width, MOST_WIDTH)


def _rows(aspects: Sequence[float], count: int) -> list[int]:
    """Slices in order in so many rows of about equal width; no row is empty."""
    rows, total, done, start = [], sum(aspects), 0.0, 0
    for row in range(count):
        left, end = count - row - 1, start + 1
        done += aspects[start]
        while end < len(aspects) - left and done + aspects[end] / 2 <= total * (row + 1) / count:
            done += aspects[end]
            end += 1
        end = len(aspects) if left == 0 else end
        rows.append(end - start)
        start = end
    return rows


def slice_picture(shown: Shown, marks: StudyMarks, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) BGR of a size: the slice with square pixels, the crops that lie on it and its numbered points."""
    volume, spacing = shown.volume, shown.volume.spacing_mm[1:]
    scale = np.array(size) / shown.size_mm
    zoom, corner = scale * spacing, shown.corner_mm * scale
    warp = np.array([[zoom[1], 0, -corner[1]], [0, zoom[0], -corner[0]]], np.float32)
    source = np.ascontiguousarray(volume.voxels[shown.z])
    if zoom.max() < 0.7:  # thinned out pixels would flicker: average them
        step = (max(1, round(source.shape[1] * zoom[1])), max(1, round(source.shape[0] * zoom[0])))
        warp[0, 0], warp[1, 1] = zoom[1] * source.shape[1] / step[0], zoom[0] * source.shape[0] / step[1]
        source = cv2.resize(source, step, interpolation=cv2.INTER_AREA)
    grey = cv2.warpAffine(source, warp, size[::-1], flags=cv2.INTER_LINEAR)
    image = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)

    def pixel(mm: np.ndarray) -> tuple[np.ndarray, float]:
        """(x, y) of a point in the picture, and its distance from the slice in slices."""
        index = to_index(volume, mm)
        return ((index[1:] * spacing - shown.corner_mm) * scale)[::-1], abs(float(index[0]) - shown.z)

    for side, box_volume, roi in marks.boxes:
        if box_volume is volume and abs(float(to_index(volume, roi.centre_mm)[0]) - shown.z) <= 1:
            outline = np.array([pixel(mm)[0] for mm in corners(roi)]).round().astype(np.int32)
            cv2.polylines(image, [outline], True, _dark(COLOURS[side]), 2 if size[0] > 320 else 1, cv2.LINE_AA)
    words = []
    for landmark in shown.landmarks:
        point, colour = marks.points[landmark.name], COLOURS[landmark.side]
        (x, y), distance = pixel(point.mm)
        radius = 6 if distance <= 0.75 else 4
        place = (round(float(x)), round(float(y)))
        cv2.circle(image, place, radius + 2, (0, 0, 0), -1 if point.confidence > FILLED_ABOVE else 2, cv2.LINE_AA)
        cv2.circle(image, place, radius, colour, -1 if point.confidence > FILLED_ABOVE else 2, cv2.LINE_AA)
        right = x < size[1] - 40
        shift = radius + 5
        words.append(Words(x + shift if right else x - shift, y, str(marks.number[landmark.name]), NORMAL, colour,
                           "lm" if right else "rm", halo=True))  # fmt: skip
    return drawing.with_words(image, words) if words else image


def _dark(colour: drawing.Colour) -> drawing.Colour:
    return (round(colour[0] * 0.75), round(colour[1] * 0.75), round(colour[2] * 0.75))


def corners(roi: Roi) -> np.ndarray:
    """(4, 3) mm: the outline of the middle slice of a box."""
    d, h, w = roi.shape
    index = [(d // 2, -0.5, -0.5), (d // 2, -0.5, w - 0.5), (d // 2, h - 0.5, w - 0.5), (d // 2, h - 0.5, -0.5)]
    return apply(roi.to_mm, np.array(index))


def found_slices(result: Result, voters: Voters) -> Iterator[Shown]:
    """Every slice of a stack of several on which a point lies, in the order of views, stacks and slices."""
    landmarks = [landmark for locator in voters.task.locators for landmark in locator.landmarks]
    stack_of = _stacks_of_points(result, voters.task)
    for view, stacks in result.loaded.volumes.items():
        for volume in stacks:
            depth = volume.voxels.shape[0]
            on_slice: dict[int, list[Landmark]] = {}
            for landmark in landmarks:
                if stack_of.get(landmark.name) is volume:
                    z = round(float(to_index(volume, result.points[landmark.name].mm)[0]))
                    on_slice.setdefault(int(np.clip(z, 0, depth - 1)), []).append(landmark)
            if depth > 1:
                for z, found in sorted(on_slice.items()):
                    yield _whole(view, volume, z, tuple(found))


def _stacks_of_points(result: Result, task: Task) -> dict[str, Volume]:
    """Landmark -> the stack in which it was found."""
    return {
        landmark.name: region.volume
        for locator in task.locators
        for region in locator.regions(result.loaded.volumes, result.points)
        for landmark in region.landmarks
        if landmark.name in result.points
    }


def _column(result: Result, voters: Voters, marks: StudyMarks) -> np.ndarray:
    """The column beside the slices: the study, the probabilities of its rows, and the legend."""
    task = voters.task
    site_of = {site.target: site for grader in task.graders for site in grader.sites}
    targets = task.targets_of(result.loaded.study.targets)
    image, words = drawing.ground(6000, SIDE_WIDTH), [
        Words(12, 24, drawing.fitted(f"Study {result.loaded.study.id}", LARGE, SIDE_WIDTH - 24), LARGE)
    ]  # fmt: skip
    y = 48
    graded = [target for target in targets if target in result.graded]
    if len(graded) * len(task.classes) <= BARS:
        step = _step(len(graded), len(task.classes))
        for target in graded:
            y = _own_bars(image, words, y, result, voters, site_of[target], marks, step)
    else:
        y = _key(image, words, y, [plain(name) for name in task.classes])
        for condition in dict.fromkeys(site_of[target].condition for target in graded):
            own = [target for target in graded if site_of[target].condition == condition]
            words.append(Words(12, y + 16, plain(condition), NORMAL))
            y = _shared_bars(image, words, y + 32, result, voters, [site_of[target] for target in own], marks)
    if prior := [target for target in targets if target not in result.graded]:
        names = ", ".join(plain(target) or IMAGE for target in prior[:4]) + (
            f" and {len(prior) - 4} more" if len(prior) > 4 else ""
        )
        text = drawing.fitted(f"Not graded, holds the prior: {names}", SMALL, SIDE_WIDTH - 24)
        words.append(Words(12, y + 14, text, SMALL, drawing.WARNING))
        y += 26
    deep = any(stack.voxels.shape[0] > 1 for stacks in result.loaded.volumes.values() for stack in stacks)
    y = _legend(image, words, y + 6, marks, task, deep)
    return drawing.with_words(image[: y + 10], words)


def _step(rows: int, classes: int) -> int:
    """Pixels of a bar: few bars are thick, so that they fill the picture."""
    free = LEAST_HEIGHT - 48 - 110 - 60 * rows
    return int(np.clip(free // max(rows * classes, 1), 23, 42))


def _own_bars(
    image: np.ndarray, words: list[Words], y: int, result: Result, voters: Voters, site: Site, marks: StudyMarks,
    step: int,
) -> int:  # fmt: skip
    """A row with a bar for every class; where the next one begins is returned."""
    classes = [plain(name) for name in voters.task.classes]
    values, heads = _answers(result, voters, site.target)
    top = int(np.argmax(values))
    words += _numbers(site, marks, 12, y + 14)
    words.append(Words(82, y + 14, plain(site.target) or IMAGE, NORMAL))
    words.append(Words(SIDE_WIDTH - 12, y + 14, f"{classes[top]}: {percent(values[top])}", NORMAL, anchor="rm"))
    words += drawing.class_bars(image, 82, y + 28, SIDE_WIDTH - 94, step, classes, values)
    y += 28 + step * len(classes)
    if heads:
        words.append(Words(82, y + 10, drawing.fitted(heads, SMALL, SIDE_WIDTH - 94), SMALL, SOFT))
        y += 20
    return y + 12


def _shared_bars(
    image: np.ndarray, words: list[Words], y: int, result: Result, voters: Voters, sites: Sequence[Site],
    marks: StudyMarks,
) -> int:  # fmt: skip
    """Rows with one bar each, whose parts are the classes; where the next ones begin is returned."""
    classes = [plain(name) for name in voters.task.classes]
    for site in sites:
        values, _ = _answers(result, voters, site.target)
        top = int(np.argmax(values))
        words += _numbers(site, marks, 12, y + 12)
        name = plain("_".join(part for part in (site.side, site.level) if part)) or plain(site.target) or IMAGE
        words.append(Words(82, y + 12, name, NORMAL))
        drawing.stacked_bar(image, 200, y + 4, 180, 16, values)
        words.append(Words(392, y + 12, f"{classes[top]} {percent(values[top])}", NORMAL,
                           INK if top == 0 else drawing.class_colour(top, len(classes))))  # fmt: skip
        y += 25
    return y + 8


def _numbers(site: Site, marks: StudyMarks, x: int, y: int) -> list[Words]:
    """The numbers of the points that a row stands on."""
    found = [name for name in site.landmarks if name in marks.number]
    text = ", ".join(str(marks.number[name]) for name in found)
    return [Words(x, y, drawing.fitted(text, NORMAL, 66), NORMAL, COLOURS[site.side])] if text else []


def _answers(result: Result, voters: Voters, target: str) -> tuple[np.ndarray, str]:
    """(K,) probabilities of the classes, and what the auxiliary heads of the grader say, in words."""
    values, classes = result.graded[target], len(voters.task.classes)
    grader = next(one for one in voters.task.graders if any(site.target == target for site in one.sites))
    grades, heads = grader.split_heads(values, classes)
    return grades, ", ".join(map(_head_words, grader.heads, heads))


def _head_words(head: Head, values: np.ndarray) -> str:
    if head.kind == YES_NO:
        return f"{plain(head.name)} {percent(float(values[0]))}"
    top = int(np.argmax(values))
    return f"{plain(head.name)}: {plain(head.classes[top])} {percent(float(values[top]))}"


def _key(image: np.ndarray, words: list[Words], y: int, classes: Sequence[str]) -> int:
    """Which colour is which class."""
    x = 12.0
    for k, name in enumerate(classes):
        wide = 24 + drawing.width_of(name, SMALL) + 18
        if x + wide > SIDE_WIDTH and x > 12:
            x, y = 12.0, y + 22
        cv2.rectangle(image, (round(x), y + 3), (round(x) + 14, y + 17), drawing.class_colour(k, len(classes)), -1)
        words.append(Words(x + 22, y + 10, name, SMALL))
        x += wide
    return y + 30


def _legend(image: np.ndarray, words: list[Words], y: int, marks: StudyMarks, task: Task, deep: bool) -> int:
    """What the signs on the slices mean, of those signs that occur. deep: whether a stack has several slices."""
    side_of = {landmark.name: landmark.side for locator in task.locators for landmark in locator.landmarks}
    points = [(marks.points[name].confidence > FILLED_ABOVE, side_of[name]) for name in marks.number]
    signs = []
    if any(found for found, _ in points):
        signs.append(("dot", "point found by the nets" + ("; small: it lies on another slice" if deep else "")))
    if not all(found for found, _ in points):
        signs.append(("ring", "point told from the others by geometry, not seen"))
    if marks.boxes:
        signs.append(("box", "crop that was graded"))
    if not signs:
        return y
    cv2.line(image, (12, y), (SIDE_WIDTH - 12, y), RULE, 1)
    y += 8
    names, used = {"right": "right", "left": "left", "": "midline"}, {own for _, own in points}
    sides = [side for side in COLOURS if side in used]
    colour = COLOURS[sides[0]] if len(sides) == 1 else SOFT
    for sign, text in signs:
        middle = y + 11
        if sign == "box":
            cv2.rectangle(image, (13, middle - 6), (27, middle + 6), colour, 2)
        else:
            cv2.circle(image, (20, middle), 6, colour, -1 if sign == "dot" else 2, cv2.LINE_AA)
        words.append(Words(40, middle, text, SMALL, SOFT))
        y += 22
    x = 40.0
    for side in sides if len(sides) > 1 else ():
        words.append(Words(x, y + 11, names[side], SMALL, COLOURS[side]))
        x += drawing.width_of(names[side], SMALL) + 18
    return y + (22 if len(sides) > 1 else 0)

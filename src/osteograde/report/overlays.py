"""One picture per study: the slices that were used, the points that were found, the crops that were graded.

Points are green on the right, orange on the left and cyan on the midline. A disc was found by a net, a ring was filled
in by geometry. Boxes are the graders' crops. Numbers are the probability of each class, in the task's order, and then
those of auxiliary heads. A row is red where its worst grade is the most probable one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from osteograde.imaging.geometry import Roi, Volume, apply, to_index
from osteograde.inference.submission import Result
from osteograde.pipeline.crops import site_boxes
from osteograde.pipeline.ensemble import Voters
from osteograde.tasks.spec import Landmark, Point, Region, Volumes

CropBox = tuple[str, Volume, Roi]  # side of the site, and where one of its crops lies
HEIGHT = 420  # pixels of a panel
COLOURS = {"right": (90, 220, 90), "left": (60, 160, 255), "": (255, 220, 60)}  # BGR
RED = (80, 80, 255)  # BGR: rows whose worst grade is the likeliest
FONT = cv2.FONT_HERSHEY_SIMPLEX
FILLED_ABOVE = 0.02  # points filled in by geometry carry less confidence than any net's


def overlay_drawer(folder: Path) -> Callable[[Result, Voters], None]:
    """A function that draws a finished study: FOLDER/<study>.png."""
    folder.mkdir(parents=True, exist_ok=True)

    def draw(result: Result, voters: Voters) -> None:
        cv2.imwrite(str(folder / f"{result.loaded.study.id}.png"), picture(result, voters))

    return draw


def picture(result: Result, voters: Voters) -> np.ndarray:
    """The picture of a study: (H, W, 3) BGR uint8."""
    volumes = result.loaded.volumes
    boxes = [
        (site.side, volume, box)
        for member in voters.members
        for grader in member.task.graders
        for site in grader.sites
        for volume, box in site_boxes(grader, volumes, result.points, member.pixels[grader.name])
        .get(site.target, {})
        .values()
    ]
    panels = [
        panel
        for locator in voters.task.locators
        for region in locator.regions(volumes, result.points)
        for panel in _region_panels(locator.name, region, volumes, result.points, boxes)
    ]
    panels = panels or _stack_panels(volumes, result.points, boxes)
    panels.append(_grades(result, voters))
    return _wrap(panels)


def _stack_panels(volumes: Volumes, points: Mapping[str, Point], boxes: Sequence[CropBox]) -> list[np.ndarray]:
    """The middle slice of every stack, for tasks that look for nothing, or where no region is looked at."""
    panels = []
    for view, stacks in volumes.items():
        for stack in stacks:
            z = stack.voxels.shape[0] // 2
            region = Region((), stack, (0.0, 0.0), float(stack.centre_mm[0]))
            panels.append(_panel(region, z, f"{view} slice {z}", (), points, boxes))
    return panels


def _region_panels(
    locator: str, region: Region, volumes: Volumes, points: Mapping[str, Point], boxes: Sequence[CropBox]
) -> list[np.ndarray]:
    """The slices of a region on which its points lie: one panel, or one per side where the region is a whole stack."""
    view = next(name for name, stacks in volumes.items() if any(stack is region.volume for stack in stacks))
    landmarks_of: dict[str, list[Landmark]] = {}
    for landmark in region.landmarks:
        if landmark.name in points:
            landmarks_of.setdefault(landmark.side if region.centre_mm is None else "", []).append(landmark)
    panels = []
    for side, landmarks in landmarks_of.items():
        middle = np.median([points[landmark.name].mm for landmark in landmarks], axis=0)
        z = int(np.clip(round(float(to_index(region.volume, middle)[0])), 0, region.volume.voxels.shape[0] - 1))
        what = f"{locator} {side}" if region.centre_mm is None else landmarks[0].name
        panels.append(_panel(region, z, f"{view} {what} slice {z}", landmarks, points, boxes))
    return panels


def _panel(
    region: Region,
    z: int,
    title: str,
    landmarks: Sequence[Landmark],
    points: Mapping[str, Point],
    boxes: Sequence[CropBox],
) -> np.ndarray:
    """(HEIGHT, W, 3) BGR: slice z of a region's stack with square pixels, cropped to the region unless the region is
    the whole stack."""
    volume = region.volume
    spacing = volume.spacing_mm[1:]
    size_mm = np.array(volume.voxels.shape[1:]) * spacing
    corner = np.zeros(2)
    if region.centre_mm is not None:
        size_mm = np.array(region.field_mm)
        corner = to_index(volume, region.centre_mm)[1:] * spacing - size_mm / 2
    scale = HEIGHT / size_mm[0]
    width = max(1, round(size_mm[1] * scale))
    warp = np.array(
        [[scale * spacing[1], 0, -corner[1] * scale], [0, scale * spacing[0], -corner[0] * scale]], np.float32
    )
    grey = cv2.warpAffine(np.ascontiguousarray(volume.voxels[z]), warp, (width, HEIGHT), flags=cv2.INTER_LINEAR)
    image = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)

    def pixel(mm: np.ndarray) -> tuple[np.ndarray, float]:
        """(x, y) of a point in the panel, and its distance from slice z in slices."""
        index = to_index(volume, mm)
        return (index[1:] * spacing - corner)[::-1] * scale, abs(index[0] - z)

    for side, box_volume, roi in boxes:
        if box_volume is volume and abs(float(to_index(volume, roi.centre_mm)[0]) - z) <= 1:
            outline = np.array([pixel(mm)[0] for mm in corners(roi)]).round().astype(np.int32)
            cv2.polylines(image, [outline], True, tuple(c // 2 for c in COLOURS[side]), 1, cv2.LINE_AA)
    for landmark in landmarks:
        point = points[landmark.name]
        (x, y), distance = pixel(point.mm)
        fill = -1 if point.confidence > FILLED_ABOVE else 1
        cv2.circle(image, (round(x), round(y)), 4 if distance <= 0.75 else 2, COLOURS[landmark.side], fill, cv2.LINE_AA)
    cv2.putText(image, title, (6, 14), FONT, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return image


def corners(roi: Roi) -> np.ndarray:
    """(4, 3) mm: the outline of the middle slice of a box."""
    d, h, w = roi.shape
    index = [(d // 2, -0.5, -0.5), (d // 2, -0.5, w - 0.5), (d // 2, h - 0.5, w - 0.5), (d // 2, h - 0.5, -0.5)]
    return apply(roi.to_mm, np.array(index))


def _grades(result: Result, voters: Voters) -> np.ndarray:
    """The panel with the table of probabilities; targets that hold the prior are grey."""
    image = np.zeros((HEIGHT, 430, 3), np.uint8)
    cv2.putText(image, f"study {result.loaded.study.id}", (6, 14), FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    step = (HEIGHT - 24) / max(len(voters.task.targets), 1)
    for i, target in enumerate(voters.task.targets):
        seen = target in result.graded
        values = result.graded[target] if seen else np.array(voters.prior[target])
        grades = values[: len(voters.task.classes)]  # auxiliary heads follow and do not count here
        worst = RED if int(np.argmax(grades)) == len(grades) - 1 else (230, 230, 230)
        text = " ".join(f"{p:.2f}" for p in values) + f"  {target}" + ("" if seen else " (prior)")
        colour = worst if seen else (120, 120, 120)
        cv2.putText(image, text, (6, round(28 + i * step)), FONT, 0.36, colour, 1, cv2.LINE_AA)
    return image


def _wrap(panels: Sequence[np.ndarray], widest: int = 2000) -> np.ndarray:
    """Arrange panels of one height in rows of at most ``widest`` pixels, padded with black."""
    rows: list[list[np.ndarray]] = [[]]
    for panel in panels:
        if rows[-1] and sum(p.shape[1] for p in rows[-1]) + panel.shape[1] > widest:
            rows.append([])
        rows[-1].append(panel)
    lines = [np.concatenate(row, 1) for row in rows]
    width = max(line.shape[1] for line in lines)
    return np.concatenate([np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))) for line in lines])

"""Maps of evidence (models/explain.py) as pictures: a crop as the net read it, and the map over it and over the slice.

A map lies on the grid of the crop's box, whose position in patient mm is known. Putting it onto the slice is therefore
a change of coordinates, and needs no offset, scale or mirror flag. Shapes: D slices, H W pixels; images are BGR bytes.

``heatmap_drawer`` draws one picture per graded site of a study, with a row for each of its crops. Crops are shown as
the nets read them, so those of left sites are mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import map_coordinates

from osteograde.imaging.geometry import Roi, Volume, apply, to_index
from osteograde.inference.submission import Result
from osteograde.models.bundle import Bundle
from osteograde.models.explain import fold_maps
from osteograde.pipeline.covariates import inputs_of
from osteograde.pipeline.crops import site_boxes, site_crops
from osteograde.pipeline.ensemble import Voters
from osteograde.report import drawing
from osteograde.report.drawing import NORMAL, SMALL, Words
from osteograde.report.overlays import COLOURS, corners, file_stem
from osteograde.report.words import plain
from osteograde.tasks.spec import Grader, Pixels, Study, row_id

SITES_PER_BATCH = 8  # the activations of so many sites are held in memory at once
STRONGEST = 0.65  # opacity of the map where it is 1


@dataclass(frozen=True, eq=False)
class Shown:
    """One crop of one site: the slice of the crop on which the map is strongest.

    name: of the crop. number: which of the crop's ``slices`` is shown, from 1. crop, heat: (H, W) floats in 0..1, that
    slice and its map. film: BGR, the map over the whole slice of the image, together with those of the site's other
    crops that lie on it.
    """

    name: str
    number: int
    slices: int
    crop: np.ndarray
    heat: np.ndarray
    film: np.ndarray

    @property
    def slice_words(self) -> str:
        return f"{self.name}, slice {self.number} of {self.slices}" if self.slices > 1 else self.name


def explained(
    grader: Grader,
    boxes: Mapping[str, Mapping[str, tuple[Volume, Roi]]],
    nets: Sequence,
    pixels: Pixels,
    device: torch.device,
    classes: Mapping[str, int],
    *,
    study: Study,
    height: int = 240,
    method: str = "gradcam",
) -> dict[str, list[Shown]]:
    """{target: a picture per crop that can be seen} of the evidence for class ``classes[target]`` at each site.

    boxes: as ``pipeline.crops.site_boxes`` gives them; targets of it that ``classes`` does not name are left out.
    nets: folds, whose maps are averaged. study: whose covariates the nets are told, where they read any. height: of the
    film pictures, in pixels. method: one of ``models.explain.METHODS``.
    """
    targets = [target for target in boxes if target in classes]
    pictures_of: dict[str, list[Shown]] = {}
    for start in range(0, len(targets), SITES_PER_BATCH):
        part = {target: dict(boxes[target]) for target in targets[start : start + SITES_PER_BATCH]}
        crops = site_crops(grader, part, pixels, device)
        class_indices = torch.tensor([classes[target] for target in crops.targets], device=device)
        rows = [(study, target) for target in crops.targets]
        known = [next(iter(inputs_of(net, rows, device)), {}) for net in nets]
        found = fold_maps(nets, crops.images, crops.present, class_indices, method, known)
        maps = [view.cpu().numpy() for view in found]
        images = [view.cpu().numpy() for view in crops.images]
        for s, target in enumerate(crops.targets):
            pictures_of[target] = _site_shown(
                [
                    _Layer(crop.name, *part[target][crop.name], images[c][s], maps[c][s])
                    for c, crop in enumerate(grader.crops)
                    if crop.name in part[target]
                ],
                height,
            )
    return pictures_of


@dataclass(frozen=True, eq=False)
class _Layer:
    """One crop of a site: its box, its pixels (D, H, W) and its map (D, H, W)."""

    name: str
    volume: Volume
    roi: Roi
    crop: np.ndarray
    heat: np.ndarray

    @property
    def number(self) -> int:
        """The slice of the box that is shown."""
        return strongest(self.heat, self.volume, self.roi)

    @property
    def slice(self) -> int:
        """The slice of the volume that is shown."""
        return slice_of(self.volume, self.roi, self.number)


def _site_shown(layers: Sequence[_Layer], height: int) -> list[Shown]:
    """The pictures of the crops of one site. Maps of crops that are shown on the same slice of the same image are
    merged on it, the larger one where they overlap."""
    shown = []
    for layer in layers:
        together = [one for one in layers if one.volume is layer.volume and one.slice == layer.slice]
        picture = _film_under(together, height)
        d = layer.number
        shown.append(Shown(layer.name, d + 1, len(layer.heat), layer.crop[d], layer.heat[d], picture))
    return shown


def _film_under(layers: Sequence[_Layer], height: int) -> np.ndarray:
    """BGR: one slice of an image under the maps of crops of it, with the outline of each crop."""
    volume, z = layers[0].volume, layers[0].slice
    image = film(volume, z, height)
    picture = tinted(image, np.max([projected(one.heat, one.roi, volume, z, height) for one in layers], axis=0))
    scale = np.array(image.shape) / volume.voxels.shape[1:]
    for one in layers:
        outline = (to_index(volume, corners(one.roi))[:, 1:] + 0.5) * scale - 0.5
        cv2.polylines(picture, [outline[:, ::-1].round().astype(np.int32)], True, COLOURS[""], 1, cv2.LINE_AA)
    return picture


def strongest(heat_DHW: np.ndarray, volume: Volume, roi: Roi) -> int:
    """Index of the slice of a box on which the map has the largest sum; among equal ones the nearest to the middle.

    Slices beyond the ends of the volume, of which the net saw zeros, are chosen only where all slices are.
    """
    depth = len(heat_DHW)
    z = to_index(volume, apply(roi.to_mm, _middles(roi)))[:, 0]
    inside = (z > -0.5) & (z < volume.voxels.shape[0] - 0.5)
    total = np.where(inside | ~inside.any(), heat_DHW.sum((1, 2)), -1.0)
    return min(range(depth), key=lambda d: (-total[d], abs(d - depth // 2)))


def slice_of(volume: Volume, roi: Roi, d: int) -> int:
    """The slice of a volume nearest to the middle of slice ``d`` of a box."""
    z = to_index(volume, apply(roi.to_mm, _middles(roi)[d]))[0]
    return int(np.clip(round(float(z)), 0, volume.voxels.shape[0] - 1))


def _middles(roi: Roi) -> np.ndarray:
    """(D, 3) indices of the middles of the slices of a box."""
    depth, height, width = roi.shape
    return np.array([(d, (height - 1) / 2, (width - 1) / 2) for d in range(depth)])


def film_shape(volume: Volume, height: int) -> tuple[int, int]:
    """(rows, columns) of a picture of a whole slice with square pixels."""
    size_mm = np.array(volume.voxels.shape[1:]) * volume.spacing_mm[1:]
    return height, max(1, round(height * size_mm[1] / size_mm[0]))


def film(volume: Volume, z: int, height: int) -> np.ndarray:
    """(height, columns) bytes: slice z of a volume of bytes."""
    shape, image = film_shape(volume, height), np.ascontiguousarray(volume.voxels[z])
    shrinks = shape[0] < image.shape[0] or shape[1] < image.shape[1]
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def projected(heat_DHW: np.ndarray, roi: Roi, volume: Volume, z: int, height: int) -> np.ndarray:
    """Resample a map to the pixels of ``film(volume, z, height)``: trilinear within the box, 0 outside of it."""
    shape = film_shape(volume, height)
    rows, columns = (
        (np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip(shape, volume.voxels.shape[1:], strict=True)
    )
    index = np.stack(np.meshgrid([float(z)], rows, columns, indexing="ij"), -1)
    index = apply(roi.from_mm @ volume.to_mm, index)
    values = map_coordinates(heat_DHW.astype(float), np.moveaxis(index, -1, 0), order=1, mode="grid-constant", cval=0.0)
    return values[0]


def tinted(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(H, W, 3) BGR: a grey image under a map in 0..1 of the same size, clear where the map is 0."""
    colour = cv2.applyColorMap(np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    cover = (np.clip(heat, 0, 1) * STRONGEST)[..., None]
    return np.rint(grey[..., None] * (1 - cover) + colour * cover).astype(np.uint8)


def enlarged(image: np.ndarray, height: int) -> np.ndarray:
    """Enlarge a crop or a map to ``height`` rows; the ratio of its sides is kept."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def pair(shown: Shown, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Two BGR pictures of ``height`` rows: a crop, and the crop with its map over it."""
    grey = np.rint(np.clip(enlarged(shown.crop, height), 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), tinted(grey, enlarged(shown.heat, height))


HEIGHT = 260  # pixels of a panel
TITLE, BAR = 34, 23  # pixels of the line above the chart of probabilities, and of a bar


def heatmap_drawer(folder: Path, method: str = "gradcam") -> Callable[[Result, Voters], None]:
    """A function that draws a finished study: one FOLDER/<study>_<target>.png per graded site. method: one of
    ``models.explain.METHODS``."""
    folder.mkdir(parents=True, exist_ok=True)

    def draw(result: Result, voters: Voters) -> None:
        for target, image in pictures(result, voters, method).items():
            cv2.imwrite(str(folder / f"{file_stem(row_id(result.loaded.study.id, target))}.png"), image)

    return draw


def pictures(result: Result, voters: Voters, method: str = "gradcam") -> dict[str, np.ndarray]:
    """{target: (H, W, 3) BGR} of the sites that were graded: the chart of the probabilities, then for every member of
    an ensemble a row for each crop that it reads. The maps are means over the folds of a member, and all show the
    evidence for the class that the answer gives."""
    rows_of: dict[str, list[np.ndarray]] = {}
    for member in voters.members:
        name = f"{member.name}: " if len(voters.members) > 1 else ""
        for target, shown in _member_shown(result, voters, member, method).items():
            rows_of.setdefault(target, []).extend(_row(view, name + view.slice_words) for view in shown)
    return {
        target: _picture(result, voters, target, rows_of[target]) for target in voters.task.targets if target in rows_of
    }


def _member_shown(result: Result, voters: Voters, member: Bundle, method: str) -> dict[str, list[Shown]]:
    """{target: a picture per crop} of what one member read."""
    found: dict[str, list[Shown]] = {}
    for grader in member.task.graders:
        pixels = member.pixels[grader.name]
        boxes = site_boxes(grader, result.loaded.volumes, result.points, pixels)
        classes = {
            target: int(np.argmax(_grades(result, voters, target))) for target in boxes if target in result.graded
        }
        found |= explained(
            grader,
            boxes,
            member.graders[grader.name],
            pixels,
            member.device,
            classes,
            study=result.loaded.study,
            height=HEIGHT,
            method=method,
        )
    return found


def _grades(result: Result, voters: Voters, target: str) -> np.ndarray:
    """(K,) probabilities of the classes. Those of auxiliary heads, which some graders append, are left out."""
    return result.graded[target][: len(voters.task.classes)]


def _picture(result: Result, voters: Voters, target: str, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The picture of a site: a line of text, a bar per class, then the rows."""
    values, classes = _grades(result, voters, target), [plain(name) for name in voters.task.classes]
    width = max(560, *(row.shape[1] for row in rows))
    head = drawing.ground(TITLE + BAR * len(classes), width)
    title = f"{result.loaded.study.id}, {plain(target)}: evidence for {classes[int(np.argmax(values))]}"
    words = [Words(8, TITLE / 2, drawing.fitted(title, NORMAL, width - 16))]
    words += drawing.class_bars(head, 8, TITLE, min(width - 16, 700), BAR, classes, values)
    filled = [
        np.concatenate([row, drawing.ground(row.shape[0], width - row.shape[1])], 1) if row.shape[1] < width else row
        for row in rows
    ]
    return np.concatenate([drawing.with_words(head, words), *filled])


def _row(view: Shown, caption: str) -> np.ndarray:
    """A row of a picture: the crop, the map over it, and the map over the whole slice."""
    panels = [*pair(view, HEIGHT), view.film]
    row = np.concatenate([np.pad(panel, ((0, 4), (0, 4), (0, 0))) for panel in panels], 1)
    return drawing.with_words(row, [Words(8, 14, plain(caption), SMALL, halo=True)])

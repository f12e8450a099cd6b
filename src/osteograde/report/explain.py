"""One picture per graded site of a new study: the crop, the evidence for the predicted class over it, and the same on
the slice that the crop is from. A row per view. Crops are as the nets read them: left sites are mirrored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from osteograde.inference.answers.sheet import Result
from osteograde.inference.run import Draw
from osteograde.inference.views import site_boxes
from osteograde.models.bundle import Bundle
from osteograde.report import heat
from osteograde.report.overlays import FONT
from osteograde.tasks.contract import Site

HEIGHT = 260  # pixels of a panel
TITLE = 40


def drawer(folder: Path) -> Draw:
    """What ``infer`` calls with every finished study: writes FOLDER/<study>_<target>.png per graded site."""
    folder.mkdir(parents=True, exist_ok=True)

    def draw(result: Result, bundle: Bundle) -> None:
        for target, image in pictures(result, bundle).items():
            cv2.imwrite(str(folder / f"{result.loaded.study.id}_{target}.png"), image)

    return draw


def together(draws: Sequence[Callable[[Result, Bundle], None]]) -> Draw | None:
    """One callback that calls each; None of none."""
    if not draws:
        return None

    def draw(result: Result, bundle: Bundle) -> None:
        for each in draws:
            each(result, bundle)

    return draw


def pictures(result: Result, bundle: Bundle) -> dict[str, np.ndarray]:
    """{target: (H, W, 3) BGR} of the sites that were graded, with the maps of all folds averaged."""
    found: dict[str, np.ndarray] = {}
    for group in bundle.task.grade:
        pixels = bundle.pixels[group.name]
        boxes = site_boxes(group, result.loaded.volumes, result.points, pixels)
        classes = {
            target: int(np.argmax(_grades(result, bundle, target))) for target in boxes if target in result.graded
        }
        nets = bundle.graders[group.name]
        shown = heat.explained(group, boxes, nets, pixels, bundle.device, classes, height=HEIGHT)
        for site in group.sites:
            if site.target in shown:
                found[site.target] = _picture(result, bundle, site, shown[site.target])
    return found


def _grades(result: Result, bundle: Bundle, target: str) -> np.ndarray:
    """(K,) probabilities of the classes alone: the answers of some graders hold findings behind them."""
    return result.graded[target][: len(bundle.task.classes)]


def _picture(result: Result, bundle: Bundle, site: Site, views: Sequence[heat.Shown]) -> np.ndarray:
    values = _grades(result, bundle, site.target)
    title = f"{result.loaded.study.id} {site.target}: evidence for {bundle.task.classes[int(np.argmax(values))]}"
    chances = ", ".join(f"{name} {p:.2f}" for name, p in zip(bundle.task.classes, values, strict=True))
    rows = [_row(view) for view in views]
    width = max(560, *(row.shape[1] for row in rows))
    head = np.zeros((TITLE, width, 3), np.uint8)
    for line, text in enumerate((title, chances)):
        cv2.putText(head, text, (6, 15 + 18 * line), FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([head, *(np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows)])


def _row(view: heat.Shown) -> np.ndarray:
    panels = [*heat.pair(view, HEIGHT), view.film]
    row = np.concatenate([np.pad(panel, ((0, 4), (0, 4), (0, 0))) for panel in panels], 1)
    cv2.putText(row, view.slice_words, (6, 14), FONT, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return row

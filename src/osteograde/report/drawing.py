"""Words and bars on pictures. Images are (H, W, 3) BGR bytes, as OpenCV has them.

Words are drawn with the font that Pillow carries, so that pictures look alike everywhere. Nothing is smaller than
``SMALL`` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALL, NORMAL, LARGE = 14, 16, 21  # pixels of words
Colour = tuple[int, int, int]  # BGR
BACK, INK, SOFT, RULE = (30, 24, 20), (240, 236, 232), (190, 180, 172), (84, 74, 66)
WARNING = (110, 180, 255)
CLASSES: tuple[Colour, ...] = ((222, 168, 78), (150, 200, 90), (79, 199, 249), (40, 140, 248), (84, 75, 249),
                               (190, 90, 200))  # fmt: skip


@dataclass(frozen=True)
class Words:
    """Words on a picture: x, y is the place of their ``anchor`` (Pillow's: "l", "m" or "r" and "a" above, "m" middle).
    halo: draws a dark edge around them, so that they can be read on any ground."""

    x: float
    y: float
    text: str
    size: int = NORMAL
    colour: Colour = INK
    anchor: str = "lm"
    halo: bool = False


@lru_cache
def font(size: int) -> Any:
    """The font that Pillow carries, at a size in pixels."""
    return ImageFont.load_default(size=size)


def width_of(text: str, size: int = NORMAL) -> float:
    """Pixels that words take."""
    return float(font(size).getlength(text))


def fitted(text: str, size: int, width: float) -> str:
    """The words, cut with dots where they are longer than ``width`` pixels."""
    if width_of(text, size) <= width:
        return text
    while text and width_of(text + "...", size) > width:
        text = text[:-1]
    return text + "..."


def with_words(image: np.ndarray, words: Sequence[Words]) -> np.ndarray:
    """The picture with words on it."""
    canvas = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    draw = ImageDraw.Draw(canvas)
    for one in words:
        text = one.text.encode("utf-8", "replace").decode("utf-8")  # bytes of file names that are no text
        draw.text((one.x, one.y), text, fill=one.colour[::-1], font=font(one.size), anchor=one.anchor,
                  stroke_width=2 if one.halo else 0, stroke_fill=(0, 0, 0))  # fmt: skip
    return np.ascontiguousarray(np.asarray(canvas)[..., ::-1])


def ground(height: int, width: int) -> np.ndarray:
    """An empty picture."""
    return np.full((height, width, 3), BACK, np.uint8)


def class_colour(k: int, classes: int) -> Colour:
    """The colour of class k of so many: from blue for the first to red for the last.

    >>> class_colour(0, 3) == CLASSES[0], class_colour(2, 3) == CLASSES[4]
    (True, True)
    """
    if classes > len(CLASSES):
        return CLASSES[k % len(CLASSES)]
    return CLASSES[k] if classes >= 5 else CLASSES[round(k * 4 / max(classes - 1, 1))]


def stacked_bar(image: np.ndarray, x: int, y: int, width: int, height: int, values: np.ndarray) -> None:
    """Draw probabilities as parts of one bar, from the first class to the last, at a place in the picture."""
    ends = x + np.rint(width * np.concatenate([[0], np.cumsum(values)]) / max(float(values.sum()), 1e-9)).astype(int)
    for k, (left, right) in enumerate(pairwise(ends)):
        cv2.rectangle(image, (int(left), y), (int(right) - 1, y + height - 1), class_colour(k, len(values)), -1)


def class_bars(
    image: np.ndarray, x: int, y: int, width: int, step: int, classes: Sequence[str], values: np.ndarray
) -> list[Words]:
    """Draw a bar for the probability of each class below each other; the names and numbers beside them are returned as
    words. The name of the likeliest class is bright, the others are not."""
    names = max(width_of(name) for name in classes) + 12
    longest, top = width - names - 62, int(np.argmax(values))
    words = []
    for k, (name, value) in enumerate(zip(classes, values, strict=True)):
        middle, start = y + step * k + step // 2, round(x + names)
        end = start + max(1, round(longest * float(np.clip(value, 0, 1))))
        corners = (start, middle - step // 3), (end, middle + step // 3)
        cv2.rectangle(image, *corners, class_colour(k, len(classes)), -1)
        colour = INK if k == top else SOFT
        words += [Words(x, middle, name, colour=colour), Words(end + 8, middle, percent(float(value)), colour=colour)]
    return words


def percent(value: float) -> str:
    """A probability in words.

    >>> percent(0.423), percent(0.0004), percent(0.9999)
    ('42 %', '0 %', '100 %')
    """
    return f"{100 * value:.0f} %"

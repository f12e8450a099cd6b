"""Copies of an image, however they were saved again: a fingerprint of 384 bits and a search for those that are alike.

A fingerprint holds the signs of the low frequencies of a small copy of the image (a perceptual hash of the discrete
cosine transform, after Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010). The lowest
frequencies are left out: they are alike in all images of one body part. Images that differ in few bits are candidates;
``likeness`` of their small copies decides. The limits were measured on radiographs and slices of MR
(docs/experiments.md): copies that were compressed again, resized or had their contrast changed lie within them,
different images do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from scipy.fft import dctn

SIDE = 64  # pixels of the small copy
FREQUENCIES = 20  # of each axis that are looked at
LOWEST = 6  # row and column frequency add up to at least this
BITS = 384
MOST_BITS = 40  # copies differ in at most this many
LEAST_LIKENESS = 0.91  # of copies, beside a distance of at most MOST_BITS
SAME_LIKENESS = 0.97  # of copies that two different kinds of series hold: T1 and T2 of one spine come near 0.92
_FINE_PIXELS = 2.0  # structures that are wider than this many pixels of the small copy do not count for the likeness
_WORDS = BITS // 64
_BLOCK = 1 << 20  # pairs that are compared at a time
_CHOSEN = np.add.outer(np.arange(FREQUENCIES), np.arange(FREQUENCIES)) >= LOWEST


def small_copy(image: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) uint8 of an image (H, W) of bytes, whatever its shape."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def fingerprints(copies: np.ndarray) -> np.ndarray:
    """(N, 6) uint64 of N small copies (N, SIDE, SIDE)."""
    waves = dctn(copies.astype(np.float32), axes=(1, 2))[:, :FREQUENCIES, :FREQUENCIES]
    signs = waves[:, _CHOSEN] > 0
    padded = np.zeros((len(copies), BITS), bool)
    padded[:, : signs.shape[1]] = signs
    return np.packbits(padded, axis=1).view(np.uint64).reshape(len(copies), _WORDS)


def near_pairs(prints: np.ndarray, others: np.ndarray | None = None, most_bits: int = MOST_BITS) -> np.ndarray:
    """(P, 2) pairs i < j of fingerprints (N, 6) whose bits differ in at most ``most_bits`` places.

    others: fingerprints of the same N images in another form, such as mirrored: then the pairs of ``prints[i]`` and
    ``others[j]``. All pairs are compared, many at a time and word by word: what differs too much in the first words is
    left out of the next ones. Of images with equal fingerprints each is paired with the first alone, so that many
    copies of one image do not make all their pairs.
    """
    first, place = _first_of_equals(prints)
    single, mirror = prints[first], (prints if others is None else others)[first]
    found = [np.stack([first[place], np.arange(len(prints))], 1)[first[place] != np.arange(len(prints))]]
    if others is not None:
        found = []  # they were found as they are
    step = max(1, _BLOCK // max(1, len(single)))
    for start in range(0, len(single), step):
        rows = single[start : start + step]
        bits = np.zeros((len(rows), len(single) - start), np.uint16)
        for word in range(_WORDS // 2):
            bits += np.bitwise_count(rows[:, None, word] ^ mirror[None, start:, word])
        i, j = np.nonzero(np.triu(bits <= most_bits, 1))
        left = bits[i, j] + np.bitwise_count(rows[i, _WORDS // 2 :] ^ mirror[start + j, _WORDS // 2 :]).sum(1)
        i, j = i[left <= most_bits] + start, j[left <= most_bits] + start
        found.append(np.sort(np.stack([first[i], first[j]], 1), axis=1))
    pairs = np.concatenate(found) if found else np.zeros((0, 2), int)
    return np.unique(pairs.reshape(-1, 2), axis=0)


def _first_of_equals(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index of the first image of every different fingerprint, for each image which of them is its own)."""
    _, first, place = np.unique(prints, axis=0, return_index=True, return_inverse=True)
    return first, place.reshape(-1)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the fine structures of two small copies, 1 for equal ones; 0 where one has none."""
    fine = []
    for copy in (one, other):
        grey = copy.astype(np.float32)
        grey -= cv2.GaussianBlur(grey, (0, 0), _FINE_PIXELS)
        fine.append(grey - grey.mean())
    size = float(np.linalg.norm(fine[0]) * np.linalg.norm(fine[1]))
    return float((fine[0] * fine[1]).sum()) / size if size > 0 else 0.0


def groups(pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Numbers that pairs join, directly or over others, each group in order, the groups by their first number.

    >>> groups([(4, 1), (1, 7), (2, 3)])
    [[1, 4, 7], [2, 3]]
    """
    above: dict[int, int] = {}

    def top(number: int) -> int:
        while above.setdefault(number, number) != number:
            above[number] = above[above[number]]
            number = above[number]
        return number

    for a, b in pairs:
        low, high = sorted((top(int(a)), top(int(b))))
        above[high] = low
    members: dict[int, list[int]] = {}
    for number in sorted(above):
        members.setdefault(top(number), []).append(number)
    return sorted(members.values())

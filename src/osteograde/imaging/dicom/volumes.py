"""Slices to volumes: ordered along the slice normal, one volume per regular stack.

Slices of another size, spacing, tilt or frame, behind a gap, or lying on top of each other are different volumes. What
a file does not say is taken from its neighbours first, then from the caller, then from a default; each is counted.

A folder of DICOM files to volumes. Each file is opened once; one that cannot be read costs its own slice only.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging.dicom.contrasts import SAME_PLACE_MM, separate
from osteograde.imaging.dicom.read import Slice, read_slices
from osteograde.imaging.dicom.tags import UnreadableSlice, quiet_pydicom
from osteograde.imaging.geometry import Volume

ANGLE_DEGREES = 0.25  # directions closer than this are the same tilt; 0.5 mm at 100 mm from the corner
STEP_RANGE = (0.6, 1.5)  # of the stack's step: nearer is another stack, further a gap
DEFAULT_STEP_MM = 4.0
UNSIZED = "spacing_unknown"  # code: no slice of the series has a pixel spacing, all were taken for 1 mm
AXIAL = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def stack(
    slices: Sequence[Slice], series: str = "", default_directions: np.ndarray | None = None, lost: int = 0
) -> tuple[list[Volume], Counter[str]]:
    """All slices of a series as volumes, and the codes of what had to be assumed.

    default_directions: unit LPS rows of the (slice, row, column) axes, used where orientation or positions are missing.
    Slices of different contrast and moments of one place are told apart first (see ``contrasts.separate``), and every
    volume carries how its slices were made.
    lost: files of the series that could not be read; so many slices, and those of another size, may be missing inside a
    stack without splitting it.
    """
    codes: Counter[str] = Counter(note for one in slices for note in one.notes)
    directions = AXIAL if default_directions is None else np.asarray(default_directions, float)
    ordered = sorted(slices, key=_file_order)
    ordered = _with_orientation(ordered, directions, codes)
    ordered = _with_spacing(ordered, codes)
    volumes = []
    told = any(one.position_mm is not None for one in ordered)
    alike = [(group, contrast) for contrast in separate(ordered, codes) for group in _alike(contrast)]
    for group, contrast in alike:
        placed = _with_positions(group, directions[0], codes, told)
        aside = sum(_same_tilt(group[0], one) and not _same_grid(group[0], one) for one in contrast)
        chains = _bridged(_chains(placed), lost + aside, codes) if placed else []
        volumes += [_volume(chain, series, codes) for chain in chains]
    return volumes, +codes


def _file_order(one: Slice) -> tuple:
    """Instance number, then name with its numbers read as numbers: stable where positions tie or are missing."""
    parts = tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", one.name))
    return (one.instance is None, one.instance or 0, parts)


def _with_orientation(slices: list[Slice], directions: np.ndarray, codes: Counter[str]) -> list[Slice]:
    lost = sum(one.orientation is None for one in slices)
    if not lost:
        return slices
    codes["orientation_assumed"] += lost
    known = [one.orientation for one in slices if one.orientation is not None]
    usual = known[len(known) // 2] if known else np.concatenate([directions[2], directions[1]])
    return [one if one.orientation is not None else replace(one, orientation=usual) for one in slices]


def _with_spacing(slices: list[Slice], codes: Counter[str]) -> list[Slice]:
    lost = sum(one.spacing_mm is None for one in slices)
    if not lost:
        return slices
    known = [one.spacing_mm for one in slices if one.spacing_mm is not None]
    codes["spacing_assumed" if known else UNSIZED] += lost
    usual = np.median(known, axis=0) if known else np.ones(2)
    return [one if one.spacing_mm is not None else replace(one, spacing_mm=usual) for one in slices]


def _alike(slices: list[Slice]) -> list[list[Slice]]:
    """Groups of one size, spacing, tilt and frame of reference, in the order in which they first appear."""
    groups: list[list[Slice]] = []
    for one in slices:
        for group in groups:
            if _same_grid(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _same_grid(a: Slice, b: Slice) -> bool:
    assert a.spacing_mm is not None and b.spacing_mm is not None
    return bool(
        a.pixels.shape == b.pixels.shape
        and (a.frame == b.frame or not a.frame or not b.frame)
        and (_equal(a.spacing_mm, b.spacing_mm) or np.allclose(a.spacing_mm, b.spacing_mm, rtol=0.005))
        and _same_tilt(a, b)
    )


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Same to the bit: the usual case, told without arithmetic."""
    return a.tobytes() == b.tobytes()


def _same_tilt(a: Slice, b: Slice) -> bool:
    assert a.orientation is not None and b.orientation is not None
    one, other = a.orientation, b.orientation
    if _equal(one, other):
        return True
    turned = max(np.linalg.norm(one[:3] - other[:3]), np.linalg.norm(one[3:] - other[3:]))
    return bool(turned < np.radians(ANGLE_DEGREES))


def _with_positions(slices: list[Slice], forward: np.ndarray, codes: Counter[str], told: bool) -> list[Slice]:
    """Every slice with a position: its own, on the line through the others, or one step after another.

    told: some slice of the series has a position. A group of another size that has none, such as a picture of the
    screen, could lie anywhere and is dropped.
    """
    known = [one for one in slices if one.position_mm is not None]
    if told and not known:
        codes["position_missing"] += len(slices)
        return []
    start = np.zeros(3) if not known else np.asarray(known[0].position_mm)
    if len(known) > 1 and len({one.instance for one in known}) == len(known) and _span_mm(known) < SAME_PLACE_MM:
        codes["positions_equal"] += len(known)
        known = []
    if len(known) == len(slices):
        return slices
    if known:
        return _on_the_line(slices, known, codes)
    codes["position_assumed"] += len(slices)
    if len({one.instance for one in slices}) < len(slices):
        locations = [one.location_mm for one in slices if one.location_mm is not None]
        if len(set(locations)) == len(slices):
            slices = sorted(slices, key=lambda one: one.location_mm or 0.0)
    normal = _normal(slices[0])
    step = normal * (_step_mm(slices) * (1.0 if normal @ forward >= 0 else -1.0))
    return [replace(one, position_mm=start + k * step) for k, one in enumerate(slices)]


def _on_the_line(slices: list[Slice], known: list[Slice], codes: Counter[str]) -> list[Slice]:
    """Missing positions from instance numbers, where the known ones run straight with theirs; else dropped."""
    lost = len(slices) - len(known)
    numbers = [one.instance for one in slices]
    if len(known) > 1 and None not in numbers and len(set(numbers)) == len(numbers):
        design = np.array([[1.0, one.instance] for one in known], float)
        positions = np.array([one.position_mm for one in known])
        fit = np.linalg.lstsq(design, positions, rcond=None)[0]
        if abs(design @ fit - positions).max() < 0.25 * np.linalg.norm(fit[1]):
            codes["position_interpolated"] += lost
            line = {id(one): np.array([1.0, one.instance or 0]) @ fit for one in slices}
            return [one if one.position_mm is not None else replace(one, position_mm=line[id(one)]) for one in slices]
    codes["position_missing"] += lost
    return known


def _chains(slices: list[Slice]) -> list[list[Slice]]:
    """Regular stacks: with the first step that needs fewest of them, an uneven one counted as three."""
    normal = _normal(slices[0])
    places = np.array([one.position_mm for one in slices])
    order = np.argsort(places @ normal, kind="stable")
    slices, places = [slices[k] for k in order], places[order]
    along = places @ normal
    best: list[list[int]] = []
    fewest = len(slices) * 3 + 1
    for step in _step_candidates(slices, along):
        chains = _linked(places, normal, step)
        count = len(chains) + 2 * sum(_is_uneven(places[chain], normal) for chain in chains)
        if count < fewest:
            best, fewest = chains, count
        if fewest == 1:
            break
    return [[slices[k] for k in chain] for chain in best]


def _step_candidates(slices: list[Slice], along_mm: np.ndarray) -> list[float]:
    """Distances that may be the stack's step; every second slice counts where two stacks interleave."""
    found = []
    for apart in (1, 2):
        steps = along_mm[apart:] - along_mm[:-apart]
        if (steps > SAME_PLACE_MM).any():
            found.append(float(np.percentile(steps[steps > SAME_PLACE_MM], 50, method="lower")))
    return [*found, _step_mm(slices)]


def _linked(places_mm: np.ndarray, normal: np.ndarray, step_mm: float) -> list[list[int]]:
    """Each place joined to the chain that it continues best, else it starts one."""
    count = len(places_mm)
    alone = _misfits_mm(places_mm[:1], places_mm[:-1], np.arange(count - 1), places_mm[1:], normal, step_mm)
    if (alone < np.inf).all():  # the usual series: one chain from end to end
        return [list(range(count))]
    chains: list[list[int]] = [[0]]
    for k in range(1, count):
        first, last = ([chain[end] for chain in chains] for end in (0, -1))
        steps = np.array([len(chain) - 1 for chain in chains])
        misfits = _misfits_mm(places_mm[first], places_mm[last], steps, places_mm[k], normal, step_mm)
        if misfits.min() < np.inf:
            chains[int(np.argmin(misfits))].append(k)
        else:
            chains.append([k])
    return chains


def _misfits_mm(
    first_mm: np.ndarray,
    last_mm: np.ndarray,
    steps: np.ndarray,
    place_mm: np.ndarray,
    normal: np.ndarray,
    step_mm: float,
) -> np.ndarray:
    """(n,) how far places lie from where chains go on; infinite where one does not belong to it.

    first_mm, last_mm (n, 3): the ends of the chains; steps (n,): how many lie between them.
    """
    move = place_mm - last_mm
    along = move @ normal
    shear = (last_mm - first_mm) / np.maximum(1, steps)[:, None]
    sideways = (move - along[:, None] * normal) - (shear - (shear @ normal)[:, None] * normal)
    drift = np.linalg.norm(sideways, axis=1)
    allowed = np.where(steps > 0, 0.5, 1.0) * step_mm  # one slice does not tell yet how the stack leans
    near, far = STEP_RANGE
    belongs = (along > near * step_mm) & (along < far * step_mm) & (drift <= allowed)
    return np.where(belongs, abs(along - step_mm) + drift, np.inf)


def _bridged(chains: list[list[Slice]], lost: int, codes: Counter[str]) -> list[list[Slice]]:
    """Chains joined again where just the slices between them could not be read: one bad file does not halve a stack."""
    joined = [chains[0]]
    for chain in chains[1:]:
        filling = _filling(joined[-1], chain, lost - codes["slice_repeated"])
        codes["slice_repeated"] += len(filling)
        if filling:
            joined[-1] = [*joined[-1], *filling, *chain]
        else:
            joined.append(chain)
    return joined


def _filling(before: list[Slice], after: list[Slice], lost: int) -> list[Slice]:
    """The last slice repeated, one step after another, up to the next chain; empty where that does not fit."""
    places = np.array([one.position_mm for one in max(before, after, key=len)])
    last, following = (np.array(one.position_mm) for one in (before[-1], after[0]))
    move = following - last
    step = (places[-1] - places[0]) / max(1, len(places) - 1)
    count = round(float(move @ step) / float(step @ step)) if step.any() else 0
    if not 2 <= count <= min(3, lost + 1) or np.linalg.norm(move - count * step) > 0.25 * np.linalg.norm(step):
        return []
    return [replace(before[-1], position_mm=last + k * step) for k in range(1, count)]


def _volume(chain: list[Slice], series: str, codes: Counter[str]) -> Volume:
    places = np.array([one.position_mm for one in chain])
    middle, normal = chain[len(chain) // 2], _normal(chain[0])
    assert middle.orientation is not None and middle.spacing_mm is not None
    to_mm = np.eye(4)
    if len(chain) > 1:
        to_mm[:3, 0] = (places[-1] - places[0]) / (len(chain) - 1)
        if _is_uneven(places, normal):
            codes["uneven_slices"] += 1
    else:
        to_mm[:3, 0] = normal * _step_mm(chain)
    to_mm[:3, 1] = middle.orientation[3:] * middle.spacing_mm[0]
    to_mm[:3, 2] = middle.orientation[:3] * middle.spacing_mm[1]
    to_mm[:3, 3] = places[0]
    frame = next((one.frame for one in chain if one.frame), "")
    voxels, names = np.stack([one.pixels for one in chain]), tuple(one.name for one in chain)
    instances = tuple(one.instance for one in chain)
    return Volume(voxels, to_mm, frame, series, names, instances, chain[0].acquisition)


def _is_uneven(places_mm: np.ndarray, normal: np.ndarray) -> bool:
    """Whether a place lies further than a quarter of a step from the even stack between the first and the last."""
    step = (places_mm[-1] - places_mm[0]) / max(1, len(places_mm) - 1)
    line = places_mm[0] + np.arange(len(places_mm))[:, None] * step
    return bool(np.linalg.norm(places_mm - line, axis=1).max() > 0.25 * abs(step @ normal))


def _step_mm(slices: list[Slice]) -> float:
    """The distance between slices as the files tell it: between slices, else their thickness, else a usual one."""
    for told in ([one.gap_mm for one in slices], [one.thickness_mm for one in slices]):
        known = [value for value in told if value is not None and 0.1 <= value <= 50.0]
        if known:
            return float(np.median(known))
    return DEFAULT_STEP_MM


def _normal(one: Slice) -> np.ndarray:
    assert one.orientation is not None
    return np.cross(one.orientation[:3], one.orientation[3:])


def _span_mm(slices: list[Slice]) -> float:
    places = np.array([one.position_mm for one in slices])
    return float(np.linalg.norm(places - places[0], axis=1).max())


class UnreadableSeries(UserError):
    """A folder that gives no volume. ``code`` says why in one word; ``codes`` counts the reasons per file."""

    def __init__(self, code: str, codes: Counter[str] | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.codes = codes or Counter()


def read_series(
    folder: Path,
    *,
    files: Sequence[Path] = (),
    default_directions: np.ndarray | None = None,
    map: Callable[..., Iterable] = map,
) -> tuple[list[Volume], Counter[str]]:
    """All regular files of a folder as volumes, and how often a slice was dropped or a value assumed, by code.

    Files may have any name; what is no DICOM image is passed over and counted. files: only these.
    ``default_directions`` (rows D, H, W in
    LPS) stand in for a missing orientation. ``map`` may be a thread pool's: decoding runs outside the interpreter's
    lock. Raises UnreadableSeries where the folder is missing or empty, or none of its files gives a slice.
    """
    folder = Path(folder)
    paths = list(files) or _files(folder)
    codes: Counter[str] = Counter()
    slices: list[Slice] = []
    with quiet_pydicom():
        for found in map(_slices_or_code, paths):
            if isinstance(found, str):
                codes[found] += 1
            else:
                slices += found
    if not slices:
        code = codes.most_common(1)[0][0] if codes else "empty_folder"
        raise UnreadableSeries(code, codes)
    volumes, assumed = stack(slices, folder.name, default_directions, lost=sum(codes.values()))
    return volumes, codes + assumed


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_file(entry))
    except OSError:
        raise UnreadableSeries("no_folder") from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def _slices_or_code(path: Path) -> tuple[Slice, ...] | str:
    try:
        return read_slices(path)
    except UnreadableSlice as error:
        return error.code

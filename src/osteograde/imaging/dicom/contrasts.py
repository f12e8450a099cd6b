"""Which slices of a folder belong together: one series, one echo, one part of the complex signal, one moment.

A folder may hold several series, a series several echoes, phase images beside magnitude images, diffusion weights, or
the moments of a cine. Images of different contrast are never put into one stack, and moments of one place are no
neighbours in space. What cannot be told apart by any tag is left together and counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np

from osteograde.imaging.acquisition import DERIVED, IMAGINARY, MAGNITUDE, PHASE, REAL, Acquisition
from osteograde.imaging.dicom.acquisition_tags import TRIGGERS
from osteograde.imaging.dicom.read import Slice

SAME_PLACE_MM = 0.05
ECHO_STEP = 1.0, 0.05  # echo times of one echo differ by less than 1 ms or 5 %
REPETITION_STEP = 1.0, 0.2  # as repetition times of one contrast do
MOST_OF_A_PLACE = 3  # images of a lone place that may be echoes; more are moments
Key = Callable[[Acquisition], Hashable]


def separate(slices: Sequence[Slice], codes: Counter[str]) -> list[list[Slice]]:
    """Groups of slices of one contrast, in the order in which they first appear; within a group all slices have the
    same ``acquisition``.

    Counted in ``codes``: "not_magnitude" phase, real and imaginary images that are left out because there are magnitude
    images; "derived_image" localizers, projections, maps and subtractions, left out because there are other images;
    "several_moments" images of places of which an earlier one is kept; "slice_copied" images that are there
    twice; "places_repeated" images that lie where another lies, and nothing tells why.
    """
    groups = _parted(slices)
    groups = [part for group in groups for part in _told_apart(group)]
    groups = _without(groups, lambda told: told.component in (PHASE, REAL, IMAGINARY), codes, "not_magnitude")
    groups = _without(groups, lambda told: told.role in DERIVED, codes, "derived_image")
    return [_alike(_one_moment(group, codes)) for group in groups]


def _alike(slices: list[Slice]) -> list[Slice]:
    """The same slices, all with the acquisition of the first; frame indices that differ between them become 0."""
    if _are_made_alike(slices):
        return slices
    told = [one.acquisition for one in slices]
    widths = {len(one.dimensions) for one in told}
    columns = zip(*(one.dimensions for one in told), strict=True) if len(widths) == 1 else ()
    common = replace(told[0], dimensions=tuple(one[0] if len(set(one)) == 1 else 0 for one in columns))
    return [replace(one, acquisition=common) for one in slices]


def _are_made_alike(slices: Sequence[Slice]) -> bool:
    """Whether all slices say the same of how they were made; usually it is the same value, which costs nothing."""
    first = slices[0].acquisition if slices else None
    return all(one.acquisition is first or one.acquisition == first for one in slices)


def _parted(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices of one series, component, role, echo, b-value, and with or without a contrast agent."""
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    if _are_made_alike(slices):  # the usual series
        return [list(slices)] if slices else []
    told = [one.acquisition for one in slices]
    columns = [
        _series(told),
        _filled([one.description for one in told], len(told)),
        _filled([one.component for one in told], len(told), MAGNITUDE),
        [one.role for one in told],
        _filled([one.echo_number for one in told], len(told)),
        _clusters([one.echo_ms for one in told], *ECHO_STEP),
        _filled([one.b_value for one in told], len(told), 0.0),
        [one.agent for one in told],
    ]
    for one, key in zip(slices, zip(*columns, strict=True), strict=True):
        groups[key].append(one)
    return list(groups.values())


def _series(told: Sequence[Acquisition]) -> list[Hashable]:
    """Series by UID and number. Where every file has a UID of its own, as after a careless anonymiser, none counts."""
    uids = _filled([one.series for one in told], len(told))
    numbers = _filled([one.series_number for one in told], len(told))
    return list(zip(uids, numbers, strict=True))


def _filled(values: Sequence[Hashable], count: int, usual: Hashable = None) -> list[Hashable]:
    """Unknown values ("" or None) replaced by ``usual``, else by the only one that is known; all alike where every
    one of more than two images has a value of its own, which then tells nothing."""
    known = {value for value in values if value not in ("", None)}
    if len(known) == count > 2:
        return [""] * count
    stand_in = usual if usual is not None and known else next(iter(known)) if len(known) == 1 else ""
    return [stand_in if value in ("", None) else value for value in values]


def _clusters(values: Sequence[float | None], step: float, share: float) -> list[Hashable]:
    """The number of the cluster of each value: neighbours in order further apart than a step begin a new one."""
    known = sorted({value for value in values if value is not None})
    number: dict[float | None, int] = {}
    for before, value in zip([*known[:1], *known], known, strict=False):
        apart = value - before > max(step, share * value)
        number[value] = number.get(before, 0) + apart
    number[None] = 0 if len(set(number.values())) < 2 else -1
    return [number[value] for value in values]


def _without(
    groups: list[list[Slice]], is_left_out: Callable[[Acquisition], bool], codes: Counter[str], code: str
) -> list[list[Slice]]:
    """The groups that are not left out, unless that would be all."""
    kept = [group for group in groups if not is_left_out(group[0].acquisition)]
    if not kept:
        return groups
    codes[code] += sum(map(len, groups)) - sum(map(len, kept))
    return kept


# Tags that may tell images of one place apart; they are asked only where places repeat, because many differ for no
# reason between slices of one stack.
_REASONS: tuple[Key, ...] = (
    lambda told: told.contrast,
    lambda told: told.image_type,
    lambda told: told.inversion_ms,
    lambda told: told.repetition_ms,
    lambda told: told.flip_degrees,
    lambda told: told.echo_train,
    lambda told: (told.scanning, told.variant, told.options),
    lambda told: (told.sequence_name, told.protocol),
)


def _told_apart(slices: list[Slice]) -> list[list[Slice]]:
    """A group parted by the tags that differ between images of one place; as it is where no place repeats."""
    places = _places(slices)
    most = max(map(len, places), default=1)
    if most < 2:
        return [slices]
    width = 0 if _are_moments(slices, places) else min(len(one.acquisition.dimensions) for one in slices)
    keys = [*_REASONS, *(_dimension(column) for column in range(width))]
    for key in keys:
        values = [key(one.acquisition) for one in slices]
        apart = sum(len({key(slices[k].acquisition) for k in place}) - 1 for place in places)
        if apart and len(set(values)) <= most:
            parts: dict[Hashable, list[Slice]] = defaultdict(list)
            for one, value in zip(slices, values, strict=True):
                parts[value].append(one)
            return [part for half in parts.values() for part in _told_apart(half)]
    return [slices]


def _are_moments(slices: Sequence[Slice], places: Sequence[Sequence[int]]) -> bool:
    """Whether what differs between images of one place is known to be time, or is a single place seen many times."""
    repeated = [place for place in places if len(place) > 1]
    moment = _moment_that_tells(slices, repeated, len(places))
    return (moment is not None and moment < TRIGGERS) or (len(places) == 1 and len(places[0]) > MOST_OF_A_PLACE)


def _dimension(column: int) -> Key:
    return lambda told: told.dimensions[column]


def _are_apart(slices: Sequence[Slice]) -> bool:
    """Whether all slices lie at different heights along their normal, told without a comparison of any two."""
    first = slices[0].orientation
    if first is None or any(one.position_mm is None for one in slices):
        return False
    along = np.sort(np.array([one.position_mm for one in slices]) @ np.cross(first[:3], first[3:]))
    return bool((np.diff(along) > 2 * SAME_PLACE_MM).all())


def _places(slices: Sequence[Slice]) -> list[list[int]]:
    """Numbers of the slices that lie at each place: same position, tilt and size."""
    if _are_apart(slices):
        return [[k] for k in range(len(slices))]
    places: dict[Hashable, list[int]] = defaultdict(list)
    for k, one in enumerate(slices):
        if one.position_mm is not None:
            tilt = () if one.orientation is None else tuple(np.round(one.orientation, 2).tolist())
            place = tuple(np.round(np.asarray(one.position_mm) / (2 * SAME_PLACE_MM)).tolist())
            places[place, tilt, one.pixels.shape].append(k)
    return list(places.values())


def _one_moment(slices: list[Slice], codes: Counter[str]) -> list[Slice]:
    """The first image of every place."""
    places = _places(slices)
    if all(len(place) < 2 for place in places):
        return slices
    dropped: set[int] = set()
    for place in places:
        dropped |= _copies(slices, place)
    codes["slice_copied"] += len(dropped)
    places = [[k for k in place if k not in dropped] for place in places]
    repeated = [place for place in places if len(place) > 1]
    if when := _times(slices, repeated, len(places)):
        for place in repeated:
            later = sorted(place, key=lambda k: (when[k], k))[1:]
            codes["several_moments"] += len(later)
            dropped.update(later)
    elif len(places) > 1:  # of a single place the stack's own rule says what becomes of it
        codes["places_repeated"] += sum(len(place) - 1 for place in repeated)
    return [one for k, one in enumerate(slices) if k not in dropped]


def _times(slices: Sequence[Slice], repeated: Sequence[Sequence[int]], places: int) -> list[tuple]:
    """By what the images of each place follow each other in time, a key for every slice; [] where nothing tells."""
    moment = _moment_that_tells(slices, repeated, places)
    if moment is not None:
        return [(one.moment[moment] or 0.0,) for one in slices]
    indices = [one.acquisition.dimensions for one in slices]
    return indices if repeated and places == 1 and all(indices) and len(set(indices)) == len(indices) else []


def _copies(slices: Sequence[Slice], place: Sequence[int]) -> set[int]:
    """Those that have the very pixels and the moment of an earlier one of their place."""
    copies: set[int] = set()
    for n, k in enumerate(place):
        for before in place[:n]:
            same = before not in copies and slices[before].moment[:TRIGGERS] == slices[k].moment[:TRIGGERS]
            if same and np.array_equal(slices[before].pixels, slices[k].pixels):
                copies.add(k)
                break
    return copies


def _moment_that_tells(slices: Sequence[Slice], repeated: Sequence[Sequence[int]], places: int) -> int | None:
    """The number of the first kind of moment that differs between all images of each place.

    Where all slices lie at one place the positions may be wrong instead: then only tags that are written for moments
    count, and numbers and times of acquisition where the position is one that nobody writes for want of a better.
    """
    kinds = len(slices[0].moment) if repeated else 0
    for kind in range(kinds):
        if places == 1 and kind >= TRIGGERS and not np.any(slices[0].position_mm):
            continue
        moments = [[slices[k].moment[kind] for k in place] for place in repeated]
        if all(None not in found and len(set(found)) == len(found) for found in moments):
            return kind
    return None

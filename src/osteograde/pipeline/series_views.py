"""Which view the stacks of a folder show, and which of them serve it.

Where a table names the view, the files' orientation may still contradict it. Where none does, the plane is told by the
orientation and the contrast by the headers (``imaging.series_kind``). The rule by which one of several stacks is chosen
is stated at ``_choice``; that there was a choice is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from osteograde.imaging.acquisition import Acquisition
from osteograde.imaging.geometry import Volume
from osteograde.imaging.series_kind import LOCALIZER, STIR, T1, T2, is_fat_suppressed, kind_of_series
from osteograde.tasks.spec import Task, View

STEEP_DEGREES = 60.0  # slabs through the lowest disc may lean by 45 degrees and more; a stack beyond is another view's
TOLD, UNKNOWN, OTHER, UNFIT = range(4)  # how sure it is that stacks show their view; the surest serve it
_ROLES = ("", "reformatted", "in phase", "water", "out of phase", "fat")  # the plainest first
T2_ECHO_MS = 100.0


@dataclass(frozen=True, eq=False)
class Shown:
    """Stacks of one contrast that show a view. trust: TOLD by table or header, UNKNOWN, an OTHER contrast that comes
    near, or UNFIT (a localizer)."""

    view: str
    stacks: list[Volume]
    trust: int = TOLD


def shown_views(task: Task, told: str, stacks: Sequence[Volume], codes: Counter[str]) -> list[Shown]:
    """The views that the stacks of one folder show, contrast by contrast; ``told``: the view that a table names, or "".

    Counted in ``codes``: "orientation_contradicts" (no stack lies in the plane that the table names; the files are
    right), "no_view" and "other_plane" (slices that lie in no view's plane or across the others, a localizer for
    example), "contrast_contradicts" (the header says T1 where the table says T2, or the other way round; the table is
    right), "other_contrast" (slices of a contrast that no view of their plane shows), and those of ``_chosen``.
    """
    in_plane = any(task.view(told).shows(stack, STEEP_DEGREES) for stack in stacks) if told else False
    codes["orientation_contradicts"] += bool(told) and not in_plane
    found: list[Shown] = []
    for family in _families(stacks):
        name, trust = (told, TOLD) if in_plane else _view_of_family(task, family, codes)
        trust = TOLD if told and trust == UNKNOWN else trust  # that table and files differ is counted already
        for contrast in family:
            kept = [stack for stack in contrast if name and task.view(name).shows(stack, STEEP_DEGREES)]
            codes["other_plane" if name else "no_view"] += slices_in(contrast) - slices_in(kept)
            found += [Shown(name, kept, trust)] if kept else []
    served = [one for view in task.views for one in _chosen(view, [s for s in found if s.view == view.name], codes)]
    for one in served if in_plane else []:
        codes["contrast_contradicts"] += _contradicts(task.view(one.view), one.stacks[0].acquisition)
    return served


def slices_in(stacks: Sequence[Volume]) -> int:
    return sum(stack.voxels.shape[0] for stack in stacks)


Family = list[list[Volume]]  # one series: the stacks of each of its contrasts (echoes, weights, components)


def _families(stacks: Sequence[Volume]) -> list[Family]:
    families: dict[Hashable, dict[Acquisition, list[Volume]]] = {}
    for stack in stacks:
        families.setdefault(_series_of(stack.acquisition), {}).setdefault(stack.acquisition, []).append(stack)
    return [list(contrasts.values()) for contrasts in families.values()]


def _series_of(told: Acquisition) -> Hashable:
    return told.series, told.series_number, told.description


def _view_of_family(task: Task, family: Family, codes: Counter[str]) -> tuple[str, int]:
    """The view that a series without a table shows, and how sure that is; "" where it lies in no view's plane, or shows
    a contrast that no view of its plane has."""
    stacks = [stack for contrast in family for stack in contrast]
    largest = sorted(stacks, key=lambda stack: -stack.voxels.shape[0])
    nearest = next(filter(None, map(task.view_of_orientation, largest)), "")
    if not nearest:
        return "", UNFIT
    plane = [view for view in task.views if view.directions == task.view(nearest).directions]
    kinds = {view.name: frozenset(view.contrasts) for view in plane}
    kind = _kind_of_family(family)
    if not any(kinds.values()):
        return nearest, TOLD
    for name, shown in kinds.items():
        if kind in shown:
            return name, TOLD
    if kind == STIR:  # fluid is bright, as in T2
        return next((name for name, shown in kinds.items() if T2 in shown), nearest), OTHER
    if kind in (T1, T2):
        codes["other_contrast"] += slices_in(stacks)
        return "", UNFIT
    return nearest, UNKNOWN if not kind else UNFIT if kind == LOCALIZER else OTHER


def _kind_of_family(family: Family) -> str:
    """The kind of a series; of several echoes one that is T2 tells it: the short echo of such a series is no T1."""
    kinds = [kind_of_series(contrast[0].acquisition) for contrast in family]
    return T2 if T2 in kinds else next(filter(None, kinds), "")


def _chosen(view: View, found: Sequence[Shown], codes: Counter[str]) -> list[Shown]:
    """Those of a folder's contrasts that serve a view, the first in ``_choice`` first.

    Of several series all serve it, since they may show different levels ("several_series" counts those beyond the
    first); of one series only one echo, component or weight ("several_echoes" and "several_contrasts" count the slices
    left out). Contrasts that their header says are another view's are left out where there are others.
    """
    kinds = frozenset(view.contrasts)
    families: dict[Hashable, list[Shown]] = {}
    for one in sorted(found, key=partial(_choice, kinds)):
        families.setdefault(_series_of(one.stacks[0].acquisition), []).append(one)
    for same in families.values():
        echoes = {(one.stacks[0].acquisition.echo_ms, one.stacks[0].acquisition.echo_number) for one in same}
        code = "several_echoes" if len(echoes) > 1 else "several_contrasts"
        codes[code] += sum(slices_in(one.stacks) for one in same[1:])
    served = [same[0] for same in families.values()]
    fitting = [one for one in served if not _contradicts(view, one.stacks[0].acquisition)] or served
    codes["other_contrast"] += sum(slices_in(one.stacks) for one in served if one not in fitting)
    codes["several_series"] += max(0, len(fitting) - 1)
    return fitting


def _choice(kinds: frozenset[str], one: Shown) -> tuple:
    """In what order contrasts serve a view: the surest first; of the kind that the view shows; images as measured
    before reformatted ones, in phase, water, out of phase and fat; the lowest b-value; for T2 the echo nearest to 100
    ms (without times the highest echo number), else the shortest; without a contrast agent; without fat suppression;
    with most slices; with the lowest series number and frame index."""
    told = one.stacks[0].acquisition
    number = told.echo_number or 0
    if T2 in kinds:
        echo = abs((told.echo_ms or T2_ECHO_MS) - T2_ECHO_MS)
        number = -number
    else:
        echo = told.echo_ms or 0.0
    return (
        one.trust,
        bool(kinds) and kind_of_series(told) not in kinds,
        _ROLES.index(told.role) if told.role in _ROLES else len(_ROLES),
        told.b_value or 0.0,
        echo,
        number,
        told.agent,
        is_fat_suppressed(told),
        -slices_in(one.stacks),
        told.series_number or 0,
        told.dimensions,
    )


def _contradicts(view: View, told: Acquisition) -> bool:
    """Whether the header says T1 of a view that shows T2, or T2 of one that shows T1."""
    kind, kinds = kind_of_series(told), frozenset(view.contrasts)
    return kind in (T1, T2, STIR) and bool(kinds) and kind not in kinds and not (kind == STIR and T2 in kinds)


def surest(shown: Sequence[Shown], codes: Counter[str]) -> list[Shown]:
    """Of all that a study has for one view, what is known best: a contrast that nothing names serves only where no
    other does, one that is named otherwise only where nothing better is there, a localizer last.

    Counted: "contrast_assumed" stacks whose contrast is not the view's for sure, "other_contrast" slices left out.
    """
    best = min((one.trust for one in shown), default=TOLD)
    kept = [one for one in shown if one.trust == best]
    codes["other_contrast"] += sum(slices_in(one.stacks) for one in shown if one.trust != best)
    if best != TOLD:
        codes["contrast_assumed"] += sum(len(one.stacks) for one in kept)
    return kept

"""Which way to read a study, where its files leave several open: the task decides by what its image shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from osteograde.pipeline import predict
from osteograde.pipeline.load import Loaded, load_study
from osteograde.tasks.spec import Point, Points, Study, Task

IsOtherSide = Callable[[Loaded, Points], bool]


def settled(
    task: Task, studies: Sequence[Loaded], locators: Mapping[str, predict.Nets], is_other_side: IsOtherSide
) -> tuple[list[Loaded], list[dict[str, Point]]]:
    """The studies as ``Task.settle`` reads them, and the points of each as ``predict.locate_all`` fills them.

    is_other_side: see ``Task.settle``. A study keeps its own reading where its image cannot be read.
    """
    loaded = list(studies)
    points = predict.locate_all(task, loaded, locators)[1]
    for i, own in enumerate(studies):
        if task.settle is not None and own.study.readings and own.readable:
            loaded[i], points[i] = _settled(task, own, points[i], locators, is_other_side)
    return loaded, points


def _settled(
    task: Task,
    own: Loaded,
    points: dict[str, Point],
    locators: Mapping[str, predict.Nets],
    is_other_side: IsOtherSide,
) -> tuple[Loaded, dict[str, Point]]:
    """One study. Each reading is loaded and looked at once, when the task asks for it."""
    looked: dict[tuple[object, ...], tuple[Loaded, dict[str, Point]]] = {_pixels_of(own.study): (own, points)}

    def look(reading: Study) -> tuple[Loaded, dict[str, Point]]:
        if _pixels_of(reading) not in looked:
            new = _loaded(reading, task)
            looked[_pixels_of(reading)] = new, predict.locate_all(task, [new], locators)[1][0]
        new, found = looked[_pixels_of(reading)]
        return replace(new, study=reading, faults=_with_notes(new, reading)), found

    assert task.settle is not None
    chosen = task.settle(own.study, lambda one: look(one)[1], lambda one: is_other_side(*look(one)))
    study = own.study
    whole = replace(chosen, id=study.id, patient=study.patient, covariates=study.covariates, readings=())
    return look(whole)


def _pixels_of(reading: Study) -> tuple[object, ...]:
    """What of a reading says where its pixels lie: the rest are words about them."""
    return reading.series, reading.targets


def _with_notes(loaded: Loaded, reading: Study) -> Counter[str]:
    """The faults of a study that was loaded under other notes."""
    faults = Counter(loaded.faults)
    faults.subtract(Counter(loaded.study.notes))
    faults.update(reading.notes)
    return +faults


def _loaded(reading: Study, task: Task) -> Loaded:
    try:
        return load_study(reading, task)
    except MemoryError:
        return Loaded(reading, {}, Counter(out_of_memory=1))

"""What a training will do, said before it begins: data, folds, nets, device, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from osteograde.learning import calls
from osteograde.learning.calls import Call
from osteograde.learning.cross_fit import Run, is_done, nets_of, to_train
from osteograde.learning.recipe import Recipe
from osteograde.learning.recipes import catalogue
from osteograde.logs import duration

NEAR = 200  # folders beside the one of a run that are looked into


def lines(run: Run, data: Path) -> Iterator[str]:
    """The start lines of a run."""
    recipe, patients = run.recipe, len({study.patient for study in run.studies})
    made = f" and {len(run.synthetic)} made of them" if run.synthetic else ""
    small = ", made small by --debug" if is_debug(recipe) else ""
    chosen = f"fold{'s' if len(run.folds) > 1 else ''} {', '.join(map(str, run.folds))} of {run.split.count}"
    yield (
        f"{recipe.task.name} by recipe {recipe.name}{small}: {len(run.studies)} studies{made}, "
        f"{patients} patients, from {data}; {chosen}"
    )
    nets, epochs = to_train(run)
    yield f"nets to train: {nets} of {_each(run)}, {epochs} epochs in all"
    yield f"on {device_words(run.device)}, into {run.out}"
    yield last_time(recipe, run.out)


def is_debug(recipe: Recipe) -> bool:
    """Whether a recipe was made small by ``Recipe.shrunk``."""
    return recipe.scope.annotated_points


def device_words(device: torch.device) -> str:
    """A device for people: its name, and the threads that a CPU gives."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu with {threads} thread{'s' if threads > 1 else ''}"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _each(run: Run) -> str:
    """How many nets every locator and grader has, and how many of all are finished."""
    all_nets = [net for (kind, stage), plans in run.recipe.plans().items() for net in nets_of(kind, stage, plans)]
    finished = sum(is_done(run, net, k) for net in all_nets for k in run.folds)
    counts: dict[str, int] = {}
    for net in all_nets:
        counts[net.stage] = counts.get(net.stage, 0) + len(run.folds)
    done = f"; {finished} are finished" if finished else ""
    return f"{sum(counts.values())} ({', '.join(f'{stage} {count}' for stage, count in counts.items())}{done})"


def last_time(recipe: Recipe, out: Path) -> str:
    """How long a training by this recipe took: the last one into this folder or beside it, else by the catalogue."""
    if (found := former_call(recipe, out)) is not None:
        call, folder = found
        return f"last time: {duration(call.seconds)} for {call.epochs} epochs on {call.device}, {call.day}, in {folder}"
    about = catalogue.ABOUT.get(recipe.name)
    if about is not None and about.hours != catalogue.NOT_MEASURED and not is_debug(recipe):
        return f"a whole training was measured on {about.machine}, in hours: {about.hours}; none was found beside {out}"
    return f"how long it takes is not known: no training by this recipe was found in or beside {out}"


def former_call(recipe: Recipe, out: Path) -> tuple[Call, Path] | None:
    """The last finished call of the same recipe, as small or as whole, in a folder or in one beside it, and where."""
    beside = sorted(path for path in out.parent.iterdir() if path.is_dir())[:NEAR] if out.parent.is_dir() else []
    found = [
        (call, folder)
        for folder in dict.fromkeys([out, *beside])
        for call in calls.read(folder)
        if call.finished and call.epochs and call.recipe == recipe.name and call.debug == is_debug(recipe)
    ]
    return max(found, key=lambda one: one[0].begun, default=None)

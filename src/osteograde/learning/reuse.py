"""Nets of an earlier training that a recipe would train again in the same way: copied instead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.learning.cross_fit import Net, net_name, nets_of, repeats
from osteograde.learning.recipe import GraderPlan, LocatorPlan, Plan, Recipe, Scope, Training
from osteograde.models import bundle

PlainPlan = dict[str, Any]  # a plan as JSON data
PLANS = {"locate": LocatorPlan, "grade": GraderPlan}
LISTED_AS = {"locate": "locators", "grade": "graders"}  # folder of the nets -> key of their plans in a manifest


def reuse_nets(weights: Path, out: Path, recipe: Recipe, *, without: Collection[str] = ()) -> list[str]:
    """Copy the folds of ``weights`` into ``out``, and every net that was trained by the same plan.

    Each copied net gets a done marker, so that ``--resume`` uses it. Returns the names of the copied nets. Nets that
    are in ``out`` already stay. Folds in ``out`` may hold further studies. without: locators and graders whose nets are
    trained all the same. Raises UserError where the weights are of another task, seed or number of folds, where one of
    their files was changed, or where ``out`` has other folds.
    """
    manifest = bundle.verify(weights)
    known = current_form(manifest.recipe)
    for what, got, expected in (
        ("task", manifest.task, recipe.task.name),
        ("seed", known["scope"]["seed"], recipe.scope.seed),
        ("number of folds", known["scope"]["folds"], recipe.scope.folds),
    ):
        if got != expected:
            raise UserError(f"{weights}: {what} is {got!r}, recipe {recipe.name!r} has {expected!r}; nothing fits")
    (out / "work" / "nets").mkdir(parents=True, exist_ok=True)
    own = out / folds.FILE
    if not own.is_file():
        shutil.copy(weights / folds.FILE, own)
    elif not folds.holds(own, weights / folds.FILE):
        raise UserError(f"{own}: not the folds of {weights}; a net may have seen what it would be judged on")
    folds.keep(out)
    crops = {grader.name: [crop.name for crop in grader.crops] for grader in recipe.task.graders}
    nets = [net for (kind, stage), plans in recipe.plans().items() for net in nets_of(kind, stage, plans)]
    alike = {
        net.file(0)
        for net in nets
        if is_same(net, known[LISTED_AS[net.kind]].get(net.stage, []), crops.get(net.stage, ()))
    }
    same = [net for net in nets if net.stage not in without and alike >= _files_behind(recipe, net)]
    return [net.file(k) for net in same for k in range(recipe.scope.folds) if _copy(weights, out, net, k)]


def _files_behind(recipe: Recipe, net: Net) -> set[str]:
    """The files, in fold 0, of a net and of all nets of the recipe that it comes from: the one that it starts from, the
    one that this one starts from, and so on."""
    files, plan = {net.file(0)}, net.plan
    member = net.member
    while plan.start.stage:
        stage, member = plan.start.stage, recipe.source_member(net.kind, plan, member)
        files.add(net_name(net.kind, stage, 0, member))
        plan = recipe.plans()[net.kind, stage][member]
    return files


def _copy(weights: Path, out: Path, net: Net, k: int) -> bool:
    """Copy one net and write its done marker; False where there is none, or one in ``out`` already."""
    source, copy = bundle.place(weights, net.file(k)), out / net.file(k)
    if copy.is_file() or not source.is_file():
        return False
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, copy)
    net.done_marker(out, k).write_text(bundle.sha256(copy))
    return True


def is_same(net: Net, listed: Sequence[Mapping[str, Any]] | Mapping[str, Any], crops: Sequence[str] = ()) -> bool:
    """Whether a net is trained as a manifest says of the net in its place, with the same random seed.

    listed: the plan of a locator, or the plans of a grader's members. crops: names of all crops of a grader, by which a
    plan that names none is compared with one that does.
    """
    plain = [
        _naming_crops(complete(one, PLANS[net.kind]), crops)
        for one in ([listed] if isinstance(listed, Mapping) else listed)
    ]
    return (
        net.member < len(plain)
        and plain[net.member] == _naming_crops(json.loads(json.dumps(asdict(net.plan))), crops)
        and repeats(plain, net.member) == net.repeat
    )


def _naming_crops(plain: PlainPlan, crops: Sequence[str]) -> PlainPlan:
    """A plan with the names of the crops that its net reads: those it names, else as many first ones as its net has."""
    if not crops:
        return plain
    named = plain["crops"] or crops[: plain["net"].get("crops", len(crops))]
    return {**plain, "crops": sorted(named, key=list(crops).index)}


def completed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as JSON data with the default of every choice of its plans that did not exist when it was written."""
    locators = {stage: complete(plan, LocatorPlan) for stage, plan in recipe["locators"].items()}
    graders = {stage: [complete(one, GraderPlan) for one in members] for stage, members in recipe["graders"].items()}
    return {**recipe, "locators": locators, "graders": graders}


def complete(plain: Mapping[str, Any], kind: type[Plan]) -> PlainPlan:
    """A plan of a manifest with the default of every choice that did not exist when it was written.

    Choices that no longer exist are left out where they were off, that is 0, empty or False.
    """
    default = kind(net={}, pixels=0, training=Training(epochs=0, batch=0, lr=0.0))
    return json.loads(json.dumps(_completed(plain, default)))


def _completed(plain: Mapping[str, Any], default: Any) -> dict[str, Any]:
    known = {one.name: getattr(default, one.name) for one in fields(default)}
    done = asdict(default)
    for name, value in plain.items():
        if name in known and is_dataclass(known[name]):
            done[name] = _completed(value, known[name])
        elif name in known or value:
            done[name] = value
    return done


def current_form(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a manifest as ``Recipe.plain`` writes it today, whichever version wrote the manifest.

    An empty recipe has no plans.
    """
    if "locators" in recipe:
        return {**recipe, "scope": {**asdict(Scope()), **recipe.get("scope", {})}}
    return {
        "name": recipe.get("name", "not stated"),
        "scope": asdict(Scope(folds=recipe.get("num_folds", 0), seed=recipe.get("seed", 0))),
        "tta": recipe.get("test_views", 1),
        "calibrate": recipe.get("calibrate", False),
        "locators": {stage: _translated(plan, "locate") for stage, plan in recipe.get("locate", {}).items()},
        "graders": {
            stage: [_translated(one, "grade") for one in ({**plan, "also": ()}, *plan.get("also", ()))]
            for stage, plan in recipe.get("grade", {}).items()
        },
    }


# How a plan was written in manifests before locators and graders had plans of their own:
# old name -> (part of the plan, name); the part is "" where the choice belongs to the plan itself.
OLD_NAMES = {
    "net": ("", "net"), "pixels": ("", "pixels"),
    **{name: ("training", name) for name in
       ("epochs", "batch", "lr", "steps", "optimiser", "weight_decay", "clip", "ema", "patience")},
    "slack": ("training", "min_delta"),
    "warmup": ("schedule", "warm_up"), "swa": ("schedule", "swa"), "milestones": ("schedule", "milestones"),
    "pretrained": ("start", "weights"), "common": ("start", "shared_epochs"),
    **{name: ("start", name) for name in ("frozen", "head_epochs", "head_lr")},
}  # fmt: skip
OLD_NAMES_OF = {
    "locate": {"window": ("", "window"), "thin": ("", "subsample")},
    "grade": {
        "loss": ("", "loss"), "label_smoothing": ("", "label_smoothing"), "balance": ("", "class_weight_power"),
        "practice": ("", "synthetic_epochs"),
    },
}  # fmt: skip
# Choices of one kind of plan that the other kind had as well, without any effect.
IDLE = {
    "locate": {"loss", "label_smoothing", "balance", "practice", "early", "also"},
    "grade": {"window", "thin", "also"},
}
OLD_AUGMENTATION = {"turn_deg": "rotation_deg"}
OLD_GRADER_AUGMENTATION = {"drop_view": "drop_view", "use_measured_error": "measured_errors"}


def _translated(old: Mapping[str, Any], kind: str) -> PlainPlan:
    """A plan of an old manifest in today's form. Choices that are not known today are kept under their own names."""
    new: PlainPlan = {"training": {}, "schedule": {}, "start": {}, "augmentation": {}}
    names = OLD_NAMES | OLD_NAMES_OF[kind]
    for name, value in old.items():
        if name in names:
            part, today = names[name]
            (new[part] if part else new)[today] = value
        elif name not in IDLE[kind] | {"jitter", "early", "restarts", "restart_share"}:
            new[name] = value
    for name, value in old.get("jitter", {}).items():
        if name not in OLD_GRADER_AUGMENTATION:
            new["augmentation"][OLD_AUGMENTATION.get(name, name)] = value
        elif kind == "grade":
            new[OLD_GRADER_AUGMENTATION[name]] = value
    new["net"] = {bundle.EARLIER_NAMES.get(name, name): value for name, value in old["net"].items()}
    share = old.get("restart_share", 0.5)
    new["schedule"]["restarts"] = {str(epoch): share ** (i + 1) for i, epoch in enumerate(old.get("restarts", ()))}
    epochs, pixels_share = old.get("early", (0, 1.0))
    if kind == "grade" and epochs:
        new["resizing"] = {"epochs": epochs, "share": pixels_share}
    return new

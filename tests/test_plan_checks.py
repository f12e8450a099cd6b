"""Plans that make no sense are refused when a recipe is built; every recipe that ships makes sense, also made small."""

import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from osteograde.errors import UserError
from osteograde.learning import plan_checks, settings
from osteograde.learning.recipe import Augmentation, GraderPlan, LocatorPlan, Resizing, Schedule, Training
from osteograde.learning.recipes import RECIPES
from tests.test_loop import changed

KNEES = RECIPES["knee-xray"]()
((PLAN,),) = KNEES.graders.values()
LOCATOR = KNEES.locators["joint"]
FITTED = replace(PLAN, training=replace(PLAN.training, optimiser="lbfgs"), schedule=Schedule())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_that_ships_makes_sense_also_when_it_is_made_small(name):
    RECIPES[name]().shrunk().shrunk()


def of(plan, **choices):
    """A plan with choices of its own or of its training, schedule, start or augmentation."""
    own = {name: choices.pop(name) for name in list(choices) if name in {one.name for one in fields(plan)}}
    shown = {name: choices.pop(name) for name in list(choices) if name in {one.name for one in fields(Augmentation)}}
    plan = replace(plan, **own, augmentation=replace(plan.augmentation, **shown))
    return changed(plan, **choices)


GRADER_FAULTS = [
    ({"restarts": {10: 0.4}}, r"restarts after epoch 10, of 10 epochs in all: the rate would never fall.* from 1 to 9"),
    ({"restarts": {12: 0.4}}, r"restarts after epoch 12"),
    ({"restarts": {3: 0.4}, "shared_epochs": 3}, r"restarts after epoch 3, .*expected an epoch from 4 to 9"),
    ({"restarts": {8: 0.0}}, r"restarts with 0 of the rate"),
    ({"restarts": {}}, r"swa keeps the mean of the nets of all cycles"),
    ({"swa": False, "milestones": (3,)}, r"schedule.restarts and schedule.milestones both say"),
    ({"restarts": {}, "swa": False, "milestones": (3,), "power": 0.9}, r"milestones and schedule.power both say"),
    ({"restarts": {}, "swa": False, "milestones": (6, 3)}, r"milestones \[6, 3\]; expected rising epochs from 1 to 10"),
    ({"restarts": {}, "swa": False, "milestones": (11,)}, r"milestones \[11\]"),
    ({"restarts": {}, "swa": False, "milestones": (7,), "shared_epochs": 3, "synthetic_epochs": 0}, r"counted anew"),
    ({"warm_up": 1.0}, r"warm_up 1; expected from 0 to below 1"),
    ({"scale": 100.0}, r"augmentation.scale 100; expected"),
    ({"gamma": 1e9}, r"augmentation.gamma 1e\+09; expected"),
    ({"rotation_deg": 1e308}, r"rotation_deg 1e\+308; expected"),
    ({"epochs": -1}, r"epochs -1; expected 0 to 10000"),
    ({"batch": 0}, r"batch 0; expected 1 to 100000"),
    ({"lr": 0.0}, r"lr 0; expected a rate above 0"),
    ({"lr": float("nan")}, r"lr nan; expected a rate above 0"),
    ({"optimiser": "adamx"}, r"optimiser 'adamx' is unknown; known: 'adamw'"),
    ({"ema": 1.0}, r"ema 1; expected from 0 to below 1"),
    ({"clip": 0.0}, r"clip 0 allows no gradient"),
    ({"min_delta": 0.1}, r"min_delta 0.1 is of early stopping; set patience"),
    ({"accumulate": 0}, r"accumulate 0; expected 1 to 10000"),
    ({"layer_decay": 0.0}, r"layer_decay 0; expected above 0 and at most 1"),
    ({"layer_decay": 1.2}, r"layer_decay 1.2"),
    ({"head_epochs": 10, "head_lr": 0.1, "restarts": {}, "swa": False}, r"head_epochs 10 of 10 epochs leave none"),
    ({"head_epochs": 1}, r"head_lr 0 with head_epochs 1; expected a rate above 0"),
    ({"head_lr": 0.1}, r"head_lr 0.1 is of head_epochs, which are 0"),
    ({"head_epochs": 4, "head_lr": 0.1, "shared_epochs": 3}, r"head_epochs 4 end after shared_epochs 3"),
    ({"head_epochs": 1, "head_lr": 0.1, "frozen": ("",)}, r"head_epochs has no effect where the whole trunk is frozen"),
    ({"layer_decay": 0.8, "frozen": ("",)}, r"layer_decay has no effect where the whole trunk is frozen"),
    ({"weights": "", "frozen": ("conv_stem",)}, r"frozen .* would keep random weights"),
    ({"shared_epochs": 11}, r"shared_epochs 11; expected 0 to 10"),
    ({"pixels": 0}, r"pixels 0; expected 16 to 4096 on each side"),
    ({"rotation_deg": -5}, r"augmentation.rotation_deg -5; expected 0 to 180"),
    ({"contrast": 1.5}, r"augmentation.contrast 1.5; expected 0 to 1"),
    ({"cutout": 1.0}, r"augmentation.cutout 1; expected from 0 to below 1"),
    ({"loss": "ordinals"}, r"loss 'ordinals' is unknown; known: 'classes', 'ordinal'"),
    ({"sampling": "balanced", "loss": "ordinal"}, r"balanced sampling is corrected for labels that are one class"),
    ({"label_smoothing": 1.0}, r"label_smoothing 1;"),
    ({"drop_view": 1.0}, r"drop_view 1;"),
    ({"drop_covariate": 1.0}, r"drop_covariate 1;"),
    ({"class_weight_power": -1.0}, r"class_weight_power -1;"),
    ({"synthetic_epochs": 11}, r"synthetic_epochs 11; expected 0 to 10"),
    ({"synthetic_epochs": 9, "shared_epochs": 3}, r"synthetic_epochs 9; expected 0 to 7"),
    ({"resizing": Resizing(epochs=11, share=0.7)}, r"resizing.epochs 11; expected 1 to 10"),
    ({"resizing": Resizing(epochs=2, share=1.5)}, r"resizing.share 1.5; expected above 0 and below 1"),
    ({"resizing": Resizing(epochs=2, share=0.99)}, r"resizing.share 0.99 of pixels \(176, 240\) is the same size"),
    ({"mixup": -0.1}, r"mixup -0.1; expected 0 to 100"),
]


@pytest.mark.parametrize(("choices", "told"), GRADER_FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_plan_of_a_grader_that_makes_no_sense_is_refused_with_its_place(choices, told):
    with pytest.raises(UserError, match=rf"recipe 'knee-xray': grader 'kl': .*{told}"):
        replace(KNEES, graders={"kl": (of(PLAN, **choices),)})


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"optimiser": "lbfgs"}, r"optimiser 'lbfgs' fits the last layer of a grader"),
        ({"window": 0}, r"window 0; expected 1 to 1000"),
        ({"subsample": 0}, r"subsample 0; expected 1 to 1000000"),
        ({"any_window": True}, r"any_window is of nets that learn from label images .* got kind 'heatmap'"),
        ({"net": {**LOCATOR.net, "kind": "faster_rcnn"}, "layer_decay": 0.9}, r"a 'faster_rcnn' net has none"),
    ],
)
def test_a_plan_of_a_locator_that_makes_no_sense_is_refused(choices, told):
    with pytest.raises(UserError, match=rf"locator 'joint': .*{told}"):
        replace(KNEES, locators={"joint": of(LOCATOR, **choices)})


@pytest.mark.parametrize("choice", [{"patience": 2}, {"accumulate": 2}, {"layer_decay": 0.9}, {"power": 0.9},
                                    {"shared_epochs": 2}, {"head_epochs": 1}])  # fmt: skip
def test_what_has_no_effect_on_a_fitted_last_layer_is_refused(choice):
    plan = of(FITTED, **choice)
    with pytest.raises(UserError, match=rf"{next(iter(choice))} has no effect; leave it out"):
        replace(KNEES, graders={"kl": (plan,)})


def test_a_net_that_is_used_as_it_starts_needs_no_rate():
    replace(KNEES, locators={"joint": of(LOCATOR, epochs=0, lr=0.0, shared_epochs=0)})


@pytest.mark.parametrize(
    ("choices", "told"),
    [({"folds": 1}, r"scope.folds 1; expected 2 to 1000"), ({"synthetic_share": 2.0}, r"expected 0 to 1")],
)
def test_a_scope_that_makes_no_sense_is_refused(choices, told):
    with pytest.raises(UserError, match=told):
        replace(KNEES, scope=replace(KNEES.scope, **choices))
    with pytest.raises(UserError, match="tta 0; expected 1 to 8"):
        replace(KNEES, tta=0)


def test_mixing_is_refused_where_a_label_cannot_be_shared():
    lumbar = RECIPES["lumbar-mr-small"]()
    (spinal,) = lumbar.graders["spinal"]
    with pytest.raises(UserError, match="mixup: the loss of 'spinal' has a term over all sites of a study"):
        replace(lumbar, graders={**lumbar.graders, "spinal": (replace(spinal, mixup=0.2),)})
    fusion = RECIPES["progression-fusion"]()
    ((name, (plan,)),) = fusion.graders.items()
    with pytest.raises(UserError, match="cutmix: a blend of two patients has no 'kl'"):
        replace(fusion, graders={name: (replace(plan, cutmix=1.0),)})


def test_a_batch_of_one_site_has_nothing_to_mix():
    (grader,) = KNEES.task.graders
    alone = of(PLAN, mixup=0.2, batch=1)
    assert list(plan_checks.grader_faults(alone, grader)) == []  # a film may show two knees
    told = plan_checks.grader_faults(alone, replace(grader, sites=grader.sites[:1]))
    assert list(told) == ["mixup: a batch of 1 has nothing to be mixed with; raise batch"]


def test_synthetic_epochs_need_synthetic_studies():
    with pytest.raises(UserError, match="synthetic_epochs 2, but the recipe makes none"):
        replace(KNEES, synthetic=None)


def test_the_member_of_a_grader_is_named():
    spider = RECIPES["spider"]()
    ((name, members),) = spider.graders.items()
    bad = of(members[1], warm_up=2.0)
    with pytest.raises(UserError, match=rf"grader '{name}', member 1: schedule.warm_up 2"):
        replace(spider, graders={name: (members[0], bad)})


def numbers(value, prefix=""):
    """(name with dots, value) of every number of a plan or a scope, of the plans that it is made of as well."""
    for one in fields(value):
        found = getattr(value, one.name)
        if is_dataclass(found):
            yield from numbers(found, f"{prefix}{one.name}.")
        elif isinstance(found, int | float) and not isinstance(found, bool):
            yield f"{prefix}{one.name}", found


def with_number(value, name, number):
    """A frozen value with one of its numbers changed, by its name with dots."""
    part, _, rest = name.partition(".")
    return replace(value, **{part: with_number(getattr(value, part), rest, number) if rest else number})


@pytest.mark.parametrize("number", [-1e9, -1, 1e300, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", [name for name, _ in numbers(PLAN)])
def test_no_number_of_a_grader_s_plan_takes_an_absurd_value(name, number):
    if name == "training.clip" and number > 0:
        return  # no clipping
    plan = of(PLAN, swa=False) if name == "training.patience" else PLAN  # swa is refused with any patience
    with pytest.raises(UserError, match=name.rpartition(".")[2]) as refused:
        replace(KNEES, graders={"kl": (with_number(plan, name, number),)})
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("number", [-1e9, -1, 1e300, math.nan])
@pytest.mark.parametrize("name", ["window", "subsample", "training.lr", "training.batch"])
def test_no_number_of_a_locator_s_plan_takes_an_absurd_value(name, number):
    with pytest.raises(UserError, match=rf"locator 'joint': .*{name.rpartition('.')[2]}"):
        replace(KNEES, locators={"joint": with_number(LOCATOR, name, number)})


@pytest.mark.parametrize("number", [-1e9, -1, 1e300, math.nan])
@pytest.mark.parametrize("name", [name for name, _ in numbers(KNEES.scope)])
def test_no_number_of_a_scope_takes_an_absurd_value(name, number):
    with pytest.raises(UserError, match=f"scope.{name}"):
        replace(KNEES, scope=with_number(KNEES.scope, name, number))


@pytest.mark.parametrize(("setting", "told"), [
    ("grade.kl.training.lr=11", "training.lr 11; expected a rate above 0, at most 10, such as 3e-4"),
    ("grade.kl.training.lr=-1", "training.lr -1; expected a rate above 0"),
    ("grade.kl.training.batch=100001", "training.batch 100001; expected 1 to 100000"),
    ("grade.kl.training.weight_decay=-0.1", r"training.weight_decay -0.1; expected 0 to 10"),
    ("grade.kl.pixels=15", "pixels 15; expected 16 to 4096 on each side"),
    ("grade.kl.pixels=64,5000", r"pixels \(64, 5000\); expected 16 to 4096 on each side"),
    ("tta=9", "tta 9; expected 1 to 8"),
    ("grade.kl.drop_view=1.5", "drop_view 1.5; expected from 0 to below 1"),
])  # fmt: skip
def test_what_set_is_given_out_of_range_is_told_with_what_is_sensible(setting, told):
    with pytest.raises(UserError, match=told):
        settings.changed(KNEES, [setting])


def test_every_range_is_of_a_number_that_a_plan_has():
    """A name with a typing error would check nothing."""
    own = {name for plan in (PLAN, LOCATOR) for name, _ in numbers(plan)}
    assert set(plan_checks.RANGES) <= own
    assert set(plan_checks.RANGES_OF_A_SCOPE) <= {name for name, _ in numbers(KNEES.scope)}


def test_every_choice_of_a_plan_is_looked_at_or_named_here_as_free():
    """A choice that is added later is checked, or said to need no check."""
    free = {
        "net", "training", "schedule", "start", "augmentation", "bfloat16", "compile",
        "mirror", "measured_errors", "crops", "stage", "weights",  # checked where names are known, or by the net
    }  # fmt: skip
    text = Path(plan_checks.__file__).read_text(encoding="utf-8")
    parts = (GraderPlan, LocatorPlan, Training, Augmentation, type(PLAN.schedule), type(PLAN.start), Resizing)
    assert sorted({one.name for part in parts for one in fields(part) if one.name not in text} - free) == []

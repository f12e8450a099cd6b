"""A net starts from the net of another stage: what is taken over, in which order, and what is refused.

That no patient leaks this way is shown in test_no_leaks.py.
"""

from dataclasses import replace

import pytest
import torch

from osteograde.errors import UserError
from osteograde.learning.recipe import Start, Training
from osteograde.learning.recipes import RECIPES
from osteograde.learning.stage_start import net_from_stage
from osteograde.models import bundle
from osteograde.models.bundle import build_net

RECIPE = RECIPES["lumbar-mr-small"]()
CONFIG = {"kind": "grader", "backbone": "mobilenetv2_035", "crops": 1, "classes": 3, "pool": "mean", "width": 0}


def starting(**stages: str):
    """The recipe whose locators and graders start from the given stages."""

    def staged(stage, plan):
        return replace(plan, start=Start(stage=stages[stage])) if stage in stages else plan

    return RECIPE.map_plans(staged)


@pytest.mark.parametrize(("classes", "fits"), [(3, True), (2, False)])
def test_the_whole_trunk_is_taken_over_and_the_head_where_it_fits(tmp_path, classes, fits):
    torch.manual_seed(0)
    source, file = build_net(CONFIG), tmp_path / "fold0.safetensors"
    with torch.no_grad():
        for name, value in source.named_buffers():
            if name.endswith("running_mean"):
                value += 1  # statistics count as well
    bundle.save_net(source, file)
    theirs = bundle.load_net(file, CONFIG).state_dict()
    config = {**CONFIG, "classes": classes, "dropout": 0.5}
    ours = net_from_stage(config, file, CONFIG).state_dict()
    for key, value in ours.items():
        same = value.shape == theirs[key].shape and torch.equal(value, theirs[key])
        assert same == (fits or key.startswith("encoder.")), key


def test_a_trunk_that_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "fold0.safetensors"
    bundle.save_net(build_net(CONFIG), file)
    with pytest.raises(
        UserError, match=r"tensors of the trunk do not fit the net that starts from it, first encoder\."
    ):
        net_from_stage({**CONFIG, "backbone": "mobilenetv3_small_050"}, file, CONFIG)


def test_stages_are_trained_behind_those_that_they_start_from_and_else_in_their_own_order():
    names = [grader.name for grader in RECIPE.task.graders]
    assert [grader.name for grader in RECIPE.graders_in_order] == names
    assert RECIPE.locators_in_order == RECIPE.task.locators
    recipe = starting(spinal="subarticular", foraminal="spinal")
    assert [grader.name for grader in recipe.graders_in_order] == ["subarticular", "spinal", "foraminal"]
    locators = [locator.name for locator in starting(foramen="recess").locators_in_order]
    assert locators.index("recess") < locators.index("foramen") and locators[0] == "canal"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"spinal": "elsewhere"}, "'spinal' starts from stage 'elsewhere', which is none of"),
        ({"spinal": "canal"}, "'spinal' starts from stage 'canal', which is none of"),  # a locator
        ({"spinal": "spinal"}, r"\['spinal'\] wait for one another"),
        ({"spinal": "foraminal", "foraminal": "spinal"}, r"\['spinal', 'foraminal'\] wait for one another"),
        ({"canal": "recess"}, "wait for one another"),  # the recess is looked for beside the canal
    ],
)
def test_unknown_stages_and_cycles_are_refused_when_the_recipe_is_built(stages, message):
    with pytest.raises(UserError, match=message):
        starting(**stages)


def test_stages_with_different_trunks_are_refused_when_the_recipe_is_built():
    (plan,) = RECIPE.graders["spinal"]
    other = replace(plan, net={**plan.net, "backbone": "mobilenetv2_035"}, start=Start(stage="foraminal"))
    with pytest.raises(UserError, match="backbone 'mobilenetv4_conv_small_050', not 'mobilenetv2_035'"):
        replace(RECIPE, graders={**RECIPE.graders, "spinal": (other,)})


@pytest.mark.parametrize("start", [Start(stage="a", weights="imagenet"), Start(stage="a", shared_epochs=1)])
def test_a_net_starts_from_one_thing_alone(start):
    (plan,) = RECIPE.graders["spinal"]
    with pytest.raises(UserError, match=r"starts from stage 'a', so .* cannot be used as well"):
        replace(plan, start=start)


def test_a_debug_run_keeps_the_start_and_trains_no_net_that_is_used_as_it_starts():
    (plan,) = starting(spinal="foraminal").graders["spinal"]
    small = replace(plan, training=Training(epochs=0, batch=4, lr=0.1)).shrunk()
    assert (small.start.stage, small.training.epochs) == ("foraminal", 0)

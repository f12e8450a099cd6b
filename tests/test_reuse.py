"""train_folds.py --reuse: nets are copied where the plans are the same, with their folds, and nowhere else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from osteograde.learning import cross_fit, folds
from osteograde.learning.recipe import Scope
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import current_form, is_same, reuse_nets
from osteograde.models import bundle
from osteograde.models.manifest import Manifest, TrainedFolds, read_manifest, write_manifest


def of_two_plans(recipe):
    """A recipe of discs with two graders: one trained as a whole; one longer, with shared epochs and frozen layers."""
    plan = recipe.graders["pfirrmann"][0]
    whole = replace(
        plan,
        training=replace(plan.training, epochs=16, batch=8, ema=0.98),
        start=replace(plan.start, shared_epochs=0, frozen=()),
        resizing=None,
    )
    longer = replace(
        whole,
        training=replace(whole.training, epochs=28, ema=0.99),
        start=plan.start,
        resizing=replace(plan.resizing, epochs=12),
    )
    return replace(recipe, graders={"pfirrmann": (whole, longer)})


RECIPE = of_two_plans(RECIPES["spider"]())
FOLDS = "study_id,patient,fold\na,p,0\nb,q,1\n"
NETS = {"locate": "disc", "grade": "pfirrmann"}


@pytest.fixture
def trained(tmp_path):
    """A weights folder of two trained folds whose nets are any bytes."""
    folder = tmp_path / "trained"
    files = {}
    for kind, stage in NETS.items():
        for k in (0, 1):
            name = f"{kind}/{stage}/fold{k}.safetensors"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode())
            files[name] = bundle.file_entry(folder, name, {})
    (folder / "folds.csv").write_text(FOLDS)
    recipe = json.loads(json.dumps(RECIPE.plain()))
    kept = TrainedFolds("folds.csv", folds.digest(folder / "folds.csv"))
    write_manifest(folder, Manifest("spider", files, {}, 1, {}, recipe=recipe, folds=kept))
    return folder


def with_loss(loss):
    return replace(RECIPE, graders={"pfirrmann": tuple(replace(m, loss=loss) for m in RECIPE.graders["pfirrmann"])})


@pytest.mark.parametrize(("recipe", "kinds"), [(RECIPE, ["locate", "grade"]), (with_loss("classes"), ["locate"])])
def test_nets_of_the_same_plan_are_copied_and_marked_as_done(trained, tmp_path, recipe, kinds):
    out = tmp_path / "out"
    wanted = [f"{kind}/{NETS[kind]}/fold{k}.safetensors" for kind in kinds for k in (0, 1)]
    assert reuse_nets(trained, out, recipe) == wanted
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.safetensors")) == sorted(wanted)
    assert (out / "folds.csv").read_text() == FOLDS
    for name in wanted:
        kind, stage, k = name.removesuffix(".safetensors").replace("fold", "").split("/")
        assert (out / "work" / "nets" / f"{kind}-{stage}-{k}.sha256").read_text() == bundle.sha256(out / name)


def rewrite(trained, change):
    """The manifest with its first plan of the grader changed in place."""
    manifest = read_manifest(trained)
    change(manifest.recipe["graders"]["pfirrmann"][0])
    write_manifest(trained, manifest)


def test_choices_that_a_manifest_does_not_know_yet_had_their_defaults(trained, tmp_path):
    def older(plan):
        del plan["schedule"]["swa"], plan["resizing"], plan["augmentation"]["mirror"]

    rewrite(trained, older)
    assert len(reuse_nets(trained, tmp_path / "out", RECIPE)) == 4


@pytest.mark.parametrize(("value", "copied"), [(None, 4), (3, 2)])
def test_choices_that_are_known_no_more_do_not_count_where_they_were_off(trained, tmp_path, value, copied):
    rewrite(trained, lambda plan: plan["training"].update(given_up=value))
    assert len(reuse_nets(trained, tmp_path / "out", RECIPE)) == copied


def test_a_repeated_plan_is_another_net(trained, tmp_path):
    """The second net of a plan has another seed than the first, so it is not copied in the first one's place."""
    first, second = RECIPE.graders["pfirrmann"]
    one, other = (replace(RECIPE, graders={"pfirrmann": members}) for members in ((first, second), (second, second)))
    listed = one.plain()["graders"]["pfirrmann"]
    nets = [cross_fit.nets_of("grade", "pfirrmann", recipe.graders["pfirrmann"]) for recipe in (one, other)]
    assert [is_same(net, listed) for net in nets[0]] == [True, True]
    assert [is_same(net, listed) for net in nets[1]] == [False, False]  # another plan; the same plan, another seed


# The shipped nets of these two recipes started from files that no recipe names any more.
EARLIER = {
    "knee-xray": ("mobilenetv2_035", "torchvision/mobilenet_v2", "mobilenet_v2_torchvision_from_tf2_ptq.npz"),
    "spider": ("mobilenetv2_035", "mobilenetv2_035", "mobilenet_v2_0.35_float_bn_from_teachablemachine.npz"),
}
STEM = ("conv_stem", "bn1", "blocks.0")


def earlier(recipe):
    """A recipe with the trunks, starting weights and augmentation that its first shipped nets have."""
    encoder, backbone, file = EARLIER[recipe.name]

    def change(stage, plan):
        if stage in recipe.locators:
            net, weights = {**plan.net, "encoder_name": encoder, "stages": 5}, EARLIER["spider"][2]
        else:
            net, weights = {key: value for key, value in plan.net.items() if key != "stages"}, file
            net["backbone"] = backbone
        frozen = STEM if plan.start.frozen else ()
        plan = replace(plan, net=net, start=replace(plan.start, weights=weights, frozen=frozen, measured_norms=False))
        if recipe.name == "knee-xray" and stage in recipe.graders:
            plan = replace(plan, resizing=None, augmentation=replace(plan.augmentation, scale=0.1, shift_mm=5))
        return plan

    return recipe.map_plans(change)


def of_shipped_discs():
    """The two plans of before and, as a third grader, that of today."""
    recipe = earlier(RECIPE)
    third = RECIPES["spider"]().graders["pfirrmann"][0]
    return replace(recipe, graders={"pfirrmann": (*recipe.graders["pfirrmann"], third)})


@pytest.mark.parametrize(
    ("folder", "recipe", "nets"),
    [
        ("knee-xray", earlier(RECIPES["knee-xray"]()), 10),
        ("spider", of_shipped_discs(), 20),
        ("lumbar-mr-phantom", RECIPES["lumbar-mr-small"](), 18),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_all_shipped_nets_are_those_of_the_recipes_that_made_them(tmp_path, folder, recipe, nets):
    """Two of their manifests were written in an older form."""
    shipped = Path(__file__).resolve().parents[1] / "weights" / folder
    assert len(reuse_nets(shipped, tmp_path, recipe)) == nets


def test_an_old_plan_with_another_choice_is_another_plan():
    old = json.loads(Path(__file__).with_name("old_recipe.json").read_text())  # of spider, in the first form
    recipe = earlier(RECIPE)
    locator, members = recipe.locators["disc"], recipe.graders["pfirrmann"]
    nets = [*cross_fit.nets_of("locate", "disc", [locator]), *cross_fit.nets_of("grade", "pfirrmann", members)]

    def same(recipe):
        now = current_form(recipe)
        return [is_same(net, now["locators" if net.kind == "locate" else "graders"][net.stage]) for net in nets]

    assert same(old) == [True, True, True]
    for kind, stage in (("locate", "disc"), ("grade", "pfirrmann")):
        for name in ("net", "pixels", "epochs", "lr", "clip", "warmup", "pretrained", "common", "restarts", "seed"):
            value = {"net": {}, "restarts": [3], "pretrained": "other"}.get(name, 7)
            changed = json.loads(json.dumps(old))
            changed[kind][stage][name] = value
            expected = [kind == "grade", kind == "locate", True]
            assert same(changed) == expected, (kind, name)
    for name, value in (("loss", "classes"), ("balance", 0.1), ("practice", 1), ("early", [3, 0.5]), ("begin", "x")):
        changed = json.loads(json.dumps(old))
        changed["grade"]["pfirrmann"]["also"][0][name] = value
        assert same(changed) == [True, True, False], name


def test_a_net_that_is_there_stays(trained, tmp_path):
    out = tmp_path / "out"
    (out / "locate" / "disc").mkdir(parents=True)
    (out / "locate" / "disc" / "fold0.safetensors").write_bytes(b"newer")
    assert "locate/disc/fold0.safetensors" not in reuse_nets(trained, out, RECIPE)
    assert (out / "locate" / "disc" / "fold0.safetensors").read_bytes() == b"newer"
    assert not (out / "work" / "nets" / "locate-disc-0.sha256").exists()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (RECIPES["knee-xray"](), "task is 'spider'"),
        (replace(RECIPE, scope=Scope(seed=1)), "seed is 0"),
        (replace(RECIPE, scope=Scope(folds=3)), "number of folds is 5"),
    ],
)
def test_weights_of_another_task_seed_or_number_of_folds_are_refused(trained, tmp_path, recipe, said):
    with pytest.raises(ValueError, match=said):
        reuse_nets(trained, tmp_path / "out", recipe)


def test_other_folds_are_refused(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "folds.csv").write_text("study_id,patient,fold\nother,other,0\n")
    with pytest.raises(ValueError, match="not the folds of"):
        reuse_nets(trained, tmp_path / "out", RECIPE)


def test_a_changed_net_is_refused(trained, tmp_path):
    (trained / "grade" / "pfirrmann" / "fold1.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"fold1\.safetensors"):
        reuse_nets(trained, tmp_path / "out", RECIPE)


def spread(text, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("study_id,patient,fold\n" + text)


def test_folds_may_hold_further_studies_but_none_elsewhere(trained, tmp_path):
    out = tmp_path / "out"
    for other in ("a,p,0\n", "a,p,1\nb,q,1\n", "a,z,0\nb,q,1\n"):
        spread(other, out / "folds.csv")
        with pytest.raises(ValueError, match="not the folds"):
            reuse_nets(trained, out, RECIPE)
    spread("a,p,0\nb,q,1\nc,r,0\n", out / "folds.csv")
    assert len(reuse_nets(trained, out, RECIPE, without=("disc",))) == 2
    assert not (out / "locate").exists()

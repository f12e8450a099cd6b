"""--set: what is shown can be set again, values have their types, and what is refused says what would be possible."""

import csv
import json
from dataclasses import replace

import pytest

from osteograde import cli, phantom
from osteograde.errors import UserError
from osteograde.learning import settings, train
from osteograde.learning.recipe import Resizing
from osteograde.learning.recipes import RECIPES, recipe_for
from osteograde.tasks import TASKS

KNEES = RECIPES["knee-xray"]()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_what_is_shown_of_a_recipe_sets_it_to_what_it_is(name):
    recipe = RECIPES[name]()
    shown = settings.lines(recipe)
    again = settings.changed(recipe, shown)
    assert again == recipe and again.plain() == recipe.plain() and not again.changes
    assert len(shown) == len({line.partition("=")[0] for line in shown}) > 50


def test_every_shown_key_takes_a_value_of_another_recipe_s_kind():
    """The values of one recipe put into another of the same task give that other one, key by key and all together."""
    one, other = RECIPES["spider"](), RECIPES["spider-unet-resnet34"]()
    keys = settings.values(one)
    keys.pop("locate.disc.any_window")  # of segmenting nets alone
    wanted = [f"{key}={text}" for key, text in settings.values(other).items() if key in keys]
    made = settings.changed(one, wanted)
    assert made.locators["disc"].training == other.locators["disc"].training
    assert made.graders == other.graders and made.locators["disc"].start == other.locators["disc"].start


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.lr=3e-4", 3e-4),
        ("training.epochs=12", 12),
        ("schedule.swa=false", False),
        ("start.weights=file:a=b.npz", "file:a=b.npz"),
        ("start.frozen=conv_stem,bn1", ("conv_stem", "bn1")),
        ("start.frozen=", ("",)),
        ("start.frozen=none", ()),
        ("schedule.milestones=3,6", (3, 6)),
        ("schedule.restarts=8:0.4,9:0.2", {8: 0.4, 9: 0.2}),
        ("pixels=96", 96),
        ("pixels=96,128", (96, 128)),
        ("resizing=none", None),
        ("net.dropout=0.5", 0.5),
        ("net.pool=attention", "attention"),
    ],
)
def test_a_value_has_the_type_that_the_recipe_declares(setting, value):
    more = ["grade.kl.schedule.restarts=none", "grade.kl.schedule.swa=false"] if "milestones" in setting else []
    more += ["grade.kl.schedule.restarts=none"] if setting == "schedule.swa=false" else []
    recipe = settings.changed(KNEES, [f"grade.kl.{setting}", *more])
    found = recipe.graders["kl"][0]
    for name in setting.partition("=")[0].split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value and type(found) is type(value)


def test_a_part_that_is_off_is_switched_on_by_its_own_values_and_off_by_none():
    off = settings.changed(KNEES, ["grade.kl.resizing=none"])
    small = settings.changed(off, ["grade.kl.resizing.share=0.7", "grade.kl.resizing.epochs=2"])
    assert small.graders["kl"][0].resizing == Resizing(epochs=2, share=0.7)
    assert settings.changed(small, ["grade.kl.resizing=none"]).graders["kl"][0].resizing is None
    with pytest.raises(
        UserError, match=r"--set grade\.kl\.resizing: it is off here; set grade\.kl\.resizing\.share too"
    ):
        settings.changed(off, ["grade.kl.resizing.epochs=2"])


def test_a_star_stands_for_all_and_a_number_for_one_member():
    lumbar = settings.changed(RECIPES["lumbar-mr"](), ["grade.*.training.epochs=2", "locate.*.training.lr=1e-4"])
    assert {plan.training.epochs for members in lumbar.graders.values() for plan in members} == {2}
    assert {plan.training.lr for plan in lumbar.locators.values()} == {1e-4}
    ((name, members),) = RECIPES["spider"]().graders.items()
    one = settings.changed(RECIPES["spider"](), [f"grade.{name}.1.training.lr=1e-4"]).graders[name]
    assert one[0] == members[0] and one[1].training.lr == 1e-4
    both = settings.changed(RECIPES["spider"](), [f"grade.{name}.training.lr=1e-4"]).graders[name]
    assert [plan.training.lr for plan in both] == [1e-4, 1e-4]


def test_of_one_key_the_last_value_counts_and_the_order_of_others_does_not():
    first, last = "grade.kl.training.epochs=5", "grade.kl.schedule.restarts=3:0.4"
    assert settings.changed(KNEES, [first, last]) == settings.changed(KNEES, [last, first])
    assert settings.changed(KNEES, ["tta=2", "tta=3"]).tta == 3


def test_a_net_is_told_again_which_crops_it_reads():
    recipe = settings.changed(KNEES, ["grade.kl.crops=lateral,medial", "tta=4"])
    assert recipe.graders["kl"][0].net["crops"] == 2
    with pytest.raises(UserError, match="tta 6; expected 1 to 4"):  # these crops are not read mirrored
        settings.changed(KNEES, ["grade.kl.crops=lateral,medial"])
    fused = settings.changed(RECIPES["progression-image"](), ["grade.progression.covariates=kl"])
    assert [one["name"] for one in fused.graders["progression"][0].net["covariates"]] == ["kl"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            "grade.kl.training.rl=1",
            r"grade\.kl\.training has no 'rl'; nearest: grade\.kl\.training\.lr, .*epochs, batch",
        ),
        ("lr=1", r"nearest: locate\.joint\.training\.lr, grade\.kl\.training\.lr; possible there: tta"),
        ("grade.kk.training.lr=1", r"grade has no 'kk'; nearest: grade\.kl\.training\.lr.*possible there: \*, kl"),
        ("grade.kll.training.lr=1", r"grade has no 'kll'; nearest: grade\.kl\.training\.lr[,;]"),
        ("grade.kl.1.training.lr=1", r"grade\.kl has no '1'"),
        ("grade.kl.training=1", r"grade\.kl\.training is not one value"),
        ("grade.kl=1", r"grade\.kl is not one value"),
        ("grade.kl.training.lr.x=1", r"has no 'x'.*it is one value"),
        ("grade.kl.net.classes=3", r"grade\.kl\.net has no 'classes'"),
        ("scope.sed=1", r"scope has no 'sed'; nearest: scope\.seed"),
        ("name=x", r"a recipe has no 'name'"),
        ("tta", r"expected KEY=VALUE, such as grade"),
        ("=3", r"expected KEY=VALUE, such as grade"),
        ("tta=two", r"tta=two: got 'two', expected a whole number"),
        ("grade.kl.net.dropout=2", r"net.dropout 2; expected from 0 to below 1"),
        ("grade.kl.schedule.restarts=2:0.5,2:0.4", r"expected every epoch once"),
        ("grade.kl.training.epochs=2.5", r"got '2\.5', expected a whole number"),
        ("grade.kl.training.lr=nan", r"got 'nan', expected a number, such as 3e-4"),
        ("grade.kl.training.lr=1_0", r"expected a number"),
        ("grade.kl.schedule.swa=yes", r"got 'yes', expected true or false"),
        ("grade.kl.pixels=1,2,3", r"expected one whole number, or rows,columns"),
        ("grade.kl.schedule.restarts=8", r"expected EPOCH:SHARE"),
        ("grade.kl.schedule.milestones=a", r"got 'a', expected a whole number"),
        ("grade.kl.resizing=2", r"expected none, or values for its own keys"),
        ("grade.kl.augmentation.elastic_mm=20", r"--set grade\.kl\.augmentation\.elastic_mm: .*could fold"),
        ("grade.kl.training.epochs=5", r"restarts after epoch 8, of 5 epochs in all"),
    ],
)
def test_what_is_refused_says_what_is_expected(setting, told):
    with pytest.raises(UserError, match=told):
        settings.changed(KNEES, [setting])


def test_a_value_and_what_lies_in_it_cannot_both_be_set():
    for order in ((0, 1), (1, 0)):
        given = ["grade.kl.resizing=none", "grade.kl.resizing.epochs=2"]
        with pytest.raises(UserError, match="set one of them"):
            settings.changed(KNEES, [given[i] for i in order])


def test_lists_of_a_net_are_json():
    seed = RECIPES["seed-frcnn-swin"]()
    made = settings.changed(seed, ["locate.canal.net.box_mm=[[30, 70]]"])
    assert made.locators["canal"].net["box_mm"] == [[30, 70]]
    with pytest.raises(UserError, match="expected JSON, such as"):
        settings.changed(seed, ["locate.canal.net.box_mm=30 70"])


def test_the_manifest_and_the_run_hold_what_was_changed(tmp_path):
    recipe = settings.changed(KNEES, ["grade.kl.training.lr=3e-4", "grade.*.mixup=0.2"])
    plain = json.loads(json.dumps(recipe.plain()))
    assert plain["changes"] == {"grade.kl.training.lr": ["0.001", "0.0003"], "grade.kl.mixup": ["0", "0.2"]}
    assert plain["graders"]["kl"][0]["training"]["lr"] == 3e-4 and "changes" not in KNEES.plain()
    train._keep_recipe(recipe, tmp_path, resume=False)
    train._keep_recipe(recipe, tmp_path, resume=True)
    with pytest.raises(UserError, match=r"begun with graders\.kl\.0\.training\.lr = 0\.0003, .* has 0\.001 now"):
        train._keep_recipe(KNEES, tmp_path, resume=True)


def test_a_run_that_was_begun_before_a_choice_existed_is_resumed(tmp_path):
    """Also where the choice is not off by 0: it had its default then."""
    train._keep_recipe(KNEES, tmp_path, resume=False)
    path = tmp_path / "work" / "recipe.json"
    old = json.loads(path.read_text())
    for plan in (old["locators"]["joint"], old["graders"]["kl"][0]):
        del plan["training"]["accumulate"], plan["training"]["layer_decay"]
    path.write_text(json.dumps(old))
    train._keep_recipe(KNEES, tmp_path, resume=True)
    path.write_text(json.dumps(old))
    plan = KNEES.graders["kl"][0]
    other = replace(KNEES, graders={"kl": (replace(plan, training=replace(plan.training, accumulate=2)),)})
    with pytest.raises(UserError, match=r"training\.accumulate = 1"):
        train._keep_recipe(other, tmp_path, resume=True)


def test_list_shows_the_recipe_that_is_named_with_what_is_set(capsys):
    assert cli.main(["train", "knee-xray", "--list", "--recipe", "knee-xray-small", "--set", "tta=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tta=5" in lines and "grade.kl.training.epochs=3" in lines
    assert cli.main(["train", "knee-xray", "--list"]) == 0
    assert capsys.readouterr().out.startswith("knee-xray ")


def test_a_wrong_setting_ends_the_command_before_the_data_are_read(tmp_path, capsys):
    words = ["train", "knee-xray", "--data", str(tmp_path), "--out", str(tmp_path / "w"), "--set", "lr=1"]
    assert cli.run(lambda: cli.main(words)) == 2
    assert capsys.readouterr().err.startswith("error: --set lr: a recipe has no 'lr'")
    assert not (tmp_path / "w").exists()


def test_a_recipe_without_locators_has_none_to_set(tmp_path):
    phantom.write("table", tmp_path, studies=8, test=0, seed=0)
    table = next(tmp_path.rglob("labels.csv"))
    rows = list(csv.DictReader(table.open(newline="")))
    table.write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    bare = recipe_for("table", TASKS["table"].for_data(tmp_path))
    with pytest.raises(UserError, match=r"locate.*: this recipe has no locators; leave it out"):
        settings.changed(bare, ["locate.*.training.lr=1"])

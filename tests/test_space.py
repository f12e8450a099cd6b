"""Spaces of a search: typed as --set types them, refused with the nearest names, and gone through by grids."""

from dataclasses import replace

import pytest

from osteograde.errors import UserError
from osteograde.learning import settings, space
from osteograde.learning.recipes import NAMES, RECIPES, spaces
from osteograde.learning.space import Choice, Range

KNEES, DISCS = RECIPES["knee-xray"](), RECIPES["spider"]()
LR = "grade.kl.training.lr"


def parsed(given, recipe=KNEES):
    return space.parsed(given, recipe, "my.py")


def test_a_space_has_the_types_that_the_recipe_declares():
    numbers = {LR: (1e-4, 1e-2, "log"), "grade.kl.training.batch": (8, 64)}
    choices = {"grade.kl.loss": ["ordinal", "classes"], "grade.kl.schedule.swa": [True, False]}
    found = parsed({**numbers, **choices, "grade.kl.net.dropout": (0, 0.5)})
    assert found == (
        Range(LR, 1e-4, 1e-2, log=True),
        Range("grade.kl.training.batch", 8, 64, whole=True),
        Choice("grade.kl.loss", ("ordinal", "classes")),
        Choice("grade.kl.schedule.swa", ("true", "false")),
        Range("grade.kl.net.dropout", 0, 0.5),
    )
    assert space.of_plain(space.plain(found)) == found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"grade.kl.training.lrr": (1e-4, 1e-2)}, r"no 'lrr'; nearest: grade.kl.training.lr"),
        ({"grades.kl.training.lr": (1e-4, 1e-2)}, r"no 'grades'; nearest: grade.kl.training.lr"),
        ({"grade.kl.training.batch": (1.5, 4)}, "expected a whole number"),
        ({LR: (1e-2, 1e-4)}, "a low end below the high one"),
        ({LR: (0.0, 1e-2, "log")}, "a logarithm needs a low end above 0"),
        ({LR: (1e-4, 1e-2, "ln")}, r"expected \(low, high\)"),
        ({LR: 1e-3}, r"expected \(low, high\)"),
        ({LR: ["1e-3", "fast"]}, "got 'fast', expected a number"),
        ({LR: [1e-3]}, "two or more different choices"),
        ({LR: [1e-3, "1e-3"]}, "two or more different choices"),
        ({"scope.folds": (2, 5)}, "scope.folds: the same for all trials"),
        ({"calibrate": [True, False]}, "calibrate: the same for all trials"),
        ({"grade.*.training.lr": (1e-4, 1e-2), LR: (1e-4, 1e-2)}, r"sets .*, as grade\.\*\.training\.lr does"),
        ({"grade.kl.loss": (1, 2)}, "it is no number"),
        ({"grade.kl.pixels": (64, 96)}, "it is no number"),
        ({"grade.kl.loss": ["classes", "hinge"]}, "hinge"),
        ({"grade.kl.label_smoothing": (0.0, 2.0)}, "label_smoothing"),
    ],
)
def test_what_a_recipe_cannot_have_is_refused_with_the_file_and_what_is_possible(given, told):
    with pytest.raises(UserError, match=told) as error:
        parsed(given)
    assert str(error.value).startswith("my.py: ")


def test_numbers_stay_inside_of_their_range_and_are_read_by_set():
    lr = Range(LR, 1.23456e-4, 1e-2, log=True)
    assert float(lr.text(1e-9)) == pytest.approx(1.235e-4) and lr.text(1.0) == "0.01"
    assert lr.levels(3)[1] == f"{(1.23456e-4 * 1e-2) ** 0.5:.4g}"
    assert [Range("a", 1, 4, whole=True).text(value) for value in (0.2, 2.4, 9)] == ["1", "2", "4"]
    assert [lr.share(text) for text in lr.levels(2)] == pytest.approx([0, 1], abs=1e-3)
    for text in lr.levels(5):
        settings.changed(KNEES, [f"{LR}={text}"])


def test_the_recipe_itself_is_a_point_of_a_space_that_holds_it():
    given = {LR: (1e-4, 1e-2, "log"), "grade.*.loss": ["classes", "ordinal"], "grade.kl.training.batch": (8, 64)}
    assert space.default_point(parsed(given), KNEES) == {
        LR: "0.001", "grade.*.loss": "classes", "grade.kl.training.batch": "32"
    }  # fmt: skip
    assert space.default_point(parsed({LR: (1e-2, 1e-1)}), KNEES) is None
    first, second = DISCS.graders["pfirrmann"]
    longer = replace(second, training=replace(second.training, epochs=28))
    unlike = replace(DISCS, graders={"pfirrmann": (first, longer)})
    assert space.default_point(parsed({"grade.*.training.epochs": (16, 28)}, unlike), unlike) is None
    alike = parsed({"grade.*.drop_view": (0.0, 0.6)}, DISCS)
    assert space.default_point(alike, DISCS) == {"grade.*.drop_view": "0.4"}


def test_the_recipe_itself_is_known_however_a_choice_is_written():
    recipe = RECIPES["knee-xray"]()
    own = recipe.graders["kl"][0].training.lr
    found = space.parsed({LR: [f"{own:.3e}", "0.5"]}, recipe, "my.py")
    assert space.default_point(found, recipe) == {LR: str(own)}


def test_a_grid_is_the_finest_one_of_so_many_trials_with_both_ends():
    dims = parsed({LR: (1e-4, 1e-2, "log"), "grade.kl.loss": ["classes", "ordinal"]})
    points = space.grid(dims, 7)
    assert [point[LR] for point in points] == ["0.0001"] * 2 + ["0.001"] * 2 + ["0.01"] * 2
    assert [point["grade.kl.loss"] for point in points] == ["classes", "ordinal"] * 3
    assert len(space.grid(parsed({"grade.kl.training.batch": (1, 3)}), 100)) == 3  # there are no more whole numbers
    with pytest.raises(UserError, match="--trials 3: the coarsest grid of these 2 keys has 4 points"):
        space.grid(dims, 3)


def test_a_space_is_named_or_lies_in_a_file(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(f'SPACE = {{"{LR}": (1e-4, 1e-2, "log")}}\n')
    assert space.load(str(path), {}) == {LR: (1e-4, 1e-2, "log")}
    assert space.load("knee-xray", spaces.SPACES) == spaces.SPACES["knee-xray"]
    with pytest.raises(UserError, match="no space of that name; known: knee-xray, spider, any"):
        space.load("knees", spaces.SPACES)
    with pytest.raises(UserError, match="no such file"):
        space.load(str(tmp_path / "none.py"), {})
    for text, told in (
        ("SPACES = {}", "defines no SPACE"),
        ("SPACE = 1 / 0", "ZeroDivisionError"),
        ("SPACE = [1]", "no"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            space.load(str(path), {})


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_space_of_any_task_fits_every_recipe(name):
    assert len(space.parsed(spaces.SPACES[spaces.ANY], RECIPES[name](), name)) == len(spaces.SPACES[spaces.ANY])


@pytest.mark.parametrize("name", [name for name in spaces.SPACES if name != spaces.ANY])
def test_the_default_recipe_of_a_task_lies_in_its_space(name):
    recipe = RECIPES[name]()
    assert space.default_point(space.parsed(spaces.SPACES[name], recipe, name), recipe) is not None

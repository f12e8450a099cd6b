"""train_folds.py --like: nets are taken over where the recipes agree, with their folds, and nowhere else."""

import json
from dataclasses import replace

import pytest

from osteograde.learning import folds
from osteograde.learning.recipes import RECIPES
from osteograde.learning.reuse import reuse_nets
from osteograde.models import bundle
from osteograde.models.manifest import Manifest, TrainedFolds, read_manifest, write_manifest

RECIPE = RECIPES["spider"]()
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
    return replace(RECIPE, graders={"pfirrmann": replace(RECIPE.graders["pfirrmann"], loss=loss)})


@pytest.mark.parametrize(("recipe", "kinds"), [(RECIPE, ["locate", "grade"]), (with_loss("classes"), ["locate"])])
def test_nets_of_the_same_plan_are_taken_and_vouched_for(trained, tmp_path, recipe, kinds):
    out = tmp_path / "out"
    wanted = [f"{kind}/{NETS[kind]}/fold{k}.safetensors" for kind in kinds for k in (0, 1)]
    assert reuse_nets(trained, out, recipe) == wanted
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.safetensors")) == sorted(wanted)
    assert (out / "folds.csv").read_text() == FOLDS
    for name in wanted:
        kind, stage, k = name.removesuffix(".safetensors").replace("fold", "").split("/")
        assert (out / "work" / "nets" / f"{kind}-{stage}-{k}.sha256").read_text() == bundle.sha256(out / name)


def test_choices_that_a_manifest_does_not_know_yet_had_their_defaults(trained, tmp_path):
    manifest = read_manifest(trained)
    del manifest.recipe["grade"]["pfirrmann"]["restart_share"]
    write_manifest(trained, manifest)
    assert len(reuse_nets(trained, tmp_path / "out", RECIPE)) == 4


def test_choices_that_are_known_no_more_do_not_count_where_they_were_off(trained, tmp_path):
    manifest = read_manifest(trained)
    for value, taken in ((None, 4), (3, 2)):
        manifest.recipe["grade"]["pfirrmann"]["given_up"] = value
        write_manifest(trained, manifest)
        assert len(reuse_nets(trained, tmp_path / f"out{taken}", RECIPE)) == taken


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
        (replace(RECIPE, seed=1), "seed is 0"),
        (replace(RECIPE, num_folds=3), "number of folds is 5"),
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

"""Covariates of a made-up task: read from a table, measured on the training fold alone, learnt, and never leaked."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.errors import UserError
from osteograde.imaging.geometry import Volume, roi_at
from osteograde.inference.submission import flags_of
from osteograde.learning import cross_fit, folds, train
from osteograde.learning.grader_data import GraderData
from osteograde.learning.grader_loss import grader_loss
from osteograde.learning.recipe import GraderPlan, LocatorPlan, Recipe, Scope, Training, for_grader, for_locator
from osteograde.learning.stage_start import net_from_stage
from osteograde.models import bundle
from osteograde.models.covariates import LIMIT, CovariateFeatures, features_of
from osteograde.models.explain import fold_maps
from osteograde.models.grader import GraderNet
from osteograde.pipeline import predict
from osteograde.pipeline.covariates import NEW_VALUE, UNKNOWN, doubts_of, inputs_of
from osteograde.pipeline.load import Loaded
from osteograde.tasks import covariates as tables
from osteograde.tasks.metrics import OrdinalMetric
from osteograde.tasks.spec import CATEGORY, Covariate, Crop, Grader, Landmark, Locator, Site, Study, Task, View

AGE, SEX = Covariate("age"), Covariate("sex", CATEGORY, ("F", "M"))
KL = Covariate("kl", CATEGORY, ("0", "1", "2"))
COVARIATES = (AGE, SEX, KL)
SIDES = ("right", "left")
SITES = tuple(Site(side, "knee", "", side, (side,)) for side in SIDES)
GRADER = Grader("knee", SITES, (Crop("near", "plain", 1, 40.0),), lambda volumes, points, pixels: {})
LOCATOR = Locator("joint", tuple(Landmark(s, "joint", s) for s in SIDES), ("plain",), lambda v, p: [], (90.0, 90.0))
TASK = Task(
    name="made-up",
    views=(View("plain", ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))),),
    classes=("stable", "worse"),
    class_weights=(1.0, 1.0),
    locators=(LOCATOR,),
    graders=(GRADER,),
    prior=dict.fromkeys(SIDES, (0.5, 0.5)),
    read=lambda root, part: [],
    read_labels=lambda path: {},
    metric=OrdinalMetric(SIDES, ("stable", "worse"), threshold=1),
    covariates=COVARIATES,
)
PLAN = for_grader(
    GraderPlan(
        net={"kind": "grader", "backbone": "lcnet_035", "stages": 3, "width": 16, "dropout": 0.0},
        pixels=32,
        training=Training(epochs=1, batch=4, lr=1e-3),
        covariates=("age", "sex", "kl"),
    ),
    GRADER,
    TASK,
)
CONFIG = [{"name": one.name, "kind": one.kind, "categories": one.categories} for one in COVARIATES]
NAN = np.float32(np.nan)


def net(**options: object) -> GraderNet:
    torch.manual_seed(0)
    small = {"backbone": "lcnet_035", "crops": 1, "classes": 2, "stages": 3, "width": 16, "dropout": 0.0}
    return GraderNet(**(small | {"covariates": CONFIG} | options))  # type: ignore[arg-type]


def fitted(**values: list[float]) -> GraderNet:
    made = net().eval()
    features = features_of(made)
    assert features is not None
    features.fit({name: np.array(column) for name, column in values.items()})
    torch.nn.init.normal_(features.embed.weight)
    torch.nn.init.normal_(made.covariate_head.weight)
    return made


def images(count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(count, 1, 32, 32, generator=generator)], torch.ones(count, 1, dtype=torch.bool)


def tensors(**values: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(column) for name, column in values.items()}


# What a net makes of values


def test_a_net_without_covariates_has_the_config_the_tensors_and_the_answers_that_it_had() -> None:
    plain = net(covariates=())
    assert "covariates" not in plain.config
    assert not any(key.startswith("covariates") for key in plain.state_dict())
    assert plain.head.in_features == 16
    crops, present = images(3)
    assert torch.equal(plain.eval()(crops, present), plain(crops, present, tensors(age=[1.0, 2.0, 3.0])))


def test_unknown_values_absent_ones_and_none_at_all_are_the_same_and_finite() -> None:
    made = fitted(age=[50, 60, 70], sex=[0, 1], kl=[0, 1, 2])
    crops, present = images(2)
    with torch.no_grad():
        none = made(crops, present)
        unknown = made(crops, present, tensors(age=[NAN, NAN], sex=[NAN, NAN], kl=[NAN, NAN]))
        known = made(crops, present, tensors(age=[50.0, 70.0], sex=[0.0, 1.0], kl=[0.0, 2.0]))
    assert torch.isfinite(none).all() and torch.equal(none, unknown)
    assert (known != none).all()


def test_before_training_a_missing_number_counts_as_the_mean() -> None:
    features = CovariateFeatures(CONFIG[:1])
    features.fit({"age": np.array([50.0, 60.0, 70.0])})
    assert torch.equal(features({}, 1), features(tensors(age=[60.0]), 1))


@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=6))
@settings(max_examples=40)
def test_any_number_gives_finite_features(values: list[float]) -> None:
    features = CovariateFeatures(CONFIG)
    features.fit({"age": np.array([50.0, 60.0]), "sex": np.array([0.0]), "kl": np.array([1.0])})
    told = torch.tensor(values)
    assert torch.isfinite(features({"age": told, "sex": told, "kl": told}, len(values))).all()
    (age, _, _), missing = features.columns({"age": told}, len(values))
    assert age.abs().max() <= LIMIT and (missing[:, 0] == ~torch.isfinite(told)).all()


def test_a_category_that_no_training_site_had_is_unknown() -> None:
    made = fitted(age=[50, 60], sex=[0, 1], kl=[0, 2])
    crops, present = images(1)
    with torch.no_grad():
        base = {"age": [55.0], "sex": [1.0]}
        assert torch.equal(made(crops, present, tensors(**base, kl=[1.0])), made(crops, present, tensors(**base)))
        assert not torch.equal(made(crops, present, tensors(**base, kl=[2.0])), made(crops, present, tensors(**base)))


def test_what_was_measured_ships_exactly_with_the_weights(tmp_path: Path) -> None:
    """Also numbers beyond the range of half precision, in which the other tensors are written."""
    made = fitted(age=[250_000.0, 250_002.0], sex=[1], kl=[0, 2])
    bundle.save_net(made, tmp_path / "net.safetensors")
    loaded = bundle.load_net(tmp_path / "net.safetensors", made.config)
    own, other = features_of(made), features_of(loaded)
    assert own is not None and other is not None and other.reads == COVARIATES
    for name in ("mean", "deviation", "occurs", "embed.weight"):
        assert torch.equal(own.state_dict()[name], other.state_dict()[name]), name
    assert float(other.mean[0]) == 250_001


def test_grad_cam_is_told_the_covariates() -> None:
    made = fitted(age=[50, 60], sex=[0, 1], kl=[0, 2])
    crops, present = images(2)
    crops = [torch.nn.functional.interpolate(crops[0], size=64)]
    study = Study("s", "p", (), covariates={"age": {"": 50.0}})
    with torch.inference_mode():
        known = inputs_of(made, [(study, "left")] * 2, torch.device("cpu"))
        maps = fold_maps([made], crops, present, torch.tensor([0, 1]), covariates=known)
    assert len(known) == 1 and maps[0].shape == crops[0].shape


# The training fold alone


def random_values(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    values = {"age": rng.normal(60, 10, count), "sex": rng.integers(0, 2, count), "kl": rng.integers(0, 3, count)}
    return {name: np.where(rng.random(count) < 0.2, NAN, column).astype(np.float32) for name, column in values.items()}


def stored(values: dict[str, np.ndarray], labels: np.ndarray, plan: GraderPlan = PLAN) -> GraderData:
    """The right knees of as many studies as there are labels, all with the same grey crop."""
    count = len(labels)
    names = tuple(f"s{i}" for i in range(count))
    return GraderData(
        grader=GRADER,
        plan=plan,
        stored=(32, 32),
        crops=(np.full((count, 1, 46, 46), 90, np.uint8),),
        present=np.ones((count, 1), bool),
        to_index=np.zeros((count, 1, 3, 3)),
        labels=labels.astype(np.int64),
        head_labels=np.zeros((count, 0), np.int64),
        mirrorable=np.zeros(count, bool),
        rows_of={name: np.array([i]) for i, name in enumerate(names)},
        lateral_axes=(2,),
        errors_mm=np.zeros((0, 3)),
        studies=names,
        classes=2,
        covariates=values,
    )


def buffers(data: GraderData) -> list[torch.Tensor]:
    made = net()
    data.fit(made)
    features = features_of(made)
    assert features is not None
    return [features.mean.clone(), features.deviation.clone(), features.occurs.clone()]


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_rows_outside_of_the_training_fold_do_not_move_what_is_measured(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, labels = random_values(rng, 24), rng.integers(0, 2, 24)
    inside = {f"s{i}" for i in rng.choice(24, 16, replace=False)}
    outside = np.array([i for i in range(24) if f"s{i}" not in inside])
    changed = {name: column.copy() for name, column in values.items()}
    for name, column in changed.items():
        column[outside] = rng.permutation(column[outside]) if seed % 2 else (1000.0 if name == "age" else 0)
    before, after = buffers(stored(values, labels).of(inside)), buffers(stored(changed, labels).of(inside))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    given_age = values["age"][[i for i in range(24) if f"s{i}" in inside]]
    assert float(before[0][0]) == pytest.approx(np.nanmean(given_age), rel=1e-5)


def test_synthetic_studies_are_not_measured() -> None:
    rng = np.random.default_rng(0)
    values, labels = random_values(rng, 8), rng.integers(0, 2, 8)
    made = replace(stored(values, labels), synthetic=frozenset({"s6", "s7"}))
    values["age"][6:] = 1e6
    assert float(buffers(made)[0][0]) == pytest.approx(np.nanmean(values["age"][:6]), rel=1e-5)


def test_a_net_with_covariates_starts_as_the_net_without_them_that_it_is_made_of(tmp_path: Path) -> None:
    plain = net(covariates=()).eval()
    torch.nn.init.normal_(plain.head.weight)
    bundle.save_net(plain, tmp_path / "plain.safetensors", half=False)
    made = net_from_stage(net().config, tmp_path / "plain.safetensors", plain.config).eval()
    crops, present = images(3)
    told = tensors(age=[1.0, 2.0, NAN])
    with torch.no_grad():
        assert torch.equal(made(crops, present, told), plain(crops, present))


def test_figures_of_other_covariates_in_starting_weights_are_measured_anew(tmp_path: Path) -> None:
    """One number each, so that every tensor fits: nothing but the checksum tells them apart."""
    nets = [net(covariates=[{"name": name, "kind": "number", "categories": ()}]) for name in ("age", "bmi")]
    data = stored({"age": np.full(4, 60.0, np.float32), "bmi": np.full(4, 25.0, np.float32)}, np.zeros(4))
    data.fit(nets[0])
    bundle.save_net(nets[0], tmp_path / "age.safetensors")
    for other, mean in ((nets[0], 60), (nets[1], 25)):
        started = net_from_stage(other.config, tmp_path / "age.safetensors", nets[0].config)
        data.fit(started)
        features = features_of(started)
        assert features is not None and float(features.mean[0]) == mean


def test_what_starting_weights_measured_is_kept() -> None:
    rng = np.random.default_rng(0)
    made = fitted(age=[10, 20], sex=[0], kl=[0])
    stored(random_values(rng, 8), rng.integers(0, 2, 8)).fit(made)
    features = features_of(made)
    assert features is not None and float(features.mean[0]) == 15


class OneStage:
    """A grader in cross-fitting whose training data are noted."""

    def __init__(self, data: GraderData, recipe: Recipe) -> None:
        self.stored, self.recipe = data, recipe
        self.nets = cross_fit.nets_of("grade", GRADER.name, recipe.graders[GRADER.name])

    def data(self, studies, plan, taught_by=None):
        return self.stored.for_plan(plan).of({study.id for study in studies})

    def loss(self, plan):
        return grader_loss(GRADER, self.recipe, plan)

    def watch(self, plan, held_out, job):
        return None


def test_every_fold_measures_its_own_training_studies_in_real_cross_fitting(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values, labels = random_values(rng, 12), rng.integers(0, 2, 12)
    studies = [Study(f"s{i}", f"p{i // 2}", (), {"right": int(labels[i])}) for i in range(12)]
    locator = LocatorPlan(net={"kind": "heatmap"}, pixels=32, training=Training(epochs=1, batch=1, lr=1e-3))
    recipe = Recipe("made-up", TASK, {"joint": for_locator(locator, LOCATOR)}, {"knee": (PLAN,)}, scope=Scope(folds=2))
    split = folds.Split(
        {study.id: i // 2 % 2 for i, study in enumerate(studies)}, {study.id: study.patient for study in studies}
    )
    run = cross_fit.Run(recipe, studies, [], split, (0, 1), tmp_path, torch.device("cpu"), resume=False)
    for fold in cross_fit.cross_fit(run, OneStage(stored(values, labels), recipe)):
        own = [i for i, study in enumerate(studies) if study not in fold.held_out]
        features = features_of(fold.nets[0])
        assert features is not None
        assert float(features.mean[0]) == pytest.approx(float(np.nanmean(values["age"][own])), rel=1e-5)


# What is learnt


def learnt(data: GraderData, asked: dict[str, torch.Tensor]) -> np.ndarray:
    """The probability of "worse" that a net gives to sites of the asked values after a few steps on the data."""
    torch.manual_seed(0)
    made = bundle.build_net(dict(data.plan.net))
    data.fit(made)
    recipe = Recipe.__new__(Recipe)  # of the recipe, the loss of a grader reads the task alone
    object.__setattr__(recipe, "task", TASK)
    loss, optimiser = grader_loss(GRADER, recipe, data.plan), torch.optim.Adam(made.parameters(), 5e-3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        batch = data.batch(rng.integers(0, len(data), 16), rng, torch.device("cpu"), augment=True)
        optimiser.zero_grad()
        loss(made, batch).backward()
        optimiser.step()
    count = len(next(iter(asked.values())))
    with torch.no_grad():
        logits = made.eval()([torch.full((count, 1, 32, 32), 0.35)], torch.ones(count, 1, dtype=torch.bool), asked)
    return torch.softmax(logits, -1)[:, 1].numpy()


def test_a_covariate_that_tells_the_label_is_learnt_and_one_that_is_always_hidden_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    values = random_values(rng, 80) | {"kl": (2 * labels).astype(np.float32)}
    asked = tensors(kl=[0.0, 2.0, NAN])
    certain = learnt(stored(values, labels), asked)
    assert certain[0] < 0.2 and certain[1] > 0.8
    hidden = learnt(stored(values, labels, replace(PLAN, drop_covariate=1.0)), asked)
    assert np.abs(hidden - 0.5).max() < 0.2
    unread = replace(PLAN, covariates=("age", "sex"))
    not_read = learnt(stored(values, labels, for_grader(replace(unread, net={**PLAN.net}), GRADER, TASK)), asked)
    assert not_read[0] == not_read[1] == not_read[2]


def test_values_are_hidden_as_often_as_the_plan_says_and_never_when_judged() -> None:
    labels = np.zeros(400)
    values = {name: np.ones(400, np.float32) for name in ("age", "sex", "kl")}
    data = stored(values, labels, replace(PLAN, drop_covariate=0.3))
    rng, everything = np.random.default_rng(0), range(400)
    told = data.batch(everything, rng, torch.device("cpu"), augment=True).covariates
    hidden = torch.stack([torch.isnan(told[name]) for name in ("age", "sex", "kl")], 1).float()
    assert hidden.mean().item() == pytest.approx(0.3, abs=0.05)
    assert hidden.all(1).float().mean().item() == pytest.approx(0.027, abs=0.03)  # independently of each other
    judged = data.batch(everything, rng, torch.device("cpu"), augment=False).covariates
    assert not any(torch.isnan(column).any() for column in judged.values())


# Checks of tasks and recipes


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "side"}, "none of"),
        ({"name": " "}, "none of"),
        ({"name": "a", "kind": "text"}, "expected number or category"),
        ({"name": "a", "categories": ("x", "y")}, "expected none for number"),
        ({"name": "a", "kind": CATEGORY, "categories": ("x",)}, "at least two"),
        ({"name": "a", "kind": CATEGORY, "categories": ("x", "X")}, "different"),
    ],
)
def test_covariates_that_make_no_sense_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Covariate(**wrong)


def test_a_name_that_two_covariates_have_is_refused() -> None:
    with pytest.raises(ValueError, match="several covariates are called"):
        replace(TASK, covariates=(AGE, Covariate("AGE")))


def test_a_plan_that_reads_what_its_task_does_not_have_is_refused() -> None:
    locator = LocatorPlan(net={"kind": "heatmap"}, pixels=32, training=Training(epochs=1, batch=1, lr=1e-3))
    with pytest.raises(UserError, match=r"reads covariates \['bmi'\].*'age', 'sex', 'kl'"):
        Recipe("r", TASK, {"joint": locator}, {"knee": (replace(PLAN, covariates=("bmi", "age")),)})


def test_rows_are_stored_with_what_is_known_of_their_own_target() -> None:
    study = Study("s", "p", (), covariates={"kl": {"right": "2", "": 1}, "age": {"": 61.0}, "sex": {"left": "m"}})
    values = tables.values_of(COVARIATES, [(study, "right"), (study, "left")])
    np.testing.assert_array_equal(values["kl"], [2, 1])
    np.testing.assert_array_equal(values["age"], [61, 61])
    np.testing.assert_array_equal(values["sex"], [np.nan, 1])


def test_a_recipe_of_covariates_that_no_study_has_is_refused_before_any_work(tmp_path: Path) -> None:
    locator = LocatorPlan(net={"kind": "heatmap"}, pixels=32, training=Training(epochs=1, batch=1, lr=1e-3))
    studies = [Study("s", "p", (), {"left": 1}, covariates={"age": {"": 5.0}, "sex": {"": "?"}, "kl": {"right": "1"}})]
    task = replace(TASK, read=lambda root, part: studies)
    recipe = Recipe("r", task, {"joint": for_locator(locator, LOCATOR)}, {"knee": (PLAN,)})
    with pytest.raises(UserError, match=r"reads \['sex', 'kl'\], which no labelled study has; put a table covariates"):
        train.train(recipe, tmp_path, tmp_path / "w", only=None, device=torch.device("cpu"), resume=False)
    assert not (tmp_path / "w").exists()


# covariates.csv


def knees(count: int = 3) -> list[Study]:
    return [Study(f"00{i}_a", f"00{i}", ()) for i in range(1, count + 1)]


def read(tmp_path: Path, text: str, studies: list[Study] | None = None, *, strict: bool = True) -> list[Study]:
    (tmp_path / "covariates.csv").write_text(text, encoding="utf-8")
    return tables.with_covariates(studies or knees(), (tmp_path,), COVARIATES, SITES, strict=strict)


def test_a_table_speaks_of_patients_studies_and_sides(tmp_path: Path) -> None:
    one, two, three = read(
        tmp_path,
        "Patient;Study;Side;KL;Age;SEX\n001;;R;2;61,5;f\n001;;L;1.0;61,5;F\n2;;;0;;M\n;003_a;;;70;\n",
    )
    assert one.covariates == {
        "kl": {"right": "2", "left": "1"},
        "age": {"right": 61.5, "left": 61.5},
        "sex": {"right": "F", "left": "F"},
    }
    assert two.covariates == {"kl": {"": "0"}, "sex": {"": "M"}}  # leading zeros lost in a spreadsheet
    assert three.covariates == {"age": {"": 70.0}}


def test_a_whole_number_is_the_same_category_with_and_without_decimals(tmp_path: Path) -> None:
    field = Covariate("tesla", CATEGORY, ("1.5", "3.0"))
    (tmp_path / "covariates.csv").write_text("study,tesla\n001_a,3\n002_a,3.0\n003_a,1.5\n")
    studies = tables.with_covariates(knees(), (tmp_path,), [field], SITES, strict=True)
    assert [tables.value_of(field, study, "left") for study in studies] == [1, 1, 0]


def test_targets_may_be_named_and_count_more_than_a_row_of_all(tmp_path: Path) -> None:
    (one, *_) = read(tmp_path, "study,target,kl\n001_a,,0\n001_a,LEFT,2\n")
    assert tables.value_of(KL, one, "left") == 2 and tables.value_of(KL, one, "right") == 0


def test_no_table_leaves_everything_unknown(tmp_path: Path) -> None:
    studies = knees()
    assert tables.with_covariates(studies, (tmp_path,), COVARIATES, SITES, strict=True) == studies


def test_what_cannot_be_used_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one, two, three = read(
        tmp_path, "patient,age,sex,bmi,kl\n001,sixty,M,20,7\n002,inf,X,20,1\n003,50,,20,\n009,1,M,1,0\n"
    )
    assert one.covariates == {"sex": {"": "M"}, "kl": {"": "7"}}
    assert two.covariates == {"sex": {"": "X"}, "kl": {"": "1"}} and three.covariates == {"age": {"": 50.0}}
    told = caplog.text
    assert "columns that are no covariates of this task are not used: bmi" in told
    assert "2 cells of age are no numbers and count as unknown: 'inf', 'sixty'" in told
    assert "1 cells of sex are none of F, M and count as unknown: X" in told
    assert "1 cells of kl are none of 0, 1, 2 and count as unknown: 7" in told
    assert "1 ids speak of no study here: 009" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,age\n001,5\n", "expected study or patient"),
        ("patient,weight\n001,5\n", "covariates of"),
        ("patient,side,age\n001,up,5\n", "no side"),
        ("patient,target,age\n001,l4_l5,5\n", "no target of this task"),
        ("patient,age\n001,5\n001,6\n", "contradict each other about age of 001"),
        ("", "empty"),
    ],
)
def test_a_broken_table_is_refused_in_training_and_costs_its_own_values_in_a_test(
    tmp_path: Path, text: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, text)
    assert [study.id for study in read(tmp_path, text, strict=False)] == [study.id for study in knees()]
    assert words in caplog.text


def test_ids_of_series_name_a_study_too(tmp_path: Path) -> None:
    from osteograde.tasks.spec import Series

    study = Study("a_b", "p", (Series("film7", "plain", tmp_path),))
    assert read(tmp_path, "study,age\nfilm7,5\n", [study])[0].covariates == {"age": {"": 5.0}}


# Flags


def test_rows_of_which_nothing_is_known_and_values_never_seen_are_flagged() -> None:
    nets = [fitted(age=[50, 60], sex=[0, 1], kl=[0, 1]), fitted(age=[50, 60], sex=[0], kl=[0])]
    studies = {
        "none": {},
        "age": {"age": {"": 40.0}},
        "unseen": {"kl": {"left": "2"}},
        "seen once": {"sex": {"": "M"}, "kl": {"": "1"}},
        "no category": {"age": {"": 40.0}, "sex": {"": "other"}},
    }
    rows = [(Study(name, name, (), covariates=known), "left") for name, known in studies.items()]
    found = dict(zip(studies, doubts_of(nets, rows), strict=True))
    assert found["none"] == Counter({UNKNOWN: 1})
    assert found["age"] == found["seen once"] == Counter()
    assert found["unseen"] == Counter({UNKNOWN: 1, NEW_VALUE: 1})
    assert found["no category"] == Counter({NEW_VALUE: 1})
    assert doubts_of([net(covariates=())], rows) == [Counter()] * len(rows)


def shown_knees(**known: dict[str, str]) -> tuple[Grader, Loaded]:
    """A grader whose two sites are the same box of one picture, and a study with these covariates."""
    grid = roi_at(np.zeros(3), np.array(TASK.views[0].directions), np.array([4.0, 1.0, 1.0]), (1, 40, 40))
    picture = np.random.default_rng(0).integers(0, 255, (1, 40, 40)).astype(np.uint8)
    volume = Volume(picture, grid.to_mm)
    box = roi_at(np.zeros(3), volume.axes, np.array([4.0, 1.25, 1.25]), (1, 32, 32))
    grader = replace(GRADER, regions=lambda volumes, points, pixels: {side: {"near": (volume, box)} for side in SIDES})
    study = Study("s", "p", (), covariates=known)
    return grader, Loaded(study, {"plain": (volume,)}, Counter({"plain:a_loss": 1}))


def test_views_that_a_net_sees_together_have_the_covariates_of_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    grader, loaded = shown_knees(kl={"right": "2"})
    nets = predict.Nets([fitted(age=[50, 60], sex=[0, 1], kl=[0, 2]).eval()], 32, torch.device("cpu"))
    (together,) = predict.grade(grader, [loaded], [{}], nets, views=4)
    monkeypatch.setattr(predict, "VIEWS_TOGETHER", 1)
    (alone,) = predict.grade(grader, [loaded], [{}], nets, views=4)
    assert not np.allclose(alone["right"], alone["left"])
    for side in SIDES:
        np.testing.assert_allclose(together[side], alone[side], atol=1e-5)


def test_a_graded_row_uses_its_own_values_and_is_flagged_where_nothing_is_known() -> None:
    grader, loaded = shown_knees(kl={"right": "2"})
    study = loaded.study
    made = [fitted(age=[50, 60], sex=[0, 1], kl=[0, 2]), net(covariates=())]
    nets = predict.Nets([one.eval() for one in made], 32, torch.device("cpu"))
    (graded,) = predict.grade(grader, [loaded], [{}], nets)
    assert not np.allclose(graded["right"], graded["left"])  # of one image: the left side is mirrored nowhere here
    assert loaded.target_faults == {"left": Counter({UNKNOWN: 1})}
    flags = flags_of(TASK, loaded, {}, graded)
    assert ("s_left", UNKNOWN, 1) in flags and not any(row == "s_right" and code == UNKNOWN for row, code, _ in flags)
    assert {row for row, code, _ in flags if code == "plain:a_loss"} == {"s_right", "s_left"}
    (unknown,) = predict.grade(grader, [replace(loaded, study=replace(study, covariates={}))], [{}], nets)
    assert np.allclose(unknown["right"], unknown["left"]) and np.allclose(unknown["left"], graded["left"])

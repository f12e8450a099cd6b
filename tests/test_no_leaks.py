"""No net answers about a study that it learnt from, or about another study of the same patient.

The nets of these tests do nothing but remember: they have one weight for every study, which is zero until a training
step is made on that study. Folds, training, checkpoints, files of nets, reuse and caches are the real ones. So the
weights of a net tell what it has seen, whichever way it came to be. Every answer holds the number of a note about the
nets it came from, so its origin is known even where it was read from a cache.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.learning import cross_fit, folds, loop, out_of_fold, train
from osteograde.learning import pretrained as starting
from osteograde.learning.cross_fit import Run
from osteograde.learning.recipe import GraderPlan, LocatorPlan, Plan, Recipe, Resizing, Start, Training
from osteograde.learning.reuse import reuse_nets
from osteograde.models import bundle
from osteograde.models.bundle import KINDS
from osteograde.pipeline.load import Loaded
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Point, Study
from tests.logs import logged

_FULL = TASKS["lumbar-mr"]
_TARGETS = tuple(site.target for group in _FULL.graders[:2] for site in group.sites)
TASK = replace(  # two locators, of which the second looks beside what the first found, and two graders
    _FULL, locators=_FULL.locators[:2], graders=_FULL.graders[:2],
    prior={target: _FULL.prior[target] for target in _TARGETS}, fill_missing_landmarks=dict,
)  # fmt: skip
LABELS = dict.fromkeys(TASK.targets, 0)
STUDIES = [Study(f"s{i:02d}", f"p{i // 2}", (), LABELS) for i in range(20)]  # two of each patient
FURTHER = [Study(f"t{i:02d}", f"q{i}", (), LABELS) for i in range(5)]  # that a later run has as well
MADE = [Study(f"made-of-p{i}", f"p{i}", ()) for i in range(0, 10, 3)] + [Study("made-of-nobody", "", ())]
EVERYTHING = [*STUDIES, *FURTHER, *MADE]
NUMBER = {study.id: i for i, study in enumerate(EVERYTHING)}
PATIENT = {study.id: study.patient for study in EVERYTHING}
CPU = torch.device("cpu")
Answers = Mapping[str, Mapping[str, Point | np.ndarray]]  # study -> landmark or target -> answer


class Memory(nn.Module):
    """A net that learns nothing but which studies it has seen."""

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(EVERYTHING)))
        self.config = {"kind": "memory"}

    def loss(self, numbers: torch.Tensor) -> torch.Tensor:
        return (1 - self.weight[numbers]).square().mean()

    @property
    def seen(self) -> set[str]:
        return {study.id for study, weight in zip(EVERYTHING, self.weight.tolist(), strict=True) if weight}


@dataclass(frozen=True)
class Samples:
    """Data of a locator or a grader: one sample a study, which is the study's number."""

    ids: tuple[str, ...]
    synthetic: frozenset[str] = frozenset()
    synthetic_from: int = 0  # the first epoch in which synthetic studies are used

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices, rng, device, *, augment) -> torch.Tensor:
        return torch.tensor([NUMBER[self.ids[i]] for i in indices])

    def of(self, ids: set[str]) -> "Samples":
        return replace(self, ids=tuple(study for study in self.ids if study in ids))

    def without_synthetic(self) -> "Samples":
        return replace(self, ids=tuple(study for study in self.ids if study not in self.synthetic))

    def for_plan(self, plan: GraderPlan) -> "Samples":
        return replace(self, synthetic_from=plan.training.epochs - plan.synthetic_epochs)

    def fit(self, net):
        pass

    def in_epoch(self, epoch: int) -> "Samples":
        return self if epoch >= self.synthetic_from else self.without_synthetic()

    def order(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return loop.every_sample(len(self), rng, count)

    def with_errors(self, errors_mm: np.ndarray) -> "Samples":
        return self


@dataclass
class Witness:
    """Takes the place of both stages of inference and of the log, and notes which nets were asked about which study."""

    notes: list[tuple[str, set[str]]] = field(default_factory=list)  # (study, studies that the nets had seen)
    leaked_into_crops: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # of the log
    stop_at: str = ""  # the run is killed at a line of the log that starts so

    def stops(self, line: str) -> bool:
        self.lines.append(line)
        return bool(self.stop_at) and line.startswith(self.stop_at)

    def note(self, study: Study, nets: Iterable[Memory]) -> np.ndarray:
        """An answer (3,) about a study: the number of the note, and two zeros."""
        self.notes.append((study.id, set[str]().union(*(net.seen for net in nets))))
        return np.array([len(self.notes) - 1, 0.0, 0.0])

    def locate(self, stage, studies: Sequence[Loaded], points, nets) -> list[dict[str, Point]]:
        names = [mark.name for mark in stage.landmarks]
        return [dict.fromkeys(names, Point(self.note(loaded.study, nets.nets))) for loaded in studies]

    def grade(self, group, studies: Sequence[Loaded], points, nets, *, views: int) -> list[dict[str, np.ndarray]]:
        targets = [site.target for site in group.sites]
        return [dict.fromkeys(targets, self.note(loaded.study, nets.nets)) for loaded in studies]

    def origin(self, answer: Point | np.ndarray) -> tuple[str, set[str]]:
        """(study that the nets were asked about, studies that they had seen)."""
        return self.notes[int((answer.mm if isinstance(answer, Point) else answer)[0])]

    def leaks(self, answers: Answers) -> list[str]:
        """Answers about a study from nets that had seen its patient, or that were asked about another study."""
        found = []
        for study, own in answers.items():
            for what, answer in own.items():
                asked, seen = self.origin(answer)
                known = sorted(one for one in seen if PATIENT[one] == PATIENT[study])
                if asked != study or known:
                    found.append(f"{what} of {study}: answered about {asked} by nets that had seen {known}")
        return found

    def store(self, stage, *more, unlabelled: bool = False) -> Samples:
        """Takes the place of both ``store`` functions. Graders learn from crops around points that nets found."""
        pairs = [one if isinstance(one, tuple) else (one, {}) for one in more[-2]]
        self.leaked_into_crops += self.leaks({loaded.study.id: points for loaded, points in pairs})
        return Samples(tuple(loaded.study.id for loaded, _ in pairs))


def starting_net(plan: Plan, data: Samples, loss, job, member) -> Memory:
    """Statistics may be measured on data (``pretrained.measure_batch_norms``): the net has seen all of them."""
    net = Memory()
    net.weight.data[[NUMBER[study] for study in data.ids]] = 0.5
    return net


@pytest.fixture
def witness(monkeypatch) -> Witness:
    made = Witness()
    monkeypatch.setitem(KINDS, "memory", Memory)  # type: ignore[index]
    monkeypatch.setattr(starting, "net_of", starting_net)
    monkeypatch.setattr(Run, "loaded", lambda self, studies: [Loaded(study, {}) for study in studies])
    for module in (out_of_fold.locator_data, out_of_fold.grader_data):
        monkeypatch.setattr(module, "store", made.store)
    monkeypatch.setattr(out_of_fold, "grader_loss", lambda group, recipe, plan: lambda net, batch: net.loss(batch))
    monkeypatch.setattr(out_of_fold.predict, "locate", made.locate)
    monkeypatch.setattr(out_of_fold.predict, "grade", made.grade)
    return made


TRAINING = Training(epochs=2, batch=8, lr=0.1)
LONGER = replace(TRAINING, epochs=3)
LOCATOR = LocatorPlan(net={"kind": "memory"}, pixels=32, training=TRAINING)
GRADER = GraderPlan(net={"kind": "memory"}, pixels=32, training=TRAINING)
START = Start(shared_epochs=2)
SHARED = replace(GRADER, training=LONGER, start=START, resizing=Resizing(epochs=1, share=0.5))
RECIPE = Recipe(
    name="memory",
    task=TASK,
    locators={"canal": replace(LOCATOR, training=LONGER, start=START), "foramen": replace(LOCATOR, subsample=2)},
    graders={
        "spinal": (SHARED, GRADER, replace(SHARED, synthetic_epochs=1), SHARED),  # the last one is the first one again
        "foraminal": (replace(GRADER, synthetic_epochs=1),),
    },
    synthetic=lambda studies, folder, rng, share: [],  # the tests make their own
)
STAGED = replace(  # each grader and locator starts from the other one; the first grader is used as it starts
    RECIPE,
    locators={"canal": LOCATOR, "foramen": replace(LOCATOR, start=Start(stage="canal"))},
    graders={
        "spinal": (replace(GRADER, training=replace(TRAINING, epochs=0), start=Start(stage="foraminal")),),
        "foraminal": (SHARED,),
    },
)
ALL = tuple(range(RECIPE.scope.folds))


def split_of(studies: Sequence[Study], shift: int = 0) -> folds.Split:
    """Patients in turn: p0, p1, ... in folds 0, 1, ..."""
    patients = list(dict.fromkeys(study.patient for study in studies))
    fold = {study.id: (patients.index(study.patient) + shift) % len(ALL) for study in studies}
    return folds.Split(fold, {study.id: study.patient for study in studies})


def run(
    witness: Witness, out: Path, *, resume: bool = False, only=ALL, studies=STUDIES, made=MADE, recipe=RECIPE
) -> tuple[Answers, Answers]:
    """(landmarks, grades) of every held-out study, from nets that are trained or lie in ``out`` already."""
    if not (out / folds.FILE).is_file():
        folds.save(split_of(studies), out / folds.FILE)
    split = train._split(recipe, studies, out, resume=resume)
    (out / "work" / "nets").mkdir(parents=True, exist_ok=True)
    own = Run(recipe, studies, made, split, tuple(only), out, CPU, resume)
    with logged("learning", stop=witness.stops):
        found, points = out_of_fold.locate_out_of_fold(own)
        graded = out_of_fold.grade_out_of_fold(own, found, points)
    train.seal(own, out, {}, {})
    return points, graded


def check(witness: Witness, points: Answers, graded: Answers, *, studies=STUDIES, made=MADE) -> None:
    """Every stage answered about every study, and by nets that had not seen its patient."""
    assert witness.leaks(points) == []
    assert witness.leaks(graded) == []
    assert witness.leaked_into_crops == []
    landmarks = {mark.name for stage in TASK.locators for mark in stage.landmarks}
    assert {study: set(found) for study, found in points.items()} == {one.id: landmarks for one in [*studies, *made]}
    assert {study: set(known) for study, known in graded.items()} == {one.id: set(TASK.targets) for one in studies}


def test_no_net_of_any_stage_member_or_shared_start_answers_about_what_it_has_seen(witness, tmp_path):
    points, graded = run(witness, tmp_path)
    check(witness, points, graded)
    for name in ("canal", "spinal"):
        assert any(line.startswith(f"{name} folds 0, 1, 2 ") for line in witness.lines)  # they share a start


def test_nets_that_start_from_another_stage_have_seen_what_it_saw_and_leak_nothing(witness, tmp_path):
    points, graded = run(witness, tmp_path, recipe=STAGED)
    check(witness, points, graded)
    trained = list(dict.fromkeys(line.split()[0] for line in witness.lines if " epoch " in line))
    assert trained == ["canal", "foramen", "foraminal"]  # and spinal, which is used as it starts, behind foraminal
    fold = split_of(STUDIES).fold
    for study in fold:
        others = {one for one in fold if fold[one] != fold[study]}
        spinal = [answer for target, answer in graded[study].items() if target.startswith("spinal")]
        assert spinal and all(others <= witness.origin(answer)[1] for answer in spinal)


def test_reused_nets_of_other_stages_leak_nothing_and_a_net_is_not_reused_without_the_one_it_starts_from(
    witness, tmp_path
):
    run(witness, tmp_path / "earlier", recipe=STAGED)
    taken = reuse_nets(tmp_path / "earlier", tmp_path / "later", STAGED, without=("foraminal",))
    assert {name.split("/")[1] for name in taken} == {"canal", "foramen", "spinal"}
    check(witness, *run(witness, tmp_path / "later", resume=True, recipe=STAGED))
    other = replace(STAGED.graders["foraminal"][0], label_smoothing=0.1)
    changed = replace(STAGED, graders={**STAGED.graders, "foraminal": (other,)})
    taken = reuse_nets(tmp_path / "earlier", tmp_path / "changed", changed)
    assert {name.split("/")[1] for name in taken} == {"canal", "foramen"}


def test_nets_have_seen_all_that_they_are_not_asked_about(witness, tmp_path):
    points, graded = run(witness, tmp_path, made=[])
    fold = split_of(STUDIES).fold
    for study in fold:
        others = {one for one in fold if fold[one] != fold[study]}
        of_canal = [
            point for name, point in points[study].items() if name.startswith("canal")
        ]  # foramen is thinned out
        assert all(witness.origin(answer) == (study, others) for answer in [*of_canal, *graded[study].values()])


@pytest.mark.parametrize(
    "moment",
    [
        "canal folds 3, 4 epoch 1",
        "foramen fold 2 epoch 1",
        "spinal folds 0, 1, 2 epoch 2",
        "foraminal fold 4 epoch 1",
    ],
)
def test_a_run_that_was_killed_and_resumed_leaks_nothing(witness, tmp_path, moment):
    witness.stop_at = moment
    with pytest.raises(KeyboardInterrupt):
        run(witness, tmp_path)
    witness.stop_at = ""
    check(witness, *run(witness, tmp_path, resume=True))


def test_folds_that_are_trained_one_after_another_leak_nothing(witness, tmp_path):
    run(witness, tmp_path, only=(1,))
    run(witness, tmp_path, resume=True, only=(1, 3))
    check(witness, *run(witness, tmp_path, resume=True))


def test_a_finished_run_answers_again_from_its_cache_and_leaks_nothing(witness, tmp_path):
    run(witness, tmp_path)
    asked, lines = len(witness.notes), len(witness.lines)
    check(witness, *run(witness, tmp_path, resume=True))
    assert len(witness.notes) == asked
    assert not any(" epoch " in line for line in witness.lines[lines:])


@pytest.mark.parametrize("studies", [STUDIES, [*STUDIES, *FURTHER]], ids=["the same studies", "further studies"])
def test_nets_of_an_earlier_run_that_are_reused_leak_nothing(witness, tmp_path, studies):
    run(witness, tmp_path / "earlier")
    if studies != STUDIES:
        folds.save(split_of(studies), tmp_path / "later" / folds.FILE)
    taken = reuse_nets(tmp_path / "earlier", tmp_path / "later", RECIPE, without=("foramen", "spinal"))
    assert len(taken) == 2 * len(ALL)  # canal, foraminal
    lines = len(witness.lines)
    check(witness, *run(witness, tmp_path / "later", resume=True, studies=studies), studies=studies)
    assert {line.split()[0] for line in witness.lines[lines:] if " epoch " in line} == {"foramen", "spinal"}


def test_nets_of_other_folds_are_not_reused(witness, tmp_path):
    run(witness, tmp_path / "earlier")
    folds.save(split_of(STUDIES, shift=1), tmp_path / "later" / folds.FILE)
    with pytest.raises(ValueError, match="may have seen"):
        reuse_nets(tmp_path / "earlier", tmp_path / "later", RECIPE)
    check(witness, *run(witness, tmp_path / "later", resume=True))


@pytest.mark.parametrize("moment", ["canal fold 0 epoch 1", "foraminal fold 0 epoch 1"])
def test_nets_are_not_resumed_by_other_folds(witness, tmp_path, moment):
    witness.stop_at = moment
    with pytest.raises(KeyboardInterrupt):
        run(witness, tmp_path)
    witness.stop_at = ""
    folds.save(split_of(STUDIES, shift=1), tmp_path / folds.FILE)
    for resume in (False, True):
        with pytest.raises(ValueError, match="may have seen"):
            run(witness, tmp_path, resume=resume)
    folds.save(split_of(STUDIES), tmp_path / folds.FILE)
    check(witness, *run(witness, tmp_path, resume=True))


@pytest.mark.parametrize(("kind", "stage", "member"), [("locate", "foramen", 0), ("grade", "spinal", 2)])
def test_a_net_in_the_place_of_another_fold_s_is_seen_to_leak(witness, tmp_path, kind, stage, member):
    """If nobody noticed this leak, the tests above would prove nothing."""
    run(witness, tmp_path)
    one = cross_fit.nets_of(kind, stage, RECIPE.plans()[kind, stage])[member]
    wrong, right = tmp_path / one.file(0), tmp_path / one.file(1)
    wrong.write_bytes(right.read_bytes())
    (one.done_marker(tmp_path, 0)).write_text(bundle.sha256(wrong))
    points, graded = run(witness, tmp_path, resume=True)
    leaks = witness.leaks(points if kind == "locate" else graded)
    held_out = {study for study, k in split_of(STUDIES).fold.items() if k == 0}
    assert {study.id for study in STUDIES if any(f" of {study.id}:" in line for line in leaks)} == held_out

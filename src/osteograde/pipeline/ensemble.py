"""Weights that answer together: a plain weights folder, or several that vote, as ensemble.json says.

ensemble.json is what ``osteograde ensemble`` writes: the members, their folders as seen from it, the hashes of their
manifests, and the voting rule. Its folder is used like any weights folder. Members lie in folders of their own, or all
flat beside ensemble.json, as on Kaggle: ``grade/kl/fold0.safetensors`` of the member ``m1`` is then
``m1__grade__kl__fold0.safetensors``.

A file that several members have is loaded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from osteograde.errors import UserError
from osteograde.models import bundle
from osteograde.models.bundle import Bundle
from osteograde.models.manifest import (
    ENSEMBLE,
    MANIFEST,
    EnsembleMember,
    Manifest,
    is_plain,
    place,
    read_ensemble,
    read_manifest,
)
from osteograde.pipeline import voting
from osteograde.tasks.spec import Task
from osteograde.tasks.tables import duplicates, some


@dataclass(frozen=True, eq=False)
class Member:
    """One of the weights that vote. prefix: of the names of its files in ``folder``, "" where it has a folder of its
    own. worth: what it adds to the score out-of-fold, where that was measured."""

    name: str
    folder: Path
    prefix: str
    manifest: Manifest
    worth: float = 1.0

    @property
    def folds(self) -> int:
        """The most nets that any stage has."""
        return max(Counter(name.rpartition("/")[0] for name in self.manifest.files).values(), default=0)


@dataclass(frozen=True, eq=False)
class Weights:
    """What a folder of weights holds: one member, or those of an ensemble and the rule by which they vote."""

    folder: Path
    rule: str
    members: tuple[Member, ...]

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.members[0].manifest.task

    @property
    def definition(self) -> Mapping[str, Any]:
        """What the task is made of, where it is made of data (``Task.as_defined``)."""
        return self.members[0].manifest.definition

    @property
    def test_views(self) -> int:
        """The most views that a member averages at test time."""
        return max(member.manifest.test_views for member in self.members)

    @property
    def folds(self) -> int:
        """The most nets that any stage of any member has."""
        return max(member.folds for member in self.members)

    @property
    def prior(self) -> Mapping[str, tuple[float, ...]]:
        """Target -> what the members' class priors say by the voting rule."""
        if len(self.members) == 1:
            return self.members[0].manifest.prior
        priors = [member.manifest.prior for member in self.members]
        return {
            target: tuple(voting.vote(np.array([[one[target]] for one in priors]), self.rule)[1][0].tolist())
            for target in priors[0]
        }

    @property
    def path(self) -> Path:
        """The file that says what the weights are: ensemble.json, or the manifest."""
        return self.folder / (MANIFEST if is_plain(self.folder) else ENSEMBLE)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Trained nets that vote. task: with the crops that the first member reads. prior: see ``Weights.prior``."""

    task: Task
    rule: str
    members: tuple[Bundle, ...]
    prior: Mapping[str, Sequence[float]]

    @property
    def device(self) -> torch.device:
        return self.members[0].device


Voters = Bundle | Ensemble  # a bundle alone is an ensemble of one


def voted(voters: Voters, answers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """target -> (K + F,) of one study: the answer of the voters, of what each member answered, in their order.

    The K classes by the voting rule, where the prior of a member stands for a target that it could not grade, as it
    does in the member's own submission and in its out-of-fold table; the auxiliary heads as the mean over the members
    that graded the target. Targets that no member graded are left out.
    """
    if isinstance(voters, Bundle):
        return dict(answers[0])
    classes = len(voters.task.classes)
    graded: dict[str, np.ndarray] = {}
    for target in voters.task.targets:
        given = [answer[target] for answer in answers if target in answer]
        if given:
            rows = [
                np.asarray(answer.get(target, member.prior[target]), float)[:classes]
                for member, answer in zip(voters.members, answers, strict=True)
            ]
            _, table = voting.vote(np.array(rows)[:, None], voters.rule)
            graded[target] = np.concatenate([table[0], np.mean([one[classes:] for one in given], 0)])
    return graded


def some_of(voters: Voters, numbers: Sequence[int]) -> Voters:
    """The members of these numbers alone; one of them answers as it does by itself."""
    if isinstance(voters, Bundle) or len(numbers) == len(voters.members):
        return voters
    if len(numbers) == 1:
        return voters.members[numbers[0]]
    return replace(voters, members=tuple(voters.members[number] for number in numbers))


def read(folder: Path) -> Weights:
    """What a folder of weights holds, from its manifests alone. UserError where it is no weights folder, a member is
    missing, was changed since it was chosen or is of another task or other targets than the first one."""
    folder = Path(folder)
    if is_plain(folder):
        return Weights(folder, voting.RULES[0], (Member(folder.resolve().name, folder, "", read_manifest(folder)),))
    said = read_ensemble(folder)
    if said.rule not in (*voting.RULES, *voting.ALIASES):
        raise UserError(f"{folder / ENSEMBLE}: rule {said.rule!r} is unknown; known: {sorted(voting.RULES)}")
    if doubled := duplicates([member.name for member in said.members]):
        raise UserError(f"{folder / ENSEMBLE}: members more than once: {some(doubled)}; choose the ensemble again")
    members = tuple(_member(folder, one) for one in said.members)
    for member in members:
        own, first = member.manifest, members[0].manifest
        if own.task != said.task or set(own.prior) != set(first.prior) or own.definition != first.definition:
            raise UserError(
                f"{member.folder}: member {member.name!r} is of task {own.task!r} or of other targets than "
                f"the ensemble of {said.task!r}, or of other classes; choose the ensemble again"
            )
    return Weights(folder, said.rule, members)


def _member(folder: Path, said: EnsembleMember) -> Member:
    """A member of the ensemble in ``folder``: in its own folder, else flat beside ensemble.json."""
    name, expected = said.name, said.manifest_sha256
    places = [(folder / said.folder, ""), (folder, f"{name}/")]
    found = next(((at, prefix) for at, prefix in places if place(at, prefix + MANIFEST).is_file()), None)
    if found is None:
        looked = " or ".join(str(place(at, prefix + MANIFEST)) for at, prefix in places)
        raise UserError(f"{folder / ENSEMBLE}: member {name!r} is missing: no {looked}; put its folder there")
    at, prefix = found
    path = place(at, prefix + MANIFEST)
    if (digest := bundle.sha256(path)) != expected:
        raise UserError(
            f"{path}: sha256 is {digest[:12]}..., {ENSEMBLE} says {expected[:12]}...; member {name!r} was trained or "
            "changed after the ensemble was chosen, choose it again"
        )
    return Member(name, at, prefix, read_manifest(at, prefix), said.worth)


def verify(folder: Path) -> Weights:
    """What a folder of weights holds, with the hash of every file checked. UserError names the file."""
    weights = read(folder)
    for member in weights.members:
        bundle.verify(member.folder, member.prefix)
    return weights


def task_of(weights: Weights, tasks: Mapping[str, Task]) -> Task:
    """The task of weights, with graders that have the crops that the first member reads. UserError: see
    ``bundle.task_of``; every member is checked."""
    first, *_ = [bundle.task_of(member.folder, member.manifest, tasks) for member in weights.members]
    return first


def load(weights: Weights, tasks: Mapping[str, Task], device: torch.device) -> Voters:
    """The nets of weights that ``verify`` has checked a moment ago. UserError names what does not fit."""
    loaded: dict[tuple[str, str], nn.Module] = {}
    members = tuple(
        replace(
            bundle.load(member.folder, tasks, device, manifest=member.manifest, prefix=member.prefix, loaded=loaded),
            name=member.name,
        )
        for member in weights.members
    )
    return members[0] if len(members) == 1 else Ensemble(members[0].task, weights.rule, members, weights.prior)


def files(weights: Weights) -> dict[str, Path]:
    """{name: path} of ensemble.json, of every manifest and of every file that a manifest names. Names are those of a
    plain weights folder; for an ensemble they begin with the member's name."""
    found = {} if is_plain(weights.folder) else {ENSEMBLE: weights.folder / ENSEMBLE}
    for member in weights.members:
        prefix = "" if is_plain(weights.folder) else f"{member.name}/"
        for name in (MANIFEST, *member.manifest.hashes):
            found[prefix + name] = place(member.folder, member.prefix + name)
    return found

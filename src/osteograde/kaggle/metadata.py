"""kernel-metadata.json: made complete, and checked: the client ignores unknown keys and guesses what is missing.

Names of what a kernel reads: a data set ``owner/slug`` or a model ``owner/model/framework/variation``.

Either may end in a version. A kernel sees the latest one of a data set, and needs a model's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osteograde.errors import UserError

NAME = "kernel-metadata.json"
OWNER = "your-name"  # placeholder in the committed metadata: a push puts the name of the account there
MACHINE = "NvidiaTeslaT4"  # two of them; a single one does not exist
MACHINES = (MACHINE, "NvidiaL4", "NvidiaL4X1", "NvidiaTeslaA100", "NvidiaH100", "NvidiaRtxPro6000")
RETIRED = {"NvidiaTeslaP100": "the image's torch cannot run there and the service replaces it"}
CPU = "cpu"
SHORT = {  # what --machine takes -> the service's name; all but the first two are for some competitions and groups only
    "t4x2": MACHINE,
    CPU: "",  # no accelerator
    "l4x4": "NvidiaL4",
    "l4": "NvidiaL4X1",
    "a100": "NvidiaTeslaA100",
    "h100": "NvidiaH100",
    "rtx-pro-6000": "NvidiaRtxPro6000",
    "p100": "NvidiaTeslaP100",
}
FIXED: Mapping[str, Any] = {
    "language": "python",
    "kernel_type": "script",
    "is_private": True,
    "enable_gpu": True,
    "enable_tpu": False,
    "enable_internet": False,  # left out or misspelt means on, and such a version cannot be submitted
    "docker_image_pinning_type": "original",
    "kernel_sources": [],  # the service drops their versions
}
KEYS = {*FIXED, "id", "title", "code_file", "machine_shape", "competition_sources", "dataset_sources", "model_sources"}
OWNED = ("dataset_sources", "model_sources", "kernel_sources")
FREE_IN_TRAINING = ("enable_internet", "kernel_sources")
OPTIONAL = {"docker_image"}
IMAGE = re.compile(r"gcr\.io/kaggle[a-z-]*/python(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")


def with_sources(facts: Mapping[str, Any], weights: str = "", data: str = "") -> dict[str, Any]:
    """The metadata of a kernel with other sources of its weights and of its images; "" leaves what is there.

    The weights are the first model, or the first data set if there is no model. The images of a task without a
    competition are the next data set. Placeholder owners become the owner of the weights. UserError for a name that
    is no source, and for a model without its version.
    """
    models, sets = list(facts.get("model_sources", [])), list(facts.get("dataset_sources", []))
    if not weights and not data:
        return dict(facts)
    first = models[:1] or sets[:1]
    if not first:
        raise UserError(f"{NAME}: neither dataset_sources nor model_sources name the weights; name one")
    others = [models[1:], sets if models else sets[1:]]
    source = parse_source(weights or first[0])
    if source.is_model and not source.version:
        raise UserError(f"{source}: a model is mounted by its version; write {source}/1, or what upload-weights said")
    if data:
        others[1] = [data, *others[1][1:]]
    lists = {
        "dataset_sources": [*([] if source.is_model else [source.ref]), *others[1]],
        "model_sources": [*([str(source)] if source.is_model else []), *others[0]],
    }
    changed = {**facts, **lists}
    return owned(changed, source.owner) if weights else changed


def on_machine(facts: Mapping[str, Any], machine: str) -> dict[str, Any]:
    """The metadata of the same kernel on another machine, by its short or full name; "" leaves it where it is.

    UserError for a machine that the service does not have, or no longer.
    """
    if not machine:
        return dict(facts)
    shape = SHORT.get(machine.lower(), machine)
    if shape in RETIRED:
        raise UserError(f"--machine {machine}: {RETIRED[shape]}; take t4x2")
    if shape and shape not in MACHINES:
        raise UserError(f"--machine {machine!r} is none of {', '.join(SHORT)}, as of the client 2.2.5")
    return {**facts, "machine_shape": shape, "enable_gpu": bool(shape)}


def for_training(
    facts: Mapping[str, Any], task: str, slug: str, data: str, *, go_on: bool, internet: bool
) -> dict[str, Any]:
    """The metadata of the kernel that trains a task, from those of ``kernels/train``: a name of its own, the data of
    the competition ``slug`` or of the data set ``data``, and with ``go_on`` its own last output."""
    named = training_name(task)
    own = f"{str(facts['id']).partition('/')[0]}/osteograde-{named}"
    return {
        **facts,
        "id": own,
        "title": f"Osteograde {named}",
        "competition_sources": [slug] if slug else [],
        "dataset_sources": [*([data] if data else []), *facts["dataset_sources"]],
        "kernel_sources": [own] if go_on else [],
        "enable_internet": internet,
    }


def training_name(task: str) -> str:
    """What the kernel that trains a task is called in folders and records: TASK-train."""
    return f"{task}-train"


def trains(facts: Mapping[str, Any]) -> bool:
    """Whether the metadata are of a kernel that trains: it may go online and read its own output."""
    return facts.get("code_file") == "train.py"


def has_placeholder(facts: Mapping[str, Any]) -> bool:
    """True if the metadata still has the placeholder owner."""
    return any(name.startswith(f"{OWNER}/") for name in (facts["id"], *(one for key in OWNED for one in facts[key])))


def owned(facts: Mapping[str, Any], account: str) -> dict[str, Any]:
    """The same metadata with the placeholder owner replaced by ``account``."""

    def own(name: str) -> str:
        return account + name.removeprefix(OWNER) if name.startswith(f"{OWNER}/") else name

    lists = {key: [own(name) for name in facts[key]] for key in OWNED}
    return {**facts, "id": own(facts["id"]), **lists}


def read(folder: Path) -> dict[str, Any]:
    """The metadata of a kernel's folder. UserError where there is none."""
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{path}: missing; first python -m osteograde kernel build TASK")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); build the kernel again") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path}: expected an object; build the kernel again")
    return facts


def check(facts: Mapping[str, Any], folder: Path) -> None:
    """UserError with everything that is wrong with the metadata in ``folder``, one clause each."""
    wrong = [f"{key!r} is no key the client knows" for key in sorted(set(facts) - KEYS - OPTIONAL)]
    wrong += [f"{key!r} is missing" for key in sorted(KEYS - set(facts))]
    if not wrong:
        wrong = [*_fixed(facts), *_names(facts), *_sources(facts)]
        if not (folder / str(facts["code_file"])).is_file():
            wrong.append(f"code_file {facts['code_file']!r} is not in the folder")
    if wrong:
        raise UserError(f"{folder / NAME}: {'; '.join(wrong)}")


def _fixed(facts: Mapping[str, Any]) -> list[str]:
    free = (*(FREE_IN_TRAINING if trains(facts) else ()), *(() if facts["machine_shape"] else ("enable_gpu",)))
    odd = [key for key, value in FIXED.items() if facts[key] != value or type(facts[key]) is not type(value)]
    odd = [key for key in odd if key not in free or type(facts[key]) is not type(FIXED[key])]
    return [f"{key} is {facts[key]!r}, expected {FIXED[key]!r}" for key in odd]


def _names(facts: Mapping[str, Any]) -> list[str]:
    wrong = []
    owner, _, slug = str(facts["id"]).partition("/")
    if not owner or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or len(slug) < 5:
        wrong.append(f"id {facts['id']!r} is not owner/name with 5 letters or more and no version")
    if (made := re.sub(r"[^a-z0-9]+", "-", str(facts["title"]).lower()).strip("-")) != slug:
        wrong.append(f"title {facts['title']!r} comes to {made!r}, the id says {slug!r}")
    machine = facts["machine_shape"]
    if machine and machine not in MACHINES:
        wrong.append(f"machine_shape {machine!r}: {RETIRED.get(machine, f'expected one of {MACHINES}')}")
    if bool(machine) != facts["enable_gpu"]:
        wrong.append(f"machine_shape {machine!r} and enable_gpu {facts['enable_gpu']} contradict each other")
    image = facts.get("docker_image", "")
    if image and not IMAGE.fullmatch(image):
        wrong.append(f"docker_image {image!r} is not an image of Kaggle's")
    return wrong


def _sources(facts: Mapping[str, Any]) -> list[str]:
    wrong = [f"competition {name!r} must be the bare name" for name in facts["competition_sources"] if "/" in name]
    for key, kind in (("dataset_sources", False), ("model_sources", True)):
        for name in facts[key]:
            try:
                source = parse_source(name)
            except UserError as error:
                wrong.append(f"{key}: {error}")
                continue
            if source.is_model is not kind:
                wrong.append(f"{key}: {name!r} belongs in the other list")
            elif kind and not source.version:
                wrong.append(f"{key}: {name!r} lacks its version")
            elif not kind and source.version:
                wrong.append(f"{key}: {name!r} names a version; a kernel is given the latest")
    return wrong


SLUG_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
OWNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FRAMEWORKS = ("pyTorch", "other")
EXPECTED = "expected owner/data-set or owner/model/pyTorch/variation"
SHORTEST, LONGEST = 6, 50  # letters of a data set's name


@dataclass(frozen=True)
class Source:
    """Where weights or data lie. ``framework`` is "" for a data set; ``version`` 0 is the latest."""

    owner: str
    slug: str
    framework: str = ""
    variation: str = ""
    version: int = 0

    @property
    def is_model(self) -> bool:
        return bool(self.framework)

    @property
    def model(self) -> str:
        return f"{self.owner}/{self.slug}"

    @property
    def ref(self) -> str:
        """Without the version."""
        return f"{self.model}/{self.framework}/{self.variation}" if self.is_model else self.model

    def __str__(self) -> str:
        return f"{self.ref}/{self.version}" if self.version else self.ref

    def at(self, version: int) -> Source:
        return replace(self, version=version)


def parse_source(text: str) -> Source:
    """A source from its name. UserError says what is wrong with it."""
    parts = text.split("/")
    if len(parts) not in (2, 3, 4, 5):
        raise UserError(f"{text!r} has {len(parts)} parts; {EXPECTED}")
    if not OWNER_NAME.fullmatch(parts[0]):
        raise UserError(f"{text!r}: {parts[0]!r} is no account's name; {EXPECTED}")
    is_set, number = len(parts) < 4, parts[-1] if len(parts) in (3, 5) else ""
    slugs = (parts[1],) if is_set else (parts[1], parts[3])
    if bad := [slug for slug in slugs if not SLUG_NAME.fullmatch(slug)]:
        raise UserError(f"{text!r}: {bad[0]!r} may hold small letters, digits and single '-' only")
    if number and not (number.isascii() and number.isdigit() and int(number)):
        raise UserError(f"{text!r}: version {number!r} is not a number from 1; {EXPECTED}")
    if is_set:
        if not SHORTEST <= len(parts[1]) <= LONGEST:
            raise UserError(f"{text!r}: a data set's name has {SHORTEST} to {LONGEST} letters, not {len(parts[1])}")
        return Source(parts[0], parts[1], version=int(number or 0))
    if parts[2] not in FRAMEWORKS:
        raise UserError(f"{text!r}: framework {parts[2]!r}; expected one of {', '.join(FRAMEWORKS)}")
    return Source(parts[0], parts[1], parts[2], parts[3], int(number or 0))

"""Weights that describe themselves: a folder of safetensors files and one manifest.json (manifest.py).

The manifest holds the config of every net, which is enough to build it again without a download. Loading checks every
hash before a net is built, requires that the tensors fit exactly, and never unpickles.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save
from torch import nn

from osteograde.errors import UserError
from osteograde.models.folding import fold_batch_norms, pack_convolutions
from osteograde.models.grader import GraderNet
from osteograde.models.locators.faster_rcnn import FasterRcnnLocator
from osteograde.models.locators.heatmap import HeatmapLocator
from osteograde.models.locators.planned_unet import PlannedUnet
from osteograde.models.locators.unet import UnetLocator
from osteograde.models.manifest import (
    MANIFEST,
    Manifest,
    NetFile,
    flat,
    place,
    read_manifest,
    sha256,
    write_manifest,
)
from osteograde.models.siamese import SiameseNet
from osteograde.tasks.spec import Grader, Pixels, Task, side_name

__all__ = ["MANIFEST", "flat", "place", "read_manifest", "sha256", "write_manifest"]  # beside what is defined here


@dataclass(frozen=True, eq=False)
class Bundle:
    """Trained nets of a task. ``locators`` and ``graders``: stage name -> the nets of its folds, in order of fold.
    ``check_tensors``: those of the file of the manifest's ``checks``. ``name``: by which an ensemble calls them."""

    task: Task
    manifest: Manifest
    locators: Mapping[str, tuple[nn.Module, ...]]
    graders: Mapping[str, tuple[nn.Module, ...]]
    device: torch.device
    check_tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = ""

    @property
    def members(self) -> tuple[Bundle, ...]:
        """Whose answers are voted on: a bundle alone is the only voter."""
        return (self,)

    @property
    def prior(self) -> Mapping[str, Sequence[float]]:
        """Target -> probability of each class in the training data."""
        return self.manifest.prior

    @property
    def pixels(self) -> Mapping[str, Pixels]:
        """Stage -> pixels of what its nets read: a side, or (H, W)."""
        return self.manifest.pixels

    @property
    def calibration(self) -> Mapping[str, Mapping[str, Any]]:
        """Grader -> its ``Calibration.plain()``; graders without calibration are absent."""
        return self.manifest.calibration

    @property
    def test_views(self) -> int:
        return self.manifest.test_views

    @property
    def locators_key(self) -> str:
        """See ``Manifest.locators_key``."""
        return self.manifest.locators_key


def save_net(net: nn.Module, path: Path, *, half: bool = True) -> None:
    """Write the tensors of a net; floating point ones in fp16, which is what every score is measured with. Modules that
    say ``full_precision`` keep theirs."""
    full = tuple(f"{name}." for name, module in net.named_modules() if getattr(module, "full_precision", False))
    tensors = {
        key: (value.half() if half and value.is_floating_point() and not key.startswith(full) else value)
        .detach()
        .cpu()
        .contiguous()
        for key, value in net.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # save_file would write in place, readable by its owner alone
    part.write_bytes(save(tensors))
    part.replace(path)


def load_net(path: Path, config: Mapping[str, Any]) -> nn.Module:
    """Rebuild a net from its config and load its tensors strictly, as float32, in evaluation mode."""
    net = build_net(dict(config))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}); fetch it again") from error
    own = net.state_dict()
    wrong = sorted(
        f"{key}: net {tuple(own[key].shape) if key in own else 'has none'}, "
        f"file {tuple(tensors[key].shape) if key in tensors else 'has none'}"
        for key in own.keys() | tensors.keys()
        if key not in own or key not in tensors or own[key].shape != tensors[key].shape
    )
    if wrong:
        raise UserError(f"{path}: {len(wrong)} tensors do not fit the net of the manifest; first: {wrong[:3]}")
    net.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()}, strict=True)
    return net.eval()


def on_device(net: nn.Module, device: torch.device) -> nn.Module:
    """The net on its device in channels-last layout, which is free and faster for small convolutions."""
    net = net.to(device)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The complete config of a net, with what a recipe left at its default."""
    net: Any = build_net(dict(config))
    return net.config


def file_entry(folder: Path, name: str, config: Mapping[str, Any]) -> NetFile:
    """What the manifest says of a file of weights. config: what ``build_net`` builds its net from."""
    path = folder / name
    return NetFile(sha256(path), path.stat().st_size, dict(config))


def verify(folder: Path, prefix: str = "") -> Manifest:
    """Check every file of a weights folder against its manifest; return the manifest. UserError names the file.

    prefix: of the names of all its files, where several weights lie in one folder.
    """
    manifest = read_manifest(folder, prefix)
    for name, expected in manifest.hashes.items():
        path = place(folder, prefix + name)
        if not path.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"{folder}: the manifest names {name}, which is outside of the folder; do not use it")
        if not path.is_file():
            raise UserError(f"{path}: missing; the manifest expects sha256 {expected[:12]}; fetch it again")
        digest = sha256(path)
        if digest != expected:
            raise UserError(
                f"{path}: sha256 is {digest[:12]}..., the manifest says {expected[:12]}...; "
                "the file was changed or cut short, fetch it again"
            )
    return manifest


def task_of(folder: Path, manifest: Manifest, tasks: Mapping[str, Task]) -> Task:
    """The task that weights were trained for, with graders that have the crops that the nets read and no others.
    UserError where this version has none with their targets, or not these crops."""
    name = manifest.task
    if name not in tasks:
        raise UserError(f"{folder}: weights are of task {name!r}; known tasks: {sorted(tasks)}")
    task = tasks[name].as_defined(manifest.definition)
    if sorted(manifest.prior) != sorted(task.targets):
        raise UserError(f"{folder}: its targets are not those of task {name!r}; train again with this version")
    return as_read(task, manifest, folder)


def as_read(task: Task, manifest: Manifest, folder: Path) -> Task:
    """A task with graders as the nets of a weights folder are: of both sides or of one, with the crops that they read.

    The names of the nets' folders tell the side, the manifest names the crops. Where it does not, a net of n crops
    reads the first n of its grader. UserError where the crops are not those of the grader, or nets of one grader read
    different numbers of them.
    """
    stages = {name.split("/")[1] for name in manifest.files}
    task = task.by_side([grader.name for grader in task.graders if side_name(grader.name, "left") in stages])
    return task.reading({grader.name: _crops_read(grader, manifest, folder) for grader in task.graders})


def _crops_read(grader: Grader, manifest: Manifest, folder: Path) -> tuple[str, ...]:
    """The names of the crops of a grader that the nets of a folder read."""
    numbers = {
        name: int(entry.net[key])
        for name, entry in manifest.files.items()
        for key in ("crops", *(old for old, new in EARLIER_NAMES.items() if new == "crops"))
        if name.startswith(f"grade/{grader.name}/") and key in entry.net
    }
    all_names = tuple(crop.name for crop in grader.crops)
    named = manifest.crops.get(grader.name, ())
    names = named or all_names[: max(numbers.values(), default=len(all_names))]
    if odd := {name: number for name, number in numbers.items() if number != len(names)}:
        raise UserError(
            f"{folder}: {next(iter(odd))} reads {next(iter(odd.values()))} crops, grader {grader.name!r} has "
            f"{names if named else all_names} for it; train again with this version"
        )
    return names


def load(
    folder: Path,
    tasks: Mapping[str, Task],
    device: torch.device,
    manifest: Manifest | None = None,
    *,
    prefix: str = "",
    loaded: dict[tuple[str, str], nn.Module] | None = None,
) -> Bundle:
    """Verify all hashes, then rebuild and load every net. UserError names what does not fit.

    manifest: what ``verify`` returned for this folder a moment ago; it is not verified again. prefix: see ``verify``.
    loaded: nets by hash and config of those that were loaded before, on the same device; they are not loaded again,
    and new ones are added.
    """
    manifest = verify(folder, prefix) if manifest is None else manifest
    task = task_of(folder, manifest, tasks)
    known = {} if loaded is None else loaded
    nets: dict[str, dict[str, list[nn.Module]]] = {"locate": {}, "grade": {}}
    for file, entry in sorted(manifest.files.items()):
        kind, stage, _ = file.split("/")
        key = entry.sha256, json.dumps(dict(entry.net), sort_keys=True)
        if key not in known:
            net = load_net(place(folder, prefix + file), entry.net)
            if device.type == "cpu":  # in half precision, on a GPU, folded kernels might leave its range
                fold_batch_norms(net)
            known[key] = on_device(net, device)
            if device.type == "cpu":
                pack_convolutions(known[key])
        nets[kind].setdefault(stage, []).append(known[key])
    wanted = {"locate": {stage.name for stage in task.locators}, "grade": {group.name for group in task.graders}}
    for kind, stages in wanted.items():
        if stages != set(nets[kind]):
            raise UserError(f"{folder}: {kind} nets are {sorted(nets[kind])}, {task.name!r} needs {sorted(stages)}")
    return Bundle(
        task=task,
        manifest=manifest,
        locators={stage: tuple(found) for stage, found in nets["locate"].items()},
        graders={stage: tuple(found) for stage, found in nets["grade"].items()},
        device=device,
        check_tensors=load_arrays(place(folder, prefix + manifest.checks["file"])) if manifest.checks else {},
    )


KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "heatmap": HeatmapLocator,
    "faster_rcnn": FasterRcnnLocator,
    "unet": UnetLocator,
    "planned_unet": PlannedUnet,
    "grader": GraderNet,
    "siamese": SiameseNet,
}

EARLIER_NAMES = {"views": "crops", "findings": "head_outputs"}  # of arguments, as shipped manifests have them


def build_net(config: Mapping[str, Any]) -> nn.Module:
    """The net of a config such as ``net.config``: {"kind": one of KINDS, ...the arguments of its class}.

    Its weights are random; nothing is downloaded. Raises UserError for an unknown kind or an argument that the kind
    does not have.
    """
    arguments = {EARLIER_NAMES.get(name, name): value for name, value in config.items()}
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"net of kind {kind!r}; expected one of {sorted(KINDS)}")
    taken = set(inspect.signature(KINDS[kind]).parameters)
    if odd := set(arguments) - taken:
        raise UserError(f"a {kind!r} net has no argument {sorted(odd)}; it takes {sorted(taken)}")
    return KINDS[kind](**arguments)

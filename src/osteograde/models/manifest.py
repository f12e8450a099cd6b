"""manifest.json: what a weights folder says of itself, as a value. Reading it needs no torch.

``read_manifest`` checks every field it knows and raises a UserError that names the file, the key, what was found and
what was expected. Keys that this version does not know are kept in ``Manifest.extra`` and written again, except those
of ``DROPPED``, which older versions wrote and nobody read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from osteograde.errors import UserError
from osteograde.imaging import files
from osteograde.tasks.spec import Pixels

FORMAT = 1
MANIFEST = "manifest.json"
ENSEMBLE = "ensemble.json"  # in place of a manifest: several weights folders that answer together
DROPPED = ("canonical_side",)
CHECK_NUMBERS = ("rest", "sure", "unusual")  # of ``pipeline.image_checks.ImageChecks``
USE = "research, not diagnosis"

T = TypeVar("T")


@dataclass(frozen=True)
class NetFile:
    """One file of weights. ``net``: the config that ``bundle.build_net`` builds its net from."""

    sha256: str
    bytes: int
    net: Mapping[str, Any]


@dataclass(frozen=True)
class TrainedFolds:
    """The table of folds, and which of them were trained; () where the manifest does not say."""

    file: str = "folds.csv"
    sha256: str = ""
    trained: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Out-of-fold scores as ``learning.train`` computed them, plain JSON data; empty where there are none."""

    locate: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # locator -> error in mm, share found, ...
    grade: Mapping[str, Any] = field(default_factory=dict)  # studies, model, prior, interval_95
    findings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # finding -> auc, average precision, ...


@dataclass(frozen=True)
class Manifest:
    """Everything needed to use trained nets and to know where they came from.

    task: name of the task. files: name inside the folder ("locate/STAGE/fold0.safetensors") -> the net in it. pixels:
    stage -> side, or (height, width), of what its nets read. test_views: views that test-time augmentation averages.
    prior: target -> probability of each class in the training data. recipe: ``Recipe.plain()`` of the training, only
    ever compared or shown. calibration: grader -> ``Calibration.plain()``. versions: package -> version it was trained
    with. crops: grader -> names of those of its crops that its nets read; folders of older versions do not say it, and
    ``bundle.as_read`` knows what they read. data: source and licence of the training data. domain: what the weights
    know of images, where they know one kind alone (``pipeline.domain.Domain.plain()``). checks: of the image itself,
    where the weights have them: file, sha256 and bytes of their tensors, grader whose crops and encoder they use, and
    the numbers of ``pipeline.image_checks``. definition: of a task that is made of data, what it is made of
    (``Task.definition``).
    """

    task: str
    files: Mapping[str, NetFile]
    pixels: Mapping[str, Pixels]
    test_views: int
    prior: Mapping[str, tuple[float, ...]]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    folds: TrainedFolds | None = None
    scores: Scores = Scores()
    calibration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    precision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    domain: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    crops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    definition: Mapping[str, Any] = field(default_factory=dict)
    use: str = USE
    extra: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The manifest as JSON data, in the order of writing."""
        own = {
            "format": FORMAT,
            "task": self.task,
            "definition": self.definition or None,
            "recipe": self.recipe,
            "pixels": self.pixels,
            "crops": self.crops or None,
            "test_views": self.test_views,
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "folds": asdict(self.folds) if self.folds else None,
            "scores": {name: part for name, part in asdict(self.scores).items() if part},
            "calibration": self.calibration,
            "prior": self.prior,
            "precision": self.precision,
            "versions": self.versions,
            "data": self.data,
            "domain": self.domain or None,
            "checks": self.checks or None,
            "use": self.use,
            **self.extra,
        }
        return {key: value for key, value in own.items() if value is not None}

    @property
    def hashes(self) -> dict[str, str]:
        """Name inside the folder -> sha256 of every file that inference reads."""
        return {name: entry.sha256 for name, entry in self.files.items()} | (
            {self.checks["file"]: self.checks["sha256"]} if self.checks else {}
        )

    @property
    def locators_key(self) -> str:
        """The same for weights whose locators find the same landmarks: the hashes of their files, and what they
        read."""
        files = {name: entry.sha256 for name, entry in self.files.items() if name.startswith("locate/")}
        stages = sorted({name.split("/")[1] for name in files})
        return json.dumps([files, {stage: self.pixels[stage] for stage in stages}], sort_keys=True)


def flat(name: str) -> str:
    """The name of a bundle's file where there are no folders: in a data set or a model on Kaggle.

    >>> flat("grade/spinal/fold0.safetensors")
    'grade__spinal__fold0.safetensors'
    """
    return name.replace("/", "__")


def place(folder: Path, name: str) -> Path:
    """The path of a file of a bundle, which lies in its folders or, as on Kaggle, flat beside the manifest."""
    path = Path(folder) / name
    beside = Path(folder) / flat(name)
    return beside if beside.is_file() and not path.is_file() else path


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a weights folder in one step."""
    files.atomic_write(Path(folder) / MANIFEST, json.dumps(manifest.plain(), indent=1) + "\n")


def read_manifest(folder: Path, prefix: str = "") -> Manifest:
    """The manifest of a weights folder. UserError where it is absent, no JSON, of another format or malformed.

    prefix: of the names of all files of these weights, where several weights lie in one folder.
    """
    path = place(folder, prefix + MANIFEST)
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}; a weights folder is what train_folds.py --out wrote")
    facts = _json(path)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{path}: format is not {FORMAT}; this version of osteograde cannot read it")
    return parse_manifest(facts, path)


def _json(path: Path) -> Any:
    """What a JSON file holds. UserError where it holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again") from error


@dataclass(frozen=True)
class EnsembleMember:
    """A member as ensemble.json names it. folder: as seen from the folder of ensemble.json. worth: what it adds to the
    score out-of-fold; files of older versions do not say it, and their members are worth the same."""

    name: str
    folder: str
    manifest_sha256: str
    worth: float = 1.0


@dataclass(frozen=True)
class EnsembleFile:
    """What ensemble.json says that is needed to use it: the task, the voting rule, and who votes."""

    task: str
    rule: str
    members: tuple[EnsembleMember, ...]


def is_plain(folder: Path) -> bool:
    """Whether a folder is to be read as a plain weights folder: it has a manifest, or no ensemble.json either."""
    return place(folder, MANIFEST).is_file() or not (Path(folder) / ENSEMBLE).is_file()


def read_ensemble(folder: Path) -> EnsembleFile:
    """The ensemble.json of a folder. UserError where it is absent, no JSON or malformed."""
    path = Path(folder) / ENSEMBLE
    if not path.is_file():
        raise UserError(f"{folder}: no {ENSEMBLE}; it is what osteograde ensemble writes")
    top = _Value(path, "", _json(path))
    members = tuple(
        EnsembleMember(
            one["name"].text(), one["folder"].text(), one["manifest_sha256"].text(), one.get("worth", 1.0).number()
        )
        for one in top["members"].items()
    )
    top["members"]._expect(bool(members), "at least one member")
    for member in members:
        top["members"]._expect(Path(member.name).name == member.name, "names of folders, without a path")
    return EnsembleFile(top["task"].text(), top["rule"].text(), members)


def parse_manifest(facts: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest of JSON data that lay at ``path``. UserError names the first key that is missing or malformed."""
    top = _Value(path, "", facts)
    known = {*Manifest.__dataclass_fields__, "format", *DROPPED} - {"extra"}
    folds, scores = top.get("folds"), top.get("scores", {})
    return Manifest(
        task=top["task"].text(),
        files=top["files"].mapping(_net_file),
        pixels=top["pixels"].mapping(_pixels),
        test_views=top["test_views"].whole(least=1),
        prior=top["prior"].mapping(lambda value: tuple(one.number() for one in value.items())),
        recipe=top.get("recipe", {}).mapping(_anything),
        folds=None if folds.value is None else _trained_folds(folds),
        scores=Scores(
            locate=scores.get("locate", {}).mapping(_object),
            grade=scores.get("grade", {}).mapping(_anything),
            findings=scores.get("findings", {}).mapping(_object),
        ),
        calibration=top.get("calibration", {}).mapping(_object),
        precision=top.get("precision", "").text(),
        versions=top.get("versions", {}).mapping(_Value.text),
        data=top.get("data", {}).mapping(_Value.text),
        domain=top.get("domain", {}).mapping(_anything),
        checks=_image_checks(top.get("checks", {})),
        crops=top.get("crops", {}).mapping(lambda value: tuple(one.text() for one in value.items())),
        definition=top.get("definition", {}).mapping(_anything),
        use=top.get("use", USE).text(),
        extra={key: value for key, value in facts.items() if key not in known},
    )


@dataclass(frozen=True)
class _Value:
    """A value of a JSON file and the key it stands under, so that a message can name both."""

    path: Path
    key: str
    value: Any

    def __getitem__(self, name: str) -> _Value:
        """The value under a key that must be there."""
        own = self.mapping(_anything)
        if name not in own:
            raise UserError(
                f"{self.path}: key {self._under(name)!r} is missing; "
                "the manifest was changed or cut short, fetch it again"
            )
        return self.get(name)

    def get(self, name: str, default: Any = None) -> _Value:
        """The value under a key that may be absent."""
        return _Value(self.path, self._under(name), self.mapping(_anything).get(name, default))

    def _under(self, name: str) -> str:
        return f"{self.key}/{name}" if self.key else name

    def _expect(self, right: bool, expected: str) -> None:
        if not right:
            got = repr(self.value)
            raise UserError(
                f"{self.path}: key {self.key!r} is {got if len(got) <= 60 else got[:57] + '...'}; expected {expected}; "
                "the manifest was changed or cut short, fetch it again"
            )

    def text(self) -> str:
        self._expect(isinstance(self.value, str), "text")
        return self.value

    def whole(self, least: int = 0) -> int:
        right = isinstance(self.value, int) and not isinstance(self.value, bool) and self.value >= least
        self._expect(right, f"a whole number from {least}")
        return self.value

    def number(self) -> float:
        right = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        self._expect(right and abs(self.value) < float("inf"), "a finite number")
        return float(self.value)

    def items(self) -> Iterator[_Value]:
        self._expect(isinstance(self.value, (list, tuple)), "a list")
        for i, one in enumerate(self.value):
            yield _Value(self.path, f"{self.key}/{i}", one)

    def mapping(self, read: Callable[[_Value], T]) -> dict[str, T]:
        """An object whose every value is read by ``read``."""
        self._expect(isinstance(self.value, Mapping), "an object")
        return {name: read(_Value(self.path, self._under(name), one)) for name, one in self.value.items()}


def _anything(value: _Value) -> Any:
    return value.value


def _object(value: _Value) -> dict[str, Any]:
    return value.mapping(_anything)


def _image_checks(value: _Value) -> dict[str, Any]:
    """The entry with every field that is used; {} where there is none."""
    if not value.mapping(_anything):
        return {}
    texts = {name: value[name].text() for name in ("file", "sha256", "grader")}
    return texts | {"bytes": value["bytes"].whole()} | {name: value[name].number() for name in CHECK_NUMBERS}


def _net_file(value: _Value) -> NetFile:
    return NetFile(value["sha256"].text(), value["bytes"].whole(), value["net"].mapping(_anything))


def _trained_folds(value: _Value) -> TrainedFolds:
    trained = tuple(one.whole() for one in value.get("trained", ()).items())
    return TrainedFolds(value.get("file", TrainedFolds.file).text(), value.get("sha256", "").text(), trained)


def _pixels(value: _Value) -> Pixels:
    if isinstance(value.value, int):
        return value.whole(least=1)
    height_width = tuple(one.whole(least=1) for one in value.items())
    value._expect(len(height_width) == 2, "a side, or height and width")
    return height_width

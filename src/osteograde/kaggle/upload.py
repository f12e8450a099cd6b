"""Upload weights to a data set or model: create it or add a version, wait until it is ready, compare the files.

Only the account sees them, unless they are published, which needs a card and a licence.

Files lie flat there (locate/canal/fold0.safetensors is locate__canal__fold0.safetensors): the client would drop
folders, or pack them into archives which the service may or may not unpack. ``models.manifest.place`` finds
both forms.
"""

from __future__ import annotations

import difflib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import client, credentials, record
from osteograde.kaggle.client import Refused, RetryLater, logger
from osteograde.kaggle.metadata import Source, parse_source
from osteograde.learning import runs
from osteograde.models.manifest import flat, sha256
from osteograde.pipeline import ensemble
from osteograde.tasks import TASKS

PATIENCE_S = 3600.0
POLL_S = 10.0
CARD = "README.md"
SUBTITLE = "Trained nets of osteograde: find the joint, crop it, grade it"  # 20 to 80 characters
# What the service calls licences of data sets (documentation of the client 2.2.5); those of models are free text.
LICENCES = (
    "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "GPL-2.0", "ODbL-1.0", "DbCL-1.0",
    "PDDL", "copyright-authors", "other", "unknown",
)  # fmt: skip
FAILED = ("failed", "deleted")


def upload(
    weights: Path,
    to: str,
    *,
    public: bool = False,
    licence: str = "",
    poll_s: float = POLL_S,
    patience_s: float = PATIENCE_S,
    records: Path = record.FOLDER,
) -> Source:
    """Upload a weights folder and return its source with the version that now holds it.

    public: everybody may use it: the card becomes its description, and a licence must be named. licence: as the service
    calls it. poll_s: between two questions whether it is ready. patience_s: how long to ask. Raises UserError for
    damaged weights, a bad name or a secret, before anything is sent; Refused if the service refuses, or holds other
    files than were sent; RetryLater if it is busy or not ready in time.
    """
    checked = ensemble.verify(weights)
    target = parse_source(to)
    if target.version:
        raise UserError(f"{to}: an upload makes the version itself; leave {target.version} out")
    published = Published(weights / CARD, licence) if public else None
    if published is not None:
        published.check(target)
    elif licence:
        raise UserError(f"--licence {licence} is of weights that everybody may use: add --public")
    files = to_send(checked)
    credentials.refuse_secrets(files.values())
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        stage(Path(folder), files, target, checked.task, published)
        before = version_of(target)
        after = f" after version {before}" if before else ""
        logger.info("%d files, %.1f MiB -> %s%s", len(files), total(files) / 2**20, target.ref, after)
        notes = f"manifest {sha256(checked.path)[:12]}"
        if before and public:
            logger.warning("%s is there already: who may see it stays as it is; its page changes that", target.ref)
        (_send_model if target.is_model else _send_set)(target, Path(folder), before, notes, public)
    version = wait(target, before, poll_s=poll_s, patience_s=patience_s)
    compare(target.at(version), {name: path.stat().st_size for name, path in files.items()})
    logger.info("%s version %d: all %d files there, names and sizes as sent", target.ref, version, len(files))
    facts = {"source": str(target.at(version)), "manifest": sha256(checked.path)}
    record.keep_record(checked.task, "weights", facts | known_of(checked), records)
    return target.at(version)


def known_of(weights: ensemble.Weights) -> dict[str, Any]:
    """What the ledger of submissions keeps of weights: recipe, its changes, score out-of-fold with its interval.

    changes: name of the choice -> (before, now), as --set made them; of an ensemble with the member's name before it.
    """
    row = runs.describe(weights.folder, TASKS)
    alone = len(weights.members) == 1
    changes = {
        key if alone else f"{member.name}: {key}": list(pair)
        for member in weights.members
        for key, pair in member.manifest.recipe.get("changes", {}).items()
    }
    measured = {"score": row.score, "interval": list(row.interval), "studies": row.studies, "better": row.better}
    return {"name": weights.folder.resolve().name, "recipe": row.recipe, "changes": changes, **measured}


@dataclass(frozen=True)
class Published:
    """What weights that everybody may use need: a model card and a licence, as the service calls it."""

    card: Path
    licence: str

    def check(self, target: Source) -> None:
        """UserError where the card is missing, or the licence is none that the service knows."""
        if not self.card.is_file():
            raise UserError(f"{self.card}: missing; weights for others need a card that says what they are for")
        if not self.licence:
            raise UserError("--public needs --licence NAME: the terms under which others may use the weights")
        if not target.is_model and self.licence not in LICENCES:
            near = difflib.get_close_matches(self.licence, LICENCES, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--licence {self.licence!r} is none of {', '.join(LICENCES)}{hint}")


def to_send(weights: ensemble.Weights) -> dict[str, Path]:
    """Name there -> file here: the manifest, what it names, the model card; never the caches of training.

    Of an ensemble: ensemble.json, and those files of every member, with its name before theirs.
    """
    files = ensemble.files(weights)
    cards = {weights.folder: CARD} if len(weights.members) > 1 else {}
    for member in weights.members:
        cards.setdefault(member.folder, f"{member.name}/{CARD}" if len(weights.members) > 1 else CARD)
    files |= {name: folder / CARD for folder, name in cards.items() if (folder / CARD).is_file()}
    return {flat(name): path for name, path in files.items()}


def total(files: Mapping[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def stage(
    folder: Path, files: Mapping[str, Path], target: Source, task: str, published: Published | None = None
) -> None:
    """Links to the files, and the metadata that the client reads."""
    for name, path in files.items():
        (folder / name).symlink_to(path.resolve())
    title = f"{target.slug.replace('-', ' ').capitalize()}"
    text = f"Weights of osteograde for the task {task}. Licence and source of the training data: see README.md."
    if published is not None:
        text = published.card.read_text(encoding="utf-8")
    if target.is_model:
        private = published is None
        model = {"ownerSlug": target.owner, "title": title, "slug": target.slug, "isPrivate": private}
        variation = {
            "ownerSlug": target.owner,
            "modelSlug": target.slug,
            "instanceSlug": target.variation,
            "framework": target.framework,
            "overview": text,
            "licenseName": published.licence if published else "Other",
        }
        (folder / "model-metadata.json").write_text(json.dumps({**model, "description": text}), encoding="utf-8")
        (folder / "model-instance-metadata.json").write_text(json.dumps(variation), encoding="utf-8")
    else:
        facts: dict[str, object] = {"title": title, "id": target.ref, "licenses": [{"name": "other"}]}
        if published is not None:
            facts |= {"licenses": [{"name": published.licence}], "subtitle": SUBTITLE, "description": text}
        (folder / "dataset-metadata.json").write_text(json.dumps(facts), encoding="utf-8")


def version_of(target: Source) -> int:
    """The latest version; 0 if there is none yet. Raises Refused or RetryLater if the service does not tell."""
    if target.is_model:
        reply = client.ask("models", "variations", "versions", "list", target.ref, "--format", "json")
        if client.is_absent(reply):
            return 0
        if reply.code != 0:
            raise client.refusal(reply)
        return max((int(row["version"]) for row in json.loads(reply.out[reply.out.index("[") :])), default=0)
    reply = client.ask("datasets", "status", target.ref, "--format", "json")
    if client.is_absent(reply):
        return 0
    if reply.code != 0:
        raise client.refusal(reply)
    return int(json.loads(reply.out)["current_version_number"])


def wait(target: Source, before: int, *, poll_s: float, patience_s: float) -> int:
    """The version after ``before``, once it is ready. Raises RetryLater after ``patience_s``, Refused if it failed."""
    begun, told = time.monotonic(), ""
    while True:
        status, version = _state(target)
        if status != told:
            logger.info("%s: %s, version %d", target.ref, status, version)
            told = status
        if status == "ready" and version > before:
            return version
        if status in FAILED:
            raise Refused(f"{target.ref}: the service says {status}; look at its page, then upload again")
        if time.monotonic() - begun > patience_s:
            reason = "still the old version" if version <= before else f"still {status}"
            raise RetryLater(f"{target.ref}: {reason} after {patience_s:.0f} s; retry later, do not push a kernel yet")
        time.sleep(poll_s)


def compare(target: Source, sent: Mapping[str, int]) -> None:
    """Raises Refused, naming files, if the version holds other files or sizes than were sent."""
    words = ("models", "variations", "versions", "files") if target.is_model else ("datasets", "files")
    there = {row["name"]: int(row["size"]) for row in client.ask_json(*words, str(target), "--page-size", "200")}
    wrong = [f"{name} missing" for name in sent if name not in there]
    wrong += [
        f"{name} has {there[name]} bytes, {size} sent" for name, size in sent.items() if there.get(name, size) != size
    ]
    wrong += [f"{name} not sent" for name in there if name not in sent]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Refused(f"{target}: differs from what was sent: {'; '.join(wrong[:5])}{more}; upload again")


def _state(target: Source) -> tuple[str, int]:
    if target.is_model:  # a model's version is listed once it is there
        version = version_of(target)
        return "ready" if version else "absent", version
    reply = client.ask("datasets", "status", target.ref, "--format", "json")
    if client.is_absent(reply):
        return "absent", 0
    if reply.code != 0:
        raise client.refusal(reply)
    facts = json.loads(reply.out)
    return str(facts["status"]).lower(), int(facts["current_version_number"])


def _send_set(target: Source, folder: Path, before: int, notes: str, public: bool) -> None:
    if before:
        reply = client.ask("datasets", "version", "-p", str(folder), "-m", notes, "--keep-tabular")
        client.expect(reply, r"Dataset version is being created")
    else:
        reply = client.ask("datasets", "create", "-p", str(folder), "--keep-tabular", *(["--public"] if public else []))
        client.expect(reply, rf"Your {'public' if public else 'private'} Dataset is being created")


def _send_model(target: Source, folder: Path, before: int, notes: str, public: bool) -> None:
    words = ("models", "variations")
    if before:
        reply = client.ask(*words, "versions", "create", target.ref, "-p", str(folder), "-n", notes)
        client.expect(reply, r"Your model instance version was created")
        return
    if client.is_absent(client.ask("models", "get", target.model)):
        client.expect(client.ask("models", "create", "-p", str(folder)), r"Your model was created")
    client.expect(client.ask(*words, "create", "-p", str(folder)), r"Your model instance was created")

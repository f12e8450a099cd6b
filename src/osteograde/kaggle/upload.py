"""Weights to a private data set or model: a first time or a new version, waited for, and compared file by file.

Files lie flat there (locate/canal/fold0.safetensors is locate__canal__fold0.safetensors): folders would be dropped by
the client or packed into archives whose unpacking nobody promises. The bundle reads both.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from osteograde.errors import UserError
from osteograde.kaggle import client
from osteograde.kaggle.client import Refused, RetryLater, Say
from osteograde.kaggle.metadata import Source, parse_source
from osteograde.models import bundle
from osteograde.models.manifest import Manifest

PATIENCE_S = 3600.0
POLL_S = 10.0
CARD = "README.md"
FAILED = ("failed", "deleted")


def upload(
    weights: Path,
    to: str,
    *,
    say: Say,
    poll_s: float = POLL_S,
    patience_s: float = PATIENCE_S,
    place: Path = client.PLACE,
) -> Source:
    """Upload a weights folder and return its source with the version that now holds it.

    Raises ValueError before anything is sent for damaged weights, a bad name or a secret; Refused where the service
    says no or holds other files than were sent; RetryLater where it is not ready in time.
    """
    manifest = bundle.verify(weights)
    target = parse_source(to)
    if target.version:
        raise UserError(f"{to}: an upload makes the version itself; leave {target.version} out")
    files = to_send(weights, manifest)
    client.refuse_secrets(files.values())
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        stage(Path(folder), files, target, manifest.task)
        before = version_of(target)
        say(
            f"{len(files)} files, {total(files) / 2**20:.1f} MiB -> {target.ref}"
            + (f" after version {before}" * bool(before))
        )
        notes = f"manifest {bundle.sha256(weights / bundle.MANIFEST)[:12]}"
        (_send_model if target.is_model else _send_set)(target, Path(folder), before, notes)
    version = wait(target, before, say=say, poll_s=poll_s, patience_s=patience_s)
    compare(target.at(version), {name: path.stat().st_size for name, path in files.items()})
    say(f"{target.ref} version {version}: all {len(files)} files there, names and sizes as sent")
    facts = {"source": str(target.at(version)), "manifest": bundle.sha256(weights / bundle.MANIFEST)}
    client.keep_record(manifest.task, "weights", facts, place)
    return target.at(version)


def to_send(weights: Path, manifest: Manifest) -> dict[str, Path]:
    """Name there -> file here: the manifest, what it names, the model card; never the caches of training."""
    names = [bundle.MANIFEST, *manifest.files, *([CARD] if (weights / CARD).is_file() else [])]
    return {bundle.flat(name): bundle.place(weights, name) for name in names}


def total(files: Mapping[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def stage(folder: Path, files: Mapping[str, Path], target: Source, task: str) -> None:
    """Links to the files and the metadata that the client reads."""
    for name, path in files.items():
        (folder / name).symlink_to(path.resolve())
    title = f"{target.slug.replace('-', ' ').capitalize()}"
    text = f"Weights of osteograde for the task {task}. Licence and source of the training data: see README.md."
    if target.is_model:
        model = {"ownerSlug": target.owner, "title": title, "slug": target.slug, "isPrivate": True, "description": text}
        variation = {
            "ownerSlug": target.owner,
            "modelSlug": target.slug,
            "instanceSlug": target.variation,
            "framework": target.framework,
            "overview": text,
            "licenseName": "Other",
        }
        (folder / "model-metadata.json").write_text(json.dumps(model), encoding="utf-8")
        (folder / "model-instance-metadata.json").write_text(json.dumps(variation), encoding="utf-8")
    else:
        facts = {"title": title, "id": target.ref, "licenses": [{"name": "other"}]}
        (folder / "dataset-metadata.json").write_text(json.dumps(facts), encoding="utf-8")


def version_of(target: Source) -> int:
    """The latest version, 0 where there is none yet."""
    if target.is_model:
        said = client.ask("models", "variations", "versions", "list", target.ref, "--format", "json")
        if client.absent(said):
            return 0
        if said.code != 0:
            raise client.refusal(said)
        return max((int(row["version"]) for row in json.loads(said.out[said.out.index("[") :])), default=0)
    said = client.ask("datasets", "status", target.ref, "--format", "json")
    if client.absent(said):
        return 0
    if said.code != 0:
        raise client.refusal(said)
    return int(json.loads(said.out)["current_version_number"])


def wait(target: Source, before: int, *, say: Say, poll_s: float, patience_s: float) -> int:
    """The version after ``before`` once it is ready. RetryLater after ``patience_s``, Refused where it failed."""
    begun, told = time.monotonic(), ""
    while True:
        status, version = _state(target)
        if status != told:
            say(f"{target.ref}: {status}, version {version}")
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
    """Refused, naming files, where the version holds other files or sizes than were sent."""
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
    said = client.ask("datasets", "status", target.ref, "--format", "json")
    if client.absent(said):
        return "absent", 0
    if said.code != 0:
        raise client.refusal(said)
    facts = json.loads(said.out)
    return str(facts["status"]).lower(), int(facts["current_version_number"])


def _send_set(target: Source, folder: Path, before: int, notes: str) -> None:
    if before:
        said = client.ask("datasets", "version", "-p", str(folder), "-m", notes, "--keep-tabular")
        client.expect(said, r"Dataset version is being created")
    else:
        said = client.ask("datasets", "create", "-p", str(folder), "--keep-tabular")
        client.expect(said, r"Your private Dataset is being created")


def _send_model(target: Source, folder: Path, before: int, notes: str) -> None:
    words = ("models", "variations")
    if before:
        said = client.ask(*words, "versions", "create", target.ref, "-p", str(folder), "-n", notes)
        client.expect(said, r"Your model instance version was created")
        return
    if client.absent(client.ask("models", "get", target.model)):
        client.expect(client.ask("models", "create", "-p", str(folder)), r"Your model was created")
    client.expect(client.ask(*words, "create", "-p", str(folder)), r"Your model instance was created")

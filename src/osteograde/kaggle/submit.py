"""The last step, told before it is done and read back after: the only one that costs a submission."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import client, push
from osteograde.kaggle.client import Refused, Say
from osteograde.models import bundle
from osteograde.tasks import TASKS


def submit(task: str, *, yes: bool, say: Say, place: Path = client.PLACE) -> bool:
    """Submit the fetched version; True where it was sent and is listed, False where ``yes`` was not given.

    Refused where the version fetched is not the one pushed last or did not end well, where it was submitted before, or
    where the service accepts it and then does not list it.
    """
    slug = TASKS[task].slug
    if not slug:
        raise UserError(f"{task} has no competition to submit to; its result is the kernel's output")
    kernel = client.need_record(task, "kernel", f"push {task}", place)
    out = client.need_record(task, "output", f"output {task}", place)
    if (kernel["ref"], kernel["version"]) != (out["ref"], out["version"]):
        raise UserError(
            f"version {out['version']} was fetched, version {kernel['version']} pushed: first kaggle output {task}"
        )
    if bundle.sha256(Path(out["file"])) != out["sha256"]:
        raise UserError(f"{out['file']}: changed since it was fetched; first kaggle output {task}")
    message = f"osteograde {task} v{out['version']} {out['sha256'][:12]}"
    version = ("-k", out["ref"], "-v", str(out["version"]))
    words = ("competitions", "submit", slug, "-f", push.SUBMISSION, *version, "-m", message)
    say(f"submits {out['ref']} version {out['version']} to {slug}: the service runs it on the hidden studies")
    say(f"  {shlex.join(('kaggle', *words))}")
    if not yes:
        say("nothing was sent; --yes sends it")
        return False
    _send(slug, words, message, out, say)
    client.keep_record(task, "submission", {"message": message, "version": out["version"]}, place)
    return True


def _send(slug: str, words: tuple[str, ...], message: str, out: dict[str, Any], say: Say) -> None:
    status, _ = push.state(out["ref"])
    if status != "COMPLETE":
        raise Refused(f"{out['ref']}: its latest version is {status}; only a complete one can be submitted")
    if before := _listed(slug, message):
        raise Refused(f"{slug}: already submitted as {before['ref']} ({before['status']}); push a new version first")
    said = client.ask(*words)
    if said.code != 0 or client.BAD.search(said.out):
        raise client.refusal(said)
    made = _listed(slug, message)  # on success nothing need be said: the list is what counts
    if made is None:
        raise Refused(
            f"{slug}: the client said {said.last!r}, but no submission {message!r} is listed; look at its page"
        )
    say(f"submission {made['ref']}: {_plain(made['status'])}, {message}")


def _listed(slug: str, message: str) -> dict[str, Any] | None:
    rows = client.ask_json("competitions", "submissions", slug, "--page-size", "200")
    return next((row for row in rows if row["description"] == message), None)


def _plain(status: str) -> str:
    return str(status).rpartition(".")[2].lower()

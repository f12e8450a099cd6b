"""Submit a kernel version to its competition: show the command, send it on request, and check that it is listed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import client, push, record
from osteograde.kaggle.client import Refused, logger
from osteograde.models import bundle
from osteograde.tasks import TASKS


def submit(task: str, *, yes: bool, records: Path = record.FOLDER) -> bool:
    """Submit the version that was fetched last. True if it was sent and is listed, False if ``yes`` is False.

    Raises UserError for a task without a competition and if another version was pushed since; Refused if the version
    did not end well or was submitted before, or if the service accepts the submission and then does not list it.
    """
    slug = TASKS[task].slug
    if not slug:
        raise UserError(f"{task} has no competition to submit to; its result is the kernel's output")
    kernel = record.need_record(task, "kernel", f"push {task}", records)
    out = record.need_record(task, "output", f"output {task}", records)
    if (kernel["ref"], kernel["version"]) != (out["ref"], out["version"]):
        raise UserError(
            f"version {out['version']} was fetched, version {kernel['version']} pushed: first kaggle output {task}"
        )
    if bundle.sha256(Path(out["file"])) != out["sha256"]:
        raise UserError(f"{out['file']}: changed since it was fetched; first kaggle output {task}")
    message = f"osteograde {task} v{out['version']} {out['sha256'][:12]}"
    version = ("-k", out["ref"], "-v", str(out["version"]))
    words = ("competitions", "submit", slug, "-f", push.SUBMISSION, *version, "-m", message)
    told = f"{out['ref']} version {out['version']} to {slug}"
    logger.info("submits %s: the service runs it on the hidden studies", told)
    logger.info("  %s", shlex.join(("kaggle", *words)))
    if not yes:
        logger.info("nothing was sent; --yes sends it")
        return False
    _send(slug, words, message, out)
    record.keep_record(task, "submission", {"message": message, "version": out["version"]}, records)
    return True


def _send(slug: str, words: tuple[str, ...], message: str, out: dict[str, Any]) -> None:
    ref = push.version_ref(out)
    status, _ = push.state(ref)
    if status != "COMPLETE":
        raise Refused(f"{ref}: its status is {status}; only a complete version can be submitted")
    if before := _listed(slug, message):
        raise Refused(f"{slug}: already submitted as {before['ref']} ({before['status']}); push a new version first")
    reply = client.ask(*words)
    if reply.code != 0 or client.FAILURE.search(reply.out):
        raise client.refusal(reply)
    made = _listed(slug, message)  # the client may print nothing on success: what counts is the list
    if made is None:
        raise Refused(
            f"{slug}: the client said {reply.sentence!r}, but no submission {message!r} is listed; look at its page"
        )
    logger.info("submission %s: %s, %s", made["ref"], _plain(made["status"]), message)


def _listed(slug: str, message: str) -> dict[str, Any] | None:
    rows = client.ask_json("competitions", "submissions", slug, "--page-size", "200")
    return next((row for row in rows if row["description"] == message), None)


def _plain(status: str) -> str:
    return str(status).rpartition(".")[2].lower()

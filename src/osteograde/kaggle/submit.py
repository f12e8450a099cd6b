"""Submit a kernel version to its competition: show the command, send it on request, and check that it is listed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import client, push, record
from osteograde.kaggle.client import Refused, RetryLater, logger
from osteograde.models import bundle
from osteograde.tasks import TASKS

POLL_S = 60.0


@dataclass(frozen=True)
class Score:
    """What a submission came to. status: complete or error; public, private: None if the service does not tell."""

    reference: int
    status: str
    public: float | None
    private: float | None


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
    reference = _send(slug, words, message, out)
    facts = {"message": message, "version": out["version"], "reference": reference}
    record.keep_record(task, "submission", facts, records)
    weights = kernel.get("weights", {})
    made_of = {"image": kernel.get("image"), "weights": weights, "commit": _commit(), "sha256": out["sha256"]}
    record.append_to_ledger(
        task, {"event": "submitted", "time": _now(), **facts, "kernel": out["ref"], **made_of}, records
    )
    return True


def score(task: str, *, records: Path = record.FOLDER) -> Score:
    """What the last submission scored. It is logged, and added to the ledger the first time.

    Raises UserError if nothing was submitted; RetryLater while it is pending; Refused, with the service's error text,
    if the submission failed or is no longer listed.
    """
    sent = record.need_record(task, "submission", f"submit {task} --yes", records)
    row = _listed(TASKS[task].slug, sent["message"])
    if row is None:
        raise Refused(f"{TASKS[task].slug}: no submission {sent['message']!r} is listed; look at its page")
    found = Score(int(row["ref"]), _plain(row["status"]), _number(row["publicScore"]), _number(row["privateScore"]))
    if found.status == "pending":
        raise RetryLater(f"submission {found.reference}: still pending; retry later")
    text = "" if found.status == "complete" else _error(found.reference)
    known = [line["reference"] for line in record.read_ledger(task, records) if line["event"] == "scored"]
    if found.reference not in known:
        facts = {"event": "scored", "time": _now(), "version": sent["version"], "error": text, **asdict(found)}
        record.append_to_ledger(task, facts, records)
    if found.status != "complete":
        raise Refused(f"submission {found.reference}: {found.status}{': ' + text if text else ''}")
    logger.info("submission %d: %s, public %s, private %s", *astuple(found))
    return found


def wait_for_score(task: str, *, poll_s: float = POLL_S, hours: float = 13.0, records: Path = record.FOLDER) -> Score:
    """``score`` once the submission is no longer pending. Raises RetryLater if it still is after ``hours``."""
    begun = time.monotonic()
    while True:
        try:
            return score(task, records=records)
        except RetryLater:
            if time.monotonic() - begun > hours * 3600:
                raise
        time.sleep(poll_s)


def _send(slug: str, words: tuple[str, ...], message: str, out: dict[str, Any]) -> int:
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
    return int(made["ref"])


def _listed(slug: str, message: str) -> dict[str, Any] | None:
    rows = client.ask_json("competitions", "submissions", slug, "--page-size", "200")
    return next((row for row in rows if row["description"] == message), None)


def _error(reference: int) -> str:
    """The error text of a submission; "" if the service tells none."""
    reply = client.ask("competitions", "submission", str(reference))
    told = re.search(r"^Error:\s*(.*(?:\n\s+.*)*)", reply.out, re.MULTILINE)
    return " ".join(told[1].split()) if reply.code == 0 and told else ""


def _number(text: object) -> float | None:
    """A score as a number; None if there is none (yet)."""
    try:
        return float(str(text))
    except ValueError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str:
    """The commit of the checkout; "" outside of one."""
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else ""


def _plain(status: str) -> str:
    return str(status).rpartition(".")[2].lower()

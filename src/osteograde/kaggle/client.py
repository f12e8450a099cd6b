"""The official client as a subprocess: what it said is judged by its words, since it exits 0 on many failures.

kaggle 2.2.4 prints refusals that arrive inside a good reply and returns 0. So a command counts as done only where its
sentence of success was said, no sentence of failure was, and what it did is read back by another command.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from osteograde.kaggle.remote import secrets

Say = Callable[[str], None]
TIMEOUT_S = 3 * 3600.0  # of one command; uploads of weights are the longest
BAD = re.compile(
    r"not valid|unsuccessful|error:|skipping|does not resolve|could not|already in use|authentication required|denied",
    re.IGNORECASE,
)
ABSENT = re.compile(r"not found|404|403|denied|cannot access|forbidden", re.IGNORECASE)
CAPACITY = re.compile(r"session count|too many requests|429|503|temporarily", re.IGNORECASE)
QUOTA = re.compile(r"quota|limit", re.IGNORECASE)


class Refused(ValueError):
    """The service or the client said no; trying again changes nothing."""


class RetryLater(Refused):
    """Refused for want of a free session or a moment's peace: nothing was created, the same command may work later."""


@dataclass(frozen=True)
class Said:
    """What one command printed, free of secrets."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def command(self) -> str:
        return " ".join(("kaggle", *self.words))

    @property
    def last(self) -> str:
        """The line that says most: the first bad one, else the last one on stderr, else the last one."""
        lines = [line.strip() for line in (*self.out.splitlines(), *self.err.splitlines()) if line.strip()]
        bad = [line for line in lines if BAD.search(line)]
        return bad[0] if bad else lines[-1] if lines else "nothing was said"


def ask(*words: str, timeout_s: float = TIMEOUT_S) -> Said:
    """Run ``kaggle words...``. ValueError where the client is not installed or does not end in time."""
    command = [sys.executable, "-m", "kaggle", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise RetryLater(f"kaggle {' '.join(words)}: no end after {timeout_s:.0f} s; retry later") from error
    known = secrets.own()
    said = Said(words, done.returncode, secrets.hide(done.stdout, known), secrets.hide(done.stderr, known))
    if "No module named" in said.err:
        missing = said.err.strip().splitlines()[-1]
        raise ValueError(f"the kaggle client does not start ({missing}); pip install kaggle==2.2.4 six")
    return said


def expect(said: Said, sentence: str) -> re.Match[str]:
    """The match of the sentence of success. Raises RetryLater or Refused where it is missing or a bad line was said."""
    bad = said.code != 0 or BAD.search(said.out)
    found = re.search(sentence, said.out)
    if found is None or bad:
        raise refusal(said)
    return found


def refusal(said: Said) -> Refused:
    """The error that a command's words come to."""
    what = f"{said.command}: {said.last}"
    if CAPACITY.search(said.last):
        return RetryLater(f"{what} - no capacity now and nothing was created: retry later")
    if QUOTA.search(said.last):
        return Refused(f"{what} - a quota is used up: do not retry before it is renewed (kaggle quota tells when)")
    if "not valid" in said.out:
        return Refused(f"{what} - a source is missing or not yours to use; what was made lacks it, make it again")
    return Refused(f"{what} (exit code {said.code})")


def ask_json(*words: str) -> Any:
    """The JSON that a command prints with --format json, all pages as one list; Refused where the command fails."""
    items: list[Any] = []
    token = ""
    while True:
        said = ask(*words, "--format", "json", *(("--page-token", token) if token else ()))
        start = re.search(r"^[\[{]", said.out, re.MULTILINE)
        if said.code != 0:
            raise refusal(said)
        if start is None:
            return items
        try:
            found = json.loads(said.out[start.start() :])
        except json.JSONDecodeError as error:
            raise Refused(f"{said.command}: expected JSON, got {said.last!r}") from error
        if not isinstance(found, list):
            return found
        items += found
        told = re.search(r"Next Page Token = (\S+)", said.out)
        if told is None:
            return items
        token = told[1]


def absent(said: Said) -> bool:
    """Whether a question about something failed because it does not exist (or may not be seen)."""
    return said.code != 0 and bool(ABSENT.search(said.out + said.err))


def account() -> str:
    """The account's name. Refused where the client has no credentials."""
    said = ask("config", "view")
    told = re.search(r"username: (\S+)", said.out)
    if said.code != 0 or told is None or told[1] == "None":
        raise Refused(
            "the kaggle client knows no account: set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or put "
            f"kaggle.json into {os.environ.get('KAGGLE_CONFIG_DIR', '~/.kaggle')} ({said.last})"
        )
    return told[1]


def hours_left() -> str:
    """What the account may still use of GPUs this week, in words."""
    rows: Sequence[dict[str, str]] = ask_json("quota")
    told = [
        f"{row['remaining']} of {row['total']}, renewed {row['refreshAt']}" for row in rows if row["resource"] == "GPU"
    ]
    return told[0] if told else "unknown"

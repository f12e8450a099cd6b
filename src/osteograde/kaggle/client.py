"""Run the official Kaggle client as a subprocess, and tell from what it prints whether a command worked.

The exit code is not enough: kaggle 2.2.4 prints an error that arrives inside a reply with HTTP status 200 and exits 0.
A command counts as done only if it printed its sentence of success and no sentence of failure. What it did is then
read back by another command.

kaggle 2.2.5 adds a hint of its own after most HTTP errors, separated by an empty line. The service's own sentence comes
before that line and says what happened. The hint is the same for every error of one HTTP status, so it is only used if
the sentence says nothing that is known here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import credentials

logger = logging.getLogger("osteograde.kaggle")

TIMEOUT_S = 3 * 3600.0  # of one command; uploads of weights take longest
CLIENT = "kaggle==2.2.5 six"  # six: the client imports it and does not declare it
MAX_SENTENCE = 300  # characters of the service's sentence that are shown
FAILURE = re.compile(
    r"not valid|unsuccessful|error:|skipping|does not resolve|could not|already in use|authentication required|denied",
    re.IGNORECASE,
)


class Refused(UserError):
    """The service or the client refused a command; the same command will be refused again."""


class RetryLater(Refused):
    """The service has no capacity at the moment; the same command may work later."""


class Cause(Enum):
    """Why a command failed."""

    NOT_LOGGED_IN = "not logged in"
    DENIED = "denied"
    MISSING = "missing"
    BUSY = "busy"
    QUOTA = "quota"
    BAD_SOURCE = "bad source"
    OTHER = "other"


def _http(status: str) -> str:
    """A pattern of an HTTP status in a sentence: "503 Server Error", "status 503", "HTTP 503"; never a bare number."""
    return rf"\b{status} (client|server) error|\b(http|status|code)\W{{0,3}}{status}\b"


# What the service's sentence says. The first pattern that matches decides, so their order matters: "quota" comes before
# "try again later" because a quota is not renewed soon.
SENTENCES = (
    (
        Cause.NOT_LOGGED_IN,
        rf"authentication required|unauthenticated|unauthori[sz]ed|invalid credentials|{_http('401')}",
    ),
    (Cause.BUSY, r"session (count|limit)|concurrent|rate.?limit|too many requests|per (second|minute)"),
    (Cause.QUOTA, r"quota|(daily|weekly|monthly) limit|limit .*(reached|exceeded)|(reached|exceeded) .*limit|tomorrow"),
    (Cause.BUSY, rf"unavailable|internal (server )?error|bad gateway|time.?out|timed out|{_http('5[0-9][0-9]')}"),
    (Cause.BUSY, rf"overloaded|temporar|(try|retry)( it)?( again)? later|{_http('429')}"),
    (Cause.BUSY, r"connection (aborted|broken|refused|reset|error)|max retries|name resolution|new connection"),
    (Cause.BAD_SOURCE, r"not valid \w+ sources"),
    (Cause.DENIED, rf"denied|forbidden|cannot access|\brules\b|permission|not allowed|{_http('403')}"),
    (Cause.MISSING, rf"not found|could not find|does not exist|no such|{_http('404')}"),
)
# What the hint of kaggle 2.2.5 says, which is the HTTP status in words.
HINTS = (
    (Cause.BUSY, r"rate.?limit|problem on kaggle's side|try again later"),
    (Cause.DENIED, r"(don't have|no) access|\brules\b"),
    (Cause.MISSING, r"not found"),
)
ADVICE = {
    Cause.NOT_LOGGED_IN: (
        'log in with "kaggle auth login", or save a token of https://www.kaggle.com/settings/api as '
        "~/.kaggle/access_token or in KAGGLE_API_TOKEN"
    ),
    Cause.DENIED: "this account may not do that: check the name and whose it is, or log in again",
    Cause.MISSING: "check the name: nothing is called that, or this account cannot see it",
    Cause.BUSY: "the service has no capacity now: retry later",
    Cause.QUOTA: 'a quota is used up: do not retry before it is renewed ("kaggle quota" tells when)',
    Cause.BAD_SOURCE: "a source is missing or not yours to use; what was made lacks it, make it again",
}


@dataclass(frozen=True)
class Reply:
    """What one command printed; secrets are already hidden.

    words: the command without "kaggle". code: its exit code, which may be 0 although the command failed.
    """

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def command(self) -> str:
        return " ".join(("kaggle", *self.words))

    @property
    def sentence(self) -> str:
        """What the service said, in one line and without the client's hint."""
        told = _paragraphs(self.err)[0] if self.code != 0 and _paragraphs(self.err) else ""
        if not told:
            lines = [line.strip() for line in (*self.out.splitlines(), *self.err.splitlines()) if line.strip()]
            failures = [line for line in lines if FAILURE.search(line)]
            told = failures[0] if failures else lines[-1] if lines else "nothing was said"
        return told if len(told) <= MAX_SENTENCE else f"{told[:MAX_SENTENCE]}..."

    @property
    def hint(self) -> str:
        """What the client added to an HTTP error; "" if it added nothing."""
        return " ".join(_paragraphs(self.err)[1:]) if self.code != 0 else ""

    @property
    def cause(self) -> Cause:
        """Why the command failed, judged by the service's sentence, or by the hint if the sentence is not known."""
        for text, patterns in ((self.sentence, SENTENCES), (self.hint, HINTS)):
            for cause, pattern in patterns:
                if re.search(pattern, text, re.IGNORECASE):
                    return cause
        return Cause.BAD_SOURCE if "not valid" in self.out else Cause.OTHER


def ask(*words: str, timeout_s: float = TIMEOUT_S) -> Reply:
    """Run ``kaggle words...``. Raises Refused if the client is not installed, RetryLater if it does not end in time."""
    command = [sys.executable, "-m", "kaggle", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise RetryLater(f"kaggle {' '.join(words)}: no end after {timeout_s:.0f} s; retry later") from error
    known = credentials.own_secrets()
    out, err = (credentials.hide_secrets(text, known) for text in (done.stdout, done.stderr))
    if "No module named" in err:
        missing = err.strip().splitlines()[-1]
        raise Refused(f"the kaggle client does not start ({missing}); pip install {CLIENT}")
    return Reply(words, done.returncode, out, err)


def expect(reply: Reply, sentence: str) -> re.Match[str]:
    """The match of the sentence of success in stdout. Raises Refused or RetryLater if it is missing, if a sentence of
    failure was printed as well, or if the exit code is not 0."""
    found = re.search(sentence, reply.out)
    if found is None or reply.code != 0 or FAILURE.search(reply.out):
        raise refusal(reply)
    return found


def refusal(reply: Reply) -> Refused:
    """The error to raise for a command that failed: the service's own sentence, and what to do about it."""
    cause = reply.cause
    advice = ADVICE.get(cause, f"the client ended with exit code {reply.code}")
    if cause is Cause.DENIED and reply.words[0] == "competitions":
        page = f"https://www.kaggle.com/competitions/{reply.words[2]}/rules"
        advice = f"join the competition and accept its rules on {page}"
    kind = RetryLater if cause is Cause.BUSY else Refused
    return kind(f"{reply.command}: {reply.sentence} - {advice}")


def ask_json(*words: str) -> Any:
    """The JSON that a command prints with --format json; lists of several pages come as one. Raises Refused or
    RetryLater if the command fails."""
    items: list[Any] = []
    token = ""
    while True:
        reply = ask(*words, "--format", "json", *(("--page-token", token) if token else ()))
        start = re.search(r"^[\[{]", reply.out, re.MULTILINE)
        if reply.code != 0:
            raise refusal(reply)
        if start is None:
            return items
        try:
            found = json.loads(reply.out[start.start() :])
        except json.JSONDecodeError as error:
            raise Refused(f"{reply.command}: expected JSON, got {reply.sentence!r}") from error
        if not isinstance(found, list):
            return found
        items += found
        told = re.search(r"Next Page Token = (\S+)", reply.out)
        if told is None:
            return items
        token = told[1]


def is_absent(reply: Reply) -> bool:
    """True if a question about something failed because it does not exist, or because this account cannot see it."""
    return reply.code != 0 and reply.cause in (Cause.DENIED, Cause.MISSING)


def account() -> str:
    """The name of the account. Raises Refused if the client has no credentials."""
    reply = ask("config", "view")
    told = re.search(r"username: (\S+)", reply.out)
    if reply.code == 0 and told is not None and told[1] != "None":
        return told[1]
    if reply.code != 0 and reply.cause is Cause.BUSY:
        raise refusal(reply)
    folder = os.environ.get("KAGGLE_CONFIG_DIR", "~/.kaggle")
    advice = f"{ADVICE[Cause.NOT_LOGGED_IN]}, or put kaggle.json into {folder}"
    raise Refused(f"the kaggle client knows no account ({reply.sentence}): {advice}")


def quota() -> str:
    """What the account may still use of GPUs this week, in words; "unknown" if the service does not tell."""
    try:
        rows: Sequence[dict[str, str]] = ask_json("quota")
    except Refused as error:  # the quota is only shown: a command that needs it will be refused with a reason
        logger.debug("%s", error)
        return "unknown"
    told = [f"{row['remaining']} of {row['total']}, renewed {row['refreshAt'][:16]}" for row in rows if _is_gpu(row)]
    return told[0] if told else "unknown"


def _is_gpu(row: dict[str, str]) -> bool:
    return row["resource"] == "GPU"


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of what a command printed on stderr, one line each; progress bars and warnings are left out.

    Of a traceback only the last line is kept, which names the error.
    """
    lines = [line.strip() for line in text.splitlines()]
    kept = "\n".join(line for line in lines if "%|" not in line and not line.startswith("Warning:"))
    blocks = [block.splitlines() for block in re.split(r"\n{2,}", kept.strip("\n")) if block.strip()]
    return [block[-1] if block[0].startswith("Traceback") else " ".join(block) for block in blocks]

"""The official client as a subprocess: what it said is judged by its words, since it exits 0 on many failures.

kaggle 2.2.4 prints refusals that arrive inside a good reply and returns 0. So a command counts as done only where its
sentence of success was said, no sentence of failure was, and what it did is read back by another command.

Keys and tokens: hidden in what is printed, and refused in what is about to be uploaded.

What the last commands came to, in runs/kaggle/TASK.json: no command of the client lists versions of kernels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osteograde.errors import UserError

Say = Callable[[str], None]
TIMEOUT_S = 3 * 3600.0  # of one command; uploads of weights are the longest
BAD = re.compile(
    r"not valid|unsuccessful|error:|skipping|does not resolve|could not|already in use|authentication required|denied",
    re.IGNORECASE,
)
ABSENT = re.compile(r"not found|404|403|denied|cannot access|forbidden", re.IGNORECASE)
CAPACITY = re.compile(r"session count|too many requests|429|503|temporarily", re.IGNORECASE)
QUOTA = re.compile(r"quota|limit", re.IGNORECASE)


class Refused(UserError):
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
    known = own_secrets()
    said = Said(words, done.returncode, hide_secrets(done.stdout, known), hide_secrets(done.stderr, known))
    if "No module named" in said.err:
        missing = said.err.strip().splitlines()[-1]
        raise UserError(f"the kaggle client does not start ({missing}); pip install kaggle==2.2.4 six")
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


SECRET_VARIABLES = ("KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN")
SECRET_NAMES = re.compile(
    r"kaggle\.json|credentials(\.json)?|access_token(\.txt)?|\.env|\.netrc|id_(rsa|ed25519)|.*\.(pem|key)",
    re.IGNORECASE,
)
SECRET_SHAPES = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a Kaggle key": rb"[\"']?(?:KAGGLE_)?[kK](?:ey|EY)[\"']?\s*[:=]\s*[\"']?[0-9a-f]{32}\b",
    "a Kaggle token": rb"\bKGAT_[0-9A-Za-z]{20,}",
    "an AWS key": rb"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[0-9A-Za-z]{36}",
    "a Hugging Face token": rb"\bhf_[0-9A-Za-z]{30,}",
    "an API key": rb"\bsk-[0-9A-Za-z_-]{32,}",
}
SECRET_SHAPE = re.compile(b"|".join(b"(?P<n%d>%s)" % (i, shape) for i, shape in enumerate(SECRET_SHAPES.values())))
SHORTEST_SECRET = 12  # a shorter value would hide common words
BLOCK, OVERLAP = 1 << 23, 512
HIDDEN = "[hidden]"


def own_secrets() -> list[str]:
    """The secrets of this user that are known here: values of the client's variables, the key in kaggle.json."""
    found = [os.environ.get(name, "") for name in SECRET_VARIABLES]
    home = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    for name in ("kaggle.json", "credentials.json", "access_token", "access_token.txt"):
        found += _values(home / name)
    return [value for value in dict.fromkeys(found) if len(value) >= SHORTEST_SECRET]


def hide_secrets(text: str, known: Iterable[str]) -> str:
    """``text`` without the secrets."""
    for value in known:
        text = text.replace(value, HIDDEN)
    return SECRET_SHAPE.sub(HIDDEN.encode(), text.encode()).decode()


def refuse_secrets(files: Iterable[Path], known: Iterable[str] | None = None) -> None:
    """ValueError naming the file, and the kind of secret but never the secret, where one is about to be uploaded."""
    values = [value.encode() for value in (own_secrets() if known is None else known)]
    for path in files:
        if SECRET_NAMES.fullmatch(path.name):
            raise UserError(f"{path}: its name is that of a file of secrets; take it out, nothing was uploaded")
        if kind := _kind(path, values):
            raise UserError(f"{path}: holds what looks like {kind}; take it out, nothing was uploaded")


def _kind(path: Path, values: list[bytes]) -> str:
    tail = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            data = tail + block
            if any(value in data for value in values):
                return "your own Kaggle key"
            if found := SECRET_SHAPE.search(data):
                return list(SECRET_SHAPES)[int(str(found.lastgroup)[1:])]
            tail = data[-OVERLAP:]
    return ""


def _values(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        return [text]
    if not isinstance(facts, dict):
        return []
    return [value for name, value in facts.items() if isinstance(value, str) and "name" not in name.lower()]


PLACE = Path("runs") / "kaggle"


def record_path(task: str, place: Path = PLACE) -> Path:
    return place / f"{task}.json"


def read_record(task: str, place: Path = PLACE) -> dict[str, Any]:
    """The record of a task; empty where there is none."""
    file = record_path(task, place)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def keep_record(task: str, step: str, facts: dict[str, Any], place: Path = PLACE) -> None:
    """Replace what is known of one step. Names, versions and hashes only, never a secret."""
    file = record_path(task, place)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(read_record(task, place) | {step: facts}, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def need_record(task: str, step: str, command: str, place: Path = PLACE) -> dict[str, Any]:
    """What is known of a step. ValueError naming the command that comes first where it was not done."""
    facts = read_record(task, place).get(step)
    if facts is None:
        raise UserError(
            f"{record_path(task, place)} knows no {step} of {task}: first python -m osteograde kaggle {command}"
        )
    return facts

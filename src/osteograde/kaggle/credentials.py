"""Keep keys and tokens out of what is printed and of what is uploaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from osteograde.errors import UserError

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
    """UserError naming the file, and the kind of secret but never the secret, where one is about to be uploaded."""
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

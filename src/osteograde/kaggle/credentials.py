"""Keep keys and tokens out of what is printed and of what is uploaded.

Two kinds are known: the secrets of this user, wherever the client would read them, in several encodings; and anything
that has the shape of a credential, whoever's it is.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osteograde.errors import UserError

SECRET_VARIABLES = ("KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN")  # the last two may be paths of a file
SECRET_VARIABLE = re.compile(r"KAGGLE\w*(KEY|TOKEN|SECRET|PASSWORD)\w*")  # of other versions of the client
SECRET_FILES = ("kaggle.json", "credentials.json", "access_token", "access_token.txt")
SECRET_NAMES = re.compile(
    r"kaggle.*\.json|credentials(\.json)?|access_token(\.txt)?|\.env(\..*)?|[._]netrc|\.git-credentials|\.pypirc"
    r"|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|key|p12)",
    re.IGNORECASE,
)
QUOTE = rb"[\\\"'`\s]*"  # quotes may be escaped, as in a notebook
ASSIGN = QUOTE + rb"\]?\s*[:=,]\s*" + QUOTE  # name: value, name = value, environ["name"] = value, set("name", value)
VALUE = rb"[^\s\"'\\]{8,}"
NEXT = QUOTE + rb",?\s*" + QUOTE  # between two entries of JSON or YAML
# In small letters, since they are searched in text in small letters; each begins with a word, which is found fast.
SECRET_SHAPES = {
    "a private key": rb"-----begin [a-z ]*private key-----",
    "a Kaggle token": rb"kgat_[0-9a-z_-]{16,}",
    "a Kaggle key": rb"key" + ASSIGN + rb"[0-9a-f]{32}(?![0-9a-f])",
    "a Kaggle key in a variable": (
        rb"kaggle_(?:key|api_token)" + ASSIGN + rb"(?=[^\s\"']*[0-9])[0-9a-z_-]{20,}(?![0-9a-z_.(\[/-])"
    ),
    "a Kaggle key after its user": rb"username" + ASSIGN + rb"[0-9a-z_-]{1,60}" + NEXT + rb"key" + ASSIGN + VALUE,
    "a Kaggle key before its user": rb"key" + ASSIGN + VALUE + NEXT + rb"username" + ASSIGN,
    "a login token": rb"(?:refresh|access)_token" + ASSIGN + rb"[0-9a-z_.~+/=-]{20,}",
    "an authorization header": rb"authorization" + ASSIGN + rb"(?:basic|bearer|token) [0-9a-z_.~+/=-]{16,}",
    "a web token": rb"eyj[0-9a-z_-]{10,}\.eyj[0-9a-z_-]{10,}\.[0-9a-z_-]{10,}",
    "an AWS key": rb"akia(?<![0-9a-z]akia)[0-9a-z]{16}(?![0-9a-z])",
    "a GitHub token": rb"gh[pousr]_(?<![0-9a-z]gh._)[0-9a-z]{36}",
    "a GitHub token of an account": rb"github_pat_[0-9a-z_]{22,}",
    "a Hugging Face token": rb"hf_(?<![0-9a-z]hf_)[0-9a-z]{30,}",
    "an API key": rb"sk-(?<![0-9a-z]sk-)[0-9a-z_-]{32,}",
}
SHAPES = {kind: re.compile(shape) for kind, shape in SECRET_SHAPES.items()}
ANY_SHAPE = re.compile(b"|".join(SECRET_SHAPES.values()), re.IGNORECASE)
PRINTABLE = bytes(range(32, 127)) + b"\t\n\r"
HEADER = 1 << 16  # bytes of binary data that are searched for base64; a header may hold text
BASE64 = re.compile(rb"[0-9A-Za-z+/_-]{40,400}={0,2}")
USER_AND_KEY = re.compile(rb"[0-9A-Za-z_-]{1,60}:(?:[0-9a-f]{32}|KGAT_[0-9A-Za-z_-]{16,})")  # of HTTP basic access
OWN = "your own Kaggle key"
SHORTEST_SECRET = 12  # a shorter value would hide common words
BLOCK, OVERLAP = 1 << 23, 1024
HIDDEN = "[hidden]"


def own_secrets() -> list[str]:
    """The secrets of this user: values of the client's variables, and what is in every file that the client reads.

    The files are the one that a variable names, and ``SECRET_FILES`` in KAGGLE_CONFIG_DIR, ~/.kaggle and
    ~/.config/kaggle (or XDG_CONFIG_HOME/kaggle).
    """
    found: list[str] = []
    others = sorted(name for name in os.environ if SECRET_VARIABLE.fullmatch(name) and name not in SECRET_VARIABLES)
    for value in (os.environ.get(name, "") for name in (*SECRET_VARIABLES, *others)):
        in_file = _values(Path(os.path.expanduser(value))) if value else []  # noqa: PTH111 - raises where no home is
        found += in_file or [value]
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where there is no home
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    folders = [home / ".kaggle", settings / "kaggle", home / ".config" / "kaggle"]
    if named := os.environ.get("KAGGLE_CONFIG_DIR"):
        folders.append(Path(named))
    for folder in folders:
        for name in SECRET_FILES:
            found += _values(folder / name)
    return [value for value in dict.fromkeys(found) if len(value) >= SHORTEST_SECRET]


def hide_secrets(text: str, known: Iterable[str]) -> str:
    """``text`` without the secrets."""
    for value in known:
        text = text.replace(value, HIDDEN)
    return ANY_SHAPE.sub(HIDDEN.encode(), text.encode()).decode()


def refuse_secrets(files: Iterable[Path], known: Iterable[str] | None = None) -> None:
    """Raises UserError, naming the file and the kind of secret but never the secret, if a file holds one.

    known: the secrets of this user; ``own_secrets()`` by default.
    """
    values = [form for value in (own_secrets() if known is None else known) for form in encodings(value)]
    for path in files:
        if SECRET_NAMES.fullmatch(path.name):
            raise UserError(f"{path}: its name is that of a file of secrets; take it out, nothing was uploaded")
        if kind := _kind_of_text(path.name.encode(), values):
            raise UserError(f"the name of a file in {path.parent} holds {kind}; rename it, nothing was uploaded")
        if kind := _kind(path, values):
            raise UserError(f"{path}: holds what looks like {kind}; take it out, nothing was uploaded")


def encodings(secret: str) -> list[bytes]:
    """A secret as it may stand in a file: plain, UTF-16, hexadecimal, and as a part of base64 text.

    Base64 packs three bytes into four letters, so a part of a longer text looks different at each of three offsets;
    the letters at both ends depend on its neighbours and are left out.
    """
    raw = secret.encode()
    found = [
        raw,
        secret.encode("utf-16-le"),
        secret.encode("utf-16-be"),
        raw.hex().encode(),
        raw.hex().upper().encode(),
    ]
    for offset in range(3):
        start, end = -(-offset * 4 // 3), (offset + len(raw)) * 4 // 3
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.append(encode(bytes(offset) + raw)[start:end])
    return list(dict.fromkeys(found))


def _kind(path: Path, values: list[bytes]) -> str:
    """The kind of secret in a file; "" if there is none."""
    tail = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            data = tail + block
            if kind := _kind_of_text(data, values):
                return kind
            tail = data[-OVERLAP:]
    return ""


def _kind_of_text(data: bytes, values: list[bytes]) -> str:
    if any(value in data for value in values):
        return OWN
    views = [data]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[1:64:2].count(0) > 20:  # UTF-16
        views.append(data.replace(b"\0", b""))
    for view in views:
        small = view.lower()
        if kinds := [kind for kind, shape in SHAPES.items() if shape.search(small)]:
            return kinds[0]
        others = len(view.translate(None, PRINTABLE))
        if any(map(_holds_key, BASE64.findall(view if others < 0.3 * len(view) else view[:HEADER]))):
            return "a Kaggle key in base64"
    return ""


def _holds_key(text: bytes) -> bool:
    """True if base64 text holds a user and a key, or anything else that has the shape of a credential."""
    try:
        plain = base64.b64decode(text.rstrip(b"=") + b"==", altchars=b"-_" if _is_urlsafe(text) else None)
    except binascii.Error:  # not base64, only letters
        return False
    return bool(USER_AND_KEY.match(plain) or ANY_SHAPE.search(plain))


def _is_urlsafe(text: bytes) -> bool:
    return b"-" in text or b"_" in text


def _values(path: Path) -> list[str]:
    """The secrets in a file of credentials: the strings of JSON but for names, dates and scopes, else its words."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace").strip() if path.is_file() else ""
    except OSError:  # a token that is too long for a path, or a file that nobody may read
        return []
    try:
        return _strings(json.loads(text))
    except json.JSONDecodeError:
        parts = re.findall(r"[^\s\"',:={}]+", text)  # of JSON with a mistake, or of NAME=value
        return [*text.split(), *(part for part in parts if re.search("[0-9]", part))]


def _strings(facts: Any, name: str = "") -> list[str]:
    if isinstance(facts, dict):
        return [value for key, item in facts.items() for value in _strings(item, str(key))]
    if isinstance(facts, list):
        return [value for item in facts for value in _strings(item, name)]
    harmless = any(word in name.lower() for word in ("name", "scope", "expir"))
    return [facts] if isinstance(facts, str) and not harmless else []

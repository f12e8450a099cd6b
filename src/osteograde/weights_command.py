"""``osteograde weights``: which weights belong to this version, and fetching them once, each file held to its hash.

They are fetched from a folder or an address (http, https, file) that holds NAME/FILE, as weights/ of a checkout does,
or NAME__FILE with ``__`` in the place of every slash, since the files of a release lie in no folders. No address is
built in: it is ``--from``, else the environment variable OSTEOGRADE_WEIGHTS_URL.
"""

from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import BinaryIO

from osteograde.errors import UserError
from osteograde.models import shipped
from osteograde.models.shipped import ShippedFile, ShippedWeights

log = logging.getLogger("osteograde.weights")
VARIABLE = "OSTEOGRADE_WEIGHTS_URL"
SCHEMES = ("http", "https", "file")
PATIENCE_S = 30.0  # without a byte
BLOCK = 1 << 20
MB = 1e6


def lines() -> list[str]:
    """One line for every set of weights of this version: name, task, size, and where it lies."""
    sets = shipped.index()
    if not sets:
        return ["this version names no weights: it was built outside of a checkout; train some, or name a folder"]
    width = max(len(one.name) for one in sets)
    return [f"{one.name:{width}}  {one.task:16}  {one.bytes / MB:5.1f} MB  {_state(one)}" for one in sets]


def _state(one: ShippedWeights) -> str:
    for place in shipped.places():
        folder = place / one.name
        if shipped.is_weights(folder):
            other = "" if (folder / one.facts.name).is_file() and shipped.is_current(folder) else " (another version)"
            return f"in {folder}{other}"
    return f"not here: osteograde weights get {one.name}"


def get(name: str, source: str | None = None) -> Path:
    """Fetch the weights of a name or a task; the folder is returned. Files that are there and right are kept.

    source: a folder or an address, else that of the environment variable. UserError where none is given, it cannot be
    reached, it lacks a file, or a file is not the one that this version names; what was fetched before stays.
    """
    wanted = shipped.named(name)
    base = source or os.environ.get(VARIABLE, "")
    if not base:
        raise UserError(
            f"no place to fetch {wanted.name} from: give --from DIR or URL, or set {VARIABLE}; a checkout of the "
            f"project holds it in weights/{wanted.name}, so --from CHECKOUT/weights does without a network"
        )
    folder = shipped.fetched() / wanted.name
    missing = [file for file in wanted.files if not _is_right(folder / file.name, file)]
    for number, file in enumerate(missing, 1):
        _fetch(base, wanted, file, folder / file.name)
        log.info("%d/%d %s, %.1f MB", number, len(missing), file.name, file.bytes / MB)
    return folder


def task_of(name: str) -> str:
    """The task whose studies the weights of this name grade."""
    return shipped.named(name).task


def _is_right(path: Path, file: ShippedFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and shipped.digest(path) == file.sha256


def _fetch(base: str, wanted: ShippedWeights, file: ShippedFile, path: Path) -> None:
    """One file into its place in one step, after its size and its hash were found right."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(base, wanted, file) as given, part.open("wb") as out:
        try:
            left = file.bytes + 1  # one more: a file that is too long is told from one that is right
            while left and (block := given.read(min(BLOCK, left))):
                out.write(block)
                left -= len(block)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(base, wanted, f"{file.name}: {error}") from error
    if not _is_right(part, file):
        found = f"{part.stat().st_size} bytes, sha256 {shipped.digest(part)[:12]}..."
        part.unlink()
        raise UserError(
            f"{base}: {wanted.name}/{file.name} has {found}, this version of osteograde names {file.bytes} bytes, "
            f"{file.sha256[:12]}...; give the place that holds the weights of this version"
        )
    part.replace(path)


def _opened(base: str, wanted: ShippedWeights, file: ShippedFile) -> BinaryIO:
    """The file at the first of the two names that is there."""
    for last, address in ((False, f"{wanted.name}/{file.name}"), (True, _flat(wanted, file))):
        try:
            return _open(base, address)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise _unreachable(base, wanted, f"{address}: {error}") from error
        except FileNotFoundError:
            pass
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            if not isinstance(getattr(error, "reason", None), FileNotFoundError):
                raise _unreachable(base, wanted, str(getattr(error, "reason", error))) from error
        if last:
            break
    raise UserError(
        f"{base}: neither {wanted.name}/{file.name} nor {_flat(wanted, file)} there; is it the right place?"
    )


def _flat(wanted: ShippedWeights, file: ShippedFile) -> str:
    return f"{wanted.name}/{file.name}".replace("/", "__")


def _open(base: str, name: str) -> BinaryIO:
    """OSError where it cannot be opened; UserError for an address that is none of ``SCHEMES``."""
    if "://" not in base:
        return (Path(base).expanduser() / name).open("rb")
    if (scheme := base.partition("://")[0].lower()) not in SCHEMES:
        raise UserError(f"{base}: addresses begin with {', '.join(SCHEMES)}; {scheme} is not one that is fetched from")
    address = f"{base.rstrip('/')}/{urllib.parse.quote(name)}"
    return urllib.request.urlopen(address, timeout=PATIENCE_S)


def _unreachable(base: str, wanted: ShippedWeights, why: str) -> UserError:
    return UserError(
        f"{base}: cannot be fetched from ({why}); without a network, copy weights/{wanted.name} of a checkout here and "
        "give its parent folder with --from"
    )

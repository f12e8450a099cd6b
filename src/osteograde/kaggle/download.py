"""The competition's data through the client: room on the disk first, then the archive, unpacked and its tables read."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import client
from osteograde.kaggle.client import Refused, Say
from osteograde.tasks import TASKS

PAGES = 5  # of 200 files each: a competition of images has far more, and then the size is not told
UNKNOWN_GIB = 100  # asked for where the size is not told: archive and files together
GIB = 2**30


def download(task: str, out: Path, space_gib: int | None, *, say: Say) -> None:
    """Fetch, unpack and check the data of a task's competition into ``out``; what is there stays.

    ValueError for a task without a competition, too little room, or an archive that leads out of ``out``; Refused where
    the service says no (the rules must be accepted on its page) or the archive is damaged.
    """
    slug = TASKS[task].slug
    if not slug:
        raise UserError(f"{task} has no competition to download from; README.md names its data")
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"{slug}.zip"
    have = archive.stat().st_size if archive.is_file() else 0
    wanted = space_gib * GIB if space_gib else needed(slug, say)
    free = shutil.disk_usage(out).free
    if free + have < wanted:
        raise UserError(
            f"{out}: {free / GIB:.1f} GiB free, {wanted / GIB:.1f} GiB needed; free some, give another --out, or say "
            "with --space how many GiB it needs"
        )
    said = client.ask("competitions", "download", slug, "-p", str(out), timeout_s=48 * 3600.0)
    if said.code != 0 or not archive.is_file():
        raise client.refusal(said)
    files, new = unpack(archive, out)
    say(f"{archive}: {files} files, {new} unpacked now; the archive may be removed")
    check(task, out, say)


def needed(slug: str, say: Say) -> int:
    """Bytes that archive and files take together, as the listing says; UNKNOWN_GIB where it does not end soon."""
    total, token = 0, ""
    for _ in range(PAGES):
        words = ("competitions", "files", slug, "--csv", "--page-size", "200")
        said = client.ask(*words, *(("--page-token", token) if token else ()))
        if said.code != 0:
            raise Refused(f"{client.refusal(said)}; join the competition and accept its rules on its page first")
        total += sum(int(size) for size in re.findall(r"^[^,\n]+,(\d+),", said.out, re.MULTILINE))
        told = re.search(r"Next Page Token = (\S+)", said.out)
        if told is None:
            return 2 * total
        token = told[1]
    say(f"{slug}: more than {200 * PAGES} files, so their size is not told; {UNKNOWN_GIB} GiB are asked for")
    return UNKNOWN_GIB * GIB


def unpack(archive: Path, out: Path) -> tuple[int, int]:
    """(files, files unpacked now): those that are there with their size are left. Every byte read is checked."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            for member in members:
                if not (out / member.filename).resolve().is_relative_to(out.resolve()):
                    raise UserError(f"{archive}: {member.filename} leads out of {out}; do not use this archive")
            missing = [member for member in members if not _there(member, out)]
            for member in missing:
                _extract(packed, member, out / member.filename)
    except zipfile.BadZipFile as error:
        raise Refused(f"{archive}: damaged ({error}); remove it and download again") from error
    return len(members), len(missing)


def check(task: str, out: Path, say: Say) -> None:
    """Read both parts as training and inference will. ValueError names what is wrong with a table."""
    for part in ("train", "test"):
        if (out / f"{part}_images").is_dir():
            say(f"{part}: {len(TASKS[task].read(out, part))} studies, tables read")
        else:
            say(f"{part}: no folder {part}_images")


def _there(member: zipfile.ZipInfo, out: Path) -> bool:
    path = out / member.filename
    return path.is_file() and path.stat().st_size == member.file_size


def _extract(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part: Any = path.with_name(f".{path.name}.part")
    with packed.open(member) as source, part.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    part.replace(path)

"""Download the data of a competition: check the free disk space, fetch and unpack the archive, read its tables.

Data of other publishers are not fetched: where they are is told, and what of them lies in a folder already.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.kaggle import client
from osteograde.kaggle.client import Refused, logger
from osteograde.tasks import TASKS, sources

PAGES = 5  # of 200 files each: a competition of images has far more, and then the size is not told
UNKNOWN_GIB = 100  # asked for where the size is not told: archive and files together
GIB = 2**30


def download(task: str, out: Path, space_gib: int | None) -> None:
    """Fetch, unpack and check the data of a task's competition into ``out``; files that are there already stay.

    Raises UserError for a task without a competition, too little free space, or an archive with a path outside
    ``out``; Refused if the service refuses (the rules must be accepted on its page) or the archive is damaged;
    RetryLater if the service is busy.
    """
    slug = TASKS[task].slug
    if not slug:
        raise UserError(f"{task} has no competition to download from; `osteograde download {task}` says where it is")
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"{slug}.zip"
    have = archive.stat().st_size if archive.is_file() else 0
    wanted = space_gib * GIB if space_gib else needed(slug)
    free = shutil.disk_usage(out).free
    if free + have < wanted:
        raise UserError(
            f"{out}: {free / GIB:.1f} GiB free, {wanted / GIB:.1f} GiB needed; free some, give another --out, or say "
            "with --space how many GiB it needs"
        )
    reply = client.ask("competitions", "download", slug, "-p", str(out), timeout_s=48 * 3600.0)
    if reply.code != 0 or not archive.is_file():
        raise client.refusal(reply)
    files, new = unpack(archive, out)
    logger.info("%s: %d files, %d unpacked now; the archive may be removed", archive, files, new)
    check(task, out)


def slug_of(task: str) -> str:
    """The competition of a task in its address; "" where it has none."""
    return TASKS[task].slug


def tell(task: str, data: Path | None) -> int:
    """Print where the data of a task are published, and what of them lies in a folder. 1 where some that is needed is
    missing there, else 0. UserError where there is no such folder."""
    source = sources.source_of(task, slug_of(task))
    print("\n".join(source.lines()))
    if data is None:
        print("next: fetch it from that address with a browser, unpack it into a folder DIR, and count what came:")
        print(f"  osteograde download {task} --data DIR")
        return 0
    checked = sources.check(source, data)
    print(f"{data}:", *checked.lines, sep="\n")
    print(f"{data}: {'all that is needed is there' if checked.complete else 'not complete'}")
    return 0 if checked.complete else 1


def needed(slug: str) -> int:
    """Bytes that the archive and its files take together, as the listing says; UNKNOWN_GIB if the listing is too long.

    Raises Refused or RetryLater if the service does not list the files.
    """
    total, token = 0, ""
    for _ in range(PAGES):
        words = ("competitions", "files", slug, "--csv", "--page-size", "200")
        reply = client.ask(*words, *(("--page-token", token) if token else ()))
        if reply.code != 0:
            raise client.refusal(reply)
        total += sum(int(size) for size in re.findall(r"^[^,\n]+,(\d+),", reply.out, re.MULTILINE))
        told = re.search(r"Next Page Token = (\S+)", reply.out)
        if told is None:
            return 2 * total
        token = told[1]
    logger.info("%s: over %d files, so their size is unknown; %d GiB must be free", slug, 200 * PAGES, UNKNOWN_GIB)
    return UNKNOWN_GIB * GIB


def unpack(archive: Path, out: Path) -> tuple[int, int]:
    """(number of files, number unpacked now): files of the right size stay. The checksum of each file is verified."""
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


def check(task: str, out: Path) -> None:
    """Read both parts as training and inference will. Raises UserError, naming what is wrong with a table."""
    for part in ("train", "test"):
        if (out / f"{part}_images").is_dir():
            logger.info("%s: %d studies, tables read", part, len(TASKS[task].read(out, part)))
        else:
            logger.info("%s: no folder %s_images", part, part)


def _there(member: zipfile.ZipInfo, out: Path) -> bool:
    path = out / member.filename
    return path.is_file() and path.stat().st_size == member.file_size


def _extract(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part: Any = path.with_name(f".{path.name}.part")
    with packed.open(member) as source, part.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    part.replace(path)

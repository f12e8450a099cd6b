"""Which files of a folder are images, what each may be called, and what was passed over and why.

The content of a file decides, not its name: DICOM files are often named by a UID or a number, and pictures by endings
that nobody expects. An ending decides only where the content says nothing, as of an empty file: a damaged image must
be told, not lost. Whatever is not used is counted by its reason, so that nothing disappears without a word.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from osteograde.imaging.file_kind import DICOM_IMAGE, DICOM_OTHER, PICTURE, kind_of_file
from osteograde.imaging.image_files import DICOM_SUFFIXES, SUFFIXES
from osteograde.imaging.volume_files import SUFFIXES as VOLUME_SUFFIXES
from osteograde.imaging.volume_files import is_volume_file

log = logging.getLogger(__name__)

GROUP_SUFFIXES = frozenset({".study", ".stack"})  # of places that stand for several files, see ``unique_names``
MOST = 64  # characters of a name
_HASH = 8  # of them, where nothing else tells two files apart
_ODD = re.compile(r"[^0-9A-Za-z._-]+")

# Folders that systems leave beside the files of their users: thumbnails, resource forks, waste baskets, snapshots.
_SYSTEM_FOLDERS = frozenset({
    "@eadir", "@__thumb", "@recycle", "@recently-snapshot", "@tmp", "@sharesnap", "#recycle", "#snapshot", "__macosx",
    "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "thumbnails", "thumbnail",
    "thumbs", "thumb", "_thumb", "_thumbs", "_thumbnails", "~snapshot", "resource.frk", "appledouble",
    "thevolumesettingsfolder", "network trash folder", "temporary items", "__pycache__", "_vti_cnf",
})  # fmt: skip
_SYSTEM_FILES = frozenset({
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "iconcache.db", "icon\r", "picasa.ini",
    "zbthumbnail.info",
})  # fmt: skip
_COPY_ENDINGS = ("~", ".bak", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".swp")
_TEXT = frozenset({".csv", ".tsv", ".txt", ".md", ".json", ".xml", ".html", ".log", ".py", ".yaml", ".yml"})
_FORK = (b"\x00\x05\x16\x07", b"\x00\x05\x16\x00")  # AppleDouble and AppleSingle (RFC 1740)

OUTPUT_MARK = ".osteograde-output"  # a file in folders of outputs that lie among data: ``tasks.outputs``

_PIXELS_BESIDE = (".raw", ".zraw")  # of a .mhd header

SYSTEM = "left by the system or hidden"
OUTPUT = "folders that osteograde wrote"
COPY = "unfinished or backup copies"
NO_IMAGE = "DICOM objects without an image"
LOOP = "links to folders that are read already"
DEAD = "links that lead nowhere"
VOLUME = "volumes in one file"
SPECIAL = "pipes, devices, or files and folders that may not be read"
PLAIN = "other files"


@dataclass(frozen=True, eq=False)
class Found:
    """What lies below a folder. files: the images in order of their paths. dicom: those of them that are DICOM files.
    volumes: NIfTI and MetaImage files, which only some tasks read. passed: path -> why it is not used; a folder that is
    passed over counts once, and volumes count until a task names them as ``used``."""

    root: Path
    files: tuple[Path, ...] = ()
    dicom: frozenset[Path] = frozenset()
    passed: dict[Path, str] = field(default_factory=dict)
    volumes: tuple[Path, ...] = ()

    def tell(self, used: Sequence[Path] = ()) -> None:
        """Log one line that counts what is not used, by reason; nothing where all is. used: see ``not_used``."""
        if text := self.not_used(used):
            log.warning("%s: %d image files found; not used: %s", self.root, len(self.files), text)

    def not_used(self, used: Sequence[Path] = ()) -> str:
        """What is not used, counted by reason; "" where all is. used: files that are used all the same, as tables or
        volumes."""
        pixels = [path.with_suffix(end) for path in used if path.suffix.lower() == ".mhd" for end in _PIXELS_BESIDE]
        read = {os.path.realpath(path) for path in (*used, *pixels)}  # Path.resolve refuses a link to itself
        reasons: dict[str, Counter[str]] = defaultdict(Counter)
        for path, why in self.passed.items():
            if os.path.realpath(path) not in read:
                reason, _, kind = why.partition(": ")
                reasons[reason][kind or (path.suffix.lower() or "no ending" if reason == PLAIN else "")] += 1
        texts = []
        for reason, kinds in sorted(reasons.items()):
            named = ", ".join(f"{kind} x {count}" for kind, count in sorted(kinds.items()) if kind)
            texts.append(f"{kinds.total()} {reason}" + (f" ({named})" if named else ""))
        return "; ".join(texts)


def look_through(root: Path) -> Found:
    """All image files below a folder, and what else lies there.

    Links to folders are followed once: real folders come first, and a folder that was read is not read again under
    another name. A link to a folder that holds ``root`` itself is not followed. OSError of folders that may not be
    read is counted, not raised.
    """
    root = Path(root)
    passed: dict[Path, str] = {}
    return _sorted_out(root, _walk(root, passed), passed)


def look_at(root: Path, files: Iterable[Path]) -> Found:
    """The same of single files that lie below a folder, whatever else lies there."""
    return _sorted_out(Path(root), files, {})


def _sorted_out(root: Path, files: Iterable[Path], passed: dict[Path, str]) -> Found:
    """Which of the files are images; the reasons of the others are added to ``passed``, which walking may fill too."""
    found: list[Path] = []
    dicom: set[Path] = set()
    for path in files:
        why, is_dicom = _judge(path)
        if why:
            passed[path] = why
        else:
            found.append(path)
            dicom |= {path} if is_dicom else set()
    order = sorted(found, key=lambda path: _sort_key(path, root))
    volumes = sorted((path for path, why in passed.items() if why == VOLUME), key=lambda path: _sort_key(path, root))
    return Found(root, tuple(order), frozenset(dicom), passed, tuple(volumes))


def find_images(root: Path) -> list[Path]:
    """The image files below a folder, see ``look_through``."""
    return list(look_through(root).files)


def has_images(root: Path) -> bool:
    """Whether a folder holds any image; it is read no further than the first one."""
    passed: dict[Path, str] = {}
    return any(_judge(path)[0] in ("", VOLUME) for path in _walk(Path(root), passed))


def _sort_key(path: Path, root: Path) -> tuple[tuple[str, ...], str]:
    """Folder by folder, files of a folder before its folders: the order of os.walk."""
    parts = path.relative_to(root).parts
    return parts[:-1], parts[-1]


def _walk(root: Path, passed: dict[Path, str]) -> Iterator[Path]:
    """Every file below ``root`` that no system left there; real folders first, then linked ones."""
    real_root = root.resolve()
    seen: set[Path] = set()
    links: list[Path] = []
    yield from _walk_real(root, seen, links, passed)
    while links:
        link = links.pop(0)
        target = link.resolve()
        if target in seen or real_root.is_relative_to(target):
            passed[link] = LOOP
            continue
        yield from _walk_real(link, seen, links, passed)


def _walk_real(top: Path, seen: set[Path], links: list[Path], passed: dict[Path, str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        passed[Path(error.filename or top)] = SPECIAL

    for name, folders, files in os.walk(top, onerror=refused):
        folder = Path(name)
        seen.add(folder.resolve())
        kept = []
        for inner in sorted(folders):
            path = folder / inner
            if left_by_system(inner):
                passed[path] = SYSTEM
            elif is_output(path):
                passed[path] = f"{OUTPUT}: {inner}"
            elif path.is_symlink():
                links.append(path)
            else:
                kept.append(inner)
        folders[:] = kept
        yield from (folder / file for file in sorted(files))


def left_by_system(folder: str) -> bool:
    """Whether a folder of this name holds what a system left beside the files of its users, or is hidden."""
    return folder.startswith(".") or folder.lower() in _SYSTEM_FOLDERS


def is_output(folder: Path) -> bool:
    """Whether a folder is marked as one that osteograde wrote."""
    return (folder / OUTPUT_MARK).is_file()


def _judge(path: Path) -> tuple[str, bool]:
    """(why a file is no image, "" where it is one; whether it is a DICOM file)."""
    name = path.name.lower()
    if name.startswith((".", "~$")) or name in _SYSTEM_FILES or "@syno" in name:
        return SYSTEM, False
    if name.endswith(_COPY_ENDINGS):
        return COPY, False
    try:
        if not path.is_file():  # a named pipe would never end
            return (DEAD if path.is_symlink() and not path.exists() else SPECIAL), False
    except OSError:  # a link to itself
        return DEAD, False
    suffix = path.suffix.lower()
    if suffix in _TEXT:
        return PLAIN, False
    if is_volume_file(path):
        return VOLUME, False
    kind = kind_of_file(path)
    if kind in (PICTURE, DICOM_IMAGE):
        return "", kind == DICOM_IMAGE
    if kind.startswith(DICOM_OTHER):
        return f"{NO_IMAGE}: {kind.removeprefix(DICOM_OTHER)}", True
    if suffix in SUFFIXES or suffix in DICOM_SUFFIXES:
        return (SYSTEM if _is_fork(path) else ""), suffix in DICOM_SUFFIXES
    return PLAIN, False


def _is_fork(path: Path) -> bool:
    """Whether a file is what macOS keeps beside a file on foreign disks."""
    try:
        with path.open("rb") as file:
            return file.read(4) in _FORK
    except OSError:
        return False


def stem_of(path: Path) -> str:
    """The name of a file without its ending; the last part of a UID, or any other number, is no ending.

    >>> stem_of(Path("a.b.png")), stem_of(Path("MR.1.3.12.7")), stem_of(Path("7.acr")), stem_of(Path("1_t2.nii.gz"))
    ('a.b', 'MR.1.3.12.7', '7', '1_t2')
    """
    name, suffix = path.name, path.suffix
    if ending := next((one for one in VOLUME_SUFFIXES if name.lower().endswith(one)), ""):
        return name[: -len(ending)]
    if suffix.lower() in SUFFIXES or suffix.lower() in DICOM_SUFFIXES or suffix in GROUP_SUFFIXES:
        return name[: -len(suffix)]
    return name


def unique_names(files: Sequence[Path], root: Path) -> list[str]:
    """One name per file, which no other file gets; odd characters become _.

    A file is called by its stem where no other has it, else by its path below ``root`` without its ending, else by the
    path with it. Where that is taken as well, eight digits of a hash of the path are added. The order of the files and
    their places in it play no part.

    >>> unique_names([Path("a/x.png"), Path("b/x.png"), Path("b/my y.png"), Path("a_x.png")], Path("."))
    ['a_x.png', 'b_x', 'my_y', 'a_x']
    """
    below = [file.relative_to(root) for file in files]
    levels = (
        [_plain(stem_of(path)) for path in below],
        [_plain("_".join([*path.parts[:-1], stem_of(path)])) for path in below],
        [_plain("_".join(path.parts)) for path in below],
    )
    names: dict[int, str] = {}
    taken: set[str] = set()
    for level in levels:
        count = Counter(level[i] for i in range(len(below)) if i not in names)
        new = {i: level[i] for i in range(len(below)) if i not in names and count[level[i]] == 1}
        new = {i: name for i, name in new.items() if name not in taken}
        names |= new
        taken |= {*new.values()}
    for i, path in enumerate(below):
        if i not in names:  # characters that became _, or too long a path
            names[i] = _hashed(levels[2][i], path, taken)
            taken.add(names[i])
    if longer := [i for i in range(len(below)) if names[i] != levels[0][i]]:
        example = f"{below[longer[0]]} is called {names[longer[0]]}"
        log.info("%s: %d files share their names with others: %s", root, len(longer), example)
    return [names[i] for i in range(len(below))]


def _hashed(name: str, path: Path, taken: set[str]) -> str:
    digits = hashlib.sha256(os.fsencode(path.as_posix())).hexdigest()
    for length in range(_HASH, len(digits) + 1, _HASH):
        longer = f"{name[-(MOST - length - 1) :]}_{digits[:length]}" if length < MOST - 1 else digits
        if longer not in taken:
            return longer
    raise ValueError(f"{path}: named twice among the files")


def part_folder(root: Path, part: str) -> Path:
    """The folder of a part: ROOT/<part>_images, or ROOT itself where there is none."""
    folder = Path(root) / f"{part}_images"
    return folder if folder.is_dir() else Path(root)


def _plain(name: str) -> str:
    return _ODD.sub("_", name)[-MOST:] or "_"

"""Studies of `lumbar-mr` from any folder: the competition's, or DICOM files that lie elsewhere.

Outside the competition's layout a study is what shares a StudyInstanceUID (0020,000D). Files without one are a study by
their place: DIR/STUDY/SERIES/files, or DIR/files where they lie in the given folder itself. Each folder of files is one
series; which views it shows is told from the files when they are read. Nothing is learnt from such folders.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from osteograde.errors import UserError
from osteograde.imaging.dicom.header import header_of
from osteograde.imaging.dicom.tags import text_of
from osteograde.imaging.discovery import Found, look_at, look_through, stem_of, unique_names
from osteograde.tasks import lumbar_tables, tables
from osteograde.tasks.spec import Series, Study

log = logging.getLogger(__name__)

_DIGITS = 8  # of a hash
_DEEPER, _MANY = 2, 50  # folders below the given one, and how many of them, in which the competition's are looked for
EXPECTED = (
    "expected is the competition's folder, which holds test_images or train_images, a folder of DICOM series, or a "
    "DICOM file"
)


def read(root: Path, part: str) -> list[Study]:
    """The studies of a folder: to learn from ("train", the competition's layout alone) or to grade ("test").

    UserError where there is neither the layout nor a DICOM file.
    """
    root = competition_folder(Path(root))
    if part != "test" or not root.is_dir() or any((root / f"{name}_images").is_dir() for name in ("test", "train")):
        return lumbar_tables.read(root, part)
    found = look_through(root)
    if not found.dicom and found.volumes:
        names = tables.some([path.relative_to(root).as_posix() for path in found.volumes], 3)
        raise UserError(
            f"{root}: {len(found.volumes)} NIfTI or MetaImage volumes, which are not read ({names}); {EXPECTED}"
        )
    if not found.dicom:
        names = tables.some(sorted(path.name for path in root.iterdir())) or "nothing"
        raise UserError(f"{root}: neither test_images nor train_images in it; found {names}; {EXPECTED}")
    return _studies(found)


def competition_folder(root: Path) -> Path:
    """The folder that holds train_images or test_images: ROOT itself, or the only one up to ``_DEEPER`` folders below,
    as archives unpack; ROOT where there is none or several."""
    level = [root]
    for _ in range(_DEEPER + 1):
        found = [folder for folder in level if any((folder / f"{name}_images").is_dir() for name in ("test", "train"))]
        if found:
            break
        level = [folder / name for folder in level for name in tables.subfolders(folder)]
        if len(level) > _MANY:
            return root
    if len(found) != 1 or found[0] == root:
        return root
    log.info("%s: the competition's folders lie in %s, which is read", root, found[0].relative_to(root))
    return found[0]


def read_files(root: Path, files: Sequence[Path]) -> list[Study]:
    """Single DICOM files below ROOT as studies to be graded. UserError where none of them is DICOM."""
    found = look_at(root, files)
    if not found.dicom:
        volumes = "a NIfTI or MetaImage volume, which is not read; " if found.volumes else ""
        raise UserError(f"{tables.some(files, 3)}: {volumes}no DICOM file with an image; {EXPECTED}")
    return _studies(found)


def _studies(found: Found) -> list[Study]:
    """The DICOM images as studies, sorted by their ids."""
    found.tell()
    groups: dict[tuple[str, Path], dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
    slices = [file for file in found.files if file in found.dicom]
    for file in slices:
        uid = _study_uid(file)
        place = file.parent.parent if file.parent != found.root else found.root
        groups[uid, found.root if uid else place][file.parent].append(file)
    if pictures := len(found.files) - len(slices):
        log.warning("%s: %d pictures say no place in the patient: not used", found.root, pictures)
    called = unique_names(_places(groups, found.root), found.root)
    studies = [
        Study(name, name, _series(folders, found.root)) for name, folders in zip(called, groups.values(), strict=True)
    ]
    log.info("%s: none of the competition's folders: %d studies told apart by the files", found.root, len(studies))
    return sorted(studies, key=lambda study: study.id)


def _places(groups: dict[tuple[str, Path], dict[Path, list[Path]]], root: Path) -> list[Path]:
    """A place that each study is named by: the file, else the folder that holds all its files; where it holds several
    studies, a hash of their UIDs is added."""
    places = []
    for folders in groups.values():
        files = [file for own in folders.values() for file in own]
        common = Path(os.path.commonpath([str(folder) for folder in folders]))
        if len(files) == 1:
            places.append(files[0].with_name(f"{stem_of(files[0])}.study"))
        else:
            name = common.resolve().name or "study"
            places.append((root if common == root else common.parent) / f"{name}.study")
    count = Counter(places)
    for i, (uid, stands) in enumerate(groups):
        if count[places[i]] > 1:
            digits = hashlib.sha256((uid or stands.relative_to(root).as_posix()).encode()).hexdigest()[:_DIGITS]
            places[i] = places[i].with_name(f"{stem_of(places[i])}_{digits}.study")
    return places


def _series(folders: dict[Path, list[Path]], root: Path) -> tuple[Series, ...]:
    """Each folder as a series, whose views the files tell. Named by the folder's way below ROOT."""
    named = {folder: "_".join(folder.relative_to(root).parts) or root.resolve().name or "series" for folder in folders}
    return tuple(Series(named[folder], "", folder, tuple(files)) for folder, files in folders.items())


def _study_uid(file: Path) -> str:
    """StudyInstanceUID of a file; "" where it has none or cannot be read: reading its pixels will tell why."""
    return text_of(header_of(file, ["StudyInstanceUID"]), "StudyInstanceUID")

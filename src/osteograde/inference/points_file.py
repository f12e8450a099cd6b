"""The landmarks of a run as a table: written beside the submission, and read again in place of stage 1.

submission.points.csv has one row for each landmark of each graded study: its place in mm (LPS), the pixel of the file
that shows it, and how sure it is. The same form is read by ``--points``, where a place may be given in mm, as a pixel
of a named file, or as a box around it. So a point can be corrected by hand, or come from somewhere else.
"""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import numpy as np

from osteograde.errors import UserError
from osteograde.imaging import files
from osteograde.imaging.discovery import stem_of
from osteograde.imaging.geometry import apply
from osteograde.pipeline.load import FileGrid, Loaded
from osteograde.tasks import tables
from osteograde.tasks.spec import Locator, Mark, Point, Points, Series, Study, Task

log = logging.getLogger("osteograde.inference")

MM = ("x_mm", "y_mm", "z_mm")
PIXEL = ("x", "y")
BOX = ("x0", "y0", "x1", "y1")
COLUMNS = ("study_id", "landmark", *MM, "series", "file", *PIXEL, "confidence", "names")
OPTIONAL = (*COLUMNS[2:], *BOX)
FAR_MM = 10.0  # a slice further than this from a point does not show it

PointRow = tuple[str, ...]  # the cells of ``COLUMNS``


def points_path(out: Path) -> Path:
    """submission.csv -> submission.points.csv."""
    return out.with_name(out.stem + ".points.csv")


def rows_of(task: Task, loaded: Loaded, points: Points) -> list[PointRow]:
    """One row for each landmark of a study that was found, given or told from others, in the order of the locators.

    The pixel is that of the slice which shows the point best, of the view in which the landmark is looked for; empty
    where no slice lies within ``FAR_MM``. Numbers are written so that reading them gives the same numbers again.
    """
    rows = []
    for locator in task.locators:
        view = _view_of(task, locator)
        grids = [grid for grid in loaded.grids if grid.view == view]
        for landmark in locator.landmarks:
            point = points.get(landmark.name)
            if point is not None:
                names = ";".join(f"{other}:{share!r}" for other, share in point.names.items())
                doubt = names or ("unknown" if point.in_doubt else "")
                mm = [repr(float(value)) for value in point.mm]
                where = _pixel_of(grids, point.mm)
                rows.append((loaded.study.id, landmark.name, *mm, *where, repr(float(point.confidence)), doubt))
    return rows


def _view_of(task: Task, locator: Locator) -> str:
    """The view in which the landmarks of a locator are looked for."""
    views = {view.name for view in task.views}
    return next(name for name in locator.needs if name in views)


def _pixel_of(grids: Sequence[FileGrid], point_mm: np.ndarray) -> tuple[str, str, str, str]:
    """(series, file, x, y) of the slice that shows a point best; empty where none is near."""
    best = (FAR_MM, ("", "", "", ""))
    for grid in grids:
        z, y, x = apply(np.linalg.inv(grid.to_mm), point_mm)
        depth, height, width = grid.shape
        number = int(np.clip(round(float(z)), 0, depth - 1))
        step, down, across = grid.to_mm[:3, :3].T
        normal = np.cross(down, across) / np.linalg.norm(np.cross(down, across))
        away = abs(float(z) - number) * abs(float(step @ normal))
        inside = -0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5
        if inside and away < best[0]:
            name = grid.names[number] if number < len(grid.names) else ""
            best = (away, (grid.series, name, f"{x:.2f}", f"{y:.2f}"))
    return best[1]


def write_points(path: Path, rows: Sequence[PointRow]) -> None:
    """Replace the table in one step; only its first line where there are no rows."""
    text = StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(COLUMNS)
    out.writerows(rows)
    files.atomic_write(path, text.getvalue())


@dataclass
class _Given:
    """What a table gives of one study."""

    points: dict[str, Point] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)


def with_given_points(task: Task, studies: Sequence[Study], path: Path) -> list[Study]:
    """The studies with the landmarks that a table gives for them; other landmarks and studies stay as they are.

    UserError with file and line where a landmark is unknown or stands there twice, a place is missing or is no number,
    a series or file is not the study's, or the table speaks of none of the studies.
    """
    by_id = {study.id: study for study in studies}
    given: dict[str, _Given] = defaultdict(_Given)
    others: set[str] = set()
    seen: dict[tuple[str, str], int] = {}
    rows = _read(path)
    same = tables.matched([cells["study_id"] for _, cells in rows], list(by_id))
    known = {landmark.name for locator in task.locators for landmark in locator.landmarks}
    for line, cells in rows:
        where = f"{path}: line {line}"
        study, landmark = same.get(cells["study_id"], cells["study_id"]), cells["landmark"]
        if landmark not in known:
            raise UserError(f"{where}: {task.name} has no landmark {landmark!r}; expected one of {_some(known)}")
        if (study, landmark) in seen:
            first = seen[study, landmark]
            raise UserError(f"{where}: {landmark} of study {study} stands in line {first} already; keep one of them")
        seen[study, landmark] = line
        if study not in by_id:
            others.add(study)
            continue
        _take(given[study], by_id[study], landmark, cells, where)
    if not given:
        raise UserError(f"{path}: gives no point of the {len(by_id)} studies; its studies are {_some(others)}")
    if others:
        log.warning("%s: %d studies are not graded here: their points are not used", path, len(others))
    count = sum(len(one.points) + len(one.marks) for one in given.values())
    log.info("%s: %d landmarks of %d of %d studies are given, and not looked for", path, count, len(given), len(by_id))
    return [
        replace(study, given=given[study.id].points, given_marks=tuple(given[study.id].marks), readings=())
        if study.id in given
        else study
        for study in studies
    ]


def _some(names: set[str]) -> str:
    return tables.some(sorted(names))


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of every row; columns that are not there are empty. UserError where ids are missing."""
    rows = tables.cells_of(path)
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    header = ["study_id" if name == "study" else name for name in header]
    if missing := [name for name in COLUMNS[:2] if name not in header]:
        raise UserError(f"{path}: no column {tables.some(missing)}; found {tables.some(header, 40) or 'nothing'}")
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise UserError(f"{path}: column {tables.some(doubled)} stands there twice; keep one")
    told = []
    for line, cells in rows[1:]:
        named = dict.fromkeys(OPTIONAL, "") | dict(zip(header, map(str.strip, cells), strict=False))
        named = dict.fromkeys(COLUMNS, "") | named
        told.append((line, named | {name: tables.id_text(named[name]) for name in ("study_id", "series", "file")}))
    return told


def _take(given: _Given, study: Study, landmark: str, cells: Mapping[str, str], where: str) -> None:
    """Add the place of one row: mm where they are given, else the centre of a box or the pixel of a file."""
    if any(cells[name] for name in MM):
        names = _names_of(cells["names"], where)
        doubt = bool(cells["names"])
        sure = _numbers(cells, ("confidence",), where)[0] if cells["confidence"] else 1.0
        if not 0 <= sure <= 1:
            raise UserError(f"{where}: confidence is {sure:g}; expected 0 to 1")
        given.points[landmark] = Point(np.array(_numbers(cells, MM, where)), sure, doubt, names)
        return
    if any(cells[name] for name in BOX):
        left, top, right, bottom = _numbers(cells, BOX, where)
        x, y = (left + right - 1) / 2, (top + bottom - 1) / 2  # edges of pixels are counted, and centres of pixels
    elif any(cells[name] for name in PIXEL):
        x, y = _numbers(cells, PIXEL, where)
    else:
        raise UserError(
            f"{where}: {landmark} has no place; give x_mm, y_mm and z_mm, or x and y of a file, or a box x0, y0, x1, y1"
        )
    series = _series_of(study, cells["series"], where)
    given.marks.append(Mark(landmark, series.id, _file_of(series, cells["file"], where), x, y))


def _numbers(cells: Mapping[str, str], columns: Sequence[str], where: str) -> list[float]:
    values = []
    for name in columns:
        try:
            values.append(float(cells[name].replace(",", ".")))  # exact, unlike the numbers of pandas
        except ValueError:
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            raise UserError(f"{where}: {name} is {cells[name]!r}; expected a number")
    return values


def _names_of(text: str, where: str) -> dict[str, float]:
    """The shares by name of a text such as a:0.7;b:0.3; none where nothing is known of them."""
    names: dict[str, float] = {}
    for part in text.split(";") if text and text != "unknown" else ():
        name, _, share = part.partition(":")
        try:
            names[name.strip()] = float(share)
        except ValueError:
            raise UserError(
                f"{where}: names holds {part!r}; expected LANDMARK:SHARE, or an empty cell where the level is certain"
            ) from None
    return names


def _series_of(study: Study, name: str, where: str) -> Series:
    """The series of a row; the only one where none is named."""
    own = [series for series in study.series if series.id == name or not name]
    if len(own) != 1:
        names = tables.some(series.id for series in study.series) or "none"
        what = f"no series {name!r}" if name else "several series, and the row names none"
        raise UserError(f"{where}: study {study.id} has {what}; its series are {names}")
    return own[0]


def _file_of(series: Series, name: str, where: str) -> str:
    """The file of a row, as its stem or the number of its slice; the only one where none is named."""
    if name:
        return stem_of(Path(name))
    if len(series.files) != 1:
        raise UserError(f"{where}: series {series.id} has several files; name one, or the number of its slice")
    return series.files[0].stem

"""All studies of a run in one page: a picture of each, filters by flag, class and confidence, and the slices on which
something was found.

    with Gallery(folder) as draw:
        draw(result, voters)        # FOLDER/<study>.jpg and FOLDER/slices/<study>/1.jpg ...
                                    # FOLDER/index.html when the block ends, however it ends

The page asks for nothing but the pictures beside it, and each of them only when it comes into view, so a folder of
thousands of studies opens at once. Names of studies and files are not trusted: they stand in the page as JSON in which
no sign can end a script, and are shown as text.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from osteograde.imaging import files
from osteograde.inference.submission import Result, result_flags
from osteograde.pipeline.ensemble import Voters
from osteograde.report import overlays
from osteograde.report.gallery_page import SCRIPT, STYLE
from osteograde.report.words import IMAGE, plain

log = logging.getLogger("osteograde.report")
INDEX, SLICES = "index.html", "slices"
SLICE_HEIGHT = 560  # pixels


@dataclass(frozen=True)
class Row:
    """A graded row. grade: index of the predicted class, -1 where the row holds the prior. sure: the probability of
    that class in per cent. flags: codes."""

    target: str
    grade: int
    sure: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A study of the page. picture: its address beside the page. slices: (address, words) of its slices."""

    id: str
    picture: str
    rows: tuple[Row, ...]
    slices: tuple[tuple[str, str], ...]


class Gallery:
    """Draws finished studies into a folder; the page is written when the block ends. OSError where the folder or a
    picture cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self.stems: set[str] = set()
        self.title, self.classes = "", tuple[str, ...]()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        """Write the page, also of a run that was interrupted. A disk that is full costs the page alone."""
        if not self.entries:
            return
        try:
            self.write()
        except OSError as error:
            log.warning("warning: %s could not be written: %s", self.folder / INDEX, error)
        else:
            log.info("written: %s, a page of %d studies; open it in a browser", self.folder / INDEX, len(self.entries))

    def __call__(self, result: Result, voters: Voters) -> None:
        """Draw a study."""
        study, stem = result.loaded.study.id, self._stem(result.loaded.study.id)
        self.title, self.classes = voters.task.name, voters.task.classes
        overlays.save(self.folder / f"{stem}.jpg", overlays.picture(result, voters))
        marks, slices = overlays.marks_of(result, voters), []
        for number, shown in enumerate(overlays.found_slices(result, voters), 1):
            place = Path(SLICES) / stem / f"{number}.jpg"
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            size = (SLICE_HEIGHT, max(1, round(SLICE_HEIGHT * shown.aspect)))
            overlays.save(self.folder / place, overlays.slice_picture(shown, marks, size))
            slices.append((address(place), overlays.title(shown, marks)))
        self.entries.append(Entry(study, address(Path(f"{stem}.jpg")), rows_of(result, voters), tuple(slices)))

    def write(self) -> None:
        """Write the page of the studies that were drawn. OSError where it cannot be written."""
        files.atomic_write(self.folder / INDEX, page(self.title, self.classes, self.entries))

    def _stem(self, study: str) -> str:
        """A file name of its own for each study of the run."""
        stem = plain_stem = overlays.file_stem(study)
        while stem in self.stems:
            stem = f"{plain_stem}-{len(self.stems)}"
        self.stems.add(stem)
        return stem


def address(path: Path) -> str:
    """A path beside the page as an address, whatever bytes it is made of."""
    return "/".join(quote(os.fsencode(part)) for part in path.parts)


def rows_of(result: Result, voters: Voters) -> tuple[Row, ...]:
    """The rows of a study in the order of the task: the predicted class and its probability, and the flags."""
    task, study = voters.task, result.loaded.study
    flags: dict[str, list[str]] = {}
    for row, code, _ in result_flags(task, result):
        flags.setdefault(row, []).append(code)
    rows = []
    for target, row_id in zip(task.targets_of(study.targets), task.rows(study.id, study.targets), strict=True):
        own, name = tuple(dict.fromkeys(flags.get(row_id, ()))), plain(target) or IMAGE
        if target in result.graded:
            values = result.graded[target][: len(task.classes)]
            top = int(np.argmax(values))
            rows.append(Row(name, top, round(100 * float(values[top]), 1), own))
        else:
            rows.append(Row(name, -1, 0.0, own))
    return tuple(rows)


def page(title: str, classes: tuple[str, ...], entries: list[Entry]) -> str:
    """The HTML of the page."""
    targets = list(dict.fromkeys(row.target for entry in entries for row in entry.rows))
    codes = sorted({code for entry in entries for row in entry.rows for code in row.flags})
    target_index, code_index = ({name: i for i, name in enumerate(names)} for names in (targets, codes))
    studies: list[dict[str, Any]] = []
    for entry in entries:
        told = asdict(entry)
        told["rows"] = [
            [target_index[row.target], row.grade, row.sure, [code_index[code] for code in row.flags]]
            for row in entry.rows
        ]
        studies.append(told)
    data = {"classes": list(map(plain, classes)), "targets": targets, "flags": codes, "studies": studies}
    name = escape(f"{title}: {len(entries)} studies".strip(": "))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body><main><h1>{name}</h1>"
        f'{CONTROLS}<p id="count" aria-live="polite"></p><div id="cards"></div><div id="end"></div>{VIEWER}</main>'
        "<noscript><p>This page lists its studies with JavaScript. The pictures lie beside it.</p></noscript>"
        f'<script type="application/json" id="data">{safe_json(data)}</script><script>{SCRIPT}</script></body></html>\n'
    )


CONTROLS = (
    '<form id="filter"><label>Study <input id="q" type="search" autocomplete="off"></label>'
    '<label>Flag <select id="flag"></select></label><label>Predicted class <select id="class"></select></label>'
    '<label><span>Probability at most <output id="mostsaid"></output></span>'
    '<input id="most" type="range" min="0" max="100" value="100"></label>'
    '<label>Order <select id="order"><option value="">as graded</option><option value="sure">least sure first</option>'
    "</select></label></form>"
)
VIEWER = (
    '<dialog id="viewer"><header><h2 id="name"></h2><div><button id="before">previous study</button> '
    '<button id="next">next study</button> <button id="close">close</button></div></header><div class="sides">'
    '<div id="slices"><p id="said" aria-live="polite"></p><div class="row"><button id="down">previous slice</button>'
    '<input id="slice" type="range" min="1" value="1" aria-label="slice"><button id="up">next slice</button></div>'
    '<img id="slicepicture" alt=""></div><div class="wide"><table><thead><tr><th>row</th><th>predicted class</th>'
    '<th class="n">probability</th><th>flags</th></tr></thead><tbody id="rows"></tbody></table></div></div>'
    '<img id="picture" alt=""></dialog>'
)


def safe_json(data: object) -> str:
    """JSON that can stand in a script element: no sign in it can end the element or begin a comment.

    >>> safe_json("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

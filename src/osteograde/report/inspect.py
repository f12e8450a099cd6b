"""What was counted in a folder of data, as one HTML page, one table, JSON, and text for a terminal."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Sequence
from datetime import datetime
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import cv2

from osteograde.imaging import files
from osteograde.report.charts import probability_bars, table
from osteograde.report.data_pictures import Case, Shot
from osteograde.report.style import document
from osteograde.tasks.census import Census, Counts, Fact

ROWS_ON_PAGE = 60
ROWS_ON_TERMINAL = 12
_QUALITY = 82  # of JPEGs
_WIDE = 4  # columns of a table that needs the whole width
_EXTRA = (
    "td,th[scope=row]{white-space:normal;overflow-wrap:anywhere;min-width:2.5rem}"
    ".cards,.tables{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:.4rem 1.4rem}"
    ".cards.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,470px),1fr))}"
    ".tables>div{min-width:0}.tables .all{grid-column:1/-1}"
    ".shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:.6rem}"
    ".shots figcaption,.case p{overflow-wrap:anywhere}"
)


def write(census: Census, out: Path, title: str, made: datetime, **galleries: Any) -> tuple[Path, Path]:
    """Write the page, and beside it a table of every figure (.csv); both paths are returned. galleries: see
    ``page``."""
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("section", "row", "column", "value"))
    lines.writerows(census.long_rows())
    beside = out.with_suffix(".csv")
    files.atomic_write(beside, text.getvalue())
    files.atomic_write(out, page(census, title, made, **galleries))
    return out, beside


def page(
    census: Census,
    title: str,
    made: datetime,
    *,
    classes: Sequence[str] = (),
    labels: Sequence[Case] = (),
    copies: Sequence[Case] = (),
) -> str:
    """The HTML of the page: what to look at, with pictures, then every fact and table. classes: names of the classes
    of the labels' probabilities. labels, copies: cases to be shown."""
    sections = {"To look at": _faults(census)}
    if labels:
        sections["Likeliest label errors, with pictures"] = _gallery(labels, classes, "cards")
    if copies:
        sections["Images that are there twice, with pictures"] = _gallery(copies, classes, "cards pairs")
    sections |= {"All that was counted": _facts(census), "Tables": _tables(census.tables)}
    return document(title, sections, lead=f"<p>Counted on {made:%Y-%m-%d %H:%M}.</p>", style=_EXTRA)


def _faults(census: Census) -> str:
    """What asks to be looked at, one paragraph each: readable on a phone."""
    if not census.faults:
        return "<p>Nothing was found that asks to be mended.</p>"
    return "".join(
        f'<article class="case"><h3>{fact.count} {escape(fact.what)}</h3>'
        f"<p>{escape(_share(fact))}{escape('; ' + fact.note if fact.note else '')}</p>"
        f"{f'<p>Such as {escape(fact.examples)}</p>' if fact.examples else ''}</article>"
        for fact in census.faults
    )


def _facts(census: Census) -> str:
    """Every fact, those that ask for nothing as well."""
    rows = []
    for fact in census.facts:
        words = [fact.note, f"such as {fact.examples}" if fact.examples and not fact.is_fault else ""]
        rows.append([fact.what, "; ".join(filter(None, words)) or "-", fact.count, _share(fact) or "-"])
    return table(["what was counted", "what follows", "count", "share"], rows, words=2)


def _tables(tables: Sequence[Counts]) -> str:
    """The tables side by side where they are narrow."""
    cards = []
    for one in tables:
        left = len(one.rows) - ROWS_ON_PAGE
        more = f"{left} more rows stand in the table beside this page." if left > 0 else ""
        text = table(one.head, one.rows[:ROWS_ON_PAGE], " ".join(filter(None, [one.note, more])), _words(one))
        wide = ' class="all"' if len(one.head) > _WIDE or _words(one) > 1 else ""
        cards.append(f"<div{wide}><h3>{escape(one.name.capitalize())}</h3>{text}</div>")
    return f'<div class="tables">{"".join(cards)}</div>'


def _words(one: Counts) -> int:
    """How many columns from the left on hold words."""
    kinds = [any(not isinstance(row[k], int) for row in one.rows) for k in range(1, len(one.head))]
    return 1 + max((k for k, is_words in enumerate(kinds, 1) if is_words), default=0)


def _gallery(cases: Sequence[Case], classes: Sequence[str], kind: str) -> str:
    return f'<div class="{kind}">{"".join(_card(case, classes) for case in cases)}</div>'


def _card(case: Case, classes: Sequence[str]) -> str:
    bars = probability_bars(classes, case.probs, case.label) if case.probs is not None else ""
    shots = "".join(map(_figure, case.shots)) or "<p>No picture could be cut.</p>"
    return (
        f'<article class="case"><h3>{escape(case.title)}</h3><p>{escape(case.words)}</p>{bars}'
        f'<div class="shots">{shots}</div></article>'
    )


def _figure(shot: Shot) -> str:
    height, width = shot.image.shape[:2]
    _, data = cv2.imencode(".jpg", shot.image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
    return (
        f'<figure><img src="{uri}" width="{width}" height="{height}" alt="{escape(shot.words)}">'
        f"<figcaption>{escape(shot.words)}</figcaption></figure>"
    )


def _share(fact: Fact) -> str:
    return f"{100 * fact.count / fact.of:.1f} % of {fact.of}" if fact.of else ""


def lines(census: Census) -> list[str]:
    """The census for a terminal: what to look at first, then all counts, then short tables."""
    found = ["To look at:" if census.faults else "Nothing was found that asks to be mended."]
    for fact in census.faults:
        found.append(f"  {_line(fact)}" + (f" ({fact.note})" if fact.note else ""))
        found += [f"      {fact.examples}"] if fact.examples else []
    found += ["", "Counted:"]
    found += [f"  {_line(fact)}" for fact in census.facts if not fact.is_fault]
    found += ["", "Looked for and not found:"]
    found += [f"  {fact.what}" for fact in census.facts if fact.is_fault and not fact.count]
    for one in census.tables:
        found += ["", f"{one.name}:", *_text_table(one)]
    return found


def _line(fact: Fact) -> str:
    return f"{fact.what}: {fact.count}" + (f" of {fact.of}" if fact.of else "")


def _text_table(one: Counts) -> list[str]:
    """A table as aligned text, cut where it is long."""
    cells = [[str(cell) for cell in row] for row in (one.head, *one.rows[:ROWS_ON_TERMINAL])]
    widths = [max(len(row[k]) for row in cells) for k in range(len(one.head))]
    numbers = [all(isinstance(row[k], int) for row in one.rows) for k in range(len(one.head))]
    texts = []
    for row in cells:
        padded = [cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(row, widths, numbers, strict=True)]
        texts.append(f"  {'  '.join(padded)}".rstrip())
    left = len(one.rows) - ROWS_ON_TERMINAL
    return [*texts, *([f"  and {left} more rows"] if left > 0 else [])]


def as_json(census: Census) -> str:
    """Everything that was counted, as one JSON object with the lists "facts" and "tables"."""
    facts = [
        {"what": fact.what, "count": fact.count, "of": fact.of, "examples": fact.examples, "note": fact.note,
         "fault": fact.is_fault}
        for fact in census.facts
    ]  # fmt: skip
    tables = [
        {"name": one.name, "columns": list(one.head), "rows": [list(row) for row in one.rows], "note": one.note}
        for one in census.tables
    ]
    return json.dumps({"facts": facts, "tables": tables}, default=str)

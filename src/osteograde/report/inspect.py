"""What was counted in a folder of data, as one HTML page and one table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime
from html import escape
from io import StringIO
from pathlib import Path

from osteograde.imaging import files
from osteograde.report.charts import table
from osteograde.report.style import CSS
from osteograde.tasks.census import Census, Fact

PAGE, TABLE = "inspect.html", "inspect.csv"


def write(census: Census, title: str, folder: Path, made: datetime) -> tuple[Path, Path]:
    """Write the page and the table into a folder; their paths are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    text = StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(("section", "row", "column", "value"))
    out.writerows(census.long_rows())
    files.atomic_write(folder / TABLE, text.getvalue())
    files.atomic_write(folder / PAGE, page(census, title, made))
    return folder / PAGE, folder / TABLE


def page(census: Census, title: str, made: datetime) -> str:
    """The HTML of the page: the facts, then every table of counts."""
    rows = [[fact.what, fact.count, _share(fact), fact.examples or "-", fact.note or "-"] for fact in census.facts]
    head = ["what was counted", "count", "share", "examples", "what follows"]
    sections = [("Facts", table(head, rows))]
    sections += [(one.name.capitalize(), table(one.head, one.rows, one.note)) for one in census.tables]
    body = "".join(f"<section><h2>{escape(name)}</h2>{text}</section>" for name, text in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}td{{white-space:normal}}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p>Counted from tables and headers on {made:%Y-%m-%d %H:%M}; no pixel was read.</p>"
        f"{body}</main></body></html>\n"
    )


def _share(fact: Fact) -> str:
    return f"{100 * fact.count / fact.of:.1f} % of {fact.of}" if fact.of else "-"


def lines(facts: Sequence[Fact]) -> list[str]:
    """The facts for the log, one line each."""
    return [f"{fact.what}: {fact.count}" + (f" of {fact.of}" if fact.of else "") for fact in facts]

"""The curves of training as small charts: loss and held-out loss of every net over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from osteograde.learning import history
from osteograde.report.charts import BLUE, GREY, ORANGE

WIDTH, HEIGHT, MARGIN = 220, 90, 18


def section(folder: Path) -> str:
    """A chart per net of a weights folder whose history lies in it; "" where none does."""
    charts = [
        chart(path.stem, rows)
        for path in sorted((folder / history.FOLDER).glob("*.jsonl"))
        if (rows := history.read(path))
    ]
    if not charts:
        return ""
    said = "Mean loss of an epoch (blue) and loss on the held-out fold (orange; dots where it was measured)."
    return f"<p>{said}</p><div>{''.join(charts)}</div>"


def chart(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """An inline SVG of one net. rows: as ``learning.history`` writes them."""
    values = [row[key] for row in rows for key in ("loss", "held_out_loss") if row[key] is not None]
    low, high = min(values), max(values)
    last = max(row["epoch"] for row in rows)

    def place(epoch: int, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (epoch - 1) / max(1, last - 1)
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / ((high - low) or 1)

    lines = []
    for key, colour in (("loss", BLUE), ("held_out_loss", ORANGE)):
        points = [place(row["epoch"], row[key]) for row in rows if row[key] is not None]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        lines.append(f'<polyline points="{joined}" fill="none" stroke="{colour}"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{colour}"/>' for x, y in points]
    words = (
        f'<text x="2" y="10" font-size="9">{escape(name)}</text>'
        f'<text x="{WIDTH - 2}" y="10" font-size="8" fill="{GREY}" text-anchor="end">{low:.3g} to {high:.3g}, '
        f"{last} epochs</text>"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="loss of {escape(name)}">{words}{"".join(lines)}</svg>'
    )

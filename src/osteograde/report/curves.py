"""The curves of training as small charts: loss and held-out loss of every net over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from osteograde.learning import history
from osteograde.report.charts import WIDTH, line, svg, text

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 150.0, 48.0, 10.0, 8.0, 34.0


def section(folder: Path) -> str:
    """A chart per net of a weights folder whose history lies in it; "" where none does."""
    charts = [
        f"<figure><figcaption>{escape(path.stem)}</figcaption>{chart(path.stem, rows)}</figure>"
        for path in sorted((folder / history.FOLDER).glob("*.jsonl"))
        if (rows := history.read(path))
    ]
    if not charts:
        return ""
    said = "Loss of each net over its epochs: "
    key = (
        '<span class="s0">mean loss of the epoch</span>, <span class="s1">loss on the held-out fold</span> '
        "(dots where it was measured)."
    )
    return f'<p>{said}{key}</p><div class="charts">{"".join(charts)}</div>'


def chart(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """An inline SVG of one net. rows: as ``learning.history`` writes them."""
    values = [row[key] for row in rows for key in ("loss", "held_out_loss") if row[key] is not None]
    low, high = min(values), max(values)
    last = max(row["epoch"] for row in rows)
    floor, end = HEIGHT - BOTTOM, WIDTH - RIGHT

    def place(epoch: int, value: float) -> tuple[float, float]:
        x = LEFT + (end - LEFT) * (epoch - 1) / max(1, last - 1)
        return x, floor - (floor - TOP) * (value - low) / ((high - low) or 1)

    parts = [line(LEFT, floor, end, floor, "axis"), line(LEFT, TOP, LEFT, floor, "axis")]
    parts += [text(LEFT - 5, TOP + 8, f"{high:.3g}", "end"), text(LEFT - 5, floor, f"{low:.3g}", "end")]
    parts.append(text(LEFT, floor + 15, "1", "middle"))
    parts += [text(end, floor + 15, str(last), "end")] if last > 1 else []
    parts.append(text((LEFT + end) / 2, floor + 28, "epoch", "middle"))
    for key, kind in (("loss", "s0"), ("held_out_loss", "s1")):
        points = [place(row["epoch"], row[key]) for row in rows if row[key] is not None]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{joined}" class="{kind}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" class="{kind}"/>' for x, y in points]
    return svg(WIDTH, HEIGHT, parts, f"loss of {name}: {low:.3g} to {high:.3g}, {last} epochs")

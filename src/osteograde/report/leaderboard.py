"""What submissions scored on a leaderboard beside what their weights scored out-of-fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from osteograde.report.charts import WIDTH, Html, between, line, number, svg, table, text, upright

BOARDS = ("public", "private")


@dataclass(frozen=True)
class Entry:
    """A submission that was scored. score, interval: of its weights out-of-fold. public, private: None where the
    service does not tell. name: as people call it. own: whether the page is about its weights."""

    name: str
    score: float | None
    interval: tuple[float | None, float | None]
    public: float | None
    private: float | None
    own: bool = False


def section(entries: Sequence[Entry], better: str) -> str:
    """A chart and a table of the submissions; "" where none was scored. better: "higher" or "lower"."""
    scored = [one for one in entries if one.public is not None or one.private is not None]
    if not scored:
        return ""
    body = [
        [
            Html(f"<b>{escape(one.name)}</b> (these weights)") if one.own else one.name,
            number(one.score, 4),
            between(*one.interval, 4),
            number(one.public, 4),
            number(one.private, 4),
        ]
        for one in scored
    ]
    said = (
        f"Each submission of this task that was scored; {better} is better. Above the dashed line the "
        "leaderboard shows the greater number, below it the score out-of-fold is; "
        "the bar is its 95 % interval."
    )
    key = '<span class="s0">public</span> and <span class="s1">private</span> leaderboard.'
    head = ["submission", "out-of-fold", "95 % interval", "public", "private"]
    return f"<p>{said} {key}</p>{chart(scored)}{table(head, body)}"


def chart(entries: Sequence[Entry]) -> str:
    """An inline SVG: across the score out-of-fold with its interval, upwards the scores of the leaderboard. "" where no
    entry has both."""
    drawn = [
        (one, board, float(one.score), float(value))
        for one in entries
        for board in BOARDS
        if one.score is not None and (value := getattr(one, board)) is not None
    ]
    if not drawn:
        return ""
    values = [v for one, _, x, y in drawn for v in (x, y, *one.interval) if v is not None and np.isfinite(v)]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * (abs(low) or 1.0)
    low, high = low - margin, high + margin
    left, top, side = 54.0, 8.0, WIDTH - 54.0 - 12.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + side * (x - low) / (high - low), top + side * (high - y) / (high - low)

    parts = [f'<rect x="{left}" y="{top}" width="{side}" height="{side}" class="axis"/>']
    parts.append(line(*place(low, low), *place(high, high), "axis", dash="4 3"))
    for tick in np.linspace(low, high, 5)[1:-1]:
        x, y = place(tick, tick)
        parts += [text(left - 6, y + 4, f"{tick:.3g}", "end"), text(x, top + side + 17, f"{tick:.3g}", "middle")]
    for one, board, x, y in drawn:
        kind = f"s{BOARDS.index(board)}"
        begin, end = one.interval
        if begin is not None and end is not None:
            parts.append(line(*place(begin, y), *place(end, y), f"stroke {kind}"))
        at, up = place(x, y)
        title = f"<title>{escape(one.name)}: out-of-fold {number(x, 4)}, {board} {number(y, 4)}</title>"
        parts.append(f'<circle cx="{at:.1f}" cy="{up:.1f}" r="{6 if one.own else 4}" class="{kind}">{title}</circle>')
    parts.append(text(left + side / 2, top + side + 36, "score out-of-fold", "middle"))
    parts.append(upright(14, top + side / 2, "score on the leaderboard"))
    label = f"Leaderboard against out-of-fold scores of {len({one.name for one, *_ in drawn})} submissions"
    return svg(WIDTH, top + side + 44, parts, label)

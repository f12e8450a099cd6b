"""Charts as inline SVG and tables as HTML, so that a page needs no script, no font and no other file.

A chart is at most ``WIDTH`` pixels wide, so that its words are as large on a phone as elsewhere. Colours come from the
page's style sheet (style.py), which knows light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from osteograde.report.style import SERIES

WIDTH = 320.0  # pixels: what a phone of 400 pixels leaves beside two margins
LARGEST_MM = 15.0  # larger errors are counted in one last bar
BIN_MM = 0.5


class Html(str):
    """Text that is HTML already and is shown as it is; all other text of a table is escaped."""


def number(value: float | None, digits: int = 3) -> str:
    """A number as text, or a dash where there is none.

    >>> number(0.12345), number(None), number(float("nan")), number(7)
    ('0.123', '-', '-', '7')
    """
    if value is None or not np.isfinite(value):
        return "-"
    return str(value) if isinstance(value, (int, np.integer)) else f"{value:.{digits}f}"


def between(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval as text, or a dash where an end is missing.

    >>> between(0.1, 0.25), between(None, 1.0)
    ('0.100 to 0.250', '-')
    """
    ends = (number(low, digits), number(high, digits))
    return "-" if "-" in ends else " to ".join(ends)


def table(head: Sequence[str], body: Sequence[Sequence[object]], caption: str = "", words: int = 1) -> str:
    """An HTML table. The first ``words`` columns hold words; the others hold numbers and are aligned to the right."""
    top = "".join(f'<th scope="col"{_kind(i, words)}>{escape(name)}</th>' for i, name in enumerate(head))
    rows = []
    for row in body:
        cells = [f'<th scope="row">{_shown(row[0])}</th>']
        cells += [f"<td{_kind(i, words)}>{_shown(cell)}</td>" for i, cell in enumerate(row[1:], 1)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = f'<p class="cap">{escape(caption)}</p>' if caption else ""
    return f'{title}<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _shown(cell: object) -> str:
    return cell if isinstance(cell, Html) else escape(str(cell))


def _kind(column: int, words: int) -> str:
    return "" if column < words else ' class="n"'


def series(index: int) -> str:
    """The style class of a series."""
    return f"s{index % SERIES}"


def swatch(index: int, name: str) -> Html:
    """A name with the colour of its series before it."""
    return Html(f'<span class="swatch {series(index)}"></span>{escape(name)}')


def confusion_table(matrix: np.ndarray, classes: Sequence[str], caption: str) -> str:
    """A confusion matrix as an HTML table. matrix: (K, K) counts, rows the truth. Each cell shows its count and its
    share of the row, and is shaded by that share."""
    head = "".join(f'<th scope="col" class="n">{escape(name)}</th>' for name in classes)
    rows = []
    for name, counts in zip(classes, matrix, strict=True):
        total = int(counts.sum())
        cells = "".join(_shaded(int(count), int(count) / total if total else 0.0) for count in counts)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="n">{total}</td></tr>')
    return (
        f'<div><p class="cap">{escape(caption)}</p><div class="wide"><table class="heat"><thead><tr>'
        f'<th scope="col">true \\ predicted</th>{head}<th scope="col" class="n">all</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _shaded(count: int, part: float) -> str:
    """A cell of a confusion matrix. part: its share of the row, 0 to 1."""
    return f'<td class="n cell" style="--p:{100 * part:.0f}">{count}<small>{100 * part:.0f} %</small></td>'


def interval_bar(
    value: float, ends: tuple[float | None, float | None], prior: float | None, scale: tuple[float, float], label: str
) -> str:
    """A value with its interval as a bar on a line from ``scale[0]`` to ``scale[1]``, and the prior's answer as a tick
    below. label: read out by screen readers."""
    left, width, y = 14.0, WIDTH - 28.0, 34.0
    span = (scale[1] - scale[0]) or 1.0
    place = lambda v: left + width * float(np.clip((v - scale[0]) / span, 0, 1))  # noqa: E731
    parts = [line(left, y, left + width, y, "axis")]
    low, high = ends
    if low is not None and high is not None:
        x0, wide = place(low), max(place(high) - place(low), 4.0)
        title = f"<title>95 % interval {between(low, high)}</title>"
        shape = f'x="{x0:.1f}" y="{y - 8}" width="{wide:.1f}" height="16" rx="2"'
        parts.append(f'<rect {shape} class="fill s0">{title}</rect>')
    parts.append(line(place(value), y - 12, place(value), y + 12, "stroke"))
    parts.append(text(_inside(place(value), 24), 20, number(value), "middle", "big"))
    if prior is not None and np.isfinite(prior):
        parts.append(line(place(prior), y - 8, place(prior), y + 8, "stroke s1"))
        parts.append(text(_inside(place(prior), 42), y + 22, f"prior {number(prior)}", "middle", "s1"))
    for x, end, anchor in ((left, scale[0], "start"), (left + width, scale[1], "end")):
        crowded = prior is not None and np.isfinite(prior) and abs(_inside(place(prior), 42) - x) < 80
        parts += [] if crowded else [text(x, y + 22, f"{end:.3g}", anchor, "soft")]
    return svg(WIDTH, y + 30, parts, label)


def _inside(x: float, half: float) -> float:
    """Where a word of so much half width stands whole."""
    return min(max(x, half), WIDTH - half)


def small_span(value: float | None, ends: Sequence[float | None], prior: float | None, top: float) -> Html:
    """The same as a line of a table: a whisker for the interval, a dot for the value, a tick for the prior."""
    width, height = 110.0, 18.0
    place = lambda v: 4 + (width - 8) * float(np.clip(v / (top or 1.0), 0, 1))  # noqa: E731
    parts = [line(4, height / 2, width - 4, height / 2, "rule")]
    if None not in ends:
        parts.append(line(place(ends[0]), height / 2, place(ends[1]), height / 2, "stroke s0"))
    if prior is not None and np.isfinite(prior):
        parts.append(line(place(prior), 3, place(prior), height - 3, "stroke s1"))
    if value is not None and np.isfinite(value):
        parts.append(f'<circle cx="{place(value):.1f}" cy="{height / 2}" r="3.5" class="s0"/>')
    return Html(svg(width, height, parts, f"{number(value)} of {top:.3g}"))


def forest(rows: Sequence[tuple[str, float, float, float]], words: str, label: str) -> str:
    """Differences with their intervals under each other around a line at zero. rows: (name, value, low, high)."""
    step, top, left, right = 40.0, 8.0, 14.0, WIDTH - 14.0
    known = [v for _, *values in rows for v in values if np.isfinite(v)]
    reach = max([abs(v) for v in known] or [1.0]) * 1.1 or 1.0
    place = lambda v: (left + right) / 2 + (right - left) / 2 * float(np.clip(v / reach, -1, 1))  # noqa: E731
    floor = top + step * len(rows)
    parts = [line(place(0), top, place(0), floor, "axis")]
    for i, (name, value, low, high) in enumerate(rows):
        y = top + step * i + 28
        parts.append(text(left, y - 13, _short(name, 46), "start"))
        if np.isfinite([value, low, high]).all():
            parts.append(line(place(low), y, place(high), y, "stroke s0"))
            title = f"<title>{escape(name)}: {value:+.4f} ({low:+.4f} to {high:+.4f})</title>"
            parts.append(f'<circle cx="{place(value):.1f}" cy="{y}" r="4.5" class="s0">{title}</circle>')
    for x, v, anchor in ((left, -reach, "start"), (place(0), 0.0, "middle"), (right, reach, "end")):
        parts.append(text(x, floor + 14, f"{v:+.2g}" if v else "0", anchor, "soft"))
    parts.append(text(WIDTH / 2, floor + 32, words, "middle"))
    return svg(WIDTH, floor + 40, parts, label)


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 3] + "..."


def curve_chart(
    curves: Sequence[tuple[int, np.ndarray]], x_words: str, y_words: str, label: str, diagonal: bool = False
) -> str:
    """Curves in the unit square. curves: (number of the series, (n, 2) points)."""
    left, top, side = 46.0, 8.0, WIDTH - 46.0 - 12.0
    place = lambda x, y: (left + side * x, top + side * (1 - y))  # noqa: E731
    parts = [*_unit_square(left, top, side), text(left + side / 2, top + side + 36, x_words, "middle")]
    parts.append(upright(14, top + side / 2, y_words))
    if diagonal:
        parts.append(line(*place(0, 0), *place(1, 1), "axis", dash="4 3"))
    for index, points in curves:
        joined = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        dash = ' stroke-dasharray="6 3"' if index >= SERIES else ""
        parts.append(f'<polyline points="{joined}" class="{series(index)}"{dash}/>')
    return svg(WIDTH, top + side + 44, parts, label)


def _unit_square(left: float, top: float, side: float) -> list[str]:
    """A frame with its ticks from 0 to 1 on both sides."""
    parts = [f'<rect x="{left}" y="{top}" width="{side}" height="{side}" class="axis"/>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(text(left - 6, top + side * (1 - tick) + 4, f"{tick:g}", "end"))
        parts.append(text(left + side * tick, top + side + 17, f"{tick:g}", "middle"))
    return parts


def histogram(errors_mm: np.ndarray, label: str) -> str:
    """A histogram as SVG: bars of ``BIN_MM`` up to ``LARGEST_MM`` and one for all larger errors, with lines at the
    median and at the 95th percentile. label: read out by screen readers."""
    edges = np.arange(0, LARGEST_MM + BIN_MM / 2, BIN_MM)
    counts = np.append(np.histogram(errors_mm[errors_mm < LARGEST_MM], edges)[0], (errors_mm >= LARGEST_MM).sum())
    height, left, top = 150.0, 40.0, 38.0
    width, most = WIDTH - left - 8, max(1, int(counts.max()))
    step = width / len(counts)
    parts = [
        f'<rect x="{left + i * step + 0.5:.1f}" y="{top + height * (1 - n / most):.1f}" width="{step - 1:.1f}" '
        f'height="{height * n / most:.1f}" class="bar"><title>{_bin_name(i, len(counts))}: {n}</title></rect>'
        for i, n in enumerate(counts)
        if n
    ]
    for mm in range(0, int(LARGEST_MM), 5):
        parts.append(text(left + mm / BIN_MM * step, top + height + 16, str(mm), "middle"))
    parts.append(text(left + width, top + height + 16, f">{LARGEST_MM:.0f}", "end"))
    parts.append(text(left + width / 2, top + height + 34, "distance to the annotated point, mm", "middle"))
    parts += [text(left - 6, top + 10, str(most), "end"), text(left - 6, top + height, "0", "end")]
    parts.append(line(left, top + height, left + width, top + height, "axis"))
    for row, (name, percent, kind) in enumerate((("median", 50, "s1"), ("95 %", 95, "s3"))):
        value = float(np.percentile(errors_mm, percent))
        x, y = left + min(value, LARGEST_MM) / BIN_MM * step, 14 + 17 * row
        side, shift = ("start", 5) if value < LARGEST_MM / 2 else ("end", -5)
        parts.append(line(x, y - 10, x, top + height, f"stroke {kind}", dash="4 3"))
        parts.append(text(x + shift, y, f"{name} {value:.2f} mm", side, kind))
    return svg(WIDTH, top + height + 42, parts, label)


def _bin_name(i: int, bins: int) -> str:
    return f"over {LARGEST_MM:g} mm" if i == bins - 1 else f"{i * BIN_MM:g} to {(i + 1) * BIN_MM:g} mm"


def probability_bars(classes: Sequence[str], probs: np.ndarray, true: int) -> str:
    """A bar for the probability of each class as SVG, each with its number; that of the true class is orange. probs:
    (K,), true: index of the true class."""
    left, step, full = 96.0, 20.0, 280.0
    width, parts = full - left - 46, []
    for k, (name, p) in enumerate(zip(classes, probs, strict=True)):
        kind, y = ("s1" if k == true else "s0"), step * k
        parts.append(text(left - 6, y + 14, _short(name, 14), "end", kind if k == true else ""))
        parts.append(
            f'<rect x="{left}" y="{y + 3:.1f}" width="{width * p:.1f}" height="{step - 6}" class="fill {kind}"/>'
        )
        parts.append(text(left + width * p + 6, y + 14, f"{p:.2f}", "start"))
    said = ", ".join(f"{name} {p:.3f}" for name, p in zip(classes, probs, strict=True))
    return f'<div class="bars">{svg(full, step * len(classes) + 2, parts, f"Probabilities: {said}")}</div>'


def reliability_chart(confidence: np.ndarray, right: np.ndarray, count: np.ndarray, label: str) -> str:
    """Reliability diagram: the share that is correct over the predicted probability, the diagonal of perfect
    calibration, and the rows of each bin below."""
    left, top, bars = 46.0, 10.0, 50.0
    side = WIDTH - left - 12.0
    place = lambda x, y: (left + side * x, top + side * (1 - y))  # noqa: E731
    parts = [*_unit_square(left, top, side), line(*place(0, 0), *place(1, 1), "axis", dash="4 3")]
    seen = np.flatnonzero(count)
    spots = [place(confidence[i], right[i]) for i in seen]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts.append(f'<polyline points="{joined}" class="s0"/>')
    floor, bin_width = top + side + bars + 28, side / len(count)
    for i, (x, y) in zip(seen, spots, strict=True):
        title = f"<title>{count[i]} rows: mean probability {confidence[i]:.3f}, correct {right[i]:.3f}</title>"
        tall = bars * count[i] / count.max()
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="s0">{title}</circle>')
        parts.append(
            f'<rect x="{left + i * bin_width + 0.5:.1f}" y="{floor - tall:.1f}" width="{bin_width - 1:.1f}" '
            f'height="{tall:.1f}" class="grey">{title}</rect>'
        )
    parts.append(text(left - 6, floor - bars + 8, str(count.max()), "end"))
    parts.append(text(left - 6, floor, "rows", "end"))
    parts.append(line(left, floor, left + side, floor, "axis"))
    parts.append(text(left + side / 2, floor + 18, "probability of the predicted class", "middle"))
    parts.append(upright(14, top + side / 2, "share that is right"))
    return svg(WIDTH, floor + 26, parts, label)


def svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """A picture of so many pixels. label: read out by screen readers."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    """Words at a place. anchor: which part of them stands there. kind: their style class."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def upright(x: float, y: float, words: str) -> str:
    """Words that are read from below to above."""
    return f'<text x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str, dash: str = "") -> str:
    """A line between two places. kind: its style class."""
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{style}/>'

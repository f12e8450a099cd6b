"""Charts as inline SVG and tables as HTML, so that a page needs no script, no font and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

BLUE, ORANGE, GREY, INK = "#1f5fa8", "#b3530a", "#8a929c", "#1a1f26"
LARGEST_MM = 15.0  # larger errors are counted in one last bar
BIN_MM = 0.5


def number(value: float | None, digits: int = 3) -> str:
    """A number as text, or a dash where there is none.

    >>> number(0.12345), number(None), number(float("nan")), number(7)
    ('0.123', '-', '-', '7')
    """
    if value is None or not np.isfinite(value):
        return "-"
    return str(value) if isinstance(value, (int, np.integer)) else f"{value:.{digits}f}"


def table(head: Sequence[str], body: Sequence[Sequence[object]], caption: str = "", words: int = 1) -> str:
    """An HTML table. The first ``words`` columns hold words; the others hold numbers and are aligned to the right."""
    top = "".join(f'<th scope="col"{_kind(i, words)}>{escape(name)}</th>' for i, name in enumerate(head))
    rows = []
    for row in body:
        cells = [f'<th scope="row">{escape(str(row[0]))}</th>']
        cells += [f"<td{_kind(i, words)}>{escape(str(cell))}</td>" for i, cell in enumerate(row[1:], 1)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _kind(column: int, words: int) -> str:
    return "" if column < words else ' class="n"'


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
        f'<div class="wide"><table class="heat"><caption>{escape(caption)}</caption><thead><tr>'
        f'<th scope="col">true \\ predicted</th>{head}<th scope="col" class="n">all</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _shaded(count: int, part: float) -> str:
    """A cell of a confusion matrix. part: its share of the row, 0 to 1."""
    low, high = np.array([255, 255, 255]), np.array([31, 95, 168])
    red, green, blue = np.rint(low + (high - low) * part).astype(int)
    ink = "#ffffff" if part > 0.55 else INK
    return (
        f'<td class="n" style="background:rgb({red},{green},{blue});color:{ink}">{count}'
        f"<small>{100 * part:.0f} %</small></td>"
    )


def histogram(errors_mm: np.ndarray, label: str) -> str:
    """A histogram as SVG: bars of ``BIN_MM`` up to ``LARGEST_MM`` and one for all larger errors, with lines at the
    median and at the 95th percentile. label: read out by screen readers."""
    edges = np.arange(0, LARGEST_MM + BIN_MM / 2, BIN_MM)
    counts = np.append(np.histogram(errors_mm[errors_mm < LARGEST_MM], edges)[0], (errors_mm >= LARGEST_MM).sum())
    width, height, left, top = 640.0, 180.0, 44.0, 34.0
    step, most = width / len(counts), max(1, int(counts.max()))
    parts = [
        f'<rect x="{left + i * step + 0.5:.1f}" y="{top + height * (1 - n / most):.1f}" width="{step - 1:.1f}" '
        f'height="{height * n / most:.1f}" fill="{BLUE}"><title>{_bin_name(i, len(counts))}: {n}</title></rect>'
        for i, n in enumerate(counts)
        if n
    ]
    for mm in range(0, int(LARGEST_MM), 5):
        parts.append(_text(left + mm / BIN_MM * step, top + height + 18, str(mm), "middle"))
    parts.append(_text(left + width - step / 2, top + height + 18, f">{LARGEST_MM:.0f}", "middle"))
    parts.append(_text(left + width / 2, top + height + 36, "distance to the annotated point, mm", "middle"))
    parts += [_text(left - 6, top + 10, str(most), "end"), _text(left - 6, top + height, "0", "end")]
    parts.append(_line(left, top + height, left + width, top + height, GREY))
    for line, (name, percent, colour) in enumerate((("median", 50, ORANGE), ("95 %", 95, INK))):
        value = float(np.percentile(errors_mm, percent))
        x, y = left + min(value, LARGEST_MM) / BIN_MM * step, 12 + 16 * line
        side, shift = ("start", 4) if value < LARGEST_MM / 2 else ("end", -4)
        parts.append(_line(x, y - 8, x, top + height, colour, dash="4 3"))
        parts.append(_text(x + shift, y, f"{name} {value:.2f} mm", side, colour))
    return _svg(left + width + 12, top + height + 44, parts, label)


def _bin_name(i: int, bins: int) -> str:
    return f"over {LARGEST_MM:g} mm" if i == bins - 1 else f"{i * BIN_MM:g} to {(i + 1) * BIN_MM:g} mm"


def probability_bars(classes: Sequence[str], probs: np.ndarray, true: int) -> str:
    """A bar for the probability of each class as SVG, each with its number; that of the true class is orange. probs:
    (K,), true: index of the true class."""
    left, width, step = 90.0, 240.0, 18.0
    parts = []
    for k, (name, p) in enumerate(zip(classes, probs, strict=True)):
        colour, y = ORANGE if k == true else BLUE, step * k
        parts.append(_text(left - 6, y + 13, name, "end", colour))
        parts.append(f'<rect x="{left}" y="{y + 3:.1f}" width="{width * p:.1f}" height="{step - 6}" fill="{colour}"/>')
        parts.append(_text(left + width * p + 6, y + 13, f"{p:.3f}", "start", colour))
    said = ", ".join(f"{name} {p:.3f}" for name, p in zip(classes, probs, strict=True))
    return f'<div class="bars">{_svg(left + width + 60, step * len(classes), parts, f"Probabilities: {said}")}</div>'


def reliability_chart(confidence: np.ndarray, right: np.ndarray, count: np.ndarray, label: str) -> str:
    """Reliability diagram: the share that is correct over the predicted probability, the diagonal of perfect
    calibration, and the rows of each bin below."""
    side, left, top, bars = 320.0, 52.0, 12.0, 60.0
    place = lambda x, y: (left + side * x, top + side * (1 - y))  # noqa: E731
    parts = [f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="{GREY}"/>']
    parts.append(_line(*place(0, 0), *place(1, 1), GREY, dash="4 3"))
    for tick in (0, 0.25, 0.5, 0.75, 1):
        (x, _), (_, y) = place(tick, 0), place(0, tick)
        parts += [_text(left - 6, y + 4, f"{tick:g}", "end"), _text(x, top + side + bars + 34, f"{tick:g}", "middle")]
    seen = np.flatnonzero(count)
    spots = [place(confidence[i], right[i]) for i in seen]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    floor, bin_width = top + side + bars + 18, side / len(count)
    for i, (x, y) in zip(seen, spots, strict=True):
        title = f"<title>{count[i]} rows: mean probability {confidence[i]:.3f}, correct {right[i]:.3f}</title>"
        tall = bars * count[i] / count.max()
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}">{title}</circle>')
        parts.append(
            f'<rect x="{left + i * bin_width + 0.5:.1f}" y="{floor - tall:.1f}" width="{bin_width - 1:.1f}" '
            f'height="{tall:.1f}" fill="{GREY}">{title}</rect>'
        )
    parts.append(_text(left - 6, floor - bars + 8, str(count.max()), "end"))
    parts.append(_text(left - 6, floor, "rows", "end"))
    parts.append(_line(left, floor, left + side, floor, GREY))
    parts.append(_text(left + side / 2, floor + 34, "probability of the predicted class", "middle"))
    parts.append(
        f'<text x="14" y="{top + side / 2}" text-anchor="middle" transform="rotate(-90 14 {top + side / 2})">'
        "share that is right</text>"
    )
    return _svg(left + side + 12, floor + 42, parts, label)


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" '
        f'aria-label="{escape(label)}" font-size="12" fill="{INK}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{style}/>'

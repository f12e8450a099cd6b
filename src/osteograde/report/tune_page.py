"""The page of a search: one HTML page that loads no other file, made from ``tune.json`` alone (``nested.result``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from osteograde.learning import compare, space
from osteograde.learning.nested import DONE, PRUNED, REFUSED
from osteograde.learning.space import Choice, Dimension
from osteograde.logs import duration
from osteograde.report.charts import WIDTH, Html, between, forest, line, number, svg, table, text
from osteograde.report.style import document

Found = Mapping[str, Any]
DIGITS = 4
HALO = "paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round"  # words above lines
ROW = 62.0  # pixels of height of a key in parallel coordinates: axes lie above each other, so that a phone shows them


def page(found: Found) -> str:
    """The HTML of the page. found: as ``nested.result`` gives it."""
    search = found["search"]
    title = f"{search['task']}: search for settings of {search['recipe']['name']}"
    parallel = "".join(_fold_figure(row, _parallel(row, found)) for row in found["folds"])
    sections = {
        "Result": _result(found),
        "Best settings": _best(found),
        "Against the default": _against_default(found),
        "Inner against outer": _inner_outer(found),
        "Trials": "".join(_fold_figure(row, _history(row, found["better"])) for row in found["folds"]),
        "Settings and scores": _lead() + f'<div class="charts">{parallel}</div>',
        "Importances": _importances(found),
        "Held-out loss and pruning": "".join(_fold_figure(row, _losses(row)) for row in found["folds"]),
        "All trials": "".join(_trial_table(row, found) for row in found["folds"]),
        "How it was searched": _how(found),
    }
    sections = {name: body for name, body in sections.items() if body}
    charts = {
        name: f'<div class="charts">{body}</div>' if body.startswith("<figure") else body
        for name, body in sections.items()
    }
    return document(title, charts)


def _fold_figure(row: Found, drawn: str) -> str:
    return f"<figure><h3>Outer fold {row['fold']}</h3>{drawn}</figure>" if drawn else ""


def _words(found: Found) -> str:
    score = found["score"][:1].lower() + found["score"][1:]
    return f"{score} ({found['better']} is better)"


def _result(found: Found) -> str:
    """The outer score of the chosen settings in large, and what it means."""
    mean, rows = found["mean"], found["folds"]
    judged = sum(row["outer"] is not None for row in rows)
    if judged < len(rows):
        return f"<p>The search goes on: {judged} of {len(rows)} outer folds have judged. {escape(_words(found))}.</p>"
    folds = f"the mean of {len(rows)} outer folds" if len(rows) > 1 else "one outer fold"
    cells = (
        ("chosen settings on outer folds", mean["outer"], ""),
        ("the same on inner folds", mean["inner"], ""),
        ("optimism: inner minus outer", mean["optimism"], "+"),
        ("default settings on outer folds", mean["outer_default"], ""),
    )
    shown = "".join(
        f'<div><p class="cap">{escape(name)}</p><p class="big">{_signed(value, sign)}</p></div>'
        for name, value, sign in cells
    )
    return (
        f"<p>{escape(_words(found)).capitalize()}; {folds}. The settings were chosen by inner scores alone, so the "
        f'outer score is what to expect of a search like this one.</p><div class="headline">{shown}</div>'
    )


def _signed(value: float | None, sign: str) -> str:
    return "-" if value is None else format(value, f"{sign}.{DIGITS}f")


def _best(found: Found) -> str:
    """The chosen value of every key in every outer fold, beside the recipe's own."""
    rows = found["folds"]
    chosen = [_point(row, row["chosen"]) for row in rows]
    start: Mapping[str, str] = next(
        (trial["point"] for row in rows for trial in row["trials"] if trial["number"] == 0), {}
    )
    own = start if found["search"]["method"] != "grid" else {}
    body = [[key, own.get(key, "-"), *(point.get(key, "-") for point in chosen)] for key in found["search"]["space"]]
    head = ["key of --set", "first trial", *(f"outer fold {row['fold']}" for row in rows)]
    return table(head, body, "The setting with the best score on the inner folds of each outer fold.")


def _point(row: Found, number: int | None) -> Mapping[str, str]:
    return next((trial["point"] for trial in row["trials"] if trial["number"] == number), {})


def _against_default(found: Found) -> str:
    """Differences on the outer folds, paired by patient."""
    if "comparison" not in found:
        return ""
    known = found["comparison"]
    rows: list[tuple[str, float, float, float]] = []
    for name in (compare.HEADLINE, *(one for one in known["parts"] if one != compare.HEADLINE)):
        part = known["parts"][name]
        low, high = part["interval_95"][0]
        value, low, high = (np.nan if one is None else one for one in (part["differences"][0], low, high))
        if not name.startswith(("precision_", "recall_", "f1_")):
            rows.append((f"{name.replace('_', ' ')}, {part['better']} is better", value, low, high))
    drawn = forest(rows[:8], "chosen minus default", "differences between chosen and default settings")
    part = known["parts"][compare.HEADLINE]
    low, high = part["interval_95"][0]
    said = (
        f"<p>{known['rows']} labelled rows of {known['patients']} patients of the outer folds, none of which took part "
        f"in the choice. Score: {number(part['values'][0], DIGITS)} by default, {number(part['values'][1], DIGITS)} "
        f"with the chosen settings; difference {_signed(part['differences'][0], '+')}, 95 % interval "
        f"{between(low, high, DIGITS)}. The same patients were drawn on both sides.</p>"
    )
    return said + drawn


def _inner_outer(found: Found) -> str:
    body = []
    for row in found["folds"]:
        first = [f"outer fold {row['fold']}", *(number(row[key], DIGITS) for key in ("inner", "outer"))]
        other = [number(row[key], DIGITS) for key in ("inner_default", "outer_default")]
        body.append([*first, _signed(row["optimism"], "+"), *other, _signed(row["optimism_default"], "+")])
    head = ["", "chosen: inner", "outer", "inner minus outer", "default: inner", "outer", "inner minus outer"]
    note = (
        "Inner nets learn from fewer studies than outer ones, which makes inner scores worse; that the best of several "
        "trials is taken makes them better. The default is not chosen, so its difference shows the first alone."
    )
    return table(head, body, note)


def _history(row: Found, better: str) -> str:
    """Scores by the number of the trial, the best so far as a line, pruned and refused trials at the foot."""
    trials = row["trials"]
    known = [trial["score"] for trial in trials if trial["score"] is not None]
    if not known:
        return ""
    left, top, wide, tall = 50.0, 12.0, WIDTH - 64.0, 170.0
    low, high = min(known), max(known)
    last = max(1, max(trial["number"] for trial in trials))
    place = lambda n, v: (left + wide * n / last, top + tall * (1 - (v - low) / ((high - low) or 1)))  # noqa: E731
    parts = [line(left, top + tall + 22, left + wide, top + tall + 22, "axis")]
    parts += [text(left - 6, top + 4, number(high), "end"), text(left - 6, top + tall + 4, number(low), "end")]
    best = [(trial["number"], value) for trial, value in zip(trials, row["best_so_far"], strict=True)
            if value is not None]  # fmt: skip
    steps: list[tuple[float, float]] = []
    for n, value in best:
        x, y = place(n, value)
        steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
    parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in steps)}" class="s1"/>')
    for trial in trials:
        said = f"<title>{escape(_said(trial))}</title>"
        if trial["score"] is not None:
            x, y = place(trial["number"], trial["score"])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="s0">{said}</circle>')
        else:
            x = place(trial["number"], low)[0]
            parts.append(text(x, top + tall + 18, "x", "middle", "soft"))
    floor = top + tall + 38
    parts += [text(left, floor, "0", "middle"), text(left + wide, floor, str(last), "middle")]
    parts.append(text(left + wide / 2, floor, "trial", "middle"))
    parts.append(text(left, floor + 20, "dot: inner score; line: best so far;", "start", "soft"))
    parts.append(text(left, floor + 36, "x: pruned or refused", "start", "soft"))
    return svg(WIDTH, floor + 44, parts, f"inner scores of {len(trials)} trials, {low:.4f} to {high:.4f}")


def _said(trial: Found) -> str:
    score = trial["state"] if trial["score"] is None else f"score {trial['score']:.{DIGITS}f}"
    return f"trial {trial['number']}: {score}; {', '.join(space.settings_of(trial['point']))}"


def _lead() -> str:
    return (
        '<p>Parallel coordinates: a line is a trial, from its settings to its inner score below. <span class="s1">The '
        'chosen one</span> is drawn thick, the <span class="s0">better half</span> of the others in colour, the rest '
        "and those without a score in grey.</p>"
    )


def _parallel(row: Found, found: Found) -> str:
    """A line for each trial through one axis for each key; axes lie under each other."""
    dims = space.of_plain(found["search"]["space"])
    trials = [trial for trial in row["trials"] if trial["state"] != REFUSED]
    known = sorted((t["score"] for t in trials if t["score"] is not None), reverse=found["better"] == "higher")
    if not known:
        return ""
    left, wide = 14.0, WIDTH - 28.0
    parts: list[str] = []
    words: list[str] = []
    for i, one in enumerate(dims):
        words += _axis(one.key, _ends(one), left, wide, 30 + ROW * i)
    floor = 30 + ROW * len(dims)
    ends = (number(min(known)), number(max(known)))
    words += _axis(f"inner {found['score'][:1].lower()}{found['score'][1:]}", ends, left, wide, floor)
    middle = known[(len(known) - 1) // 2]
    span = (max(known) - min(known)) or 1.0
    for trial in sorted(trials, key=lambda t: (t["number"] == row["chosen"], t["score"] is not None)):
        places = [(left + wide * one.share(trial["point"][one.key]), 30 + ROW * i) for i, one in enumerate(dims)]
        if trial["score"] is not None:
            places.append((left + wide * (trial["score"] - min(known)) / span, floor))
        is_good = trial["score"] is not None and (
            trial["score"] >= middle if found["better"] == "higher" else trial["score"] <= middle
        )
        parts.append(_path(places, trial, row["chosen"], is_good))
    parts.append(f'<g style="{HALO}">{"".join(words)}</g>')
    return svg(WIDTH, floor + 28, parts, f"settings and scores of {len(trials)} trials")


def _path(places: Sequence[tuple[float, float]], trial: Found, chosen: int | None, is_good: bool) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    title = f"<title>{escape(_said(trial))}</title>"
    if trial["number"] == chosen:
        return f'<polyline points="{joined}" class="s1" style="stroke-width:3.5">{title}</polyline>'
    if is_good:
        return f'<polyline points="{joined}" class="s0" style="stroke-width:1.5">{title}</polyline>'
    return f'<polyline points="{joined}" style="stroke-width:1;opacity:.6;stroke:var(--soft)">{title}</polyline>'


def _axis(name: str, ends: tuple[str, str], left: float, wide: float, y: float) -> list[str]:
    shown = name if len(name) <= 44 else f"...{name[-41:]}"
    return [
        f'<rect x="{left}" y="{y - 0.5}" width="{wide}" height="1" class="grey" stroke="none"/>',
        text(left, y - 12, shown, "start"),
        text(left, y + 15, ends[0], "start", "soft"),
        text(left + wide, y + 15, ends[1], "end", "soft"),
    ]


def _ends(one: Dimension) -> tuple[str, str]:
    if isinstance(one, Choice):
        return one.options[0], one.options[-1]
    low, high = one.levels(2)
    return low, f"{high} (log)" if one.log else high


def _importances(found: Found) -> str:
    """A bar for each key: the mean over the outer folds that have them."""
    known = [row["importances"] for row in found["folds"] if row["importances"]]
    if not known:
        return ""
    keys = {key: float(np.mean([one.get(key, 0.0) for one in known])) for key in found["search"]["space"]}
    step, left, wide, parts = 38.0, 14.0, WIDTH - 78.0, list[str]()
    for i, (key, share) in enumerate(sorted(keys.items(), key=lambda pair: -pair[1])):
        y = step * i
        parts.append(text(left, y + 14, key if len(key) <= 44 else f"...{key[-41:]}", "start"))
        parts.append(
            f'<rect x="{left}" y="{y + 19:.1f}" width="{max(wide * share, 1):.1f}" height="11" class="fill s0"/>'
        )
        parts.append(text(left + max(wide * share, 1) + 6, y + 29, f"{share:.2f}", "start"))
    count = sum(trial["state"] == DONE for row in found["folds"] for trial in row["trials"])
    note = (
        f"<p>The share of the variance of inner scores that each key explains alone or with others (fANOVA, a forest "
        f"fitted to {count} scored trials). Of fewer than some dozens of trials it is a hint and no more.</p>"
    )
    return note + svg(WIDTH, step * len(keys) + 6, parts, "importances of the keys")


def _losses(row: Found) -> str:
    """Held-out log loss of every trial over the work of it; pruned trials end early."""
    curves = [(trial, sorted((int(s), v) for s, v in trial["losses"].items())) for trial in row["trials"]]
    curves = [(trial, points) for trial, points in curves if points]
    if not curves:
        return ""
    left, top, wide, tall = 50.0, 10.0, WIDTH - 64.0, 180.0
    values = [value for _, points in curves for _, value in points]
    low, high = min(values), max(values)
    parts = [line(left, top + tall, left + wide, top + tall, "axis")]
    parts += [text(left - 6, top + 8, number(high), "end"), text(left - 6, top + tall, number(low), "end")]
    for trial, points in curves:
        joined = [
            (left + wide * step / 1000, top + tall * (1 - (value - low) / ((high - low) or 1)))
            for step, value in points
        ]
        is_chosen, is_pruned = trial["number"] == row["chosen"], trial["state"] == PRUNED
        style = "axis" if is_pruned else "s1" if is_chosen else "s0"
        colour = ";stroke:var(--soft)" if is_pruned else ""
        title = f"<title>{escape(_said(trial))}</title>"
        dots = " ".join(f"{x:.1f},{y:.1f}" for x, y in joined)
        width = 3 if is_chosen else 1.5
        parts.append(
            f'<polyline points="{dots}" class="{style}" style="stroke-width:{width}{colour}">{title}</polyline>'
        )
        if is_pruned:
            parts.append(text(joined[-1][0], joined[-1][1] + 4, "x", "middle", "soft"))
    floor = top + tall + 16
    parts += [text(left, floor, "0", "middle"), text(left + wide, floor, "100 %", "end")]
    parts.append(text(left + wide / 2, floor, "epochs of all its nets", "middle"))
    parts.append(text(left, floor + 20, "orange: chosen; grey with x: pruned", "start", "soft"))
    return svg(WIDTH, floor + 28, parts, f"held-out log loss of {len(curves)} trials, {low:.3f} to {high:.3f}")


def _trial_table(row: Found, found: Found) -> str:
    keys = list(found["search"]["space"])
    body: list[list[object]] = []
    for trial in row["trials"]:
        chosen = trial["number"] == row["chosen"]
        name = Html(f"<b>{trial['number']}, chosen</b>") if chosen else str(trial["number"])
        state = f"{trial['state']}: {trial['why']}" if trial["why"] else trial["state"]
        cells = [name, state, number(trial["score"], DIGITS), duration(trial["seconds"])]
        body.append([*cells, *(trial["point"][key] for key in keys)])
    head = ["trial", "state", "inner score", "time", *(key.rpartition(".")[2] for key in keys)]
    return table(head, body, f"Outer fold {row['fold']}", words=2)


def _how(found: Found) -> str:
    search, rows = found["search"], found["folds"]
    scope = search["recipe"].get("scope", {})
    states = [trial["state"] for row in rows for trial in row["trials"]]
    seconds = sum(trial["seconds"] for row in rows for trial in row["trials"])
    space_of = ", ".join(
        f"{key} in {', '.join(value)}" if isinstance(value, list)
        else f"{key} from {value['low']:g} to {value['high']:g}{' (log)' if value['log'] else ''}"
        for key, value in search["space"].items()
    )  # fmt: skip
    facts = {
        "Task and recipe": f"{search['task']}, {search['recipe']['name']}",
        "Changed for all": ", ".join(f"{k}={v[1]}" for k, v in search["recipe"].get("changes", {}).items())
        or "nothing",
        "Space": space_of,
        "Method": f"{search['method']}, pruning {search['prune']}, seed {search['seed']}",
        "Folds": f"outer {', '.join(map(str, search['folds']))} of {scope.get('folds', '-')}; "
        f"each has {search['inner']} inner folds of other patients",
        "Trials": f"{len(states)}: {states.count(DONE)} scored, {states.count(PRUNED)} pruned, "
        f"{states.count(REFUSED)} refused; {duration(seconds)} in all",
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"

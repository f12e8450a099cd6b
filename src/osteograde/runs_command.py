"""``osteograde runs``: weights folders with their scores as a table, or some of them compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from osteograde import cli
from osteograde.errors import UserError
from osteograde.kaggle import ledger, record
from osteograde.learning import compare, runs
from osteograde.learning.runs import Curve, TrainedRun
from osteograde.models.manifest import ENSEMBLE, MANIFEST, is_plain, place, read_ensemble, read_manifest, sha256
from osteograde.report import leaderboard
from osteograde.tasks import TASKS

SHOWN_CHANGES = 3  # of a recipe; --json has all
ABSENT = "-"
COLUMNS: tuple[str, ...] = (
    "weights", "recipe", "folds", "studies", "score", "95 % interval", "prior", "hours", "date", "state"
)  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Do what the options of ``osteograde runs`` ask for; the exit code is returned."""
    if args.compare:
        return compare_folders(args.compare, args.bootstrap, as_json=args.json)
    tops = args.dir or [Path(name) for name in cli.RUNS_IN if Path(name).is_dir()]
    rows = runs.survey(tops, TASKS)
    if args.json:
        print(json.dumps([row.plain() for row in rows]))
        return 0
    if not rows:
        raise UserError(f"no weights folder in {', '.join(map(str, tops))}; train_folds.py --out writes one")
    print(*table(rows), sep="\n")
    if len(rows) == 1:
        print(*curve_lines(rows[0].curves), sep="\n")
    print(f"next: {next_step(rows)}")
    return 0


def scored_submissions(weights: Path, path: Path | None) -> list[leaderboard.Entry]:
    """The submissions of the task of a weights folder that were scored, for its report.

    path: of their ledger, None for that of the task below the current folder, which need not be there. UserError where
    it is not what ``kaggle submit`` writes.
    """
    plain = is_plain(weights)
    path = path or record.ledger_path((read_manifest if plain else read_ensemble)(weights).task)
    if not path.is_file():
        return []
    digest = sha256(place(weights, MANIFEST if plain else ENSEMBLE))
    return [
        leaderboard.Entry(
            f"v{one.version} of {one.time[:10]}, {one.weights.get('recipe') or 'recipe unknown'}",
            one.score,
            one.interval,
            one.public,
            one.private,
            own=one.weights.get("manifest") == digest,
        )
        for one in ledger.read(path)
        if one.status == "complete"
    ]


def compare_folders(folders: Sequence[Path], resamples: int, *, as_json: bool) -> int:
    """Print how weights folders compare with the first one, and their curves; the exit code is returned."""
    sides = [compare.read_out_of_fold(folder, TASKS) for folder in folders]
    found = compare.compare_out_of_fold(compare.task_of(folders[0], TASKS), sides, resamples=resamples)
    if as_json:
        print(json.dumps(found.plain()))
        return 0
    print(*found.lines(), sep="\n")
    for folder in folders:
        if told := list(curve_lines(runs.describe(folder, TASKS).curves)):
            print("", folder, *told, sep="\n")
    return 0


def table(rows: Sequence[TrainedRun]) -> Iterator[str]:
    """The rows for people, a table for each task, with the choices that differ from the recipe below each row."""
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        better = next((row.better for row in own if row.better), "")
        cells = [COLUMNS, *(_cells(row) for row in own)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        yield f"{task}{f': {better} is better' if better else ''}"
        for row, line in zip([None, *own], cells, strict=True):
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for change in row.changes[:SHOWN_CHANGES] if row else ():
                yield f"      {change}"
            if row and len(row.changes) > SHOWN_CHANGES:
                yield f"      and {len(row.changes) - SHOWN_CHANGES} other changes (--json has all)"
        yield ""


def _cells(row: TrainedRun) -> tuple[str, ...]:
    low, high = row.interval
    return (
        row.folder,
        row.recipe,
        row.folds or ABSENT,
        str(row.studies or ABSENT),
        _text(row.score),
        ABSENT if low is None or high is None else f"{low:.4f} to {high:.4f}",
        _text(row.prior),
        ABSENT if row.hours is None else f"{row.hours:.2f}",
        row.day or ABSENT,
        row.state,
    )


def curve_lines(curves: Sequence[Curve]) -> Iterator[str]:
    """The learning curves in short form: the shape of the loss, its last value, and the best epoch."""
    if not curves:
        return
    width = max(len(curve.net) for curve in curves)
    yield f"{'curve of the loss':<{width}}  {'':<{runs.CURVE_WIDTH}}  epochs    last    best"
    for curve in curves:
        what = "held out, " if curve.is_held_out else ""
        yield (
            f"{curve.net:<{width}}  {curve.shape:<{runs.CURVE_WIDTH}}  {curve.epochs:>6}  {curve.final_loss:>6.4f}  "
            f"{curve.best_loss:.4f} ({what}epoch {curve.best_epoch})"
        )


def next_step(rows: Sequence[TrainedRun]) -> str:
    """What to type next: compare the two best of a task, else look at the best one."""
    for task in dict.fromkeys(row.task for row in rows):
        able = [row.folder for row in rows if row.task == task and (Path(row.folder) / compare.FILE).is_file()]
        if len(able) > 1:
            return f"python -m osteograde runs --compare {able[0]} {able[1]}"
    return f"python -m osteograde report {rows[0].folder}"


def _text(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"

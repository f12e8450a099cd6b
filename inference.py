"""Grade a folder of studies with trained folds. Reads files, writes one CSV, needs no network.

    python inference.py lumbar-mr --data DIR --weights weights/lumbar-mr --out submission.csv

Without arguments it makes a few phantom studies, grades them with the shipped weights and writes submission.csv.
"""

import logging
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from osteograde import cli
from osteograde.errors import UserError
from osteograde.inference import run
from osteograde.report import heatmaps, overlays

SHIPPED = Path(__file__).resolve().parent / "weights"
PHANTOMS = 3  # studies made on the spot where no data are given
PHANTOM_SEED = 20261121


def shipped_weights(task: str) -> Path:
    """The folder under weights/ that belongs to a task: weights/TASK, else the only weights/TASK-*."""
    found = [SHIPPED / task] if (SHIPPED / task).is_dir() else sorted(SHIPPED.glob(f"{task}-*"))
    if len(found) != 1:
        raise UserError(f"{len(found)} weights folders for {task!r} under {SHIPPED}; name one with --weights")
    return found[0]


def main(argv: list[str] | None = None) -> int:
    args = cli.inference_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cli.known_task(args.task)
    weights = args.weights or shipped_weights(args.task)
    grade = partial(
        run.infer,
        args.task,
        weights=weights,
        out=args.out,
        device=args.device,
        limit=args.limit,
        workers=args.workers,
        time_budget_hours=args.time_budget,
        max_unread=args.max_unread,
        draw=heatmaps.together(
            [room.drawer(folder) for room, folder in ((overlays, args.overlays), (heatmaps, args.explain)) if folder]
        ),
        say=print,
    )
    if args.data is not None:
        return grade(args.data)
    from osteograde import phantom

    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        print(f"no --data: making {PHANTOMS} phantom studies")
        phantom.write(args.task, Path(folder), studies=0, test=PHANTOMS, seed=PHANTOM_SEED)
        return grade(Path(folder))


if __name__ == "__main__":
    sys.exit(cli.run(main))

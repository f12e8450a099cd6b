"""Train every fold of every stage and score what each fold says of studies it never saw.

    python train_folds.py lumbar-mr --data DIR --out weights/lumbar-mr
    python train_folds.py lumbar-mr --data DIR --out runs/try --debug

Writes folds.csv, locate/<stage>/fold*.safetensors, grade/<group>/*fold*.safetensors, oof.csv, oof_points.csv and
manifest.json. ``OUT/work`` holds caches and checkpoints; delete it when the run is finished. The same as
``osteograde train``, without installing the package.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from osteograde import cli


def main(argv: list[str] | None = None) -> int:
    return cli.train(cli.train_parser().parse_args(argv))


if __name__ == "__main__":
    cli.program(main)

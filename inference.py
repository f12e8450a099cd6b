"""Grade a folder of studies with trained folds. Reads files, writes one CSV, needs no network.

    python inference.py lumbar-mr --data DIR --weights weights/lumbar-mr --out submission.csv

Without arguments it makes a few phantom studies, grades them with the shipped weights and writes submission.csv. The
same as ``osteograde grade``, without installing the package.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from osteograde import cli


def main(argv: list[str] | None = None) -> int:
    return cli.grade(cli.inference_parser().parse_args(argv))


if __name__ == "__main__":
    cli.program(main)

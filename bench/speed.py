"""Every speed benchmark of the package, one after the other: the table of bench/README.md.

    python bench/speed.py --weights weights/lumbar-mr-phantom

About 25 minutes on two quiet CPU cores; ``--quick`` takes few studies and three repeats. OMP_NUM_THREADS is left alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FULL = {"readers": "--repeats 5", "pipeline": "--studies 30 --repeats 5", "memory": "--studies 30 300", "training": ""}
QUICK = {
    "readers": "--repeats 3 --slices 6",
    "pipeline": "--studies 4 --baseline-studies 2 --repeats 3",
    "memory": "--studies 4 16 --made 4",
    "training": "--studies 6 --epochs 1 --steps 4",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    for name, options in (QUICK if args.quick else FULL).items():
        weights = ["--weights", str(args.weights)] if name in ("pipeline", "memory") else []
        print(f"\n## {name} {options}\n", flush=True)
        subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options.split(), *weights], check=True)


if __name__ == "__main__":
    main()

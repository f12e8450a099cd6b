"""The Kaggle kernel that trains: as long as a session lasts, and on from its own last output in the next one.

The settings below may be changed. "python -m osteograde kernel build TASK --train" writes a copy of this file that
carries the package to build/kernels/TASK-train/. That copy is what is rehearsed and pushed.
"""

import base64
import io
import sys
import tarfile
import tempfile
from pathlib import Path

TASK = ""  # "kernel build TASK --train" puts its task here
ARGUMENTS = ""  # further options of train_folds.py, such as "--recipe NAME --folds 0,1"
DATA_SET = ""  # owner/name of the data set that holds the labelled images; "" reads the data of the competition
HOURS = ""  # the session is left after so many; "" is what a session allows, less half an hour
PACKAGE = ""  # the package as an archive (tar, xz, base 85); "kernel build" puts it here


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:  # the working folder holds the output alone
        if PACKAGE:
            with tarfile.open(fileobj=io.BytesIO(base64.b85decode(PACKAGE)), mode="r:xz") as archive:
                archive.extractall(folder, filter="data")
        sys.path.insert(0, folder if PACKAGE else str(Path(__file__).resolve().parent / "../../src"))
        from osteograde.train_session import train_session

        return train_session(TASK, ARGUMENTS, DATA_SET, float(HOURS or 0))


if __name__ == "__main__":
    sys.exit(main())

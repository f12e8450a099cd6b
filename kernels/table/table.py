"""The Kaggle kernel of the task table: grades the test studies into submission.csv, without a network.

The settings below may be changed. In a checkout, this file runs with the package in src/:

    python kernels/table/table.py

A push sends one file only, so "python -m osteograde kernel build table" writes a copy of this file that carries the
package as text to build/kernels/table/. That copy is what is rehearsed and pushed.
"""

import sys
import tempfile
from pathlib import Path

TASK = "table"
TIME_BUDGET_HOURS = 8.5  # studies that are not graded by then keep their prior probabilities; 0: what is allowed
MANIFEST_SHA256 = ""  # accept only weights whose manifest.json has this hash; "" accepts any weights of the task
DATA_SET = ""  # owner/name of the data set that holds the images; "" reads the only folder with images
PACKAGE: dict[str, str] = {}  # path of a module -> its text; "kernel build" adds them below this line


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:  # the working folder holds the output alone
        for name, text in PACKAGE.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.path.insert(0, folder if PACKAGE else str(Path(__file__).resolve().parent / "../../src"))
        try:
            from osteograde.inference.kernel_main import kernel_main
        except ModuleNotFoundError as error:
            if error.name != "osteograde":
                raise
            build = f"python -m osteograde kernel build {TASK}"
            print(f"error: this script lacks the package: run {build} and push build/kernels/{TASK}", file=sys.stderr)
            return 2
        return kernel_main(TASK, MANIFEST_SHA256, DATA_SET, TIME_BUDGET_HOURS)


if __name__ == "__main__":  # worker processes may import this file again and must not start a second run
    sys.exit(main())

"""python -m osteograde: see cli.py."""

import sys

from osteograde import cli

if __name__ == "__main__":
    sys.exit(cli.run(cli.main))

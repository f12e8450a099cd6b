"""``python -m osteograde`` and the console script ``osteograde``: see cli.py."""

import sys

from osteograde import cli


def main() -> int:
    return cli.run(cli.main)


if __name__ == "__main__":
    sys.exit(main())

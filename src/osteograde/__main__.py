"""``python -m osteograde`` and the console script ``osteograde``: see cli.py."""

from typing import NoReturn

from osteograde import cli


def main() -> NoReturn:
    cli.program(cli.main)


if __name__ == "__main__":
    main()

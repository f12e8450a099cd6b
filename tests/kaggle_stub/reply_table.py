"""Write docs/kaggle-replies.md: what we say, and with which exit code, to every recorded reply of both client versions.

python -m tests.kaggle_stub.reply_table
"""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from osteograde.kaggle import cli, client
from osteograde.kaggle.client import Reply
from tests.kaggle_stub import record_replies

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kaggle-replies.md"
SUCCESS = "successfully pushed"  # the sentence that a step waits for
HEAD = """# What is said to every reply of the service

The stand-in of the tests gave every reply below to the real clients 2.2.4 and 2.2.5, whose output was recorded
(`tests/kaggle_stub/record_replies.py`). Exit code 2 is a refusal, 75 asks to try later. This page is written by
`python -m tests.kaggle_stub.reply_table`, and a test compares it with what the commands say. How to read it:
[kaggle.md](kaggle.md).

| status and step | client | exit code | what is said |
|---|---|---|---|
"""


def answered(version: str, situation: str) -> tuple[int, str]:
    """(exit code, text) of a step that got the reply which was recorded of a version of the client."""
    replies = json.loads(record_replies.FILE.read_text(encoding="utf-8"))
    reply = Reply(record_replies.SITUATIONS[situation][0], *replies[version][situation])
    told = StringIO()
    try:
        with redirect_stderr(told):
            return cli._run(lambda: client.expect(reply, SUCCESS)), told.getvalue().strip().removeprefix("error: ")
    except client.Refused as error:
        return 2, str(error)


def page() -> str:
    """The page as text. Where both versions lead to the same, they share a row."""
    lines = []
    for situation in record_replies.SITUATIONS:
        old, new = (answered(version, situation) for version in ("2.2.4", "2.2.5"))
        rows = [("both", new)] if old == new else [("2.2.4", old), ("2.2.5", new)]
        for version, (code, text) in rows:
            cell = " ".join(text.split()).replace("|", "\\|")
            lines.append(f"| {situation} | {version} | {code} | {cell} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Names of tables as words that people read: on pages, and on pictures."""

from __future__ import annotations

import re

IMAGE = "Image"  # what a target without a name is: the study has one row
_LEVEL = re.compile(r"\b([a-z])(\d+)_([a-z])(\d+)\b")
_SHORT = re.compile(r"\b([a-z]{1,2})_?(\d+)\b")


def plain(name: str) -> str:
    """The name of a class, target, condition, view or landmark as words.

    Two joined places, each a letter and a number, become one with a stroke; short names before a number are written in
    capitals; underscores are spaces; the first letter is a capital.

    >>> [plain(name) for name in ("x1_y2", "kl_2", "left_neural_narrowing_a4_b5", "axi_t2", "mild_grade", "kl", "")]
    ['X1/Y2', 'KL 2', 'Left neural narrowing A4/B5', 'Axi T2', 'Mild grade', 'KL', '']
    """
    if len(name) <= 2:
        return name.upper()
    text = re.sub(r"(?<=[a-z0-9])_(?=[a-z]\d+_[a-z]\d+\b)", " ", name)
    text = _LEVEL.sub(lambda match: f"{match[1].upper()}{match[2]}/{match[3].upper()}{match[4]}", text)
    text = re.sub(r"(?<![a-z])([a-z]{1,2})_(\d)", lambda match: f"{match[1].upper()} {match[2]}", text)
    text = text.replace("_", " ").strip()
    text = _SHORT.sub(lambda match: match[0].upper(), text)
    return text[:1].upper() + text[1:]

"""Names of what a kernel reads: a data set ``owner/slug`` or a model ``owner/model/framework/variation``.

Either may end in a version. A kernel sees the latest one of a data set, and needs a model's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FRAMEWORKS = ("pyTorch", "other")
EXPECTED = "expected owner/data-set or owner/model/pyTorch/variation"
SHORTEST, LONGEST = 6, 50  # letters of a data set's name


@dataclass(frozen=True)
class Source:
    """Where weights or data lie. ``framework`` is "" for a data set; ``version`` 0 is the latest."""

    owner: str
    slug: str
    framework: str = ""
    variation: str = ""
    version: int = 0

    @property
    def is_model(self) -> bool:
        return bool(self.framework)

    @property
    def model(self) -> str:
        return f"{self.owner}/{self.slug}"

    @property
    def ref(self) -> str:
        """Without the version."""
        return f"{self.model}/{self.framework}/{self.variation}" if self.is_model else self.model

    def __str__(self) -> str:
        return f"{self.ref}/{self.version}" if self.version else self.ref

    def at(self, version: int) -> Source:
        return replace(self, version=version)


def parse(text: str) -> Source:
    """A source from its name. ValueError says what is wrong with it."""
    parts = text.split("/")
    if len(parts) not in (2, 3, 4, 5):
        raise ValueError(f"{text!r} has {len(parts)} parts; {EXPECTED}")
    if not OWNER.fullmatch(parts[0]):
        raise ValueError(f"{text!r}: {parts[0]!r} is no account's name; {EXPECTED}")
    is_set, number = len(parts) < 4, parts[-1] if len(parts) in (3, 5) else ""
    slugs = (parts[1],) if is_set else (parts[1], parts[3])
    if bad := [slug for slug in slugs if not SLUG.fullmatch(slug)]:
        raise ValueError(f"{text!r}: {bad[0]!r} may hold small letters, digits and single '-' only")
    if number and not (number.isascii() and number.isdigit() and int(number)):
        raise ValueError(f"{text!r}: version {number!r} is not a number from 1; {EXPECTED}")
    if is_set:
        if not SHORTEST <= len(parts[1]) <= LONGEST:
            raise ValueError(f"{text!r}: a data set's name has {SHORTEST} to {LONGEST} letters, not {len(parts[1])}")
        return Source(parts[0], parts[1], version=int(number or 0))
    if parts[2] not in FRAMEWORKS:
        raise ValueError(f"{text!r}: framework {parts[2]!r}; expected one of {', '.join(FRAMEWORKS)}")
    return Source(parts[0], parts[1], parts[2], parts[3], int(number or 0))

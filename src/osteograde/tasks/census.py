"""What is counted in a folder of data before any training: facts and tables as values, for a page and for a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """Something that was counted. of: of how many, 0 where the count is no share. examples: a few of them. note: what
    follows from it. is_fault: what is counted should be mended, or at least looked at, before training."""

    what: str
    count: int
    of: int = 0
    examples: str = ""
    note: str = ""
    is_fault: bool = False


@dataclass(frozen=True)
class Counts:
    """A table of counts: the names of its columns, of which the first names the rows."""

    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Census:
    """All that was counted in a folder."""

    facts: tuple[Fact, ...]
    tables: tuple[Counts, ...]

    @property
    def faults(self) -> tuple[Fact, ...]:
        """The facts that ask to be looked at."""
        return tuple(fact for fact in self.facts if fact.is_fault and fact.count)

    def joined(self, other: Census) -> Census:
        """Both together, this one's first; of tables and facts of one name those of the other."""
        facts, tables = {fact.what for fact in other.facts}, {table.name for table in other.tables}
        return Census(
            (*(fact for fact in self.facts if fact.what not in facts), *other.facts),
            (*(table for table in self.tables if table.name not in tables), *other.tables),
        )

    def long_rows(self) -> list[tuple[str, str, str, str]]:
        """(section, row, column, value) of every figure, as text."""
        rows: list[tuple[str, str, str, str]] = []
        for fact in self.facts:
            told: dict[str, object] = {"count": fact.count, "of": fact.of, "examples": fact.examples}
            rows += [("facts", fact.what, name, str(value)) for name, value in told.items() if value or name == "count"]
        for table in self.tables:
            for first, *cells in table.rows:
                pairs = zip(table.head[1:], cells, strict=True)
                rows += [(table.name, str(first), name, str(value)) for name, value in pairs]
        return rows


def counted(values: Sequence[object]) -> tuple[tuple[object, int], ...]:
    """(value, how often) of every value, the most frequent first, of equals in the order of their texts.

    >>> counted(["b", "a", "b"])
    (('b', 2), ('a', 1))
    """
    often = dict.fromkeys(values, 0)
    for value in values:
        often[value] += 1
    return tuple(sorted(often.items(), key=lambda pair: (-pair[1], str(pair[0]))))

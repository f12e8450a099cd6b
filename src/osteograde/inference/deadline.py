"""How much work a deadline allows: test-time augmentation is dropped first, then folds; the submission never is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHARE = 0.1  # of the time left that one chunk may take, by its least cost
RESERVE = 0.1  # share of the budget kept for what cannot be foreseen


@dataclass(frozen=True)
class Effort:
    """How one chunk of studies is graded: views of test-time augmentation and folds whose answers are averaged."""

    views: int
    folds: int


@dataclass
class Budget:
    """Seconds left, and what a study has cost so far. seconds: the whole budget, None for no limit. views, folds: the
    most that the weights offer. clock: monotonic seconds; tests replace it.

    Cost model per study: reading + folds * (locating + views * grading), each term measured on finished chunks.
    """

    seconds: float | None
    views: int
    folds: int
    clock: Callable[[], float] = time.monotonic
    begun: float = field(init=False)
    studies: int = 0
    read_s: float = 0.0
    locate_s: float = 0.0  # per fold
    grade_s: float = 0.0  # per fold and view

    def __post_init__(self) -> None:
        self.begun = self.clock()

    def left(self) -> float:
        """Seconds that may still be used; infinite without a budget."""
        if self.seconds is None:
            return float("inf")
        return self.seconds * (1 - RESERVE) - (self.clock() - self.begun)

    def record(self, studies: int, effort: Effort, *, read_s: float, locate_s: float, grade_s: float) -> None:
        """Add what a chunk took."""
        self.studies += studies
        self.read_s += read_s
        self.locate_s += locate_s / effort.folds
        self.grade_s += grade_s / (effort.folds * effort.views)

    def cost(self, effort: Effort) -> float:
        """Expected seconds per study; 0 before anything was measured."""
        total = self.read_s + effort.folds * (self.locate_s + effort.views * self.grade_s)
        return total / max(self.studies, 1)

    def effort(self, remaining: int) -> Effort | None:
        """The most that fits for the remaining studies; the least possible where nothing fits; None past the end."""
        left = self.left()
        if left <= 0:
            return None
        choices = [Effort(views, self.folds) for views in range(self.views, 0, -1)]
        choices += [Effort(1, folds) for folds in range(self.folds - 1, 0, -1)]
        return next((choice for choice in choices if self.cost(choice) * remaining <= left), choices[-1])

    def chunk(self, most: int) -> int:
        """How many studies to take at once: one until a cost is known, and never a large share of what is left."""
        if self.seconds is None:
            return most
        least = self.cost(Effort(1, 1))
        return 1 if least == 0 else int(min(max(SHARE * self.left() / least, 1), most))

    def fits(self, studies: int, effort: Effort) -> bool:
        """Whether a chunk is expected to end in time."""
        return self.cost(effort) * studies <= self.left()

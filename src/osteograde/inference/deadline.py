"""How much work a deadline allows: views of test-time augmentation are dropped first, then members that vote, then
folds; the submission never is.

Of the members the one goes first that is worth the least for the seconds it costs: its worth is what it adds to the
score out-of-fold (``osteograde ensemble`` measures it), its seconds are measured on the studies that are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

SHARE = 0.1  # of the time left that one chunk may take, by its least cost
RESERVE = 0.1  # share of the budget kept for what cannot be foreseen
INSTANT_S = 1e-9  # stands for no time at all where a worth is divided by it
FEWER_VIEWS, FEWER_MEMBERS, FEWER_FOLDS = "fewer_views", "fewer_members", "fewer_folds"  # flag codes


@dataclass(frozen=True)
class Effort:
    """How one chunk of studies is graded: views of test-time augmentation, folds whose answers are averaged, and which
    members vote, by their numbers in the order of the ensemble."""

    views: int
    folds: int
    members: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Voter:
    """A member as a budget sees it. views, folds: the most that it has. worth: what it adds to the score out-of-fold,
    as of ``osteograde ensemble``. locator: the same for members that share what their locators find."""

    views: int
    folds: int
    worth: float = 1.0
    locator: str = ""
    name: str = ""


def shedding_order(
    worths: Sequence[float], saved_s: Callable[[tuple[int, ...], int], float]
) -> tuple[tuple[int, ...], ...]:
    """The members that are left after each step in which one of them is dropped, from all of them down to one.

    worths: of the members. saved_s: (members, one of them) -> seconds that are saved where that one is dropped. The one
    with the least worth for its seconds goes first, of equal ones the most costly, of those the last. A member that
    takes from the score is worth nothing.
    """
    kept = tuple(range(len(worths)))
    steps = [kept]
    while len(kept) > 1:
        saved = {number: max(saved_s(kept, number), INSTANT_S) for number in kept}
        least = min(kept, key=lambda number: (max(worths[number], 0.0) / saved[number], -saved[number], -number))
        kept = tuple(number for number in kept if number != least)
        steps.append(kept)
    return tuple(steps)


@dataclass
class Budget:
    """Seconds left, and what a study has cost so far. seconds: the whole budget, None for no limit. voters: the
    members. clock: monotonic seconds; tests replace it.

    Cost model per study: reading, for every locator its folds times what one takes, and for every member its folds
    times its views times what one takes; each term is the mean over the studies that it was measured on.
    """

    seconds: float | None
    voters: tuple[Voter, ...]
    clock: Callable[[], float] = time.monotonic
    begun: float = field(init=False)
    measured: Mapping[tuple[str, str | int], tuple[float, int]] = field(default_factory=dict)  # part -> (s, studies)

    def __post_init__(self) -> None:
        self.begun = self.clock()

    def left(self) -> float:
        """Seconds that may still be used; infinite without a budget."""
        if self.seconds is None:
            return float("inf")
        return self.seconds * (1 - RESERVE) - (self.clock() - self.begun)

    @property
    def full(self) -> Effort:
        """Everything that the weights offer."""
        most_views, most_folds = (max(getattr(one, name) for one in self.voters) for name in ("views", "folds"))
        return Effort(most_views, most_folds, tuple(range(len(self.voters))))

    def record(
        self, studies: int, effort: Effort, *, read_s: float, locate_s: Sequence[float], grade_s: Sequence[float]
    ) -> None:
        """Add what a chunk took. locate_s, grade_s: of every member of the effort, in their order; what members with
        the same locator share stands at one of them."""
        spent: dict[tuple[str, str | int], float] = {("read", ""): read_s}
        for number, locating, grading in zip(effort.members, locate_s, grade_s, strict=True):
            voter = self.voters[number]
            folds, views = min(effort.folds, voter.folds), min(effort.views, voter.views)
            key = ("locate", voter.locator)
            spent[key] = spent.get(key, 0.0) + locating / folds
            spent["grade", number] = grading / (folds * views)
        before = {part: self.measured.get(part, (0.0, 0)) for part in spent}
        now = {part: (before[part][0] + spent[part], before[part][1] + studies) for part in spent}
        self.measured = {**self.measured, **now}

    def cost(self, effort: Effort) -> float:
        """Expected seconds per study; 0 before anything was measured."""
        total, located = self._mean("read", ""), set[str]()
        for number in effort.members:
            voter = self.voters[number]
            folds, views = min(effort.folds, voter.folds), min(effort.views, voter.views)
            total += folds * views * self._mean("grade", number)
            if voter.locator not in located:
                total += folds * self._mean("locate", voter.locator)
            located.add(voter.locator)
        return total

    def _mean(self, part: str, of: str | int) -> float:
        seconds, studies = self.measured.get((part, of), (0.0, 0))
        return seconds / max(studies, 1)

    def choices(self) -> list[Effort]:
        """Every effort there is, each less than the one before: fewer views, then fewer members, then fewer folds."""
        full = self.full
        plain = replace(full, views=1)

        def saved_s(members: tuple[int, ...], number: int) -> float:
            fewer = tuple(one for one in members if one != number)
            return self.cost(replace(plain, members=members)) - self.cost(replace(plain, members=fewer))

        fewer_views = [replace(full, views=views) for views in range(full.views, 0, -1)]
        steps = shedding_order([voter.worth for voter in self.voters], saved_s)[1:]
        fewer_members = [replace(plain, members=members) for members in steps]
        last = (fewer_views + fewer_members)[-1]
        most_folds = max(self.voters[number].folds for number in last.members)
        fewer_folds = [replace(last, folds=folds) for folds in range(most_folds - 1, 0, -1)]
        return [*fewer_views, *fewer_members, *fewer_folds]

    def effort(self, remaining: int) -> Effort | None:
        """The most that fits for the remaining studies; the least possible where nothing fits; None past the end."""
        left = self.left()
        if left <= 0:
            return None
        choices = self.choices()
        return next((choice for choice in choices if self.cost(choice) * remaining <= left), choices[-1])

    def shed(self, effort: Effort) -> dict[str, int]:
        """Flag code -> how many views, members or folds an effort leaves out, of those it leaves out."""
        full = self.full
        folds = max(self.voters[number].folds for number in effort.members)
        out = {
            FEWER_VIEWS: full.views - effort.views,
            FEWER_MEMBERS: len(full.members) - len(effort.members),
            FEWER_FOLDS: folds - effort.folds,
        }
        return {code: count for code, count in out.items() if count > 0}

    def told(self, effort: Effort) -> str:
        """What an effort leaves out, for the log; "nothing" where that is so."""
        shed, full = self.shed(effort), self.full
        names = [one.name or str(i) for i, one in enumerate(self.voters) if i not in effort.members]
        parts = {
            FEWER_VIEWS: f"{full.views - effort.views} of {full.views} test-time views",
            FEWER_MEMBERS: f"{len(names)} of {len(self.voters)} members ({', '.join(names)})",
            FEWER_FOLDS: f"{shed.get(FEWER_FOLDS, 0)} of {shed.get(FEWER_FOLDS, 0) + effort.folds} folds",
        }
        return ", ".join(text for code, text in parts.items() if code in shed) or "nothing"

    def chunk(self, most: int) -> int:
        """How many studies to take at once: one until a cost is known, and never a large share of what is left."""
        if self.seconds is None:
            return most
        least = self.cost(self.choices()[-1])
        return 1 if least == 0 else int(min(max(SHARE * self.left() / least, 1), most))

    def fits(self, studies: int, effort: Effort) -> bool:
        """Whether a chunk is expected to end in time."""
        return self.cost(effort) * studies <= self.left()

"""The time budget, on a clock of its own."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osteograde.inference.deadline import RESERVE, Budget, Effort, Voter, shedding_order


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def one(views: int, folds: int) -> tuple[Voter, ...]:
    return (Voter(views, folds),)


def spent(budget: Budget, clock: Clock, studies: int, effort: Effort, *, read: float, locate, grade) -> None:
    """A chunk that costs what it says per study, fold and view. locate, grade: of every member, or of each."""
    own = [
        (min(effort.folds, budget.voters[m].folds), min(effort.views, budget.voters[m].views)) for m in effort.members
    ]
    locates, grades = (
        [value] * len(budget.voters) if isinstance(value, float | int) else value for value in (locate, grade)
    )
    done, locate_s = set[str](), []
    for (folds, _), m in zip(own, effort.members, strict=True):
        seen = budget.voters[m].locator in done
        done.add(budget.voters[m].locator)
        locate_s.append(0.0 if seen else locates[m] * studies * folds)
    grade_s = [grades[m] * studies * folds * views for (folds, views), m in zip(own, effort.members, strict=True)]
    clock.now += read * studies + sum(locate_s) + sum(grade_s)
    budget.record(studies, effort, read_s=read * studies, locate_s=locate_s, grade_s=grade_s)


def test_without_a_budget_everything_is_done():
    budget = Budget(None, one(4, 5), clock=Clock())
    assert budget.effort(10**9) == Effort(4, 5)


def test_views_go_first_then_folds():
    clock = Clock()
    budget = Budget(1000, one(4, 5), clock=clock)
    spent(budget, clock, 1, Effort(4, 5), read=1, locate=1, grade=1)  # 26 s a study at full effort
    left = budget.left()
    assert budget.effort(int(left / 26)) == Effort(4, 5)
    assert budget.effort(int(left / 12)) == Effort(1, 5)
    assert budget.effort(int(left / 5.1)) == Effort(1, 2)
    assert budget.effort(10**6) == Effort(1, 1)


def test_nothing_is_started_past_the_deadline():
    clock = Clock()
    budget = Budget(100, one(1, 2), clock=clock)
    clock.now = 100 * (1 - RESERVE) + 0.1
    assert budget.effort(1) is None


THREE = (Voter(4, 5, 0.2, "a", "big"), Voter(2, 3, 0.1, "a", "small"), Voter(1, 5, 0.15, "b", "other"))


@pytest.mark.parametrize("voters", [one(4, 5), THREE], ids=["alone", "three"])
def test_a_whole_run_ends_in_time_whatever_the_studies_cost(voters):
    for cost in (0.01, 0.3, 1.0, 5.0):
        clock = Clock()
        budget = Budget(200, voters, clock=clock)
        remaining, done = 400, 0
        while remaining:
            effort, size = budget.effort(remaining), min(budget.chunk(8), remaining)
            if effort is None or not budget.fits(size, effort):
                break
            spent(budget, clock, size, effort, read=cost / 10, locate=cost / 10, grade=cost / 10)
            remaining, done = remaining - size, done + size
        assert clock.now <= 200
        assert done == 400 or cost > 0.1
        assert done > 10


def test_the_first_study_is_taken_alone_when_there_is_a_deadline():
    clock = Clock()
    budget = Budget(100, one(1, 1), clock=clock)
    assert budget.chunk(8) == 1
    spent(budget, clock, 1, Effort(1, 1), read=0.1, locate=0.1, grade=0.1)
    assert budget.chunk(8) == 8
    spent(budget, clock, 8, Effort(1, 1), read=3, locate=3, grade=3)
    assert budget.chunk(8) == 1
    assert Budget(None, one(1, 1), clock=clock).chunk(8) == 8


def test_the_cost_model_is_read_plus_folds_times_locate_plus_views_times_grade():
    clock = Clock()
    budget = Budget(1e6, one(2, 3), clock=clock)
    spent(budget, clock, 7, Effort(2, 3), read=2, locate=3, grade=5)
    assert abs(budget.cost(Effort(2, 3)) - (2 + 3 * (3 + 2 * 5))) < 1e-9
    assert abs(budget.cost(Effort(1, 1)) - (2 + 3 + 5)) < 1e-9


def test_members_that_share_a_locator_pay_for_it_once_and_each_for_its_own_folds_and_views():
    clock = Clock()
    budget = Budget(1e6, THREE, clock=clock)
    spent(budget, clock, 7, budget.full, read=2, locate=[3, 3, 4], grade=[5, 6, 7])
    assert budget.cost(Effort(4, 5, (0, 1, 2))) == pytest.approx(2 + 5 * (3 + 4 * 5) + 3 * 2 * 6 + 5 * (4 + 7))
    assert budget.cost(Effort(1, 5, (0, 1, 2))) == pytest.approx(2 + 5 * (3 + 5) + 3 * 6 + 5 * (4 + 7))
    assert budget.cost(Effort(1, 2, (1,))) == pytest.approx(2 + 2 * (3 + 6))
    before = budget.cost(Effort(1, 5, (0, 1, 2)))
    spent(budget, clock, 100, Effort(1, 5, (0,)), read=2, locate=[3, 3, 4], grade=[5, 6, 7])
    assert budget.cost(Effort(1, 5, (0, 1, 2))) == pytest.approx(before)  # who was left out is not thought cheap


def test_members_go_after_views_and_before_folds_by_worth_for_their_seconds():
    clock = Clock()
    budget = Budget(1000, THREE, clock=clock)
    spent(budget, clock, 1, budget.full, read=0, locate=[0, 0, 0], grade=[1, 1, 1])
    # with one view they take 5, 3 and 5 s: worth for a second 0.04, 0.033, 0.03
    efforts = [Effort(4, 5, (0, 1, 2)), Effort(3, 5, (0, 1, 2)), Effort(2, 5, (0, 1, 2)), Effort(1, 5, (0, 1, 2))]
    efforts += [Effort(1, 5, (0, 1)), Effort(1, 5, (0,))]
    efforts += [Effort(1, folds, (0,)) for folds in (4, 3, 2, 1)]
    assert budget.choices() == efforts
    left = budget.left()
    for effort in efforts:
        assert budget.effort(int(left / budget.cost(effort))) == effort
    assert budget.shed(efforts[0]) == {}
    assert budget.shed(efforts[-1]) == {"fewer_views": 3, "fewer_members": 2, "fewer_folds": 4}
    assert budget.told(efforts[0]) == "nothing"
    assert budget.told(efforts[5]) == "3 of 4 test-time views, 2 of 3 members (small, other)"
    assert budget.told(efforts[-1]).endswith(", 4 of 5 folds")


def test_the_cheaper_of_members_of_equal_worth_stays_and_a_shared_locator_makes_both_cheap():
    order = shedding_order([1.0, 1.0, 1.0], lambda kept, number: [2.0, 3.0, 1.0][number])
    assert order == ((0, 1, 2), (0, 2), (2,))
    clock = Clock()
    voters = tuple(Voter(1, 1, 1.0, locator) for locator in "aab")
    budget = Budget(1000, voters, clock=clock)
    spent(budget, clock, 1, budget.full, read=0, locate=[9, 9, 5], grade=[1, 1, 1])
    # the third saves its locator, 6 s; the first two save 1 s each as long as both are there, and then 10 s
    assert [effort.members for effort in budget.choices()] == [(0, 1, 2), (0, 1), (0,)]


members = st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-3, 50)), min_size=1, max_size=6)


@given(members)
def test_the_shedding_order_is_a_pure_function_that_drops_one_member_after_the_other(drawn):
    worths, seconds = [worth for worth, _ in drawn], [spent_s for _, spent_s in drawn]
    order = shedding_order(worths, lambda kept, number: seconds[number])
    assert order == shedding_order(list(worths), lambda kept, number: seconds[number])
    assert [len(kept) for kept in order] == list(range(len(drawn), 0, -1))
    for before, after in pairwise(order):
        (gone,) = set(before) - set(after)
        density = {number: max(worths[number], 0) / seconds[number] for number in before}
        assert density[gone] == min(density.values())
        assert list(after) == sorted(after)


@given(members, st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 1e5), st.integers(1, 700))
def test_what_is_chosen_is_the_first_that_fits_and_everything_where_there_is_time_for_all(
    drawn, views, folds, seconds, remaining
):
    clock = Clock()
    voters = tuple(Voter(views, folds, worth, str(i % 2)) for i, (worth, _) in enumerate(drawn))
    budget = Budget(seconds, voters, clock=clock)
    assert budget.effort(remaining) == budget.full  # nothing is known yet
    spent(budget, clock, 1, budget.full, read=0.1, locate=0.2, grade=[spent_s for _, spent_s in drawn])
    clock.now = 0.0  # a study that took no time but is known
    choices = budget.choices()
    costs = [budget.cost(choice) for choice in choices]
    assert all(after <= before + 1e-9 for before, after in pairwise(costs))
    assert choices[-1].views == choices[-1].folds == len(choices[-1].members) == 1
    chosen = budget.effort(remaining)
    fitting = [choice for choice, cost in zip(choices, costs, strict=True) if cost * remaining <= budget.left()]
    assert chosen == (fitting or choices[-1:])[0]
    if costs[0] * remaining <= budget.left():
        assert (chosen, budget.shed(chosen)) == (budget.full, {})
    unlimited = replace(budget, seconds=None)
    assert unlimited.effort(remaining) == budget.full and unlimited.shed(budget.full) == {}

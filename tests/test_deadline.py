"""The time budget, on a clock of its own."""

from osteograde.inference.deadline import RESERVE, Budget, Effort


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def spent(budget: Budget, clock: Clock, studies: int, effort: Effort, *, read: float, locate: float, grade: float):
    """A chunk that costs what it says per study, fold and view."""
    parts = {
        "read_s": read * studies,
        "locate_s": locate * studies * effort.folds,
        "grade_s": grade * studies * effort.folds * effort.views,
    }
    clock.now += sum(parts.values())
    budget.record(studies, effort, **parts)


def test_without_a_budget_everything_is_done():
    budget = Budget(None, views=4, folds=5, clock=Clock())
    assert budget.effort(10**9) == Effort(4, 5)


def test_views_go_first_then_folds():
    clock = Clock()
    budget = Budget(1000, views=4, folds=5, clock=clock)
    spent(budget, clock, 1, Effort(4, 5), read=1, locate=1, grade=1)  # 26 s a study at full effort
    left = budget.left()
    assert budget.effort(int(left / 26)) == Effort(4, 5)
    assert budget.effort(int(left / 12)) == Effort(1, 5)
    assert budget.effort(int(left / 5.1)) == Effort(1, 2)
    assert budget.effort(10**6) == Effort(1, 1)


def test_nothing_is_started_past_the_deadline():
    clock = Clock()
    budget = Budget(100, views=1, folds=2, clock=clock)
    clock.now = 100 * (1 - RESERVE) + 0.1
    assert budget.effort(1) is None


def test_a_whole_run_ends_in_time_whatever_the_studies_cost():
    for cost in (0.01, 0.3, 1.0, 5.0):
        clock = Clock()
        budget = Budget(200, views=4, folds=5, clock=clock)
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
    budget = Budget(100, views=1, folds=1, clock=clock)
    assert budget.chunk(8) == 1
    spent(budget, clock, 1, Effort(1, 1), read=0.1, locate=0.1, grade=0.1)
    assert budget.chunk(8) == 8
    spent(budget, clock, 8, Effort(1, 1), read=3, locate=3, grade=3)
    assert budget.chunk(8) == 1
    assert Budget(None, views=1, folds=1, clock=clock).chunk(8) == 8


def test_the_cost_model_is_read_plus_folds_times_locate_plus_views_times_grade():
    clock = Clock()
    budget = Budget(1e6, views=2, folds=3, clock=clock)
    spent(budget, clock, 7, Effort(2, 3), read=2, locate=3, grade=5)
    assert abs(budget.cost(Effort(2, 3)) - (2 + 3 * (3 + 2 * 5))) < 1e-9
    assert abs(budget.cost(Effort(1, 1)) - (2 + 3 + 5)) < 1e-9

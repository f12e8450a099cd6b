"""Simulated scaling: schedules that were computed by hand, bounds that hold for all of them, and what they cost."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osteograde.learning import schedule
from osteograde.learning.schedule import Placed


@dataclass(frozen=True)
class Job:
    key: str
    after: tuple[str, ...] = ()


FORK = [Job("a"), Job("b", ("a",)), Job("c", ("a",)), Job("d", ("b", "c")), Job("e")]
SECONDS = {"a": 10.0, "b": 20.0, "c": 5.0, "d": 1.0, "e": 30.0}


def test_a_schedule_is_the_one_that_was_computed_by_hand():
    two = schedule.simulate(FORK, SECONDS, 2)
    assert two.placed == (
        Placed("a", 0, 0.0, 10.0),
        Placed("e", 1, 0.0, 30.0),  # the first in the list that waits for nothing
        Placed("b", 0, 10.0, 30.0),
        Placed("c", 0, 30.0, 35.0),
        Placed("d", 0, 35.0, 36.0),
    )
    assert (two.makespan_s, two.busy_s, two.used) == (36.0, 66.0, 2)
    assert two.utilisation == pytest.approx(66 / 72)
    assert two.device_hours == pytest.approx(72 / 3600) and two.busy_hours == pytest.approx(66 / 3600)


def test_one_device_works_all_the_time_and_many_are_bound_by_the_longest_chain():
    one, many = schedule.simulate(FORK, SECONDS, 1), schedule.simulate(FORK, SECONDS, 64)
    assert (one.makespan_s, one.utilisation) == (66.0, 1.0)
    assert (many.makespan_s, many.used) == (31.0, 3)
    assert many.utilisation == pytest.approx(66 / (64 * 31))


def test_the_longest_chain_is_named_in_the_order_of_its_jobs():
    assert schedule.critical_path(FORK, SECONDS) == (("a", "b", "d"), 31.0)
    assert schedule.critical_path(FORK, {**SECONDS, "e": 99.0}) == (("e",), 99.0)
    assert schedule.critical_path([], {}) == ((), 0.0)


def test_five_folds_of_two_stages_take_as_long_as_counted():
    """Locators of 10 s, all of which the graders of 40 s wait for: on two devices three rounds of each."""
    locators = [Job(f"locate{k}") for k in range(5)]
    graders = [Job(f"grade{k}", tuple(job.key for job in locators)) for k in range(5)]
    seconds = {job.key: 10.0 if "locate" in job.key else 40.0 for job in [*locators, *graders]}
    spans = {n: schedule.simulate([*locators, *graders], seconds, n).makespan_s for n in (1, 2, 5, 64)}
    assert spans == {1: 250.0, 2: 150.0, 5: 50.0, 64: 50.0}


def test_what_is_done_already_is_not_waited_for_and_a_circle_is_refused():
    assert schedule.simulate(FORK[1:], SECONDS, 9).makespan_s == 30.0
    with pytest.raises(ValueError, match="a waits for"):
        schedule.simulate([Job("a", ("b",)), Job("b", ("a",))], {}, 2)
    assert schedule.simulate([], {}, 3).utilisation == 1.0


@given(st.lists(st.tuples(st.integers(1, 50), st.sets(st.integers(0, 14), max_size=3)), max_size=15), st.integers(1, 9))
def test_no_schedule_beats_its_bounds_nor_does_worse_than_grahams(rows, devices):
    jobs = [Job(str(i), tuple(str(j) for j in sorted(waits) if j < i)) for i, (_, waits) in enumerate(rows)]
    seconds = {str(i): float(value) for i, (value, _) in enumerate(rows)}
    made = schedule.simulate(jobs, seconds, devices)
    chain, total = schedule.critical_path(jobs, seconds)[1], sum(seconds.values())
    assert made.busy_s == pytest.approx(total)
    assert made.makespan_s >= max(chain, total / devices) - 1e-9
    assert made.makespan_s <= chain + (total - chain) / devices + 1e-9
    ends = {one.key: one.end_s for one in made.placed}
    assert all(one.start_s >= ends[key] for one in made.placed for key in jobs[int(one.key)].after)
    for device in range(devices):
        own = [one for one in made.placed if one.device == device]
        assert all(first.end_s <= second.start_s for first, second in pairwise(own))

"""Studies side by side: the same answers in the same order, and torch's threads as they were."""

import threading

import pytest
import torch

from osteograde.inference.run import map_single_threaded


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_answers_come_in_order_from_workers_with_one_thread_each(two_threads):
    both = threading.Barrier(2, timeout=30)  # passed only if two are at work at a time

    def work(item):
        both.wait()
        return item, torch.get_num_threads()

    assert map_single_threaded(work, range(6)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 2


def test_one_item_is_worked_on_like_one_of_many(two_threads):
    assert map_single_threaded(lambda item: (item, torch.get_num_threads()), ["a"]) == [("a", 1)]
    assert map_single_threaded(lambda item: item, []) == []


def test_an_error_ends_it_and_the_threads_come_back(two_threads):
    def work(item):
        raise MemoryError(str(item))

    with pytest.raises(MemoryError):
        map_single_threaded(work, range(4))
    assert torch.get_num_threads() == 2


def test_a_sum_is_the_same_to_the_bit_however_many_threads_torch_has(two_threads):
    values = [torch.rand(3, 400_000, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    several = map_single_threaded(lambda one: torch.std_mean(one), values)
    torch.set_num_threads(1)
    alone = map_single_threaded(lambda one: torch.std_mean(one), values)
    for a, b in zip(several, alone, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

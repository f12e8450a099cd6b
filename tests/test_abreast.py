"""Studies side by side: the same answers in the same order, and torch's threads as they were."""

import threading

import pytest
import torch

from osteograde.inference.abreast import abreast


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

    assert abreast(work, range(6)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 2


def test_one_item_gets_all_threads(two_threads):
    assert abreast(lambda item: (item, torch.get_num_threads()), ["a"]) == [("a", 2)]
    assert abreast(lambda item: item, []) == []


def test_an_error_ends_it_and_the_threads_come_back(two_threads):
    def work(item):
        raise MemoryError(str(item))

    with pytest.raises(MemoryError):
        abreast(work, range(4))
    assert torch.get_num_threads() == 2


def test_a_net_answers_the_same_to_the_bit_on_one_thread_and_on_two(two_threads):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU()).eval()
    images = [torch.rand(5, 4, 40, 40) for _ in range(4)]
    with torch.inference_mode():
        alone = [net(image) for image in images]

    def work(image):
        with torch.inference_mode():
            return net(image)

    assert all(torch.equal(a, b) for a, b in zip(alone, abreast(work, images), strict=True))

"""A device that is too small, overflows or dies: the batch is halved, redone, moved; other studies lose nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from osteograde.inference import run
from osteograde.models import device
from osteograde.pipeline import predict
from osteograde.pipeline.predict import Nets, finite_mean, logits_of, with_memory_fallback
from tests.faults.runner import grade

CPU = torch.device("cpu")


class Small(nn.Module):
    """Doubles its input; as a device with room for so many items."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.batches = room, []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return 2 * batch


def doubled(batch, nets: Nets) -> list[float]:
    return [float(value) for value in nets.nets[0](torch.tensor(batch))]


def test_a_batch_too_large_for_the_device_is_halved_until_it_fits():
    net = Small(room=3)
    assert with_memory_fallback(doubled, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], Nets([net], 8, CPU)) == [
        2,
        4,
        6,
        8,
        10,
        12,
        14,
    ]
    assert net.batches == [7, 3, 4, 2, 2]


def test_an_item_too_large_for_every_device_has_no_answer_and_the_others_do():
    def work(batch, nets):
        if 3.0 in batch:
            raise MemoryError
        return doubled(batch, nets)

    assert with_memory_fallback(work, [1.0, 2.0, 3.0, 4.0], Nets([Small(9)], 8, CPU)) == [2, 4, None, 8]


def test_an_item_too_large_for_the_gpu_goes_to_the_cpu(monkeypatch):
    moved = []
    net = Small(room=9)
    monkeypatch.setattr(net, "to", lambda where: moved.append(where.type))
    monkeypatch.setattr(predict, "_free", lambda where: None)

    def work(batch, nets):
        if nets.device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(batch, nets)

    assert with_memory_fallback(work, [1.0, 2.0], Nets([net], 8, torch.device("cuda:0"))) == [2, 4]
    assert moved == ["cpu", "cuda", "cpu", "cuda"]


def test_the_machines_own_memory_counts_and_other_errors_are_not_caught():
    assert predict.is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    )
    for words in ("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDA error: out of memory",
                  "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"):  # fmt: skip
        assert predict.is_out_of_memory(RuntimeError(words))
    with pytest.raises(RuntimeError, match="sizes"):
        with_memory_fallback(
            lambda batch, nets: (_ for _ in ()).throw(RuntimeError("sizes differ")), [1], Nets([], 8, CPU)
        )


def test_nets_that_were_moved_while_grading_can_be_asked_for_gradients_afterwards():
    """Maps of evidence are made with the nets that graded. Another type of number stands for another device."""
    net = nn.Linear(3, 1)
    with torch.inference_mode():
        predict._move([net], torch.float64)  # type: ignore[arg-type]
        predict._move([net], torch.float32)  # type: ignore[arg-type]
    assert not any(parameter.is_inference() for parameter in net.parameters())
    net(torch.ones(2, 3, requires_grad=True)).sum().backward()


def overflowing(image: torch.Tensor) -> torch.Tensor:
    """Half precision overflows, full precision does not."""
    return image * (torch.inf if torch.is_autocast_enabled("cpu") else 3.0)


def test_logits_that_overflow_in_half_precision_are_computed_again_in_full(monkeypatch):
    image = torch.ones(4)
    monkeypatch.setattr(predict, "is_half", lambda where: True)
    assert logits_of(partial(overflowing, image), CPU).tolist() == [3.0] * 4
    assert logits_of(lambda: image, CPU).tolist() == [1.0] * 4


def test_folds_that_are_not_finite_do_not_count_and_none_at_all_is_nan():
    one, bad = torch.tensor([1.0, 3.0]), torch.tensor([torch.nan, 5.0])
    assert finite_mean([one, bad]).tolist() == [1.0, 4.0]
    assert torch.equal(finite_mean([one, one]), torch.stack([one, one]).mean(0))
    assert finite_mean([bad, bad]).isnan().tolist() == [True, False]
    answers = np.array([[[0.2, 0.8], [np.nan, 1.0]], [[0.4, 0.6], [np.inf, 0.0]]])
    np.testing.assert_allclose(predict._finite_mean(answers), [[0.3, 0.7], [np.nan, np.nan]])


def test_no_gpu_and_a_gpu_whose_kernels_do_not_run_mean_the_cpu(monkeypatch):
    def conv2d(*args, **options):
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    assert device.pick("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **options: self)
    monkeypatch.setattr(device.functional, "conv2d", conv2d)
    assert device.pick("auto") == CPU
    with pytest.raises(ValueError, match="no kernel image"):
        device.pick("cuda:0")


# --- through inference.py, on the studies of the fault tables ---------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(small_studies, tmp_path_factory):
    """(data, weights, the clean run) of three small studies."""
    data, weights = small_studies
    return data, weights, grade("lumbar-mr", data, weights, tmp_path_factory.mktemp("clean") / "s.csv")


@pytest.mark.slow
def test_nets_too_large_for_whole_batches_give_the_same_rows(healthy, tmp_path, monkeypatch):
    data, weights, clean = healthy
    find, judge, batches = predict._locate_batch, predict._grade_batch, Counter()

    def crowded(work, *args):
        def inner(*inputs):
            items = inputs[-2]
            batches[len(items)] += 1
            if len(items) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work(*inputs)

        return inner(*args)

    monkeypatch.setattr(predict, "_locate_batch", partial(crowded, find))
    monkeypatch.setattr(predict, "_grade_batch", partial(crowded, judge))
    crowd = grade("lumbar-mr", data, weights, tmp_path / "s.csv")
    assert crowd.code == 0 and max(batches) > 2
    for study, cells in clean.cells.items():
        for target, values in cells.items():
            np.testing.assert_allclose(np.array(crowd.cells[study][target], float), np.array(values, float), atol=1e-4)


@pytest.mark.slow
def test_a_grader_that_is_never_finite_costs_its_own_rows_and_is_counted(healthy, tmp_path, monkeypatch):
    data, weights, clean = healthy
    finite = predict.head_probabilities
    monkeypatch.setattr(predict, "head_probabilities", lambda grader, logits: finite(grader, logits * torch.nan))
    lost = grade("lumbar-mr", data, weights, tmp_path / "s.csv")
    assert lost.code == 0 and "spinal:not_finite x " in lost.said
    for study in clean.cells:
        assert lost.reasons[study]["spinal:not_finite"] > 0 and lost.reasons[study]["not_graded"] == 1
    assert "nan" not in lost.out.read_text()


@pytest.mark.slow
def test_a_locator_that_is_never_finite_finds_nothing_and_is_counted(healthy, tmp_path, monkeypatch):
    data, weights, clean = healthy
    scores = predict.probabilities
    monkeypatch.setattr(predict, "probabilities", lambda *args, **options: scores(*args, **options) * torch.nan)
    lost = grade("lumbar-mr", data, weights, tmp_path / "s.csv")
    assert lost.code == 0 and "canal:not_finite x 3" in lost.said
    assert all(lost.reasons[study]["not_graded"] == 1 for study in clean.cells)
    assert "nan" not in lost.out.read_text()


@pytest.mark.slow
def test_a_gpu_that_is_lost_leaves_the_rest_to_the_cpu(healthy, tmp_path, monkeypatch):
    data, weights, clean = healthy
    work, loads = run._grade_chunk, []
    load = run.ensemble.load

    class Dead:
        type = "cuda"

    def dying(bundle, *args):
        if len(loads) == 1:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return work(bundle, *args)

    def loading(weights, tasks, where):
        loads.append(where)
        bundle = load(weights, tasks, CPU)
        return bundle if len(loads) > 1 else replace(bundle, device=Dead())

    monkeypatch.setattr(run, "_grade_chunk", dying)
    monkeypatch.setattr(run.ensemble, "load", loading)
    lost = grade("lumbar-mr", data, weights, tmp_path / "s.csv")
    assert len(loads) == 2 and loads[1] == CPU
    assert lost.cells == clean.cells and "device_lost x 1" in lost.said


@pytest.mark.slow
def test_a_study_too_large_for_memory_is_read_twice_and_then_keeps_its_priors(healthy, tmp_path, monkeypatch):
    data, weights, clean = healthy
    read, tries = run.load_study, Counter()

    def scarce(study, task, *, map=map):
        tries[study.id] += 1
        if study.id == "b" or (study.id == "a" and tries["a"] == 1):
            raise MemoryError
        return read(study, task, map=map)

    monkeypatch.setattr(run, "load_study", scarce)
    lost = grade("lumbar-mr", data, weights, tmp_path / "s.csv")
    assert tries == {"a": 2, "b": 2, "c": 1} and lost.code == 0
    assert lost.cells["a"] == clean.cells["a"] and lost.cells["c"] == clean.cells["c"]
    assert lost.reasons["a"]["read_twice"] == lost.reasons["b"]["out_of_memory"] == 1
    assert "1 unreadable" in lost.said and lost.cells["b"] != clean.cells["b"]

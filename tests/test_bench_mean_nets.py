"""Nets half way between trained ones and those that they started from."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from mean_nets import mean


def test_tensors_are_mixed_by_their_share_and_counters_are_the_new_ones():
    new = {"weight": torch.tensor([1.0, 4.0], dtype=torch.float16), "steps": torch.tensor(8)}
    old = {"weight": torch.tensor([0.0, 0.0], dtype=torch.float16), "steps": torch.tensor(2)}
    mixed = mean(new, old, 0.25)
    assert mixed["weight"].tolist() == [0.25, 1.0]
    assert mixed["weight"].dtype == torch.float16
    assert mixed["steps"] == 8


def test_nets_with_different_tensors_cannot_be_mixed():
    with pytest.raises(KeyError):
        mean({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, 0.5)

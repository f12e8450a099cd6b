"""bench/machine.py: a bench names its processor, and says no ratio where others used the machine meanwhile."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from machine import REFUSED, Moment, Watch, busy_seconds, others_share, processor


def moment(clock: float, all_s: float | None, own: float, load: float = 0.0) -> Moment:
    return Moment(clock, all_s, own, load)


def test_own_work_is_no_load():
    watch = Watch(moment(0, 100, 5), moment(10, 120, 25), cores=2)  # all 20 seconds were its own
    assert watch.others == 0
    assert not watch.is_busy
    assert watch.ratio(1.234) == "1.23"


def test_work_of_others_refuses_the_ratio():
    watch = Watch(moment(0, 100, 5), moment(10, 120, 15), cores=2)  # half of 20 seconds
    assert watch.others == pytest.approx(0.5)
    assert watch.ratio(1.234) == REFUSED
    assert "no ratio" in str(watch)


def test_without_figures_of_the_system_the_load_before_decides():
    quiet, loaded = (Watch(moment(0, None, 0, load), moment(9, None, 9, 2.0), cores=2) for load in (0.1, 1.5))
    assert not quiet.is_busy
    assert loaded.is_busy
    assert others_share(quiet.begun, moment(9, None, 9), 2) is None


def test_processor_and_busy_seconds_are_read_from_what_linux_writes(tmp_path):
    info, stat = tmp_path / "cpuinfo", tmp_path / "stat"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  {ticks} {2 * ticks} {3 * ticks} 900 80 0 0 {4 * ticks} 7 7\ncpu0 1 1 1 1\n")
    assert processor(info) == "Some CPU @ 2 GHz"
    assert busy_seconds(stat) == 10  # user, nice, system and what the host took; not idle, waiting, guests
    assert processor(tmp_path / "none")
    assert busy_seconds(tmp_path / "none") is None

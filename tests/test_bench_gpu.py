"""bench/gpu.py: a part that fails or hangs costs no other part, and what it had measured is kept."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import gpu
from gpu import Outcome, run_part, write

PRINTS = "import sys; file = open(sys.argv[1], 'w'); print('{\"a\": 1}', file=file, flush=True); "


def part_of(program: str, folder: Path, limit_s: float = 60) -> Outcome:
    return run_part("x", [sys.executable, "-c", PRINTS + program], folder, limit_s)


def is_alive(pid: int) -> bool:
    """Whether a process is there; one that has ended and that nobody has waited for does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_part_that_is_done_has_its_rows(tmp_path):
    done = part_of("print('{\"a\": 2}', file=file)", tmp_path)
    assert (done.state, done.rows, done.said) == ("done", ({"a": 1}, {"a": 2}), "")


def test_a_part_that_fails_keeps_its_whole_rows_and_says_why(tmp_path):
    failed = part_of("print('{\"a\":', end='', file=file, flush=True); sys.exit('no kernel image')", tmp_path)
    assert (failed.state, failed.rows) == ("failed", ({"a": 1},))
    assert "no kernel image" in failed.said and "exit code 1" in failed.said


def test_a_part_that_hangs_is_killed_with_the_processes_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_S", 0)
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); "
    told = "print(json.dumps({'pid': child.pid}), file=file, flush=True); time.sleep(300)"
    begun = time.monotonic()
    late = part_of(f"import json, subprocess, time; {child}{told}", tmp_path, limit_s=4)
    assert (late.state, late.rows[0]) == ("out of time", {"a": 1})
    assert time.monotonic() - begun < 60
    until = time.monotonic() + 30
    while is_alive(late.rows[1]["pid"]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(late.rows[1]["pid"])


def test_a_part_without_time_is_left_out(tmp_path):
    assert part_of("", tmp_path, limit_s=3).state == "left out"


def test_the_parts_together_end_in_eight_minutes():
    assert gpu.TOTAL_S + gpu.LEAST_S < 8 * 60
    assert list(gpu.LIMITS_S)[:2] == ["probe", "phantoms"]  # what all others need comes first


def test_both_files_hold_every_part(tmp_path):
    several = Outcome("b", "done", 2.0, ({"name": "x", "ms": 1.23456}, {"name": "y|z", "MiB": 7}))
    write([Outcome("a", "failed", 1.5, (), "why"), several], "load 0.1", tmp_path / "gpu.json")
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert [(part["part"], part["state"], part["said"]) for part in facts["parts"]] == [
        ("a", "failed", "why"), ("b", "done", ""),
    ]  # fmt: skip
    text = (tmp_path / "gpu.md").read_text()
    for line in ("| a | failed | 1.5 |", "why", "| name | ms | MiB |", "| x | 1.235 |  |", "| y/z |  | 7 |"):
        assert line in text.splitlines()


@pytest.mark.slow
def test_parts_run_in_small_on_a_cpu(tmp_path):
    """The other parts repeat these with other settings, and are called by hand."""
    out, chosen = tmp_path / "gpu.json", ["probe", "phantoms", "answers", "train-bf16"]
    code = gpu.main(["--out", str(out), "--device", "cpu", "--tiny", "--parts", ",".join(chosen)])
    parts = {part["part"]: part for part in json.loads(out.read_text())["parts"]}
    assert {name: (part["state"], part["said"]) for name, part in parts.items()} == dict.fromkeys(chosen, ("done", ""))
    assert code == 0
    for row in parts["answers"]["rows"]:
        assert row["targets"] > 0 and row["answered by one alone"] == 0
        assert 0 < row["largest difference of a probability"] < 0.05  # half precision is another one, and near
    assert {row["stage"] for row in parts["train-bf16"]["rows"]} == {"joint", "kl"}

"""The command lines of the design: every name, every default that callers rely on, and the exit codes."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from osteograde import cli
from osteograde.errors import UserError
from osteograde.tasks import NAMES, TASKS, WITH_COMPETITION, decision

ROOT = Path(__file__).resolve().parents[1]

INFERENCE = {
    "TASK", "--data", "--weights", "--out", "--device", "--limit", "--workers", "--time-budget", "--max-unread",
    "--points", "--predicted", "--decide", "--executor", "--overlays", "--explain", "--explain-method",
}  # fmt: skip
TRAIN = {
    "TASK", "--list", "--data", "--out", "--recipe", "--set", "--folds", "--device", "--resume", "--reuse",
    "--folds-of", "--pseudo-labels", "--debug", "--tensorboard",
    "--plan", "--executor", "--only",
}  # fmt: skip
FROZEN = {
    "grade": INFERENCE,
    "train": TRAIN,
    "phantom": {"TASK", "--out", "--studies", "--test", "--seed"},
    "targets": {"TASK", "--tables", "--out", "--definition", "--months", "--loss", "--location"},
    "score": {"TASK", "--data", "--submission", "--bootstrap", "--split", "--json"},
    "ensemble": {"TASK", "--members", "--data", "--json"},
    "runs": {"DIR", "--compare", "--bootstrap", "--json", "--kaggle"},
    "tune": {
        "TASK",
        "--data",
        "--out",
        "--trials",
        "--space",
        "--method",
        "--prune",
        "--recipe",
        "--set",
        "--folds",
        "--inner",
        "--seed",
        "--device",
        "--executor",
    },
    "segment": {"TASK", "--weights", "--data", "--out", "--points", "--limit", "--device"},
    "report": {"WEIGHTS_DIR", "--data", "--out", "--compare", "--ledger"},
    "inspect": {"TASK", "--data", "--out", "--oof", "--json"},
    "validate": {"--submission", "--template"},
    "doctor": set(),
    "weights list": set(),
    "weights get": {"NAME", "--from"},
    "kernel build": {
        "TASK",
        "--weights",
        "--mount",
        "--images",
        "--machine",
        "--train",
        "--go-on",
        "--internet",
        "--options",
    },
    "download": {"TASK", "--data", "--out", "--space"},
    "kaggle upload-weights": {"WEIGHTS_DIR", "--to", "--public", "--licence", "--poll"},
    "kaggle push": {"TASK", "--no-run", "--train"},
    "kaggle wait": {"TASK", "--poll", "--train"},
    "kaggle output": {"TASK", "--train"},
    "kaggle submit": {"TASK", "--yes", "--wait", "--poll"},
    "kaggle score": {"TASK"},
    "kaggle runs": set(),
    "kaggle all": {"TASK", "--weights", "--to", "--yes", "--poll"},
    "kaggle rehearse": {
        "TASK",
        "--data",
        "--weights",
        "--copies",
        "--served",
        "--train",
        "--minutes",
        "--image-constraints",
    },
}


def options(parser: argparse.ArgumentParser) -> set[str]:
    names = set()
    for action in parser._actions:
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            names |= set(action.option_strings) or {str(action.metavar)}
    return names


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, set[str]]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        return {prefix.strip(): options(parser)}
    found: dict[str, set[str]] = {}
    for name, child in below[0].choices.items():
        found |= commands(child, f"{prefix} {name}")
    return found


def test_command_lines_are_frozen():
    assert commands(cli.parser()) == FROZEN
    assert options(cli.inference_parser()) == INFERENCE
    assert options(cli.train_parser()) == TRAIN


def test_inference_needs_no_argument():
    args = cli.inference_parser().parse_args([])
    assert (args.task, args.data, args.weights) == ("lumbar-mr", None, None)
    assert (args.out, args.device, args.limit, args.max_unread) == (Path("submission.csv"), "auto", 0, 0)
    assert (args.workers, args.time_budget, args.overlays, args.explain) == (0, None, None, None)
    assert args.explain_method == "gradcam"


def test_every_method_of_maps_can_be_asked_for():
    from osteograde.models.explain import METHODS

    assert tuple(METHODS) == cli.EXPLAIN_METHODS
    assert tuple(decision.RULES) == cli.DECISIONS


def test_training_reads_fold_numbers():
    args = cli.train_parser().parse_args(["a-task", "--data", "d", "--out", "w", "--folds", "0,2"])
    assert (args.folds, args.recipe, args.resume, args.debug) == ((0, 2), None, False, False)


@pytest.mark.parametrize(
    ("parser", "words"),
    [
        (cli.inference_parser, ["--limit", "-1"]),
        (cli.inference_parser, ["--time-budget", "0"]),
        (cli.inference_parser, ["--time-budget", "nan"]),
        (cli.inference_parser, ["--device", "gpu"]),
        (cli.inference_parser, ["--over", "d"]),  # no abbreviations
        (cli.train_parser, ["t", "--data", "d", "--out", "w", "--folds", "0,0"]),
        (cli.train_parser, ["t", "--data", "d", "--out", "w", "--folds", "1,,2"]),
        (cli.train_parser, ["t", "--data", "d"]),
        (cli.train_parser, ["t", "--data", "d", "--out", "w", "--executor", "local:0"]),
        (cli.train_parser, ["t", "--data", "d", "--out", "w", "--executor", "ray:nowhere"]),
        (cli.inference_parser, ["--executor", "local:0"]),
        (cli.parser, []),
        (cli.parser, ["kernel"]),
        (cli.parser, ["kaggle"]),
        (cli.parser, ["kaggle", "wait", "t", "--poll", "-1"]),
        (cli.parser, ["kaggle", "rehearse", "t", "--data", "d", "--copies", "0"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(parser, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def raise_plain():
    raise ValueError("no such\nthing")


def raise_user_error():
    raise UserError("no such\nthing")


def raise_in_ours():
    cli.check_name("no-such-task")


def test_a_mistake_put_into_words_is_one_line_and_exit_code_2(capsys):
    assert cli.run(raise_in_ours) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no task 'no-such-task'; known tasks: ")
    assert err.count("\n") == 1


def test_a_user_error_is_one_line_whoever_raises_it(capsys):
    assert cli.run(raise_user_error) == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_a_plain_value_error_from_our_own_code_is_our_fault(monkeypatch, capsys):
    monkeypatch.setattr(cli, "check_name", lambda name: raise_plain())
    assert cli.run(lambda: cli.main(["phantom", "lumbar-mr", "--out", "unused"])) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("ValueError: no such\nthing\n")


@pytest.mark.parametrize(("words", "line"), [((), "the same command"), (("add --resume",), "add --resume")])
def test_ctrl_c_is_one_line_that_says_how_to_go_on(words, line, capsys):
    def interrupted():
        raise KeyboardInterrupt(*words)

    assert cli.run(interrupted) == 130
    err = capsys.readouterr().err
    assert err.startswith("interrupted: ") and line in err and err.count("\n") == 1


def test_a_missing_file_is_exit_code_2(capsys):
    assert cli.run(lambda: int(Path("no/such/file").read_text())) == 2
    assert "no/such/file" in capsys.readouterr().err


def broken_numpy():
    return int((np.zeros(3) + np.zeros(4)).sum())


@pytest.mark.parametrize("fault", [broken_numpy, lambda: int("not a number"), raise_plain])
def test_an_unexpected_value_error_is_our_fault_and_keeps_its_traceback(fault, capsys):
    assert cli.run(fault) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["score", "no-such-task", "--data", ".", "--submission", "x.csv"],
        ["phantom", "no-such-task", "--out", "unused"],
        ["kernel", "build", "no-such-task"],
        ["download", "no-such-task"],
        ["kaggle", "push", "no-such-task"],
        ["kaggle", "all", "no-such-task", "--yes"],
        ["kaggle", "rehearse", "no-such-task", "--data", "."],
        ["ensemble", "no-such-task", "--data", ".", "--members", "a", "b"],
    ],
)
def test_an_unknown_task_names_the_known_ones(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(lambda: cli.main(words)) == 2
    assert capsys.readouterr().err == f"error: no task 'no-such-task'; known tasks: {', '.join(sorted(TASKS))}\n"
    assert list(tmp_path.iterdir()) == []


HEAVY = ("torch", "pandas", "pydicom", "scipy", "sklearn", "numpy", "cv2")
REFUSED = [
    ["grade", "--help"],
    ["grade", "--nope"],
    ["grade", "no-such-task"],
    ["grade", "--data", "no/such/folder"],
    ["grade", "--device", "gpu"],
    ["grade", "--data", ".", "--out", "no/such/folder/submission.csv"],
    ["tune", "no-such-task", "--data", ".", "--out", "w", "--trials", "2"],
    ["tune", "spider", "--data", ".", "--out", "w"],
    ["train", "no-such-task", "--data", ".", "--out", "w"],
    ["train", "spider", "--data", ".", "--out", "w", "--folds", "x"],
    ["score", "no-such-task", "--data", ".", "--submission", "x.csv"],
    ["score", "spider", "--data", "no/such/folder", "--submission", "x.csv"],
    ["score", "spider", "--data", ".", "--submission", "x.csv"],
    ["validate", "--submission", "x.csv", "--template", "y.csv"],
    ["runs", "--help"],
    ["runs"],
    ["runs", "no/such/folder"],
    ["runs", "--compare", "."],
    ["runs", "--compare", ".", ".", "--bootstrap", "0"],
    ["kernel", "build", "no-such-task"],
    ["kaggle", "push", "no-such-task"],
    ["kaggle", "push", "spider"],
    ["kaggle", "wait", "spider"],
    ["kaggle", "output", "spider"],
    ["kaggle", "score", "lumbar-mr"],
    ["kaggle", "submit", "lumbar-mr"],
    ["kaggle", "rehearse", "spider", "--data", "."],
    ["kaggle", "--help"],
]
SPIDER = ROOT / "weights" / "spider"
OF_THE_WRONG_TASK_OR_STEP = [
    ["grade", "--data", ".", "--weights", "."],
    ["grade", "lumbar-mr", "--data", ".", "--weights", str(SPIDER)],
    ["train", "knee-xray", "--data", ".", "--out", "w", "--set", "lr=1"],
    ["train", "knee-xray", "--data", ".", "--out", "w", "--set", "grade.kl.training.epochs=5"],
    ["report", "."],
    ["report", "weights/spider", "--ledger", "no/such/file"],
    ["report", str(SPIDER), "--out", "."],
    ["runs", "--kaggle", "weights"],
    ["inspect", "lumbar-mr", "--data", "."],
    ["inspect", "spider", "--data", ".", "--out", "page.txt"],
    ["inspect", "knee-xray", "--data", ".", "--oof", str(SPIDER)],
    ["ensemble", "knee-xray", "--members", str(SPIDER), "--data", "."],
    ["kernel", "build", "lumbar-mr", "--weights", str(SPIDER)],
    ["kaggle", "upload-weights", ".", "--to", "a/b"],
    ["kaggle", "all", "lumbar-mr", "--weights", str(SPIDER)],
]


def python(program: str, cwd: Path) -> subprocess.CompletedProcess:
    """A fresh interpreter with this checkout's package."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def refused(words: list[str], heavy: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess:
    """Run ``osteograde WORDS``; the last line printed is the exit code and which of ``heavy`` were imported."""
    program = (
        "import sys\nfrom osteograde import cli\n"
        f"try:\n    code = cli.run(lambda: cli.main({words!r}))\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        f"print(code, [name for name in {heavy!r} if name in sys.modules])"
    )
    return python(program, cwd)


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_refused_command_imports_nothing_heavy(words, tmp_path):
    """What keeps it under a second on any machine, without measuring time."""
    done = refused(words, HEAVY, tmp_path)
    assert done.stdout.splitlines()[-1] == f"{0 if '--help' in words else 2} []", done.stderr
    assert done.stderr.count("\n") == ("--help" not in words)


@pytest.mark.parametrize("words", OF_THE_WRONG_TASK_OR_STEP, ids=lambda words: " ".join(words[:2]))
def test_wrong_weights_and_steps_out_of_order_are_refused_before_torch_is_imported(words, tmp_path):
    done = refused(words, ("torch",), tmp_path)
    assert done.stdout.splitlines()[-1] == "2 []", done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("recipe", ["no-such-recipe", "knee-xray"])
def test_a_wrong_recipe_is_refused_before_anything_slow_is_imported(recipe, tmp_path):
    program = (
        "import sys\nfrom osteograde import cli\n"
        f"words = ['train', 'spider', '--data', '.', '--out', 'w', '--recipe', {recipe!r}]\n"
        "code = cli.run(lambda: cli.main(words))\n"
        "print(code, [name for name in ('numpy', 'pandas', 'torch') if name in sys.modules])"
    )
    done = python(program, tmp_path)
    assert done.stdout.splitlines()[-1] == "2 []"
    assert recipe in done.stderr and done.stderr.count("\n") == 1


def test_the_names_of_tasks_are_those_of_the_tasks():
    assert NAMES == tuple(TASKS) == tuple(task.name for task in TASKS.values())
    assert tuple(name for name, task in TASKS.items() if task.slug) == WITH_COMPETITION


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("knee-xry", "no task 'knee-xry'; nearest: knee-xray; known tasks: knee-progression"),
        ("Spider", "no task 'Spider'; nearest: spider; known"),
        ("lumbar", "no task 'lumbar'; nearest: lumbar-mr; known"),
        ("x", "no task 'x'; known tasks: knee-progression, knee-xray, lumbar-mr, spider, table"),
    ],
)
def test_a_task_that_is_not_known_is_told_with_the_nearest(given, told, capsys):
    for words in (["kaggle", "push", given], ["grade", given], ["kernel", "build", given]):
        assert cli.run(lambda words=words: cli.main(words)) == 2
        assert told in capsys.readouterr().err


def test_the_console_script_is_the_package_run_as_a_module():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["osteograde"].partition(":")
    assert (module, callable(getattr(importlib.import_module(module), function))) == ("osteograde.__main__", True)


def test_the_package_is_a_command_with_exit_codes(tmp_path):
    command = [sys.executable, "-m", "osteograde", "kernel", "build", "no-such-task"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["train", "spider", "--list"], ["weights", "list"]], ids=" ".join)
def test_output_that_nobody_reads_any_more_ends_a_command_without_a_word(words, tmp_path):
    """As behind ``| head``: the other end of the pipe is closed before the first line is written."""
    ours, theirs = os.pipe()
    os.close(ours)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "osteograde", *words]
    try:
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=theirs, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (cli.UNREAD, b"")


def test_validate_lists_what_is_wrong(tmp_path, capsys):
    template, good, bad = (tmp_path / name for name in ("template.csv", "good.csv", "bad.csv"))
    template.write_text("row_id,a,b\n1_x,0.5,0.5\n1_y,0.5,0.5\n")
    good.write_text("row_id,a,b\n1_x,0.1,0.9\n1_y,0.5,0.5\n")
    bad.write_text("row_id,a,b\n1_x,0.1,0.1\n1_z,0.5,0.5\n")
    words = ["validate", "--template", str(template), "--submission"]
    assert cli.run(lambda: cli.main([*words, str(good)])) == 0
    assert cli.run(lambda: cli.main([*words, str(bad)])) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in ("1_y", "1_z", "summing to 1"))


def test_score_prints_a_table_or_with_json_one_line_of_json_alone(tmp_path, capsys):
    task = TASKS["lumbar-mr"]
    labels = [f"1{',Normal/Mild' * 25}\n", f"2{',Moderate' * 25}\n"]
    (tmp_path / "train.csv").write_text(",".join(["study_id", *task.targets]) + "\n" + "".join(labels))
    rows = [f"{row},0.5,0.3,0.2\n" for study in ("1", "2") for row in task.rows(study)]
    (tmp_path / "s.csv").write_text("row_id,normal_mild,moderate,severe\n" + "".join(rows))
    words = ["score", "lumbar-mr", "--data", str(tmp_path), "--submission", str(tmp_path / "s.csv")]
    printed = []
    for _ in range(2):  # the interval is drawn from a fixed seed
        assert cli.run(lambda: cli.main([*words, "--bootstrap", "20"])) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].splitlines()[0] == "lumbar-mr: 2 studies of train.csv" and "{" not in printed[0]
    assert cli.run(lambda: cli.main([*words, "--bootstrap", "20", "--json"])) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    condition = -(np.log(0.5) + 2 * np.log(0.3)) / 3  # classes of weight 1 and 2, equally often
    assert result["score"]["score"] == pytest.approx((3 * condition - np.log(1 - 0.2)) / 4)  # and no severe canal


def test_phantom_with_nothing_to_write_is_refused(tmp_path, capsys):
    words = ["phantom", "lumbar-mr", "--out", str(tmp_path / "d"), "--studies", "0"]
    assert cli.run(lambda: cli.main(words)) == 2
    assert "nothing to write" in capsys.readouterr().err

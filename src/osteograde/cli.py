"""Command lines: paths and names only, everything else lives in recipes. The options are frozen; a test lists them.

Exit codes: 0 done; 2 the user's mistake, one clear line on stderr; 1 a fault of ours, with its traceback;
130 interrupted, one line that says how to go on. A second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import select
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from osteograde import interrupts, packages
from osteograde.errors import UserError
from osteograde.kaggle import cli
from osteograde.tasks import NAMES, check_name

DEFAULT_TASK = "lumbar-mr"
TASK_OF_TARGETS = "knee-progression"
RUNS_IN = ("weights", "runs")  # folders that ``osteograde runs`` looks into
TUNE_METHODS, TUNE_PRUNERS = ("tpe", "random", "grid"), ("median", "hyperband", "none")  # of learning/study.py
EXPLAIN_METHODS = ("gradcam", "saliency", "smoothgrad")  # those of models/explain.py, which is imported later
SERIAL = "serial"  # of --executor: everything is done in this process
_RAY = r"ray(:[^:\s]+:[0-9]{1,5})?"  # of --executor: on this machine, or on the cluster at HOST:PORT
DECISIONS = ("most-probable", "median", "mean")  # those of tasks/decision.py, which is imported later
INTERRUPTED = 130  # exit code
UNREAD = 141  # exit code of a program that SIGPIPE ends
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what only a user can make room for


class Parser(argparse.ArgumentParser):
    """Full option names only (an abbreviation would freeze names nobody chose), and one line for a mistake.

    What ``parse_args`` returns has one name more than the options: ``typed``, the whole command, to be typed again.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "allow_abbrev": False})

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        words = sys.argv[1:] if args is None else args
        parsed = super().parse_args(words, namespace)
        parsed.typed = shlex.join([*_program(self.prog), *words])
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _program(name: str) -> list[str]:
    """How the program ``name`` was started."""
    if not name.endswith(".py"):
        return ["python", "-m", name] if Path(sys.argv[0]).name == "__main__.py" else [name]
    return ["python", sys.argv[0] if Path(sys.argv[0]).name == name else name]


def program(main: Callable[[], int | None]) -> NoReturn:
    """Call ``main`` as ``run`` does and end the process with its exit code: what the entry scripts are.

    After Ctrl-C, threads that still read or compute are not waited for.
    """
    interrupts.listen()
    code = run(main)
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(main: Callable[[], int | None]) -> int:
    """Call ``main`` and return its exit code.

    A ``UserError``, a missing or forbidden path and a full disk are the user's to mend: one line on stderr, exit code
    2. Any other ValueError or OSError is a fault of ours: traceback, exit code 1. Ctrl-C: one line that says how to go
    on, exit code 130. Output that nobody reads any more, as behind ``| head``: no line, exit code 141.
    """
    try:
        with interrupts.explained(lambda how: how or "the same command starts again"):
            code = main() or 0
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {interrupt}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            return UNREAD
        if not is_user_mistake(error):
            traceback.print_exc()
            return 1
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _is_unread(stream: TextIO) -> bool:
    """Whether the reader of a stream is gone. What is still to be written to it is then thrown away."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # no file of the system, as in a notebook
        return False
    watched = select.poll()
    watched.register(number, 0)
    if not any(event & select.POLLERR for _, event in watched.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
    return True


def is_user_mistake(error: ValueError | OSError) -> bool:
    """Whether the user can mend what went wrong: a ``UserError``, a missing or forbidden path, or a full disk."""
    kinds = (UserError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _NO_ROOM)


def inference_parser() -> argparse.ArgumentParser:
    """``python inference.py``: studies and weights -> submission.csv."""
    parser = Parser(prog="inference.py", description="Grade studies and write submission.csv.")
    add_grade_options(parser)
    return parser


def add_grade_options(parser: argparse.ArgumentParser) -> None:
    """The options of inference.py and ``osteograde grade``."""
    parser.add_argument("task", nargs="?", default=DEFAULT_TASK, metavar="TASK", help=f"default: {DEFAULT_TASK}")
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="DIR|FILE",
        help="folders of studies, or single images; default: phantoms made on the spot",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="DIR", help="default: the shipped weights of the task")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), metavar="submission.csv")
    _add_device(parser)
    parser.add_argument("--limit", type=_count, default=0, metavar="N", help="only the first N studies; 0: all")
    parser.add_argument("--workers", type=_count, default=0, metavar="N", help="threads that decode; 0: one per core")
    parser.add_argument("--time-budget", type=_hours, metavar="HOURS", help="drop extras before this is exceeded")
    parser.add_argument(
        "--max-unread", type=_count, default=0, metavar="N", help="exit 1 if more studies than this fall to the prior"
    )
    parser.add_argument(
        "--points", type=Path, metavar="FILE", help="grade at these landmarks (a points.csv) and look for the others"
    )
    parser.add_argument(
        "--predicted", action="store_true", help="name the likeliest class: a last column, or for a competition a table"
    )
    parser.add_argument(
        "--decide", choices=DECISIONS, help="the same, by this rule; default: most-probable (docs/inference.md)"
    )
    parser.add_argument(
        "--executor", type=_executor, default=SERIAL, metavar="serial|local[:N]|ray[:HOST:PORT]",
        help="local: studies are graded side by side, in a process for each GPU or every few cores, or in N; ray: on "
        "the machines of a Ray cluster, or without an address on this one; default: serial",
    )  # fmt: skip
    parser.add_argument("--overlays", type=Path, metavar="DIR", help="draw points and crops on slices into DIR")
    parser.add_argument("--explain", type=Path, metavar="DIR", help="draw a map of the evidence of every graded site")
    parser.add_argument(
        "--explain-method", choices=EXPLAIN_METHODS, default=EXPLAIN_METHODS[0], help="of --explain; default: gradcam"
    )


def train_parser() -> argparse.ArgumentParser:
    """``python train_folds.py``: labelled studies and a recipe -> weights."""
    parser = Parser(prog="train_folds.py", description="Train the folds of a recipe and write a weights folder.")
    add_train_options(parser)
    return parser


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options of train_folds.py and ``osteograde train``."""
    parser.add_argument("task", metavar="TASK")
    parser.add_argument(
        "--list", action=_ListOnly,
        help="print the recipes of the task, or with --recipe or --set all values of one as KEY=VALUE, and stop",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="WEIGHTS_DIR")
    parser.add_argument("--recipe", metavar="NAME|FILE.py", help="default: the task's own recipe")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE",
        help="change one value of the recipe, such as grade.*.training.epochs=2; may be repeated",
    )  # fmt: skip
    parser.add_argument("--folds", type=_folds, metavar="0,2", help="only these folds; default: all")
    _add_device(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch")
    parser.add_argument(
        "--reuse", type=Path, nargs="+", default=[], metavar="WEIGHTS_DIR",
        help="use its folds, and its nets where the plans are the same; resumes",
    )  # fmt: skip
    parser.add_argument(
        "--folds-of", type=Path, metavar="WEIGHTS_DIR",
        help="use its folds, as members of an ensemble need; no net is copied",
    )  # fmt: skip
    parser.add_argument(
        "--pseudo-labels", type=Path, metavar="WEIGHTS_DIR",
        help="use its folds, and learn from its answers at sites without a label",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="a few minutes on a CPU, from nothing to weights")
    parser.add_argument(
        "--plan", action="store_true",
        help="list the jobs of the run, with --resume what is done, and how long it takes; then stop",
    )  # fmt: skip
    parser.add_argument(
        "--executor", type=_executor, default=SERIAL, metavar="serial|local[:N]|ray[:HOST:PORT]",
        help="local: jobs side by side, in a process for each GPU or share of the cores, or in N; ray: on the machines "
        "of a Ray cluster, or without an address on this one; default: serial",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", default=[], metavar="JOB",
        help="do these jobs of --plan alone, such as 'locate/*fold0'; first of all prepare; may be repeated",
    )  # fmt: skip
    parser.add_argument("--tensorboard", action="store_true", help="write its events beside the history of every net")


def parser() -> argparse.ArgumentParser:
    """``osteograde``, also called as ``python -m osteograde``."""
    top = Parser(prog="osteograde", description="Locate joints and grade them: train, infer, check, submit.")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    add_grade_options(_command(commands, "grade", grade, "grade a folder of studies and write submission.csv"))
    add_train_options(_command(commands, "train", train, "train the folds of a recipe and write a weights folder"))

    made = _command(commands, "phantom", phantom, "write synthetic studies with known truth, as real DICOM")
    made.add_argument("task", metavar="TASK")
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    made.add_argument("--studies", type=_count, default=16, metavar="N", help="labelled studies; default: 16")
    made.add_argument("--test", type=_count, default=0, metavar="N", help="studies without labels; default: 0")
    made.add_argument("--seed", type=_count, default=0, metavar="S")

    _add_score(commands)

    _add_targets(commands)

    chosen = _command(commands, "ensemble", ensemble, "choose which weights vote together, and how, out-of-fold only")
    chosen.add_argument("task", metavar="TASK")
    chosen.add_argument("--members", type=Path, nargs="+", required=True, metavar="WEIGHTS_DIR")
    chosen.add_argument("--data", type=Path, required=True, metavar="DIR", help="the labelled studies they learnt from")
    _add_json(chosen)

    _add_runs(commands)

    _add_tune(commands)

    _add_segment_options(_command(commands, "segment", segment, "write label images of discs, vertebrae and canal"))

    _add_report(commands)

    seen = _command(commands, "inspect", inspect, "before training: what a folder holds, and what is wrong")
    seen.add_argument("task", metavar="TASK")
    seen.add_argument("--data", type=Path, required=True, metavar="DIR")
    seen.add_argument(
        "--out", type=Path, default=Path("inspect.html"), metavar="page.html",
        help="a table page.csv is written beside it; default: inspect.html",
    )  # fmt: skip
    seen.add_argument(
        "--oof", type=Path, metavar="WEIGHTS_DIR", help="with oof.csv: shows the labels that are likely wrong"
    )
    seen.add_argument("--json", action="store_true", help="print JSON alone on stdout")

    checked = _command(commands, "validate", validate, "exit 0, or a list of what is wrong with a submission")
    checked.add_argument("--submission", type=Path, required=True, metavar="FILE")
    checked.add_argument("--template", type=Path, required=True, metavar="sample_submission.csv")

    _command(commands, "doctor", doctor, "can this environment do the work: versions, devices, decoders, weights")

    _add_weights(commands)
    _add_kernel(commands)
    cli.add(commands, _command)
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return args.command(args)


def check_file(option: str, path: Path) -> None:
    """UserError where an option names no file."""
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file")


def grade(args: argparse.Namespace) -> int:
    check_name(args.task)
    for path in args.data or ():
        if not (path.is_dir() or path.is_file()):
            if str(path) in NAMES:
                raise UserError(f"{path}: name the task before --data, which takes every word behind it for a path")
            raise UserError(f"{path}: no such folder or file; --data names folders with tables and images, or images")
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: name a file in a folder that exists, such as submission.csv")
    if args.points is not None:
        check_file("--points", args.points)
    if args.weights is not None:
        cli.check_weights(args.weights, args.task)
    else:
        from osteograde.models import shipped

        args.weights = shipped.find(args.task)
    packages.check(to_train=False)
    if args.executor != SERIAL:
        check_shards(args)
    from osteograde import grade_command

    return grade_command.main(args)


def check_shards(args: argparse.Namespace) -> None:
    """UserError for what shards of studies cannot do, and where no cluster can be reached."""
    from osteograde import ray_cluster

    if args.data is None:
        raise UserError(f"--executor {args.executor}: name the studies with --data, in a folder that all processes see")
    for option, value in (
        ("--time-budget", args.time_budget),
        ("--overlays", args.overlays),
        ("--explain", args.explain),
    ):
        if value is not None:
            raise UserError(f"{option} is of a run in one process; leave it out, or --executor {args.executor}")
    ray_cluster.check(args.executor, args.device)


def train(args: argparse.Namespace) -> int:
    check_name(args.task)
    packages.check(to_train=True)
    if not (args.list or args.plan):
        from osteograde import ray_cluster

        ray_cluster.check(args.executor, args.device)
    from osteograde import train_command

    if args.list:
        print(*train_command.listed(args), sep="\n")
        return 0
    return train_command.main(args)


def phantom(args: argparse.Namespace) -> int:
    check_name(args.task)
    from osteograde import phantom as maker
    from osteograde.logs import to_stdout

    if args.studies + args.test == 0:
        raise UserError("--studies 0 and --test 0 leave nothing to write; give one of them")
    to_stdout(bars=True)
    maker.write(args.task, args.out, studies=args.studies, test=args.test, seed=args.seed, workers=os.cpu_count() or 1)
    print(f"{args.studies} labelled and {args.test} unlabelled studies of {args.task} -> {args.out}")
    return 0


def score(args: argparse.Namespace) -> int:
    check_name(args.task)
    if not args.data.is_dir():
        raise UserError(f"{args.data}: no such folder; --data is the folder that holds the labels or their table")
    check_file("--submission", args.submission)
    from osteograde.report import score_table
    from osteograde.tasks import TASKS

    result = score_table.score_file(TASKS[args.task], args.data, args.submission, args.bootstrap, split=args.split)
    print(json.dumps(result, sort_keys=True) if args.json else score_table.format_table(result))
    return 0


def targets(args: argparse.Namespace) -> int:
    check_name(args.task)
    if args.task != TASK_OF_TARGETS:
        raise UserError(f"the labels of {args.task} come with its data; targets are built for {TASK_OF_TARGETS}")
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: name a file in a folder that exists, such as labels.csv")
    chosen = {"months": args.months, "loss_mm": args.loss, "location": args.location}
    given = {name: value for name, value in chosen.items() if value is not None}
    if given and args.definition == "kl":
        raise UserError("--months, --loss and --location are of --definition jsl; leave them out with kl")
    from osteograde.logs import to_stdout
    from osteograde.tasks import oai_progression

    to_stdout()
    definition = oai_progression.JointSpaceLoss(**given) if args.definition == "jsl" else oai_progression.GradeRise()
    labelled = oai_progression.build(args.tables, definition)
    oai_progression.save(labelled, args.out)
    print("\n".join(labelled.lines()))
    print(f"{len(labelled.rows)} labelled knees -> {args.out}")
    return 0


def ensemble(args: argparse.Namespace) -> int:
    check_name(args.task)
    for weights in args.members:
        cli.check_weights(weights, args.task)
    from osteograde.learning import ensemble as voters
    from osteograde.logs import to_stdout
    from osteograde.models.manifest import read_manifest
    from osteograde.tasks import TASKS

    if not args.json:
        to_stdout()
    task = TASKS[args.task].as_defined(read_manifest(args.members[0]).definition)
    result = voters.choose(task, args.members, args.data)
    print(json.dumps(result, sort_keys=True) if args.json else voters.table(result))
    return 0


def runs(args: argparse.Namespace) -> int:
    if args.kaggle:
        if args.compare or args.dir:
            raise UserError("--kaggle: lists submissions, not folders; leave the folders out")
        return cli.print_submissions(as_json=args.json)
    given = args.compare or args.dir
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name one that holds weights folders, or weights folders")
    if args.compare and len(args.compare) < 2:
        raise UserError("--compare: name two or more weights folders; each is compared with the first one")
    if args.compare and not args.bootstrap:
        raise UserError("--bootstrap 0: a difference without an interval says nothing; give 100 or more")
    if not given and not any(Path(name).is_dir() for name in RUNS_IN):
        raise UserError(
            f"no folder {' or '.join(RUNS_IN)} here; name the folder that holds weights folders: osteograde runs ."
        )
    from osteograde import runs_command

    return runs_command.main(args)


def tune(args: argparse.Namespace) -> int:
    check_name(args.task)
    packages.check_tune()
    packages.check(to_train=True)
    from osteograde import ray_cluster

    ray_cluster.check(args.executor, args.device)
    from osteograde import tune_command

    return tune_command.main(args)


def segment(args: argparse.Namespace) -> int:
    check_name(args.task)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: not a folder; name one for the label images")
    if args.points is not None:
        check_file("--points", args.points)
    cli.check_weights(args.weights, args.task)
    from osteograde import segment_command

    return segment_command.main(args)


def report(args: argparse.Namespace) -> int:
    for folder in (args.weights, *args.compare):
        cli.check_weights(folder)
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a page, such as {args.out / 'report.html'}")
    if args.ledger is not None:
        check_file("--ledger", args.ledger)
    from datetime import datetime

    from osteograde import runs_command
    from osteograde.logs import to_stdout
    from osteograde.report import page
    from osteograde.tasks import TASKS

    submitted = runs_command.scored_submissions(args.weights, args.ledger)
    to_stdout()
    page.write(
        args.weights, args.out, TASKS, data=args.data, made=datetime.now(), others=args.compare, submitted=submitted
    )
    print(f"written: {args.out}")
    return 0


def inspect(args: argparse.Namespace) -> int:
    check_name(args.task)
    if not args.data.is_dir():
        raise UserError(f"{args.data}: no such folder; --data is the folder that holds the tables and the images")
    if args.out.is_dir() or not args.out.parent.is_dir() or args.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {args.out}: name a page in a folder that exists, such as inspect.html")
    from osteograde.imaging.discovery import has_images

    if not os.access(args.data, os.R_OK | os.X_OK):
        raise UserError(f"{args.data}: may not be read; ask its owner, or change its permissions")
    if not (has_images(args.data) or any(args.data.glob("*.csv"))):
        raise UserError(f"{args.data}: holds no image and no table; give the folder that does")
    if args.oof is not None:
        cli.check_weights(args.oof, args.task)
        if not any((args.oof / name).is_file() for name in ("oof.csv", "ensemble.json")):
            raise UserError(f"--oof {args.oof}: holds no oof.csv, the out-of-fold table that training writes")
    from osteograde import inspect_command

    return inspect_command.main(args)


def validate(args: argparse.Namespace) -> int:
    check_file("--submission", args.submission)
    check_file("--template", args.template)
    from osteograde.inference import submission

    problems = submission.validate(args.submission, args.template)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{args.submission}: valid")
    return 2 if problems else 0


def doctor(args: argparse.Namespace) -> int:
    from osteograde import doctor as visit

    return visit.main()


def weights_list(args: argparse.Namespace) -> int:
    from osteograde import weights_command

    print(*weights_command.lines(), sep="\n")
    return 0


def weights_get(args: argparse.Namespace) -> int:
    from osteograde import weights_command
    from osteograde.logs import to_stdout

    to_stdout()
    print(weights_command.get(args.name, args.source))
    print(f"next: osteograde grade {weights_command.task_of(args.name)} --data FOLDER --out submission.csv")
    return 0


def kernel_build(args: argparse.Namespace) -> int:
    check_name(args.task)
    if args.weights is not None:
        cli.check_weights(args.weights, args.task)
    from osteograde.kaggle import build_kernel
    from osteograde.kaggle.metadata import training_name

    if args.train:
        if args.weights or args.mount:
            raise UserError("a kernel that trains makes its weights: leave --weights and --mount out")
        train_parser().parse_args([args.task, "--data", ".", "--out", ".", *args.options])
        print(
            build_kernel.build_training(
                args.task,
                build_kernel.BUILT / training_name(args.task),
                arguments=shlex.join(args.options),
                data=args.images,
                machine=args.machine,
                go_on=args.go_on,
                internet=args.internet,
            )
        )
        print(f"next: osteograde kaggle push {args.task} --train")
        return 0
    if args.options or args.go_on or args.internet:
        raise UserError("--options, --go-on and --internet are of a kernel that trains: add --train")
    out = build_kernel.BUILT / args.task
    made = build_kernel.build(args.task, args.weights, out, source=args.mount, data=args.images, machine=args.machine)
    print(made)
    weights = "" if args.weights is None else f" --weights {args.weights}"
    print(f"next: osteograde kaggle rehearse {args.task} --data DIR{weights}")
    return 0


def _command(commands, name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A sub-command that calls ``function``; what it needs is imported there, so that the others start fast."""
    made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    made.set_defaults(command=function)
    return made


def _add_score(commands) -> None:
    scored = _command(commands, "score", score, "the official metric of a submission, with intervals")
    scored.add_argument("task", metavar="TASK")
    scored.add_argument("--data", type=Path, required=True, metavar="DIR")
    scored.add_argument("--submission", type=Path, required=True, metavar="FILE")
    scored.add_argument("--bootstrap", type=_count, default=200, metavar="N", help="resamples; 0: no intervals")
    scored.add_argument("--split", default="", metavar="NAME", help="of a published set: test, auto_test, val, train")
    _add_json(scored)


def _add_report(commands) -> None:
    told = _command(commands, "report", report, "one HTML page about a weights folder")
    told.add_argument("weights", type=Path, metavar="WEIGHTS_DIR")
    told.add_argument("--data", type=Path, metavar="DIR", help="the labelled studies: shows the worst cases as well")
    told.add_argument("--out", type=Path, default=Path("report.html"), metavar="report.html")
    told.add_argument(
        "--compare", type=Path, nargs="+", default=[], metavar="WEIGHTS_DIR", help="shows what these have more or less"
    )
    told.add_argument(
        "--ledger", type=Path, metavar="FILE", help="submissions and their scores; default: runs/kaggle/TASK.jsonl"
    )


def _add_runs(commands) -> None:
    listed = _command(commands, "runs", runs, "list weights folders with their scores, or compare some of them")
    listed.add_argument("dir", type=Path, nargs="*", metavar="DIR", help=f"default: {' and '.join(RUNS_IN)}")
    listed.add_argument(
        "--compare", type=Path, nargs="+", metavar="WEIGHTS_DIR", help="each of them with the first one"
    )
    listed.add_argument("--bootstrap", type=_count, default=1000, metavar="N", help="resamples of --compare")
    listed.add_argument("--kaggle", action="store_true", help="the submissions made from here, and what they scored")
    _add_json(listed)


def _add_tune(commands) -> None:
    """The options of ``osteograde tune``."""
    searched = _command(commands, "tune", tune, "search for settings on inner folds; the outer folds judge them once")
    searched.add_argument("task", metavar="TASK")
    searched.add_argument("--data", type=Path, required=True, metavar="DIR")
    searched.add_argument("--out", type=Path, required=True, metavar="DIR", help="the same command again goes on")
    searched.add_argument("--trials", type=_count, required=True, metavar="N", help="for each outer fold")
    searched.add_argument(
        "--space", metavar="NAME|FILE.py", help="keys of --set with ranges and choices; default: that of the task"
    )
    searched.add_argument("--method", choices=TUNE_METHODS, default=TUNE_METHODS[0], help="default: tpe")
    searched.add_argument("--prune", choices=TUNE_PRUNERS, default=TUNE_PRUNERS[0], help="default: median")
    searched.add_argument("--recipe", metavar="NAME|FILE.py", help="default: the task's own recipe")
    searched.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE",
        help="change one value of the recipe for all trials and for the default; may be repeated",
    )  # fmt: skip
    searched.add_argument("--folds", type=_folds, metavar="0,2", help="only these outer folds; default: all")
    searched.add_argument("--inner", type=_count, default=3, metavar="N", help="inner folds of each; default: 3")
    searched.add_argument("--seed", type=_count, default=0, metavar="S", help="of the trials; default: 0")
    _add_device(searched)
    searched.add_argument(
        "--executor", type=_executor, default=SERIAL, metavar="serial|local[:N]|ray[:HOST:PORT]",
        help="local: trials side by side, in a process for each GPU or share of the cores, or in N; ray: on the "
        "machines of a Ray cluster, or without an address on this one; default: serial",
    )  # fmt: skip


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")


def _add_kernel(commands) -> None:
    kernel = commands.add_parser("kernel", help="the offline Kaggle kernel").add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    built = _command(kernel, "build", kernel_build, "write the self-contained script to build/kernels/TASK")
    built.add_argument("task", metavar="TASK")
    built.add_argument("--weights", type=Path, metavar="DIR", help="check these, and let the kernel take no others")
    built.add_argument("--mount", default="", metavar="SOURCE", help="the data set or model that holds them on Kaggle")
    built.add_argument(
        "--images", default="", metavar="OWNER/NAME", help="data set to grade, if there is no competition"
    )
    built.add_argument("--machine", default="", metavar="NAME", help="t4x2 (default), cpu, l4, l4x4, a100, h100, ...")
    built.add_argument("--train", action="store_true", help="the kernel that trains, to build/kernels/TASK-train")
    built.add_argument("--go-on", action="store_true", help="of --train: read its own last output")
    built.add_argument("--internet", action="store_true", help="of --train: for starting weights that are downloaded")
    built.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], metavar="...",
        help="of --train, last: options of train_folds.py, such as --options --recipe NAME --folds 0,1",
    )  # fmt: skip


def _add_weights(commands) -> None:
    kept = commands.add_parser("weights", help="the trained weights of this version").add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    _command(kept, "list", weights_list, "which weights there are, how large they are, and where they lie here")
    got = _command(kept, "get", weights_get, "fetch weights once, each file held to its hash; goes on where it ended")
    got.add_argument("name", metavar="NAME", help="as 'weights list' names them, or a task")
    got.add_argument(
        "--from", dest="source", metavar="DIR|URL", help="holds NAME/FILE; default: OSTEOGRADE_WEIGHTS_URL"
    )


def _add_targets(commands) -> None:
    """The options of ``osteograde targets``."""
    built = _command(commands, "targets", targets, "build the labels of a task from the tables of a cohort")
    built.add_argument("task", metavar="TASK")
    built.add_argument(
        "--tables", type=Path, required=True, metavar="DIR", help="the cohort's tables, or their archives"
    )
    built.add_argument("--out", type=Path, required=True, metavar="labels.csv")
    built.add_argument(
        "--definition", choices=("jsl", "kl"), default="jsl", help="joint space loss (default) or rise of the grade"
    )
    built.add_argument(
        "--months", type=_count, metavar="N", help="of jsl: from baseline to the second film; default: 48"
    )
    built.add_argument("--loss", type=_millimetres, metavar="MM", help="of jsl: what counts as a loss; default: 0.7")
    built.add_argument("--location", metavar="PLACE", help="of jsl: minimum (default) or a fixed place, such as 250")


def _add_segment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK")
    parser.add_argument(
        "--weights", type=Path, required=True, metavar="DIR", help="of a recipe whose locator labels every pixel"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR|FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="label images and discs.csv")
    parser.add_argument("--points", type=Path, metavar="FILE", help="disc centres (a points.csv); others are found")
    parser.add_argument("--limit", type=_count, default=0, metavar="N", help="only the first N studies; 0: all")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    text = "auto (default), cpu, cuda or cuda:N"
    parser.add_argument("--device", type=_device, default="auto", metavar="DEVICE", help=text)


class _ListOnly(argparse.Action):
    """A switch with which no other option has to be given."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "nargs": 0, "default": False})

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            action.required = action.required and not action.option_strings


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def _executor(text: str) -> str:
    if not re.fullmatch(rf"serial|local(:[1-9][0-9]*)?|{_RAY}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not serial, local, local:N, ray or ray:HOST:PORT")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours above 0")
    return hours


def _millimetres(text: str) -> float:
    try:
        length = float(text)
    except ValueError:
        length = 0.0
    if not 0 < length < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of mm above 0")
    return length


def _folds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different fold numbers such as 0,2")
    return tuple(int(part) for part in parts)

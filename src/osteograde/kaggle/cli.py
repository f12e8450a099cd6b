"""The commands for Kaggle, one checked step each. Exit code 75: the same command may work later."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from osteograde.errors import UserError
from osteograde.kaggle import ledger, metadata, record
from osteograde.tasks import WITH_COMPETITION, check_name

RETRY = 75  # EX_TEMPFAIL of sysexits.h
BUILT = Path("build") / "kernels"  # where "kernel build" puts the scripts

Add = Callable[..., argparse.ArgumentParser]


def _add_download(commands, command: Add) -> None:
    text = "say where a task's data are and what is there; fetch a competition's"
    got = command(commands, "download", download, text)
    got.add_argument("task", metavar="TASK")
    got.add_argument("--data", type=Path, metavar="DIR", help="fetch nothing; count what of the data lies there")
    got.add_argument("--out", type=Path, metavar="DIR", help="default: data/TASK")
    got.add_argument("--space", type=_positive, metavar="GIB", help="free disk it needs; default: as the files say")


def add(commands, command: Add) -> None:
    """Add ``download`` and the group ``kaggle`` to the sub-commands. command(commands, name, function, text)."""
    _add_download(commands, command)

    group = commands.add_parser("kaggle", help="from weights to the leaderboard, one checked step each")
    steps = group.add_subparsers(required=True, metavar="STEP", parser_class=type(group))

    sent = command(steps, "upload-weights", upload, "weights to a data set or model, compared file by file")
    sent.add_argument("weights", type=Path, metavar="WEIGHTS_DIR")
    sent.add_argument("--to", required=True, metavar="SOURCE", help="owner/name, or owner/model/pyTorch/variation")
    sent.add_argument("--public", action="store_true", help="everybody may use them; the card becomes the description")
    sent.add_argument("--licence", default="", metavar="NAME", help="of --public, as Kaggle calls it: CC-BY-4.0, other")
    _poll(sent, 10)

    pushed = command(steps, "push", push, "push and start the kernel in build/kernels/TASK, and read it back")
    pushed.add_argument("task", metavar="TASK")
    _training(pushed)
    pushed.add_argument("--no-run", action="store_true", help="save the version without running it")

    waited = command(steps, "wait", wait, "until the kernel has ended; the end of its log where it failed")
    waited.add_argument("task", metavar="TASK")
    _training(waited)
    _poll(waited, 30)

    fetched = command(steps, "output", output, "fetch what the kernel wrote, and check it")
    fetched.add_argument("task", metavar="TASK")
    _training(fetched)

    last = command(steps, "submit", submit, "tell what would be submitted; with --yes do it and see it listed")
    last.add_argument("task", metavar="TASK")
    last.add_argument("--yes", action="store_true", help="send it")
    last.add_argument("--wait", action="store_true", help="and wait for its score")
    _poll(last, 60)

    scored = command(steps, "score", score, "what the last submission scored, and why it failed if it did")
    scored.add_argument("task", metavar="TASK")

    command(steps, "runs", runs, "the same as osteograde runs --kaggle")

    whole = command(steps, "all", everything, "upload, build, push, wait, output and submit in one go")
    whole.add_argument("task", metavar="TASK")
    whole.add_argument("--weights", type=Path, metavar="DIR", help="upload these first, and build the kernel for them")
    whole.add_argument("--to", default="", metavar="SOURCE", help="default: ACCOUNT/osteograde-TASK-weights")
    whole.add_argument("--yes", action="store_true", help="send the submission, too")
    _poll(whole, 30)

    _rehearse_options(
        command(steps, "rehearse", rehearse, "run the kernel here as the competition does, without a network")
    )


def _rehearse_options(tried: argparse.ArgumentParser) -> None:
    tried.add_argument("task", metavar="TASK")
    tried.add_argument("--data", type=Path, required=True, metavar="DIR", help="studies: their test part, else all")
    tried.add_argument("--weights", type=Path, metavar="DIR", help="default: the shipped weights of the task")
    tried.add_argument(
        "--copies", type=_positive, default=1, metavar="N", help="of every study, to see time and memory"
    )
    tried.add_argument("--served", action="store_true", help="as a competition that streams its studies to a predictor")
    tried.add_argument(
        "--train", type=_positive, metavar="SESSIONS", help="the kernel that trains, in so many sessions"
    )
    tried.add_argument("--minutes", type=_seconds, default=2.0, help="of each session of --train; default: 2")
    tried.add_argument(
        "--image-constraints", nargs="?", const="", metavar="IMAGE",
        help="with the image's versions (make kaggle-env [IMAGE=...])",
    )  # fmt: skip


def download(args: argparse.Namespace) -> int:
    check_name(args.task)
    from osteograde.kaggle import download as getter

    if args.data or not getter.slug_of(args.task):
        return getter.tell(args.task, args.data)
    return _run(lambda: getter.download(args.task, args.out or Path("data") / args.task, args.space))


def upload(args: argparse.Namespace) -> int:
    check_weights(args.weights)
    from osteograde.kaggle import upload as sender

    return _run(
        lambda: sender.upload(args.weights, args.to, public=args.public, licence=args.licence, poll_s=args.poll)
    )


def push(args: argparse.Namespace) -> int:
    check_name(args.task)
    name = _kernel(args)
    _check_built(name)
    from osteograde.kaggle import push as pusher

    return _run(lambda: pusher.push(args.task, BUILT / name, run=not args.no_run, training=args.train))


def wait(args: argparse.Namespace) -> int:
    check_name(args.task)
    record.need_record(_kernel(args), "kernel", f"push {args.task}")
    from osteograde.kaggle import push as pusher

    return _run(lambda: pusher.wait(args.task, poll_s=args.poll, training=args.train))


def output(args: argparse.Namespace) -> int:
    check_name(args.task)
    record.need_record(_kernel(args), "kernel", f"push {args.task}")
    from osteograde.kaggle import push as pusher

    return _run(lambda: (pusher.output_of_training if args.train else pusher.output)(args.task))


def submit(args: argparse.Namespace) -> int:
    check_name(args.task)
    if args.task in WITH_COMPETITION:
        record.need_record(args.task, "kernel", f"push {args.task}")
    from osteograde.kaggle import submit as submitter

    def steps() -> None:
        if submitter.submit(args.task, yes=args.yes) and args.wait:
            submitter.wait_for_score(args.task, poll_s=args.poll)

    return _run(steps)


def score(args: argparse.Namespace) -> int:
    check_name(args.task)
    record.need_record(args.task, "submission", f"submit {args.task} --yes")
    from osteograde.kaggle import submit as submitter

    return _run(lambda: submitter.score(args.task))


def runs(args: argparse.Namespace) -> int:
    return print_submissions()


def print_submissions(*, as_json: bool = False) -> int:
    """Print the submissions that were made from here; the exit code is returned."""
    found = ledger.all_of()
    lines = [json.dumps([one.plain() for one in found])] if as_json else ledger.table(found)
    print(*(lines or [f"nothing was submitted from here: {record.FOLDER} holds no *.jsonl"]), sep="\n")
    return 0


def everything(args: argparse.Namespace) -> int:
    """``kaggle all``: each step only where the one before came to its end; without a competition the last is output."""
    check_name(args.task)
    if args.weights is not None:
        check_weights(args.weights, args.task)
    from osteograde.kaggle import build_kernel, client
    from osteograde.kaggle import push as pusher
    from osteograde.kaggle import submit as submitter
    from osteograde.kaggle import upload as sender
    from osteograde.tasks import TASKS

    if args.to and args.weights is None:
        raise UserError(f"--to {args.to} says where weights go; give them with --weights")
    folder = BUILT / args.task

    def steps() -> None:
        if args.weights is not None:
            to = args.to or f"{client.account()}/osteograde-{args.task}-weights"
            source = sender.upload(args.weights, to, poll_s=args.poll)
            built = build_kernel.build(args.task, args.weights, folder, source=str(source))
            client.logger.info("built %s", built)
        pusher.push(args.task, folder)
        pusher.wait(args.task, poll_s=args.poll)
        pusher.output(args.task)
        if TASKS[args.task].slug:
            submitter.submit(args.task, yes=args.yes)

    return _run(steps)


def rehearse(args: argparse.Namespace) -> int:
    check_name(args.task)
    if not args.data.is_dir():
        raise UserError(f"{args.data}: no such folder; --data is the folder that holds the studies")
    _check_built(metadata.training_name(args.task) if args.train else args.task)
    from osteograde.kaggle import build_kernel
    from osteograde.kaggle import rehearse as stage
    from osteograde.kaggle import rehearse_served as served
    from osteograde.models import shipped

    python = Path(sys.executable)
    if args.image_constraints is not None:
        python = stage.image_python(Path("-".join([".venv-kaggle", *filter(None, [args.image_constraints])])))
    if args.train:
        return _rehearse_training(args, python)
    weights = args.weights or shipped.find(args.task)
    script = BUILT / args.task / build_kernel.script_name(args.task)
    play = served.rehearse_served if args.served else stage.rehearse
    with _logging():
        faults = play(args.task, script, args.data, weights, copies=args.copies, python=python)
    return _told(faults)


def _rehearse_training(args: argparse.Namespace, python: Path) -> int:
    from osteograde.kaggle import rehearse_training

    folder = BUILT / metadata.training_name(args.task)
    with _logging():
        faults = rehearse_training.rehearse_training(
            args.task, folder / "train.py", args.data, sessions=args.train, minutes=args.minutes, python=python
        )
    return _told(faults)


def _told(faults: list[str]) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    return 2 if faults else 0


def _kernel(args: argparse.Namespace) -> str:
    """The name of the folder and of the record of the kernel that is meant."""
    return metadata.training_name(args.task) if args.train else args.task


def check_weights(folder: Path, task: str = "") -> None:
    """UserError where a folder holds no weights, or those of another task: before torch is imported, which is slow."""
    from osteograde.models.manifest import is_plain, read_ensemble, read_manifest

    found = read_manifest(folder).task if is_plain(folder) else read_ensemble(folder).task
    if task and found != task:
        raise UserError(f"{folder}: weights are of task {found!r}, asked for {task!r}")


def _check_built(task: str) -> None:
    """UserError where the kernel of a task was not built."""
    metadata.read(BUILT / task)


def _run(step: Callable[[], object]) -> int:
    """Do a step with its log on stdout. 0, or RETRY with one line on stderr if the service was busy; other errors are
    left to the caller."""
    from osteograde.kaggle.client import RetryLater

    try:
        with _logging():
            step()
    except RetryLater as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return RETRY
    return 0


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", action="store_true", help="the kernel that trains (kernel build TASK --train)")


def _poll(parser: argparse.ArgumentParser, default: float) -> None:
    text = f"between two looks; default: {default:g}"
    parser.add_argument("--poll", type=_seconds, default=float(default), metavar="SECONDS", help=text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return seconds


@contextmanager
def _logging() -> Iterator[None]:
    """Print what osteograde.kaggle logs on stdout, as plain lines, while a command runs."""
    logger = logging.getLogger("osteograde.kaggle")
    handler, before = logging.StreamHandler(sys.stdout), (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the same line is not printed again by a handler of the root logger
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before

"""Push a built kernel, wait until it has ended, and fetch its output. Each step checks what it did."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from osteograde.errors import UserError
from osteograde.inference import submission
from osteograde.kaggle import client, credentials, metadata, record
from osteograde.kaggle.client import Refused, RetryLater, logger
from osteograde.kaggle.metadata import parse_source
from osteograde.models import bundle
from osteograde.models.manifest import MANIFEST
from osteograde.tasks import TASKS
from osteograde.tasks.limits import SESSION, limits_of

POLL_S = 30.0
TAIL = 20  # lines of a log that are shown
SUBMISSION = "submission.csv"
ENDED_BADLY = ("ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED")
READ_BACK = ("is_private", "enable_gpu", "enable_internet", "machine_shape")
SOURCES = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")


def push(task: str, folder: Path, *, run: bool = True, training: bool = False, records: Path = record.FOLDER) -> int:
    """Push the kernel in ``folder`` and start it; returns the version that the service gave it.

    training: it is the kernel that trains the task, which is recorded by a name of its own. run: False only saves the
    version, which cannot be submitted (needs kaggle 2.2.5).

    Raises UserError for bad metadata or a secret, before anything is sent; RetryLater if no session is free; Refused
    if the service refuses, leaves a source out, or holds other settings than were sent.
    """
    facts = metadata.read(folder)
    metadata.check(facts, folder)
    if metadata.has_placeholder(facts):
        facts = metadata.owned(facts, client.account())
    credentials.refuse_secrets([folder / facts["code_file"], folder / metadata.NAME])
    for name in facts["dataset_sources"]:
        _ready(name)
    if run and facts["machine_shape"]:
        logger.info("GPU hours left this week: %s", client.quota())
        for ref in still_running(records):
            logger.info("%s is still running and holds a session", ref)
    with tempfile.TemporaryDirectory(prefix="osteograde-") as stage:
        shutil.copy(folder / facts["code_file"], stage)
        Path(stage, metadata.NAME).write_text(json.dumps(facts, indent=2), encoding="utf-8")
        seconds = (SESSION if training else limits_of(TASKS[task])).hours * 3600
        words = ["kernels", "push", "-p", stage, "-t", f"{seconds:.0f}"]
        words += ["--accelerator", facts["machine_shape"]] if facts["machine_shape"] else []
        reply = client.ask(*words, *(() if run else ("--no-run",)))
    done = "pushed" if run else "saved without running"
    version = int(client.expect(reply, rf"Kernel version (\d+) successfully {done}")[1])
    script = (folder / facts["code_file"]).read_text(encoding="utf-8")
    image = read_back(facts, version, script)
    online = "on" if facts["enable_internet"] else "off"
    settings = f"private, internet {online}, {facts['machine_shape'] or 'no accelerator'}, {image}"
    logger.info("%s version %d %s: %s", facts["id"], version, "pushed and running" if run else done, settings)
    made_of = {} if training else {"weights": mounted(facts, script, record.read_record(task, records))}
    kernel = {"ref": facts["id"], "version": version, "image": image, **made_of}
    record.keep_record(recorded(task, training), "kernel", kernel, records)
    return version


def mounted(facts: dict[str, Any], script: str, known: dict[str, Any]) -> dict[str, Any]:
    """What is known of the weights that a kernel mounts: what their upload remembered, where it was of these weights;
    else their source, and the hash of the manifest that the script asks for."""
    sources = [*facts["model_sources"], *facts["dataset_sources"]]
    pin = re.search(r"""^MANIFEST_SHA256 = ["'](\w*)["']""", script, re.MULTILINE)
    uploaded, digest = known.get("weights", {}), pin[1] if pin else ""
    same_source = bool(sources) and bool(uploaded) and _names(sources[0], [uploaded["source"]])
    if same_source and digest in ("", uploaded["manifest"]):
        return uploaded
    return {"source": sources[0] if sources else "", "manifest": digest}


def still_running(records: Path = record.FOLDER) -> list[str]:
    """The kernels that were pushed from here and have not ended, as far as the service tells."""
    found = []
    for path in sorted(records.glob("*.json")):
        if kernel := record.read_record(path.stem, records).get("kernel"):
            try:
                status, _ = state(version_ref(kernel))
            except (Refused, RetryLater) as error:  # it is only shown
                logger.debug("%s", error)
                continue
            found += [version_ref(kernel)] if status in ("RUNNING", "QUEUED") else []
    return found


def recorded(task: str, training: bool) -> str:
    """The name of a kernel's record."""
    return metadata.training_name(task) if training else task


def read_back(facts: dict[str, Any], version: int, text: str) -> str:
    """Compare what the service holds as ``version`` with what was sent, and return the image that it chose.

    Raises Refused if the script, a setting or a source differs.
    """
    with tempfile.TemporaryDirectory(prefix="osteograde-") as folder:
        reply = client.ask("kernels", "pull", f"{facts['id']}/{version}", "-p", folder, "-m")
        client.expect(reply, r"Source code and metadata downloaded")
        there = json.loads(Path(folder, metadata.NAME).read_text(encoding="utf-8"))
        same = Path(folder, there["code_file"]).read_text(encoding="utf-8") == text
    wrong = [] if same else ["the script is another"]
    told = [key for key in READ_BACK if facts[key] != ""]  # the service names a machine of its own where none was sent
    wrong += [f"{key} is {there.get(key)!r}, sent {facts[key]!r}" for key in told if there.get(key) != facts[key]]
    wrong += [f"{key} lacks {name}" for key in SOURCES for name in facts[key] if not _names(name, there.get(key) or [])]
    if wrong:
        raise Refused(
            f"{facts['id']} was pushed, but the service holds something else: {'; '.join(wrong)}; stop it on its page"
        )
    return str(there.get("docker_image") or "image unknown")


def wait(
    task: str,
    *,
    poll_s: float = POLL_S,
    hours: float = 13.0,
    training: bool = False,
    records: Path = record.FOLDER,
) -> None:
    """Wait until the pushed version has ended well; its status and the last line of its log are logged meanwhile.

    Raises Refused, after logging the end of the kernel's log, if the run failed or was stopped; RetryLater if it has
    not ended after ``hours``.
    """
    ref = version_ref(record.need_record(recorded(task, training), "kernel", f"push {task}", records))
    begun, told = time.monotonic(), ""
    while True:
        status, message = state(ref)
        spent = time.monotonic() - begun
        line = f"{ref}: {status}" + (f", {progress(ref)}" if status == "RUNNING" else "")
        if line != told:
            logger.info("%s (%.0f min)", line, spent / 60)
            told = line
        if status == "COMPLETE":
            return
        if status in ENDED_BADLY:
            for end in log_lines(ref)[-TAIL:]:
                logger.info("  %s", end)
            raise Refused(f"{ref}: {status}{': ' + message if message else ''}; the end of its log is above")
        if spent > hours * 3600:
            raise RetryLater(f"{ref}: still {status} after {hours:g} h; look at its page, or wait again")
        time.sleep(poll_s)


def version_ref(facts: dict[str, Any]) -> str:
    """owner/kernel/version: without a version the client (2.2.5; 2.2.4 in any case) speaks of the latest one."""
    return f"{facts['ref']}/{facts['version']}"


def state(ref: str) -> tuple[str, str]:
    """(status, message of failure) of a kernel's version. Raises Refused or RetryLater if the service does not tell."""
    reply = client.ask("kernels", "status", ref)
    found = re.search(r'has status "(?:\w+\.)?(\w+)"', reply.out)
    if reply.code != 0 or found is None:
        raise client.refusal(reply)
    told = re.search(r'Failure message: "(.*)"', reply.out)
    return found[1].upper(), told[1] if told else ""


def log_lines(ref: str) -> list[str]:
    """The lines of a kernel's log so far; none if the service has none yet."""
    reply = client.ask("kernels", "logs", ref)
    return lines_of(reply.out) if reply.code == 0 else []


def lines_of(text: str) -> list[str]:
    """The text of a log, which comes as a JSON list of pieces, or as plain text."""
    try:
        pieces = json.loads(text) if text.strip() else []
    except json.JSONDecodeError:
        return text.splitlines()
    return "".join(str(piece.get("data", "")) for piece in pieces).splitlines()


def progress(ref: str) -> str:
    lines = [line for line in log_lines(ref) if line.strip()]
    return lines[-1] if lines else "no log yet"


def output(task: str, *, records: Path = record.FOLDER) -> Path:
    """Fetch what the pushed version wrote and check it; the path of its submission.csv.

    Raises Refused if the file is missing, is not a submission of the task, or has another hash than the log says.
    """
    kernel = record.need_record(task, "kernel", f"push {task}", records)
    ref, version = kernel["ref"], kernel["version"]
    target = records / task / f"output-v{version}"
    shutil.rmtree(target, ignore_errors=True)  # the client keeps older files it takes for newer
    reply = client.ask("kernels", "output", version_ref(kernel), "-p", str(target), "-o")
    client.expect(reply, r"downloaded to")
    path = target / SUBMISSION
    if not path.is_file():
        raise Refused(f"{ref}: version {version} left no {SUBMISSION}, only {sorted(p.name for p in target.iterdir())}")
    rows = check_rows(task, path)
    digest = bundle.sha256(path)
    log = target / f"{ref.partition('/')[2]}.log"
    told = re.findall(rf"{SUBMISSION} sha256 ([0-9a-f]{{64}})", _plain_log(log))
    if told and told[-1] != digest:
        raise Refused(f"{path}: sha256 {digest[:12]}, the kernel's log says {told[-1][:12]}; fetch it again")
    seen = "as the kernel's log says" if told else "the log tells no hash"
    logger.info("%s: %d rows, sha256 %s, %s", path, rows, digest[:12], seen)
    record.keep_record(task, "output", {"ref": ref, "version": version, "file": str(path), "sha256": digest}, records)
    return path


def output_of_training(task: str, *, records: Path = record.FOLDER) -> Path:
    """Fetch what the kernel that trains left, and check it; the path of the weights folder, finished or not.

    Raises Refused if there is none, or if a finished one has another manifest than the kernel's log says.
    """
    name = metadata.training_name(task)
    kernel = record.need_record(name, "kernel", f"push {task} --train", records)
    target = records / name / f"output-v{kernel['version']}"
    shutil.rmtree(target, ignore_errors=True)
    reply = client.ask("kernels", "output", version_ref(kernel), "-p", str(target), "-o")
    client.expect(reply, r"downloaded to")
    weights = target / task
    if not weights.is_dir():
        raise Refused(f"{kernel['ref']}: version {kernel['version']} left no folder {task}; look at its log")
    log = target / f"{kernel['ref'].partition('/')[2]}.log"
    told = re.findall(r"manifest\.json sha256 ([0-9a-f]{64})", _plain_log(log))
    path = weights / MANIFEST
    if not path.is_file():
        logger.info("%s: not finished; kernel build %s --train --go-on, push it again", weights, task)
    elif told and told[-1] != bundle.sha256(path):
        raise Refused(f"{path}: another hash than the kernel's log says ({told[-1][:12]}); fetch it again")
    else:
        bundle.verify(weights)
        logger.info("%s: finished, every hash is right", weights)
    record.keep_record(name, "output", {"version": kernel["version"], "folder": str(weights)}, records)
    return weights


def _plain_log(path: Path) -> str:
    return "\n".join(lines_of(path.read_text(encoding="utf-8"))) if path.is_file() else ""


def check_rows(task: str, path: Path) -> int:
    """The number of rows of a submission. Raises Refused if the file is something else, such as an error page."""
    try:
        rows = submission.read_submission(path)
        columns = path.open(encoding="utf-8").readline().strip().split(",")
    except UserError as error:
        raise Refused(f"{path}: not a submission ({error}); fetch it again") from error
    is_open = TASKS[task].of_folder is not None  # then the weights alone know the classes
    expected = ["row_id", *(columns[1:] if is_open else TASKS[task].classes)]
    if columns != expected or not rows:
        raise Refused(f"{path}: {len(rows)} rows of {columns}, expected {expected}")
    bad = [row for row, values in rows.items() if not abs(float(values.sum()) - 1) < submission.SUM_TOLERANCE]
    if bad:
        raise Refused(f"{path}: {len(bad)} rows do not sum to 1, such as {bad[0]}")
    return len(rows)


def _ready(name: str) -> None:
    ref = parse_source(name).ref
    reply = client.ask("datasets", "status", ref)
    status = reply.out.strip().lower()
    if client.is_absent(reply):
        raise Refused(f"{ref}: no such data set, or not yours to use; first python -m osteograde kaggle upload-weights")
    if reply.code != 0:
        raise client.refusal(reply)
    if status != "ready":
        raise RetryLater(f"{ref}: {status}; a kernel pushed now would see the old version: retry later")


def _names(name: str, there: list[str]) -> bool:
    """True if a source is among those of the service, which may add a version at the end or a prefix for the kind."""
    return any(name == other or other.startswith(f"{name}/") or other.endswith(f"/{name}") for other in there)

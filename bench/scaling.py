"""How a five-fold training scales: the job times of a few measured steps, and a simulation on 1 to 64 devices.

    python bench/scaling.py measure RECIPE --data DIR --out RUN --whole 6604 --times docs/scaling.json
    python bench/scaling.py simulate --times docs/scaling.json --figure docs/scaling.svg

``measure`` does the jobs of fold 0 of a recipe, as it is but for few steps and patients, and keeps for every kind of
job the seconds of a step, or of a study that is predicted. Seconds are of processor time of one thread, so other work
on the machine does not count; a device is one such core. ``simulate`` multiplies them with the steps and studies of
the whole recipe on ``--whole`` studies and does list scheduling of all jobs (``learning/schedule.py``): the time from
the first to the last job, the longest chain of jobs, how well devices are used, and device hours.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch

from osteograde.learning import cross_fit, jobs, schedule, train
from osteograde.learning.recipe import AnyPlan, GraderPlan, Recipe, Schedule
from osteograde.learning.recipes import RECIPES
from osteograde.learning.schedule import Placed
from osteograde.logs import to_stdout
from osteograde.report.charts import WIDTH, line, svg, text, upright

DEVICES = (1, 2, 8, 64)
FIGURE = (1, 2, 4, 8, 16, 32, 64)
GANTT = 8  # devices of the lower figure
HOUR_S = 3600.0
STYLE = """svg{background:#fff;color:#1a1f26;font-family:system-ui,sans-serif}svg text{fill:#1a1f26;font-size:12px}
.axis{stroke:#4d5661;fill:none}.rule{stroke:#d5dae0;fill:none}polyline{fill:none;stroke:currentColor;stroke-width:2}
.fill,circle{fill:currentColor}.s0{color:#1f5fa8}.s1{color:#b3530a}.s2{color:#2b7a3d}.s3{color:#7b3fa0}
svg text.s0,svg text.s1{fill:currentColor}
@media(prefers-color-scheme:dark){svg{background:#181d24}svg text{fill:#e6eaf0}
.axis{stroke:#a9b3bf}.rule{stroke:#343c47}
.s0{color:#6ea8fe}.s1{color:#ffa657}.s2{color:#74d680}.s3{color:#cf9ff5}}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measured = commands.add_parser("measure")
    measured.add_argument("recipe")
    for name in ("--data", "--out", "--times"):
        measured.add_argument(name, type=Path, required=True)
    measured.add_argument("--whole", type=int, required=True, help="studies of the whole data set")
    measured.add_argument("--patients", type=int, default=60)
    measured.add_argument("--steps", type=int, default=6)
    measured.set_defaults(command=measure)
    simulated = commands.add_parser("simulate")
    simulated.add_argument("--times", type=Path, required=True)
    simulated.add_argument("--figure", type=Path, required=True)
    simulated.set_defaults(command=simulate)
    args = parser.parse_args()
    args.command(args)


def short(recipe: Recipe, patients: int, steps: int) -> Recipe:
    """The recipe with its own nets, pixels, batches and techniques, for one epoch of a few steps of every job."""

    def few(stage: str, plan: AnyPlan) -> AnyPlan:
        shared = min(plan.start.shared_epochs, 1)
        own = min(plan.training.epochs - plan.start.shared_epochs, 1)
        if isinstance(plan, GraderPlan):
            resizing = plan.resizing and replace(plan.resizing, epochs=1)
            plan = replace(plan, resizing=resizing, synthetic_epochs=0)
        training = replace(plan.training, epochs=shared + own, steps=steps)
        return replace(plan, training=training, schedule=Schedule(), start=replace(plan.start, shared_epochs=shared))

    scope = replace(recipe.scope, patients=patients, synthetic_share=0.02, annotated_points=True)
    return replace(recipe, calibrate=False, scope=scope).map_plans(few)


def kind_name(job: jobs.Job) -> str:
    """What jobs of all folds have in common: their stage, member and kind."""
    return f"{job.net.kind}/{job.net.stage}/member{job.net.member}: {job.kind}"


def measure(args: argparse.Namespace) -> None:
    """Add the times of one recipe to the file."""
    torch.set_num_threads(1)
    to_stdout()
    recipe = short(RECIPES[args.recipe](), args.patients, args.steps)
    run = train.begin(recipe, args.data, args.out, only=[0], device=torch.device("cpu"), resume=True)
    train.read_all(run)
    session, seconds = jobs.Session(train.planned(run)), dict[str, float]()
    held_out = len(run.split.held_out(run.studies, 0))
    for job in session.jobs.values():
        begun = time.process_time()
        session.do(job.key)
        used = time.process_time() - begun
        seconds[kind_name(job)] = round(used / (held_out if job.kind == jobs.HELD_OUT else args.steps), 4)
        print(f"{job.key}: {used:.1f} s of processor time", flush=True)
    known = json.loads(args.times.read_text()) if args.times.is_file() else {}
    known[args.recipe] = {
        "machine": f"{machine.described()}, one thread",
        "measured": f"{args.steps} steps of every job of fold 0; {len(run.studies)} studies, {held_out} held out",
        "whole": args.whole,
        "seconds": seconds,
    }
    args.times.write_text(json.dumps(known, indent=1) + "\n")


def job_seconds(recipe: Recipe, listed: Sequence[jobs.Job], times: Mapping[str, Any]) -> dict[str, float]:
    """{key: seconds} of the jobs of a whole training: measured seconds of a step times steps, of a study times studies
    of a fold."""
    count, found = recipe.scope.folds, {}
    for job in listed:
        each, plan = times["seconds"][kind_name(job)], job.net.plan
        if job.kind == jobs.HELD_OUT:
            found[job.key] = each * times["whole"] / count
            continue
        sharing = cross_fit.sharing_folds(count, job.fold) if job.kind == jobs.SHARED else (job.fold,)
        studies = times["whole"] * (count - len(sharing)) / count
        steps = plan.training.steps or max(1, int(studies // (plan.training.batch * plan.training.accumulate)))
        found[job.key] = each * steps * job.epochs
    return found


def simulate(args: argparse.Namespace) -> None:
    """Print the table and write the figure."""
    known = json.loads(args.times.read_text())
    spans: dict[str, list[float]] = {}
    placed: dict[str, tuple[Placed, ...]] = {}
    print("| recipe | devices | hours | times faster | utilisation | device hours held | device hours at work |")
    print("|---|---|---|---|---|---|---|")
    for name, times in known.items():
        recipe = RECIPES[name]()
        listed = jobs.jobs_of(recipe, range(recipe.scope.folds))
        seconds = job_seconds(recipe, listed, times)
        made = {count: schedule.simulate(listed, seconds, count) for count in {*DEVICES, *FIGURE}}
        alone = made[1].makespan_s
        for count in DEVICES:
            one = made[count]
            print(
                f"| `{name}` | {count} | {one.makespan_s / HOUR_S:.2f} | {alone / one.makespan_s:.2f} | "
                f"{one.utilisation:.0%} | {one.device_hours:.2f} | {one.busy_hours:.2f} |"
            )
        path, chain = schedule.critical_path(listed, seconds)
        print(f"<!-- {name}: {len(listed)} jobs, longest chain {chain / HOUR_S:.2f} h: {' -> '.join(path)} -->")
        spans[name] = [alone / made[count].makespan_s for count in FIGURE]
        placed[name] = made[GANTT].placed
    args.figure.write_text(figure(spans, placed))


def figure(spans: Mapping[str, Sequence[float]], placed: Mapping[str, Sequence[Placed]]) -> str:
    """The curves of speed-up above, and below the jobs of each recipe on ``GANTT`` devices."""
    parts, height = list(_curves(spans)), 300.0
    for name, own in placed.items():
        parts += _gantt(name, own, height)
        height += 26 + 14 * GANTT + 34
    drawn = svg(WIDTH, height, parts, "simulated speed-up by the number of devices, and the jobs on eight devices")
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{STYLE}</style>", 1
    )


def _curves(spans: Mapping[str, Sequence[float]]) -> Iterator[str]:
    left, top, wide, tall = 44.0, 30.0, WIDTH - 60.0, 220.0
    last = len(FIGURE) - 1
    yield text(left, 16, "times faster than one device (dashed: ideal)", "start")
    for i, count in enumerate(FIGURE):
        x, y = left + wide * i / last, top + tall * (1 - i / last)
        yield line(left, y, left + wide, y, "rule")
        yield text(x, top + tall + 16, str(count), "middle")
        yield text(left - 6, y + 4, str(count), "end")
    yield text(left + wide / 2, top + tall + 34, "devices", "middle")
    yield upright(12, top + tall / 2, "times faster")
    yield line(left, top + tall, left + wide, top, "axis", dash="4 3")
    for index, (name, values) in enumerate(spans.items()):
        points = [(left + wide * i / last, _log_place(value, top, tall)) for i, value in enumerate(values)]
        yield f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="s{index}"/>'
        x, y = points[-1]
        yield text(x, y + (17 if index else -7), f"{name}: {values[-1]:.1f}", "end", f"s{index}")


def _log_place(value: float, top: float, tall: float) -> float:
    """The height of a value on an axis of powers of two."""
    return top + tall * (1 - math.log2(value) / (len(FIGURE) - 1))


def _gantt(name: str, placed: Sequence[Placed], top: float) -> Iterator[str]:
    left, wide = 44.0, WIDTH - 60.0
    end = max(one.end_s for one in placed)
    yield text(left, top + 14, f"{name} on {GANTT} devices:", "start")
    yield text(left + wide - 58, top + 14, "locators", "end", "s0")
    yield text(left + wide, top + 14, "graders", "end", "s1")
    for one in placed:
        kind = "s0" if one.key.startswith("locate") else "s1"
        x, width = left + wide * one.start_s / end, wide * (one.end_s - one.start_s) / end
        place = f'x="{x:.1f}" y="{top + 24 + 14 * one.device:.1f}" width="{max(width - 0.6, 0.3):.1f}" height="11"'
        title = f"<title>{one.key}: {(one.end_s - one.start_s) / 60:.0f} min</title>"
        yield f'<rect {place} class="fill {kind}">{title}</rect>'
    floor = top + 24 + 14 * GANTT
    yield line(left, floor, left + wide, floor, "axis")
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        yield text(left + wide * share, floor + 15, f"{share * end / HOUR_S:.1f} h", anchor)


if __name__ == "__main__":
    main()

"""Which class to call a row, the most probable, the median or the mean: scores of out-of-fold rows by each rule.

    python bench/decision_rules.py weights/knee-xray weights/spider

Accuracy, quadratic kappa, mean absolute error and the recall of every class, and their paired differences to the most
probable class with 95 % intervals over patients.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from osteograde.learning.compare import OofTable, compare_out_of_fold, read_out_of_fold, task_of
from osteograde.tasks import TASKS, decision

SHOWN = ("accuracy", "quadratic_kappa", "score", "mae")


def decided(table: OofTable, rule: str) -> OofTable:
    """The same table with all probability on the class that the rule decides for."""
    probs = {}
    for study, rows in table.probs.items():
        known = np.isfinite(rows).all(-1)
        sure = np.full_like(rows, np.nan)
        sure[known] = np.eye(rows.shape[-1])[decision.RULES[rule](rows[known])]
        probs[study] = sure
    return replace(table, name=rule, probs=probs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+")
    for folder in parser.parse_args().weights:
        task, table = task_of(folder, TASKS), read_out_of_fold(folder, TASKS)
        comparison = compare_out_of_fold(task, [decided(table, rule) for rule in decision.RULES])
        shown = [part for part in comparison.parts if part.name in SHOWN or part.name.startswith("recall_")]
        print(f"{folder}")
        print("\n".join(replace(comparison, parts=tuple(shown)).lines()))


if __name__ == "__main__":
    main()

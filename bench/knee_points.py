"""How much of the joint locator's error is the locator's, and how much the crops' own centres.

    python bench/knee_points.py --data DIR --run W

W is the --out of `train_folds.py knee-xray`, with W/work. Films are composed of single-knee crops, and their truth
is where the crops' centres came to lie. The same fold's net looked at the crop itself, too. What both errors
have in common is no scatter of the locator, since the images differ in place, turn, scale, contrast and noise: on both
it points to one place of the anatomy, and the crop's centre lies elsewhere. The rest is the locator's own.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from osteograde.learning.recipes import RECIPES
from osteograde.tasks import TASKS
from osteograde.tasks.knee_films import films

TASK = TASKS["knee-xray"]
GROSS_MM = 15.0  # beyond this a point is another place, and no measure of scatter
DRAWS = 200_000


def errors(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """(study, side) -> error (right-left, head-feet) in mm of every landmark with both points."""
    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["x_mm"] and row["true_x_mm"]:
                pairs = [float(row[axis]) - float(row[f"true_{axis}"]) for axis in ("x_mm", "z_mm")]
                found[row["study_id"], row["landmark"]] = np.array(pairs)
    return found


def paired(run: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """(on film, on the crop): errors (N, 2) of the knees that were looked at on both."""
    recipe, told = RECIPES["knee-xray"](), errors(run / "oof_points.csv")
    studies = sorted(TASK.read(data, "train"), key=lambda study: study.id)
    crop_of = {(study.patient, study.series[0].side): study.id for study in studies}
    made = films(studies, run / "work" / "synthetic", np.random.default_rng(recipe.scope.seed))
    pairs = [
        (told[film.id, side], told[crop, side])
        for film in made
        for side in film.targets
        if (film.id, side) in told and (crop := crop_of.get((film.patient, side), "")) and (crop, side) in told
    ]
    near = [pair for pair in pairs if max(np.linalg.norm(error) for error in pair) < GROSS_MM]
    return np.array([a for a, _ in near]), np.array([b for _, b in near])


def summary(on_film: np.ndarray, on_crop: np.ndarray) -> dict[str, object]:
    common = np.array([np.cov(on_film[:, i], on_crop[:, i])[0, 1] for i in range(2)]).clip(0)
    own = (on_film.var(0, ddof=1) - common).clip(0)
    drawn = np.random.default_rng(0).normal(size=(DRAWS, 2))

    def median(variance: np.ndarray) -> float:
        return round(float(np.median(np.linalg.norm(drawn * np.sqrt(variance), axis=1))), 2)

    return {
        "knees": len(on_film),
        "film_median_mm": round(float(np.median(np.linalg.norm(on_film, axis=1))), 2),
        "crop_median_mm": round(float(np.median(np.linalg.norm(on_crop, axis=1))), 2),
        "correlation_x_z": [round(float(np.corrcoef(on_film[:, i], on_crop[:, i])[0, 1]), 3) for i in range(2)],
        "crop_centres_sd_mm_x_z": [round(float(v), 2) for v in np.sqrt(common)],
        "crop_centres_alone_median_mm": median(common),
        "locator_alone_median_mm": median(own),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    args = parser.parse_args()
    result = summary(*paired(args.run, args.data))
    for name, value in result.items():
        print(f"{name:<32}{value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

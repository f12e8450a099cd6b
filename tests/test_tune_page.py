"""The page of a search: everything that was found is on it, it loads nothing, and an unfinished search can be shown."""

import re

import pytest

from osteograde.report import tune_page

LR, LOSS = "grade.kl.training.lr", "grade.kl.loss"


def trial(number, lr, loss, score, state="done", **more):
    given = {
        "number": number,
        "point": {LR: lr, LOSS: loss},
        "state": state,
        "score": score,
        "seconds": 61.0,
        "why": "",
        "losses": {"250": 1.5, "500": 1.4},
    }
    return {**given, **more}


def found(**more):
    trials = [
        trial(0, "0.001", "classes", 0.5),
        trial(1, "0.003", "ordinal", 0.58),
        trial(2, "0.0002", "classes", None, "pruned", losses={"250": 1.7}),
        trial(3, "0.004", "ordinal", None, "refused", why="the loss is <nan>", losses={}),
    ]
    row = {
        "fold": 2,
        "trials": trials,
        "best_so_far": [0.5, 0.58, 0.58, 0.58],
        "chosen": 1,
        "inner": 0.58,
        "inner_default": 0.5,
        "outer": 0.52,
        "outer_default": 0.47,
        "optimism": 0.06,
        "optimism_default": 0.03,
        "importances": {LR: 0.75, LOSS: 0.25},
    }
    part = {"better": "higher", "values": [0.47, 0.52], "differences": [0.05], "interval_95": [[-0.02, 0.12]]}
    search = {
        "task": "knee-xray",
        "recipe": {"name": "knee-xray", "scope": {"folds": 5}},
        "method": "tpe",
        "prune": "median",
        "space": {LR: {"low": 1e-4, "high": 1e-2, "log": True, "whole": False}, LOSS: ["classes", "ordinal"]},
        "trials": 4,
        "folds": [2],
        "inner": 3,
        "seed": 0,
    }
    keys = ("inner", "inner_default", "outer", "outer_default", "optimism", "optimism_default")
    return {
        "search": search,
        "better": "higher",
        "score": "Quadratic weighted kappa",
        "folds": [row],
        "mean": {key: row[key] for key in keys},
        "comparison": {"rows": 40, "patients": 20, "parts": {"score": part, "mae": {**part, "better": "lower"}}},
        **more,
    }


def test_everything_that_was_found_is_on_the_page_and_nothing_is_loaded():
    page = tune_page.page(found())
    for words in (
        "0.5200",
        "+0.0600",
        "0.4700",
        "-0.0200 to 0.1200",
        "1, chosen",
        "0.003",
        "Importances",
        "0.75",
        "20 patients",
        "mae, lower is better",
        "Parallel coordinates",
        "outer 2 of 5",
        "2 scored, 1 pruned, 1 refused",
    ):
        assert words in page, words
    assert "the loss is &lt;nan&gt;" in page and "<nan>" not in page
    assert not re.search(r"<script|<link|src=|https?:", page)
    assert page.count("<svg") == page.count("</svg>") == 5


def test_lines_of_parallel_coordinates_end_at_the_score_and_the_chosen_one_is_thick():
    drawn = tune_page._parallel(found()["folds"][0], found())
    lines = re.findall(r'<polyline points="([^"]+)"( class="\w+")? style="([^"]+)"><title>trial (\d)', drawn)
    ends = {number: len(points.split()) for points, _, _, number in lines}
    assert ends == {
        "0": 3,
        "1": 3,
        "2": 2,
    }  # two keys and the score; a pruned trial has none, a refused one is left out
    assert ["3.5" in style for _, _, style, number in lines] == [number == "1" for *_, number in lines]
    places = {number: [float(place.split(",")[0]) for place in points.split()] for points, _, _, number in lines}
    assert places["0"][2] < places["1"][2] and places["0"][0] < places["1"][0]


@pytest.mark.parametrize("scored", [0, 1])
def test_a_search_that_goes_on_can_be_shown(scored):
    made = found()
    row = {**made["folds"][0], "outer": None, "optimism": None, "importances": {}}
    row["trials"] = row["trials"][:scored]
    row["best_so_far"] = row["best_so_far"][:scored]
    row["chosen"] = 0 if scored else None
    row["inner"] = 0.5 if scored else None
    del made["comparison"]
    page = tune_page.page({**made, "folds": [row], "mean": dict.fromkeys(made["mean"])})
    assert "0 of 1 outer folds have judged" in page and "Against the default" not in page

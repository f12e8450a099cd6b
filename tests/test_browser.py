"""The pages in a real browser: they can be read at any width, light and dark, and the gallery does what it says."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from osteograde.inference.submission import Result
from osteograde.pipeline.load import Loaded
from osteograde.report import gallery, page
from osteograde.tasks import TASKS
from osteograde.tasks.spec import Study
from tests.browser import ask, needs_browser
from tests.test_overlays import result, voters

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
EVIL = '<script>document.title="taken"</script><img src=x onerror=document.title="taken">'
CARDS = "return [...document.querySelectorAll('.card')].map(card => card.dataset.study)"


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """A page with every section but pictures: scores, curves, heads, comparison and training."""
    folder, made = tmp_path_factory.mktemp("reports"), {}
    for name in ("knee-xray", "spider"):
        own = folder / name
        shutil.copytree(WEIGHTS / name, own, ignore=shutil.ignore_patterns("*.safetensors", "grade", "locate"))
        (own / "history").mkdir()
        rows = [{"epoch": e, "loss": 1 / e, "held_out_loss": 2 / e if e % 2 else None} for e in range(1, 9)]
        (own / "history" / "grade-fold0.jsonl").write_text("\n".join(map(json.dumps, rows)))
        made[name] = folder / f"{name}.html"
        page.write(own, made[name], TASKS, data=None, made=datetime(2026, 1, 1), others=[WEIGHTS / name, own])
    return made


@needs_browser
@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["knee-xray", "spider"])
def test_a_report_can_be_read(reports, name, width, dark):
    assert ask(reports[name], "return look()", width=width, dark=dark) == []


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """A gallery of four studies: stacks with points, one without a grade, one whose name is a script."""
    folder, nets, rng = tmp_path_factory.mktemp("gallery"), voters("spider"), np.random.default_rng(0)
    task = TASKS["spider"]
    with gallery.Gallery(folder) as draw:
        for name, top in (("a", 0), ("b", 4), (EVIL, 2)):
            own = result("spider", study=name)
            values = {
                target: np.append(rng.permutation([0.1, 0.05, 0.05, 0.0, 0.0]), [0.5, 0.5]) for target in own.graded
            }
            for one in values.values():
                one[top] += 0.8
            draw(Result(own.loaded, own.points, values), nets)
        draw(Result(Loaded(Study("d", "d", ()), {}), {}, dict.fromkeys(task.targets[:1], np.full(7, 0.2))), nets)
    return folder / gallery.INDEX


@needs_browser
@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("place", ["", "study=1&slice=2"])
def test_a_gallery_can_be_read(studies, width, dark, place):
    assert ask(studies, "return look()", width=width, dark=dark, place=place) == []


@needs_browser
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("", ["a", "b", EVIL, "d"]),
        ("class=0", ["a", "d"]),
        ("class=4", ["b"]),
        ("flag=not_graded", ["d"]),
        ("flag=uncertain_grade", ["d"]),
        ("flag=none", ["a", "b", EVIL]),
        ("flag=none&class=4", ["b"]),
        ("class=0&most=50", ["d"]),
        ("q=script", [EVIL]),
        ("q=B", ["b"]),
        ("order=sure", ["d", "a", "b", EVIL]),
        ("flag=uncertain_grade&class=4", []),
    ],
)
def test_filters_show_the_studies_that_have_such_a_row(studies, place, expected):
    found = ask(studies, CARDS, place=place)
    assert sorted(found) == sorted(expected)
    if place == "order=sure":
        assert found[0] == "d"


@needs_browser
def test_a_filter_that_is_chosen_shows_at_once_and_stands_in_the_address(studies):
    act = "const set = at('class'); set.value = 4; set.dispatchEvent(new Event('input'));"
    cards, where, count = ask(
        studies, f"{act} return [({{f(){{{CARDS}}}}}).f(), location.hash, at('count').textContent]"
    )
    assert (cards, where, count) == (["b"], "#class=4", "1 of 4 studies")


@needs_browser
def test_slices_on_which_something_was_found_are_scrolled_through(studies):
    key = "for (const key of keys) document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
    say = (
        "return [at('name').textContent, at('said').textContent, at('slicepicture').getAttribute('src'), location.hash]"
    )
    script = f"const keys = ['ArrowRight', 'ArrowRight', 'ArrowRight', 'ArrowLeft']; {key} {say}"
    name, said, source, where = ask(studies, script, place="study=1")
    assert (name, source, where) == ("a", "slices/a/2.jpg", "#study=1&slice=2")
    assert said == "T2, slice 5 of 9: points 2, 5 (2 of 3 with points)"
    loaded = ask(studies, "return at('slicepicture').naturalWidth", place="study=1&slice=3")
    assert loaded > 100
    turn = f"const keys = ['PageDown', 'PageDown', 'PageDown']; {key}"
    name, hidden = ask(studies, f"{turn} return [at('name').textContent, at('slices').hidden]", place="study=1")
    assert (name, hidden) == ("d", True)


@needs_browser
@pytest.mark.parametrize("place", ["", "study=3"])
def test_a_name_is_text_and_never_a_script(studies, place):
    title, nodes = ask(studies, "return [document.title, document.querySelectorAll('img[src=x]').length]", place=place)
    assert (title, nodes) == ("spider: 4 studies", 0)


def test_nothing_in_a_name_ends_the_data_of_the_page(studies):
    text = studies.read_text()
    assert text.isascii() and EVIL not in text and text.count("</script>") == 2 and "<img src=x" not in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [study["id"] for study in data["studies"]] == ["a", "b", EVIL, "d"]
    for study in data["studies"]:
        assert "<" not in study["picture"] and ":" not in study["picture"]


def test_every_picture_that_the_page_names_is_there(studies):
    from urllib.parse import unquote

    data = json.loads(studies.read_text().split('id="data">')[1].split("</script>")[0])
    named = [study["picture"] for study in data["studies"]] + [
        s for study in data["studies"] for s, _ in study["slices"]
    ]
    assert {studies.parent / unquote(name) for name in named} == set(studies.parent.rglob("*.jpg"))
    assert [len(study["slices"]) for study in data["studies"]] == [3, 3, 3, 0]


def test_the_page_of_an_interrupted_run_shows_what_was_drawn(tmp_path):
    with pytest.raises(KeyboardInterrupt), gallery.Gallery(tmp_path) as draw:
        draw(result("spider", study="first"), voters("spider"))
        raise KeyboardInterrupt
    assert '"id":"first"' in (tmp_path / gallery.INDEX).read_text()


def test_studies_whose_names_make_one_file_name_have_a_picture_each(tmp_path):
    with gallery.Gallery(tmp_path) as draw:
        for name in ("a/b", "a_b", "a\\b"):
            draw(Result(Loaded(Study(name, name, ()), {}), {}, {}), voters("spider"))
    assert len(list(tmp_path.glob("*.jpg"))) == 3


@needs_browser
def test_thousands_of_studies_are_drawn_as_they_come_into_view(tmp_path):
    rows = tuple(gallery.Row(f"L{i}", i % 5, 60.0, ("low_confidence",) if i == 2 else ()) for i in range(5))
    entries = [gallery.Entry(f"study{i}", f"study{i}.jpg", rows, ()) for i in range(5000)]
    index = tmp_path / "index.html"
    index.write_text(gallery.page("spider", TASKS["spider"].classes, entries))
    assert index.stat().st_size < 1_500_000
    cards, lazy, count = ask(
        index,
        "const all = [...document.querySelectorAll('.card img')];"
        "return [all.length, all.every(one => one.loading === 'lazy'), at('count').textContent]",
    )
    assert 0 < cards <= 200 and lazy and count == "5000 of 5000 studies"

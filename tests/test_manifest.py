"""manifest.json: what is written reads back equal, what is shipped can be read, and what is malformed is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osteograde.errors import UserError
from osteograde.models.manifest import Manifest, NetFile, Scores, TrainedFolds, read_manifest, sha256, write_manifest
from osteograde.tasks import TASKS

WEIGHTS = sorted(path.parent for path in (Path(__file__).resolve().parents[1] / "weights").glob("*/manifest.json"))

NAMES = st.text(max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=3)
TEXTS = st.dictionaries(NAMES, NAMES, max_size=3)
SIDES = st.integers(1, 512)
MANIFESTS = st.builds(
    Manifest,
    task=NAMES,
    files=st.dictionaries(NAMES, st.builds(NetFile, NAMES, st.integers(0), OBJECTS), max_size=3),
    pixels=st.dictionaries(NAMES, SIDES | st.tuples(SIDES, SIDES), max_size=3),
    test_views=st.integers(1, 9),
    prior=st.dictionaries(NAMES, st.lists(NUMBERS, max_size=4).map(tuple), max_size=3),
    recipe=OBJECTS,
    folds=st.none() | st.builds(TrainedFolds, NAMES, NAMES, st.lists(st.integers(0, 9), max_size=4).map(tuple)),
    scores=st.builds(Scores, st.dictionaries(NAMES, OBJECTS, max_size=2), OBJECTS, st.dictionaries(NAMES, OBJECTS)),
    calibration=st.dictionaries(NAMES, OBJECTS, max_size=2),
    precision=NAMES,
    versions=TEXTS,
    data=TEXTS,
    use=NAMES,
    extra=st.dictionaries(
        NAMES.map(lambda name: f"x-{name}"), JSON.filter(lambda value: value is not None), max_size=2
    ),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(manifest=MANIFESTS)
def test_what_is_written_reads_back_equal(manifest, tmp_path):
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)
def test_shipped_manifests_are_read_whole(folder, tmp_path):
    manifest = read_manifest(folder)
    assert manifest.extra == {}  # every key of a shipped file is known, or dropped on purpose
    assert set(manifest.prior) == set(TASKS[manifest.task].targets)
    assert all(expected == sha256(folder / name) for name, expected in manifest.hashes.items())
    assert manifest.folds.trained and manifest.scores.grade["studies"] and manifest.data["licence"]
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    old, new = (json.loads((place / "manifest.json").read_text()) for place in (folder, tmp_path))
    assert old.pop("canonical_side", "right") == "right"  # written by older versions, never read
    assert new == old


WRONG = [
    ("task", 3, r"key 'task' is 3; expected text"),
    ("files", [], r"key 'files' is \[\]; expected an object"),
    ("files", {"a": {"sha256": "0", "bytes": "1", "net": {}}}, r"key 'files/a/bytes' is '1'; expected a whole number"),
    ("files", {"a": {"sha256": "0", "bytes": 1}}, r"key 'files/a/net' is missing"),
    ("pixels", {"disc": [1, 2, 3]}, r"key 'pixels/disc' is .*; expected a side, or height and width"),
    ("pixels", {"disc": 0}, r"key 'pixels/disc' is 0; expected a whole number from 1"),
    ("test_views", True, r"key 'test_views' is True; expected a whole number from 1"),
    ("prior", {"a": [0.5, "b"]}, r"key 'prior/a/1' is 'b'; expected a finite number"),
    ("folds", {"trained": 1}, r"key 'folds/trained' is 1; expected a list"),
    ("scores", {"grade": 1}, r"key 'scores/grade' is 1; expected an object"),
    ("versions", {"torch": 2}, r"key 'versions/torch' is 2; expected text"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_a_malformed_value_is_named_with_file_key_and_what_was_expected(tmp_path, key, value, message):
    write_manifest(tmp_path, Manifest("t", {}, {}, 1, {}))
    facts = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**facts, key: value}))
    with pytest.raises(UserError, match=rf"manifest\.json: {message}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["task", "files", "pixels", "test_views", "prior"])
def test_a_key_that_is_needed_and_missing_is_named(tmp_path, key):
    write_manifest(tmp_path, Manifest("t", {}, {}, 1, {}))
    facts = json.loads((tmp_path / "manifest.json").read_text())
    del facts[key]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"key '{key}' is missing"):
        read_manifest(tmp_path)


def test_keys_of_a_later_version_are_kept(tmp_path):
    write_manifest(tmp_path, replace(Manifest("t", {}, {}, 1, {}), extra={"covariates": ["age"]}))
    assert read_manifest(tmp_path).extra == {"covariates": ["age"]}
    assert "covariates" in (tmp_path / "manifest.json").read_text()

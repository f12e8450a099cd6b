"""Canal points of real slices, derived from disc boxes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from osteograde.tasks.spine import LEVELS
from tests.spider_slices import (
    STEP_MM,
    canal_points,
    fit,
    known_stacks,
    middles,
    pixel_size,
    slices_with_boxes,
    slices_with_points,
    study_of,
    write_slices,
)
from tests.spider_studies import by_level

DATA = Path(os.environ.get("OSTEOGRADE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
SOURCE = DATA / "spider"
WIDTH, BEHIND = 36.0, 24.0


def spine(scale: float = 1.0, lean: float = 0.2, discs: int = 7) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Boxes of a straight spine that leans to the back, and canal points at right angles behind the discs' middles."""
    up = np.array([-np.cos(lean), np.sin(lean)])
    back = np.array([np.sin(lean), np.cos(lean)])
    centres = np.array([200.0, 80.0]) + np.arange(discs)[:, None] * STEP_MM * scale * up
    half = np.array([6.0, WIDTH / 2]) * scale
    canal = {i: centres[i] + BEHIND * scale * back for i in range(len(LEVELS))}
    return np.concatenate([centres - half, centres + half], 1), canal


def test_canal_points_follow_the_size_and_the_lean_of_a_spine_that_the_rule_never_saw():
    rule = fit([spine(lean=lean) for lean in (-0.1, 0.0, 0.3)])
    boxes, canal = spine(scale=1.3, lean=0.15)
    assert np.linalg.norm(canal_points(rule, boxes) - np.array(list(canal.values())), axis=1).max() < 0.5


@pytest.mark.parametrize(("across", "down"), [(1.0, 1.0), (0.5, 0.5), (1.0, 0.7), (0.4, 1.0)])
def test_pixel_size_gives_a_stretched_image_its_human_size(across: float, down: float):
    boxes = spine(lean=0.0)[0] / np.array([0.5 * down, 0.5 * across] * 2)  # in pixels of the stretched image
    assert pixel_size(boxes, 0.5) == pytest.approx((0.5 * down, 0.5 * across), rel=0.02)


def test_a_disc_that_the_mask_lacks_shifts_no_level_above_it():
    blobs = [np.zeros((300, 40), bool) for _ in range(6)]
    for blob, row in zip(blobs, (250, 180, 145, 110, 75, 40), strict=True):  # the one at 215 is missing
        blob[row : row + 8, 5:35] = True
    assert list(by_level(blobs)) == ["l5_s1", "l3_l4", "l2_l3", "l1_l2"]


@pytest.mark.skipif(
    not (SOURCE / "boxes.csv").is_file(), reason=f"no spider/boxes.csv under {DATA}: set OSTEOGRADE_DATA to the data"
)
def test_cut_slices_still_show_all_five_points(tmp_path: Path):
    rule = fit(list(known_stacks(SOURCE).values()))
    references = write_slices(SOURCE, tmp_path, rule, slices_with_boxes(SOURCE), cuts=True)
    named = {study_of(one, cut=cut): one for one in slices_with_boxes(SOURCE) for cut in (False, True)}
    assert set(references) == set(named)
    for study in list(references)[:40]:
        image = pydicom.dcmread(tmp_path / "test_images" / study / f"{study}1" / "1.dcm")
        rows = [-mm[2] / named[study].pixel_mm[0] for mm in references[study].canal.values()]
        assert len(rows) == len(LEVELS)
        assert min(rows) >= 0
        assert max(rows) < image.Rows


@pytest.mark.skipif(
    not (SOURCE / "boxes.csv").is_file(), reason=f"no spider/boxes.csv under {DATA}: set OSTEOGRADE_DATA to the data"
)
def test_discs_that_were_found_lie_where_boxes_have_them(monkeypatch: pytest.MonkeyPatch):
    boxed = {one.name: one for one in slices_with_boxes(SOURCE)}
    monkeypatch.setattr("tests.spider_slices.slices_with_boxes", lambda source: [])
    points = Path(__file__).resolve().parents[1] / "weights" / "spider" / "oof_points.csv"
    found = {one.name: one for one in slices_with_points(SOURCE, points)}
    both = sorted(boxed.keys() & found.keys())
    rule = fit(list(known_stacks(SOURCE).values()))
    away = [
        np.linalg.norm(middles(found[name].boxes) - middles(boxed[name].boxes)[: len(LEVELS)], axis=1)
        for name in both
        if np.allclose(found[name].pixel_mm, boxed[name].pixel_mm, rtol=0.02)
    ]
    assert len(both) > 30 and len(found) > 130 and np.median(away) < 2.0
    behind = [canal_points(rule, found[name].boxes) - canal_points(rule, boxed[name].boxes) for name in both]
    assert np.median(np.linalg.norm(behind, axis=-1)) < 4.0

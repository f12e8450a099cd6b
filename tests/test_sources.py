"""`osteograde download TASK` says where data are published, and counts what of them lies in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from osteograde import cli
from osteograde.errors import UserError
from osteograde.tasks import NAMES, TASKS, sources


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def checked(task: str, data: Path) -> tuple[dict[str, str], bool]:
    """({name of a part: OK, MISSING or absent, its count}, whether all is there)."""
    found = sources.check(sources.source_of(task, TASKS[task].slug), data)
    return {line.split(":")[0].strip(): line for line in found.lines}, found.complete


@pytest.mark.parametrize("task", [name for name in NAMES if name != "table"])
def test_every_task_has_an_address_a_licence_a_size_and_a_layout(task, capsys):
    if not TASKS[task].slug:
        assert cli.main(["download", task]) == 0
        told = capsys.readouterr().out
        assert "https://" in told and "licence" in told and "unpacks to" in told and f"download {task} --data" in told
    source = sources.source_of(task, TASKS[task].slug)
    assert source.address.startswith("https://") and source.licence and source.size and source.layout and source.parts


def test_the_addresses_are_those_that_the_docs_and_weights_name():
    assert "10.17632/56rmx5bjcr.1" in sources.KNEES.address and "10159290" in sources.SPIDER.address
    slug = TASKS["lumbar-mr"].slug
    assert slug in sources.source_of("lumbar-mr", slug).address


@pytest.mark.parametrize("above", ["", "KneeXrayData/ClsKLData/"])
def test_knees_are_counted_by_split_and_once_in_both_resolutions(tmp_path, above):
    for size in (224, 299):
        touch(tmp_path / f"{above}kneeKL{size}", "train/0/9000001L.png", "train/0/9000001R.png", "test/4/9000002L.png")
    lines, complete = checked("knee-xray", tmp_path)
    assert not complete
    assert lines["MISSING  train"].endswith("2 of 5,778 published knees")
    assert "1 of 1,656" in lines["MISSING  test (never learnt from)"]
    assert "absent, not needed auto_test (never learnt from)" in lines


def test_a_whole_set_is_complete_without_what_is_not_needed(tmp_path):
    touch(
        tmp_path, *(f"train/{i % 5}/{i}.png" for i in range(5778)), *(f"val/{i % 5}/{9000 + i}.png" for i in range(826))
    )
    assert checked("knee-xray", tmp_path)[1]
    (tmp_path / "val" / "0" / "9000.png").unlink()
    assert not checked("knee-xray", tmp_path)[1]


def test_spider_is_counted_in_any_depth_and_masks_are_no_images(tmp_path, capsys):
    touch(tmp_path / "x", "images/1_t1.mha", "images/1_t2.mha", "masks/1_t2.mha", "overview.csv", "images/._1_t1.mha")
    lines, complete = checked("spider", tmp_path)
    assert not complete and "2 of 447" in lines["MISSING  images"] and "1 of 447" in lines["MISSING  masks"]
    assert "OK       overview.csv" in lines and "MISSING  radiological_gradings.csv" in lines
    assert cli.main(["download", "spider", "--data", str(tmp_path)]) == 1
    assert "not complete" in capsys.readouterr().out
    touch(
        tmp_path,
        "radiological_gradings.csv",
        *(f"{kind}/{i}_t2.mha" for kind in ("images", "masks") for i in range(447)),
    )
    assert cli.main(["download", "spider", "--data", str(tmp_path)]) == 0


def test_a_competition_is_counted_without_a_connection(tmp_path):
    touch(tmp_path / "rsna", "train.csv", "train_images/1/2/1.dcm", "train_images/1/3/1.dcm", "test_images/9/8/1.dcm")
    lines, complete = checked("lumbar-mr", tmp_path)
    assert not complete and "1 of 1,975 published studies" in lines["MISSING  train_images"]
    assert "OK       train.csv" in lines and "OK       test_images" in lines


def test_data_of_ones_own_are_published_nowhere():
    with pytest.raises(UserError, match="its data are your own"):
        cli.main(["download", "table"])


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        cli.main(["download", "spider", "--data", str(tmp_path / "none")])

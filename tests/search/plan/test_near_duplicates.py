"""``search check --duplicates`` lists near-duplicates across splits and draws the pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inside import run_inside
from PIL import Image
from test_check import make_pictures

from search.errors import UsageError
from search.plan.preview import save_figure
from trainer.errors import DiskError

STUDY = """
[data]
image_size = 32
[train]
model = "resnet10t"
width_mult = 0.1
epochs = 1
[space]
lr = [0.001, 0.01]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(STUDY)
    return make_pictures(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2})


def test_pairs_are_listed_and_drawn(tmp_path: Path, folder: Path) -> None:
    with Image.open(folder / "train/a/00.png") as image:
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
    large.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "test/a/copy.png")
    code, out, err = run_inside(
        tmp_path, "check", "mine.toml", "--data", folder, "--gpus", "cpu:1", "--duplicates", "--json"
    )
    assert code == 0, err
    (pair,) = json.loads(out)["pictures"]["near_duplicates"]
    assert (pair["first"], pair["second"], pair["splits"]) == ("test/a/copy.png", "train/a/00.png", ["test", "train"])
    assert "wrote mine-duplicates.png: 1 of 1 near-duplicates" in err
    with Image.open(tmp_path / "mine-duplicates.png") as sheet:
        assert sheet.size == (236, 120)
    code, out, _ = run_inside(tmp_path, "check", "mine.toml", "--data", folder, "--gpus", "cpu:1", "--duplicates")
    told = "1 near-duplicate across splits, of each picture the most similar in each other split"
    assert f"{told}:\n  test/train: test/a/copy.png ~ train/a/00.png" in out


def test_where_there_are_none_that_is_said_and_nothing_drawn(tmp_path: Path, folder: Path) -> None:
    code, out, err = run_inside(tmp_path, "check", "mine.toml", "--data", folder, "--gpus", "cpu:1", "--duplicates")
    assert code == 0, err
    assert "no near-duplicates" in out
    assert not (tmp_path / "mine-duplicates.png").exists()
    assert "near-duplicates" not in run_inside(tmp_path, "check", "mine.toml", "--data", folder, "--gpus", "cpu:1")[1]


def test_a_full_disk_is_said_with_the_file_whichever_figure_it_is(tmp_path: Path) -> None:
    (full := tmp_path / "full.png").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"full\.png cannot be written: No space left on device"):
        save_figure("--duplicates", full, Image.new("RGB", (8, 8)).save)
    with pytest.raises(UsageError, match=r"^--out .*/x\.png cannot be written \(No such file or directory\); choose"):
        save_figure("--out", tmp_path / "none" / "x.png", Image.new("RGB", (8, 8)).save)

"""Rows that name a picture exactly, and tables with very long cells."""

from __future__ import annotations

import base64
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from folders import make_folder, names_in, prepare, problems_of

from trainer.file_index import FileIndex
from trainer.tree import File


def index_of(*names: str) -> FileIndex:
    return FileIndex([File(name, Path(name), None) for name in names], Path("/data/set"))


@pytest.mark.parametrize(
    ("files", "written", "found"),
    [
        (("Train/0/x.png", "train/0/x.png"), "Train/0/x.png", ["Train/0/x.png"]),
        (("Train/0/x.png", "train/0/x.png"), "train/0/x.png", ["train/0/x.png"]),
        (("Train/0/x.png", "train/0/x.png"), "Train\\0\\x", ["Train/0/x.png"]),
        (("Train/0/x.png", "train/0/x.png"), "./train/0/x", ["train/0/x.png"]),
        (("Train/0/x.png", "train/0/x.png"), "/kaggle/input/Train/0/x.png", ["Train/0/x.png"]),
        (("Train/0/x.png", "train/0/x.png"), "https://host/set/Train/0/x.png?a=1", ["Train/0/x.png"]),
        (("Train/0/x.png", "train/0/x.png"), "set/train/0/x.png", ["train/0/x.png"]),
        (("in/Train/x.png", "in/train/x.png"), "Train/x.png", ["in/Train/x.png"]),
        (("in/train/x.png", "Train/x.png"), "train/x.png", ["Train/x.png"]),
        (("a/X.png", "a/x.png"), "a/X.png", ["a/X.png"]),
        (("a/X.png", "a/x.png", "A/X.png"), "X", ["a/X.png", "A/X.png"]),
        (("a/x.PNG", "a/x.png"), "a/x.PNG", ["a/x.PNG"]),
        (("a/x.jpg", "a/x.jpg.png"), "a/x.jpg", ["a/x.jpg"]),
        (("a/x.dcm", "a/x.dcm.png"), "a/x.dcm", ["a/x.dcm.png"]),
        (("Train/\u00e9.png", "train/e\u0301.png"), "train/\u00e9.png", ["train/e\u0301.png"]),
        (("Train/0/x.png", "train/0/x.png"), "TRAIN/0/x.png", ["Train/0/x.png", "train/0/x.png"]),
        (("Train/0/x.png", "Train/0/x.jpg"), "Train/0/x", ["Train/0/x.png", "Train/0/x.jpg"]),
    ],
)
def test_a_path_that_is_written_exactly_goes_before_its_doubles(
    files: tuple[str, ...], written: str, found: list[str]
) -> None:
    for order in (files, files[::-1]):
        assert {file.name for file in index_of(*order).find(written)} == set(found)


def test_folders_beside_their_doubles_in_lower_case_are_read_by_the_tables_paths(tmp_path: Path) -> None:
    counts = {"Train/0": 3, "Train/1": 3, "Test": 2}
    make_folder(tmp_path / "signs", counts | {name.lower(): count for name, count in counts.items()})
    for part, rows in {"Train": [f"Train/{c}/{i:03}.png,{c}" for c in "01" for i in range(3)]}.items():
        (tmp_path / "signs" / f"{part}.csv").write_text("Path,ClassId\n" + "\n".join(rows))
    (tmp_path / "signs" / "Test.csv").write_text("Path,ClassId\nTest/000.png,0\nTest/001.png,1\n")
    data = prepare(tmp_path / "signs", tmp_path, labels="Train.csv", test_labels="Test.csv")
    assert names_in(data, "test") == {"Test/000.png", "Test/001.png"}
    assert {name.split("/")[0] for name in data.names} == {"Train", "Test"}


def test_cells_longer_than_pythons_limit_are_read(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "steel", {"img": 6})
    cells = [" ".join(f"{j} 3" for j in range(40_000 if i == 3 else 4)) for i in range(6)]
    (root / "train.csv").write_text(
        "image_id,label,EncodedPixels\n" + "".join(f"{i:03}.png,{'ab'[i % 2]},{cells[i]}\n" for i in range(6))
    )
    assert problems_of(root, tmp_path).splitlines()[-1] == '  labels = "train.csv"'
    assert prepare(root, tmp_path, labels="train.csv").class_names == ("a", "b")


def test_long_cells_with_slashes_take_no_time(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "inside", {"img": 6})
    pixels = "/9j/" + base64.b64encode(os.urandom(1_000_000)).decode()
    (root / "train.csv").write_text(
        "pixels,image,label\n" + "".join(f"{pixels},{i:03}.png,{'ab'[i % 2]}\n" for i in range(6))
    )
    begun = time.monotonic()
    assert prepare(root, tmp_path, labels="train.csv").class_names == ("a", "b")
    assert problems_of(root, tmp_path).splitlines()[-1] == '  labels = "train.csv"'
    assert time.monotonic() - begun < 20


def test_long_cells_are_no_classes_and_are_shown_by_their_beginnings(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "steel", {"img": 6})
    rows = "".join(f"{i:03}.png,{'ab'[i % 2]},{'1 3 ' * (9000 + i)}\n" for i in range(6))
    (root / "train.csv").write_text(f"image_id,label,EncodedPixels\n{rows}")
    message = problems_of(root, tmp_path, labels="train.csv", columns={"label": "EncodedPixels"})
    assert "line 2: the label has 35,999 characters, and a class has at most 1,000; if another column has" in message
    message = problems_of(root, tmp_path, labels="train.csv", columns={"file": "EncodedPixels"})
    assert f"train.csv line 2: {'1 3 ' * 25}...: names no file" in message
    assert len(message) < 5000


@pytest.mark.parametrize("length", [10_000, 100_000])
def test_the_memory_for_another_spelling_does_not_grow_with_the_folders_of_a_cell(length: int) -> None:
    index, value = index_of("train/x.png"), "a/" * (length // 2) + "b"
    tracemalloc.start()
    try:
        assert index.near_miss(value) is None
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_path_may_have_several_folders_more_than_the_name_of_a_picture() -> None:
    miss = index_of("a/x.png", "b/x.png").near_miss("of/my/own\\a/x.png")
    assert miss is not None
    assert (miss.file.name, miss.why) == ("a/x.png", "paths begin with 3 folders more than here")
    assert miss.mended("of/my/own\\a/x.png") == "a/x.png"

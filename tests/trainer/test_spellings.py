"""One group that is written in several ways does not stand in several splits without a word."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from folders import make_folder, prepare, problems_of
from printed_lines import run_line

from trainer.config import DataConfig
from trainer.data import Dataset
from trainer.spellings import about_groups_alike

TWO = {"labels": "train.csv", "test_labels": "test.csv", "val_fraction": 0.25}


def tables(root: Path, train: list[str], test: list[str], column: str = "group") -> Path:
    """A folder with two pictures of each group of train, and one of each group of test."""
    make_folder(root, {"train": 2 * len(train), "test": len(test)})
    for table, groups in (("train", [group for group in train for _ in "ab"]), ("test", test)):
        rows = "".join(f"{table}/{at:03}.png\t{'ab'[at % 2]}\t{group}\n" for at, group in enumerate(groups))
        (root / f"{table}.csv").write_text(f"path\tlabel\t{column}\n{rows}", encoding="utf-8")
    return root


def warnings_of(data: Dataset, **settings: Any) -> list[str]:
    return list(about_groups_alike(DataConfig.model_validate(settings), data.groups, data.splits))


@pytest.mark.parametrize("column", ["group", "Patient"])
@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (["0.0", "3.0", "", "7.0"], ["3", "9"], ("3", "3.0")),
        (["0", "3", "5", "7"], ["3.0", "", "9.0"], ("3", "3.0")),
        (["0.0", "3.", "5.0", "7.0"], ["3.00", "9"], ("3.", "3.00")),
        (["-4.0", "1.0", "2.0", "3.0"], ["-4", "9"], ("-4", "-4.0")),
    ],
)
def test_a_number_with_and_without_a_decimal_point_is_refused_in_two_splits_and_the_line_mends_it(
    tmp_path: Path, column: str, train: list[str], test: list[str], told: tuple[str, str]
) -> None:
    root = tables(tmp_path / "scans", train, test, column)
    settings: dict[str, Any] = TWO | {"columns": {"group": column.lower()}, "split_seed": 1}
    message = problems_of(root, tmp_path, **settings)
    first, *lines = message.splitlines()
    assert "a group is in several splits, because it is written in several ways: " in first
    assert f"{told[0]!r} (" in first
    assert f"{told[1]!r} (" in first
    for line in lines:
        run_line(line)
        key, new = line.removeprefix("for data.").split(", this")[0].split(" = ")
        settings[key] = new.strip('"')
    assert lines
    mended = problems_of(root, tmp_path, **settings)
    assert "is in test and train; move its pictures to one of them" in mended


def test_groups_of_names_with_an_accent_stored_in_two_ways_are_refused_in_two_splits(tmp_path: Path) -> None:
    nfc = "Zo\u00eb"
    nfd = unicodedata.normalize("NFD", nfc)
    counts = {f"train/{name}/{who}": 2 for name in "ab" for who in (nfc, "Max", "Ida")}
    root = make_folder(tmp_path / "people", counts | {f"test/{name}/{nfd}": 1 for name in "ab"})
    message = problems_of(root, tmp_path, group_by="([^/]+)/[^/]+$")
    assert r"'Zoe\u0308' (test) and 'Zo\xeb' (" in message
    assert "write each group in one way in the names" in message


@pytest.mark.parametrize(
    ("one", "other"), [("003", "3"), ("3,0", "3"), ("P1", "p1"), ("P 1", "P1"), ("P01", "P1"), ("\uff13", "3")]
)
def test_groups_that_may_be_one_are_named_in_a_warning(tmp_path: Path, one: str, other: str) -> None:
    root = tables(tmp_path / "scans", [one, "x", "y", "z"], [other, "w"])
    data = prepare(root, tmp_path, **TWO)
    (told,) = warnings_of(data, **TWO)
    assert told.startswith("groups that are written alike are in several splits: ")
    assert ascii(one) in told
    assert f"{other!a} (test)" in told
    assert told.endswith("; if those of a set are one group, write it in one way")


def test_groups_in_one_split_and_other_groups_stay_as_they_are(tmp_path: Path) -> None:
    test = ["A1", "a1", "3", "3.0", "003"]
    root = tables(tmp_path / "scans", ["1.5", "15", "B2", "10", "7.01"], test)
    assert warnings_of(prepare(root, tmp_path, **TWO), **TWO) == []


def test_folds_and_drawn_splits_may_divide_them_too(tmp_path: Path) -> None:
    groups = ["1", "1.0", *"pqrstuvw"]
    root = tables(tmp_path / "scans", groups, ["x", "y"])
    assert "in several folds" in problems_of(root, tmp_path, **TWO, folds=2)
    told = []
    for seed in range(12):
        try:
            data = prepare(root, tmp_path, **TWO, split_seed=seed)
        except Exception as error:
            told.append(str(error))
        else:  # both are in one split
            sides = [{data.groups[index] for index in data.splits[split]} for split in ("train", "val")]
            assert any({"1", "1.0"} <= side for side in sides)
    assert told
    assert all("a group is in several splits" in one for one in told)

"""``search check`` says what helps against copies, and it does help."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from test_check import make_pictures

from search.plan.copies import cures_of_copies, text_of_copies
from trainer.config import DataConfig
from trainer.data import Dataset, prepare_data


def read(folder: Path, **settings: Any) -> tuple[Dataset, list[str]]:
    config = DataConfig.model_validate({"path": str(folder), "image_size": 8, "val_fraction": 0.3, **settings})
    data = prepare_data(config, folder.parent / "cache")
    return data, list(cures_of_copies(data, config))


def mend(folder: Path, data: Dataset) -> None:
    """Remove the second picture of each pair across splits."""
    for pair in data.duplicates:
        (folder / pair.second).unlink(missing_ok=True)


@pytest.mark.parametrize("counts", [{"a": 9, "b": 9}, {"train/a": 9, "train/b": 9, "test/a": 3, "test/b": 3}])
def test_copies_without_groups_are_removed(tmp_path: Path, counts: dict[str, int]) -> None:
    folder = make_pictures(tmp_path, counts)
    first = next(iter(counts))
    if first == "a":
        for at in range(7):
            shutil.copy(folder / "a/00.png", folder / f"a/copy{at}.png")
    else:
        shutil.copy(folder / f"{first}/00.png", folder / "test/a/copy.png")
    seed, data, cures = divided(folder)
    told = text_of_copies(data.duplicates, cures)
    assert told.splitlines()[0] == f"{len(data.duplicates)} exact duplicates:"
    assert told.splitlines()[-1].endswith("; remove the second picture of each pair, until none is listed")
    for _ in range(9):
        mend(folder, data)
        data, cures = read(folder, split_seed=seed)
    assert (data.duplicates, cures) == ((), [])


def divided(folder: Path, **settings: Any) -> tuple[int, Dataset, list[str]]:
    for seed in range(20):
        data, cures = read(folder, split_seed=seed, **settings)
        if data.duplicates:
            return seed, data, cures
    raise AssertionError("no split divides the copies")


def test_copies_of_two_groups_get_one_group_or_are_removed(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {f"{name}/{name}{who}": 2 for name in "ab" for who in range(5)})
    shutil.copy(folder / "a/a1/00.png", folder / "a/a2/copy.png")
    by = {"group_by": "([^/]+)/[^/]+$"}
    seed, data, cures = divided(folder, **by)
    (cure,) = cures
    assert "in two groups (a1 and a2 for the first pair)" in cure
    assert "give both pictures one group by names that give data.group_by the same text, or remove the second" in cure
    shutil.move(folder / "a/a2/copy.png", folder / "a/a1/copy.png")
    assert read(folder, split_seed=seed, **by)[0].duplicates == ()
    shutil.move(folder / "a/a1/copy.png", folder / "a/a2/copy.png")
    mend(folder, data)
    assert read(folder, split_seed=seed, **by)[0].duplicates == ()


@pytest.mark.parametrize("groups", [("P1", "P2"), ("P1", "")])
def test_copies_of_two_groups_of_a_table_get_one_group(tmp_path: Path, groups: tuple[str, str]) -> None:
    folder = make_pictures(tmp_path, {"all": 20})
    shutil.copy(folder / "all/00.png", folder / "all/copy.png")

    def write(second: str) -> None:
        rows = [f"all/{at:02}.png,{'ab'[at % 2]},{groups[0] if at == 0 else f'Q{at // 3}'}" for at in range(20)]
        (folder / "t.csv").write_text("\n".join(["path,label,group", *rows, f"all/copy.png,a,{second}"]))

    write(groups[1])
    seed, _, (cure,) = divided(folder, labels="t.csv")
    assert "give both pictures one group in the table, or remove the second" in cure
    assert ("no group" in cure) == (groups[1] == "")
    write(groups[0])
    assert read(folder, split_seed=seed, labels="t.csv")[0].duplicates == ()


def test_copies_of_two_groups_in_the_folders_own_splits_are_removed(tmp_path: Path) -> None:
    splits = {"train": "xyz", "test": "uv"}
    folder = make_pictures(
        tmp_path, {f"{one}/{name}/{who}": 2 for one in splits for name in "ab" for who in splits[one]}
    )
    shutil.copy(folder / "train/a/x/00.png", folder / "test/a/u/copy.png")
    _, cures = read(folder, group_by="([^/]+)/[^/]+$")
    assert [cure.endswith("remove the second picture of each pair, until none is listed") for cure in cures] == [True]


def test_copies_in_two_classes_have_one_wrong_label(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    shutil.copy(folder / "train/a/00.png", folder / "train/b/twin.png")
    assert read(folder)[1] == ["of a pair across classes, one label is wrong; remove the picture whose label is"]


def test_copies_that_folds_divide_are_listed_and_get_one_group_or_are_removed(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, {"a": 12, "b": 12})
    for at in range(6):
        shutil.copy(folder / f"a/{at:02}.png", folder / f"a/{at:02}x.png")
    data, cures = read(folder, folds=4)
    fold_of = {
        data.names[index]: part for part, indices in data.parts(4, 0).items() for index in indices if part != "test"
    }
    divided = {f"a/{at:02}x.png" for at in range(6) if fold_of[f"a/{at:02}.png"] != fold_of[f"a/{at:02}x.png"]}
    across = [pair for pair in data.duplicates if pair.kind == "across folds"]
    assert {pair.second for pair in across} == divided != set()
    assert cures[-1].startswith(f"{len(across)} pair{'s' if across[1:] else ''} across folds: ")
    grouped, _ = read(folder, folds=4, group_by=r"(\d+)x?\.png$")
    assert not [pair for pair in grouped.duplicates if pair.kind == "across folds"]
    mend(folder, data)
    assert not read(folder, folds=4)[0].duplicates

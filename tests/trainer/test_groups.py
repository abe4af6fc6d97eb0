"""Pictures of one group never stand on both sides of a drawn split or fold."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import make_folder, names_in, noise, prepare, problems_of

from trainer.config import DataConfig
from trainer.data import Dataset
from trainer.errors import ConfigError
from trainer.values import validate

BURST = r"^(.*)_\d+\."


def bursts(root: Path, sizes: dict[str, list[int]]) -> Path:
    """CLASS -> how many pictures each of its bursts has: CLASS/CLASSburst3_0.png."""
    seed = 0
    for name, counts in sizes.items():
        (root / name).mkdir(parents=True)
        for burst, count in enumerate(counts):
            for i in range(count):
                seed += 1
                noise(seed=seed).save(root / name / f"{name}burst{burst}_{i}.png")
    return root


def sides(data: Dataset) -> dict[str, set[str]]:
    """Group -> the splits that its pictures are in."""
    found: dict[str, set[str]] = {}
    for split, indices in data.splits.items():
        for index in indices:
            found.setdefault(data.groups[index], set()).add(split)
    return found


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_burst_is_on_one_side_and_the_shares_are_nearly_kept(tmp_path: Path, seed: int, stratified: bool) -> None:
    root = bursts(tmp_path / "pets", {"cat": [3, 4, 2, 5, 3, 4, 2, 3, 4], "dog": [2] * 15})
    fractions = {"val_fraction": 0.25, "test_fraction": 0.2}
    data = prepare(root, tmp_path, group_by=BURST, split_seed=seed, stratified=stratified, **fractions)
    assert len(sides(data)) == 24
    assert all(len(splits) == 1 for splits in sides(data).values())
    counts = {split: len(indices) for split, indices in data.splits.items()}
    assert abs(counts["test"] - 12) <= 3
    assert abs(counts["val"] - 12) <= 3
    assert set(data.labels[data.splits["train"]]) == {0, 1}


def test_groups_come_from_a_table_too_and_may_span_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "scans", {"all": 40})
    rows = "".join(f"{i:03},{'ab'[i % 2]},p{i // 5}\n" for i in range(40))  # each patient has both
    (root / "t.csv").write_text(f"id,label,group\n{rows}")
    data = prepare(root, tmp_path, labels="t.csv", val_fraction=0.25)
    assert all(len(splits) == 1 for splits in sides(data).values())
    assert len(data.splits["val"]) == 10
    (root / "t.csv").write_text(f"id,label,patient\n{rows}")
    named = prepare(root, tmp_path, labels="t.csv", val_fraction=0.25, columns={"group": "patient"})
    assert named.fingerprint == data.fingerprint


def test_a_pattern_with_a_slash_is_searched_in_the_path(tmp_path: Path) -> None:
    films = {"cat": range(5), "dog": range(6)}
    root = make_folder(tmp_path / "films", {f"train/{name}/film{i}": 3 for name in films for i in films[name]})
    data = prepare(root, tmp_path, group_by=r"/film\d+/", val_fraction=0.3)
    assert set(data.groups) == {f"/film{i}/" for i in range(6)}
    assert all(len(splits) == 1 for splits in sides(data).values())


def test_files_that_do_not_match_are_alone_and_drawn_as_without_groups(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"cat": 20, "dog": 30})
    plain = prepare(root, tmp_path, val_fraction=0.3, test_fraction=0.2)
    grouped = prepare(root, tmp_path, val_fraction=0.3, test_fraction=0.2, group_by="(burst)")
    assert grouped.fingerprint == plain.fingerprint
    assert not grouped.grouped


def test_the_hash_of_the_group_decides_so_that_a_new_group_hardly_moves_the_others(tmp_path: Path) -> None:
    root = bursts(tmp_path / "pets", {"cat": [2] * 30, "dog": [2] * 30})
    before = names_in(prepare(root, tmp_path, group_by=BURST, val_fraction=0.2), "val")
    again = names_in(prepare(root, tmp_path, group_by=BURST, val_fraction=0.2, bad_files="skip"), "val")
    noise(seed=9999).save(root / "cat" / "catburst7_9.png")  # one more of a burst: its content decides nothing
    noise(seed=9998).save(root / "cat" / "zzz_0.png")
    after = names_in(prepare(root, tmp_path, group_by=BURST, val_fraction=0.2), "val")
    assert again == before
    assert len(before ^ after) <= 4
    assert names_in(prepare(root, tmp_path, group_by=BURST, val_fraction=0.2, split_seed=1), "val") != after


def test_a_class_of_a_few_large_groups_still_gets_validation_pictures(tmp_path: Path) -> None:
    root = bursts(tmp_path / "pets", {"cat": [30, 40, 50], "dog": [1] * 30})
    data = prepare(root, tmp_path, group_by=BURST, val_fraction=0.1)
    assert np.bincount(data.labels[data.splits["val"]]).tolist() == [30, 3]
    assert np.bincount(data.labels[data.splits["train"]]).tolist() == [90, 27]


def test_a_class_that_is_one_group_is_refused_with_all_others(tmp_path: Path) -> None:
    root = bursts(tmp_path / "pets", {"cat": [5], "dog": [2, 2], "emu": [4]})
    message = problems_of(root, tmp_path, group_by=BURST)
    assert "2 problems" in message
    assert "cat: all of its training pictures are one group, so none are left for validation; add another" in message
    assert "emu: all of its" in message


def test_groups_on_both_sides_of_the_folders_own_splits_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    message = problems_of(root, tmp_path, group_by=r"^\d+")
    assert "group 000: is in train and val; move its pictures to one of them" in message
    assert "group 001: is in train and val" in message
    assert "group 002" not in message


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_keep_groups_together(tmp_path: Path, folds: int) -> None:
    root = bursts(tmp_path / "pets", {"cat": [3] * 10, "dog": [2] * 12})
    data = prepare(root, tmp_path, group_by=BURST, folds=folds)
    parts = [data.fold(number, folds, 0) for number in range(folds)]
    assert all(len(splits) == 1 for part in parts for splits in sides(part).values())
    together = list(itertools.chain.from_iterable(part.splits["val"].tolist() for part in parts))
    assert sorted(together) == list(range(len(data.names)))


def test_folds_that_the_groups_do_not_give_are_refused_before_anything_trains(tmp_path: Path) -> None:
    root = bursts(tmp_path / "pets", {"cat": [4, 4], "dog": [4, 4]})
    assert "folds = 5: class cat has 8" not in problems_of(root, tmp_path, group_by=BURST, folds=5)
    assert "folds = 5: the pictures have 4 groups, and each fold needs one; use fewer folds" in problems_of(
        root, tmp_path, group_by=BURST, folds=5
    )
    lonely = make_folder(tmp_path / "lonely", {"all": 30})
    rows = "".join(f"{i:03},{'b' if i < 6 else 'a'},{'g1' if i < 6 else ''}\n" for i in range(30))
    (lonely / "t.csv").write_text(f"id,label,group\n{rows}")
    settings: dict[str, Any] = {"labels": "t.csv", "folds": 3, "stratified": False}
    messages = [problems_of(lonely, tmp_path, split_seed=seed, **settings) for seed in range(5)]
    sentence = "has no training picture of b, whose groups are few; use fewer folds, or another split_seed"
    assert any(sentence in message for message in messages)  # or already the split has none


def test_a_split_without_a_training_picture_of_a_class_says_that_its_groups_are_why(tmp_path: Path) -> None:
    root = bursts(tmp_path / "pets", {"cat": [2], "dog": [1] * 20})
    messages = []
    for seed in range(20):
        settings: dict[str, Any] = {"group_by": BURST, "stratified": False, "val_fraction": 0.4, "split_seed": seed}
        try:
            prepare(root, tmp_path, **settings)
        except Exception as error:
            messages.append(str(error))
    assert messages
    assert all("with its groups, no training picture is left of cat; use smaller fractions" in one for one in messages)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"group_by = '\(' is not a regular expression: missing \)"):
        validate(DataConfig, {"group_by": "("}, "study.toml [data]")

"""Problems of the pictures of a data set, for which it cannot be used: each is one line, with the cure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from trainer.cache import Cache
from trainer.config import DataConfig
from trainer.scan import folded
from trainer.tree import PICTURE_ENDINGS
from trainer.unclear import EXPECTED_LABELS

__all__ = ["find_problems", "refuses_bad_files"]

MOST_LINES = 10
"""Largest number of classes with the same problem that have a line each."""


def refuses_bad_files(config: DataConfig) -> bool:
    """Whether a file that cannot be read is a problem."""
    match config.bad_files:
        case "fail":
            return True
        case "skip":
            return False
        case _:
            assert_never(config.bad_files)


def find_problems(config: DataConfig, cache: Cache, in_train: Mapping[str, int]) -> list[str]:
    """Reasons why the pictures of a cache cannot be used for training, one line for each.

    Args:
        config: the settings of the data set.
        cache: its pictures.
        in_train: class -> number of its pictures in train.
    """
    refuses, what = refuses_bad_files(config), "folder" if config.labels is None else "rows"
    without = _without_pictures(cache) if refuses and cache.bad else {}
    problems = _bad_files(cache, without) if refuses else []
    classes: dict[str, set[str]] = defaultdict(set)
    for split, name in zip(cache.splits, cache.classes, strict=True):
        classes[split].add(name)
    add = f"add some or remove its {what}"
    cures = {
        split: _cures(found, in_train, add) for split, found in sorted(classes.items()) if in_train and split != "train"
    }
    together = [split for split, found in cures.items() if _are_told_together(found, classes[split], add)]
    for folder, split, name in cache.class_folders:
        if split == "train" and name not in in_train and refuses and folder not in without:
            problems.append(f"{folder}: this class has no readable picture; add some or remove its {what}")
        if split != "train" and split not in together and name in cures.get(split, ()):
            problems.append(f"{folder}: this class has no training picture; {cures[split][name]}")
    problems += [_together(split, cures[split], classes[split], in_train) for split in together]
    for split in cache.own_splits:
        if split not in cache.splits:
            problems.append(f"the {split} split has no readable picture; add some or remove its {what}")
    if len(in_train) < 2:
        found = f"one class, {next(iter(in_train))}," if in_train else "no class"
        rows = f"add rows of another class to {config.labels}"
        cure = f"expected is {EXPECTED_LABELS}" if config.labels is None else rows
        problems.append(f"{found} to train on, and a classifier needs two; {cure}")
    if "val" not in cache.own_splits and config.stratified:
        problems += _alone(in_train)
    return problems


def _without_pictures(cache: Cache) -> dict[str, list[str]]:
    """Class folders that have none of the pictures, and that seem to have no class: the names of their files, none of
    which ends like a picture. All of these files have the same reason for which they cannot be read."""
    used = {name[:at] for name in cache.names for at, letter in enumerate(name) if letter == "/"}
    folders = {folder for folder, _, _ in cache.class_folders} - used
    files: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, set[str]] = defaultdict(set)
    for name, reason in cache.bad:
        above = (name[:at] for at, letter in enumerate(name) if letter == "/")
        if (folder := next((one for one in above if one in folders), None)) is not None:
            files[folder].append(name)
            reasons[folder].add(reason)
    return {
        folder: names
        for folder, names in files.items()
        if len(reasons[folder]) == 1 and not any(name.lower().endswith(PICTURE_ENDINGS) for name in names)
    }


def _bad_files(cache: Cache, without: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each file that cannot be read, but only one for each folder of ``without``."""
    first = {names[0]: (folder, len(names)) for folder, names in without.items()}
    others = {name for names in without.values() for name in names[1:]}
    lines = []
    for name, reason in cache.bad:
        if name in first:
            folder, count = first[name]
            what = "its file is none" if count == 1 else f"none of its {count:,} files is one, the first"
            lines.append(f"{folder}: this folder has no picture ({what}: {name}: {reason}); add some or remove it")
        elif name not in others:
            lines.append(f"{name}: {reason}")
    return lines


def _alone(in_train: Mapping[str, int]) -> list[str]:
    """Lines about classes with one training picture, or one line if they are many."""
    alone = [name for name in sorted(in_train) if in_train[name] == 1]
    if len(alone) > MOST_LINES:
        return [
            f"{len(alone):,} of {len(in_train):,} classes have one training picture ({_some(alone)}), so none of them "
            "has one left for validation; add some or remove these classes"
        ]
    return [
        f"{name}: one training picture, so none is left for validation; add some or remove the class" for name in alone
    ]


def _cures(found: set[str], in_train: Mapping[str, int], cure: str) -> dict[str, str]:
    """Class -> cure, for each class of a split that is not in train."""
    others = [one for one in in_train if one not in found]
    return {name: another_name(name, in_train, others, cure) for name in sorted(found) if name not in in_train}


def _are_told_together(cures: Mapping[str, str], found: set[str], add: str) -> bool:
    """Whether one line is enough for the classes of a split that are not in train: they are many, or all of the split,
    and none has a name like one in train."""
    return set(cures.values()) == {add} and (len(cures) > MOST_LINES or 1 < len(cures) == len(found))


def _together(split: str, cures: Mapping[str, str], found: set[str], in_train: Mapping[str, int]) -> str:
    if len(cures) == len(found):
        return (
            f"none of the {len(cures):,} classes of the {split} split ({_some(list(cures))}) is a class of train "
            f"({_some(sorted(in_train))}); if they are the same classes, give them the same names; else remove the "
            f"{split} split"
        )
    return (
        f"{len(cures):,} of {len(found):,} classes of the {split} split ({_some(list(cures))}) have no training "
        "picture; add some or remove these classes"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")


def another_name(name: str, known: Iterable[str], others: Iterable[str], cure: str) -> str:
    """The cure for a class that is not in train: the name of a class of train, if the two look alike, or one begins
    with the other (test/oak, train/oak_left_T2); else ``cure``.

    Args:
        name: the class.
        known: the classes of train.
        others: those of them that the split of this class does not have.
        cure: what helps if the names have nothing in common.
    """
    plain = folded(name)
    if twin := next((one for one in known if folded(one) == plain), None):
        return f"rename it to {twin}"
    long = next((one for one in others if folded(one).startswith(plain) or plain.startswith(folded(one))), "")
    if not long or plain.isdecimal():  # 1 and 10 are different classes
        return cure
    return f"if it is {long} of train, give both the same name; else {cure}"

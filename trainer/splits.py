"""Splits, drawn by the hash of content or group: the same everywhere. Folds, drawn by scikit-learn with a seed."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.cache import Cache
from trainer.config import DataConfig
from trainer.errors import DataError

__all__ = ["draw_folds", "draw_splits", "group_problems", "groups_of"]


def groups_of(config: DataConfig, cache: Cache) -> list[str]:
    """The group of each picture, from a table or else from ``group_by`` and the name; "" if it has no group."""
    if config.group_by is None:
        return list(cache.groups)
    pattern = re.compile(config.group_by)
    return [
        own or _match(pattern, name if "/" in config.group_by else name.rpartition("/")[2])
        for own, name in zip(cache.groups, cache.names, strict=True)
    ]


def _match(pattern: re.Pattern[str], name: str) -> str:
    found = pattern.search(name)
    if found is None:
        return ""
    return (found.group(1) if pattern.groups else found.group()) or ""


@dataclass(frozen=True)
class _Unit:
    """Pictures that stay together: a group, or a single picture without a group."""

    members: list[int]
    order: bytes
    """Hash by which the units are ordered before they are taken."""


UNUSED = ""
"""Split of the training pictures that ``fraction`` leaves out."""


def draw_splits(config: DataConfig, cache: Cache, groups: Sequence[str]) -> list[str]:
    """The split of each picture, UNUSED for a training picture that ``fraction`` leaves out."""
    splits = _drawn(config, cache, groups)
    if config.fraction == 1:
        return splits
    members: dict[str, list[int]] = defaultdict(list)
    for index, split in enumerate(splits):
        if split == "train":
            members[cache.classes[index]].append(index)
    for indices in members.values():
        keys = {i: hashlib.sha256(f"{config.split_seed} part {cache.sha256[i]}".encode()).digest() for i in indices}
        for index in sorted(indices, key=keys.__getitem__)[_share(config.fraction, len(indices), keep=0) :]:
            splits[index] = UNUSED
    return splits


def _drawn(config: DataConfig, cache: Cache, groups: Sequence[str]) -> list[str]:
    """The split of each picture: that of its folder or table, or one drawn from train, by class if ``stratified``.

    Each class gives its rounded share, but at least one picture, to each drawn split, and keeps at least one in train.
    If both are drawn, a class with two pictures gives one to val and none to test. Pictures are drawn by the hash of
    seed and content, not by a random generator. So the result is the same in every version of numpy, a new file moves
    few of the others, and files with the same bytes are in the same split if the shares allow it.

    A group is drawn as a whole, by the hash of seed and group. It is taken if that brings the classes nearer to their
    shares. A class that would have no validation picture gives its smallest group.
    """
    splits = list(cache.splits)
    draw_test = "test" not in cache.own_splits and config.test_fraction > 0
    draw_val = "val" not in cache.own_splits
    if not (draw_test or draw_val):
        return splits
    classes = [name if config.stratified else "" for name in cache.classes]
    units = _units(config, cache, groups)
    counts = Counter(classes[index] for unit in units for index in unit.members)
    if draw_test:
        shares = {name: _share(config.test_fraction, counts[name], keep=1 + draw_val) for name in counts}
        taken, units = _take(units, classes, shares)
        for index in taken:
            splits[index] = "test"
        counts -= Counter(classes[index] for index in taken)
    if draw_val:
        shares = {name: _share(config.val_fraction, counts[name], keep=1) for name in counts}
        taken, units = _take(units, classes, shares)
        for index in [*taken, *_lacking(units, classes, shares, {classes[index] for index in taken})]:
            splits[index] = "val"
    return splits


def _units(config: DataConfig, cache: Cache, groups: Sequence[str]) -> list[_Unit]:
    """The units that may be drawn, in the order in which they are taken."""
    members: dict[str, list[int]] = defaultdict(list)
    alone: list[int] = []
    for index, split in enumerate(cache.splits):
        if split == "train":
            (members[groups[index]] if groups[index] else alone).append(index)
    keys = [(f"{config.split_seed} {cache.sha256[index]}", [index]) for index in alone]
    keys += [(f"{config.split_seed} group {name}", indices) for name, indices in members.items()]
    units = [_Unit(indices, hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()) for key, indices in keys]
    return sorted(units, key=lambda unit: unit.order)


def _take(units: list[_Unit], classes: Sequence[str], shares: dict[str, int]) -> tuple[list[int], list[_Unit]]:
    """Take units until the shares are filled. Returns the pictures of the taken units, and the remaining units.

    A unit is taken if it brings the numbers of taken pictures nearer to the shares, summed over its classes.
    """
    open_ = Counter(shares)
    taken: list[int] = []
    left = []
    for unit in units:
        counts = Counter(classes[index] for index in unit.members)
        if sum(abs(open_[name] - count) - abs(open_[name]) for name, count in counts.items()) < 0:
            open_.subtract(counts)
            taken += unit.members
        else:
            left.append(unit)
    return taken, left


def _lacking(units: list[_Unit], classes: Sequence[str], shares: dict[str, int], has: set[str]) -> list[int]:
    """For each class that gave no picture, because its groups are large: the pictures of its smallest group.

    A group that holds all remaining pictures of a class is not taken.
    """
    left = Counter(classes[index] for unit in units for index in unit.members)
    taken: list[int] = []
    for name in sorted(set(shares) - has):
        candidates = [unit for unit in units if any(classes[index] == name for index in unit.members)]
        for unit in sorted(candidates, key=lambda unit: (len(unit.members), unit.order)):
            counts = Counter(classes[index] for index in unit.members)
            if name not in has and shares[name] and all(left[kind] > count for kind, count in counts.items()):
                taken += unit.members
                left -= counts
                has |= set(counts)
                units = [one for one in units if one is not unit]
    return taken


def _share(fraction: float, count: int, keep: int) -> int:
    return min(max(1, int(fraction * count + 0.5)), max(0, count - keep))


def group_problems(config: DataConfig, cache: Cache, groups: Sequence[str]) -> Iterator[str]:
    """Reasons why these pictures cannot be split by their groups, one line for each."""
    sides: dict[str, set[str]] = defaultdict(set)
    in_class: dict[str, set[str]] = defaultdict(set)
    for index, (group, split) in enumerate(zip(groups, cache.splits, strict=True)):
        if group:
            sides[group].add(split)
        if split == "train":
            in_class[cache.classes[index]].add(group or f"\0{index}")
    for group in sorted(group for group, splits in sides.items() if len(splits) > 1):
        yield f"group {group}: is in {' and '.join(sorted(sides[group]))}; move its pictures to one of them"
    if "val" not in cache.own_splits and config.stratified and any(groups):
        for name in sorted(in_class):
            if len(in_class[name]) == 1 and Counter(cache.classes)[name] > 1:
                yield (
                    f"{name}: all of its training pictures are one group, so none are left for validation; add another "
                    "group or remove the class"
                )


def draw_folds(
    pool: NDArray[np.int64], labels: NDArray[np.int64], groups: Sequence[str], folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(train, val) positions in ``pool`` for each stratified fold; no group is divided.

    Args:
        pool: indices of the pictures to draw from.
        labels: labels of these pictures.
        groups: groups of these pictures, "" for a picture without a group.
        folds: number of folds, at least 2.
        seed: seed of the shuffle.

    Raises:
        DataError: there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # imported here: it takes 1 s

    if not any(groups):
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(pool, labels))
    named = [group or f"\0{index}" for index, group in enumerate(groups)]
    numbers = np.unique(named, return_inverse=True)[1]
    if (found := len(set(named))) < folds:
        raise DataError(f"folds = {folds}: the pictures have {found} groups, and each fold needs one; use fewer folds")
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(pool, labels, numbers))

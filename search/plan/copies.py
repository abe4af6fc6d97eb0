"""The copies of pictures that ``search check`` lists, and what helps against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from search.words import count
from trainer.config import DataConfig
from trainer.data import Dataset, Duplicate
from trainer.errors import as_lines

__all__ = ["cures_of_copies", "text_of_copies"]


def cures_of_copies(data: Dataset, config: DataConfig) -> Iterator[str]:
    """A sentence for each kind of copies, with what helps against it."""
    number = {name: index for index, name in enumerate(data.names)}
    split_of = {index: split for split, indices in data.splits.items() for index in indices.tolist()}
    fixed, apart, alone = data.own_splits - {"train"}, list[Duplicate](), list[Duplicate]()
    for pair in data.duplicates:
        if pair.kind == "across splits":
            both = number[pair.first], number[pair.second]
            are_drawn = fixed.isdisjoint(split_of[index] for index in both)
            (apart if are_drawn and any(data.groups[index] for index in both) else alone).append(pair)
    if apart:
        first, second = (data.groups[number[name]] or "no group" for name in (apart[0].first, apart[0].second))
        how = "in the table" if config.group_by is None else "by names that give data.group_by the same text"
        how = f"in the table or {how}" if config.group_by is not None and config.labels is not None else how
        yield (
            f"of {count(len(apart), 'pair')} across splits, the pictures are in two groups ({first} and {second} for "
            f"the first pair), which are drawn one by one; give both pictures one group {how}, or remove the second, "
            "until none is listed"
        )
    if alone:
        yield (
            f"{count(len(alone), 'pair')} across splits: a model is tested or chosen by a picture that it was trained "
            "on; remove the second picture of each pair, until none is listed"
        )
    if across := sum(pair.kind == "across folds" for pair in data.duplicates):
        yield (
            f"{count(across, 'pair')} across folds: a candidate is compared by a picture that it was trained on; "
            "remove the second picture of each pair, or give both one group (data.group_by, or a column group)"
        )
    if any(pair.kind == "across classes" for pair in data.duplicates):
        yield "of a pair across classes, one label is wrong; remove the picture whose label is"


def text_of_copies(pairs: Sequence[Duplicate], cures: Sequence[str]) -> str:
    """The list of pairs, and what helps."""
    lines = as_lines([f"{pair.kind}: {pair.first} = {pair.second}" for pair in pairs])
    return "\n".join([f"{len(pairs)} exact duplicates:{lines}", *cures])

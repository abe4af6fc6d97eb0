"""Columns of label tables that seem to have splits or groups, and are not used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence, Set

from trainer.split_names import split_of, words_of

__all__ = ["columns_not_used", "means_splits", "strange_splits"]

GROUP_COLUMNS = {
    f"{who}{end}" for who in ("patient", "subject", "burst", "video", "artist") for end in ("", "_id", "id")
}
"""Names of columns, in lower case, that often have groups. They are used only if ``columns`` names them."""

SPLIT_WORDS = {"partition", "partitions", "split", "splits", "subset", "subsets"}
"""Words in the names of columns that often have the splits, as words or as numbers."""

NUMBERS = {"0", "1", "2", "0.0", "1.0", "2.0"}
"""Numbers that stand for splits, in such a column."""


def means_splits(column: str, values: Set[str]) -> bool:
    """Whether a column has numbers that may stand for splits."""
    return bool(values) and values <= NUMBERS and not SPLIT_WORDS.isdisjoint(words_of(column))


def strange_splits(name: str, values: Set[str]) -> str:
    """A sentence about a column called split that is not used, with what to write into it.

    Args:
        name: the table.
        values: those that are not empty; one of them at least names no split.
    """
    strange = min(value for value in values if split_of(value) is None)
    said = f"{name}: column split is not used, because {strange!r} names no split"
    return f"{said}; {_in_words(values)}" if means_splits("split", values) else said


def columns_not_used(
    name: str, header: Sequence[str], lines: Sequence[tuple[int, list[str]]], chosen: Collection[int], kinds: Set[str]
) -> Iterator[str]:
    """Sentences about columns that seem to have the splits or the groups, if no column has them yet.

    Args:
        name: the table.
        header: the names of its columns.
        lines: its rows, each with the number of its line.
        chosen: numbers of the columns that are used.
        kinds: those of split and group that a column has.
    """
    for number, column in enumerate(header):
        values = {row[number].strip() for _, row in lines if number < len(row)} - {""}
        kind = "group" if column.lower() in GROUP_COLUMNS else "split"
        if number in chosen or kind in kinds:
            continue
        if kind == "group" or (len(values) > 1 and all(map(split_of, values))):
            what = "pictures of one group are not kept together" if kind == "group" else "splits are drawn"
            yield f'{name}: column {column} is not used, so {what}; to use it: data.columns = {{ {kind} = "{column}" }}'
        elif column.lower() in ("is_val", "is_valid", "is_test"):
            yield (
                f"{name}: column {column} is not used, so splits are drawn; to use it, write train, val or test into "
                "a column split"
            )
        elif column.lower() != "split" and means_splits(column, values):
            yield (
                f"{name}: column {column} is not used, so splits are drawn; {_in_words(values)}, and set "
                f'data.columns = {{ split = "{column}" }}'
            )


def _in_words(values: Set[str]) -> str:
    often = " (often 0 = train, 1 = val, 2 = test)" if len(values) > 2 else ""
    return f"if {', '.join(sorted(values))} are the splits{often}, write train, val or test in their place"

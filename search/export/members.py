"""The members of an ensemble in words, for the model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from search.export.record import ExportRecord
from search.export.recorded import RecordedSelection
from studies.objective import Objective, number_of


def models_in_words(record: ExportRecord) -> str:
    """The models of an export in words: "resnet10t", "3 x resnet10t", "2 x resnet10t and rexnet_100"."""
    models = Counter(one.architecture for one in record.members) or Counter(
        {record.model.architecture: record.model.members}
    )
    return " and ".join(f"{number} x {model}" if number > 1 else model for model, number in models.items())


def size_in_words(counted: int, each: Sequence[int], limit: int | None, *, limit_each: bool) -> str:
    """The size of an export in words, with the limit and the size of each member.

    Args:
        counted: parameters or multiply-adds of the whole export.
        each: parameters or multiply-adds of each member.
        limit: the largest number; None without a limit.
        limit_each: whether the limit is for each member alone.
    """
    bound = f" of at most {limit:,}" if limit is not None else ""
    if len(each) == 1:
        return f"{counted:,}{bound}"
    *first, last = dict.fromkeys(f"{number:,}" for number in each)
    alone = f"{', '.join(first)} and {last}" if first else last
    if limit_each:
        return f"{alone}{bound} in each of {len(each)} members, {counted:,} in all"
    return f"{counted:,}{bound}, in {len(each)} members of {alone}"


def selection_in_words(selection: RecordedSelection, objective: Objective) -> str:
    """How the members were chosen, and what that means for their validation accuracy."""
    order = ", ".join(map(str, selection.members))
    values = ", ".join(number_of(value, objective) for value in selection.values)
    return (
        f"{len(selection.members)} of {selection.of} trained models are exported, in this order: {order}. They were "
        "chosen on the validation split by greedy forward selection without replacement (Caruana et al., 2004): first "
        "the best model, then each time the model with which the ensemble was best. The ensemble's value on validation "
        f"after each choice: {values}. The last value is likely too high, because the same pictures chose the members. "
        "Only pictures that had no part in a choice measure the ensemble, such as those of a test split."
    )

"""Which trials have changed since they were read: a storage replaces the object of a trial that changes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress, count
from operator import is_not

from optuna.trial import FrozenTrial


def replaced(trials: Iterable[FrozenTrial], kept: Iterable[FrozenTrial | None]) -> list[int]:
    """The places at which ``trials`` has another object than ``kept``, up to the end of the shorter one."""
    return list(compress(count(), map(is_not, trials, kept)))

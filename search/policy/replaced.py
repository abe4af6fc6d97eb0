"""Which trials have changed since they were read: a storage replaces the object of a trial that changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress, count
from operator import is_not

from optuna.trial import FrozenTrial


def replaced(trials: Iterable[FrozenTrial], kept: Iterable[FrozenTrial | None]) -> list[int]:
    """The places at which ``trials`` has another object than ``kept``, up to the end of the shorter one."""
    return list(compress(count(), map(is_not, trials, kept)))


def num_ended(trials: Sequence[FrozenTrial], since: int) -> int:
    """Number of trials at the beginning of a list that have ended, if it is at least ``since``."""
    return next((at for at in range(since, len(trials)) if not trials[at].state.is_finished()), len(trials))


class Reader:
    """Reads the trials of a study, and then only those that have changed.

    The trials at the beginning of a study that have ended do not change any more, so they are not looked at again.
    """

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []
        """The trials that were read, by number."""
        self._ended = 0
        """Number of trials at the beginning that had ended when they were read."""

    def changed(self, trials: Sequence[FrozenTrial]) -> list[int] | None:
        """The numbers of the trials that are new or have changed since the last call; None if this is another study, so
        that all trials must be read.

        Args:
            trials: all trials of the study, by number.
        """
        kept, ended = self.trials, self._ended
        known = len(kept)
        if known and (len(trials) < known or (ended and trials[0] is not kept[0])):
            self.trials, self._ended = [], 0
            return None
        found = [ended + at for at in replaced(trials[ended:], kept[ended:])]
        for number in found:
            kept[number] = trials[number]
        kept += trials[known:]
        self._ended = num_ended(kept, ended)
        return [*found, *range(known, len(trials))]

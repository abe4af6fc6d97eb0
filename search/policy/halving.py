"""Optuna's successive halving with a cache: the values at each rung are kept in order.

It decides the same. Optuna reads and sorts the values of all trials for each decision.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from math import isnan

from optuna import Study
from optuna.pruners import SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.policy.replaced import Reader

RUNG = "completed_rung_"
"""Prefix of the attributes that successive halving stores on a trial."""


class RungCache:
    """The values that the trials of a study have at each rung."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._values: list[dict[str, float]] = []
        """For each trial: attribute -> value."""
        self._sorted: defaultdict[str, list[float]] = defaultdict(list)

    def at(self, rung: str, trials: Sequence[FrozenTrial]) -> list[float]:
        """The values at a rung in ascending order.

        Args:
            rung: the attribute.
            trials: all trials of the study, by number.
        """
        if (changed := self._reader.changed(trials)) is None:
            self._values.clear()
            self._sorted.clear()
            changed = self._reader.changed(trials) or []
        for number in changed:
            values = {name: value for name, value in trials[number].system_attrs.items() if name.startswith(RUNG)}
            if number < len(self._values):
                for name, value in self._values[number].items():
                    del self._sorted[name][bisect_left(self._sorted[name], value)]
                self._values[number] = values
            else:
                self._values.append(values)
            for name, value in values.items():
                insort(self._sorted[name], value)
        return self._sorted[rung]


class RememberingHalving(SuccessiveHalvingPruner):
    """Successive halving for one study.

    Args:
        min_resource: as Optuna's.
        reduction_factor: as Optuna's.
    """

    def __init__(self, *, min_resource: int, reduction_factor: int) -> None:
        super().__init__(min_resource=min_resource, reduction_factor=reduction_factor)
        self._first, self._factor, self._cache = min_resource, reduction_factor, RungCache()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """As Optuna's."""
        step, trials, rung = trial.last_step, None, 0
        while f"{RUNG}{rung}" in trial.system_attrs:
            rung += 1
        while step is not None and step >= self._first * self._factor**rung:
            value, key = trial.intermediate_values[step], f"{RUNG}{rung}"
            if isnan(value):
                return True
            if trials is None:
                trials = study.get_trials(deepcopy=False)
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
            if not self._goes_on(value, self._cache.at(key, trials), study.direction):
                return True
            rung += 1
        return False

    def _goes_on(self, value: float, others: Sequence[float], direction: StudyDirection) -> bool:
        """Whether a value is among the best 1 / factor of all values at a rung, or the best of a few."""
        places = max(1, (len(others) + 1) // self._factor)
        if direction == StudyDirection.MAXIMIZE:
            return len(others) - bisect_right(others, value) < places
        return bisect_left(others, value) < places

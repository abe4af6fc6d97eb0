"""Optuna's TPE with a cache: what it computes from a trial is kept until the trial changes.

It suggests the same settings, bit for bit, in a quarter of the time (bench/README.md, "Many workers"). Optuna reads the
settings, axes and values of all trials anew for each suggestion.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import _get_infeasible_trial_score, default_gamma
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

SPACES = 8
"""Largest number of spaces for which rows are kept. A search has one; a setting that is sampled by itself has its
own."""


@dataclass(frozen=True)
class _CachedTrial:
    """The values of a trial that TPE uses."""

    trial: FrozenTrial
    """Storages replace the object of a trial that changes, so the same object has the same content."""
    space: Mapping[str, BaseDistribution]
    """Its axes; trials with the same axes share one object."""
    group: str
    """"infeasible", "complete" or "pruned"."""
    excess: float
    """Sum of its excesses over limits; above 0 it is infeasible."""
    value: float
    """The value of a complete trial, or the last one of a pruned trial; the better, the higher. 0 without one."""
    step: int
    """The last step of a pruned trial; -1 without one."""


class TrialCache:
    """The trials of a study, as the values that TPE uses."""

    def __init__(self) -> None:
        self._trials: dict[int, _CachedTrial] = {}
        self._spaces: list[dict[str, BaseDistribution]] = []
        self._rows: list[tuple[dict[str, BaseDistribution], _Rows]] = []

    def common_space(self, trials: Sequence[FrozenTrial], sign: float) -> dict[str, BaseDistribution]:
        """The axes that all complete and pruned trials have, sorted by name, without axes of a single value."""
        ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        found = {id(one.space): one.space for one in self._of(ended, sign)}
        first, *others = found.values() or [{}]
        return {
            name: axis
            for name, axis in sorted(first.items())
            if not axis.single() and all(name in other and other[name] == axis for other in others)
        }

    def split(
        self, trials: Sequence[FrozenTrial], below: int, sign: float
    ) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """The best trials, ``below`` of them, and the others, both by number.

        Complete trials come first, then pruned ones, those with the most steps first, then infeasible ones.

        Args:
            trials: complete, pruned and running trials, by number.
            below: number of trials.
            sign: 1 if a higher value is better, -1 if a lower one is.
        """
        groups: dict[str, list[_CachedTrial]] = {"complete": [], "pruned": [], "infeasible": []}
        for known in self._of([trial for trial in trials if trial.state != TrialState.RUNNING], sign):
            groups[known.group].append(known)
        best = heapq.nlargest(below, groups["complete"], key=lambda one: one.value)
        best += heapq.nlargest(below - len(best), groups["pruned"], key=lambda one: (one.step, one.value))
        best += heapq.nsmallest(below - len(best), groups["infeasible"], key=lambda one: one.excess)
        chosen = {one.trial._number for one in best}
        return (
            [trial for trial in trials if trial._number in chosen],
            [trial for trial in trials if trial._number not in chosen],
        )

    def rows(self, space: dict[str, BaseDistribution]) -> _Rows:
        """The rows of a space, kept from earlier suggestions."""
        for kept, rows in self._rows:
            if kept == space:
                return rows
        self._rows[: max(0, len(self._rows) - SPACES + 1)] = []
        self._rows.append((space, rows := _Rows()))
        return rows

    def _of(self, trials: Sequence[FrozenTrial], sign: float) -> list[_CachedTrial]:
        cached, found = self._trials, []
        for trial in trials:
            one = cached.get(trial._number)
            if one is None or one.trial is not trial:
                one = cached[trial._number] = self._read(trial, sign)
            found.append(one)
        return found

    def _read(self, trial: FrozenTrial, sign: float) -> _CachedTrial:
        space = next((one for one in self._spaces if one == trial.distributions), None)
        if space is None:
            space = dict(trial.distributions)
            self._spaces.append(space)
        value, step = 0.0, -1
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            value = sign * trial.value
        elif trial.intermediate_values:
            step, last = max(trial.intermediate_values.items())
            value = -math.inf if math.isnan(last) else sign * last
        excess = _get_infeasible_trial_score(trial)
        group = "infeasible" if excess > 0 else "complete" if trial.state == TrialState.COMPLETE else "pruned"
        return _CachedTrial(trial, space, group, excess, value, step)


class _Rows:
    """The settings of trials in one space, as numbers: a row for each trial, by number."""

    def __init__(self) -> None:
        self.trials: list[FrozenTrial | None] = []
        self.numbers: NDArray[np.float64] = np.empty((0, 0))
        self.whole: NDArray[np.bool_] = np.empty(0, bool)
        """Whether a trial has all settings of the space."""

    def make_room(self, trials: int, settings: int) -> None:
        """Make room for so many trials."""
        if trials > len(self.numbers):
            more = max(trials, 2 * len(self.numbers))
            numbers, whole = np.zeros((more, settings)), np.zeros(more, bool)
            numbers[: len(self.numbers)], whole[: len(self.whole)] = self.numbers.reshape(-1, settings), self.whole
            self.numbers, self.whole = numbers, whole
            self.trials += [None] * (more - len(self.trials))


class RememberingTPE(TPESampler):
    """TPE for one objective.

    Args:
        cache: the study's trials that earlier suggestions have read; this sampler adds to it.
        seed: as Optuna's.
        startup_trials: Optuna's ``n_startup_trials``.
    """

    def __init__(self, cache: TrialCache, *, seed: int, startup_trials: int) -> None:
        super().__init__(seed=seed, n_startup_trials=startup_trials)
        self._cache = cache

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna's."""
        return self._cache.common_space(study._get_trials(deepcopy=False, use_cache=True), _sign(study))

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = study._get_trials(deepcopy=False, states=states)
        trials = [one for one in trials if one._number != trial._number]
        ended = sum(one.state != TrialState.RUNNING for one in trials)
        below, above = self._cache.split(trials, default_gamma(ended), _sign(study))
        good, bad = (
            self._build_parzen_estimator(study, search_space, some, handle_below=some is below)
            for some in (below, above)
        )
        samples = good.sample(self._rng.rng, self._n_ei_candidates)
        found = TPESampler._compare(samples, self._compute_acquisition_func(samples, good, bad))
        return {name: axis.to_external_repr(found[name]) for name, axis in search_space.items()}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, NDArray[Any]]:
        rows, numbers = self._cache.rows(search_space), [trial._number for trial in trials]
        rows.make_room(max(numbers, default=-1) + 1, len(search_space))
        for number, trial in zip(numbers, trials, strict=True):
            if rows.trials[number] is not trial:
                params = self._get_params(trial, study)
                rows.trials[number], rows.whole[number] = trial, search_space.keys() <= params.keys()
                if rows.whole[number]:
                    rows.numbers[number] = [axis.to_internal_repr(params[name]) for name, axis in search_space.items()]
        at = np.array(numbers, int)
        chosen = rows.numbers[at[rows.whole[at]]] if numbers else np.empty((0, len(search_space)))
        return {name: chosen[:, column] for column, name in enumerate(search_space)}


def _sign(study: Study) -> float:
    return -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0

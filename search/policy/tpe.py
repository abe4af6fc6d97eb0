"""Optuna's TPE with a cache: what it computes from a trial is kept until the trial changes.

It suggests the same settings, bit for bit, in a part of the time (bench/coordinator.md, "Many workers"). Optuna reads
the settings, axes and values of all trials anew for each suggestion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import _get_infeasible_trial_score, default_gamma
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.policy.kernels import ERROR, KeptKernels
from search.policy.parzen import KeptMasses, ManyKernels
from search.policy.replaced import num_ended, replaced

SPACES = 8
"""Largest number of spaces for which rows are kept. A search has one; a setting that is sampled by itself has its
own."""

OTHER, RUNNING, COMPLETE, PRUNED, INFEASIBLE = range(5)
"""The kinds of trials; TPE does not use OTHER, which have failed or wait."""

VALUES = np.dtype(
    [
        ("reading", int),
        ("kind", np.int8),
        ("space", int),
        ("value", float),
        ("step", int),
        ("excess", float),
    ]
)
"""The values of a trial: "reading", a number that is new each time a trial is read; and its kind. If it is complete or
pruned, also the number of its space; its value, or the last one if it is pruned (the higher, the better); the last step
of a pruned trial, -1 without one; and the sum of its excesses over limits."""

SettingsOf: TypeAlias = Callable[[FrozenTrial], Mapping[str, Any]]

_number = attrgetter("_number")


class TrialCache:
    """The trials of a study, as the values that TPE uses.

    Storages replace the object of a trial that changes, so the same object has the same content.
    """

    def __init__(self) -> None:
        self._values = np.zeros(0, VALUES)
        self._trials: list[FrozenTrial | None] = []
        """The trials that were read, by number."""
        self._ended = 0
        """Number of trials at the beginning of the study that had ended: they do not change any more."""
        self._readings = 0
        self._spaces: list[dict[str, BaseDistribution]] = []
        self._rows: list[tuple[dict[str, BaseDistribution], Rows]] = []
        self._last: tuple[Sequence[FrozenTrial], NDArray[np.int_]] = [], np.empty(0, int)

    def numbers(self, trials: Sequence[FrozenTrial], sign: float) -> NDArray[np.int_]:
        """The numbers of these trials. Those that have changed are read.

        Args:
            trials: trials by number, in a list that does not change.
            sign: 1 if a higher value is better, -1 if a lower one is.
        """
        if trials == self._last[0]:  # compares the identities of the trials first, so it is fast
            return self._last[1]
        whole = bool(trials) and trials[-1].number == len(trials) - 1  # no number is missing
        numbers = np.arange(len(trials)) if whole else np.fromiter(map(_number, trials), int, len(trials))
        if (missing := int(numbers.max(initial=-1)) + 1 - len(self._trials)) > 0:
            missing = max(missing, len(self._trials))  # at least doubled, so that the arrays grow seldom
            self._values = np.append(self._values, np.zeros(missing, VALUES))
            self._trials += [None] * missing
        if not whole:
            changed = replaced(trials, map(self._trials.__getitem__, numbers.tolist()))
        else:
            since = self._ended if self._ended and trials[0] is self._trials[0] else 0
            changed = [since + at for at in replaced(trials[since:], self._trials[since:])]
            self._ended = num_ended(trials, since)
        for at in changed:
            trial, number = trials[at], numbers[at]
            self._readings += 1
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._values[number] = self._readings, *self._read(trial, sign)
            else:
                kind = RUNNING if trial.state == TrialState.RUNNING else OTHER
                self._values[number] = self._readings, kind, -1, 0.0, -1, 0.0
            self._trials[number] = trial
        self._last = trials, numbers
        return numbers

    def ended(self, numbers: NDArray[np.int_]) -> NDArray[np.int_]:
        """Those of the trials that are complete or pruned."""
        return numbers[self._values["kind"][numbers] > RUNNING]

    def common_space(self, numbers: NDArray[np.int_]) -> dict[str, BaseDistribution]:
        """The axes that all complete and pruned trials have, sorted by name, without axes of a single value."""
        spaces = np.flatnonzero(np.bincount(self._values["space"][self.ended(numbers)])).tolist()
        found, *others = [self._spaces[at] for at in spaces] or [{}]
        return {
            name: axis
            for name, axis in sorted(found.items())
            if not axis.single() and all(name in other and other[name] == axis for other in others)
        }

    def split(
        self, numbers: NDArray[np.int_], gamma: Callable[[int], int]
    ) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        """The numbers of the best trials, and of the others; running ones are among the others.

        Complete trials come first, then pruned ones, those with the most steps first, then infeasible ones. Of equal
        trials, the older one is better.

        Args:
            numbers: the trials, by number.
            gamma: number of complete and pruned trials -> number of the best.
        """
        numbers = numbers[self._values["kind"][numbers] != OTHER]
        kinds = self._values["kind"][numbers]
        left, is_best = gamma(int((kinds != RUNNING).sum())), np.zeros(len(numbers), bool)
        for kind, keys in ((COMPLETE, ("value",)), (PRUNED, ("value", "step")), (INFEASIBLE, ("excess",))):
            at = np.flatnonzero(kinds == kind)
            sign = 1 if kind == INFEASIBLE else -1
            if left > 0:
                sorting = [sign * self._values[key][numbers[at]] for key in keys]
                if left < len(at):  # the others need not be sorted
                    near = np.flatnonzero(sorting[-1] <= np.partition(sorting[-1], left - 1)[left - 1])
                    at, sorting = at[near], [one[near] for one in sorting]
                best = at[np.lexsort(sorting)][:left]
                is_best[best], left = True, left - len(best)
        return numbers[is_best], numbers[~is_best]

    def rows(self, numbers: NDArray[np.int_], space: dict[str, BaseDistribution], settings: SettingsOf) -> Rows:
        """The settings of trials in one space.

        Args:
            numbers: the trials.
            space: the axes.
            settings: returns the settings of a trial.
        """
        rows = next((rows for kept, rows in self._rows if kept == space), None)
        if rows is None:
            self._rows[: max(0, len(self._rows) - SPACES + 1)] = []
            self._rows.append((space, rows := Rows(len(space))))
        rows.make_room(len(self._trials))
        readings = self._values["reading"][numbers]
        for at in np.flatnonzero(rows.readings[numbers] != readings):
            number = numbers[at]
            trial = self._trials[number]
            assert trial is not None
            found = settings(trial)
            rows.readings[number], rows.whole[number] = readings[at], space.keys() <= found.keys()
            if rows.whole[number]:
                rows.values[number] = [axis.to_internal_repr(found[name]) for name, axis in space.items()]
        return rows

    def _read(self, trial: FrozenTrial, sign: float) -> tuple[int, int, float, int, float]:
        """Kind, space, value, step and excess of a complete or pruned trial."""
        space = next((at for at, one in enumerate(self._spaces) if one == trial.distributions), None)
        if space is None:
            space = len(self._spaces)
            self._spaces.append(dict(trial.distributions))
        value, step = 0.0, -1
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            value = sign * trial.value
        elif trial.intermediate_values:
            step, last = max(trial.intermediate_values.items())
            value = -math.inf if math.isnan(last) else sign * last
        excess = _get_infeasible_trial_score(trial)
        kind = INFEASIBLE if excess > 0 else COMPLETE if trial.state == TrialState.COMPLETE else PRUNED
        return kind, space, value, step, excess


class Rows:
    """The settings of trials in one space, as numbers: a row for each trial, by number."""

    def __init__(self, settings: int) -> None:
        self.readings = np.zeros(0, int)
        """The "reading" of the trial (see VALUES) from which each row was made."""
        self.values = np.zeros((0, settings))
        self.whole = np.zeros(0, bool)
        """Whether a trial has all settings of the space."""
        self.masses = KeptMasses()
        self.kernels: KeptKernels | None = None

    def make_room(self, trials: int) -> None:
        """Make room for so many trials."""
        if (missing := trials - len(self.readings)) > 0:
            self.readings = np.append(self.readings, np.zeros(missing, int))
            self.values = np.append(self.values, np.zeros((missing, self.values.shape[1])), axis=0)
            self.whole = np.append(self.whole, np.zeros(missing, bool))


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
        trials = study._get_trials(deepcopy=False, use_cache=True)
        return self._cache.common_space(self._cache.numbers(trials, _sign(study)))

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        numbers = self._cache.numbers(study._get_trials(deepcopy=False, use_cache=True), _sign(study))
        if not search_space or len(self._cache.ended(numbers)) < self._n_startup_trials:
            return {}
        return self._sample(study, trial, search_space)

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        cache, parameters = self._cache, self._parzen_estimator_parameters
        numbers = cache.numbers(study._get_trials(deepcopy=False), _sign(study))
        parts = cache.split(numbers[numbers != trial._number], default_gamma)
        rows = cache.rows(np.concatenate(parts), search_space, lambda one: self._get_params(one, study))
        best, others = (some[rows.whole[some]] for some in parts)
        values = [dict(zip(search_space, rows.values[some].T, strict=True)) for some in (best, others)]
        good = _ParzenEstimator(values[0], search_space, parameters)
        samples = good.sample(self._rng.rng, self._n_ei_candidates)
        if rows.kernels is None:
            rows.kernels = KeptKernels(search_space, parameters)
        found = None
        if rows.kernels.update(others, rows.values[others]):
            found = _clearly_best(samples, good.log_pdf(samples) - rows.kernels.log_density(samples))
        if found is None:
            bad = ManyKernels(values[1], search_space, parameters, others, rows.masses)
            found = TPESampler._compare(samples, self._compute_acquisition_func(samples, good, bad))
        return {name: axis.to_external_repr(found[name]) for name, axis in search_space.items()}


def _clearly_best(samples: dict[str, NDArray[Any]], gains: NDArray[np.float64]) -> dict[str, Any] | None:
    """The sample with the largest gain; None if another one may have the same or a larger gain, given the ERROR of
    gains."""
    top = int(np.argmax(gains))
    rivals = ~(gains < gains[top] - ERROR)
    if any((values[rivals] != values[top]).any() for values in samples.values()):
        return None
    return {name: values[top].item() for name, values in samples.items()}


def _sign(study: Study) -> float:
    return -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0

"""The trials of a study in memory, for the process that owns it. All writes go to the database first.

Optuna's own cache reads every unfinished trial anew at each access. A search with n workers has n unfinished trials,
and accesses the trials about ten times for each trial.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, bindparam, func, select

from search.study.storage import backend_of


class RememberingStorage(_CachedStorage):
    """Optuna's storage with the trials of one study in memory. For one thread, in the process that owns the study.

    A write goes to the database first, and changes the memory once the database has acknowledged it. After a failed
    write, all unfinished trials are read anew before they are returned again, because the database may have stored the
    write nevertheless. A trial whose state has changed is read anew for its times. Finished trials never change.

    Each access to all trials finds those that other programs have added, begun or finished, by the number of trials in
    each state. A change by another program to an unfinished trial is seen when that trial is next read. Attributes of
    the study are always read from the database, because they show whether it is still the same study.

    Args:
        backend: the database.
        study_id: Optuna's number of the study.
        seen: called once for each trial that is read; returns the trial that takes its place in the memory.
    """

    def __init__(self, backend: RDBStorage, study_id: int, seen: Callable[[FrozenTrial], FrozenTrial]) -> None:
        super().__init__(backend)
        self._study_id, self._seen = study_id, seen
        self._studies[study_id] = _StudyInfo()
        self._trials = self._studies[study_id].trials
        """Number -> trial, in the order of the numbers."""
        self._unfinished: set[int] = set()
        """Numbers of the unfinished trials."""
        self._whole = False
        """Whether the memory is known to equal the database, apart from ``_stale``."""
        self._stale: set[int] = set()
        """Optuna's ids of the trials to read anew."""
        self._read_up_to = -1
        """The highest id that was read; there may be new trials above it."""
        trial = models.TrialModel
        self._count = select(
            func.count(),
            func.count().filter(trial.state == TrialState.WAITING),
            func.count().filter(trial.state == TrialState.RUNNING),
        ).where(trial.study_id == study_id, trial.trial_id >= bindparam("first"))

    def forget(self, trial_id: int) -> None:
        """Read a trial anew before it is next returned, because it was changed without Optuna."""
        self._stale.add(trial_id)

    # -- reads

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As Optuna's. Without ``deepcopy`` it returns the trials of the memory; later writes do not change them."""
        if study_id != self._study_id:
            return super().get_all_trials(study_id, deepcopy, states)
        self._look()
        trials = list(self._trials.values())
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's. For an unfinished trial it returns a copy, because Optuna's ``Trial`` changes it."""
        if not self._whole or trial_id in self._stale:
            self._look()
        trial = self._known(trial_id)
        if trial is None:
            return super().get_trial(trial_id)
        return trial if trial.state.is_finished() else _copy(trial)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """As Optuna's."""
        return BaseStorage.get_best_trial(self, study_id)

    # -- writes

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's."""
        with self._writing():
            trial_id = super().create_new_trial(study_id, template_trial)
        if template_trial is not None:  # the database may store its values in another form
            self.forget(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """As Optuna's."""
        with self._writing():
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            trial = self._change(trial_id)
            if trial is None:
                return
            if param_name in trial.params:  # Optuna silently keeps the old value
                self.forget(trial_id)
                return
            kept = json_to_distribution(distribution_to_json(distribution))
            trial.distributions[param_name] = kept
            trial.params[param_name] = kept.to_external_repr(float(param_value_internal))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's."""
        with self._writing():
            done = super().set_trial_state_values(trial_id, state, values)
        self.forget(trial_id)
        return done

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        with self._writing():
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)
            if trial := self._change(trial_id):
                trial.intermediate_values[step] = float(intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._writing():
            super().set_trial_user_attr(trial_id, key, value)
            if trial := self._change(trial_id):
                trial.user_attrs[key] = json.loads(json.dumps(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._writing():
            super().set_trial_system_attr(trial_id, key, value)
            if trial := self._change(trial_id):
                trial.system_attrs[key] = json.loads(json.dumps(value))

    # -- the memory

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # the database may have stored it nevertheless
            self._whole = False
            raise

    def _known(self, trial_id: int) -> FrozenTrial | None:
        study_id, number = self._trial_id_to_study_id_and_number.get(trial_id, (None, -1))
        return self._trials[number] if study_id == self._study_id else None

    def _change(self, trial_id: int) -> FrozenTrial | None:
        """Replace a trial by a copy that may be changed, because callers may hold the trial itself."""
        trial = self._known(trial_id)
        if trial is None:
            return None
        changed = self._trials[trial.number] = _copy(trial)
        return changed

    def _look(self) -> None:
        """Make the memory equal to the database."""
        if self._whole and self._stale:
            self._read(self._stale)
        if not self._whole or not self._is_complete():
            self._read({self._trials[number]._trial_id for number in self._unfinished})

    def _is_complete(self) -> bool:
        """Whether the memory has all trials of the database, in the same states.

        Three numbers are compared, of the trials from the first unfinished one on: WAITING, RUNNING, and in any state.
        Equal numbers mean equal states, because a trial only goes from WAITING to RUNNING to finished.
        """
        first = min(self._unfinished, default=len(self._trials))
        trial_id = self._trials[first]._trial_id if self._unfinished else self._read_up_to + 1
        states = [self._trials[number].state for number in self._unfinished]
        with self._backend.engine.connect() as connection:
            found = connection.execute(self._count, {"first": trial_id}).one()
        expected = len(self._trials) - first, states.count(TrialState.WAITING), states.count(TrialState.RUNNING)
        return tuple(found) == expected

    def _read(self, ids: set[int]) -> None:
        """Read these trials, and all trials that are newer than those read before."""
        self._whole = False
        trials = self._backend._get_trials(self._study_id, None, ids, self._read_up_to)
        self._add_trials_to_cache(self._study_id, trials)
        self._read_up_to = max((trial._trial_id for trial in trials), default=self._read_up_to)
        self._stale, self._whole = self._stale - ids, True

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        if study_id != self._study_id:
            super()._add_trials_to_cache(study_id, trials)
            return
        last = next(reversed(self._trials), -1)
        between = any(trial.number < last and trial.number not in self._trials for trial in trials)
        super()._add_trials_to_cache(study_id, [self._seen(trial) for trial in trials])
        for trial in trials:
            (self._unfinished.discard if trial.state.is_finished() else self._unfinished.add)(trial.number)
        if between:  # another program added it just before this process added one
            ordered = sorted(self._trials.items())
            self._trials.clear()
            self._trials.update(ordered)


@contextmanager
def below_optuna(study: optuna.Study, trial: FrozenTrial) -> Iterator[Connection]:
    """A transaction for a change of an unfinished trial that Optuna does not offer."""
    try:
        with backend_of(study).engine.begin() as connection:
            yield connection
    finally:  # after a failure too: the database may have stored it nevertheless
        _forget(study, trial)


def read_anew(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
    """An unfinished trial as the database has it now: another program may have changed it."""
    _forget(study, trial)
    return study.get_trials(deepcopy=False)[trial.number]


def _forget(study: optuna.Study, trial: FrozenTrial) -> None:
    if isinstance(study._storage, RememberingStorage):
        study._storage.forget(trial._trial_id)


def _copy(trial: FrozenTrial) -> FrozenTrial:
    """A copy with its own mappings; the values in them are never changed."""
    made = copy.copy(trial)
    made.params, made.distributions = dict(trial.params), dict(trial.distributions)
    made.user_attrs, made.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    made.intermediate_values = dict(trial.intermediate_values)
    return made

"""The trials of a study in memory, for the process that owns it. All writes go to the database first.

Optuna's own cache reads every unfinished trial at each access, about ten times in the course of each trial.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from search.study.gone import fill_gaps
from search.study.statements import End, Row, Statements
from search.study.storage import backend_of
from search.study.trial import axis_of, copy_of


class RememberingStorage(_CachedStorage):
    """Optuna's storage with the trials of one study in memory. For one thread, in the process that owns the study.

    A write goes to the database first, and changes the memory once the database has acknowledged it. After a failed
    write, all unfinished trials are read anew before they are returned again, because the database may have stored the
    write nevertheless. Finished trials never change.

    Each access to all trials finds those that other programs have added, begun or finished, by the number of trials in
    each state. A SQLite file says whether another connection has changed it; if none has, the trials are not counted.
    If another program changes an unfinished trial, that is seen when the trial is next read. Attributes of the study
    are always read from the database, because they show whether it is still the same study.

    Args:
        backend: the database.
        study_id: Optuna's number of the study.
        as_seen: called with each trial that is read; returns the trial itself, or a stand-in to keep in its place.
    """

    def __init__(self, backend: RDBStorage, study_id: int, as_seen: Callable[[FrozenTrial], FrozenTrial]) -> None:
        super().__init__(backend)
        self._study_id, self._as_seen = study_id, as_seen
        self._studies[study_id] = _StudyInfo()
        self._trials = self._studies[study_id].trials
        """Number -> trial, in the order of the numbers."""
        self._all: list[FrozenTrial] | None = None
        """These trials, as long as none of them changes: to make this list takes longer than most uses of it."""
        self._unfinished: dict[int, None] = {}
        """Numbers of the unfinished trials, in order."""
        self._stand_ins: set[int] = set()
        """Numbers of the trials in whose place the memory has a stand-in, see ``as_seen``."""
        self._waiting: set[int] = set()
        """Numbers of the WAITING trials."""
        self._whole = False
        """Whether the memory is known to equal the database, apart from ``_stale``."""
        self._stale: set[int] = set()
        """Optuna's ids of the trials to read anew."""
        self._look_once = self._has_looked = False
        """Whether ``looking_once`` is active, and whether the database has been read inside it."""
        self._group: list[Row] | None = None
        """Rows that are stored at the end of ``one_transaction``; None outside of it."""
        self._ends: list[End] = []
        """Ends of trials that are stored after these rows."""
        self._compatible: set[tuple[str, str]] = set()
        """Pairs (setting, axis) that Optuna has accepted: it has compared the axis with those of other trials."""
        self._statements = Statements(backend.engine, study_id)
        self._read_up_to = -1
        """The highest id that was read; there may be new trials above it."""
        self._created = -1
        """The id of the last trial that this object has created."""

    def forget(self, trial_id: int) -> None:
        """Read a trial anew before it is next returned, because it was changed without Optuna."""
        self._stale.add(trial_id)

    @contextmanager
    def looking_once(self) -> Iterator[None]:
        """In this context, only the first access to all trials looks for changes by other programs, and all writes use
        one connection."""
        self._look_once, self._has_looked = True, False
        try:
            with self._statements.holding():
                yield
        finally:
            self._look_once = False

    @contextmanager
    def one_transaction(self) -> Iterator[None]:
        """Store all writes to unfinished trials in this context in one transaction, at the end of the context.

        Reads inside the context see the writes already, but for ends of trials. After an error, all unfinished trials
        are read anew.
        """
        if self._group is not None:  # inside another such context
            yield
            return
        self._group = []
        try:
            with self._writing():
                yield
                if self._group or self._ends:
                    self._store_ends(self._group, self._ends)
        finally:
            self._group, self._ends = None, []

    # -- reads

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As Optuna's. Without ``deepcopy``, list and trials are those of the memory; later writes change neither."""
        if study_id != self._study_id:
            return super().get_all_trials(study_id, deepcopy, states)
        self._refresh()
        if states is None:
            trials = self._all = self._all or list(self._trials.values())
        elif any(state in states for state in TrialState if state.is_finished()):
            trials = [trial for trial in self._trials.values() if trial.state in states]
        else:
            numbers = self._unfinished if TrialState.RUNNING in states else sorted(self._waiting)
            trials = [trial for trial in map(self._trials.__getitem__, numbers) if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's. An unfinished trial is copied, because Optuna's ``Trial`` changes it."""
        if not self._whole or trial_id in self._stale:
            self._refresh()
        trial = self._in_memory(trial_id)
        if trial is None:
            return super().get_trial(trial_id)
        return trial if trial.state.is_finished() else copy_of(trial)

    def trial_of(self, number: int) -> FrozenTrial:
        """The trial that ``get_all_trials`` returns at this place, without a list of all."""
        self._refresh()
        return self._trials[number]

    def stand_ins(self) -> list[FrozenTrial]:
        """The stand-ins that ``as_seen`` has given, by number."""
        self._refresh()
        return [self._trials[number] for number in sorted(self._stand_ins)]

    def is_new(self, trial_id: int) -> bool:
        """Whether the trial is the last one that this object has created, so that it need not be read anew."""
        return trial_id == self._created and self._whole

    def unfinished(self) -> Set[int]:
        """The numbers of the unfinished trials."""
        self._refresh()
        return self._unfinished.keys()

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """As Optuna's."""
        return BaseStorage.get_best_trial(self, study_id)

    # -- writes

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's."""
        with self._writing():
            if template_trial is None and study_id == self._study_id:
                trial = self._statements.create(max(self._read_up_to, self._created))
                self._add_trials_to_cache(study_id, [trial])
                self._created = trial._trial_id
                return self._created
            trial_id = super().create_new_trial(study_id, template_trial)
        self.forget(trial_id)  # the database may store its values in another form
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """As Optuna's."""
        axis = distribution_to_json(distribution)
        trial = self._in_memory(trial_id)
        with self._writing():
            if trial is None or param_name in trial.params or (param_name, axis) not in self._compatible:
                if self._group:  # what was written before must not be stored after it
                    self._statements.store(self._group)
                    self._group = []
                super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
                self._compatible.add((param_name, axis))
            else:
                row = {"param_name": param_name, "param_value": param_value_internal, "distribution_json": axis}
                self._store(models.TrialParamModel, trial_id, row)
            trial = self._change(trial_id)
            if trial is None:
                return
            if param_name in trial.params:  # Optuna silently keeps the old value
                self.forget(trial_id)
                return
            kept = axis_of(axis)
            trial.distributions[param_name] = kept
            trial.params[param_name] = kept.to_external_repr(float(param_value_internal))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's."""
        trial = self._in_memory(trial_id)
        with self._writing():
            if trial is None or not state.is_finished():
                done = super().set_trial_state_values(trial_id, state, values)
                self.forget(trial_id)
                return done
            end = End(trial_id, state, values)
            if self._group is None:
                self._store_ends([], [end])
            else:
                self._ends.append(end)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        with self._writing():
            model = models.TrialIntermediateValueModel
            value, kind = model.intermediate_value_to_stored_repr(intermediate_value)
            row = {"step": step, "intermediate_value": value, "intermediate_value_type": kind}
            self._store(model, trial_id, row)
            if trial := self._change(trial_id):
                trial.intermediate_values[step] = float(intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._writing():
            self._store(models.TrialUserAttributeModel, trial_id, {"key": key, "value_json": json.dumps(value)})
            if trial := self._change(trial_id):
                trial.user_attrs[key] = json.loads(json.dumps(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._writing():
            self._store(models.TrialSystemAttributeModel, trial_id, {"key": key, "value_json": json.dumps(value)})
            if trial := self._change(trial_id):
                trial.system_attrs[key] = json.loads(json.dumps(value))

    def _store_ends(self, rows: Sequence[Row], ends: Sequence[End]) -> None:
        """Store rows, then ends of trials."""
        at = self._statements.store(rows, ends)
        for end in ends:
            trial = self._in_memory(end.trial_id)
            if trial is None or end.trial_id in self._stale:
                continue
            trial = copy_of(trial)
            trial.state, trial.datetime_complete = end.state, at
            trial.values = None if end.values is None else [float(value) for value in end.values]
            self._add_trials_to_cache(self._study_id, [trial])

    def _store(self, model: type[Any], trial_id: int, row: dict[str, Any]) -> None:
        rows = [(model, {"trial_id": trial_id, **row})]
        if self._group is None:
            self._statements.store(rows)
        else:
            self._group += rows

    # -- the memory

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # the database may have stored the write nevertheless
            self._whole = self._has_looked = False
            raise

    def _in_memory(self, trial_id: int) -> FrozenTrial | None:
        study_id, number = self._trial_id_to_study_id_and_number.get(trial_id, (None, -1))
        return self._trials[number] if study_id == self._study_id else None

    def _change(self, trial_id: int) -> FrozenTrial | None:
        """Replace a trial by a copy that may be changed, because callers may hold the trial itself."""
        trial = self._in_memory(trial_id)
        if trial is None:
            return None
        changed = self._trials[trial.number] = copy_of(trial)
        self._all = None
        return changed

    def _refresh(self) -> None:
        """Make the memory equal to the database."""
        if self._whole and self._stale:
            self._read(self._stale)
        if self._whole and self._look_once and self._has_looked:
            return
        if not self._whole or not self._is_complete():
            self._read({self._trials[number]._trial_id for number in self._unfinished})
        self._has_looked = True

    def _is_complete(self) -> bool:
        """Whether the memory has all trials of the database, in the same states.

        Three numbers of trials are compared, from the first unfinished trial on: WAITING, RUNNING, and in any state.
        Equal numbers mean equal states, because a trial only goes from WAITING to RUNNING to finished.
        """
        first = next(iter(self._unfinished), len(self._trials))
        trial_id = self._trials[first]._trial_id if self._unfinished else self._read_up_to + 1
        found, waiting = self._statements.count(trial_id), len(self._waiting)
        return found in (None, (len(self._trials) - first, waiting, len(self._unfinished) - waiting))

    def _read(self, ids: set[int]) -> None:
        """Read these trials, and those newer than all that were read; if numbers must be mended first, read all."""
        self._whole = False
        trials = self._statements.read(ids, self._read_up_to)
        deleted = ids - {one._trial_id for one in trials}
        last = max([next(reversed(self._trials), -1), *(trial.number for trial in trials)])
        new = sum(trial.number not in self._trials for trial in trials)
        doubled = any(self._trials.get(one.number, one)._trial_id != one._trial_id for one in trials)
        if deleted or doubled or len(self._trials) + new <= last:
            known = {self._trial_id_to_study_id_and_number[trial_id][1]: trial_id for trial_id in deleted}
            fill_gaps(self._backend.engine, self._study_id, known)
            ended = self._trials.keys() - self._unfinished.keys()  # the search goes on with those that it has
            read = self._statements.read(set(), -1)
            trials = [one for one in read if one.number not in ended]
        self._add_trials_to_cache(self._study_id, trials)
        self._read_up_to = max([self._read_up_to, *(trial._trial_id for trial in trials)])
        self._stale, self._whole = self._stale - ids, True

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        if study_id != self._study_id:
            super()._add_trials_to_cache(study_id, trials)
            return
        last = next(reversed(self._trials), -1)
        between = any(trial.number < last and trial.number not in self._trials for trial in trials)
        shown = [self._as_seen(trial) for trial in trials]
        self._stand_ins |= {trial.number for trial, seen in zip(trials, shown, strict=True) if seen is not trial}
        super()._add_trials_to_cache(study_id, shown)
        self._all = None
        for trial in trials:
            if trial.state.is_finished():
                self._unfinished.pop(trial.number, None)
            else:
                self._unfinished[trial.number] = None
            (self._waiting.add if trial.state == TrialState.WAITING else self._waiting.discard)(trial.number)
        if between:  # another program added a trial just before this process added one
            ordered, unfinished = sorted(self._trials.items()), sorted(self._unfinished)
            self._trials.clear()
            self._trials.update(ordered)
            self._unfinished = dict.fromkeys(unfinished)
        if next(reversed(self._trials), -1) >= len(self._trials):  # another program has added one that is not read yet
            self._has_looked = False


@contextmanager
def below_optuna(study: optuna.Study, trial: FrozenTrial) -> Iterator[Connection]:
    """A transaction for a change of an unfinished trial that Optuna does not offer."""
    try:
        with backend_of(study).engine.begin() as connection:
            yield connection
    finally:  # after a failure too: the database may have stored the change nevertheless
        _forget(study, trial)


def read_anew(study: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
    """An unfinished trial as the database has it now: another program may have changed it."""
    _forget(study, trial)
    return trial_of(study, trial.number)


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial by its number; it must not be changed. Raises KeyError if there is none."""
    if isinstance(study._storage, RememberingStorage):
        return study._storage.trial_of(number)
    trials = study.get_trials(deepcopy=False)
    at_place = number < len(trials) and trials[number].number == number
    return trials[number] if at_place else {trial.number: trial for trial in trials}[number]


def is_new(study: optuna.Study, trial: FrozenTrial) -> bool:
    """As ``RememberingStorage.is_new``."""
    return isinstance(study._storage, RememberingStorage) and study._storage.is_new(trial._trial_id)


@contextmanager
def looking_once(study: optuna.Study) -> Iterator[None]:
    """As ``RememberingStorage.looking_once``."""
    with study._storage.looking_once() if isinstance(study._storage, RememberingStorage) else nullcontext():
        yield


def unfinished_numbers(study: optuna.Study) -> Set[int]:
    """The numbers of the unfinished trials."""
    if isinstance(study._storage, RememberingStorage):
        return study._storage.unfinished()
    return {trial.number for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()}


@contextmanager
def one_transaction(study: optuna.Study) -> Iterator[None]:
    """As ``RememberingStorage.one_transaction``."""
    with study._storage.one_transaction() if isinstance(study._storage, RememberingStorage) else nullcontext():
        yield


def _forget(study: optuna.Study, trial: FrozenTrial) -> None:
    if isinstance(study._storage, RememberingStorage):
        study._storage.forget(trial._trial_id)

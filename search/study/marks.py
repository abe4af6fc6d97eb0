"""Marks that show which finished trials are the search's own. Other programs may add, copy or finish trials, too.

A trial is marked when the search asks Optuna for it, and a second time just before its end is stored (afterwards,
Optuna adds nothing to a trial). If a trial is finished without the second mark, the search sees a failed trial in its
place. So samplers, pruners, rankings and figures never learn from it. The second mark has a checksum, so the same
holds for a trial that another program changes later.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError

from search.policy.halving import RUNG
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS
from search.study.gone import GONE, GONE_REASON
from search.study.memory import RememberingStorage
from search.study.sampling import set_attributes
from search.study.storage import backend_of
from search.study.trial import FAILED_UNDER, FAILURE
from trainer.values import FrozenModel

MARK = "featherweight:mark"
"""Trial attribute: the study's UUID and the trial's number, so that the mark of a copied trial is not valid."""

ENDED = "/ended"
"""The suffix that the mark gets before a trial's end is stored. Then come ``CHECKED`` and a checksum of the trial
(``_checksum``). Earlier versions stored the checksum without ``CHECKED``, or no checksum."""

CHECKED = "/2/"
"""Version of the checksum in a mark; those without a version leave out constraints, rungs and sizes."""

SET_ASIDE = "/changed"
"""Stands after ``ENDED`` instead of a checksum if the trial differs from the journal, see ``sealed``."""

BEFORE = "featherweight:marked_since"
"""Study attribute: see ``BeforeMarks``."""

FOREIGN = "featherweight:foreign"
"""Attribute of the failed trial that stands in for a trial that is not the search's own."""

FOREIGN_REASON = "finished by another program; its value is not used"

CHANGED_REASON = "changed in the database after its end; its value is not used"

LEARNED = (PAUSED_AT, PROMOTED_AT, REPEATS, FAILURE, FAILED_UNDER, "sizes")
"""Trial attributes that the checksum of a mark covers, besides the size."""

NOT_OWN = (FOREIGN_REASON, CHANGED_REASON, GONE_REASON)
"""The reasons why a finished trial is not the search's own."""


class BeforeMarks(FrozenModel):
    """The trials that were finished before trials were marked; they count as the search's own."""

    trials: int = Field(ge=0)
    """Number of trials when marks began."""
    without: tuple[int, ...] = ()
    """Numbers of those trials that do not count: they were not finished, or not trained by a worker."""


@dataclass(frozen=True)
class Marks:
    """The marks of one study."""

    uuid: str | None
    before: BeforeMarks | None
    """None if the study is older than marks, and no launch has stored this yet. Then each trial counts as the search's
    own if a worker has trained it."""

    def mark_asked(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Mark a trial that the search has asked for, unless it is marked already."""
        if trial.user_attrs.get(MARK) != self.mark_of(trial.number):
            set_attributes(study, trial, {MARK: self.mark_of(trial.number)})

    def mark_ended(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, value: float | None = None
    ) -> None:
        """Mark a trial whose end is about to be stored, after all else of it."""
        now = study._storage.get_trial(trial._trial_id)
        set_attributes(study, trial, {MARK: self._ended(now, state, value)})

    def _ended(self, trial: FrozenTrial, state: TrialState, value: float | None) -> str:
        return f"{self.mark_of(trial.number)}{ENDED}{CHECKED}{_checksum(trial, state, value)}"

    def sealed(self, trial: FrozenTrial, *, differs: bool) -> str:
        """The mark of a trial that ended before marks had checksums. If it differs from the journal, it counts as
        changed from then on."""
        end = self._ended(trial, trial.state, trial.value)
        return f"{self.mark_of(trial.number)}{ENDED}{SET_ASIDE}" if differs else end

    def is_sealed(self, number: int, mark: object) -> bool:
        """Whether a mark has a checksum, or says that the trial was set aside."""
        return str(mark).startswith(f"{self.mark_of(number)}{ENDED}/")

    @classmethod
    def of(cls, study: optuna.Study, uuid: str | None) -> Marks:
        """The marks of a study with this UUID."""
        try:
            before = BeforeMarks.model_validate(study.user_attrs.get(BEFORE))
        except ValidationError:
            before = None
        return cls(uuid, before)

    def is_own(self, trial: FrozenTrial) -> bool:
        """Whether only the search can have finished a trial; True while it is not finished."""
        if not trial.state.is_finished():
            return True
        if GONE in trial.user_attrs or (trial.state == TrialState.COMPLETE and trial.values is None):
            return False
        mark = str(trial.user_attrs.get(MARK)).removeprefix(self.mark_of(trial.number) + ENDED)
        if mark.startswith(CHECKED):
            return mark == CHECKED + _checksum(trial, trial.state, trial.value)
        if mark == "" or mark == f"/{_checksum(trial, trial.state, trial.value, of_before=True)}":
            return True
        if mark.startswith("/"):
            return False
        if self.before is None:
            return _is_trained(trial)
        return trial.number < self.before.trials and trial.number not in self.before.without

    def is_asked(self, trial: FrozenTrial) -> bool:
        """Whether the search has asked for an unfinished trial. Also True if it did so before there were marks."""
        without = () if self.before is None else self.before.without  # unfinished before there were marks
        asked = self.mark_of(trial.number)  # with ENDED: killed before the end was stored
        mark = str(trial.user_attrs.get(MARK))
        return mark == asked or mark.startswith(asked + ENDED) or trial.number in without

    def as_seen(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as the search sees it: the trial itself if it is the search's own, else a failed one in its
        place."""
        return trial if self.is_own(trial) else _stand_in(trial, self._why_not_own(trial))

    def _why_not_own(self, trial: FrozenTrial) -> str:
        if GONE in trial.user_attrs:
            return GONE_REASON
        changed = str(trial.user_attrs.get(MARK)).startswith(self.mark_of(trial.number) + ENDED)
        return CHANGED_REASON if changed else FOREIGN_REASON

    def mark_of(self, number: int) -> str:
        """The mark of a trial that was asked for."""
        return f"{self.uuid}/{number}"


class MarkedStorage(_CachedStorage):
    """Optuna's storage as a search sees it: trials of its study that are not its own are replaced by stand-ins.

    Samplers and pruners read trials in several ways, and all of these ways call this storage.
    """

    def __init__(self, backend: RDBStorage, study_id: int, marks: Marks) -> None:
        super().__init__(backend)
        self._study_id, self._marks = study_id, marks

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        if study_id == self._study_id:
            trials = [self._marks.as_seen(trial) for trial in trials]
        super()._add_trials_to_cache(study_id, trials)


def with_marks(study: optuna.Study, uuid: str | None, *, in_memory: bool = False) -> optuna.Study:
    """The study with stand-ins for the trials that are not the search's own.

    Args:
        study: the study as Optuna opened it.
        uuid: the study's UUID.
        in_memory: whether its trials are kept in memory, see ``RememberingStorage``. If not, each access reads the
            unfinished trials.
    """
    backend, number, marks = backend_of(study), study._study_id, Marks.of(study, uuid)
    storage: BaseStorage = MarkedStorage(backend, number, marks)
    if in_memory:
        storage = RememberingStorage(backend, number, marks.as_seen)
    return optuna.load_study(study_name=study.study_name, storage=storage, sampler=study.sampler, pruner=study.pruner)


def mark_those_before(study: optuna.Study) -> None:
    """Store, once, which trials are older than marks. Those that a worker has trained count as the search's own."""
    if BEFORE in study.user_attrs:
        return
    trials = study.get_trials(deepcopy=False)
    without = [trial.number for trial in trials if not (trial.state.is_finished() and _is_trained(trial))]
    study.set_user_attr(
        BEFORE,
        BeforeMarks(trials=trials[-1].number + 1 if trials else 0, without=tuple(without)).model_dump(mode="json"),
    )


def is_foreign(trial: FrozenTrial) -> bool:
    """Whether this is the stand-in for a trial that another program finished, changed or deleted."""
    return FOREIGN in trial.user_attrs


def foreign_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The stand-ins for trials that other programs have finished, changed or deleted."""
    if isinstance(study._storage, RememberingStorage):
        return study._storage.stand_ins()  # without a look through all trials
    return [trial for trial in study.get_trials(deepcopy=False) if is_foreign(trial)]


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The search's own trials, without those that other programs have finished, changed or deleted."""
    return [trial for trial in study.get_trials(deepcopy=False) if not is_foreign(trial)]


def _is_trained(trial: FrozenTrial) -> bool:
    """Whether a worker can have trained a finished trial: False if the trial is complete and lacks the number of
    parameters, which is stored before a training begins. Of other finished trials it cannot be known."""
    return trial.state != TrialState.COMPLETE or "num_params" in trial.user_attrs


def _checksum(trial: FrozenTrial, state: TrialState, value: float | None, *, of_before: bool = False) -> str:
    """CRC-32 of all that others learn from a trial: its state, value, settings, steps, sizes, constraints and rungs.

    Optuna itself chooses the value of a trial that is not COMPLETE: that of its last step, or none. Other attributes do
    not count, because other programs may add theirs while the trial runs.

    Args:
        trial: the trial.
        state: its state at its end.
        value: its value at its end.
        of_before: whether to compute the checksum of earlier versions, see ``CHECKED``.
    """
    steps = [(step, _as_stored(one)) for step, one in sorted(trial.intermediate_values.items())]
    settings = {name: _as_stored(one) for name, one in trial.params.items()}
    chosen = None if of_before or not steps else steps[-1][1]
    kept = value if state == TrialState.COMPLETE or not (of_before or value == chosen) else None
    content = [state.name, _as_stored(kept), settings, steps, *map(trial.user_attrs.get, ("num_params", "macs"))]
    if not of_before:
        content += [
            *map(trial.user_attrs.get, LEARNED),
            {name: _as_stored(one) for name, one in trial.constraints.items()},
        ]
        content += [{name: one for name, one in trial.system_attrs.items() if name.startswith(RUNG)}]
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _as_stored(value: Any) -> Any:
    """A value as each database returns it: SQLite stores -0.0 as 0.0."""
    return value + 0.0 if isinstance(value, float) else value


def _stand_in(trial: FrozenTrial, reason: str) -> FrozenTrial:
    return FrozenTrial(
        number=trial.number,
        state=TrialState.FAIL,
        value=None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params={},
        distributions={},
        user_attrs={FOREIGN: True, "reason": reason, FAILURE: "user"},
        system_attrs={},
        intermediate_values={},
        trial_id=trial._trial_id,
    )

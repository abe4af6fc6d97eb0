"""The mending of a study that another program changed by SQL, before a process that owns it reads its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import and_, delete, insert, select

from search.errors import ReplayFailed
from search.paths import Runs
from search.study.gone import GONE, GONE_REASON, fill_gaps
from search.study.journal import read_journal, study_uuid_of
from search.study.marks import CHANGED_REASON, MARK, Marks
from search.study.statements import MOST_IDS
from search.study.study import uuid_of
from search.study.void import Told, told_in, words_of

_FINISHED = [state for state in TrialState if state.is_finished()]


@dataclass(frozen=True)
class Mending:
    """What was mended in the trials of a study."""

    renumbered: Sequence[str] = ()
    """Sentences about changed numbers."""
    void: Mapping[int, str] = field(default_factory=dict)
    """Number of a trial that is no longer used -> the reason. The line of the next launch in the journal says it."""

    @property
    def sentences(self) -> list[str]:
        """Sentences about changed numbers, and about trials that are no longer used because they were changed. Those
        that were deleted are named by the next launch, which writes it into the journal."""
        return [*self.renumbered, *words_of({one: why for one, why in self.void.items() if why == CHANGED_REASON})]


def mend_trials(storage: RDBStorage, name: str, runs: Runs) -> Mending:
    """Give each number of a study one trial, see ``fill_gaps``, and each trial of an earlier version a checksum.

    A study that does not exist yet, or that another program has made, is left as it is.
    """
    uuid = uuid_of(name, storage)
    if uuid is None:
        return Mending()
    mended = fill_gaps(storage.engine, storage.get_study_id_from_name(name))
    set_aside = _seal(optuna.load_study(study_name=name, storage=storage), storage, uuid, runs)
    void = dict.fromkeys(mended.gone, GONE_REASON) | dict.fromkeys(set_aside, CHANGED_REASON)
    return Mending(mended.sentences(), void)


def _seal(study: optuna.Study, storage: RDBStorage, uuid: str, runs: Runs) -> list[int]:
    """Compare the trials that ended before marks had checksums with the journal. Those that agree get a mark with a
    checksum; the others are set aside. Those that the journal does not have stay as they are.

    Returns:
        The numbers of the trials that were set aside.
    """
    marks = Marks.of(study, uuid)
    chosen = _without_checksum(study, storage, marks)
    told = _told(study, runs, uuid) if chosen else {}
    chosen &= told.keys()
    if not chosen:
        return []
    # A complete trial without a value is not taken for the search's own, but the journal has its end.
    found = [one for one in study.get_trials(deepcopy=False) if one.number in chosen and GONE not in one.user_attrs]
    trials = [one for one in found if marks.is_own(one) or one.value is None]
    differing = {one.number for one in trials if told[one.number].differs_at_all(one)}
    rows = [_row(one, marks.sealed(one, differs=one.number in differing)) for one in trials]
    attributes = models.TrialUserAttributeModel.__table__
    with storage.engine.begin() as connection:
        for at in range(0, len(rows), MOST_IDS):
            these = attributes.c.trial_id.in_([row["trial_id"] for row in rows[at : at + MOST_IDS]])
            connection.execute(delete(attributes).where(these, attributes.c.key == MARK))
        if rows:
            connection.execute(insert(attributes), rows)
    return sorted(differing)


def _row(trial: FrozenTrial, mark: str) -> dict[str, int | str]:
    return {"trial_id": trial._trial_id, "key": MARK, "value_json": json.dumps(mark)}


def _without_checksum(study: optuna.Study, storage: RDBStorage, marks: Marks) -> set[int]:
    """The numbers of the finished trials without a checksum. Those without any mark of the search may be its own only
    if they are older than marks."""
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    is_mark = and_(attribute.trial_id == trial.trial_id, attribute.key == MARK)
    chosen = select(trial.number, attribute.value_json).select_from(trial).outerjoin(attribute, is_mark)
    with storage.engine.connect() as connection:
        found = connection.execute(chosen.where(trial.study_id == study._study_id, trial.state.in_(_FINISHED))).all()
    return {number for number, mark in found if not marks.is_sealed(number, json.loads(mark or "null"))}


def _told(study: optuna.Study, runs: Runs, uuid: str) -> dict[int, Told]:
    """The trials that have ended in the journal of a study; none if it has no journal, or a damaged one."""
    try:
        events = read_journal(runs.journal(study.study_name))
        return told_in(events) if study_uuid_of(events) in (uuid, None) else {}
    except (ReplayFailed, ValueError, OSError):  # a launch has set a damaged one aside before
        return {}

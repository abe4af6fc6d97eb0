"""Trials that were deleted from the database by SQL. Optuna has no call for that, and numbers trials by their count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine, Integer, Select, cast, delete, func, insert, select, update

GONE = "featherweight:gone"
"""Attribute of the failed trial that is stored in the place of a deleted one."""

GONE_REASON = "no longer in the database"

CREATED = "featherweight:trials_created"
"""Attribute of a study: the number after that of the last trial that the search has created. If the last trials are
deleted, only this tells that they were there. An older copy of the database has an older number."""

_TRIALS = models.TrialModel.__table__

_ROWS: tuple[type[Any], ...] = (
    models.TrialValueModel,
    models.TrialParamModel,
    models.TrialIntermediateValueModel,
    models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel,
    models.TrialHeartbeatModel,
)
"""The tables with rows of trials. SQLite keeps such rows if only the trial itself is deleted."""


@dataclass(frozen=True)
class Mended:
    """What was mended in the numbers of a study's trials."""

    gone: tuple[int, ...]
    """Numbers that had no trial. Each has a failed trial now."""
    renumbered: tuple[tuple[int, int], ...]
    """(number before, number now) of the trials that had the number of another one."""

    def sentences(self) -> list[str]:
        """Sentences for the user about changed numbers. The journal says which trials are gone."""
        return [f"two trials have the number {was}; the later one is trial {now} now" for was, now in self.renumbered]


def fill_gaps(engine: Engine, study_id: int, ids: Mapping[int, int] | None = None) -> Mended:
    """Give each number one trial: store a failed trial for each deleted one, and renumber the later one of two.

    Args:
        engine: the database.
        study_id: Optuna's number of the study, which this process owns.
        ids: number -> Optuna's id of trials that are known to be deleted. The last trials are missed by this, and by
            ``CREATED``, which studies of earlier versions lack.
    """
    known = dict(ids or {})
    with engine.begin() as connection:
        trial, study = _TRIALS.c, models.StudyModel
        if engine.dialect.name == "sqlite":  # otherwise another program could write between the reading and the writing
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.execute(select(study.study_id).where(study.study_id == study_id).with_for_update())
        of_study = select(trial.trial_id, trial.number).where(trial.study_id == study_id).order_by(trial.trial_id)
        found: dict[int, int] = {}
        doubled = []
        for trial_id, number in connection.execute(of_study).all():
            if found.setdefault(number, trial_id) != trial_id:
                doubled.append((trial_id, number))
        last, renumbered = max([-1, *found, *known, _created(connection, study_id) - 1]), []
        for trial_id, number in doubled:
            last += 1
            connection.execute(update(_TRIALS).where(trial.trial_id == trial_id).values(number=last))
            found[last] = trial_id
            renumbered.append((number, last))
        gone = [number for number in range(last + 1) if number not in found]
        if engine.dialect.name == "sqlite":
            _drop_rows_without_trial(connection)
        for number in gone:
            found[number] = _store_failed(connection, study_id, number, _free_id(connection, number, found, known))
    return Mended(tuple(gone), tuple(renumbered))


def _created(connection: Connection, study_id: int) -> int:
    """The value of ``CREATED``; 0 if there is none."""
    stored = connection.execute(number_created(study_id)).scalar_one_or_none()
    return 0 if stored is None else int(str(stored))


def number_created(study_id: int) -> Select[int]:
    """A statement for the value of ``CREATED``."""
    attribute = models.StudyUserAttributeModel.__table__.c
    return select(cast(attribute.value_json, Integer)).where(attribute.study_id == study_id, attribute.key == CREATED)


def _free_id(connection: Connection, number: int, found: Mapping[int, int], known: Mapping[int, int]) -> int | None:
    """An id for the trial with this number, so that ids are in the order of numbers; None if there is none."""
    later = {other: trial_id for other, trial_id in {**known, **found}.items() if other > number}
    if later:
        end = min(later.values())
        first = found[number - 1] + 1 if number else max(1, end - min(later))
    elif number in known:
        first = known[number]
        end = first + 1
    else:
        return None
    taken = set(connection.execute(select(_TRIALS.c.trial_id).where(_TRIALS.c.trial_id.between(first, end))).scalars())
    return next((one for one in range(first, end) if one not in taken), None)


def _store_failed(connection: Connection, study_id: int, number: int, trial_id: int | None) -> int:
    """Store the failed trial that stands in a deleted one's place. Returns its id."""
    if trial_id is not None:
        for model in _ROWS:
            connection.execute(delete(model).where(model.trial_id == trial_id))
    now = datetime.now(UTC).replace(tzinfo=None)
    values: dict[str, Any] = {"study_id": study_id, "number": number, "state": TrialState.FAIL}
    values |= {"datetime_start": now, "datetime_complete": now} | ({} if trial_id is None else {"trial_id": trial_id})
    stored = connection.execute(insert(_TRIALS).values(values).returning(_TRIALS.c.trial_id)).scalar_one()
    attributes = {GONE: True, "reason": GONE_REASON}
    rows = [{"trial_id": stored, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
    connection.execute(insert(models.TrialUserAttributeModel.__table__), rows)
    return int(stored)


def _drop_rows_without_trial(connection: Connection) -> None:
    """SQLite gives the id of a deleted last trial to the next one, which must not get its settings and values."""
    last = connection.execute(select(func.max(_TRIALS.c.trial_id))).scalar() or 0
    for model in _ROWS:
        connection.execute(delete(model).where(model.trial_id > last))

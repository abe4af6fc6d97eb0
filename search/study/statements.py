"""The statements with which the owner of a study reads and writes trials. Optuna's own way, through SQLAlchemy's
objects, takes several times the CPU time.

Each method is one transaction.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, TypeAlias

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Integer,
    any_,
    bindparam,
    case,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from search.study.gone import CREATED, number_created
from search.study.prepared import Prepared
from search.study.storage import version_of
from search.study.trial import axis_of

Row: TypeAlias = tuple[type[Any], dict[str, Any]]
"""A table, and a row of it."""

_KEYS: dict[type[Any], tuple[str, str]] = {
    models.TrialParamModel: ("trial_id", "param_name"),
    models.TrialUserAttributeModel: ("trial_id", "key"),
    models.TrialSystemAttributeModel: ("trial_id", "key"),
    models.TrialIntermediateValueModel: ("trial_id", "step"),
    models.TrialValueModel: ("trial_id", "objective"),
    models.StudyUserAttributeModel: ("study_id", "key"),
}
"""Table of values or attributes -> the columns of its key."""


@dataclass(frozen=True)
class End:
    """The end of a trial."""

    trial_id: int
    state: TrialState
    values: Sequence[float] | None


MOST_IDS = 1000
"""Largest number of ids in a statement; SQLite allows about 32,000."""


class Statements:
    """The statements for the trials of one study.

    Args:
        engine: the database.
        study_id: Optuna's number of the study.
    """

    def __init__(self, engine: Engine, study_id: int) -> None:
        self._engine, dialect = engine, engine.dialect
        self._held: Connection | None = None
        self._holds = False
        """Whether ``holding`` is active; its connection, once it is open, is in ``_held``."""
        self._upserts = {model: Prepared(_upsert(model, dialect.name), dialect, _columns(model)) for model in _KEYS}
        trial = models.TrialModel.__table__.c
        of_study, this = trial.study_id == study_id, trial.trial_id == bindparam("this")
        self._of_study = of_study
        self._exists = select(models.StudyModel.study_id).where(models.StudyModel.study_id == study_id)
        self._study = Prepared(self._exists.with_for_update(), dialect)
        if dialect.name == "sqlite":
            listed = select(func.json_each(bindparam("these")).table_valued("value").c.value)
            these = trial.trial_id.in_(listed)
        else:
            these = trial.trial_id == any_(bindparam("these", type_=postgresql.ARRAY(Integer)))
        self._states = Prepared(select(trial.state).where(these), dialect)
        last = select(trial.trial_id, trial.number).where(of_study).order_by(trial.trial_id.desc()).limit(1)
        self._last = Prepared(last, dialect)
        after = func.coalesce(select(last.subquery().c.number + 1).scalar_subquery(), 0)
        created = func.coalesce(number_created(study_id).scalar_subquery(), 0)
        next_number = case((after > created, after), else_=created)  # no number is used twice
        new: dict[str, Any] = {"study_id": study_id, "state": TrialState.RUNNING, "number": next_number}
        new["datetime_start"] = bindparam("now")
        if dialect.name == "sqlite":  # which would use the id of a deleted trial again
            highest = func.coalesce(select(func.max(models.TrialModel.trial_id)).scalar_subquery(), 0)
            new["trial_id"] = func.max(highest, bindparam("above")) + 1
        self._new = Prepared(insert(models.TrialModel.__table__).values(new).inline(), dialect, [])
        attribute = models.StudyUserAttributeModel
        one_more = {"study_id": study_id, "key": CREATED, "value_json": bindparam("created")}
        self._created = Prepared(_upsert(attribute, dialect.name, one_more), dialect, [])
        unfinished = (trial.state == TrialState.RUNNING) | (trial.state == TrialState.WAITING)
        end: dict[str, Any] = {"state": bindparam("end"), "datetime_complete": bindparam("now")}
        self._end = Prepared(update(models.TrialModel.__table__).where(this, unfinished).values(end), dialect)
        states = (TrialState.WAITING, TrialState.RUNNING)
        counts = (func.count(), *(func.count().filter(trial.state == state) for state in states))
        self._count = Prepared(select(*counts).where(of_study, trial.trial_id >= bindparam("first")), dialect)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """In this context, all methods use one connection to a server. To take one from SQLAlchemy's pool, which checks
        it, takes longer than most statements. The pool of a SQLite file does not check. There, Optuna would open a
        second connection, and ``count`` would take its writes for those of another program."""
        self._holds = self._engine.dialect.name != "sqlite"
        try:
            yield
        finally:
            self._holds = False
            self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        if not self._holds:
            with self._engine.connect() as connection:
                yield connection
            return
        if self._held is None:
            self._held = self._engine.connect()
        try:
            yield self._held
            self._held.commit()  # ends a transaction that only reads
        except BaseException:  # the connection may be broken
            self._let_go()
            raise

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._connected() as connection, connection.begin():
            yield connection

    def count(self, first: int) -> tuple[int, int, int] | None:
        """Three numbers, of the trials with the id ``first`` or a higher one: all, WAITING, RUNNING. None if no other
        connection has changed the database since the last call; only SQLite knows that."""
        with self._transaction() as connection:  # after a rollback, psycopg prepares all anew
            version = version_of(connection)
            if version is not None and connection.info.get(self) == version:
                return None
            total, waiting, running = self._count.run(connection, {"first": first}).fetchone()
            connection.info[self] = version
            return total, waiting, running

    def read(self, ids: Collection[int], above: int) -> list[FrozenTrial]:
        """The trials with these ids, and all with a higher id than ``above``, by id; as Optuna reads them.

        Raises:
            KeyError: the study does not exist any more.
        """
        known, trial = sorted(one for one in ids if one <= above), models.TrialModel.trial_id
        parts = [trial.in_(known[at : at + MOST_IDS]) for at in range(0, len(known), MOST_IDS)]
        with self._connected() as connection:
            if connection.execute(self._exists).one_or_none() is None:
                raise KeyError(models.NOT_FOUND_MSG)
            return [one for part in (*parts, trial > above) for one in self._trials(connection, part)]

    def _trials(self, connection: Connection, chosen: ColumnElement[bool]) -> Iterator[FrozenTrial]:
        """The chosen trials of the study, by id."""
        trial, chosen = models.TrialModel.__table__.c, self._of_study & chosen
        columns = (trial.trial_id, trial.number, trial.state, trial.datetime_start, trial.datetime_complete)
        trials = connection.execute(select(*columns).where(chosen).order_by(trial.trial_id)).all()
        if not trials:
            return

        def rows_of(model: type[Any], *names: str) -> dict[int, list[Sequence[Any]]]:
            """Id of a trial -> its rows of a table, in the order in which they were first stored."""
            rows: dict[int, list[Sequence[Any]]] = defaultdict(list)
            table = model.__table__
            wanted = select(*(table.c[name] for name in names), table.c.trial_id)
            joined = wanted.join(models.TrialModel.__table__, trial.trial_id == table.c.trial_id)
            for *row, trial_id in connection.execute(joined.where(chosen).order_by(*table.primary_key)).all():
                rows[trial_id].append(row)
            return rows

        reported = models.TrialIntermediateValueModel
        params = rows_of(models.TrialParamModel, "param_name", "param_value", "distribution_json")
        ends = rows_of(models.TrialValueModel, "objective", "value", "value_type")
        user_attrs = rows_of(models.TrialUserAttributeModel, "key", "value_json")
        system_attrs = rows_of(models.TrialSystemAttributeModel, "key", "value_json")
        reports = rows_of(reported, "step", "intermediate_value", "intermediate_value_type")
        value_of, report_of = models.TrialValueModel.stored_repr_to_value, reported.stored_repr_to_intermediate_value
        for trial_id, number, state, begun, ended in trials:
            axes = {name: axis_of(axis) for name, _, axis in params[trial_id]}
            yield FrozenTrial(
                number=number,
                state=state,
                value=None,
                values=[value_of(value, kind) for _, value, kind in sorted(ends[trial_id], key=itemgetter(0))] or None,
                datetime_start=begun,
                datetime_complete=ended,
                params={name: axes[name].to_external_repr(value) for name, value, _ in params[trial_id]},
                distributions=axes,
                user_attrs={key: json.loads(value) for key, value in user_attrs[trial_id]},
                system_attrs={key: json.loads(value) for key, value in system_attrs[trial_id]},
                intermediate_values={step: report_of(value, kind) for step, value, kind in reports[trial_id]},
                trial_id=trial_id,
            )

    def store(self, rows: Sequence[Row], ends: Sequence[End] = ()) -> datetime:
        """Store rows of unfinished trials, then end trials. Rows with the same key are replaced.

        Returns:
            The time of the ends, as Optuna shows it.

        Raises:
            UpdateFinishedTrialError: a trial is finished.
            KeyError: a trial does not exist any more.
        """
        stored, shown = _now()
        with self._transaction() as connection:
            if rows:
                self._check(connection, {row["trial_id"] for _, row in rows})
            of_table: dict[type[Any], list[dict[str, Any]]] = defaultdict(list)
            for model, row in rows:
                of_table[model].append(row)
            for model, several in of_table.items():
                self._upserts[model].run_many(connection, several)
            for end in ends:
                self._store_end(connection, end, stored)
        return shown

    def create(self, above: int) -> FrozenTrial:
        """Create a RUNNING trial without settings. Its id is higher than ``above``, the highest that is known.

        Raises:
            KeyError: the study does not exist any more.
        """
        stored, shown = _now()
        with self._transaction() as connection:
            if self._study.run(connection, {}).fetchone() is None:
                raise KeyError(models.NOT_FOUND_MSG)
            self._new.run(connection, {"now": stored, "above": above})
            trial_id, number = self._last.run(connection, {}).fetchone()  # no other program creates one meanwhile
            self._created.run(connection, {"created": str(number + 1)})
        return FrozenTrial(
            number=number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=shown,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=trial_id,
        )

    def _store_end(self, connection: Connection, end: End, now: datetime) -> None:
        ended = self._end.run(connection, {"this": end.trial_id, "end": end.state, "now": now})
        if ended.rowcount == 0:
            self._check(connection, {end.trial_id})
        model, rows = models.TrialValueModel, []
        for objective, one in enumerate(end.values or ()):
            value, kind = model.value_to_stored_repr(one)
            rows.append({"trial_id": end.trial_id, "objective": objective, "value": value, "value_type": kind})
        if rows:
            self._upserts[model].run_many(connection, rows)

    def _check(self, connection: Connection, ids: Collection[int]) -> None:
        these = json.dumps([*ids]) if connection.dialect.name == "sqlite" else [*ids]
        rows = self._states.run(connection, {"these": these}).fetchall()
        if len(rows) < len(ids):
            raise KeyError(models.NOT_FOUND_MSG)
        if any(TrialState[state].is_finished() for (state,) in rows):
            raise UpdateFinishedTrialError("a trial has already finished and can not be updated")


def _now() -> tuple[datetime, datetime]:
    """The time as Optuna stores it, and as it shows it."""
    now = datetime.now(UTC)
    return now.replace(tzinfo=None), now.astimezone().replace(tzinfo=None)


def _columns(model: type[Any]) -> list[str]:
    """The columns of a table, but for its primary key."""
    return [column.name for column in model.__table__.columns if not column.primary_key]


def _upsert(model: type[Any], dialect: str, values: dict[str, Any] | None = None) -> Insert:
    """A statement that stores rows of a table; rows with the same key are replaced. The rows are those of its call, or
    have the given values."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(model).values(values or {}).inline()
    new = {name: statement.excluded[name] for name in _columns(model) if name not in _KEYS[model]}
    return statement.on_conflict_do_update(index_elements=list(_KEYS[model]), set_=new)

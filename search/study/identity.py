"""The identity of a study. Studies of one name share a folder; their UUIDs distinguish them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import optuna
from optuna.storages._rdb import models
from sqlalchemy import and_, select

from search.errors import ReplayFailed, StudyChanged
from search.paths import Runs
from search.study.events import cut_torn_line
from search.study.journal import read_journal, study_uuid_of
from search.study.prepared import Prepared
from search.study.storage import backend_of, is_same_file, version_of
from search.study.study import UUID


def take_folder(runs: Runs, study: str, uuid: str | None) -> list[str]:
    """Prepare a study's folder: move the files of another study of the same name aside, and this study's files back.

    The other study was deleted, or is in another database; its files come back when it is searched again. A damaged
    journal is moved aside too; the new journal begins with the content of the database. The process that owns the study
    calls this before it writes anything else to the folder.

    Args:
        runs: the runs folder.
        study: the study's name.
        uuid: the study's UUID; None before it is created.

    Returns:
        A line for each move.
    """
    notes: list[str] = []
    before = _checked(runs, study, notes)
    if before is not None and before != uuid:
        runs.put_aside(study, before)
        notes.append(
            f"another study {study!r}, deleted or in another database, was searched here; its journal and checkpoints "
            f"are in {runs.earlier(study, before)}"
        )
    if uuid is not None and runs.bring_back(study, uuid):
        notes.append(f"the journal and checkpoints of study {study!r} are back from {runs.earlier(study, uuid).parent}")
        _checked(runs, study, notes)
    return notes


def _checked(runs: Runs, study: str, notes: list[str]) -> str | None:
    """The UUID of the study that a folder's journal belongs to. If the journal is damaged, move it aside and return
    None."""
    path = runs.journal(study)
    try:
        uuid = study_uuid_of(read_journal(path))
    except (ReplayFailed, ValueError):
        aside = runs.damaged_journal(study, datetime.now())
        path.replace(aside)
        notes.append(f"the journal is damaged: set aside as {aside}, a new one begins with what the database has")
        return None
    if cut_torn_line(path):
        notes.append("the last line of the journal was incomplete, as after a crash, and was removed")
    return uuid


def identify(study: optuna.Study) -> Callable[[], None]:
    """Remember the study's UUID, because the study may be deleted and another one created under the same name.

    Returns:
        A function to call before each write. It raises StudyChanged if the study was deleted or replaced.

    Raises:
        StudyChanged: the study is deleted already.
    """

    # ``engine``, ``stored``, ``gone`` and ``before``, which these functions use, are set below them.
    def uuid() -> str | None:
        # Reads this attribute alone: the study's page is stored in attributes too, and is long.
        with engine.connect() as connection:
            version = version_of(connection)
            if version is not None and connection.info.get(still_there) == version:
                return before  # no other connection has changed the file
            row = stored.run(connection, {}).fetchone()
            if row is None:
                raise gone
            connection.info[still_there] = version
        return None if row[0] is None else str(json.loads(row[0]))

    def still_there() -> None:
        # SQLite gives the number of a deleted study to the next study, so the UUID is compared.
        if not is_same_file(study) or uuid() != before:
            raise gone

    gone = StudyChanged(
        f"study {study.study_name!r} was deleted or replaced while it was in use; launch it again for a new one"
    )
    model, attributes = models.StudyModel, models.StudyUserAttributeModel
    is_uuid = and_(attributes.study_id == model.study_id, attributes.key == UUID)
    chosen = select(attributes.value_json).select_from(model).outerjoin(attributes, is_uuid)
    engine = backend_of(study).engine
    if engine.dialect.name != "sqlite":
        # Without a transaction, because after its rollback psycopg would prepare all statements anew. For a SQLite
        # file, this option would take half of the time of a check.
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    stored = Prepared(chosen.where(model.study_id == study._study_id), engine.dialect)
    before = uuid()
    return still_there

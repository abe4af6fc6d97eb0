"""Which study is which: its folder is known by the study's name, and a study by its UUID."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import optuna

from search.errors import ReplayFailed, StudyChanged
from search.paths import Runs
from search.study.journal import cut_torn_line, read_journal, searched_by
from search.study.storage import is_same_file
from search.study.study import UUID


def take_folder(runs: Runs, study: str, uuid: str | None) -> list[str]:
    """Make a study's folder its own; for the study's owner, before anything else is written there.

    Another study of its name may have left its own things: one that was deleted since, or that is in another database.
    They are put aside, and come back with their study. So is a journal that is damaged: it is evidence, and a new one
    begins with what the database has.

    Args:
        runs: the runs folder.
        study: the study's name.
        uuid: what tells it from others of that name; None before it is created.

    Returns:
        What was moved, a line each.
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
    """Whose the journal is that lies in a study's folder; a damaged one lies there no more."""
    path = runs.journal(study)
    if cut_torn_line(path):
        notes.append("the last line of the journal was cut short, as a crash leaves it, and is taken off")
    try:
        return searched_by(read_journal(path))
    except (ReplayFailed, ValueError):
        aside = runs.damaged_journal(study, datetime.now())
        path.replace(aside)
        notes.append(f"the journal is damaged: set aside as {aside}, a new one begins with what the database has")
    return None


def identify(study: optuna.Study) -> Callable[[], None]:
    """Remember the study's UUID. The study or its file may later be deleted, and another made under the same name.

    Returns:
        A function to call before each write. It raises StudyChanged if the study was deleted or replaced.

    Raises:
        StudyChanged: it is gone already.
    """

    def uuid() -> str | None:
        try:
            found: str | None = study.user_attrs.get(UUID)
        except KeyError:
            raise gone from None
        return found

    def still_there() -> None:
        # SQLite gives the number of a deleted study to the next.
        if not is_same_file(study) or uuid() != before:
            raise gone

    gone = StudyChanged(
        f"study {study.study_name!r} was deleted or replaced while it was in use; launch it again for a new one"
    )
    before = uuid()
    return still_there

"""The studies of a database: a list of them for ``search studies``, the deletion of one for ``search delete``."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import optuna
from optuna.artifacts import get_all_artifact_meta
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import URL

from search.errors import StorageError, StudyChanged, UsageError
from search.paths import Runs
from search.study.budget import Budget, Spent
from search.study.file import is_missing
from search.study.identity import take_folder
from search.study.lock import own_study, owner_of
from search.study.marks import own_trials
from search.study.readonly import open_to_read
from search.study.storage import open_storage, sqlite_file, storage_errors
from search.study.study import SPEC, find_study, person_of, uuid_of
from search.study.trial import best_of
from search.words import count
from studies.objective import Objective
from studies.spec import STUDY_NAME
from trainer.errors import no_room
from trainer.values import nearest

State: TypeAlias = Literal["in use", "stopped", "finished", "unreadable", "foreign"]
"""State of a study.

    in use      a process searches, exports or compares it
    stopped     its budget is not spent
    finished    its budget is spent
    unreadable  another version of this program launched it last
    foreign     another program made or renamed it
"""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A study of a database."""

    name: str
    owner: str | None
    """Name of the person who began the study; None if it is of another program, or of a version that stored no name."""
    state: State
    held_by: str | None
    """The process that uses the study now; None if none does."""
    budget: Budget | None
    """None if the study's settings cannot be read."""
    spent: Spent | None
    """None if the study's settings cannot be read."""
    finished: int
    """Number of finished trials."""
    best: float | None
    """Value of the best trial; a loss is negated."""
    objective: Objective | None
    """The study's objective; ``best`` is its value. None if the study's settings cannot be read."""
    last_change: str | None
    """Local time at which a trial last began or ended, ISO 8601; None before the first trial."""


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """The answer of ``search delete``."""

    study: str
    deleted: bool
    trials: int
    """Number of trials that the study had."""


def list_studies(url: URL, runs: Runs) -> tuple[Listed, ...]:
    """The studies of a database, sorted by name; empty if its file does not exist.

    Raises:
        StorageError: the database cannot be reached or read.
    """
    file = sqlite_file(url)
    if file is not None and is_missing(file):
        return ()
    with storage_errors(url):
        storage = open_to_read(url)
        return tuple(_listed(name, storage, url, runs) for name in sorted(optuna.get_all_study_names(storage)))


def _listed(name: str, storage: RDBStorage, url: URL, runs: Runs) -> Listed:
    state: State
    study = optuna.load_study(study_name=name, storage=storage)
    person, held_by, spec = person_of(study), None, None
    try:
        study, spec = find_study(storage, name)
        held_by = owner_of(name, url, runs)
        state = "in use" if held_by else "stopped"
    except StudyChanged:
        state = "unreadable"
    except UsageError:
        state = "foreign"
    trials = own_trials(study)
    budget, spent = (None, None) if spec is None else (Budget.of(spec), Spent.of(trials, spec))
    if state == "stopped" and budget is not None and spent is not None and budget.is_spent(spent):
        state = "finished"
    best = None if spec is None else best_of(trials, spec.limit)
    return Listed(
        name=name,
        owner=person,
        state=state,
        held_by=held_by,
        budget=budget,
        spent=spent,
        finished=sum(trial.state.is_finished() for trial in trials),
        best=None if best is None else best.values[0],
        objective=None if spec is None else spec.search.objective,
        last_change=_last_change(trials),
    )


def _last_change(trials: Sequence[FrozenTrial]) -> str | None:
    times = [at for trial in trials for at in (trial.datetime_start, trial.datetime_complete) if at is not None]
    return max(times).isoformat(timespec="seconds") if times else None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A study that may be deleted."""

    name: str
    uuid: str | None
    person: str | None
    """Name of the person who began the study; None if it was not stored."""
    trials: int
    """Number of trials."""

    @property
    def question(self) -> str:
        """The question to the user before the study is deleted."""
        whose = "" if self.person is None else f" of {self.person}"
        trials = count(self.trials, "trial")
        return f"delete study {self.name!r}{whose} with its {trials}, its journal and its checkpoints?"


def find_to_delete(name: str, url: URL) -> Found:
    """Find the study to delete.

    Raises:
        StorageError: the database cannot be reached or read.
        UsageError: there is no study of this name, or another program made it.
    """
    with storage_errors(url):
        storage = open_storage(url)
        found = optuna.get_all_study_names(storage)
        if name not in found:
            raise UsageError(
                f"no study {name!r} in this database; {nearest(name, found) if found else 'it has none yet'}"
            )
        study = optuna.load_study(study_name=name, storage=storage)
        if SPEC not in study.user_attrs or not STUDY_NAME.fullmatch(name):
            raise UsageError(f"study {name!r} was made by another program; delete it with optuna delete-study")
        trials = len(study.get_trials(deepcopy=False))
        return Found(name=name, uuid=uuid_of(name, storage), person=person_of(study), trials=trials)


def delete_study(found: Found, url: URL, runs: Runs) -> None:
    """Delete a study from the database, and its files from the runs folder, except its exports.

    An interrupted deletion leaves only files; the next study of this name moves them aside.

    Raises:
        HeldError: a process searches, exports or compares the study.
        StudyChanged: the study was replaced by another one.
        DiskError, StorageError: the study cannot be removed.
    """
    name = found.name
    with own_study(name, url, runs) as check_lock, storage_errors(url):
        storage = open_storage(url)
        if uuid_of(name, storage) != found.uuid:
            raise StudyChanged(f"study {name!r} was deleted or replaced meanwhile; nothing was deleted")
        take_folder(runs, name, found.uuid)  # moves files of other studies of this name aside, so that they stay
        study = optuna.load_study(study_name=name, storage=storage)
        artifacts = [meta.artifact_id for meta in get_all_artifact_meta(study)]
        check_lock()
        optuna.delete_study(study_name=name, storage=storage)
        try:
            _remove_files(name, artifacts, runs)
        except OSError as error:
            if full := no_room(error, runs.root):
                raise full from error
            raise StorageError(
                f"study {name!r} is deleted from the database, but {error.filename} cannot be removed: {error.strerror}"
            ) from error


def _remove_files(name: str, artifacts: Sequence[str], runs: Runs) -> None:
    for artifact in artifacts:
        with contextlib.suppress(ValueError, FileNotFoundError):
            (runs.artifacts / str(uuid.UUID(artifact))).unlink()
    staying = (runs.lock(name), runs.holder(name), runs.earlier(name, "any").parent)
    for path in runs.study(name).iterdir():
        if path in staying:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with contextlib.suppress(UsageError):
        if runs.study_last_launched() == name:
            runs.last_study.unlink()

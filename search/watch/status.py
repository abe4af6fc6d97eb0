"""A search in numbers, from its coordinator, its database and its state file; the JSON of ``search status``.

search/watch/shown.py shows this in a terminal.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict
from sqlalchemy import URL

from search.paths import DEFAULT_RUNS, Runs
from search.policy.ladder import PROMOTED_AT, Ladder
from search.study.budget import Budget, Spent
from search.study.confirmation import confirmation_of
from search.study.ended import Ended
from search.study.exported import last_export
from search.study.lock import owner_of
from search.study.marks import own_trials
from search.study.noise import noise_of
from search.study.progress import Snapshot, WorkerView, eta_seconds, problems
from search.study.readonly import open_to_read
from search.study.sampling import build_ladder
from search.study.storage import storage_errors
from search.study.study import find_study, person_of
from search.study.trial import is_paused, view_of
from search.words import judged_on
from studies import StudySpec
from studies.objective import Objective
from trainer.kept import recall, write_checked
from trainer.values import Json

STATUS_VERSION: Final = 3
"""Version of the JSON shape of ``search status --json``."""

STATE_SECONDS = 1.0
"""Time between two writes of the state file, and between two reads of ``search status --watch``."""


class State(BaseModel):
    """Content of the state file: values that the database does not have."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: Literal[3]
    """STATUS_VERSION."""
    owner: str
    """Name of the process that owns the study: the same that ``owner_of`` returns while the search runs."""
    at: float
    """Time of writing, in seconds since 1970."""
    eta_seconds: float | None
    stopping: bool
    problems: tuple[str, ...]
    workers: tuple[WorkerView, ...]
    ends_at: float | None = None
    """Planned end of the export, in seconds since 1970; None if the launch does not go on to an export."""


# -- a search as another process sees it


def write_state(file: Path, snapshot: Snapshot, owner: str) -> None:
    """Write the state file for ``read_snapshot``, atomically.

    Args:
        file: the state file.
        snapshot: the search as it is now.
        owner: name of the process that owns the study: the same that ``owner_of`` returns while the search runs.
    """
    state = State(
        version=STATUS_VERSION,
        owner=owner,
        at=time.time(),
        eta_seconds=snapshot.eta_seconds,
        stopping=snapshot.stopping,
        problems=snapshot.problems,
        workers=snapshot.workers,
        ends_at=snapshot.ends_at,
    )
    write_checked(file, state.model_dump(mode="json"), durable=False)


def read_snapshot(name: str, url: URL, runs: Runs) -> tuple[Snapshot, str | None]:
    """Read a study from its database and, if it is searched from this runs folder, its workers from the state file.

    Returns:
        The study, and the process that owns it; None if no process does.

    Raises:
        StorageError: the database is missing or cannot be read.
        UsageError: there is no such study.
    """
    with contextlib.closing(follow(name, url, runs)) as moments:
        return next(moments)


def follow(name: str, url: URL, runs: Runs) -> Generator[tuple[Snapshot, str | None], None, None]:
    """Yield what ``read_snapshot`` returns, every STATE_SECONDS, until no process owns the study any more."""
    with storage_errors(url):
        study, spec = find_study(open_to_read(url), name)
        while True:
            held_by = owner_of(name, url, runs)  # read before the trials, so that at the end all trials are seen
            trials = own_trials(study)
            snapshot = snapshot_of(spec, trials, read_state(runs.state(name), held_by))
            yield with_results(snapshot, study, spec, runs, held_by), held_by
            if held_by is None:
                return
            time.sleep(STATE_SECONDS)


def with_results(
    snapshot: Snapshot, study: optuna.Study, spec: StudySpec, runs: Runs, held_by: str | None = None
) -> Snapshot:
    """The snapshot with the size of the checkpoints, the confirmation, the last export and the noise added."""
    exported, found = last_export(study), confirmation_of(study, spec, owner=held_by)
    return replace(
        snapshot,
        person=person_of(study),
        checkpoint_bytes=sum(runs.checkpoints(spec.name).values()),
        checkpoint_quota=spec.faults.checkpoint_gb * 1e9,
        confirmation=found,
        exported=exported if exported is not None and exported.is_tested else None,
        exported_to=exported.folder if exported is not None else None,
        noise=noise_of(study, spec, found),
    )


def snapshot_of(spec: StudySpec, trials: list[FrozenTrial], state: State | None = None) -> Snapshot:
    """A search as another process sees it: from the trials in its database and, if given, from its state file."""
    finished = tuple(view_of(trial, spec.limit) for trial in trials if trial.state.is_finished())
    ended = Ended.of(finished)
    budget, spent, ladder = Budget.of(spec), Spent.of(trials, spec), build_ladder(spec)
    if state is not None:
        aged = time.time() - state.at
        workers = [replace(w, seconds_since_progress=(w.seconds_since_progress or 0.0) + aged) for w in state.workers]
        return Snapshot(
            study=spec.name,
            budget=budget,
            spent=spent,
            finished=finished,
            ended=ended,
            workers=tuple(workers),
            eta_seconds=state.eta_seconds,
            ladder=ladder,
            objective=spec.search.objective,
            stopping=state.stopping,
            problems=state.problems,
            ends_at=state.ends_at,
            judged_on=judged_on(spec.data.folds),
        )
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    trained = tuple(_worker_of(trial, ladder, spec.search.objective) for trial in running if not is_paused(trial))
    paused = Counter(view_of(trial).epochs for trial in running if is_paused(trial))
    eta = eta_seconds(budget, spent, ladder, ended, trained, paused)
    seen = Snapshot(spec.name, budget, spent, finished, ended, trained, eta, ladder, spec.search.objective)
    return replace(seen, judged_on=judged_on(spec.data.folds))


def _worker_of(trial: FrozenTrial, ladder: Ladder, objective: Objective) -> WorkerView:
    """The worker of a trial, from the database alone. The worker trains the stage after the last rung that the trial
    left."""
    stage = ladder.stage_after(trial.user_attrs.get(PROMOTED_AT) or 0) if ladder.anew else 0
    step, begun = max(trial.intermediate_values, default=0), ladder.steps_before(stage)
    value = trial.intermediate_values[step] if step > begun else None
    return WorkerView(
        trial=trial.number,
        epoch=max(0, step - begun),
        epochs=ladder.epochs_of(stage),
        val_accuracy=value if objective == "accuracy" else None,
        value=value,
    )


def read_state(file: Path, held_by: str | None) -> State | None:
    """The state that the study's owner wrote; None if the owner is on another machine, of another version, or was
    killed."""
    if held_by is None:
        return None
    values = recall(file, "the workers are not shown")
    try:
        state = State.model_validate(values)
    except ValueError:
        return None
    # The owner's name includes its time, because a restarted container often has the same process number and host name.
    return state if state.owner == held_by else None


def as_json(snapshot: Snapshot, runs: Runs = DEFAULT_RUNS, *, held_by: str | None) -> dict[str, Json]:
    """The documented shape of ``search status --json``."""
    return {
        "version": STATUS_VERSION,
        "study": snapshot.study,
        "objective": snapshot.objective,
        "owner": snapshot.person,
        "held_by": held_by,
        "stopping": snapshot.stopping,
        "budget": asdict(snapshot.budget),
        "spent": asdict(snapshot.spent),
        "counts": {state.name: snapshot.count(state.name) for state in TrialState if state.is_finished()},
        "workers": [asdict(worker) for worker in snapshot.workers],
        "best": asdict(snapshot.best) if snapshot.best else None,
        "eta_seconds": snapshot.eta_seconds,
        "ends_at": snapshot.ends_at,
        "confirmation": snapshot.confirmation.to_json() if snapshot.confirmation else None,
        "export": snapshot.exported.model_dump(mode="json") if snapshot.exported else None,
        "noise": snapshot.noise.to_json() if snapshot.noise else None,
        "checkpoints": {"bytes": snapshot.checkpoint_bytes, "quota_bytes": snapshot.checkpoint_quota},
        "problems": list(problems(snapshot, runs)),
        "finished": [asdict(trial) for trial in snapshot.finished],
    }

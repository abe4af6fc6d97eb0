"""A search in numbers: what its coordinator, its database and its state file say, and the JSON of ``search status``.

How it looks in a terminal is in search/terminal.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from search.budget import fits
from search.lock import owner_of
from search.paths import Runs
from search.storage import open_storage, storage_errors
from search.study import find_study
from studies import Limit, StudySpec
from studies.axes import WIDTH_SHARE
from trainer.config import ModelSize

STATUS_VERSION = 2
"""Version of the JSON shape of ``search status --json``."""

STATE_SECONDS = 1.0
"""Between two writings of the state file, and between two looks of ``search status --watch``."""

SILENT_EPOCHS, SILENT_SECONDS = 5, 120
"""A worker that has said nothing for so many of its epochs, and for so long, is named as a problem."""


@dataclass(frozen=True)
class TrialView:
    """A finished trial."""

    number: int
    state: str
    value: float | None
    """Validation accuracy at the last finished epoch."""
    epochs: int
    params: dict[str, Any]
    num_params: int | None
    macs: int | None
    seconds: float
    reason: str
    feasible: bool = True
    """Whether its model is within the study's limit, which may have been lowered since."""

    def sentence(self, of_epochs: int) -> str:
        """One line for a log."""
        accuracy = "no epoch finished" if self.value is None else f"{self.value:.2%}"
        why = f" ({self.reason.splitlines()[0]})" if self.reason else ""
        return f"trial {self.number} {self.state.lower()}, {accuracy} at epoch {self.epochs} of {of_epochs}{why}"


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """A worker and what it does."""

    label: str = ""
    """What it was started on, such as "gpu 0" or "cpu:1"; empty where only the database is known."""
    device: str = ""
    """What it found there; "starting" until it has."""
    trial: int | None = None
    attempt: int = 1
    """How many times the trial has been taken up in this launch, this time included."""
    epoch: int = 0
    """Finished epochs."""
    epochs: int = 0
    """Of so many."""
    val_accuracy: float | None = None
    images_per_second: float | None = None
    epoch_seconds: float | None = None
    """What the last epoch took."""
    seconds_since_progress: float | None = None
    """Since it last said anything."""
    memory_bytes: int | None = None
    """Its peak: reserved on the GPU, or resident on the CPU."""


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment."""

    study: str
    budget: int
    finished: tuple[TrialView, ...]
    workers: tuple[WorkerView, ...]
    eta_seconds: float | None
    stopping: bool = False
    epochs: int = 0
    """Of a trial that nothing ends before."""
    problems: tuple[str, ...] = ()
    """What keeps the search from going on as it should, and what it waits for."""
    checkpoint_bytes: int = 0
    """What checkpoints take on this machine, and what they may."""
    checkpoint_quota: float = 0.0
    confirmation: dict[str, Any] | None = None
    """What the confirmation of the best has found so far, see ``search.best.confirmed``."""

    @property
    def best(self) -> TrialView | None:
        """The best feasible completed trial, as ``search.findings.best_of`` has it."""
        complete = [trial for trial in self.finished if trial.state == "COMPLETE" and trial.feasible]
        return min(complete, key=lambda trial: rank(trial.value, trial.num_params, trial.number), default=None)

    def count(self, state: str) -> int:
        """Finished trials in one of Optuna's states."""
        return sum(trial.state == state for trial in self.finished)


def recipe_of(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's sampled settings as a study file names them: its width where it sampled a share of those that fit."""
    recipe = dict(trial.params)
    if recipe.pop(WIDTH_SHARE, None) is not None and "sizes" in trial.user_attrs:
        recipe["width_mult"] = trial.user_attrs["sizes"]["width_mult"]
    return recipe


def rank(value: float | None, num_params: int | None, number: int) -> tuple[float, int, int]:
    """What completed trials are sorted by, best first; the smaller model, then the older trial on a tie."""
    return -(value or 0.0), num_params or 0, number


def is_feasible(trial: FrozenTrial, limit: Limit | None = None) -> bool:
    """Whether a trial's model is within the limit it was trained under and, if one is given, within that of now."""
    size = ModelSize(params=trial.user_attrs.get("num_params", 0), macs=trial.user_attrs.get("macs", 0))
    return all(excess <= 0 for excess in trial.constraints.values()) and fits(size, limit or Limit())


def view_of(trial: FrozenTrial, limit: Limit | None = None) -> TrialView:
    """What people want to know of a finished trial; ``limit``: as ``is_feasible`` takes it."""
    values = trial.intermediate_values
    attributes = trial.user_attrs
    return TrialView(
        number=trial.number,
        state=trial.state.name,
        value=trial.values[0] if trial.values else values[max(values)] if values else None,
        epochs=max(values, default=0),
        params=recipe_of(trial),
        num_params=attributes.get("num_params"),
        macs=attributes.get("macs"),
        seconds=attributes.get("seconds", 0.0),
        reason=attributes.get("reason", ""),
        feasible=is_feasible(trial, limit),
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(num_bytes: float) -> str:
    """Bytes as people say them: "12.3 MB", "1.4 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def typical_epoch_seconds(finished: Sequence[TrialView], workers: Sequence[WorkerView]) -> float | None:
    """What an epoch takes on average; None before one was measured."""
    seconds = sum(trial.seconds for trial in finished)
    epochs = sum(trial.epochs for trial in finished if trial.seconds)
    if epochs:
        return seconds / epochs
    running = [worker.epoch_seconds for worker in workers if worker.epoch_seconds]
    return sum(running) / len(running) if running else None


def eta_seconds(
    spec: StudySpec, finished: Sequence[TrialView], workers: Sequence[WorkerView], seconds_left: float | None = None
) -> float | None:
    """Seconds until the budget is spent, from measured epochs and from how far trials come before they are pruned.

    The share of trials that ends after each epoch is that of Kaplan and Meier, 1958: a trial that still runs tells
    that it came so far. Taking finished trials alone would promise too much, because pruned ones are finished first.

    Args:
        spec: its budget and the length of a trial.
        finished: measured trials.
        workers: with what they do.
        seconds_left: of a budget in hours, after which no trial begins.

    Returns:
        None before an epoch was measured, or without workers.
    """
    epoch_seconds = typical_epoch_seconds(finished, workers)
    if epoch_seconds is None or not workers:
        return None
    running = [worker for worker in workers if worker.trial is not None]
    reached, ended = [0] * (spec.num_steps + 1), [0] * (spec.num_steps + 1)
    for epochs, is_over in [*((t.epochs, True) for t in finished), *((w.epoch, False) for w in running)]:
        last = min(epochs, spec.num_steps)
        ended[last] += is_over
        for epoch in range(last + 1):
            reached[epoch] += 1
    going_on = [1 - end / max(1, count) for end, count in zip(ended, reached, strict=True)]

    def epochs_left(done: int) -> float:
        """Of a trial that goes on after so many."""
        expected, chance = 0.0, 1.0
        for epoch in range(done, spec.num_steps):
            chance *= going_on[epoch] if epoch > done else 1.0
            expected += chance
        return expected

    of_a_trial = epochs_left(0) * epoch_seconds
    left = [
        max(0.0, epochs_left(worker.epoch) * seconds - min(worker.seconds_since_progress or 0.0, seconds))
        for worker in running
        for seconds in [worker.epoch_seconds or epoch_seconds]
    ]
    to_ask = max(0, spec.search.trials - len(finished) - len(running))
    total = max([(sum(left) + to_ask * of_a_trial) / len(workers), *left])
    return total if seconds_left is None else min(total, max([seconds_left + of_a_trial if to_ask else 0.0, *left]))


def problems(snapshot: Snapshot) -> list[str]:
    """What has gone wrong and what to do about it, the newest last, one sentence each."""
    found = []
    failed = [trial for trial in snapshot.finished if trial.state == "FAIL"]
    for trial in sorted(failed, key=lambda trial: trial.number):
        reason = trial.reason.splitlines()[0] if trial.reason else "for no known reason"
        found.append(f"trial {trial.number} failed: {reason}; {_cure(reason, snapshot.study)}")
    for worker in snapshot.workers:
        silent, epoch = worker.seconds_since_progress or 0.0, worker.epoch_seconds
        if epoch and silent > max(SILENT_SECONDS, SILENT_EPOCHS * epoch):
            found.append(
                f"worker {worker.label} has said nothing for {duration(silent)}, its last epoch took "
                f"{duration(epoch)}; see its log in RUNS/{Path('studies', snapshot.study, 'logs')}"
            )
    return [*found, *snapshot.problems]


def _cure(reason: str, study: str) -> str:
    if "signal 9" in reason or "out of memory" in reason.lower():
        return "if memory ran out: fewer workers, a smaller batch_size or image_size"
    return f"all of the reason: search report {study}"


# -- seen from outside


def write_state(file: Path, snapshot: Snapshot, owner: str) -> None:
    """Leave what the database does not know for ``read_snapshot``; the file appears whole.

    Args:
        file: the state file.
        snapshot: the search as it is.
        owner: what ``owner_of`` says meanwhile.
    """
    state = {
        "version": STATUS_VERSION,
        "owner": owner,
        "at": time.time(),
        "eta_seconds": snapshot.eta_seconds,
        "stopping": snapshot.stopping,
        "problems": snapshot.problems,
        "workers": [asdict(worker) for worker in snapshot.workers],
    }
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(json.dumps(state), encoding="utf-8")
    partial.replace(file)


def read_snapshot(name: str, url: URL, runs: Runs) -> tuple[Snapshot, str | None]:
    """A study as its database has it, with the workers of a search on this machine, and who is searching it.

    Raises:
        StorageError: no database, or it cannot be read.
        UsageError: no such study.
    """
    with contextlib.closing(follow(name, url, runs)) as moments:
        return next(moments)


def follow(name: str, url: URL, runs: Runs) -> Generator[tuple[Snapshot, str | None], None, None]:
    """``read_snapshot`` again and again, every STATE_SECONDS, until nobody searches the study any more."""
    with storage_errors(url):
        study, spec = find_study(open_storage(url), name)
        while True:
            held_by = owner_of(name, url, runs)  # first: whoever ends in between has told all by then
            trials = study.get_trials(deepcopy=False)
            snapshot = snapshot_of(spec, trials, read_state(runs.state(name), held_by))
            yield completed(snapshot, study, spec, runs, held_by), held_by
            if held_by is None:
                return
            time.sleep(STATE_SECONDS)


def completed(
    snapshot: Snapshot, study: optuna.Study, spec: StudySpec, runs: Runs, held_by: str | None = None
) -> Snapshot:
    """The same with what is kept beside the trials: what checkpoints take, and what a confirmation has found."""
    from search.best import confirmed  # which words its findings with ``duration`` from here

    return replace(
        snapshot,
        checkpoint_bytes=sum(runs.checkpoints(spec.name).values()),
        checkpoint_quota=spec.faults.checkpoint_gb * 1e9,
        confirmation=confirmed(study, spec, owner=held_by),
    )


def snapshot_of(spec: StudySpec, trials: list[FrozenTrial], told: dict[str, Any] | None = None) -> Snapshot:
    """A search seen from outside, through its database, and through its state file where ``read_state`` gives it."""
    finished = tuple(view_of(trial, spec.limit) for trial in trials if trial.state.is_finished())
    if told is not None:
        aged = time.time() - told["at"]
        workers = [WorkerView(**worker) for worker in told["workers"]]
        workers = [replace(w, seconds_since_progress=(w.seconds_since_progress or 0.0) + aged) for w in workers]
        return Snapshot(
            study=spec.name,
            budget=spec.search.trials,
            finished=finished,
            workers=tuple(workers),
            eta_seconds=told["eta_seconds"],
            stopping=told["stopping"],
            epochs=spec.num_steps,
            problems=tuple(told["problems"]),
        )
    workers = [
        WorkerView(
            trial=trial.number,
            epoch=(epoch := max(trial.intermediate_values, default=0)),
            epochs=spec.num_steps,
            val_accuracy=trial.intermediate_values.get(epoch),
        )
        for trial in trials
        if trial.state == TrialState.RUNNING
    ]
    eta = eta_seconds(spec, finished, workers)
    return Snapshot(spec.name, spec.search.trials, finished, tuple(workers), eta, epochs=spec.num_steps)


def read_state(file: Path, held_by: str | None) -> dict[str, Any] | None:
    """What the study's owner wrote; None on another machine, from another version, or from a killed predecessor."""
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    # With its time: a restarted container often has the process number and the host's name of the one before.
    return state if state.get("version") == STATUS_VERSION and held_by and state.get("owner") == held_by else None


def as_json(snapshot: Snapshot, *, held_by: str | None) -> dict[str, Any]:
    """The documented shape of ``search status --json``."""
    return {
        "version": STATUS_VERSION,
        "study": snapshot.study,
        "held_by": held_by,
        "stopping": snapshot.stopping,
        "budget": snapshot.budget,
        "counts": {state.name: snapshot.count(state.name) for state in TrialState if state.is_finished()},
        "workers": [asdict(worker) for worker in snapshot.workers],
        "best": asdict(snapshot.best) if snapshot.best else None,
        "eta_seconds": snapshot.eta_seconds,
        "confirmation": snapshot.confirmation,
        "checkpoints": {"bytes": snapshot.checkpoint_bytes, "quota_bytes": snapshot.checkpoint_quota},
        "problems": problems(snapshot),
        "finished": [asdict(trial) for trial in snapshot.finished],
    }

"""How far a search has come: workers, problems, and the time that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search.study.confirmation import Confirmation
from search.study.trial import TrialView, rank
from search.words import duration
from studies import StudySpec

SILENT_EPOCHS, SILENT_SECONDS = 5, 120
"""A worker that has said nothing for so many of its epochs, and for so long, is named as a problem."""


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
    confirmation: Confirmation | None = None
    """What the confirmation of the best has found so far."""

    @property
    def best(self) -> TrialView | None:
        """The best feasible completed trial, as ``search.study.trial.best_of`` has it."""
        complete = [trial for trial in self.finished if trial.state == "COMPLETE" and trial.feasible]
        return min(complete, key=lambda trial: rank(trial.value, trial.num_params, trial.number), default=None)

    def count(self, state: str) -> int:
        """Finished trials in one of Optuna's states."""
        return sum(trial.state == state for trial in self.finished)


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
        found.append(f"trial {trial.number} failed: {reason}; {_cure(trial, snapshot.study)}")
    for worker in snapshot.workers:
        silent, epoch = worker.seconds_since_progress or 0.0, worker.epoch_seconds
        if epoch and silent > max(SILENT_SECONDS, SILENT_EPOCHS * epoch):
            found.append(
                f"worker {worker.label} has said nothing for {duration(silent)}, its last epoch took "
                f"{duration(epoch)}; see its log in RUNS/{Path('studies', snapshot.study, 'logs')}"
            )
    return [*found, *snapshot.problems]


def _cure(trial: TrialView, study: str) -> str:
    if trial.failure in ("memory", "killed"):
        return "if memory ran out: fewer workers, a smaller batch_size or image_size"
    return f"all of the reason: search report {study}"

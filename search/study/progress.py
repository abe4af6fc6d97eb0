"""The progress of a search: workers, problems, and the time left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from search.paths import DEFAULT_RUNS, Runs
from search.policy.ladder import Ladder
from search.study.budget import Budget, Spent
from search.study.confirmation import Confirmation
from search.study.ended import Ended
from search.study.exported import Exported
from search.study.noise import Noise
from search.study.trial import TrialView
from search.words import duration
from studies.objective import Objective, words_of

SILENT_EPOCHS, SILENT_SECONDS = 5, 120
"""A worker is reported as a problem if it is silent for this many of its epochs, and for this many seconds."""


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """A worker and its current work."""

    label: str = ""
    """The device it was started on, such as "gpu 0" or "cpu:1"; empty if only the database is known."""
    device: str = ""
    """Name of the device as the worker found it; "starting" until then."""
    trial: int | None = None
    attempt: int = 1
    """How often this launch has started the trial since its last rung, the present start included."""
    epoch: int = 0
    """Finished epochs of the trial's present training."""
    epochs: int = 0
    """Number of epochs of the trial's present training."""
    val_accuracy: float | None = None
    """Validation accuracy after the last epoch; None if only the database is known and has another objective."""
    value: float | None = None
    """Value of the objective after the last epoch; a loss is negated."""
    images_per_second: float | None = None
    epoch_seconds: float | None = None
    """Duration of the last epoch."""
    seconds_since_progress: float | None = None
    """Seconds since the worker's last message."""
    memory_bytes: int | None = None
    """Peak memory of the worker: reserved on a GPU, or resident on the CPU."""
    node: str = ""
    """Name of the worker's machine; empty while the worker waits for one."""
    waiting: bool = False
    """Whether the worker waits for a device, in the queue of a cluster."""


def nodes_in_words(workers: Sequence[WorkerView]) -> str:
    """The number of workers on each machine; "" if all are on one."""
    nodes = Counter(worker.node for worker in workers if worker.node and not worker.waiting)
    if len(nodes) < 2:
        return ""
    waiting = sum(worker.waiting for worker in workers)
    parts = [f"{number:,} on {node}" for node, number in sorted(nodes.items())]
    return ", ".join([*parts, *([f"{waiting:,} waiting"] if waiting else [])])


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment."""

    study: str
    budget: Budget
    spent: Spent
    finished: tuple[TrialView, ...]
    ended: Ended
    """Totals over the finished trials."""
    workers: tuple[WorkerView, ...]
    eta_seconds: float | None
    ladder: Ladder
    """The rungs of the study, and the last step of a trial that runs to its end."""
    objective: Objective
    stopping: bool = False
    problems: tuple[str, ...] = ()
    """Obstacles to the search, one sentence each, with the remedy."""
    checkpoint_bytes: int = 0
    """Bytes that checkpoints take on this machine."""
    checkpoint_quota: float = 0.0
    """Bytes that checkpoints may take on this machine."""
    person: str | None = None
    """Name of the person who began the study; None if unknown."""
    confirmation: Confirmation | None = None
    """The confirmation as it is now; None if it is off, or has no result yet."""
    exported: Exported | None = None
    """The last export, if it has a result on a test split."""
    exported_to: str | None = None
    """Folder of the last export, whether it has a result on a test split or not."""
    noise: Noise | None = None
    """The noise of one training; None while the search runs, and if it is not known."""
    ends_at: float | None = None
    """Planned end of the export, in seconds since 1970; None without ``--export``, and before it is known."""
    judged_on: str = "on validation"
    """The pictures on which a candidate's accuracy is measured, in words, from ``search.words.judged_on``."""

    @property
    def best(self) -> TrialView | None:
        """The best feasible completed trial, ranked as in ``search.study.trial.best_of``."""
        return self.ended.best

    @property
    def best_number(self) -> str:
        """The value of the best trial in words: "97.12%", "macro F1 91.30%"; "-" without one."""
        return words_of_best(self.best, self.objective)

    @property
    def is_confirmed(self) -> bool:
        """Whether the best trial was confirmed, or tested in an export. If not, only its value in the search is
        known."""
        return self.exported is not None or (self.confirmation is not None and self.confirmation.winner is not None)

    @property
    def is_spent(self) -> bool:
        """Whether the budget of the whole study is spent."""
        return self.budget.is_spent(self.spent)

    def count(self, state: str) -> int:
        """Finished trials in one of Optuna's states."""
        return self.ended.states.get(state, 0)


def words_of_best(best: TrialView | None, objective: Objective) -> str:
    """The value of the best trial in words; "-" without one."""
    return "-" if best is None or best.value is None else words_of(best.value, objective)


def typical_epoch_seconds(ended: Ended, workers: Sequence[WorkerView]) -> float | None:
    """Average duration of an epoch; None before one was measured."""
    if ended.step_seconds is not None:
        return ended.step_seconds
    running = [worker.epoch_seconds for worker in workers if worker.epoch_seconds]
    return sum(running) / len(running) if running else None


def eta_seconds(
    budget: Budget,
    spent: Spent,
    ladder: Ladder,
    ended: Ended,
    workers: Sequence[WorkerView],
    paused: Mapping[int, int],
    seconds_left: float | None = None,
) -> float | None:
    """Seconds until the budget is spent, from measured epochs and from the epochs that trials reach before pruning.

    For a budget of compute, the epochs that are left are known. For a budget of trials, they are estimated from the
    expected length of a trial, which may be pruned or paused.

    The share of trials that end after each epoch is estimated as by Kaplan and Meier, 1958: a running trial counts as
    having reached its epoch. Finished trials alone would give too short a time, because pruned ones finish first. A
    paused trial counts as ended. So after each rung, the same share of later trials is assumed to go on.

    Many parameters: the live view and ``search status`` get these values from different places.

    Args:
        budget: the study's budget.
        spent: the spent part of the budget.
        ladder: the rungs, with the length of a trial.
        ended: totals over the finished trials.
        workers: the workers, with their current trials; those that wait for a device do not count.
        paused: last step -> number of paused trials.
        seconds_left: seconds left of a budget in hours; no trial begins after that. None without such a budget.

    Returns:
        The seconds; None before an epoch was measured, or without workers.
    """
    epoch_seconds = typical_epoch_seconds(ended, workers)
    num_workers = sum(not worker.waiting for worker in workers)
    if epoch_seconds is None or num_workers == 0:
        return None
    running = [worker for worker in workers if worker.trial is not None]
    steps = [step_reached(worker, ladder) for worker in running]
    over, in_progress = Counter(ended.steps), Counter(steps)
    over.update(paused)
    reached, ended_at = [0] * (ladder.last_step + 1), [0] * (ladder.last_step + 1)
    # For each epoch: the number of trials that have reached it, and the number of those that have ended there.
    for step, number in [*over.items(), *in_progress.items()]:
        for epoch in range(min(step, ladder.last_step) + 1):
            reached[epoch] += number
    for step, number in over.items():
        ended_at[min(step, ladder.last_step)] += number
    going_on = [1 - end / max(1, count) for end, count in zip(ended_at, reached, strict=True)]

    @cache
    def epochs_left(done: int) -> float:
        """Expected number of further epochs of a trial that has finished ``done`` epochs and goes on."""
        expected, chance = 0.0, 1.0
        for epoch in range(done, ladder.last_step):
            chance *= going_on[epoch] if epoch > done else 1.0
            expected += chance
        return expected

    of_a_trial = epochs_left(0) * epoch_seconds
    left = [
        max(0.0, epochs_left(step) * seconds - min(worker.seconds_since_progress or 0.0, seconds))
        for worker, step in zip(running, steps, strict=True)
        for seconds in [worker.epoch_seconds or epoch_seconds]
    ]
    to_come = (
        [] if budget.trials is None else [(budget.trials + spent.excused - over.total() - len(running)) * of_a_trial]
    )
    if budget.trainings is not None:
        to_come.append((budget.trainings * budget.steps - spent.epochs) * epoch_seconds - sum(left))
    new = max(0.0, min(to_come))
    total = max([(sum(left) + new) / num_workers, *left])
    return total if seconds_left is None else min(total, max([seconds_left + of_a_trial if new else 0.0, *left]))


def step_reached(worker: WorkerView, ladder: Ladder) -> int:
    """The last step of a worker's trial. The length of the present training shows which of the trial's trainings it
    is."""
    stage = ladder.lengths.index(worker.epochs) if worker.epochs in ladder.lengths else 0
    return ladder.steps_before(stage) + worker.epoch


def problems(snapshot: Snapshot, runs: Runs = DEFAULT_RUNS) -> list[str]:
    """A sentence for each thing that has gone wrong, with the remedy: failed trials, silent workers, and
    ``snapshot.problems``."""
    found = []
    failed = [trial for trial in snapshot.finished if trial.state == "FAIL"]
    for trial in sorted(failed, key=lambda trial: trial.number):
        reason = trial.reason.splitlines()[0] if trial.reason else "for no known reason"
        found.append(f"trial {trial.number} failed: {reason}; {_cure(trial, snapshot.study, runs)}")
    for worker in snapshot.workers:
        silent, epoch = worker.seconds_since_progress or 0.0, worker.epoch_seconds
        if epoch and silent > max(SILENT_SECONDS, SILENT_EPOCHS * epoch):
            found.append(
                f"worker {worker.label} has sent nothing for {duration(silent)}, its last epoch took "
                f"{duration(epoch)}; see its log in RUNS/{Path('studies', snapshot.study, 'logs')}"
            )
    return [*found, *snapshot.problems]


def _cure(trial: TrialView, study: str, runs: Runs) -> str:
    if trial.failure in ("memory", "killed"):
        return "if memory ran out: fewer workers, a smaller batch_size or image_size"
    return f"full reason: {runs.command('report', study)}"

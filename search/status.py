"""A search as people see it: the live table, plain lines, and the JSON of ``search status``."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy import URL

from search.paths import Runs
from search.storage import open_storage, storage_errors
from search.study import find_study, owner_of
from studies import StudySpec

STATUS_VERSION = 1
"""Version of the JSON shape of ``search status --json``."""

RECENT_TRIALS = 8
"""Finished trials shown in the live table."""


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

    def sentence(self, of_epochs: int) -> str:
        """One line for a log."""
        accuracy = "no epoch finished" if self.value is None else f"{self.value:.2%}"
        why = f" ({self.reason.splitlines()[0]})" if self.reason else ""
        return f"trial {self.number} {self.state.lower()}, {accuracy} at epoch {self.epochs} of {of_epochs}{why}"


@dataclass(frozen=True)
class WorkerView:
    """A worker and what it does."""

    label: str
    device: str
    trial: int | None
    epoch: int
    epochs: int
    val_accuracy: float | None
    images_per_second: float | None
    attempt: int = 0
    """Times the trial was given to a worker since the launch, this one included."""
    seconds_since_progress: float = 0.0
    """0 while it waits for work."""


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment."""

    study: str
    budget: int
    finished: tuple[TrialView, ...]
    workers: tuple[WorkerView, ...]
    eta_seconds: float | None
    stopping: bool = False
    problems: tuple[str, ...] = ()
    """What keeps the search from going on as it should, and what it waits for."""

    @property
    def best(self) -> TrialView | None:
        """The best completed trial; the smaller model, then the older trial on a tie."""
        complete = [trial for trial in self.finished if trial.state == "COMPLETE" and trial.value is not None]
        return min(
            complete,
            key=lambda trial: (-(trial.value or 0), trial.num_params or 0, trial.number),
            default=None,
        )

    def count(self, state: str) -> int:
        """Finished trials in one of Optuna's states."""
        return sum(trial.state == state for trial in self.finished)


def view_of(trial: FrozenTrial) -> TrialView:
    """What people want to know of a finished trial."""
    values = trial.intermediate_values
    attributes = trial.user_attrs
    return TrialView(
        number=trial.number,
        state=trial.state.name,
        value=trial.values[0] if trial.values else values[max(values)] if values else None,
        epochs=max(values, default=0),
        params=dict(trial.params),
        num_params=attributes.get("num_params"),
        macs=attributes.get("macs"),
        seconds=attributes.get("seconds", 0.0),
        reason=attributes.get("reason", ""),
    )


def eta_seconds(
    spec: StudySpec, finished: tuple[TrialView, ...], workers: list[WorkerView], running: dict[int, float]
) -> float | None:
    """Seconds until the budget is spent, from measured trials, pruned ones included; None before there are any."""
    measured = [trial.seconds for trial in finished if trial.seconds]
    if not measured or not workers:
        return None
    mean = sum(measured) / len(measured)
    to_ask = max(0, spec.search.trials - len(finished) - len(running))
    left = to_ask * mean + sum(max(0.0, mean - seconds) for seconds in running.values())
    return left / len(workers)


def read_snapshot(name: str, url: URL, runs: Runs) -> tuple[Snapshot, str | None]:
    """A study as its database has it, and who is searching it.

    Raises:
        StorageError: no database, or it cannot be read.
        UsageError: no such study.
    """
    with storage_errors(url):
        study, spec = find_study(open_storage(url), name)
        return snapshot_of(spec, study.get_trials(deepcopy=False)), owner_of(name, url, runs)


def snapshot_of(spec: StudySpec, trials: list[FrozenTrial]) -> Snapshot:
    """A search seen from outside, through its database."""
    finished = tuple(view_of(trial) for trial in trials if trial.state.is_finished())
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    workers = [
        WorkerView(
            label="",
            device="",
            trial=trial.number,
            epoch=max(trial.intermediate_values, default=0),
            epochs=spec.num_steps,
            val_accuracy=trial.intermediate_values.get(max(trial.intermediate_values, default=0)),
            images_per_second=None,
        )
        for trial in running
    ]
    eta = eta_seconds(spec, finished, workers, {trial.number: 0.0 for trial in running})
    return Snapshot(spec.name, spec.search.trials, finished, tuple(workers), eta)


def as_json(snapshot: Snapshot, *, held_by: str | None) -> dict[str, Any]:
    """The documented shape of ``search status --json``."""
    return {
        "version": STATUS_VERSION,
        "study": snapshot.study,
        "held_by": held_by,
        "budget": snapshot.budget,
        "counts": {state.name: snapshot.count(state.name) for state in TrialState if state.is_finished()},
        "running": [asdict(worker) for worker in snapshot.workers],
        "best": asdict(snapshot.best) if snapshot.best else None,
        "eta_seconds": snapshot.eta_seconds,
        "finished": [asdict(trial) for trial in snapshot.finished],
    }


def render(snapshot: Snapshot) -> Group:
    """The table of ``search launch`` and ``search status``; fits 80 columns."""
    workers = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("worker", "trial", "epoch", "accuracy", "images/s"):
        workers.add_column(column, justify="left" if column == "worker" else "right")
    for worker in snapshot.workers:
        idle = worker.trial is None
        workers.add_row(
            worker.label or "running",
            "-" if idle else str(worker.trial),
            "-" if idle else f"{worker.epoch}/{worker.epochs}",
            "-" if worker.val_accuracy is None else f"{worker.val_accuracy:.2%}",
            "-" if worker.images_per_second is None else f"{worker.images_per_second:,.0f}",
        )
    trials = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("trial", "state", "epochs", "accuracy", "parameters", "seconds"):
        trials.add_column(column, justify="left" if column == "state" else "right")
    best = snapshot.best
    for trial in sorted(snapshot.finished, key=lambda trial: trial.number)[-RECENT_TRIALS:]:
        style = "bold green" if best and trial.number == best.number else "red" if trial.state == "FAIL" else ""
        trials.add_row(
            str(trial.number),
            trial.state.lower(),
            str(trial.epochs),
            "-" if trial.value is None else f"{trial.value:.2%}",
            "-" if trial.num_params is None else f"{trial.num_params:,}",
            f"{trial.seconds:.0f}",
            style=style,
        )
    parts: list[Any] = [Text(_headline(snapshot), style="bold"), workers]
    if snapshot.finished:
        parts += [Text(""), trials]
    if best is not None:
        recipe = ", ".join(f"{key} {_short(value)}" for key, value in best.params.items())
        parts += [Text(f"\nbest: trial {best.number}, {best.value:.2%}: {recipe}", style="green")]
    parts += [Text(problem, style="red") for problem in snapshot.problems]
    if snapshot.stopping:
        parts += [Text("finishing the epoch; Ctrl-C again to stop now", style="yellow")]
    return Group(*parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would exit, and take the search along."""
        raise BrokenPipeError


class Display:
    """Shows a running search: a live table in a terminal, plain lines elsewhere.

    A terminal that has gone away (a closed ssh session) must not end the search: writing to it stops quietly.
    """

    def __init__(self) -> None:
        self.console = _Console(file=sys.stdout, highlight=False)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._gone = False

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._try(self._live.stop)

    def watch(self, snapshot: Snapshot) -> None:
        """Show the search as it is now."""
        if live := self._live:
            self._try(lambda: live.update(render(snapshot), refresh=True))

    def note(self, line: str) -> None:
        """Say one line, which stays."""
        self._try(lambda: self.console.print(line, soft_wrap=True))

    def _try(self, show: Any) -> None:
        if not self._gone:
            try:
                show()
            except OSError:
                self._gone = True
                # What is still buffered must go somewhere: else the interpreter ends with code 120 for it.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _headline(snapshot: Snapshot) -> str:
    parts = [f"{len(snapshot.finished)} of {snapshot.budget} trials"]
    parts += [f"{snapshot.count('PRUNED')} pruned"] if snapshot.count("PRUNED") else []
    parts += [f"{snapshot.count('FAIL')} failed"] if snapshot.count("FAIL") else []
    if snapshot.eta_seconds is not None and len(snapshot.finished) < snapshot.budget:
        parts.append(f"about {duration(snapshot.eta_seconds)} left")
    return f"{snapshot.study}: {', '.join(parts)}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Trainings for an export, on all of a pool's workers: each to its end, whatever happens to a worker meanwhile.

Workers speak as they do with the coordinator (search/workers/worker.py), but nothing is asked and nothing is
pruned. The caller keeps the results; what a training has reached is in its checkpoint, so an interrupted one goes
on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search.errors import TrainingFailed
from search.words import duration
from search.workers.crew import POLL_SECONDS, Crew, Worker, patience
from search.workers.failures import Setbacks
from search.workers.local import Exit, LocalPool, Message
from studies import Faults
from trainer.config import DataConfig, EpochResult, TrainConfig
from trainer.errors import DiskError


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training."""

    label: str
    """As shown: "trial 3, seed 1 of 2"."""
    config: TrainConfig
    checkpoint: Path
    """Where its state is kept; one that is finished there is not trained again."""
    folds: int = 0
    """Cross-validation, as in the search; 0: one training."""
    fit_on: str = "train"
    """Splits that are trained on, see ``Dataset.trained_on``."""
    start: Path | None = None
    """Checkpoint whose weights it begins with."""

    @property
    def steps(self) -> int:
        """Results it gives: epochs, or folds."""
        return self.folds or self.config.epochs


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    training: Training
    results: tuple[EpochResult, ...]
    """Of its epochs, or folds."""
    diverged: str = ""
    """Why it has no last result, in words."""

    @property
    def seconds(self) -> float:
        """Time its epochs took."""
        return sum(result.seconds for result in self.results)


@dataclass
class _State:
    """A training under way."""

    training: Training
    results: dict[int, EpochResult] = field(default_factory=dict)
    setbacks: Setbacks = field(default_factory=Setbacks)

    @property
    def outcome(self) -> Outcome:
        """What it has come to so far."""
        return Outcome(self.training, tuple(self.results[epoch] for epoch in sorted(self.results)))


class Trainer:
    """Runs trainings on a pool, whose workers stay for the next ones.

    Args:
        pool: where workers run; whoever opened it closes it.
        data: how the pictures are read.
        cache: the decoded pictures.
        faults: how often to try again, and when a worker counts as hanging.
        note: called with one line for each thing worth telling.
        each_turn: called at least every POLL_SECONDS; raises what is to end the trainings.
    """

    def __init__(
        self,
        pool: LocalPool,
        data: DataConfig,
        cache: Path,
        faults: Faults,
        *,
        note: Callable[[str], None],
        each_turn: Callable[[], object] = lambda: None,
    ) -> None:
        self.data, self.cache, self.faults, self.note = data, cache, faults, note
        self.each_turn = each_turn
        self.crew = Crew(pool, faults, note)
        self.waiting: deque[_State] = deque()

    def train(
        self, stage: str, trainings: Sequence[Training], progress: Callable[[str, int, int], None]
    ) -> Iterator[Outcome]:
        """Do all trainings; yield each as soon as it has ended.

        Args:
            stage: what they are called together.
            trainings: what to do.
            progress: called with (stage, epochs done, epochs in all).

        Raises:
            TrainingFailed: a worker cannot start, or a training fails again and again.
            DiskError: no room for a checkpoint.
            Exception: whatever ``each_turn`` raises; every training goes on from its last epoch.
        """
        crew, ended = self.crew, 0
        states = [_State(training) for training in trainings]
        self.waiting.extend(states)
        total = sum(training.steps for training in trainings)
        crew.start(len(trainings))
        while ended < len(trainings):
            self.each_turn()
            for worker in crew.idle():
                if self.waiting:
                    worker.trial = self.waiting.popleft()
                    crew.send(worker.number, self._assignment(worker.trial, states.index(worker.trial)))
            for number, event in crew.events(POLL_SECONDS, self._patience):
                outcome = self._handle(crew.workers[number], event)
                results = [result for state in states for result in state.results.values()]
                progress(stage, len(results), total)
                if outcome is None:
                    continue
                ended += 1
                yield outcome
                mean = sum(result.seconds for result in results) / max(1, len(results))
                at_once = max(1, min(len(crew.workers), len(trainings) - ended))
                left = (total - len(results)) * mean / at_once
                about = f", about {duration(left)} left" if ended < len(trainings) else ""
                self.note(_line(stage, outcome, ended, len(trainings), about))  # what is told is kept by now

    def _assignment(self, state: _State, index: int) -> Message:
        training = state.training
        data: dict[str, Any] = self.data.model_dump(mode="json") | {"folds": training.folds}
        return {
            "type": "assign",
            "trial": index,
            "config": training.config.model_dump(mode="json"),
            "width": None,
            "data": data,
            "cache": str(self.cache),
            "checkpoint": str(training.checkpoint),
            "limit": {},  # counted before, for all members together
            "micro_batches": state.setbacks.micro_batches,
            "fit_on": training.fit_on,
            "start": str(training.start) if training.start else None,
        }

    def _handle(self, worker: Worker, event: Message | Exit) -> Outcome | None:
        state: _State | None = worker.trial
        if isinstance(event, Exit):
            self._on_exit(worker, event)
            return None
        assert state is not None
        if event["type"] == "epoch":
            result = EpochResult(**event["result"])
            state.results[result.epoch], state.setbacks = result, state.setbacks.after_new_epoch()
            self.crew.send(worker.number, {"type": "answer", "go_on": not result.final})
        elif event["type"] == "left":
            worker.trial = None
            return state.outcome
        elif event["type"] == "failed":
            worker.trial = None
            return self._on_failure(worker, state, event["kind"], event["error"])
        return None

    def _on_failure(self, worker: Worker, state: _State, kind: str, error: str) -> Outcome | None:
        label, sentence = state.training.label, error.partition(": ")[2]
        if kind == "disk":
            raise DiskError(sentence)
        if kind == "diverged":
            return replace(state.outcome, diverged=sentence)
        if kind == "user":
            raise TrainingFailed(f"{label} cannot be trained: {error}")
        self._on_setback(state, kind, error, f"{label} failed ({error}); trying again from its last epoch")
        if kind in ("memory", "device"):
            self.crew.replace(worker, error if kind == "device" else None)  # a new process has a clean memory
        return None

    def _on_exit(self, worker: Worker, event: Exit) -> None:
        how = worker.how_it_ended(event)
        state, worker.trial = worker.trial, None
        if state is not None:
            kind = "memory" if event.out_of_memory else "exit"
            note = f"worker {worker.label} {how}; {state.training.label} goes on from its last epoch"
            self._on_setback(state, kind, f"the worker {how}: {event.log_tail}", note)
        failed = self.crew.on_exit(worker, restart=bool(self.waiting))
        if failed:
            raise TrainingFailed(f"{failed} ({how}):\n{event.log_tail}")

    def _patience(self, worker: Worker) -> float:
        state: _State | None = worker.trial
        own = max((result.seconds for result in state.results.values()), default=None) if state else None
        epochs = state.training.config.epochs if state and state.training.folds else 1
        return patience(self.faults, own, None, epochs)

    def _on_setback(self, state: _State, kind: str, error: str, note: str) -> None:
        """Let a training go on from its last epoch, unless this was one setback too many."""
        label, setbacks = state.training.label, state.setbacks.after(kind, self.faults)
        if setbacks is None:
            end = "needs more memory than there is" if kind == "memory" else "cannot be trained"
            raise TrainingFailed(f"{label} {end}: {error}")
        state.setbacks = setbacks
        self.note(setbacks.in_parts(label) if kind == "memory" else note)
        self.waiting.appendleft(state)


def _line(stage: str, outcome: Outcome, ended: int, number: int, left: str) -> str:
    result = f"diverged ({outcome.diverged})" if outcome.diverged else f"{outcome.results[-1].val_accuracy:.2%}"
    return f"{stage}: {outcome.training.label}: {result}; {ended} of {number} trainings done{left}"

"""Runs the trainings of an export on the workers of a pool, each to its end, even if workers fail.

Messages (search/workers/messages.py) and the policy for failures (search/workers/failures.py) are the same as in a
search, but there is no sampler and no pruner. The caller stores the results. An interrupted training goes on from its
checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING, getLogger
from pathlib import Path
from typing import assert_never

from search.console import Say
from search.errors import TrainingFailed
from search.paths import attempt_in, begin_attempt_in
from search.words import count, duration, judged_on
from search.workers.crew import POLL_SECONDS, Crew, Event, Worker, patience
from search.workers.failures import Failure, Setbacks, decide, words_for
from search.workers.messages import Answer, Assign, Epoch, Failed, Left, Started
from search.workers.pool import Exit, Pool
from studies import Faults, Limit
from studies.final import Rerank
from studies.objective import Objective, value_of, words_of
from trainer.config import DataConfig, EpochResult, TrainConfig
from trainer.errors import DiskError
from trainer.results import fold_checkpoint

logger = getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training of an export."""

    label: str
    """Name in messages, such as "trial 3, seed 1"."""
    config: TrainConfig
    trial: int
    """Number of the trial whose recipe the training has."""
    folder: Path
    """Folder of the training's files. A training that is finished there is not repeated."""
    folds: int = 0
    """Number of folds of a cross-validation; 0: a single training."""
    fit_on: str = "train"
    """Splits to train on, see ``Dataset.trained_on``."""
    start: Training | None = None
    """A training that ends before this one, and whose last weights this one begins with."""
    rerank: Rerank | None = None
    """Filters that are drawn again in the weights of ``start``."""
    objective: Objective = "accuracy"
    """The objective whose value the message at the end of the training gives."""

    @property
    def checkpoint(self) -> Path:
        """File of the training's state; another one after each loss of a worker."""
        return attempt_in(self.folder) / "checkpoint"

    @property
    def files(self) -> tuple[Path, ...]:
        """The checkpoints: one, or one for each fold."""
        return tuple(fold_checkpoint(self.checkpoint, number) for number in range(self.folds)) or (self.checkpoint,)

    @property
    def steps(self) -> int:
        """Number of results: epochs, or folds."""
        return self.folds or self.config.epochs


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training."""

    training: Training
    results: tuple[EpochResult, ...]
    """Results of its epochs, or folds."""
    diverged: str = ""
    """Reason in words, if the training diverged; else empty."""

    @property
    def seconds(self) -> float:
        """Duration of its epochs."""
        return sum(result.seconds for result in self.results)


@dataclass
class _State:
    """A training in progress."""

    training: Training
    results: dict[int, EpochResult] = field(default_factory=dict)
    setbacks: Setbacks = field(default_factory=Setbacks)

    @property
    def outcome(self) -> Outcome:
        """The outcome so far."""
        return Outcome(self.training, tuple(self.results[epoch] for epoch in sorted(self.results)))


class TrainingQueue:
    """Runs trainings on the workers of a pool, stage by stage; the workers stay alive between stages.

    Args:
        pool: the pool of workers; the caller closes it.
        data: settings for reading the pictures.
        cache: path of the decoded pictures.
        faults: limits for retries, and for the time without a message of a worker.
        say: called with a line about each event that the user should know.
        each_turn: called at least every POLL_SECONDS; its exceptions end the trainings.
    """

    def __init__(
        self,
        pool: Pool,
        data: DataConfig,
        cache: Path,
        faults: Faults,
        say: Say,
        each_turn: Callable[[], object] = lambda: None,
    ) -> None:
        self.data, self.cache, self.faults, self.say = data, cache, faults, say
        self.each_turn, self.pool = each_turn, pool
        self.crew = Crew(pool, faults, say)
        self.states: list[_State] = []
        """The trainings of this stage; a worker's ``trial`` is an index into this list."""
        self.waiting: deque[int] = deque()
        self.failed: list[tuple[Training, Failure]] = []
        """Trainings that were given up, with the reason."""

    def train(
        self, stage: str, trainings: Sequence[Training], progress: Callable[[str, int, int], None]
    ) -> Iterator[Outcome]:
        """Run all trainings; yield the outcome of each as soon as it has ended.

        Args:
            stage: name of the stage, for messages.
            trainings: the trainings to run.
            progress: called with (stage and unit, epochs or folds done, epochs or folds in all).

        Raises:
            TrainingFailed: a worker cannot start; two trainings that were given up one after the other had the same
                error; or, once all others have ended, a training has no retries left.
            DiskError: no room for a checkpoint.
            Exception: raised by ``each_turn``; next time, every training goes on from its last epoch.
        """
        crew, ended = self.crew, 0
        self.states, self.failed = [_State(training) for training in trainings], []
        self.waiting = deque(range(len(trainings)))
        total = sum(training.steps for training in trainings)
        crew.start(len(trainings))
        while ended + len(self.failed) < len(trainings):
            self.each_turn()
            for worker in crew.idle():
                if self.waiting:
                    worker.trial = self.waiting.popleft()
                    logger.debug("assign %s to %s", self.states[worker.trial].training.label, worker.label)
                    crew.send(worker.number, self._assignment(worker.trial))
            for number, event in crew.events(POLL_SECONDS, self._patience):
                outcome = self._handle(crew.workers[number], event)
                results = [result for state in self.states for result in state.results.values()]
                progress(f"{stage}, in {'folds' if trainings[0].folds else 'epochs'}", len(results), total)
                if outcome is None:
                    continue
                ended += 1
                yield outcome
                mean = sum(result.seconds for result in results) / max(1, len(results))
                parallel = max(1, min(len(crew.workers), len(trainings) - ended))
                seconds = (total - len(results)) * mean / parallel
                left = f", about {duration(seconds)} left" if ended < len(trainings) else ""
                self.say(_line(stage, outcome, ended, len(trainings), left))  # after the caller has stored the outcome
        if self.failed:
            raise self._failed(*self.failed[0])

    def _assignment(self, number: int) -> Assign:
        state = self.states[number]
        training = state.training
        return Assign(
            trial=number,
            config=training.config.model_dump(mode="json"),
            data=self.data.model_copy(update={"folds": training.folds}),
            cache=str(self.cache),
            checkpoint=str(training.checkpoint),
            limit=Limit(),  # checked before, for all members together
            micro_batches=state.setbacks.micro_batches,
            streamed=state.setbacks.streamed,
            fit_on=training.fit_on,
            start=str(training.start.checkpoint) if training.start else None,
            rerank=training.rerank,
        )

    def _handle(self, worker: Worker, event: Event) -> Outcome | None:
        state = None if worker.trial is None else self.states[worker.trial]
        match event:
            case Started():
                pass
            case Epoch(result=result):
                assert state is not None
                if result.epoch not in state.results:  # a resumed training repeats its old results
                    state.results[result.epoch], state.setbacks = result, state.setbacks.after_new_epoch()
                self.crew.send(worker.number, Answer(go_on=not result.final))
            case Left():
                assert state is not None
                worker.trial = None
                return state.outcome
            case Failed(failure=failure):
                if failure.is_crash:
                    failure = replace(failure, log=self.pool.log_tail(worker.number))
                outcome = self._on_failure(worker, failure)
                if failure.spoils_process:
                    self.crew.replace(worker, failure)
                return outcome
            case Exit():
                self._on_exit(worker, event)
            case _:
                assert_never(event)
        return None

    def _on_exit(self, worker: Worker, event: Exit) -> None:
        failure = worker.failure_of(event)
        if event.lost == "lost" and worker.trial is not None:
            begin_attempt_in(self.states[worker.trial].training.folder)
        self._on_failure(worker, failure)
        fatal = self.crew.on_exit(worker, restart=bool(self.waiting))
        if fatal:
            how = failure.sentence.removeprefix("the worker ")
            raise TrainingFailed(f"{fatal} ({how}):\n{event.log_tail}")

    def _on_failure(self, worker: Worker, failure: Failure) -> Outcome | None:
        """Apply the failure policy to a worker's training. Returns its outcome if it diverged."""
        number, worker.trial = worker.trial, None
        if number is None:
            return None
        state = self.states[number]
        decision = decide(failure, state.setbacks, self.faults)
        logger.debug("%s: %s (%s): %s", state.training.label, failure.kind, failure.sentence, decision.verdict)
        match decision.verdict:
            case "again":
                state.setbacks = decision.setbacks
                self.say(words_for(failure, decision, state.training.label, worker.label), WARNING)
                self.waiting.appendleft(number)
            case "wait":
                raise DiskError(failure.sentence)  # once there is room, the same command goes on
            case "give up" if failure.kind == "diverged":
                return replace(state.outcome, diverged=failure.sentence)
            case "give up":
                self._give_up(state.training, failure)
            case _:
                assert_never(decision.verdict)
        return None

    def _give_up(self, training: Training, failure: Failure) -> None:
        """Give up a training and go on with the others; end all if the one that was given up before it had the same
        error."""
        last = self.failed[-1][1].signature if self.failed else None
        self.failed.append((training, failure))
        if failure.signature == last:
            raise self._failed(training, failure)
        self.say(f"{training.label} cannot be trained: {failure.sentence}", WARNING)

    def _failed(self, training: Training, failure: Failure) -> TrainingFailed:
        end = "needs more memory than there is" if failure.kind == "memory" else "cannot be trained"
        return TrainingFailed(f"{training.label} {end}: {failure.reason}")

    def _patience(self, worker: Worker) -> float:
        state = None if worker.trial is None else self.states[worker.trial]
        own = max((result.seconds for result in state.results.values()), default=None) if state else None
        epochs = state.training.config.epochs if state and state.training.folds else 1
        return patience(self.faults, own, None, epochs)


def _result_in_words(outcome: Outcome) -> str:
    """The result of a training, and the pictures on which it was measured."""
    training = outcome.training
    value = words_of(value_of(outcome.results[-1], training.objective), training.objective)
    return f"{value} {judged_on(training.folds)}{' (trained on them)' if training.fit_on != 'train' else ''}"


def _line(stage: str, outcome: Outcome, ended: int, number: int, left: str) -> str:
    training = outcome.training
    result = f"diverged ({outcome.diverged})" if outcome.diverged else _result_in_words(outcome)
    return f"{stage}: {training.label}: {result}; {ended} of {count(number, 'training')} done{left}"

"""Records that coordinator and trials keep in memory: trials in progress, ends of trials, events not stored yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, KeysView, MutableMapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from optuna.trial import FrozenTrial, Trial, TrialState

from search.errors import FailureKind
from search.policy.ladder import PAUSED_AT, PROMOTED_AT, REPEATS
from search.study.trial import FAILURE
from search.study.void import is_repeated
from search.workers.crew import Event
from search.workers.failures import Setbacks
from search.workers.messages import Epoch
from studies.objective import Objective, words_of
from trainer.values import Json

OWN_ATTRIBUTES = (
    "reason",
    FAILURE,
    "num_params",
    "macs",
    "sizes",
    "seconds",
    "seconds_per_epoch",
    "images_per_second",
    "device",
    "micro_batches",
    "streamed",
    "device_errors",
    "warning",
    PAUSED_AT,
    PROMOTED_AT,
)
"""Trial attributes that the search sets. A program that queues a trial may use the same names."""

Verdict: TypeAlias = Literal["go on", "stop", "leave", "complete"]
"""The decision about a trial after an epoch. stop: the pruner ends the trial. leave: the trial leaves its worker at a
rung. complete: the epoch was the last one."""


@dataclass
class Progress:
    """An unfinished trial, with values that Optuna gets only when the trial has finished."""

    trial: Trial
    reported: dict[int, float]
    """Step -> value, in the order of the steps."""
    asked: int = 0
    """The last step at which the pruner was asked, even if an outage prevented its answer."""
    decided: dict[int, bool] = field(default_factory=dict)
    """The last decided step -> whether the trial was pruned or paused there: one entry, or none. Each step is decided
    once."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Duration of each step that was reported to this launch."""
    seconds_before: float = 0.0
    """Seconds of training of the trial in earlier launches."""
    images_per_second: float = 0.0
    attempts: int = 0
    """How often this launch has started the trial since its last rung."""
    crashed: int = -1
    """Number of the last attempt that ended in a crash; -1 if none did."""
    setbacks: Setbacks = field(default_factory=Setbacks)
    stage: int = 0
    """Number of the trial's present training, from 0; 0 if the trial has only one."""
    paused_at: int | None = None
    """The step of the last rung at which the trial was paused."""
    promoted_at: int | None = None
    """The step of the last rung that the trial has left; see ``search.policy.ladder``."""
    is_repeat: bool = False
    """Whether the trial is the repeat, see ``search.running.queued``; a repeat runs to its end."""

    @classmethod
    def of(cls, frozen: FrozenTrial, trial: Trial, pruned: bool | None, *, several: bool) -> Progress:
        """A trial as it is stored.

        Args:
            frozen: the trial.
            trial: the same trial, resumed.
            pruned: the decision about the trial's last step; None if none was made.
            several: whether the trial has several trainings, one for each rung.
        """
        stored = frozen.user_attrs
        return cls(
            trial=trial,
            reported=dict(sorted(frozen.intermediate_values.items())),
            decided={} if pruned is None else {frozen.last_step or 0: pruned},
            setbacks=Setbacks(
                micro_batches=stored.get("micro_batches", 1),
                streamed=stored.get("streamed", False),
                device_errors=stored.get("device_errors", 0),
            ),
            seconds_before=stored.get("seconds", 0.0) if several else 0.0,
            paused_at=stored.get(PAUSED_AT),
            is_repeat=REPEATS in stored,
        )

    @property
    def step(self) -> int:
        """The last step that was reported; 0 before the first."""
        return next(reversed(self.reported), 0)

    @property
    def total_seconds(self) -> float:
        """Seconds of all trainings of the trial so far."""
        return round(self.seconds_before + sum(self.seconds.values()), 3)

    @property
    def facts(self) -> dict[str, Json]:
        """The attributes that are stored when the trial ends."""
        found: dict[str, Json] = {
            "seconds": self.total_seconds,
            "images_per_second": round(self.images_per_second, 1),
        }
        if self.seconds:
            found["seconds_per_epoch"] = round(sum(self.seconds.values()) / len(self.seconds), 3)
        return found

    @property
    def waits_at_rung(self) -> bool:
        """Whether the trial is paused at a rung, or will be paused once its worker is free."""
        return self.paused_at is not None and self.paused_at != self.promoted_at


class InProgress(MutableMapping[int, Progress]):
    """The trials in progress by their numbers, with two sums over them.

    The sums are kept, not computed: each message at a rung and each assignment needs them.

    Args:
        left_of: largest number of steps that a trial still needs up to its next rung, or its end.
    """

    def __init__(self, left_of: Callable[[Progress], int]) -> None:
        self._left_of = left_of
        self._trials: dict[int, Progress] = {}
        self._counted: dict[int, tuple[int, int]] = {}
        """Number -> what a trial adds to ``steps`` and to ``left``."""
        self.steps = 0
        """The steps that the trials have reported."""
        self.left = 0
        """Largest number of steps that they still need up to their next rungs, or their ends."""

    def changed(self, number: int) -> None:
        """Count a trial anew, because it has reported a step, or was decided about."""
        progress, (steps, left) = self._trials.get(number), self._counted.pop(number, (0, 0))
        self.steps, self.left = self.steps - steps, self.left - left
        if progress is not None:
            steps, left = self._counted[number] = progress.step, self._left_of(progress)
            self.steps, self.left = self.steps + steps, self.left + left

    def __getitem__(self, number: int) -> Progress:
        return self._trials[number]

    def __setitem__(self, number: int, progress: Progress) -> None:
        self._trials[number] = progress
        self.changed(number)

    def __delitem__(self, number: int) -> None:
        del self._trials[number]
        self.changed(number)

    def __iter__(self) -> Iterator[int]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def __contains__(self, number: object) -> bool:
        return number in self._trials

    def keys(self) -> KeysView[int]:
        """The numbers. Those of a dict are compared with others much faster than those of a mapping."""
        return self._trials.keys()


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of a trial."""

    state: TrialState
    value: float | None = None
    """The objective of a COMPLETE trial."""
    reason: str = ""
    """Reason why the trial is not COMPLETE, in one line; the end of a log may follow."""
    failure: FailureKind | None = None
    """The kind of failure that ended the trial; None if there was no failure."""

    @property
    def facts(self) -> dict[str, Json]:
        """The attributes that are stored with the trial."""
        return {name: fact for name, fact in {"reason": self.reason, FAILURE: self.failure}.items() if fact}


class ResultChanged(Exception):
    """An epoch that was trained again gave another result; the message has both results."""


def check_repeated(step: str, was: float, value: float, objective: Objective) -> None:
    """Compare the value of a step that was trained again with the reported value.

    Raises:
        ResultChanged: they differ by more than REPEAT_TOLERANCE.
    """
    if not is_repeated(was, value):
        before, now = (words_of(one, objective) for one in (was, value))
        raise ResultChanged(f"{step} was {before} before an interruption and is {now} trained again")


@dataclass
class PendingEvent:
    """An event of a worker that is not stored in the database yet."""

    worker: int
    event: Event
    answered: bool = False

    def can_go_on(self, rungs: Collection[int]) -> bool:
        """Whether the worker can go on without the database: it can after an epoch that is neither the last nor at a
        rung.

        Args:
            rungs: epochs of a training after which the search must decide whether the trial is paused.
        """
        event = self.event
        return isinstance(event, Epoch) and not event.result.final and event.result.epoch not in rungs


def first_of_each(backlog: Iterable[PendingEvent]) -> list[Event]:
    """The first event of each worker."""
    first: dict[int, Event] = {}
    for pending in backlog:
        first.setdefault(pending.worker, pending.event)
    return list(first.values())

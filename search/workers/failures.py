"""What went wrong with a training, a trial's or an export's, and the one policy for what becomes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from search.errors import FailureKind
from studies import Faults

MOST_MICRO_BATCHES = 4
"""Parts that a batch is divided into at most when memory runs out: first two, then four."""

MOST_DEVICE_ERRORS = 3
"""CUDA errors on one device, met by any of its workers, after which it is put aside."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong with a training."""

    kind: FailureKind
    sentence: str
    """What happened, in one line or, where several things are wrong, a line each."""
    log: str = ""
    """The last lines of the worker's log."""

    @property
    def reason(self) -> str:
        """The sentence, and the log below it."""
        return f"{self.sentence}\n{self.log}" if self.log else self.sentence

    @property
    def signature(self) -> str:
        """What tells the same error again in another training, whose paths and numbers are its own."""
        raised = self.kind in ("crash", "device", "memory")
        return re.sub(r"[^\s'\"]*/[^\s'\"]*|\d+", "_", self.sentence) if raised else self.sentence

    @property
    def is_crash(self) -> bool:
        """Whether the process or the machine broke, so that the worker's log tells more."""
        return self.kind in ("memory", "device", "crash", "hang", "killed", "exit")

    @property
    def spoils_process(self) -> bool:
        """Whether the process that met it is not to be used again: only a new one has a clean memory."""
        return self.kind in ("memory", "device")

    @property
    def teaches(self) -> bool:
        """Whether it is the candidate's own fault, so that a sampler should learn from it."""
        return self.kind in ("diverged", "memory")


@dataclass(frozen=True, kw_only=True)
class Setbacks:
    """What has gone wrong with one training so far."""

    retries: int = 0
    """Times it was taken up again since its last new epoch."""
    device_errors: int = 0
    """CUDA errors that it met."""
    micro_batches: int = 1
    """Parts that its batches are divided into, for want of memory."""

    def after_new_epoch(self) -> Setbacks:
        """The training got further: it may be taken up again as often as ever."""
        return replace(self, retries=0)


@dataclass(frozen=True)
class Decision:
    """What becomes of a training that failed."""

    verdict: Literal["again", "wait", "give up"]
    """again: from its last epoch. wait: the same, once there is room on the disk. give up: it ends here."""
    setbacks: Setbacks
    """With this failure counted."""


def decide(failure: Failure, setbacks: Setbacks, faults: Faults, *, has_room: bool = True) -> Decision:
    """The one policy for what goes wrong in a training, of a search and of an export alike.

    Args:
        failure: what went wrong.
        setbacks: what had gone wrong with this training before.
        faults: the study's numbers.
        has_room: whether the disk has room. Where it has and writing fails all the same, waiting would not help.
    """
    match failure.kind:
        case "diverged" | "user" | "changed":
            return Decision("give up", setbacks)
        case "memory":
            if setbacks.micro_batches >= MOST_MICRO_BATCHES:
                return Decision("give up", setbacks)
            return Decision("again", replace(setbacks, micro_batches=2 * setbacks.micro_batches))
        case "device":
            # So many put a device aside: one more was met on another, or in a later launch.
            if setbacks.device_errors >= MOST_DEVICE_ERRORS:
                return Decision("give up", setbacks)
            return Decision("again", replace(setbacks, device_errors=setbacks.device_errors + 1))
        case "disk":
            if not has_room:
                return Decision("wait", setbacks)
            return _retry(setbacks, faults, "wait")
        case "crash" | "hang" | "killed" | "exit":
            return _retry(setbacks, faults, "again")
        case _:
            assert_never(failure.kind)


def _retry(setbacks: Setbacks, faults: Faults, verdict: Literal["again", "wait"]) -> Decision:
    if setbacks.retries >= faults.retries:
        return Decision("give up", setbacks)
    return Decision(verdict, replace(setbacks, retries=setbacks.retries + 1))


def words_for(failure: Failure, decision: Decision, label: str, worker: str) -> str:
    """What people are told of a training that failed and goes on.

    Args:
        failure: what went wrong.
        decision: what was decided.
        label: the training: "trial 3".
        worker: the worker's label: "cpu:0".
    """
    if failure.kind == "memory":
        return (
            f"{label} ran out of memory; it goes on in a new process with {decision.setbacks.micro_batches} "
            "micro-batches a step, the effective batch unchanged"
        )
    if failure.kind in ("hang", "killed", "exit"):
        return f"{failure.sentence.replace('the worker', f'worker {worker}', 1)}; {label} goes on from its last epoch"
    return f"{label} failed ({failure.sentence}); trying again from its last epoch"

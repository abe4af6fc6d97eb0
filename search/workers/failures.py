"""Failures of a training, in a search or in an export, and the one policy for all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from search.errors import FailureKind
from studies import Faults

MOST_MICRO_BATCHES = 4
"""Largest number of parts that a batch is divided into when memory runs out: first two, then four."""

MOST_LOSSES = 10
"""Largest number of losses and preemptions in a row. One more ends a training, or puts a device aside. A new epoch ends
the row of a training; any epoch that its worker sends ends that of a device."""

MOST_DEVICE_ERRORS = 3
"""Number of CUDA errors on one device, in all its workers, after which the device is put aside."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failure of a training."""

    kind: FailureKind
    sentence: str
    """Description of the failure: one line, or a line for each of several mistakes."""
    log: str = ""
    """The last lines of the worker's log."""
    with_pictures: bool = False
    """Whether the pictures were in the GPU's memory when it ran out."""

    @property
    def reason(self) -> str:
        """The sentence, and below it the last lines of the log."""
        return f"{self.sentence}\n{self.log}" if self.log else self.sentence

    @property
    def signature(self) -> str:
        """The sentence without paths and numbers, so that the same error in two trainings has the same signature."""
        raised = self.kind in ("crash", "device", "memory")
        return re.sub(r"[^\s'\"]*/[^\s'\"]*|\d+", "_", self.sentence) if raised else self.sentence

    @property
    def is_crash(self) -> bool:
        """Whether the process or the machine failed, so that the worker's log has more details."""
        return self.kind in ("memory", "device", "crash", "hang", "killed", "exit", "lost", "preempted")

    @property
    def spoils_process(self) -> bool:
        """Whether the process must be replaced: only a new process has a clean memory."""
        return self.kind in ("memory", "device")

    @property
    def teaches(self) -> bool:
        """Whether the candidate itself is at fault, so that the sampler should learn from the failure."""
        return self.kind in ("diverged", "memory")


@dataclass(frozen=True, kw_only=True)
class Setbacks:
    """All failures of one training so far."""

    retries: int = 0
    """Number of retries since the training's last new epoch."""
    losses: int = 0
    """Number of workers that were lost or preempted since the training's last new epoch."""
    device_errors: int = 0
    """Number of CUDA errors in this training."""
    micro_batches: int = 1
    """Number of parts that each batch is divided into, because memory ran out."""
    streamed: bool = False
    """Whether the pictures stay on the host, because the GPU's memory ran out with them in it."""

    def after_new_epoch(self) -> Setbacks:
        """The setbacks after a new epoch: the counts of retries and losses begin again at 0."""
        return replace(self, retries=0, losses=0)


@dataclass(frozen=True)
class Decision:
    """The decision about a training that failed."""

    verdict: Literal["again", "wait", "give up"]
    """again: resume from the last epoch. wait: resume once there is room on the disk. give up: end the training."""
    setbacks: Setbacks
    """The training's setbacks, this failure included."""


def decide(failure: Failure, setbacks: Setbacks, faults: Faults, *, has_room: bool = True) -> Decision:
    """Decide about a training that failed: the one policy, for a search and for an export.

    Args:
        failure: the failure.
        setbacks: the training's failures before this one.
        faults: the study's limits.
        has_room: whether the disk has room. If it has, a checkpoint that cannot be written counts as a retry.
    """
    match failure.kind:
        case "diverged" | "user" | "changed":
            return Decision("give up", setbacks)
        case "memory" if (
            failure.with_pictures and not setbacks.streamed
        ):  # unlike micro-batches, streaming changes no result
            return Decision("again", replace(setbacks, streamed=True))
        case "memory":
            if setbacks.micro_batches >= MOST_MICRO_BATCHES:
                return Decision("give up", setbacks)
            return Decision("again", replace(setbacks, micro_batches=2 * setbacks.micro_batches))
        case "device":
            # MOST_DEVICE_ERRORS put a device aside. A training with so many errors before this one has failed on more
            # than one device, or in more than one launch. So the training is at fault.
            if setbacks.device_errors >= MOST_DEVICE_ERRORS:
                return Decision("give up", setbacks)
            return Decision("again", replace(setbacks, device_errors=setbacks.device_errors + 1))
        case "disk":
            if not has_room:
                return Decision("wait", setbacks)
            return _retry(setbacks, faults, "wait")
        case "lost" | "preempted":  # no retry: neither the candidate nor its worker is at fault
            if setbacks.losses >= MOST_LOSSES:
                return Decision("give up", setbacks)
            return Decision("again", replace(setbacks, losses=setbacks.losses + 1))
        case "crash" | "hang" | "killed" | "exit":
            return _retry(setbacks, faults, "again")
        case _:
            assert_never(failure.kind)


def _retry(setbacks: Setbacks, faults: Faults, verdict: Literal["again", "wait"]) -> Decision:
    if setbacks.retries >= faults.retries:
        return Decision("give up", setbacks)
    return Decision(verdict, replace(setbacks, retries=setbacks.retries + 1))


def words_for(failure: Failure, decision: Decision, label: str, worker: str) -> str:
    """The message about a training that failed and goes on.

    Args:
        failure: the failure.
        decision: the decision about it.
        label: name of the training, such as "trial 3".
        worker: label of the worker, such as "cpu:0".
    """
    if failure.kind == "memory" and failure.with_pictures:
        return f"{label} ran out of memory; it goes on in a new process, with its pictures on the host"
    if failure.kind == "memory":
        return (
            f"{label} ran out of memory; it goes on in a new process with {decision.setbacks.micro_batches} "
            "micro-batches per step, the effective batch unchanged"
        )
    if failure.kind in ("hang", "killed", "exit", "lost", "preempted"):
        return f"{failure.sentence.replace('the worker', f'worker {worker}', 1)}; {label} goes on from its last epoch"
    return f"{label} failed ({failure.sentence}); trying again from its last epoch"

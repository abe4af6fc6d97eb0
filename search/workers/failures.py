"""What has gone wrong with a training, a trial's or an export's, and whether it is taken up once more."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from studies import Faults

MOST_MICRO_BATCHES = 4
"""Parts that a batch is divided into at most when memory runs out: first two, then four."""

MOST_DEVICE_ERRORS = 3
"""CUDA errors on one device, whichever of its workers met them, after which it is put aside."""


@dataclass(frozen=True, kw_only=True)
class Setbacks:
    """What has gone wrong with one training."""

    retries: int = 0
    """Times it was taken up again since its last new epoch."""
    device_errors: int = 0
    """CUDA errors that it met."""
    micro_batches: int = 1
    """Parts that its batches are divided into, for want of memory."""

    def after(self, kind: str, faults: Faults) -> Setbacks | None:
        """With one more of a kind; None where the training is not to be taken up again.

        Args:
            kind: "memory", "device", or anything else, which may happen ``faults.retries`` times without a new epoch.
            faults: the study's numbers.
        """
        if kind == "memory":
            enough = self.micro_batches >= MOST_MICRO_BATCHES
            return None if enough else replace(self, micro_batches=2 * self.micro_batches)
        if kind == "device":
            # So many put a device aside: one more was met on another, or in a later launch.
            enough = self.device_errors >= MOST_DEVICE_ERRORS
            return None if enough else replace(self, device_errors=self.device_errors + 1)
        return None if self.retries >= faults.retries else replace(self, retries=self.retries + 1)

    def after_new_epoch(self) -> Setbacks:
        """The training got further: it may be taken up again as often as ever."""
        return replace(self, retries=0)

    def in_parts(self, label: str) -> str:
        """What people are told of a training that ran out of memory and goes on."""
        return (
            f"{label} ran out of memory; it goes on in a new process with {self.micro_batches} micro-batches a step, "
            "the effective batch unchanged"
        )


def signature_of(error: str) -> str:
    """An error without what differs from trial to trial: paths, whose folders are the trials' own, and numbers."""
    return re.sub(r"[^\s'\"]*/[^\s'\"]*|\d+", "_", error)

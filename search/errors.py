"""Errors for the user, and the one table of their exit codes.

    SearchError
    ├── UsageError        2   unknown study, key or device; bounds that contradict each other
    ├── StorageError      3   the database cannot be reached, read or written
    ├── NothingToExport   6   no trial can be exported
    ├── HeldError         7   another process searches, exports or compares this study
    ├── DeviceHeld        7   another search or export trains on this GPU
    ├── StudyChanged      8   the study file, the data or this program changed since the study was begun, or the study
    │                         was deleted
    ├── ProofFailed       9   an export differs from its card
    ├── ReplayFailed      9   a sampler or pruner differs from the journal
    ├── TrainingFailed   10   every attempt at training ends in the same error
    └── Interrupted      75   stopped by a signal or ``search stop``; the same command goes on from there

The trainer's own errors (trainer/errors.py) have their codes in TRAINER_EXIT_CODES.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from trainer.errors import CheckpointError, ConfigError, DataError, DiskError, DivergedError, LimitError, TrainerError

SECOND_SIGNAL = 130
INTERNAL = 70

FailureKind: TypeAlias = Literal[
    "diverged", "user", "changed", "disk", "memory", "device", "crash", "hang", "killed", "exit", "lost", "preempted"
]
"""Kind of failure of a training; stored with the trial that it ended.

    diverged  the loss is not finite              device  a CUDA error
    user      the settings or the pictures        crash   another exception in the worker
    changed   an epoch trained again differs      hang    no progress, so the crew killed the process
    disk      a checkpoint cannot be written      killed  signal 9 from outside
    memory    an allocation failed, or the        exit    the process ended by itself, or by another signal
              system killed for lack of memory    lost    the node was lost, or the cause is not known
    preempted the cluster took the device back
"""


class SearchError(Exception):
    """Base of this package's errors; the message is one sentence for the user."""

    exit_code = INTERNAL


class UsageError(SearchError):
    """The command asks for something that does not exist or contradicts itself."""

    exit_code = 2


class StorageError(SearchError):
    """The database cannot be reached, read or written."""

    exit_code = 3


class NothingToExport(SearchError):
    """No trial can be exported: none has completed, the named one is not a candidate, or all have diverged."""

    exit_code = 6


class HeldError(SearchError):
    """Another process owns the study."""

    exit_code = 7

    def __init__(self, study: str, owner: str, person: str | None = None, option: str = "") -> None:
        whose = "" if person is None else f", which is {person}'s,"
        own = "" if person is None else ", or search one of your own: --set name=NEW"
        super().__init__(
            f"study {study!r}{whose} is in use by {owner}; wait for it, or end it: search stop {study}{option}{own}"
        )
        self.owner = owner


class DeviceHeld(SearchError):
    """Another search or export trains on a GPU."""

    exit_code = 7


class StudyChanged(SearchError):
    """The study file, the data or this program changed since the study was begun, or the study was deleted."""

    exit_code = 8


class ProofFailed(SearchError):
    """An export differs from its card."""

    exit_code = 9


class ReplayFailed(SearchError):
    """A journal is damaged, or a fresh sampler or pruner gives other answers than those in it."""

    exit_code = 9


class TrainingFailed(SearchError):
    """Training cannot go on; every attempt ends in the same error."""

    exit_code = 10


class Interrupted(SearchError):
    """Stopped by a signal or ``search stop``; the same command goes on from there. After a second signal, the code is
    130."""

    exit_code = 75

    def __init__(self, message: str, *, at_once: bool = False) -> None:
        super().__init__(message)
        if at_once:
            self.exit_code = SECOND_SIGNAL


TRAINER_EXIT_CODES: dict[type[TrainerError], int] = {
    ConfigError: 2,
    DataError: 4,
    LimitError: 5,
    DivergedError: 10,
    CheckpointError: 10,
    DiskError: 11,
}


def exit_code_of(error: Exception) -> int:
    """The documented exit code of an error; INTERNAL for errors that are not in the tables."""
    if isinstance(error, SearchError):
        return error.exit_code
    return next((code for kind, code in TRAINER_EXIT_CODES.items() if isinstance(error, kind)), INTERNAL)


def reason_of(error: BaseException) -> str:
    """An error in words for the journal. For an error of another library, only its name: the text may have a
    password."""
    return str(error) if isinstance(error, SearchError | TrainerError) else type(error).__name__

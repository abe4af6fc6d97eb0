"""Errors of training that the user can correct. A message has the value and, where there is one, the
cure; if there are several problems, a line for each.

TrainerError
├── ConfigError      a setting that is unknown, out of range, or does not fit the others
├── DataError        pictures that are missing, unreadable, or too few
├── LimitError       no candidate fits the limit
├── DiskError        a file that the disk cannot write, for example for lack of room, or cannot read
├── CheckpointError  a checkpoint that is damaged or belongs to another training
└── DivergedError    the loss stopped being finite
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk or one without inodes, of a full quota, and of a limit on a file's size."""


class TrainerError(Exception):
    """Base of all errors of this package; the message is written for the user."""


class ConfigError(TrainerError):
    """A setting is unknown, out of range, or does not fit the others."""


class DataError(TrainerError):
    """Pictures are missing, unreadable, or too few."""


class LimitError(TrainerError):
    """No candidate fits the limit."""


class DiskError(TrainerError):
    """The disk cannot write a file, for example for lack of room, or cannot read it."""


def no_room(error: OSError, what: object) -> DiskError | None:
    """The error for a full disk, with one sentence for the user; None if ``error`` is another error.

    Args:
        error: the system's error, which may name the file.
        what: the file or folder, used if ``error`` does not name it.
    """
    if error.errno not in NO_ROOM:
        return None
    return DiskError(
        f"{error.filename or what} cannot be written: {error.strerror} (the space, the inodes, a quota or "
        "a limit on the size of a file is used up); "
        "make room, and the same command goes on"
    )


class CheckpointError(TrainerError):
    """A checkpoint is damaged or belongs to another training."""


class DivergedError(TrainerError):
    """The loss is no longer finite, so the training cannot go on."""


JOINER = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
"""A character without a width that joins others or keeps them apart, as in Persian words and in emojis."""


def printable(text: str) -> str:
    """The text in a form that is safe to print: file names may contain line breaks, escapes, or invalid bytes."""
    if text.isprintable():
        return text
    joiners = {found.start() for found in JOINER.finditer(text)}
    return "".join(one if one.isprintable() or at in joiners else ascii(one)[1:-1] for at, one in enumerate(text))


def as_lines(problems: Sequence[str]) -> str:
    """At most 50 problems, each on its own line, and the number of further ones."""
    more = [f"... and {len(problems) - 50} more"] * (len(problems) > 50)
    return "".join(f"\n  {printable(line)}" for line in [*problems[:50], *more])

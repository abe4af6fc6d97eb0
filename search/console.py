"""Where commands print: a console that outlives its reader, bars with the time that is left, and --quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trainer.errors import DiskError, no_room, printable

logger = logging.getLogger(__name__)

_quiet = False


class Say(Protocol):
    """Says one line to people, and logs it."""

    def __call__(self, line: str, level: int = logging.INFO, /) -> None:
        """The level is one of logging's; with --quiet, people hear of warnings and of what is worse."""


def is_quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return _quiet


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """While active, commands show results, warnings and errors, and nothing else: ``--quiet``."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


class Terminal(Console):
    """A rich console that falls silent when its reader goes away (``| head``); rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        """Go on without a word."""
        self.quiet = True
        drop_output(self.file)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print.

        Raises:
            DiskError: the output goes to a file, and the disk is full.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._buffer.clear()  # Python keeps it already, and writes it when there is room
            _on_unwritten(error, self.file)

    def say(self, line: str, level: int = logging.INFO, /) -> None:
        """Say one line, which stays; a quiet terminal says warnings only, and on stderr."""
        logger.log(level, "%s", line)
        if not (self.quiet or is_quiet()):
            with contextlib.suppress(DiskError):  # the work goes on, and its result will tell
                self.print(without_controls(line), soft_wrap=True, markup=False)
        elif level >= logging.WARNING:
            tell_aside(line)


@contextlib.contextmanager
def show_progress(
    console: Console, raise_if_stopped: Callable[[], None] = lambda: None
) -> Iterator[Callable[[str, int, int], None]]:
    """Bars with the time that is left, in a terminal: what is given is called with (stage, done, total).

    It calls ``raise_if_stopped`` each time.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=is_quiet() or not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            raise_if_stopped()
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress


def without_controls(text: str) -> str:
    """A text of several lines without what would steer a terminal; names of files and classes are anybody's."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def tell(line: str, stream: IO[str] | None = None) -> None:
    """Print a line; if nobody reads it any more (``| head``), the exit code still tells.

    Raises:
        DiskError: stdout goes to a file, and the disk is full.
    """
    stream = stream or sys.stdout
    try:
        print(without_controls(line), file=stream, flush=True)
    except OSError as error:
        _on_unwritten(error, stream)


def _on_unwritten(error: OSError, stream: IO[str]) -> None:
    full = None if stream is sys.stderr else no_room(error, "the output")
    if full is not None:
        raise full from None
    drop_output(stream)


def remark(line: str, *, aside: bool) -> None:
    """Print a line that is no result, and that ``--quiet`` leaves out; ``aside``: on stderr."""
    if not _quiet:
        tell(line, sys.stderr if aside else sys.stdout)


def tell_aside(line: str) -> None:
    """Print a line on stderr, where there is one."""
    if sys.stderr is not None:
        tell(line, sys.stderr)


def drop_output(stream: IO[str]) -> None:
    """Nobody reads any more: what is still buffered must go somewhere, or the interpreter ends with code 120 for it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

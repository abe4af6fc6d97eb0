"""Output of commands: a console that ignores a broken pipe, progress bars, and --quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from search.words import duration
from trainer.errors import DiskError, no_room, printable

logger = logging.getLogger(__name__)

LINE_SECONDS = 10.0
"""Shortest time between two lines of progress where there is no terminal."""

_quiet = False


class Say(Protocol):
    """Shows one line to the user, and logs it."""

    def __call__(self, line: str, level: int = logging.INFO, /) -> None:
        """``level`` is one of logging's; with --quiet, only warnings and errors are shown."""


def is_quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return _quiet


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """While active, commands show only results, warnings and errors: ``--quiet``."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


class Terminal(Console):
    """A rich console. If its reader ends (``| head``), it prints nothing more; rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Print nothing more, and go on."""
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
            # Otherwise rich would print the text again; the file's own buffer keeps it until there is room.
            self._buffer.clear()
            _on_unwritten(error, self.file)

    def say(self, line: str, level: int = logging.INFO, /) -> None:
        """Show one line permanently; with --quiet, only warnings and errors, on stderr."""
        logger.log(level, "%s", line)
        if not (self.quiet or is_quiet()):
            with contextlib.suppress(DiskError):  # the work goes on; printing its result raises it again
                self.print(without_controls(line), soft_wrap=True, markup=False)
        elif level >= logging.WARNING:
            tell_aside(line)


@contextlib.contextmanager
def show_progress(
    console: Console, raise_if_stopped: Callable[[], None] = lambda: None
) -> Iterator[Callable[[str, int, int], None]]:
    """Progress with the time left: bars in a terminal, a few lines elsewhere. With --quiet, nothing is shown.

    Yields a function to call with (stage, done, total); the stage names what is counted, such as "decoding pictures".
    The function calls ``raise_if_stopped`` each time.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=is_quiet() or not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}
        lines: dict[str, _Lines] = {}

        def progress(stage: str, done: int, total: int) -> None:
            raise_if_stopped()
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
                lines[stage] = _Lines(stage, done)
            bar.update(tasks[stage], completed=done, total=total)
            if bar.disable and not is_quiet() and (line := lines[stage].after(done, total)):
                console.print(line, soft_wrap=True, markup=False, highlight=False)

        yield progress


class _Lines:
    """The progress of a stage in lines, for a log: a line after LINE_SECONDS, then one for each further tenth.

    Args:
        stage: name of the stage.
        done: the part that is done when the stage begins.
    """

    def __init__(self, stage: str, done: int) -> None:
        self.stage, self.first, self.begun = stage, done, time.monotonic()
        self.said, self.share = self.begun, -1.0

    def after(self, done: int, total: int) -> str:
        """The line to show now; "" if there is none."""
        now, share = time.monotonic(), done / max(1, total)
        if done <= self.first or done >= total or now - self.said < LINE_SECONDS or share < round(self.share + 0.1, 9):
            return ""
        self.said, self.share = now, share
        left = (now - self.begun) / (done - self.first) * (total - done)
        return f"{self.stage}: {done:,} of {total:,}, about {duration(left)} left"


def without_controls(text: str) -> str:
    """A text of several lines without control characters, which names of files and classes may contain."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def tell(line: str, stream: IO[str] | None = None) -> None:
    """Print a line. If its reader has ended (``| head``), print nothing more; the command ends with its exit code.

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


def remark(line: str, *, to_stderr: bool) -> None:
    """Print a line that is not a result, unless ``--quiet`` was given."""
    if not _quiet:
        tell(line, sys.stderr if to_stderr else sys.stdout)


def tell_aside(line: str) -> None:
    """Print a line on stderr, if the process has one."""
    if sys.stderr is not None:
        tell(line, sys.stderr)


def drop_output(stream: IO[str]) -> None:
    """Redirect a stream without a reader to /dev/null; otherwise its last flush ends the interpreter with code 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

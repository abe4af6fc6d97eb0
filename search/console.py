"""Where commands print: a console that outlives its reader, and bars with the time that is left."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Terminal(Console):
    """A rich console that falls silent when its reader goes away (``| head``); rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        """Go on without a word."""
        self.quiet = True
        drop_output(self.file)


@contextlib.contextmanager
def show_progress(
    console: Console, raise_if_stopped: Callable[[], None] = lambda: None
) -> Iterator[Callable[[str, int, int], None]]:
    """Bars with the time that is left, in a terminal: what is given is called with (stage, done, total).

    It calls ``raise_if_stopped`` each time.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            raise_if_stopped()
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress


def tell(line: str, stream: IO[str] | None = None) -> None:
    """Print a line; if nobody reads it any more (``| head``), the exit code still tells."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        drop_output(stream)


def drop_output(stream: IO[str]) -> None:
    """Nobody reads any more: what is still buffered must go somewhere, or the interpreter ends with code 120 for it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""Where commands print: a console that outlives its reader, and bars with the time that is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from search.process import drop_output


class Terminal(Console):
    """A rich console that falls silent when its reader goes away (``| head``); rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        """Go on without a word."""
        self.quiet = True
        drop_output(self.file)


@contextlib.contextmanager
def show_progress(
    console: Console, look: Callable[[], None] = lambda: None
) -> Iterator[Callable[[str, int, int], None]]:
    """Bars with the time that is left, in a terminal: what is given is called with (stage, done, total).

    It calls ``look`` each time, which raises what is to end the work.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            look()
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress

"""Where commands print: a console that outlives its reader."""

from __future__ import annotations

from rich.console import Console

from search.process import drop_output


class Terminal(Console):
    """A rich console that falls silent when its reader goes away (``| head``); rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        """Go on without a word."""
        self.quiet = True
        drop_output(self.file)

"""``search status``: a study as another process sees it, in a terminal or as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable

from sqlalchemy import URL

from search.console import Terminal, drop_output, tell
from search.paths import Runs
from search.process import Signalled
from search.study.progress import Snapshot
from search.watch.live import Display, log_line, text_of_snapshot
from search.watch.status import as_json as shape
from search.watch.status import follow, read_snapshot


def show_status(name: str, url: URL, runs: Runs, *, watch: bool, as_json: bool) -> None:
    """``search status``, with ``--watch`` and ``--json``."""
    if watch:
        # Ctrl-C ends this command, not the search.
        with contextlib.suppress(Signalled), contextlib.closing(follow(name, url, runs)) as moments:
            if not as_json:
                show_watched(moments, runs)
                return
            try:
                for snapshot, held_by in moments:
                    print(json.dumps(shape(snapshot, runs, held_by=held_by)), flush=True)
            except BrokenPipeError:  # the reader of the output has ended
                drop_output(sys.stdout)
        return
    snapshot, held_by = read_snapshot(name, url, runs)
    if as_json:
        tell(json.dumps(shape(snapshot, runs, held_by=held_by), indent=2))
    else:
        show_once(snapshot, held_by, runs)


def show_once(snapshot: Snapshot, held_by: str | None, runs: Runs) -> None:
    """``search status``."""
    console = Terminal(highlight=False)
    console.print(text_of_snapshot(snapshot, runs))
    if snapshot.person is not None:
        console.print(f"owner: {snapshot.person}", style="dim", markup=False)
    taken, quota = snapshot.checkpoint_bytes / 1e9, snapshot.checkpoint_quota / 1e9
    console.print(f"checkpoints: {taken:.2f} of {quota:g} GB", style="dim")
    console.print(owner_or_next_command(snapshot, held_by, runs), style="dim", markup=False, soft_wrap=True)


def show_watched(moments: Iterable[tuple[Snapshot, str | None]], runs: Runs) -> None:
    """``search status --watch``: follow a search until it ends; in a log file, a line for each trial that finishes."""
    with Display(runs) as display:
        told: set[int] = set()
        for moment, (snapshot, held_by) in enumerate(moments):
            display.watch(snapshot)
            if not display.console.is_terminal:
                for trial in snapshot.finished if moment else ():
                    if trial.number not in told:
                        display.say(trial.sentence(snapshot.ladder, snapshot.objective))
                if moment == 0 or held_by is None:
                    display.say(log_line(snapshot))
                told = {trial.number for trial in snapshot.finished}
        display.say(owner_or_next_command(snapshot, held_by, runs))


def owner_or_next_command(snapshot: Snapshot, held_by: str | None, runs: Runs) -> str:
    """The process that uses the study, or the next command if there is none."""
    if held_by:
        return f"in use by {held_by}"
    larger = snapshot.budget.larger(snapshot.spent)
    finish = runs.command("stop", snapshot.study, "--finish")
    if snapshot.is_spent and snapshot.best is None:
        return (
            "no process searches it, the budget is spent and no trial has completed; "
            f"{runs.command('report', snapshot.study)} shows the reasons; "
            f"to go on, repeat its search launch with {larger}"
        )
    if snapshot.is_spent:
        words = "no process searches it, the budget is spent; "
        words += (
            f"exported to {snapshot.exported_to}"
            if snapshot.exported_to
            else f"export the best: {runs.command('export-best', snapshot.study)}"
        )
        if paused := snapshot.spent.paused:
            words += f"\n{paused:,} paused; a larger budget ({larger}) continues them, {finish} ends them"
        return words
    unfinished = f", {len(snapshot.workers)} unfinished" if snapshot.workers else ""
    unfinished += f", {snapshot.spent.paused:,} paused" if snapshot.spent.paused else ""
    return f"no process searches it{unfinished}; to go on, repeat its search launch"

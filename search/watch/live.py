"""A search in a terminal of 80 columns: live view, plain lines for a log file."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from search.console import Terminal, drop_output, without_controls
from search.paths import DEFAULT_RUNS, Runs
from search.study.progress import Snapshot, WorkerView, nodes_in_words, problems, typical_epoch_seconds
from search.study.trial import TrialView
from search.watch.table import COLUMNS, Cell, Entry, Table, View, cut, small_bar
from search.words import clock_time, count, duration, judged_on, megabytes, show
from studies import StudySpec
from studies.objective import NAMES, Objective, number_of
from trainer.errors import NO_ROOM

logger = logging.getLogger(__name__)

RECENT_TRIALS = 8
"""Largest number of finished trials that are shown; a terminal with few rows shows fewer."""

SHOWN_PROBLEMS = 3

SHOWN_WORKERS = 16
"""Largest number of workers with a row of their own."""

DRAWN_SECONDS, REDRAWN_SECONDS, DRAWN_APART = 1.0, 5.0, 300
"""Shortest time between two drawings of the live view. Without new lines for the user, it is REDRAWN_SECONDS. With new
lines, it is DRAWN_SECONDS, or DRAWN_APART times the CPU time of the last drawing if that is longer, but at most
REDRAWN_SECONDS."""

WAITED_SECONDS = 0.4
"""If no snapshot has come for so long, the main thread waits for something."""

COLUMN: dict[Objective, str] = NAMES | {"balanced_accuracy": "balanced"}
"""Objective -> head of its column, at most eight letters."""

LOG_SECONDS = 600
"""After this many seconds without a line, a log file gets a progress line."""


def text_of_snapshot(snapshot: Snapshot, runs: Runs = DEFAULT_RUNS, *, rows: int = 40) -> Group:
    """A search at one moment: budget, problems, best, workers, last trials.

    Args:
        snapshot: the search to show.
        runs: the runs folder, for the commands in the text.
        rows: height of the terminal; if it is too low, trials are left out first.
    """
    parts: list[RenderableType] = [Text(headline(snapshot), style="bold")]
    # Not rich's default pink, because red means a problem here.
    share = snapshot.budget.share(snapshot.spent)
    bar = ProgressBar(total=1, completed=share, width=COLUMNS, complete_style="cyan", finished_style="green")
    parts.append(Padding(bar, 0))  # a bar alone does not end its line
    trouble = problems(snapshot, runs)
    for problem in trouble[-SHOWN_PROBLEMS:]:
        parts.append(Entry("problem", problem, "red"))
    if len(trouble) > SHOWN_PROBLEMS:
        more = f"and {len(trouble) - SHOWN_PROBLEMS} more: {runs.command('report', snapshot.study)}"
        parts.append(Entry("", more, "red"))
    if snapshot.stopping:
        parts.append(Entry("", "finishing the epoch; Ctrl-C again to stop now", "yellow"))
    parts += _results(snapshot)
    if snapshot.workers:
        parts += [Text(""), _workers(snapshot)]
    if further := snapshot.workers[SHOWN_WORKERS:]:
        training = sum(worker.trial is not None for worker in further)
        parts += [Text(f"and {len(further):,} further workers, {training:,} of them training", style="dim")]
    room = (
        rows - len(parts) - len(snapshot.workers[:SHOWN_WORKERS]) - 6
    )  # blank lines, headers, and lines that were folded
    if snapshot.finished and room > 0:
        parts += [Text(""), _trials(snapshot, min(RECENT_TRIALS, room))]
    return Group(*parts)


def _results(snapshot: Snapshot) -> list[RenderableType]:
    """The result: first the tested or confirmed value, then the value in the search, then the noise."""
    parts, found = list[RenderableType](), snapshot.confirmation
    if snapshot.exported:
        parts.append(Entry("tested", snapshot.exported.sentence, "bold green"))
    if found and snapshot.is_confirmed:
        parts.append(Entry("", found.sentence, "green" if snapshot.exported else "bold green"))
    if best := snapshot.best:
        size = f", {best.num_params:,} parameters" if best.num_params else ""
        label, style = ("claimed", "green") if snapshot.is_confirmed else ("best", "bold green")
        parts.append(Entry(label, f"trial {best.number}, {snapshot.best_number} {snapshot.judged_on}{size}", style))
        parts.append(Entry("", ", ".join(f"{key} {show(value)}" for key, value in best.params.items()), "green"))
    if found and not snapshot.is_confirmed:
        parts.append(Entry("", found.sentence, "green"))
    if snapshot.noise is not None:
        parts.append(Entry("noise", snapshot.noise.sentence, "dim"))
    return parts


def headline(snapshot: Snapshot) -> str:
    """The budget in one line."""
    parts = [snapshot.budget.describe(snapshot.spent)]
    parts += [f"{snapshot.count('PRUNED'):,} pruned"] if snapshot.count("PRUNED") else []
    parts += [f"{snapshot.count('FAIL'):,} failed"] if snapshot.count("FAIL") else []
    if snapshot.eta_seconds is not None and not snapshot.is_spent:
        parts.append(f"about {duration(snapshot.eta_seconds)} left")
    if snapshot.ends_at is not None:
        parts.append(f"exported {clock_time(snapshot.ends_at)}")
    return f"{snapshot.study}: {', '.join(parts)}"


def _workers(snapshot: Snapshot) -> Table:
    typical = typical_epoch_seconds(snapshot.ended, snapshot.workers)
    objective, workers = COLUMN[snapshot.objective], snapshot.workers[:SHOWN_WORKERS]
    place: dict[str, list[Cell]] = {"device": [cut(worker.device, 14) or None for worker in workers]}
    if nodes_in_words(snapshot.workers):
        place = {"node": ["waiting" if worker.waiting else cut(worker.node, 14) or None for worker in workers]}
    columns: dict[str, list[Cell]] = {
        "worker": [cut(worker.label, 8) or None for worker in workers],
        **place,
        "trial": [_trial_of(worker) for worker in workers],
        "epoch": [None if worker.trial is None else f"{worker.epoch}/{worker.epochs}" for worker in workers],
        "": [
            "" if worker.trial is None else small_bar(epochs_done(worker, typical), worker.epochs) for worker in workers
        ],
        objective: [
            None if worker.value is None else number_of(worker.value, snapshot.objective) for worker in workers
        ],
        "pictures/s": [_or_none(worker.images_per_second, "{:,.0f}") for worker in workers],
        "memory": [megabytes(worker.memory_bytes) if worker.memory_bytes else None for worker in workers],
    }
    if not any(columns["worker"]):  # from the database alone, which has only these values
        columns = {name: columns[name] for name in ("trial", "epoch", "", objective)}
    return Table(columns, left=("", "worker", "device", "node"), gap=1)


def _trial_of(worker: WorkerView) -> str | None:
    if worker.trial is None:
        return None
    return f"{worker.trial} ({worker.attempt})" if worker.attempt > 1 else str(worker.trial)


def _or_none(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def epochs_done(worker: WorkerView, typical_seconds: float | None) -> float:
    """Finished epochs plus the share of the current epoch, which is estimated from its time and always below 1."""
    seconds = worker.epoch_seconds or typical_seconds
    if not seconds or worker.seconds_since_progress is None or worker.epoch >= worker.epochs:
        return worker.epoch
    return worker.epoch + min(0.95, worker.seconds_since_progress / seconds)


def later(worker: WorkerView, seconds: float) -> WorkerView:
    """A worker some seconds later, if nothing is known of it since."""
    waited = worker.seconds_since_progress
    return worker if waited is None else replace(worker, seconds_since_progress=waited + seconds)


def _trials(snapshot: Snapshot, rows: int) -> Table:
    trials = sorted(snapshot.finished, key=attrgetter("number"))[-rows:]
    objective = COLUMN[snapshot.objective]
    columns: dict[str, list[Cell]] = {
        "trial": [str(trial.number) for trial in trials],
        "state": [trial.state.lower() for trial in trials],
        "epochs": [_epochs(trial, snapshot) for trial in trials],
        objective: [None if trial.value is None else number_of(trial.value, snapshot.objective) for trial in trials],
        "parameters": [_or_none(trial.num_params, "{:,}") for trial in trials],
        "time": [duration(trial.seconds) for trial in trials],
    }
    return Table(columns, left=("state",), gap=2, styles=[_style(trial, snapshot.best) for trial in trials])


def _epochs(trial: TrialView, snapshot: Snapshot) -> str:
    """Epochs of a trial: "2+6+18" in a series of trainings."""
    ladder = snapshot.ladder
    if not ladder.anew or not trial.epochs:
        return str(trial.epochs)
    before = ladder.lengths[: ladder.stage_of(trial.epochs)]
    return "+".join(map(str, (*before, ladder.place_of(trial.epochs)[0])))


def _style(trial: TrialView, best: TrialView | None) -> str:
    if best and trial.number == best.number:
        return "bold green"
    return {"FAIL": "red", "PRUNED": "dim"}.get(trial.state, "")


class Display:
    """Shows a running search: a live view in a terminal, plain lines elsewhere.

    If the terminal is closed (an ssh session ends), the search goes on without output. If a log file is on a full disk,
    it gets its lines when there is room. With ``quiet``, only warnings are shown, on stderr.
    """

    def __init__(self, runs: Runs = DEFAULT_RUNS, *, quiet: bool = False) -> None:
        self._runs, self._quiet = runs, quiet
        self.console = Terminal(file=sys.stderr if quiet else sys.stdout, highlight=False)
        self._live, self._view = None, View()
        if self.console.is_terminal and not quiet:
            # Lines on stderr appear above the live view, unless stderr is a file.
            to_terminal = bool(sys.stderr and sys.stderr.isatty())
            self._live = Live(self._view, console=self.console, auto_refresh=False, redirect_stderr=to_terminal)
        self._gone = False
        self._said = time.monotonic()
        self._drawn, self._apart = -math.inf, 0.0
        self._undrawn: Snapshot | None = None
        self._last: tuple[float, Snapshot] | None = None
        """The last snapshot and its time, for ``go_on``."""
        self._drawing = threading.RLock()
        self._lines: list[str] = []
        """Lines that appear above the live view when it is drawn next."""

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with self._drawing:
                if self._undrawn is not None:
                    self._draw(self._live, self._undrawn)
                self._try(self._print_lines)
                self._try(self._live.stop)
        try:
            self.console.file.flush()
        except OSError as error:
            if error.errno not in NO_ROOM:  # a full disk is reported at the end, with an exit code
                drop_output(self.console.file)

    def watch(self, snapshot: Snapshot) -> None:
        """Show the search as it is now."""
        now = time.monotonic()
        if self._live:
            with self._drawing:
                self._undrawn, self._last = snapshot, (now, snapshot)
                if now >= self._due():
                    begun = time.thread_time()
                    self._draw(self._live, snapshot)
                    self._apart = min(REDRAWN_SECONDS, DRAWN_APART * (time.thread_time() - begun))
        elif now - self._said > LOG_SECONDS:
            self.say(log_line(snapshot))

    def go_on(self, *, at_once: bool) -> None:
        """Draw what is due if nobody has called ``watch`` for a while. Another thread calls this.

        Args:
            at_once: whether lines for the user are due now.
        """
        with self._drawing:
            now, live = time.monotonic(), self._live
            if not live or not live.is_started:
                return
            if self._last is None:  # nothing is known of the search yet
                if at_once:
                    self._try(self._print_lines)
                return
            since, last = self._last
            if now > self._due() + 1 or (at_once and self._lines and now - since > WAITED_SECONDS):
                self._draw(live, replace(last, workers=tuple(later(one, now - since) for one in last.workers)))

    def _due(self) -> float:
        return self._drawn + max(DRAWN_SECONDS if self._lines else REDRAWN_SECONDS, self._apart)

    def say(self, line: str, level: int = logging.INFO, /) -> None:
        """Show one line permanently, and log it."""
        self._said = time.monotonic()
        logger.log(level, "%s", line)
        if self._quiet and level < logging.WARNING:
            return
        if self._live:
            self._lines.append(without_controls(line))
        else:  # on a full disk, Python keeps the line in its buffer; rich would then write it twice
            self._try(lambda: print(without_controls(line), file=self.console.file, flush=True))

    def _draw(self, live: Live, snapshot: Snapshot) -> None:
        self._drawn = time.monotonic()
        self._undrawn, self._view.content = None, text_of_snapshot(snapshot, self._runs, rows=self.console.height)
        self._try(self._print_lines if self._lines else live.refresh)  # lines are printed together with the view

    def _print_lines(self) -> None:
        # Taken one by one, because observers say lines in threads of their own meanwhile.
        if lines := [self._lines.pop(0) for _ in range(len(self._lines))]:
            self.console.print("\n".join(lines), soft_wrap=True, markup=False)

    def _try(self, show: Callable[[], object]) -> None:
        if not self._gone:
            try:
                show()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    self._gone = True
                    drop_output(self.console.file)


def log_line(snapshot: Snapshot) -> str:
    """A search at one moment, as one line of a log file."""
    running = [
        f"trial {worker.trial} at epoch {worker.epoch} of {worker.epochs}"
        for worker in snapshot.workers
        if worker.trial is not None
    ]
    return "; ".join([headline(snapshot), *running])


def last_words(spec: StudySpec, snapshot: Snapshot, runs: Runs, *options: str) -> str:
    """The last message of ``search launch`` if the budget or the time is spent: how to go on, and how to export with
    these options."""
    best, budget, spent = snapshot.best, snapshot.budget, snapshot.spent
    counts = f"{spent.paused:,} paused, " if spent.paused and snapshot.is_spent else ""
    counts += f"{snapshot.count('PRUNED')} pruned, {snapshot.count('FAIL')} failed"
    if not snapshot.is_spent:
        words = (
            f"study {spec.name!r} has spent its {spec.search.hours:g} hours with {budget.describe(spent)}, {counts}; "
            "to go on, repeat the command"
        )
    else:
        begun = "" if budget.trainings is None else f"{count(spent.begun, 'candidate')}, "
        words = (
            f"study {spec.name!r} has spent its budget of {budget.words} ({begun}{counts}); to go on, repeat the "
            f"command with {budget.larger(spent)}"
        )
    if best is not None and best.value is not None:
        if snapshot.exported is not None:
            words += f"\ntested: {snapshot.exported.sentence}"
        elif snapshot.confirmation is not None and snapshot.is_confirmed:
            words += f"\n{snapshot.confirmation.sentence}"
        label = "in the search" if snapshot.is_confirmed else "best"
        words += (
            f"\n{label}: trial {best.number}, {snapshot.best_number} {judged_on(spec.data.folds)}; "
            f"export it with: {runs.command('export-best', spec.name, *options)}"
        )
    return words

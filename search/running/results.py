"""Stores the sizes and results of trials, and decides about the trials.

Every write can be repeated: if the database did not acknowledge it, it is repeated later, after a check of what was
stored. The journal gets a line after each acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from search.running.clock import Clock
from search.running.records import InProgress, Progress, Verdict, check_repeated
from search.running.rungs import Rungs
from search.study import events
from search.study.journal import Journal
from search.study.memory import one_transaction, trial_of
from search.study.owned import OwnedStudy
from search.study.sampling import report_step, set_attributes, undo_prune_query
from search.study.trial import step_word
from search.workers.crew import Event
from search.workers.messages import Epoch, Started
from studies.limit import excesses
from studies.objective import value_of
from trainer.config import EpochResult, ModelSize
from trainer.values import Json


class Report(NamedTuple):
    """A step of a trial."""

    progress: Progress
    step: int
    value: float
    asks: bool
    """Whether the pruner decides about the trial; not at a rung, and not at the end."""


class Results:
    """The results of one study's trials.

    Args:
        owned: the study.
        journal: the study's journal.
        progress: the trials in progress.
        rungs: the rungs of the study.
        clock: the time of the launch.
        allows: whether compute and time are left for a trial to go on beyond a rung, given by its step.
    """

    def __init__(
        self,
        owned: OwnedStudy,
        journal: Journal,
        progress: InProgress,
        rungs: Rungs,
        clock: Clock,
        allows: Callable[[Progress, int], bool],
    ) -> None:
        self.study, self.spec, self.objective = owned.study, owned.spec, owned.spec.search.objective
        self.journal, self.progress, self.rungs, self.clock, self.allows = journal, progress, rungs, clock, allows

    def store_size(self, started: Started) -> None:
        """Store a trial's size and, as constraints, its excess over the limit (0 or less if the model is within it)."""
        if self._has_size(started.trial):
            return  # the trial is resumed
        with one_transaction(self.study):
            line = self._write_size(started)
        self.journal.append(line)

    def report(self, number: int, result: EpochResult) -> Verdict:
        """Report an epoch and decide about the trial. A resumed trial reports its old epochs a second time.

        Raises:
            ResultChanged: the result differs from the one reported before.
        """
        progress, value = self.progress[number], value_of(result, self.objective)
        progress.seconds[step := self.rungs.step_of(progress, result.epoch)] = result.seconds
        self.clock.add_step(result.seconds)
        progress.images_per_second = result.images_per_second
        rung = self.rungs.rung_at(progress, step, last=result.final)
        if (was := progress.reported.get(step)) is not None:
            check_repeated(f"{step_word(self.spec)} {step}", was, value, self.objective)
            if step < progress.step:
                return "go on"  # reported and decided before the interruption
            if rung is not None and rung == progress.promoted_at:
                return "go on"  # the trial was paused here and has left the rung
        if step not in progress.decided:
            report, too_late = Report(progress, step, value, self._asks(progress, result, rung)), False
            self._undo_query(progress, step)
            with one_transaction(self.study):
                pruned = self._write(report)
            self._note(report)
            if rung is not None:
                allowed = self.allows(progress, rung)
                pruned, too_late = self.rungs.decide(progress, rung, value, allowed=allowed)
            line = self._decided(report, pruned)
            self.journal.append(line.model_copy(update={"too_late": True}) if too_late else line)
        if progress.decided[step]:
            return "stop" if rung is None else "leave"
        if result.final:
            return "complete" if rung is None else "leave"
        return "go on"

    def store_together(self, news: Iterable[Event]) -> None:
        """Store sizes and epochs of several trials in one transaction and one write to the journal.

        ``store_size`` and ``report`` then find them stored. This leaves to them the epochs at rungs, the last epochs,
        and what was written before, perhaps without an acknowledgement.

        Args:
            news: messages of workers, at most one for each trial.

        Raises:
            UpdateFinishedTrialError, KeyError: another program has finished or deleted one of the trials. Nothing is
                stored.
        """
        known = [one for one in news if isinstance(one, Started | Epoch) and one.trial in self.progress]
        sizes = [one for one in known if isinstance(one, Started) and not self._has_size(one.trial)]
        epochs = [one for one in known if isinstance(one, Epoch)]
        for one in epochs:  # for all before any decision, because each pruner's decision depends on what is stored
            progress = self.progress[one.trial]
            self._undo_query(progress, self.rungs.step_of(progress, one.result.epoch))
        reports = [found for one in epochs if (found := self._ordinary(one))]
        if len(sizes) + len(reports) < 2:
            return  # nothing to gain
        with one_transaction(self.study):
            lines: list[events.Event] = [self._write_size(one) for one in sizes]
            pruned = [self._write(report) for report in reports]
        for report in reports:
            self._note(report)
        lines += map(self._decided, reports, pruned)
        self.journal.append(*lines)

    def _ordinary(self, epoch: Epoch) -> Report | None:
        """The report of an epoch; None if the epoch is at a rung, or the last one, or was written before."""
        progress, result = self.progress[epoch.trial], epoch.result
        step = self.rungs.step_of(progress, result.epoch)
        rung = self.rungs.rung_at(progress, step, last=result.final)
        if result.final or rung is not None or step in (progress.asked, *progress.decided, *progress.reported):
            return None
        return Report(progress, step, value_of(result, self.objective), self._asks(progress, result, rung))

    def _undo_query(self, progress: Progress, step: int) -> None:
        """Reset the pruner if it was asked about a step, and the answer was not acknowledged."""
        frozen = trial_of(self.study, progress.trial.number)
        if progress.asked == step == frozen.last_step and step not in progress.decided:
            undo_prune_query(self.study, frozen)

    def _asks(self, progress: Progress, result: EpochResult, rung: int | None) -> bool:
        return rung is None and not (result.final or self.rungs.pauses or progress.is_repeat)

    def _has_size(self, number: int) -> bool:
        return "macs" in trial_of(self.study, number).user_attrs and number in self.journal.started

    def _write_size(self, started: Started) -> events.Started:
        """Write a trial's size, in the caller's transaction. Returns the line for the journal."""
        trial = self.progress[started.trial].trial
        constraints = excesses(ModelSize(params=started.num_params, macs=started.macs), self.spec.limit)
        stored = trial_of(self.study, trial.number).constraints
        for name, excess in constraints.items():
            if name not in stored:  # Optuna would warn
                trial.set_constraint(name, excess)
        sizes: dict[str, Json] = {"sizes": dict(started.sizes)} if self.spec.sizes_vary else {}
        set_attributes(self.study, trial, sizes | {"num_params": started.num_params, "macs": started.macs})
        return events.Started(trial=trial.number, constraints=constraints)

    def _write(self, report: Report) -> bool | None:
        """Write a step, unless it is reported, and ask the pruner, in the caller's transaction. Returns whether the
        trial is pruned; None if the pruner is not asked."""
        progress, step, value, asks = report
        progress.asked = step
        if step not in progress.reported:
            report_step(self.study, progress.trial, step, value)
        return bool(progress.trial.should_prune()) if asks else None  # the median pruner answers with a numpy bool

    def _note(self, report: Report) -> None:
        """Note that a step is stored."""
        progress = report.progress
        if report.step not in progress.reported:
            progress.reported[report.step] = report.value
            self.progress.changed(progress.trial.number)
            progress.setbacks = progress.setbacks.after_new_epoch()

    def _decided(self, report: Report, pruned: bool | None) -> events.Epoch:
        """Note the decision about a trial. Returns the line for the journal."""
        progress, step, value, _ = report
        progress.decided = {step: bool(pruned)}
        self.progress.changed(progress.trial.number)
        return events.Epoch(trial=progress.trial.number, step=step, value=value, pruned=pruned)

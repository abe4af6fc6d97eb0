"""The rungs of a running search: decides which trials go on at a rung, pauses the others, and promotes paused ones.

Every write can be repeated, as in ``search.running.trials``. The decision at a rung is stored with the epoch. A trial
that does not go on is paused once its worker is free; from then on it may be promoted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from optuna.trial import FrozenTrial

from search.policy.ladder import PAUSED_AT, PROMOTED_AT
from search.running.records import Progress
from search.study.events import Pause, Promote
from search.study.journal import Journal
from search.study.sampling import set_attributes
from search.study.standings import standings_of
from search.study.trial import step_word, words_of_pause
from studies import StudySpec
from studies.objective import words_of
from trainer.values import Json


class Rungs:
    """The rungs of one study; there are none if its pruner does not pause trials.

    Args:
        spec: the study.
        journal: the journal of the study.
    """

    def __init__(self, spec: StudySpec, journal: Journal) -> None:
        self.spec, self.journal = spec, journal
        self.standings = standings_of(spec, [])
        self.ladder = self.standings.ladder
        self.paused: dict[int, Progress] = {}
        """Number of a paused trial -> the trial."""
        self.paused_steps: Counter[int] = Counter()
        """Last step -> number of paused trials."""
        self._promoting: Promote | None = None
        """The promotion that is being stored. If this is still set in the next turn, an outage has interrupted it."""

    def adopt(self, trials: Iterable[FrozenTrial]) -> None:
        """Compute the standings from the trials that the last launch left."""
        self.standings = standings_of(self.spec, trials)

    @property
    def pauses(self) -> bool:
        """Whether trials are paused at rungs. If not, one of Optuna's pruners decides about them."""
        return self.spec.search.pruner == "promote"

    @property
    def within_training(self) -> tuple[int, ...]:
        """The epochs (or folds) within a training after which there is a rung; none if each rung has its own
        training."""
        return () if self.ladder.anew else self.ladder.rungs

    def step_of(self, progress: Progress, epoch: int) -> int:
        """The step of an epoch of a trial's present training."""
        return self.ladder.steps_before(progress.stage) + epoch

    def epochs_of(self, progress: Progress) -> int:
        """Number of epochs (or folds) of a trial's present training."""
        return self.ladder.epochs_of(progress.stage)

    def left_of(self, progress: Progress) -> int:
        """Largest number of steps that a trial in progress still needs to its next rung or its end; for a repeat, to
        its end."""
        if progress.waits_at_rung:
            return 0
        if progress.is_repeat:
            return self.ladder.last_step - progress.step
        ends = self.ladder.steps[progress.stage] if self.ladder.anew else self.ladder.next_step(progress.step)
        return ends - progress.step

    def is_resumable(self, progress: Progress) -> bool:
        """Whether the checkpoint of a trial is of use when the trial goes on.

        If each rung has its own training, it is of use only in the middle of a training. Otherwise it always is.
        """
        between = not progress.waits_at_rung and progress.step > self.ladder.steps_before(progress.stage)
        return between or not self.ladder.anew

    def rung_at(self, progress: Progress, step: int, *, last: bool) -> int | None:
        """The step of the rung that a trial has reached with an epoch; None between rungs, and at the end.

        Args:
            progress: the trial.
            step: the step of the epoch.
            last: whether the epoch is the last one of its training (``patience`` may end a training early).
        """
        if self.ladder.anew:
            return self.ladder.steps[progress.stage] if last and progress.stage < len(self.ladder.rungs) else None
        return step if step in self.ladder.rungs and not last and not progress.is_repeat else None

    def decide(self, progress: Progress, rung: int, value: float, *, allowed: bool) -> tuple[bool, bool]:
        """Decide about a trial at a rung, and store the decision.

        Args:
            progress: the trial.
            rung: the step of the rung.
            value: the trial's value there.
            allowed: whether enough compute and enough time are left for the trial to go on.

        Returns:
            Whether the trial is paused, and whether that is only because no compute or no time is left.
        """
        is_among_the_best = progress.is_repeat or self.standings.arrive(progress.trial.number, rung, value)
        goes_on = is_among_the_best and (allowed or progress.is_repeat)
        facts: dict[str, Json] = {"seconds": progress.total_seconds}  # the trial may be paused until a later launch
        if not goes_on or self.ladder.anew:
            facts[PROMOTED_AT if goes_on else PAUSED_AT] = rung
        set_attributes(progress.trial.study, progress.trial, facts)
        if not goes_on:
            progress.paused_at = rung
        elif self.ladder.anew:
            self.leave_rung(progress, rung)
        return not goes_on, is_among_the_best and not allowed

    def leave_rung(self, progress: Progress, promoted_at: int | None) -> None:
        """Note the last rung that a trial has left. It determines the present training of the trial."""
        progress.promoted_at = promoted_at
        progress.stage = self.ladder.stage_after(promoted_at or 0) if self.ladder.anew else 0
        progress.attempts, progress.crashed = 0, -1  # counted up to the next rung

    def pause(self, progress: Progress) -> None:
        """Pause a trial whose worker is free."""
        number, step = progress.trial.number, progress.paused_at
        assert step is not None
        self.journal.append(Pause(trial=number, step=step))
        self.count_paused(progress)

    def line_of(self, number: int) -> str:
        """One line for a log about a paused trial."""
        progress = self.paused[number]
        assert progress.paused_at is not None
        where = words_of_pause(progress.paused_at, self.ladder, step_word(self.spec))
        return f"trial {number} {where}, {words_of(progress.reported[progress.step], self.spec.search.objective)}"

    def count_paused(self, progress: Progress) -> None:
        """Count a trial as paused."""
        assert progress.paused_at is not None
        self.paused[progress.trial.number] = progress
        self.paused_steps[progress.step] += 1
        self.standings.pause(progress.trial.number, progress.paused_at)

    def promotable(self, at_least: int) -> int:
        """Number of paused trials that may go on now; ``at_least`` as in ``Promotion.next``."""
        return self.standings.promotable(at_least)

    def steps_of_next(self, at_least: int) -> int:
        """Number of steps that the next promoted trial needs up to its next rung, or its end; 0 if there is none."""
        number = self.standings.next(at_least)
        return 0 if number is None else self.steps_beyond(self.paused[number].paused_at or 0)

    def steps_beyond(self, rung: int) -> int:
        """Number of steps from the rung at step ``rung`` to the next rung, or to the end."""
        return self.ladder.next_step(rung) - rung

    def promote(self, at_least: int) -> Progress | None:
        """Promote a paused trial at the highest rung from which one may go on. Returns None if there is none."""
        number = self.standings.next(at_least)
        if self._promoting is None and number is not None:
            step = self.paused[number].paused_at
            assert step is not None
            self._promoting = Promote(trial=number, step=step, at_least=at_least)
        return self.complete_promoting()

    def complete_promoting(self) -> Progress | None:
        """Store the promotion in ``_promoting``, which an outage may have interrupted. Returns the trial, still
        without a worker; None if there is no promotion."""
        if self._promoting is None:
            return None
        event, progress = self._promoting, self.paused.get(self._promoting.trial)
        if progress is not None:  # it is None if another program has finished the trial
            progress.trial.set_user_attr(PROMOTED_AT, event.step)
            self.leave_rung(progress, event.step)
            self.journal.append(event)
            self._no_longer_paused(event.trial)
            self.standings.promote(event.trial)
        self._promoting = None
        return progress

    def order(self) -> list[int]:
        """Numbers of the paused trials that have a checkpoint; the one most likely to be promoted comes first."""
        return [] if self.ladder.anew else self.standings.order()

    def end(self, number: int, value: float | None, *, diverged: bool = False) -> None:
        """Record that a trial has ended: complete with a value, or early."""
        self._no_longer_paused(number)
        if value is not None:
            self.standings.complete(number, value)
        else:
            self.standings.end_early(number, diverged=diverged)

    def _no_longer_paused(self, number: int) -> None:
        if (progress := self.paused.pop(number, None)) is not None:
            self.paused_steps[progress.step] -= 1

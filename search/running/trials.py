"""The trials of a study during a search: asks for, resumes and tells trials.

Every write can be repeated: if the database did not acknowledge it, it is repeated later, after a check of what was
stored. The journal gets a line after each acknowledgement.
"""

from __future__ import annotations

import logging
import shutil
from collections import ChainMap, deque

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from search.paths import Runs
from search.policy.ladder import PROMOTED_AT
from search.process import without_gc
from search.running.allowance import Allowance, allowance_of
from search.running.assignment import assignment_of
from search.running.clock import Clock
from search.running.others import Others
from search.running.queued import Queued
from search.running.records import OWN_ATTRIBUTES, Ending, InProgress, Progress
from search.running.results import Results
from search.running.rungs import Rungs
from search.study import events
from search.study.begun import other_versions, store_versions
from search.study.budget import Budget, Spent
from search.study.ended import Ended
from search.study.journal import Journal
from search.study.marks import Marks, is_foreign, own_trials
from search.study.memory import is_new, one_transaction, read_anew, trial_of, unfinished_numbers
from search.study.owned import OwnedStudy
from search.study.sampling import (
    end_trial,
    new_trial,
    reset_foreign,
    resume_trial,
    set_attributes,
    undo_prune_query,
    why_impossible,
)
from search.study.storage import backend_of
from search.study.study import UUID, check_trials
from search.study.trial import FAILED_UNDER, TrialView, settings_hash, view_of
from search.workers.failures import Decision, Failure
from search.workers.messages import Assign

logger = logging.getLogger(__name__)


class Trials:
    """The trials of one study.

    Args:
        owned: the study.
        space: Optuna distributions of the sampled settings.
        runs: the runs folder, with checkpoints and the journal.
        clock: the time of the launch.
    """

    def __init__(
        self, owned: OwnedStudy, space: dict[str, BaseDistribution], runs: Runs, clock: Clock | None = None
    ) -> None:
        self.study, self.spec, self.space, self.runs = owned.study, owned.spec, space, runs
        self.budget, self.objective = Budget.of(self.spec), self.spec.search.objective
        self.uuid = self.study.user_attrs.get(UUID)
        self.marks = Marks.of(self.study, self.uuid)
        self.journal = Journal(runs.journal(self.spec.name))
        self.orphans: deque[int] = deque()
        """Orphans: trials in progress that no worker trains, in the order in which they go on."""
        self.others = Others(self.study, self.marks, self.journal)
        self.queued = Queued(self.study, self.spec, self.journal)
        self.asking = False
        """Whether a candidate is being asked for; still set in the next turn if an outage has interrupted that."""
        self.finished: dict[int, TrialView] = {}
        self.ended = Ended()
        """Totals over the finished trials."""
        self.rungs = Rungs(self.spec, self.journal)
        self.progress = InProgress(self.rungs.left_of)
        """Number of a trial -> the trial, if a worker trains it, or if it goes on when a worker is free."""
        self.clock = clock or Clock(self.spec.search.hours)
        self.results = Results(owned, self.journal, self.progress, self.rungs, self.clock, self._allows)

    @property
    def spent(self) -> Spent:
        """The spent part of the budget."""
        running = self.progress
        return Spent.so_far(self.ended, len(running), running.steps, self.spec, self.rungs.paused_steps)

    @property
    def slowest(self) -> float:
        """The larger of two durations in seconds: the slowest step of this launch, and the mean step of the slowest
        trial that has ended. 0 if neither is known.
        """
        return max(self.clock.slowest, self.ended.slowest)

    def slowest_of(self, number: int | None) -> float | None:
        """The slowest step of a trial in this launch, in seconds; None if it has none."""
        progress = None if number is None else self.progress.get(number)
        return None if progress is None else max(progress.seconds.values(), default=None)

    @property
    def allowance(self) -> Allowance:
        """The number of trials that may begin or go on now, besides those in progress."""
        return allowance_of(self.budget, self.spent, self.committed, self.rungs, self.clock, idle=not self.progress)

    @property
    def committed(self) -> int:
        """Largest number of steps that the trials in progress still need to reach their next rungs."""
        return self.progress.left

    def _put_first(self, progress: Progress | None) -> None:
        """Make a promoted trial, if there is one, the first orphan."""
        if progress is not None:
            self.progress[progress.trial.number] = progress
            self.orphans.appendleft(progress.trial.number)

    @without_gc()
    def adopt(self) -> list[str]:
        """Take over the trials that the last launch left. Finished trials count; RUNNING trials are paused, or orphans.

        Returns:
            Lines for the user, about packages whose versions have changed (unfinished trials store that as a warning),
            and about differences between database and journal.
        """
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            if not self.marks.is_asked(frozen) and why_impossible(frozen, self.space) is None:
                frozen = reset_foreign(self.study, frozen, OWN_ATTRIBUTES)  # before it is written to the journal
            if (frozen.number, frozen.last_step) not in self.journal.decided:
                undo_prune_query(self.study, frozen)
        trials = self.study.get_trials(deepcopy=False)
        self.queued.adopt(trials)
        told, gap = set(self.journal.told), self.journal.begin(self.spec, self.space, trials, self.uuid)
        self.others.adopt(trials, told | gap.void.keys())
        for number in gap.others:
            self._forget(number)
        running = {str(frozen.number) for frozen in trials if frozen.state == TrialState.RUNNING}
        for folder in self.runs.trials(self.spec.name).glob("*"):
            if folder.name not in running:
                shutil.rmtree(folder, ignore_errors=True)
        for frozen in own_trials(self.study):
            if frozen.state.is_finished():
                self._end(frozen)
        self.clock.adopt(self.finished.values())
        self.rungs.adopt(own_trials(self.study))
        for frozen in trials:
            if frozen.state == TrialState.RUNNING:
                self._resume(frozen)
        others = other_versions(self.study)
        for progress in (*self.progress.values(), *self.rungs.paused.values()) if others else ():
            progress.trial.set_user_attr("warning", f"begun with other versions: {others}")
        store_versions(self.study)
        notes = [f"other versions than at the last launch: {others}; that may change results"] if others else []
        return [*notes, *gap.sentences()]

    def next(self) -> int | None:
        """The next trial to train: an orphan, else a promoted trial, else a new candidate.

        The random numbers for a new candidate depend only on the study's seed and the trial's number. None if no trial
        may begin, or if another program queued the candidate with impossible values, so that it has failed."""
        allowance = self.allowance
        if not self.orphans and allowance.promotions:
            self._put_first(self.rungs.promote(allowance.at_least))
        elif not self.orphans and allowance.candidates:
            self.asking = True
            if not self._unknown():
                self.queued.repeat(self.space, self.budget, self.spent, self.committed + self.rungs.ladder.last_step)
                new_trial(self.study)
            self.complete_asking()
        return self.orphans.popleft() if self.orphans else None

    def complete_asking(self) -> None:
        """Complete a promotion or the creation of a candidate, perhaps after an outage. The trial becomes an orphan.

        In the database, the trial is RUNNING, perhaps without some of its settings. These are drawn now, before a later
        result is stored, because the sampler would learn from that result. If a reply of the database was
        lost, it may have created two trials. The first one is resumed, so that a replay has the same order.
        """
        self._put_first(self.rungs.complete_promoting())
        if self.asking:
            for frozen in self._unknown()[:1]:
                self.lose_foreign(below=frozen.number)
                self._resume(frozen)
            self.asking = False

    def epochs_of(self, number: int | None) -> int:
        """Epochs of the present training of a trial; those of a full training if it is not in progress."""
        progress = self.progress.get(number) if number is not None else None
        return self.spec.num_steps if progress is None else self.rungs.epochs_of(progress)

    def assignment(self, number: int, cache: str) -> Assign:
        """The assignment of a trial; ``cache`` is the path of the decoded pictures."""
        return assignment_of(self.progress[number], self.spec, self.rungs.ladder, self.runs, cache)

    def _allows(self, progress: Progress, rung: int) -> bool:
        """Whether compute and time are left for a trial to go on beyond a rung."""
        others = self.committed - self.rungs.left_of(progress)
        return self.clock.allows(self.rungs.steps_beyond(rung)) and self.budget.allows_compute(self.spent, others)

    def release(self, number: int) -> bool:
        """Release a trial that no worker trains: it becomes an orphan, or is paused. Returns whether it is paused."""
        progress = self.progress.get(number)
        if progress is None:
            return False
        if not self.rungs.is_resumable(progress):
            self._forget(number)  # its next training begins anew
        if progress.waits_at_rung:
            del self.progress[number]
            self.rungs.pause(progress)
        else:
            self.orphans.appendleft(number)
        return progress.waits_at_rung

    def finish(self, number: int, device: str, ending: Ending) -> TrialView:
        """Tell Optuna how a trial ended; nothing can be added to it after that.

        Raises:
            UpdateFinishedTrialError: another program has finished the trial, see ``lose_foreign``.
        """
        progress = self.progress[number]
        trial, frozen = progress.trial, self._frozen(progress.trial)
        if is_foreign(frozen):
            raise UpdateFinishedTrialError(frozen.user_attrs["reason"])
        if not frozen.state.is_finished():  # if it is, the end was stored before, but the reply was lost
            facts = progress.facts | {"device": device} | ending.facts
            if not progress.seconds and not progress.reported and ending.state != TrialState.COMPLETE:
                facts[FAILED_UNDER] = settings_hash(self.spec)
            with one_transaction(self.study):
                set_attributes(self.study, trial, facts)
                self.marks.mark_ended(self.study, frozen, ending.state, ending.value)
                end_trial(self.study, trial, ending.value, ending.state)
            frozen = self._frozen(trial)
        state, why, kind = ending.state.name, ending.reason, ending.failure
        self.journal.append(events.Tell(trial=number, state=state, value=frozen.value, reason=why, failure=kind))
        if not progress.is_repeat:
            self.rungs.end(number, ending.value, diverged=ending.failure == "diverged")
        del self.progress[number]
        view = self._end(frozen)
        if self.ended.best is view:
            self.runs.keep_confusion(self.spec.name, number)
        self._forget(number)
        return view

    def fail_unknown(self) -> None:
        """Fail the surplus trials that a broken connection has created; they were never trained."""
        for frozen in self._unknown():
            self.marks.mark_ended(self.study, frozen, TrialState.FAIL)
            self.study.tell(frozen.number, state=TrialState.FAIL)
            self.journal.append(events.Tell(trial=frozen.number, state="FAIL", value=None, reason="created twice"))

    def record_failure(self, number: int, worker: str, failure: Failure, decision: Decision) -> None:
        """Log a failure of a trial and the decision about it. A crash gets a journal line, once for each attempt."""
        progress = self.progress[number]
        logger.debug("trial %d: %s (%s): %s", number, failure.kind, failure.sentence, decision.verdict)
        if failure.is_crash and progress.crashed < progress.attempts:  # otherwise the line was written before an outage
            progress.crashed = progress.attempts
            reason = failure.sentence.splitlines()[0]
            self.journal.append(events.Crash(trial=number, worker=worker, kind=failure.kind, reason=reason))

    def store_setbacks(self, number: int, decision: Decision) -> None:
        """Store the setbacks of a trial that goes on, in memory and, for later launches, in the database."""
        progress, setbacks = self.progress[number], decision.setbacks
        for name in ("micro_batches", "streamed", "device_errors"):
            if getattr(setbacks, name) != getattr(progress.setbacks, name):
                progress.trial.set_user_attr(name, getattr(setbacks, name))
        progress.setbacks = setbacks

    def _unknown(self) -> list[FrozenTrial]:
        """RUNNING trials of the database that are not in memory: they were asked for, and the reply was lost."""
        unknown = unfinished_numbers(self.study) - self.progress.keys() - self.rungs.paused.keys()
        found = [trial_of(self.study, number) for number in sorted(unknown) if number not in self.finished]
        return [frozen for frozen in found if frozen.state == TrialState.RUNNING]

    def _resume(self, frozen: FrozenTrial) -> None:
        """Make a RUNNING trial an orphan, or count it as paused; if another program queued impossible values, fail it.

        Raises:
            StudyChanged: another program's trial has an axis that Optuna cannot combine with the study's axis.
        """
        try:
            if not self.marks.is_asked(frozen):
                frozen = frozen if is_new(self.study, frozen) else read_anew(self.study, frozen)
                if (reason := why_impossible(frozen, self.space)) is not None:
                    self._end(self.others.refuse(frozen, reason))
                    return
                frozen = reset_foreign(self.study, frozen, OWN_ATTRIBUTES)
                self.others.note_queued(frozen)
            with one_transaction(self.study):
                self.marks.mark_asked(self.study, frozen)
                trial = resume_trial(self.study, self.spec, frozen, self.space)
        except UpdateFinishedTrialError:
            return  # another program has finished the trial; the next turn reports that
        except ValueError:
            check_trials(self.spec, backend_of(self.study), self.space)  # a foreign trial may have another axis
            raise
        if self.journal.asked.get(trial.number) != trial.params:
            self.journal.append(events.Ask(trial=trial.number, params=trial.params))
        pruned = self.journal.decided.get((frozen.number, frozen.last_step or 0))
        progress = Progress.of(frozen, trial, pruned, several=self.rungs.ladder.anew)
        self.rungs.leave_rung(progress, frozen.user_attrs.get(PROMOTED_AT))
        if progress.waits_at_rung:
            self.rungs.count_paused(progress)
        else:
            self.progress[frozen.number] = progress
            self.orphans.append(frozen.number)

    def lose_foreign(self, below: int = 0) -> bool:
        """Give up trials that another program has finished or deleted; a replay counts them as failed.

        Args:
            below: the number of the next candidate; the journal needs a line for each trial before it.

        Returns:
            Whether one of them was unfinished for the search.
        """
        unfinished = ChainMap(self.progress, self.rungs.paused)
        lost = self.others.log_finished(below, unfinished)
        was_unfinished = any(map(unfinished.__contains__, lost))
        for number in lost:
            self.progress.pop(number, None)
            self.rungs.end(number, None)
        self.orphans = deque(number for number in self.orphans if number not in lost)
        return was_unfinished

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return trial_of(self.study, trial.number)

    def _end(self, frozen: FrozenTrial) -> TrialView:
        view = self.finished[frozen.number] = view_of(frozen, self.spec.limit)
        self.ended = self.ended.plus(view)
        self.clock.note_end(view)
        return view

    def _forget(self, number: int) -> None:
        shutil.rmtree(self.runs.trial(self.spec.name, number), ignore_errors=True)

"""The coordinator: the one process that owns a study. ask -> assign -> report, prune -> tell.

Optuna stores the state of each trial. The coordinator also knows the trial's worker and failures:

    WAITING --ask--> RUNNING --last epoch--> COMPLETE
                     RUNNING --pruner, loss not finite, or too large for the memory--> PRUNED
                      |   ^
      worker dies, or |   | resumed under its own number,
      search stops    v   | from its last epoch
                   no worker --no retry left--> FAIL

    With the pruner "promote" a trial may also be paused at a rung, still RUNNING, until it is promoted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING
from typing import assert_never

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from search.errors import HeldError, StudyChanged, TrainingFailed, reason_of
from search.paths import Runs, begin_attempt_in
from search.plan.prepare import room_needed
from search.plan.space import Bounds
from search.running.clock import Clock
from search.running.moment import line_of, problems_of, snapshot_of
from search.running.pace import QUIET_SECONDS, SHOWN_APART, Pace, pace_of_turns
from search.running.quota import Quota
from search.running.records import Ending, PendingEvent, ResultChanged, first_of_each
from search.running.trials import Trials
from search.study import events
from search.study.memory import looking_once
from search.study.outage import Outage
from search.study.owned import OwnedStudy
from search.study.postgres import ANSWER_SECONDS, CONNECT_SECONDS
from search.study.progress import Snapshot
from search.study.storage import check_writable, wait_briefly
from search.study.trial import OUT_OF_MEMORY, step_word
from search.watch.observers import Audience
from search.workers.crew import POLL_SECONDS, Crew, Worker, patience
from search.workers.failures import Failure, decide, words_for
from search.workers.messages import Answer, Epoch, Failed, Left, Started
from search.workers.pool import Exit, Pool
from studies.objective import value_of
from trainer.config import EpochResult
from trainer.errors import DiskError


class Coordinator:
    """Runs one study on a pool of workers until its budget is spent, or until it is told to stop.

    Many parameters: the parts of a search.

    Args:
        owned: the study.
        bounds: the study's search space, and the known recipes to try first.
        pool: the pool of workers.
        runs: the runs folder, for checkpoints, logs and the journal.
        cache: path of the decoded pictures, for the workers.
        audience: observers of the search.
        clock: the time of the launch.
    """

    def __init__(
        self, owned: OwnedStudy, bounds: Bounds, pool: Pool, runs: Runs, cache: str, audience: Audience, clock: Clock
    ) -> None:
        self.owned, self.spec, self.known, self.runs, self.cache = owned, owned.spec, bounds.known, runs, cache
        self.pool, self.audience, self.say, self.clock = pool, audience, audience.say, clock
        self.room_needed = room_needed(self.spec, bounds, len(pool.devices))
        """Bytes that all checkpoints need, existing ones included. On a full disk, the search waits for this room."""
        self.crew, self.trials = Crew(pool, self.spec.faults, self.say), Trials(owned, bounds.space, runs, clock)
        self.journal = self.trials.journal
        self.quota = Quota(runs, self.spec, self.trials.rungs, self.say)
        self.stopping = self.killed = self.out_of_time = False
        self._stop_announced = threading.Lock()  # taken once the user knows that the search stops, or need not be told
        self.deadline = math.inf
        self.outage = Outage(self.say)
        self.backlog: deque[PendingEvent] = deque()
        """Events of workers that are not stored in the database yet."""
        self.no_room: str | None = None
        self.last_failure: str | None = None
        self.fatal: BaseException | None = None
        self.each_turn: Callable[[], object] = lambda: None
        """Called in each turn. It may add workers or drain them."""
        self.looking, self.showing = pace_of_turns(len(pool.devices)), Pace(QUIET_SECONDS, SHOWN_APART)
        self.assign_seconds, self._more_to_assign = POLL_SECONDS, False
        """``assign_seconds``: after this many seconds of a turn, no further worker gets a trial before the next turn.
        ``_more_to_assign``: whether idle workers were left for the next turn."""

    # -- from outside

    def stop(self, grace_seconds: float = math.inf) -> None:
        """Let every worker finish its epoch, for at most ``grace_seconds``. A second call ends the search immediately.

        Safe in a signal handler.
        """
        self.killed = self.stopping
        self.stopping = True
        self.deadline = min(self.deadline, time.monotonic() + grace_seconds)

    def announce(self) -> None:
        """Tell the user once that the search stops. Another thread calls this if a turn waits for the database."""
        silent = self.killed or self.fatal or self.out_of_time
        if self.stopping and not silent and self._stop_announced.acquire(blocking=False):
            self.say("finishing the epoch; Ctrl-C again to stop now")

    def run(self) -> bool:
        """Search. Returns True if the budget is spent or the time is up; False if the search was told to stop.

        Raises:
            TrainingFailed: workers cannot start, or the same error ended two trials in a row.
            DiskError: checkpoints cannot be written although there is room. The next launch goes on with the trials.
            HeldError, StudyChanged: another process took over the study or deleted it.
            StorageError: an outage of the database lasted longer than ``faults.storage_minutes``.
        """
        try:
            self._search()
        except BaseException as error:
            self.fatal = self.fatal or error
            self.journal.is_taken_over = isinstance(error, HeldError | StudyChanged)
            raise
        finally:
            self._stop_announced.acquire(blocking=False)
            self.crew.close(patience_seconds=0 if self.killed or time.monotonic() >= self.deadline else 5)
            ended = "time is up" if self.out_of_time else "told to" if self.stopping else "budget spent"
            self.journal.append(events.Stop(reason=reason_of(self.fatal) if self.fatal else ended))
        if self.fatal:
            raise self.fatal
        return not self.stopping or (self.out_of_time and not self.killed)

    def _search(self) -> None:
        try:
            self.begin()
            while self.turn():
                pass
        except LookupError:  # Optuna's error for a trial that does not exist
            self.owned.check()
            raise
        self.quota.keep(at_once=True)
        self.audience.watch(self.snapshot())

    def begin(self) -> None:
        """Adopt trials that the last launch left unfinished, queue the known recipes, start the workers."""
        self.owned.check()
        with looking_once(self.trials.study):
            notes = self.trials.adopt()
        for line in notes:
            self.say(line, WARNING)
        if self.trials.orphans and self._left_to_do():
            numbers = ", ".join(map(str, self.trials.orphans))
            self.say(f"going on with trial {numbers}, left unfinished by the last launch")
        self.trials.queued.enqueue(self.known)
        self.quota.keep(at_once=True)
        wait_briefly(self.trials.study)
        self.crew.start(self._left_to_do())

    def turn(self) -> bool:
        """One turn: handle events, give work to idle workers, read messages. Returns False if nothing is left to do."""
        if self.runs.stop_requested(self.spec.name) and not self.stopping:
            self.stop()
        self.each_turn()
        if self.clock.must_end and not self.stopping and self.trials.spent.complete:
            self.out_of_time = True
            self.stop(self.spec.faults.grace_seconds)
        # Another attempt to reach a vanished server could last beyond the deadline.
        too_late = self.outage.is_on and time.monotonic() + ANSWER_SECONDS + CONNECT_SECONDS > self.deadline
        trials = self.trials
        checks = (self.owned.check, partial(check_writable, trials.study), trials.lose_foreign, trials.complete_asking)
        steps = (self._catch_up, self._assign, self._fail_surplus, self._tell_of_others)
        minutes, news = self.spec.faults.storage_minutes, bool(self.backlog)
        is_needed = news or self.outage.is_on or not self.crew.training() or next(self.crew.idle(), None) is not None
        if self.looking.is_due(news=is_needed) or self._more_to_assign or (self.stopping and news):
            # What other programs change meanwhile is seen in the next turn.
            with self.looking.working(), looking_once(self.trials.study):
                if too_late or not self.outage.with_database(*checks, *steps, most_minutes=minutes):
                    self._go_on_without_storage()
        if self.killed or time.monotonic() >= self.deadline or not self._goes_on():
            return False
        self.announce()
        self.quota.keep()
        if self.showing.is_due(news=news):
            with self.showing.working():
                self.audience.watch(self.snapshot())
        soon = 0.0 if self._more_to_assign else self.looking.left(news=bool(self.backlog))
        seconds = POLL_SECONDS if self.outage.is_on else min(max(0.0, soon), POLL_SECONDS)
        self.backlog.extend(PendingEvent(*event) for event in self.crew.events(seconds, self._patience))
        return True

    def snapshot(self) -> Snapshot:
        """The search as it is now, for observers."""
        problems = problems_of(self.crew, self.outage, len(self.backlog), self.no_room)
        return snapshot_of(self.trials, self.crew, stopping=self.stopping and not self.out_of_time, problems=problems)

    # -- the database, which may be unavailable

    def _catch_up(self) -> None:
        with suppress(UpdateFinishedTrialError, KeyError):  # the loop finds out for which trial
            self.trials.results.store_together(first_of_each(self.backlog))
        while self.backlog:  # an event whose handling fails stays first, and is handled again from the start
            try:
                self._handle(self.backlog[0])
            except (UpdateFinishedTrialError, KeyError):  # KeyError: the trial is no longer in the database
                if not self.trials.lose_foreign():
                    raise
            else:
                self.backlog.popleft()

    def _go_on_without_storage(self) -> None:
        """Let workers train on, up to a rung. Decisions about their epochs follow when the database is back."""
        for pending in self.backlog:
            if pending.can_go_on(self.trials.rungs.within_training):
                self._answer(pending, go_on=not (self.stopping or self.crew.workers[pending.worker].drained))

    def _answer(self, pending: PendingEvent, *, go_on: bool) -> None:
        if not pending.answered:
            pending.answered = True
            self.crew.send(pending.worker, Answer(go_on=go_on))

    # -- trials

    def _assign(self) -> None:
        """Give idle workers trials. Asking for a candidate can take long, so the turn may end before all have one."""
        begun, self._more_to_assign = time.monotonic(), False
        if self.no_room and self._has_room():
            self.say("there is room on the disk; going on")
            self.no_room = None
        for worker in self.crew.idle():
            idle = self.stopping or self.no_room or not self._left_to_do()
            if idle or (trial := self.trials.next()) is None:
                break
            progress = self.trials.progress[trial]
            progress.attempts += 1
            worker.trial, worker.attempt, worker.epoch = trial, progress.attempts, None
            self.crew.send(worker.number, self.trials.assignment(trial, self.cache))
            node = worker.placed.node if worker.placed else ""
            self.journal.append(events.Assign(trial=trial, worker=worker.label, attempt=progress.attempts, node=node))
            if time.monotonic() - begun > self.assign_seconds:
                self._more_to_assign = True
                break

    def _tell_of_others(self) -> None:
        """Tell the user, once, about trials that other programs have finished or queued with impossible values."""
        while (others := self.trials.others).refused:
            self.say(line_of(self.trials.finished[others.refused.popleft()], self.trials), WARNING)
        for line in others.words_of_foreign():
            self.say(line, WARNING)

    def _fail_surplus(self) -> None:
        """Once the budget is spent, fail the surplus trials that a broken connection has created."""
        if not (self.stopping or self.crew.training() or self._left_to_do()):
            self.trials.fail_unknown()

    def _goes_on(self) -> bool:
        """Whether the search goes on, because work is in progress or left to do."""
        if self.stopping and (self.outage.is_on or self.no_room):
            return self.crew.busy()  # wait only for epochs in progress, because checkpoints hold the results
        if self.backlog or self.crew.training() or self.outage.is_on:
            return True
        return not self.stopping and self._left_to_do() > 0

    def _left_to_do(self) -> int:
        """Number of trials left to assign: orphans (unfinished, not paused, without a worker), paused trials that may
        be promoted, candidates that may begin.

        When the time that is reserved for the export has begun, orphans do not go on, unless no candidate is complete.
        """
        orphans = len(self.trials.orphans) if self.clock.allows(0) or not self.trials.spent.complete else 0
        return orphans + self.trials.allowance.total

    def _finish(self, worker: Worker, ending: Ending) -> None:
        assert worker.trial is not None
        view = self.trials.finish(worker.trial, worker.device, ending)
        if ending.state != TrialState.FAIL:
            self.last_failure = None
        self.quota.due = True
        self.say(line_of(view, self.trials), WARNING if ending.state == TrialState.FAIL else INFO)

    # -- events of workers

    def _has_unfinished_trial(self, worker: Worker) -> bool:
        """Whether a worker has a trial that is not finished."""
        return worker.trial in self.trials.progress

    def _handle(self, pending: PendingEvent) -> None:
        """Handle an event of a worker. If an outage of the database begins halfway, this is repeated from the start."""
        worker, event = self.crew.workers[pending.worker], pending.event
        match event:
            case Started():
                if self._has_unfinished_trial(worker):  # not if another program has finished the trial
                    self.trials.results.store_size(event)
            case Epoch():
                worker.memory_bytes = event.memory_bytes
                go_on = self._has_unfinished_trial(worker) and self._on_epoch(worker, event.trial, event.result)
                self._answer(pending, go_on=go_on)
            case Failed():
                failure = event.failure
                if failure.is_crash:
                    failure = replace(failure, log=self.pool.log_tail(worker.number))
                self._on_failure(worker, failure)
                if failure.spoils_process:
                    self.crew.replace(worker, failure)
                self._release(worker)
            case Left():
                self._release(worker)
            case Exit():
                self._on_exit(worker, event)
            case _:
                assert_never(event)

    def _on_epoch(self, worker: Worker, trial: int, result: EpochResult) -> bool:
        """Report an epoch and apply the decision about the trial. Returns whether the worker shall go on."""
        worker.epoch = result
        try:
            verdict = self.trials.results.report(trial, result)
        except ResultChanged as change:
            self._on_failure(worker, Failure(kind="changed", sentence=str(change)))
            return False
        match verdict:
            case "complete":
                self._finish(worker, Ending(state=TrialState.COMPLETE, value=value_of(result, self.trials.objective)))
            case "stop":
                reason = f"{self.spec.search.pruner} after {step_word(self.spec)} {result.epoch}"
                self._finish(worker, Ending(state=TrialState.PRUNED, reason=reason))
        return verdict == "go on" and not (self.stopping or worker.drained)

    def _release(self, worker: Worker) -> None:
        """Mark a worker as free. An unfinished trial is paused, or goes on with another worker or launch."""
        if worker.trial is not None and self.trials.release(worker.trial):
            self.say(self.trials.rungs.line_of(worker.trial))
            self.quota.due = True
        worker.trial = worker.epoch = None

    def _on_exit(self, worker: Worker, event: Exit) -> None:
        failure = worker.failure_of(event)
        if event.lost == "lost" and worker.trial is not None:
            begin_attempt_in(self.runs.trial(self.spec.name, worker.trial))
        self._on_failure(worker, failure)
        self._release(worker)
        fatal = self.crew.on_exit(worker, restart=not self.stopping)
        if fatal:
            how = failure.sentence.removeprefix("the worker ")
            self._end_with(TrainingFailed(f"{fatal} ({how}):\n{event.log_tail}"))

    def _on_failure(self, worker: Worker, failure: Failure) -> None:
        """Apply the failure policy to a worker's trial, unless it has finished or is about to be paused."""
        trial = worker.trial
        if trial is None or (progress := self.trials.progress.get(trial)) is None or progress.waits_at_rung:
            return
        has_room = failure.kind != "disk" or self._has_room()  # slow: it looks at all checkpoints
        decision = decide(failure, progress.setbacks, self.spec.faults, has_room=has_room)
        self.trials.record_failure(trial, worker.label, failure, decision)
        match decision.verdict:
            case "again":
                self.trials.store_setbacks(trial, decision)
                self.say(words_for(failure, decision, f"trial {trial}", worker.label), WARNING)
            case "wait":
                self.trials.store_setbacks(trial, decision)
                if self.no_room is None:
                    self.say(f"paused: {failure.sentence}; the search goes on by itself when there is room", WARNING)
                self.no_room = failure.sentence
            case "give up" if failure.kind == "disk":
                self._end_with(DiskError(failure.sentence))  # the next launch goes on with the trial
            case "give up" if failure.teaches:
                # Samplers learn from a PRUNED trial (model: as the worst; tpe: its last value), not from a FAIL.
                parts = f"{OUT_OF_MEMORY} with {progress.setbacks.micro_batches} micro-batches"
                reason = parts if failure.kind == "memory" else failure.reason
                self._finish(worker, Ending(state=TrialState.PRUNED, reason=reason, failure=failure.kind))
            case "give up":
                self._fail(worker, failure)
            case _:
                assert_never(decision.verdict)

    def _fail(self, worker: Worker, failure: Failure) -> None:
        """End a trial as FAIL. If the trial before it failed with the same error, end the search."""
        self._finish(worker, Ending(state=TrialState.FAIL, reason=failure.reason, failure=failure.kind))
        if failure.signature == self.last_failure:
            words = "two trials in a row ended in the same error, correct it and launch again: "
            self._end_with(TrainingFailed(words + failure.reason))
        self.last_failure = failure.signature

    def _has_room(self) -> bool:
        return self.runs.has_room(self.spec.name, self.room_needed, self.spec.data.folds, self.trials.rungs.order())

    def _end_with(self, error: Exception) -> None:
        self.stopping, self.fatal = True, self.fatal or error

    def _patience(self, worker: Worker) -> float:
        epochs, own = self.spec.train.epochs if self.spec.data.folds else 1, self.trials.slowest_of(worker.trial)
        return patience(self.spec.faults, own, self.trials.slowest, epochs)

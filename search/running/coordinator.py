"""The coordinator: the one process that owns a study. ask -> assign -> report, prune -> tell.

The state of a trial is Optuna's; what is kept here besides is who trains it, and how often that went wrong:

    WAITING --ask--> RUNNING --last epoch--> COMPLETE
                       |  ^ --pruner, loss not finite, or too large for the memory--> PRUNED
        worker dies, or |  |
        search stops    v  | resumed under its own number, from its last epoch
                      nobody --no retry left--> FAIL

While the database is away workers train on, and what they say waits in order.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import Trial, TrialState

from search.errors import HeldError, StudyChanged, TrainingFailed, reason_of
from search.paths import Runs
from search.running.trials import Changed, Trials
from search.study.outage import Outage
from search.study.progress import Snapshot, eta_seconds
from search.study.storage import ANSWER_SECONDS, CONNECT_SECONDS, wait_briefly
from search.study.trial import OUT_OF_MEMORY, TrialView, step_of
from search.words import duration
from search.workers.crew import POLL_SECONDS, Crew, Worker, patience
from search.workers.failures import signature_of
from search.workers.local import Exit, LocalPool, Message
from studies import StudySpec
from trainer.config import EpochResult
from trainer.errors import DiskError


@dataclass
class Said:
    """What a worker said."""

    worker: int
    event: Message | Exit
    answered: bool = False

    @property
    def can_go_on(self) -> bool:
        """Whether it waits for an answer that needs no database: an epoch's, unless it was the last."""
        return not isinstance(self.event, Exit) and self.event["type"] == "epoch" and not self.event["result"]["final"]


class Coordinator:
    """Runs one study on a pool of workers until its budget is spent, or until it is told to stop.

    Args:
        study: opened by ``search.study.study.open_study``; nobody else may write to it.
        spec: what the study searches.
        space: Optuna distributions of the sampled settings.
        known: recipes to try first, in terms of the space.
        pool: where workers run.
        runs: where checkpoints, logs and the journal go.
        cache: the decoded pictures, given to the workers.
        watch: called with a Snapshot at least every POLL_SECONDS.
        note: called with one line for each thing worth telling.
        still_owner: called before the database is written to; raises HeldError once the study is another's.
        room_needed: bytes for all checkpoints, those there are included; a search that ran out of disk waits for them.
    """

    def __init__(
        self,
        study: optuna.Study,
        spec: StudySpec,
        space: dict[str, BaseDistribution],
        known: list[dict[str, Any]],
        pool: LocalPool,
        runs: Runs,
        cache: str,
        *,
        watch: Callable[[Snapshot], None],
        note: Callable[[str], None],
        still_owner: Callable[[], None] = lambda: None,
        room_needed: int = 0,
    ) -> None:
        self.spec, self.known, self.pool, self.runs, self.cache = spec, known, pool, runs, cache
        self.watch, self.note, self.still_owner, self.room_needed = watch, note, still_owner, room_needed
        self.crew = Crew(pool, spec.faults, note)
        self.trials = Trials(study, spec, space, runs)
        self.journal = self.trials.journal
        self.stopping = False
        self.killed = False
        self.deadline = math.inf
        self.outage = Outage(note)
        self.backlog: deque[Said] = deque()
        """What workers have said and the database has not taken yet."""
        self.no_room: str | None = None
        self.last_failure: str | None = None
        self.fatal: BaseException | None = None
        self.told_to_stop = False
        self.started = time.monotonic()

    # -- from outside

    def stop(self, grace_seconds: float = math.inf) -> None:
        """Let every worker finish its epoch, or give it up after a while; a second call ends at once.

        Safe in a signal handler.
        """
        self.killed = self.stopping
        self.stopping = True
        self.deadline = min(self.deadline, time.monotonic() + grace_seconds)

    def run(self) -> bool:
        """Search. Returns whether the budget is spent; False means stopped, to be continued.

        Raises:
            TrainingFailed: workers cannot start, or the same error ended two trials in a row.
            DiskError: checkpoints cannot be written although there is room; the trials go on with the next launch.
            HeldError, StudyChanged: the study was taken over, or deleted, by others.
            StorageError: the database stayed away for longer than ``faults.storage_minutes``.
        """
        try:
            self._search()
        except BaseException as error:
            self.fatal = self.fatal or error
            self.journal.lost = isinstance(error, HeldError | StudyChanged)
            raise
        finally:
            late = self.killed or time.monotonic() >= self.deadline
            self.crew.close(patience_seconds=0 if late else 5)
            ended = "told to" if self.stopping else "budget spent"
            self.journal.append("stop", reason=reason_of(self.fatal) if self.fatal else ended)
        if self.fatal:
            raise self.fatal
        return not self.stopping

    def _search(self) -> None:
        try:
            self.begin()
            while self.step():
                pass
        except LookupError:  # what Optuna says of a trial that is not there
            self.trials.check_identity()
            raise
        self.watch(self.snapshot())

    def begin(self) -> None:
        """Take over what a predecessor left, queue the known recipes, start the workers."""
        self.still_owner()
        self.trials.check_identity()
        others = self.trials.adopt()
        if others:
            self.note(f"other versions than at the last launch: {others}; that may change results")
        if self.trials.orphans:
            numbers = ", ".join(str(trial.number) for trial in self.trials.orphans)
            self.note(f"going on with trial {numbers}, left unfinished by the last launch")
        self.trials.enqueue(self.known)
        self._keep_to_quota()
        wait_briefly(self.trials.study)
        self.crew.start(self._left_to_do())

    def step(self) -> bool:
        """One turn: what waits for the database, idle workers, new messages. False once there is nothing to do."""
        if self.runs.stop_requested(self.spec.name) and not self.stopping:
            self.stop()
        checks = (self.still_owner, self.trials.check_identity, self.trials.check_writable)
        most = self.spec.faults.storage_minutes
        # One more attempt at a server that has vanished could outlast whoever kills after the grace.
        too_late = self.outage.is_on and time.monotonic() + ANSWER_SECONDS + CONNECT_SECONDS > self.deadline
        steps = (self.trials.complete_asking, self._catch_up, self._assign, self._finish_off)
        if too_late or not self.outage.reach(*checks, *steps, most_minutes=most):
            self._go_on_without_storage()
        if self.killed or time.monotonic() >= self.deadline or not self._worth_waiting():
            return False
        if self.stopping and not self.told_to_stop and not self.fatal:
            self.note("finishing the epoch; Ctrl-C again to stop now")
            self.told_to_stop = True
        self.watch(self.snapshot())
        for worker, event in self.crew.events(POLL_SECONDS, self._patience):
            self.backlog.append(Said(worker, event))
        return True

    def snapshot(self) -> Snapshot:
        """The search as it is now, for people."""
        workers = [worker.view(self.spec.num_steps) for worker in self.crew.workers]
        finished, hours = tuple(self.trials.finished.values()), self.spec.search.hours
        seconds_left = None if hours is None else max(0.0, self.started + hours * 3600 - time.monotonic())
        return Snapshot(
            study=self.spec.name,
            budget=self.spec.search.trials,
            finished=finished,
            workers=tuple(workers),
            eta_seconds=eta_seconds(self.spec, finished, workers, seconds_left),
            stopping=self.stopping,
            epochs=self.spec.num_steps,
            problems=tuple(self._problems()),
        )

    def _problems(self) -> list[str]:
        """What keeps the search from going on as it should, each with what it waits for."""
        problems = [
            f"{worker.label} put aside: {worker.aside}; leave it out of --gpus, or reset it and launch again"
            for worker in self.crew.workers
            if worker.aside
        ]
        if self.outage.is_on:
            away = duration(self.outage.seconds)
            problems.append(f"no database for {away}; training goes on, {len(self.backlog)} messages wait")
        if self.no_room:
            problems.append(f"paused: {self.no_room}")
        return problems

    # -- the database, which may be away

    def _catch_up(self) -> None:
        while self.backlog:  # what fails in the middle is handled again next time, from its start
            self._handle(self.backlog[0])
            self.backlog.popleft()

    def _go_on_without_storage(self) -> None:
        """Let workers train on; whether the pruner would have stopped them is decided when the database is back."""
        for said in self.backlog:
            if said.can_go_on:
                self._answer(said, go_on=not self.stopping)

    def _answer(self, said: Said, *, go_on: bool) -> None:
        if not said.answered:
            said.answered = True
            self.crew.send(said.worker, {"type": "answer", "go_on": go_on})

    # -- trials

    def _assign(self) -> None:
        """Give idle workers something to do."""
        if self.no_room and self._has_room():
            self.note("there is room on the disk; going on")
            self.no_room = None
        for worker in self.crew.idle():
            if self.stopping or self.no_room or not self._left_to_do():
                break
            trial = self.trials.next()
            progress = self.trials.progress[trial.number]
            progress.attempts += 1
            worker.trial, worker.attempt, worker.epoch = trial, progress.attempts, None
            self.crew.send(worker.number, self.trials.assignment(trial) | {"cache": self.cache})
            self.journal.append("assign", trial=trial.number, worker=worker.label, attempt=progress.attempts)

    def _finish_off(self) -> None:
        """Once the budget is spent, end what a broken connection has left."""
        if not (self.stopping or self.crew.training() or self._left_to_do()):
            self.trials.fail_unknown()

    def _worth_waiting(self) -> bool:
        """Whether anyone has something to do, or will have."""
        if self.stopping and (self.outage.is_on or self.no_room):
            return self.crew.busy()  # what they said is in their checkpoints: nothing to wait for but their epochs
        if self.backlog or self.crew.training() or self.outage.is_on:
            return True
        return not self.stopping and self._left_to_do() > 0

    def _left_to_do(self) -> int:
        """Trials that nobody trains and that the budget allows: orphans, and new ones."""
        hours = self.spec.search.hours
        in_time = hours is None or time.monotonic() - self.started < hours * 3600
        return len(self.trials.orphans) + (self.trials.left if in_time else 0)

    def _finish(self, worker: Worker, state: TrialState, value: float | None = None, reason: str = "") -> None:
        assert worker.trial is not None
        view = self.trials.finish(worker.trial, worker.device, state, value, reason)
        if state != TrialState.FAIL:
            self.last_failure = None
        self._keep_to_quota()
        self.note(self._outcome_line(view))

    def _keep_to_quota(self) -> None:
        removed = self.runs.keep_to_quota(self.spec.name, self.spec.faults.checkpoint_gb * 1e9)
        if removed:
            self.note(f"checkpoints beyond {self.spec.faults.checkpoint_gb:g} GB: removed {', '.join(removed)}")

    def _outcome_line(self, view: TrialView) -> str:
        snapshot = self.snapshot()
        best = f"; best {snapshot.best.value:.2%} (trial {snapshot.best.number})" if snapshot.best else ""
        return f"{view.sentence(self.spec.num_steps)}; {len(self.trials.finished)} of {snapshot.budget} done{best}"

    # -- what workers say

    def _trains(self, worker: Worker) -> bool:
        """Whether a worker has a trial that is not finished."""
        return worker.trial is not None and worker.trial.number in self.trials.progress

    def _handle(self, said: Said) -> None:
        """Deal with what a worker said; taken again from the start if the database is away in the middle."""
        worker, event = self.crew.workers[said.worker], said.event
        if isinstance(event, Exit):
            self._on_exit(worker, event)
        elif event["type"] == "started":
            assert worker.trial is not None
            self.trials.counted(worker.trial, event["sizes"], event["num_params"], event["macs"])
        elif event["type"] == "epoch":
            worker.memory_bytes = event["memory_bytes"]
            go_on = self._trains(worker) and self._on_epoch(worker, EpochResult(**event["result"]))
            self._answer(said, go_on=go_on)
        elif event["type"] == "failed":
            self._on_failure(worker, event["kind"], event["error"])
        elif event["type"] == "left":
            self._release(worker)

    def _on_epoch(self, worker: Worker, result: EpochResult) -> bool:
        """Report an epoch and decide; True means go on."""
        assert worker.trial is not None
        worker.epoch = result
        try:
            pruned = self.trials.report(worker.trial, result)
        except Changed as change:
            self._finish(worker, TrialState.FAIL, reason=str(change))
            return False
        if result.final:
            self._finish(worker, TrialState.COMPLETE, result.val_accuracy)
        elif pruned:
            reason = f"{self.spec.search.pruner} after {step_of(self.spec)} {result.epoch}"
            self._finish(worker, TrialState.PRUNED, reason=reason)
        return not (result.final or pruned or self.stopping)

    def _release(self, worker: Worker) -> None:
        """A worker has let go of its trial; one that is not finished waits for the next free worker or launch."""
        if self._trains(worker):
            assert worker.trial is not None
            self.trials.orphans.appendleft(worker.trial)
        worker.trial = worker.epoch = None

    def _on_failure(self, worker: Worker, kind: str, error: str) -> None:
        trial = worker.trial
        assert trial is not None
        if not self._trains(worker):
            pass  # it was finished while the database was away
        elif kind == "diverged":
            # PRUNED keeps the last finite value, and teaches the sampler; FAIL would be invisible to it.
            self._finish(worker, TrialState.PRUNED, reason=error)
        elif kind == "user":
            self._fail(worker, error)
        elif kind == "disk":
            self._on_full_disk(trial, error.partition(": ")[2])
        else:
            note = f"trial {trial.number} failed ({error}); trying again from its last epoch"
            tail = self.pool.log_tail(worker.number)
            self._on_setback(worker, kind, f"{error}\n{tail}" if tail else error, note, signature=signature_of(error))
        if kind in ("memory", "device"):
            self.crew.replace(worker, error if kind == "device" else None)  # a new process has a clean memory
        self._release(worker)

    def _on_exit(self, worker: Worker, event: Exit) -> None:
        how = worker.how_it_ended(event)
        if self._trains(worker):
            assert worker.trial is not None
            kind = "memory" if event.out_of_memory else "exit"
            note = f"worker {worker.label} {how}; trial {worker.trial.number} goes on from its last epoch"
            self._on_setback(worker, kind, f"the worker {how}: {event.log_tail}", note, signature=how)
        self._release(worker)
        failed = self.crew.on_exit(worker, restart=not self.stopping)
        if failed:
            self._end_with(TrainingFailed(f"{failed} ({how}):\n{event.log_tail}"))

    def _on_setback(self, worker: Worker, kind: str, error: str, note: str, signature: str) -> None:
        """Let a trial go on from its last epoch, unless this was one setback too many.

        Args:
            worker: what trained it.
            kind: of setback, see ``Setbacks.after``.
            error: the reason, if this ends the trial: its first line says what happened, the log follows.
            note: for people, if it goes on.
            signature: by which the same error is known in another trial.
        """
        trial = worker.trial
        assert trial is not None
        progress = self.trials.progress[trial.number]
        if progress.crashed < progress.attempts:  # else it was noted, and the database went away before the rest
            progress.crashed = progress.attempts
            self.journal.append("crash", trial=trial.number, worker=worker.label, reason=error.splitlines()[0])
        setbacks = progress.setbacks.after(kind, self.spec.faults)
        if setbacks is not None:
            self.trials.set_back(trial, setbacks)
            self.note(setbacks.in_parts(f"trial {trial.number}") if kind == "memory" else note)
        elif kind == "memory":  # PRUNED, so that the sampler learns from it
            parts = progress.setbacks.micro_batches
            self._finish(worker, TrialState.PRUNED, reason=f"{OUT_OF_MEMORY} with {parts} micro-batches")
        else:
            self._fail(worker, error, signature)

    def _fail(self, worker: Worker, error: str, signature: str | None = None) -> None:
        """End a trial as FAIL; the same error in two trials in a row would only burn the rest of the budget."""
        self._finish(worker, TrialState.FAIL, reason=error)
        if (signature or error) == self.last_failure:
            self._end_with(
                TrainingFailed(f"two trials in a row ended in the same error, mend it and launch again: {error}")
            )
        self.last_failure = signature or error

    def _on_full_disk(self, trial: Trial, error: str) -> None:
        """Pause until there is room. Where there is, and writing fails all the same, waiting would not help."""
        progress = self.trials.progress[trial.number]
        if self._has_room():
            setbacks = progress.setbacks.after("disk", self.spec.faults)
            if setbacks is None:
                self._end_with(DiskError(error))
                return
            progress.setbacks = setbacks
        if self.no_room is None:
            self.note(f"paused: {error}; the search goes on by itself when there is room")
        self.no_room = error

    def _has_room(self) -> bool:
        return self.runs.has_room(self.spec.name, self.room_needed, self.spec.data.folds)

    def _end_with(self, error: Exception) -> None:
        self.stopping, self.fatal = True, self.fatal or error

    def _patience(self, worker: Worker) -> float:
        progress = self.trials.progress
        own = progress[worker.trial.number].seconds.values() if self._trains(worker) and worker.trial else []
        others = (seconds for trial in progress.values() for seconds in trial.seconds.values())
        past = (view.seconds / view.epochs for view in self.trials.finished.values() if view.epochs)
        epochs = self.spec.train.epochs if self.spec.data.folds else 1
        return patience(self.spec.faults, max(own, default=None), max((*others, *past), default=None), epochs)

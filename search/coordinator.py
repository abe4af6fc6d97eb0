"""The coordinator: the one process that owns a study. ask -> assign -> report, prune -> tell.

The state of a trial is Optuna's; what is kept here besides is who trains it, and how often that went wrong:

    WAITING --ask--> RUNNING --last epoch--> COMPLETE
                       |  ^ --pruner, or loss not finite--> PRUNED
        worker dies, or |  |
        search stops    v  | resumed under its own number, from its last epoch
                      nobody --no retry left--> FAIL
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from search.errors import TrainingFailed
from search.paths import Runs
from search.pools.local import Exit, LocalPool, Message
from search.status import Snapshot, TrialView, WorkerView, eta_seconds, view_of
from search.study import build_sampler, seed_of
from studies import Range, StudySpec
from studies.spec import WIDTH_SHARE
from trainer.config import EpochResult
from trainer.errors import DiskError

MAX_RETRIES = 2
"""Times a trial is taken up again without having finished another epoch, before it fails."""

POLL_SECONDS = 0.5
"""Longest wait for a worker's message before signals and the display get their turn."""


@dataclass
class _Worker:
    """What the coordinator knows of a worker."""

    label: str
    device: str = "starting"
    ready: bool = False
    trial: Trial | None = None
    epoch: EpochResult | None = None
    failed_starts: int = 0


@dataclass
class _Progress:
    """What the coordinator keeps of a trial that is not in Optuna until the trial is finished."""

    reported: set[int]
    seconds: dict[int, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    retries: int = 0


class Coordinator:
    """Runs one study on a pool of workers until its budget is spent, or until it is told to stop.

    Args:
        study: opened by ``search.study.open_study``; nobody else may write to it.
        spec: what the study searches.
        space: Optuna distributions of the sampled settings.
        known: recipes to try first, in terms of the space.
        pool: where workers run.
        runs: where checkpoints and logs go.
        cache: the decoded pictures, given to the workers.
        watch: called with a Snapshot at least every POLL_SECONDS.
        note: called with one line for each thing worth telling.
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
    ) -> None:
        self.study, self.spec, self.space, self.known = study, spec, space, known
        self.pool, self.runs, self.cache = pool, runs, cache
        self.watch, self.note = watch, note
        self.stopping = False
        self.killed = False
        self.workers = [_Worker(device.label) for device in pool.devices]
        self.orphans: deque[Trial] = deque()
        self.progress: dict[int, _Progress] = {}
        self.finished: dict[int, TrialView] = {}
        self.asked = 0
        self.last_failure: str | None = None
        self.fatal: Exception | None = None
        self.started = time.monotonic()

    # -- from outside

    def stop(self) -> None:
        """Let every worker finish its epoch, then end; a second call ends at once. Safe in a signal handler."""
        self.killed = self.stopping
        self.stopping = True

    def run(self) -> bool:
        """Search. Returns whether the budget is spent; False means stopped, to be continued.

        Raises:
            TrainingFailed: workers cannot start, or the same error ended two trials in a row.
            DiskError: no room for checkpoints; the trials concerned go on with the next launch.
        """
        self._adopt()
        self._enqueue_known()
        try:
            for worker in range(min(len(self.workers), self._left_to_do())):
                self.pool.start(worker)
            told = False
            while self._assign() and not self.killed:
                if self.stopping and not told and not self.fatal:
                    self.note("finishing the epoch; Ctrl-C again to stop now")
                    told = True
                self.watch(self.snapshot())
                for worker, event in self.pool.events(POLL_SECONDS):
                    self._handle(worker, event)
            self.watch(self.snapshot())
        finally:
            self.pool.close(patience_seconds=0 if self.killed else 5)
        if self.fatal:
            raise self.fatal
        return not self.stopping

    def snapshot(self) -> Snapshot:
        """The search as it is now, for people."""
        workers = [
            WorkerView(
                label=worker.label,
                device=worker.device,
                trial=worker.trial.number if worker.trial else None,
                epoch=worker.epoch.epoch if worker.epoch else 0,
                epochs=self.spec.num_steps,
                val_accuracy=worker.epoch.val_accuracy if worker.epoch else None,
                images_per_second=worker.epoch.images_per_second if worker.epoch else None,
            )
            for worker in self.workers
        ]
        return Snapshot(
            study=self.spec.name,
            budget=self.spec.search.trials,
            finished=tuple(self.finished.values()),
            workers=tuple(workers),
            eta_seconds=eta_seconds(self.spec, tuple(self.finished.values()), workers, self._running_seconds()),
            stopping=self.stopping,
        )

    # -- trials

    def _adopt(self) -> None:
        """Take over what a predecessor left: finished trials count, RUNNING ones go on where they stopped."""
        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state.is_finished():
                self.finished[frozen.number] = view_of(frozen)
            if frozen.state != TrialState.WAITING:
                self.asked += 1
            if frozen.state == TrialState.RUNNING:
                self.progress[frozen.number] = _Progress(reported=set(frozen.intermediate_values))
                self.orphans.append(self._take_up(frozen))
        if self.orphans:
            numbers = ", ".join(str(trial.number) for trial in self.orphans)
            self.note(f"going on with trial {numbers}, left unfinished by the last launch")

    def _take_up(self, frozen: FrozenTrial) -> Trial:
        """A RUNNING trial, to go on with; settings that a predecessor killed while asking never drew are drawn now."""
        self.study.sampler = build_sampler(self.spec, frozen.number)
        trial = Trial(self.study, frozen._trial_id)  # no public way to take a trial up again
        for name, distribution in self.space.items():
            if name not in frozen.params:
                trial._suggest(name, distribution)  # as study.ask does, one setting and one transaction at a time
        return trial

    def _enqueue_known(self) -> None:
        queued = {trial.user_attrs.get("known") for trial in self.study.get_trials(deepcopy=False)}
        for number, recipe in enumerate(self.known):
            if number not in queued:
                self.study.enqueue_trial(recipe, user_attrs={"known": number})

    def _ask(self) -> Trial:
        """The next candidate, drawn by a sampler whose seed depends on the trial's number alone."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        number = waiting[0].number if waiting else len(self.study.get_trials(deepcopy=False))
        self.study.sampler = build_sampler(self.spec, number)
        trial = self.study.ask(fixed_distributions=self.space)
        assert trial.number == number, f"asked for trial {number}, got {trial.number}: another process writes here"
        self.asked += 1
        self.progress[number] = _Progress(reported=set())
        return trial

    def _assign(self) -> bool:
        """Give idle workers something to do; returns whether anyone has something to do."""
        for number, worker in enumerate(self.workers):
            if worker.ready and worker.trial is None and not self.stopping:
                if not self._left_to_do():
                    break
                worker.trial = self.orphans.popleft() if self.orphans else self._ask()
                worker.epoch = None
                self.pool.send(number, self._assignment(worker.trial))
        if any(worker.trial for worker in self.workers):
            return True
        # Nobody trains: worth waiting only for workers that are still starting and will find something to do.
        return not self.stopping and self._left_to_do() > 0

    def _assignment(self, trial: Trial) -> Message:
        config = self.spec.config_for(trial.params, seed_of(self.spec.seed, trial.number))
        return {
            "type": "assign",
            "trial": trial.number,
            "config": config.model_dump(mode="json"),
            "width": self._width_question(trial),
            "data": self.spec.data.model_dump(mode="json"),
            "cache": self.cache,
            "checkpoint": str(self.runs.checkpoint(self.spec.name, trial.number)),
            "limit": self.spec.limit.model_dump(mode="json"),
        }

    def _width_question(self, trial: Trial) -> Message | None:
        """What the worker needs to find the width of a trial whose other settings change its size too."""
        if not self.spec.sizes_vary:
            return None
        axis = self.spec.space.get("width_mult")
        if isinstance(axis, Range):
            return {"share": trial.params[WIDTH_SHARE], "low": axis.low, "high": axis.high}
        return {"share": 0.0, "low": self.spec.train.width_mult, "high": self.spec.train.width_mult}

    def _left_to_do(self) -> int:
        """Trials that nobody trains and that the budget allows: orphans, and new ones."""
        hours = self.spec.search.hours
        in_time = hours is None or time.monotonic() - self.started < hours * 3600
        return len(self.orphans) + (max(0, self.spec.search.trials - self.asked) if in_time else 0)

    def _finish(self, worker: _Worker, state: TrialState, value: float | None = None, reason: str = "") -> None:
        """Tell Optuna how a trial ended; nothing can be added to it after that."""
        trial = worker.trial
        assert trial is not None
        progress = self.progress.pop(trial.number)
        trial.set_user_attr("seconds", round(sum(progress.seconds.values()), 3))
        trial.set_user_attr("images_per_second", round(progress.images_per_second, 1))
        trial.set_user_attr("device", worker.device)
        if reason:
            trial.set_user_attr("reason", reason)
        frozen = self.study.tell(trial, value, state)
        view = view_of(frozen)
        self.finished[trial.number] = view
        if state != TrialState.FAIL:
            self.last_failure = None
        shutil.rmtree(self.runs.trial(self.spec.name, trial.number), ignore_errors=True)
        self.note(self._outcome_line(view))

    def _outcome_line(self, view: TrialView) -> str:
        snapshot = self.snapshot()
        best = f"; best {snapshot.best.value:.2%} (trial {snapshot.best.number})" if snapshot.best else ""
        return f"{view.sentence(self.spec.num_steps)}; {len(self.finished)} of {snapshot.budget} done{best}"

    # -- what workers say

    def _handle(self, number: int, event: Message | Exit) -> None:
        worker = self.workers[number]
        if isinstance(event, Exit):
            self._on_exit(number, worker, event)
        elif event["type"] == "ready":
            worker.ready, worker.device, worker.failed_starts = True, event["device"], 0
        elif event["type"] == "started":
            self._on_started(worker, event)
        elif event["type"] == "epoch":
            result = EpochResult(**event["result"])
            self.pool.send(number, {"type": "answer", "go_on": self._on_epoch(worker, result)})
        elif event["type"] == "failed":
            self._on_failure(worker, event["kind"], event["error"])
        elif event["type"] == "left":
            self._release(worker)

    def _on_started(self, worker: _Worker, event: Message) -> None:
        trial = worker.trial
        assert trial is not None
        if "num_params" not in trial.user_attrs:  # else it is resumed
            trial.set_user_attr("num_params", event["num_params"])
            trial.set_user_attr("macs", event["macs"])
            if self.spec.sizes_vary:
                trial.set_user_attr("sizes", event["sizes"])
            for name, bound in (("params", self.spec.limit.params), ("macs", self.spec.limit.macs)):
                if bound is not None:
                    counted = event["num_params" if name == "params" else "macs"]
                    trial.set_constraint(name, counted - bound)

    def _on_epoch(self, worker: _Worker, result: EpochResult) -> bool:
        """Report an epoch and decide; True means go on. A resumed trial brings its old epochs again."""
        trial = worker.trial
        assert trial is not None
        progress = self.progress[trial.number]
        progress.seconds[result.epoch] = result.seconds
        progress.images_per_second = result.images_per_second
        worker.epoch = result
        if result.epoch not in progress.reported:
            trial.report(result.val_accuracy, result.epoch)
            progress.reported.add(result.epoch)
            progress.retries = 0
        elif result.epoch < max(progress.reported):
            return True  # reported and decided before the interruption
        if result.final:
            self._finish(worker, TrialState.COMPLETE, result.val_accuracy)
            return False
        if trial.should_prune():
            reason = f"{self.spec.search.pruner} after epoch {result.epoch}"
            self._finish(worker, TrialState.PRUNED, reason=reason)
            return False
        return not self.stopping

    def _release(self, worker: _Worker) -> None:
        """A worker has let go of its trial; one that is not finished waits for the next free worker or launch."""
        if worker.trial is not None and worker.trial.number in self.progress:
            self.orphans.appendleft(worker.trial)
        worker.trial = worker.epoch = None

    def _on_failure(self, worker: _Worker, kind: str, error: str) -> None:
        trial = worker.trial
        assert trial is not None
        if kind == "disk":
            self.stopping, self.fatal = True, DiskError(error.partition(": ")[2])
        elif kind == "diverged":
            # PRUNED keeps the last finite value, and teaches the sampler; FAIL would be invisible to it.
            self._finish(worker, TrialState.PRUNED, reason=error)
        elif kind == "user" or self._retries_spent(trial):
            self._fail(worker, error)
        else:
            self.note(f"trial {trial.number} failed ({error}); trying again from its last epoch")
        self._release(worker)

    def _on_exit(self, number: int, worker: _Worker, event: Exit) -> None:
        how = f"signal {-event.returncode}" if event.returncode < 0 else f"exit code {event.returncode}"
        if not worker.ready:
            worker.failed_starts += 1
            if worker.failed_starts > MAX_RETRIES:
                self.stopping = True
                self.fatal = TrainingFailed(f"worker {worker.label} cannot start ({how}):\n{event.log_tail}")
                return
        trial = worker.trial
        if trial is not None and trial.number in self.progress:
            if self._retries_spent(trial):
                self._fail(worker, f"the worker ended with {how}: {event.log_tail}")
            else:
                self.note(f"worker {worker.label} ended with {how}; trial {trial.number} goes on from its last epoch")
        self._release(worker)
        worker.ready, worker.device = False, "starting"
        if not self.stopping:
            self.pool.start(number)

    def _retries_spent(self, trial: Trial) -> bool:
        progress = self.progress[trial.number]
        progress.retries += 1
        return progress.retries > MAX_RETRIES

    def _fail(self, worker: _Worker, error: str) -> None:
        """End a trial as FAIL; the same error in two trials in a row would only burn the rest of the budget."""
        self._finish(worker, TrialState.FAIL, reason=error)
        if error == self.last_failure:
            self.stopping = True
            self.fatal = TrainingFailed(f"two trials in a row ended in the same error: {error}")
        self.last_failure = error

    def _running_seconds(self) -> dict[int, float]:
        return {number: sum(progress.seconds.values()) for number, progress in self.progress.items()}


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The best feasible COMPLETE trial; the smaller model, then the older trial on a tie."""
    feasible = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and all(excess <= 0 for excess in trial.constraints.values())
    ]
    return min(
        feasible,
        key=lambda trial: (-trial.values[0], trial.user_attrs["num_params"], trial.number),
        default=None,
    )

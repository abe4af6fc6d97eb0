"""The trainings for an export: the best candidates are trained with fresh seeds, then the winner for the last time."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from logging import WARNING
from typing import TypeVar

from optuna.trial import FrozenTrial

from search.console import Terminal, show_progress
from search.devices import WorkerDevice
from search.errors import Interrupted, NothingToExport
from search.export.choice import choose_trials
from search.export.deadline import Deadline, TimeIsUp, Unconfirmed, sentence_of
from search.export.trainings import Outcome, Training, TrainingQueue
from search.paths import Runs
from search.plan.schedule import Schedule
from search.policy.race import cost
from search.study.confirmation import (
    Confirmation,
    ConfirmationPlan,
    begin,
    candidates,
    confirmation_of,
    final_seed,
    missing,
    plan_of,
    record,
)
from search.study.marks import own_trials
from search.study.outage import Outage
from search.study.owned import OwnedStudy
from search.study.storage import wait_briefly
from search.study.study import teacher_hash
from search.study.trial import exportable, ranked, sampled_settings, view_of
from search.watch.page import show_confirmation
from search.words import count
from search.workers.crew import POLL_SECONDS
from search.workers.places import open_pool
from studies.final import Rerank
from studies.objective import value_of
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.errors import DivergedError
from trainer.identity import identity_json, later_recipe
from trainer.results import over_folds

T = TypeVar("T")

Stages = list[list[Training]]
"""The stages of a final training, in order. Each has a training for every member, or for all folds together;
with [final.rerank], the last one has two."""


class Retraining:
    """The trainings of one export, on all devices. Their checkpoints stay on disk, so they survive any interruption.

    Args:
        owned: the study.
        runs: the runs folder.
        data: the study's pictures.
        devices: the devices to train on, one for each worker.
        console: shows progress and messages.
        schedule: the time of the whole study; None: no limit.
    """

    def __init__(
        self,
        owned: OwnedStudy,
        runs: Runs,
        data: Dataset,
        devices: list[WorkerDevice],
        console: Terminal,
        schedule: Schedule | None = None,
    ) -> None:
        self.owned, self.study, self.spec, self.runs, self.data = owned, owned.study, owned.spec, runs, data
        self.devices, self.console, self.deadline = devices, console, Deadline(schedule)
        self.unconfirmed: Unconfirmed | None = None
        """The step of the confirmation for which there was no time; None if there was time for all steps."""
        self.raise_if_stopped = partial(raise_if_stopped, runs, self.spec.name)
        """Called between the steps of the export."""
        self.confirming: list[Training] = []
        """All trainings that the confirmation may need."""
        self.first_seed = 0
        """Number of the first member's seed: the first of those that measured the winner, if this export has
        confirmed one with such seeds; else 0, as with --trial."""
        self.unrecorded: deque[tuple[int, int, float | None, float]] = deque()
        """Results of the confirmation that are not in the database yet: the arguments of ``record``."""
        self.outage = Outage(console.say)
        self.queue: TrainingQueue | None = None

    def __enter__(self) -> Retraining:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()

    # -- the database, which may be unavailable

    def with_database(self, step: Callable[[], T]) -> T:
        """Run a step that needs the database; during an outage, wait. The step must be safe to repeat.

        Raises:
            HeldError: another process has taken over the study.
            StudyChanged: the study was deleted.
            SQLAlchemyError, StorageInternalError: the outage was longer than ``faults.storage_minutes``.
            Interrupted: the export was asked to stop meanwhile.
        """
        answers: list[T] = []
        most = self.spec.faults.storage_minutes
        while not self.outage.with_database(self.owned.check, lambda: answers.append(step()), most_minutes=most):
            self.raise_if_stopped()
            time.sleep(POLL_SECONDS)
        return answers[-1]

    def _each_turn(self) -> None:
        """Raise if the export was asked to stop, or if the confirmation's time is over. Check the study's lock, which
        a database server loses in a restart, and record results."""
        self.raise_if_stopped()
        self.deadline.check()
        self.outage.with_database(self.owned.check, self._record)

    def _record(self) -> None:
        while self.unrecorded:
            record(self.study, *self.unrecorded[0])
            show_confirmation(self.study, self.spec)
            self.unrecorded.popleft()

    # -- the choice of the trials

    def choose(self, numbers: Sequence[int] = ()) -> tuple[list[FrozenTrial], Confirmation | None]:
        """Choose the trials to export: those in ``numbers``; if it is empty, the winner of the confirmation.

        Returns:
            The trials, and the confirmation. The confirmation is None if there is none, or if there was no time to
            complete it.
        """
        if not numbers and not self.spec.confirm.is_off and (trial := self._confirm()) is not None:
            return [trial], None  # not confirmed, because the time is over
        found = None if self.spec.confirm.is_off else confirmation_of(self.study, self.spec)
        if numbers or found is None:
            return choose_trials(self.study, numbers, self.spec, self.runs), found
        self.console.say(found.sentence)
        if found.winner is None:
            raise NothingToExport(
                f"each of the {count(len(found.candidates), 'best trial')} of {self.study.study_name!r} diverged when "
                "it was trained with fresh seeds; choose one with --trial, or lower the learning rates of the space"
            )
        winner = next(trial for trial in own_trials(self.study) if trial.number == found.winner)
        return [winner], found

    def _confirm(self) -> FrozenTrial | None:
        """Train the best candidates again, round by round, and then the winner with the seeds that measure it.

        Returns:
            None if the confirmation is complete. If the time is over before that, the trial to export unconfirmed.
        """
        self.with_database(lambda: begin(self.study, self.spec, len(self.devices)))
        plan = plan_of(self.study, self.spec)
        chosen = candidates(self.study, self.spec, plan.race)
        self._say_plan(plan, chosen)
        seeds = range(plan.first_report + plan.report_seeds)
        self.confirming = [self._confirming_training(trial, number) for trial in chosen for number in seeds]
        while todo := missing(self.study, self.spec):
            is_report = todo[0][1] >= plan.first_report
            self.deadline.begin_round([view_of(trial) for trial in exportable(own_trials(self.study), self.spec)])
            try:
                self._train_round("measuring the winner" if is_report else "confirming", todo)
            except TimeIsUp:
                self.deadline.lift()
                self._end_workers()
                self.with_database(self._record)
                return self._give_up_confirming(todo[0][0] if is_report else None)
        self.deadline.lift()
        self.first_seed = plan.first_report if plan.report_seeds else 0
        return None

    def _train_round(self, stage: str, todo: list[tuple[FrozenTrial, int]]) -> None:
        """Train each of these trials with its seed, given by number, and record the results."""
        self.deadline.check()
        trainings = {self._confirming_training(*one).label: one for one in todo}
        with closing(self._outcomes(stage, [self._confirming_training(*one) for one in todo])) as outcomes:
            for outcome in outcomes:
                trial, number = trainings[outcome.training.label]
                value = None if outcome.diverged else value_of(outcome.results[-1], self.spec.search.objective)
                self.deadline.add_steps(outcome)
                self.unrecorded.append((trial.number, number, value, outcome.seconds))
                self._each_turn()
        self.with_database(self._record)

    def _give_up_confirming(self, winner: FrozenTrial | None) -> FrozenTrial:
        """The trial to export when the time is over: the winner of the race, or without one the best of the search."""
        self.unconfirmed = "measured" if winner is not None else "chosen"
        self.console.say(sentence_of(self.unconfirmed, self.spec.name, self.runs), WARNING)
        return winner or choose_trials(self.study, (), self.spec)[0]

    def _say_plan(self, plan: ConfirmationPlan, chosen: list[FrozenTrial]) -> None:
        total, done = cost(plan.race, len(chosen)) + plan.report_seeds, len(plan.results)
        parts: list[str] = []
        for one in plan.race:
            kept = min(one.keep, len(chosen))
            first = f"the best {count(kept, 'trial')}" if kept > 1 else "the best trial"
            again = f"then the best {one.keep} until {'it' if one.keep == 1 else 'each'} has {one.seeds}"
            parts.append(again if parts else f"{first} with {count(one.seeds, 'fresh seed')}")
        parts += [f"then the winner with {plan.report_seeds} more, which measure it"] if plan.report_seeds else []
        already = f", {done} of them already" if done else ""
        self.console.say(f"confirming {', '.join(parts)}: {count(total, 'training')}{already}")
        numbers = {trial.number for trial in chosen}
        highest = [trial.number for trial in ranked(own_trials(self.study), self.spec.limit)[: plan.race[0].keep]]
        if passed := [str(number) for number in highest if number not in numbers]:
            self.console.say(
                f"not confirmed, because they exceed the limit as [final] exports them: trial {', '.join(passed)}"
            )

    def _confirming_training(self, trial: FrozenTrial, number: int) -> Training:
        config = self.spec.config_for(sampled_settings(trial), final_seed(self.spec, trial.number, number))
        return self._training(trial, f"trial {trial.number}, seed {number + 1}", config, folds=self.spec.data.folds)

    # -- the final trainings

    def plan(self, trials: Sequence[FrozenTrial]) -> Stages:
        """The stages of the final training.

        The members' seeds begin with those that measured the winner, if this export has confirmed one with such seeds.
        These seeds had no part in the choice of the trial, so no member was chosen for its own result. A member may
        have the same recipe as one of the trainings that measured the winner. Then it has the same checkpoint, and is
        not trained again.

        With [final.rerank], the last stage has two trainings: that of the exported model, then the plain one with which
        it is compared. Both have the fresh seed that follows that of the first stage. With the same seed, they would
        repeat its batches.

        Raises:
            ConfigError: the model has no such convolution as [final.rerank] names.
        """
        final, members = self.spec.final, self.spec.num_final_trainings
        first, last = [], []
        for trial, number in product(trials, range(members)):
            parts = [f"trial {trial.number}"] if members == 1 or len(trials) > 1 else []
            label = ", ".join([*parts, *([f"member {number + 1} of {members}"] if members > 1 else [])])
            seed = final_seed(self.spec, trial.number, self.first_seed + number)
            config = self.spec.final_config_for(sampled_settings(trial), seed)
            folds = self.spec.data.folds if final.ensemble == "folds" else 0
            first.append(self._training(trial, label, config, folds=folds, fit_on=final.fit_on))
            if final.rerank is not None:
                from trainer.hrank import check_layer  # imports torch

                check_layer(config, self.data.shape, final.rerank.layer)
                again = config.model_copy(update={"seed": final_seed(self.spec, trial.number, self.first_seed + 1)})
                for name, rerank in (("with filters drawn again", final.rerank), ("plain", None)):
                    last.append(self._training(trial, f"{label}, {name}", again, start=first[-1], rerank=rerank))
            if final.finetune is not None:
                tuned = self.spec.finetune_config(config)
                last.append(self._training(trial, label, tuned, fit_on="val", start=first[-1]))
        return [first, last] if last else [first]

    def train(self, stages: Stages) -> list[list[Outcome]]:
        """Run the trainings that are not finished yet, on all devices. Returns the outcome of each model, by stage.

        Raises:
            DivergedError: one of the trainings diverged.
        """
        by_stage = []
        for name, stage in zip(("retraining", self.spec.final.last_stage), stages, strict=False):
            with closing(self._outcomes(name, stage)) as found:
                outcomes = {outcome.training.label: outcome for outcome in found}
            by_stage.append([outcomes[training.label] for training in stage])
            for outcome in by_stage[-1]:
                if outcome.diverged:
                    raise DivergedError(f"{outcome.training.label}: {outcome.diverged}")
        self._end_workers()  # the evaluation and the proof need their memory
        return [[member for outcome in stage for member in _members_of(outcome)] for stage in by_stage]

    def _outcomes(self, stage: str, trainings: list[Training]) -> Generator[Outcome]:
        """The outcome of each training. Workers are started only for trainings that are not finished on disk."""
        from trainer.checkpoint import load_checkpoint

        unfinished = []
        for training in trainings:
            saved = [one.history for one in map(load_checkpoint, training.files) if one is not None]
            if len(saved) < len(training.files) or not all(history[-1].final for history in saved):
                unfinished.append(training)
            elif training.folds:
                ends = [replace(history[-1], seconds=sum(one.seconds for one in history)) for history in saved]
                means = (over_folds(ends[: number + 1], training.folds) for number in range(training.folds))
                yield Outcome(training, tuple(means))
            else:
                yield Outcome(training, saved[0])
        if unfinished:
            with show_progress(self.console) as progress:
                yield from self._queue().train(stage, unfinished, progress)

    def _queue(self) -> TrainingQueue:
        """The one queue of this export. Its workers stay from stage to stage, because starting one takes seconds."""
        if self.queue is None:
            logs = [self.runs.worker_log(self.spec.name, number) for number in range(len(self.devices))]
            self.queue = TrainingQueue(
                open_pool(self.devices, logs, self.spec, self.data.cache_path),
                self.spec.data,
                self.data.cache_path,
                self.spec.faults,
                say=self.console.say,
                each_turn=self._each_turn,
            )
            wait_briefly(self.study)
        return self.queue

    def _end_workers(self) -> None:
        if self.queue is not None:
            self.queue.crew.close(patience_seconds=1)
            self.queue = None

    def _training(
        self,
        trial: FrozenTrial,
        label: str,
        config: TrainConfig,
        *,
        folds: int = 0,
        fit_on: str = "train",
        start: Training | None = None,
        rerank: Rerank | None = None,
    ) -> Training:
        """A training. Its folder is named by a hash of everything that affects the result.

        Many parameters: everything that affects the result.
        """
        teacher = teacher_hash(config)
        parts = [identity_json(config), self.data.fingerprint, folds, fit_on, start and start.folder.name, teacher]
        drawn = [] if rerank is None else [rerank.model_dump(mode="json")]
        recipe = hashlib.sha256(json.dumps([*parts, *drawn, *later_recipe()]).encode()).hexdigest()[:8]
        return Training(
            label=label,
            config=config,
            trial=trial.number,
            folder=self.runs.final_training(self.spec.name, f"{trial.number}-{recipe}"),
            folds=folds,
            fit_on=fit_on,
            start=start,
            rerank=rerank,
            objective=self.spec.search.objective,
        )

    def tidy(self, trials: Sequence[FrozenTrial]) -> None:
        """Remove the checkpoints of confirmed candidates that were not chosen; their results are in the study."""
        if self.unconfirmed is not None:
            return  # a later export completes the confirmation with them
        for training in self.confirming:
            if training.trial not in {trial.number for trial in trials}:
                shutil.rmtree(training.folder, ignore_errors=True)


def _members_of(outcome: Outcome) -> list[Outcome]:
    """The outcome of each model of a training. With folds, a training has a model for each fold; else it has one."""
    from trainer.checkpoint import load_checkpoint

    if not outcome.training.folds:
        return [outcome]
    saved = [load_checkpoint(file) for file in outcome.training.files]
    return [Outcome(outcome.training, one.history) for one in saved if one is not None]


def raise_if_stopped(runs: Runs, study: str) -> None:
    """Raise if ``search stop`` has asked the export of a study to end.

    Raises:
        Interrupted: there is a stop request.
    """
    if runs.stop_requested(study):
        raise Interrupted("export stopped; nothing is lost, the same command goes on from there")

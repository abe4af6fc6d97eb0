"""Whatever happens in whatever order, each trial has one owner and the budget is spent exactly, nothing twice."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.trial import TrialState
from scripted import EPOCHS, Bench, failed, placed, result, spec_of, started
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from search.devices import WorkerDevice
from search.errors import FailureKind
from search.running.coordinator import Coordinator
from search.study import outage
from search.study.events import Epoch as EpochLine
from search.study.journal import read_journal
from search.study.replay import replay
from search.study.storage import backend_of
from search.study.trial import is_paused
from search.workers.messages import Assign, Epoch, FromWorker, Left, Ready, ToWorker
from search.workers.pool import Exit
from studies import Limit

WORKERS = 3
BUDGET = 6
RETRIES = 1


SEARCHES: dict[str, dict[str, str]] = {
    "median": {"pruner": "median"},
    "successive halving": {"pruner": "successive_halving"},
    "parts": {"pruner": "promote", "schedule": "constant"},
    "whole trainings": {"pruner": "promote", "schedule": "cosine"},
}


def accuracy(trial: int, number: int, epochs: int = EPOCHS) -> float:
    return (7 * trial % 5 + number) / 10 + (0.01 if epochs < EPOCHS else 0)


def epoch(trial: int, number: int, epochs: int) -> Epoch:
    said = result(number, accuracy(trial, number, epochs), epochs=epochs)
    return Epoch(trial=trial, result=said, memory_bytes=1 << 30)


class Puppets:
    """A pool whose workers do nothing until they are told to; what they have saved outlives them."""

    def __init__(self, saved: dict[str, int]) -> None:
        self.devices = [WorkerDevice(f"cpu:{number}", None, 1) for number in range(WORKERS)]
        self.saved = saved
        self.trial: dict[int, int | None] = {}
        self.assigned: dict[int, Assign] = {}
        self.waits: set[int] = set()
        self.said: list[tuple[int, FromWorker | Exit]] = []

    def start(self, worker: int) -> None:
        self.trial[worker] = None
        self.said += [(worker, placed(self.devices[worker])), (worker, Ready(device="a puppet"))]

    def send(self, worker: int, message: ToWorker) -> None:
        if worker not in self.trial:
            return  # it is gone, and the Exit is on its way
        if isinstance(message, Assign):
            trial = message.trial
            assert trial not in self.trial.values(), f"trial {trial} has two owners"
            self.trial[worker], self.assigned[worker] = trial, message
            self.said.append((worker, started(trial)))
            for number in range(1, self.saved.get(message.checkpoint, 0) + 1):
                self.said.append((worker, epoch(trial, number, self.epochs(worker))))
        else:
            self.waits.discard(worker)
            if not message.go_on:
                self.leave(worker)

    def events(self, timeout: float) -> Iterator[tuple[int, FromWorker | Exit]]:
        said, self.said = self.said, []
        return iter(said)

    def log_tail(self, worker: int) -> str:
        return ""

    def kill(self, worker: int) -> None:
        self.die(worker)

    def release(self, worker: int) -> None:
        raise AssertionError("none of them is drained")

    def abandon(self, worker: int) -> int:
        raise AssertionError("each of them ends when it is killed")

    def close(self, patience_seconds: float = 5) -> list[int]:
        self.trial.clear()
        return []

    def leave(self, worker: int) -> None:
        trial, self.trial[worker] = self.trial[worker], None
        if trial is not None:
            self.said.append((worker, Left(trial=trial)))

    # -- what may happen to them

    def epochs(self, worker: int) -> int:
        epochs = self.assigned[worker].config["epochs"]
        assert isinstance(epochs, int)
        return epochs

    def train(self, worker: int) -> None:
        trial, checkpoint = self.trial[worker], self.assigned[worker].checkpoint
        assert trial is not None
        number = self.saved.get(checkpoint, 0) + 1
        if number <= self.epochs(worker):
            self.saved[checkpoint] = number
            self.said.append((worker, epoch(trial, number, self.epochs(worker))))

    def die(self, worker: int) -> None:
        if worker in self.trial:
            del self.trial[worker]
            self.said.append((worker, Exit(-9, "")))

    def fail(self, worker: int, kind: FailureKind) -> None:
        trial, self.trial[worker] = self.trial[worker], None
        assert trial is not None
        self.said.append((worker, failed(trial, kind, f"{kind} in trial {trial}")))


class Killed(BaseException):
    """Nothing of the coordinator survives it but the database and the journal."""


class Search(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(sorted(SEARCHES)))
    def launch(self, kind: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.saved: dict[str, int] = {}
        spec = spec_of(trials=BUDGET, pruner=SEARCHES[kind]["pruner"], startup_trials=2, faults={"retries": RETRIES})
        train = spec.train.model_copy(update={"schedule": SEARCHES[kind].get("schedule", spec.train.schedule)})
        self.spec = spec.model_copy(update={"limit": Limit(params=10_000, macs=10_000), "train": train})
        self.at_once = patch.object(outage, "RETRY_SECONDS", 0)
        self.at_once.start()
        self.relaunch()

    def relaunch(self) -> None:
        self.statements_left: float = math.inf
        self.failure: BaseException = Killed()
        self.pool = Puppets(self.saved)
        self.coordinator: Coordinator = Bench(self.folder).coordinator(self.pool, self.spec)
        self.coordinator.begin()
        engine = backend_of(self.coordinator.trials.study).engine
        event.listen(engine, "before_cursor_execute", self.count)
        commit = engine.dialect.do_commit

        def commits(connection: object) -> None:  # and the answer may be lost
            commit(connection)
            self.count()

        engine.dialect.do_commit = commits
        self.on = True

    def count(self, *_: object) -> None:
        self.statements_left -= 1
        if self.statements_left < 0:
            raise self.failure

    def turn(self) -> None:
        self.on = self.coordinator.turn()

    def busy(self) -> list[int]:
        return [worker for worker, trial in self.pool.trial.items() if trial is not None]

    @rule()
    def nothing_happens(self) -> None:
        self.turn()

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), turns=st.integers(0, 2))
    def a_worker_trains(self, data: st.DataObject, turns: int) -> None:
        self.pool.train(data.draw(st.sampled_from(self.busy())))
        for _ in range(turns):
            self.turn()

    @precondition(lambda self: self.pool.trial)
    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        self.pool.die(data.draw(st.sampled_from(sorted(self.pool.trial))))
        self.turn()

    @precondition(lambda self: self.busy())
    @rule(data=st.data(), kind=st.sampled_from(["crash", "device", "memory", "diverged", "disk", "user"]))
    def a_training_fails(self, data: st.DataObject, kind: str) -> None:
        self.pool.fail(data.draw(st.sampled_from(self.busy())), kind)
        self.turn()

    @rule(statements=st.integers(0, 30))
    def the_database_goes_away_in_a_turn_and_comes_back(self, statements: int) -> None:
        self.failure, self.statements_left = OperationalError("", None, Exception("it is gone")), statements
        self.turn()
        self.turn()
        self.statements_left = math.inf

    @rule(statements=st.integers(0, 30))
    def the_coordinator_dies_in_a_turn_and_is_launched_again(self, statements: int) -> None:
        self.failure, self.statements_left = Killed(), statements
        with contextlib.suppress(Killed):
            self.turn()
        self.relaunch()

    @invariant()
    def nobody_trains_what_is_finished(self) -> None:
        trials = self.coordinator.trials.study.get_trials(deepcopy=False)
        assert len(trials) <= BUDGET
        if self.coordinator.backlog:  # an end may be stored whose answer was lost
            return
        for worker in self.coordinator.crew.workers:
            if worker.trial is not None and worker.trial in self.coordinator.trials.progress:
                assert not trials[worker.trial].state.is_finished()

    def teardown(self) -> None:
        if not hasattr(self, "coordinator"):
            return
        self.relaunch()
        turns = 0
        while self.on:
            for worker in self.busy():
                self.pool.train(worker)
            self.turn()
            turns += 1
            assert turns < 500, "it never ends"
        if self.coordinator.fatal is None:  # the same error twice in a row ends a search early
            trials = self.coordinator.trials.study.get_trials(deepcopy=False)
            assert [trial.number for trial in trials] == list(range(BUDGET))
            assert all(trial.state.is_finished() or is_paused(trial) for trial in trials)
            if any(map(is_paused, trials)):
                assert any(trial.state == TrialState.COMPLETE for trial in trials)
        ladder = self.coordinator.trials.rungs.ladder
        for trial in self.coordinator.trials.study.get_trials(deepcopy=False):
            for step, value in trial.intermediate_values.items():
                stage = bisect_left(ladder.steps, step) if ladder.anew else 0
                number, epochs = step - ladder.steps_before(stage), ladder.lengths[stage if ladder.anew else -1]
                assert value == accuracy(trial.number, number, epochs), "a result was overwritten"
        events = read_journal(self.coordinator.journal.path)
        stops = self.spec.search.pruner != "promote"
        for number in {step.trial for step in events if stops and isinstance(step, EpochLine) and step.pruned}:
            state = self.coordinator.trials.study.get_trials(deepcopy=False)[number].state
            assert state != TrialState.COMPLETE, "a decision to prune was lost"
        assert replay(events).identical
        self.at_once.stop()
        shutil.rmtree(self.folder)


Search.TestCase.settings = settings(
    max_examples=3,
    stateful_step_count=18,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
)
TestSearch = Search.TestCase


@pytest.mark.slow
class TestManySearches(Search.TestCase):
    settings = settings(Search.TestCase.settings, max_examples=24)

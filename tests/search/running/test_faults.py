"""What the coordinator does when machines misbehave, with workers that play a script."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from optuna.trial import TrialState
from scripted import EPOCHS, Bench, Script, ScriptedPool, epoch, failed, placed, spec_of, started, states, trains

import search.workers.crew
from search.devices import WorkerDevice
from search.errors import TrainingFailed
from search.study.events import Assign as Assigned
from search.study.events import Crash
from search.study.journal import read_journal
from search.study.progress import Snapshot
from search.workers.crew import patience
from search.workers.messages import Assign, FromWorker
from search.workers.pool import Exit
from studies import Faults
from trainer.errors import DiskError

# -- workers that hang


def test_a_worker_that_makes_no_progress_is_ended_and_its_trial_goes_on(bench: Bench) -> None:
    def hangs_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0 and times == 0:
            yield started(0)
            while True:
                yield None
        yield from trains(assignment, times)

    pool = ScriptedPool(hangs_once)
    coordinator = bench.coordinator(pool, spec_of(trials=2, faults={"first_epoch_seconds": 0.2, "hang_seconds": 0.2}))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE", "COMPLETE"]
    assert pool.trials == [0, 0, 1]
    assert any("made no progress for 0 s and was ended; trial 0 goes on" in note for note in bench.notes)


def test_a_trial_that_always_hangs_fails(bench: Bench) -> None:
    def hangs(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0:
            while True:
                yield None
        yield from trains(assignment, times)

    coordinator = bench.coordinator(
        ScriptedPool(hangs), spec_of(trials=2, faults={"first_epoch_seconds": 0.1, "hang_seconds": 0.1, "retries": 1})
    )
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["FAIL", "COMPLETE"]


def test_a_process_that_no_signal_ends_is_left_alone_and_its_trial_goes_on_elsewhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits for a driver or for a disk that is gone."""

    def hangs_on_the_first(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if pool.worker == 0:
            while True:
                yield None
        yield from trains(assignment, times)

    monkeypatch.setattr(search.workers.crew, "STUCK_SECONDS", 0.1)
    faults = {"first_epoch_seconds": 0.4, "hang_seconds": 0.4}
    pool = ScriptedPool(hangs_on_the_first, 2, unkillable=frozenset({0}))
    coordinator = bench.coordinator(pool, spec_of(trials=3, faults=faults))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 3
    assert pool.started == [0, 1]
    assert "cpu:0 is put aside: process 4242 was killed and does not end" in bench.notes
    assert coordinator.snapshot().problems[0].startswith("cpu:0 put aside: process 4242 was killed and does not end;")

    alone = ScriptedPool(lambda _assignment, _times: itertools.repeat(None), unkillable=frozenset({0}))
    coordinator = Bench(bench.folder / "alone", bench.notes).coordinator(alone, spec_of(trials=1, faults=faults))
    with pytest.raises(TrainingFailed, match="no device is left"):
        coordinator.run()
    assert states(coordinator.trials.study) == ["RUNNING"]


def test_a_process_that_does_not_end_when_the_search_is_stopped_is_named(bench: Bench) -> None:
    def stuck(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        coordinator.stop()
        coordinator.stop()
        while True:
            yield None

    coordinator = bench.coordinator(ScriptedPool(stuck, unkillable=frozenset({0})), spec_of(trials=1))
    assert coordinator.run() is False
    assert bench.notes[-1] == "process 4242 was killed and does not end; its device may need a reset"


# -- workers of a cluster: they wait for a device, are lost with their node, or are preempted


def ends_once(lost: Literal["lost", "preempted"], losses: int) -> Script:
    """The worker of trial 0 ends so, this many times, after the first epoch of each attempt."""

    def script(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0 and times < losses:
            yield started(0)
            yield epoch(0, 1, 0.1)
            yield Exit(0, "", lost=lost)
        yield from trains(assignment, times) if assignment.trial else [epoch(0, number, 0.1) for number in (1, 2, 3)]

    return script


@pytest.mark.parametrize(
    ("lost", "said"), [("lost", "was lost with node7"), ("preempted", "was preempted on node7")], ids=str
)
def test_a_loss_or_preemption_is_no_retry(bench: Bench, lost: Literal["lost", "preempted"], said: str) -> None:
    pool = ScriptedPool(ends_once(lost, losses=10), node="node7")
    coordinator = bench.coordinator(pool, spec_of(trials=1, faults={"retries": 0}))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"]
    assert bench.notes.count(f"worker cpu:0 {said}; trial 0 goes on from its last epoch") == 10
    told = read_journal(coordinator.journal.path)
    assert {event.kind for event in told if isinstance(event, Crash)} == {lost}
    assert {event.node for event in told if isinstance(event, Assigned)} == {"node7"}


def test_eleven_losses_in_a_row_without_a_new_epoch_are_too_many(bench: Bench) -> None:
    pool = ScriptedPool(ends_once("lost", losses=11))
    coordinator = bench.coordinator(pool, spec_of(trials=2, faults={"retries": 0}))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["FAIL", "COMPLETE"]


def test_a_new_epoch_ends_the_row_of_losses_of_a_trial_and_each_epoch_that_of_a_device(bench: Bench) -> None:
    def is_lost_twelve_times(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        for number in range(1, EPOCHS + 1):
            yield epoch(0, number, 0.1)
            if times < 6 or (times < 12 and number == 2):
                yield Exit(0, "", lost="lost")

    pool = ScriptedPool(is_lost_twelve_times)
    coordinator = bench.coordinator(pool, spec_of(trials=1, faults={"retries": 0}))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"]
    assert len(pool.started) == 13


def test_a_worker_that_is_always_lost_before_it_trains_is_put_aside(bench: Bench) -> None:
    class Vanishes(ScriptedPool):
        def _play(self, worker: int) -> Iterator[Any]:
            return iter([placed(self.devices[0]), Exit(0, "", lost="lost")]) if worker == 0 else super()._play(worker)

    def waits_for_it(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        while pool.started.count(0) < 11:
            yield None
        yield from trains(assignment, times)

    pool = Vanishes(waits_for_it, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=2, faults={"retries": 0}))
    assert coordinator.run() is True
    assert pool.started.count(0) == 11
    assert "cpu:0 is put aside: lost or preempted 11 times without an epoch" in bench.warnings


def test_no_clock_runs_while_a_worker_waits_for_its_device(bench: Bench) -> None:
    seen: list[Snapshot] = []

    def ends_the_wait(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.3:
            yield None
        if assignment.trial == 2:
            pool.queued.clear()
        yield from trains(assignment, times)

    pool = ScriptedPool(ends_the_wait, 2, queued={0})
    spec = spec_of(trials=4, faults={"first_epoch_seconds": 0.5, "hang_seconds": 0.5})
    coordinator = bench.coordinator(pool, spec, watch=seen.append)
    assert coordinator.run() is True
    assert pool.started == [0, 1], "nobody was taken for hanging"
    waited = next(moment for moment in seen if moment.finished)
    assert [(one.device, one.waiting, one.node) for one in waited.workers] == [
        ("waiting", True, ""),
        ("a script", False, "here"),
    ]
    assert not any(one.waiting for one in seen[-1].workers)


def test_a_process_that_has_begun_and_is_never_ready_is_ended_and_replaced(bench: Bench) -> None:
    class Stuck(ScriptedPool):
        def _play(self, worker: int) -> Iterator[Any]:
            if len(self.started) == 1:
                yield placed(self.devices[worker])
                yield from itertools.repeat(None)
            yield from super()._play(worker)

    pool = Stuck(trains)
    coordinator = bench.coordinator(pool, spec_of(trials=1, faults={"first_epoch_seconds": 1}))
    coordinator.begin()
    ends = time.monotonic() + 30
    while coordinator.turn():
        assert time.monotonic() < ends, "it counts as waiting"
    assert pool.started == [0, 0]
    assert states(coordinator.trials.study) == ["COMPLETE"]


def test_a_node_with_other_versions_is_put_aside(bench: Bench) -> None:
    class Old(ScriptedPool):
        def _play(self, worker: int) -> Iterator[Any]:
            if worker == 0:
                yield replace(placed(self.devices[0], "old-node"), versions="featherweight 0.0")
                yield from itertools.repeat(None)
            yield from super()._play(worker)

    pool = Old(trains, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=2))
    assert coordinator.run() is True
    assert (pool.started, pool.trials) == ([0, 1], [0, 1])
    assert any("old-node has featherweight 0.0, and the coordinator featherweight" in note for note in bench.warnings)


def test_patience_is_a_multiple_of_the_slowest_epoch_known(bench: Bench) -> None:
    """A second's epoch and a factor of ten: a worker that is silent for half a second is left alone."""

    def slow(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.1)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            yield None
        yield epoch(assignment.trial, 2, 0.1)
        yield epoch(assignment.trial, 3, 0.1)

    pool = ScriptedPool(slow)
    bench.coordinator(pool, spec_of(trials=1, faults={"hang_seconds": 0.1})).run()
    assert pool.trials == [0]


def test_before_the_first_epoch_of_a_candidate_only_the_long_limit_counts() -> None:
    """The next candidate may be many times as large as those measured, and a fold is silent for all of its epochs."""
    faults = Faults(hang_factor=10, hang_seconds=120, first_epoch_seconds=3600)
    assert patience(faults, own=60.0, others=5.0) == 600
    assert patience(faults, own=1.0, others=None) == 120
    assert patience(faults, own=None, others=5.0) == 3600
    assert patience(faults, own=None, others=1000.0) == 10_000
    assert patience(faults, own=None, others=None, epochs=50) == 50 * 3600


# -- memory and devices


def test_out_of_memory_goes_on_in_a_new_process_with_smaller_parts_of_the_batch(bench: Bench) -> None:
    parts = []

    def too_large_in_one(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        parts.append(assignment.micro_batches)
        if assignment.trial == 0 and assignment.micro_batches < 4:
            yield failed(0, "memory", "OutOfMemoryError: CUDA out of memory")
        yield from trains(assignment, times)

    pool = ScriptedPool(too_large_in_one)
    coordinator = bench.coordinator(pool, spec_of(trials=2))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE", "COMPLETE"]
    assert parts == [1, 2, 4, 1]
    assert len(pool.started) == 3, "each time in a new process"


def test_out_of_memory_with_the_pictures_in_it_streams_them_before_the_batch_is_divided(bench: Bench) -> None:
    ways = []

    def too_large(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        ways.append((assignment.streamed, assignment.micro_batches))
        if assignment.micro_batches == 1:
            error = "OutOfMemoryError: CUDA out of memory"
            yield failed(0, "memory", error, with_pictures=not assignment.streamed)
        coordinator.stop()
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.1)

    coordinator = bench.coordinator(ScriptedPool(too_large), spec_of(trials=1))
    assert coordinator.run() is False
    assert ways == [(False, 1), (True, 1), (True, 2)]
    assert coordinator.trials.study.get_trials()[0].user_attrs["streamed"] is True

    def looks(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        ways.append((assignment.streamed, assignment.micro_batches))
        yield from trains(assignment, times)

    assert bench.coordinator(ScriptedPool(looks), spec_of(trials=1)).run() is True
    assert ways[3:] == [(True, 2)], "the next launch knows it too"


def test_a_trial_too_large_for_any_part_is_pruned_and_the_sampler_knows(bench: Bench) -> None:
    def too_large(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0:
            yield failed(0, "memory", "MemoryError")
        yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(too_large), spec_of(trials=2))
    assert coordinator.run() is True
    trial = coordinator.trials.study.get_trials()[0]
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["reason"] == "out of memory with 4 micro-batches"


def test_a_worker_that_the_system_killed_for_memory_counts_as_out_of_memory(bench: Bench) -> None:
    def killed(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if times == 0:
            yield Exit(-9, "", out_of_memory=True)
        assert assignment.micro_batches == 2
        yield from trains(assignment, times)

    coordinator = bench.coordinator(ScriptedPool(killed), spec_of(trials=1))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"]


def test_micro_batches_outlast_the_coordinator(bench: Bench) -> None:
    def too_large(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.micro_batches == 1:
            yield failed(assignment.trial, "memory", "MemoryError")
        coordinator.stop()
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.1)

    coordinator = bench.coordinator(ScriptedPool(too_large), spec_of(trials=1))
    assert coordinator.run() is False
    seen = []

    def looks(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        seen.append(assignment.micro_batches)
        yield started(assignment.trial)
        for number in (1, 2, 3):
            yield epoch(assignment.trial, number, 0.1)

    assert bench.coordinator(ScriptedPool(looks), spec_of(trials=1)).run() is True
    assert seen == [2]


def test_three_cuda_errors_put_a_device_aside_and_the_others_go_on(bench: Bench) -> None:
    def breaks_on_one(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if len(broken) < 3:
            broken.append(assignment.trial)
            yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: an illegal memory access")
        yield from trains(assignment, times)

    broken: list[int] = []
    pool = ScriptedPool(breaks_on_one, 1)
    coordinator = bench.coordinator(pool, spec_of(trials=2))
    with pytest.raises(TrainingFailed, match=r"no device is left \(3 CUDA errors, the last: AcceleratorError"):
        coordinator.run()
    assert any(note.startswith("cpu:0 is put aside after 3 CUDA errors") for note in bench.notes)
    assert states(coordinator.trials.study) == ["RUNNING"], "it was not the trial's fault"

    broken.clear()
    only_first = ScriptedPool(lambda a, t: breaks_on_one(a, t) if a.trial == 0 else trains(a, t), 2)
    coordinator = Bench(bench.folder / "other").coordinator(only_first, spec_of(trials=6))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 6


def test_a_device_on_which_nothing_works_costs_no_trial(bench: Bench) -> None:
    def breaks_on_the_first(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if pool.worker == 0:
            yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: unspecified launch failure")
        yield from trains(assignment, times)

    pool = ScriptedPool(breaks_on_the_first, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=6, faults={"retries": 0}))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 6
    assert any(note.startswith("cpu:0 is put aside after 3 CUDA errors") for note in bench.notes)


def test_a_trial_that_breaks_more_than_one_device_fails_and_the_others_go_on(bench: Bench) -> None:
    def breaks_all(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0:
            yield failed(0, "device", "AcceleratorError: CUDA error: an illegal memory access")
        yield from trains(assignment, times)

    pool = ScriptedPool(breaks_all, 3)
    coordinator = bench.coordinator(pool, spec_of(trials=6))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["FAIL", *["COMPLETE"] * 5]
    assert pool.trials.count(0) == 4, "one more than puts a device aside"
    assert "an illegal memory access" in coordinator.trials.study.get_trials()[0].user_attrs["reason"]


def test_a_trial_that_broke_the_only_device_does_not_stop_every_launch(bench: Bench) -> None:
    def breaks_all(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0:
            yield failed(0, "device", "AcceleratorError: CUDA error: an illegal memory access")
        yield from trains(assignment, times)

    with pytest.raises(TrainingFailed, match="no device is left"):
        bench.coordinator(ScriptedPool(breaks_all), spec_of(trials=2)).run()
    coordinator = bench.coordinator(ScriptedPool(breaks_all), spec_of(trials=2))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["FAIL", "COMPLETE"]


def test_errors_of_all_workers_of_a_gpu_count_together_and_put_it_aside_for_all_of_them(bench: Bench) -> None:
    def breaks(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: an illegal memory access")

    pool = ScriptedPool(breaks, 2)
    pool.devices = [WorkerDevice(f"gpu 0:{number}", "GPU-a", 1) for number in range(2)]
    coordinator = bench.coordinator(pool, spec_of(trials=2))
    with pytest.raises(TrainingFailed, match="no device is left"):
        coordinator.run()
    assert [note for note in bench.notes if "put aside" in note] == [
        "gpu 0 is put aside after 3 CUDA errors, the last: AcceleratorError: CUDA error: an illegal memory access"
    ]
    assert len(pool.assigned) <= 4, "three errors, and what was assigned already"


def test_gpus_of_two_nodes_are_two_even_if_their_names_are_the_same(bench: Bench) -> None:
    class TwoNodes(ScriptedPool):
        def _play(self, worker: int) -> Iterator[Any]:
            self.node = f"node{worker}"
            return super()._play(worker)

    def breaks_on_the_first(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if pool.worker == 0:
            yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: an illegal memory access")
        yield from trains(assignment, times)

    pool = TwoNodes(breaks_on_the_first, 2)
    pool.devices = [WorkerDevice(f"gpu {number}", "GPU-a", 1) for number in range(2)]
    coordinator = bench.coordinator(pool, spec_of(trials=6))
    assert coordinator.run() is True
    assert [worker.disabled for worker in coordinator.crew.workers] == [True, False]


def test_a_gpu_that_was_put_aside_is_not_used_when_a_cluster_assigns_it_again(bench: Bench) -> None:
    class TwoNodes(ScriptedPool):
        def _play(self, worker: int) -> Iterator[Any]:
            self.node = "node7" if worker < 2 else "node8"
            return super()._play(worker)

    def breaks_there(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if pool.worker < 2:
            yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: an illegal memory access")
        yield from trains(assignment, times)

    pool = TwoNodes(breaks_there)
    pool.devices = [WorkerDevice(f"slurm:{number}", "any", 1, place="slurm") for number in range(3)]
    coordinator = bench.coordinator(pool, spec_of(trials=1))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"]
    assert (pool.started, pool.trials) == ([0, 0, 0, 1, 2], [0, 0, 0, 0])
    assert "slurm:1 is put aside: 3 CUDA errors of this GPU of node7" in bench.warnings
    assert pool.released == [], "Ray would assign it again"


def test_a_device_that_was_not_needed_takes_over_from_one_put_aside(bench: Bench) -> None:
    def breaks_three_times(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if times < 3:
            yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: an illegal memory access")
        yield from trains(assignment, times)

    pool = ScriptedPool(breaks_three_times, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=1))
    assert coordinator.run() is True
    assert pool.started == [0, 0, 0, 1]
    assert states(coordinator.trials.study) == ["COMPLETE"]


class DropsOut(ScriptedPool):
    """Worker 0 starts once; after that its device is not there any more."""

    def start(self, worker: int) -> None:
        self.starts_fail = worker == 0 and worker in self.started
        super().start(worker)

    def _play(self, worker: int) -> Iterator[Any]:
        return iter([Exit(1, "ConfigError: no GPU")]) if self.starts_fail else super()._play(worker)


@pytest.mark.parametrize("trials", [1, 6])
def test_a_device_that_drops_out_is_put_aside_and_the_others_go_on(bench: Bench, trials: int) -> None:
    """Others that train already, or one that was not needed so far."""

    def breaks_on_the_first(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if pool.worker == 0:
            yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: it fell off the bus")
        yield from trains(assignment, times)

    pool = DropsOut(breaks_on_the_first, 2)
    coordinator = bench.coordinator(pool, spec_of(trials=trials))
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * trials
    aside = "no new process of it can start, see its log"
    assert f"cpu:0 is put aside: {aside}" in bench.notes
    assert any(problem.startswith(f"cpu:0 put aside: {aside};") for problem in coordinator.snapshot().problems)


def test_the_last_device_that_drops_out_ends_the_search_with_its_log(bench: Bench) -> None:
    def breaks(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield failed(assignment.trial, "device", "AcceleratorError: CUDA error: it fell off the bus")

    coordinator = bench.coordinator(DropsOut(breaks), spec_of(trials=2))
    with pytest.raises(TrainingFailed, match=r"worker cpu:0 cannot start \(.*\):\nConfigError: no GPU"):
        coordinator.run()
    assert states(coordinator.trials.study) == ["RUNNING"]


# -- the disk


def test_a_full_disk_pauses_the_search_until_there_is_room(bench: Bench) -> None:
    def full_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 1 and times == 0:
            yield failed(1, "disk", "no room for a checkpoint of 9 bytes in x; free some")
        yield from trains(assignment, times)

    problems: list[str] = []

    def frees_after_a_while(snapshot: Snapshot) -> None:
        problems.extend(snapshot.problems)
        if len(problems) > 3:
            coordinator.room_needed = 0

    pool = ScriptedPool(full_once)
    coordinator = bench.coordinator(pool, spec_of(trials=3), watch=frees_after_a_while, room_needed=1 << 60)
    assert coordinator.run() is True
    assert states(coordinator.trials.study) == ["COMPLETE"] * 3
    assert problems[0] == "paused: no room for a checkpoint of 9 bytes in x; free some"
    assert pool.trials == [0, 1, 1, 2]
    assert "there is room on the disk; going on" in bench.notes


def test_a_disk_that_refuses_although_there_is_room_ends_the_search_and_loses_nothing(bench: Bench) -> None:
    def full(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield failed(assignment.trial, "disk", "no room for a checkpoint of 9 bytes in x; free some")

    coordinator = bench.coordinator(ScriptedPool(full))
    with pytest.raises(DiskError, match=r"^no room for a checkpoint of 9 bytes in x; free some$"):
        coordinator.run()
    assert states(coordinator.trials.study) == ["RUNNING"]
    again = bench.coordinator(ScriptedPool(trains), spec_of(trials=2))
    assert again.run() is True
    assert states(again.trials.study) == ["COMPLETE", "COMPLETE"]


def test_the_oldest_checkpoints_that_nobody_trains_go_when_the_quota_is_spent(bench: Bench) -> None:
    study = bench.folder / "studies/scripted"
    for age, name in enumerate(("final/new", "final/old")):
        (study / name).mkdir(parents=True)
        (study / name / "checkpoint").write_bytes(b"0" * 700)
        past = time.time() - 100 * (age + 1)
        os.utime(study / name / "checkpoint", (past, past))
    bench.coordinator(ScriptedPool(trains), spec_of(trials=1, faults={"checkpoint_gb": 1e-6})).run()
    assert (study / "final/new").exists()
    assert not (study / "final/old").exists()
    assert "checkpoints beyond 1e-06 GB: removed final/old" in bench.notes


# -- another result


def test_an_epoch_trained_again_with_another_result_fails_its_trial(bench: Bench) -> None:
    def stops_early(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        coordinator.stop()
        yield epoch(assignment.trial, 1, 0.5)

    coordinator = bench.coordinator(ScriptedPool(stops_early), spec_of(trials=1))
    coordinator.run()

    def elsewhere(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        yield epoch(assignment.trial, 1, 0.6)

    again = bench.coordinator(ScriptedPool(elsewhere), spec_of(trials=1))
    assert again.run() is True
    (trial,) = again.trials.study.get_trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "epoch 1 was 50.00% before an interruption and is 60.00% trained again"


def test_the_trial_of_a_lost_worker_goes_on_with_files_of_its_own(bench: Bench) -> None:
    """The worker may still train on a node that nobody reaches, and write an older checkpoint."""
    paths: list[Path] = []

    def is_lost_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        checkpoint = Path(assignment.checkpoint)
        paths.append(checkpoint)
        if times == 0:
            yield started(0)
            checkpoint.parent.mkdir(parents=True)
            checkpoint.write_text("after epoch 1")
            checkpoint.with_suffix(".partial").write_text("half of")
            yield epoch(0, 1, 0.1)
            yield Exit(0, "", lost="lost")
        assert checkpoint.read_text() == "after epoch 1"
        assert not checkpoint.with_suffix(".partial").exists()
        paths[0].with_suffix(".partial").replace(paths[0])
        assert checkpoint.read_text() == "after epoch 1"
        for number in (1, 2, 3):
            yield epoch(0, number, 0.1)

    coordinator = bench.coordinator(ScriptedPool(is_lost_once), spec_of(trials=1))
    assert coordinator.run() is True
    assert paths == [coordinator.runs.trial("scripted", 0) / "checkpoint", paths[0].parent / "1" / "checkpoint"]
    assert not paths[0].parent.exists(), "nothing is left of a trial that has finished"

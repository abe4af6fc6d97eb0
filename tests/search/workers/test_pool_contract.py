"""What every pool promises (search/workers/pool.py), proven for each: workers here play, and need no torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plays import COMPLAINT, assignment, play
from pools import Said, begin, has, local_pool, ray_pool, slurm_pool, until
from scripted import ScriptedPool

from search.devices import WorkerDevice
from search.process import versions
from search.workers.local import LocalPool
from search.workers.messages import Answer, Epoch, Failed, Left, Placed, Ready, Started
from search.workers.piped import SECRETS, PipedPool
from search.workers.pool import Exit, Pool
from search.workers.slurm import SlurmPool


@pytest.fixture(params=["scripted", "local", "slurm", pytest.param("ray", marks=pytest.mark.slow)])
def pool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    made: Pool
    match request.param:
        case "scripted":
            made = ScriptedPool(play, num_workers=2, log=COMPLAINT)
        case "local":
            made = local_pool(tmp_path, monkeypatch)
        case "slurm":
            made = slurm_pool(tmp_path, monkeypatch, request.getfixturevalue("slurm"))
        case _:
            digits = request.getfixturevalue("digits")
            made = ray_pool(tmp_path, monkeypatch, request.getfixturevalue("ray"), digits.cache_path)
    yield made
    made.close(patience_seconds=0)
    if isinstance(made, SlurmPool):
        request.getfixturevalue("slurm").clear()


class TestPool:
    def test_a_worker_says_first_that_it_is_ready_and_then_all_of_each_training_in_order(self, pool: Pool) -> None:
        begin(pool, 0, 1)
        for worker in (0, 1):
            pool.send(worker, assignment("trains", worker + 7))
        said = until(pool, has(Left, 2))
        for worker in (0, 1):
            own = [event for by, event in said if by == worker]
            assert [type(event) for event in own] == [Started, Epoch, Epoch, Left]
            assert {event.trial for event in own if not isinstance(event, Ready | Exit)} == {worker + 7}
        started = next(event for _, event in said if isinstance(event, Started))
        assert started.sizes == {"width_mult": 0.1 + 0.2}, "to the last bit"
        assert all(event.result.train_loss == float("inf") for _, event in said if isinstance(event, Epoch))

    def test_its_first_message_says_where_it_is_and_with_which_versions(self, pool: Pool) -> None:
        pool.start(0)
        first = until(pool, lambda said: bool(said))[0]
        assert first == (0, Placed(node="here", gpu=None, kind="cpu", versions=versions()))

    def test_an_answer_that_says_no_ends_the_training_and_the_worker_takes_the_next(self, pool: Pool) -> None:
        begin(pool, 0)
        pool.send(0, assignment("trains"))
        said: Said = []
        while not has(Left)(said):
            for worker, event in pool.events(0.2):
                said.append((worker, event))
                if isinstance(event, Epoch):
                    pool.send(worker, Answer(go_on=False))
        assert [type(event) for _, event in said] == [Started, Epoch, Left]
        pool.send(0, assignment("fails", 1))
        assert [type(event) for _, event in until(pool, has(Failed))] == [Failed]

    def test_a_process_that_ends_has_exactly_one_exit_after_all_that_it_said(self, pool: Pool) -> None:
        begin(pool, 0)
        pool.send(0, assignment("crashes"))
        said = until(pool, has(Exit))
        assert [type(event) for _, event in said] == [Started, Exit]
        assert said[-1] == (0, Exit(3, COMPLAINT)), "which is not lost: it ended by itself"
        assert pool.log_tail(0) == COMPLAINT, "of one that has ended too"
        assert [event for _ in range(3) for event in pool.events(0.1)] == []

    def test_a_worker_keeps_its_number_when_it_is_started_again(self, pool: Pool) -> None:
        begin(pool, 1)
        pool.send(1, assignment("crashes"))
        until(pool, has(Exit))
        begin(pool, 1)
        pool.send(1, assignment("trains"))
        assert {worker for worker, _ in until(pool, has(Left))} == {1}

    def test_a_kill_is_at_once_may_be_repeated_and_gives_one_exit(self, pool: Pool) -> None:
        begin(pool, 0)
        pool.send(0, assignment("sleeps"))
        list(pool.events(0.1))
        pool.kill(0)
        pool.kill(0)
        (exit_,) = [event for _, event in until(pool, has(Exit)) if isinstance(event, Exit)]
        assert (exit_.returncode, exit_.out_of_memory, exit_.lost) == (-signal.SIGKILL, False, None)
        pool.kill(0)
        pool.kill(1)
        assert [event for _ in range(3) for event in pool.events(0.1)] == []

    def test_what_is_sent_to_a_worker_without_a_process_is_lost_without_an_error(self, pool: Pool) -> None:
        pool.send(0, assignment("trains"))
        begin(pool, 0)
        assert [event for _ in range(3) for event in pool.events(0.1)] == []
        pool.kill(0)
        pool.send(0, assignment("trains"))
        assert [type(event) for _, event in until(pool, has(Exit))] == [Exit]
        pool.send(0, assignment("trains"))

    def test_an_abandoned_process_is_heard_of_no_more_and_its_worker_can_start_again(self, pool: Pool) -> None:
        begin(pool, 0)
        pool.send(0, assignment("sleeps"))
        list(pool.events(0.1))
        processes = [entry.process for entry in pool._processes.values()] if isinstance(pool, PipedPool) else []
        number = pool.abandon(0)
        assert number in [process.pid for process in processes] if processes else number > 0
        assert [event for _ in range(3) for event in pool.events(0.1)] == []
        begin(pool, 0)
        for process in processes:  # which the system would have ended one day
            process.kill()
            process.wait()

    def test_closing_ends_idle_and_busy_workers(self, pool: Pool) -> None:
        begin(pool, 0, 1)
        pool.send(1, assignment("sleeps"))
        begun = time.monotonic()
        assert pool.close(patience_seconds=0.5) == []
        assert time.monotonic() - begun < 20


def test_what_is_sent_to_a_stopped_process_waits_and_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = local_pool(tmp_path, monkeypatch)
    begin(pool, 0)
    process = pool._processes[0].process
    os.kill(process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    for trial in range(1000):  # half a megabyte; a pipe holds 64 kB
        pool.send(0, assignment("fails", trial))
    assert time.monotonic() - begun < 60
    assert list(pool.events(0.1)) == []
    os.kill(process.pid, signal.SIGCONT)
    said = until(pool, has(Failed, 1000))
    assert [event.trial for _, event in said if isinstance(event, Failed)] == list(range(1000)), "whole, and in order"
    for _ in range(1000):
        pool.send(0, assignment("fails"))
    pool.kill(0)
    until(pool, has(Exit))
    assert pool.close(patience_seconds=0) == []


def test_a_process_is_out_of_reach_of_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends Ctrl-C, and the end of itself, to the processes of its session."""
    pool = local_pool(tmp_path, monkeypatch)
    begin(pool, 0)
    number = pool._processes[0].process.pid
    assert os.getsid(number) == number
    pool.close(patience_seconds=0)


def test_a_process_that_says_what_is_no_message_is_ended_and_its_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho 'a library prints'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [tmp_path / "log"])
    pool.start(0)
    ((_, event),) = until(pool, has(Exit))
    assert isinstance(event, Exit)
    assert "a line that is not a message: b'a library prints'" in event.log_tail
    pool.close()


def test_a_process_has_its_device_and_no_secret_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nenv >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    for secret in SECRETS:
        monkeypatch.setenv(secret, "hunter2")
    pool = LocalPool([WorkerDevice("gpu 1", "GPU-1", 3)], [tmp_path / "log"])
    pool.start(0)
    until(pool, has(Exit))
    environment = (tmp_path / "log").read_text()
    assert "CUDA_VISIBLE_DEVICES=GPU-1\n" in environment
    assert "OMP_NUM_THREADS=3\n" in environment
    assert "hunter2" not in environment
    pool.close()

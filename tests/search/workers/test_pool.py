"""Workers as subprocesses: how their ends are told apart."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import spec_of

import search.workers.crew
from search.devices import WorkerDevice
from search.workers import piped
from search.workers.crew import Crew
from search.workers.failures import Failure
from search.workers.local import LocalPool
from search.workers.messages import Answer
from search.workers.piped import PipedPool
from search.workers.places import open_pool
from search.workers.pool import Exit
from search.workers.slurm import SlurmPool
from studies import Faults
from studies.cluster import Cluster


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "memory.events"
    monkeypatch.setattr(piped, "_oom_counters", lambda: iter([tmp_path / "not here", file]))
    return file


@pytest.fixture
def pool(tmp_path: Path, counter: Path) -> Iterator[LocalPool]:
    counter.write_text("oom 9\noom_kill 7\n")
    pool = LocalPool([WorkerDevice(f"cpu:{number}", None, 1) for number in range(3)], [tmp_path / "log"] * 3)
    for worker in range(3):
        pool.start(worker)
    yield pool
    pool.close(patience_seconds=0)


def test_closing_does_not_wait_for_a_process_that_no_signal_ends(
    pool: LocalPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [entry.process for entry in pool._processes.values()]
    stopped, *_ = processes
    os.kill(stopped.pid, signal.SIGSTOP)  # so that it does not see the end of its input
    monkeypatch.setattr(piped, "END_SECONDS", 0.3)
    with monkeypatch.context() as held:
        held.setattr(stopped, "kill", lambda: None)
        begun = time.monotonic()
        assert pool.close(patience_seconds=0) == [stopped.pid]
        assert time.monotonic() - begun < 10
    assert [process.poll() is None for process in processes] == [True, False, False]
    stopped.kill()
    stopped.wait()


def test_a_process_that_has_fallen_silent_and_does_not_end_delays_no_other(
    tmp_path: Path, counter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec >&-\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [tmp_path / "log"])
    pool.start(0)
    begun = time.monotonic()
    while not pool._processes[0].has_hung_up:
        assert list(pool.events(0.2)) == []
    assert list(pool.events(0.2)) == []
    assert time.monotonic() - begun < 10
    pool.kill(0)
    assert exit_of(pool).returncode == -signal.SIGKILL
    assert pool.close() == []


def test_a_process_that_the_system_refuses_is_an_end_with_the_reason_in_the_log(
    tmp_path: Path, counter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [tmp_path / "log"])
    crew = Crew(pool, Faults(retries=1), say=print)
    (worker,) = crew.workers
    crew.start(1)
    for why in (None, "worker cpu cannot start"):
        pool.kill(0)
        ((_, event),) = crew.events(0, patience=lambda _: 60)
        assert isinstance(event, Exit)
        assert (event.returncode, event.out_of_memory, event.lost) == (1, False, None)
        assert event.log_tail.endswith(f"refuses a process: [Errno 2] No such file or directory: '{sys.executable}'")
        assert crew.on_exit(worker, restart=True) == why
    assert pool.close(patience_seconds=0) == []


def test_a_step_of_slurm_ends_although_the_system_refuses_scancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").write_text("""#!/bin/sh\necho '{"type": "step", "step": "1.0"}'\nexec /bin/sleep 60\n""")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    pool = SlurmPool([WorkerDevice("slurm:0", None, 1, place="slurm")], [tmp_path / "log"], "plays", [])
    pool.start(0)
    while pool._processes[0].step is None:
        assert list(pool.events(1.0)) == []
    pool.kill(0)
    assert exit_of(pool).returncode == -signal.SIGKILL
    assert pool.close() == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("STEP; CODE 3; exit 3", Exit(3, "")),
        ("STEP; CODE 137; exit 137", Exit(-signal.SIGKILL, "")),
        ("STEP; CODE 76; exit 76", Exit(76, "", lost="preempted")),
        ("STEP; exit 0", Exit(0, "", lost="lost")),
        ("STEP; SAYS CANCELLED AT 2026-11-30T12:00:00 DUE TO NODE FAILURE; exit 0", Exit(0, "SAID", lost="lost")),
        ("STEP; SAYS CANCELLED AT 2026-11-30T12:00:00 DUE TO PREEMPTION; exit 1", Exit(1, "SAID", lost="preempted")),
        ("SAYS job 7 queued and waiting for resources; exit 1", Exit(1, "SAID", lost="preempted")),
        ("SAYS Unable to allocate resources; exit 1", Exit(1, "SAID")),
    ],
)
def test_the_end_of_a_worker_of_slurm_is_what_its_node_and_srun_have_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: Exit
) -> None:
    """A program stands in for srun. Without a report of the node, srun's own code means nothing."""
    program = f"""#!/bin/sh
step() {{ echo '{{"type": "step", "step": "7.0"}}'; }}
code() {{ echo "{{\\"type\\": \\"exit\\", \\"code\\": $1}}"; }}
says() {{ echo "srun: * $* *" >&2; }}
{script.replace("STEP", "step").replace("CODE", "code").replace("SAYS", "says")}
"""
    (tmp_path / "srun").write_text(program)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pool = SlurmPool([WorkerDevice("slurm:0", None, 1, place="slurm")], [tmp_path / "log"], "plays", [])
    pool.start(0)
    ended = exit_of(pool)
    said = expected.log_tail and ended.log_tail
    assert ended == replace(expected, log_tail=said)
    pool.close()


def test_srun_gets_the_size_of_one_worker_and_the_options_of_the_study_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    spec = spec_of().model_copy(update={"cluster": Cluster(srun=("--partition=gpu", "--time=12:00:00"))})
    devices = [WorkerDevice("slurm:0", "any", 3, place="slurm"), WorkerDevice("slurm:1", None, 3, place="slurm")]
    pool = open_pool(devices, [tmp_path / "0", tmp_path / "1"], spec, tmp_path)
    assert isinstance(pool, SlurmPool)
    one_worker = {"--nodes=1", "--ntasks=1", "--exact", "--cpus-per-task=3", "--mpi=none"}
    one_worker |= {"--partition=gpu", "--time=12:00:00"}
    for worker, gpus in ((0, {"--gpus=1"}), (1, set[str]())):
        words, _ = pool.command(worker)
        options = set(words[words.index("srun") + 1 : words.index("sh")])
        assert options == one_worker | gpus | {f"--job-name=scripted-{worker}"}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "--mem=0" in pool.command(0)[0], "a step may use the memory of its allocation"
    pool.close()


def exit_of(pool: PipedPool) -> Exit:
    while True:
        for _, event in pool.events(1.0):
            if isinstance(event, Exit):
                return event


def test_each_kill_for_want_of_memory_explains_the_end_of_one_worker(pool: LocalPool, counter: Path) -> None:
    def killed(worker: int) -> bool:
        os.kill(pool._processes[worker].process.pid, signal.SIGKILL)
        return exit_of(pool).out_of_memory

    assert not killed(2), "nothing was counted since it began"
    counter.write_text("oom 9\noom_kill 8\n")
    assert killed(0)
    assert not killed(1), "the one that was counted was the other's"
    pool.start(0)
    pool.start(1)
    counter.write_text("oom 9\noom_kill 9\n")
    pool.kill(0)
    assert not exit_of(pool).out_of_memory, "it was ended from here"
    assert killed(1)


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("told", ["an answer", "to make room"])
def test_what_a_process_that_has_ended_is_told_does_no_harm(
    tmp_path: Path, counter: Path, monkeypatch: pytest.MonkeyPatch, told: str, turns: int
) -> None:
    """Its Exit was read, but waits for a database that is away."""
    program, second = tmp_path / "program", tmp_path / "second"
    ready, left = """echo '{"type": "ready", "device": "x"}'""", """echo '{"type": "left", "trial": 0}'"""
    says = f"{ready}; [ -e SECOND ] && exec sleep 60; {left}"
    program.write_text("#!/bin/sh\n" + says.replace("SECOND", str(second)))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(search.workers.crew, "STUCK_SECONDS", 0)
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [tmp_path / "log"])
    crew, said = Crew(pool, Faults(), say=print), list[Any]()
    crew.start(1)
    (worker,) = crew.workers
    while not any(isinstance(event, Exit) for event in said):
        said += [event for _, event in crew.events(5, patience=lambda _: 60)]
    if told == "an answer":
        crew.send(0, Answer(go_on=True))
    else:
        crew.replace(worker, Failure(kind="memory", sentence="MemoryError"))
    assert [list(crew.events(0, patience=lambda _: 0)) for _ in range(turns)] == [[]] * turns
    second.touch()
    assert crew.on_exit(worker, restart=True) is None
    while not worker.ready:
        assert list(crew.events(5, patience=lambda _: 60)) == []
    assert not worker.disabled
    pool.close(patience_seconds=0)

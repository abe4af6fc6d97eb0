"""Workers as subprocesses: how their ends are told apart."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.devices import WorkerDevice
from search.pools import local
from search.pools.local import Exit, LocalPool


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "memory.events"
    monkeypatch.setattr(local, "_oom_counters", lambda: iter([tmp_path / "not here", file]))
    return file


@pytest.fixture
def pool(tmp_path: Path, counter: Path) -> Iterator[LocalPool]:
    counter.write_text("oom 9\noom_kill 7\n")
    pool = LocalPool([WorkerDevice(f"cpu:{number}", None, 1) for number in range(3)], [tmp_path / "log"] * 3)
    for worker in range(3):
        pool.start(worker)
    yield pool
    pool.close(patience_seconds=0)


def exit_of(pool: LocalPool) -> Exit:
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

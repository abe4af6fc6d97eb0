"""Room on the disk for checkpoints: what a launch asks for, and what a search that has none waits for."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Bench, ScriptedPool, failed, spec_of, trains

from search.paths import Runs
from search.plan.prepare import check_room
from search.study.progress import Snapshot
from search.workers.messages import Assign, FromWorker
from search.workers.pool import Exit
from trainer.errors import DiskError


def test_what_the_trials_of_a_stopped_search_have_written_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, free = Runs(tmp_path), 0
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=free))
    for trial in (0, 1, 2):
        runs.trial("scripted", trial).mkdir(parents=True)
    for trial, name in itertools.product((0, 1), ("checkpoint", "checkpoint.previous")):
        (runs.trial("scripted", trial) / name).write_bytes(bytes(1_000_000))
    free = 2_000_000  # for the next file of each of two trials
    check_room(spec_of(), runs, 6_000_000)
    free -= 1
    with pytest.raises(DiskError, match=r"checkpoints need 2.0 MB in .*, 2.0 MB are free; free some or use --runs"):
        check_room(spec_of(), runs, 6_000_000)
    # A third trial, of more workers than there are now, leaves the next files no room.
    (runs.checkpoint("scripted", 2)).write_bytes(bytes(1_000_000))
    with pytest.raises(DiskError, match="checkpoints need 2"):
        check_room(spec_of(), runs, 6_000_000)


def test_a_pause_asks_for_no_room_that_the_running_trials_have_taken_themselves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if times == 0:
            checkpoint = Path(assignment.checkpoint)
            checkpoint.parent.mkdir(parents=True)
            for name in ("checkpoint", "checkpoint.previous"):
                checkpoint.with_name(name).write_bytes(bytes(1000))
            yield failed(assignment.trial, "disk", "no room for a checkpoint of 1,000 bytes in x")
        yield from trains(assignment, times)

    paused: list[int] = []
    real = shutil.disk_usage(bench.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=min(900 + 10 * len(paused), 1000)))

    def look(snapshot: Snapshot) -> None:
        paused.extend([len(pool.assigned)] if snapshot.problems else [])
        if len(paused) > 30:
            coordinator.stop()

    pool = ScriptedPool(full_once)
    coordinator = bench.coordinator(pool, spec_of(trials=1), watch=look, room_needed=3000)
    assert coordinator.run() is True
    assert paused == [1] * 10
    assert "there is room on the disk; going on" in bench.notes


def test_a_runs_folder_that_does_not_answer_pauses_the_search_until_it_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network folder whose server is away: every look at it is an error."""
    paused: list[str] = []

    def stale(*_: object) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def unreadable_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.trial == 0 and times == 0:
            for owner, name in ((shutil, "disk_usage"), (Path, "exists"), (Path, "glob")):
                monkeypatch.setattr(owner, name, stale)
            yield failed(assignment.trial, "disk", "checkpoint x cannot be read: Stale file handle")
        yield from trains(assignment, times)

    def look(snapshot: Snapshot) -> None:
        paused.extend(snapshot.problems)
        if len(paused) == 5:
            monkeypatch.undo()
        elif len(paused) > 30:
            coordinator.stop()

    pool = ScriptedPool(unreadable_once)
    coordinator = bench.coordinator(pool, spec_of(trials=2), watch=look)
    assert coordinator.run() is True
    assert paused == ["paused: checkpoint x cannot be read: Stale file handle"] * 5
    assert pool.trials == [0, 0, 1]

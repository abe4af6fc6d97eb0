"""Everyone who watches a search is told of it, and nobody who fails takes it along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from moments import moment

from search.study.progress import Snapshot, WorkerView
from search.watch import observers as module
from search.watch.live import Display
from search.watch.observers import Observers, StateFile


class Someone:
    def __init__(self, name: str = "someone", *, fails: bool = False) -> None:
        self.name = name
        self.fails = fails
        self.seen = 0
        self.ends: list[tuple[str | None, float]] = []

    def watch(self, snapshot: Snapshot) -> None:
        self.seen += 1
        if self.fails:
            raise OSError("the disk is full")

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        self.ends.append((reason, seconds))
        if self.fails:
            raise OSError("the disk is full")


def snapshot(*, stopping: bool = False) -> Snapshot:
    return moment("birds", 3, (), (WorkerView(label="cpu:0", trial=0, attempt=2),), None, stopping=stopping)


def test_one_that_fails_is_left_alone_for_a_minute_and_named_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails, works = Someone("the page", fails=True), Someone()
    with Observers(Display(), [fails, works], at_once=lambda: False) as observers:
        observers.watch(snapshot())
        observers.watch(snapshot())
        assert (fails.seen, works.seen) == (1, 2)
        monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
        observers._others[fails] = 0  # a minute later
        observers.watch(snapshot())
        assert (fails.seen, works.seen) == (2, 3)
    assert capsys.readouterr().out == "the page is not up to date (the disk is full); the search goes on\n"


def test_they_hear_how_it_ended() -> None:
    def heard(stopping: bool, error: Exception | None, *, killed: bool = False) -> list[tuple[str | None, float]]:
        someone = Someone()
        try:
            with Observers(Display(), [someone], at_once=lambda: killed) as observers:
                observers.watch(snapshot(stopping=stopping))
                if error:
                    raise error
        except RuntimeError:
            pass
        return someone.ends

    assert heard(False, None) == [(None, 20)], "finished"
    assert heard(True, None) == [("", 4)], "stopped, by nothing but a signal"
    assert heard(True, None, killed=True) == [("", 0)], "by a second one"
    assert heard(True, RuntimeError("two trials failed")) == [("two trials failed", 4)]


def test_nobody_is_told_of_a_search_that_never_began() -> None:
    someone = Someone()
    with Observers(Display(), [someone], at_once=lambda: False):
        pass
    assert someone.ends == []


def test_the_state_file_says_what_workers_do_and_is_gone_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    with Observers(Display(), [StateFile(file, "process 7")], at_once=lambda: False) as observers:
        observers.watch(snapshot())
        assert json.loads(file.read_text())["workers"][0]["attempt"] == 2
        before = file.stat().st_mtime_ns
        observers.watch(snapshot())
        assert file.stat().st_mtime_ns == before, "not at every glance"
    assert list(tmp_path.iterdir()) == []

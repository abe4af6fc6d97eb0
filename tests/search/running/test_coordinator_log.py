"""The log file of a search and of an export: what was said, with its level, and what was decided."""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Bench, ScriptedPool, epoch, failed, result, spec_of, started, trains
from sqlalchemy import URL
from tiny import tiny_study

import search.export.export
import search.running.launch
import search.workers.places
from search.console import quietly
from search.devices import WorkerDevice
from search.errors import NothingToExport
from search.export.export import export_best
from search.paths import Runs
from search.process import log_to
from search.running.launch import launch
from search.study.progress import Snapshot
from search.workers.messages import Assign, Epoch, FromWorker
from search.workers.pool import Exit
from studies import StudySpec


def lines_of(file: Path) -> list[tuple[str, str]]:
    """Level and words of each line."""
    found = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (\w+) +(.*)$", file.read_text(), re.MULTILINE)
    return [(level, words) for level, words in found]


def test_the_log_has_every_line_with_its_level_and_every_decision(bench: Bench) -> None:
    def troubled(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        trial = assignment.trial
        if trial == 1 and times == 0:
            yield failed(1, "disk", "no room for a checkpoint of 9 bytes in x; free some")
        elif trial == 2:
            yield Exit(-9, "Killed")
        elif trial == 3:
            yield started(3)
            yield epoch(3, 1, 0.0)
        elif trial == 4:
            yield failed(4, "diverged", "the loss is nan")
        else:
            yield from trains(assignment, times)

    def say(line: str, level: int = logging.INFO) -> None:
        bench.hear(line, level)
        logging.getLogger("search.watch.live").log(level, line)  # as the display does

    def frees_at_once(snapshot: Snapshot) -> None:
        if snapshot.problems:
            coordinator.room_needed = 0

    file = Runs(bench.folder).coordinator_log("scripted")
    spec = spec_of({"retries": 1}, trials=5, pruner="median", startup_trials=1, min_epochs=1)
    coordinator = bench.coordinator(ScriptedPool(troubled), spec, watch=frees_at_once, room_needed=1 << 60)
    coordinator.say = coordinator.crew.say = say
    with log_to(file, say):
        assert coordinator.run() is True
    lines = lines_of(file)
    assert [words for level, words in lines if level == "WARNING"] == bench.warnings
    assert [words for level, words in lines[1:-1] if level in ("INFO", "WARNING")] == bench.notes
    assert [note.split(";")[0] for note in bench.warnings] == [
        "paused: no room for a checkpoint of 9 bytes in x",
        "worker cpu:0 ended with signal 9",
        "trial 2 fail, no epoch finished at epoch 0 of 3 (the worker ended with signal 9)",
    ]
    decided = "\n".join(words for level, words in lines if level == "DEBUG")
    for one in (
        "ask {'trial': 0, 'params': {'lr': ",
        "assign {'trial': 0, 'worker': 'cpu:0', 'attempt': 1, 'node': 'here'}",
        "trial 1: disk (no room for a checkpoint of 9 bytes in x; free some): wait",
        "trial 2: killed (the worker ended with signal 9): again",
        "trial 2: killed (the worker ended with signal 9): give up",
        "epoch {'trial': 3, 'step': 1, 'value': 0.0, 'pruned': True}",
        "trial 4: diverged (the loss is nan): give up",
        "stop {'reason': 'budget spent'}",
    ):
        assert one in decided, decided


class Unseen:
    """No page is drawn."""

    name = "nobody"

    def __init__(self, *_: object) -> None:
        pass

    def watch(self, *_: object) -> None:
        pass

    def end(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture
def launched(tmp_path: Path, url: URL, monkeypatch: pytest.MonkeyPatch) -> Any:
    def begin() -> Snapshot:
        monkeypatch.setattr(search.workers.places, "LocalPool", lambda devices, logs: ScriptedPool(one_epoch))
        monkeypatch.setattr(search.running.launch, "StudyPage", Unseen)
        spec = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=2)))
        return launch(spec, url, Runs(tmp_path), [WorkerDevice("cpu:0", None, 1)])

    def one_epoch(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield started(assignment.trial)
        yield Epoch(trial=assignment.trial, result=result(1, 0.5, epochs=1), memory_bytes=1)

    return begin


def test_a_launch_logs_what_it_says_and_a_quiet_one_too(
    tmp_path: Path, launched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with quietly():
        launched()
    assert capsys.readouterr() == ("", "")
    first = lines_of(Runs(tmp_path).coordinator_log("tiny"))
    said = [words for level, words in first if level == "INFO"]
    assert said[0].startswith("process ")
    assert "featherweight" in said[0]
    assert said[1].startswith("tiny: 2 trials of resnet10t on cpu:0")
    assert [words.split(",")[0] for words in said[2:]] == ["trial 0 complete", "trial 1 complete", said[-1]]
    launched()
    out, err = capsys.readouterr()
    assert err == ""
    again = lines_of(Runs(tmp_path).coordinator_log("tiny"))[len(first) :]
    assert out.splitlines() == [words for level, words in again if level in ("INFO", "WARNING")][1:-1]


def test_an_export_logs_why_it_ended(
    tmp_path: Path, url: URL, launched: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched()
    capsys.readouterr()

    def none(*_: object) -> None:
        raise NothingToExport("no trial is complete")

    monkeypatch.setattr(search.export.export, "choose_trials", none)
    with pytest.raises(NothingToExport):
        export_best("tiny", url, Runs(tmp_path), "cpu")
    last = lines_of(Runs(tmp_path).export_log("tiny"))[-1]
    assert last[0] == "ERROR"
    assert last[1].endswith(" ends: no trial is complete")

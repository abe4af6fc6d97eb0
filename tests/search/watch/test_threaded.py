"""An observer that fails or hangs in its own thread takes nothing from a search, and TensorBoard's files are whole."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from moments import moment
from needed import required

from search.study.progress import Snapshot, WorkerView
from search.study.trial import TrialView
from search.watch import threaded
from search.watch.event_files import EventFiles
from search.watch.threaded import ThreadedObserver


def snapshot(epoch: int, *finished: TrialView, trial: int = 0) -> Snapshot:
    accuracy = epoch / 10 if epoch else None
    worker = WorkerView(label="cpu:0", trial=trial, epoch=epoch, epochs=9, value=accuracy, epoch_seconds=2.0)
    return moment("birds", 3, finished, (worker,), None)


def trial(number: int, value: float, epochs: int) -> TrialView:
    return TrialView(number, "COMPLETE", value, epochs, {"lr": 0.01, "optimizer": "sgd"}, 200_000, 9, 30.0, "")


class Writer:
    """An observer that does what a test says."""

    name = "the tracker"

    def __init__(self, *, raises: bool = False, waits: threading.Event | None = None) -> None:
        self.raises, self.waits = raises, waits
        self.seen: list[int] = []
        self.ended: list[str | None] = []

    def watch(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot.workers[0].epoch)
        self._act()

    def end(self, snapshot: Snapshot, reason: str | None, seconds: float, *, lost: bool = False) -> None:
        self.ended.append(reason)
        self._act()

    def _act(self) -> None:
        if self.waits is not None:
            self.waits.wait()
        if self.raises:
            raise OSError("the disk is full")


def test_it_sees_each_epoch_once_in_order_and_the_end() -> None:
    writer, notes = Writer(), list[str]()
    beside = ThreadedObserver(writer, lambda line, *_: notes.append(line))
    for epoch in (1, 1, 2, 2, 2, 3):
        beside.watch(snapshot(epoch))
    beside.end(snapshot(3), None, 20)
    assert (writer.seen, writer.ended, notes) == ([1, 2, 3], [None], [])


def test_one_that_raises_is_named_once_and_called_again() -> None:
    writer, notes = Writer(raises=True), list[str]()
    beside = ThreadedObserver(writer, lambda line, *_: notes.append(line))
    for epoch in (1, 2, 3):
        beside.watch(snapshot(epoch))
    beside.end(snapshot(3), "told to", 20)
    assert (writer.seen, writer.ended) == ([1, 2, 3], ["told to"])
    assert notes == ["the tracker is not up to date (the disk is full); the search goes on"]


def test_one_that_hangs_delays_neither_the_search_nor_for_long_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "END_SECONDS", 0.3)
    released, notes = threading.Event(), list[str]()
    beside = ThreadedObserver(Writer(waits=released), lambda line, *_: notes.append(line))
    began = time.monotonic()
    for epoch in range(1, 1200):
        beside.watch(snapshot(epoch))
    assert time.monotonic() - began < 10, "the search waits for nothing"
    assert len(beside._waiting) == threaded.MOST_WAITING
    beside.end(snapshot(1200), None, 20)
    assert time.monotonic() - began < 15
    assert notes == ["the tracker did not handle the end of the search within 0.3 s"]
    released.set()


# TensorBoard


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in a folder, by TensorBoard's own reader: tag -> (step, value)."""
    accumulator = required("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(folder))
    accumulator.Reload()
    tags: list[str] = accumulator.Tags()["scalars"]
    return {tag: [(event.step, round(event.value, 4)) for event in accumulator.Scalars(tag)] for tag in tags}


def hyperparameters(folder: Path) -> dict[str, Any]:
    """The settings in a folder, as TensorBoard's page of hyperparameters reads them."""
    multiplexer = required("tensorboard.backend.event_processing.plugin_event_multiplexer").EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder)).Reload()
    metadata = required("tensorboard.plugins.hparams.metadata")
    found = multiplexer.PluginRunToTagToContent(metadata.PLUGIN_NAME)
    (content,) = (tags[metadata.SESSION_START_INFO_TAG] for tags in found.values())
    given = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: value.number_value or value.string_value for name, value in given.items()}


def test_tensorboard_reads_curves_results_and_settings(tmp_path: Path) -> None:
    required("tensorboard")
    notes: list[str] = []
    beside = ThreadedObserver(EventFiles(tmp_path), lambda line, *_: notes.append(line))
    for epoch in (0, 1, 1, 2):
        beside.watch(snapshot(epoch))
    done = trial(0, 0.35, 3)
    beside.watch(snapshot(0, done, trial=1))
    beside.watch(snapshot(1, done, trial=1))
    beside.end(snapshot(1, done, trial=1), "", 20)
    assert notes == []
    first = read(tmp_path / "trial-0")
    assert first["accuracy/val"] == [(1, 0.1), (2, 0.2), (3, 0.35)], "the last one from its result"
    assert first["speed/epoch_seconds"] == [(1, 2.0), (2, 2.0)]
    assert first["result/accuracy"] == [(3, 0.35)]
    assert read(tmp_path / "trial-1")["accuracy/val"] == [(1, 0.1)]
    assert hyperparameters(tmp_path / "trial-0") == {"lr": 0.01, "optimizer": "sgd"}


def test_a_later_launch_adds_what_is_new(tmp_path: Path) -> None:
    required("tensorboard")
    zero, one = trial(0, 0.3, 3), trial(1, 0.4, 3)
    for finished in ((zero,), (zero, one)):
        files = EventFiles(tmp_path)
        files.watch(snapshot(0, *finished, trial=2))
        files.end(snapshot(0, *finished, trial=2), "", 1)
    assert read(tmp_path / "trial-0")["result/accuracy"] == [(3, 0.3)]
    assert read(tmp_path / "trial-1")["result/accuracy"] == [(3, 0.4)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    required("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    notes: list[str] = []
    beside = ThreadedObserver(EventFiles(tmp_path / "tensorboard"), lambda line, *_: notes.append(line))
    beside.watch(snapshot(1))
    beside.end(snapshot(1), "", 20)
    (note,) = notes
    assert note.startswith("TensorBoard is not up to date ([Errno 20] Not a directory: ")

"""What a launch makes of a study before a worker exists, and of signals after."""

from __future__ import annotations

import gc
import math
import os
import signal
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scripted import EPOCHS, ScriptedPool, spec_of, trains
from sqlalchemy import URL
from tiny import tiny_study

import search.running.launch
import studies
from search.devices import WorkerDevice
from search.errors import HeldError
from search.paths import Runs
from search.plan.prepare import checkpoint_bytes, room_needed
from search.plan.space import find_bounds
from search.process import STOP_SIGNALS, without_gc
from search.running.coordinator import Coordinator
from search.running.elastic import Request
from search.running.launch import _signals_to, file_warnings, launch
from search.running.trials import Trials
from search.study.lock import own_study
from search.study.owned import OwnedStudy
from search.study.storage import open_storage, parse_url
from search.study.study import open_study
from search.workers.messages import Epoch
from studies import StudySpec
from trainer.cache import BadFile
from trainer.config import Shape, TrainConfig
from trainer.data import Dataset, Duplicate
from trainer.errors import ConfigError, LimitError
from trainer.kept import write_checked
from trainer.models import count_params


def sizes_vary(**limit: int) -> StudySpec:
    values = spec_of().model_dump() | {"limit": limit, "data": {"source": "digits", "image_size": 16}}
    values["train"] = {"model": "rexnet_100", "epochs": 3, "ema": 0.9}
    values["space"] = {"depth_mult": {"low": 0.5, "high": 1.0}, "width_mult": {"low": 0.3, "high": 0.4}}
    return StudySpec.model_validate(values)


@pytest.mark.parametrize("limit", [{}, {"macs": 10_000_000_000}])
def test_room_is_kept_for_the_largest_candidate_where_no_limit_counts_parameters(
    tmp_path: Path, limit: dict[str, int]
) -> None:
    spec = sizes_vary(**limit)
    bounds = find_bounds(spec, 10, Runs(tmp_path))
    largest = TrainConfig(model="rexnet_100", width_mult=0.4, depth_mult=1.0)
    assert bounds.most_params == count_params(largest, Shape(10, 16, spec.data.channels))
    assert room_needed(spec, bounds, 2) == checkpoint_bytes(bounds.most_params, 2, averaged=True)


def test_a_launch_whose_study_was_taken_while_pictures_were_decoded_creates_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def lost(name: str, url: URL, runs: Runs) -> Iterator[Callable[[], None]]:
        def check_lock() -> None:
            assert list(runs.cache.iterdir()), "the pictures are there"
            raise HeldError(name, "a launch that was faster")

        with own_study(name, url, runs):
            yield check_lock

    monkeypatch.setattr(search.running.launch, "own_study", lost)
    spec = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=1)))
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    with pytest.raises(HeldError, match="in use by a launch that was faster"):
        launch(spec, url, Runs(tmp_path), [WorkerDevice("cpu:0", None, 1)])
    assert open_storage(url).get_all_studies() == []


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"train": {"augment": ["FancyPCB"]}}, ConfigError, "augment: no transform 'FancyPCB'; did you mean"),
        (
            {"train": {"augment": [{"name": "RandomCrop", "height": 64, "width": 64}]}},
            ConfigError,
            "augment: a transform fails on the pictures of this study: Crop size",
        ),
        ({"limit": {"params": 200_000}, "final": {"ensemble": 9}}, LimitError, "9 members of resnet10t at width_mult"),
    ],
)
def test_what_no_worker_could_train_or_export_is_refused_before_one_exists(
    tmp_path: Path, wrong: dict[str, dict[str, Any]], error: type[Exception], sentence: str
) -> None:
    values = tomllib.loads(tiny_study("tiny", trials=1))
    values |= {table: values.get(table, {}) | settings for table, settings in wrong.items()}
    url = parse_url(f"sqlite:///{tmp_path}/search.db")
    with pytest.raises(error) as refused:
        launch(StudySpec.model_validate(values), url, Runs(tmp_path), [WorkerDevice("cpu:0", None, 1)])
    assert sentence in str(refused.value)
    assert open_storage(url).get_all_studies() == []


def test_a_known_recipe_whose_model_does_not_fit_is_left_out_and_the_search_begins_without_it(tmp_path: Path) -> None:
    spec, runs = studies.load("contest/wide_resnet", ["limit.params=2_000_000"]), Runs(tmp_path)
    bounds = find_bounds(spec, 10, runs)
    assert list(bounds.left_out) == ["wrn-40-2", "wrn-28-3", "wrn-16-4", "known.0"]
    assert bounds.left_out["known.0"] == "its model, wrn-40-2, does not fit"
    storage = open_storage(parse_url(f"sqlite:///{runs.database}"), create=True)
    trials = Trials(OwnedStudy(open_study(spec, storage, "content"), spec, lambda: None), bounds.space, runs)
    trials.queued.enqueue(bounds.known)
    assert trials.progress[trials.next()].trial.params["model"] == "wrn-10-5"


def test_a_checkpoint_with_averaged_weights_and_one_of_every_fold_need_more_room() -> None:
    assert checkpoint_bytes(1000, 2) == 2 * 3 * 12_000
    assert checkpoint_bytes(1000, 2, averaged=True) == 2 * 3 * 16_000
    assert checkpoint_bytes(1000, 2, folds=5) == 2 * 11 * 12_000


def test_an_export_gets_the_workers_of_a_cluster_that_the_search_has_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StudySpec.model_validate(tomllib.loads(tiny_study("tiny", trials=2, epochs=EPOCHS)))
    runs, last = Runs(tmp_path), list[str]()
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    def on_epoch(said: Epoch) -> None:
        if len(pool.devices) == 1:
            folder = runs.gpu_requests("tiny")
            folder.mkdir(exist_ok=True)
            write_checked(folder / "1.request", Request(add="slurm:1").model_dump())

    pool = ScriptedPool(trains, on_epoch=on_epoch)
    pool.devices = [WorkerDevice("slurm:0", "any", 4, place="slurm")]
    monkeypatch.setattr(search.running.launch, "open_pool", lambda *_: pool)

    def then(owned: OwnedStudy, schedule: object, devices: list[WorkerDevice]) -> None:
        last.extend(device.label for device in devices)

    launch(spec, parse_url(f"sqlite:///{runs.database}"), runs, list(pool.devices), then=then)
    assert last == ["slurm:0", "slurm:1"]
    assert "2 trials of resnet10t on 1 worker of Slurm; 10 classes" in runs.coordinator_log("tiny").read_text()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_ctrl_c_waits_for_the_epoch_and_the_other_signals_for_the_grace(number: signal.Signals) -> None:
    stops: list[float] = []
    spec = spec_of(faults={"grace_seconds": 7})
    coordinator: Any = SimpleNamespace(spec=spec, stopping=False, stop=stops.append)
    before = signal.signal(number, signal.SIG_DFL)  # a runner in the background ignores SIGINT
    with _signals_to(cast(Coordinator, coordinator)):
        os.kill(os.getpid(), number)
        coordinator.stopping = True
        os.kill(os.getpid(), number)
    once = math.inf if number == signal.SIGINT else 7
    assert stops == ([once] if number == signal.SIGHUP else [once, once]), "a closed terminal says so twice"
    assert signal.signal(number, before) == signal.SIG_DFL


def test_pictures_in_two_splits_and_files_left_out_are_a_line_each_at_launch() -> None:
    pairs = [Duplicate("a.png", "b.png", "across splits"), Duplicate("c.png", "d.png", "across splits")]
    data: Any = SimpleNamespace(bad_files=(BadFile("x.png", "is empty"),), duplicates=tuple(pairs))
    assert list(file_warnings(cast(Dataset, data))) == [
        'left out (bad_files = "skip"): 1, the first: x.png: is empty; search check lists them',
        "exact duplicates across splits: 2, the first: a.png = b.png; search check lists them",
    ]
    assert list(file_warnings(cast(Dataset, SimpleNamespace(bad_files=(), duplicates=())))) == []


def test_garbage_is_collected_again_after_a_large_study_was_read_and_after_an_error() -> None:
    @without_gc()
    def read(error: Exception | None = None) -> bool:
        with without_gc():
            if error is not None:
                raise error
        return gc.isenabled()

    assert not read()
    assert gc.isenabled()
    with pytest.raises(ConfigError):
        read(ConfigError("while it was read"))
    assert gc.isenabled()

"""What --gpus means. Where a test needs a certain number of GPUs, the list of them is given, not asked of a driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search import devices
from search.devices import WorkerDevice, parse_devices, share_gpus
from search.errors import DeviceHeld, UsageError
from search.launch import hold_devices
from search.paths import Runs

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["0", "1", "2", "3"])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: [])


def test_cpu_is_one_worker_with_all_cores() -> None:
    assert parse_devices("cpu") == [WorkerDevice("cpu", None, CORES)]


@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_cpu_2_is_two_workers_that_share_the_cores() -> None:
    assert parse_devices("cpu:2") == [
        WorkerDevice("cpu:0", None, CORES // 2),
        WorkerDevice("cpu:1", None, CORES // 2),
    ]


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_default_is_the_cpu() -> None:
    assert [device.kind for device in parse_devices(None)] == ["cpu"]


@pytest.mark.usefixtures("four_gpus")
def test_with_gpus_the_default_is_all_of_them() -> None:
    assert [device.visible for device in parse_devices(None)] == ["0", "1", "2", "3"]
    assert parse_devices("all") == parse_devices(None)
    assert {device.kind for device in parse_devices(None)} == {"cuda"}


@pytest.mark.usefixtures("four_gpus")
def test_gpus_are_chosen_by_index_in_the_order_given() -> None:
    chosen = parse_devices("2, 0")
    assert [(device.label, device.visible) for device in chosen] == [("gpu 2", "2"), ("gpu 0", "0")]


def test_indices_count_into_what_the_scheduler_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["5", "7"])
    assert [device.visible for device in parse_devices("1")] == ["7"]


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_may_be_named_by_its_uuid() -> None:
    assert parse_devices("GPU-8a56a4bc,MIG-1")[1].visible == "MIG-1"


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("text", ["4", "0,9", "-1", "gpu0", "", "0,", "1.5", "0;1"])
def test_a_gpu_that_does_not_exist_is_an_error_that_lists_those_that_do(text: str) -> None:
    with pytest.raises(UsageError, match="those here are 0, 1, 2, 3"):
        parse_devices(text)


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_named_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="a GPU is named twice"):
        parse_devices("1,2,1")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("text", ["0", "all", "GPU-8a56a4bc", "tpu"])
def test_without_a_gpu_naming_one_is_an_error_that_says_what_to_use(text: str) -> None:
    with pytest.raises(UsageError, match=rf"shows no GPU; use --gpus cpu or cpu:{CORES}"):
        parse_devices(text)


@pytest.mark.parametrize("text", ["cpu:0", "cpu:-1", "cpu:x", "cpu:1.5", f"cpu:{CORES + 1}", "cpu:²"])
def test_an_impossible_number_of_cpu_workers_is_an_error_with_the_range(text: str) -> None:
    with pytest.raises(UsageError, match=rf"write cpu:N with N from 1 to {CORES}"):
        parse_devices(text)


def test_looking_for_gpus_imports_no_torch_and_finds_what_the_driver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices.visible_gpus()
    assert found == [str(index) for index in range(len(found))]
    if found:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, 5")
        assert devices.visible_gpus() == ["7", "5"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert devices.visible_gpus() == []


def test_a_gpu_that_another_search_trains_on_is_refused(tmp_path: Path) -> None:
    runs, both = Runs(tmp_path), [WorkerDevice("gpu 0", "0", 1), WorkerDevice("gpu 1", "1", 1)]
    with hold_devices(both[:1], runs):
        with pytest.raises(DeviceHeld, match=r"gpu 0 is in use by another search in .*; name others in --gpus"):
            hold_devices(both, runs).__enter__()
        with hold_devices(both[1:], runs), hold_devices([WorkerDevice("cpu", None, 1)], runs):
            pass
    with hold_devices(both, runs):
        pass


@pytest.mark.usefixtures("four_gpus")
def test_several_workers_share_a_gpu_and_few_trials_spread_over_all_gpus() -> None:
    two = parse_devices("1,3")
    assert share_gpus(two, 1) == two
    shared = share_gpus(two, 3)
    assert [device.visible for device in shared] == ["1", "3", "1", "3", "1", "3"]
    assert [device.label for device in shared[:3]] == ["gpu 1:0", "gpu 3:0", "gpu 1:1"]
    assert sum(device.num_threads for device in shared) <= max(6, CORES)


def test_workers_per_gpu_changes_nothing_on_the_cpu() -> None:
    assert share_gpus(parse_devices("cpu"), 4) == parse_devices("cpu")

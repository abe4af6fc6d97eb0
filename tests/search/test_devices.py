"""What --gpus means. Where a test needs a certain number of GPUs, the list of them is given, not asked of a driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from search import devices
from search.devices import Gpu, WorkerDevice, hold_devices, parse_devices, share_gpus
from search.errors import DeviceHeld, UsageError
from search.paths import Runs
from trainer.cores import num_cores

CORES = num_cores()


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: [Gpu(str(n), f"GPU-{n}a") for n in range(4)])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: [])


def test_cpu_is_one_worker_with_all_cores_or_as_few_threads_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert parse_devices("cpu") == [WorkerDevice("cpu", None, 8)]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert parse_devices("cpu") == [WorkerDevice("cpu", None, 3)]


def test_cpu_2_is_two_workers_that_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert parse_devices("cpu:2") == [WorkerDevice("cpu:0", None, 4), WorkerDevice("cpu:1", None, 4)]


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_default_is_the_cpu() -> None:
    assert [device.kind for device in parse_devices(None)] == ["cpu"]


@pytest.mark.usefixtures("four_gpus")
def test_with_gpus_the_default_is_all_of_them() -> None:
    assert [device.visible for device in parse_devices(None)] == ["GPU-0a", "GPU-1a", "GPU-2a", "GPU-3a"]
    assert parse_devices("all") == parse_devices(None)
    assert {device.kind for device in parse_devices(None)} == {"cuda"}


@pytest.mark.usefixtures("four_gpus")
def test_gpus_are_chosen_by_index_in_the_order_given() -> None:
    chosen = parse_devices("2, 0")
    assert [(device.label, device.visible) for device in chosen] == [("gpu 2", "GPU-2a"), ("gpu 0", "GPU-0a")]


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs, the last of them in two parts."""
    parts = (Gpu("MIG-x1", "MIG-x1"), Gpu("MIG-y2", "MIG-y2"))
    gpus = [Gpu(str(n), f"GPU-{n}a", parts if n == 3 else ()) for n in range(4)]
    monkeypatch.setattr(devices, "_installed_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize(
    ("outer", "labels"),
    [
        ("3, 1", ["gpu 3", "gpu 1"]),
        ("GPU-2,MIG-y", ["gpu 2", "gpu MIG-y2"]),
        ("1,-1,2", ["gpu 1"]),
        ("7", ["cpu"]),
        ("", ["cpu"]),
    ],
)
def test_what_the_scheduler_shows_is_kept_to_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, outer: str, labels: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outer)
    assert [device.label for device in parse_devices(None)] == labels
    if outer == "3, 1":
        assert [device.visible for device in parse_devices("1")] == ["GPU-1a"], "indices count into it"


@pytest.mark.usefixtures("divided")
def test_a_gpu_or_a_part_of_one_may_be_named_by_its_uuid_and_is_the_same_as_by_its_index() -> None:
    assert parse_devices("GPU-2,MIG-x1,0") == [
        *parse_devices("2,1,0")[:1],
        WorkerDevice("gpu MIG-x1", "MIG-x1", max(1, CORES // 3)),
        *parse_devices("2,1,0")[2:],
    ]
    with pytest.raises(UsageError, match="a GPU is named twice"):
        parse_devices("2,GPU-2a")


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize("text", ["GPU-9", "MIG-z", "GPU-", "1,GPU-8a56a4bc"])
def test_a_uuid_that_no_gpu_has_is_an_error_that_lists_those_that_do(text: str) -> None:
    with pytest.raises(UsageError, match="those here are GPU-0a, GPU-1a, GPU-2a, GPU-3a, MIG-x1, MIG-y2"):
        parse_devices(text)


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


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
def test_looking_for_gpus_finds_what_the_driver_shows() -> None:
    found = devices._installed_gpus()
    assert found
    assert [gpu.name for gpu in found] == [str(index) for index in range(len(found))]
    assert all(gpu.uuid.startswith("GPU-") for gpu in found)


def test_a_gpu_that_another_search_trains_on_is_refused(tmp_path: Path) -> None:
    runs, both = Runs(tmp_path), [WorkerDevice("gpu 0", "GPU-a", 1), WorkerDevice("gpu 1:0", "GPU-b", 1)]
    with hold_devices(both[:1], runs):
        with pytest.raises(
            DeviceHeld, match=r"gpu 0 is in use by another search or export in .*; name others in --gpus"
        ):
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
    assert [device.visible for device in shared] == ["GPU-1a", "GPU-3a"] * 3
    assert [device.label for device in shared[:3]] == ["gpu 1:0", "gpu 3:0", "gpu 1:1"]
    assert sum(device.num_threads for device in shared) <= max(6, CORES)


def test_workers_per_gpu_changes_nothing_on_the_cpu() -> None:
    assert share_gpus(parse_devices("cpu"), 4) == parse_devices("cpu")

"""What --gpus means. Where a test needs a certain number of GPUs, the list of them is given, not asked of a driver."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search import devices, gpu_locks
from search.devices import Gpu, WorkerDevice, parse_devices, share_gpus
from search.errors import DeviceHeld, UsageError
from search.gpu_locks import GpuUse, hold_devices
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
        ("3, 1", ["gpu MIG-x1", "gpu MIG-y2", "gpu 1"]),
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
    for text in ("2,GPU-2a", "3,MIG-y2"):
        with pytest.raises(UsageError, match="a GPU is named twice"):
            parse_devices(text)


@pytest.mark.usefixtures("divided")
def test_a_divided_gpu_stands_for_its_parts() -> None:
    assert [device.visible for device in parse_devices("3")] == ["MIG-x1", "MIG-y2"]
    assert [device.visible for device in parse_devices("all")] == ["GPU-0a", "GPU-1a", "GPU-2a", "MIG-x1", "MIG-y2"]


@pytest.mark.usefixtures("divided")
def test_numbers_that_do_not_count_as_nvidia_smi_does_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert len(parse_devices(None)) == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2")
    assert [device.label for device in parse_devices(None)] == ["gpu 2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES = 1 counts GPUs by CUDA_DEVICE_ORDER = FASTEST_FIRST"):
        parse_devices(None)


# -- GPUs that cannot be used

LOST = Gpu("1", "", problem="the driver cannot open it (GPU is lost); reset it")


@pytest.fixture
def one_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: [Gpu("0", "GPU-0a"), LOST, Gpu("2", "GPU-2a")])


@pytest.mark.usefixtures("one_lost")
def test_a_gpu_that_cannot_be_used_is_left_out_with_a_line_and_the_others_keep_their_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [(device.label, device.visible) for device in parse_devices(None)] == [
        ("gpu 0", "GPU-0a"),
        ("gpu 2", "GPU-2a"),
    ]
    assert capsys.readouterr().err == f"gpu 1 is left out: {LOST.problem}\n"
    assert [device.label for device in parse_devices("2")] == ["gpu 2"]
    with pytest.raises(
        UsageError, match=r"--gpus 2,1: gpu 1 cannot be used: the driver cannot open it \(GPU is lost\)"
    ):
        parse_devices("2,1")


def test_where_no_gpu_can_be_used_nothing_falls_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: [LOST])
    for text in (None, "all"):
        with pytest.raises(
            UsageError, match=r"no GPU of this machine can be used: the driver cannot .* or use --gpus cpu"
        ):
            parse_devices(text)
    assert [device.kind for device in parse_devices("cpu")] == ["cpu"]


def test_a_gpu_is_usable_if_torch_has_kernels_for_it_and_the_driver_knows_its_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_75 sm_80 sm_100f compute_120")
    gpu = Gpu("0", "GPU-0a", capability=(8, 6), newest_cuda=13010)
    assert devices._judged(gpu) == gpu
    (old,) = [devices._judged(replace(gpu, newest_cuda=12040)).problem]
    assert "it knows CUDA up to 12.4, and torch" in str(old)
    assert "update the driver, or install a torch for CUDA 12" in str(old)
    usable = {(7, 0): False, (7, 5): True, (9, 0): False, (10, 3): True, (11, 0): False, (12, 1): True, (13, 0): True}
    for capability, expected in usable.items():
        problem = devices._judged(replace(gpu, capability=capability)).problem
        assert (problem is None) == expected, capability
        if problem is not None:
            assert f"no kernels for its compute capability {capability[0]}.{capability[1]}, only for sm_75, " in problem
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA" in str(devices._judged(gpu).problem)


def test_a_gpu_whose_driver_does_not_answer_is_no_machine_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pynvml

    def fails() -> None:
        raise pynvml.NVMLError_LibraryNotFound  # type: ignore[attr-defined]

    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    monkeypatch.setattr(devices, "DEVICE_FOLDER", tmp_path)
    assert [device.kind for device in parse_devices(None)] == ["cpu"]
    (tmp_path / "nvidia0").touch()
    with pytest.raises(
        UsageError, match=r"there is a GPU \(.*nvidia0\), but .* NVML does not answer: NVML Shared Library"
    ):
        parse_devices(None)
    assert [device.kind for device in parse_devices("cpu")] == ["cpu"]


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize("text", ["GPU-9", "MIG-z", "GPU-", "1,GPU-8a56a4bc"])
def test_a_uuid_that_no_gpu_has_is_an_error_that_lists_those_that_do(text: str) -> None:
    with pytest.raises(UsageError, match="those here are GPU-0a, GPU-1a, GPU-2a, GPU-3a, MIG-x1, MIG-y2"):
        parse_devices(text)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("text", ["4", "0,9", "all:2", "-1", "gpu0", "", "0,", "1.5", "0;1"])
def test_a_gpu_that_does_not_exist_is_an_error_that_lists_those_that_do(text: str) -> None:
    with pytest.raises(UsageError, match="those here are 0, 1, 2, 3"):
        parse_devices(text)


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_named_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="a GPU is named twice"):
        parse_devices("1,2,1")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("text", ["0", "all", "all:2", "GPU-8a56a4bc", "tpu"])
def test_without_a_gpu_naming_one_is_an_error_that_says_what_to_use(text: str) -> None:
    with pytest.raises(UsageError, match=rf"shows no GPU; use --gpus cpu or cpu:{CORES}"):
        parse_devices(text)


@pytest.mark.parametrize("text", ["cpu:", "cpu:0", "cpu:-1", "cpu:x", "cpu:1.5", f"cpu:{CORES + 1}", "cpu:²"])
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


# -- who has a GPU

BOTH = [WorkerDevice("gpu 0", "GPU-a", 1), WorkerDevice("gpu 1:0", "GPU-b", 1)]
LOCK = "featherweight-GPU-a.lock"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for locks, as all users share it, and a driver that says nothing of memory."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(gpu_locks, "LOCK_FOLDERS", (tmp_path / "nowhere", tmp_path, folder))
    monkeypatch.setattr(gpu_locks, "_use_of", lambda uuid: None)
    return folder


def said_of(first: list[WorkerDevice]) -> list[str]:
    """What is said when these are held."""
    said: list[str] = []
    with hold_devices(first, lambda line, level=0: said.append(line)):
        return said


@pytest.mark.usefixtures("shared")
def test_a_gpu_that_another_search_trains_on_is_refused() -> None:
    with hold_devices(BOTH[:1], print):
        with pytest.raises(
            DeviceHeld, match=r"gpu 0 is in use by another search or export on this machine; name others in --gpus"
        ):
            hold_devices(BOTH, print).__enter__()
        with hold_devices(BOTH[1:], print), hold_devices([WorkerDevice("cpu", None, 1)], print):
            pass
    with hold_devices(BOTH, print):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from search import devices, gpu_locks
gpu_locks.LOCK_FOLDERS = (Path(sys.argv[1]),)
with gpu_locks.hold_devices([devices.WorkerDevice("gpu 0", "GPU-a", 1)], print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process_and_its_file_is_no_obstacle(shared: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, shared], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceHeld):
            said_of(BOTH)
        holder.kill()
    assert (shared / LOCK).exists()
    assert said_of(BOTH) == []


def test_a_lock_is_open_to_other_users_whatever_the_umask(shared: Path) -> None:
    before = os.umask(0o077)
    try:
        said_of(BOTH)
    finally:
        os.umask(before)
    assert stat.S_IMODE((shared / LOCK).stat().st_mode) == 0o644


NOBODY = 65534


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "lines"), [(0o644, 0), (0o600, 1)])
def test_a_lock_file_of_another_user_blocks_nobody(mode: int, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_locks, "_use_of", lambda uuid: None)
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is its owner's alone
        shared = Path(folder)
        shared.chmod(0o1777)
        monkeypatch.setattr(gpu_locks, "LOCK_FOLDERS", (shared,))
        said_of(BOTH)
        os.chown(shared / LOCK, NOBODY, NOBODY)
        (shared / LOCK).chmod(mode)
        os.seteuid(NOBODY - 1)  # neither of them
        try:
            named = said_of(BOTH)
            assert len(named) == lines
            assert all(f"{LOCK}: Permission denied" in line for line in named)
            with pytest.raises(PermissionError):
                (shared / LOCK).unlink()
        finally:
            os.seteuid(0)


def a_link(file: Path) -> None:
    target = file.parent / "target"
    target.write_text("somebody's")
    file.symlink_to(target)


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        (a_link, "Too many levels of symbolic links"),
        (lambda file: file.symlink_to("/nowhere/made"), "Too many levels of symbolic links"),
        (Path.mkdir, "not a plain file"),
        (lambda file: os.mkfifo(file), "not a plain file"),
    ],
    ids=["link", "dangling link", "folder", "pipe"],
)
def test_what_another_user_left_in_its_place_blocks_nobody_and_is_named(
    shared: Path, leave: Callable[[Path], None], reason: str
) -> None:
    leave(shared / LOCK)
    (line,) = said_of(BOTH)
    assert line == f"gpu 0 cannot be locked ({shared / LOCK}: {reason}); make sure that no other search trains on it"
    assert not (shared / "target").exists() or (shared / "target").read_text() == "somebody's"


def test_without_a_folder_that_all_users_share_the_search_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_locks, "LOCK_FOLDERS", (tmp_path,))
    monkeypatch.setattr(gpu_locks, "_use_of", lambda uuid: None)
    (line,) = said_of(BOTH[:1])
    assert f"gpu 0 cannot be locked ({tmp_path}: no folder that all users share)" in line


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("processes", "who"), [((), ""), ((4711,), " (process 4711)"), ((4711, 4712), " (processes 4711, 4712)")]
)
def test_a_gpu_that_another_program_fills_is_named(
    monkeypatch: pytest.MonkeyPatch, processes: tuple[int, ...], who: str
) -> None:
    use = {"GPU-a": GpuUse(70_000_000_000, 80_000_000_000, processes), "GPU-b": GpuUse(600_000_000, 80_000_000_000, ())}
    monkeypatch.setattr(gpu_locks, "_use_of", use.get)
    assert said_of(BOTH) == [
        f"gpu 0: another program{who} has 70.0 GB of its 80.0 GB, and trials may run out of memory; "
        "end that, or leave this GPU out of --gpus"
    ]


def test_what_is_used_of_a_gpu_is_asked_of_the_driver_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    memory, process = SimpleNamespace(used=7, total=8), SimpleNamespace(pid=4711)
    answers: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": {"MIG-a": "handle"}.__getitem__,
        "nvmlDeviceGetMemoryInfo": {"handle": memory}.__getitem__,
        "nvmlDeviceGetComputeRunningProcesses": {"handle": [process]}.__getitem__,
    }
    for name, call in answers.items():
        monkeypatch.setattr(pynvml, name, call)
    assert gpu_locks._use_of("MIG-a") == GpuUse(7, 8, (4711,))

    def unsupported(handle: object) -> None:
        raise pynvml.NVMLError_NotSupported  # type: ignore[attr-defined]

    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", unsupported)
    assert gpu_locks._use_of("MIG-a") == GpuUse(7, 8, ())
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", unsupported)
    assert gpu_locks._use_of("MIG-a") is None


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
def test_the_driver_says_what_is_used_of_a_gpu() -> None:
    use = gpu_locks._use_of(devices._installed_gpus()[0].uuid)
    assert use is not None
    assert 0 < use.used_bytes < use.total_bytes


@pytest.mark.usefixtures("four_gpus")
def test_several_workers_share_a_gpu_and_few_trials_spread_over_all_gpus() -> None:
    two = parse_devices("1,3")
    assert share_gpus(two, 1) == two
    shared = share_gpus(two, 3)
    assert [device.visible for device in shared] == ["GPU-1a", "GPU-3a"] * 3
    assert [device.label for device in shared[:3]] == ["gpu 1:0", "gpu 3:0", "gpu 1:1"]
    assert sum(device.num_threads for device in shared) <= max(6, CORES)


def test_workers_of_a_cluster_share_no_gpu() -> None:
    """A study file that comes with the program remembers search.workers_per_gpu from a launch on one machine."""
    there = [WorkerDevice(f"slurm:{number}", "any", 4, place="slurm") for number in range(2)]
    assert share_gpus(there, 1) == there
    with pytest.raises(UsageError, match=r"^each worker of Slurm has a GPU of its own; set search.workers_per_gpu = 1"):
        share_gpus(there, 2)


def test_workers_per_gpu_changes_nothing_on_the_cpu() -> None:
    assert share_gpus(parse_devices("cpu"), 4) == parse_devices("cpu")

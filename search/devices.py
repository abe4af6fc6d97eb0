"""The devices of ``--gpus``, and locks on them. Torch is not imported, because it would claim GPUs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from logging import WARNING
from pathlib import Path

from search.console import Say
from search.errors import DeviceHeld, UsageError
from search.words import megabytes
from trainer.cores import most_threads, num_cores

UUIDS = ("GPU-", "MIG-")
"""How the UUIDs of GPUs and of their parts begin."""

LOCK_FOLDERS = (Path("/run/lock"), Path("/tmp"))
"""Folders for GPU locks: the first is used that all users may write to, and where nobody can remove others' files.

/run/lock is made for locks, but only some distributions let all users in. Not $TMPDIR, which may be each user's own.
"""

FILLED_SHARE = 0.5
"""Share of a GPU's memory that other programs may use before the user is warned. A desktop uses some 100 MB."""


@dataclass(frozen=True)
class WorkerDevice:
    """The device of one worker process."""

    label: str
    """As shown: "cpu", "cpu:1", "gpu 0", or "gpu 0:1" where workers share a GPU."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES of the process, a UUID: one GPU has one name for locks and counts; None for the CPU."""
    num_threads: int
    """CPU threads of torch in the process."""

    @property
    def kind(self) -> str:
        """Cpu or cuda, as torch says it."""
        return "cpu" if self.visible is None else "cuda"


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver shows, or a part of one (MIG)."""

    name: str
    """As nvidia-smi numbers it, "0"; the UUID of a part."""
    uuid: str
    parts: tuple[Gpu, ...] = ()


def parse_devices(text: str | None) -> list[WorkerDevice]:
    """One device per worker.

    Args:
        text: "0,1,2", "all", "cpu", "cpu:2", UUIDs ("GPU-...", "MIG-..."); None means all GPUs, else the CPU.

    Raises:
        UsageError: a device that does not exist (those that do are listed), one named twice, or no such form.
    """
    cores = num_cores()
    if text is None:
        return _gpus(visible_gpus(), cores) or _cpus(1, cores)
    kind, _, number = text.strip().partition(":")
    if kind == "cpu":
        if number and not (number.isdecimal() and 1 <= int(number) <= cores):
            raise UsageError(f"--gpus {text}: write cpu:N with N from 1 to {cores}, the cores of this machine")
        return _cpus(int(number or 1), cores)
    there = visible_gpus()
    if not there:
        raise UsageError(f"--gpus {text}: this machine shows no GPU; use --gpus cpu or cpu:{cores}")
    if kind == "all":
        return _gpus(there, cores)
    chosen = [part.strip() for part in text.split(",")]
    gpus = []
    for part in chosen:
        by_index = part.isdecimal() and part.isascii() and int(part) < len(there)
        gpu = there[int(part)] if by_index else _by_uuid(part, there)
        if gpu is None:
            named = part.startswith(UUIDS)
            here = [one.uuid for one in _with_parts(there)] if named else map(str, range(len(there)))
            raise UsageError(f"--gpus {text}: there is no GPU {part!r}; those here are {', '.join(here)}")
        gpus.append(gpu)
    if len(set(gpus)) < len(gpus):
        raise UsageError(f"--gpus {text}: a GPU is named twice; each gets one worker")
    return _gpus(gpus, cores)


def share_gpus(devices: list[WorkerDevice], workers_per_gpu: int) -> list[WorkerDevice]:
    """One device per worker where each GPU has several; workers on the CPU are as many as ``--gpus cpu:N`` says.

    The first worker of every GPU comes before the second of any, so that few trials spread over all GPUs.
    """
    if workers_per_gpu == 1:
        return devices
    shared = [
        replace(device, label=f"{device.label}:{number}", num_threads=max(1, device.num_threads // workers_per_gpu))
        for number in range(workers_per_gpu)
        for device in devices
        if device.visible is not None
    ]
    return shared or devices


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use; CUDA_VISIBLE_DEVICES from outside (Slurm) is respected."""
    there, outer = _installed_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if outer is None:
        return there
    found = []
    for part in map(str.strip, outer.split(",")):
        gpu = next((gpu for gpu in there if gpu.name == part), None) or _by_uuid(part, there)
        if gpu is None:
            break  # like CUDA, ignore all entries after an unknown one
        found.append(gpu)
    return found


def _installed_gpus() -> list[Gpu]:
    import pynvml  # nvidia-ml-py

    def parts_of(handle: object) -> Iterator[Gpu]:
        with contextlib.suppress(pynvml.NVMLError):  # it cannot be divided
            for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(pynvml.NVMLError):  # no such part
                    uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
                    yield Gpu(uuid, uuid)

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or no GPU
        return []
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [
            Gpu(str(index), pynvml.nvmlDeviceGetUUID(handle), tuple(parts_of(handle)))
            for index, handle in enumerate(handles)
        ]
    finally:
        pynvml.nvmlShutdown()


def _by_uuid(text: str, gpus: list[Gpu]) -> Gpu | None:
    """The one GPU or part whose UUID is ``text``, or begins so and is the only one."""
    found = [gpu for gpu in _with_parts(gpus) if text.startswith(UUIDS) and gpu.uuid.startswith(text)]
    return found[0] if len(found) == 1 else None


def _with_parts(gpus: list[Gpu]) -> list[Gpu]:
    return [one for gpu in gpus for one in (gpu, *gpu.parts)]


def _gpus(gpus: list[Gpu], cores: int) -> list[WorkerDevice]:
    threads = max(1, cores // max(1, len(gpus)))
    return [WorkerDevice(f"gpu {gpu.name}", gpu.uuid, threads) for gpu in gpus]


def _cpus(number: int, cores: int) -> list[WorkerDevice]:
    labels = ["cpu"] if number == 1 else [f"cpu:{index}" for index in range(number)]
    return [WorkerDevice(label, None, most_threads(cores // number)) for label in labels]


def use_gpu(device: WorkerDevice) -> None:
    """Let this process train on a device: to be called before torch is imported."""
    if device.visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device.visible


@contextlib.contextmanager
def hold_devices(devices: list[WorkerDevice], say: Say) -> Iterator[None]:
    """Lock the GPUs against other searches and exports on this machine, of any user. The CPU is never locked.

    Args:
        devices: the devices of all workers.
        say: called with a warning about each GPU that another program fills or that cannot be locked; it is used.

    Raises:
        DeviceHeld: another search or export trains on one of them.
    """
    with contextlib.ExitStack() as stack:
        gpus = {device.visible: device.label for device in reversed(devices) if device.visible is not None}
        for uuid, label in sorted(gpus.items()):
            name = label.partition(":")[0]
            try:
                stack.enter_context(_gpu_lock(uuid))
            except BlockingIOError:
                raise DeviceHeld(
                    f"{name} is in use by another search or export on this machine; name others in --gpus"
                ) from None
            except OSError as error:  # of what another user left there, perhaps on purpose
                reason = f"{error.filename}: {error.strerror}"
                say(f"{name} cannot be locked ({reason}); make sure that no other search trains on it", WARNING)
            if (use := _use_of(uuid)) is not None and use.used_bytes > FILLED_SHARE * use.total_bytes:
                say(_filled(name, use), WARNING)
        yield


@contextlib.contextmanager
def _gpu_lock(uuid: str) -> Iterator[None]:
    """Hold the lock of a GPU; BlockingIOError where another process has it, another OSError where there is no lock."""
    shared = stat.S_ISVTX | stat.S_IWOTH
    folder = next((one for one in LOCK_FOLDERS if one.is_dir() and one.stat().st_mode & shared == shared), None)
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, "no folder that all users share", " or ".join(map(str, LOCK_FOLDERS)))
    file = folder / f"featherweight-{uuid.replace('/', '-')}.lock"
    descriptor = _open_lock(file)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileExistsError(errno.EEXIST, "no plain file", str(file))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)  # the file stays: were it removed, two processes could hold two files of one name


def _open_lock(file: Path) -> int:
    """Open a file in a folder where others may have put anything: never through a link, and without waiting.

    Reading is enough to lock it, and the system lets nobody open with O_CREAT what is another user's there.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(FileNotFoundError):
        return os.open(file, flags)
    try:
        descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # another process was faster
        return os.open(file, flags)
    os.fchmod(descriptor, 0o644)  # whatever the umask, other users shall be able to lock it
    return descriptor


@dataclass(frozen=True)
class GpuUse:
    """The use of a GPU's memory by programs."""

    used_bytes: int
    total_bytes: int
    processes: tuple[int, ...]
    """Their numbers; none where the driver does not show them, as in a container."""


def _filled(name: str, use: GpuUse) -> str:
    """The sentence for a GPU that others fill."""
    kind = "process" if len(use.processes) == 1 else "processes"
    who = f" ({kind} {', '.join(map(str, use.processes))})" if use.processes else ""
    return (
        f"{name}: another program{who} has {megabytes(use.used_bytes)} of its {megabytes(use.total_bytes)}, "
        "and trials may run out of memory; end that, or leave this GPU out of --gpus"
    )


def _use_of(uuid: str) -> GpuUse | None:
    """The use of a GPU, or of a part of one; None if the driver does not tell."""
    import pynvml  # nvidia-ml-py

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        processes: tuple[int, ...] = ()
        with contextlib.suppress(pynvml.NVMLError):
            processes = tuple(one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return GpuUse(memory.used, memory.total, processes)
    except pynvml.NVMLError:  # memory that is shared with the CPU, for one
        return None
    finally:
        pynvml.nvmlShutdown()

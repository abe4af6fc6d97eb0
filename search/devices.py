"""The devices of ``--gpus``, and reasons why a GPU cannot be used. NVML lists GPUs without using one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from search.console import tell_aside
from search.errors import UsageError
from trainer.cores import most_threads, num_cores

UUIDS = ("GPU-", "MIG-")
"""Beginnings of the UUIDs of GPUs and of their parts."""

GPU_FILES = ("nvidia[0-9]*", "dxg")
"""Files in /dev that show a GPU, natively or in a container, and under WSL, even if the driver's library is missing."""

DEVICE_FOLDER = Path("/dev")


@dataclass(frozen=True)
class WorkerDevice:
    """The device of one worker process."""

    label: str
    """Name for the user: "cpu", "cpu:1", "gpu 0", or "gpu 0:1" if workers share a GPU."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES of the process: the GPU's UUID, by which a GPU is also locked and counted; None for the
    CPU."""
    num_threads: int
    """CPU threads of torch in the process."""
    sharing: int = 1
    """Number of workers that share the GPU, this one included."""
    place: Literal["here", "slurm", "ray"] = "here"
    """here: this machine. slurm, ray: a node that Slurm or Ray chooses; ``visible`` is then "any" for a GPU."""

    @property
    def uuid(self) -> str | None:
        """The UUID of a GPU of this machine; None for the CPU, and for a GPU that a cluster chooses."""
        return self.visible if self.place == "here" else None

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """Torch's name of the kind of device: ``cpu`` or ``cuda``."""
        return "cpu" if self.visible is None else "cuda"


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver shows, or a part of one (MIG)."""

    name: str
    """The number of the GPU in nvidia-smi, such as "0"; for a part, its UUID."""
    uuid: str
    """The UUID; empty if the driver cannot open the GPU."""
    parts: tuple[Gpu, ...] = ()
    """The parts of a divided GPU; empty for any other."""
    capability: tuple[int, int] | None = None
    """Compute capability, (9, 0) for an H100; None if the driver does not report it."""
    newest_cuda: int | None = None
    """The newest CUDA that the driver supports, 12040 for 12.4; None if the driver does not report it."""
    problem: str | None = None
    """Reason why the GPU cannot be used; None if it can."""

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """The parts of a divided GPU, which CUDA cannot use as a whole; else the GPU itself."""
        return self.parts or (self,)


def parse_devices(text: str | None) -> list[WorkerDevice]:
    """The device of each worker. A GPU that cannot be used is left out with a warning; if the text names it, that is an
    error.

    Args:
        text: "0,1,2", "all", "cpu", "cpu:2", UUIDs ("GPU-...", "MIG-..."); None means all GPUs or,
            without a GPU, the CPU. A divided GPU stands for all of its parts.

    Raises:
        UsageError: a device does not exist (the message lists those that do), cannot be used, or is named twice; the
            text has another form; or there are GPUs, but the driver or torch can use none of them.
    """
    cores = num_cores()
    kind, colon, number = ("all" if text is None else text).strip().partition(":")
    if kind == "cpu":
        if colon and not (number.isdecimal() and 1 <= int(number) <= cores):
            raise UsageError(f"--gpus {text}: write cpu:N with N from 1 to {cores}, the cores of this machine")
        return _cpus(int(number or 1), cores)
    there = [_judged(gpu) for gpu in visible_gpus()]
    if not there:
        if text is None:
            return _cpus(1, cores)
        raise UsageError(f"--gpus {text}: this machine shows no GPU; use --gpus cpu or cpu:{cores}")
    if kind == "all" and not colon:
        sound = [gpu for gpu in there if gpu.problem is None]
        if not sound:
            raise UsageError(f"no GPU of this machine can be used: {there[0].problem}; or use --gpus cpu")
        for left_out in (gpu for gpu in there if gpu.problem is not None):
            tell_aside(f"gpu {left_out.name} is left out: {left_out.problem}")
        return _gpus([one for gpu in sound for one in gpu.usable], cores)
    gpus: list[Gpu] = []
    for part in map(str.strip, str(text).split(",")):
        by_index = part.isdecimal() and part.isascii() and int(part) < len(there)
        gpu = there[int(part)] if by_index else _by_uuid(part, there)
        if gpu is None:
            named = part.startswith(UUIDS)
            here = [one.uuid for one in _with_parts(there) if one.uuid] if named else map(str, range(len(there)))
            raise UsageError(f"--gpus {text}: there is no GPU {part!r}; those here are {', '.join(here)}")
        if gpu.problem:
            raise UsageError(f"--gpus {text}: gpu {gpu.name} cannot be used: {gpu.problem}")
        gpus += gpu.usable
    if len(set(gpus)) < len(gpus):
        raise UsageError(f"--gpus {text}: a GPU is named twice; each gets one worker")
    return _gpus(gpus, cores)


def share_gpus(devices: list[WorkerDevice], workers_per_gpu: int) -> list[WorkerDevice]:
    """The device of each worker, if each GPU has several workers. The CPU has as many as ``--gpus cpu:N`` says.

    The first worker of every GPU comes before the second of any, so that few trials spread over all GPUs.

    Raises:
        UsageError: several workers shall share a GPU of a cluster.
    """
    if workers_per_gpu == 1:
        return devices
    if devices and (place := devices[0].place) != "here":
        raise UsageError(f"each worker of {place.capitalize()} has a GPU of its own; set search.workers_per_gpu = 1")
    shared = [
        replace(
            device,
            label=f"{device.label}:{number}",
            num_threads=max(1, device.num_threads // workers_per_gpu),
            sharing=workers_per_gpu,
        )
        for number in range(workers_per_gpu)
        for device in devices
        if device.visible is not None
    ]
    return shared or devices


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES if it is set, for example by Slurm.

    Raises:
        UsageError: the numbers in CUDA_VISIBLE_DEVICES are not those of nvidia-smi; or there is a GPU, but the driver's
            library is missing or fails.
    """
    there, outer = _installed_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if outer is None:
        return there
    entries = [part.strip() for part in outer.split(",")]
    order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if order != "PCI_BUS_ID" and len(there) > 1 and any(part.isdecimal() for part in entries):
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES = {outer} counts GPUs by CUDA_DEVICE_ORDER = {order}; name UUIDs in it "
            "(nvidia-smi -L), or set CUDA_DEVICE_ORDER=PCI_BUS_ID, the order of nvidia-smi"
        )
    found = []
    for part in entries:
        gpu = next((gpu for gpu in there if gpu.name == part), None) or _by_uuid(part, there)
        if gpu is None:
            break  # like CUDA, ignore all entries after an unknown one
        found.append(gpu)
    return found


def _installed_gpus() -> list[Gpu]:
    import pynvml  # nvidia-ml-py

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:  # usually there is neither a driver nor a GPU
        files = sorted(str(file) for pattern in GPU_FILES for file in DEVICE_FOLDER.glob(pattern))
        if not files:
            return []
        raise UsageError(
            f"there is a GPU ({files[0]}), but the NVIDIA driver's library NVML does not answer: {error}; a container "
            "needs NVIDIA_DRIVER_CAPABILITIES=compute,utility; after an update of the driver, restart the machine; or "
            "use --gpus cpu"
        ) from error
    try:
        return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    """A GPU by its number; NVML has been started."""
    import pynvml  # nvidia-ml-py

    def parts_of(handle: object) -> Iterator[Gpu]:
        with contextlib.suppress(pynvml.NVMLError):  # the GPU cannot be divided
            for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(pynvml.NVMLError):  # no such part
                    uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
                    yield Gpu(uuid, uuid)

    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
    except pynvml.NVMLError as error:
        cure = f"reset it (nvidia-smi --gpu-reset -i {index}), restart the machine, or name the others in --gpus"
        return Gpu(str(index), "", problem=f"the driver cannot open it ({error}); {cure}")
    capability = newest_cuda = None
    with contextlib.suppress(pynvml.NVMLError):
        capability = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        newest_cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return Gpu(str(index), uuid, tuple(parts_of(handle)), capability, newest_cuda)


def _judged(gpu: Gpu) -> Gpu:
    """The same GPU, with a problem if this torch cannot use it."""
    if gpu.problem or gpu.capability is None or gpu.newest_cuda is None:
        return gpu
    import torch  # 2 s, so not imported by commands that need no device

    problem, names = None, (torch._C._cuda_getArchFlags() or "").split()
    driver = divmod(gpu.newest_cuda // 10, 100)
    if torch.version.cuda is None:
        problem = f"torch {torch.__version__} was built without CUDA; install its CUDA build (pytorch.org)"
    elif driver[0] < int(
        torch.version.cuda.partition(".")[0]
    ):  # a driver supports all minor versions of its major version
        problem = (
            f"its driver is too old: it knows CUDA up to {driver[0]}.{driver[1]}, and torch {torch.__version__} was "
            f"built for {torch.version.cuda}; update the driver, or install a torch for CUDA {driver[0]}"
        )
    elif not _has_kernels(gpu.capability, names):
        problem = (
            f"torch {torch.__version__} has no kernels for its compute capability "
            f"{'.'.join(map(str, gpu.capability))}, only for {', '.join(names)}; install a torch that has them"
        )
    return replace(gpu, problem=problem, parts=tuple(replace(part, problem=problem) for part in gpu.parts))


def _has_kernels(capability: tuple[int, int], names: Sequence[str]) -> bool:
    """Whether a GPU can run code for one of ``names``: sm_86 runs on 8.6 and later 8.x, compute_90 on 9.0 and later.

    Source: NVIDIA's CUDA C++ programming guide, "Binary compatibility" and "PTX compatibility".
    """
    for name in names:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")
        built = int(digits[:-1]), int(digits[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _by_uuid(text: str, gpus: list[Gpu]) -> Gpu | None:
    """The GPU or part whose UUID begins with ``text``; None if there is none or more than one."""
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
    """Let this process train on a device. The call must come before torch looks for GPUs."""
    if device.visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device.visible

"""What ``--gpus`` means: the devices that workers are pinned to. No torch: it would claim the GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from search.errors import UsageError


@dataclass(frozen=True)
class WorkerDevice:
    """What one worker process trains on."""

    label: str
    """As shown: "cpu", "cpu:1", "gpu 0", or "gpu 0:1" where workers share a GPU."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES of the process; None for the CPU."""
    num_threads: int
    """CPU threads of torch in the process."""

    @property
    def kind(self) -> str:
        """Cpu or cuda, as torch says it."""
        return "cpu" if self.visible is None else "cuda"


def parse_devices(text: str | None) -> list[WorkerDevice]:
    """One device per worker.

    Args:
        text: "0,1,2", "all", "cpu", "cpu:2", UUIDs ("GPU-...", "MIG-..."); None means all GPUs, else the CPU.

    Raises:
        UsageError: a device that does not exist (those that do are listed), one named twice, or no such form.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
    indices = [str(index) for index in range(len(there))]
    for part in chosen:
        if part not in indices and not part.startswith(("GPU-", "MIG-")):
            raise UsageError(f"--gpus {text}: there is no GPU {part!r}; those here are {', '.join(indices)}")
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"--gpus {text}: a GPU is named twice; each gets one worker")
    return _gpus([there[int(part)] if part in indices else part for part in chosen], cores)


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


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; an outer setting (Slurm) is kept to."""
    import pynvml  # nvidia-ml-py

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or no GPU
        return []
    try:
        everything = [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    return everything if outer is None else [part.strip() for part in outer.split(",") if part.strip()]


def _gpus(names: list[str], cores: int) -> list[WorkerDevice]:
    threads = max(1, cores // max(1, len(names)))
    return [WorkerDevice(f"gpu {name}", name, threads) for name in names]


def _cpus(number: int, cores: int) -> list[WorkerDevice]:
    labels = ["cpu"] if number == 1 else [f"cpu:{index}" for index in range(number)]
    return [WorkerDevice(label, None, max(1, cores // number)) for label in labels]

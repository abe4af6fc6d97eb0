"""The one place that knows which device trains: threads, memory layout, precision, determinism, copies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainer.config import TrainConfig
from trainer.errors import ConfigError

_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024  # glibc's own upper bound for it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>

RESIDENT_SHARE = 0.5
"""Most of a GPU's free memory that the uint8 pictures may take; the rest is for the model and its activations."""


@dataclass(frozen=True)
class Device:
    """A device that trains, with the switches that depend on it."""

    torch_device: torch.device
    num_threads: int
    """CPU threads of torch in this process; part of what makes a result bit for bit the same."""
    num_loaders: int = 0
    """Processes that augment on the host where a candidate names transforms; 0: this one. No part of the result."""

    @property
    def kind(self) -> str:
        """The ``cpu`` or ``cuda`` of torch."""
        return self.torch_device.type

    @property
    def name(self) -> str:
        """What a person calls it: the GPU's product name, or the CPU threads."""
        if self.kind == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        return f"CPU, {self.num_threads} thread{'s' if self.num_threads > 1 else ''}"

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model here, channels last: 1.2 to 1.3 times faster on AVX2 CPUs, needed by tensor cores."""
        return model.to(self.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def copy(self, array: NDArray[np.generic]) -> torch.Tensor:
        """A tensor of the array on this device; to a GPU from pinned memory, without waiting."""
        tensor = torch.from_numpy(array)
        if self.kind == "cuda":
            return tensor.pin_memory().to(self.torch_device, non_blocking=True)
        return tensor

    def hold(self, images: NDArray[np.uint8]) -> torch.Tensor | None:
        """All pictures in the GPU's memory if they take at most RESIDENT_SHARE of what is free there; else None."""
        if self.kind != "cuda" or images.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(self.torch_device)[0]:
            return None
        held = torch.empty(images.shape, dtype=torch.uint8, device=self.torch_device)
        for start in range(0, len(images), 4096):
            held[start : start + 4096] = torch.from_numpy(images[start : start + 4096]).to(self.torch_device)
        return held

    def autocast(self, config: TrainConfig) -> contextlib.AbstractContextManager[object]:
        """The precision of forward passes.

        Raises:
            ConfigError: bf16 was asked for where it is missing. CPUs without bf16 units run it at a tenth
                of the speed, and those with them are not worth a second code path.
        """
        supported = self.kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if config.precision == "bf16" and not supported:
            raise ConfigError(f'precision = "bf16" needs a GPU that has it; {self.name} has not, use "auto"')
        if config.precision == "fp32" or not supported:
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)


def open_device(kind: str = "cpu", num_threads: int | None = None, num_loaders: int = 0) -> Device:
    """Set this process up for training on its one device.

    Args:
        kind: "cpu", or "cuda" for the first GPU that CUDA_VISIBLE_DEVICES shows this process.
        num_threads: CPU threads for torch; by default one per core this process may use.
        num_loaders: processes for augmentation on the host.

    Raises:
        ConfigError: there is no such device, or no thread.
    """
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads = {num_threads}: use 1 or more")
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device = {kind!r}: use cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': torch sees no GPU here; use cpu")
    threads = num_threads or len(os.sched_getaffinity(0)) if sys.platform == "linux" else (num_threads or 1)
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if sys.platform == "linux":
        # Activations of a few MB would otherwise be mapped and unmapped at every step: 11,000 to 48,000 page
        # faults, 10 to 20 % of a step at 64 and 128 px.
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return Device(torch.device(kind, 0) if kind == "cuda" else torch.device("cpu"), threads, num_loaders)

"""Everything that depends on the training device: threads, memory layout, precision, determinism, place of pictures."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, assert_never

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainer.config import Optimizer, TrainConfig
from trainer.cores import most_threads, num_cores
from trainer.errors import ConfigError
from trainer.families import family_of

# On a CPU without AVX-512, oneDNN 3.12 (torch 2.14.1) writes outside its memory in the gradient of strided convolutions
# with few channels (its kernel brgconv_strided:avx2), which ends the process with "double free or corruption". The
# kernels for AVX take 1.3 to 1.7 times as long (a step of rexnet_100 and of resnet10t, 64 px, an AMD EPYC, n = 6).
# oneDNN reads the variable once, at its first operation. So the variable is set at the import of this module.
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")

_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024  # glibc's own upper bound for it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>

FUSED: tuple[Optimizer, ...] = ("adam", "adamw", "sgd")
"""Optimizers for which torch has a fused step. It takes 7.6 ms on a CPU; a loop over 473 tensors takes 32.7 ms."""

RESIDENT_SHARE = 0.5
"""Largest share of a GPU's memory for the uint8 pictures of all its workers, each with an equal part; the rest is for
models and activations. It is a share of the whole memory, because the free memory changes from moment to moment."""

CUDA_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with it
    "NVIDIA_TF32_OVERRIDE": "0",  # "fp32" must be real fp32, whatever the image of a container sets
}
"""Environment variables of a process that uses CUDA. NVIDIA's libraries read them at their first call. Sources:
docs.nvidia.com/cuda/cublas, "Results reproducibility" and "NVIDIA_TF32_OVERRIDE"."""

OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""Parts of messages in which the CPU's allocator, CUDA, cuBLAS and cuDNN report a lack of memory."""

OF_THE_DEVICE = ("CUDA error", "cuDNN error", "CUDNN_STATUS")
"""Parts of messages about other errors of a GPU, of its driver or of NVIDIA's libraries."""

MOST_LOADERS = 8
"""Largest number of loader processes of one worker: each has torch and the transforms in memory, and takes seconds
to start. The number was not measured on a machine with a GPU."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out, on the host or on a GPU. Some errors tell it only by their text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def is_of_the_device(error: Exception) -> bool:
    """Whether an error means that a GPU failed, so that its process can no longer be used."""
    return isinstance(error, torch.AcceleratorError) or any(text in str(error) for text in OF_THE_DEVICE)


def best_kind() -> Literal["cuda", "cpu"]:
    """Set CUDA_ENVIRONMENT, then return cuda if torch finds a GPU, else cpu."""
    os.environ |= CUDA_ENVIRONMENT
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # numbers as in nvidia-smi; by default the fastest is 0
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Device:
    """A training device, with the settings that depend on it."""

    torch_device: torch.device
    num_threads: int
    """Number of torch's CPU threads in this process; results are bit for bit the same only for the same number."""
    num_loaders: int = 0
    """Number of processes that run ``augment`` on the host; 0: this process does. The number changes no result."""
    sharing: int = 1
    """Number of workers that share the GPU, this one included."""
    keeps_pictures: bool = True
    """Whether pictures that fit are kept in the GPU's memory; otherwise they are streamed. It changes no result."""
    held: list[tuple[NDArray[np.uint8], torch.Tensor]] = field(default_factory=list, repr=False, compare=False)
    """The pictures in the GPU's memory, at most one set, kept for the next candidates with the same pictures."""

    @property
    def kind(self) -> str:
        """Torch's name of the kind of device: ``cpu`` or ``cuda``."""
        return self.torch_device.type

    @property
    def name(self) -> str:
        """Name in messages: the GPU's product name, or the number of CPU threads."""
        if self.kind == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        return f"CPU, {self.num_threads} thread{'s' if self.num_threads > 1 else ''}"

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to this device, channels last: 1.2 to 1.3 times faster on AVX2 CPUs, needed by tensor cores."""
        return model.to(self.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def copy(self, array: NDArray[np.generic]) -> torch.Tensor:
        """Copy an array to this device; to a GPU from pinned memory, without waiting."""
        tensor = _tensor(array)
        if self.kind == "cuda":
            return tensor.pin_memory().to(self.torch_device, non_blocking=True)
        return tensor

    def ahead(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8] | torch.Tensor]:
        """Pass on batches from the host. On a GPU, the next batch is copied during the step on the present one, and a
        thread takes the one after it from ``batches`` and pins it.

        Follows the notes on CUDA streams (pytorch.org/docs/stable/notes/cuda.html): a side stream makes the copy, the
        training's stream waits for it before the use, and the allocator is told of the use.
        """
        if self.kind == "cpu":
            yield from batches
            return
        side, source = self._side_stream, iter(batches)

        def pin_next() -> torch.Tensor | None:
            batch = next(source, None)
            return None if batch is None else _tensor(batch).pin_memory()

        with ThreadPoolExecutor(1, "pictures") as thread:
            pinned = thread.submit(pin_next)

            def copy_next() -> torch.Tensor | None:
                nonlocal pinned
                if (batch := pinned.result()) is None:
                    return None
                pinned = thread.submit(pin_next)
                with torch.cuda.stream(side):
                    return batch.to(self.torch_device, non_blocking=True)

            coming = copy_next()
            while coming is not None:
                training = torch.cuda.current_stream(self.torch_device)
                training.wait_stream(side)
                coming.record_stream(training)
                here, coming = coming, copy_next()
                yield here

    def hold(self, images: NDArray[np.uint8], config: TrainConfig) -> torch.Tensor | None:
        """All pictures in the GPU's memory, copied there once; None if they stay on the host (``choices`` says why)."""
        if not self.keeps_pictures:
            self.held.clear()
        if not self._residence(images, config)[0]:
            return None
        held = self.resident(images)
        if held is None:
            self.held.clear()  # frees the memory of the previous set
            try:
                held = torch.empty(images.shape, dtype=torch.uint8, device=self.torch_device)
            except torch.OutOfMemoryError:  # another program has the memory
                warnings.warn("no room for the pictures in the GPU's memory; they are streamed instead", stacklevel=2)
                return None
            for start in range(0, len(images), 4096):
                chunk = np.array(images[start : start + 4096])  # a copy, because torch warns about read-only pages
                held[start : start + 4096] = torch.from_numpy(chunk).to(self.torch_device)
            self.held.append((images, held))
        return held

    def resident(self, images: NDArray[np.uint8]) -> torch.Tensor | None:
        """The tensor in the GPU's memory, if ``hold`` has copied these same pictures; else None."""
        return next((tensor for pictures, tensor in self.held if pictures is images), None)

    def forget(self) -> None:
        """Free the GPU's memory that torch keeps for reuse. The next candidate's tensors have other sizes."""
        if self.kind == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def autocast(self, config: TrainConfig) -> contextlib.AbstractContextManager[object]:
        """The precision of forward passes.

        Raises:
            ConfigError: the study asks for bf16 or fp16, and the device is not a GPU that has it. Neither is offered on
                any CPU, because bf16 takes ten times as long on CPUs without units for it.
        """
        if (config.precision == "bf16" and not self._has_bf16) or (config.precision == "fp16" and not self._has_fp16):
            raise ConfigError(
                f'precision = "{config.precision}" needs a GPU that has it; use "auto" on this device ({self.name})'
            )
        match self._precision(config)[0]:
            case "bf16":
                return torch.autocast(self.kind, dtype=torch.bfloat16)
            case "fp16":
                return torch.autocast(self.kind, dtype=torch.float16)
            case "fp32":
                return contextlib.nullcontext()

    def scaler(self, config: TrainConfig) -> torch.amp.GradScaler:
        """The loss scaling of a training (Micikevicius et al., 2018, section 3.2). Without fp16 it does nothing."""
        return torch.amp.GradScaler(self.kind, enabled=config.precision == "fp16")

    def choices(self, config: TrainConfig, images: NDArray[np.uint8]) -> list[str]:
        """Lines for a log: what is chosen for a candidate on this device, from precision to loaders, and why."""
        layout = "channels last: 1.2 to 1.3 times faster on CPUs with AVX2, and needed by tensor cores"
        if family_of(config.model).is_padded:
            layout += "; ReXNet's channels zero-padded to multiples of 8, for vector units and tensor cores"
        fused = config.optimizer in FUSED
        optimizer = f"{config.optimizer}, {'fused' if fused else 'not fused: torch has no such kernel'}"
        if not config.augment:
            loaders = "none: `augment` names nothing that runs on the host"
        elif self.num_loaders:
            loaders = f"{self.num_loaders}: the transforms of `augment` run during the step"
        else:
            loaders = (
                f"none: {'this process has a single thread' if self.kind == 'cuda' else 'the cores are for the step'}"
            )
        return [
            f"picture set: {self._residence(images, config)[1]}",
            f"precision: {self._precision(config)[1]}",
            f"memory layout: {layout}",
            f"optimizer: {optimizer}",
            f"augmentation: {self.executor(config)}",
            f"loader processes: {loaders}",
            f"steps: {self.replays(config)[1]}",
        ]

    def executor(self, config: TrainConfig) -> str:
        """The executor of the augmentation, and the reason, in words."""
        host = "by the transforms of `augment` on the host, then " if config.augment else ""
        if self.kind == "cuda":
            return f"{host}batched on the GPU: a batch is warped at once"
        return f"{host}by OpenCV on the CPU: a picture at a time is fastest there"

    def _precision(self, config: TrainConfig) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
        """The precision of forward passes on this device; and the same in words, with the reason."""
        match config.precision:
            case "fp32":
                return "fp32", "fp32, as the study says"
            case "fp16":
                return "fp16", "fp16 autocast with loss scaling, as the study says"
            case "auto" | "bf16":
                if self._has_bf16:
                    return "bf16", "bf16 autocast: this GPU has units for it"
                slow = "CPUs without bf16 units are ten times slower with it"
                return "fp32", f"fp32: {'this GPU has no bf16' if self.kind == 'cuda' else slow}"
            case _:
                assert_never(config.precision)

    def replays(self, config: TrainConfig, micro_batches: int = 1) -> tuple[bool, str]:
        """Whether the steps of a training are replays of a CUDA graph (trainer/graph.py); and the reason, in words."""
        if self.kind == "cpu":
            return False, "operation by operation: CUDA graphs are for GPUs"
        reason = ""
        if not config.cuda_graph:
            reason = "cuda_graph = false"
        elif config.precision == "fp16":
            reason = "in fp16, the scale of the loss decides whether a step is taken"
        elif config.optimizer not in FUSED:
            reason = f"{config.optimizer} computes a part of each step on the host"
        elif micro_batches > 1:
            reason = "a graph has memory of its own, and memory is short"
        return not reason, f"kernel by kernel: {reason}" if reason else "replays of a CUDA graph, after four steps"

    @property
    def _has_bf16(self) -> bool:
        return self.kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    @property
    def _has_fp16(self) -> bool:
        return self.kind == "cuda"

    @cached_property
    def _side_stream(self) -> torch.cuda.Stream:
        """The stream of copies. All epochs have the same one, because memory is reused only within the stream
        that it was allocated for."""
        return torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]

    @cached_property
    def graph_stream(self) -> torch.cuda.Stream:
        """The stream on which the steps of a training are captured."""
        return torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]

    def _residence(self, images: NDArray[np.uint8], config: TrainConfig) -> tuple[bool, str]:
        """Whether the pictures are kept in the GPU's memory, and the reason in words."""
        if self.kind == "cpu":
            return False, "mapped from the cache, which all workers share"
        if config.augment:
            return False, "streamed from the host, where `augment` changes them"
        kept, streamed = "in the GPU's memory", "streamed from the host in pinned copies, one batch ahead"
        if not self.keeps_pictures:
            return False, f"{streamed}: the GPU's memory ran out with them in it"
        if self.resident(images) is not None:
            return True, f"{kept} since an earlier candidate"
        own = torch.cuda.mem_get_info(self.torch_device)[1] / self.sharing
        fits = images.nbytes <= RESIDENT_SHARE * own
        sizes = f"{images.nbytes / 1e9:.1f} GB are {'at most' if fits else 'more than'} {RESIDENT_SHARE:.0%}"
        whose = "" if self.sharing == 1 else f", the part of one of the GPU's {self.sharing} workers"
        return fits, f"{kept if fits else streamed}: {sizes} of {own / 1e9:.1f} GB{whose}"


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns about read-only ones


def open_device(kind: str = "cpu", num_threads: int | None = None, sharing: int = 1) -> Device:
    """Set up this process for training on one device.

    Args:
        kind: "cpu", or "cuda" for the first GPU that CUDA_VISIBLE_DEVICES shows this process.
        num_threads: number of CPU threads for torch and OpenCV. Default: one per core that the process may use; on
            the CPU, at most OMP_NUM_THREADS.
        sharing: number of workers that share the GPU, this one included.

    Raises:
        ConfigError: there is no such device, or ``num_threads`` is below 1.
    """
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads = {num_threads}: use 1 or more")
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device = {kind!r}: use cpu or cuda")
    if kind == "cuda" and best_kind() != "cuda":
        raise ConfigError("device = 'cuda': torch sees no GPU here; use cpu")
    threads = num_threads or (most_threads(num_cores()) if kind == "cpu" else num_cores())
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)  # otherwise each worker uses one thread per core of the machine
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # "fp32" must be real fp32; autocast is not affected
        torch.backends.cuda.matmul.allow_tf32 = False  # TORCH_ALLOW_TF32_CUBLAS_OVERRIDE may have turned it on
        # Fused backward passes of attention may differ in their last bits between runs; the plain one does not.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    if sys.platform == "linux":
        # Otherwise activations of a few MB are mapped and unmapped at every step: 11,000 to 48,000 page faults,
        # 10 to 20 % of a step at 64 and 128 px.
        with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    where = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
    return Device(where, threads, choose_num_loaders(kind, threads), sharing)


def choose_num_loaders(kind: str, num_threads: int) -> int:
    """Number of loader processes of a training. On a GPU: one fewer than the CPU threads, because one is for the
    training process, and at most MOST_LOADERS. On the CPU: none, because the training step needs all cores."""
    return min(MOST_LOADERS, num_threads - 1) if kind == "cuda" else 0

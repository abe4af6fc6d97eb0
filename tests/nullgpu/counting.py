"""Trains candidates on the null GPU and counts what torch asks of it; prints one JSON object per candidate.

    python counting.py '[{"model": "rexnet_100"}, ...]'

The settings are those of a TrainConfig, and ``streamed`` keeps the pictures on the host. test_counts.py runs it under
the null GPU's environment, and graphing.py uses its parts.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from machine import COUNTERS

from trainer.augment import Batch
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.device import Device, open_device
from trainer.fit import Training
from trainer.graph import Replay

SIZE, BATCH, STEPS = 64, 8, 2
"""The counts depend little on them: of pictures so large, no layer is a single pixel, which has no layout."""

RECIPE = {"batch_size": BATCH, "label_smoothing": 0.1, "hflip": 0.5, "rotate": 15.0, "erase": 0.25, "dropout": 0.1}


class Watched(np.ndarray):
    """Pictures that remember the threads in which batches were taken from them."""

    threads: ClassVar[set[str]] = set()

    def __getitem__(self, which: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        return super().__getitem__(which)


library = ctypes.CDLL(None)
numbers = (ctypes.c_long * len(COUNTERS)).in_dll(library, "nullgpu_counts")


def counts() -> dict[str, int]:
    return dict(zip(COUNTERS, numbers, strict=True))


def kernels() -> dict[str, int]:
    """Launches of each kernel since the last reset, by mangled name."""
    found: dict[str, int] = {}

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_long)
    def tell(name: bytes, launches: int) -> None:
        found[name.decode()] = launches

    library.nullgpu_kernels(tell)
    return found


def pictures() -> Dataset:
    number = BATCH * STEPS
    everything, nothing = np.arange(number), np.arange(0)
    return Dataset(
        images=np.random.default_rng(0).integers(0, 256, (number, SIZE, SIZE, 3), dtype=np.uint8).view(Watched),
        made_for={"image_size": SIZE},
        labels=np.arange(number) % 10,
        names=tuple(map(str, range(number))),
        class_names=tuple(map(str, range(10))),
        groups=("",) * number,
        splits={"train": everything, "val": everything, "test": nothing},
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        content_hash="",
        bad_files=(),
        duplicates=(),
        cache_path=Path(),
    )


def step_of(training: Training) -> Callable[[Batch, float], torch.Tensor]:
    """What takes the steps of a training: as in ``fit``."""
    config = training.config
    if training.device.replays(config)[0]:
        return Replay(training, training.device, mixes=config.mixup + config.cutmix > 0)
    return training.step


def measure(settings: dict[str, Any], device: Device) -> dict[str, Any]:
    """What a candidate's fifth epoch asks of the GPU; earlier ones fill caches."""
    device = replace(device, keeps_pictures=not settings.pop("streamed", False))
    training = Training(TrainConfig.model_validate(RECIPE | settings), pictures(), device)
    training.model.train()
    take_step = step_of(training)

    def train(epoch: int) -> None:
        library.nullgpu_reset()
        for batch in training.batches(epoch):
            take_step(batch, 1e-3)

    train(1)
    Watched.threads.clear()
    for epoch in (2, 3, 4):  # until the allocator has all that it needs
        train(epoch)
    reserved = torch.cuda.memory_reserved()
    begun = time.process_time()
    train(5)
    milliseconds = (time.process_time() - begun) / STEPS * 1e3
    found: dict[str, Any] = {name: value / STEPS for name, value in counts().items()}
    usual = kernels()
    backward = {name: launches for name, launches in usual.items() if "batch_norm_backward_reduce" in name}
    found["threads"] = sorted(Watched.threads)
    found["nchw_gradients"] = (
        sum(launches for name, launches in backward.items() if "channels_last" not in name) / STEPS
    )
    found["milliseconds"] = round(milliseconds, 1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(5)
    torch.use_deterministic_algorithms(False)
    # Some operations warn that they have no deterministic kernel, others take one without a word.
    found["nondeterministic"] = sorted({str(one.message).split(" does not have")[0] for one in caught})
    found["other_kernels"] = sorted(usual.keys() ^ kernels().keys())
    found["growth"] = torch.cuda.memory_reserved() - reserved
    return found


def main() -> None:
    device = open_device("cuda", 1)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would launch kernels of its own
    for settings in json.loads(sys.argv[1]):
        print(json.dumps(measure(settings, device)), flush=True)
    sys.stdout.flush()
    os._exit(0)  # autograd's thread for the device may end after the library that it calls


if __name__ == "__main__":
    main()

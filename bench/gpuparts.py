"""What gpu.py measures: trainings on random pictures, a step as a CUDA graph, JPEG files, and timm's train.py."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

RECIPE = {
    **{"model": "rexnet_100", "width_mult": 1.12451, "batch_size": 128, "lr": 1e-3, "label_smoothing": 0.1},
    **{"hflip": 0.5, "rotate": 15.0, "rotations": 2, "erase": 0.25, "dropout": 0.2},
}

LR = 2**-10
"""A learning rate that no rounding to float32 changes: a graph reads it from a tensor."""

SAVES = ("shortcut", "silu", "pool", "counters", "casts")
"""The changes that save launches: in trainer/padding.py, three in trainer/kernels.py, and in trainer/casting.py."""


def training(size: int, *, without: str = "", number: int = 2048, data: Any = None, **settings: Any) -> Any:
    """A training on random pictures, without one of SAVES if it is named."""
    import torch
    from timm.layers import SelectAdaptivePool2d
    from torch import nn

    from trainer.config import TrainConfig
    from trainer.device import open_device
    from trainer.fit import Training

    made = Training(TrainConfig.model_validate(RECIPE | settings), data or pictures(size, number), open_device("cuda"))
    for module in made.model.modules():
        if without == "silu" and isinstance(module, nn.SiLU):
            module.inplace = True
        elif without == "pool" and isinstance(module, SelectAdaptivePool2d):
            module._forward_pre_hooks.clear()
        elif without == "counters" and isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = module.num_batches_tracked.cuda()
    torch.cuda.reset_peak_memory_stats()
    made.model.train()
    return made


def pictures(size: int, number: int) -> Any:
    """A data set of 400 classes: at most 512 random pictures, again and again."""
    import numpy as np

    from trainer.data import Dataset

    block = np.random.default_rng(0).integers(0, 256, (min(number, 512), size, size, 3), dtype=np.uint8)
    train, val, test = np.split(np.arange(number), [number - 128, number])
    return Dataset(
        images=np.concatenate([block] * (number // len(block))),
        made_for={"image_size": size},
        labels=np.arange(number) % 400,
        names=tuple(map(str, range(number))),
        class_names=tuple(map(str, range(400))),
        groups=("",) * number,
        splits={"train": train, "val": val, "test": test},
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        content_hash=str(size),
        bad_files=(),
        duplicates=(),
        cache_path=Path(),
    )


@contextlib.contextmanager
def concatenated_shortcut(on: bool) -> Iterator[None]:
    """ReXNet's shortcut as slices, a sum and a concatenation."""
    import torch
    from timm.models.rexnet import LinearBottleneck

    from trainer import padding

    def forward(self: Any, x: Any) -> Any:
        result = LinearBottleneck.forward(self, x)
        result = result if self.drop_path is None else self.drop_path(result)
        real = self.in_channels
        return torch.cat([result[:, :real] + x[:, :real], result[:, real:]], dim=1)

    own = padding._PaddedBlock.forward
    if on:
        padding._PaddedBlock.forward = forward
    try:
        yield
    finally:
        padding._PaddedBlock.forward = own


def stepper(made: Any, *, graph: bool = False) -> Callable[[], object]:
    """A function that takes the next step of a training: kernel by kernel, or as a replay of a CUDA graph."""
    from trainer.graph import Replay

    def endless() -> Iterator[Any]:
        epoch = 0
        while True:
            epoch += 1
            yield from made.batches(epoch)

    batches = endless()
    take = Replay(made, made.device, mixes=made.config.mixup > 0) if graph else made.step
    return lambda: take(next(batches), LR)


def timed(step: Callable[[], object], number: int) -> tuple[float, float]:
    """Milliseconds of a step, and of the host's CPU time for it."""
    import torch

    for _ in range(6):  # a graph is captured in the fourth
        step()
    torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(number):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - wall) / number * 1e3, (time.process_time() - cpu) / number * 1e3


def write_jpegs(asked: tuple[Path, int, int, int]) -> None:
    """Smooth noise around a colour for each of ten classes."""
    import numpy as np
    from PIL import Image

    folder, first, last, size = asked
    for index in range(first, last):
        colour = np.array([index % 10 * 7 % 256, index % 10 * 23 % 256, 128])
        small = np.random.default_rng(index).normal(colour, 40, (size // 8, size // 8, 3)).clip(0, 255).astype(np.uint8)
        to = folder / "train" / f"c{index % 10}"
        to.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(to / f"{index}.jpg", quality=85)


def jpegs(work: Path, number: int, size: int) -> Path:
    """A folder train/CLASS/*.jpg of so many files, written by all cores unless it is there."""
    folder = work / f"jpegs-{number}"
    if not folder.exists():
        with ProcessPoolExecutor() as pool:
            list(pool.map(write_jpegs, [(folder, n, min(n + 250, number), size) for n in range(0, number, 250)]))
    return folder


def timm_rates(command: list[str], lines: int) -> list[float]:
    """The pictures a second that train.py logs; it is ended after so many lines."""
    rates: list[float] = []
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert running.stdout is not None
    for line in running.stdout:
        if found := re.search(r"Train: .*?Time: [\d.]+s, +([\d.]+)/s", line):
            rates.append(float(found[1]))
        else:
            print(line, end="", file=sys.stderr)
        if len(rates) == lines:
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    return rates

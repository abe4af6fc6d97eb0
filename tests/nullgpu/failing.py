"""Lets calls of the null GPU fail, one kind after the other, and prints what the product makes of it as JSON.

Run by test_failing.py under the null GPU's environment, which has a GPU of 1 GB.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from search.workers.worker import _failure_of
from trainer.config import TrainConfig
from trainer.device import open_device

found: dict[str, Any] = {}
images = np.zeros((1000, 256, 256, 3), dtype=np.uint8)  # 0.2 GB


def fails(name: str, call: Callable[[], object]) -> None:
    try:
        call()
        torch.cuda.synchronize()
        found[name] = None
    except Exception as error:
        failure = _failure_of(error)
        found[name] = [failure.kind, failure.sentence]


def main() -> None:
    os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "1"  # as some containers of NVIDIA do
    device = open_device("cuda", 1)
    found["environment"] = {name: os.environ.get(name) for name in ("CUDA_DEVICE_ORDER", "CUBLAS_WORKSPACE_CONFIG")}
    found["tf32"] = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]

    # -- where pictures lie
    config = TrainConfig()
    alone, shared = device, replace(device, sharing=4, held=[])
    found["alone"] = [alone.choices(config, images)[0], alone.hold(images, config) is not None]
    found["shared"] = [shared.choices(config, images)[0], shared.hold(images, config) is not None]
    given_way = replace(alone, keeps_pictures=False)
    found["given way"] = [given_way.choices(config, images)[0], given_way.hold(images, config) is not None]
    found["freed"] = alone.held == []
    filled = torch.empty(900_000_000, dtype=torch.uint8, device="cuda")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["filled"] = [alone.hold(images, config) is not None, *(str(one.message) for one in caught)]
    del filled
    device.forget()
    found["reserved"] = torch.cuda.memory_reserved()
    read_only = np.arange(8)
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found["read-only"] = device.copy(read_only).cpu().tolist()

    # -- pictures that are gathered in a thread
    def gathered() -> Iterator[np.ndarray]:
        yield images[:8]
        raise OSError("the disk is gone")

    fails("gather", lambda: list(device.ahead(gathered())))
    next(stopped := device.ahead(iter([images[:8]] * 5)))
    stopped.close()
    found["threads"] = [thread.name for thread in threading.enumerate() if thread.name.startswith("pictures")]

    # -- errors as torch words them
    square, norm = torch.ones(64, 64, device="cuda"), torch.nn.BatchNorm2d(8).cuda()
    pictures = torch.ones(2, 8, 9, 9, device="cuda").to(memory_format=torch.channels_last)
    fails("fine", lambda: square @ square)
    os.environ["NULLGPU_CUBLAS"] = "3"
    fails("cublas", lambda: square @ square)
    del os.environ["NULLGPU_CUBLAS"]
    os.environ["NULLGPU_CUDNN"] = "5000"
    fails("cudnn", lambda: norm(pictures))
    del os.environ["NULLGPU_CUDNN"]
    fails("memory", lambda: torch.empty(1 << 40, device="cuda"))
    ctypes.CDLL(None).nullgpu_break(2)
    fails("late memory", lambda: square + 1)
    ctypes.CDLL(None).nullgpu_break(700)
    fails("illegal access", lambda: square + 1)
    print(json.dumps(found), flush=True)
    os._exit(0)


main()

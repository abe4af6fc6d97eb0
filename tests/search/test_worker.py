"""A worker's process: what it says of a training, what it logs, and how it names what went wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from search.devices import WorkerDevice
from search.pools.local import LocalPool, Message
from search.worker import _kind_of
from trainer.config import DataConfig, TrainConfig
from trainer.data import prepare_data
from trainer.errors import DiskError, DivergedError, LimitError


def test_an_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert _kind_of(caught.value) == "memory"
    with pytest.raises(MemoryError) as python:
        bytearray(1 << 62)
    assert _kind_of(python.value) == "memory"
    assert _kind_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) == "memory"


def test_errors_of_the_device_get_a_new_process() -> None:
    assert _kind_of(torch.AcceleratorError("CUDA error: an illegal memory access was encountered")) == "device"


def test_errors_that_a_retry_cannot_mend_are_told_from_those_it_may() -> None:
    kinds = [_kind_of(error) for error in (DivergedError("x"), DiskError("x"), LimitError("x"), ValueError("x"))]
    assert kinds == ["diverged", "disk", "user", "crash"]


@pytest.mark.slow
def test_folds_are_trained_in_a_worker_which_logs_once_what_its_device_chose(tmp_path: Path) -> None:
    data = DataConfig(source="digits", image_size=16, test_fraction=0.8, folds=3)
    config = TrainConfig(model="resnet10t", width_mult=0.05, epochs=1, batch_size=32)
    log, said = tmp_path / "worker.log", list[Message]()
    pool = LocalPool([WorkerDevice("cpu", None, 1)], [log])
    assignment = {
        "type": "assign",
        "config": config.model_dump(mode="json"),
        "width": None,
        "data": data.model_dump(),
        "cache": str(prepare_data(data, tmp_path).cache_path),
        "limit": {"params": 60_000, "macs": None},
        "micro_batches": 1,
    }
    pool.start(0)
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and sum(message["type"] == "left" for message in said) < 2:
        for _, message in pool.events(1):
            assert isinstance(message, dict), message
            said.append(message)
            if message["type"] in ("ready", "left"):
                trial = sum(earlier["type"] == "left" for earlier in said)
                pool.send(0, assignment | {"trial": trial, "checkpoint": str(tmp_path / f"trial-{trial}.ckpt")})
            elif message["type"] == "epoch":
                pool.send(0, {"type": "answer", "go_on": not message["result"]["final"]})
    pool.close()
    results = [message["result"] for message in said if message["type"] == "epoch" and message["trial"] == 0]
    assert [(result["epoch"], result["final"]) for result in results] == [(1, False), (2, False), (3, True)]
    assert sorted(file.name for file in tmp_path.glob("trial-0*")) == [f"trial-0.ckpt-fold{n}" for n in range(3)]
    assert log.read_text().count("loader processes: none") == 1

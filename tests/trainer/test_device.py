"""Devices: which exist, what precision they give, how they lay out a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from trainer.config import TrainConfig
from trainer.device import Device, choose_num_loaders, open_device
from trainer.errors import ConfigError


def test_an_unknown_device_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="device = 'tpu': use cpu or cuda"):
        open_device("tpu")


def test_a_gpu_that_is_not_there_is_a_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    with pytest.raises(ConfigError, match="torch sees no GPU here; use cpu"):
        open_device("cuda")


@pytest.mark.parametrize("num_threads", [0, -1])
def test_a_device_without_threads_is_refused(num_threads: int) -> None:
    with pytest.raises(ConfigError, match=f"num_threads = {num_threads}: use 1 or more"):
        open_device("cpu", num_threads)


def test_opening_a_device_sets_the_threads_of_the_process() -> None:
    assert open_device("cpu", 2).name == "CPU, 2 threads"
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
    assert open_device("cpu", 1).name == "CPU, 1 thread"
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)


def test_a_gpus_loaders_are_its_share_of_the_cores_less_one_and_a_cpu_has_none() -> None:
    assert [choose_num_loaders("cuda", cores) for cores in (1, 2, 5, 9, 64)] == [0, 1, 4, 8, 8]
    assert choose_num_loaders("cpu", 64) == 0


def lines(device: Device, **settings: Any) -> dict[str, str]:
    """What is chosen for a candidate and a set of 6 MB, and why."""
    images = np.zeros((500, 64, 64, 3), dtype=np.uint8)
    chosen = device.choices(TrainConfig.model_validate({"model": "resnet10t"} | settings), images)
    return dict(line.split(": ", 1) for line in chosen)


def test_every_choice_comes_with_its_reason(cpu: Device) -> None:
    assert lines(cpu) == {
        "picture set": "mapped from the cache, which all workers share",
        "precision": "fp32: CPUs without bf16 units are ten times slower with it",
        "memory layout": "channels last: 1.2 to 1.3 times faster on CPUs with AVX2, and needed by tensor cores",
        "optimizer": "adamw, fused",
        "augmentation": "by OpenCV on the CPU: a picture at a time is fastest there",
        "loader processes": "none: `augment` names nothing that runs on the host",
        "steps": "operation by operation: CUDA graphs are for GPUs",
    }
    other = lines(cpu, model="rexnet_100", optimizer="nadam", precision="fp32", augment=["AutoAugment"])
    padded = "; ReXNet's channels zero-padded to multiples of 8, for vector units and tensor cores"
    assert other["memory layout"].endswith(padded)
    assert other["optimizer"] == "nadam, not fused: torch has no such kernel"
    assert other["precision"] == "fp32, as the study says"
    assert other["augmentation"].startswith("by the transforms of `augment` on the host, then by OpenCV")
    assert other["loader processes"] == "none: the cores are for the step"
    one_thread = lines(Device(torch.device("cuda"), 1), augment=["AutoAugment"], precision="fp32")
    assert one_thread["loader processes"] == "none: this process has a single thread"


def test_on_the_cpu_batches_pass_as_they_are_one_at_a_time(cpu: Device) -> None:
    made: list[int] = []

    def batches() -> Iterator[NDArray[np.uint8]]:
        for number in range(3):
            made.append(number)
            yield np.full((2, 4, 4, 3), number, dtype=np.uint8)

    for number, batch in enumerate(cpu.ahead(batches())):
        assert made == list(range(number + 1))
        assert isinstance(batch, np.ndarray)
        assert (batch == number).all()
    assert cpu.hold(np.zeros((2, 4, 4, 3), dtype=np.uint8), TrainConfig()) is None


def test_half_precision_on_the_cpu_is_refused_with_a_sentence(cpu: Device) -> None:
    with pytest.raises(
        ConfigError, match=r'"bf16" needs a GPU that has it; use "auto" on this device \(CPU, 1 thread\)'
    ):
        cpu.autocast(TrainConfig(precision="bf16"))
    with pytest.raises(
        ConfigError, match=r'"fp16" needs a GPU that has it; use "auto" on this device \(CPU, 1 thread\)'
    ):
        cpu.autocast(TrainConfig(precision="fp16"))


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_the_cpu_computes_in_full_precision(cpu: Device, precision: str) -> None:
    with cpu.autocast(TrainConfig.model_validate({"precision": precision})):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_model_is_placed_channels_last(cpu: Device) -> None:
    model = cpu.place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)))
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    assert len(weights) == 2
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not any(weight.is_contiguous() for weight in weights)


def test_a_copy_holds_the_same_numbers_and_type(cpu: Device) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    copied = cpu.copy(array)
    assert copied.dtype == torch.uint8
    assert np.array_equal(copied.numpy(), array)


@pytest.mark.cuda
def test_a_gpu_computes_in_bf16_unless_told_otherwise(cuda: Device) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    ones = torch.ones(2, 2, device=cuda.torch_device)
    for precision, dtype in (("auto", torch.bfloat16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with cuda.autocast(TrainConfig.model_validate({"precision": precision})):
            assert (ones @ ones).dtype == dtype


@pytest.mark.cuda
def test_a_copy_to_a_gpu_holds_the_same_numbers(cuda: Device) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(cuda.copy(array).cpu().numpy(), array)


@pytest.mark.cuda
def test_a_gpu_keeps_the_pictures_it_was_given_until_it_gets_others(cuda: Device) -> None:
    random = np.random.default_rng(0)
    one, other = (random.integers(0, 256, (5000, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    one.flags.writeable = False  # as the cache is mapped
    config = TrainConfig()
    held = cuda.hold(one, config)
    assert held is not None
    assert np.array_equal(held.cpu().numpy(), one)
    assert cuda.hold(one, config) is held is cuda.resident(one)
    assert cuda.resident(other) is None
    assert cuda.hold(one, TrainConfig(augment=("AutoAugment",))) is None
    assert cuda.hold(other, config) is not None
    assert cuda.resident(one) is None


@pytest.mark.cuda
def test_streamed_batches_arrive_on_the_gpu_whole_and_in_order(cuda: Device) -> None:
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8) for _ in range(20)]
    for expected, batch in zip(batches, cuda.ahead(batches), strict=True):
        assert isinstance(batch, torch.Tensor)
        assert batch.device.type == "cuda"
        busy = torch.randn(512, 512, device=cuda.torch_device)
        for _ in range(20):
            busy = busy @ busy
        assert np.array_equal(batch.cpu().numpy(), expected)

"""Devices: which exist, what precision they give, how they lay out a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from trainer.config import TrainConfig
from trainer.device import Device, open_device
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
    assert torch.get_num_threads() == 2
    assert open_device("cpu", 1).name == "CPU, 1 thread"
    assert torch.get_num_threads() == 1


def test_bf16_on_the_cpu_is_refused_with_a_sentence(cpu: Device) -> None:
    with pytest.raises(ConfigError, match=r'"bf16" needs a GPU that has it; CPU, 1 thread has not, use "auto"'):
        cpu.autocast(TrainConfig(precision="bf16"))


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

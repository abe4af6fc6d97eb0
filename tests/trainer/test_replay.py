"""Steps as a CUDA graph takes them, on a CPU: numbers in tensors give the same bits as numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from short import config_of, without_times

from trainer.data import Dataset
from trainer.device import Device
from trainer.fit import Training, fit
from trainer.graph import _Inputs

LR = 2**-8  # no rounding changes it


def weights(training: Training) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in training.model.state_dict().values()]


@pytest.mark.parametrize("settings", [{"mixup": 0.5}, {}, {"optimizer": "sgd", "cutmix": 1.0}], ids=str)
def test_learning_rate_and_shares_of_labels_in_tensors_give_the_same_bits(
    digits: Dataset, cpu: Device, settings: dict[str, object]
) -> None:
    config = config_of(**settings)
    numbers, tensors = Training(config, digits, cpu), Training(config, digits, cpu)
    inputs, mixed = None, set()
    for batch in numbers.batches(1):
        inputs = inputs or _Inputs(batch, mixes=config.mixup + config.cutmix > 0)
        inputs.fill(batch, LR)
        mixed.add(batch.other_labels is not None)
        assert torch.equal(numbers.step(batch, LR), tensors.step(inputs.batch, inputs.lr))
    assert all(map(torch.equal, weights(numbers), weights(tensors)))
    assert mixed == {"{'mixup': 0.5}": {False, True}, "{}": {False}}.get(str(settings), {True})


def test_on_a_cpu_the_setting_does_nothing(digits: Dataset, cpu: Device) -> None:
    few = replace(digits, splits={**digits.splits, "train": digits.splits["train"][:160]})
    usual, graphed = (list(fit(config_of(cuda_graph=on, mixup=0.5), few, cpu)) for on in (False, True))
    assert without_times(usual) == without_times(graphed)
    assert cpu.replays(config_of(cuda_graph=True)) == (False, "operation by operation: CUDA graphs are for GPUs")

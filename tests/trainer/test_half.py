"""fp16 with loss scaling, on a CPU that counts as having it: the numbers are real, only the speed is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from short import PLAIN, at
from test_resume import assert_same_training, interrupted_after_one_epoch

from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import Sam, TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.errors import ConfigError
from trainer.fit import Training, fit
from trainer.values import validate

HALF = PLAIN.model_copy(update={"precision": "fp16", "clip": 1.0})


class Halved(Device):
    _has_fp16 = True  # type: ignore[assignment]


@pytest.fixture
def halved(cpu: Device) -> Device:
    return Halved(cpu.torch_device, cpu.num_threads)


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    return replace(digits, splits={**digits.splits, "train": digits.splits["train"][:160]})


def test_it_learns_as_in_full_precision_and_goes_on_with_the_same_scale(
    few: Dataset, halved: Device, tmp_path: Path
) -> None:
    straight = list(fit(HALF, few, halved, checkpoint=tmp_path / "straight"))
    full = list(fit(HALF.model_copy(update={"precision": "fp32"}), few, halved))
    assert straight[-1].train_loss == pytest.approx(full[-1].train_loss, rel=0.2)  # the first step overflows
    assert straight[-1].train_loss != full[-1].train_loss
    interrupted_after_one_epoch(HALF, few, halved, tmp_path / "resumed")
    list(fit(HALF, few, halved, checkpoint=tmp_path / "resumed"))
    assert_same_training(at(tmp_path / "straight"), at(tmp_path / "resumed"))
    state = at(tmp_path / "straight").scaler
    assert state is not None
    assert state == at(tmp_path / "resumed").scaler
    assert 0 < state["scale"] <= 2**16
    assert state["_growth_tracker"] > 0


def test_a_step_that_overflows_changes_no_weight_and_halves_the_scale(few: Dataset, halved: Device) -> None:
    training = Training(HALF, few, halved)
    batch = next(training.batches(1))
    training.scaler.load_state_dict(training.scaler.state_dict() | {"scale": 2.0**60})
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    training.step(batch, 1e-2)
    assert all(map(torch.equal, before, training.model.parameters()))
    assert training.scaler.get_scale() == 2.0**59


def test_a_resumed_training_has_the_scale_of_its_checkpoint(few: Dataset, halved: Device, tmp_path: Path) -> None:
    path = tmp_path / "trial"
    interrupted_after_one_epoch(HALF, few, halved, path)
    kept = at(path)
    assert kept.scaler is not None
    save_checkpoint(path, replace(kept, scaler=kept.scaler | {"scale": 2.0**60}))
    list(fit(HALF, few, halved, checkpoint=path))
    ended = load_checkpoint(path)
    assert ended is not None
    assert ended.scaler is not None
    assert 2**16 < ended.scaler["scale"] < 2**60


def test_other_precisions_keep_no_scale(few: Dataset, cpu: Device, tmp_path: Path) -> None:
    next(fit(PLAIN, few, cpu, checkpoint=tmp_path / "trial"))
    assert at(tmp_path / "trial").scaler is None


def test_sharpness_aware_minimization_needs_another_precision() -> None:
    with pytest.raises(ConfigError, match='precision = "fp16" does not go with sam'):
        validate(TrainConfig, {"precision": "fp16", "sam": Sam()}, "candidate")

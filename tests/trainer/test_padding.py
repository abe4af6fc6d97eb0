"""Zero-padded channels: the same function and the same training, stored as the real net."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.checkpoint import load_checkpoint
from trainer.config import Shape, TrainConfig
from trainer.data import Dataset
from trainer.device import Device
from trainer.evaluate import measure, predict_logits
from trainer.fit import fit
from trainer.models import build_model
from trainer.optim import build_optimizer, limit_gradient
from trainer.padding import Padding

NARROW: dict[str, Any] = {
    "model": "rexnet_100",
    "width_mult": 0.37,
    "depth_mult": 0.5,
    "epochs": 2,
    "batch_size": 43,
    "lr": 2e-3,
}


def config_of(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate(NARROW | settings)


def padding_is_zero(model: nn.Module, padding: Padding) -> bool:
    """Whether all that the real net does not have is 0."""
    for name, tensor in model.state_dict().items():
        rest = tensor.clone()
        rest[tuple(slice(size) for size in padding.shapes[name])] = 0
        if rest.any():
            return False
    return True


@pytest.mark.parametrize(
    # Small rates: AdamW divides by gradients that are all rounding, and soon no two orders of the sums agree.
    "settings",
    [{"lr": 1e-4}, {"optimizer": "sgd", "lr": 0.01, "clip": 0.5, "agc": 0.05}],
    ids=["adamw", "sgd, clipped twice"],
)
def test_five_steps_in_double_precision_are_those_of_the_real_net(settings: dict[str, Any]) -> None:
    config = config_of(**settings)
    torch.manual_seed(0)
    real = build_model(config, Shape(7, 32)).double()
    torch.manual_seed(0)
    padded = build_model(config, Shape(7, 32)).double()
    padding = Padding(padded)
    channels = [module.out_channels for module in padded.modules() if isinstance(module, nn.Conv2d)]
    assert all(number % 8 == 0 for number in channels)
    assert any(module.out_channels % 8 for module in real.modules() if isinstance(module, nn.Conv2d))

    images, labels = torch.randn(6, 3, 32, 32, dtype=torch.double), torch.arange(6)
    losses: list[list[float]] = []
    for model in (real, padded):
        optimizer = build_optimizer(config, model)
        losses.append([])
        for _ in range(5):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            limit_gradient(config, model)
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert losses[0][-1] < losses[0][0] - 0.01
    assert padding_is_zero(padded, padding)
    for name, tensor in padding.real(padded.state_dict()).items():
        assert torch.allclose(tensor, real.state_dict()[name], atol=1e-9), name
    assert torch.allclose(real.eval()(images), padded.eval()(images), atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(model="resnet10t", width_mult=0.25),
        TrainConfig(model="rexnetr_100", width_mult=0.25),
        TrainConfig(model="rexnet_100", width_mult=0.37, model_args={"act_layer": "sigmoid"}),  # 0.5 of 0
    ],
    ids=["another family", "multiples of 8 already", "an activation that does not keep zeros"],
)
def test_other_nets_stay_as_they_are(config: TrainConfig) -> None:
    built = build_model(config, Shape(7, 32))
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    padding = Padding(built)
    assert {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes
    state = built.state_dict()
    assert all(padding.real(state)[name] is state[name] for name in state)


def test_a_padded_training_is_stored_as_the_real_net_and_resumes_bit_for_bit(
    digits: Dataset, cpu: Device, tmp_path: Path
) -> None:
    few = replace(digits, splits={"train": digits.splits["train"][:86], "val": digits.splits["val"][:20]})
    config = config_of(ema=0.9, drop_path=0.2, dropout=0.2)
    straight = list(fit(config, few, cpu, checkpoint=tmp_path / "straight"))
    first = fit(config, few, cpu, checkpoint=tmp_path / "cut")
    next(first)
    first.close()  # type: ignore[attr-defined]
    resumed = list(fit(config, few, cpu, checkpoint=tmp_path / "cut"))
    assert [r.train_loss for r in resumed] == [r.train_loss for r in straight]
    assert [r.val_loss for r in resumed] == [r.val_loss for r in straight]

    stored = load_checkpoint(tmp_path / "straight")
    assert stored is not None
    real = cpu.place(build_model(config, Shape(10, 16))).eval()
    real.load_state_dict(stored.weights)  # strict: each name and shape
    metrics = measure(predict_logits(real, few, "val", cpu), few.labels[few.splits["val"]])
    assert metrics.loss == pytest.approx(straight[-1].val_loss, rel=1e-5)
    moments = [entry["exp_avg"].shape for entry in stored.optimizer["state"].values()]
    assert sorted(moments) == sorted(parameter.shape for parameter in real.parameters())
    # No more bytes than the net has: a view would be written with all that it is cut from.
    assert all(
        tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in stored.model.values()
    )

"""Optimizers: what is decayed, that they are fused; the learning rate at named steps against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.config import TrainConfig
from trainer.models import build_model
from trainer.optim import build_optimizer, learning_rate

STEPS = 10  # per epoch


def rate(step: int, **settings: object) -> float:
    return learning_rate(TrainConfig.model_validate({"lr": 0.8, "epochs": 4, **settings}), step, STEPS)


def test_constant_stays() -> None:
    assert {rate(step, schedule="constant") for step in range(4 * STEPS)} == {0.8}


def test_cosine_falls_from_lr_through_half_of_it_towards_zero() -> None:
    assert rate(0, schedule="cosine") == 0.8
    assert rate(20, schedule="cosine") == pytest.approx(0.4)
    assert rate(10, schedule="cosine") == pytest.approx(0.4 + 0.4 * math.sqrt(0.5))
    assert rate(40, schedule="cosine") == pytest.approx(0.0, abs=1e-12)  # one step after the last
    rates = [rate(step, schedule="cosine") for step in range(40)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_cosine_ends_at_its_floor() -> None:
    assert rate(20, schedule="cosine", lr_min_ratio=0.1) == pytest.approx(0.8 * 0.55)
    assert rate(40, schedule="cosine", lr_min_ratio=0.1) == pytest.approx(0.08)


def test_step_multiplies_at_the_start_of_its_epochs() -> None:
    settings = {"schedule": "step", "step_epochs": 2, "step_gamma": 0.5, "epochs": 6}
    assert [rate(step, **settings) for step in (0, 19, 20, 39, 40, 59)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_in_equal_steps_and_meets_the_schedule(schedule: str) -> None:
    rates = [rate(step, schedule=schedule, warmup_epochs=0.5) for step in range(6)]
    assert rates == pytest.approx([0.8 * (step + 1) / 6 for step in range(6)])


def test_cosine_after_a_warm_up_falls_over_the_rest() -> None:
    assert rate(10, schedule="cosine", warmup_epochs=1) == 0.8
    assert rate(25, schedule="cosine", warmup_epochs=1) == pytest.approx(0.4)  # half of what is left
    assert rate(40, schedule="cosine", warmup_epochs=1) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_spares_biases_and_normalisation(name: str) -> None:
    config = TrainConfig.model_validate(
        {"model": "resnet10t", "width_mult": 0.1, "optimizer": name, "weight_decay": 0.3}
    )
    model = build_model(config, 5, 32)
    optimizer = build_optimizer(config, model)
    decay_of = {
        id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert len(decay_of) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay_of[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0)


def test_adamw_and_sgd_are_fused_and_take_their_settings() -> None:
    model = torch.nn.Linear(3, 2)
    adamw = build_optimizer(TrainConfig(optimizer="adamw", lr=0.2, momentum=0.8), model)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["fused"] is True
    assert adamw.defaults["lr"] == 0.2
    assert adamw.defaults["betas"] == (0.8, 0.999)
    sgd = build_optimizer(TrainConfig(optimizer="sgd", lr=0.2, momentum=0.8), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["fused"] is True
    assert sgd.defaults["lr"] == 0.2
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["nesterov"] is True


def test_sgd_without_momentum_is_plain_sgd() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(TrainConfig(optimizer="sgd", lr=0.5, weight_decay=0.0, momentum=0.0), model)
    before = model.weight.detach().clone()
    for _ in range(2):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert torch.allclose(model.weight, before - 2 * 0.5)


def test_decay_of_adamw_is_decoupled_and_that_of_sgd_is_part_of_the_gradient() -> None:
    """Without a gradient AdamW still shrinks a weight by lr * decay, and Nesterov SGD by that (1 + momentum) times."""
    for name, shrunk in (("adamw", 1 - 0.1 * 0.5), ("sgd", 1 - 0.1 * 0.5 * 1.9)):
        model = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(model.weight)
        config = TrainConfig.model_validate({"optimizer": name, "lr": 0.1, "weight_decay": 0.5, "momentum": 0.9})
        optimizer = build_optimizer(config, model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert model.weight.item() == pytest.approx(shrunk)

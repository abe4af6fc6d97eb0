"""The learning rate at named steps against closed forms; optimizers, SAM, clipping, averages and losses by one step."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from short import config_of
from timm.models import model_parameters
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.nn import functional as F

from trainer.config import Shape, TrainConfig
from trainer.models import build_model
from trainer.optim import Ascent, WeightAverage, build_optimizer, learning_rate, limit_gradient

# The learning rate at named steps

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


def rates(**settings: Any) -> list[float]:
    config = config_of(**{"lr": 1.0, "epochs": 30, **settings})
    return [learning_rate(config, step, 4) for step in range(config.epochs * 4)]


def test_milestones_multiply_at_their_shares_of_the_epochs() -> None:
    got = rates(schedule="milestones", milestones=[0.3, 0.5, 0.7, 0.9], step_gamma=0.2)
    for epoch, expected in ((0, 1), (8, 1), (9, 0.2), (14, 0.2), (15, 0.04), (21, 0.008), (27, 0.0016)):
        assert got[4 * epoch] == pytest.approx(expected)


def test_step_lr_with_gamma_095_falls_every_epoch() -> None:
    got = rates(schedule="step", step_epochs=1, step_gamma=0.95)
    assert got[::4] == pytest.approx([0.95**epoch for epoch in range(30)])


def test_warm_restarts_have_cycles_of_9_and_18_epochs_with_warm_ups_and_falling_peaks() -> None:
    got = rates(schedule="warm_restarts", step_epochs=9, cycle_mult=2, step_gamma=0.4, warmup_epochs=2)
    assert got[8] == pytest.approx(1.0)  # the first peak, after two epochs of warm-up
    assert got[35] < 0.02
    assert got[36] == pytest.approx(0.4 / 9)  # the second cycle's warm-up begins
    assert got[44] == pytest.approx(0.4)
    assert got[4 * 27 - 1] < 0.01
    assert max(got[4 * 27 :]) == pytest.approx(0.16)
    middle = 0.5 * (1 + math.cos(math.pi * 14 / 28))
    assert got[8 + 14] == pytest.approx(middle)


def test_plateau_steps_after_patience_epochs_without_a_lower_loss() -> None:
    config = config_of(schedule="plateau", plateau_patience=2, step_gamma=0.5, lr=1.0)
    losses = [1.0, 0.9, 0.95, 0.91, 0.92, 0.93, 0.5]
    got = [learning_rate(config, 0, 4, losses[:known]) for known in range(len(losses) + 1)]
    assert got == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


# Optimizers, SAM, clipping, averages, losses


@pytest.fixture
def step() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small net with batch norm, pictures and labels."""
    torch.manual_seed(0)
    return build_model(config_of(), Shape(4, 16)), torch.randn(8, 3, 16, 16), torch.arange(8) % 4


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_spares_biases_and_normalisation(name: str) -> None:
    config = TrainConfig.model_validate(
        {"model": "resnet10t", "width_mult": 0.1, "optimizer": name, "weight_decay": 0.3}
    )
    model = build_model(config, Shape(5, 32))
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


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "sgd", "rmsprop"])
def test_each_optimizer_learns_a_batch(optimizer: str, step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, images, labels = step
    config = config_of(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 3e-3, weight_decay=0.0)
    built = build_optimizer(config, model)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        built.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        built.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_climbs_by_rho_and_comes_back(adaptive: bool, step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, images, labels = step
    ascent = Ascent(config_of(sam={"rho": 0.1, "adaptive": adaptive}), model)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    ascent.climb()
    moves = [after - before[name] for name, after in model.named_parameters()]
    if adaptive:  # Kwon et al., 2021: the move in units of the weights has norm rho
        sizes = [before[name].abs() for name, _ in model.named_parameters()]
        direction = [size**2 * gradient for size, gradient in zip(sizes, gradients, strict=True)]
        norm = torch.cat([(s * g).flatten() for s, g in zip(sizes, gradients, strict=True)]).norm()
    else:
        direction, norm = gradients, torch.cat([g.flatten() for g in gradients]).norm()
    for move, towards in zip(moves, direction, strict=True):
        assert torch.allclose(move, 0.1 * towards / norm, atol=1e-6)
    with torch.no_grad():
        assert F.cross_entropy(model(images), labels) > loss
    ascent.descend()
    for name, value in model.state_dict().items():  # batch norm's statistics too: the second pass does not count
        if "num_batches" not in name:
            assert torch.allclose(value, before[name], atol=1e-6), name


def test_the_gradients_norm_is_clipped(step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, images, labels = step
    (100 * F.cross_entropy(model(images), labels)).backward()  # type: ignore[no-untyped-call]
    limit_gradient(config_of(clip=0.5), model)
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_adaptive_clipping_bounds_each_units_gradient_by_its_weight_but_the_classifiers(
    step: tuple[nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    model, images, labels = step
    (1000 * F.cross_entropy(model(images), labels)).backward()  # type: ignore[no-untyped-call]
    head = [p.grad.clone() for p in model.get_classifier().parameters()]  # type: ignore[operator]
    limit_gradient(config_of(agc=0.01), model)
    weight = model.layer1[0].conv1.weight  # type: ignore[index, union-attr]
    ratios = weight.grad.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)  # type: ignore[union-attr]
    assert ratios.max() <= 0.0101
    after = [p.grad for p in model.get_classifier().parameters()]  # type: ignore[operator]
    assert all(torch.equal(*pair) for pair in zip(head, after, strict=True))


@pytest.mark.parametrize("most", [0.01, 2.0])
def test_adaptive_clipping_gives_the_bits_of_timms(
    step: tuple[nn.Module, torch.Tensor, torch.Tensor], most: float
) -> None:
    model, images, labels = step
    with torch.no_grad():
        model.layer1[0].conv1.weight[1] = 0.0  # type: ignore[index, union-attr]
    (3 * F.cross_entropy(model(images), labels)).backward()  # type: ignore[no-untyped-call]
    model.layer1[0].conv1.weight.grad[0] = 0.0  # type: ignore[index, union-attr]
    expected = copy.deepcopy(model)
    for one, other in zip(expected.parameters(), model.parameters(), strict=True):
        one.grad = None if other.grad is None else other.grad.clone()
    adaptive_clip_grad(model_parameters(expected, exclude_head=True), most)
    limit_gradient(config_of(agc=most), model)
    pairs = list(zip(expected.parameters(), model.parameters(), strict=True))
    assert all(
        one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad) for one, other in pairs
    )


def test_the_average_of_the_weights_follows_its_formula(step: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, *_ = step
    average = WeightAverage(config_of(ema=0.9), model)
    expected = model.state_dict()["conv1.0.weight"].clone()
    for number in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(number)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.state_dict()["conv1.0.weight"]
    assert torch.allclose(average.model.state_dict()["conv1.0.weight"], expected, atol=1e-5)

"""Weights that are cast together give autocast's bits; that this saves launches is counted in tests/nullgpu."""

from __future__ import annotations

import pytest
import torch

from trainer.casting import HalfWeights
from trainer.config import Shape, TrainConfig
from trainer.kernels import save_launches
from trainer.models import build_model
from trainer.padding import Padding


@pytest.mark.parametrize("name", ["rexnet_100", "resnet10t"])
def test_logits_and_gradients_are_those_of_autocast(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(TrainConfig(model=name, width_mult=0.25), Shape(4, 32, 3))
    Padding(model)
    save_launches(model.to(memory_format=torch.channels_last))
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def passed(forward: torch.nn.Module | HalfWeights) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(images)
        logits.float().logsumexp(1).sum().backward()  # type: ignore[no-untyped-call]
        return [logits.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]

    usual, together = passed(model), passed(HalfWeights(model))
    assert usual[0].dtype == torch.bfloat16
    assert len(usual) == len(list(model.parameters())) + 1
    assert all(map(torch.equal, usual, together))
    assert all(weight.dtype == torch.float32 and weight.is_leaf for weight in model.parameters())


def test_outside_of_autocast_the_model_is_as_it_is() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    images = torch.randn(2, 3)
    assert torch.equal(HalfWeights(model)(images), model(images))


def test_a_weight_that_has_no_part_in_a_step_gets_no_gradient() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "unused": torch.nn.Linear(3, 2)})
    model.forward = lambda images: model["used"](images)  # type: ignore[method-assign]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = HalfWeights(model)(torch.randn(2, 3))
    logits.float().sum().backward()  # type: ignore[no-untyped-call]
    assert [weight.grad is None for weight in model.parameters()] == [False, False, True, True]

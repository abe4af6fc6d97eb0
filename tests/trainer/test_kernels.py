"""What saves launches on a GPU changes no number; that it saves them is counted in tests/nullgpu."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.config import Shape, TrainConfig
from trainer.kernels import save_launches
from trainer.models import build_model


@pytest.mark.parametrize(
    "model", ["rexnet_100", "efficientnet_b0", "mobilenetv3_small_100", "resnet10t", "nf_regnet_b0"]
)
def test_a_step_gives_the_same_bits_and_batch_norm_counts_as_before(model: str) -> None:
    torch.manual_seed(0)
    plain = build_model(TrainConfig(model=model), Shape(7, 32)).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    saving = copy.deepcopy(plain)
    save_launches(saving)
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    for net in (plain, saving):
        torch.manual_seed(1)
        F.cross_entropy(net(images), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    pairs = list(zip(plain.named_parameters(), saving.parameters(), strict=True))
    assert [name for (name, one), other in pairs if not torch.equal(one.grad, other.grad)] == []  # type: ignore[arg-type]
    states = plain.state_dict(), saving.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert not any(module.inplace for module in saving.modules() if isinstance(module, nn.SiLU | nn.Hardswish))

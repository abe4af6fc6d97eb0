"""Weights in half precision, cast together before the forward pass.

Autocast casts each weight when its layer runs. This takes one kernel for each weight, and in the backward pass one for
each gradient. Here a few kernels cast all weights, and a few cast all gradients. Both ways give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class HalfWeights:
    """The forward pass of a model, with the weights of its convolutions and linear layers in the type of autocast.

    Args:
        model: the model, on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        layers = [module for module in model.modules() if type(module) in (nn.Conv2d, nn.Linear)]
        self.places = [(layer._parameters, name) for layer in layers for name, _ in layer.named_parameters()]
        self.weights = [weight for layer in layers for weight in layer.parameters()]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images [batch, channels, size, size]. Outside of autocast, the weights are not cast."""
        kind = images.device.type
        logits: torch.Tensor
        if not torch.is_autocast_enabled(kind):
            logits = self.model(images)
            return logits
        self._set(_Cast.apply(torch.get_autocast_dtype(kind), *self.weights))
        try:
            logits = self.model(images)
        finally:
            self._set(self.weights)
        return logits

    def _set(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put tensors in the places of the weights. ``torch.func.functional_call`` does the same, but slowly."""
        for (parameters, name), tensor in zip(self.places, tensors, strict=True):
            parameters[name] = tensor  # type: ignore[assignment]


class _Cast(torch.autograd.Function):
    """Casts tensors to another type, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_cast(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        whole = iter(_cast([gradient for gradient in gradients if gradient is not None], torch.float32))
        return None, *(None if gradient is None else next(whole) for gradient in gradients)


def _cast(tensors: tuple[torch.Tensor, ...] | list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast

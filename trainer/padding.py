"""ReXNets with channels padded by zeros to multiples of 8. Vector units and tensor cores work on such multiples. The
padded model computes exactly the same function.

A ReXNet's numbers of channels are irregular, and a GPU is then not faster with the channels-last layout. (In timm's
tables for an RTX 3090, channels last has 0.75 times the speed for rexnet_130, and 1.31 times for rexnetr_100, whose
channels are multiples of 8.) On a CPU, padding does not change the speed (bench/LOG.md). CPUs pad too, so that there is
one code path. Padded weights stay 0, because their gradients are 0. A weight that reads a padded channel reads 0. A
weight that writes one gets no gradient, because the weights that read the channel are 0. Checkpoints hold the real
tensors, so an export needs no conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models.rexnet import LinearBottleneck, RexNet
from torch import nn

from trainer.checkpoint import OptimizerState

State = dict[str, torch.Tensor]
CHANNEL_MULTIPLE = 8
"""Numbers of padded channels are multiples of this."""


class Padding:
    """Pads a model in place; converts its state to that of the real model and back.

    Args:
        model: any model. It is not changed unless it is a ReXNet whose activations all map 0 to 0.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shapes: dict[str, torch.Size] = {}
        if isinstance(model, RexNet) and _keeps_zeros(model):
            self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
            for module in model.modules():
                _pad(module, takes_pictures=module is model.stem.conv)
        self.model = model

    def real(self, state: State) -> State:
        """Convert the state of the padded model, or of its average, to that of the real model."""
        if not self.shapes:
            return state
        return {name: _cut(tensor, self.shapes[name]) for name, tensor in state.items()}

    def padded(self, state: State) -> State:
        """Convert the state of the real model to that of the padded model."""
        if not self.shapes:
            return state
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        return {name: _extend(tensor, shapes[name]) for name, tensor in state.items()}

    def real_optimizer(self, optimizer: torch.optim.Optimizer) -> OptimizerState:
        """The optimizer's state for the real model."""
        return self._convert(optimizer, optimizer.state_dict(), lambda tensor, real, _: _cut(tensor, real))

    def padded_optimizer(self, optimizer: torch.optim.Optimizer, state: OptimizerState) -> OptimizerState:
        """The optimizer's state for the padded model, from the result of ``real_optimizer``."""
        return self._convert(optimizer, state, lambda tensor, _, padded: _extend(tensor, padded))

    def _convert(
        self,
        optimizer: torch.optim.Optimizer,
        state: OptimizerState,
        convert: Callable[[torch.Tensor, torch.Size, torch.Size], torch.Tensor],
    ) -> OptimizerState:
        if not self.shapes:
            return state
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def convert_one(number: int, value: object) -> object:
            if not isinstance(value, torch.Tensor) or value.ndim == 0:  # a count of steps
                return value
            parameter = ordered[number]
            return convert(value, self.shapes[names[id(parameter)]], parameter.shape)

        entries = {
            number: {key: convert_one(number, value) for key, value in entry.items()}
            for number, entry in state["state"].items()
        }
        return {**state, "state": entries}


class _PaddedBlock(LinearBottleneck):
    """A ReXNet block whose shortcut adds only the real channels of the input. The result has
    more real channels than the input. So some of them stand at the places of the input's padded channels, and their
    gradients must not reach the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().forward(x)  # without the shortcut
        if self.drop_path is not None:
            result = self.drop_path(result)
        summed: torch.Tensor = _Shortcut.apply(result, x, self.in_channels)
        return summed


class _Shortcut(torch.autograd.Function):
    """Adds the real channels of ``x`` to the first ones of ``result``, in place.

    On a GPU, slices, a sum and a concatenation would take twice as many kernels. Gradients stay channels last. On
    a CPU, gradients get the layout that those operations would give: batch norm rounds by the layout, so the results
    are the same bit for bit.
    """

    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, x: torch.Tensor, real: int) -> torch.Tensor:
        ctx.mark_dirty(result)
        ctx.channels, ctx.real = x.shape[1], real
        result[:, :real].add_(x[:, :real])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (of_result,) = gradients
        layout = torch.channels_last
        if not of_result.is_cuda:
            layout = torch.contiguous_format
            of_result = of_result.clone(memory_format=layout)
        of_x = of_result[:, : ctx.channels].clone(memory_format=layout)
        of_x[:, ctx.real :].zero_()
        return of_result, of_x, None


def _keeps_zeros(model: nn.Module) -> bool:
    acts = [module.act for module in model.modules() if isinstance(module, BatchNormAct2d)]
    acts += [module.act_dw for module in model.modules() if isinstance(module, LinearBottleneck)]
    with torch.no_grad():
        return not any(act(torch.zeros(1)).any() for act in acts)


def _pad(module: nn.Module, *, takes_pictures: bool) -> None:
    def up(channels: int) -> int:
        return -(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE

    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1
        module.out_channels = up(module.out_channels)
        module.in_channels = module.in_channels if takes_pictures else up(module.in_channels)
        module.groups = module.in_channels if depthwise else 1
        _replace(module, "weight", (module.out_channels, 1 if depthwise else module.in_channels, *module.kernel_size))
        if module.bias is not None:
            _replace(module, "bias", (module.out_channels,))
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = up(module.num_features)
        for name in ("weight", "bias", "running_mean", "running_var"):
            _replace(module, name, (module.num_features,))
    elif isinstance(module, nn.Linear):
        module.in_features = up(module.in_features)
        _replace(module, "weight", (module.out_features, module.in_features))
    elif isinstance(module, LinearBottleneck) and module.use_shortcut:
        module.use_shortcut = False
        module.__class__ = _PaddedBlock


def _replace(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    tensor = getattr(module, name)
    padded = _extend(tensor.detach(), torch.Size(shape))
    setattr(module, name, nn.Parameter(padded) if isinstance(tensor, nn.Parameter) else padded)


def _extend(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if tensor.shape == shape:
        return tensor
    # Channels last, as in Device.place: fused optimizers need state and weight in the same memory layout.
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    padded = torch.zeros_like(tensor.new_empty(shape), memory_format=layout)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded


def _cut(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if tensor.shape == shape:
        return tensor
    real = tensor[tuple(slice(size) for size in shape)]
    # A copy, because torch.save would write the whole tensor behind a view.
    return real.clone(memory_format=torch.channels_last if real.ndim == 4 else torch.contiguous_format)

"""Changes of a model for fewer and faster kernels on a GPU. On a CPU, they change no bit of a step.

The kernels of a step with and without them were counted on a simulated GPU (tests/nullgpu): bench/trainer.md, "GPU
kernels of a step"."""

from __future__ import annotations

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def save_launches(model: nn.Module) -> None:
    """Change a model, after it was placed on its device.

    - SiLU and Hardswish write to new memory. If they worked in place, autograd would first copy their input, because it
      needs the input later.
    - The gradient of the last feature map becomes channels last, like the map. The mean over pixels gives it another
      layout, for which batch norm has slower kernels.
    - Batch norm counts its batches on the host. Nothing reads the counts during a training.
    """
    for module in model.modules():
        if isinstance(module, nn.SiLU | nn.Hardswish):
            module.inplace = False
        elif isinstance(module, SelectAdaptivePool2d):
            module.register_forward_pre_hook(_with_channels_last_gradient)
        elif isinstance(module, _BatchNorm) and module.num_batches_tracked is not None:
            module.num_batches_tracked = module.num_batches_tracked.cpu()


def _with_channels_last_gradient(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
    (images,) = arguments
    if images.requires_grad:
        images.register_hook(_as_channels_last)  # type: ignore[no-untyped-call]


def _as_channels_last(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)

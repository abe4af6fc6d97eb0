"""Models: built by timm's names, widened where the family has a width, counted without memory on the meta device."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import ModelSize, TrainConfig, nearest
from trainer.errors import ConfigError

RESERVED_ARGS = {
    **dict.fromkeys(("num_classes", "in_chans"), "comes from the pictures"),
    **dict.fromkeys(("pretrained", "checkpoint_path"), "is not allowed; training starts from random weights"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay"), "is written by the export"),
    **dict.fromkeys(("features_only",), "leaves no classifier"),
    **dict.fromkeys(("width_mult", "channels"), "is set by width_mult beside model_args"),
    **dict.fromkeys(("drop_rate",), "is set by dropout beside model_args"),
}
"""Arguments of ``timm.create_model`` that ``model_args`` may not hold: each would be ignored, or break the
promise that a candidate is a classifier of these pictures, trained from random weights."""

RESNET_CHANNELS = (64, 128, 256, 512)
"""Channels of a ResNet's four stages at width_mult 1 (He et al., 2015, table 1)."""


def has_width(model: str) -> bool:
    """Whether ``width_mult`` changes this model: only where stock timm builds the widened net from its arguments."""
    return _is_rexnet(model) or _is_resnet(model)


def timm_args(config: TrainConfig, image_size: int) -> dict[str, Any]:
    """Keyword arguments for ``timm.create_model``, besides the number of classes, that build this candidate.

    They are all that an export needs to come back through stock timm.

    Raises:
        ConfigError: unknown model name, a reserved argument, or a width for a family that has none.
    """
    if config.model not in timm.list_models():
        raise ConfigError(
            f"model = {config.model!r} is not a timm model; {nearest(config.model, timm.list_models())}"
        )
    if reserved := sorted(config.model_args.keys() & RESERVED_ARGS.keys()):
        reasons = ", ".join(f"{name} {RESERVED_ARGS[name]}" for name in reserved)
        raise ConfigError(f"model_args: leave out {', '.join(reserved)}: {reasons}")
    args: dict[str, Any] = dict(config.model_args)
    if _is_rexnet(config.model):
        args["width_mult"] = config.width_mult
    elif _is_resnet(config.model):
        args["channels"] = [max(1, round(channels * config.width_mult)) for channels in RESNET_CHANNELS]
    elif config.width_mult != 1.0:
        raise ConfigError(
            f"width_mult = {config.width_mult:g}: {config.model} has no width; use rexnet_100, rexnetr_100 "
            "or a resnet, or leave width_mult out"
        )
    elif _takes_image_size(config.model):
        args.setdefault("img_size", image_size)
    args["drop_rate"] = config.dropout
    return args


def build_model(
    config: TrainConfig, num_classes: int, image_size: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """Build the candidate with random weights drawn from torch's global generator.

    Args:
        config: the candidate.
        num_classes: outputs of the classifier.
        image_size: height and width of its input, for families whose layers depend on it.
        device: where its parameters are; "meta" allocates nothing.

    Raises:
        ConfigError: the name is unknown or the model refuses its arguments.
    """
    args = timm_args(config, image_size)
    try:
        with torch.device(device):
            return timm.create_model(config.model, pretrained=False, num_classes=num_classes, **args)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{config.model} cannot be built with {args}: {reason}") from error


def count_params(config: TrainConfig, num_classes: int, image_size: int) -> int:
    """Count a candidate's trainable parameters alone: without the forward pass that costs two thirds of ``count``.

    Raises:
        ConfigError: as ``build_model``.
    """
    return _num_params(build_model(config, num_classes, image_size, "meta"))


def count(config: TrainConfig, num_classes: int, image_size: int) -> ModelSize:
    """Count a candidate's parameters and multiply-adds on the meta device (2 to 150 ms, no memory).

    Raises:
        ConfigError: as ``build_model``, or the picture is too small for the net.
    """
    # Eval mode: in train mode batch norm refuses a single value per channel, which small pictures come to.
    model = build_model(config, num_classes, image_size, "meta").eval()
    pictures = torch.empty(1, 3, image_size, image_size, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(pictures)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{config.model} does not take pictures of {image_size} px: {error}") from error
    return ModelSize(params=_num_params(model), macs=counter.get_total_flops() // 2)


def dip(config: TrainConfig) -> float | None:
    """The width_mult at which the family's size falls instead of rising; None where it never does.

    A ResNet's first stage needs no projection where it is as wide as its stem: at 16 of 64 channels a resnet50 of
    ten classes has 1,783 parameters less than at 15, and a resnet10t at 64 has 1,165 less than at 63.

    Raises:
        ConfigError: as ``build_model``.
    """
    if not _is_resnet(config.model):
        return None
    block: Any = build_model(config, 2, 224, "meta").layer1[0]  # type: ignore[index]  # a Sequential of blocks
    return float((block.conv1.in_channels / block.expansion - 0.5) / RESNET_CHANNELS[0])


def _num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _is_rexnet(model: str) -> bool:
    # rexnet_130 and the like fix their own width inside timm and refuse another.
    return model in ("rexnet_100", "rexnetr_100")


def _is_resnet(model: str) -> bool:
    # resnet32ts, resnet51q and their like are another class in timm, without channels.
    return re.fullmatch(r"resnet\d+[cdst]?", model) is not None


@cache
def _takes_image_size(model: str) -> bool:
    """Whether timm builds this family (vision transformers and kin) for a fixed input size."""
    try:
        with torch.device("meta"):
            timm.create_model(model, pretrained=False, img_size=224)
    except TypeError:
        return False
    except (ValueError, AssertionError):
        return True
    return True

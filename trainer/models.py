"""Models: built by timm's names, widened where the family has a width, counted without memory on the meta device."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import make_divisible
from timm.models.efficientnet import _gen_efficientnet
from timm.models.mobilenetv3 import _gen_mobilenet_v3
from timm.models.rexnet import _block_cfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import SIZE_SETTINGS, ModelSize, Shape, TrainConfig
from trainer.errors import ConfigError
from trainer.values import nearest
from trainer.wide_resnet import WideResNet

RESERVED_ARGS = {
    **dict.fromkeys(("num_classes", "in_chans"), "comes from the pictures"),
    **dict.fromkeys(("pretrained", "checkpoint_path"), "is not allowed; training starts from random weights"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay"), "is written by the export"),
    **dict.fromkeys(("features_only",), "leaves no classifier"),
    **dict.fromkeys(("width_mult", "channels"), "is set by width_mult beside model_args"),
    **dict.fromkeys(("drop_rate", "drop_path_rate"), "is set by dropout and drop_path beside model_args"),
    **dict.fromkeys(("depth_mult", "initial_chs", "final_chs"), "is a setting beside model_args"),
}
"""Arguments of ``timm.create_model`` that ``model_args`` may not hold: each would be ignored, or break the
promise that a candidate is a classifier of these pictures, trained from random weights."""

RESNET_STEM = 64
"""Channels of a ResNet's first stage at width_mult 1; each further one has growth = 2 times as many (He et al.,
2015, table 1)."""


WIDE_RESNET = re.compile(r"wrn-(\d+)-(\d+)")
"""Wide ResNets are ours (trainer/wide_resnet.py); timm has none for small pictures."""

SCALED: dict[str, Callable[..., nn.Module]] = {
    "efficientnet_b0": _gen_efficientnet,
    "mobilenetv3_large_100": _gen_mobilenet_v3,
    "mobilenetv3_small_100": _gen_mobilenet_v3,
}
"""timm's generators of families whose multipliers create_model refuses ("multiple values for keyword")."""


def size_settings(model: str) -> tuple[str, ...]:
    """Which of SIZE_SETTINGS this family has; any other left at its default."""
    if _is_rexnet(model):
        return ("width_mult", "depth_mult", "initial_chs", "final_chs")
    if _is_resnet(model):
        return ("width_mult", "growth")
    if model == "efficientnet_b0":
        return ("width_mult", "depth_mult")
    if model in SCALED or WIDE_RESNET.fullmatch(model):
        return ("width_mult",)
    return ()


def has_width(model: str) -> bool:
    """Whether ``width_mult`` changes this model."""
    return "width_mult" in size_settings(model)


def is_stock(config: TrainConfig) -> bool:
    """Whether stock timm's ``create_model(name, **args)`` builds this net, so that an export comes back through it."""
    scaled = config.model in SCALED and (config.width_mult != 1.0 or config.depth_mult != 1.0)
    return not scaled and not WIDE_RESNET.fullmatch(config.model)


def model_args(config: TrainConfig, image_size: int) -> dict[str, Any]:
    """Keyword arguments, besides the numbers of classes and channels, that build this candidate.

    Where ``is_stock``, they are all that an export needs to come back through ``timm.create_model``.

    Raises:
        ConfigError: unknown model name, a reserved argument, or a size setting that the family does not have.
    """
    wide = WIDE_RESNET.fullmatch(config.model)
    if not wide and not _is_timm_model(config.model):
        raise ConfigError(f"model = {config.model!r} is not a timm model; {nearest(config.model, timm.list_models())}")
    if config.require_timm and not is_stock(config):
        raise ConfigError(
            f"require_timm: stock timm cannot build {config.model} with these settings; choose another model"
        )
    if reserved := sorted(config.model_args.keys() & RESERVED_ARGS.keys()):
        reasons = ", ".join(f"{name} {RESERVED_ARGS[name]}" for name in reserved)
        raise ConfigError(f"model_args: leave out {', '.join(reserved)}: {reasons}")
    for setting in SIZE_SETTINGS:
        value = getattr(config, setting)
        if value != TrainConfig.model_fields[setting].default and setting not in size_settings(config.model):
            what = "width" if setting == "width_mult" else setting
            having = "resnet18" if setting == "growth" else "rexnet_100"
            raise ConfigError(
                f"{setting} = {value:g}: {config.model} has no {what}; use {having} or another family that has it, "
                "or leave it out"
            )
    args: dict[str, Any] = dict(config.model_args)
    if _is_rexnet(config.model):
        args |= {name: getattr(config, name) for name in size_settings(config.model)}
    elif _is_resnet(config.model):
        stem = RESNET_STEM * config.width_mult
        args["channels"] = [max(1, round(stem * config.growth**stage)) for stage in range(4)]
    elif wide:
        args |= {"depth": int(wide[1]), "width": int(wide[2]) * config.width_mult}
    elif not is_stock(config):
        args |= {"channel_multiplier": config.width_mult, "depth_multiplier": config.depth_mult}
    elif _takes_image_size(config.model):
        args.setdefault("img_size", image_size)
    args["drop_rate"] = config.dropout
    if config.drop_path:
        args["drop_path_rate"] = config.drop_path
    return args


def build_model(config: TrainConfig, shape: Shape, device: torch.device | str = "cpu") -> nn.Module:
    """Build the candidate with random weights drawn from torch's global generator.

    Args:
        config: the candidate.
        shape: its outputs and its input; the image size matters for families whose layers depend on it.
        device: where its parameters are; "meta" allocates nothing.

    Raises:
        ConfigError: the name is unknown or the model refuses its arguments.
    """
    args = model_args(config, shape.image_size)
    num_classes, channels = shape.num_classes, shape.channels
    try:
        with torch.device(device):
            if is_stock(config):
                return timm.create_model(config.model, num_classes=num_classes, in_chans=channels, **args)
            build = SCALED.get(config.model)
            if build is None:
                return WideResNet(num_classes=num_classes, in_chans=channels, **args)
            return build(config.model, num_classes=num_classes, in_chans=channels, **args)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{config.model} cannot be built with {args}: {reason}") from error


def count(config: TrainConfig, shape: Shape) -> ModelSize:
    """Count a candidate's parameters and multiply-adds, exactly, without memory for it.

    ReXNets are counted in closed form, in about 0.15 ms; other families on the meta device, in 2 to 250 ms.

    Raises:
        ConfigError: as ``build_model``, or the picture is too small for the net.
    """
    if _is_rexnet(config.model) and not config.model_args:
        model_args(config, shape.image_size)
        return _rexnet_size(config, shape)
    # Eval mode: in train mode batch norm refuses a single value per channel, which small pictures come to.
    model = build_model(config, shape, "meta").eval()
    image = torch.empty(1, *shape.of_image, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{config.model} does not take pictures of {shape.image_size} px: {error}") from error
    return ModelSize(params=_num_params(model), macs=counter.get_total_flops() // 2)


def count_params(config: TrainConfig, shape: Shape) -> int:
    """Count a candidate's trainable parameters alone: without the forward pass of the families that need one.

    Raises:
        ConfigError: as ``build_model``.
    """
    if _is_rexnet(config.model) and not config.model_args:
        return count(config, shape).params
    return _num_params(build_model(config, shape, "meta"))


def _rexnet_size(config: TrainConfig, shape: Shape) -> ModelSize:
    """A ReXNet's size in closed form, from the channel plan that timm builds it by.

    Of each convolution: weights k k in out / groups, and as many multiply-adds at each place of its result.
    """
    width, divisor = config.width_mult, 8 if config.model == "rexnetr_100" else 1
    plan = _block_cfg(width, config.depth_mult, config.initial_chs, config.final_chs, 1 / 12, divisor)
    previous = make_divisible(round((32 / width if width < 1 else 32) * width), divisor)
    side = (shape.image_size + 1) // 2  # of what a layer gives, in pixels; all kernels of 3 are padded by 1
    params = (9 * shape.channels + 2) * previous  # a convolution without bias, and its batch norm
    macs = side**2 * 9 * shape.channels * previous
    for out, expansion, stride, squeeze in plan:
        inner = previous
        if expansion != 1:
            inner = make_divisible(round(previous * expansion), divisor)
            params += (previous + 2) * inner
            macs += side**2 * previous * inner
        side = (side + stride - 1) // stride
        params += (9 + 2) * inner
        macs += side**2 * 9 * inner
        if squeeze:
            reduced = make_divisible(int(inner * squeeze), divisor)
            params += 2 * inner * reduced + inner + 3 * reduced
            macs += 2 * inner * reduced
        params += (inner + 2) * out
        macs += side**2 * inner * out
        previous = out
    last = make_divisible(1280 * width, divisor)
    params += (previous + 2) * last + (last + 1) * shape.num_classes
    macs += side**2 * previous * last + last * shape.num_classes
    return ModelSize(params=int(params), macs=int(macs))


def dip(config: TrainConfig) -> float | None:
    """The width_mult at which the family's size falls instead of rising; None where it never does.

    A ResNet's first stage needs no projection where it is as wide as its stem: at 16 of 64 channels a resnet50 of
    ten classes has 1,783 parameters less than at 15, and a resnet10t at 64 has 1,165 less than at 63.

    Raises:
        ConfigError: as ``build_model``.
    """
    if not _is_resnet(config.model):
        return None
    block: Any = build_model(config, Shape(2, 224), "meta").layer1[0]  # type: ignore[index]  # a Sequential of blocks
    return float((block.conv1.in_channels / block.expansion - 0.5) / RESNET_STEM)


def _num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _is_rexnet(model: str) -> bool:
    # rexnet_130 and the like fix their own width inside timm and refuse another.
    return model in ("rexnet_100", "rexnetr_100")


def _is_resnet(model: str) -> bool:
    # resnet32ts, resnet51q and their like are another class in timm, without channels.
    return re.fullmatch(r"resnet\d+[cdst]?", model) is not None


@cache
def _is_timm_model(model: str) -> bool:
    return model in timm.list_models()  # which sorts more than a thousand names


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

"""Models: built by name, scaled if their family can be, and counted in closed form or on the meta device."""

from __future__ import annotations

from functools import cache
from typing import Any, assert_never

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import SIZE_SETTINGS, ModelSize, Shape, SizeSetting, TrainConfig
from trainer.errors import ConfigError
from trainer.families import OTHER, families_with, family_of, is_unscaled
from trainer.values import nearest

RESERVED_ARGS = {
    **dict.fromkeys(("num_classes", "in_chans"), "comes from the pictures"),
    **dict.fromkeys(("pretrained", "checkpoint_path"), "is not allowed; training starts from random weights"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay"), "is written by the export"),
    **dict.fromkeys(("features_only",), "leaves no classifier"),
    **dict.fromkeys(("width_mult", "channels"), "is set by width_mult in [train]"),
    **dict.fromkeys(("drop_rate", "drop_path_rate"), "is set by dropout and drop_path in [train]"),
    **dict.fromkeys(("depth_mult", "initial_chs", "final_chs", "stem"), "is a setting of [train] itself"),
}
"""Arguments of ``timm.create_model`` that ``model_args`` must not have -> reason. Some are set elsewhere. The others
break the promise that a candidate is a classifier of these pictures, trained from random weights."""


def size_settings(model: str) -> tuple[SizeSetting, ...]:
    """The SIZE_SETTINGS that the model's family has; all others keep their defaults."""
    return family_of(model).settings


def has_width(model: str) -> bool:
    """Whether ``width_mult`` changes this model."""
    return "width_mult" in size_settings(model)


def is_stock(config: TrainConfig) -> bool:
    """Whether stock timm's ``create_model(name, **args)`` builds this model, so that it can load an export."""
    match config.stem:
        case "timm":
            pass
        case "cifar":
            return False
        case _:
            assert_never(config.stem)
    stock = family_of(config.model).stock
    match stock:
        case "always":
            return True
        case "unscaled":
            return is_unscaled(config)
        case "never":
            return False
        case _:
            assert_never(stock)


def model_args(config: TrainConfig, image_size: int) -> dict[str, Any]:
    """Keyword arguments that build this candidate, besides the numbers of classes and channels.

    If ``is_stock``, they are arguments of ``timm.create_model``, which needs no others to load an export.

    Raises:
        ConfigError: the name is no model or stands for several, ``require_timm`` forbids the model, an argument is
            reserved, or the family lacks a size setting or the stem.
    """
    family = family_of(config.model)
    if config.model.startswith("timm:"):
        raise ConfigError(
            f'model = "{config.model}" stands for several models; list it in [space], model = ["{config.model}"], or '
            "name one model"
        )
    if family.stock != "never" and not _is_timm_model(config.model):
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
        if value != TrainConfig.model_fields[setting].default and setting not in family.settings:
            what = "width" if setting == "width_mult" else setting
            raise ConfigError(
                f"{setting} = {value:g}: {config.model} has no {what}; use {families_with(setting)[0].example} or "
                "another family that has it, or leave it out"
            )
    if config.stem != "timm" and not family.has_cifar_stem:
        raise ConfigError(
            f'stem = "{config.stem}": {config.model} has no such stem; use resnet18 or another ResNet, or leave it out'
        )
    args: dict[str, Any] = dict(config.model_args) | family.args(config)
    if family is OTHER and _takes_image_size(config.model):
        args.setdefault("img_size", image_size)
    args["drop_rate"] = config.dropout
    if config.drop_path:
        args["drop_path_rate"] = config.drop_path
    return args


def build_model(config: TrainConfig, shape: Shape, device: torch.device | str = "cpu") -> nn.Module:
    """Build the candidate with random weights drawn from torch's global generator.

    Args:
        config: the candidate.
        shape: outputs and input; the image size matters for families whose layers depend on it.
        device: device of the parameters; "meta" allocates nothing.

    Raises:
        ConfigError: as in ``model_args``, or the model refuses its arguments.
    """
    args = model_args(config, shape.image_size)
    num_classes, channels = shape.num_classes, shape.channels
    try:
        with torch.device(device):
            build = timm.create_model if is_stock(config) else family_of(config.model).build
            assert build is not None, f"the entry of {config.model} says that timm cannot build it, but has no build"
            return build(config.model, num_classes=num_classes, in_chans=channels, **args)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{config.model} cannot be built with {args}: {reason}") from error


def count(config: TrainConfig, shape: Shape) -> ModelSize:
    """Count a candidate's parameters and multiply-adds exactly, without allocating its weights.

    rexnet_100 and rexnetr_100 without ``model_args`` are counted in closed form, in about 0.15 ms; all others on the
    meta device, in 2 to 250 ms.

    Raises:
        ConfigError: as in ``build_model``, or the pictures are too small for the model.
    """
    if (size := family_of(config.model).size) is not None and not config.model_args:
        model_args(config, shape.image_size)  # called only for its checks
        return size(config, shape)
    # Small pictures can lead to a single value per channel, which batch norm refuses in training mode.
    model = build_model(config, shape, "meta").eval()
    image = torch.empty(1, *shape.of_image, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"{config.model} does not take pictures of {shape.image_size} px: {error}") from error
    return ModelSize(params=_num_params(model), macs=counter.get_total_flops() // 2)


def try_training(config: TrainConfig, shape: Shape) -> None:
    """Run a candidate in training mode on two pictures on the meta device.

    Raises:
        ConfigError: as in ``build_model``, or its output in training is not one tensor with one logit for each class.
            Some distilled models have two outputs.
    """
    model = build_model(config, shape, "meta").train()
    logits = model(torch.empty(2, *shape.of_image, device="meta"))
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, shape.num_classes):
        raise ConfigError(f"{config.model} does not give one logit for each class in training")


def count_params(config: TrainConfig, shape: Shape) -> int:
    """Count only a candidate's trainable parameters, which needs no forward pass.

    Raises:
        ConfigError: as in ``build_model``.
    """
    if family_of(config.model).size is not None and not config.model_args:
        return count(config, shape).params
    return _num_params(build_model(config, shape, "meta"))


def dip(config: TrainConfig) -> float | None:
    """The only width_mult at which the candidate's size falls while width_mult grows; None: it never falls.

    Raises:
        ConfigError: as in ``build_model``.
    """
    find = family_of(config.model).dip
    return None if find is None else find(build_model(config, Shape(2, 224), "meta"))


def _num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def _is_timm_model(model: str) -> bool:
    return model in timm.list_models()  # cached, because it sorts more than a thousand names


@cache
def _takes_image_size(model: str) -> bool:
    """Whether timm builds this model for a fixed input size, as it does vision transformers."""
    try:
        with torch.device("meta"):
            timm.create_model(model, pretrained=False, img_size=224)
    except TypeError:
        return False
    except (ValueError, AssertionError):
        return True
    return True

"""The model families with special treatment, one entry of FAMILIES each; any other timm model is ``OTHER``.

To add a family, add its entry. Tests compare the lists in trainer/config.py, studies/template.toml and the documents
with the table, and check each entry on its example.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from timm import create_model, is_model, model_entrypoint
from timm.layers import make_divisible
from timm.models.efficientnet import _gen_efficientnet
from timm.models.mobilenetv3 import _gen_mobilenet_v3
from timm.models.rexnet import _block_cfg
from torch import nn

from trainer.config import ModelSize, Shape, SizeSetting, TrainConfig
from trainer.wide_resnet import WideResNet

RESNET_STEM = 64
"""Channels of a ResNet's stem, and of its first stage at width_mult 1. Each further stage has ``growth`` times as many,
2 by default (He et al., 2015, table 1)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that are scaled, built and counted alike."""

    name: str
    """Name in documents: a model's name, with * for the part that varies."""
    pattern: str
    """Regular expression for the names of the family's models; it matches no model of another family."""
    example: str
    """A model of the family, for tests, and for errors about a setting that another family lacks."""
    settings: tuple[SizeSetting, ...] = ()
    """Settings that change a model's size."""
    args: Callable[[TrainConfig], dict[str, Any]] = lambda config: {}
    """Keyword arguments for ``create_model`` or ``build``, from a candidate's size settings."""
    stock: Literal["always", "unscaled", "never"] = "always"
    """Whether stock timm's ``create_model(name, **args)`` builds a candidate with timm's stem. "unscaled": only if
    width_mult and depth_mult are 1."""
    has_cifar_stem: bool = False
    """Whether a candidate may have stem = "cifar", which no stock timm builds."""
    build: Callable[..., nn.Module] | None = None
    """Builds a model that stock timm cannot build, from its name and the arguments. None: timm builds all."""
    size: Callable[[TrainConfig, Shape], ModelSize] | None = None
    """A candidate's size in closed form; not used with ``model_args``. None: the model is built on the meta device and
    counted."""
    dip: Callable[[nn.Module], float] | None = None
    """A model's size grows with width_mult, but may fall at one value, which this returns. None: it never falls."""
    is_padded: bool = False
    """Whether trainer.padding pads the channels to multiples of 8."""


def _rexnet_args(config: TrainConfig) -> dict[str, Any]:
    names = ("width_mult", "depth_mult", "initial_chs", "final_chs")
    return {name: getattr(config, name) for name in names}


def _rexnet_size(config: TrainConfig, shape: Shape, *, divisor: int) -> ModelSize:
    """A ReXNet's size, from timm's channel plan; the channels are multiples of ``divisor``.

    A convolution has k * k * in * out / groups weights, and as many multiply-adds for each pixel of its result.
    """
    width = config.width_mult
    plan = _block_cfg(width, config.depth_mult, config.initial_chs, config.final_chs, 1 / 12, divisor)
    previous = make_divisible(round((32 / width if width < 1 else 32) * width), divisor)
    side = (shape.image_size + 1) // 2  # of a layer's result, in pixels; all kernels of 3 are padded by 1
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


def _resnet_args(config: TrainConfig) -> dict[str, Any]:
    first = RESNET_STEM * config.width_mult
    channels = [max(1, round(first * config.growth**stage)) for stage in range(4)]
    return {"channels": channels} if config.stem == "timm" else {"channels": channels, "stem": config.stem}


def _build_resnet(name: str, *, stem: Literal["cifar"], in_chans: int, **args: Any) -> nn.Module:
    """A timm ResNet whose first layers are one 3x3 convolution of stride 1, with random weights as timm draws them."""
    model: Any = create_model(name, in_chans=in_chans, **args)
    model.conv1 = nn.Conv2d(in_chans, model.bn1.num_features, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    built: nn.Module = model
    return built


def _resnet_dip(model: nn.Module) -> float:
    """The width at which a ResNet's first stage is as wide as its stem, and so needs no projection.

    The first stage has 64 channels at width_mult 1. The blocks of a resnet50 put out four times as many channels. So
    if its first stage has 16, it puts out 64, as many as the stem. So a resnet50 for ten classes has 1,783
    parameters fewer with 16 channels in its first stage than with 15. A resnet10t has 1,165 fewer with 64 channels
    than with 63.
    """
    block: Any = model.layer1[0]  # type: ignore[index]  # a Sequential of blocks
    return float((block.conv1.in_channels / block.expansion - 0.5) / RESNET_STEM)


def _multipliers(config: TrainConfig) -> dict[str, Any]:
    if is_unscaled(config):  # create_model refuses multipliers ("multiple values for keyword"), even 1
        return {}
    return {"channel_multiplier": config.width_mult, "depth_multiplier": config.depth_mult}


_WIDE_RESNET = r"wrn-(\d+)-(\d+)"


def _wide_resnet_args(config: TrainConfig) -> dict[str, Any]:
    named = re.fullmatch(_WIDE_RESNET, config.model)
    assert named is not None
    return {"depth": int(named[1]), "width": int(named[2]) * config.width_mult}


def _build_wide_resnet(name: str, **args: Any) -> nn.Module:
    return WideResNet(**args)


FAMILIES = (
    Family(
        name="rexnet_100",
        pattern=r"rexnet_100",
        example="rexnet_100",
        settings=("width_mult", "depth_mult", "initial_chs", "final_chs"),
        args=_rexnet_args,
        size=partial(_rexnet_size, divisor=1),
        is_padded=True,
    ),
    Family(  # its channels are multiples of 8 already
        name="rexnetr_100",
        pattern=r"rexnetr_100",
        example="rexnetr_100",
        settings=("width_mult", "depth_mult", "initial_chs", "final_chs"),
        args=_rexnet_args,
        size=partial(_rexnet_size, divisor=8),
    ),
    Family(  # timm fixes their width and refuses another one
        name="rexnet_*",
        pattern=r"rexnet_(?!100)\d+",
        example="rexnet_130",
        is_padded=True,
    ),
    Family(  # not resnet32ts, resnet51q and similar: they are another class in timm, without ``channels``
        name="resnet*",
        pattern=r"resnet\d+[cdst]?",
        example="resnet18",
        settings=("width_mult", "growth"),
        args=_resnet_args,
        has_cifar_stem=True,
        build=_build_resnet,
        dip=_resnet_dip,
    ),
    Family(
        name="efficientnet_b0",
        pattern=r"efficientnet_b0",
        example="efficientnet_b0",
        settings=("width_mult", "depth_mult"),
        args=_multipliers,
        stock="unscaled",
        build=_gen_efficientnet,
    ),
    Family(
        name="mobilenetv3_*_100",
        pattern=r"mobilenetv3_(large|small)_100",
        example="mobilenetv3_large_100",
        settings=("width_mult",),
        args=_multipliers,
        stock="unscaled",
        build=_gen_mobilenet_v3,
    ),
    Family(  # built by trainer/wide_resnet.py; timm has no wide ResNets for small pictures
        name="wrn-*",
        pattern=_WIDE_RESNET,
        example="wrn-16-4",
        settings=("width_mult",),
        args=_wide_resnet_args,
        stock="never",
        build=_build_wide_resnet,
    ),
)

OTHER = Family(name="any other timm model", pattern=r".*", example="convnext_atto")
"""Family of all models without an entry: they have one size, and stock timm builds them."""


@cache
def family_of(model: str) -> Family:
    """The family of a model's name; OTHER if there is no entry, even if there is no such model."""
    return next((family for family in FAMILIES if re.fullmatch(family.pattern, model)), OTHER)


@cache
def kin_of(model: str) -> str:
    """Name of the group of related models that a model belongs to: timm's module, or the family if timm lacks it."""
    return model_entrypoint(model).__module__ if is_model(model) else family_of(model).name


def families_with(setting: SizeSetting) -> tuple[Family, ...]:
    """The families that have a setting, in the order of the table."""
    return tuple(family for family in FAMILIES if setting in family.settings)


def is_unscaled(config: TrainConfig) -> bool:
    """Whether width_mult and depth_mult are 1, so that the model has the size of its name."""
    return config.width_mult == 1.0 and config.depth_mult == 1.0

"""Models: exact counts, what a width, a depth and a growth do, and what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import ModelSize, Shape, TrainConfig
from trainer.errors import ConfigError
from trainer.models import build_model, count, count_params, has_width, is_stock, model_args, size_settings


def candidate(model: str, width_mult: float = 1.0, **settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"model": model, "width_mult": width_mult, **settings})


@pytest.mark.parametrize(
    ("width_mult", "num_classes", "params"),
    [(1.0, 400, 4_028_273), (1.12, 400, 4_967_719), (1.13, 400, 5_045_116), (1.15, 10, 4_648_852)],
)
def test_rexnet_has_exactly_the_published_number_of_parameters(
    width_mult: float, num_classes: int, params: int
) -> None:
    assert count(candidate("rexnet_100", width_mult), Shape(num_classes, 32)).params == params


FAMILIES = [
    candidate("rexnet_100", 0.37),
    candidate("resnet10t", 0.21),
    candidate("mobilenetv3_small_050"),
    candidate("convnext_atto"),
    candidate("vit_tiny_patch16_224", model_args={"depth": 2}),
]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model)
def test_the_count_is_that_of_the_model_that_is_built(config: TrainConfig) -> None:
    model = build_model(config, Shape(7, 64))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert count(config, Shape(7, 64)).params == trainable
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize("model", ["rexnet_100", pytest.param("rexnetr_100", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings",
    [pytest.param({}, marks=pytest.mark.slow), {"depth_mult": 1.3}, {"initial_chs": 24, "final_chs": 140}],
)
def test_rexnets_closed_form_counts_what_timm_builds(model: str, settings: dict[str, Any]) -> None:
    for width, size in zip((0.2, 0.93, 1.6), (64, 33, 7), strict=True):
        config = TrainConfig.model_validate({"model": model, "width_mult": width, **settings})
        built = build_model(config, Shape(37, size, 1), device="meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(torch.empty(1, 1, size, size, device="meta"))
        params = sum(parameter.numel() for parameter in built.parameters())
        assert count(config, Shape(37, size, 1)) == ModelSize(params=params, macs=counter.get_total_flops() // 2)
        assert count_params(config, Shape(37, size, 1)) == params


@pytest.mark.parametrize("model", ["rexnet_100", "resnet26t"])
def test_multiply_adds_are_those_that_the_layers_do(model: str) -> None:
    """Counted again from the shapes that hooks see: each output of a convolution is a dot product of its window."""
    config = candidate(model)
    built = build_model(config, Shape(7, 64)).eval()
    macs = 0

    def add(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            macs += output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features

    for layer in built.modules():
        layer.register_forward_hook(add)
    with torch.no_grad():
        built(torch.zeros(1, 3, 64, 64))
    assert count(config, Shape(7, 64)).macs == macs


def test_multiply_adds_of_a_vision_transformer_include_its_attention() -> None:
    config = candidate("vit_tiny_patch16_224", model_args={"depth": 3})
    tokens, width, hidden = 4 * 4 + 1, 192, 768
    per_block = tokens * (3 * width * width + width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    patches = 16 * (16 * 16 * 3) * width
    assert count(config, Shape(10, 64)).macs == patches + 3 * per_block + width * 10


def test_twice_the_picture_is_four_times_the_work_and_no_parameter_more() -> None:
    small, large = (count(candidate("resnet18"), Shape(10, size)) for size in (64, 128))
    assert large.params == small.params
    head = 512 * 10
    assert large.macs - head == 4 * (small.macs - head)


def test_the_families_with_a_width_are_the_plain_resnets_and_rexnets() -> None:
    with_width = {model for model in timm.list_models() if has_width(model)}
    assert {"rexnet_100", "rexnetr_100", "resnet10t", "resnet18", "resnet50", "resnet152d"} <= with_width
    assert not {"rexnet_130", "resnet51q", "resnet32ts", "resnetv2_50", "resnet50_gn"} & with_width


@pytest.mark.parametrize("model", ["rexnetr_100", "resnet10t", "resnet18d", "resnet50s"])
def test_a_width_scales_every_kind_that_has_one(model: str) -> None:
    narrow, stock = (count(candidate(model, width), Shape(10, 32)) for width in (0.5, 1.0))
    assert narrow.params < 0.45 * stock.params
    assert narrow.macs < 0.55 * stock.macs
    with torch.device("meta"):
        same = timm.create_model(model, num_classes=10)
    assert stock.params == sum(parameter.numel() for parameter in same.parameters())


@pytest.mark.parametrize("model", ["resnet18", "resnet50d", "resnet10t"])
def test_the_stem_for_cifar_sees_every_pixel_once_and_keeps_the_side(model: str) -> None:
    config = candidate(model, 0.25, stem="cifar", growth=1.5)
    torch.manual_seed(0)
    model: Any = build_model(config, Shape(10, 32, 1))
    first = model.conv1
    assert (first.kernel_size, first.stride, first.padding, first.in_channels) == ((3, 3), (1, 1), (1, 1), 1)
    assert first.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * first.out_channels)), rel=0.1)
    sides: list[int] = []
    for stage in (model.layer1, model.layer4):
        stage.register_forward_hook(lambda *made: sides.append(made[2].shape[-1]))
    model(torch.zeros(2, 1, 32, 32))
    assert sides == [32, 4], "timm's own stem gives 8 and 1"
    assert count(config, Shape(10, 32, 1)).params == sum(parameter.numel() for parameter in model.parameters())


def test_resnet18_for_cifar_has_the_size_that_is_known() -> None:
    """11.17 million parameters and 0.56 billion multiply-adds, as in https://github.com/kuangliu/pytorch-cifar."""
    assert count(candidate("resnet18", stem="cifar"), Shape(10, 32)) == ModelSize(params=11_173_962, macs=555_422_720)


def test_the_stem_for_cifar_is_not_timms_and_is_refused_where_there_is_none() -> None:
    config = candidate("resnet18", stem="cifar")
    assert not is_stock(config)
    args = model_args(config, 32)
    assert args["stem"] == "cifar", "without it, an export would name another model"
    with pytest.raises(TypeError, match="stem"):
        timm.create_model("resnet18", **args)
    with pytest.raises(ConfigError, match="require_timm: stock timm cannot build resnet18"):
        model_args(config.model_copy(update={"require_timm": True}), 32)
    with pytest.raises(ConfigError, match='stem = "cifar": rexnet_100 has no such stem; use resnet18'):
        build_model(candidate("rexnet_100", stem="cifar"), Shape(10, 32))
    with pytest.raises(ConfigError, match="leave out stem: stem is a setting of"):
        build_model(candidate("resnet18", model_args={"stem": "cifar"}), Shape(10, 32))


def test_a_width_multiplies_the_channels_of_a_resnet() -> None:
    assert model_args(candidate("resnet18", 1.0), 64)["channels"] == [64, 128, 256, 512]
    assert model_args(candidate("resnet18", 0.33), 64)["channels"] == [21, 42, 84, 169]
    assert model_args(candidate("resnet18", 0.001), 64)["channels"] == [1, 1, 1, 1]


def test_a_resnets_filters_grow_by_the_stated_factor() -> None:
    config = TrainConfig(model="resnet18", growth=1.5)
    assert model_args(config, 64)["channels"] == [64, 96, 144, 216]
    assert is_stock(config)


def test_an_efficientnet_of_scale_one_is_timms_and_a_wider_one_is_not() -> None:
    stock, wide = TrainConfig(model="efficientnet_b0"), TrainConfig(model="efficientnet_b0", width_mult=1.05)
    expected = sum(p.numel() for p in timm.create_model("efficientnet_b0", num_classes=100).parameters())
    assert count(stock, Shape(100, 64)).params == expected
    assert is_stock(stock)
    assert not is_stock(wide)
    assert count(wide, Shape(100, 64)).params > expected
    with pytest.raises(ConfigError, match="stock timm cannot build efficientnet_b0"):
        model_args(wide.model_copy(update={"require_timm": True}), 64)


def test_depth_makes_an_efficientnet_deeper_in_whole_layers() -> None:
    sizes = [count(TrainConfig(model="efficientnet_b0", depth_mult=d), Shape(10, 64)).params for d in (1.01, 1.25, 1.4)]
    assert sizes[0] == sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("model", "params"),
    [("wrn-40-2", 2_243_546), ("wrn-16-4", 2_748_890)],
)
def test_wide_resnets_have_the_papers_size(model: str, params: int) -> None:
    """The paper's table 5 says 2.2M for 40-2 and 2.8M for 16-4, with 10 classes."""
    assert count(TrainConfig(model=model), Shape(10, 32)).params == params


def test_stock_timm_builds_the_same_model_from_the_arguments() -> None:
    config = candidate("rexnet_100", 0.6, dropout=0.3, depth_mult=0.8)
    model = timm.create_model(config.model, num_classes=5, **model_args(config, 32))
    ours = build_model(config, Shape(5, 32))
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in ours.state_dict().items()
    }


def test_dropout_is_the_drop_rate_before_the_classifier() -> None:
    for model in ("rexnet_100", "resnet10t"):
        built = build_model(candidate(model, 0.2, dropout=0.4), Shape(5, 32))
        rates = {layer.p for layer in built.modules() if isinstance(layer, nn.Dropout) and layer.p}
        assert rates == {0.4} or getattr(built, "drop_rate", None) == 0.4


def test_drop_path_reaches_the_blocks() -> None:
    model = build_model(TrainConfig(model="efficientnet_b0", drop_path=0.4), Shape(10, 32), device="meta")
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4, abs=0.05)


def test_a_vision_transformer_is_built_for_the_pictures_it_gets() -> None:
    config = candidate("vit_tiny_patch16_224", model_args={"depth": 1})
    assert model_args(config, 64)["img_size"] == 64
    model = build_model(config, Shape(5, 64))
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_a_model_draws_its_weights_from_the_global_generator() -> None:
    def first_weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return next(build_model(candidate("resnet10t", 0.1), Shape(5, 32)).parameters())

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


def refusal(config: TrainConfig, image_size: int = 64) -> str:
    with pytest.raises(ConfigError) as error:
        count(config, Shape(10, image_size))
    return str(error.value)


def test_an_unknown_model_names_the_nearest_one() -> None:
    assert refusal(candidate("rexnet100")) == "model = 'rexnet100' is not a timm model; did you mean rexnet_100?"


def test_a_pattern_of_models_is_for_the_space() -> None:
    assert refusal(candidate("timm:*")) == (
        'model = "timm:*" stands for several models; list it in [space], model = ["timm:*"], or name one model'
    )


@pytest.mark.parametrize("model", ["mobilenetv3_small_050", "rexnet_130", "vit_tiny_patch16_224"])
def test_a_width_for_a_family_without_one_is_an_error(model: str) -> None:
    assert refusal(candidate(model, 0.5)).startswith(f"width_mult = 0.5: {model} has no width; use rexnet_100")


def test_a_wide_resnet_of_another_depth_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"6 n \+ 4 layers.*not 41"):
        count(TrainConfig(model="wrn-41-2"), Shape(10, 32))


def test_a_size_setting_that_the_family_does_not_have_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"growth = 1.5: vgg11 has no growth; use resnet18 or another"):
        model_args(TrainConfig(model="vgg11", growth=1.5), 64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 3),
        ("in_chans", 1),
        ("pretrained", True),
        ("checkpoint_path", "/weights.pth"),
        ("features_only", True),
        ("width_mult", 0.5),
        ("channels", [8, 8, 8, 8]),
        ("drop_rate", 0.5),
    ],
)
def test_arguments_that_are_settled_elsewhere_are_refused(name: str, value: object) -> None:
    assert f"leave out {name}: {name} " in refusal(candidate("resnet10t", model_args={name: value}))


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"no_such": 1}, "unexpected keyword argument 'no_such'"),
        ({"act_layer": "relUU"}, "'reluu'"),
        ({"global_pool": "xx"}, "Invalid pool type: xx"),
        ({"output_stride": 7}, "AssertionError"),
    ],
)
def test_arguments_that_the_model_refuses_are_a_sentence(args: dict[str, object], reason: str) -> None:
    sentence = refusal(candidate("resnet10t", model_args=args))
    assert sentence.startswith("resnet10t cannot be built with {")
    assert sentence.endswith(reason)


def test_pictures_too_small_for_the_net_are_a_sentence() -> None:
    assert refusal(candidate("inception_v3"), 16).startswith("inception_v3 does not take pictures of 16 px: ")


def test_the_table_of_families_in_the_documents_is_true() -> None:
    page = (Path(__file__).parents[2] / "docs/writing-a-study.md").read_text(encoding="utf-8")
    table = page.partition("| model | size settings |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if "`" in line]
    names = {name.replace("D-K", "16-4"): row for row in rows for name in re.findall(r"`(.*?)`", row[0])}
    assert len(names) == 8
    for name, (_, sizes, stock) in names.items():
        assert tuple(re.findall(r"`(\w+)`", sizes)) == size_settings(name), name
        answers = is_stock(candidate(name)), is_stock(candidate(name, 0.5))
        assert answers == {"yes": (True, True), "only at its own size": (True, False), "no": (False, False)}[stock], (
            name
        )
    scaled = {name for name in timm.list_models() if size_settings(name)}
    assert scaled - names.keys() == {name for name in scaled if name.startswith("resnet")} - names.keys()
